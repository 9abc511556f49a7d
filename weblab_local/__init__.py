"""weblab-local: weblab-10b-instruction-sft on your own computer, with llama.cpp.

with load() as model:
    print(model.generate("日本で一番高い山は何ですか。").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from weblab_local.errors import (
    ModelFileError,
    ModelNotFoundError,
    NotEnoughMemory,
    PromptError,
    PromptTooLong,
    WeblabError,
    WorkerError,
)

if TYPE_CHECKING:
    from weblab_local.chat.session import ChatSession, Reply, ReplyStream
    from weblab_local.engine.engine import Engine
    from weblab_local.engine.generation import AsyncGeneration, Chunk, Completion, Generation, Stats, TokenLogprob
    from weblab_local.engine.sampling import SamplingParams
    from weblab_local.engine.scoring import Score
    from weblab_local.machine.placement import Placement
    from weblab_local.machine.plan import Plan
    from weblab_local.models.attribution import Attribution, licence
    from weblab_local.models.loading import load

__version__ = "0.1.0"

__all__ = [
    "AsyncGeneration",
    "Attribution",
    "ChatSession",
    "Chunk",
    "Completion",
    "Engine",
    "Generation",
    "ModelFileError",
    "ModelNotFoundError",
    "NotEnoughMemory",
    "Placement",
    "Plan",
    "PromptError",
    "PromptTooLong",
    "Reply",
    "ReplyStream",
    "SamplingParams",
    "Score",
    "Stats",
    "TokenLogprob",
    "WeblabError",
    "WorkerError",
    "__version__",
    "licence",
    "load",
]

_MODULES = {
    "AsyncGeneration": "engine.generation",
    "Attribution": "models.attribution",
    "ChatSession": "chat.session",
    "Chunk": "engine.generation",
    "Completion": "engine.generation",
    "Engine": "engine.engine",
    "Generation": "engine.generation",
    "Placement": "machine.placement",
    "Plan": "machine.plan",
    "Reply": "chat.session",
    "ReplyStream": "chat.session",
    "SamplingParams": "engine.sampling",
    "Score": "engine.scoring",
    "Stats": "engine.generation",
    "TokenLogprob": "engine.generation",
    "licence": "models.attribution",
    "load": "models.loading",
}
"""Imported when first asked for: `import weblab_local` is fast, and loads neither llama_cpp nor numpy."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
