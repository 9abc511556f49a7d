"""A LoRA as llama.cpp reads it beside a model: a GGUF of its own, with the names and the order of the converted base.

    NAME.lora_a    A, as peft has it: (rank, columns)
    NAME.lora_b    B, with the rows in the order of the base's: (rows, rank)

llama.cpp multiplies B @ A with adapter.lora.alpha / rank; where an adapter has another factor for a module, its B has
the rest. Of an embedding A is transposed. See `llama_adapter_lora_init_impl` in llama-adapter.cpp.
"""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from convert.errors import UnsupportedModelError
from convert.model.gpt_neox import EMBEDDING, hyperparameters, map_tensors
from convert.model.merging import merged
from convert.model.metadata import ARCHITECTURE, LICENCE_LINKS, REVISION_KEY
from convert.progress import say
from convert.source.checkpoint import Checkpoint
from convert.source.lora import Lora
from convert.source.source import Source
from weblab_local.files import written_whole


def write_adapter(checkpoint: Checkpoint, base: Source, lora: Lora, path: Path) -> None:
    """Write the `lora`, made for the `checkpoint`, to `path`, whole or not at all; in float32.

    Raises UnsupportedModelError for tensors that were trained as a whole, CheckpointError for an adapter of another
    model, OSError where it cannot be written.
    """
    adapted = merged(checkpoint, base, [lora], say)  # which looks every name and shape up
    beyond = [*lora.trained_whole, *(f"{module}.bias" for module in lora.biases)]
    if adapted.config != checkpoint.config:
        beyond.append("the size of the vocabulary")
    if beyond:
        raise UnsupportedModelError(
            f"{lora.config.where} changes {beyond[0]}, which llama.cpp's form of an adapter cannot hold.",
            "Merge it into the model: python -m convert SOURCE --lora ADAPTER.",
        )
    with written_whole(path) as partial:
        writer = gguf.GGUFWriter(partial, ARCHITECTURE)
        _add_metadata(writer, base, lora)
        for name, values in _tensors(checkpoint, lora):
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, base: Source, lora: Lora) -> None:
    adapter = lora.adapter
    writer.add_type("adapter")
    writer.add_name(adapter.name)
    writer.add_description(f"{adapter.name}, a LoRA adapter of {base.name}, converted to GGUF by weblab-local.")
    writer.add_license(adapter.licence)
    writer.add_license_link(LICENCE_LINKS.get(adapter.licence, ""))
    writer.add_source_repo_url(f"https://huggingface.co/{adapter.repository}" if adapter.repository else "")
    writer.add_string(REVISION_KEY, adapter.revision)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base.name)
    writer.add_base_model_repo_url(0, f"https://huggingface.co/{base.repository}" if base.repository else "")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(lora))


def _alpha(lora: Lora) -> float:
    """The alpha for all modules; never 0, which llama.cpp takes for none at all."""
    return float(lora.config.lora_alpha) or 1.0


def _tensors(checkpoint: Checkpoint, lora: Lora) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and values of all A and B, in the base's order."""
    for tensor in map_tensors(hyperparameters(checkpoint.config), list(checkpoint.weight_map)):
        module = (tensor.source or "").removesuffix(".weight")
        if module not in lora.pairs or not (tensor.source or "").endswith(".weight"):
            continue
        a, b = (part.read() for part in lora.pairs[module])
        factor = lora.scaling(module) * len(a) / _alpha(lora)
        if factor != 1.0:
            b = b * np.float32(factor)
        if tensor.row_order is not None:
            b = b[tensor.row_order]
        yield f"{tensor.name}.lora_a", np.ascontiguousarray(a.T if module == EMBEDDING else a)
        yield f"{tensor.name}.lora_b", np.ascontiguousarray(b)
