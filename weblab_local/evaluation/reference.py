"""The fp16 reference as a model for lm-eval: `convert.score` in a process of its own, for the same token ids.

`convert` needs torch and comes with a checkout, not with this package; the two share a file of requests.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from weblab_local.engine.engine import Engine
from weblab_local.errors import EvaluationError
from weblab_local.evaluation.lm_eval_model import EngineLM, Pair
from weblab_local.evaluation.result_cache import ResultCache, cache_path
from weblab_local.evaluation.tasks import Task
from weblab_local.files import private_opener
from weblab_local.i18n import _


def require_convert() -> None:
    """Raise EvaluationError where the reference cannot be run."""
    if find_spec("convert") is None or find_spec("torch") is None:
        raise EvaluationError(
            _("--reference needs the converter, which comes with a checkout of this project and not with the package."),
            _("Run it in the checkout, after `make install`: .venv/bin/weblab-local eval --reference ..."),
        )


def split_scorable(tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """The tasks that the reference can do, and those whose answers are generated: it only reads, once, a whole text."""
    return [task for task in tasks if task.choices], [task for task in tasks if not task.choices]


def reference_name(source: str) -> str:
    """What the reference is called in tables."""
    return _("{name} fp16").format(name=Path(source).name)


def cache_of_reference(source: str, revision: str | None, engine: Engine) -> ResultCache:
    """Open the cache of the reference of `source`, for contexts as long as the engine's."""
    folder = Path(source).expanduser()
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir() if folder.is_dir() else ())
        if path.suffix in (".json", ".bin", ".safetensors")
    ]
    place = folder.resolve() if files else source
    return ResultCache(cache_path(f"{Path(source).name}-fp16", place, revision, files, engine.longest_sequence))


class ReferenceLM(EngineLM):
    """Scores continuations by the checkpoint. The engine, of a file made from it, tokenizes."""

    def __init__(self, engine: Engine, source: str, revision: str | None, cache: Path) -> None:
        """The requests and the state of an interrupted pass are kept beside the file of its `cache`."""
        super().__init__(engine, separate=True)
        self._source = source
        self._revision = revision
        self._requests = cache.with_suffix(".requests.jsonl")
        self._state = cache.with_suffix(".state")

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        groups = [list(group) for _key, group in groupby(map(self._fitting, requests), key=lambda pair: pair[1])]
        with open(self._requests, "w", encoding="utf-8", opener=private_opener) as file:
            for group in groups:
                continuations = [continuation for _texts, _context, continuation in group]
                file.write(json.dumps({"context": group[0][1], "continuations": continuations}) + "\n")
        found: list[tuple[float, bool]] = []
        for group, scores in zip(groups, self._scores(), strict=True):
            for (texts, *_ids), (loglikelihood, is_greedy) in zip(group, scores, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, (loglikelihood, is_greedy))
                found.append((loglikelihood, is_greedy))
        self._requests.unlink()
        return found

    def _scores(self) -> Iterator[list[tuple[float, bool]]]:
        command = [sys.executable, "-m", "convert.score", str(self._requests), self._source]
        options = ["--state", str(self._state), *(["--revision", self._revision] if self._revision else [])]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, encoding="utf-8") as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    yield [(loglikelihood, is_greedy) for loglikelihood, is_greedy in json.loads(line)]
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise EvaluationError(_("The fp16 reference did not come to its end; its own message is above."))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The reference is only asked for choices."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The reference is only asked for choices."""
        raise NotImplementedError
