"""A Hugging Face checkpoint on disk: config.json and its tensors, shard by shard, memory-mapped.

Two formats: `.safetensors`, preferred where both are there, and torch's zip format `.bin`, read with `weights_only`
so that no code from the file ever runs. torch is imported only when a `.bin` is opened.
"""

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError, UnsupportedModelError
from convert.gpt_neox import is_buffer

Dtype = Literal["F32", "F16", "BF16"]

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")

_NUMPY_DTYPES: dict[Dtype, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_AGAIN = "Download the checkpoint again, or check that it was copied whole."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a shard: (rows, columns) or (values,), not read before it is indexed.

    `data` is float32, float16, or for BF16 the raw uint16.
    """

    dtype: Dtype
    data: NDArray[Any]

    def is_finite(self, data: NDArray[Any]) -> bool:
        """Whether `data`, values of this tensor as stored, hold neither NaN nor infinity."""
        if self.dtype == "F32":
            return bool(np.isfinite(data).all())
        exponent = 0x7C00 if self.dtype == "F16" else 0x7F80
        return not bool(((data.view(np.uint16) & exponent) == exponent).any())

    def to_float32(self, data: NDArray[Any]) -> NDArray[np.float32]:
        """`data`, values of this tensor as stored, exactly, as float32."""
        if self.dtype == "BF16":
            return (data.astype(np.uint32) << 16).view(np.float32)
        return data.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and shards. `weight_map`: the shard (file name) of each tensor, in the shards' order.

    `fetch` makes sure a shard is in the folder before it is opened and `release` lets it go again.
    """

    folder: Path
    config: Mapping[str, Any]
    weight_map: Mapping[str, str]
    fetch: Callable[[str], None] | None = None
    release: Callable[[str], None] | None = None

    @property
    def shards(self) -> list[str]:
        """File names of the shards, sorted."""
        return sorted(set(self.weight_map.values()))

    @contextmanager
    def open_shard(self, shard: str) -> Iterator[dict[str, StoredTensor]]:
        """The tensors of one shard by name, valid inside the context. Raises CheckpointError for a damaged shard."""
        if self.fetch is not None:
            self.fetch(shard)
        yield read_shard(self.folder / shard)
        if self.release is not None:
            self.release(shard)


def open_checkpoint(
    folder: Path, fetch: Callable[[str], None] | None = None, release: Callable[[str], None] | None = None
) -> Checkpoint:
    """Open the checkpoint in `folder`; no weight is read. Raises CheckpointError that names what is wrong with it."""
    config = read_json(folder / "config.json")
    for index_file, single_file in zip(INDEX_FILES, SINGLE_FILES, strict=True):
        if (folder / index_file).is_file():
            weight_map = read_json(folder / index_file).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointError(f"{index_file} has no weight_map.", _AGAIN)
            for shard in weight_map.values():
                if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
                    raise CheckpointError(f"{index_file} points outside its folder: {shard!r}.", _AGAIN)
            if fetch is None:
                for shard in sorted(set(weight_map.values())):
                    _require_shard(folder / shard)
            return Checkpoint(folder, config, weight_map, fetch, release)
        if (folder / single_file).is_file():
            tensors = read_shard(folder / single_file)
            return Checkpoint(folder, config, dict.fromkeys(tensors, single_file), fetch, release)
    raise CheckpointError(
        f"{folder} holds a config.json, but no weights.",
        f"Expected one of {', '.join((*SINGLE_FILES, *INDEX_FILES))}. {_AGAIN}",
    )


def require_checkpoint_folder(path: Path) -> None:
    """Raise CheckpointError unless `path` is a folder with a config.json, and say what it is instead."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                raise CheckpointError(
                    f"{path} is a GGUF file already; the source has to be a Hugging Face checkpoint.",
                    "To use it: weblab-local --model FILE. To requantize, give the checkpoint it was made from.",
                )
        raise CheckpointError(
            f"{path} is a file; the source has to be a checkpoint's folder or a Hub id.",
            "Give the folder that holds config.json, tokenizer.json and the shards.",
        )
    if not path.exists():
        raise CheckpointError(f"There is no folder {path}.", "Give a checkpoint's folder, or a Hub id like owner/name.")
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is no checkpoint: it has no config.json.",
            "Give the folder that holds config.json, tokenizer.json and the shards, or a Hub id like owner/name.",
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError when it is missing, damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing in {path.parent}.", _AGAIN) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", _AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}.", _AGAIN) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object.", _AGAIN)
    return value


def read_shard(path: Path) -> dict[str, StoredTensor]:
    """The weights of a shard, memory-mapped. The buffers of old checkpoints, of whatever type, are left out.

    Raises CheckpointError for a shard that is missing or damaged, UnsupportedModelError for other types of weights.
    """
    _require_shard(path)
    return read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def _require_shard(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"The shard {path.name} is missing in {path.parent}.", _AGAIN)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The weights of a .safetensors file, whatever its name, memory-mapped. Raises as `read_shard` does."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass  # the library checks that header and file agree
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            data_start = file.tell()
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"The shard {path.name} is truncated or damaged: {error}.", _AGAIN) from None
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__" or is_buffer(name):
            continue
        dtype = _known_dtype(info["dtype"], name)
        shape = tuple(info["shape"])
        data: NDArray[Any] = (
            np.memmap(path, _NUMPY_DTYPES[dtype], "r", data_start + info["data_offsets"][0], shape)
            if np.prod(shape)
            else np.empty(shape, _NUMPY_DTYPES[dtype])
        )
        tensors[name] = StoredTensor(dtype, data)
    return tensors


def _read_bin(path: Path) -> dict[str, StoredTensor]:
    import torch

    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(
                f"The shard {path.name} is not in torch's zip format: it is damaged, or written by a torch before 1.6.",
                f"{_AGAIN} An old file can be re-saved with torch.save.",
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise CheckpointError(f"The shard {path.name} is damaged, or holds more than tensors.", _AGAIN) from None
        raise CheckpointError(
            f"The shard {path.name} wants to run code when it is read ({wanted[1]}); it was refused, nothing was run.",
            "Weights need no code. Do not load this file with other tools either, unless you trust its author.",
        ) from None
    except Exception as error:  # a damaged pickle can make the unpickler raise anything, a KeyError too
        reason = str(error).partition(". ")[0]  # what torch says after it is advice to trust the file
        raise CheckpointError(
            f"The shard {path.name} is truncated or damaged: {type(error).__name__} {reason}.", _AGAIN
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
        for value in state.values()
    ):
        raise CheckpointError(
            f"The shard {path.name} holds no state dict of dense tensors.",
            "Save the model with save_pretrained, or its state_dict() alone with torch.save.",
        )
    tensors = {}
    for name, tensor in state.items():
        if is_buffer(str(name)):
            continue
        dtype = _known_dtype(
            {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}.get(tensor.dtype, str(tensor.dtype)),
            name,
        )
        data = tensor.detach()  # parameters have a gradient to follow, and then no array
        tensors[str(name)] = StoredTensor(dtype, (data.view(torch.uint16) if dtype == "BF16" else data).numpy())
    return tensors


def _known_dtype(dtype: str, tensor: str) -> Dtype:
    if dtype == "F32":
        return "F32"
    if dtype == "F16":
        return "F16"
    if dtype == "BF16":
        return "BF16"
    raise UnsupportedModelError(
        f"The tensor {tensor} is stored as {dtype}; only float16, bfloat16 and float32 weights can be converted.",
        "A checkpoint that is quantized already (GPTQ, AWQ, 8-bit) will not do: take the original one.",
    )
