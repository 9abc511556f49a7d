"""A local stand-in for the Hugging Face Hub, which the real `huggingface_hub` talks to through HF_ENDPOINT.

The client reads its environment when it is imported, so it has to run in a process of its own:

    with HubServer() as server:
        server.add("org/model", folder)
        subprocess.run([sys.executable, "-c", script], env=environment(server, tmp_path / "home"), check=True)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

_REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_API = re.compile(
    rf"/api/(?:models|datasets)/{_REPO}(?:/(?P<kind>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
_FILE = re.compile(rf"(?P<cdn>/cdn)?(?:/datasets)?/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(?=.*\d)(\d*)-(\d*)")


@dataclass
class HubRepo:
    """A repository of a model or of data: the folder `main` serves, and further revisions.

    `revisions` maps names ("refs/pr/4", "v1.0") or commits to folders; `find` tells the commit a name stands for.
    A gated repository is listed for anyone, as on the real Hub, but its files only go to a token in `granted`, or to
    any token if that is None.
    """

    folder: Path
    commit: str
    revisions: dict[str, Path] = field(default_factory=dict)
    gated: bool = False
    granted: set[str] | None = None

    def find(self, revision: str) -> tuple[str, Path | None]:
        """The commit of a branch, tag, ref or commit, and its folder or None if there is no such revision."""
        folders = {"main": self.folder, **self.revisions}
        commits = {name: name if re.fullmatch("[0-9a-f]{40}", name) else _sha1(self.commit + name) for name in folders}
        commits["main"] = self.commit
        commit = commits.get(revision, revision)
        return commit, next((folders[name] for name, at in commits.items() if at == commit), None)

    def admits(self, token: str | None) -> bool:
        return not self.gated or (token is not None and (self.granted is None or token in self.granted))


@dataclass
class Request:
    """A request the server saw; `sent` counts the bytes of the answer's body given to the connection."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0


class HubServer:
    """The server, running while its context is open; `requests` is in the order of arrival.

    The next file body larger than `cut_after` breaks off after so many bytes, once (it is None again then), with the
    connection closed in good order or, if `cut_by_reset`, reset, where the client may not see all these bytes. With
    `redirect`, files of 1 MB or more redirect to another host name, as the real Hub sends a client to its CDN.
    Any request with a token that is not among `valid_tokens` is refused, unless they are None; with
    `code_of_wrong_tokens`, which decides what the client makes of it.
    """

    def __init__(self) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.requests: list[Request] = []
        self.cut_after: int | None = None
        self.cut_by_reset = False
        self.redirect = False
        self.valid_tokens: set[str] | None = None
        self.code_of_wrong_tokens = ""
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def add(self, repo_id: str, folder: Path, **kw: Any) -> HubRepo:
        """Serve `folder` as `repo_id`; `kw` are further fields of HubRepo."""
        self.repos[repo_id] = HubRepo(folder, **{"commit": _sha1(repo_id)} | kw)
        return self.repos[repo_id]

    def take_cut(self, length: int) -> int:
        """How much to send of a file body of `length`."""
        with self._lock:
            if self.cut_after is not None and self.cut_after < length:
                length, self.cut_after = self.cut_after, None
        return length

    def downloads(self, name: str) -> list[Request]:
        """The GET requests for the file `name`, without those answered by a redirect."""
        of_file = [request for request in self.requests if request.path.endswith("/" + quote(name))]
        return [request for request in of_file if request.method == "GET" and request.status != 302]


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """The environment of a client of `server` with its cache in `home`, without our own settings, token or proxy."""
    own = re.compile(r"HF_|HUGGINGFACE_|HUGGING_FACE_|TRANSFORMERS_|(HTTPS?|ALL)_PROXY$", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if not own.match(name)} | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }


