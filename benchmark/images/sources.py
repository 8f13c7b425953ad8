"""Sources: where the files of an image set or of a model come from, as entries name them."""

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from benchmark.public import public_url


def _check_below(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} must lie below the repository's or the archive's top")
    return path


_Path = Annotated[str, AfterValidator(_check_below)]


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubSource(_Source):
    """Files of a dataset repository on the Hugging Face Hub.

    hub: the repository, as OWNER/NAME.
    files: paths of the files, or patterns with *, ? and [].
    revision: the commit, 40 hexadecimal digits. None: the newest commit; which one that was is written down.
    gated: whether people must accept terms on the repository's page first.
    inside: of archives, the folder or the file in them that is taken. Empty: all of it.
    """

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    files: tuple[_Path, ...] = Field(min_length=1)
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    gated: bool = False
    inside: _Path = ""

    def __str__(self) -> str:
        return f"{self.hub} on the Hugging Face Hub"

    @property
    def download_key(self) -> str:
        """The name of the folder in `.downloads` that keeps the repository's files."""
        return f"hub-{self.hub.replace('/', '--')}"


class UrlSource(_Source):
    """A file or an archive at a URL.

    url: where it is. It may have a user with a password, or a token. No message and no file of ours repeats these.
    md5: its MD5, 32 hexadecimal digits.
    sha256: its SHA-256, 64 hexadecimal digits. At most one of the two checksums is given.
    inside: of an archive (zip, or tar and its compressed forms), the folder or the file in it that is taken. Empty:
        all of it.
    """

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
        return public_url(self.url)

    @property
    def download_key(self) -> str:
        """The name of the file in `.downloads` that keeps the download. URLs with one checksum have one name."""
        if self.md5:
            return f"md5-{self.md5}"
        return f"sha256-{self.sha256}" if self.sha256 else f"url-{hashlib.sha256(self.url.encode()).hexdigest()[:32]}"


class ManualSource(_Source):
    """A manual download: something that no program may do, such as to accept terms or to use a browser.

    manual: what to do, as the end of a sentence.
    """

    manual: str

    def __str__(self) -> str:
        return f"by hand: {self.manual}"


Source = HubSource | UrlSource | ManualSource
