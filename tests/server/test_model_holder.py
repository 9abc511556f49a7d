"""A server whose model is chosen while it runs: what it answers before, meanwhile, and when that fails."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from tests.server.apps import InProcess, in_process, load_on_one_thread
from tests.server.support import Running, client_of, until, user
from tests.support.damaged_gguf import Changed, Value, write_changed
from tests.support.engines import PAIRS, PATIENCE
from weblab_local.engine.engine import Engine
from weblab_local.models.store import demo_model


def ask(app: InProcess) -> str | None:
    with client_of(app.port, app.key) as client:
        done = client.chat.completions.create(model="default", messages=user(PAIRS[0].instruction), temperature=0)
        return done.choices[0].message.content


def refusals(app: InProcess) -> set[tuple[int, str | None, str | None]]:
    """Status, type and code of what OpenAI's client gets from each endpoint."""
    found = set()
    with client_of(app.port, app.key) as client:
        calls: list[Callable[[], object]] = [
            lambda: client.chat.completions.create(model="x", messages=user("x")),
            lambda: client.chat.completions.create(model="x", messages=user("x"), stream=True),
            lambda: client.completions.create(model="x", prompt="x"),
            client.models.list,
            lambda: client.models.retrieve("demo"),
        ]
        for call in calls:
            with pytest.raises(openai.APIStatusError) as refused:
                call()
            found.add((refused.value.status_code, refused.value.type, refused.value.code))
    return found


def test_without_a_model_every_endpoint_says_so_until_there_is_one() -> None:
    with in_process() as app:
        assert refusals(app) == {(503, "server_error", "model_not_loaded")}
        with app.http as http:
            assert http.get("/health").json() == {"status": "ok"}

        assert app.choose("demo") | {"offers": []} == {
            "state": "loaded",
            "name": demo_model().stem,
            "share": 1.0,
            "failure": None,
            "offers": [],
        }
        assert ask(app) == PAIRS[0].response
        with client_of(app.port, app.key) as client:
            assert next(iter(client.models.list())).id == demo_model().stem


class HeldLoad:
    """Loads, and stops when half of it is done until it may go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, path: str, on_progress: Callable[[float], None]) -> Engine:
        on_progress(0.5)
        self.reached.set()
        assert self.may_go_on.wait(PATIENCE)
        return load_on_one_thread(path, on_progress)


def test_meanwhile_it_says_how_far_it_is_and_takes_no_other() -> None:
    load = HeldLoad()
    with in_process(load) as app, app.http as http:
        assert http.post("/v1/app/model", json={"model": "demo"}).json()["state"] == "loading"
        assert load.reached.wait(PATIENCE)
        status = app.status()
        assert (status["state"], status["name"], status["share"]) == ("loading", "demo", 0.5)
        assert refusals(app) == {(503, "server_error", "model_not_loaded")}
        response = http.post("/v1/app/model", json={"model": "demo"})
        assert (response.status_code, response.json()["error"]["code"]) == (409, "model_loading")
        load.may_go_on.set()
        until(lambda: app.status()["state"] == "loaded")


def test_its_end_ends_a_loading() -> None:
    load = HeldLoad()
    with in_process(load) as app, app.http as http:
        http.post("/v1/app/model", json={"model": "demo"})
        assert load.reached.wait(PATIENCE)
        models = app.desktop.models
        threading.Timer(0, load.may_go_on.set).start()
    assert (models.loading, models.failure, models.name) == (None, None, None)


def files(folder: Path) -> dict[str, Path]:
    """Files that are no model to run."""
    found = {name: folder / f"{name}.gguf" for name in ("damaged", "empty", "other", "text")}
    found["damaged"].write_bytes(demo_model().read_bytes()[:100_000])
    found["empty"].write_bytes(b"")
    found["text"].write_text("not a model")
    write_changed(demo_model(), found["other"], [Changed("general.architecture", Value("str", "llama"))])
    return found | {"none": folder / "nothing.gguf", "folder": folder}


def test_what_cannot_be_loaded_is_explained_and_the_model_before_stays(tmp_path: Path) -> None:
    parts = {
        "damaged": "damaged",
        "empty": "is no GGUF file",
        "folder": "There is no model called",
        "none": "There is no model called",
        "other": "llama",
        "text": "is no GGUF file",
    }
    with in_process() as app:
        for name, path in files(tmp_path).items():
            status = app.choose(path)
            assert (status["state"], parts[name] in status["failure"]) == ("none", True), (name, status)
        app.choose("demo")
        for path in (tmp_path / "nothing.gguf", tmp_path / "other.gguf"):
            status = app.choose(path)
            assert (status["state"], status["name"]) == ("loaded", demo_model().stem)
            assert status["failure"]
            assert ask(app) == PAIRS[0].response
        with app.http as http:
            for model in ("", "x" * 5000, 7):
                assert http.post("/v1/app/model", json={"model": model}).status_code == 400


def test_another_model_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "二つ目 の モデル.gguf"
    shutil.copy(demo_model(), path)
    with in_process() as app:
        app.choose("demo")
        first = app.desktop.models.current().engine
        assert app.choose(f' "{path}" ')["name"] == path.stem  # as Windows copies a path
        assert ask(app) == PAIRS[0].response
        with pytest.raises(Exception, match="closed"):
            first.tokenize("x")


def test_a_model_that_fails_while_it_is_loaded_leaves_none(tmp_path: Path) -> None:
    def load(path: str, on_progress: Callable[[float], None]) -> Engine:
        if path == str(demo_model()):
            return load_on_one_thread(path, on_progress)
        raise MemoryError

    path = tmp_path / "large.gguf"
    shutil.copy(demo_model(), path)
    with in_process(load) as app:
        app.choose("demo")
        status = app.choose(path)
        assert (status["state"], "MemoryError" in status["failure"]) == ("none", True)
        assert refusals(app) == {(503, "server_error", "model_not_loaded")}


def test_a_server_that_is_no_app_has_none_of_it(server: Running) -> None:
    with server.http as http:
        for path in ("/v1/app/model", "/v1/app/presence", "/v1/app/ticket", "/app/key"):
            assert http.get(path).status_code == 404
            assert http.post(path, json={"model": "demo", "ticket": "x"}).status_code == 404
        assert "data-app" not in http.get("/").text
