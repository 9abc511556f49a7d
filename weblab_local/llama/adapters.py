"""LoRA adapters in llama.cpp's form, looked at before llama.cpp sees them: made for this model, whole, of known types.

llama.cpp adds `scale * alpha / rank * B @ A` to a matrix while it computes. What it takes for granted of a file is in
llama-adapter.cpp (`llama_adapter_lora_init_impl`); it ends the process where a key has another type.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from weblab_local.errors import ModelFileError, WeblabError
from weblab_local.files import sha256
from weblab_local.i18n import _
from weblab_local.llama.gguf_header import Header, read_header

ALPHA_KEY = "adapter.lora.alpha"

_KEYS = {"general.architecture": "str", "general.type": "str", "adapter.type": "str", ALPHA_KEY: "f32"}
_TYPES = (0, 1, 30)
"""`enum ggml_type`: F32, F16 and BF16."""

_ALIGNMENT = 32
_EMBEDDING = "token_embd.weight"
_A, _B = ".lora_a", ".lora_b"


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a model, and how strongly it is added. `sizes`: its bytes by the base's tensors."""

    name: str
    path: Path
    scale: float
    licence: str
    sizes: Mapping[str, int]

    @property
    def identity(self) -> str:
        """What a computed state depends on: the file's content, and the scale."""
        return f"{sha256(self.path)}*{self.scale!r}"


def open_adapters(lora: Sequence[tuple[Path, float]], model: Header) -> list[Adapter]:
    """Read the headers of adapters, each a path and a scale, for the model with that header.

    Raises ModelFileError for a file that is damaged, none, or of another model; WeblabError for a scale that is none.
    """
    return [_opened(Path(path), scale, model) for path, scale in lora]


def adapter_bytes(adapters: Sequence[Adapter]) -> Mapping[str, int]:
    """Return the bytes of all `adapters` together by the base's tensors."""
    total: Counter[str] = Counter()
    for adapter in adapters:
        total.update(adapter.sizes)
    return total


def scaled(adapters: Sequence[Adapter], scales: Sequence[float]) -> list[Adapter]:
    """The same adapters at other scales, one for each. Raises WeblabError for a scale that is none, and for too few."""
    if len(scales) != len(adapters):
        raise WeblabError(
            _("There are {n} adapters, and {given} scales were given.").format(n=len(adapters), given=len(scales)),
            _("Give one for each, in the order of engine.adapters; 0 switches an adapter off."),
        )
    return [replace(adapter, scale=_number(scale)) for adapter, scale in zip(adapters, scales, strict=True)]


def _number(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
        raise WeblabError(_("The scale of an adapter is a number, not {scale}.").format(scale=scale))
    return float(scale)


def _opened(path: Path, scale: float, model: Header) -> Adapter:
    scale = _number(scale)
    header = read_header(path)
    found = {key: header.metadata.get(key) for key in _KEYS}
    if found["general.type"] != "adapter" or found["adapter.type"] != "lora":
        raise ModelFileError(
            _("{path} is no LoRA adapter.").format(path=path),
            _("Make one of what peft saved: python -m convert.lora ADAPTER --base CHECKPOINT"),
        )
    if found["general.architecture"] != model.metadata["general.architecture"]:
        raise _of_another_model(path, header)
    alpha = found[ALPHA_KEY]
    types = {key: header.types[key] for key in _KEYS if key in header.types}
    if types != {key: kind for key, kind in _KEYS.items() if key in types} or not (
        alpha is None or math.isfinite(alpha)
    ):
        raise _damaged(path)
    end = max((tensor.offset + tensor.nbytes for tensor in header.tensors.values()), default=0)
    if path.stat().st_size < end or not header.tensors:
        raise _damaged(path)
    bases = {name.removesuffix(_A).removesuffix(_B) for name in header.tensors}
    if header.tensors.keys() != {base + part for base in bases for part in (_A, _B)}:
        raise _damaged(path)
    for base in bases:
        _require_shapes(path, header, model, base)
    return Adapter(
        name=str(header.metadata.get("general.name") or path.stem),
        path=path.absolute(),
        scale=scale,
        licence=str(header.metadata.get("general.license", "")),
        sizes={base: sum(header.tensors[base + part].nbytes for part in (_A, _B)) for base in bases},
    )


def _require_shapes(path: Path, header: Header, model: Header, base: str) -> None:
    a, b = header.tensors[base + _A], header.tensors[base + _B]
    if any(tensor.ggml_type not in _TYPES or tensor.offset % _ALIGNMENT for tensor in (a, b)):
        raise _damaged(path)
    matrix = model.tensors.get(base)
    if matrix is None or len(matrix.shape) != 2:
        raise _of_another_model(path, header)
    columns, rows = matrix.shape
    (first, rank), (second, more) = ((*tensor.shape, 1)[:2] for tensor in (a, b))
    if base == _EMBEDDING:  # A is transposed, and what it makes of a token is multiplied with B
        fits = (first, rank, more) == (second, rows, columns)
    else:
        fits = (first, second, more) == (columns, rank, rows)
    if not fits:
        raise _of_another_model(path, header)


def _of_another_model(path: Path, header: Header) -> ModelFileError:
    base = header.metadata.get("general.base_model.0.name")
    named = _("It names {base} as its model.").format(base=base) if base else ""
    return ModelFileError(
        _("{path} is an adapter of another model than this. {named}").format(path=path, named=named).rstrip(),
        _("Give it with the model that it was made for."),
    )


def _damaged(path: Path) -> ModelFileError:
    return ModelFileError(
        _("{path} is damaged, or no adapter that llama.cpp can use.").format(path=path),
        _("Copy it again, or make it again: python -m convert.lora ADAPTER --base CHECKPOINT"),
    )
