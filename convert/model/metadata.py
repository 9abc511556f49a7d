"""What the GGUF says of itself: `general.*`, `gptneox.*` and `tokenizer.*`, all that a stranger with the file needs.

Nothing here depends on the version of a tool, so that the same checkpoint always gives the same bytes.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from convert.model.gpt_neox import Hyperparameters
from convert.model.vocab import PRE_TOKENIZER, Vocabulary
from convert.quantization.imatrix import ImatrixFile, add_calibration
from convert.quantization.mixtures import Mixture
from convert.source.source import ModelCard
from weblab_local.llama.end_tokens import END_TOKENS_KEY, to_text
from weblab_local.models.attribution import ADAPTER_COUNT_KEY, adapter_key

ARCHITECTURE = "gptneox"
REPOSITORY_KEY = "general.source.huggingface.repository"
MIXTURE_KEY = "weblab_local.mixture"
"""Names a mixture that llama.cpp has no number for."""

REVISION_KEY = "weblab_local.source.revision"
NORMALIZER_KEY = "weblab_local.tokenizer.normalizer"
_END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")

IMATRIX_FILE_KEY = "quantize.imatrix.file"
IMATRIX_DATASET_KEY = "quantize.imatrix.dataset"
IMATRIX_ENTRIES_KEY = "quantize.imatrix.entries_count"
IMATRIX_CHUNKS_KEY = "quantize.imatrix.chunks_count"

_FLOAT32 = np.dtype(np.float32)

LICENCE_LINKS = {
    "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
}


@dataclass(frozen=True)
class TensorEntry:
    """A line of the GGUF's tensor table. `shape` as in numpy; `offset` and `nbytes` in bytes from the data's start."""

    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    offset: int
    nbytes: int


def tensor_table(shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, GGMLQuantizationType]) -> list[TensorEntry]:
    """Lay the tensors out one after the other, each at a multiple of GGUF's alignment."""
    entries = []
    offset = 0
    for name, shape in shapes.items():
        rows, row_bytes = gguf.quant_shape_to_byte_shape((1, *shape)[-2:], types[name])
        entries.append(TensorEntry(name, shape, types[name], offset, rows * row_bytes))
        offset = gguf.GGUFWriter.ggml_pad(offset + rows * row_bytes, gguf.GGUF_DEFAULT_ALIGNMENT)
    return entries


