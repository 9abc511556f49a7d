"""README.ja.md says what README.md says: the same paragraphs, commands, files and figures, in the same order."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import NamedTuple

import pytest

from tests.conversions import ROOT

SPELT = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SPELT_NUMBERS = dict(zip(SPELT, map(str, range(1, 11)), strict=True)) | {"sixteen": "16", "quarter": "4", "fifths": "5"}
UNITS = {"billion": 10**9, "million": 10**6, "億": 10**8, "万": 10**4}
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
    """The parts of a README in their order."""
    before, *fences = re.split(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    for language, code, after in [("", "", before), *zip(*[iter(fences)] * 3, strict=True)]:
        if code:
            yield from fenced(language, code)
        for paragraph in re.split(r"\n\n+|\n(?=- |\|)", after.strip("\n")):
            yield from running(paragraph)


ENGLISH, JAPANESE = (list(parts((ROOT / name).read_text(encoding="utf-8"))) for name in ("README.md", "README.ja.md"))


def code(text: str) -> list[str]:
    """What is set as code in running text, sorted: sentences turn around in translation."""
    return sorted(re.findall(r"`([^`]+)`", text))


def links(text: str) -> list[str]:
    """Where links and pictures lead."""
    return sorted(re.findall(r"\]\(([^)]+)\)", text))


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
    here, there = links(english), links(japanese)
    return here == there or (here, there) == (["README.ja.md"], ["README.md"])


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


def test_both_readmes_have_the_same_parts_and_commands() -> None:
    english, japanese = (
        [(kind, text if kind == "code" else "") for kind, text in found] for found in (ENGLISH, JAPANESE)
    )
    assert japanese == english


@pytest.mark.parametrize(
    "same",
    [same_code, same_links, same_emphasis, same_numbers, same_names, same_extent, translated],
    ids=lambda same: same.__name__,
)
def test_each_part_says_the_same(same: Callable[[str, str], bool]) -> None:
    pairs = [(e.text, j.text) for e, j in zip(ENGLISH, JAPANESE, strict=True) if e.kind != "code"]
    assert [pair for pair in pairs if not same(*pair)] == []


@pytest.mark.parametrize("readme", [ENGLISH, JAPANESE], ids=["README.md", "README.ja.md"])
def test_no_link_into_the_repository_is_dead(readme: list[Part]) -> None:
    inside = [link for part in readme for link in links(part.text) if not link.startswith(("http", "#"))]
    assert inside
    assert [link for link in inside if not (ROOT / link).exists()] == []
