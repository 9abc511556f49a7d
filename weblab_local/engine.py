"""A loaded model: what a host app, the chat, the command line and the server talk to.

All methods may be called from any thread; one worker thread behind them alone runs llama.cpp.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from weblab_local.errors import PromptError, PromptTooLong, WeblabError
from weblab_local.generation import AsyncGeneration, Chunk, Completion, Generation, complete
from weblab_local.i18n import _
from weblab_local.kv_types import KvType, require_kv_type
from weblab_local.prompt import instruction_prompt
from weblab_local.sampling import SamplingError, SamplingParams
from weblab_local.stopping import TURN_STOPS

if TYPE_CHECKING:
    from weblab_local.chat import ChatSession
    from weblab_local.memory import Plan
    from weblab_local.placement import Placement
    from weblab_local.request import Request
    from weblab_local.scoring import Score

DEFAULT_N_CTX = 2048
CPU_BATCH, GPU_BATCH = 128, 512
"""Prompt tokens computed at once. Small on the CPU: llama.cpp can be stopped only between two operations of a batch,
and one on a large batch takes long there, while larger batches hardly read the prompt faster."""


def batch_size(n_parallel: int, n_gpu_layers: int) -> int:
    """Tokens computed at once: at least one for each of the sequences."""
    return max(n_parallel, GPU_BATCH if n_gpu_layers else CPU_BATCH)


PromptProgress = Callable[[int, int], None]
"""Called on the worker thread with (tokens of the prompt that are done, tokens in all)."""


class Engine(AbstractContextManager["Engine"]):
    """A model in memory. Close it, or use it as a context manager."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = DEFAULT_N_CTX,
        n_parallel: int = 1,
        n_gpu_layers: int = 0,
        n_threads: int | None = None,
        kv_type: KvType = "f16",
        flash_attention: bool | None = None,
        repack: bool = True,
        devices: Sequence[int] | None = None,
        tensor_split: Sequence[float] = (),
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Load the GGUF at `path`; `weblab_local.load` finds it by name and plans the rest.

        n_ctx             KV cells that all sequences share
        n_parallel        requests that are computed at the same time; more wait in order
        n_threads         threads that compute; None: one for each physical core
        kv_type           type of the KV cache; q8_0 and q4_0 need flash attention
        flash_attention   None: wherever llama.cpp allows it
        repack            let llama.cpp rearrange weights for this processor while loading
        devices           ggml devices to offload to; None: llama.cpp's own choice
        tensor_split      proportions of the offloaded layers on them; (): by their free memory
        on_progress       called with the share loaded, 0 to 1; an exception from it cancels the loading

        Raises ModelFileError for a file that is no GPT-NeoX or damaged, WeblabError for settings that cannot be.
        """
        if n_parallel < 1 or n_ctx < 1:
            raise WeblabError(
                _("n_ctx and n_parallel have to be at least 1, and are {n_ctx} and {n_parallel}.").format(
                    n_ctx=n_ctx, n_parallel=n_parallel
                )
            )
        if n_threads is not None and n_threads < 1:
            raise WeblabError(_("n_threads has to be at least 1, and is {n_threads}.").format(n_threads=n_threads))
        require_kv_type(kv_type)
        if kv_type != "f16" and flash_attention is False:
            raise WeblabError(
                _("A KV cache of type {kv_type} needs flash attention.").format(kv_type=kv_type),
                _("Leave flash_attention out."),
            )
        from weblab_local.context import Context, Model
        from weblab_local.devices import physical_cores
        from weblab_local.gguf_header import read_header, require_gptneox
        from weblab_local.scheduler import Scheduler

        header = read_header(path)
        require_gptneox(header)
        self.path = path
        self.plan: Plan | None = None
        self.placement: Placement | None = None
        self.warnings: list[str] = []
        """What `weblab_local.load` planned, what llama.cpp reported, and what a person should know about that."""
        self.metadata: Mapping[str, Any] = header.metadata
        self.n_ctx = n_ctx
        self.n_parallel = n_parallel
        self.kv_type = kv_type
        self.kv_settings = f"flash_attention={flash_attention} n_gpu_layers={n_gpu_layers}"
        """What else a saved KV state depends on."""
        self.n_ctx_train = header.hparam("context_length")
        self.n_threads = n_threads or physical_cores()
        n_batch = batch_size(n_parallel, n_gpu_layers)
        self._model = Model(
            path, n_gpu_layers, repack=repack, devices=devices, tensor_split=tensor_split, on_progress=on_progress
        )
        try:
            self._context = Context(
                self._model,
                n_ctx=n_ctx,
                n_seq_max=n_parallel,
                n_batch=n_batch,
                n_threads=self.n_threads,
                n_threads_batch=self.n_threads,
                kv_type=kv_type,
                flash_attention=True if kv_type != "f16" else flash_attention,
            )
        except BaseException:
            self._model.close()
            raise
        self._scheduler = Scheduler(self._model, self._context, n_ctx=n_ctx, n_parallel=n_parallel, n_batch=n_batch)
        self._closing = threading.Lock()
        self._vocab_in_use = threading.Lock()
        self._closed = False

    @property
    def longest_sequence(self) -> int:
        """Tokens that one prompt and its answer may have together."""
        return min(self.n_ctx, self.n_ctx_train)

    @property
    def has_template(self) -> bool:
        """Whether the model was trained to follow instructions; a base model only continues text."""
        return "tokenizer.chat_template" in self.metadata

    @property
    def name(self) -> str:
        """The file's name without its ending, as text: bytes of it that are none (Linux allows them) become "?"."""
        return self.path.stem.encode(errors="replace").decode()

    @property
    def licence(self) -> str:
        """The model's licence, as its file says; "" when it does not."""
        return str(self.metadata.get("general.license", ""))

    def description(self) -> tuple[str, str]:
        """Two lines for a person: the model, and where it runs."""
        size = self.path.stat().st_size / 1e9
        model = f"{self.path.stem} ({size:.2f} GB)"
        where = " ".join(self.plan.reasons) if self.plan is not None else ""
        return model, where or _("n_ctx {n_ctx}, KV cache {kv_type}").format(n_ctx=self.n_ctx, kv_type=self.kv_type)

    def tokenize(self, text: str) -> list[int]:
        """The ids of `text`, as Hugging Face's tokenizer gives them without special tokens."""
        from weblab_local.tokenizer import encode

        with self._vocab_in_use:
            self._require_open()
            return encode(self._model.vocab, text)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for. Raises PromptError for what is no id of the vocabulary."""
        with self._vocab_in_use:
            self._require_open()
            return self._model.piece(*self.check_ids([token]))

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """`ids` as a list. Raises PromptError where one is no id of the vocabulary."""
        if isinstance(ids, bytes | bytearray):
            raise PromptError(_("A prompt is text or token ids, not bytes."), _("Decode it as UTF-8."))
        checked = list(ids)
        for token in checked:
            if not isinstance(token, Integral) or not 0 <= token < self._model.n_vocab:
                raise PromptError(
                    _("{token!r} is no token id; the vocabulary has {n_vocab}.").format(
                        token=token, n_vocab=self._model.n_vocab
                    )
                )
        return list(map(int, checked))

    def save_prefix(self, ids: Sequence[int]) -> tuple[int, bytes]:
        """How many of `ids` are in the KV cache, from the first on, and their state, for `restore_prefix`."""
        self._require_open()
        return self._scheduler.save_prefix(ids)

    def restore_prefix(self, ids: Sequence[int], state: bytes) -> bool:
        """Put a saved state of `ids` into the KV cache. It has to come from the same build, model and settings.

        False when there is no room, or llama.cpp refuses it. What idle sequences remembered is forgotten for it.
        """
        self._require_open()
        return self._scheduler.restore_prefix(ids, state)

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        context: str | None = None,
        raw: bool = False,
        logprobs: int | None = None,
        on_progress: PromptProgress | None = None,
    ) -> Generation:
        """Answer an instruction, chunk by chunk.

        prompt        an instruction, put into the model's template; with `raw`, or as token ids, taken as it is
        context       a text for the instruction to work on: the template's second form
        logprobs      give log-probabilities of the tokens, and so many alternatives for each
        on_progress   called on the worker thread while the prompt is read

        Raises PromptError for a prompt that is empty, PromptTooLong for one that does not fit, SamplingError for
        logprobs below 0. The sampling's default is SamplingParams().
        """
        generation: Generation
        request, generation = self._request(prompt, params, context, raw, logprobs, on_progress, Generation)
        self._scheduler.submit(request)
        return generation

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        context: str | None = None,
        raw: bool = False,
        logprobs: int | None = None,
        on_progress: PromptProgress | None = None,
    ) -> Completion:
        """The same, whole."""
        self._scheduler.refuse_worker(_("on_progress cannot wait for an answer: it runs on the engine's own thread."))
        with self.stream(
            prompt, params, context=context, raw=raw, logprobs=logprobs, on_progress=on_progress
        ) as generation:
            return complete(list(generation))

    def astream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        context: str | None = None,
        raw: bool = False,
        logprobs: int | None = None,
        on_progress: PromptProgress | None = None,
    ) -> AsyncGeneration:
        """`stream` for asyncio, to be called in a running event loop."""
        loop = asyncio.get_running_loop()
        generation: AsyncGeneration
        request, generation = self._request(
            prompt, params, context, raw, logprobs, on_progress, lambda cancel: AsyncGeneration(cancel, loop)
        )
        self._scheduler.submit(request)
        return generation

    async def agenerate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        context: str | None = None,
        raw: bool = False,
        logprobs: int | None = None,
        on_progress: PromptProgress | None = None,
    ) -> Completion:
        """`generate` for asyncio. Cancelling the task cancels the request."""
        chunks: list[Chunk] = []
        async with self.astream(
            prompt, params, context=context, raw=raw, logprobs=logprobs, on_progress=on_progress
        ) as generation:
            chunks = [chunk async for chunk in generation]
        return complete(chunks)

    def score(self, context: str | Sequence[int], continuations: Sequence[str | Sequence[int]]) -> list["Score"]:
        """How likely each of the `continuations` is after `context`, in their order; nothing is generated.

        Texts are taken as they are, each tokenized on its own; the model's template is not put in. The context is
        computed once, and the continuations together where there are sequences for them. The sequence of a context and
        a continuation without its last token has to fit the context's length.

        Raises PromptError for a context or continuation without tokens, PromptTooLong for what does not fit.
        """
        self._scheduler.refuse_worker(_("on_progress cannot wait for an answer: it runs on the engine's own thread."))
        from weblab_local.scoring import score_all

        before = self._prompt_ids(context, None, raw=True)
        after = [self._prompt_ids(text, None, raw=True) for text in continuations]
        longest = len(before) + max(map(len, after), default=1) - 1
        if longest > self.longest_sequence:
            raise self._too_long(longest)
        return score_all(self._scheduler, before, after)

    def chat(self, system: str | None = None, params: SamplingParams | None = None) -> "ChatSession":
        """A conversation with this model, of any number of them."""
        from weblab_local.chat import ChatSession

        return ChatSession(self, system, params)

    def _request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None,
        context: str | None,
        raw: bool,
        logprobs: int | None,
        on_progress: PromptProgress | None,
        make: Callable[[Callable[[], None]], Any],
    ) -> tuple["Request", Any]:
        from weblab_local.request import Request

        self._require_open()
        if logprobs is not None and not (isinstance(logprobs, int) and logprobs >= 0):
            raise SamplingError(
                _("logprobs should be a whole number from 0 on, and is {value!r}.").format(value=logprobs)
            )
        params = params or SamplingParams()
        ids = self._prompt_ids(prompt, context, raw)
        room = self.longest_sequence - len(ids)
        if room < 1:
            raise self._too_long(len(ids))
        max_tokens, stops = min(params.max_tokens, room), (*params.stop, *(() if raw else TURN_STOPS))
        scheduler = self._scheduler
        request: Request

        def cancel() -> None:
            scheduler.cancel(request)

        generation = make(cancel)
        request = Request(
            prompt=ids,
            params=params,
            max_tokens=max_tokens,
            stops=stops,
            n_logprobs=logprobs,
            emit=generation.emit,
            on_progress=on_progress,
        )
        return request, generation

    def _too_long(self, n_tokens: int) -> PromptTooLong:
        return PromptTooLong(
            _("The prompt has {n} tokens; the context holds {room}, the answer included.").format(
                n=n_tokens, room=self.longest_sequence
            ),
            _("Shorten it, or load the model with a larger n_ctx.")
            if self.longest_sequence < self.n_ctx_train
            else _("Shorten it."),
        )

    def _prompt_ids(self, prompt: str | Sequence[int], context: str | None, raw: bool) -> list[int]:
        if context is not None and (raw or not isinstance(prompt, str)):
            raise PromptError(_("A raw prompt has no template to put a context into."))
        if not isinstance(prompt, str):
            ids = self.check_ids(prompt)
        elif raw:
            ids = self.tokenize(prompt)
        else:
            ids = self.tokenize(instruction_prompt(prompt, context))
        if not ids:
            raise PromptError(_("The prompt is empty."), _("A raw prompt needs at least one token."))
        return ids

    def _require_open(self) -> None:
        if self._closed:
            from weblab_local.scheduler import closed_error

            raise closed_error()

    def close(self) -> None:
        """End what is running and release everything. Closing twice does nothing.

        Raises WeblabError when `on_progress` calls it: the thread that would have to end is the one that calls.
        """
        self._scheduler.refuse_worker(_("on_progress cannot close the model: it runs on the engine's own thread."))
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._scheduler.close()
            with self._vocab_in_use:
                self._context.close()
                self._model.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
