"""A LoRA as peft saves it: what it adds to a base model's tensors, and which it puts in their place.

base_model.model.MODULE.lora_A.weight, .lora_B.weight     a linear module: B @ A, scaled, is added to its weight
base_model.model.MODULE.lora_embedding_A, _B              an embedding: the transpose of B @ A, scaled
base_model.model.MODULE.lora_B.bias                       scaled, is added to the module's bias
base_model.model.[MODULE.base_layer.]weight or bias       a tensor that was trained, or saved, as a whole
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.errors import CheckpointError, UnsupportedModelError
from convert.source import download
from convert.source.lora_config import LoraConfig, read_lora_config
from convert.source.names import OUTPUT_NAMES, is_buffer, saved_twice
from convert.source.other_forms import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from convert.source.source import Adapter, Source, licence_of, local_source
from convert.source.tensor_files import StoredTensor, as_saved, read_tensors
from weblab_local.files import sha256
from weblab_local.models.store import split_scale

_AGAIN = "Download the adapter again, or save it again with peft's save_pretrained."
_PREFIX = re.compile(r"(?:module\.|_orig_mod\.)*base_model\.model\.")
_PART = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<part>[AB])(?:\.[^.]+)??(?P<kind>\.weight|\.bias)?")
_WHOLE = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.(?P<kind>weight|bias)")
_COPY = re.compile(r".+\.(?:modules_to_save|original_module)\.(?:[^.]+\.)?(?:weight|bias)")
"""What peft saves besides of a module whose embedding grew: as it was, and again as it is."""

_FINITE_VALUES = 1 << 22


@dataclass(frozen=True)
class Lora:
    """A LoRA that was found and read as far as its names go.

    `pairs`: A and B of each module, `biases`: B's biases, `whole`: tensors that take the place of the base's. Modules
    and tensors have the names that transformers writes into files; `config` knows modules by `saved_names`.
    """

    adapter: Adapter
    config: LoraConfig
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]
    biases: Mapping[str, StoredTensor]
    whole: Mapping[str, StoredTensor]
    saved_names: Mapping[str, str]

    @property
    def trained_whole(self) -> list[str]:
        """Names of the tensors that were trained as a whole, sorted.

        Of a module with A and B, peft saves a weight too where it is an embedding or the output matrix: the base's own.
        """
        return sorted(name for name in self.whole if name.removesuffix(".weight") not in self.pairs)

    def scaling(self, module: str) -> float:
        """What B @ A of the `module` is multiplied by."""
        return self.config.scaling(self.saved_names[module], self.adapter.scale)


def open_lora(argument: str, report: Callable[[str], None]) -> Lora:
    """Open the adapter of `--lora ADAPTER[=SCALE]`: a folder as peft's save_pretrained writes it, or an id on the Hub.

    Raises DownloadError or CheckpointError where there is none, or a damaged one, UnsupportedModelError where it
    cannot be merged by adding to weights.
    """
    where, scale = split_scale(argument)
    folder = Path(where).expanduser()
    if folder.exists() or not download.is_hub_id(where):
        source = local_source(folder)
    else:
        source = download.fetch_adapter(where, report)
    if not source.folder.is_dir() or not (source.folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{where} is no adapter: it has no {ADAPTER_CONFIG}.",
            "Give the folder that peft's save_pretrained wrote, or a Hub id like owner/name.",
        )
    config = read_lora_config(source.folder)
    weights = next((path for name in ADAPTER_WEIGHTS if (path := source.folder / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{where} has no adapter_model.safetensors or adapter_model.bin.", _AGAIN)
    lora = _sorted(read_tensors(weights, as_saved, "adapter"), _adapter(source, config, scale, weights), config)
    if scale != 1.0 and lora.trained_whole:
        raise UnsupportedModelError(
            f"{where} brings {lora.trained_whole[0]} whole, in the base's place; that cannot be scaled by {scale:g}.",
            "Leave the scale out.",
        )
    return lora


def _adapter(source: Source, config: LoraConfig, scale: float, weights: Path) -> Adapter:
    return Adapter(
        name=source.name,
        folder=source.folder,
        scale=scale,
        base=config.base,
        licence=licence_of(source.folder),
        repository=source.repository,
        revision=source.revision,
        files={path.name: sha256(path) for path in (source.folder / ADAPTER_CONFIG, weights)},
    )


def _sorted(tensors: Mapping[str, StoredTensor], adapter: Adapter, config: LoraConfig) -> Lora:
    """The tensors by what they are for. Raises CheckpointError and UnsupportedModelError."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    biases: dict[str, StoredTensor] = {}
    whole: dict[str, StoredTensor] = {}
    saved_names: dict[str, str] = {}
    for saved, tensor in tensors.items():
        name = _PREFIX.sub("", saved.replace("._orig_mod.", "."), count=1)
        part = _PART.fullmatch(name)
        if part is None and (is_buffer(name) or _COPY.fullmatch(name)):
            continue
        match = part or _WHOLE.fullmatch(name)
        if match is None or (part is None and _is_of_another_kind(name)):
            raise UnsupportedModelError(
                f"{config.where} holds {saved}, which is no part of plain LoRA.",
                "Merge it with peft's merge_and_unload(), save the result with save_pretrained, and convert that.",
            )
        _require_finite(tensor, saved, config.where)
        module = _in_files(match["module"])
        if part is None:
            target, key = whole, f"{module}.{match['kind']}"
        elif part["kind"] == ".bias":
            target, key = biases, module
        else:
            target, key = parts.setdefault(module, {}), part["part"]
        if part is not None:
            saved_names[module] = match["module"]
        if key in target:
            raise saved_twice(saved, config.where)
        target[key] = tensor
    for module, pair in parts.items():
        if pair.keys() != {"A", "B"}:
            missing = min({"A", "B"} - pair.keys())
            raise CheckpointError(f"{config.where} holds no lora_{missing} of {module}.", _AGAIN)
    if not parts and not whole:
        raise CheckpointError(f"{config.where} holds no tensors.", _AGAIN)
    pairs = {module: (pair["A"], pair["B"]) for module, pair in parts.items()}
    return Lora(adapter, config, pairs, biases, whole, saved_names)


def _is_of_another_kind(name: str) -> bool:
    return re.search(r"lora_|ia3_|token_adapter|prompt_|vera_|hada_|lokr_|oft_", name) is not None


def _in_files(module: str) -> str:
    """The module's name in a checkpoint's files."""
    return OUTPUT_NAMES[0] if module in OUTPUT_NAMES else module


def _require_finite(tensor: StoredTensor, saved: str, where: str) -> None:
    step = max(1, _FINITE_VALUES // max(1, tensor.data[:1].size))
    for start in range(0, len(tensor.data) if tensor.data.ndim else 0, step):
        if not tensor.is_finite(tensor.data[start : start + step]):
            raise CheckpointError(
                f"{where} holds NaN or infinite values in {saved}.", "Its training diverged, or it is damaged."
            )
