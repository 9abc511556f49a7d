"""The README and the guides in Japanese say what they say in English: the same paragraphs, commands, files and figures,
in the same order. No link between the repository's texts is dead."""

import os.path
import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

import pytest

from tests.support.conversions import ROOT
from tests.support.guides import GUIDES, markdown_files, partner, read

SPELT = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SPELT_NUMBERS = dict(zip(SPELT, map(str, range(1, 11)), strict=True)) | {"sixteen": "16", "quarter": "4", "fifths": "5"}
UNITS = {"billion": 10**9, "million": 10**6, "億": 10**8, "万": 10**4}
LINK = re.compile(r"\]\(([^)]+)\)")
NUMBER = r"(?<![A-Za-z_\d.-])\d+(?:,\d{3})*(?:\.\d+)*"  # not the digits of names: fp16, Q4_K, AVX-512


class Part(NamedTuple):
    """A heading, paragraph, list item, table cell, block of code, or comment in one; `kind` is its mark or language."""

    kind: str
    text: str


def fenced(language: str, code: str) -> Iterator[Part]:
    """A block of code without its comments, then these; of a diagram the names in its arrows."""
    comment = re.compile(r"[ \t]*#[ \t]+(.*)$", re.MULTILINE)
    yield Part("code", comment.sub(" #", code) if language else str(re.findall(r"──([\w.]+)──>", code)))
    yield from (Part("comment", text) for text in comment.findall(code))


def running(paragraph: str) -> Iterator[Part]:
    """A heading, paragraph or list item; the cells of a table's row."""
    if paragraph.startswith("|"):
        cells = paragraph.strip("|").split("|")
        yield from (Part(f"cell {n} of {len(cells)}", cell.strip()) for n, cell in enumerate(cells, start=1))
    else:
        mark = re.match(r"(?:#+ |- |> )?", paragraph)
        yield Part(mark[0] if mark else "", re.sub(r"\n(?:> )?\s*", " ", paragraph))


