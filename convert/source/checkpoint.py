"""A Hugging Face checkpoint on disk: config.json and its tensors, shard by shard, memory-mapped.

Two formats: `.safetensors`, preferred where both are there, and torch's zip format (`.bin`, `.pt`), read with
`weights_only` so that no code from the file ever runs. torch is imported only when such a file is opened. Tensors have
the names that transformers writes, whatever wrappers they were saved under.
"""

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError, UnsupportedModelError
from convert.source.json_files import AGAIN, read_json, require_no_pointer
from convert.source.names import canonical, is_buffer, require_merged, saved_twice
from convert.source.other_forms import adapter_config, listing, no_weights, other_form, quantized, require_unquantized
from convert.source.reading import widen
from convert.source.settings import read_config
from convert.source.tokenizer_files import TOKENIZER_FILES
from convert.source.weight_files import left_aside, state_dicts, weight_files

Dtype = Literal["F32", "F16", "BF16"]

CONFIG_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES, "chat_template.jinja", "README.md")
"""Small files that may have a say in the output, besides the shards."""

_ALWAYS_HEARD = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md")

_STATE_KEYS = ("state_dict", "model", "module")
"""Under which Lightning, training loops and DeepSpeed keep the state dict among other things."""

_NUMPY_DTYPES: dict[Dtype, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a shard: (rows, columns) or (values,), not read before it is indexed.

    `data` is float32, float16, or for BF16 the raw uint16. `position` is where it begins in the file, in bytes; for a
    `.bin`, in bytes from the file's first tensor.
    """

    dtype: Dtype
    data: NDArray[Any]
    position: int = 0

    def is_finite(self, data: NDArray[Any]) -> bool:
        """Whether `data`, values of this tensor as stored, hold neither NaN nor infinity."""
        if self.dtype == "F32":
            return bool(np.isfinite(data).all())
        exponent = 0x7C00 if self.dtype == "F16" else 0x7F80
        return not bool(((data.view(np.uint16) & exponent) == exponent).any())

    def to_float32(self, data: NDArray[Any]) -> NDArray[np.float32]:
        """`data`, values of this tensor as stored, exactly, as float32."""
        if self.dtype == "F16":
            return widen(data)
        if self.dtype == "BF16":
            return (data.astype(np.uint32) << 16).view(np.float32)
        return data.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and shards. `weight_map`: the shard (file name) of each tensor, in the shards' order.

    `fetch` makes sure a shard is in the folder before it is opened and `release` lets it go again. `tokenizer` is the
    folder of its tokenizer's files where they lie elsewhere.
    """

    folder: Path
    config: Mapping[str, Any]
    weight_map: Mapping[str, str]
    fetch: Callable[[str], None] | None = None
    release: Callable[[str], None] | None = None
    tokenizer: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files are."""
        return self.tokenizer or self.folder

    @property
    def shards(self) -> list[str]:
        """File names of the shards, sorted."""
        return sorted(set(self.weight_map.values()))

    @property
    def files_with_a_say(self) -> list[str]:
        """Names of the small files in the folder that the output depends on."""
        asked_for_ends = self.config != read_json(self.folder / "config.json")
        has_one_file = (self.folder / "tokenizer.json").is_file()
        heard = CONFIG_FILES if asked_for_ends or not has_one_file else _ALWAYS_HEARD
        return [name for name in heard if (self.folder / name).is_file()]

    @contextmanager
    def open_shard(self, shard: str) -> Iterator[dict[str, StoredTensor]]:
        """The tensors of one shard by name, valid inside the context. Raises CheckpointError for a damaged shard."""
        if self.fetch is not None:
            self.fetch(shard)
        tensors = read_shard(self.folder / shard)
        try:
            yield tensors
        finally:
            tensors.clear()  # unmaps the file where nobody keeps a tensor: Windows deletes none that is mapped
        if self.release is not None:
            self.release(shard)


def open_checkpoint(
    folder: Path,
    fetch: Callable[[str], None] | None = None,
    release: Callable[[str], None] | None = None,
    tokenizer: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """Open the checkpoint in `folder`; no weight is read. `report` is told of what is left aside.

    Raises CheckpointError that names what is wrong with it, UnsupportedModelError for weights in another form.
    """
    config = read_config(folder, tokenizer)
    names = listing(folder)
    files = weight_files(names)
    if files is None:
        raise no_weights(str(folder), names, adapter_config(folder))
    if files.left_aside:
        report(left_aside(files))
    if files.index:
        weight_map = _indexed(folder / files.index)
        require_unquantized(folder, config, weight_map)
        if fetch is None:
            for shard in sorted(set(weight_map.values())):
                _require_shard(folder / shard)
    else:
        try:
            tensors = read_shard(folder / files.single)
        except UnsupportedModelError:
            if config.get("quantization_config"):
                raise quantized(folder, config) from None
            raise
        require_unquantized(folder, config, tensors)
        weight_map = dict.fromkeys(tensors, files.single)
    return Checkpoint(folder, config, weight_map, fetch, release, tokenizer)


def _indexed(path: Path) -> dict[str, str]:
    """The shard of each tensor. Raises CheckpointError where the index is damaged or points elsewhere."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path.name} has no weight_map.", AGAIN)
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
            raise CheckpointError(f"{path.name} points outside its folder: {shard!r}.", AGAIN)
    require_merged(weight_map, path.name)
    found: dict[str, str] = {}
    for name, shard in weight_map.items():
        if found.setdefault(canonical(name), shard) != shard:
            raise saved_twice(canonical(name), path.name)
    return found


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
        names = listing(path)
        other = other_form(str(path), names, adapter_config(path))
        if other is not None:
            raise other
        if weight_files(names) is not None or state_dicts(names):
            raise CheckpointError(
                f"{path} holds weights, but no config.json.",
                "Copy config.json and the tokenizer's files of the model that it was trained from beside them.",
            )
        raise CheckpointError(
            f"{path} is no checkpoint: it has no config.json.",
            "Give the folder that holds config.json, tokenizer.json and the shards, or a Hub id like owner/name.",
        )


