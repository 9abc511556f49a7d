"""Settings of an engine: those that cannot be are refused before anything is loaded."""

from collections.abc import Iterable

from weblab_local.errors import WeblabError
from weblab_local.i18n import _
from weblab_local.llama.adapters import Adapter
from weblab_local.llama.kv_types import KvType, require_kv_type


def state_key(
    flash_attention: bool | None, n_gpu_layers: int, devices: Iterable[str], adapters: Iterable[Adapter]
) -> str:
    """What a saved KV state depends on besides the model: how it was computed, on which devices, with what adapters."""
    parts = [f"flash_attention={flash_attention} n_gpu_layers={n_gpu_layers}"]
    if names := ", ".join(devices):
        parts.append(f"devices={names}")
    return " ".join([*parts, *(f"lora={adapter.identity}" for adapter in adapters)])


def require_settings(
    n_ctx: int, n_parallel: int, n_threads: int | None, kv_type: KvType, flash_attention: bool | None
) -> None:
    """Raise WeblabError for counts below 1, a KV cache's type that is none, and one without what it needs."""
    if n_parallel < 1 or n_ctx < 1:
        raise WeblabError(
            _("n_ctx and n_parallel have to be at least 1, and are {n_ctx} and {n_parallel}.").format(
                n_ctx=n_ctx, n_parallel=n_parallel
            )
        )
    if n_threads is not None and n_threads < 1:
        raise WeblabError(_("n_threads has to be at least 1, and is {n_threads}.").format(n_threads=n_threads))
    require_kv_type(kv_type)
    if kv_type != "f16" and flash_attention is False:
        raise WeblabError(
            _("A KV cache of type {kv_type} needs flash attention.").format(kv_type=kv_type),
            _("Leave flash_attention out."),
        )
