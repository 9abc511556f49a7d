"""From computed logits to the next tokens of an answer. Only the scheduler's worker thread calls what is here."""

from collections.abc import Sequence

from weblab_local.engine.generation import FinishReason
from weblab_local.engine.kv_cache import KvCache
from weblab_local.engine.logprobs import token_logprob
from weblab_local.engine.request import Request, RunningRequest
from weblab_local.engine.sampler import Sampler
from weblab_local.llama.context import Context, Model
from weblab_local.llama.token_prefixes import TokenPrefixes


class Choosing:
    """Chooses tokens for all requests of a context, and keeps in the KV cache those that were chosen."""

    def __init__(self, model: Model, context: Context, cache: KvCache, n_ctx: int) -> None:
        self._model = model
        self._context = context
        self._cache = cache
        self._n_ctx = n_ctx
        self._token_prefixes: TokenPrefixes | None = None

    def sampler(self, request: Request) -> Sampler:
        """The sampler of a request that begins. SamplingError for a grammar that llama.cpp cannot read."""
        prefixes = self._prefixes(request)
        return Sampler(request.params, self._model.vocab, request.prompt, self._n_ctx, prefixes, request.budget)

    def _prefixes(self, request: Request) -> TokenPrefixes | None:
        """What a grammar's sampler needs of the vocabulary, made when the first one comes."""
        if self._token_prefixes is None and request.params.gbnf() is not None:
            self._token_prefixes = TokenPrefixes(self._model.vocab)
        return self._token_prefixes

    def choose(self, running: RunningRequest, index: int, computed: Sequence[int] = ()) -> FinishReason | None:
        """Choose a token from the logits at `index`, and for as long as it is the draft's one from the next logits too.

        `computed` are the token before it and its draft. What follows the last choice is forgotten again. Returns why
        the answer ends there, if it does.
        """
        n_chosen, unsent, reason = 0, len(running.unsent_text), None
        try:
            for drafted in (*computed[1:], None):
                n_chosen += 1
                token = running.sampler.sample(self._context, index + n_chosen - 1, running.n_left)
                reason = self._take(running, token, index + n_chosen - 1)
                if reason is not None or token != drafted:
                    break
        finally:
            self._cache.append(running.sequence, computed[:n_chosen])
            if n_chosen < len(computed):
                self._context.forget(running.sequence.index, len(running.sequence.tokens))
            running.drafted += max(len(computed) - 1, 0)
            running.accepted += n_chosen - 1
            if reason is None and len(running.unsent_text) > unsent:
                running.send()
        return reason

    def _take(self, running: RunningRequest, token: int, index: int) -> FinishReason | None:
        """Add a chosen token to the answer; why the answer ends there, if it does."""
        if self._model.is_end(token) or token in running.request.stop_ids:
            return "stop"
        n_top = running.request.n_logprobs
        logprob = None if n_top is None else token_logprob(self._context.logits(index), token, n_top)
        return running.add(token, self._model.tokenizer.pieces[token], logprob)
