"""`--low-disk`: a checkpoint from the Hub, shard by shard, each gone before the next is fetched.

In a folder of our own, so that nothing the user keeps in the Hub's cache is ever deleted.
"""

import importlib.util
import re
import shutil
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but loaded lazily

from convert.errors import CheckpointError, DownloadError
from convert.source.checkpoint import Checkpoint, open_checkpoint
from convert.source.download import HubCheckpoint, Report, check_room, fetch, persistently
from convert.source.weight_files import INDEX_FILES
from weblab_local.files import let_go, rename, sha256
from weblab_local.sizes import byte_count

_SHA256 = re.compile("[0-9a-f]{64}")


class LowDiskFolder:
    """A folder of our own that holds the small files and one shard at a time; a context, after which it is gone.

    If the first shard is not finished when the context ends by a broken connection or Ctrl-C, the folder stays, and
    the next run goes on from there. It cannot go on from a later shard, since what was converted is not kept.
    """

    def __init__(self, hub: HubCheckpoint, parent: Path, report: Report) -> None:
        self.hub = hub
        self.path = parent / f".download-{hub.repository.replace('/', '--')}-{hub.commit[:12]}"
        self._report = report

    def __enter__(self) -> "LowDiskFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        let_go(error)
        interrupted = kind is not None and issubclass(kind, (DownloadError, KeyboardInterrupt))
        if interrupted and self._bytes_of(self.hub.shards[0]):
            self._report(f"What was fetched is kept in {self.path}; the same command goes on from there.")
        else:
            shutil.rmtree(self.path, ignore_errors=True)

    def fetch_small(self) -> Path:
        """Fetch all but the shards into the folder, and return it. Raises DownloadError where a shard has no room."""
        check_room(self.path.parent, self.missing_bytes, "Free some space, or choose another --output.")
        for name in self.hub.files:
            if name not in self.hub.shards:
                fetch(self.hub, name, self._report, self.path)
        return self.path

    def open(self, tokenizer: Path | None = None) -> Checkpoint:
        """Return the checkpoint, whose shards come when they are opened and go when they are done."""
        self.fetch_small()
        if not any(name in INDEX_FILES for name in self.hub.files):
            self._fetch_shard(self.hub.shards[0])
        return open_checkpoint(self.path, self._fetch_shard, self._release, tokenizer)

    @property
    def missing_bytes(self) -> int:
        """What the folder will grow by at most."""
        return max(
            0, max(self.hub.files[shard] for shard in self.hub.shards) - sum(map(self._bytes_of, self.hub.shards))
        )

    def _bytes_of(self, shard: str) -> int:
        return sum(path.stat().st_size for path in (self.path / shard, self._part(shard)) if path.is_file())

    def _part(self, shard: str) -> Path:
        return self.path / f"{shard}.part"

    def _fetch_shard(self, shard: str) -> None:
        for other in self.hub.shards:
            if other != shard:
                self._release(other)
        if (self.path / shard).is_file():
            return
        if shard not in self.hub.files:
            raise CheckpointError(f"{self.hub.repository} holds no {shard}, which its index names.")
        self._report(f"{shard}, {byte_count(self.hub.files[shard])}")
        persistently(lambda: self._download(shard), self.hub, shard, self._report)

    def _download(self, shard: str) -> str:
        """Go on with the .part of an earlier try or run, which huggingface_hub does only within one call.

        What lies in the Hub's cache or comes by xet, which fetches in another way, is left to huggingface_hub.
        """
        url = hf_hub_url(self.hub.repository, shard, revision=self.hub.commit)
        metadata = get_hf_file_metadata(url)
        by_xet = metadata.xet_file_data is not None and _has_xet()
        if by_xet or not _SHA256.fullmatch(metadata.etag or "") or self.hub.is_cached(shard):
            return str(hf_hub_download(self.hub.repository, shard, revision=self.hub.commit, local_dir=self.path))
        part, size = self._part(shard), self.hub.files[shard]
        if self._bytes_of(shard) > size:
            part.unlink()
        with part.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=shard,
            )
        if sha256(part) != metadata.etag:
            part.unlink()
            raise DownloadError(f"{shard} arrived damaged: its SHA-256 is wrong.", "Run this again to fetch it anew.")
        rename(part, self.path / shard)
        return str(self.path / shard)

    def _release(self, shard: str) -> None:
        (self.path / shard).unlink(missing_ok=True)
        self._part(shard).unlink(missing_ok=True)


def _has_xet() -> bool:
    """Whether huggingface_hub fetches by xet what is stored so."""
    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None
