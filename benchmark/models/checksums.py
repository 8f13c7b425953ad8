"""Checksums beside the files of a checkpoint or an edit, so that a changed byte is seen.

A folder's file SHA256SUMS has a line for each of its files, as the program `sha256sum` writes and checks them. What
this package writes has one. A folder without one, such as a user's, is taken as it is: another weight or another
preprocessing gives it another key in the store anyway.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.errors import UserError
from benchmark.files import write_atomically

NAME = "SHA256SUMS"


class ChecksumError(UserError):
    """A file is not the one that was written; the message names it and the remedy."""


@contextmanager
def with_checksums(folder: Path) -> Iterator[None]:
    """Writes SHA256SUMS of a folder once its files are written. Where that is interrupted, the folder has none."""
    (folder / NAME).unlink(missing_ok=True)
    yield
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", NAME)))
    write_atomically(folder / NAME, "".join(f"{_sha256(file)}  {file.name}\n" for file in files).encode())


def check_checksums(folder: Path) -> None:
    """Raises ChecksumError where a file that SHA256SUMS names is another one, or is missing."""
    sums = folder / NAME
    if not sums.is_file():
        return
    for number, line in enumerate(sums.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or "/" in name or name in (".", ".."):
            raise ChecksumError(
                f"{sums}, line {number}: not a SHA-256, two spaces and a name; make the file anew, or remove it"
            )
        if not (folder / name).is_file():
            raise ChecksumError(f"{folder / name} is missing, and {NAME} beside it names it")
        if _sha256(folder / name) != digest:
            raise ChecksumError(
                f"{folder / name} was changed or is damaged: its SHA-256 is not that in {NAME} beside it; get the file "
                f"again, or remove {NAME} where the change is meant"
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
