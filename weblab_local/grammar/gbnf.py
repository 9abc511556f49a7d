"""Whether a GBNF grammar is one that llama.cpp can be given: it reads and follows grammars by unbounded recursion."""

import re
from itertools import accumulate

from weblab_local.errors import SamplingError
from weblab_local.i18n import _

MAX_NESTING = 200
"""llama.cpp's grammar parser calls itself for every parenthesis; some thousands overflow the thread's stack."""
MAX_RULES = 500
"""Of a grammar: llama.cpp follows them by recursion, and compares all places where an answer can be with each other."""
MAX_REPETITIONS = 2000
"""Of one repetition, with those inside of it: ((x{9}){9}){9} are 729."""
MAX_GRAMMAR = 100_000
"""Characters."""
_ENDS = {'"': '"', "[": "]", "#": "\n"}
"""How literals, character classes and comments of a GBNF grammar end, by how they begin."""


def check_grammar(grammar: object) -> None:
    """Raise SamplingError for what is no grammar, or one that llama.cpp would take too long for or crash on."""
    if not isinstance(grammar, str) or not grammar.strip():
        raise SamplingError(
            _("grammar should be a GBNF grammar, and is {value!r}.").format(value=grammar),
            _("Leave it None for free text."),
        )
    if "\0" in grammar or any("\ud800" <= character <= "\udfff" for character in grammar):
        raise SamplingError(_("The grammar holds a null character or half of a surrogate pair, which UTF-8 cannot."))
    if len(grammar) > MAX_GRAMMAR:
        raise SamplingError(
            _("The grammar has {n} characters; at most {most} can be read.").format(n=len(grammar), most=MAX_GRAMMAR)
        )
    text = _structure(grammar)
    steps = ({"(": 1, ")": -1}.get(character, 0) for character in text)
    deepest = max(accumulate(steps), default=0)
    if deepest > MAX_NESTING:
        raise SamplingError(
            _("The grammar nests {n} parentheses; at most {most} can be read.").format(n=deepest, most=MAX_NESTING)
        )
    rules = text.count("::=")
    if rules > MAX_RULES:
        raise SamplingError(_("The grammar has {n} rules; at most {most} can be read.").format(n=rules, most=MAX_RULES))
    repetitions = _most_repetitions(text)
    if repetitions > MAX_REPETITIONS:
        raise SamplingError(
            _("The grammar repeats something {n} times; at most {most} can be read.").format(
                n=repetitions, most=MAX_REPETITIONS
            )
        )


def _structure(grammar: str) -> str:
    """The grammar without its literals, character classes and comments: parentheses in those nest nothing."""
    kept, end, escaped = [], "", False
    for character in grammar:
        if not end:
            end = _ENDS.get(character, "")
            if not end:
                kept.append(character)
        elif escaped:
            escaped = False
        elif character == "\\" and end != "\n":
            escaped = True
        elif character == end or (end == "\n" and character == "\r"):
            end = ""
    return "".join(kept)


def _most_repetitions(grammar: str) -> int:
    """The largest product of the numbers in {...} that apply to the same thing, one inside of the other."""
    groups, closed, most = [1], 1, 1
    for step, least, greatest in re.findall(r"([()])|\{(\d*)(?:,(\d*))?\}|[^\s(){}]", grammar):
        if step == "(":
            groups.append(1)
            closed = 1
        elif step == ")":
            closed = groups.pop() if len(groups) > 1 else 1
            groups[-1] = max(groups[-1], closed)
        elif least or greatest:
            if len(least + greatest) > 9 or (greatest and int(least or 0) > int(greatest)):
                raise SamplingError(
                    _("The grammar repeats something {least} to {most} times.").format(least=least, most=greatest)
                )
            closed *= max(int(least or 1), int(greatest or 1), 1)
            groups[-1] = max(groups[-1], closed)
            most = max(most, closed)
        else:
            closed = 1
    return most
