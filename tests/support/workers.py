"""RPC workers on loopback, in processes of their own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.conversions import ROOT


@contextmanager
def started_worker(port: int = 0, most_memory: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A worker with one thread, and its address. With `most_memory` it gets no more bytes, whatever it calls free."""
    code = f"from weblab_local.cli.rpc_worker import run; run('127.0.0.1', {port}, 1, False)"
    if most_memory:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({most_memory}, {most_memory})); {code}"
    with subprocess.Popen(
        # Whoever runs the tests in the background ignores SIGINT, and children inherit that.
        [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler); {code}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert line[:2] == ["listening", "on"], process.communicate()
            yield line[2], process
        finally:
            process.kill()
