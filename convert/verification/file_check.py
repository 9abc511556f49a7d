"""A GGUF against the checkpoint it was made from, without running it: weights, metadata, vocabulary and merges."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderField

from convert.model.gpt_neox import Hyperparameters, Tensor, hyperparameters, map_tensors
from convert.model.metadata import ARCHITECTURE, IMATRIX_FILE_KEY, MIXTURE_KEY, end_token_keys
from convert.model.vocab import PRE_TOKENIZER, Vocabulary, read_vocabulary
from convert.quantization.mixtures import ALL, MIXTURES
from convert.source.checkpoint import Checkpoint
from convert.source.tokenizer_files import tokenizer_json
from convert.verification.tensor_check import PRECISION, Progress, TensorError, check_tensors
from weblab_local.errors import ModelFileError
from weblab_local.llama.gguf_header import read_header
from weblab_local.llama.gptneox import require_gptneox

_MISSING = object()


@dataclass(frozen=True)
class TypeErrors:
    """The tensors of one ggml type: how many, the largest relative error, whose it is, and the limit."""

    ggml_type: str
    n_tensors: int
    worst_error: float
    worst_tensor: str
    limit: float


@dataclass(frozen=True)
class FileCheck:
    """What a file holds. `findings` says what is wrong, a sentence each; there are none in a sound file.

    `mixture` is the name in `general.file_type`, "" where there is none of that number; `has_imatrix` whether it was
    made with an importance matrix.
    """

    path: Path
    size: int
    mixture: str
    has_imatrix: bool
    n_weights: int
    findings: Sequence[str]
    types: Sequence[TypeErrors]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def label(self) -> str:
        """The mixture's name, with an importance matrix where there is one; the file's where it is none of ours."""
        name = self.mixture or self.path.stem
        return f"{name}, imatrix" if self.has_imatrix else name


def check_files(
    checkpoint: Checkpoint, paths: Sequence[Path], n_threads: int, progress: Progress | None = None
) -> list[FileCheck]:
    """Check each GGUF against the checkpoint, which is read once. Raises ConversionError for a bad checkpoint."""
    hparams = hyperparameters(checkpoint.config)
    vocabulary = read_vocabulary(tokenizer_json(checkpoint.tokenizer_folder), hparams.vocab_size)
    unused = "embed_out.weight" if hparams.tie_word_embeddings else None
    tensors = map_tensors(hparams, [name for name in checkpoint.weight_map if name != unused])
    opened = {path: _open(path) for path in paths}
    readers = {path: reader for path, reader in opened.items() if isinstance(reader, GGUFReader)}
    errors = check_tensors(checkpoint, hparams, tensors, list(readers.values()), n_threads, progress)
    checked = {
        path: _checked(path, reader, found, hparams, vocabulary, tensors)
        for (path, reader), found in zip(readers.items(), errors, strict=True)
    }
    checked |= {
        path: FileCheck(path, _size(path), "", False, 0, [reason], [])
        for path, reason in opened.items()
        if isinstance(reason, str)
    }
    return [checked[path] for path in paths]


def _open(path: Path) -> GGUFReader | str:
    """The file, memory-mapped, or why it cannot be read; llama.cpp's own reader has to accept it first."""
    try:
        require_gptneox(read_header(path))
        return GGUFReader(path)
    except ModelFileError as error:
        return error.message
    except (ValueError, KeyError) as error:  # what llama.cpp knows and the gguf package does not
        return f"{path} cannot be read: {error}."


def _contents(field: ReaderField) -> Any:
    """A value of the metadata, None for text that is no UTF-8."""
    try:
        return field.contents()
    except ValueError:
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _checked(
    path: Path,
    reader: GGUFReader,
    errors: Sequence[TensorError],
    hparams: Hyperparameters,
    vocabulary: Vocabulary,
    tensors: Sequence[Tensor],
) -> FileCheck:
    metadata = {key: _contents(field) for key, field in reader.fields.items()}
    surplus = {tensor.name for tensor in reader.tensors} - {tensor.name for tensor in tensors}
    findings = [error.message for error in errors if error.message]
    findings += [f"{name} is no tensor of this model." for name in sorted(surplus)]
    findings += _metadata_findings(metadata, hparams, vocabulary)
    findings += _vocabulary_findings(metadata, vocabulary)
    n_weights = sum(error.n_weights for error in errors)
    has_imatrix = IMATRIX_FILE_KEY in metadata
    return FileCheck(path, _size(path), mixture_name(metadata), has_imatrix, n_weights, findings, _by_type(errors))


def mixture_name(metadata: Mapping[str, Any]) -> str:
    """The mixture that is named, or that `general.file_type` has the number of; "" where it is none of ours."""
    if metadata.get(MIXTURE_KEY) in ALL:
        return str(metadata[MIXTURE_KEY])
    number = metadata.get("general.file_type")
    return next((name for name, mixture in MIXTURES.items() if mixture.file_type == number), "")


