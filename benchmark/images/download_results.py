"""What a source gives: verified files, or an error that says what to do. URLs and the Hub share it."""

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from benchmark.errors import UserError

TRY_AGAIN = "run the same command again: it continues where it stopped"


class DownloadError(UserError):
    """A download that failed; the message says why and what to do, in one line."""


@dataclass(frozen=True)
class Download:
    """Verified files in `.downloads`.

    files: the files, by their names at the source.
    checksums: their checksums, as ALGORITHM:DIGITS, by the same names.
    revision: the commit of a repository on the Hub; None for a URL.
    """

    files: dict[str, Path]
    checksums: dict[str, str]
    revision: str | None = None


def file_digest(file: Path, algorithm: str) -> str:
    """The checksum of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def explain_status(status: int) -> str:
    """What an HTTP status means for a person who wants a file, and what to do."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"HTTP {status}: not everyone may download it; open it in a browser to see what its owner asks for"
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return f"HTTP {status}: it is not there; find out where its owner has moved it, and correct the source"
    if 300 <= status < 400:
        return (
            f"HTTP {status}: it leads in a circle, or to no web address; find out where it is, and correct the source"
        )
    return f"HTTP {status}: the server has a problem; {TRY_AGAIN}, later"
