"""Files: written so that a reader sees all of a content or none, freed of what kills leave, and known when changed."""

import ctypes
import glob
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

try:
    import fcntl
except ImportError:  # on Windows, where nobody can remove a file or a folder that is in use
    fcntl = None  # type: ignore[assignment]

STALE_S = 24 * 3600.0  # nobody writes one file for so long, or leaves it as it is while writing
_LITTER = ".writing-"


def signature(files: Iterable[str | Path]) -> str:
    """A hash of what the disk says of some files. It changes whenever one of them is written, moved or replaced.

    The time of change (ctime) is in it beside the time of modification, which copying programs set back.
    Raises OSError where a file is missing.
    """
    digest = hashlib.sha256()
    for file in files:
        about = os.stat(file)
        line = f"{file}\t{about.st_size}\t{about.st_mtime_ns}\t{about.st_ctime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file, or makes it, in one step, once its content is on the disk.

    path: the file, whose folder is there.
    content: all that it shall hold.
    Raises OSError where it cannot be written. The old file then stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives an empty file beside a path. At the end it takes the path's place in one step, once it is on the disk.

    What earlier, killed processes left in the folder is removed.

    path: the file to replace, whose folder is there.
    Raises OSError where it cannot be written. The old file then stays.
    """
    remove_litter(path.parent, f"{_LITTER}*")
    temporary = path.with_name(f"{_LITTER}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            _take(file.fileno())
            yield temporary
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes other processes wait that hold the same folder.

    folder: the folder, which is there.
    Raises OSError where it cannot be held.
    """
    with _opened(folder) as number:
        if number is not None and fcntl:
            try:
                fcntl.flock(number, fcntl.LOCK_EX)
            except OSError:  # a file system over a network may lock files alone
                number = None
        if number is not None:
            yield
            return
    with FileLock(folder / ".lock"):
        yield


def remove_litter(folder: Path, *patterns: str) -> None:
    """Removes what a killed process left: files and folders that are old and that no process holds.

    folder: the folder, which need not be there.
    patterns: which names below it, as `Path.glob` takes them.
    """
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            with suppress(OSError):  # another process may remove it, too
                if time.time() - path.lstat().st_mtime > STALE_S and not is_held(path):
                    remove(path)


@contextmanager
def scratch_beside(place: Path, *contents: str) -> Iterator[Path]:
    """A new, hidden folder beside a place, in which it is built, and which is removed at the end.

    What earlier, killed processes left of such folders is removed.

    place: the file or folder that is built, whose folder is there.
    contents: the names that such a folder may hold. One that holds others is somebody else's, and stays.
    """
    for left in scratches_of(place, *contents):
        remove_litter(left.parent, glob.escape(left.name))
    with TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as name, _opened(Path(name)) as number:
        if number is not None:
            _take(number)
        yield Path(name)


def scratches_of(place: Path, *contents: str) -> list[Path]:
    """The folders that `scratch_beside` made for a place, and that are still there."""
    folders = [path for path in place.parent.glob(f".{glob.escape(place.name)}-????????") if path.is_dir()]
    return sorted(folder for folder in folders if {part.name for part in folder.iterdir()} <= {*contents})


def is_held(path: Path) -> bool:
    """Whether a process holds a file or a folder. Where the system cannot say, nobody does."""
    with _opened(path) as number:
        return number is not None and not _take(number)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that it holds. What is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """Gives each of two files or folders the name of the other, in one step. False where the system cannot do it.

    Both must be there, on one disk. Raises OSError where the system could, and did not.
    """
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, 2)  # RENAME_SWAP
        else:
            failed = library.renameat2(-100, names[0], -100, names[1], 2)  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):  # a system or a C library without such a call
        return False
    return not failed


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """The number of an open file or folder. None where the system cannot open it, as Windows cannot open a folder."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        yield number
    finally:
        os.close(number)


def _take(number: int) -> bool:
    """Takes an open file or folder, until it is closed. False where another process has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
