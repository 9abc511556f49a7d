"""Text to ids as Hugging Face does it, and ids to text that is complete at every step.

llama.cpp has no NFC normalizer and GPT-NeoX's tokenizer begins with one, so text is normalized here. Special tokens
are never parsed out of text: `<|endoftext|>` typed by a user stays text.
"""

import codecs
import ctypes
import unicodedata
from itertools import groupby
from typing import Any

from weblab_local.errors import PromptError
from weblab_local.i18n import _

MOST_MARKS = 2000
"""Combining marks in a row. Unicode's stream-safe format has 30."""


def encode(vocab: Any, text: str) -> list[int]:
    """The token ids of `text`, as `AutoTokenizer(...)(text, add_special_tokens=False)` gives them.

    `vocab` is llama.cpp's `llama_vocab` pointer. Raises PromptError for lone surrogates, which no UTF-8 can hold, and
    for thousands of combining marks on one letter.
    """
    from llama_cpp import llama_cpp

    _require_few_marks(text)
    try:
        data = unicodedata.normalize("NFC", text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            _("The text holds half of a surrogate pair at position {position}.").format(position=error.start),
            _("It was decoded wrongly somewhere: read it as UTF-8."),
        ) from None
    ids = (llama_cpp.llama_token * (len(data) + 1))()
    n_ids = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), False, False)
    return list(ids[:n_ids])


def _require_few_marks(text: str) -> None:
    """Raise PromptError where NFC, whose time grows with the square of such a run, would take minutes."""
    if len(text) <= MOST_MARKS or text.isascii():
        return
    for is_marks, run in groupby(text, lambda character: unicodedata.combining(character) > 0):
        if is_marks and sum(1 for _character in run) > MOST_MARKS:
            raise PromptError(_("The text has a letter with more than {n} combining marks.").format(n=MOST_MARKS))


def piece(vocab: Any, token: int) -> bytes:
    """The bytes that `token` stands for, however many; none for a special token."""
    from llama_cpp import llama_cpp

    buffer = ctypes.create_string_buffer(64)
    n_bytes = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
    if n_bytes < 0:
        buffer = ctypes.create_string_buffer(-n_bytes)
        n_bytes = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
    return buffer.raw[:n_bytes]


class TextStream:
    """Bytes of tokens to text, a chunk at a time, never half a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that `data` completes, possibly none."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: one U+FFFD if the text ends inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