def header_bytes(
    card: ModelCard,
    hparams: Hyperparameters,
    vocabulary: Vocabulary,
    mixture: Mixture,
    tensors: Sequence[TensorEntry],
    imatrix: ImatrixFile | None = None,
) -> bytes:
    """All of the GGUF that comes before the tensors' data, padded to the alignment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = gguf.GGUFWriter(path, ARCHITECTURE)
        _add_general(writer, card, mixture, sum(_n_weights(tensor.shape) for tensor in tensors))
        _add_hyperparameters(writer, hparams)
        _add_tokenizer(writer, vocabulary, hparams, card.chat_template)
        if imatrix is not None:
            _add_imatrix(writer, imatrix)
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, tensor.shape, _FLOAT32, tensor.nbytes, raw_dtype=tensor.ggml_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = path.read_bytes()
    return header + bytes(-len(header) % gguf.GGUF_DEFAULT_ALIGNMENT)


def _n_weights(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _add_general(writer: gguf.GGUFWriter, card: ModelCard, mixture: Mixture, n_weights: int) -> None:
    writer.add_type("model")
    writer.add_name(card.name)
    writer.add_size_label(gguf.size_label(n_weights, n_weights, 0, 0))
    writer.add_organization(card.organization)
    writer.add_description(card.description)
    writer.add_license(card.licence)
    writer.add_license_link(LICENCE_LINKS.get(card.licence, ""))
    writer.add_languages(card.languages)
    writer.add_source_url(card.source_url)
    writer.add_source_repo_url(f"https://huggingface.co/{card.repository}" if card.repository else "")
    writer.add_string(REPOSITORY_KEY, card.repository)
    writer.add_string(REVISION_KEY, card.revision)
    if card.adapters:
        _add_adapters(writer, card)
    writer.add_file_type(mixture.file_type)
    if mixture.compensated:
        writer.add_string(MIXTURE_KEY, mixture.name)
    if mixture.base not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_adapters(writer: gguf.GGUFWriter, card: ModelCard) -> None:
    """What was merged, and into what; each adapter's keys are those of `general`, and its weights' SHA-256."""
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, card.base)
    writer.add_base_model_organization(0, card.organization)
    writer.add_base_model_repo_url(0, f"https://huggingface.co/{card.repository}" if card.repository else "")
    writer.add_uint32(ADAPTER_COUNT_KEY, len(card.adapters))
    for number, adapter in enumerate(card.adapters):
        values = {
            "name": adapter.name,
            "license": adapter.licence,
            "license.link": LICENCE_LINKS.get(adapter.licence, ""),
            "repository": adapter.repository,
            "revision": adapter.revision,
            "sha256": adapter.sha256,
        }
        for key, value in values.items():
            writer.add_string(adapter_key(number, key), value)
        writer.add_float32(adapter_key(number, "scale"), adapter.scale)


def _add_hyperparameters(writer: gguf.GGUFWriter, hparams: Hyperparameters) -> None:
    writer.add_vocab_size(hparams.vocab_size)
    writer.add_context_length(hparams.max_position_embeddings)
    writer.add_embedding_length(hparams.hidden_size)
    writer.add_block_count(hparams.num_hidden_layers)
    writer.add_feed_forward_length(hparams.intermediate_size)
    writer.add_head_count(hparams.num_attention_heads)
    writer.add_rope_dimension_count(hparams.rotary_dimensions)
    writer.add_rope_freq_base(hparams.rope_theta)
    if hparams.rope_scaling_factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(hparams.rope_scaling_factor)
    writer.add_parallel_residual(hparams.use_parallel_residual)
    writer.add_layer_norm_eps(hparams.layer_norm_eps)


def _add_tokenizer(
    writer: gguf.GGUFWriter, vocabulary: Vocabulary, hparams: Hyperparameters, chat_template: str
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(hparams.bos_token_id)
    for key, token in end_token_keys(hparams, vocabulary).items():
        if isinstance(token, int):
            writer.add_uint32(key, token)
        else:
            writer.add_string(key, token)
    writer.add_add_bos_token(False)
    writer.add_string(NORMALIZER_KEY, vocabulary.normalizer)
    if chat_template:
        writer.add_chat_template(chat_template)


def end_token_keys(hparams: Hyperparameters, vocabulary: Vocabulary) -> dict[str, int | str]:
    """Return the metadata that makes every end token of the checkpoint end an answer, by key.

    llama.cpp ends at the tokens of three keys; where there are more, this project's engine reads its own key.
    """
    ends = list(dict.fromkeys([hparams.eos_token_id, *hparams.more_eos_token_ids, *vocabulary.ends_of_turn]))
    keys: dict[str, int | str] = dict(zip(_END_KEYS, ends, strict=False))
    return keys | ({END_TOKENS_KEY: to_text(ends)} if len(ends) > len(_END_KEYS) else {})


def _add_imatrix(writer: gguf.GGUFWriter, imatrix: ImatrixFile) -> None:
    """What llama-quantize writes of an importance matrix, but no folder of the machine it was made on."""
    writer.add_string(IMATRIX_FILE_KEY, imatrix.name)
    if imatrix.datasets:
        writer.add_string(IMATRIX_DATASET_KEY, imatrix.datasets[0])
    writer.add_uint32(IMATRIX_ENTRIES_KEY, len(imatrix.matrix.entries))
    if imatrix.matrix.chunk_count:
        writer.add_uint32(IMATRIX_CHUNKS_KEY, imatrix.matrix.chunk_count)
    if imatrix.matrix.calibration is not None:
        add_calibration(writer, imatrix.matrix.calibration)
