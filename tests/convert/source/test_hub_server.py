"""What the real huggingface_hub does with the stand-in for the Hub, as far as the downloader relies on it."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import HubServer, environment
from tests.support.systems import on_posix

MIB = 1 << 20
CHUNK = 10 * MIB
"""What huggingface_hub writes to disk at a time (constants.DOWNLOAD_CHUNK_SIZE)."""

CLIENT = """
import json, os, signal, sys, time
import huggingface_hub as hub
time.sleep = lambda seconds: eval(sys.argv[1])
results = []
for expression in sys.argv[2:]:
    try:
        results.append(eval(expression))
    except Exception as error:
        results.append([kind.__module__ + "." + kind.__qualname__ for kind in type(error).__mro__])
print(json.dumps(results))
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
WEIGHTS = random.Random(0).randbytes(12 * MIB)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "nested").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "gpt_neox"}')
    (folder / "README.md").write_text("# A model\n")
    (folder / "nested" / "notes 1.txt").write_text("one")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def client(server: HubServer, home: Path, *expressions: str, on_retry: str = "None", **settings: str) -> Any:
    """The value of each expression in one client process, or the names of the classes of the exception it raised.

    Of a single expression it is the value itself, of a client that died its return code. The client does not pause
    before a retry; it evaluates `on_retry` instead.
    """
    command = [sys.executable, "-c", CLIENT, on_retry, *expressions]
    env = environment(server, home) | settings
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    if done.returncode < 0:
        return done.returncode
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return results if len(expressions) > 1 else results[0]


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.relative_to(folder).parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def partial_files(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*.incomplete")]


def test_a_snapshot_holds_the_files_asked_for_and_no_others(server: HubServer, model: Path, tmp_path: Path) -> None:
    server.add("org/model", model)
    wanted = "hub.snapshot_download('org/model', allow_patterns=['*.json', '*.safetensors'])"
    snapshot = Path(client(server, tmp_path / "home", wanted))
    assert files(snapshot) == {name: (model / name).read_bytes() for name in ("config.json", "model.safetensors")}
    assert not server.downloads("README.md")


def test_a_snapshot_taken_again_downloads_nothing(server: HubServer, model: Path, tmp_path: Path) -> None:
    repo = server.add("org/model", model)
    first = client(server, tmp_path / "home", "hub.snapshot_download('org/model')")
    server.requests.clear()
    assert client(server, tmp_path / "home", "hub.snapshot_download('org/model')") == first
    assert [request.path for request in server.requests] == ["/api/models/org/model/revision/main"]
    assert Path(first).name == repo.commit


def test_a_snapshot_in_a_folder_of_ones_own_has_every_file(server: HubServer, model: Path, tmp_path: Path) -> None:
    server.add("org/model", model)
    target = tmp_path / "target"
    client(server, tmp_path / "home", f"hub.snapshot_download('org/model', local_dir={str(target)!r})")
    assert files(target) == files(model)


def test_a_pull_request_is_downloaded_by_its_ref(server: HubServer, model: Path, tmp_path: Path) -> None:
    proposed = tmp_path / "proposed"
    proposed.mkdir()
    (proposed / "config.json").write_text("{}")
    repo = server.add("org/model", model, revisions={"refs/pr/4": proposed, "a" * 40: proposed})
    snapshot = Path(client(server, tmp_path / "home", "hub.snapshot_download('org/model', revision='refs/pr/4')"))
    assert files(snapshot) == {"config.json": b"{}"}
    assert snapshot.name == repo.find("refs/pr/4")[0] != repo.commit
    assert server.requests[0].path == "/api/models/org/model/revision/refs%2Fpr%2F4"
    pinned = Path(client(server, tmp_path / "home", f"hub.snapshot_download('org/model', revision={'a' * 40!r})"))
    assert (pinned.name, files(pinned)) == ("a" * 40, {"config.json": b"{}"})


def test_the_listing_tells_sizes_and_hashes_before_a_download(server: HubServer, model: Path, tmp_path: Path) -> None:
    repo = server.add("org/model", model)
    about = "(lambda info: [info.sha, {f.rfilename: [f.size, f.lfs and f.lfs.sha256] for f in info.siblings}])"
    tree = "[f.path for f in hub.HfApi().list_repo_tree('org/model', recursive={})]"
    (sha, listed), top, everything = client(
        server,
        tmp_path / "home",
        f"{about}(hub.HfApi().model_info('org/model', files_metadata=True))",
        tree.format(False),
        tree.format(True),
    )
    assert sha == repo.commit
    assert listed == {name: [len(content), None] for name, content in files(model).items()} | {
        "model.safetensors": [len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest()]
    }
    assert top == ["README.md", "config.json", "model.safetensors", "nested"]
    assert everything == [*top, "nested/notes 1.txt"]


@pytest.mark.parametrize("where", ["", ", local_dir=os.environ['TARGET']"], ids=["cache", "local_dir"])
def test_a_broken_download_goes_on_from_the_last_whole_chunk(
    server: HubServer, model: Path, tmp_path: Path, where: str
) -> None:
    server.add("org/model", model)
    server.cut_after = 11 * MIB
    download = f"hub.hf_hub_download('org/model', 'model.safetensors'{where})"
    got = client(server, tmp_path / "home", download, TARGET=str(tmp_path / "target"))
    assert Path(got).read_bytes() == WEIGHTS
    first, second = server.downloads("model.safetensors")
    assert (first.range, first.status, first.sent) == (None, 200, 11 * MIB)
    assert (second.range, second.status, second.sent) == (f"bytes={CHUNK}-", 206, 2 * MIB)
    assert server.cut_after is None


def test_a_download_broken_within_its_first_chunk_starts_over(server: HubServer, model: Path, tmp_path: Path) -> None:
    server.add("org/model", model)
    server.cut_after = CHUNK - 1
    got = client(server, tmp_path / "home", "hub.hf_hub_download('org/model', 'model.safetensors')")
    assert Path(got).read_bytes() == WEIGHTS
    assert [(r.range, r.sent) for r in server.downloads("model.safetensors")] == [(None, CHUNK - 1), (None, 12 * MIB)]


@on_posix
@pytest.mark.parametrize("where", ["", ", local_dir=os.environ['TARGET']"], ids=["cache", "local_dir"])
def test_a_killed_download_leaves_a_partial_file_that_no_later_one_uses_or_removes(
    server: HubServer, model: Path, tmp_path: Path, where: str
) -> None:
    server.add("org/model", model)
    download = f"hub.hf_hub_download('org/model', 'model.safetensors'{where})"
    target = str(tmp_path / "target")
    server.cut_after = 11 * MIB
    killed = client(server, tmp_path / "home", download, on_retry=KILL, TARGET=target)
    assert killed < 0
    assert partial_files(tmp_path) == [CHUNK]
    server.requests.clear()
    client(server, tmp_path / "home", download, TARGET=target)
    assert [(r.range, r.sent) for r in server.downloads("model.safetensors")] == [(None, 12 * MIB)]
    assert partial_files(tmp_path) == [CHUNK]


def test_a_reset_connection_ends_the_download_at_once_with_an_error_that_is_no_oserror(
    server: HubServer, model: Path, tmp_path: Path
) -> None:
    server.add("org/model", model)
    server.cut_after, server.cut_by_reset = 11 * MIB, True
    raised = client(server, tmp_path / "home", "hub.snapshot_download('org/model')")
    assert raised[0] == "httpx2.ReadError"
    assert "builtins.OSError" not in raised
    assert len(server.downloads("model.safetensors")) == 1
    assert partial_files(tmp_path) == []


def test_what_the_hub_refuses_is_told_by_the_exception(server: HubServer, model: Path, tmp_path: Path) -> None:
    server.add("org/model", model)
    server.add("org/gated", model, gated=True, granted={"hf_mine"})
    errors = {
        "hub.snapshot_download('org/gated')": "GatedRepoError",
        "hub.hf_hub_download('org/gated', 'config.json')": "GatedRepoError",
        "hub.hf_hub_download('org/gated', 'config.json', token='hf_other')": "GatedRepoError",
        "hub.snapshot_download('org/none')": "RepositoryNotFoundError",
        "hub.snapshot_download('org/none', token='hf_mine')": "RepositoryNotFoundError",
        "hub.hf_hub_download('org/none', 'config.json')": "RepositoryNotFoundError",
        "hub.snapshot_download('org/model', revision='v9')": "RevisionNotFoundError",
        "hub.hf_hub_download('org/model', 'config.json', revision='v9')": "RevisionNotFoundError",
        "hub.hf_hub_download('org/model', 'none.json')": "RemoteEntryNotFoundError",
    }
    raised = dict(zip(errors, client(server, tmp_path / "home", *errors), strict=True))
    assert {expression: kinds[0] for expression, kinds in raised.items()} == {
        expression: f"huggingface_hub.errors.{error}" for expression, error in errors.items()
    }
    assert "huggingface_hub.errors.RepositoryNotFoundError" in raised["hub.snapshot_download('org/gated')"]
    assert [r.status for r in server.requests if r.path == "/org/gated/resolve/main/config.json"] == [401, 403]
    assert "huggingface_hub.errors.EntryNotFoundError" in raised["hub.hf_hub_download('org/model', 'none.json')"]


def test_a_gated_repository_is_downloaded_with_a_token(server: HubServer, model: Path, tmp_path: Path) -> None:
    server.add("org/gated", model, gated=True)
    got = client(server, tmp_path / "home", "hub.snapshot_download('org/gated')", HF_TOKEN="hf_mine")
    assert files(Path(got)) == files(model)


def test_a_token_does_not_follow_a_redirect_to_another_host(server: HubServer, model: Path, tmp_path: Path) -> None:
    server.add("org/model", model)
    server.redirect = True
    got = client(server, tmp_path / "home", "hub.snapshot_download('org/model')", HF_TOKEN="hf_mine")
    assert files(Path(got)) == files(model)
    assert [(r.path.split("/")[1], r.token) for r in server.downloads("model.safetensors")] == [("cdn", None)]
    assert [(r.path.split("/")[1], r.token) for r in server.downloads("config.json")] == [("org", "hf_mine")]


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no network"])
def test_without_the_hub_a_complete_snapshot_is_used_and_a_missing_one_is_an_error(
    model: Path, tmp_path: Path, how: str
) -> None:
    wanted = "hub.snapshot_download('org/model', allow_patterns='*.json')"
    with HubServer() as server:
        server.add("org/model", model)
        snapshot = client(server, tmp_path / "home", wanted)
    settings = {"HF_HUB_OFFLINE": "1"} if how == "HF_HUB_OFFLINE" else {}
    seen = len(server.requests)
    errors = {
        "hub.snapshot_download('org/model')": "IncompleteSnapshotError",
        "hub.snapshot_download('org/other')": "LocalEntryNotFoundError",
        "hub.hf_hub_download('org/model', 'README.md')": "LocalEntryNotFoundError",
    }
    found, *raised = client(server, tmp_path / "home", wanted, *errors, **settings)
    assert found == snapshot
    assert [kinds[0] for kinds in raised] == [f"huggingface_hub.errors.{error}" for error in errors.values()]
    assert all("builtins.FileNotFoundError" in kinds for kinds in raised)
    assert len(server.requests) == seen


@pytest.mark.parametrize(
    ("asked", "status", "told", "start", "end"),
    [
        ("bytes=0-3", 206, "bytes 0-3/26", 0, 4),
        ("bytes=20-", 206, "bytes 20-25/26", 20, 26),
        ("bytes=-5", 206, "bytes 21-25/26", 21, 26),
        ("bytes=24-99", 206, "bytes 24-25/26", 24, 26),
        ("lines=1-2", 200, None, 0, 26),
        ("bytes=26-", 416, "bytes */26", 0, 0),
    ],
)
def test_a_part_of_a_file_is_served_by_its_range(
    server: HubServer, model: Path, asked: str, status: int, told: str | None, start: int, end: int
) -> None:
    server.add("org/model", model)
    request = urllib.request.Request(f"{server.url}/org/model/resolve/main/config.json", headers={"Range": asked})
    try:
        answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        assert (answer.status, answer.headers["Content-Range"]) == (status, told)
        assert answer.read() == (model / "config.json").read_bytes()[start:end]
