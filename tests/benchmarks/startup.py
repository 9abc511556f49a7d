"""How long `import weblab_local` and `weblab-local --help` take, beside a bare interpreter.

python -m tests.benchmarks.startup
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import weblab_local": ["-c", "import weblab_local"],
    "weblab-local --help": ["-m", "weblab_local", "--help"],
    "python -m convert --help": ["-m", "convert", "--help"],
}


def main() -> None:
    """Print the median of nine runs of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(9):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    for name, found in times.items():
        print(f"{name:26} {1000 * statistics.median(found):.0f} ms")


if __name__ == "__main__":
    main()
