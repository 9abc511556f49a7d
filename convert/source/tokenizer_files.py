"""The tokenizer of a checkpoint as the content of tokenizer.json, also where only GPT-2's two files are there."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from convert.errors import CheckpointError, UnsupportedModelError
from convert.source.json_files import AGAIN, read_json, require_no_pointer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
TOKENIZERS = ("tokenizer.json", "vocab.json")
"""One of them is there where there is a tokenizer that can be read."""

SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")

_OF_BASE = "Give the folder that has the tokenizer of its base model with --tokenizer DIR."
_ALWAYS_SPECIAL = ("<|endoftext|>", "<|padding|>")
"""What transformers' GPTNeoXTokenizer takes for special without being told."""


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """Return the content of tokenizer.json, built from vocab.json and merges.txt where there is none.

    Raises CheckpointError where a file is missing or damaged, UnsupportedModelError for a SentencePiece model.
    """
    if (folder / "tokenizer.json").exists():
        return read_json(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _built(folder)
    for name in SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            raise UnsupportedModelError(
                f"The tokenizer in {folder} is a SentencePiece model ({name}), as rinna's and LINE's models have it.",
                "Only GPT-NeoX models with a byte-level BPE (tokenizer.json) can be converted here.",
            )
    raise CheckpointError(f"tokenizer.json is missing in {folder}.", f"{_OF_BASE} Or: {AGAIN}")


def require_tokenizer_folder(folder: Path | None) -> None:
    """Raise CheckpointError when --tokenizer names something that is no folder."""
    if folder is not None and not folder.is_dir():
        raise CheckpointError(
            f"There is no folder {folder} with a tokenizer.", "--tokenizer wants the folder that holds tokenizer.json."
        )


def end_token(folder: Path) -> int | None:
    """Return the id of what the tokenizer's settings call `eos_token`, None where they name no token of its own."""
    try:
        token = _setting(folder, "eos_token")
        tokenizer = tokenizer_json(folder) if token else {}
        added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}
        found = added.get(token, tokenizer.get("model", {}).get("vocab", {}).get(token))
    except (CheckpointError, UnsupportedModelError, AttributeError, KeyError, TypeError):
        return None  # reading the vocabulary says what is wrong with it
    return found if isinstance(found, int) else None


def _built(folder: Path) -> dict[str, Any]:
    """GPT-NeoX's tokenizer as transformers makes it of the two files, with the added tokens that others name."""
    vocab = read_json(folder / "vocab.json")
    try:
        added = list(_added_tokens(folder, vocab))
        made = Tokenizer(models.BPE(vocab, _merges(folder / "merges.txt")))
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        built: dict[str, Any] = json.loads(made.to_str()) | {"added_tokens": added}
        checked = Tokenizer.from_str(json.dumps(built))
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        raise CheckpointError(f"vocab.json and merges.txt in {folder} are damaged: {error}.", AGAIN) from None
    for token, token_id in [*vocab.items(), *((entry["content"], entry["id"]) for entry in added)]:
        if checked.token_to_id(token) != token_id:
            raise CheckpointError(
                f"The tokenizer's files in {folder} disagree: {token!r} should have the id {token_id}, "
                f"and gets {checked.token_to_id(token)}.",
                f"They are from different models. {AGAIN}",
            )
    return built


def _merges(path: Path) -> list[tuple[str, str]]:
    require_no_pointer(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines[lines[0].startswith("#version") :] if line]
    return [(pair[0], pair[1]) for pair in merges]


def _added_tokens(folder: Path, vocab: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Entries as in tokenizer.json's `added_tokens`, by id."""
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    special = {token for token in _special(folder) if isinstance(token, str)}
    ids = {token: vocab[token] for token in (*_ALWAYS_SPECIAL, *special) if token in vocab}
    if (folder / "added_tokens.json").is_file():
        ids |= read_json(folder / "added_tokens.json")
    entries = {
        token_id: form | {"content": token, "special": token in special or token in _ALWAYS_SPECIAL}
        for token, token_id in ids.items()
    }
    for token_id, entry in (_config(folder).get("added_tokens_decoder") or {}).items():
        entries[int(token_id)] = form | {key: entry[key] for key in (*form, "content") if key in entry}
    for token_id, entry in sorted(entries.items()):
        yield {"id": token_id, **entry, "normalized": entry["normalized"] and not entry["special"]}


def _special(folder: Path) -> Iterator[Any]:
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        yield _setting(folder, name)
    for settings in (_map(folder), _config(folder)):
        more = settings.get("additional_special_tokens")
        yield from (_content(token) for token in (more if isinstance(more, list) else []))


def _setting(folder: Path, name: str) -> Any:
    """A special token by its role."""
    return _content(_config(folder).get(name) or _map(folder).get(name))


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _config(folder: Path) -> Mapping[str, Any]:
    return _optional(folder / "tokenizer_config.json")


def _map(folder: Path) -> Mapping[str, Any]:
    return _optional(folder / "special_tokens_map.json")


def _optional(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}
