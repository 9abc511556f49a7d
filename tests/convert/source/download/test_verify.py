"""`python -m convert.verify` with a checkpoint from the Hub."""

from __future__ import annotations

import subprocess
import sys

from tests.convert.source.download.support import ROOT, TINY, Conversion
from tests.support.hub_server import environment


def test_a_checkpoint_in_the_hubs_cache_is_compared_by_its_name(converted: Conversion) -> None:
    converted.hub.requests.clear()
    done = subprocess.run(
        [sys.executable, "-m", "convert.verify", TINY, str(converted.user.output), "--max-tokens", "0"],
        env=environment(converted.hub, converted.user.home) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny: the files themselves against the checkpoint.")
    assert f"{converted.gguf.name} passes" in done.stdout
    assert converted.hub.fetched_shards == []
