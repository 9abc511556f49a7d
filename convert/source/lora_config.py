"""peft's adapter_config.json, as far as merging a LoRA needs it; what cannot be merged exactly is refused by name."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError, UnsupportedModelError
from convert.source.json_files import read_json
from convert.source.names import OUTPUT_NAMES
from convert.source.other_forms import ADAPTER_CONFIG

_BY_PEFT = "Merge it with peft's merge_and_unload(), save the result with save_pretrained, and convert that."
_NO_WEIGHTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
"""Kinds of adapters that put something before the prompt and change no weight."""

_UNDERSTOOD = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "bias", "lora_bias", "init_lora_weights", "base_model_name_or_path", "revision"),
    )
)
_WITHOUT_EFFECT = frozenset(
    (
        *("auto_mapping", "peft_version", "inference_mode", "task_type", "lora_dropout", "fan_in_fan_out"),
        *("megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("runtime_config", "ensure_weight_tying"),
    )
)
"""How it was trained. fan_in_fan_out is for layers that GPT-NeoX has not; peft ignores it for torch.nn.Linear."""

_NAMES = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "monteclora_config": "MonteCLoRA",
}
_LEAVES_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""How LoRA may have been initialised: the others change the base's weights, too."""

_ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    """A LoRA's settings, in peft's names. `where` names the adapter to people; `base` and `revision` say what of.

    Patterns of modules are regular expressions for the end of their names.
    """

    where: str
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | list[str] | None
    exclude_modules: str | list[str]
    layers_to_transform: list[int]
    layers_pattern: list[str]
    modules_to_save: list[str]
    base: str
    revision: str

    def rank(self, module: str) -> int:
        """Rows of the module's A and columns of its B."""
        return self.rank_pattern.get(self._key(self.rank_pattern, module), self.r)

    def alpha(self, module: str) -> float:
        """What the module's product of B and A is multiplied by, before it is divided by the rank."""
        return self.alpha_pattern.get(self._key(self.alpha_pattern, module), self.lora_alpha)

    def scaling(self, module: str, scale: float) -> float:
        """What the module's product of B and A is multiplied by, as peft's set_scale(`scale`) computes it."""
        rank = self.rank(module)
        return scale * self.alpha(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether the settings want a LoRA for the `module` of this name, as peft's check_target_module_exists."""
        if self._is_one_of(self.exclude_modules, module):
            return False
        if any(self._match(rf"(^|.*\.){saved}($|\..*)", module) for saved in self.modules_to_save):
            return False
        if self.target_modules is None:
            return True
        if isinstance(self.target_modules, str) and self.target_modules.lower() == _ALL_LINEAR:
            return module not in OUTPUT_NAMES and not module.endswith("embed_in")
        if not self._is_one_of(self.target_modules, module):
            return False
        return isinstance(self.target_modules, str) or self._is_in_layers(module)

    def _is_in_layers(self, module: str) -> bool:
        if not self.layers_to_transform:
            return True
        patterns = [rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\." for pattern in self.layers_pattern]
        for pattern in patterns or [r".*?\.[^.]*\.(?P<layer>\d+)\."]:
            if match := self._match(pattern, module):
                return int(match["layer"]) in self.layers_to_transform
        return False

    def _key(self, patterns: Mapping[str, Any], module: str) -> str:
        return next((key for key in patterns if self._match(rf"(.*\.)?({key})$", module)), module)

    def _is_one_of(self, names: str | list[str], module: str) -> bool:
        """Whether the module is named by a list of names' ends, or by a regular expression for all of it."""
        if isinstance(names, str):
            return names != "" and self._match(names, module, re.fullmatch) is not None
        return module in names or any(module.endswith(f".{name}") for name in names)

    def _match(
        self, pattern: str, module: str, match: Callable[[str, str], re.Match[str] | None] = re.match
    ) -> re.Match[str] | None:
        try:
            return match(pattern, module)
        except re.error as error:
            raise _damaged(self.where, f"the pattern {pattern!r} is no regular expression: {error}") from None


def read_lora_config(folder: Path) -> LoraConfig:
    """Return the settings in adapter_config.json of the `folder`.

    Raises CheckpointError where it is missing or damaged, UnsupportedModelError for what is no LoRA, or one that cannot
    be merged by adding to the base's weights.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    where = str(folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(
            f"{where} is an adapter of the kind {kind}, not LORA.",
            "It changes the prompt, not the weights: a GGUF cannot hold it." if kind in _NO_WEIGHTS else _BY_PEFT,
        )
    for key, value in config.items():
        if value and key not in _UNDERSTOOD and key not in _WITHOUT_EFFECT:
            raise UnsupportedModelError(
                f"{where} is not plain LoRA: its {ADAPTER_CONFIG} asks for "
                f"{f'{_NAMES[key]} ({key})' if key in _NAMES else key}, which is not merged here.",
                _BY_PEFT,
            )
    init = config.get("init_lora_weights")
    if init not in _LEAVES_BASE:
        raise UnsupportedModelError(
            f"{where} was initialised with {init!r}, which changed the base's weights too.",
            "Save it with path_initial_model_for_weight_conversion, as peft's documentation of it says. "
            f"Or: {_BY_PEFT}",
        )
    return _read(config, where)


def _read(config: Mapping[str, Any], where: str) -> LoraConfig:
    def value(key: str, kinds: type | tuple[type, ...], default: Any) -> Any:
        found = config.get(key)
        if found is None:
            return default
        if not isinstance(found, kinds) or (isinstance(found, bool) and kinds is not bool):
            raise _damaged(where, f"{key} is {found!r}")
        return found

    def patterns(key: str, kinds: tuple[type, ...]) -> Any:
        found = value(key, dict, {})
        entries: list[Any] = list(found.values())
        are_numbers = all(isinstance(entry, kinds) and not isinstance(entry, bool) for entry in entries)
        if not are_numbers or min(entries, default=1) <= 0:
            raise _damaged(where, f"{key} is {found!r}")
        return found

    def listed(key: str, kind: type) -> list[Any]:
        found = value(key, (list, kind), [])
        found = found if isinstance(found, list) else [found]
        if not all(isinstance(entry, kind) for entry in found):
            raise _damaged(where, f"{key} is {found!r}")
        return found

    def names(key: str) -> Any:
        return found if isinstance(found := value(key, (str, list), None), str) or found is None else listed(key, str)

    r: int = value("r", int, 8)
    if r < 1:
        raise _damaged(where, f"r is {r}")
    return LoraConfig(
        where=where,
        r=r,
        lora_alpha=value("lora_alpha", (int, float), 8),
        use_rslora=value("use_rslora", bool, False),
        rank_pattern=patterns("rank_pattern", (int,)),
        alpha_pattern=patterns("alpha_pattern", (int, float)),
        target_modules=names("target_modules"),
        exclude_modules=names("exclude_modules") or [],
        layers_to_transform=listed("layers_to_transform", int),
        layers_pattern=listed("layers_pattern", str),
        modules_to_save=listed("modules_to_save", str),
        base=value("base_model_name_or_path", str, ""),
        revision=value("revision", str, ""),
    )


def _damaged(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: in {ADAPTER_CONFIG}, {what}.",
        "Take the file as peft's save_pretrained wrote it; this one was edited.",
    )
