"""A loaded model: what a host app, the chat, the command line and the server talk to.

All methods may be called from any thread; one worker thread behind them alone runs llama.cpp.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from weblab_local.engine.generation import AsyncGeneration, Chunk, Completion, Generation, complete
from weblab_local.engine.options import PromptOptions, spells_out_options
from weblab_local.engine.prompt_ids import PromptIds
from weblab_local.engine.sampling import SamplingParams
from weblab_local.engine.settings import require_settings, state_key
from weblab_local.engine.uncopyable import Uncopyable
from weblab_local.engine.users import closed_error
from weblab_local.i18n import _, n_
from weblab_local.llama.kv_types import KvType

if TYPE_CHECKING:
    from weblab_local.chat.session import ChatSession
    from weblab_local.engine.request import Request
    from weblab_local.engine.roster import Occupancy
    from weblab_local.engine.scoring import Score
    from weblab_local.engine.template import Template
    from weblab_local.machine.placement import Placement
    from weblab_local.machine.plan import Plan

DEFAULT_N_CTX = 2048


class Engine(Uncopyable, AbstractContextManager["Engine"]):
    """A model in memory. Close it, or use it as a context manager; one that nobody has any more closes itself.

    A request that runs keeps it, as long as somebody has its Generation.
    """

    _instead = n_("Load the model again where it is needed, with weblab_local.load().")

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = DEFAULT_N_CTX,
        n_parallel: int = 1,
        n_gpu_layers: int = 0,
        n_batch: int | None = None,
        n_threads: int | None = None,
        kv_type: KvType = "f16",
        flash_attention: bool | None = None,
        repack: bool = True,
        drafts: bool | None = None,
        devices: Sequence[int] | None = None,
        tensor_split: Sequence[float] = (),
        lora: Sequence[tuple[Path, float]] = (),
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Load the GGUF at `path`; `weblab_local.load` finds it by name and plans the rest.

        n_ctx             KV cells that all sequences share
        n_parallel        requests that are computed at the same time; more wait in order
        n_batch           tokens computed at once; None: as the memory plan counts with
        n_threads         threads that compute; None: one for each physical core
        kv_type           type of the KV cache; q8_0 and q4_0 need flash attention
        flash_attention   None: wherever llama.cpp allows it
        repack            let llama.cpp rearrange weights for this processor while loading
        drafts            guess tokens ahead and check them together; None: in answers that are drawn without a seed
        devices           ggml devices to offload to; None: llama.cpp's own choice
        tensor_split      proportions of the offloaded layers on them; (): by their free memory
        lora              adapters to compute with, in llama.cpp's form, each with its scale
        on_progress       called with the share loaded, 0 to 1; an exception from it cancels the loading

        Raises ModelFileError for a file that is no GPT-NeoX or damaged, WeblabError for settings that cannot be.
        """
        require_settings(n_ctx, n_parallel, n_threads, kv_type, flash_attention)
        from weblab_local.engine.drafts import Drafts
        from weblab_local.engine.scheduler import Scheduler
        from weblab_local.llama.adapters import open_adapters
        from weblab_local.llama.context import Context, Model
        from weblab_local.llama.gptneox import read_gptneox
        from weblab_local.machine.devices import description, physical_cores
        from weblab_local.machine.footprint import batch_size
        from weblab_local.machine.tensor_limit import largest_tensor, require_room_for_keys

        header = read_gptneox(path)
        self.path = path.absolute()
        self.plan: Plan | None = None
        self.placement: Placement | None = None
        self.warnings: list[str] = []
        """What `weblab_local.load` planned, what llama.cpp reported, and what a person should know about that."""
        self.metadata: Mapping[str, Any] = header.metadata
        self.adapters = open_adapters(lora, header)
        self.n_ctx, self.n_parallel, self.kv_type = n_ctx, n_parallel, kv_type
        used = (devices or ()) if n_gpu_layers else ()
        self._state_settings = (flash_attention, n_gpu_layers, [description(device) for device in used])
        for handle in used:
            require_room_for_keys(header, n_ctx, kv_type, description(handle), largest_tensor(handle))
        self.n_ctx_train = header.hparam("context_length")
        self.n_threads = n_threads or physical_cores()
        n_batch = max(n_parallel, n_batch or batch_size(n_parallel, n_gpu_layers))
        self._model = Model(
            path, n_gpu_layers, on_progress, self.adapters, repack=repack, devices=devices, tensor_split=tensor_split
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
        self._scheduler = Scheduler(
            self._model,
            self._context,
            n_ctx=n_ctx,
            n_parallel=n_parallel,
            n_batch=n_batch,
            can_abort=not n_gpu_layers,  # llama.cpp's abort callback is the CPU's and Metal's
            drafts=Drafts(drafts),
        )
        self._finalizer = weakref.finalize(self, self._scheduler.abandon)
        self._finalizer.atexit = False  # the scheduler sees to the end of the program itself
        self._closing = threading.Lock()
        longest = self.longest_sequence
        self._prompts = PromptIds(self._model.tokenizer, self.metadata, longest, can_grow=longest < self.n_ctx_train)
        self._closed = False

    @property
    def longest_sequence(self) -> int:
        """Tokens that one prompt and its answer may have together."""
        return min(self.n_ctx, self.n_ctx_train)

    @property
    def occupancy(self) -> "Occupancy":
        """How full it is now."""
        return self._scheduler.occupancy

    @property
    def template(self) -> "Template":
        """How the model is asked. Raises WeblabError where its file has a template of its own that cannot be used."""
        return self._prompts.template

    @property
    def has_template(self) -> bool:
        """Whether the model was trained to follow instructions; a base model only continues text."""
        return "tokenizer.chat_template" in self.metadata

    @property
    def kv_settings(self) -> str:
        """What else a saved KV state depends on."""
        return state_key(*self._state_settings, self.adapters)

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
        model = " + ".join([f"{self.path.stem} ({size:.2f} GB)", *(f"{a.name} ({a.scale:g})" for a in self.adapters)])
        where = " ".join(self.plan.reasons) if self.plan is not None else ""
        return model, where or _("n_ctx {n_ctx}, KV cache {kv_type}").format(n_ctx=self.n_ctx, kv_type=self.kv_type)

    def tokenize(self, text: str, limit: int | None = None, *, special: bool = False) -> list[int]:
        """Return the token ids of `text`, equal to Hugging Face's; special tokens in it are text unless `special`.

        With `limit`, raises PromptTooLong as soon as there are more and text is left, which then costs no time.
        """
        return self._prompts.tokenize(text, limit, special=special)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for. Raises PromptError for what is no id of the vocabulary."""
        self._require_open()
        (token,) = self.check_ids([token])
        return self._model.tokenizer.pieces[token]

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """`ids` as a list. Raises PromptError where one is no id of the vocabulary."""
        return self._prompts.checked(ids)

    def save_prefix(self, ids: Sequence[int], path: Path) -> int:
        """How many of `ids` are in the KV cache, from the first on; their state is written to `path`, where it has any.

        What is written is for `restore_prefix`, and is never whole in memory. Raises OSError when it cannot be written.
        """
        self._require_open()
        return self._scheduler.save_prefix(ids, path)

    def restore_prefix(self, ids: Sequence[int], state: bytes | memoryview) -> bool:
        """Put a state of `ids` that was saved into the KV cache, from the same build, model and settings.

        It is not copied, so it may be a file that is mapped into memory. False when there is no room, or llama.cpp
        refuses it. What idle sequences remembered is forgotten for it.
        """
        self._require_open()
        return self._scheduler.restore_prefix(ids, state)

    @spells_out_options
    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> Generation:
        """Answer an instruction, chunk by chunk.

        prompt        an instruction, put into the model's template; with `raw`, or as token ids, taken as it is
        context       a text for the instruction to work on: the template's second form
        raw           take the prompt as it is; no template
        special       special tokens that a raw text has are tokens, like <|endoftext|>; else they are text
        logprobs      give log-probabilities of the tokens, and so many alternatives for each
        on_progress   called on the worker thread while the prompt is read

        Raises PromptError for a prompt that is empty, PromptTooLong for one that does not fit, SamplingError for
        logprobs below 0. The sampling's default is SamplingParams().
        """
        generation: Generation
        request, generation = self._request(
            prompt, params, options, lambda cancel: Generation(cancel, self._refuse_to_wait)
        )
        self._scheduler.submit(request)
        return generation

    @spells_out_options
    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> Completion:
        """The same, whole."""
        self._refuse_to_wait()
        with self.stream(prompt, params, **options) as generation:
            return complete(list(generation))

    @spells_out_options
    def astream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> AsyncGeneration:
        """`stream` for asyncio, to be called in a running event loop."""
        loop = asyncio.get_running_loop()
        generation: AsyncGeneration
        request, generation = self._request(prompt, params, options, lambda cancel: AsyncGeneration(cancel, loop))
        self._scheduler.submit(request)
        return generation

    @spells_out_options
    async def agenerate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> Completion:
        """`generate` for asyncio. Cancelling the task cancels the request."""
        chunks: list[Chunk] = []
        async with self.astream(prompt, params, **options) as generation:
            chunks = [chunk async for chunk in generation]
        return complete(chunks)

    def score(self, context: str | Sequence[int], continuations: Sequence[str | Sequence[int]]) -> list["Score"]:
        """How likely each of the `continuations` is after `context`, in their order; nothing is generated.

        Texts are taken as they are, each tokenized on its own; the model's template is not put in. The context is
        computed once, and the continuations together where there are sequences for them. The sequence of a context and
        a continuation without its last token has to fit the context's length.

        Raises PromptError for a context or continuation without tokens, PromptTooLong for what does not fit.
        """
        self._refuse_to_wait()
        from weblab_local.engine.scoring import score_all

        before = self._prompts.of(context, raw=True)
        after = [self._prompts.of(text, raw=True) for text in continuations]
        longest = len(before) + max(map(len, after), default=1) - 1
        if longest > self.longest_sequence:
            raise self._prompts.too_long(longest)
        return score_all(self._scheduler, before, after)

    def ascore(self, context: Sequence[int], continuation: Sequence[int], logprobs: int) -> AsyncGeneration:
        """`score` for asyncio, of ids that fit: chunks with log-probabilities and so many alternatives for each."""
        from weblab_local.engine.scoring import score_request

        loop = asyncio.get_running_loop()
        request, generation = score_request(
            self._scheduler, context, continuation, lambda cancel: AsyncGeneration(cancel, loop), logprobs
        )
        self._scheduler.submit(request)
        return generation

    def read_ahead(self, prompt: Sequence[int]) -> None:
        """Compute the token ids of a prompt that will probably come, while nobody wants anything; return at once.

        What it computes stays in the KV cache, and a request that begins alike begins there. Any other request ends it,
        as the next call does, unless it only asks for more of the same. Nothing is done for a prompt that does not fit.
        Raises PromptError for what is no id of the vocabulary.
        """
        self._require_open()
        ids = self.check_ids(prompt)
        if 0 < len(ids) < self.longest_sequence:
            self._scheduler.read_ahead(ids)

    def scale_adapters(self, scales: Sequence[float]) -> None:
        """Compute from now on with `adapters` at these scales, one for each; 0 switches one off.

        What the KV cache holds of earlier prompts is forgotten. Raises WeblabError while an answer is computed, and for
        scales that are none or too few.
        """
        from weblab_local.llama.adapters import scaled

        self._require_open()
        adapters = scaled(self.adapters, scales)
        if adapters:
            self._scheduler.scale_adapters([adapter.scale for adapter in adapters])
        self.adapters = adapters

    def chat(self, system: str | None = None, params: SamplingParams | None = None) -> "ChatSession":
        """A conversation with this model, of any number of them."""
        from weblab_local.chat.session import ChatSession

        return ChatSession(self, system, params)

    def _request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None,
        options: PromptOptions,
        make: Callable[[Callable[[], None]], Any],
    ) -> tuple["Request", Any]:
        from weblab_local.engine.prompt_request import prompt_request

        self._require_open()

        def cancel(request: "Request") -> None:  # the generation has it, and through it this engine, which stays open
            self._scheduler.cancel(request)

        return prompt_request(self._prompts, prompt, params, options, cancel, make)

    def _refuse_to_wait(self) -> None:
        """Raise WeblabError where waiting for an answer would be waiting for oneself."""
        self._scheduler.refuse_worker(_("on_progress cannot wait for an answer: it runs on the engine's own thread."))

    def raw_prompt(self, prompt: str | Sequence[int], room: int = 1, *, special: bool = False) -> list[int]:
        """Return the ids of a prompt that is taken as it is and leaves `room` tokens for an answer.

        Raises PromptError for one that is empty or cannot be read, PromptTooLong for one that does not fit.
        """
        ids = self._prompts.of(prompt, raw=True, special=special)
        if len(ids) + room > self.longest_sequence:
            raise self._prompts.too_long(len(ids))
        return ids

    def require_room(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raise SamplingError where not even the shortest answer that `params` allow fits behind a prompt's ids."""
        self._prompts.budget(params, min(params.max_tokens, self.longest_sequence - len(prompt)))

    def _require_open(self) -> None:
        if self._closed:
            raise closed_error()

    def close(self) -> None:
        """End what is running and release everything. Closing twice does nothing; an interrupted close can be repeated.

        In a forked child nothing is released: it is the parent's. Raises WeblabError when `on_progress` calls it: the
        thread that would have to end is the one that calls.
        """
        if not self._scheduler.is_here():
            self._closed = True
            self._prompts.users.close()
            return
        self._scheduler.refuse_worker(_("on_progress cannot close the model: it runs on the engine's own thread."))
        with self._closing:
            self._closed = True
            if not self._finalizer.alive:
                return
            self._scheduler.close()
            self._prompts.users.close()
            self._finalizer.detach()
            self._context.close()
            self._model.close()

    def __exit__(self, *_: object) -> None:
        self.close()
