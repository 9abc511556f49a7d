"""The report's page in a real browser: plots that can be read, on a desk and on a phone, by day and by night."""

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import pytest

from convert.reference.texts import verification
from convert.source.checkpoint import open_checkpoint
from convert.verification.report import FileReport, Report
from convert.verification.report_html import as_html
from convert.verification.verify import Options, verify_files
from tests.support.conversions import ROOT

pytest.importorskip("playwright", reason="Playwright is not installed: pip install weblab-local[dev]")

from playwright.sync_api import Browser, Page, sync_playwright

from tests.server.page.browser import ARGUMENTS, CHROMIUM

README_PLOT = ROOT / "docs" / "images" / "mixtures.svg"
SIZES = {"desk": (1200, 900), "phone": (390, 800)}


@pytest.fixture(scope="module")
def report(
    demo_checkpoint: Path, demo_mixtures: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Report:
    """The demo in every mixture, on a few hundred tokens, half of them Japanese."""
    kept = tmp_path_factory.mktemp("reference") / "demo.safetensors"
    options = Options(max_tokens=400, n_continuations=0)
    return verify_files(open_checkpoint(demo_checkpoint), list(demo_mixtures.values()), verification(), kept, options)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page_file(report: Report, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(as_html(report), encoding="utf-8")
    return path


def shown(browser: Browser, path: Path, size: str = "desk", scheme: Literal["light", "dark"] = "light") -> Page:
    """The file at `path` in a tab; it asked for nothing else and complained of nothing."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    assert requests == [path.as_uri()]
    assert complaints == []
    return page


BOXES = """svg => {
  const box = r => [r.left, r.top, r.right, r.bottom];
  const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
  return [box(svg.getBoundingClientRect()), texts.map(t => [t.textContent, ...box(t.getBoundingClientRect())])];
}"""


def readable(boxes: Any) -> list[str]:
    """The texts of a plot, after a look that none stands outside of it or on another one."""
    (left, top, right, bottom), texts = boxes
    for i, (text, x0, y0, x1, y1) in enumerate(texts):
        assert left <= x0 < x1 <= right, text
        assert top <= y0 < y1 <= bottom, text
        for other, a0, b0, a1, b1 in texts[:i]:
            # The box of a line is higher than its letters.
            on_another = min(x1, a1) - max(x0, a0) > 1 and min(y1, b1) - max(y0, b0) > (y1 - y0) / 3
            assert not on_another, (text, other)
    return [text for text, *_ in texts]


@pytest.mark.parametrize("size", SIZES)
def test_every_plot_can_be_read(browser: Browser, page_file: Path, report: Report, size: str) -> None:
    page = shown(browser, page_file, size)
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    plots = page.get_by_role("img")
    assert plots.count() == 3
    names = {file.mixture for file in report.files}
    for i in range(3):
        texts = readable(plots.nth(i).evaluate(BOXES))
        assert names <= set(texts)
        assert "mean KL (nats)" in texts


def test_a_dot_under_the_pointer_says_what_it_is(browser: Browser, page_file: Path, report: Report) -> None:
    page = shown(browser, page_file)
    plot = page.get_by_role("img", name="Mean KL divergence of each text")
    notes = plot.locator("title").all_text_contents()
    texts = report.files[0].texts
    assert {text.language for text in texts} == {"ja", "en"}
    assert notes[: len(texts)] == [f"{text.label} ({text.n_tokens} tokens): {text.mean_kl:.3g}" for text in texts]
    plot.scroll_into_view_if_needed()
    found = plot.evaluate(
        """svg => {
          const dot = svg.querySelector('title').parentNode.querySelector('path').getBoundingClientRect();
          const under = document.elementsFromPoint((dot.left + dot.right) / 2, (dot.top + dot.bottom) / 2);
          return under.map(element => element.parentNode.querySelector(':scope > title')?.textContent);
        }"""
    )
    assert notes[0] in found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_stand_out_from_the_page(browser: Browser, page_file: Path, scheme: Literal["light", "dark"]) -> None:
    page = shown(browser, page_file, scheme=scheme)
    mean = "c => c.match(/[0-9]+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0) / 3"
    ground = page.evaluate(f"({mean})(getComputedStyle(document.body).backgroundColor)")
    text = page.evaluate(f"({mean})(getComputedStyle(document.querySelector('svg text')).fill)")
    assert (ground < 128) == (scheme == "dark")
    assert abs(ground - text) > 100


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    assert as_html(report) == as_html(report)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_file_whose_divergence_is_no_number_does_not_spoil_the_page(report: Report, wrong: float) -> None:
    first, *rest = report.files
    groups = {name: replace(summary, mean_kl=wrong) for name, summary in first.groups.items()}
    texts = [replace(text, mean_kl=wrong) for text in first.texts]
    positions = [replace(figures, mean_kl=wrong) for figures in first.positions]
    failed = FileReport(first.check, ["It is run wrongly."], groups, texts, positions)
    _, *drawn = as_html(replace(report, files=[failed, *rest])).split("<svg ")
    assert len(drawn) == 3
    for rest_of_page in drawn:
        svg = ElementTree.fromstring(f"<svg {rest_of_page.partition('</svg>')[0]}</svg>")
        lines = [path.get("d", "") for path in svg.iter("path")]
        assert len(lines) > len(rest)
        assert not any("nan" in line or "inf" in line for line in lines)


def test_matplotlib_is_imported_only_for_a_page() -> None:
    code = "import sys, convert.verification.verify; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_readmes_plot_is_one_small_file_that_can_be_read(browser: Browser) -> None:
    assert README_PLOT.stat().st_size < 60_000
    page = shown(browser, README_PLOT)
    texts = readable(page.locator("svg").evaluate(BOXES))
    assert texts.count("W4") == texts.count("Q4_K_M") == texts.count("Q4_K_M, imatrix") == 2
    assert page.evaluate("document.querySelector('svg > title').textContent").startswith("Mean KL divergence")
