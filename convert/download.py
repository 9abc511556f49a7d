"""A checkpoint from the Hugging Face Hub: only the files needed, through `huggingface_hub`.

Normally into the Hub's cache, where other programs find it too. For `--low-disk` into a folder of our own, shard by
shard, so that nothing the user keeps in the cache is ever deleted.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from convert.checkpoint import INDEX_FILES, SINGLE_FILES
from convert.errors import CheckpointError, DownloadError
from convert.pipeline import CONFIG_FILES
from convert.progress import format_bytes

OTHER_FILES = (*CONFIG_FILES, "generation_config.json", "special_tokens_map.json")
TRIES = 5
"""How often a file is begun anew after the connection was reset."""

_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the HTTP library under huggingface_hub raises: HfHubHTTPError and, bare, a connection that is reset."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class HubCheckpoint:
    """A repository at one commit. `files`: sizes in bytes of the files a conversion needs, shards included."""

    repository: str
    commit: str
    files: Mapping[str, int]

    @property
    def shards(self) -> list[str]:
        """File names of the weights."""
        return [name for name in self.files if name not in OTHER_FILES and name not in INDEX_FILES]

    @property
    def missing_bytes(self) -> int:
        """What is not in the Hub's cache yet."""
        return sum(
            size
            for name, size in self.files.items()
            if not isinstance(try_to_load_from_cache(self.repository, name, revision=self.commit), str)
        )


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form of a Hub id, owner/name, rather than of a path."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None


def find(repository: str, revision: str | None) -> HubCheckpoint:
    """Look a repository up; without network, in the cache. Raises DownloadError, CheckpointError."""
    with _explained(repository, revision):
        try:
            info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        except (OfflineModeIsEnabled, _HTTP_ERROR) as error:
            if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
                raise
            return _find_in_cache(repository, revision)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    return HubCheckpoint(repository, str(info.sha), _needed(repository, sizes))


def _find_in_cache(repository: str, revision: str | None) -> HubCheckpoint:
    folder = Path(
        snapshot_download(repository, revision=revision, allow_patterns=["config.json"], local_files_only=True)
    )
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return HubCheckpoint(repository, folder.name, _needed(repository, sizes))


def _needed(repository: str, sizes: Mapping[str, int]) -> dict[str, int]:
    for index_file, single_file in zip(INDEX_FILES, SINGLE_FILES, strict=True):
        suffix = Path(single_file).suffix
        shards = [name for name in sizes if _SHARD.fullmatch(name) and name.endswith(suffix)]
        if index_file in sizes and shards:
            weights = [index_file, *sorted(shards)]
        elif single_file in sizes:
            weights = [single_file]
        else:
            continue
        return {name: sizes[name] for name in (*OTHER_FILES, *weights) if name in sizes}
    raise CheckpointError(
        f"{repository} holds no weights in .safetensors or .bin that could be converted.",
        "Repositories of GGUF or GPTQ files are results of a conversion; give the original checkpoint.",
    )


def check_cache_room(n_bytes: int) -> None:
    """Raise DownloadError when the file system of the Hub's cache has no room for `n_bytes` more."""
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if n_bytes > free:
        raise DownloadError(
            f"Not enough disk space in {cache}: {format_bytes(n_bytes)} to download, {format_bytes(free)} free.",
            "Free some space, set HF_HOME to a larger disk, or use --low-disk (make convert LOW_DISK=1).",
        )


def download(hub: HubCheckpoint, report: Report) -> Path:
    """Fetch all the files into the Hub's cache, as far as they are not there; the snapshot's folder."""
    path = ""
    for number, (name, size) in enumerate(hub.files.items(), start=1):
        if not isinstance(try_to_load_from_cache(hub.repository, name, revision=hub.commit), str):
            report(f"[{number}/{len(hub.files)}] {name}, {format_bytes(size)}")
        path = _fetch(hub, name, report)
    return Path(path).parent


def _fetch(hub: HubCheckpoint, name: str, report: Report, local_folder: Path | None = None) -> str:
    with _explained(hub.repository, hub.commit):
        for remaining in reversed(range(TRIES)):
            try:
                return str(hf_hub_download(hub.repository, name, revision=hub.commit, local_dir=local_folder))
            except _HTTP_ERROR as error:
                if isinstance(error, HfHubHTTPError) or not remaining:
                    raise
                report(f"The connection broke ({error}); fetching {name} again.")
    raise AssertionError("unreachable")


class LowDiskFolder:
    """A folder of our own that holds the small files and one shard at a time; removed when all went well."""

    def __init__(self, hub: HubCheckpoint, parent: Path, report: Report) -> None:
        self.hub = hub
        self.path = parent / f".download-{hub.repository.replace('/', '--')}-{hub.commit[:12]}"
        self._report = report
        for name in hub.files:
            if name not in hub.shards or name in SINGLE_FILES:
                _fetch(hub, name, report, self.path)

    def fetch(self, shard: str) -> None:
        """Download a shard, unless it is there."""
        if not (self.path / shard).is_file():
            self._report(f"{shard}, {format_bytes(self.hub.files[shard])}")
            _fetch(self.hub, shard, self._report, self.path)

    def release(self, shard: str) -> None:
        """Delete a shard that has been converted."""
        (self.path / shard).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def cache_note(hub: HubCheckpoint) -> str:
    """How much the Hub's cache holds of this repository and how to free it; "" when it holds nothing."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return ""
    size = sum(repository.size_on_disk for repository in repositories if repository.repo_id == hub.repository)
    if not size:
        return ""
    return (
        f"The Hub's cache holds {format_bytes(size)} of {hub.repository}, no longer needed to run the model.\n"
        f"To free it: hf cache rm model/{hub.repository}"
    )


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    page = f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except GatedRepoError:
        raise DownloadError(
            f"{repository} is gated: its owner wants you to accept conditions first.",
            f"Accept them on {page}, then type `hf auth login` and run this again.",
        ) from None
    except RepositoryNotFoundError:
        raise DownloadError(
            f"There is no repository {repository} on the Hub, or it is private.",
            "Check the spelling; for a private one type `hf auth login` first. "
            "If you meant a folder, there is none of that name.",
        ) from None
    except RevisionNotFoundError:
        raise DownloadError(
            f"{repository} has no revision {revision!r}.", f"Its branches and commits are listed on {page}/commits."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        offline = constants.HF_HUB_OFFLINE
        raise DownloadError(
            f"{repository} is not in the Hub's cache, and "
            + ("HF_HUB_OFFLINE forbids to fetch it." if offline else f"the Hub cannot be reached ({error})."),
            "Unset HF_HUB_OFFLINE, or copy the checkpoint into a folder and give that folder."
            if offline
            else "Check the network and run this again; finished files are kept. Or give a folder with the checkpoint.",
        ) from None
    except (_HTTP_ERROR, OSError) as error:
        raise DownloadError(
            f"Downloading {repository} failed: {error}",
            "Check the network and the free disk space, then run this again; finished files are kept.",
        ) from error
