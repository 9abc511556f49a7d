"""A GBNF grammar as nodes, each with the fewest bytes that it can stand for. It reads what `json_schema` writes.

text --(one regular expression)--> words --(recursive descent)--> nodes --(shortest paths)--> costs
"""

import math
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import lru_cache

Ranges = tuple[tuple[int, int], ...]
"""Characters as code points: ranges from first to last, in their order."""

_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{\d*,?\d*\}|::=|[()|*?]|[A-Za-z0-9-]+)')
_CHARACTER = re.compile(r"\\x([0-9A-Fa-f]{2})|\\(.)|(.)", re.DOTALL)


class Node:
    """A part of a grammar. `cost`: bytes (UTF-8) of the shortest text it stands for; infinite where there is none."""

    cost: float = math.inf

    def shortest(self) -> "bytes | Sequence[Node]":
        """The shortest text, or the nodes whose shortest texts it is, one after the other."""
        raise NotImplementedError

    def parts(self) -> "Sequence[Node]":
        """The nodes inside of it, which are no rules' names."""
        return ()

    def find_cost(self) -> float:
        """What `cost` is by the costs of its parts."""
        raise NotImplementedError


class Characters(Node):
    """One character of `ranges`."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self._shortest = chr(ranges[0][0]).encode() if ranges else b""
        self.cost = len(self._shortest) if ranges else math.inf

    def accepts(self, code: int) -> bool:
        """Whether the character with this code point is one of them."""
        return any(first <= code <= last for first, last in self.ranges)

    def within(self, low: int, high: int) -> int | None:
        """The first of them from `low` to `high`."""
        return next((max(first, low) for first, last in self.ranges if first <= high and last >= low), None)

    def shortest(self) -> bytes:
        return self._shortest

    def find_cost(self) -> float:
        return self.cost


class Chain(Node):
    """Its items, one after the other."""

    def __init__(self, items: Sequence[Node]) -> None:
        self.items = items

    def shortest(self) -> Sequence[Node]:
        return self.items

    def parts(self) -> Sequence[Node]:
        return self.items

    def find_cost(self) -> float:
        return sum(item.cost for item in self.items)


class Choice(Node):
    """One of its options."""

    def __init__(self, options: Sequence[Node]) -> None:
        self.options = options
        self._best = options[0]
        """The first that was found to cost so little: it does not lead back to here, as another of that cost may."""

    def shortest(self) -> Sequence[Node]:
        return (self._best,)

    def parts(self) -> Sequence[Node]:
        return self.options

    def find_cost(self) -> float:
        cost = self.cost
        for option in self.options:
            if option.cost < cost:
                cost, self._best = option.cost, option
        return cost


class Repetition(Node):
    """Its item, `least` to `most` times; None is any number."""

    def __init__(self, item: Node, least: int, most: int | None) -> None:
        self.item, self.least, self.most = item, least, most

    def shortest(self) -> Sequence[Node]:
        return (self.item,) * self.least

    def parts(self) -> Sequence[Node]:
        return (self.item,)

    def find_cost(self) -> float:
        return self.least * self.item.cost if self.least else 0

    def one_less(self) -> "Repetition":
        """What may follow its item."""
        rest = Repetition(self.item, max(self.least - 1, 0), None if self.most is None else self.most - 1)
        rest.cost = rest.find_cost()
        return rest


class Rule(Node):
    """A rule by its name. Its body is known when all rules were read."""

    def __init__(self) -> None:
        self.body: Node = self

    def shortest(self) -> Sequence[Node]:
        return (self.body,)

    def find_cost(self) -> float:
        return self.cost


@lru_cache(maxsize=64)
def read_grammar(gbnf: str) -> Node:
    """The node of the rule `root`. Raises ValueError for what is not GBNF as `json_schema` writes it."""
    rules: defaultdict[str, Rule] = defaultdict(Rule)
    for line in filter(None, gbnf.split("\n")):
        name, _, body = line.partition("::=")
        words = deque(_words(body))
        rules[name.strip()].body = _choice(words, rules)
        if words:
            raise ValueError(f"not expected in the rule {name}: {words[0]}")
    if undefined := [name for name, rule in rules.items() if rule.body is rule]:
        raise ValueError(f"no rule is called {undefined[0]}")
    _find_costs(list(rules.values()))
    return rules["root"]


def _words(body: str) -> Iterator[str]:
    position, end = 0, len(body.rstrip())
    while position < end:
        found = _WORD.match(body, position)
        if found is None:
            raise ValueError(f"cannot be read: {body[position:][:20]}")
        yield found[1]
        position = found.end()


def _choice(words: deque[str], rules: defaultdict[str, Rule]) -> Node:
    options = [_chain(words, rules)]
    while words and words[0] == "|":
        words.popleft()
        options.append(_chain(words, rules))
    return options[0] if len(options) == 1 else Choice(options)


def _chain(words: deque[str], rules: defaultdict[str, Rule]) -> Node:
    items: list[Node] = []
    while words and words[0] not in ("|", ")"):
        item = _item(words.popleft(), words, rules)
        if words and (words[0] in ("*", "?") or words[0].startswith("{")):
            item = Repetition(item, *_times(words.popleft()))
        items.append(item)
    return items[0] if len(items) == 1 else Chain(items)


def _item(word: str, words: deque[str], rules: defaultdict[str, Rule]) -> Node:
    if word == "(":
        inside = _choice(words, rules)
        if not words or words.popleft() != ")":
            raise ValueError("a parenthesis is not closed")
        return inside
    if word.startswith('"'):
        return Chain([Characters(((code, code),)) for code in _codes(word[1:-1])])
    if word.startswith("["):
        return Characters(_ranges(word[1:-1]))
    return rules[word]


def _times(word: str) -> tuple[int, int | None]:
    if word in ("*", "?"):
        return 0, None if word == "*" else 1
    least, comma, most = word[1:-1].partition(",")
    if not comma:
        return int(least), int(least)
    return int(least or 0), int(most) if most else None


def _codes(text: str) -> list[int]:
    return [int(x, 16) if x else ord(escaped or plain) for x, escaped, plain in _CHARACTER.findall(text)]


def _ranges(inside: str) -> Ranges:
    """The characters of [inside]; those that UTF-8 cannot hold are none."""
    negated = inside.startswith("^")
    codes = _codes(inside.removeprefix("^"))
    listed = []
    while codes:
        first = codes.pop(0)
        if len(codes) > 1 and codes[0] == ord("-"):
            listed.append((first, codes[1]))
            del codes[:2]
        else:
            listed.append((first, first))
    return tuple(sorted(listed)) if not negated else _others([*listed, _SURROGATES])


def _others(listed: Sequence[tuple[int, int]]) -> Ranges:
    found, start = [], 0
    for first, last in sorted(listed):
        if start < first:
            found.append((start, first - 1))
        start = max(start, last + 1)
    return (*found, (start, _LAST)) if start <= _LAST else tuple(found)


def _find_costs(rules: Sequence[Rule]) -> None:
    """Set the costs of all nodes: a rule's becomes smaller until none does, and then those that name it again."""
    named_in: defaultdict[Rule, list[Rule]] = defaultdict(list)
    inside = {rule: list(_inside(rule.body)) for rule in rules}
    for rule, nodes in inside.items():
        for node in nodes:
            if isinstance(node, Rule):
                named_in[node].append(rule)
    waiting = deque(reversed(rules))
    queued = set(rules)
    while waiting:
        rule = waiting.popleft()
        queued.discard(rule)
        for node in inside[rule]:
            node.cost = node.find_cost()
        if rule.body.cost < rule.cost:
            rule.cost = rule.body.cost
            more = [other for other in named_in[rule] if other not in queued]
            waiting.extend(more)
            queued.update(more)


def _inside(node: Node) -> Iterator[Node]:
    """The nodes of a rule's body, parts before what they are part of."""
    for part in node.parts():
        yield from _inside(part)
    yield node
