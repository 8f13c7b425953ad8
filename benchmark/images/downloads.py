"""Downloads: files from the Hub or from a URL, verified and put in their place under the data folder.

Until all of it is there and verified, nothing stands in that place. What is interrupted goes on where it was; archives
are kept in `.downloads`, so that other parts of one need no network. `.fetched` says where each thing came from.
"""

import errno
import hashlib
import json
import os
import posixpath
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.client import HTTPException
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from benchmark.errors import UserError
from benchmark.files import write_atomically
from benchmark.images.archives import ArchiveError, unpack
from benchmark.images.sources import HubSource, ManualSource, Source, UrlSource

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
_CHUNK_BYTES = 1 << 20
_PATIENCE_S = 30
_TRY_AGAIN = "run the same command again: it goes on where it stopped"


class DownloadError(UserError):
    """A source that did not deliver; the message says why and what to do, in one line."""


class _CutError(Exception):
    """A connection that cannot be made, or ended before the file did."""


class Fetched(BaseModel):
    """Where a file or folder came from. checksums: of what was downloaded, by name. date: UTC.

    verified: whether it was loaded, too, and is what its entry says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    revision: str | None = None
    checksums: dict[str, str]
    date: str
    verified: bool = False


def fetch(
    sources: Sequence[Source], target: Path, data_dir: Path, tell: Callable[[str], None] = lambda line: None
) -> Fetched | None:
    """Puts a file or folder at `target`, below `data_dir`, from the first source that delivers.

    Leaves what stands there alone, and returns what is known of it: nothing, if a person put it there. An archive is
    unpacked, unless the target is named like one. tell: is told of the sources that fail, and of waiting.
    Raises DownloadError when the last one fails, and OSError for what is wrong with the disk.
    """
    if is_there(target):  # in a folder that may be for reading only
        return fetched(target, data_dir)
    if not Path(os.path.abspath(target)).is_relative_to(os.path.abspath(data_dir)):  # as a suite of others may say
        raise DownloadError(f"{target} lies outside of {data_dir}, where nothing is put; name a place below it")
    downloads = data_dir / ".downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    with _alone(downloads, str(target.relative_to(data_dir)), tell):
        if is_there(target):  # since another process has put it there meanwhile
            return fetched(target, data_dir)
        for number, source in enumerate(sources, 1):
            try:
                return _fetch(source, target, data_dir, tell)
            except DownloadError as error:
                problem = f"{source}: {error}" if not isinstance(source, ManualSource) else str(error)
                if number == len(sources):
                    raise DownloadError(problem) from None
                tell(f"source {number} of {len(sources)} failed: {problem}")
    raise DownloadError(f"no source is known; put it at {target} by hand")


def is_there(target: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return target.is_file() or (target.is_dir() and any(target.iterdir()))


def fetched(target: Path, data_dir: Path) -> Fetched | None:
    """Where a target came from, if it was fetched."""
    try:
        return Fetched.model_validate_json(_manifest(target, data_dir).read_bytes())
    except (OSError, ValueError):  # as for a target that lies elsewhere
        return None


def mark_verified(target: Path, data_dir: Path) -> None:
    """Notes that what was fetched is what its entry says."""
    known = fetched(target, data_dir)
    if known and not known.verified:
        _write_manifest(known.model_copy(update={"verified": True}), target, data_dir)


def _manifest(target: Path, data_dir: Path) -> Path:
    return data_dir / ".fetched" / f"{target.relative_to(data_dir).as_posix()}.json"


def _write_manifest(known: Fetched, target: Path, data_dir: Path) -> None:
    file = _manifest(target, data_dir)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, known.model_dump_json(indent=1).encode() + b"\n")


@contextmanager
def _alone(downloads: Path, what: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Keeps other processes that fetch the same away."""
    folder = downloads / "locks"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        tell(f"waiting for another process that fetches {what}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Download:
    """Verified files by their names at the source. checksums: by name."""

    files: dict[str, Path]
    checksums: dict[str, str]
    revision: str | None = None


def _fetch(source: Source, target: Path, data_dir: Path, tell: Callable[[str], None]) -> Fetched:
    """From one source: what is new is made beside the target, and takes its name when its origin is written down."""
    if isinstance(source, ManualSource):
        raise DownloadError(f"it has to be fetched by hand: {source.manual}; put it at {target}")
    downloads = data_dir / ".downloads"
    new = target.with_name(f".{target.name}.new")
    with _alone(downloads, _key(source), tell):
        download = _from_url(source, downloads) if isinstance(source, UrlSource) else _from_hub(source, downloads)
        known = Fetched(
            source=source.url if isinstance(source, UrlSource) else source.hub,
            revision=download.revision,
            checksums=download.checksums,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(new)
        try:
            archives = _build(source, download, target, new)
            _write_manifest(known, target, data_dir)
            os.replace(new, target)
        finally:
            _remove(new)
        if not archives:
            for file in download.files.values():
                file.unlink()
    return known


def _build(source: HubSource | UrlSource, download: _Download, target: Path, new: Path) -> bool:
    """Makes of a download what belongs at the target. Returns whether it was archives, which may hold more."""
    names = list(download.files)
    if len(names) == 1 and PurePosixPath(names[0]).suffix.lower() == target.suffix.lower() != "":
        _link(download.files[names[0]], new)
        return False
    if isinstance(source, UrlSource) or all(name.lower().endswith(_ARCHIVES) for name in names):
        for archive in download.files.values():
            _unpack(archive, source.inside, new)
        return True
    top = _top(source.files)
    for name, file in download.files.items():
        _link(file, new / PurePosixPath(name).relative_to(top))
    return False


def _link(file: Path, new: Path) -> None:
    """Gives a file a second name, or copies it where that lies on another disk."""
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, new)
    except OSError:
        shutil.copyfile(file, new)


def _unpack(archive: Path, inside: str, new: Path) -> None:
    """Raises DownloadError; a damaged archive is deleted."""
    try:
        unpack(archive, inside, new)
    except ArchiveError as error:
        if not error.damaged:
            raise DownloadError(f"{error} (the archive is kept as {archive})") from None
        archive.unlink()
        raise DownloadError(f"{error}, and was deleted; run the same command to download it again") from None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _key(source: HubSource | UrlSource) -> str:
    """What a download is kept as. Mirrors of one file share it, where its checksum is known."""
    if isinstance(source, HubSource):
        return f"hub-{source.hub.replace('/', '--')}"
    if source.md5:
        return f"md5-{source.md5}"
    return f"sha256-{source.sha256}" if source.sha256 else f"url-{hashlib.sha256(source.url.encode()).hexdigest()[:32]}"


def _digest(file: Path, algorithm: str) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


# From a URL


def _from_url(source: UrlSource, downloads: Path) -> _Download:
    name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(source.url).path)).name
    kept = downloads / _key(source)
    if not kept.is_file():
        partial = kept.with_name(f"{kept.name}.part")
        _complete(source, partial)
        _verify(source, partial)
        os.replace(partial, kept)
        _version_file(partial).unlink(missing_ok=True)
    checksum = f"md5:{source.md5}" if source.md5 else f"sha256:{source.sha256 or _digest(kept, 'sha256')}"
    return _Download({name: kept}, {name: checksum})


