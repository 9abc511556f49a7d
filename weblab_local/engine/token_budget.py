"""Structured answers that end: what may still be written when the tokens that are left run short.

With a JSON schema an answer that is cut off is no JSON. So while it is written, it is known what the shortest end costs
from each place in it. A token after which that would not fit into what is left is not taken: then only those are left
that close what is open. The first token of the shortest end is always one of them, so there always is a way.
"""

import math

from weblab_local.grammar.completion import Completion, Position
from weblab_local.grammar.nodes import Node
from weblab_local.llama.segmentation import Segmentation


class TokenBudget:
    """Follows one answer through its grammar: asked about a token, then told which was taken."""

    def __init__(self, root: Node, segmentation: Segmentation, end: int) -> None:
        """`root` is the grammar's; the vocabulary has a token for each byte; `end` is the one that ends a text."""
        self._completion = Completion(root)
        self._segmentation = segmentation
        self._end = end
        self._position = self._completion.start
        self._known: dict[Position, list[int]] = {}
        self._plan: list[int] | None = None
        """What is left of the shortest end that was found last. From behind one of its tokens another may have more."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return self._position.is_end

    @property
    def n_least(self) -> float:
        """How many tokens bring the answer to its end from here; infinite where none do."""
        return self._n_tokens(self._position)

    def way_out(self) -> int:
        """The first of them, or the end itself where the answer is complete."""
        if self._plan is None:
            self._plan = self._tokens(self._position)
        return (self._plan or [self._end])[0]

    def allows(self, token: int, n_left: int) -> bool:
        """Whether the answer can still be brought to its end when `token` is the first of `n_left`."""
        text = self._segmentation.pieces[token]
        if not text:  # an end of text, or another special token, which would only take room
            return self.is_complete
        position = self._completion.after(self._position, text)
        if position is None:
            return False
        return self._completion.cost(position) <= n_left - 1 or self._n_tokens(position) <= n_left - 1

    def take(self, token: int) -> None:
        """Go on behind a token that the grammar allows."""
        position = self._completion.after(self._position, self._segmentation.pieces[token])
        assert position is not None
        self._position = position
        self._plan = self._plan[1:] if self._plan and self._plan[0] == token else None

    def _n_tokens(self, position: Position) -> float:
        return math.inf if math.isinf(self._completion.cost(position)) else len(self._tokens(position))

    def _tokens(self, position: Position) -> list[int]:
        found = self._known.get(position)
        if found is None:
            found = self._known[position] = self._segmentation.fewest(self._completion.shortest(position))
        return found
