"""The server: repositories with commits, branches and pull requests, over HTTP, as the client of the Hub expects them.

    with running_hub() as hub:
        hub.token("write")               # a token with that right
        ... HF_ENDPOINT=hub.url HF_TOKEN=...
        hub.repositories["dataset", "me/results"].files()
        hub.requests                     # (method, path) of all that was asked

Files are "regular" but for Parquet where `hub.lfs` says so. Xet is not there: set HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository: its commits by hash, and the newest commit of each revision."""

    id: str
    kind: str
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    pull_requests: int = 0

    def commit(self, revision: str, files: Files) -> str:
        sha = secrets.token_hex(20)
        self.commits[sha] = files
        self.revisions[revision] = sha
        self.history.append(sha)
        return sha

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.revisions.get(revision, revision)]


@dataclass
class Hub:
    """What the server holds, and what it shall do wrong.

    rights: of each token: "write", "read" or "expired".
    lfs: whether Parquet files are large files.
    fault: is asked before each request; its (status, headers) are the answer then. "drop" closes the connection.
    lie: changes the content of a file that is downloaded.
    requests: the method and the path of each request.
    """

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    rights: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    lfs: bool = True
    fault: Callable[[str, str], Any] = lambda method, path: None
    lie: Callable[[str, bytes], bytes] = lambda path, content: content
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)

    def token(self, right: str) -> str:
        token = f"hf_{right}{secrets.token_hex(8)}"
        self.rights[token] = right
        return token

    def add(self, repository_id: str, kind: str = "dataset", **how: Any) -> Repository:
        found = Repository(repository_id, kind, **how)
        found.commit("main", {".gitattributes": b""})
        self.repositories[kind, repository_id] = found
        return found

    @property
    def commits(self) -> list[str]:
        return [path for method, path in self.requests if method == "POST" and "/commit/" in path]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class RefusedError(Exception):
    """An answer that is an error, with its status and headers."""

    def __init__(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.headers = status, code, headers or {}


class Handler(BaseHTTPRequestHandler):
    """Answers a request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at `requests`."""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        split = urlsplit(self.path)
        path, query = split.path, parse_qs(split.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = self.hub.fault(self.command, path)
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        try:
            if fault:
                raise RefusedError(fault[0], headers=fault[1])
            with self.hub.lock:
                status, headers, content = self._route(path, query, body)
        except RefusedError as refused:
            status, content = refused.status, json.dumps({"error": refused.code or "refused"}).encode()
            headers = {"Content-Type": "application/json", **refused.headers}
            if refused.code:
                headers |= {"X-Error-Code": refused.code, "X-Error-Message": refused.code}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": headers.get("Content-Length", str(len(content)))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815  # as http.server calls them

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # --- Rights. ---

    @property
    def right(self) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return "none"
        right = self.hub.rights.get(token, "expired")
        if right == "expired":
            raise RefusedError(401)
        return right

    def _repository(self, kind: str, name: str, *, write: bool = False) -> Repository:
        right, found = self.right, self.hub.repositories.get((kind, name))
        if found is None:
            raise RefusedError(404, "RepoNotFound")
        if found.gated:
            raise RefusedError(403, "GatedRepo")
        if write and right != "write":
            raise RefusedError(403 if right == "read" else 401)
        return found

    # --- Routes. ---

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path == "/api/whoami-v2":
            if self.right == "none":
                raise RefusedError(401)
            return self._json({"type": "user", "name": "me", "orgs": [], "auth": {}})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            self.hub.large[path.rpartition("/")[2]] = body
            return self._json({})
        if found := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(KINDS.get(found[1] or "models", "model"), found[2], json.loads(body))
        if found := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._api(KINDS[found[1]], found[2], found[3] or "", query, body)
        if found := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = KINDS.get(found[1] or "models", "model")
            return self._resolve(self._repository(kind, found[2]), unquote(found[3]), unquote(found[4]))
        raise RefusedError(404, "EntryNotFound")

    def _json(self, content: Any, status: int = 200, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json", **headers}, json.dumps(content).encode()

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if self.right != "write":
            raise RefusedError(403 if self.right == "read" else 401)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.hub.url}/{kind}s/{name}"
        if (kind, name) in self.hub.repositories:
            return self._json({"url": url, "error": "exists"}, 409)
        self.hub.add(name, kind)
        return self._json({"url": url})

    def _api(
        self, kind: str, name: str, rest: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        what, _, place = rest.partition("/")
        if what == "commit":
            return self._commit(kind, name, unquote(place), query, body)
        repository = self._repository(kind, name)
        if what == "preupload":
            return self._preupload(repository, unquote(place), json.loads(body))
        if what in ("", "revision"):
            sha = self._sha(repository, unquote(place) or "main")
            siblings = [{"rfilename": path} for path in repository.commits[sha]]
            return self._json({"id": name, "sha": sha, "siblings": siblings, "private": False, "tags": []})
        if what == "tree":
            revision, _, folder = place.partition("/")
            return self._tree(repository, unquote(revision), unquote(folder), query)
        if what == "paths-info":
            files = repository.commits[self._sha(repository, unquote(place))]
            asked = parse_qs(body.decode())["paths"]
            return self._json([self._entry(path, files[path]) for path in asked if path in files])
        if what == "refs":
            heads = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.revisions["main"]}]
            return self._json({"branches": heads, "tags": [], "converts": []})
        raise RefusedError(404, "EntryNotFound")

    def _sha(self, repository: Repository, revision: str) -> str:
        sha = repository.revisions.get(revision, revision)
        if sha not in repository.commits:
            raise RefusedError(404, "RevisionNotFound")
        return sha

    def _is_large(self, path: str) -> bool:
        return self.hub.lfs and path.endswith(".parquet")

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
        if self._is_large(path):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _tree(
        self, repository: Repository, revision: str, folder: str, query: dict[str, list[str]]
    ) -> tuple[int, dict[str, str], bytes]:
        files = repository.commits[self._sha(repository, revision)]
        prefix = f"{folder}/" if folder else ""
        inside = {path: content for path, content in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise RefusedError(404, "EntryNotFound")
        entries = [self._entry(path, content) for path, content in sorted(inside.items())]
        folders = {path.rpartition("/")[0] for path in inside} - {"", folder}
        parents = {"/".join(part.split("/")[:n]) for part in folders for n in range(1, part.count("/") + 2)}
        entries += [{"type": "directory", "path": path, "oid": git_sha1(path.encode())} for path in sorted(parents)]
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
        start, size = int(query.get("cursor", ["0"])[0]), 50
        more = {}
        if start + size < len(entries):
            address = urlsplit(self.path)
            kept = "&".join(f"{key}={values[0]}" for key, values in query.items() if key != "cursor")
            more["Link"] = f'<{self.hub.url}{address.path}?{kept}&cursor={start + size}>; rel="next"'
        return self._json(entries[start : start + size], **more)

    def _preupload(
        self, repository: Repository, revision: str, asked: dict[str, Any]
    ) -> tuple[int, dict[str, str], bytes]:
        if self.right == "none":
            raise RefusedError(401)
        files = repository.files(revision) if revision in repository.revisions else {}
        answers = []
        for file in asked["files"]:
            path, large = file["path"], self._is_large(file["path"])
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in files:
                answer["oid"] = hashlib.sha256(files[path]).hexdigest() if large else git_sha1(files[path])
            answers.append(answer)
        return self._json({"files": answers})

    def _batch(self, kind: str, name: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self._repository(kind, name)
        objects = []
        for one in asked["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}
            known = one["oid"] in self.hub.large
            objects.append({**one, **({} if known else {"actions": actions})})
        return self._json({"transfer": "basic", "objects": objects})

    def _commit(
        self, kind: str, name: str, revision: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        pull_request = "create_pr" in query
        repository = self._repository(kind, name, write=not pull_request)
        if self.right == "none":
            raise RefusedError(401)
        parts = [json.loads(line) for line in body.splitlines() if line.strip()]
        parent = parts[0]["value"].get("parentCommit")
        head = repository.revisions.get(revision) or self._sha(repository, revision)
        if parent and parent != head:
            raise RefusedError(412)
        files = dict(repository.commits[head])
        for part in parts[1:]:
            value = part["value"]
            if part["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif part["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                files.pop(value["path"], None)
        address = f"{self.hub.url}/{kind}s/{name}"
        if pull_request:
            repository.pull_requests += 1
            sha = repository.commit(f"refs/pr/{repository.pull_requests}", files)
            request = {"pullRequestUrl": f"{address}/discussions/{repository.pull_requests}"}
        else:
            sha, request = repository.commit(revision, files), {}
        return self._json({"commitOid": sha, "commitUrl": f"{address}/commit/{sha}", **request})

    def _resolve(self, repository: Repository, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        sha = self._sha(repository, revision)
        files = repository.commits[sha]
        if path not in files:
            raise RefusedError(404, "EntryNotFound", {"X-Repo-Commit": sha})
        true = files[path]
        content = self.hub.lie(path, true)
        tag = hashlib.sha256(true).hexdigest() if self._is_large(path) else git_sha1(true)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return 200, {**headers, "Content-Length": str(len(content))}, b""
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(found[1]), int(found[2]) if found[2] else len(content) - 1
            part = content[first : last + 1]
            return 206, {**headers, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}, part
        return 200, headers, content


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that runs until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
