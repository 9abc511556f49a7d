"""Text to ids as Hugging Face does it, and ids to text that is complete at every step.

llama.cpp has no NFC normalizer and GPT-NeoX's tokenizer begins with one, so text is normalized here. Special tokens
are not parsed out of text unless that is asked for: `<|endoftext|>` typed by a user stays text.
"""

import codecs
import re
import unicodedata
from ctypes import create_string_buffer
from itertools import groupby
from typing import Any

from weblab_local.errors import PromptError, PromptTooLong
from weblab_local.i18n import _

MOST_MARKS = 2000
"""Combining marks in a row. Unicode's stream-safe format has 30."""

PIECE = 4096
"""Characters that llama.cpp gets at a time, and those up to the next place where the text may be cut. Its time grows
with the square of the added tokens in what it gets."""


GUARD = "\ufdd0"
"""A noncharacter in the middle of what is written like a special token, and is text."""


class Tokenizer:
    """Ids of a text and bytes of an id, by a vocabulary of llama.cpp's. For any thread, until the model is freed."""

    def __init__(self, vocab: Any) -> None:
        """Read the vocabulary of llama.cpp's `llama_vocab` pointer."""
        from llama_cpp import llama_cpp

        self._vocab = vocab
        n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self.pieces = tuple(piece(vocab, token) for token in range(n_vocab))
        """The bytes that each token stands for; none for a special token."""
        self.end = int(llama_cpp.llama_vocab_eos(vocab))
        """The token that ends a text."""
        attributes = [llama_cpp.llama_vocab_get_attr(vocab, token) for token in range(n_vocab)]
        self.specials = {
            llama_cpp.llama_vocab_get_text(vocab, token).decode(errors="replace"): token
            for token, attribute in enumerate(attributes)
            if attribute & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        }
        """The special tokens by what they are written as."""
        by_length = sorted(filter(None, self.specials), key=len, reverse=True)
        self._special = re.compile(f"(?:{'|'.join(map(re.escape, by_length))})(?!{GUARD})") if by_length else None
        self._most_bytes = max([*map(len, self.pieces), *(len(text.encode()) for text in self.specials)], default=0)
        added = [
            self.pieces[token].decode(errors="replace")
            for token, attribute in enumerate(attributes)
            if attribute & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        ]
        runs = [len(text) for text in added if text and not text.strip(" ")]
        self._longest_run = max(runs, default=0)
        self._cut = _places_to_cut(min(runs, default=0)) if _can_be_cut(added) else None

    def encode(self, text: str, limit: int | None = None, *, special: bool = False) -> list[int]:
        """Return the token ids of `text`, as `AutoTokenizer(...)(text, add_special_tokens=False)` gives them.

        That is with `special`, except for what is `guarded`; without it, special tokens in the text are text
        (`split_special_tokens=True`).
        With `limit`, raises PromptTooLong as soon as there are more and text is left, which then costs no time. Raises
        PromptError for lone surrogates, which no UTF-8 can hold, and for thousands of combining marks on one letter.
        """
        if not special or self._special is None:
            return self._encode(text, limit)
        ids: list[int] = []
        start = 0
        for found in self._special.finditer(text):
            ids += self._encode(text[start : found.start()].replace(GUARD, ""), limit)
            ids.append(self.specials[found[0]])
            start = found.end()
            if limit is not None and len(ids) > limit:
                raise _more_than(limit)
        return ids + self._encode(text[start:].replace(GUARD, ""), limit)

    def up_to_special(self, text: str) -> tuple[str, int | None]:
        """The text before the first special token that it is written in, and that token; None: there is none."""
        found = self._special.search(text) if self._special else None
        return (text, None) if found is None else (text[: found.start()], self.specials[found[0]])

    def guarded(self, text: str) -> str:
        """`text` in which `encode` finds no special token."""
        text = text.replace(GUARD, "")
        while self._special and self._special.search(text):  # again: one may begin within another
            text = self._special.sub(lambda found: found[0][0] + GUARD + found[0][1:], text)
        return text

    def _encode(self, text: str, limit: int | None) -> list[int]:
        _require_few_marks(text)
        text = unicodedata.normalize("NFC", text)
        try:
            n_bytes = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise PromptError(
                _("The text holds half of a surrogate pair at position {position}.").format(position=error.start),
                _("It was decoded wrongly somewhere: read it as UTF-8."),
            ) from None
        ids: list[int] = []
        start = 0
        while start < len(text):
            if limit is not None and (len(ids) > limit or n_bytes > limit * self._most_bytes):
                raise _more_than(limit)
            stop = self._next_cut(text, start)
            ids += self._encode_piece(text[start:stop].encode("utf-8"))
            start = stop
        return ids

    def _next_cut(self, text: str, start: int) -> int:
        """Where a piece that begins at `start` may end: what comes after has the same ids with and without it."""
        if self._cut is None or len(text) - start <= PIECE:
            return len(text)
        end = start + PIECE
        spaces = PIECE - len(text[start:end].rstrip(" "))
        if 0 < self._longest_run <= spaces:  # runs become the longest token, again and again, from their beginning on
            return end - spaces % self._longest_run
        found = self._cut.search(text, end)
        return found.start() if found else len(text)

    def _encode_piece(self, data: bytes) -> list[int]:
        from llama_cpp import llama_cpp

        ids = (llama_cpp.llama_token * (len(data) + 1))()
        n_ids = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:n_ids])


def _more_than(limit: int) -> PromptTooLong:
    return PromptTooLong(_("The text has more than {n} tokens.").format(n=limit), _("Shorten it."))


def _can_be_cut(added: list[str]) -> bool:
    """Whether each of the added tokens is a run of spaces, as GPT-NeoX's, or has no whitespace that could be cut at."""
    return all(not text.strip(" ") or not re.search(r"\s", text) for text in added)


def _places_to_cut(shortest_run: int) -> re.Pattern[str]:
    """Return what matches where a text may be cut, `shortest_run` being the least spaces that are a token (0: none).

    GPT-2's split ends whatever it matched between something and the whitespace after it. Added tokens are taken out of
    the text before it is split, so that a run of spaces long enough begins anew, even after a line break.
    """
    after_something = r"(?<=\S)(?=[ \n\r\t\u3000])"
    return re.compile(after_something + (f"|(?<! )(?= {{{shortest_run}}})" if shortest_run else ""))


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

    buffer = create_string_buffer(64)
    n_bytes = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
    if n_bytes < 0:
        buffer = create_string_buffer(-n_bytes)
        n_bytes = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
    return buffer.raw[:n_bytes]


class TextStream:
    """Bytes of tokens to text, a chunk at a time, never half a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that `data` completes, possibly none."""
        return self._decoder.decode(data)

    @property
    def ends_whole(self) -> bool:
        """Whether no character is half there."""
        return not self._decoder.getstate()[0]

    def finish(self) -> str:
        """What is left: one U+FFFD if the text ends inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
