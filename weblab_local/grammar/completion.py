"""Where an answer is in its grammar, and how it can be brought to an end in the fewest bytes.

As llama.cpp does it, but with what its functions do not tell: a position is the set of all that may still have to
follow, each as a chain of nodes, and a chain knows what the shortest text for it costs.
"""

from collections.abc import Iterable
from typing import NamedTuple

from weblab_local.grammar.nodes import Chain, Characters, Choice, Node, Repetition, Rule

_SURROGATES = range(0xD800, 0xE000)


class Ahead:
    """What has to follow: a node, then `rest`; None is the end. Made once for the same node and rest."""

    __slots__ = ("cost", "heads", "node", "rest")

    def __init__(self, node: Node, rest: "Ahead | None") -> None:
        self.node, self.rest = node, rest
        self.cost: float = node.cost + (rest.cost if rest is not None else 0)
        self.heads: frozenset[Ahead | None] | None = None


Heads = frozenset[Ahead | None]
"""What may follow, each with characters as its node; None where nothing has to."""


class Position(NamedTuple):
    """A place in an answer: what may follow, and the bytes of a character that has only begun."""

    heads: Heads
    begun: bytes

    @property
    def is_end(self) -> bool:
        """Whether the answer may end here."""
        return None in self.heads and not self.begun


class Completion:
    """Follows one answer's text through a grammar."""

    def __init__(self, root: Node) -> None:
        self._made: dict[tuple[int, int], Ahead] = {}
        self._shorter: dict[int, Repetition] = {}
        self._next: dict[tuple[Heads, int], Heads] = {}
        self.start = Position(self._heads(self._ahead(root, None)), b"")

    def after(self, position: Position, text: bytes) -> Position | None:
        """Where `text` leads, which may end inside of a character; None where the grammar does not allow it."""
        heads, begun = position
        for byte in text:
            begun += bytes([byte])
            code = byte if byte < 0x80 and len(begun) == 1 else _decoded(begun)
            if code is not None:
                heads, begun = self._step(heads, code), b""
            elif not any(_completed(head, begun) for head in heads):
                return None
            if not heads:
                return None
        return Position(heads, begun)

    @staticmethod
    def cost(position: Position) -> float:
        """Bytes of the shortest text that ends the answer from here; infinite where none does."""
        if not position.begun:
            return min(head.cost if head is not None else 0 for head in position.heads)
        found = (_completed(head, position.begun) for head in position.heads)
        return min(len(text) - len(position.begun) + _cost(rest) for text, rest in filter(None, found))

    @staticmethod
    def shortest(position: Position) -> bytes:
        """The shortest text that ends the answer from here, whose cost is not infinite."""
        if position.begun:
            found = filter(None, (_completed(head, position.begun) for head in position.heads))
            text, rest = min(found, key=lambda one: len(one[0]) + _cost(one[1]))
            return text[len(position.begun) :] + _shortest(rest)
        least = min(map(_cost, position.heads))
        return min(_shortest(head) for head in position.heads if _cost(head) == least)

    def _ahead(self, node: Node, rest: Ahead | None) -> Ahead:
        key = id(node), id(rest)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = Ahead(node, rest)
        return found

    def _step(self, heads: Heads, code: int) -> Heads:
        found = self._next.get((heads, code))
        if found is None:
            rests = [head.rest for head in heads if head is not None and _accepts(head, code)]
            found = self._next[heads, code] = frozenset().union(*map(self._heads, rests))
        return found

    def _heads(self, ahead: Ahead | None) -> Heads:
        """The same with characters first, in all ways in which the grammar allows it."""
        if ahead is None:
            return frozenset({None})
        if ahead.heads is not None:
            return ahead.heads
        found: set[Ahead | None] = set()
        seen, todo = {ahead}, [ahead]
        while todo:
            one = todo.pop()
            if isinstance(one.node, Characters):
                found.add(one)
                continue
            for other in self._unfolded(one.node, one.rest):
                if other is None:
                    found.add(None)
                elif other not in seen:
                    seen.add(other)
                    todo.append(other)
        ahead.heads = frozenset(found)
        return ahead.heads

    def _unfolded(self, node: Node, rest: Ahead | None) -> Iterable[Ahead | None]:
        """What a node that is no characters stands for: its options, each of them with the rest."""
        if isinstance(node, Rule):
            return [self._ahead(node.body, rest)]
        if isinstance(node, Choice):
            return [self._ahead(option, rest) for option in node.options]
        if isinstance(node, Chain):
            for item in reversed(node.items):
                rest = self._ahead(item, rest)
            return [rest]
        assert isinstance(node, Repetition)
        without = [] if node.least else [rest]
        if node.most == 0:
            return without
        return [*without, self._ahead(node.item, self._ahead(self._one_less(node), rest))]

    def _one_less(self, node: Repetition) -> Repetition:
        if node.most is None and not node.least:
            return node
        found = self._shorter.get(id(node))
        if found is None:
            found = self._shorter[id(node)] = node.one_less()
        return found


def _accepts(head: Ahead, code: int) -> bool:
    assert isinstance(head.node, Characters)
    return head.node.accepts(code)


def _cost(ahead: Ahead | None) -> float:
    return 0 if ahead is None else ahead.cost


def _shortest(ahead: Ahead | None) -> bytes:
    text = bytearray()
    while ahead is not None:
        todo = [ahead.node]
        while todo:
            found = todo.pop().shortest()
            if isinstance(found, bytes):
                text += found
            else:
                todo.extend(reversed(found))
        ahead = ahead.rest
    return bytes(text)


def _n_bytes(first: int) -> int:
    """How long a character is in UTF-8 that begins with this byte; 0 where none does."""
    for length, low, high in ((2, 0xC2, 0xDF), (3, 0xE0, 0xEF), (4, 0xF0, 0xF4)):
        if low <= first <= high:
            return length
    return 0


def _decoded(begun: bytes) -> int | None:
    """The code point of a whole character."""
    try:
        return ord(begun.decode())
    except (UnicodeDecodeError, TypeError):
        return None


def _completed(head: Ahead | None, begun: bytes) -> tuple[bytes, Ahead | None] | None:
    """The first character of a head that begins with these bytes, and what follows it."""
    n_bytes = _n_bytes(begun[0])
    if head is None or len(begun) >= n_bytes or any(byte >> 6 != 2 for byte in begun[1:]):
        return None
    assert isinstance(head.node, Characters)
    code = begun[0] & (0x7F >> n_bytes)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    bits = 6 * (n_bytes - len(begun))
    low, high = code << bits, (code + 1 << bits) - 1
    low = max(low, {2: 0x80, 3: 0x800, 4: 0x10000}[n_bytes])
    high = min(high, 0x10FFFF)
    if low in _SURROGATES:
        low = _SURROGATES.stop
    found = head.node.within(low, high) if low <= high else None
    return None if found is None else (chr(found).encode(), head.rest)
