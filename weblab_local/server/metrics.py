"""What the server has done so far, in Prometheus' text form, under the names of llama.cpp's server where it has one."""

from collections.abc import Iterator
from dataclasses import dataclass

from weblab_local.engine.generation import Stats
from weblab_local.engine.roster import Occupancy

MEDIA_TYPE = "text/plain; version=0.0.4"


@dataclass
class Metrics:
    """Sums over all answers since the start. All calls come from the event loop's thread."""

    answers: int = 0
    preempted: int = 0
    timed_out: int = 0
    refused: int = 0
    """Requests for which there was no room in the queue."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    completion_tokens: int = 0
    generation_seconds: float = 0.0

    def add(self, stats: Stats, *, timed_out: bool) -> None:
        """Count an answer that has ended."""
        self.answers += 1
        self.preempted += stats.preempted
        self.timed_out += timed_out
        self.prompt_tokens += stats.prompt_tokens - stats.cached_tokens
        self.cached_tokens += stats.cached_tokens
        self.prompt_seconds += stats.prompt_seconds
        self.completion_tokens += stats.completion_tokens
        self.generation_seconds += stats.generation_seconds

    def text(self, n_computed: int, n_waiting: int, occupancy: Occupancy, n_ctx: int) -> str:
        """All figures, with how many answers are computed and wait now, and how full the `n_ctx` cells are."""
        return "".join(self._lines(n_computed, n_waiting, occupancy, n_ctx))

    def _lines(self, n_computed: int, n_waiting: int, occupancy: Occupancy, n_ctx: int) -> Iterator[str]:
        counters = {
            "llamacpp:prompt_tokens_total": (self.prompt_tokens, "Tokens of prompts that were computed."),
            "llamacpp:prompt_seconds_total": (self.prompt_seconds, "Seconds that this took."),
            "llamacpp:tokens_predicted_total": (self.completion_tokens, "Tokens that were generated."),
            "llamacpp:tokens_predicted_seconds_total": (self.generation_seconds, "Seconds that this took."),
            "weblab:prompt_tokens_cached_total": (self.cached_tokens, "Tokens of prompts that were in the KV cache."),
            "weblab:answers_total": (self.answers, "Answers that have ended."),
            "weblab:answers_preempted_total": (self.preempted, "How often an answer gave its room to older ones."),
            "weblab:answers_timed_out_total": (self.timed_out, "Answers that ended because their time was up."),
            "weblab:requests_refused_total": (self.refused, "Requests for which there was no room."),
        }
        gauges = {
            "llamacpp:prompt_tokens_seconds": (
                self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0,
                "Tokens of prompts per second, in the mean.",
            ),
            "llamacpp:predicted_tokens_seconds": (
                self.completion_tokens / self.generation_seconds if self.generation_seconds else 0.0,
                "Tokens generated per second and answer, in the mean.",
            ),
            "llamacpp:requests_processing": (n_computed, "Answers that are being computed."),
            "llamacpp:requests_deferred": (n_waiting, "Answers that wait for their turn."),
            "weblab:requests_preempted": (
                occupancy.n_preempted,
                "Answers that gave their room to older ones and wait.",
            ),
            "llamacpp:kv_cache_tokens": (occupancy.n_cells, "Cells of the KV cache that hold something."),
            "llamacpp:kv_cache_usage_ratio": (occupancy.n_cells / n_ctx, "The share of all cells that this is."),
        }
        for kind, figures in (("counter", counters), ("gauge", gauges)):
            for name, (value, explained) in figures.items():
                yield f"# HELP {name} {explained}\n# TYPE {name} {kind}\n{name} {value!r}\n"
