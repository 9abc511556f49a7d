"""The texts for calibration and verification, as prompts in the model's template and as plain prose, and their ids.

Both sets were written for this project. They are JSONL, an object per line: either a pair (`instruction`, `output` and,
where there is a text to work on, `input`), rendered as the model card does and followed by its output, or a piece of
prose (`language`, `text`). Nothing of the verification texts is in the calibration texts or in the demo's corpus.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Tokenizer

from convert.errors import CheckpointError, TextsError, UnsupportedModelError
from convert.source.tokenizer_files import tokenizer_json
from weblab_local.engine.prompt import instruction_prompt

Language = Literal["ja", "en"]

CALIBRATION = Path(__file__).parent.parent / "calibration"
VERIFICATION = Path(__file__).parent.parent / "verification"

MAX_BYTES = 16 * 2**20
"""Size of the largest file that `read_texts` takes: far more than is ever calibrated on, less than a model's shard."""

_LANGUAGES: tuple[Language, ...] = get_args(Language)
_JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
_PAIR_FIELDS = ("instruction", "input", "output", "language")
_PROSE_FIELDS = ("text", "language")
_JAPANESE = re.compile(r"[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uff66-\uff9f\U00020000-\U0003ffff]")
_JAPANESE_SHARE = 0.2
_FORM = (
    'A line is {"instruction": "...", "output": "..."} with an optional "input", or {"text": "..."};'
    ' both may have "language": "ja" or "en".'
)


@dataclass(frozen=True)
class Text:
    """One text as the model reads it. In the template: the whole prompt, with the output after it.

    `origin` names what it was taken from, "" for this project's own.
    """

    language: Language
    text: str
    in_template: bool
    origin: str = ""


def calibration() -> list[Text]:
    """The texts to collect an importance matrix on: two thirds Japanese by bytes, most of them in the template."""
    return _shipped(CALIBRATION)


def verification() -> list[Text]:
    """The held-out texts to compare a quantized model with its reference on."""
    return _shipped(VERIFICATION)


def read_texts(path: Path) -> list[Text]:
    """The user's texts: JSONL in the form of ours (.jsonl, .ndjson, .json), or any other file as plain UTF-8 text.

    Plain text is cut at blank lines. Where no language is given it is Japanese if at least a fifth of the letters are
    kana or kanji, else it counts as English. Raises TextsError for a file that cannot be read, is empty, too large or
    in no such form, naming the line.
    """
    if path.suffix.lower() in _JSONL_SUFFIXES:
        texts = _read_jsonl(path)
    else:
        pieces = (piece.strip("\n").rstrip() for piece in re.split(r"\n\s*\n", _read(path)))
        texts = [Text(_language_of(piece), piece, in_template=False) for piece in pieces if piece.strip()]
    if not texts:
        raise TextsError(f"{path} holds no text.", "Give a file with text in it.")
    return texts


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in `folder`. `<|endoftext|>` in a text stays text, as it does when the model runs.

    Raises CheckpointError when its files are missing or damaged, UnsupportedModelError for another kind.
    """
    try:
        tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(folder)))
    except CheckpointError as error:
        raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read: {error.message}", error.remedy) from None
    except UnsupportedModelError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} cannot be read ({error}).", "Download the checkpoint again."
        ) from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def sequences(
    texts: Sequence[Text], tokenizer: Tokenizer, end_of_text: int, n_ctx: int, max_tokens: int | None = None
) -> list[list[int]]:
    """The token ids of `texts`, each sequence 2 to `n_ctx` long, at most `max_tokens` in all.

    A text in the template is one sequence that ends with the id `end_of_text`, cut at `n_ctx`; prose that is longer
    goes on in further sequences. Those of the same language and kind keep their order; the next one always comes from
    the language and kind that has given the fewest tokens so far, so that every prefix is balanced as long as there
    are texts of each. The last one is cut where `max_tokens` is reached.
    """
    return [ids for _, ids in balanced(texts, tokenizer, end_of_text, n_ctx, max_tokens)]


def balanced(
    texts: Sequence[Text], tokenizer: Tokenizer, end_of_text: int, n_ctx: int, max_tokens: int | None = None
) -> list[tuple[Language, list[int]]]:
    """The same `sequences`, each with the language of its text."""
    groups: list[tuple[Language, bool]] = [
        (language, in_template) for in_template in (True, False) for language in _LANGUAGES
    ]
    waiting = {
        group: _encoded([t for t in texts if (t.language, t.in_template) == group], tokenizer, end_of_text, n_ctx)
        for group in groups
    }
    given = dict.fromkeys(groups, 0)
    result: list[tuple[Language, list[int]]] = []
    while waiting:
        left = n_ctx if max_tokens is None else max_tokens - sum(given.values())
        if left < 2:
            break
        group = min(waiting, key=given.__getitem__)
        ids = next(waiting[group], None)
        if ids is None:
            del waiting[group]
            continue
        result.append((group[0], ids[:left]))
        given[group] += len(ids[:left])
    return result


def describe(texts: Sequence[Text], sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What a metadata field or a report says about `texts` and the `sequences` made of them, ready for JSON.

    `sha256` is over all texts in their order, with language and kind; `characters` has each language's share of
    their characters, the template's among them; `n_tokens` counts the ids of the sequences.
    """
    lines = "".join(json.dumps([text.language, text.in_template, text.text]) + "\n" for text in texts)
    n_characters = sum(len(text.text) for text in texts)
    return {
        "sha256": hashlib.sha256(lines.encode("utf-8")).hexdigest(),
        "n_texts": len(texts),
        "characters": {
            language: round(sum(len(t.text) for t in texts if t.language == language) / max(n_characters, 1), 4)
            for language in _LANGUAGES
        },
        "n_sequences": len(sequences),
        "n_tokens": sum(map(len, sequences)),
    }


