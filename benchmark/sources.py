"""Sources: where the files of an image set or of a model come from, as entries name them."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubSource(_Source):
    """Files of a dataset repository on the Hugging Face Hub.

    revision: the commit; without one the source is not pinned, and what was fetched is recorded. files: paths or
    patterns.
    """

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    files: tuple[str, ...] = Field(min_length=1)
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    gated: bool = False


class UrlSource(_Source):
    """A file or an archive (zip, tar and its compressed forms). inside: the folder of it that holds the set."""

    url: str = Field(pattern=r"^https?://")
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    inside: str = ""

    @model_validator(mode="after")
    def _one_checksum(self) -> Self:
        if self.md5 and self.sha256:
            raise ValueError("one checksum is enough: `md5` or `sha256`")
        return self


class ManualSource(_Source):
    """What a person has to do, where no program may: accept terms, use a browser."""

    manual: str


Source = HubSource | UrlSource | ManualSource