def _complete(source: UrlSource, partial: Path) -> None:
    """Downloads what a partial file lacks; a connection that is cut is made again, as long as that brings more."""
    furthest = _size(partial)
    while True:
        try:
            _go_on(source, partial)
            return
        except _CutError as cut:
            if _size(partial) <= furthest:
                host = urllib.parse.urlsplit(source.url).netloc
                raise DownloadError(f"cannot reach {host}, or it hung up ({cut}); {_TRY_AGAIN}") from None
            furthest = _size(partial)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _version_file(partial: Path) -> Path:
    """Says which version of which URL a partial file is of."""
    return partial.with_name(f"{partial.name}.json")


def _go_on(source: UrlSource, partial: Path) -> None:
    """One request: for the rest of a partial file, or for all of it where nothing tells that the rest belongs to it."""
    try:
        begun = json.loads(_version_file(partial).read_bytes())
    except (OSError, ValueError):
        begun = {}
    identified = begun.get("etag") or begun.get("last_modified") or source.md5 or source.sha256
    start = _size(partial) if begun.get("url") == source.url and identified else 0
    if start and start == begun.get("size"):
        return
    with _request(source.url, start) as response:
        version = _version(source.url, response, start)
        if response.status == HTTPStatus.OK:
            start = 0
        elif start and version != begun:
            _remove(partial)  # and so all of it is asked for
            _go_on(source, partial)
            return
        if not start:
            _remove(partial)
            write_atomically(_version_file(partial), json.dumps(version).encode())
        _append(response, partial, start, version["size"])


def _request(url: str, start: int) -> Any:
    """The response to a request for a file, from the byte `start` on."""
    headers = {"User-Agent": "ood-benchmark"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_PATIENCE_S)
    except urllib.error.HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error
        raise DownloadError(_refusal(error.code)) from None
    except (OSError, HTTPException) as error:
        raise _CutError(getattr(error, "reason", error)) from None


