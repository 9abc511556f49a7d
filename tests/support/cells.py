"""The KV cache's own count of cells, beside llama.cpp's."""

from llama_cpp import llama_cpp as lib

from tests.support.engines import ONE
from weblab_local.engine.engine import Engine


class Cells:
    """Compares what the cache counts with the size of llama.cpp's own state, which grows with each cell in use."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        engine.generate([5], ONE, raw=True)
        one = engine._scheduler.call(self._size)
        engine.generate([5, 6, 7], ONE, raw=True)
        self._of_cell = (engine._scheduler.call(self._size) - one) // 2
        self._rest = one - self._of_cell
        assert self._of_cell > 4000

    def _size(self) -> int:
        return int(lib.llama_state_get_size(self._engine._context.handle))

    def check(self) -> None:
        """It counts as many cells as llama.cpp has in use, and as many holders of each."""
        self._engine._scheduler.call(self._look)

    def _look(self) -> None:
        cache = self._engine._scheduler._cache
        n_used = self._engine.n_ctx - cache.n_free
        n_held = sum(len(sequence.tokens) for sequence in cache.sequences)
        assert self._size() == self._rest + n_used * self._of_cell + 4 * (n_held - n_used)  # an int32 for each holder
        memory = self._engine._context._memory
        for sequence in cache.sequences:
            assert lib.llama_memory_seq_pos_max(memory, sequence.index) + 1 == len(sequence.tokens)
        in_use = {cell for sequence in cache.sequences if sequence.in_use for cell in sequence.cells}
        assert cache.n_obtainable == self._engine.n_ctx - len(in_use)
