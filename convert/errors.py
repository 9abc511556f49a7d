"""What can go wrong while converting; every message names the cause, every remedy says what to do.

ConversionError
├── CheckpointError         the checkpoint is damaged, incomplete or contradicts itself
├── UnsupportedModelError   the checkpoint is whole, but llama.cpp's gptneox cannot express it
├── DownloadError           the Hub did not give it
├── TextsError              the texts for calibration or verification cannot be used
├── ImatrixError            the importance matrix is damaged, of another model, or none at all
├── VerificationError       the result does not compute what the checkpoint computes
└── OutputError             the result cannot be written: disk, memory, an existing file
"""

from weblab_local.errors import WeblabError


class ConversionError(WeblabError):
    """Base of the errors of `python -m convert`."""


class CheckpointError(ConversionError):
    """The checkpoint is damaged, incomplete or contradicts itself."""


class UnsupportedModelError(ConversionError):
    """The checkpoint is whole, but llama.cpp's gptneox cannot express it."""


class DownloadError(ConversionError):
    """The Hub did not give the checkpoint: missing, gated, or not reachable."""


class TextsError(ConversionError):
    """The texts for calibration or verification cannot be read, or are in no form that is known."""


class ImatrixError(ConversionError):
    """The importance matrix is damaged, was made of another model, or the file is none at all."""


class VerificationError(ConversionError):
    """The result does not hold or compute what the checkpoint does; it is kept under another name."""


class OutputError(ConversionError):
    """The result cannot be written: no room, not permitted, or something is there already."""
