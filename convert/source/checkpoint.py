"""A Hugging Face checkpoint on disk: config.json and its tensors, shard by shard, memory-mapped.

Two formats: `.safetensors`, preferred where both are there, and torch's zip format (`.bin`, `.pt`). Tensors have the
names that transformers writes, whatever wrappers they were saved under.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError, UnsupportedModelError
from convert.source.json_files import AGAIN, read_json, require_no_pointer
from convert.source.names import canonical, is_buffer, require_merged, saved_twice
from convert.source.other_forms import adapter_config, listing, no_weights, other_form, quantized, require_unquantized
from convert.source.settings import read_config
from convert.source.source import Adapter
from convert.source.tensor_files import Added, StoredTensor, read_tensors
from convert.source.tokenizer_files import TOKENIZER_FILES
from convert.source.weight_files import left_aside, state_dicts, weight_files

CONFIG_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES, "chat_template.jinja", "README.md")
"""Small files that may have a say in the output, besides the shards."""

_ALWAYS_HEARD = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md")


@dataclass(frozen=True)
class Change:
    """What adapters make of a tensor: another one in its place, where that is not None, and what they add."""

    whole: StoredTensor | None = None
    added: Sequence[Added] = ()

    def of(self, stored: StoredTensor) -> StoredTensor:
        """The changed tensor, which has the place of `stored` in the shard."""
        return replace(self.whole or stored, position=stored.position, added=self.added)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and shards. `weight_map`: the shard (file name) of each tensor, in the shards' order.

    `fetch` makes sure a shard is in the folder before it is opened and `release` lets it go again. `tokenizer` is the
    folder of its tokenizer's files where they lie elsewhere. `changes` are what the `adapters` make of its tensors, by
    their names: whoever opens a shard sees them merged.
    """

    folder: Path
    config: Mapping[str, Any]
    weight_map: Mapping[str, str]
    fetch: Callable[[str], None] | None = None
    release: Callable[[str], None] | None = None
    tokenizer: Path | None = None
    adapters: Sequence[Adapter] = ()
    changes: Mapping[str, Change] = field(default_factory=dict)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files are."""
        return self.tokenizer or self.folder

    @property
    def shards(self) -> list[str]:
        """File names of the shards, sorted."""
        return sorted(set(self.weight_map.values()))

    @property
    def files_with_a_say(self) -> list[str]:
        """Names of the small files in the folder that the output depends on."""
        asked_for_ends = self.config != read_json(self.folder / "config.json")
        has_one_file = (self.folder / "tokenizer.json").is_file()
        heard = CONFIG_FILES if asked_for_ends or not has_one_file else _ALWAYS_HEARD
        return [name for name in heard if (self.folder / name).is_file()]

    @contextmanager
    def open_shard(self, shard: str) -> Iterator[dict[str, StoredTensor]]:
        """The tensors of one shard by name, valid inside the context. Raises CheckpointError for a damaged shard."""
        if self.fetch is not None:
            self.fetch(shard)
        tensors = read_shard(self.folder / shard)
        tensors |= {name: self.changes[name].of(tensors[name]) for name in tensors.keys() & self.changes.keys()}
        try:
            yield tensors
        finally:
            tensors.clear()  # unmaps the file where nobody keeps a tensor: Windows deletes none that is mapped
        if self.release is not None:
            self.release(shard)


def open_checkpoint(
    folder: Path,
    fetch: Callable[[str], None] | None = None,
    release: Callable[[str], None] | None = None,
    tokenizer: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """Open the checkpoint in `folder`; no weight is read. `report` is told of what is left aside.

    Raises CheckpointError that names what is wrong with it, UnsupportedModelError for weights in another form.
    """
    config = read_config(folder, tokenizer)
    names = listing(folder)
    files = weight_files(names)
    if files is None:
        raise no_weights(str(folder), names, adapter_config(folder))
    if files.left_aside:
        report(left_aside(files))
    if files.index:
        weight_map = _indexed(folder / files.index)
        require_unquantized(folder, config, weight_map)
        if fetch is None:
            for shard in sorted(set(weight_map.values())):
                _require_shard(folder / shard)
    else:
        try:
            tensors = read_shard(folder / files.single)
        except UnsupportedModelError:
            if config.get("quantization_config"):
                raise quantized(folder, config) from None
            raise
        require_unquantized(folder, config, tensors)
        weight_map = dict.fromkeys(tensors, files.single)
    return Checkpoint(folder, config, weight_map, fetch, release, tokenizer)


def _indexed(path: Path) -> dict[str, str]:
    """The shard of each tensor. Raises CheckpointError where the index is damaged or points elsewhere."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path.name} has no weight_map.", AGAIN)
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".."):
            raise CheckpointError(f"{path.name} points outside its folder: {shard!r}.", AGAIN)
    require_merged(weight_map, path.name)
    found: dict[str, str] = {}
    for name, shard in weight_map.items():
        if found.setdefault(canonical(name), shard) != shard:
            raise saved_twice(canonical(name), path.name)
    return found


def require_checkpoint_folder(path: Path) -> None:
    """Raise CheckpointError unless `path` is a folder with a config.json, and say what it is instead."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                raise CheckpointError(
                    f"{path} is a GGUF file already; the source has to be a Hugging Face checkpoint.",
                    "To use it: weblab-local --model FILE. To requantize, give the checkpoint it was made from.",
                )
        raise CheckpointError(
            f"{path} is a file; the source has to be a checkpoint's folder or a Hub id.",
            "Give the folder that holds config.json, tokenizer.json and the shards.",
        )
    if not path.exists():
        raise CheckpointError(f"There is no folder {path}.", "Give a checkpoint's folder, or a Hub id like owner/name.")
    if not (path / "config.json").is_file():
        names = listing(path)
        other = other_form(str(path), names, adapter_config(path))
        if other is not None:
            raise other
        if weight_files(names) is not None or state_dicts(names):
            raise CheckpointError(
                f"{path} holds weights, but no config.json.",
                "Copy config.json and the tokenizer's files of the model that it was trained from beside them.",
            )
        raise CheckpointError(
            f"{path} is no checkpoint: it has no config.json.",
            "Give the folder that holds config.json, tokenizer.json and the shards, or a Hub id like owner/name.",
        )


def read_shard(path: Path) -> dict[str, StoredTensor]:
    """The weights of a shard, memory-mapped. The buffers of old checkpoints, of whatever type, are left out.

    Raises CheckpointError for a shard that is missing or damaged, UnsupportedModelError for other types of weights.
    """
    _require_shard(path)
    return read_tensors(path, _weights, "shard")


def _weights(names: Collection[str], where: str) -> Mapping[str, str]:
    """A Naming: a GPT-NeoX's weights by the names that transformers writes."""
    require_merged(names, where)
    return {saved: name for saved in names if not is_buffer(name := canonical(saved))}


def _require_shard(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"The shard {path.name} is missing in {path.parent}.", AGAIN)
    with suppress(OSError):  # what reads it next says why it cannot be read
        require_no_pointer(path)


def file_stamp(path: Path) -> dict[str, Any]:
    """Name, size and modification time of an input: enough to see that it has not changed, without reading it."""
    status = path.stat()
    return {"name": path.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
