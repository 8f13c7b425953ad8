"""Addresses of dataset repositories on the Hub."""

import re
from dataclasses import dataclass
from typing import Literal

from benchmark.errors import UserError

Kind = Literal["dataset", "space", "model"]
_SCHEMES: dict[Kind, str] = {"dataset": "hf://datasets/", "space": "hf://spaces/", "model": "hf://"}
SCHEME = _SCHEMES["dataset"]
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


@dataclass(frozen=True)
class Address:
    """A repository, perhaps at a revision.

    repository: ORG/NAME.
    revision: a branch, a tag, a commit or `refs/pr/N`. None for the newest state.
    kind: what the repository is of.
    """

    repository: str
    revision: str | None = None
    kind: Kind = "dataset"

    @classmethod
    def parse(cls, text: str, kind: Kind = "dataset") -> "Address":
        """Reads ORG/NAME, ORG/NAME@REV, or the same after hf://datasets/. Raises UserError for what is neither."""
        found = _ADDRESS.fullmatch(text.removeprefix(_SCHEMES[kind]))
        if not found or ".." in text or "--" in found[1]:
            raise UserError(
                f"{text!r} is no {kind} repository on the Hub: write ORG/NAME, ORG/NAME@REVISION, or "
                f"{_SCHEMES[kind]}ORG/NAME"
            )
        return cls(found[1], found[2], kind)

    def __str__(self) -> str:
        return f"{_SCHEMES[self.kind]}{self.repository}" + (f"@{self.revision}" if self.revision else "")
