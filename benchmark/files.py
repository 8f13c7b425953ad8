"""Writing files so that a reader sees all of a content or none of it."""

import os
import secrets
from pathlib import Path


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
