"""GGUF files against the checkpoint they were made from, as a report.

    each file --file_check--> weights, metadata, vocabulary: are they the checkpoint's?
    texts --measurement--> ids --reference--> log-probabilities of the checkpoint, computed once for all files
                           ids --runtime--> each file's logits --divergence--> figures --report--> text, JSON, HTML

A file that does not hold what the checkpoint holds is not run: what it computes would only repeat that it is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gguf import TokenType
from tokenizers import Tokenizer

from convert.errors import ConversionError
from convert.model.gpt_neox import Hyperparameters, hyperparameters
from convert.model.vocab import read_vocabulary
from convert.progress import shown
from convert.reference.texts import Text, describe, read_tokenizer, verification
from convert.source.checkpoint import Checkpoint
from convert.source.tokenizer_files import tokenizer_json
from convert.verification.continuations import compare_continuations, reference_continuations
from convert.verification.file_check import FileCheck, check_files
from convert.verification.kl_limits import KL_LIMITS
from convert.verification.measurement import (
    Sample,
    by_group,
    by_position,
    by_text,
    measure,
    prompts,
    samples,
    token_id_findings,
)
from convert.verification.report import GROUPS, FileReport, Report
from convert.verification.runtime import Runtime, running
from convert.verification.tensor_check import Progress
from convert.writing.plan import available_cores
from weblab_local.files import private_folder
from weblab_local.home import data_dir

DEFAULT_MAX_TOKENS = 4096

SHORT_TOKENS = 1000
"""What a conversion ends with."""

N_CTX = 1024
"""Tokens of the longest sequence; prose that is longer goes on in the next one."""

SMALL_MODEL = 500_000_000
"""Weights up to which greedy continuations are made without being asked for."""

DEFAULT_CONTINUATIONS = 4
CONTINUATION_TOKENS = 32


@dataclass(frozen=True)
class Options:
    """How much is compared, and with what.

    `max_tokens` 0 leaves out all that needs a forward pass. `n_continuations` None: DEFAULT_CONTINUATIONS for a model
    of up to SMALL_MODEL weights, none for a larger one.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    n_continuations: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int = 0


@dataclass(frozen=True)
class _Setting:
    """What every file is compared with."""

    checkpoint: Checkpoint
    hparams: Hyperparameters
    tokenizer: Tokenizer
    texts: Sequence[Text]
    samples: Sequence[Sample]
    prompts: Sequence[str]
    n_vocab: int
    n_ctx: int


def verify_files(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    texts: Sequence[Text],
    reference_path: Path,
    options: Options | None = None,
    name: str | None = None,
) -> Report:
    """Verify the GGUFs at `paths` against the checkpoint they were made from, with `texts`.

    The reference's log-probabilities are kept at `reference_path`, and taken from there the next time for the same
    texts: 2 bytes for each token and each entry of the vocabulary. Progress goes to stderr. Raises ConversionError for
    a checkpoint or texts that cannot be used. The report has the files by size, the largest first, and calls the
    checkpoint by its `name`, which is its folder's where none is given.
    """
    options = options or Options()
    n_threads = options.n_threads or available_cores()
    with shown("comparing weights") as progress:
        checks = check_files(checkpoint, paths, n_threads, progress)
    reports = {check.path: FileReport(check, check.findings) for check in checks}
    sound = sorted((check for check in checks if check.passed), key=lambda check: check.size, reverse=True)
    described = {}
    if sound and options.max_tokens:
        setting = _setting(checkpoint, texts, options, sound[0].n_weights)
        ids = [sample.ids for sample in setting.samples]
        described = describe(texts, ids)
        reports |= {report.check.path: report for report in _run_files(sound, setting, reference_path, options)}
    by_size = sorted(reports.values(), key=lambda report: report.check.size, reverse=True)
    return Report(name or checkpoint.folder.name, described, by_size)


def short_verification(checkpoint: Checkpoint, name: str, paths: Sequence[Path], n_threads: int | None) -> Report:
    """`verify_files` on SHORT_TOKENS tokens, what a conversion ends with. The model's `name` tells references apart."""
    kept = data_dir() / "references" / f"{name}-short.safetensors"
    private_folder(kept.parent)
    return verify_files(checkpoint, paths, verification(), kept, Options(SHORT_TOKENS, 0, n_threads), name)


