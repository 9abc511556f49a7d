"""What each mixture costs: size and divergence from the checkpoint, in Japanese and English.

    python -m tests.benchmarks.fidelity [CHECKPOINT...] [--max-tokens 4096] [--plot FILE.svg]

CHECKPOINT: the demo by default. Each is converted to all mixtures but F32, and once more to Q4_K_M with an importance
matrix from the project's calibration texts; then `convert.verify` compares them on its own, held-out texts. `--plot`
draws the same figures, size against KL, without F16, whose loss is the runtime's own. docs/images/mixtures.svg shows
the models of 25 and 32 million weights.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from convert.demo.corpus import CHECKPOINT
from convert.quantization.mixtures import ALL
from convert.reference.texts import verification
from convert.run import Request, run
from convert.source.checkpoint import open_checkpoint
from convert.verification.plots import sizes
from convert.verification.report import UNQUANTIZED, FileReport, Report
from convert.verification.verify import Options, verify_files

MIXTURES = tuple(name for name in ALL if name != "F32")


def row(file: FileReport) -> str:
    """A line of the table."""
    ja, en = (f"{file.groups[language].mean_kl:.6f}" for language in ("ja", "en"))
    top1 = f"{file.groups['all'].top1_agreement:.2%}"
    return f"| {file.mixture} | {file.check.size / 1e6:.2f} MB | {ja} | {en} | {top1} |"


def compared(checkpoint: Path, max_tokens: int) -> Report:
    """Convert `checkpoint` to all mixtures and compare them with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = str(checkpoint)
        paths = run(Request(source, None, MIXTURES, folder / "plain"))
        (weighted,) = run(Request(source, None, ["Q4_K_M"], folder / "weighted", imatrix="auto"))
        paths.append(weighted.rename(weighted.with_stem(weighted.stem + "-imatrix")))
        options = Options(max_tokens, 0)
        return verify_files(
            open_checkpoint(checkpoint), paths, verification(), folder / "reference.safetensors", options
        )


def plot(reports: Sequence[Report]) -> str:
    """Return an SVG of the quantized files of each model."""
    quantized = {
        f"{report.checkpoint}, {report.files[0].check.n_weights / 1e6:.1f} million weights": [
            file for file in report.files if file.check.mixture not in UNQUANTIZED
        ]
        for report in reports
    }
    return sizes("Mean KL divergence by file size, for each mixture", quantized)


def main() -> None:
    """Convert, compare, print the tables."""
    parser = argparse.ArgumentParser(description="What each mixture costs.")
    parser.add_argument("checkpoints", type=Path, nargs="*", default=[CHECKPOINT], help="default: the demo")
    parser.add_argument("--max-tokens", type=int, default=4096, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG too")
    arguments = parser.parse_args()
    os.environ["VERIFY"] = "0"
    reports = []
    for checkpoint in arguments.checkpoints:
        report = compared(checkpoint, arguments.max_tokens)
        print(f"\n{report.checkpoint}, {arguments.max_tokens} tokens\n")
        print("| mixture | size | KL Japanese | KL English | top-1 agreement |")
        print("| --- | --- | --- | --- | --- |")
        for file in report.files:
            print(row(file), flush=True)
        reports.append(report)
    if arguments.plot:
        arguments.plot.write_text(plot(reports), encoding="utf-8")


if __name__ == "__main__":
    main()
