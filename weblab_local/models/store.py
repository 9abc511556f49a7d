"""Where models live: the converted ones in the user's data directory, and the demo model inside the package."""

import hashlib
import math
import os
import shutil
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weblab_local.errors import ModelFileError, ModelNotFoundError, WeblabError
from weblab_local.files import read_json, sync, written_whole
from weblab_local.home import data_dir, read_settings, with_home, write_settings
from weblab_local.i18n import _

DEMO = "demo"

IMATRIX_SUFFIX = ".imatrix.gguf"
"""How the names of importance matrices end that a conversion leaves beside the models."""

ADAPTER_SUFFIX = ".lora.gguf"
"""How the names of LoRA adapters end that `python -m convert.lora` writes beside the models."""

_LFS_POINTER = b"version https://git-lfs"

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def models_dir() -> Path:
    """Where converted models are written and looked for."""
    return data_dir() / "models"


def demo_model() -> Path:
    """The demo model that comes with the package: a GPT-NeoX of 4.6 million parameters in Q8_0."""
    return Path(__file__).parent.parent / "demo" / "weblab-demo-instruction-sft-Q8_0.gguf"


def find_model(name_or_path: str | None = None) -> Path:
    """The GGUF to run: "demo", a path, a name in the store (with or without .gguf), or the default.

    The default is what `use_model` set, else the newest in the store. Raises ModelNotFoundError when there is none,
    ModelFileError when the path is no GGUF.
    """
    if name_or_path == DEMO:
        return demo_model()
    if name_or_path is None:
        return _default_model()
    candidates = [Path(name_or_path), models_dir() / name_or_path, models_dir() / f"{name_or_path}.gguf"]
    for path in candidates:
        if os.path.isfile(path := with_home(path)):  # noqa: PTH113 (this one never raises)
            return _require_gguf(path)
    raise ModelNotFoundError(
        _("There is no model called {name!r}, neither as a file nor in {folder}.").format(
            name=name_or_path, folder=models_dir()
        ),
        _("Give a path to a GGUF, the name of a model in the store, or `demo`."),
    )


def stored_adapters() -> list[tuple[str, str]]:
    """Return what `--lora` takes for each adapter in the store, sorted, and the model that it names, "" for none."""
    from weblab_local.llama.gguf_header import read_header

    found = []
    for path in sorted(models_dir().glob(f"*{ADAPTER_SUFFIX}")):
        try:
            base = str(read_header(path).metadata.get("general.base_model.0.name", ""))
        except ModelFileError:
            base = ""
        found.append((path.name.removesuffix(ADAPTER_SUFFIX), base))
    return found


def split_scale(argument: str) -> tuple[str, float]:
    """The adapter and its scale of FILE or FILE=SCALE, the scale 1 by default. WeblabError for a scale that is none."""
    name, separator, scale = argument.rpartition("=")
    if not separator or Path(argument).expanduser().exists():
        return argument, 1.0
    try:
        found = float(scale)
    except ValueError:
        found = math.nan
    if not name or not math.isfinite(found):
        raise WeblabError(
            _("{argument}: {scale!r} is no scale of an adapter.").format(argument=argument, scale=scale),
            _("Give the adapter, and a number if it is to count more or less: --lora NAME=0.5"),
        )
    return name, found


def find_adapter(name_or_path: str | Path) -> Path:
    """The GGUF of an adapter: a path, or a name in the store (with or without .lora.gguf).

    Raises ModelNotFoundError when there is none, ModelFileError when the path is no GGUF.
    """
    name = str(name_or_path)
    for path in (Path(name), models_dir() / name, models_dir() / f"{name}{ADAPTER_SUFFIX}"):
        if os.path.isfile(path := with_home(path)):  # noqa: PTH113 (this one never raises)
            return _require_gguf(path)
    raise ModelNotFoundError(
        _("There is no adapter called {name!r}, neither as a file nor in {folder}.").format(
            name=name, folder=models_dir()
        ),
        _("Make one of what peft saved: python -m convert.lora ADAPTER --base CHECKPOINT"),
    )


def _default_model() -> Path:
    chosen = read_settings().get("model")
    if isinstance(chosen, str) and (models_dir() / f"{chosen}.gguf").is_file():
        return models_dir() / f"{chosen}.gguf"
    models = [model for model in stored_models() if model.path.is_file()]
    if not models:
        raise ModelNotFoundError(
            _("There is no model in {folder} yet.").format(folder=models_dir()),
            _("Make one with `make convert`, or try the bundled one with `--model demo`."),
        )
    return max(models, key=lambda model: model.path.stat().st_mtime).path


