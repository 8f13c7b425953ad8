"""Memory: whether what a file or a caller asks for can fit, before any of it is allocated."""

import os

_UNKNOWN = 1 << 46  # bytes: more than any machine has, where a system does not say how much it has


def memory_bytes() -> int:
    """The memory of this machine, in bytes, whatever is in use."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # of a system without this call, or this name
        return _UNKNOWN


def too_large(needed_bytes: int) -> str | None:
    """Why something does not fit into this machine's memory, as the end of a sentence. None where it may fit."""
    if needed_bytes <= (there := memory_bytes()):
        return None
    return f"{in_words(needed_bytes)}, and this machine has {in_words(there)} of memory"


def in_words(size_bytes: int) -> str:
    """A number of bytes, such as "300.0 GB"."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    for power, unit in enumerate(("kB", "MB", "GB", "TB", "PB"), start=1):
        if size_bytes < 1000 ** (power + 1):
            return f"{size_bytes / 1000**power:.1f} {unit}"
    return "more than 1,000 PB"