def _setting(checkpoint: Checkpoint, texts: Sequence[Text], options: Options, n_weights: int) -> _Setting:
    hparams = hyperparameters(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint.tokenizer_folder)
    n_ctx = min(N_CTX, hparams.max_position_embeddings)
    n_continuations = options.n_continuations
    if n_continuations is None:
        n_continuations = DEFAULT_CONTINUATIONS if n_weights <= SMALL_MODEL else 0
    types = read_vocabulary(tokenizer_json(checkpoint.tokenizer_folder), hparams.vocab_size).token_types
    compared = samples(texts, tokenizer, hparams.eos_token_id, n_ctx, options.max_tokens)
    if not compared:
        raise ConversionError("There is nothing to compare on.", "Give more texts, or a larger --max-tokens.")
    return _Setting(
        checkpoint=checkpoint,
        hparams=hparams,
        tokenizer=tokenizer,
        texts=texts,
        samples=compared,
        prompts=prompts(texts, n_continuations),
        n_vocab=max(i for i, kind in enumerate(types) if kind != TokenType.UNUSED) + 1,
        n_ctx=n_ctx,
    )


def _run_files(
    sound: Sequence[FileCheck], setting: _Setting, reference_path: Path, options: Options
) -> list[FileReport]:
    """Run each file on the samples. The first, which is the largest, proposes the reference's continuations."""
    from convert.reference.log_probabilities import log_probabilities  # torch takes seconds to import
    from convert.reference.reference import logits

    with shown("reference") as progress:
        ids = [sample.ids for sample in setting.samples]
        reference = log_probabilities(setting.checkpoint, ids, reference_path, progress=progress)
    most = setting.n_ctx - CONTINUATION_TOKENS
    asked = [list(setting.tokenizer.encode(prompt, add_special_tokens=False).ids)[:most] for prompt in setting.prompts]
    answers: list[list[int]] | None = None
    reports = []
    for check in sound:
        threads = options.n_threads or available_cores()
        with running(check.path, setting.n_ctx, threads, options.n_gpu_layers) as runtime:
            findings = token_id_findings(runtime, setting.tokenizer, setting.texts)
            if findings:
                reports.append(FileReport(check, findings))
                continue
            with shown(f"running {check.label}") as progress:
                of_file = _in_bytes_of(check, progress)
                parts = measure(runtime, setting.samples, reference.__getitem__, setting.n_vocab, of_file)
            if answers is None:
                answers = reference_continuations(
                    asked,
                    CONTINUATION_TOKENS,
                    setting.hparams.eos_token_id,
                    setting.n_vocab,
                    partial(runtime.greedy, n_vocab=setting.n_vocab),
                    lambda sequences: logits(setting.checkpoint, sequences),
                )
            continuations = [
                compare_continuations(prompt, answer, _greedy(runtime, ids, setting), setting.tokenizer.decode)
                for prompt, ids, answer in zip(setting.prompts, asked, answers, strict=True)
            ]
        groups = by_group(setting.samples, parts)
        reports.append(
            FileReport(
                check,
                _kl_findings(check, {name: summary.mean_kl for name, summary in groups.items()}),
                groups,
                by_text(setting.samples, parts),
                by_position(parts),
                continuations,
            )
        )
    return reports


def _in_bytes_of(check: FileCheck, progress: Progress) -> Progress:
    """A callback that takes tokens and gives their share of the file's bytes to `progress`."""
    return lambda done, total: progress(check.size * done // total, check.size)


def _greedy(runtime: Runtime, ids: Sequence[int], setting: _Setting) -> list[int]:
    return runtime.greedy(ids, CONTINUATION_TOKENS, setting.n_vocab)


def _kl_findings(check: FileCheck, means: dict[str, float]) -> list[str]:
    """What is beyond the mixture's limit; where none is known, only what is no number."""
    limit = KL_LIMITS.get(check.mixture, float("inf"))
    return [
        f"Mean KL divergence of {GROUPS[name]}: {means[name]:.4g}, the limit of {check.mixture or 'any mixture'} is "
        f"{limit:g}. The weights are right, so it is run wrongly, or this model cannot bear so few bits."
        for name in ("ja", "en")
        if name in means and not means[name] <= limit
    ]
