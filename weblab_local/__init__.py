"""weblab-local: weblab-10b-instruction-sft on your own computer, with llama.cpp."""

from weblab_local.errors import ModelFileError, ModelNotFoundError, PromptError, WeblabError

__version__ = "0.1.0"

__all__ = ["ModelFileError", "ModelNotFoundError", "PromptError", "WeblabError", "__version__"]
