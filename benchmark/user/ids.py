"""Ids of the networks and images that a user names on a command line."""

import re
from dataclasses import dataclass
from pathlib import Path

from benchmark.public import public_parts
from benchmark.records import ID_PATTERN


@dataclass(frozen=True)
class Words:
    """What a caller calls what it names: the options of a command line, or the arguments of a function.

    model: a network.
    test, train, val: in-distribution images by their role.
    ood: OOD images.
    outputs: a folder of precomputed outputs.
    """

    model: str
    test: str
    train: str
    val: str
    ood: str
    outputs: str


COMMAND_LINE = Words(model="--model", test="--id", train="--train", val="--val", ood="--ood", outputs="--outputs")


def split_name(text: str) -> tuple[str | None, str]:
    """NAME and WHAT of a text NAME=WHAT; None and the text where it has no NAME."""
    name, equals, what = text.partition("=")
    return (name, what) if equals and re.fullmatch(ID_PATTERN, name) else (None, text)


def id_of(text: str) -> str:
    """An id made from a text. Characters that an id cannot have become a hyphen, several in a row only one."""
    # Records with the id "own" may exist, so that it stays the id of a text without any usable character.
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip(".+_-") or "own"


def id_of_place(path: Path, parts: int = 1) -> str:
    """An id made from the last parts of a path. The home folder, and the name of the user, are left out of it."""
    named = public_parts(path.resolve())[-parts:]
    return id_of("-".join(part.removesuffix(".parquet") for part in named))
