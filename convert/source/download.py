"""A checkpoint from the Hugging Face Hub: only the files needed, through `huggingface_hub`.

It goes into the Hub's cache, where other programs find it too; `low_disk` has the other way.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    get_token,
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

from convert.errors import CheckpointError, DownloadError
from convert.source.checkpoint import CONFIG_FILES
from convert.source.json_files import read_json
from convert.source.other_forms import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config, other_form
from convert.source.source import Source, local_source
from convert.source.tokenizer_files import SENTENCEPIECE_FILES, TOKENIZER_FILES, TOKENIZERS
from convert.source.weight_files import INDEX_FILES, left_aside, weight_files
from weblab_local.sizes import byte_count

ADAPTER_FILES = [ADAPTER_CONFIG, *ADAPTER_WEIGHTS, *TOKENIZER_FILES, "chat_template.jinja", "README.md"]
OTHER_FILES = (*CONFIG_FILES, *SENTENCEPIECE_FILES)
TRIES = 5
"""How often a file is begun anew after the connection was reset."""

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
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


def find(repository: str, revision: str | None, report: Report, with_tokenizer: bool = True) -> HubCheckpoint:
    """Look a repository up; where the Hub cannot be asked, in the cache, which has to be whole.

    `with_tokenizer`: whether its tokenizer is wanted, too. Raises DownloadError, CheckpointError and, for an adapter
    and what else is no model to convert, UnsupportedModelError.
    """
    with _explained(repository, revision):
        try:
            info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except (OfflineModeIsEnabled, _HTTP_ERROR) as error:
            if _is_unauthorized(error):
                raise
            hub = _find_in_cache(repository, revision, error, with_tokenizer)
            report(f"The Hub cannot be asked; taking {repository} as it is in its cache, at {hub.commit[:12]}.")
            return hub
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    return HubCheckpoint(repository, revision or "main", str(info.sha), _needed(repository, info.sha, sizes, report))


def _find_in_cache(repository: str, revision: str | None, error: Exception, with_tokenizer: bool) -> HubCheckpoint:
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=["config.json"], local_files_only=True)
        )
    except LocalEntryNotFoundError:
        raise _not_cached(f"{repository} is not in the Hub's cache", error) from None
    missing = _missing_files(folder, with_tokenizer)
    if missing:
        raise _not_cached(f"{repository} is not whole in the Hub's cache: {', '.join(missing)} missing", error)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return HubCheckpoint(repository, folder.name, folder.name, _needed(repository, folder.name, sizes, lambda _: None))


def _missing_files(folder: Path, with_tokenizer: bool) -> list[str]:
    """What a snapshot in the cache has not, because its download was interrupted or somebody needed only a part."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    found = weight_files(names)
    wanted = ["config.json"]
    if with_tokenizer and not names.intersection(TOKENIZERS):
        wanted.append("tokenizer.json")
    if found is None:
        wanted.append("weights")
    elif found.index:
        wanted += sorted(set(read_json(folder / found.index).get("weight_map", {}).values()))
    return [name for name in wanted if name not in names]


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


def _needed(repository: str, commit: str | None, sizes: Mapping[str, int], report: Report) -> dict[str, int]:
    """The files to fetch with their sizes: weights in one form, and the small files that say what they are."""
    shards = {index: _shards_of(index, sizes) for index in INDEX_FILES}
    found = weight_files([name for name in sizes if name not in INDEX_FILES or shards[name]])
    if found is None:
        raise other_form(repository, sizes, _adapter(repository, commit, sizes)) or CheckpointError(
            f"{repository} holds no weights in .safetensors or .bin that could be converted.",
            "Repositories of GGUF or GPTQ files are results of a conversion; give the original checkpoint.",
        )
    if found.left_aside:
        report(left_aside(found))
    weights = [found.index, *shards[found.index]] if found.index else [found.single]
    has_tokenizer = any(name in sizes for name in TOKENIZERS)
    others = CONFIG_FILES if has_tokenizer else OTHER_FILES
    return {name: sizes[name] for name in (*others, *weights) if name in sizes}


def _shards_of(index: str, sizes: Mapping[str, int]) -> list[str]:
    suffix = Path(index.removesuffix(".index.json")).suffix
    return sorted(name for name in sizes if _SHARD.fullmatch(name) and name.endswith(suffix))


