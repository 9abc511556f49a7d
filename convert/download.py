"""A checkpoint from the Hugging Face Hub: only the files needed, through `huggingface_hub`.

It goes into the Hub's cache, where other programs find it too; `low_disk` has the other way.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from convert.checkpoint import INDEX_FILES, SINGLE_FILES, read_json
from convert.errors import CheckpointError, DownloadError
from convert.pipeline import CONFIG_FILES
from convert.progress import format_bytes

OTHER_FILES = (*CONFIG_FILES, "generation_config.json", "special_tokens_map.json")
TRIES = 5
"""How often a file is begun anew after the connection was reset."""

_RUN_AGAIN = "run this again; what is in the Hub's cache is not fetched twice"
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the HTTP library under huggingface_hub raises: HfHubHTTPError and, bare, a connection that is reset."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class HubCheckpoint:
    """A repository at one commit, found under the name `revision`: a branch, a tag or the commit itself.

    `files`: sizes in bytes of the files a conversion needs, shards included.
    """

    repository: str
    revision: str
    commit: str
    files: Mapping[str, int]

    @property
    def shards(self) -> list[str]:
        """File names of the weights."""
        return [name for name in self.files if name not in OTHER_FILES and name not in INDEX_FILES]

    @property
    def missing_bytes(self) -> int:
        """What is not in the Hub's cache yet."""
        return sum(size for name, size in self.files.items() if not self.is_cached(name))

    def is_cached(self, name: str) -> bool:
        """Whether the Hub's cache holds the file."""
        return isinstance(try_to_load_from_cache(self.repository, name, revision=self.commit), str)


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form of a Hub id, owner/name, rather than of a path."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None


def find(repository: str, revision: str | None, report: Report) -> HubCheckpoint:
    """Look a repository up; where the Hub cannot be asked, in the cache. Raises DownloadError, CheckpointError."""
    with _explained(repository, revision):
        try:
            info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except (OfflineModeIsEnabled, _HTTP_ERROR) as error:
            hub = _find_in_cache(repository, revision, error)
            report(f"The Hub cannot be asked; taking {repository} as it is in its cache, at {hub.commit[:12]}.")
            return hub
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    return HubCheckpoint(repository, revision or "main", str(info.sha), _needed(repository, sizes))


def _find_in_cache(repository: str, revision: str | None, error: Exception) -> HubCheckpoint:
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=["config.json"], local_files_only=True)
        )
    except LocalEntryNotFoundError:
        raise _not_cached(f"{repository} is not in the Hub's cache", error) from None
    missing = _missing_files(folder)
    if missing:
        raise _not_cached(f"{repository} is not whole in the Hub's cache: {', '.join(missing)} missing", error)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return HubCheckpoint(repository, folder.name, folder.name, _needed(repository, sizes))


def _missing_files(folder: Path) -> list[str]:
    """What a snapshot in the cache has not, because its download was interrupted or somebody needed only a part."""
    weights = ["weights"]
    for index_file, single_file in zip(INDEX_FILES, SINGLE_FILES, strict=True):
        if (folder / index_file).is_file():
            weights = sorted(set(read_json(folder / index_file).get("weight_map", {}).values()))
            break
        if (folder / single_file).is_file():
            weights = []
            break
    return [name for name in ("config.json", "tokenizer.json", *weights) if not (folder / name).is_file()]


def _not_cached(state: str, error: Exception) -> DownloadError:
    if constants.HF_HUB_OFFLINE:
        return DownloadError(
            f"{state}, and HF_HUB_OFFLINE forbids to fetch it.",
            "Unset HF_HUB_OFFLINE, or copy the checkpoint into a folder and give that folder.",
        )
    return DownloadError(
        f"{state}, and asking the Hub failed: {_first_line(error)}",
        f"Check the network and {_RUN_AGAIN}. Or give a folder with the checkpoint.",
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


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
    remedy = "Free some space, set HF_HOME to a larger disk, or use --low-disk (make convert LOW_DISK=1)."
    check_room(Path(constants.HF_HUB_CACHE), n_bytes, remedy)


def check_room(folder: Path, n_bytes: int, remedy: str) -> None:
    """Raise DownloadError when the file system of `folder` has no room for `n_bytes` more."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if n_bytes > free:
        raise DownloadError(
            f"Not enough disk space in {folder}: {format_bytes(n_bytes)} to download, {format_bytes(free)} free.",
            remedy,
        )


def download(hub: HubCheckpoint, report: Report) -> Path:
    """Fetch all the files into the Hub's cache, as far as they are not there; the snapshot's folder."""
    path = ""
    has_all = not hub.missing_bytes
    for number, (name, size) in enumerate(hub.files.items(), start=1):
        if not hub.is_cached(name):
            report(f"[{number}/{len(hub.files)}] {name}, {format_bytes(size)}")
        if number == 1 and not has_all:
            # By its name once, so that the cache knows the commit of this name when the Hub cannot be asked.
            fetch(hub, name, report, revision=hub.revision)
        path = fetch(hub, name, report)
    return Path(path).parent


def fetch(hub: HubCheckpoint, name: str, report: Report, folder: Path | None = None, revision: str = "") -> str:
    """Fetch one file into the Hub's cache, or into `folder`; its path."""

    def once() -> str:
        return str(hf_hub_download(hub.repository, name, revision=revision or hub.commit, local_dir=folder))

    return persistently(once, hub, name, report)


def persistently(once: Callable[[], str], hub: HubCheckpoint, name: str, report: Report) -> str:
    """Call `once`, and again when the connection breaks. Raises DownloadError."""
    with _explained(hub.repository, hub.commit):
        for remaining in reversed(range(TRIES)):
            try:
                return once()
            except _HTTP_ERROR as error:
                if isinstance(error, HfHubHTTPError) or not remaining:
                    raise
                report(f"The connection broke ({_first_line(error)}); fetching {name} again.")
    raise AssertionError("unreachable")


def cache_note(hub: HubCheckpoint) -> str:
    """How much the Hub's cache holds of this repository and how to free it; "" when it holds nothing."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return ""
    size = sum(
        repo.size_on_disk for repo in repositories if (repo.repo_type, repo.repo_id) == ("model", hub.repository)
    )
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
    except HFValidationError as error:
        raise DownloadError(
            f"{repository} cannot be the name of a repository on the Hub: {_first_line(error)}",
            "Give owner/name, or a folder; there is no folder of that name.",
        ) from None
    except LocalEntryNotFoundError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _not_cached(f"{repository} is not whole in the Hub's cache", cause) from None
    except (_HTTP_ERROR, OSError) as error:
        raise DownloadError(
            f"Downloading {repository} failed: {_first_line(error)}",
            f"Check the network and the free disk space, then {_RUN_AGAIN}.",
        ) from error