def _refusal(status: int) -> str:
    """What an HTTP status means for somebody who wants a file."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"HTTP {status}: it is not given to everyone; look in a browser what its owner asks for"
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return f"HTTP {status}: it is not there; look where its owner has moved it, and correct the source"
    return f"HTTP {status}: the server has a problem; {_TRY_AGAIN}, later"


def _version(url: str, response: Any, start: int) -> dict[str, Any]:
    """What tells a file from a later one at the same URL. Of a part that starts elsewhere, nothing."""
    headers = response.headers
    size = headers["Content-Length"]
    if start and response.status != HTTPStatus.OK:
        span, _, size = (headers["Content-Range"] or "").partition("/")
        if not span.startswith(f"bytes {start}-"):
            return {}
    return {
        "url": url,
        "etag": headers["ETag"],
        "last_modified": headers["Last-Modified"],
        "size": int(size) if size and size.isdecimal() else None,
    }


def _append(response: Any, partial: Path, start: int, size: int | None) -> None:
    with (
        partial.open("ab") as file,
        tqdm(initial=start, total=size, desc="downloading", unit="B", unit_scale=True, disable=None) as progress,
    ):
        while chunk := _read(response):
            file.write(chunk)
            progress.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if size is not None and _size(partial) != size:
        raise _CutError(f"{_size(partial):,} of {size:,} bytes came")


def _read(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)  # what is there, so that little is lost with the process
    except (OSError, HTTPException) as error:
        raise _CutError(str(error) or type(error).__name__) from None


def _verify(source: UrlSource, partial: Path) -> None:
    """Raises DownloadError for what is not the file that is meant, and deletes it."""
    algorithm, expected = ("md5", source.md5) if source.md5 else ("sha256", source.sha256)
    with partial.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        problem = "a web page came in place of the file, such as one to log in or to confirm; use a browser"
    elif expected and (digest := _digest(partial, algorithm)) != expected:
        problem = (
            f"its {algorithm} is {digest}, {expected} expected, so it was deleted; try again, and if that comes out "
            f"the same, ask its owner what was changed before you correct `{algorithm}`"
        )
    else:
        return
    _remove(partial)
    _remove(_version_file(partial))
    raise DownloadError(problem)


# From the Hub


def _from_hub(source: HubSource, downloads: Path) -> _Download:
    """Raises DownloadError for all that the Hub refuses. The files of a commit never change, so a list of them is kept.

    A file that is interrupted starts again, one that is complete does not.
    """
    from huggingface_hub import HfApi, hf_hub_download  # here, since it is slow to import

    try:
        revision = source.revision or str(HfApi().dataset_info(source.hub).sha)
        folder = downloads / _key(source) / revision
        checksums = _listed(source, revision, folder)
        files = {}
        for name, checksum in checksums.items():
            path = hf_hub_download(source.hub, name, repo_type="dataset", revision=revision, local_dir=folder)
            files[name] = Path(path)
            if not _is(files[name], checksum):
                files[name].unlink()
                raise DownloadError(f"{name} came damaged, and was deleted; {_TRY_AGAIN}")
    except DownloadError:
        raise
    except Exception as error:  # its transport, and that one's exceptions, change with its version
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise
        raise DownloadError(_hub_refusal(error, source)) from None
    return _Download(files, checksums, revision)


def _listed(source: HubSource, revision: str, folder: Path) -> dict[str, str]:
    """The checksums of a commit's files that are meant, by path."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    known = folder / f".{hashlib.sha256(json.dumps(source.files).encode()).hexdigest()[:16]}.json"
    if known.is_file():
        return dict(json.loads(known.read_bytes()))
    tree = HfApi().list_repo_tree(source.hub, recursive=True, revision=revision, repo_type="dataset")
    checksums = {
        file.path: f"sha256:{file.lfs.sha256}" if file.lfs else f"git-sha1:{file.blob_id}"
        for file in tree
        if isinstance(file, RepoFile) and any(fnmatchcase(file.path, pattern) for pattern in source.files)
    }
    for pattern in source.files:
        if not any(fnmatchcase(path, pattern) for path in checksums):
            raise DownloadError(f"it has no file {pattern} at {revision}; correct `files` of the source")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(known, json.dumps(checksums).encode())
    return checksums


def _is(file: Path, checksum: str) -> bool:
    algorithm, _, expected = checksum.partition(":")
    if algorithm == "sha256":
        return _digest(file, "sha256") == expected
    content = file.read_bytes()  # of files that are small enough for git
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest() == expected


def _top(patterns: Sequence[str]) -> str:
    """The deepest folder that all patterns name in full."""
    folders = [takewhile(lambda part: not set("*?[") & {*part}, PurePosixPath(name).parent.parts) for name in patterns]
    return posixpath.commonpath([posixpath.join("", *parts) for parts in folders])


def _hub_refusal(error: Exception, source: HubSource) -> str:
    """What an exception of huggingface_hub means for somebody who wants a data set."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{source.hub}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to reach it; unset that, and run the same command again"
    if isinstance(error, errors.GatedRepoError) or (source.gated and status in (401, 403)):
        return f"it is gated: accept its terms at {page}, then `hf auth login`, or set HF_TOKEN, and try again"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no commit {source.revision}; look at {page}, and correct `revision` of the source"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such data set, or it is private; look at {page}, and `hf auth login` if it is yours"
    if status:
        return _refusal(status)
    return f"cannot reach it ({str(error).partition(chr(10))[0] or type(error).__name__}); {_TRY_AGAIN}"
