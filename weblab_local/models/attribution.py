"""What an app that ships a model has to show of it: who made it, under which licence, and that it was changed.

CC BY-NC 4.0, weblab-10b's licence, asks for that in section 3(a): creator, licence with its address, source, changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weblab_local.i18n import _

_NAMES = {"cc-by-nc-4.0": "CC BY-NC 4.0", "apache-2.0": "Apache-2.0", "mit": "MIT"}
"""Licences as people write them, by what GGUF's general.license says."""

ADAPTER_COUNT_KEY = "weblab_local.adapter.count"
"""In the metadata of a GGUF: how many adapters were merged into the weights."""

_MATSUO_LAB = "Matsuo Laboratory, The University of Tokyo"
_UNCHANGED_WEIGHTS = ("F32", "BF16", "F16")


def adapter_key(number: int, name: str) -> str:
    """Return the key of the metadata that says the `name` of the merged adapter of this number, from 0 on."""
    return f"weblab_local.adapter.{number}.{name}"


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter in a model's weights, "" where the file does not say. `source` is the address of its page."""

    name: str
    licence: str
    licence_url: str
    source: str

    def __str__(self) -> str:
        """A line in the language in use."""
        name = f"{self.name} ({self.source})" if self.source else self.name
        if not self.licence:
            return _("Adapter: {name}; licence: unknown, ask those who made it").format(name=name)
        return _("Adapter: {name}; licence: {licence}").format(
            name=name, licence=_licence_name(self.licence, self.licence_url)
        )


@dataclass(frozen=True)
class Attribution:
    """What is known of a model's origin, "" where its file does not say; `str()` is the text to show.

    authors           those to be named
    licence           its identifier, like "cc-by-nc-4.0"
    source            the address of the checkpoint that the file was made from
    quantization      "Q4_K_M" and so on
    adapters          what was merged into the checkpoint's weights; all the rest is of the checkpoint
    """

    model: str
    authors: str
    licence: str
    licence_url: str
    source: str
    quantization: str
    adapters: Sequence[MergedAdapter] = ()

    @property
    def non_commercial(self) -> bool:
        """Whether the licence, the model's or an adapter's, forbids commercial use."""
        return any("-nc" in licence for licence in (self.licence, *(adapter.licence for adapter in self.adapters)))

    def __str__(self) -> str:
        """A few lines in the language in use."""
        adapters = map(str, self.adapters)
        lines = (self._model_line(), self._licence_line(), self._source_line(), *adapters, self._changes())
        return "\n".join(filter(None, lines))

    def _model_line(self) -> str:
        if not self.authors:
            return self.model
        return _("{model} by {authors}").format(model=self.model, authors=self.authors)

    def _licence_line(self) -> str:
        if not self.licence:
            return _("Licence: unknown; ask those who made the model.")
        name = _licence_name(self.licence, self.licence_url)
        if "-nc" in self.licence:
            return _("Licence: {licence}, non-commercial use only").format(licence=name)
        return _("Licence: {licence}").format(licence=name)

    def _source_line(self) -> str:
        return _("Source: {url}").format(url=self.source) if self.source else ""

    def _changes(self) -> str:
        if self.adapters and self.quantization and self.quantization not in _UNCHANGED_WEIGHTS:
            return _("Changed: adapters merged, converted to GGUF and quantized to {type}").format(
                type=self.quantization
            )
        if self.adapters:
            return _("Changed: adapters merged, converted to GGUF")
        if self.quantization and self.quantization not in _UNCHANGED_WEIGHTS:
            return _("Changed: converted to GGUF and quantized to {type}").format(type=self.quantization)
        return _("Changed: converted to GGUF")


def licence(model: str | None = None) -> Attribution:
    """The attribution that an app has to show for `model`, which is named as for `load`. Reads no weights.

    Raises ModelNotFoundError, or ModelFileError for a file that is damaged.
    """
    from weblab_local.llama.gguf_header import read_header
    from weblab_local.models.store import find_model

    path = find_model(model)
    return attribution(read_header(path).metadata, path.stem)


def attribution(metadata: Mapping[str, Any], name: str = "") -> Attribution:
    """The same from a GGUF's metadata, as `Engine.metadata` has it; `name` is for a file that says none."""
    text = {key: str(metadata.get(f"general.{key}", "")) for key in ("name", "organization", "author", "license")}
    model, authors = text["name"] or name, text["organization"] or text["author"]
    source = metadata.get("general.source.url") or metadata.get("general.source.repo_url") or ""
    if not source and authors == _MATSUO_LAB:  # converted from a folder that was not the Hub's cache
        source = f"https://huggingface.co/matsuo-lab/{model}"
    return Attribution(
        model=model,
        authors=authors,
        licence=text["license"],
        licence_url=str(metadata.get("general.license.link", "")),
        source=str(source),
        quantization=_quantization(metadata),
        adapters=tuple(_adapter(metadata, number) for number in range(_n_adapters(metadata))),
    )


def _n_adapters(metadata: Mapping[str, Any]) -> int:
    """As many as the file says, and has names for."""
    count = metadata.get(ADAPTER_COUNT_KEY, 0)
    numbers = range(count if isinstance(count, int) else 0)
    return next((number for number in numbers if adapter_key(number, "name") not in metadata), len(numbers))


def _adapter(metadata: Mapping[str, Any], number: int) -> MergedAdapter:
    text = {
        key: str(metadata.get(adapter_key(number, key), ""))
        for key in ("name", "license", "license.link", "repository", "revision")
    }
    source = f"https://huggingface.co/{text['repository']}" if text["repository"] else ""
    if source and text["revision"]:
        source = f"{source}/tree/{text['revision']}"
    return MergedAdapter(text["name"], text["license"], text["license.link"], source)


def _licence_name(licence: str, url: str) -> str:
    name = _NAMES.get(licence, licence)
    return f"{name} ({url})" if url else name


def _quantization(metadata: Mapping[str, Any]) -> str:
    """The mixture's name: its own key, or llama.cpp's name for general.file_type, "" for a number it does not have."""
    from weblab_local.llama.backends import file_type_name

    if "weblab_local.mixture" in metadata:
        return str(metadata["weblab_local.mixture"])
    return file_type_name(metadata.get("general.file_type"))
