"""Fixtures shared by the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.demo.corpus import CHECKPOINT
from weblab_local import i18n


@pytest.fixture(scope="session", autouse=True)
def _without_verification() -> Iterator[None]:
    """Conversions are not compared with their checkpoint, which takes longer than they do; tests of that say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERIFY", "0")
        yield


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The demo checkpoint that is in the repository."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def demo_f16(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint converted with its weights as they are."""
    from convert.run import Request, run

    (path,) = run(Request(str(demo_checkpoint), None, ["F16"], tmp_path_factory.mktemp("demo-f16")))
    return path


@pytest.fixture(scope="session")
def demo_mixtures(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo checkpoint in every mixture, by its name."""
    from convert.quantization.mixtures import MIXTURES
    from convert.run import Request, run

    paths = run(Request(str(demo_checkpoint), None, list(MIXTURES), tmp_path_factory.mktemp("demo-mixtures")))
    return dict(zip(MIXTURES, paths, strict=True))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of optional test data; tests that want it are skipped without it."""
    folder = os.environ.get("WEBLAB_TEST_DATA")
    if not folder:
        pytest.skip("WEBLAB_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes the models of whoever runs it."""
    monkeypatch.setenv("WEBLAB_LOCAL_HOME", str(tmp_path / "weblab-home"))


@pytest.fixture(autouse=True)
def _in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are compared in English, whatever whoever runs the tests speaks; here and in processes of their own."""
    for variable in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LANGUAGE", "en")
    i18n.use("en")
