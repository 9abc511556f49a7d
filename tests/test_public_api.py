"""What `from weblab_local import ...` offers, and what `import weblab_local` does not load."""

import subprocess
import sys

import weblab_local
from tests.support.conversions import ROOT


def test_all_names_are_there_and_in_order() -> None:
    assert weblab_local.__all__ == sorted(weblab_local.__all__)
    for name in weblab_local.__all__:
        assert getattr(weblab_local, name) is not None
    assert set(weblab_local.__all__) <= set(dir(weblab_local))


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "llama_cpp", "typer", "numpy", "asyncio"}
    code = f"import sys, weblab_local; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