def _require_gguf(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise ModelFileError(_("{path} cannot be read: {error}.").format(path=path, error=error.strerror)) from None
    if beginning == _LFS_POINTER:
        raise ModelFileError(
            _("{path} is a pointer of git-lfs, not the file itself.").format(path=path),
            _("Type `git lfs install` and then `git lfs pull` in its folder."),
        )
    if beginning[:4] != b"GGUF":
        raise ModelFileError(
            _("{path} is no GGUF file.").format(path=path), _("Convert a checkpoint with `make convert`.")
        )
    return path


@dataclass(frozen=True)
class StoredModel:
    """A model in the store. `manifest` is what the conversion wrote beside it, {} where there is none."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What `--model` takes."""
        return self.path.stem

    @property
    def size(self) -> int:
        """Bytes, 0 for a link to what is not there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def mixture(self) -> str:
        """Q4_K_M and so on, "" where no manifest says."""
        return str(_section(self.manifest, "recipe").get("mixture", ""))

    @property
    def source(self) -> str:
        """Repository and commit it was made from, "" where no manifest says."""
        source = _section(self.manifest, "source")
        return " @ ".join(
            part for part in (str(source.get("repository", "")), str(source.get("revision", ""))[:12]) if part
        )

    @property
    def mean_kl(self) -> Mapping[str, float]:
        """Mean KL divergence from the checkpoint in nats, by language, {} where the conversion was not verified."""
        found = _section(_section(self.manifest, "verification"), "mean_kl")
        return {str(key): value for key, value in found.items() if isinstance(value, (int, float))}

    @property
    def sha256(self) -> str:
        """The recorded SHA-256, "" where no manifest says."""
        return str(_section(self.manifest, "output").get("sha256", ""))


def _section(manifest: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = manifest.get(key)
    return value if isinstance(value, dict) else {}


def stored_models() -> list[StoredModel]:
    """All models in the store, by name, also a link to a disk that is not there; no importance matrix, no adapter."""
    others = (IMATRIX_SUFFIX, ADAPTER_SUFFIX)
    found = (path for path in models_dir().glob("*.gguf") if not path.name.endswith(others))
    paths = sorted(path for path in found if not path.is_dir())
    return [StoredModel(path, read_json(path.with_suffix(".json"))) for path in paths]


def stored_model(name: str) -> StoredModel:
    """The model of that name in the store. Raises ModelNotFoundError.

    A name's characters may be composed in the file system and not when they are typed, or the other way round, as on
    macOS, which takes both for the same.
    """
    models = stored_models()
    for normal in (str, _composed):
        wanted = {normal(name), normal(name.removesuffix(".gguf"))}
        for model in models:
            if normal(model.name) in wanted:
                return model
    known = ", ".join(model.name for model in models) or _("none")
    raise ModelNotFoundError(
        _("There is no model called {name!r} in {folder}.").format(name=name, folder=models_dir()),
        _("There are: {names}.").format(names=known),
    )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def use_model(name: str) -> StoredModel:
    """Make a model of the store the default."""
    model = stored_model(name)
    write_settings({**read_settings(), "model": model.name})
    return model


def import_model(path: Path, on_progress: Progress | None = None) -> StoredModel:
    """Copy a GGUF into the store, with its manifest if one lies beside it, whole or not at all."""
    if not path.is_file():
        raise ModelNotFoundError(_("There is no file {path}.").format(path=path))
    _require_gguf(path)
    name = path.stem if path.suffix.lower() == ".gguf" else path.name
    if name == DEMO:
        raise WeblabError(_("{name} is the bundled model's name.").format(name=DEMO), _("Give the file another one."))
    target = models_dir() / f"{name}.gguf"
    if target.name.endswith(IMATRIX_SUFFIX):
        raise WeblabError(
            _("{path} is an importance matrix, not a model.").format(path=path),
            _("It is for converting: python -m convert MODEL --imatrix {path}").format(path=path),
        )
    if target.name.endswith(ADAPTER_SUFFIX):
        raise WeblabError(
            _("{path} is an adapter, not a model.").format(path=path),
            _("It is used where it is: --lora {path}").format(path=path),
        )
    if target.exists():
        raise WeblabError(
            _("{path} exists already.").format(path=target),
            _("Remove it first: weblab-local models rm {name}").format(name=target.stem),
        )
    free = shutil.disk_usage(_existing(target.parent)).free
    if path.stat().st_size > free:
        raise WeblabError(
            _("Not enough disk space in {folder}.").format(folder=target.parent),
            _("Free some space, or use the file where it is: --model {path}").format(path=path),
        )
    manifest = path.with_suffix(".json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as partial:
            with partial.open("wb") as file:
                for block in _blocks(path, on_progress):
                    file.write(block)
            if manifest.is_file():
                sync(partial)  # what may still fail comes before the manifest, which then lies there alone
                with written_whole(target.with_suffix(".json")) as partial_manifest:
                    shutil.copyfile(manifest, partial_manifest)
    except OSError as error:
        raise WeblabError(
            _("{path} cannot be copied to {folder}: {error}.").format(
                path=path, folder=target.parent, error=error.strerror
            ),
            _("Use the file where it is: --model {path}").format(path=path),
        ) from None
    return stored_model(target.stem)


def remove_model(name: str) -> Path:
    """Delete a model of the store and its manifest; the path it had."""
    path = stored_model(name).path
    path.unlink()
    path.with_suffix(".json").unlink(missing_ok=True)
    return path


def verify_model(model: StoredModel, on_progress: Progress | None = None) -> bool:
    """Whether the file still has the SHA-256 that its conversion recorded. Raises WeblabError where none is."""
    if not model.sha256:
        raise WeblabError(
            _("No SHA-256 of {name} is recorded: it has no manifest beside it.").format(name=model.name),
            _("Models made with `make convert` have one."),
        )
    digest = hashlib.sha256()
    for block in _blocks(_require_gguf(model.path), on_progress):
        digest.update(block)
    return digest.hexdigest() == model.sha256


def _blocks(path: Path, on_progress: Progress | None, size: int = 1 << 24) -> Any:
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(size):
            yield block
            done += len(block)
            if on_progress is not None:
                on_progress(done, total)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
