"""Sources: where the files of an image set or of a model come from, as entries name them."""

from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _below(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} must lie below the repository's or the archive's top")
    return path


_Path = Annotated[str, AfterValidator(_below)]


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubSource(_Source):
    """Files of a dataset repository on the Hugging Face Hub.

    revision: the commit; without one the source is not pinned, and what was fetched is recorded. files: paths or
    patterns. inside: where they are archives, the folder or file of them that is meant.
    """

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    files: tuple[_Path, ...] = Field(min_length=1)
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    gated: bool = False
    inside: _Path = ""

    def __str__(self) -> str:
        return f"{self.hub} on the Hugging Face Hub"


class UrlSource(_Source):
    """A file or an archive (zip, tar and its compressed forms). inside: the folder or file of it that is meant."""

    url: str = Field(pattern=r"^https?://")
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    inside: _Path = ""

    @model_validator(mode="after")
    def _one_checksum(self) -> Self:
        if self.md5 and self.sha256:
            raise ValueError("one checksum is enough: `md5` or `sha256`")
        return self

    def __str__(self) -> str:
        return self.url


class ManualSource(_Source):
    """What a person has to do, where no program may: accept terms, use a browser."""

    manual: str

    def __str__(self) -> str:
        return f"by hand: {self.manual}"


Source = HubSource | UrlSource | ManualSource
