"""The types that a KV cache may have, by llama.cpp's names."""

from typing import Literal, get_args

from weblab_local.errors import WeblabError
from weblab_local.i18n import _

KvType = Literal["f16", "q8_0", "q4_0"]


def require_kv_type(kv_type: str) -> None:
    """Raise WeblabError for what is no type of a KV cache."""
    if kv_type not in get_args(KvType):
        raise WeblabError(
            _("There is no KV cache of type {kv_type!r}.").format(kv_type=kv_type),
            _("Choose from {names}.").format(names=", ".join(get_args(KvType))),
        )
