"""One pass against two steps, on the same synthetic checkpoint in the same run.

    python -m tests.benchmarks.convert [--scale 1.0] [--folder build/benchmark] [--quant Q4_K_M]

One pass: `python -m convert`, to `--quant` and once more to that and Q8_0 from one reading. Two steps: an fp16 GGUF (by
the same converter, which for fp16 only copies; a plain copy of the shards stands beside it), then llama.cpp's
`llama_model_quantize` on it. The shards are dropped from the page cache before each. Where the converter's time goes is
its own account. At scale 1 it wants 55 GB of disk; everything is deleted at the end, and between the steps what is no
longer needed.
"""

import argparse
import shutil
import sys
from pathlib import Path

from convert.quantization.mixtures import MIXTURES
from tests.benchmarks.measure import Measured, forget_cached, run_measured
from tests.benchmarks.synthetic import write_checkpoint

QUANTIZE = """
import sys
from llama_cpp import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"


def convert(checkpoint: Path, output: Path, quant: str) -> Measured:
    """`python -m convert`, measured, with nothing of the checkpoint in the page cache."""
    forget_cached(list(checkpoint.glob("*.bin")))
    command = [sys.executable, "-m", "convert", str(checkpoint), "--quant", quant, "--output", str(output), "--force"]
    return run_measured([*command, "--verbose"], output)


def copy(checkpoint: Path, output: Path) -> Measured:
    """The checkpoint's files copied, measured, with nothing of them in the page cache."""
    forget_cached(list(checkpoint.glob("*.bin")))
    return run_measured([sys.executable, "-c", COPY, str(checkpoint), str(output)], output)


def quantize(source: Path, target: Path, quant: str) -> Measured:
    """`llama_model_quantize` on all cores, measured."""
    forget_cached([source])
    command = [sys.executable, "-c", QUANTIZE, str(source), str(target), str(int(MIXTURES[quant].file_type))]
    return run_measured(command, source.parent)


def row(name: str, measured: Measured) -> str:
    """A line of the table."""
    gigabytes = [f"{value / 1e9:.2f} GB" for value in (measured.memory, measured.written, measured.disk)]
    return f"| {name} | {measured.seconds:.0f} s | " + " | ".join(gigabytes) + " |"


def main() -> None:
    """Write the checkpoint, take both roads, print the table."""
    parser = argparse.ArgumentParser(description="One-pass conversion against two steps.")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 36 layers; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmark"), help="default: %(default)s")
    parser.add_argument("--quant", default="Q4_K_M", help="default: %(default)s")
    arguments = parser.parse_args()
    quant, folder = arguments.quant, arguments.folder
    checkpoint, one_pass, two_steps = folder / "checkpoint", folder / "one-pass", folder / "two-steps"
    layers = max(1, round(36 * arguments.scale))
    try:
        size = write_checkpoint(checkpoint, layers=layers)
        single = convert(checkpoint, one_pass, quant)
        shutil.rmtree(one_pass)
        double = convert(checkpoint, one_pass, f"{quant} Q8_0")
        shutil.rmtree(one_pass)
        copied = copy(checkpoint, one_pass)
        shutil.rmtree(one_pass)
        first = convert(checkpoint, two_steps, "F16")
        shutil.rmtree(checkpoint)
        f16 = two_steps / "checkpoint-F16.gguf"
        second = quantize(f16, two_steps / f"checkpoint-{quant}.gguf", quant)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    both = Measured(
        first.seconds + second.seconds,
        max(first.memory, second.memory),
        first.written + second.written,
        max(first.disk, second.disk),
    )
    print(f"\n{layers} layers of the 10B's shape, {size / 1e9:.2f} GB in .bin shards, {quant}:\n")
    print("| road | time | memory without page cache | written | disk besides the checkpoint |")
    print("| --- | --- | --- | --- | --- |")
    print(row(f"one pass: {quant}", single))
    print(row(f"one pass: {quant} and Q8_0", double))
    print(row("plain copy of the checkpoint", copied))
    print(row("two steps: fp16 GGUF", first))
    print(row(f"two steps: llama_model_quantize {quant}", second))
    print(row("two steps, together", both))
    print(f"\none pass takes {single.seconds / both.seconds:.2f} of the two steps' time")
    print(f"two outputs take {double.seconds / single.seconds:.2f} times one")
    print(f"the fp16 GGUF takes {first.seconds / copied.seconds:.2f} times a plain copy")


if __name__ == "__main__":
    main()
