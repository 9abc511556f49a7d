"""Time and memory of a verification, stage by stage, each in a process of its own.

    python -m tests.benchmarks.verify [CHECKPOINT] [GGUF] [--max-tokens 1000] [--folder build/verify] [--stages weights]

CHECKPOINT is the demo by default, and GGUF the Q8_0 that is shipped of it. 1,000 tokens are what a conversion ends
with, 4,096 what `make verify` compares on. The stages are those of `convert.verify`: the file's weights, metadata and
vocabulary against the checkpoint; the reference's log-probabilities; the GGUF's, and their divergence. Checkpoint and
GGUF are dropped from the page cache before each. The reference is kept in the folder for `running`, which can then be
measured alone (`--stages running`); whoever measures all stages finds the folder gone at the end.
"""

import argparse
import shutil
import sys
from pathlib import Path

from convert.demo.corpus import CHECKPOINT
from convert.model.gpt_neox import hyperparameters
from convert.source.checkpoint import open_checkpoint
from convert.verification.verify import SHORT_TOKENS
from tests.benchmarks.measure import Measured, forget_cached, run_measured
from weblab_local.models.store import demo_model

BEGIN = """
import sys
from pathlib import Path
from convert.source.checkpoint import open_checkpoint
from convert.model.gpt_neox import hyperparameters
from convert.verification.measurement import measure, samples
from convert.writing.plan import available_cores
from convert.progress import shown
from convert.reference.texts import read_tokenizer, verification
from convert.verification.verify import N_CTX
folder, gguf, kept, max_tokens = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
checkpoint = open_checkpoint(folder)
hparams = hyperparameters(checkpoint.config)
compared = samples(verification(), read_tokenizer(folder), hparams.eos_token_id, N_CTX, max_tokens)
"""
REFERENCE = """
from convert.reference.log_probabilities import log_probabilities
with shown("reference") as progress:
    reference = log_probabilities(checkpoint, [sample.ids for sample in compared], kept, progress=progress)
"""
STAGES = {
    "weights": """
from convert.verification.file_check import check_files
with shown("comparing weights") as progress:
    (check,) = check_files(checkpoint, [gguf], available_cores(), progress)
print(f"findings: {check.findings}", file=sys.stderr)
""",
    "reference": REFERENCE,
    "running": """
from convert.verification.divergence import summarize
from convert.reference.log_probabilities import LogProbabilities
from convert.verification.runtime import running
reference = LogProbabilities(kept)
with shown("running") as progress, running(gguf, N_CTX, available_cores()) as runtime:
    parts = measure(runtime, compared, reference.__getitem__, hparams.vocab_size, progress)
print(summarize(parts), file=sys.stderr)
""",
}


def measured(stage: str, checkpoint: Path, gguf: Path, max_tokens: int, folder: Path) -> Measured:
    """One of STAGES, with nothing of checkpoint and GGUF in the page cache."""
    forget_cached([gguf, *(checkpoint / shard for shard in open_checkpoint(checkpoint).shards)])
    given = [checkpoint, gguf, folder / f"reference-{max_tokens}.safetensors", max_tokens]
    return run_measured([sys.executable, "-c", BEGIN + STAGES[stage], *map(str, given)], folder)


def main() -> None:
    """Run the command line; print a line for each stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT, help="default: the demo")
    parser.add_argument("gguf", type=Path, nargs="?", default=demo_model(), help="default: the demo's")
    parser.add_argument("--max-tokens", type=int, default=SHORT_TOKENS, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("build/verify"), help="default: %(default)s")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    arguments = parser.parse_args()
    hparams = hyperparameters(open_checkpoint(arguments.checkpoint).config)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        print(
            f"{hparams.num_hidden_layers} layers of {hparams.hidden_size}, {arguments.gguf.name}, "
            f"{arguments.max_tokens} tokens\n\n| stage | time | memory without page cache |\n| --- | --- | --- |"
        )
        for stage in arguments.stages:
            found = measured(stage, arguments.checkpoint, arguments.gguf, arguments.max_tokens, arguments.folder)
            print(f"| {stage} | {found.seconds:.0f} s | {found.memory / 1e9:.2f} GB |", flush=True)
    finally:
        if arguments.stages == list(STAGES):
            shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
