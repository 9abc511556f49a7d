"""W4 and W3 beside llama.cpp's mixtures on held-out Japanese: mean KL divergence of the whole file, and of its layers.

    python -m tests.benchmarks.w4 CHECKPOINT JSQUAD [--mixtures Q4_K_M W4 Q3_K_M W3] [--texts 24] [--tokens 216]
        [--calibration-tokens 526]
    python -m tests.benchmarks.w4 CHECKPOINT --time [--mixtures W4]

CHECKPOINT: one with real structure, such as WEBLAB_TEST_DATA's weblab-mid. JSQUAD: JSQuAD's validation file, whose
paragraphs and questions are put into the instruction template. transformers computes all in float32, on the weights
that the GGUFs decode to; for the layers alone embedding and output stay as they are in the checkpoint.

With `--time`, of a checkpoint of few layers (`synthetic --layers 1`): the seconds that each matrix takes to round, in
the first of the mixtures, beside what is estimated for W4, and the memory.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import GPTNeoXForCausalLM

from convert.calibration import compensation
from convert.calibration.duration import estimate, measure
from convert.calibration.two_passes import Progress, TwoPasses
from convert.model.gpt_neox import hyperparameters, map_tensors
from convert.quantization.mixtures import ALL
from convert.reference.reference import find_device
from convert.reference.texts import read_tokenizer
from convert.run import Request, run
from convert.source.checkpoint import open_checkpoint
from convert.source.source import local_source, model_card
from convert.writing.plan import make_plan
from tests.benchmarks.measure import SAMPLE_INTERVAL, anonymous_memory
from weblab_local.engine.prompt import instruction_prompt

MIXTURES = ("Q4_K_M", "W4", "Q3_K_M", "W3")


def prompts(jsquad: Path) -> list[str]:
    """One question of each paragraph, with its answer."""
    texts = []
    for article in json.loads(jsquad.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"].rpartition("[SEP]")[2].strip()
            asked = paragraph["qas"][0]
            texts.append(instruction_prompt(asked["question"], context) + asked["answers"][0]["text"])
    return texts


def set_weights(model: GPTNeoXForCausalLM, path: Path, folder: Path, layers_only: bool) -> int:
    """Put what the GGUF at `path` decodes to into `model`; the bytes that its layers take."""
    checkpoint = open_checkpoint(folder)
    mapped = map_tensors(hyperparameters(checkpoint.config), checkpoint.weight_map)
    tensors = {tensor.name: tensor for tensor in mapped}
    state = model.state_dict()
    state["embed_out.weight"] = state.pop("lm_head.weight")  # as checkpoints name it
    in_layers = 0
    for found in GGUFReader(path).tensors:
        tensor = tensors[found.name]
        in_layers += found.n_bytes if found.name.startswith("blk.") else 0
        if tensor.source is None or (layers_only and not found.name.startswith("blk.")):
            continue
        rows = dequantize(found.data, found.tensor_type).astype(np.float32).reshape(tensor.shape)
        target = state[tensor.source]
        if tensor.row_order is None:
            target.copy_(torch.from_numpy(rows))
        else:
            target[torch.from_numpy(tensor.row_order)] = torch.from_numpy(rows)
    return in_layers


@torch.inference_mode()
def log_probabilities(model: GPTNeoXForCausalLM, sequences: list[list[int]]) -> list[torch.Tensor]:
    """log_softmax of the logits of each sequence."""
    return [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in sequences]


def time_rounding(folder: Path, mixture: str) -> None:
    """Convert to that mixture, print a table of the times between one matrix that is done and the next."""
    moments: list[tuple[str, float]] = []
    original = TwoPasses._counted

    def counted(passes: TwoPasses, names: Sequence[str], progress: Progress) -> Callable[[], None]:
        left = iter(names)
        moments.append(("", time.perf_counter()))
        tell = original(passes, names, progress)

        def done() -> None:
            moments.append((next(left), time.perf_counter()))
            tell()

        return done

    vars_of_class: Any = TwoPasses
    vars_of_class._counted = counted
    ended, peak = threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(SAMPLE_INTERVAL):
            peak[0] = max(peak[0], anonymous_memory(os.getpid()))

    checkpoint = open_checkpoint(folder)
    plan = make_plan(checkpoint, model_card(local_source(folder), "auto", []), [ALL[mixture]], folder)
    speeds = measure(plan.n_threads, find_device("auto"))
    estimated = estimate(plan, speeds).rounding
    watching = threading.Thread(target=watch)
    watching.start()
    with tempfile.TemporaryDirectory() as scratch:
        run(Request(str(folder), None, [mixture], Path(scratch)))
    ended.set()
    watching.join()
    layers: dict[str, float] = defaultdict(float)
    print("| matrix | seconds |\n| --- | --- |")
    for (_, before), (name, now) in pairwise(moments):
        print(f"| {name} | {now - before:.1f} |")
        layers[name.rpartition(".")[0].rpartition(".")[0]] += now - before
    for name, seconds in layers.items():
        if name.startswith("blk."):
            print(f"| all of layer {name.removeprefix('blk.')} | {seconds:.1f} |")
    print(f"\nIn all {sum(layers.values()):.0f} s, estimated before: {estimated:.0f} s")
    print(f"Memory without page cache: {peak[0] / 1e9:.2f} GB")


def main() -> None:
    """Convert to each, print the table."""
    parser = argparse.ArgumentParser(description="W4 and W3 beside llama.cpp's mixtures on held-out Japanese.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("jsquad", type=Path, nargs="?")
    parser.add_argument("--time", action="store_true", help="what takes how long, instead")
    parser.add_argument(
        "--mixtures",
        nargs="+",
        choices=ALL,
        help=f"default: {' '.join(MIXTURES)}, or W4 with --time; the first is compared with",
    )
    parser.add_argument("--texts", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=216, help="of each text; default: %(default)s")
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        default=compensation.CALIBRATION_TOKENS,
        help="with hidden size 512, 526 are as few for a column as the 10B has, which never takes more than 5000; "
        "default: %(default)s",
    )
    arguments = parser.parse_args()
    compensation.CALIBRATION_TOKENS = arguments.calibration_tokens
    os.environ["VERIFY"] = "0"
    if arguments.time:
        time_rounding(arguments.checkpoint, (arguments.mixtures or ["W4"])[0])
        return
    if arguments.jsquad is None:
        parser.error("JSQUAD is missing")
    folder, mixtures = arguments.checkpoint, arguments.mixtures or MIXTURES
    tokenizer = read_tokenizer(folder)
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in prompts(arguments.jsquad)]
    long = [ids[: arguments.tokens] for ids in encoded if len(ids) >= arguments.tokens]
    sequences = long[:: max(1, len(long) // arguments.texts)][: arguments.texts]
    reference = log_probabilities(GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32), sequences)
    kl: dict[tuple[str, bool], float] = {}
    print(f"{folder.name}, {len(sequences)} texts of {arguments.tokens} tokens\n")
    first = mixtures[0]
    print(f"| mixture | bytes | in layers | mean KL | of {first}'s | layers alone | of {first}'s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for path in run(Request(str(folder), None, mixtures, Path(scratch))):
            mixture = path.stem.rpartition("-")[2]
            for layers_only in (False, True):
                model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
                in_layers = set_weights(model, path, folder, layers_only)
                pairs = zip(reference, log_probabilities(model, sequences), strict=True)
                kl[mixture, layers_only] = float(
                    torch.cat(
                        [torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1) for p, q in pairs]
                    ).mean()
                )
            cells = [f"{path.stat().st_size:,}", f"{in_layers:,}"]
            for layers_only in (False, True):
                mean = kl[mixture, layers_only]
                cells += [f"{mean:.6f}", f"{mean / kl[first, layers_only]:.2f}"]
            print(f"| {mixture} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
