"""What an app that ships a model has to show of it: who made it, under which licence, and that it was changed.

CC BY-NC 4.0, weblab-10b's licence, asks for that in section 3(a): creator, licence with its address, source, changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weblab_local.i18n import _

_NAMES = {"cc-by-nc-4.0": "CC BY-NC 4.0", "apache-2.0": "Apache-2.0", "mit": "MIT"}
"""Licences as people write them, by what GGUF's general.license says."""

_MATSUO_LAB = "Matsuo Laboratory, The University of Tokyo"
_UNCHANGED_WEIGHTS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Attribution:
    """What is known of a model's origin, "" where its file does not say; `str()` is the text to show.

    authors           those to be named
    licence           its identifier, like "cc-by-nc-4.0"
    source            the address of the checkpoint that the file was made from
    quantization      "Q4_K_M" and so on
    """

    model: str
    authors: str
    licence: str
    licence_url: str
    source: str
    quantization: str

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return "-nc" in self.licence

    def __str__(self) -> str:
        """A few lines in the language in use."""
        return "\n".join(filter(None, (self._model_line(), self._licence_line(), self._source_line(), self._changes())))

    def _model_line(self) -> str:
        if not self.authors:
            return self.model
        return _("{model} by {authors}").format(model=self.model, authors=self.authors)

    def _licence_line(self) -> str:
        if not self.licence:
            return _("Licence: unknown; ask those who made the model.")
        name = _NAMES.get(self.licence, self.licence)
        if self.licence_url:
            name = f"{name} ({self.licence_url})"
        if self.non_commercial:
            return _("Licence: {licence}, non-commercial use only").format(licence=name)
        return _("Licence: {licence}").format(licence=name)

    def _source_line(self) -> str:
        return _("Source: {url}").format(url=self.source) if self.source else ""

    def _changes(self) -> str:
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
    )


def _quantization(metadata: Mapping[str, Any]) -> str:
    """The mixture's name: its own key, or llama.cpp's name for general.file_type, "" for a number it does not have."""
    from weblab_local.llama.backends import file_type_name

    if "weblab_local.mixture" in metadata:
        return str(metadata["weblab_local.mixture"])
    return file_type_name(metadata.get("general.file_type"))
