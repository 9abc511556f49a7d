"""The README and the guides as the tests read them: which there are, their code, the commands in it."""

import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.support.conversions import ROOT

GUIDES = ("README.md", *(f"docs/{name}.md" for name in ("converting", "serving", "embedding", "evaluating")))
"""What is read to use the project. Each has a Japanese translation."""

_OUTPUTS = {"build", "dist", "node_modules"}


def partner(path: str) -> str:
    """The path of the same text in the other language, both from the root; `path` itself if it has no translation."""
    translations = {name: f"docs/ja/{Path(name).name}" for name in GUIDES} | {"README.md": "README.ja.md"}
    return (translations | {japanese: english for english, japanese in translations.items()}).get(path, path)


def read(path: str | Path) -> str:
    """The text of a file, its path from the root."""
    return (ROOT / path).read_text(encoding="utf-8")


def markdown_files() -> list[str]:
    """Every Markdown file of the repository, as paths from its root, sorted; what is built or installed is left out."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in _OUTPUTS
            and (name == ".github" or not name.startswith("."))
            and not Path(folder, name, "pyvenv.cfg").exists()
        ]
        found += [Path(folder, name).relative_to(ROOT).as_posix() for name in files if name.endswith(".md")]
    return sorted(found)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of code in that language, those inside of lists too."""
    fence = re.compile(rf"^([ ]*)```{language}\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for _indent, code in fence.findall(text)]


def commands(text: str) -> list[str]:
    """The commands in the `sh` blocks, comments left out; one that goes on over several lines is one string."""
    return [command for block in blocks(text, "sh") for command in _commands(block)]


def _commands(block: str) -> Iterator[str]:
    command = ""
    for line in block.splitlines():
        command += line if not command else f"\n{line}"
        try:
            shlex.split(command, comments=True)
        except ValueError:  # a quotation that is not closed yet
            continue
        if command.strip():
            yield re.sub(r"\s+# .*$", "", command).strip()
        command = ""
