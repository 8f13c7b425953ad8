"""Servers on this machine that serve files as the network does: complete, cut, changed, refused, or as a web page."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Served:
    """A file, and what its server does with it.

    content: the bytes of the file.
    etag: names the version of the file; None: the server names none.
    status: the HTTP status of the answer.
    ranges: whether the server can send a part of the file.
    lengths: whether the server says how many bytes it sends.
    cuts: for each request in turn, after how many bytes the connection is cut.
    pause_s: how long the server waits after each 64 KiB, in seconds.
    headers: further headers of the answer.
    """

    content: bytes
    etag: str | None = '"1"'
    status: int = 200
    ranges: bool = True
    lengths: bool = True
    cuts: list[int] = field(default_factory=list)
    pause_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """A server and the requests that it has received.

    url: its address.
    files: the files that it serves, by path.
    requests: the path and the range of each request.
    authorizations: the path and the header Authorization of each request.
    repositories: the data sets of its Hub, by OWNER/NAME.
    """

    url: str
    files: dict[str, Served] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    authorizations: list[tuple[str, str | None]] = field(default_factory=list)
    repositories: dict[str, "Repository"] = field(default_factory=dict)


@dataclass
class Repository:
    """A data set of a Hub.

    commits: the files of each commit, by path. The last commit is `main`.
    gated: the token that a request needs; None: everyone may download.
    cuts: as in `Served`.
    pause_s: as in `Served`.
    damaged: whether the server sends other bytes than those of the files.
    """

    commits: dict[str, dict[str, bytes]]
    gated: str | None = None
    cuts: list[int] = field(default_factory=list)
    pause_s: float = 0.0
    damaged: bool = False


@contextmanager
def running() -> Iterator[Server]:
    """Runs a server inside of a `with` block."""
    handler = type("Handler", (_Handler,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    server = handler.server_state = Server(f"http://127.0.0.1:{http.server_port}")
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server_state.requests.append((path, self.headers["Range"]))
        self.server_state.authorizations.append((path, self.headers["Authorization"]))
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        served = self.server_state.files.get(path) or self._of_hub(path.strip("/").split("/"))
        try:
            self._send(served or Served(b"nothing here", status=404), with_body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send(self, served: Served, with_body: bool) -> None:
        content, status, headers = served.content, served.status, dict(served.headers)
        asked = self.headers["Range"]
        if asked and served.ranges and status == 200:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                status, content = 416, b""
            else:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                status, content = 206, content[start:]
        if served.etag:
            headers["ETag"] = served.etag
        if served.lengths:
            headers["Content-Length"] = str(len(content))
        else:
            headers["Connection"] = "close"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        if served.cuts and status in (200, 206):
            content = content[: served.cuts.pop(0)]
            self.close_connection = True
        for start in range(0, len(content), 1 << 16):
            self.wfile.write(content[start : start + (1 << 16)])
            if served.pause_s:
                time.sleep(served.pause_s)

    def _of_hub(self, parts: list[str]) -> Served | None:
        """The answer of a Hub: information on a data set, the list of its files, or a file."""
        is_api = parts[:2] == ["api", "datasets"]
        name = "/".join(parts[2:4] if is_api else parts[1:3])
        if not is_api and parts[0] != "datasets":
            return None
        repository = self.server_state.repositories.get(name)
        if repository is None:
            return _refused(404, "RepoNotFound")
        main = list(repository.commits)[-1]
        what, revision, *rest = [*(parts[4:] if is_api else parts[3:]), "", ""][:2] + (
            parts[6:] if is_api else parts[5:]
        )
        commit = main if revision in ("", "main") else revision
        if what in ("", "revision"):
            return _json({"id": name, "sha": commit, "private": False, "tags": [], "siblings": []})
        authorised = repository.gated is None or self.headers["Authorization"] == f"Bearer {repository.gated}"
        if not authorised:
            return _refused(403 if self.headers["Authorization"] else 401, "GatedRepo")
        if commit not in repository.commits:
            return _refused(404, "RevisionNotFound")
        files = repository.commits[commit]
        if what == "tree":
            return _json([_about(path, content) for path, content in files.items()])
        content = files.get("/".join(rest))
        if content is None:
            return _refused(404, "EntryNotFound")
        sent = b"x" * len(content) if repository.damaged else content
        etag = hashlib.sha256(content).hexdigest()
        return Served(
            sent, f'"{etag}"', cuts=repository.cuts, pause_s=repository.pause_s, headers={"X-Repo-Commit": commit}
        )


def _json(content: Any) -> Served:
    return Served(json.dumps(content).encode(), None, headers={"Content-Type": "application/json"})


def _refused(status: int, code: str) -> Served:
    return Served(b"", None, status, headers={"X-Error-Code": code, "X-Error-Message": code})


def _about(path: str, content: bytes) -> dict[str, Any]:
    """What the Hub says of a file: a large file has its SHA-256, a small one the name that git gives to it."""
    about = {"type": "file", "path": path, "size": len(content)}
    blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
    if path.endswith((".txt", ".md")):
        return about | {"oid": blob}
    return about | {
        "oid": "0" * 40,
        "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130},
    }
