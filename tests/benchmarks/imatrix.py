"""What `convert.calibrate` collects beside what llama.cpp's own llama-imatrix does, for the same tokens.

    python -m tests.benchmarks.imatrix [CHECKPOINT] [--quant F32] [--chunks 8] [--folder build/imatrix]

CHECKPOINT is the demo by default, or weblab-mini where WEBLAB_TEST_DATA is set. llama-imatrix is compiled once, for the
CPU, from the source package of the llama-cpp-python that is installed; what is compiled stays in --folder. Both read
the prose of the calibration texts, cut into chunks of 512 tokens as llama-imatrix does.
"""

import argparse
import os
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from convert.calibration.calibrate import N_CTX, calibrate
from convert.demo.corpus import CHECKPOINT
from convert.quantization.imatrix import ImportanceMatrix, read_imatrix
from convert.reference.texts import calibration, read_tokenizer
from convert.run import Request, run
from convert.source.checkpoint import open_checkpoint
from tests.benchmarks.llama_source import llama_cpp_source

_OFF = ("LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER", "GGML_CUDA", "GGML_METAL")


def build(folder: Path) -> Path:
    """Compile llama-imatrix in `folder`, as far as it is not; the program."""
    source, target = llama_cpp_source(folder), folder / "build"
    options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in _OFF)]
    subprocess.run(["cmake", "-S", source, "-B", target, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", target, "--target", "llama-imatrix", "--parallel", "2"], check=True)
    return target / "bin" / "llama-imatrix"


def theirs(program: Path, model: Path, text: str, chunks: int) -> ImportanceMatrix:
    """llama-imatrix's matrix of the first `chunks` chunks of `text`."""
    with tempfile.TemporaryDirectory() as folder:
        path, result = Path(folder) / "text.txt", Path(folder) / "imatrix.gguf"
        path.write_text(text, encoding="utf-8", newline="\n")
        options = ["-m", model, "-f", path, "-o", result, "-c", N_CTX, "--chunks", chunks, "--no-ppl"]
        done = subprocess.run([str(part) for part in (program, *options)], capture_output=True, text=True)
        if done.returncode or not result.exists():
            raise SystemExit(f"llama-imatrix failed:\n{done.stderr[-2000:]}")
        return read_imatrix(result)


def largest_differences(ours: ImportanceMatrix, other: ImportanceMatrix) -> dict[str, tuple[float, float]]:
    """By kind of weight: the largest relative difference of a column's sum, and of all columns' sums together."""
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    assert ours.entries.keys() == other.entries.keys()
    for name, activations in other.entries.items():
        assert activations.n_tokens == ours.entries[name].n_tokens
        expected, sums = activations.sums.astype(np.float64), ours.entries[name].sums.astype(np.float64)
        columns = float(np.abs(sums / expected - 1).max())
        together = float(np.abs(sums - expected).sum() / expected.sum())
        kind = name.split(".")[2]
        found[kind] = max(found[kind][0], columns), max(found[kind][1], together)
    return found


def main() -> None:
    """Build, run both, print the table."""
    data = os.environ.get("WEBLAB_TEST_DATA")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path(data) / "weblab-mini" if data else CHECKPOINT)
    parser.add_argument("--quant", choices=("F32", "F16"), default="F32", help="of the GGUF; default: %(default)s")
    parser.add_argument("--chunks", type=int, default=8, help="at most; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("build/imatrix"), help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    program = build(arguments.folder)
    text = "\n\n".join(text.text for text in calibration() if not text.in_template)
    ids = read_tokenizer(arguments.checkpoint).encode(text, add_special_tokens=False).ids
    chunks = [ids[start : start + N_CTX] for start in range(0, len(ids) - N_CTX + 1, N_CTX)][: arguments.chunks]
    ours = calibrate(open_checkpoint(arguments.checkpoint), chunks, datasets=["text.txt"])
    with tempfile.TemporaryDirectory() as folder:
        (model,) = run(Request(str(arguments.checkpoint), None, [arguments.quant], Path(folder)))
        other = theirs(program, model, text, arguments.chunks)
    print(f"{arguments.checkpoint.name} in {arguments.quant}, {ours.n_tokens} tokens")
    print("| weight | largest difference of a column's sum | of all columns together |")
    print("| --- | --- | --- |")
    for kind, (column, together) in largest_differences(ours, other).items():
        print(f"| {kind} | {column:.2%} | {together:.3%} |")


if __name__ == "__main__":
    main()
