"""Downloads: fetches files from the Hub or from a URL, verifies them, and puts them at a place below the data folder.

    DATA_DIR/.downloads    complete archives, which other sets may use without a network, and partial downloads
    DATA_DIR/.fetched      where each file or folder came from (see `benchmark.images.origins`)

The target appears only when it is complete and verified. An interrupted download continues where it stopped.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from benchmark.files import STALE_S, remove, remove_litter
from benchmark.images.archives import ArchiveError, extract_folder
from benchmark.images.download_results import Download, DownloadError
from benchmark.images.hub_downloads import common_folder, download_from_hub
from benchmark.images.origins import Fetched, fetched, is_there, mark_verified, write_fetched
from benchmark.images.sources import HubSource, ManualSource, Source, UrlSource
from benchmark.images.url_downloads import download_from_url

__all__ = ["DownloadError", "Fetched", "fetch", "fetched", "is_there", "mark_verified"]

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


def fetch(
    sources: Sequence[Source], target: Path, data_dir: Path, report: Callable[[str], None] = lambda line: None
) -> Fetched | None:
    """Puts a file or folder at `target`, from the first source that works. What is there already stays as it is.

    sources: where it can be fetched from. They are tried in this order.
    target: the file or folder, below `data_dir`. An archive is extracted, unless the target has the archive's ending.
    data_dir: the data folder.
    report: is called with a line for each source that fails, and when another process must finish first.
    Returns where the target came from; None where it was there and was not fetched.
    Raises DownloadError where no source works, and OSError where the disk is full or read-only.
    """
    if is_there(target):  # before anything is written, since the data folder may be read-only
        return fetched(target, data_dir)
    if not Path(os.path.abspath(target)).is_relative_to(os.path.abspath(data_dir)):  # a suite file may name any path
        raise DownloadError(f"{target} lies outside of {data_dir}, where nothing is put; name a place below it")
    downloads = data_dir / ".downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    _remove_litter(target, data_dir)
    with _hold_lock(downloads, str(target.relative_to(data_dir)), report):
        if is_there(target):  # since another process may have fetched it while this one waited
            return fetched(target, data_dir)
        for number, source in enumerate(sources, 1):
            try:
                return _fetch_from(source, target, data_dir, report)
            except DownloadError as error:
                problem = f"{source}: {error}" if not isinstance(source, ManualSource) else str(error)
                if number == len(sources):
                    raise DownloadError(problem) from None
                report(f"source {number} of {len(sources)} failed: {problem}")
    raise DownloadError(f"no source is known; put it at {target} by hand")


@contextmanager
def _hold_lock(downloads: Path, what: str, report: Callable[[str], None]) -> Iterator[None]:
    """Keeps other processes from fetching the same thing at the same time. `what`: a name of that thing."""
    lock = _lock_of(downloads, what)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report(f"waiting for another process that fetches {what}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_of(downloads: Path, what: str) -> FileLock:
    folder = downloads / "locks"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.lock")


def _remove_litter(target: Path, data_dir: Path) -> None:
    """Removes what killed fetches left, where it is old and nobody fetches it now. What can be continued stays.

    That is what was built beside a target, and the origins of targets that did not get to their place.
    """
    remove_litter(data_dir, *(f"{folder}/**/.writing-*" for folder in (".fetched", ".downloads", ".hashes")))
    origins = data_dir / ".fetched"
    unfinished = {new: new.with_name(new.name[1:].removesuffix(".new")) for new in target.parent.glob(".*.new")}
    for origin in origins.glob("**/*.json"):
        place = data_dir / origin.relative_to(origins).as_posix().removesuffix(".json")
        if not os.path.lexists(place):
            unfinished[origin] = place
    for path, place in unfinished.items():
        with suppress(OSError, Timeout):  # another process may remove it, too
            if time.time() - path.lstat().st_mtime > STALE_S:
                with _lock_of(data_dir / ".downloads", str(place.relative_to(data_dir))).acquire(blocking=False):
                    remove(path)


def _fetch_from(source: Source, target: Path, data_dir: Path, report: Callable[[str], None]) -> Fetched:
    """Fetches a target from one source. It is built beside its place, and moved there when its origin is written."""
    if isinstance(source, ManualSource):
        raise DownloadError(f"it has to be fetched by hand: {source.manual}; put it at {target}")
    downloads = data_dir / ".downloads"
    new = target.with_name(f".{target.name}.new")
    with _hold_lock(downloads, source.download_key, report):
        if isinstance(source, UrlSource):
            name, download = str(source), download_from_url(source, downloads)
        else:
            name, download = source.hub, download_from_hub(source, downloads)
        origin = Fetched(
            source=name,
            revision=download.revision,
            checksums=download.checksums,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(new)
        try:
            archives = _build_target(source, download, target, new)
            write_fetched(origin, target, data_dir)
            os.replace(new, target)
        finally:
            remove(new)
        if not archives:
            for file in download.files.values():
                file.unlink()
    return origin


def _build_target(source: HubSource | UrlSource, download: Download, target: Path, new: Path) -> bool:
    """Builds the target at `new` from a download. Returns whether the download is archives, which are then kept."""
    names = list(download.files)
    if len(names) == 1 and PurePosixPath(names[0]).suffix.lower() == target.suffix.lower() != "":
        _link_file(download.files[names[0]], new)
        return False
    if isinstance(source, UrlSource) or all(name.lower().endswith(_ARCHIVES) for name in names):
        for archive in download.files.values():
            _extract_archive(archive, source.inside, new)
        return True
    top = common_folder(source.files)
    for name, file in download.files.items():
        _link_file(file, new / PurePosixPath(name).relative_to(top))
    return False


def _link_file(file: Path, new: Path) -> None:
    """Gives a file a second name, or copies it where that is on another disk."""
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, new)
    except OSError:
        shutil.copyfile(file, new)


def _extract_archive(archive: Path, inside: str, new: Path) -> None:
    """Extracts a folder of an archive. Raises DownloadError; a damaged archive is deleted first."""
    try:
        extract_folder(archive, inside, new)
    except ArchiveError as error:
        if not error.damaged:
            raise DownloadError(f"{error} (the archive is kept as {archive})") from None
        archive.unlink()
        raise DownloadError(f"{error}, and was deleted; run the same command to download it again") from None
