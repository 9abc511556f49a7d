"""The checkpoint that a command's SOURCE means: a folder, or an id on the Hub."""

from pathlib import Path

from convert import download
from convert.checkpoint import Checkpoint, open_checkpoint, require_checkpoint_folder
from convert.errors import ConversionError
from convert.progress import format_bytes, say
from convert.source import local_source


def find_checkpoint(source: str, revision: str | None) -> tuple[Checkpoint, str]:
    """The checkpoint, downloaded where it is not in the Hub's cache, and its name.

    Raises ConversionError for a folder that is none, for a --revision of a folder, and for what the Hub does not give.
    """
    folder = Path(source).expanduser()
    if not folder.exists() and download.is_hub_id(source):
        hub = download.find(source, revision, say)
        if hub.missing_bytes:
            say(f"{hub.repository} at {hub.commit[:12]}: {format_bytes(hub.missing_bytes)} to download.")
            download.check_cache_room(hub.missing_bytes)
        return open_checkpoint(download.download(hub, say)), hub.repository.rpartition("/")[2]
    if revision is not None:
        raise ConversionError("--revision is for checkpoints from the Hub, not for a folder.")
    require_checkpoint_folder(folder)
    found = local_source(folder)
    return open_checkpoint(found.folder), found.name
