"""The checkpoint that a command's SOURCE means: a folder, or an id on the Hub."""

from pathlib import Path

from convert.errors import ConversionError
from convert.model.preview import preview
from convert.progress import say
from convert.source import download
from convert.source.checkpoint import Checkpoint, open_checkpoint, require_checkpoint_folder
from convert.source.source import local_source
from convert.source.tokenizer_files import require_tokenizer_folder
from weblab_local.sizes import byte_count


def find_checkpoint(
    source: str, revision: str | None, tokenizer: Path | None = None, with_tokenizer: bool = True
) -> tuple[Checkpoint, str]:
    """Return the checkpoint, downloaded where it is not in the Hub's cache, and its name.

    `tokenizer` is the folder of the tokenizer's files where they are not beside the weights; `with_tokenizer` says
    whether one is needed at all. Raises ConversionError for a folder that is none, for a --revision of a folder, and
    for what the Hub does not give.
    """
    require_tokenizer_folder(tokenizer)
    folder = Path(source).expanduser()
    if not folder.exists() and download.is_hub_id(source):
        hub = download.find(source, revision, say, with_tokenizer=with_tokenizer and tokenizer is None)
        announce(hub)
        preview(download.fetch_small(hub, say), tokenizer, with_tokenizer)
        return open_checkpoint(download.download(hub, say), tokenizer=tokenizer), hub.repository.rpartition("/")[2]
    if revision is not None:
        raise ConversionError("--revision is for checkpoints from the Hub, not for a folder.")
    require_checkpoint_folder(folder)
    found = local_source(folder)
    return open_checkpoint(found.folder, tokenizer=tokenizer, report=say), found.name


def announce(hub: download.HubCheckpoint) -> None:
    """Say how much is to be downloaded. Raises DownloadError where the Hub's cache has no room for it."""
    missing = hub.missing_bytes
    if missing:
        say(f"{hub.repository} at {hub.commit[:12]}: {byte_count(missing)} to download.")
        download.check_cache_room(missing)
