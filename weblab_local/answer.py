"""One prompt, one streamed answer, on llama-cpp-python's `Llama`."""

from collections.abc import Iterator
from pathlib import Path

from weblab_local import llama_log
from weblab_local.errors import ModelFileError, PromptError
from weblab_local.tokenizer import TextStream, encode, piece

ARCHITECTURE = "gptneox"
TOP_K = 50
TOP_P = 0.95


class Answerer:
    """A loaded model that answers one prompt at a time."""

    def __init__(self, path: Path) -> None:
        """Load the GGUF at `path`. Raises ModelFileError when it is damaged or no gptneox."""
        from llama_cpp import Llama

        with llama_log.collect_errors() as errors:
            try:
                self._llama = Llama(str(path), n_ctx=2048, n_gpu_layers=-1, verbose=False)
            except ValueError as error:
                detail = " ".join(errors) or str(error)
                raise ModelFileError(
                    f"{path} cannot be loaded: {detail}", "Convert the checkpoint again: make convert FORCE=1."
                ) from None
        architecture = self._llama.metadata.get("general.architecture")
        if architecture != ARCHITECTURE:
            raise ModelFileError(f"{path} is a {architecture} model; only {ARCHITECTURE} models are run here.")
        self._vocab = self._llama._model.vocab
        self.licence: str = self._llama.metadata.get("general.license", "")

    def stream(self, prompt: str, temperature: float, max_tokens: int, seed: int | None) -> Iterator[str]:
        """The answer to a rendered prompt, in chunks of whole characters. Raises PromptError when it does not fit."""
        ids = encode(self._vocab, prompt)
        room = self._llama.n_ctx() - len(ids)
        if room < 1:
            raise PromptError(
                f"The prompt has {len(ids)} tokens; the context holds {self._llama.n_ctx()}.", "Shorten it."
            )
        if seed is not None:
            self._llama.set_seed(seed)
        text = TextStream()
        tokens = self._llama.generate(
            ids, top_k=TOP_K, top_p=TOP_P, min_p=0.0, temp=temperature, repeat_penalty=1.0, reset=True
        )
        for _, token in zip(range(min(room, max_tokens)), tokens, strict=False):
            if token == self._llama.token_eos():
                break
            chunk = text.push(piece(self._vocab, token))
            if chunk:
                yield chunk
        rest = text.finish()
        if rest:
            yield rest
