"""What a caller asks, as a request for the scheduler: the prompt's ids, room for the answer, what ends it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weblab_local.engine.options import PromptOptions, with_defaults
from weblab_local.engine.request import Request
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import SamplingError
from weblab_local.i18n import _

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weblab_local.engine.prompt_ids import PromptIds


def prompt_request(
    prompts: "PromptIds",
    prompt: "str | Sequence[int]",
    params: SamplingParams | None,
    options: PromptOptions,
    cancel: Callable[[Request], None],
    make: Callable[[Callable[[], None]], Any],
) -> tuple[Request, Any]:
    """The request for a prompt, and the generation that `make` makes of what cancels it, and that gets its events.

    Raises PromptError, PromptTooLong and SamplingError as Engine.stream does.
    """
    given = with_defaults(options)
    raw, logprobs = given["raw"], given["logprobs"]
    if logprobs is not None and not (isinstance(logprobs, int) and logprobs >= 0):
        raise SamplingError(_("logprobs should be a whole number from 0 on, and is {value!r}.").format(value=logprobs))
    params = params or SamplingParams()
    ids = prompts.of(prompt, given["context"], raw=raw, special=given["special"])
    room = prompts.longest - len(ids)
    if room < 1:
        raise prompts.too_long(len(ids))
    max_tokens = min(params.max_tokens, room)
    budget = prompts.budget(params, max_tokens)
    stops, stop_ids = ((), ()) if raw else (prompts.template.stops, prompts.template.stop_ids)
    request: Request
    generation = make(lambda: cancel(request))
    request = Request(
        prompt=ids,
        params=params,
        max_tokens=max_tokens,
        stops=(*params.stop, *stops),
        stop_ids=prompts.specials_among(params.stop).union(stop_ids),
        n_logprobs=logprobs,
        budget=budget,
        emit=generation.emit,
        on_progress=given["on_progress"],
        on_begin=generation.on_begin,
    )
    return request, generation
