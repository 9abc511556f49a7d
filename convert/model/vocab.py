"""tokenizer.json to the tokens, types and merges that llama.cpp reads from `tokenizer.ggml.*`.

GPT-NeoX's tokenizer is a byte-level BPE with GPT-2's split, which llama.cpp calls "olmo". Its runs of spaces are added
tokens that are not special (USER_DEFINED: found in the text before it is split); the special ones are CONTROL, which
no text can produce. llama.cpp has no NFC normalizer: whoever tokenizes has to normalize first, and `normalizer` in the
result says whether to.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from convert.errors import CheckpointError, UnsupportedModelError

PRE_TOKENIZER = "olmo"
"""llama.cpp's name for GPT-2's split without anything else."""

END_OF_TURN = ("### End",)
"""Special tokens that end an answer without any file saying so: Dolly's, which its own program knows by this name."""

_AGAIN = "Download the checkpoint again: its tokenizer.json is damaged or was edited."
_REMEDY = "Only byte-level BPE as in GPT-NeoX-20B can be converted."


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id with their types (`gguf.TokenType`), as many as the embedding has rows, and merges by rank.

    `ends_of_turn` are ids; `left_out` are special tokens that the embedding has no rows for.
    """

    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    normalizer: str
    """"NFC", or "" where text is taken as it is."""

    ends_of_turn: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()


def read_vocabulary(tokenizer: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """Read the content of tokenizer.json for an embedding of `vocab_size` rows; rows with no token become UNUSED.

    A special token that was added without a row for it is left out: the model has never seen it, and no text gives it.
    Raises UnsupportedModelError for any other kind of tokenizer, CheckpointError when it does not fit the embedding.
    """
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not model.get("vocab"):
        raise CheckpointError("tokenizer.json has no model with a vocab.", _AGAIN)
    _check_form(tokenizer, model)
    if len(set(model["vocab"].values())) < len(model["vocab"]):
        raise CheckpointError("tokenizer.json gives one id to several tokens of its vocab.", _AGAIN)
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens") or []}
    by_id = {token_id: token for token, token_id in model["vocab"].items()}
    by_id |= {token_id: entry["content"] for token_id, entry in added.items()}
    left_out = [i for i, entry in added.items() if i >= vocab_size and entry["special"]]
    by_id = {token_id: token for token_id, token in by_id.items() if token_id not in left_out}
    if max(by_id) >= vocab_size:
        raise CheckpointError(
            f"tokenizer.json has ids up to {max(by_id)}, but the embedding has {vocab_size} rows.",
            "The tokenizer belongs to another model.",
        )

    def token_type(token_id: int) -> TokenType:
        if token_id in added:
            return TokenType.CONTROL if added[token_id]["special"] else TokenType.USER_DEFINED
        return TokenType.NORMAL if token_id in by_id else TokenType.UNUSED

    return Vocabulary(
        tokens=[by_id.get(token_id, f"[PAD{token_id}]") for token_id in range(vocab_size)],
        token_types=[int(token_type(token_id)) for token_id in range(vocab_size)],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        normalizer="NFC" if _steps(tokenizer.get("normalizer"), "normalizers") else "",
        ends_of_turn=tuple(i for i in sorted(added) if i in by_id and _ends_turn(added[i])),
        left_out=tuple(added[token_id]["content"] for token_id in left_out),
    )


def _ends_turn(entry: Mapping[str, Any]) -> bool:
    return bool(entry["special"]) and entry["content"] in END_OF_TURN


def _check_form(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Whether it is of our kind and, which is left to the tokenizers library, its ids, merges and steps are sound."""
    try:
        _check_kind(tokenizer, model)
        n_added = Tokenizer.from_str(json.dumps(tokenizer)).num_special_tokens_to_add(is_pair=False)
    except UnsupportedModelError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        reason = str(error).partition(" at line ")[0]
        raise CheckpointError(f"tokenizer.json is damaged ({type(error).__name__}: {reason}).", _AGAIN) from None
    if n_added:
        raise UnsupportedModelError(f"tokenizer.json puts {n_added} special tokens around every text.", _REMEDY)


def _check_kind(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedModelError(f"tokenizer.json holds a tokenizer of kind {model.get('type')!r}.", _REMEDY)
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(option):
            raise UnsupportedModelError(
                f"tokenizer.json uses the BPE option {option!r}, unknown to llama.cpp.", _REMEDY
            )
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    if [step["type"] for step in normalizers] not in ([], ["NFC"]):
        raise UnsupportedModelError(f"tokenizer.json normalizes with {_names(normalizers)}.", _REMEDY)
    splitters = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if [step["type"] for step in splitters] != ["ByteLevel"]:
        raise UnsupportedModelError(f"tokenizer.json splits with {_names(splitters)}.", _REMEDY)
    if splitters[0].get("add_prefix_space") or splitters[0].get("use_regex") is False:
        raise UnsupportedModelError("tokenizer.json adds a space in front, or does not split as GPT-2 does.", _REMEDY)
    for entry in tokenizer.get("added_tokens") or []:
        if any(entry.get(option) for option in ("single_word", "lstrip", "rstrip")):
            raise UnsupportedModelError(f"The added token {entry['content']!r} strips the text around it.", _REMEDY)


def _steps(step: Mapping[str, Any] | None, key: str) -> Sequence[Mapping[str, Any]]:
    if step is None:
        return []
    return step[key] if step.get("type") == "Sequence" else [step]


def _names(steps: Sequence[Mapping[str, Any]]) -> str:
    return " and ".join(str(step.get("type")) for step in steps) or "nothing"
