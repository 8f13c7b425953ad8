"""Names and ids of what a user names."""

import re
from dataclasses import dataclass

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
    """The two parts of NAME=WHAT, and no name where there is only WHAT."""
    name, equals, what = text.partition("=")
    return (name, what) if equals and re.fullmatch(ID_PATTERN, name) else (None, text)


def id_of(text: str) -> str:
    """An id made of a text: each run of other characters becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip(".+_-") or "own"
