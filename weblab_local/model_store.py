"""Where models live: the converted ones in the user's data directory, and the demo model inside the package."""

import os
from pathlib import Path

import platformdirs

from weblab_local.errors import ModelFileError, ModelNotFoundError

DEMO = "demo"


def data_dir() -> Path:
    """This user's data directory: $WEBLAB_LOCAL_HOME, or the operating system's place for it."""
    home = os.environ.get("WEBLAB_LOCAL_HOME")
    return Path(home).expanduser() if home else platformdirs.user_data_path("weblab-local", appauthor=False)


def models_dir() -> Path:
    """Where converted models are written and looked for."""
    return data_dir() / "models"


def demo_model() -> Path:
    """The demo model that comes with the package: a GPT-NeoX of 4.6 million parameters in Q8_0."""
    return Path(__file__).parent / "demo" / "weblab-demo-instruction-sft-Q8_0.gguf"


def find_model(name_or_path: str | None = None) -> Path:
    """The GGUF to run: "demo", a path, a name in the store (with or without .gguf), or the newest in the store.

    Raises ModelNotFoundError when there is none, ModelFileError when the path is no GGUF.
    """
    if name_or_path == DEMO:
        return demo_model()
    if name_or_path is None:
        stored = sorted(models_dir().glob("*.gguf"), key=lambda path: path.stat().st_mtime)
        if not stored:
            raise ModelNotFoundError(
                f"There is no model in {models_dir()} yet.",
                "Make one with `make convert`, or try the bundled one with `--model demo`.",
            )
        return stored[-1]
    candidates = [Path(name_or_path).expanduser(), models_dir() / name_or_path, models_dir() / f"{name_or_path}.gguf"]
    for path in candidates:
        if path.is_file():
            return _require_gguf(path)
    raise ModelNotFoundError(
        f"There is no model called {name_or_path!r}, neither as a file nor in {models_dir()}.",
        "Give a path to a GGUF, the name of a model in the store, or `demo`.",
    )


def _require_gguf(path: Path) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelFileError(f"{path} is no GGUF file.", "Convert a checkpoint with `make convert`.")
    return path