def _adapter(repository: str, commit: str | None, sizes: Mapping[str, int]) -> Mapping[str, Any] | None:
    """What an adapter's repository says about its base, None for another repository."""
    if ADAPTER_CONFIG not in sizes:
        return None
    with _explained(repository, commit):
        return adapter_config(Path(hf_hub_download(repository, ADAPTER_CONFIG, revision=commit)).parent)


def check_cache_room(n_bytes: int) -> None:
    """Raise DownloadError when the file system of the Hub's cache has no room for `n_bytes` more."""
    remedy = "Free some space, set HF_HOME to a larger disk, or use --low-disk (make convert LOW_DISK=1)."
    check_room(Path(constants.HF_HUB_CACHE), n_bytes, remedy)


def check_room(folder: Path, n_bytes: int, remedy: str) -> None:
    """Raise DownloadError when the file system of `folder` has no room for `n_bytes` more."""
    free = shutil.disk_usage(_existing(folder)).free
    if n_bytes > free:
        raise DownloadError(
            f"Not enough disk space in {folder}: {byte_count(n_bytes)} to download, {byte_count(free)} free.",
            remedy,
        )


def shares_disk_with_cache(folder: Path) -> bool:
    """Whether `folder`, which exists, lies on the same file system as the Hub's cache."""
    return _existing(Path(constants.HF_HUB_CACHE)).stat().st_dev == folder.stat().st_dev


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def fetch_small(hub: HubCheckpoint, report: Report) -> Path:
    """Fetch all but the weights into the Hub's cache, as far as they are not there; the snapshot's folder."""
    small = [name for name in hub.files if name not in hub.shards]
    if hub.missing_bytes and small:
        # By its name once, so that the cache knows the commit of this name when the Hub cannot be asked.
        fetch(hub, small[0], report, revision=hub.revision)
    return _fetch_all(hub, small, report)


def download(hub: HubCheckpoint, report: Report) -> Path:
    """Fetch all the files into the Hub's cache, as far as they are not there; the snapshot's folder."""
    return _fetch_all(hub, hub.files, report)


def _fetch_all(hub: HubCheckpoint, names: Iterable[str], report: Report) -> Path:
    path = ""
    for number, (name, size) in enumerate(hub.files.items(), start=1):
        if name in names:
            if not hub.is_cached(name):
                report(f"[{number}/{len(hub.files)}] {name}, {byte_count(size)}")
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


def fetch_adapter(repository: str, report: Report) -> Source:
    """Fetch an adapter's files into the Hub's cache; as they are there, where the Hub cannot be asked."""
    report(f"Looking for the adapter {repository} on the Hub.")
    with _explained(repository, None):
        return local_source(Path(snapshot_download(repository, allow_patterns=ADAPTER_FILES)))


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
        f"The Hub's cache holds {byte_count(size)} of {hub.repository}, no longer needed to run the model.\n"
        f"To free it: hf cache rm model/{hub.repository}"
    )


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    page = f"{constants.ENDPOINT}/{repository}"
    try:
        with _token_explained(repository):
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


@contextmanager
def _token_explained(repository: str) -> Iterator[None]:
    """Say of a refused token that it is one: with it the Hub answers every question by 401, on public models too."""
    try:
        yield
    except HfHubHTTPError as error:
        if not _is_unauthorized(error):
            raise
        in_variable = any(os.environ.get(name) for name in _TOKEN_VARIABLES)
        refused = f"The Hub refuses the token {'in HF_TOKEN' if in_variable else 'that `hf auth login` saved'}: " + (
            "it has expired or is wrong."
        )
        if _is_public(repository):
            raise DownloadError(
                f"{refused} {repository} is public: this model needs no token.",
                f"{'Unset HF_TOKEN' if in_variable else 'Type `hf auth logout`'} and run this again.",
            ) from None
        raise DownloadError(
            refused,
            f"Make a new one on {constants.ENDPOINT}/settings/tokens and "
            f"{'put it into HF_TOKEN' if in_variable else 'type `hf auth login`'}.",
        ) from None


def _is_unauthorized(error: Exception) -> bool:
    """Whether the Hub refused the token that was sent. Without one, 401 means that a repository is not there."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code == 401 and get_token() is not None


def _is_public(repository: str) -> bool:
    try:
        return not HfApi(token=False).model_info(repository).gated
    except (_HTTP_ERROR, OSError):
        return False
