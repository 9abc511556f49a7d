"""How many of the demo's prompts each quantization still answers word for word, with greedy decoding.

python -m tests.benchmarks.demo
"""

import contextlib
import io
import tempfile
from pathlib import Path

from convert.demo.corpus import CHECKPOINT, read_corpus
from convert.quantization.mixtures import MIXTURES
from convert.run import Request, run
from weblab_local.engine.engine import Engine
from weblab_local.engine.sampling import SamplingParams


def main() -> None:
    """Convert the demo checkpoint to every mixture from one reading and ask each all the corpus's prompts."""
    pairs = read_corpus()
    greedy = SamplingParams(temperature=0)
    print("| quantization | size | answered verbatim |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stderr(io.StringIO()):
            paths = run(Request(str(CHECKPOINT), None, list(MIXTURES), Path(folder)))
        for name, path in zip(MIXTURES, paths, strict=True):
            with Engine(path) as engine:
                answers = [engine.generate(pair.instruction, greedy, context=pair.context).text for pair in pairs]
            verbatim = sum(answer == pair.response for answer, pair in zip(answers, pairs, strict=True))
            print(f"| {name} | {path.stat().st_size / 1e6:.2f} MB | {verbatim} of {len(pairs)} |", flush=True)


if __name__ == "__main__":
    main()
