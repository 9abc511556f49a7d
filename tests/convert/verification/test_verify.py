"""Quantized files against the reference: the figures are those of transformers' logits, the report says what fails."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from convert.demo.corpus import CHECKPOINT
from convert.reference.reference import logits as reference_logits
from convert.reference.texts import Text, read_tokenizer, verification
from convert.source.checkpoint import open_checkpoint
from convert.verification.continuations import compare_continuations, reference_continuations
from convert.verification.divergence import summarize
from convert.verification.kl_limits import KL_LIMITS, in_words
from convert.verification.measurement import by_position, measure, prompts, samples, token_id_findings
from convert.verification.report import FileReport, Report, as_json, as_text
from convert.verification.report_html import as_html
from convert.verification.runtime import CHUNK_TOKENS, running
from convert.verification.verify import Options, verify_files
from convert.verify import app
from tests.support import llama, reference
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import ROOT, converted
from tests.support.spoiling import set_scalar, spoiled, tensor_rows
from weblab_local.engine.prompt import instruction_prompt

N_VOCAB = 3000


@pytest.fixture(scope="module")
def report(
    demo_checkpoint: Path, demo_mixtures: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Report:
    """The demo in every mixture, on a few hundred tokens of each kind."""
    kept = tmp_path_factory.mktemp("reference") / "demo.safetensors"
    paths = list(demo_mixtures.values())
    return verify_files(
        open_checkpoint(demo_checkpoint), paths, verification(), kept, Options(max_tokens=600, n_continuations=2)
    )


def by_mixture(report: Report) -> dict[str, FileReport]:
    return {file.mixture: file for file in report.files}


def test_every_mixture_of_the_demo_passes(report: Report) -> None:
    assert report.passed
    for file in report.files:
        assert list(file.findings) == []
        assert file.groups.keys() == {"all", "ja", "en", "template", "prose"}
        assert file.groups["all"].n_tokens == file.groups["ja"].n_tokens + file.groups["en"].n_tokens == 600
        assert file.groups["template"].n_tokens + file.groups["prose"].n_tokens == 600


def test_files_stand_by_size_and_more_bits_are_closer(report: Report) -> None:
    assert [file.check.size for file in report.files] == sorted((f.check.size for f in report.files), reverse=True)
    files = by_mixture(report)
    order = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M"]
    means = [files[name].groups["all"].mean_kl for name in order]
    assert means == sorted(means)
    assert files["F16"].groups["all"].mean_kl < 1e-5
    assert files["F16"].groups["all"].perplexity_ratio == pytest.approx(1.0, abs=0.002)


def test_the_figures_are_those_of_transformers_logits(demo_mixtures: Mapping[str, Path]) -> None:
    texts = verification()[:6]
    tokenizer = read_tokenizer(CHECKPOINT)
    of = samples(texts, tokenizer, 0, 512, 600)
    expected = [reference.logits(sample.ids) for sample in of]
    for name in ("Q8_0", "Q4_K_M"):
        with running(demo_mixtures[name], 512, 2) as runtime:
            found = summarize(measure(runtime, of, expected.__getitem__, N_VOCAB))
        kl, same, log_ratio = [], [], []
        for sample, theirs in zip(of, expected, strict=True):
            p = torch.tensor(theirs).double().log_softmax(dim=1)
            q = torch.tensor(llama.logits(demo_mixtures[name], sample.ids)).double().log_softmax(dim=1)
            kl.append((p.exp() * (p - q)).sum(dim=1))
            same.append(p.argmax(dim=1) == q.argmax(dim=1))
            rows, ids = torch.arange(len(sample.ids) - 1), torch.tensor(sample.ids[1:])
            log_ratio.append((p - q)[rows, ids])
        # llama.cpp's result depends a little on how it repacks the weights and cuts the batch.
        assert found.mean_kl == pytest.approx(torch.cat(kl).mean().item(), rel=0.05)
        assert found.top1_agreement == pytest.approx(torch.cat(same).double().mean().item(), abs=0.01)
        assert found.perplexity_ratio == pytest.approx(torch.cat(log_ratio).mean().exp().item(), abs=0.003)


def test_logits_do_not_depend_on_where_chunks_end(demo_f16: Path) -> None:
    ids = list(np.random.default_rng(0).integers(2, N_VOCAB, 2 * CHUNK_TOKENS + 20))
    with running(demo_f16, 1024, 2) as runtime:
        found = np.concatenate([np.array(chunk) for chunk in runtime.logits(ids)])
        again = np.concatenate([np.array(chunk) for chunk in runtime.logits(ids[:50])])
    expected = reference.logits(ids)
    assert found.shape == expected.shape
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.002 * expected.std()
    assert np.sqrt(((again - expected[:50]) ** 2).mean()) < 0.002 * expected.std()


def test_a_wrong_run_is_beyond_the_limit_of_its_mixture(tmp_path: Path, demo_f16: Path) -> None:
    """What the file check refuses would not pass here either."""
    tokenizer = read_tokenizer(CHECKPOINT)
    of = samples(verification(), tokenizer, 0, 512, 400)
    expected = [reference.logits(sample.ids) for sample in of]

    def rotate_more(reader: Any) -> None:
        set_scalar(reader, "gptneox.rope.dimension_count", 64)

    with running(spoiled(demo_f16, tmp_path, rotate_more), 512, 2) as runtime:
        found = summarize(measure(runtime, of, expected.__getitem__, N_VOCAB))
    assert found.mean_kl > max(KL_LIMITS.values())


def test_continuations_of_the_reference_are_transformers_greedy_decoding(demo_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(demo_checkpoint)
    asked = [reference.encode(instruction_prompt(text)) for text in ("雪はなぜ白いのですか。", "Who are you?", "9+4")]
    expected = reference.greedy(asked, 24)

    def poor(ids: Sequence[int], n_tokens: int) -> list[int]:
        """Right for some tokens, then wrong."""
        (right,) = reference.greedy([list(ids)], n_tokens)
        return [*right[:9], 5][:n_tokens]

    found = reference_continuations(asked, 24, reference.END, N_VOCAB, poor, lambda s: reference_logits(checkpoint, s))
    assert found == expected


def test_the_first_token_that_differs_is_shown() -> None:
    def letters(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    found = compare_continuations("?", [97, 98, 99], [97, 120], letters)
    assert (found.n_same, found.n_tokens, found.first_difference) == (1, 3, "'x' instead of 'b'")
    found = compare_continuations("?", [97, 98], [97], letters)
    assert (found.n_same, found.first_difference) == (1, "nothing instead of 'b'")
    assert compare_continuations("?", [97], [97], letters).first_difference == ""


def test_prompts_end_where_the_answer_begins() -> None:
    texts = [
        Text("en", instruction_prompt("Hi") + "Hello", True),
        Text("ja", instruction_prompt("何", "文") + "答", True),
        Text("en", "### 応答: in prose", False),
    ]
    assert prompts(texts, 9) == [instruction_prompt("何", "文"), instruction_prompt("Hi")]
    assert prompts(texts, 1) == [instruction_prompt("何", "文")]
    assert prompts(texts, 0) == []


def test_ids_of_another_tokenizer_are_a_finding(demo_f16: Path, tmp_path: Path) -> None:
    ours = read_tokenizer(CHECKPOINT)
    theirs = read_tokenizer(random_checkpoint(tmp_path / "other"))
    with running(demo_f16, 64, 1) as runtime:
        assert token_id_findings(runtime, ours, verification()) == []
        (finding,) = token_id_findings(runtime, theirs, verification())
    assert f"in {len(verification())} of {len(verification())} texts" in finding


def test_positions_are_counted_once(report: Report) -> None:
    for file in report.files:
        assert sum(p.n_tokens for p in file.positions) == 600
        weighted = sum(p.n_tokens * p.mean_kl for p in file.positions) / 600
        assert weighted == pytest.approx(file.groups["all"].mean_kl)
        assert sum(t.n_tokens * t.mean_kl for t in file.texts) / 600 == pytest.approx(weighted)
    assert by_position([]) == []


def test_a_padded_vocabulary_is_compared_without_its_padding(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", vocab_size=384)
    paths = converted(checkpoint, tmp_path / "out", "F16", "Q8_0")
    options = Options(max_tokens=400, n_continuations=2)
    found = verify_files(open_checkpoint(checkpoint), paths, verification(), tmp_path / "kept", options)
    assert found.passed
    assert all(file.groups["all"].mean_kl < 0.001 for file in found.files if file.mixture == "F16")


def test_json_has_every_figure(report: Report) -> None:
    parsed = json.loads(as_json(report))
    assert parsed["passed"] is True
    assert parsed["texts"]["n_tokens"] == 600
    for entry, file in zip(parsed["files"], report.files, strict=True):
        assert entry["name"] == file.name
        assert entry["mean_kl_limit"] == KL_LIMITS[file.mixture]
        assert entry["groups"]["ja"]["mean_kl"] == file.groups["ja"].mean_kl
        assert len(entry["continuations"]) == 2
        assert len(entry["by_text"]) == len(file.texts)


def test_the_manifests_figures_are_plain_and_few(report: Report) -> None:
    figures = report.figures()
    assert figures.keys() == {file.name for file in report.files}
    for file in report.files:
        of_file = json.loads(json.dumps(figures[file.name], allow_nan=False))
        assert of_file["passed"] is True
        assert of_file["mean_kl"] == {name: file.groups[name].mean_kl for name in ("ja", "en")}
        assert of_file["n_tokens"] == 600
        assert of_file["texts"] == report.texts["sha256"]


def test_the_text_says_in_words_what_the_figures_mean(report: Report) -> None:
    text = as_text(report)
    for file in report.files:
        assert file.name in text
        assert f"{file.groups['ja'].mean_kl:.6f}" in text
        assert in_words(file.groups["all"].mean_kl) in text
    assert text.count("the runtime's own error") == 2


class Page(HTMLParser):
    """Collects the text of a page, and what it would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        self.references += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    page = Page()
    source = as_html(report)
    page.feed(source)
    page.close()
    assert page.open == []
    assert page.references == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in source
    assert "http" not in source
    assert page.tags.count("svg") == 3
    text = "\n".join(page.texts)
    for file in report.files:
        assert file.name in text
        assert f"{file.groups['en'].mean_kl:.6f}" in text
    assert "prefers-color-scheme: dark" in source


