"""How long a body of 1 MB keeps the server's event loop: `python -m tests.benchmarks.request_bodies [--rounds 5]`.

Bodies that are wrong in every entry are parsed and validated. The ratio says how long that takes beside parsing their
JSON alone; when every error was collected, it was a hundred and more.
"""

import argparse
import json
import statistics
import time

from pydantic import BaseModel, ValidationError

from tests.server.test_request_bodies import LARGE, MODELS

SIZE = 1 << 20


def seconds(model: type[BaseModel], body: str) -> float:
    """Parse and validate `body` as the server does, its errors included."""
    started = time.perf_counter()
    try:
        model.model_validate(json.loads(body))
    except ValidationError as error:
        error.errors()
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How long a body of 1 MB keeps the event loop.")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    print(f"medians of {rounds} rounds\n\n| body | MB | seconds | beside parsing alone |\n| --- | --- | --- | --- |")
    for name, (kind, make) in LARGE.items():
        n = 16_000 * SIZE // len(json.dumps(make(16_000)))
        body = json.dumps(make(n))
        pairs = []
        for _ in range(rounds):
            started = time.perf_counter()
            json.loads(body)
            parsing = time.perf_counter() - started
            pairs.append((seconds(MODELS[kind], body), parsing))
        ratio = statistics.median(both / parsing for both, parsing in pairs)
        print(f"| {name} | {len(body) / 1e6:.2f} | {statistics.median(both for both, _ in pairs):.3f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
