"""What is known about the model that is converted: its name, licence, makers and chat template."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convert.errors import CheckpointError
from convert.source.json_files import read_json
from weblab_local.engine.prompt import CHAT_TEMPLATE

ChatTemplateChoice = Literal["auto", "weblab", "none"]

MATSUO_LAB = "Matsuo Laboratory, The University of Tokyo"

_OTHER_TEMPLATE = "Correct it, or choose with --chat-template weblab or none."
_INSTRUCTED = re.compile(r"weblab.*instruction-sft")
_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})$")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from: a folder, and the Hub's repository and commit if it is from there."""

    name: str
    folder: Path
    repository: str = ""
    revision: str = ""


@dataclass(frozen=True)
class Adapter:
    """An adapter that is merged into a model: what of (`base`, as it says itself), and how strongly (`scale`).

    `files` are the SHA-256 of its settings and weights by file name; what is unknown is empty.
    """

    name: str
    folder: Path
    scale: float
    base: str
    licence: str
    repository: str
    revision: str
    files: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Of its weights."""
        return next(sha256 for name, sha256 in self.files.items() if name.startswith("adapter_model."))

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says of it: all that decides what is merged, and where it comes from."""
        return {
            "name": self.name,
            "repository": self.repository,
            "revision": self.revision,
            "scale": self.scale,
            "files": dict(self.files),
        }


def merged_name(name: str, adapters: Sequence[Adapter]) -> str:
    """What the model called `name` is called with the `adapters` in it."""
    for adapter in adapters:
        name = adapter.name if adapter.name.startswith(f"{name}-") else f"{name}-{adapter.name}"
    return name


@dataclass(frozen=True)
class ModelCard:
    """Who made the model and under which licence; what is unknown is empty and left out of the GGUF.

    With `adapters` in it, `name` is that of the whole and `base` that of the checkpoint, which all the rest is of.
    """

    name: str
    licence: str = ""
    organization: str = ""
    description: str = ""
    languages: Sequence[str] = ()
    repository: str = ""
    revision: str = ""
    chat_template: str = ""
    base: str = ""
    adapters: Sequence[Adapter] = ()

    @property
    def source_url(self) -> str:
        """The page of this revision on the Hub, "" for a local checkpoint."""
        if not self.repository:
            return ""
        page = f"https://huggingface.co/{self.repository}"
        return f"{page}/tree/{self.revision}" if self.revision else page


def local_source(folder: Path) -> Source:
    """A checkpoint on disk. A snapshot in the Hub's cache is recognised, and named by its repository."""
    folder = folder.resolve()
    match = _SNAPSHOT.search(str(folder))
    if match:
        return Source(match[2], folder, f"{match[1]}/{match[2]}", match[3])
    return Source(folder.name, folder)


def model_card(
    source: Source, chat_template: ChatTemplateChoice = "auto", adapters: Sequence[Adapter] = ()
) -> ModelCard:
    """What goes into the GGUF about the model, from the checkpoint's files and, for weblab-10b, from its card.

    A chat template of an adapter's own goes before the checkpoint's.
    """
    front_matter = _front_matter(source.folder / "README.md")
    is_weblab = source.name in ("weblab-10b", "weblab-10b-instruction-sft")
    merged = "".join(f" with the adapter {adapter.name} merged into it," for adapter in adapters)
    return ModelCard(
        name=merged_name(source.name, adapters),
        licence="cc-by-nc-4.0" if is_weblab else str(front_matter.get("license") or ""),
        organization=MATSUO_LAB if is_weblab else source.repository.partition("/")[0],
        description=(
            f"{source.name} by {MATSUO_LAB}, licensed under CC BY-NC 4.0 (non-commercial),{merged}"
            " converted to GGUF by weblab-local."
            if is_weblab
            else f"{source.name},{merged} converted to GGUF by weblab-local."
        ),
        languages=("ja", "en") if is_weblab else _languages(front_matter),
        repository=source.repository,
        revision=source.revision,
        chat_template=_chat_template(source, chat_template, adapters),
        base=source.name if adapters else "",
        adapters=adapters,
    )


def _chat_template(source: Source, choice: ChatTemplateChoice, adapters: Sequence[Adapter]) -> str:
    """An adapter's or the checkpoint's own template, if any; else, for weblab's instruction models, the card's."""
    if choice == "weblab":
        return CHAT_TEMPLATE
    if choice == "none":
        return ""
    for folder in (*(adapter.folder for adapter in reversed(adapters)), source.folder):
        if own := _own_template(folder):
            return own
    return CHAT_TEMPLATE if _INSTRUCTED.search(source.name) else ""


def _own_template(folder: Path) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja.read_text(encoding="utf-8")
        except ValueError as error:
            raise CheckpointError(f"{jinja} is no UTF-8 text: {error}.", _OTHER_TEMPLATE) from None
    config = folder / "tokenizer_config.json"
    own = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(own, list):
        named = [entry for entry in own if isinstance(entry, dict) and entry.get("name") == "default"]
        own = named[0].get("template") if named else None
    if own is not None and not isinstance(own, str):
        raise CheckpointError(f"{config} has a chat_template that is no text.", _OTHER_TEMPLATE)
    return own or ""


def licence_of(folder: Path) -> str:
    """Return the licence that the model card in `folder` names, "" where it names none."""
    return str(_front_matter(folder / "README.md").get("license") or "")


def base_models(folder: Path) -> list[str]:
    """Return what the model card in `folder` says the model was made from; nothing where it says nothing."""
    try:
        bases = _front_matter(folder / "README.md").get("base_model")
    except CheckpointError:
        return []
    return [str(base) for base in (bases if isinstance(bases, list) else [bases]) if base]


def _front_matter(readme: Path) -> dict[str, Any]:
    """The YAML at the top of a model card, {} where there is none."""
    if not readme.is_file():
        return {}
    from huggingface_hub import ModelCard as HubCard

    try:
        return dict(HubCard.load(readme, ignore_metadata_errors=True).data.to_dict())
    except Exception as error:  # the YAML library has errors of its own
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"The model card {readme} cannot be read: {reason}.", "Correct or remove the lines between its --- marks."
        ) from None


def _languages(front_matter: dict[str, Any]) -> tuple[str, ...]:
    languages = front_matter.get("language") or ()
    return (languages,) if isinstance(languages, str) else tuple(str(language) for language in languages)
