"""Downloads from a URL. An interrupted download continues where it stopped; a complete one is verified."""

import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from benchmark.files import write_atomically
from benchmark.images.download_results import TRY_AGAIN, Download, DownloadError, explain_status, file_digest
from benchmark.images.sources import UrlSource
from benchmark.public import public_message

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30


class _CutError(Exception):
    """A connection that could not be made, or that ended before the file did."""


def download_from_url(source: UrlSource, downloads: Path) -> Download:
    """The file of a URL, from `downloads` where it is there already, else from the network.

    source: the URL, with a checksum where one is known.
    downloads: the folder that keeps complete and partial downloads.
    Raises DownloadError where the server does not give the file, or gives another one.
    """
    name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(source.url).path)).name
    complete = downloads / source.download_key
    if not complete.is_file():
        partial = complete.with_name(f"{complete.name}.part")
        _download_rest(source, partial)
        _verify_file(source, partial)
        os.replace(partial, complete)
        _version_file(partial).unlink(missing_ok=True)
    checksum = f"md5:{source.md5}" if source.md5 else f"sha256:{source.sha256 or file_digest(complete, 'sha256')}"
    return Download({name: complete}, {name: checksum})


def _download_rest(source: UrlSource, partial: Path) -> None:
    """Completes a partial file. After a cut it connects again, as long as each connection brings more bytes."""
    furthest = _size_bytes(partial)
    while True:
        try:
            _request_rest(source, partial)
            return
        except _CutError as cut:
            if _size_bytes(partial) <= furthest:
                host = urllib.parse.urlsplit(str(source)).netloc
                raise DownloadError(f"cannot reach {host}, or it closed the connection ({cut}); {TRY_AGAIN}") from None
            furthest = _size_bytes(partial)


def _size_bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _version_file(partial: Path) -> Path:
    """The file that says which version of which URL a partial file belongs to."""
    return partial.with_name(f"{partial.name}.json")


def _request_rest(source: UrlSource, partial: Path) -> None:
    """Makes one request: for the rest of a partial file, or for the whole file where the rest may not fit to it.

    The rest fits where the server names the same version as before, or where a checksum will show it.
    """
    try:
        begun = json.loads(_version_file(partial).read_bytes())
    except (OSError, ValueError):
        begun = {}
    identified = begun.get("etag") or begun.get("last_modified") or source.md5 or source.sha256
    start = _size_bytes(partial) if begun.get("url") == str(source) and identified else 0
    if start and start == begun.get("size"):
        return
    with _open_url(source.url, start) as response:
        version = _version_of(str(source), response, start)
        if response.status == HTTPStatus.OK:
            start = 0
        elif start and version != begun:
            partial.unlink()  # so that the next request is for the whole file
            _request_rest(source, partial)
            return
        if not start:
            partial.unlink(missing_ok=True)
            write_atomically(_version_file(partial), json.dumps(version).encode())
        _append_body(response, partial, start, version["size"])


def _open_url(url: str, start: int) -> Any:
    """The response to a request for a file, from the byte `start` on. Raises DownloadError or _CutError."""
    request = _request(url)
    request.add_header("User-Agent", "ood-benchmark")
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        return _OPENER.open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error
        raise DownloadError(explain_status(error.code)) from None
    except (OSError, HTTPException) as error:
        raise _CutError(public_message(str(getattr(error, "reason", error)))) from None


def _request(url: str) -> urllib.request.Request:
    """A request for a URL. A user and a password in it go to its own server alone, and not to where that sends us."""
    place = urllib.parse.urlsplit(url)
    user, at, host = place.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(place._replace(netloc=host)) if at else url)
    if at:
        named = base64.b64encode(urllib.parse.unquote_to_bytes(user)).decode()
        request.add_unredirected_header("Authorization", f"Basic {named}")
    return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to https, and from http to http. Raises DownloadError for any other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = req.type, urllib.parse.urlsplit(newurl).scheme.lower()
        if after not in ("https", before):
            raise DownloadError(
                f"the server sends us from {before} on to {after}, where others may read and change the file; find "
                "an https address of the file, and correct the source"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def _version_of(url: str, response: Any, start: int) -> dict[str, Any]:
    """What distinguishes a file from a later one at the same URL. Empty where the response starts at another byte."""
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


def _append_body(response: Any, partial: Path, start: int, size: int | None) -> None:
    """Appends what a response brings to a partial file. Raises _CutError where the file is not complete then.

    start: how many bytes the partial file has.
    size: how many bytes the complete file has, where the server says it.
    """
    with (
        partial.open("ab") as file,
        tqdm(initial=start, total=size, desc="downloading", unit="B", unit_scale=True, disable=None) as progress,
    ):
        while chunk := _read_chunk(response):
            file.write(chunk)
            progress.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if size is not None and _size_bytes(partial) != size:
        raise _CutError(f"{_size_bytes(partial):,} of {size:,} bytes came")


def _read_chunk(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)  # what has arrived so far, so that a killed process loses little
    except (OSError, HTTPException) as error:
        raise _CutError(str(error) or type(error).__name__) from None


def _verify_file(source: UrlSource, partial: Path) -> None:
    """Raises DownloadError where the file is a web page or has another checksum, and deletes it."""
    algorithm, expected = ("md5", source.md5) if source.md5 else ("sha256", source.sha256)
    with partial.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        problem = "a web page came in place of the file, such as one to log in or to confirm; use a browser"
    elif expected and (digest := file_digest(partial, algorithm)) != expected:
        problem = (
            f"its {algorithm} is {digest}, {expected} expected, so it was deleted; try again, and if the result is the "
            f"same, ask its owner what was changed before you correct `{algorithm}`"
        )
    else:
        return
    partial.unlink()
    _version_file(partial).unlink(missing_ok=True)
    raise DownloadError(problem)
