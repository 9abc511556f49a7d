"""lm-eval's model class on this engine, under the name `weblab-local` in lm-eval's registry.

lm-eval looks nowhere for models of other packages; `python -m weblab_local.evaluation` is its command with this one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from weblab_local.engine.engine import DEFAULT_N_CTX, Engine
from weblab_local.engine.sampling import SamplingParams
from weblab_local.errors import EvaluationError
from weblab_local.i18n import _
from weblab_local.models.loading import load

T = TypeVar("T")
R = TypeVar("R")

Pair = tuple[tuple[str, str], Sequence[int], Sequence[int]]
"""(context, continuation) and the ids of each."""

MAX_TOKENS = 256
"""What lm-eval generates where a task does not say how much."""


@register_model("weblab-local")
class EngineLM(TemplateLM):  # type: ignore[misc]
    """A loaded model, for lm-eval. Closing the engine is the caller's; after Ctrl-C that ends what is running.

    `separate`: context and continuation are tokenized each on its own, as the card's benchmark does; otherwise in one
    piece, with white space at the context's end counted to the continuation, as lm-eval does. `progress` shows a bar.
    """

    def __init__(self, engine: Engine, *, separate: bool = False, progress: bool = False) -> None:
        super().__init__()
        self.engine = engine
        self._separate = separate
        self._progress = progress

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "EngineLM":
        """For lm-eval's --model_args: `model` and what else `weblab_local.load` takes; --batch_size are sequences."""
        options: dict[str, Any] = {"workload": "prompt"}
        options |= {key: value for key, value in arg_dict.items() if key not in ("model", "separate")}
        batch_size = str((additional_config or {}).get("batch_size") or 1)
        n_parallel = int(options.pop("n_parallel", batch_size if batch_size.isdigit() else 1))
        n_ctx = int(options.pop("n_ctx", DEFAULT_N_CTX * n_parallel))
        try:
            engine = load(arg_dict.get("model"), n_ctx=n_ctx, n_parallel=n_parallel, **options)
        except TypeError as error:
            raise EvaluationError(
                _("These are no arguments for a model: {error}").format(error=error),
                _("--model_args takes what weblab_local.load does: model=NAME,n_threads=2"),
            ) from None
        return cls(engine, separate=bool(arg_dict.get("separate", False)), progress=True)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> "EngineLM":
        """The same from `model=NAME,n_threads=2`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, which stands for an empty context."""
        return int(self.engine.metadata["tokenizer.ggml.eos_token_id"])

    @property
    def max_length(self) -> int:
        """Tokens of context."""
        return self.engine.longest_sequence

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's keys of cached requests."""
        return self.engine.path.stem

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ARG002
        """The ids of a text. No special token is ever added: the model has none at a text's beginning."""
        return self.engine.tokenize(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self._separate:
            return self.tok_encode(context), self.tok_encode(continuation)
        pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
        return pair

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is greedy decoding's) of each request's continuation after its context."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        """Requests with the same context, one after the other, are scored together."""
        groups = [list(group) for _key, group in groupby(map(self._fitting, requests), key=lambda pair: pair[1])]

        def score(group: Sequence[Pair]) -> list[tuple[float, bool]]:
            scores = self.engine.score(group[0][1], [continuation for _texts, _context, continuation in group])
            return [(score.loglikelihood, score.is_greedy) for score in scores]

        found = []
        for group, answers in zip(groups, self._each(score, groups), strict=True):
            for (texts, *_ids), answer in zip(group, answers, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, answer)
            found += answers
        return found

    def _fitting(self, pair: Pair) -> Pair:
        """What does not fit is cut off at the left. The last token is only predicted, never read."""
        texts, context, continuation = pair
        room = self.max_length + 1 - len(continuation)
        return texts, list(context[-max(room, 1) :]), list(continuation)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """The log-likelihood of whole texts, in windows of the context's length, each token predicted once."""

        def score(text: str) -> float:
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = map(make_disjoint_window, windows)
            return sum(self.engine.score(context, [ids])[0].loglikelihood for context, ids in pairs)

        texts = [request.args[0] for request in requests]
        found = []
        for text, answer in zip(texts, self._each(score, texts), strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
            found.append(answer)
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Answers up to the first of the stops `until`, or `max_gen_toks` tokens; greedy unless `do_sample` is set."""

        def answer(args: tuple[str, Mapping[str, Any]]) -> str:
            context, options = args
            params = _sampling(options)
            ids = self.tok_encode(context) or [self.prefix_token_id]
            room = max(self.max_length - params.max_tokens, 1)
            return self.engine.generate(ids[-room:], params, raw=True).text

        arguments = [request.args for request in requests]
        found = []
        for args, text in zip(arguments, self._each(answer, arguments), strict=True):
            self.cache_hook.add_partial("generate_until", args, text)
            found.append(text)
        return found

    def _each(self, ask: Callable[[T], R], questions: Sequence[T]) -> Iterator[R]:
        """The answers in order, as many at a time as the engine has sequences. What was not begun at the end is not."""
        pool = ThreadPoolExecutor(self.engine.n_parallel)
        try:
            yield from tqdm(pool.map(ask, questions), total=len(questions), disable=not self._progress)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _sampling(options: Mapping[str, Any]) -> SamplingParams:
    until = options.get("until") or ()
    greedy = not options.get("do_sample", False)
    return SamplingParams(
        temperature=0.0 if greedy else float(options.get("temperature", 1.0)),
        top_k=int(options.get("top_k", 0)),
        top_p=float(options.get("top_p", 1.0)),
        max_tokens=int(options.get("max_gen_toks", MAX_TOKENS)),
        stop=[stop for stop in ([until] if isinstance(until, str) else until) if stop],
    )
