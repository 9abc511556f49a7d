"""The keyword arguments that `stream`, `generate`, `astream` and `agenerate` share, said once."""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, get_type_hints

PromptProgress = Callable[[int, int], None]
"""Called on the worker thread with (tokens of the prompt that are done, tokens in all)."""


class PromptOptions(TypedDict, total=False):
    """How a prompt is taken and what is reported of the answer.

    context       a text for the instruction to work on: the template's second form
    raw           take the prompt as it is; no template
    special       special tokens that a raw text has are tokens, like <|endoftext|>; else they are text
    logprobs      give log-probabilities of the tokens, and so many alternatives for each
    on_progress   called on the worker thread while the prompt is read
    """

    context: str | None
    raw: bool
    special: bool
    logprobs: int | None
    on_progress: PromptProgress | None


DEFAULTS: PromptOptions = {"context": None, "raw": False, "special": False, "logprobs": None, "on_progress": None}

F = TypeVar("F", bound=Callable[..., Any])


def spells_out_options(method: F) -> F:
    """Give a method with `**options: Unpack[PromptOptions]` a signature that names each of them, for help()."""
    signature = inspect.signature(method)
    kinds = get_type_hints(PromptOptions)
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kinds[name])
        for name, default in DEFAULTS.items()
    ]
    before = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    vars(method)["__signature__"] = signature.replace(parameters=[*before, *named])
    return method


def with_defaults(options: PromptOptions) -> PromptOptions:
    """Return all options, those that were not given at their defaults. Raises TypeError for an unknown one."""
    unknown = options.keys() - DEFAULTS.keys()
    if unknown:
        raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
    return {**DEFAULTS, **options}
