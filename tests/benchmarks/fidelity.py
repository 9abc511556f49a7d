"""What each mixture costs: size and divergence from the checkpoint, in Japanese and English.

    python -m tests.benchmarks.fidelity [CHECKPOINT] [--max-tokens 4096]

CHECKPOINT: the demo by default. It is converted to all of MIXTURES, and once more to Q4_K_M with an importance matrix
from the project's calibration texts; then `convert.verify` compares them on its own, held-out texts.
"""

import argparse
import os
import tempfile
from pathlib import Path

from convert.checkpoint import open_checkpoint
from convert.demo.corpus import CHECKPOINT
from convert.report import FileReport
from convert.run import Request, run
from convert.texts import verification
from convert.verify import Options, verify_files

MIXTURES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "W4")


def row(file: FileReport) -> str:
    """A line of the table."""
    ja, en = (f"{file.groups[language].mean_kl:.6f}" for language in ("ja", "en"))
    top1 = f"{file.groups['all'].top1_agreement:.2%}"
    return f"| {file.mixture} | {file.check.size / 1e6:.2f} MB | {ja} | {en} | {top1} |"


def main() -> None:
    """Convert, compare, print the table."""
    parser = argparse.ArgumentParser(description="What each mixture costs.")
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT, help="default: the demo")
    parser.add_argument("--max-tokens", type=int, default=4096, help="default: %(default)s")
    arguments = parser.parse_args()
    os.environ["VERIFY"] = "0"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = str(arguments.checkpoint)
        paths = run(Request(source, None, MIXTURES, folder / "plain"))
        (weighted,) = run(Request(source, None, ["Q4_K_M"], folder / "weighted", imatrix="auto"))
        paths.append(weighted.rename(weighted.with_stem(weighted.stem + "-imatrix")))
        options = Options(arguments.max_tokens, 0)
        kept = folder / "reference.safetensors"
        report = verify_files(open_checkpoint(arguments.checkpoint), paths, verification(), kept, options)
    print(f"\n{report.checkpoint}, {arguments.max_tokens} tokens\n")
    print("| mixture | size | KL Japanese | KL English | top-1 agreement |")
    print("| --- | --- | --- | --- | --- |")
    for file in report.files:
        print(row(file))


if __name__ == "__main__":
    main()
