"""Where the clients are installed, and which tests run there. Knows the standard library alone, and no client."""

import importlib.metadata
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "clients"
NODE = BUILD / "node"
PACKAGE_JSON = HERE / "node" / "package.json"


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the packages of `requirements/NAME.txt`."""

    name: str
    tests: tuple[str, ...]
    is_complete: bool = True
    """Whether pip is to see to what its packages need."""

    @property
    def folder(self) -> Path:
        return BUILD / self.name

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def requirements(self) -> Path:
        return HERE / "requirements" / f"{self.name}.txt"

    @property
    def results(self) -> Path:
        """Where its tests write what works."""
        return BUILD / f"{self.name}.json"


ENVIRONMENTS = (
    Environment(
        "current",
        ("openai", "langchain", "litellm", "pydantic_ai", "openai_agents", "llm", "ollama"),
    ),
    Environment("instructor", ("instructor",)),
    Environment("llama_index", ("llama_index",)),
    Environment("open_webui", ("open_webui",), is_complete=False),
)


@dataclass(frozen=True)
class Client:
    """A row of the table: its name there, and the package of which it names the version."""

    name: str
    package: str
    in_node: bool = False

    @property
    def pinned(self) -> str:
        """The version that is tested."""
        if self.in_node:
            return str(json.loads(PACKAGE_JSON.read_text(encoding="utf-8"))["dependencies"][self.package])
        for environment in ENVIRONMENTS:
            first, _, _ = environment.requirements.read_text(encoding="utf-8").partition("\n\n")
            if found := re.search(rf"^{re.escape(self.package)}(?:\[\w+\])?==(.+)$", first, re.MULTILINE):
                return found[1]
        raise LookupError(self.package)

    @property
    def installed(self) -> str:
        """The version that runs, as the package itself says."""
        if self.in_node:
            package = NODE / "node_modules" / self.package / "package.json"
            return str(json.loads(package.read_text(encoding="utf-8"))["version"])
        return importlib.metadata.version(self.package)


OPENAI = Client("openai (Python)", "openai")
OPENAI_NODE = Client("openai (Node)", "openai", in_node=True)
LANGCHAIN = Client("langchain-openai", "langchain-openai")
LITELLM = Client("litellm", "litellm")
PYDANTIC_AI = Client("pydantic-ai", "pydantic-ai-slim")
INSTRUCTOR = Client("instructor", "instructor")
OPENAI_AGENTS = Client("openai-agents", "openai-agents")
LLAMA_INDEX = Client("llama-index OpenAILike", "llama-index-llms-openai-like")
LLM = Client("llm", "llm")
AI_SDK = Client("AI SDK", "ai", in_node=True)
OLLAMA = Client("ollama (Python)", "ollama")
OPEN_WEBUI = Client("Open WebUI", "open-webui")

CLIENTS = (
    OPENAI,
    OPENAI_NODE,
    LANGCHAIN,
    LITELLM,
    PYDANTIC_AI,
    INSTRUCTOR,
    OPENAI_AGENTS,
    LLAMA_INDEX,
    LLM,
    AI_SDK,
    OLLAMA,
    OPEN_WEBUI,
)