def test_nothing_is_drawn_outside_a_plot(report: Report) -> None:
    svgs = re.findall(r'<svg viewBox="0 0 (\d+) (\d+)".*?</svg>', as_html(report), re.DOTALL)
    assert len(svgs) == 3
    width, height = map(float, svgs[0])
    source = as_html(report)
    across = [float(value) for value in re.findall(r' (?:x|x1|x2|cx)="([-\d.]+)"', source)]
    down = [float(value) for value in re.findall(r' (?:y|y1|y2|cy)="([-\d.]+)"', source)]
    assert 0 < min(across) <= max(across) < width
    assert 0 < min(down) <= max(down) < height


def test_what_a_text_holds_does_not_become_markup(demo_checkpoint: Path, demo_f16: Path, tmp_path: Path) -> None:
    texts = [Text("en", "<script>alert(1)</script> & <b>so on</b>", False)]
    options = Options(max_tokens=50, n_continuations=0)
    found = verify_files(open_checkpoint(demo_checkpoint), [demo_f16], texts, tmp_path / "kept", options)
    page = Page()
    page.feed(as_html(found))
    assert "script" not in page.tags
    assert "b" not in page.tags


def run_verify(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convert.verify", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"WEBLAB_LOCAL_HOME": str(home), "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_command_fails_for_one_spoiled_file_and_says_which(
    tmp_path: Path, demo_checkpoint: Path, demo_mixtures: Mapping[str, Path]
) -> None:
    def zero(reader: Any) -> None:
        tensor_rows(reader, "blk.1.ffn_up.bias")[:] = 0

    path = spoiled(demo_mixtures["Q4_K_M"], tmp_path, zero)
    found = run_verify(
        demo_checkpoint,
        path,
        demo_mixtures["Q8_0"],
        "--max-tokens",
        "200",
        "--continuations",
        "0",
        "--json",
        tmp_path / "report.json",
        "--html",
        tmp_path / "report.html",
        home=tmp_path / "home",
    )
    assert found.returncode == 1, found.stderr
    assert f"{path.name} FAILS." in found.stdout
    assert "blk.1.ffn_up.bias (F32) is not the checkpoint's gpt_neox.layers.1.mlp.dense_h_to_4h.bias" in found.stdout
    verdicts = {file["name"]: file["passed"] for file in json.loads((tmp_path / "report.json").read_text())["files"]}
    assert verdicts == {path.name: False, demo_mixtures["Q8_0"].name: True}
    assert "blk.1.ffn_up.bias" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_texts_of_the_user_are_compared_too_and_told_apart(
    tmp_path: Path, demo_checkpoint: Path, demo_mixtures: Mapping[str, Path]
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("An owl sat in the old oak.\n\n古いかしの木に、ふくろうが一羽とまっていた。\n", encoding="utf-8")
    options = ["--max-tokens", "600", "--continuations", "0"]
    files: list[str | Path] = ["--texts", mine, "--json", tmp_path / "report.json"]
    found = run_verify(demo_checkpoint, demo_mixtures["Q8_0"], *options, *files, home=tmp_path / "home")
    assert found.returncode == 0, found.stderr
    groups = json.loads((tmp_path / "report.json").read_text())["files"][0]["groups"]
    pieces = [reference.encode(piece.strip()) for piece in mine.read_text(encoding="utf-8").split("\n\n")]
    assert groups["from mine.txt"]["n_tokens"] == sum(map(len, pieces))
    assert groups["all"]["n_tokens"] == groups["ja"]["n_tokens"] + groups["en"]["n_tokens"] > sum(map(len, pieces))
    assert "| from mine.txt " in found.stdout


@pytest.mark.usefixtures("test_data")
def test_the_test_datas_questions_are_compared_too(
    tmp_path: Path, demo_checkpoint: Path, demo_mixtures: Mapping[str, Path]
) -> None:
    options = ["--max-tokens", "600", "--continuations", "0", "--json"]
    report = tmp_path / "report.json"
    found = run_verify(demo_checkpoint, demo_mixtures["Q8_0"], *options, report, home=tmp_path / "home")
    assert found.returncode == 0, found.stderr
    groups = json.loads(report.read_text())["files"][0]["groups"]
    assert groups["from JSQuAD"]["n_tokens"] == groups["from JCommonsenseQA"]["n_tokens"] == 100


@pytest.mark.parametrize("given", [True, False])
def test_of_a_folder_those_that_were_made_from_the_checkpoint_are_meant(
    tmp_path: Path, demo_checkpoint: Path, demo_f16: Path, given: bool
) -> None:
    """Without files the folder is the store."""
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    for name in (demo_f16.name, "other-F16.gguf", demo_f16.name.replace("-F16", "-v2-F16")):
        shutil.copyfile(demo_f16, models / name)
    found = run_verify(demo_checkpoint, *([models] if given else []), "--max-tokens", "0", home=tmp_path / "home")
    assert found.returncode == 0, found.stderr
    assert f"{demo_f16.name} passes" in found.stdout
    assert found.stdout.count(".gguf passes") == 1


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, demo_checkpoint: Path, demo_f16: Path
) -> None:
    arguments = [demo_checkpoint, demo_f16, "--html", tmp_path / "missing" / "report.html"]
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith(f"verify: There is no folder {tmp_path / 'missing'}")


def test_files_with_an_importance_matrix_are_told_apart(tmp_path: Path, demo_checkpoint: Path) -> None:
    (plain,) = converted(demo_checkpoint, tmp_path / "plain", "Q4_0")
    (weighted,) = converted(demo_checkpoint, tmp_path / "weighted", "Q4_0", imatrix="auto")
    options = Options(max_tokens=100, n_continuations=0)
    kept = tmp_path / "kept"
    found = verify_files(open_checkpoint(demo_checkpoint), [plain, weighted], verification(), kept, options)
    assert {file.mixture: file.check.path for file in found.files} == {"Q4_0": plain, "Q4_0, imatrix": weighted}
    assert [file.limit for file in found.files] == [KL_LIMITS["Q4_0"]] * 2
    assert ">Q4_0, imatrix</text>" in as_html(found)


@pytest.mark.parametrize("wrong", ["checkpoint", "texts", "store"])
def test_what_cannot_be_verified_is_one_line(tmp_path: Path, demo_checkpoint: Path, demo_f16: Path, wrong: str) -> None:
    arguments: dict[str, Sequence[str | Path]] = {
        "checkpoint": [tmp_path / "nowhere", demo_f16],
        "texts": [demo_checkpoint, demo_f16, "--texts", tmp_path / "nowhere.txt"],
        "store": [demo_checkpoint],
    }
    found = CliRunner().invoke(app, [str(argument) for argument in arguments[wrong]])
    assert found.exit_code == 1
    assert found.stdout == ""
    assert found.stderr.startswith("verify: ")
    assert isinstance(found.exception, SystemExit)
