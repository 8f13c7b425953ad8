"""Runs on the Hub that are read as if they lay here: they are pulled into a cache, once for each commit."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock
from huggingface_hub import constants, is_offline_mode

from benchmark.files import write_atomically
from benchmark.hub.address import Address
from benchmark.hub.pull import pull
from benchmark.hub.repository import HubError, Repository

CACHE = "OOD_BENCHMARK_CACHE"  # names the folder of the cache, in place of one beside that of the Hub's client


def bring(address: Address, tell: Callable[[str], None]) -> Path:
    """The folder with the runs of a repository, which are pulled where they are not there yet.

    tell: what is told of runs that were refused, a line each.

    Without a network (HF_HUB_OFFLINE) the state that was brought last counts. Raises HubError where there is none.
    """
    home = _home() / address.repository.replace("/", "--")
    reference = home / "revisions" / quote(address.revision or "newest", safe="")
    commit = _commit(address, reference)
    folder = home / "commits" / commit
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        complete = folder / ".complete"
        if not complete.exists():
            pulled = pull(Address(address.repository, commit), folder)
            for line in pulled.refused:
                tell(line)
            if not pulled.refused:
                complete.touch()
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, commit.encode())
    return folder


def _commit(address: Address, reference: Path) -> str:
    """The commit that an address stands for: now, or where there is no network when it was brought last."""
    if not is_offline_mode():
        return Repository(address).commit_sha
    if not reference.exists():
        raise HubError(f"{address}: HF_HUB_OFFLINE is set, and these results were never brought here: unset it")
    return reference.read_text()


def _home() -> Path:
    return Path(os.environ.get(CACHE) or Path(constants.HF_HOME) / "ood-benchmark")
