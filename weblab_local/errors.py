"""The errors a caller can meet.

WeblabError                 anything this package raises on purpose; its message says what to do
├── PromptError             the prompt cannot be used as it is
│   └── PromptTooLong       it does not fit the context
├── SamplingError           a sampling parameter is out of its range, or a grammar cannot be read
├── ModelNotFoundError      no model of that name, or no model at all
├── ModelFileError          the file is no GGUF that this package runs
├── NotEnoughMemory         the model does not fit into this machine with these settings
├── EvaluationError         the benchmark cannot be run: data, tasks or a package is missing
├── WorkerError             an RPC worker cannot be reached, or cannot be one
├── ForkedError             the model was loaded in a process that this one was forked from
├── CopyError               a model, or what holds one, was to be copied or pickled
└── (convert.errors)        what can go wrong while converting

The command line prints the message without a traceback and exits with 1.
"""


class WeblabError(Exception):
    """Base of all errors here: what went wrong, and the remedy.

    `str(error)` is both, a line each; `remedy` may be empty where there is nothing to advise.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}\n{remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


class PromptError(WeblabError):
    """The prompt cannot be used as it is: empty, or no text, or no token ids."""


class PromptTooLong(PromptError):
    """The prompt does not fit the context, the answer included."""


class SamplingError(WeblabError, ValueError):
    """A sampling parameter is out of its range, or a grammar cannot be read."""


class ModelNotFoundError(WeblabError):
    """No model of that name in the store, no file at that path, or no model at all."""


class ModelFileError(WeblabError):
    """The file is damaged, or no GGUF of the gptneox architecture."""


class NotEnoughMemory(WeblabError):
    """The model does not fit with these settings; found out before any weight is read."""


class WorkerError(WeblabError):
    """An RPC worker cannot be reached, is no worker, speaks another version, or cannot listen."""


class ForkedError(WeblabError):
    """The model was loaded in a process that this one was forked from; only that one can use it."""


class CopyError(WeblabError, TypeError):
    """A model in memory, or an object that holds one, can be neither copied nor pickled."""


class EvaluationError(WeblabError):
    """The benchmark cannot be run: its data are missing or damaged, a task has no such name, a package is not there."""
