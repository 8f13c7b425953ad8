"""A dataset repository on the Hub, with its mistakes told in one line and its passing troubles tried again."""

import hashlib
import io
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # it says not that it has HTTPError
    GatedRepoError,
    HTTPError,  # httpx's in 1.x, httpx2's in 2.x
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from benchmark.errors import UserError
from benchmark.hub.address import Address

ATTEMPTS = 20  # of a commit, while others commit at the same time
_LONGEST_WAIT_S = 60.0
_CONFLICTS = (409, 412)  # another operation is at work; the parent is no longer the newest commit
_PASSING = (429, 500, 502, 503, 504)
_PASSING_ATTEMPTS = 6


class HubError(UserError):
    """The Hub cannot be reached, or refuses. The message names the repository and says what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository.

    size: in bytes.
    sha256: of its content, where the repository keeps it as a large file. Else None.
    git_sha1: git's hash of its content. Of a large file it is that of its pointer.
    """

    size: int
    sha256: str | None
    git_sha1: str

    def is_of(self, content: bytes | Path) -> bool:
        """Whether the file has this content, by its hash."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        digest = hashlib.sha256() if self.sha256 is not None else hashlib.sha1(b"blob %d\0" % size)
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest() == (self.sha256 or self.git_sha1)


@dataclass(frozen=True)
class Commit:
    """A commit that was made, or that was not necessary.

    address: where it can be read: of a pull request its revision.
    url: its page, or that of the pull request. None where nothing had to change.
    """

    address: Address
    url: str | None


# What a commit changes: the content of each file, or None for a file that is to go.
Changes = Mapping[str, bytes | Path | None]


class Repository:
    """A repository at one commit.

    address: its address.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._api = HfApi(library_name="ood-benchmark")
        if not sys.stderr.isatty():  # a bar writes over itself, which a log cannot show
            disable_progress_bars()

    @cached_property
    def commit_sha(self) -> str:
        """The commit that the address stands for now. Raises HubError where there is no such repository."""
        with told(self.address):
            info = _patiently(
                lambda: self._api.repo_info(
                    self.address.repository, repo_type=self.address.kind, revision=self.address.revision
                )
            )
        if not info.sha:
            raise HubError(f"{self.address}: the Hub names no commit of it")
        return str(info.sha)

    def exists(self) -> bool:
        """Whether there is such a repository that the user may see."""
        try:
            return bool(self.commit_sha)
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError):
                return False
            raise

    def create(self, **options: Any) -> None:
        """Makes the repository, unless it is there."""
        with told(self.address):
            _patiently(
                lambda: self._api.create_repo(
                    self.address.repository, repo_type=self.address.kind, exist_ok=True, **options
                )
            )

    def files(self) -> dict[str, RemoteFile]:
        """The files of the commit, by path."""
        with told(self.address):
            entries = _patiently(
                lambda: list(
                    self._api.list_repo_tree(
                        self.address.repository, repo_type=self.address.kind, revision=self.commit_sha, recursive=True
                    )
                )
            )
        return {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def fetch(self, path: str, file: RemoteFile, largest_bytes: int) -> Path:
        """A copy of a file of the commit, in the cache of the Hub's client.

        Raises HubError, naming the file, where it is larger than largest_bytes, or not what its hash says.
        """
        if file.size > largest_bytes:
            raise HubError(f"{self.address}: {path}: it has {file.size:,} bytes; {largest_bytes:,} are allowed")
        with told(self.address):
            local = Path(
                _patiently(
                    lambda: self._api.hf_hub_download(
                        self.address.repository, path, repo_type=self.address.kind, revision=self.commit_sha
                    )
                )
            )
        if local.stat().st_size != file.size or not file.is_of(local):
            local.resolve().unlink(missing_ok=True)  # so that the next attempt fetches it anew
            raise HubError(f"{self.address}: {path}: its content is not what its hash says; try again")
        return local

    def change(self, changes: Callable[["Repository"], Changes], message: str, *, pull_request: bool = False) -> Commit:
        """Makes one commit.

        changes: what to change, given the repository at its newest commit. It is asked again where somebody else has
            committed meanwhile.
        message: the message of the commit.
        pull_request: whether to open a pull request, for which it is enough to be able to read.
        """
        for attempt in range(1, ATTEMPTS + 1):
            newest = Repository(self.address)
            wanted = changes(newest)
            if not wanted:
                return Commit(self.address, None)
            try:
                return newest._commit(wanted, message, pull_request)
            except HubError as error:
                if status_of(error.__cause__) not in _CONFLICTS or attempt == ATTEMPTS:
                    raise
            time.sleep(random.uniform(0, min(0.2 * 2 ** min(attempt, 5), 4.0)))
        raise AssertionError("the last attempt raises")

    def _commit(self, changes: Changes, message: str, pull_request: bool) -> Commit:
        with told(self.address):
            info = _patiently(
                lambda: self._api.create_commit(
                    self.address.repository,
                    [  # made anew for each attempt, since the client changes them
                        CommitOperationDelete(path) if content is None else CommitOperationAdd(path, content)
                        for path, content in changes.items()
                    ],
                    commit_message=message,
                    repo_type=self.address.kind,
                    revision=None if pull_request else self.address.revision,
                    parent_commit=None if pull_request else self.commit_sha,
                    create_pr=pull_request,
                )
            )
        if pull_request:
            return Commit(replace(self.address, revision=info.pr_revision), info.pr_url)
        return Commit(self.address, info.commit_url)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error is due to. None where there is none."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _patiently(call: Callable[[], Any]) -> Any:
    """What a call gives, tried again while the Hub is busy or the connection breaks."""
    for attempt in range(1, _PASSING_ATTEMPTS + 1):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise
        except (HTTPError, ConnectionError) as error:
            status = status_of(error)
            if attempt == _PASSING_ATTEMPTS or (status is not None and status not in _PASSING):
                raise
            time.sleep(_wait_s(error, attempt))
    raise AssertionError("the last attempt raises")


def _wait_s(error: BaseException, attempt: int) -> float:
    """How long to wait, in seconds: as long as the Hub asks for, else ever longer."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    if not asked and "RateLimit" in headers:  # such as `"api";r=0;t=55`: t is the time until there are requests again
        asked = next((part[2:] for part in headers["RateLimit"].split(";") if part.startswith("t=")), "")
    if asked.isdecimal():
        return min(float(asked), _LONGEST_WAIT_S)
    return random.uniform(0.5, 1.0) * min(0.25 * 2**attempt, 8.0)


@contextmanager
def told(address: Address) -> Iterator[None]:
    """Turns what the client raises into a HubError of one line."""
    try:
        yield
    except (HTTPError, ConnectionError, LocalTokenNotFoundError) as error:
        raise HubError(f"{address}: {_reason(address, error)}") from error


def _reason(address: Address, error: BaseException) -> str:
    status = status_of(error)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked: unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return f"no token is there: {login}"
    if isinstance(error, GatedRepoError):
        return "it is gated: ask for access on its page, with the account of the token"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no revision {address.revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or your token may not see it: check the name; {login}"
    if status == 401:
        return f"the token is missing, wrong or expired: {login}"
    if status == 403:
        return "the token may not write there: use one with write access, or open a pull request"
    if status in _CONFLICTS:
        return f"others committed {ATTEMPTS} times meanwhile: try again"
    if status is not None:
        said = getattr(error, "server_message", None) or ""
        return f"the Hub answered {status}{f' ({said})' if said else ''}: try again later"
    kind = type(error).__name__
    return f"the Hub cannot be reached at {constants.ENDPOINT} ({kind}): check the network, and try again"
