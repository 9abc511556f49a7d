"""In an interpreter inside of an app: no sys.executable of its own, no arguments, no streams, no working directory."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.conversions import ROOT
from tests.support.engines import PATIENCE

APP = """
import os, sys, tempfile, traceback

sys.executable = {executable!r}
sys.orig_argv = []
del sys.argv
gone = tempfile.mkdtemp()
os.chdir(gone)
if os.name == "posix":  # elsewhere a working directory cannot be removed
    os.rmdir(gone)
told = sys.stdout
sys.excepthook = lambda *error: traceback.print_exception(*error, file=told)
sys.stdin = sys.stdout = sys.stderr = sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None
for number in {closed!r}:
    os.close(number)
"""


def in_an_app(code: str, *, executable: str | None = None, closed: tuple[int, ...] = (0, 2)) -> str:
    """What `code` tells (`print(..., file=told)`) that ends well in such an interpreter."""
    program = APP.format(executable=executable, closed=closed) + code
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


DOCTOR = """
import json
from dataclasses import asdict
from weblab_local.diagnosis.advice import advise
from weblab_local.diagnosis.doctor import examine

report = examine()
print(json.dumps([report.as_json(), [asdict(one) for one in advise(report)]]), file=told)
"""


@pytest.mark.parametrize("executable", [None, "", "/Applications/Some App/app", sys.executable])
def test_the_doctor_asks_the_demo_in_this_process(executable: str | None) -> None:
    report, advice = json.loads(in_an_app(DOCTOR, executable=executable))
    assert report["answer"] == {"model": "demo", "ok": True, "crashed": False, "error": ""}
    assert report["can_run"]
    assert [one["code"] for one in advice] == ["no-model"]


BROKEN_DOCTOR = (
    """
from weblab_local.llama.context import Model

def fail(*_arguments, **_options):
    raise RuntimeError("no such driver")

Model.__init__ = fail
"""
    + DOCTOR
)


def test_the_doctor_tells_what_is_broken_in_this_process() -> None:
    report, advice = json.loads(in_an_app(BROKEN_DOCTOR))
    assert report["answer"] == {"model": "demo", "ok": False, "crashed": False, "error": "no such driver"}
    assert not report["can_run"]
    assert "no-answer" in [one["code"] for one in advice]


COMMAND = """
from weblab_local.cli import main

sys.argv = {arguments!r}
if not sys.argv:
    del sys.argv
try:
    main()
except SystemExit as end:
    print(end.code, file=told)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["app", "doctor"], 0),
        (["", "doctor", "--json"], 0),
        (["app", "generate", "--model", "demo", "日本の首都はどこですか？"], 0),
        (["app", "generate", "--model", "demo/nothing", "?"], 1),
        ([], 2),
    ],
)
def test_commands_run_and_end_as_they_do_elsewhere(arguments: list[str], code: int) -> None:
    assert in_an_app(COMMAND.format(arguments=arguments)).split() == [str(code)]


LOAD = """
from weblab_local import SamplingParams, load

with load("demo") as model:
    answer = model.generate("日本の首都はどこですか？", SamplingParams(temperature=0))
    print(answer.finish_reason, file=told)
    print(model.chat().send("日本の首都はどこですか？", SamplingParams(temperature=0)).text == answer.text, file=told)
"""


def test_a_model_is_loaded_and_answers() -> None:
    assert in_an_app(LOAD).split() == ["stop", "True"]


SERVE = """
import json, signal, threading, urllib.request
from weblab_local import load
from weblab_local.server.app import create_app
from weblab_local.server.config import ServerConfig
from weblab_local.server.serve import Server, listen

config = ServerConfig(port=0)

def ask(server):
    body = json.dumps({{"messages": [{{"role": "user", "content": "日本の首都はどこですか？"}}], "temperature": 0}})
    address = f"http://127.0.0.1:{{server.port}}/v1/chat/completions"
    request = urllib.request.Request(address, body.encode(), {{"Content-Type": "application/json"}})
    with urllib.request.urlopen(request) as response:
        print(json.load(response)["choices"][0]["finish_reason"], file=told)
    with urllib.request.urlopen(f"http://127.0.0.1:{{server.port}}/") as response:
        print(response.status, file=told)
    server.stop()

def serve():
    with listen(config) as listener, load("demo") as engine:
        server = Server(create_app(engine, config), listener, most_requests=4)
        server.run(threading.Thread(target=ask, args=(server,)).start)

{run}
"""

OWN_HANDLERS = """
original = signal.getsignal
signal.getsignal = lambda number: None if number == signal.SIGINT else original(number)  # as where C has set one
serve()
"""

OTHER_THREAD = """
thread = threading.Thread(target=serve)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("run", ["serve()", OWN_HANDLERS, OTHER_THREAD])
def test_a_server_answers_and_ends(run: str) -> None:
    assert in_an_app(SERVE.format(run=run)).split() == ["stop", "200"]


LOADING = """
import signal, threading
from weblab_local.cli.options import RuntimeOptions
from weblab_local.cli.session import open_model
from weblab_local import streams

streams.prepare()

def open_it():
    open_model("demo", RuntimeOptions(), n_ctx=512).close()
    print("loaded", file=told)

thread = threading.Thread(target=open_it)
thread.start()
thread.join()
signal.getsignal = lambda number: None  # as where the app has set a handler in C
open_it()
"""


def test_loading_by_a_command_leaves_the_apps_handlers_alone() -> None:
    assert in_an_app(LOADING).split() == ["loaded", "loaded"]


HOST = """
#include <Python.h>
#include <signal.h>

static void on_interrupt(int number) { (void) number; }

int main(int argc, char **argv) {
    signal(SIGINT, on_interrupt);
    Py_Initialize();
    int failed = argc != 2 || PyRun_SimpleString(argv[1]);
    return Py_FinalizeEx() < 0 || failed;
}
"""

IN_A_HOST = """
import signal, sys
from weblab_local.cli.options import RuntimeOptions
from weblab_local.cli.session import open_model
from weblab_local.diagnosis.doctor import examine

assert not sys.orig_argv and signal.getsignal(signal.SIGINT) is None  # so far the host
open_model("demo", RuntimeOptions(), n_ctx=512).close()
print(examine().answer.ok, signal.getsignal(signal.SIGINT))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program in C with Python inside of it and a signal handler of its own."""
    variables, include = sysconfig.get_config_vars(), sysconfig.get_path("include")
    compiler = shutil.which("cc")
    if compiler is None or not variables.get("Py_ENABLE_SHARED") or not Path(include, "Python.h").is_file():
        pytest.skip("needs a C compiler and Python as a library")
    folder = tmp_path_factory.mktemp("host")
    source = folder / "host.c"
    source.write_text(HOST, encoding="utf-8")
    libraries = variables["LIBDIR"]
    options = [f"-I{include}", f"-L{libraries}", f"-lpython{variables['LDVERSION']}", f"-Wl,-rpath,{libraries}"]
    subprocess.run([compiler, source, "-o", folder / "host", *options], check=True)
    return folder / "host"


def test_inside_of_a_program_in_c(host: Path, tmp_path: Path) -> None:
    packages = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    environment = os.environ | {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": packages}
    done = subprocess.run(
        [host, IN_A_HOST],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "True None\n"), done.stderr
