"""examples/desktop_tk.py as an app of its own: frozen by PyInstaller with the hooks that the package brings."""

import subprocess
import sys
from pathlib import Path

from tests.support.conversions import ROOT

EXAMPLE = ROOT / "examples" / "desktop_tk.py"


def freeze(folder: Path) -> Path:
    """Freeze the example into `folder`; the program in its directory. Raises CalledProcessError with the log."""
    options = ["--onedir", "--noconfirm", "--log-level", "WARN"]
    folders = [f"--distpath={folder / 'dist'}", f"--workpath={folder / 'build'}", f"--specpath={folder}"]
    subprocess.run(
        [sys.executable, "-m", "PyInstaller", *options, *folders, str(EXAMPLE)], check=True, capture_output=True
    )
    return folder / "dist" / EXAMPLE.stem / EXAMPLE.stem
