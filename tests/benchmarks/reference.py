"""Time and memory of the fp16 reference on a checkpoint, in a process of its own.

    python -m tests.benchmarks.reference [CHECKPOINT] [--texts 8] [--tokens 512] [--folder build/reference]

CHECKPOINT is the demo by default; one of weblab-10b's shapes is made in a minute:
    python -m tests.benchmarks.synthetic build/full
The log-probabilities of texts of random token ids are computed and written as `convert.reference.log_probabilities`
does, with a state after each layer. The shards are dropped from the page cache before. What is written is deleted.
"""

import argparse
import shutil
import sys
from pathlib import Path

from convert.demo.corpus import CHECKPOINT
from convert.model.gpt_neox import hyperparameters
from convert.source.checkpoint import open_checkpoint
from tests.benchmarks.measure import forget_cached, run_measured

RUN = """
import sys
from pathlib import Path
import numpy as np
from convert.source.checkpoint import open_checkpoint
from convert.reference.log_probabilities import log_probabilities
from convert.progress import shown
checkpoint = open_checkpoint(Path(sys.argv[1]))
ids = np.random.default_rng(0).integers(0, checkpoint.config["vocab_size"], (int(sys.argv[2]), int(sys.argv[3])))
with shown("reference") as progress:
    log_probabilities(checkpoint, ids.tolist(), Path(sys.argv[4]) / "log-probabilities", progress=progress)
"""


def main() -> None:
    """Run the command line; print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--texts", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=512, help="of each text; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("build/reference"), help="default: %(default)s")
    arguments = parser.parse_args()
    checkpoint, folder = open_checkpoint(arguments.checkpoint), arguments.folder
    hparams = hyperparameters(checkpoint.config)
    folder.mkdir(parents=True)
    try:
        forget_cached([checkpoint.folder / shard for shard in checkpoint.shards])
        of_run = [arguments.checkpoint, arguments.texts, arguments.tokens, folder]
        measured = run_measured([sys.executable, "-c", RUN, *map(str, of_run)], folder)
    finally:
        shutil.rmtree(folder)
    print(
        f"{hparams.num_hidden_layers} layers of {hparams.hidden_size}, {arguments.texts} texts of {arguments.tokens} "
        f"tokens: {measured.seconds:.0f} s, {arguments.texts * arguments.tokens / measured.seconds:.1f} tokens/s, "
        f"{measured.memory / 1e9:.2f} GB without page cache, {measured.disk / 1e9:.2f} GB of disk"
    )


if __name__ == "__main__":
    main()
