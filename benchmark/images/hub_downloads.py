"""Downloads from a dataset repository on the Hugging Face Hub."""

import errno
import hashlib
import json
import posixpath
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath

from benchmark.files import write_atomically
from benchmark.images.download_results import TRY_AGAIN, Download, DownloadError, explain_status, file_digest
from benchmark.images.sources import HubSource
from benchmark.public import public_message

# Errors of the disk, which a user mends in another way than errors of the network.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}


def download_from_hub(source: HubSource, downloads: Path) -> Download:
    """The files of a repository, from `downloads` where they are there already, else from the Hub.

    source: the repository and the files.
    downloads: the folder that keeps downloads. A file that was interrupted starts again, complete files stay.
    Raises DownloadError for everything that the Hub refuses, and OSError where the disk is full or read-only.
    """
    from huggingface_hub import HfApi, hf_hub_download  # here, as below, since it is slow to import

    try:
        revision = source.revision or str(HfApi().dataset_info(source.hub).sha)
        folder = downloads / source.download_key / revision
        checksums = _list_checksums(source, revision, folder)
        files = {}
        for name, checksum in checksums.items():
            path = hf_hub_download(source.hub, name, repo_type="dataset", revision=revision, local_dir=folder)
            files[name] = Path(path)
            if not _has_checksum(files[name], checksum):
                files[name].unlink()
                raise DownloadError(f"{name} arrived damaged, and was deleted; {TRY_AGAIN}")
    except DownloadError:
        raise
    except Exception as error:  # the client's transport, and the exceptions of that, change with its version
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise DownloadError(_explain_error(error, source)) from None
    return Download(files, checksums, revision)


def _list_checksums(source: HubSource, revision: str, folder: Path) -> dict[str, str]:
    """The checksums of the source's files at a commit, by path.

    The files of a commit never change, so the list is kept in `folder`. Raises DownloadError where a file is missing.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    listing = folder / f".{hashlib.sha256(json.dumps(source.files).encode()).hexdigest()[:16]}.json"
    if listing.is_file():
        return dict(json.loads(listing.read_bytes()))
    tree = HfApi().list_repo_tree(source.hub, recursive=True, revision=revision, repo_type="dataset")
    checksums = {
        file.path: f"sha256:{file.lfs.sha256}" if file.lfs else f"git-sha1:{file.blob_id}"
        for file in tree
        if isinstance(file, RepoFile) and any(fnmatchcase(file.path, pattern) for pattern in source.files)
    }
    for pattern in source.files:
        if not any(fnmatchcase(path, pattern) for path in checksums):
            raise DownloadError(f"it has no file {pattern} at {revision}; correct `files` of the source")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(listing, json.dumps(checksums).encode())
    return checksums


def _has_checksum(file: Path, checksum: str) -> bool:
    algorithm, _, expected = checksum.partition(":")
    if algorithm == "sha256":
        return file_digest(file, "sha256") == expected
    content = file.read_bytes()  # files with a git checksum are small
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest() == expected


def common_folder(patterns: Sequence[str]) -> str:
    """The deepest folder that all patterns name in full."""
    folders = [takewhile(lambda part: not set("*?[") & {*part}, PurePosixPath(name).parent.parts) for name in patterns]
    return posixpath.commonpath([posixpath.join("", *parts) for parts in folders])


def _explain_error(error: Exception, source: HubSource) -> str:
    """What an exception of huggingface_hub means for a person who wants a data set, and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{source.hub}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids every connection; unset it, and run the same command again"
    if isinstance(error, errors.GatedRepoError) or (source.gated and status in (401, 403)):
        return f"it is gated: accept its terms at {page}, then `hf auth login`, or set HF_TOKEN, and try again"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no commit {source.revision}; look at {page}, and correct `revision` of the source"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such data set, or it is private; look at {page}, and `hf auth login` if it is yours"
    if status:
        return explain_status(status)
    # A transport names the address, to which a server may have added a signature.
    first_line = public_message(str(error).partition("\n")[0])
    return f"cannot reach it ({first_line or type(error).__name__}); {TRY_AGAIN}"