def _shipped(folder: Path) -> list[Text]:
    """Pairs belong to their file's language: one in English may ask for a Japanese answer."""
    pairs = [text for language in _LANGUAGES for text in _read_jsonl(folder / f"{language}.jsonl", language)]
    return pairs + _read_jsonl(folder / "prose.jsonl")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TextsError(
                f"{path} is larger than {MAX_BYTES // 2**20} MiB.",
                "Give a part of it: some ten thousand tokens are enough.",
            )
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TextsError(f"{path} cannot be read: {error.strerror}.", "Give a file with texts.") from None
    except UnicodeDecodeError as error:
        raise TextsError(f"{path} is not UTF-8 (byte {error.start}).", "Save the text as UTF-8.") from None
    if "\0" in content:
        raise TextsError(f"{path} is not text.", "Give plain UTF-8 text or JSONL.")
    return content.replace("\r\n", "\n").replace("\r", "\n")


def _read_jsonl(path: Path, language: Language | None = None) -> list[Text]:
    """The texts of a JSONL file; `language` is that of rows that do not name one."""
    texts = []
    for number, line in enumerate(_read(path).split("\n"), 1):  # U+2028 is no line end here
        if not line.strip():
            continue
        try:
            texts.append(_text(line, language))
        except ValueError as error:
            raise TextsError(f"{path}, line {number}: {error}", _FORM) from None
    return texts


def _text(line: str, language: Language | None) -> Text:
    """One line of a JSONL file. Raises ValueError with what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON.") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object.")
    fields = _PROSE_FIELDS if "text" in row else _PAIR_FIELDS
    if unknown := sorted(row.keys() - set(fields)):
        raise ValueError(f"unexpected field {unknown[0]!r}.")
    language = _given_language(row) or language
    if "text" in row:
        text = _field(row, "text")
        return Text(language or _language_of(text), text, in_template=False)
    instruction, output = _field(row, "instruction"), _field(row, "output")
    context = _field(row, "input", optional=True)
    return Text(
        language or _language_of(instruction + context + output),
        instruction_prompt(instruction, context or None) + output,
        in_template=True,
    )


def _given_language(row: Mapping[str, Any]) -> Language | None:
    given = _field(row, "language", optional=True)
    for language in _LANGUAGES:
        if language == given:
            return language
    if given:
        raise ValueError(f"the language is {given!r}.")
    return None


def _field(row: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    value = row.get(name)
    if optional and value is None:
        return ""
    if value is None:
        raise ValueError(f"no {name!r}.")
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is not a string.")
    if not value.strip() and not optional:
        raise ValueError(f"{name!r} is empty.")
    if re.search(r"[\ud800-\udfff]", value):
        raise ValueError(f"{name!r} holds half of a surrogate pair.")
    return value


def _language_of(text: str) -> Language:
    n_letters = sum(character.isalpha() for character in text)
    return "ja" if len(_JAPANESE.findall(text)) >= max(_JAPANESE_SHARE * n_letters, 1) else "en"


def _encoded(texts: Sequence[Text], tokenizer: Tokenizer, end_of_text: int, n_ctx: int) -> Iterator[list[int]]:
    """The sequences of `texts`, encoded when they are wanted; a single id predicts nothing and is left out."""
    for text in texts:
        ids = tokenizer.encode(text.text, add_special_tokens=False).ids
        if text.in_template:
            ids.append(end_of_text)
        for start in range(0, 1 if text.in_template else len(ids), n_ctx):
            if len(ids[start : start + n_ctx]) >= 2:
                yield ids[start : start + n_ctx]
