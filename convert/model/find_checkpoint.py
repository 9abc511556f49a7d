"""The checkpoint that a command's SOURCE means: a folder, or an id on the Hub."""

from collections.abc import Sequence
from pathlib import Path

from convert.errors import ConversionError
from convert.model.merging import merged
from convert.model.preview import preview
from convert.progress import say
from convert.source import download
from convert.source.checkpoint import Checkpoint, open_checkpoint, require_checkpoint_folder
from convert.source.lora import open_lora
from convert.source.source import Source, local_source, merged_name
from convert.source.tokenizer_files import require_tokenizer_folder
from weblab_local.sizes import byte_count


def find_checkpoint(
    source: str,
    revision: str | None,
    tokenizer: Path | None = None,
    with_tokenizer: bool = True,
    adapters: Sequence[str] = (),
) -> tuple[Checkpoint, str]:
    """Return the checkpoint, downloaded where it is not in the Hub's cache, with the `adapters` in it, and its name.

    `tokenizer` is the folder of the tokenizer's files where they are not beside the weights; `with_tokenizer` says
    whether one is needed at all. `adapters` are each ADAPTER or ADAPTER=SCALE. Raises ConversionError for a folder that
    is none, for a --revision of a folder, for what the Hub does not give, and for adapters that do not fit.
    """
    require_tokenizer_folder(tokenizer)
    loras = [open_lora(adapter, say) for adapter in adapters]
    folder = Path(source).expanduser()
    if not folder.exists() and download.is_hub_id(source):
        hub = download.find(source, revision, say, with_tokenizer=with_tokenizer and tokenizer is None)
        announce(hub)
        small = download.fetch_small(hub, say)
        base = Source(hub.repository.rpartition("/")[2], small, hub.repository, hub.commit)
        merged(preview(small, tokenizer, with_tokenizer), base, loras, say)
        checkpoint = open_checkpoint(download.download(hub, say), tokenizer=tokenizer)
        return _finished(merged(checkpoint, base, loras, lambda _: None), base)
    if revision is not None:
        raise ConversionError("--revision is for checkpoints from the Hub, not for a folder.")
    require_checkpoint_folder(folder)
    base = local_source(folder)
    checkpoint = open_checkpoint(base.folder, tokenizer=tokenizer, report=say)
    return _finished(merged(checkpoint, base, loras, say), base)


def find_settings(source: str, revision: str | None) -> tuple[Checkpoint, Source]:
    """Return the checkpoint as its settings describe it, not to be read: no weight is fetched; and where it is from.

    Raises as `find_checkpoint` does.
    """
    folder = Path(source).expanduser()
    if not folder.exists() and download.is_hub_id(source):
        hub = download.find(source, revision, say, with_tokenizer=False)
        small = download.fetch_small(hub, say)
        base = Source(hub.repository.rpartition("/")[2], small, hub.repository, hub.commit)
    else:
        if revision is not None:
            raise ConversionError("--revision is for checkpoints from the Hub, not for a folder.")
        require_checkpoint_folder(folder)
        base = local_source(folder)
    return preview(base.folder, with_tokenizer=False), base


def _finished(checkpoint: Checkpoint, base: Source) -> tuple[Checkpoint, str]:
    return checkpoint, merged_name(base.name, checkpoint.adapters)


def announce(hub: download.HubCheckpoint) -> None:
    """Say how much is to be downloaded. Raises DownloadError where the Hub's cache has no room for it."""
    missing = hub.missing_bytes
    if missing:
        say(f"{hub.repository} at {hub.commit[:12]}: {byte_count(missing)} to download.")
        download.check_cache_room(missing)