class _Handler(BaseHTTPRequestHandler):
    """Answers one request per connection, so that no idle connection outlives the server."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the requests are recorded instead."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.seen = Request(self.command, self.path, self.headers.get("Range"), token)
        self.hub.requests.append(self.seen)
        match = _API.fullmatch(url.path) or _FILE.fullmatch(url.path)
        repo = self.hub.repos.get(unquote(match["repo"])) if match else None
        if token and self.hub.valid_tokens is not None and token not in self.hub.valid_tokens:
            self._refuse(401, self.hub.code_of_wrong_tokens, "Invalid credentials in Authorization header")
        elif match and repo:
            self._answer(match, repo, token, "recursive=true" in url.query.lower())
        else:
            self._refuse(404 if token or not match else 401, "RepoNotFound" if match else "", "Not found")

    do_HEAD = do_GET

    def _answer(self, match: re.Match[str], repo: HubRepo, token: str | None, recursive: bool) -> None:
        commit, folder = repo.find(unquote(match["revision"] or "main"))
        path = (folder or Path()) / unquote(match["path"] or "")
        if folder is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        elif match.re is _API and match["kind"] != "tree":
            tree = (entry for entry in _tree(folder, folder, recursive=True) if entry["type"] == "file")
            files = [{**file, "rfilename": file["path"], "blobId": file["oid"]} for file in tree]
            self._json({"id": match["repo"], "sha": commit, "gated": repo.gated and "manual", "siblings": files})
        elif match.re is _API and path.is_dir():
            self._json(_tree(folder, path, recursive))
        elif match.re is _FILE and not match["cdn"] and not repo.admits(token):
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {match['repo']} is restricted.")
        elif match.re is _API or ".." in path.parts or not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        else:
            self._file(path, commit, redirect=self.hub.redirect and not match["cdn"])

    def _refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        """An error as the Hub reports it; at an http:// address the client goes by the code, not by a mere 401."""
        coded = {"X-Error-Code": code} if code else {}
        self._json({"error": message}, status, **coded, **{"X-Error-Message": message}, **headers)

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self._head(status, len(body), {"Content-Type": "application/json", **headers})
        if self.command == "GET":
            self.seen.sent = len(body)
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in {"Connection": "close", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _file(self, path: Path, commit: str, redirect: bool) -> None:
        size, oid, sha256 = _blob(path, path.stat().st_mtime_ns)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha256 or oid}"', "Accept-Ranges": "bytes"}
        if sha256:
            headers |= {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{sha256}"'}
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        first, last = asked.groups() if asked else ("0", "")
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if sha256 and redirect:
            location = f"http://localhost:{self.hub.url.rpartition(':')[2]}/cdn{self.path}"
            self._head(302, 0, headers | {"Location": location})
        elif asked and start >= end:
            self._head(416, 0, headers | {"Content-Range": f"bytes */{size}"})
        else:
            part = {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if asked else {}
            self._head(206 if asked else 200, end - start, headers | part)
            if self.command == "GET":
                self._body(path, start, end - start)

    def _body(self, path: Path, start: int, length: int) -> None:
        left = self.hub.take_cut(length)
        with path.open("rb") as file, suppress(OSError):
            file.seek(start)
            while block := file.read(min(1 << 16, left)):
                left -= len(block)
                self.seen.sent += len(block)
                self.wfile.write(block)
        if self.seen.sent < length and self.hub.cut_by_reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _tree(folder: Path, under: Path, recursive: bool) -> list[dict[str, Any]]:
    """The listing of the folder `under`, with the keys of a tree and, within `lfs`, also those of a model's info."""
    entries: list[dict[str, Any]] = []
    for path in sorted(under.rglob("*") if recursive else under.iterdir()):
        entry = {"type": "directory", "oid": _sha1(path.name), "size": 0, "path": path.relative_to(folder).as_posix()}
        if path.is_file():
            size, oid, sha256 = _blob(path, path.stat().st_mtime_ns)
            entry |= {"type": "file", "oid": oid, "size": size}
            if sha256:
                entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 134}
        entries.append(entry)
    return entries


@cache
def _blob(path: Path, _mtime_ns: int) -> tuple[int, str, str | None]:
    """The size of a file, its git blob id and, if large, its SHA-256; the blob of a large file is an LFS pointer."""
    content, sha256 = path.read_bytes(), None
    size = len(content)
    if size >= 1_000_000:
        sha256 = hashlib.sha256(content).hexdigest()
        content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return size, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), sha256


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
