"""Archives: what lies in one of their folders, written to a folder of ours, and nowhere else."""

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
    """An archive that cannot be unpacked. damaged: whether another download may help."""

    def __init__(self, problem: str, *, damaged: bool) -> None:
        super().__init__(problem)
        self.damaged = damaged


@dataclass(frozen=True)
class _Member:
    name: str
    is_regular: bool
    archive: Any
    info: Any

    def open(self) -> IO[bytes]:
        if isinstance(self.archive, zipfile.ZipFile):
            return self.archive.open(self.info)
        return self.archive.extractfile(self.info)


def unpack(archive: Path, inside: str, target: Path) -> None:
    """Writes the files of the archive's folder `inside` to the folder `target`, or the file `inside` to a file.

    Raises ArchiveError for what is no zip or tar, is damaged, has nothing `inside`, or has a link, a device or a path
    that leads out of it there; then `target` may hold a part.
    """
    found = False
    try:
        for member in tqdm(_members(archive), desc="unpacking", unit=" files", disable=None):
            path = PurePosixPath(member.name)
            selected = path.is_relative_to(inside)
            if _leads_out(member.name) or (selected and not member.is_regular):
                raise ArchiveError(
                    f"{member.name!r} in it is a link, a device or a path out of it, and such an archive is not "
                    "unpacked; do that by hand if you trust it",
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
    except (RuntimeError, NotImplementedError) as error:  # how zipfile says encrypted, or compressed by other means
        raise ArchiveError(str(error), damaged=False) from None
    if not found:
        raise ArchiveError(f"nothing in it lies in {inside!r}; correct `inside` of the source", damaged=False)


def _leads_out(name: str) -> bool:
    """Whether a path is absolute or has `..`, on any system."""
    return bool(PurePosixPath(name).anchor or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts)


def _members(archive: Path) -> Iterator[_Member]:
    """All but the folders, in the order of the archive, in which a compressed tar is read only once."""
    if tarfile.is_tarfile(archive):  # first: a tar that ends with a small zip would pass for one
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
