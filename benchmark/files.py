"""Files: written so that a reader sees all of a content or none of it, and recognised when they have changed."""

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


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
    temporary = path.with_name(f".writing-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