def read_shard(path: Path) -> dict[str, StoredTensor]:
    """The weights of a shard, memory-mapped. The buffers of old checkpoints, of whatever type, are left out.

    Raises CheckpointError for a shard that is missing or damaged, UnsupportedModelError for other types of weights.
    """
    _require_shard(path)
    return read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def _require_shard(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"The shard {path.name} is missing in {path.parent}.", AGAIN)
    with suppress(OSError):  # what reads it next says why it cannot be read
        require_no_pointer(path)


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
        raise CheckpointError(f"The shard {path.name} is truncated or damaged: {error}.", AGAIN) from None
    require_merged(header, f"The shard {path.name}")
    tensors: dict[str, StoredTensor] = {}
    for saved_name, info in header.items():
        name = canonical(saved_name)
        if name == "__metadata__" or is_buffer(name):
            continue
        if name in tensors:
            raise saved_twice(name, f"The shard {path.name}")
        dtype = _known_dtype(info["dtype"], name)
        shape = tuple(info["shape"])
        position = data_start + info["data_offsets"][0]
        data: NDArray[Any] = (
            np.memmap(path, _NUMPY_DTYPES[dtype], "r", position, shape)
            if np.prod(shape)
            else np.empty(shape, _NUMPY_DTYPES[dtype])
        )
        tensors[name] = StoredTensor(dtype, data, position)
    return tensors


def _read_bin(path: Path) -> dict[str, StoredTensor]:
    import torch

    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(
                f"The shard {path.name} is not in torch's zip format: it is damaged, or written by a torch before 1.6.",
                f"{AGAIN} An old file can be re-saved with torch.save.",
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise CheckpointError(f"The shard {path.name} is damaged, or holds more than tensors.", AGAIN) from None
        raise CheckpointError(
            f"The shard {path.name} wants to run code when it is read ({wanted[1]}); it was refused, nothing was run.",
            "Weights need no code. Do not load this file with other tools either, unless you trust its author; if it "
            "is yours, save the model's state_dict() alone.",
        ) from None
    except Exception as error:  # a damaged pickle can make the unpickler raise anything, a KeyError too
        reason = str(error).partition(". ")[0]  # what torch says after it is advice to trust the file
        raise CheckpointError(
            f"The shard {path.name} is truncated or damaged: {type(error).__name__} {reason}.", AGAIN
        ) from None
    state = _innermost(state)
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
        for value in state.values()
    ):
        raise CheckpointError(
            f"The shard {path.name} holds no state dict of dense tensors.",
            "Save the model with save_pretrained, or its state_dict() alone with torch.save.",
        )
    require_merged(map(str, state), f"The shard {path.name}")
    tensors: dict[str, StoredTensor] = {}
    first = min((tensor.data_ptr() for tensor in state.values()), default=0)
    for saved_name, tensor in state.items():
        name = canonical(str(saved_name))
        if is_buffer(name):
            continue
        position = tensor.data_ptr() - first
        if name in tensors and tensors[name].position != position:
            raise saved_twice(name, f"The shard {path.name}")
        dtype = _known_dtype(
            {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}.get(tensor.dtype, str(tensor.dtype)),
            name,
        )
        data = tensor.detach()  # parameters have a gradient to follow, and then no array
        array = (data.view(torch.uint16) if dtype == "BF16" else data).numpy()
        tensors[name] = StoredTensor(dtype, array, position)
    return tensors


def _innermost(state: Any) -> Any:
    """The state dict that is kept under another name among what else a training saves."""
    for _ in range(3):  # not for ever: what is damaged may hold itself
        if isinstance(state, dict):
            state = next((state[key] for key in _STATE_KEYS if isinstance(state.get(key), dict)), state)
    return state


def file_stamp(path: Path) -> dict[str, Any]:
    """Name, size and modification time of an input: enough to see that it has not changed, without reading it."""
    status = path.stat()
    return {"name": path.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


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