def _by_type(errors: Sequence[TensorError]) -> list[TypeErrors]:
    types = []
    for ggml_type in dict.fromkeys(error.ggml_type for error in errors):
        of_type = [error for error in errors if error.ggml_type == ggml_type]
        worst = max(of_type, key=lambda error: np.nan_to_num(error.error, nan=np.inf))
        limit = PRECISION[ggml_type].tensor if ggml_type in PRECISION else float("nan")
        types.append(TypeErrors(ggml_type.name, len(of_type), worst.error, worst.name, limit))
    return types


def _metadata_findings(metadata: Mapping[str, Any], hparams: Hyperparameters, vocabulary: Vocabulary) -> Iterator[str]:
    for key, expected, default, meaning in _expected_metadata(hparams, vocabulary):
        found = metadata.get(key, default)
        if found is _MISSING:
            yield f"{key} is missing in the metadata; config.json gives {expected} ({meaning})."
        elif not _equal(found, expected):
            yield f"{key} is {found} in the metadata, and config.json gives {expected} ({meaning})."


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, int | float):
        return bool(np.float32(found) == np.float32(expected))
    return type(found) is type(expected) and bool(found == expected)


def _expected_metadata(hparams: Hyperparameters, vocabulary: Vocabulary) -> list[tuple[str, Any, Any, str]]:
    """Key, value, what llama.cpp takes where the key is absent (_MISSING: it has to be there), the meaning."""
    heads = hparams.num_attention_heads
    scaling = hparams.rope_scaling_factor
    return [
        (f"{ARCHITECTURE}.{key}", expected, default, meaning)
        for key, expected, default, meaning in (
            ("context_length", hparams.max_position_embeddings, _MISSING, "max_position_embeddings"),
            ("embedding_length", hparams.hidden_size, _MISSING, "hidden_size"),
            ("block_count", hparams.num_hidden_layers, _MISSING, "num_hidden_layers"),
            ("feed_forward_length", hparams.intermediate_size, _MISSING, "intermediate_size"),
            ("vocab_size", hparams.vocab_size, hparams.vocab_size, "vocab_size"),
            ("attention.head_count", heads, _MISSING, "num_attention_heads"),
            ("attention.head_count_kv", heads, heads, "num_attention_heads"),
            ("attention.layer_norm_epsilon", hparams.layer_norm_eps, _MISSING, "layer_norm_eps"),
            (
                "rope.dimension_count",
                hparams.rotary_dimensions,
                hparams.head_dim,
                f"rotary fraction {hparams.rotary_dimensions / hparams.head_dim:.4g} of {hparams.head_dim} dimensions",
            ),
            ("rope.freq_base", hparams.rope_theta, 10000.0, "rotary base"),
            ("rope.scaling.factor", scaling, 1.0, "rope scaling"),
            *([("rope.scaling.type", "linear", "linear", "rope scaling")] if scaling != 1.0 else []),
            ("use_parallel_residual", hparams.use_parallel_residual, _MISSING, "use_parallel_residual"),
        )
    ] + [
        ("tokenizer.ggml.bos_token_id", hparams.bos_token_id, _MISSING, "bos_token_id"),
        *((key, token, _MISSING, "what ends an answer") for key, token in end_token_keys(hparams, vocabulary).items()),
        ("tokenizer.ggml.add_bos_token", False, False, "no token is added to a text"),
        ("tokenizer.ggml.add_eos_token", False, False, "no token is added to a text"),
        ("tokenizer.ggml.model", "gpt2", _MISSING, "a byte-level BPE"),
        ("tokenizer.ggml.pre", PRE_TOKENIZER, _MISSING, "GPT-2's split"),
    ]


def _vocabulary_findings(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[str]:
    for key, expected, unit in (
        ("tokens", vocabulary.tokens, "id"),
        ("token_type", vocabulary.token_types, "id"),
        ("merges", vocabulary.merges, "rank"),
    ):
        found = metadata.get(f"tokenizer.ggml.{key}")
        finding = _list_difference(found if isinstance(found, list) else [], expected, unit)
        if finding:
            yield f"tokenizer.ggml.{key} is not tokenizer.json's: {finding}."


def _list_difference(found: Sequence[Any], expected: Sequence[Any], unit: str) -> str:
    if list(found) == list(expected):
        return ""
    if len(found) != len(expected):
        return f"it has {len(found)} entries, not {len(expected)}"
    wrong = [i for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)) if ours != theirs]
    first = f"first at {unit} {wrong[0]}, {found[wrong[0]]!r} instead of {expected[wrong[0]]!r}"
    if sorted(map(str, found)) == sorted(map(str, expected)):
        return f"the same entries in another order, {len(wrong)} of them at other places, {first}"
    return f"{len(wrong)} of {len(expected)} entries differ, {first}"
