"""PyInstaller's hooks, which it finds by the entry point `pyinstaller40`: what a frozen app needs of this package."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folder with the hooks."""
    return [str(Path(__file__).parent)]
