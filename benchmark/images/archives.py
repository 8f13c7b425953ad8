"""Archives: copies one folder out of a zip or tar archive, and writes nothing outside of the target folder."""

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from tqdm import tqdm

from benchmark.errors import UserError

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


class ArchiveError(UserError):
    """An archive that cannot be extracted; the message says why.

    damaged: whether the archive is damaged, so that another download may help.
    """

    def __init__(self, problem: str, *, damaged: bool) -> None:
        super().__init__(problem)
        self.damaged = damaged


@dataclass(frozen=True)
class _Member:
    """A file of an archive.

    name: its path in the archive.
    is_regular: whether it is an ordinary file: no link, no device.
    archive: the open TarFile or ZipFile.
    info: what that library knows of the file.
    """

    name: str
    is_regular: bool
    archive: Any
    info: Any

    def open(self) -> IO[bytes]:
        if isinstance(self.archive, zipfile.ZipFile):
            return self.archive.open(self.info)
        return self.archive.extractfile(self.info)


def extract_folder(archive: Path, inside: str, target: Path) -> None:
    """Copies one folder, or one file, out of an archive.

    archive: a zip or tar archive; a tar may be compressed.
    inside: the folder in the archive whose files are copied, or one file in it. Empty: all files.
    target: the folder to write to; the file to write where `inside` is a file.
    Raises ArchiveError where the file is no such archive, is damaged, holds nothing at `inside`, or holds a link, a
    device or a path that leads out of the archive. Then `target` may hold some of the files.
    """
    found = False
    try:
        for member in tqdm(_members(archive), desc="extracting", unit=" files", disable=None):
            path = PurePosixPath(member.name)
            selected = path.is_relative_to(inside)
            if _leads_out(member.name) or (selected and not member.is_regular):
                raise ArchiveError(
                    f"{member.name!r} in it is a link, a device or a path out of it, and such an archive is not "
                    "extracted; do that by hand if you trust it",
                    damaged=False,
                )
            if not selected:
                continue
            destination = target / path.relative_to(inside)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, destination.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            found = True
    except _DAMAGE as error:
        raise ArchiveError(f"it is truncated or damaged ({error or type(error).__name__})", damaged=True) from None
    except (RuntimeError, NotImplementedError) as error:  # of zipfile: encrypted, or an unknown compression
        raise ArchiveError(str(error), damaged=False) from None
    if not found:
        raise ArchiveError(f"nothing in it lies in {inside!r}; correct `inside` of the source", damaged=False)


def _leads_out(name: str) -> bool:
    """Whether a path is absolute or has `..`, on Linux or on Windows."""
    return bool(PurePosixPath(name).anchor or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts)


def _members(archive: Path) -> Iterator[_Member]:
    """All files of an archive, in its own order, so that a compressed tar is read only once."""
    if tarfile.is_tarfile(archive):  # before zip: a tar whose last file is a small zip looks like a zip
        with tarfile.open(archive) as tar:
            yield from (_Member(info.name, info.isreg(), tar, info) for info in tar if not info.isdir())
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if not info.is_dir():
                    yield _Member(info.filename, kind in (0, stat.S_IFREG), zipped, info)
    else:
        raise ArchiveError("it is no complete zip or tar archive", damaged=True)
