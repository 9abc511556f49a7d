"""The notices of what an app brings along: of each Python package its licence files, of each library where it is from.

All is read from what is installed here: packages say which files are their licences, Debian's packages have a
`copyright`. llama.cpp's wheel does not hold llama.cpp's own licence, so that lies beside this file.
"""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

Entry = tuple[str, str, str]
"""What PyInstaller lists: the name in the app, where it was found, its type."""

LLAMA_CPP = Path(__file__).parent / "LICENSE.llama.cpp"


def text(modules: Iterable[Entry], binaries: Iterable[Entry]) -> str:
    """Return the notices of the modules and libraries that PyInstaller collected."""
    modules, binaries = list(modules), list(binaries)
    libraries = [Path(source) for _name, source, _type in binaries if source]
    parts = [_part(f"Python {sys.version.split()[0]}", _python_licence())]
    parts += [_package(found) for found in packages(modules, libraries)]
    parts.append(_part("llama.cpp and ggml", LLAMA_CPP.read_text(encoding="utf-8")))
    parts += [_part(name, licence) for name, licence in system_libraries(libraries).items()]
    return "\n".join(parts)


def packages(modules: Iterable[Entry], libraries: Iterable[Path]) -> list[metadata.Distribution]:
    """Return the installed packages that the modules and libraries are of, by name."""
    site = Path(sysconfig.get_paths()["purelib"])
    folders = {name.partition(".")[0] for name, _source, _type in modules}
    folders |= {
        path.relative_to(site).parts[0].removesuffix(".libs") for path in libraries if path.is_relative_to(site)
    }
    by_folder = metadata.packages_distributions()
    names = {name for folder in folders for name in by_folder.get(folder.partition(".")[0], [])}
    return [metadata.distribution(name) for name in sorted(names, key=str.lower)]


def _package(package: metadata.Distribution) -> str:
    said = package.metadata["License-Expression"] or package.metadata["License"] or ""
    classifiers = package.metadata.get_all("Classifier") or []
    first = said.strip().splitlines()[:1] or [line.rpartition(" :: ")[2] for line in classifiers if "License" in line]
    files = [
        file
        for file in package.files or []
        if ".dist-info" in file.parts[0] and file.name.upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS"))
    ]
    bodies = [Path(str(file.locate())).read_text(encoding="utf-8", errors="replace") for file in files]
    return _part(f"{package.name} {package.version}: {', '.join(first)}", "\n\n".join(bodies))


def _python_licence() -> str:
    for folder in (Path(sysconfig.get_paths()["stdlib"]), Path(sys.base_prefix)):
        for name in ("LICENSE.txt", "LICENSE"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8", errors="replace")
    return "The licence of Python: https://docs.python.org/3/license.html\n"


def system_libraries(libraries: Iterable[Path]) -> dict[str, str]:
    """Return the copyright files of the Debian packages that the libraries belong to, by the packages' names."""
    if not shutil.which("dpkg-query"):
        return {}
    found = {}
    for library in libraries:
        owner = subprocess.run(["dpkg-query", "-S", library.resolve()], capture_output=True, text=True, check=False)
        name = owner.stdout.partition(":")[0]
        copyright_file = Path("/usr/share/doc") / name / "copyright"
        if owner.returncode == 0 and copyright_file.is_file():
            found[name] = copyright_file.read_text(encoding="utf-8", errors="replace")
    return dict(sorted(found.items()))


def _part(title: str, body: str) -> str:
    return f"{'=' * 80}\n{title}\n{'=' * 80}\n\n{body.strip()}\n"
