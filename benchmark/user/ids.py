"""Names and ids of what a user names."""

import re

from benchmark.records import ID_PATTERN


def split_name(text: str) -> tuple[str | None, str]:
    """The two parts of NAME=WHAT, and no name where there is only WHAT."""
    name, equals, what = text.partition("=")
    return (name, what) if equals and re.fullmatch(ID_PATTERN, name) else (None, text)


def id_of(text: str) -> str:
    """An id made of a text: each run of other characters becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip(".+_-") or "own"