def parts(text: str) -> Iterator[Part]:
    """The parts of a document in their order."""
    before, *fences = re.split(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    for language, code, after in [("", "", before), *zip(*[iter(fences)] * 3, strict=True)]:
        if code:
            yield from fenced(language, code)
        for paragraph in re.split(r"\n\n+|\n(?=- |\|)", after.strip("\n")):
            yield from running(paragraph)


@cache
def parts_of(path: str) -> list[Part]:
    """The parts of a guide, with links as `rooted` gives them."""
    return [Part(kind, text if kind == "code" else rooted(text, path)) for kind, text in parts(read(path))]


def rooted(text: str, path: str) -> str:
    """The text of the file `path` with its links from the root; those of a Japanese guide lead to the English pages.

    A heading is another in each language: of a link to one in a guide only "#" is left.
    """

    def from_root(link: re.Match[str]) -> str:
        target, mark, heading = located(link[1], path)
        if path not in GUIDES:
            target = partner(target)
        return f"]({target}{mark}{heading if partner(target) == target else ''})"

    return LINK.sub(from_root, text)


def located(link: str, path: str) -> tuple[str, str, str]:
    """Where a link in the file `path` leads: the file from the root, or an address; "#" and a heading, or nothing."""
    if link.startswith(("http://", "https://")):
        return link, "", ""
    target, mark, heading = link.partition("#")
    file = os.path.normpath(PurePosixPath(path).parent / target) if target else path
    return PurePosixPath(file).as_posix(), mark, heading


def code(text: str) -> list[str]:
    """What is set as code in running text, sorted: sentences turn around in translation."""
    return sorted(re.findall(r"`([^`]+)`", text))


def links(text: str) -> list[str]:
    """Where links and pictures lead."""
    return sorted(LINK.findall(text))


def words(text: str) -> str:
    """A text without what is set as code and without where its links lead."""
    return re.sub(r"`[^`]+`|\]\([^)]+\)", " ", text)


def numbers(text: str) -> Counter[str]:
    """How often each number stands there in digits, with 10.7 billion and 107 億 written out."""
    unit = re.compile(rf"(?:({NUMBER})[ -]?)?({'|'.join(UNITS)})")
    written_out = unit.sub(lambda match: f"{Decimal(match[1] or 1) * UNITS[match[2]]:.0f}", words(text))
    return Counter(number.replace(",", "") for number in re.findall(NUMBER, written_out))


def same_code(english: str, japanese: str) -> bool:
    return code(english) == code(japanese)


def same_links(english: str, japanese: str) -> bool:
    return links(english) == links(japanese)


def same_emphasis(english: str, japanese: str) -> bool:
    return english.count("**") == japanese.count("**")


def same_numbers(english: str, japanese: str) -> bool:
    """Japanese may have in digits what English spells, and a 1 where English has "a"."""
    spelt = Counter(SPELT_NUMBERS[word] for word in re.findall(r"[a-z]+", english.lower()) if word in SPELT_NUMBERS)
    added = numbers(japanese) - numbers(english) - spelt
    return numbers(english) <= numbers(japanese) and set(added) <= {"1"}


def same_names(english: str, japanese: str) -> bool:
    """Types of weights and the like, which have digits in them; abbreviations, of which Japanese may have more."""
    here, there = (
        [set(re.findall(name, words(text), re.ASCII)) for name in (r"[A-Za-z]+[-_]?\d\w*", r"[A-Z]{2,}")]
        for text in (english, japanese)
    )
    return here[0] == there[0] and here[1] <= there[1]


def translated(english: str, japanese: str) -> bool:
    """Where English has words in a row, Japanese has kana or kanji."""
    in_a_row = re.search(r"(?<![\w-])[a-z]{2,},? [a-z]{2,}", words(english))
    return not in_a_row or re.search("[ぁ-んァ-ヶ一-龠]", words(japanese)) is not None


def same_extent(english: str, japanese: str) -> bool:
    """Japanese takes about two thirds of English's characters; half of a long paragraph is not the paragraph."""
    here, there = (len(re.sub(r"\s", "", words(text))) for text in (english, japanese))
    return here < 100 or here / 2 < there < here


@pytest.mark.parametrize("guide", GUIDES)
def test_both_languages_have_the_same_parts_and_commands(guide: str) -> None:
    english, japanese = (
        [(kind, text if kind == "code" else "") for kind, text in parts_of(path)] for path in (guide, partner(guide))
    )
    assert japanese == english


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize(
    "same",
    [same_code, same_links, same_emphasis, same_numbers, same_names, same_extent, translated],
    ids=lambda same: same.__name__,
)
def test_each_part_says_the_same(same: Callable[[str, str], bool], guide: str) -> None:
    both = zip(parts_of(guide), parts_of(partner(guide)), strict=True)
    pairs = [(e.text, j.text) for e, j in both if e.kind != "code"]
    assert [pair for pair in pairs if not same(*pair)] == []


@pytest.mark.parametrize("readme", ["README.md", "README.ja.md"])
def test_a_readme_can_be_skimmed(readme: str) -> None:
    assert len(read(readme).splitlines()) <= 200


def headings(path: str) -> set[str]:
    """The names under which GitHub links to a file's headings."""
    found = re.findall(r"^#+ (.+)$", without_code(read(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in found}


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", markdown_files())
def test_no_link_into_the_repository_is_dead(path: str) -> None:
    found = {link: located(link, path) for link in links(without_code(read(path))) if not link.startswith("http")}
    assert found or path not in {*GUIDES, *map(partner, GUIDES)}
    assert [link for link, (target, _mark, _heading) in found.items() if not (ROOT / target).exists()] == []
    assert [
        link
        for link, (target, _mark, heading) in found.items()
        if heading and target.endswith(".md") and heading not in headings(target)
    ] == []
