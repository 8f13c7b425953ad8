"""Downloads from servers on this machine: the target is complete and verified, or it does not appear."""

import hashlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmark.commands.app import main
from benchmark.images.archives import ArchiveError, extract_folder
from benchmark.images.downloads import DownloadError, fetch, fetched, mark_verified
from benchmark.images.sources import ManualSource, UrlSource
from tests.local_servers import Repository, Served, Server, running

CONTENT = bytes(range(256)) * 1000
ROOT = Path(__file__).parents[1]
COMMITS = ("1" * 40, "2" * 40)


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def archive(kind: str, files: dict[str, bytes]) -> bytes:
    """A zip, tar or compressed tar of these files."""
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w" + kind.removeprefix("tar").replace(".", ":")) as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PHOTOS = {"set/photos/a/1.png": b"one", "set/photos/b/2.png": b"two", "set/drawings/3.png": b"three", "readme": b"me"}


# A file at a URL


def test_a_file_is_verified_and_put_in_its_place(server: Server, tmp_path: Path) -> None:
    server.files["/images.parquet"] = Served(CONTENT)
    source = UrlSource(url=f"{server.url}/images.parquet", md5=md5(CONTENT))
    target = tmp_path / "one" / "test.parquet"
    origin = fetch([source], target, tmp_path)
    assert target.read_bytes() == CONTENT
    assert origin == fetched(target, tmp_path)
    assert origin is not None
    assert (origin.source, origin.checksums) == (source.url, {"images.parquet": f"md5:{md5(CONTENT)}"})
    assert not origin.verified
    mark_verified(target, tmp_path)
    assert fetched(target, tmp_path) == origin.model_copy(update={"verified": True})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".downloads", ".fetched", "one"]
    assert not [path for path in (tmp_path / ".downloads").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_nothing_is_downloaded_twice(server: Server, tmp_path: Path) -> None:
    server.files["/images.parquet"] = Served(CONTENT)
    sources = [UrlSource(url=f"{server.url}/images.parquet")]
    first = fetch(sources, tmp_path / "test.parquet", tmp_path)
    assert fetch(sources, tmp_path / "test.parquet", tmp_path) == first
    assert len(server.requests) == 1


def test_what_the_user_put_there_stays(server: Server, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(b"mine")
    assert fetch([UrlSource(url=f"{server.url}/x.zip")], tmp_path / "photos", tmp_path) is None
    assert files_below(tmp_path) == {"photos/mine.png": b"mine"}
    assert not server.requests


@pytest.mark.parametrize("local", ["../beside.parquet", "a/../../beside.parquet", "{beside}"])
def test_nothing_is_put_outside_of_the_data_folder(server: Server, tmp_path: Path, local: str) -> None:
    server.files["/f.parquet"] = Served(CONTENT)
    data, beside = tmp_path / "data", tmp_path / "beside.parquet"
    target = data / local.format(beside=beside)
    with pytest.raises(DownloadError, match=r"lies outside of .*data, where nothing is put"):
        fetch([UrlSource(url=f"{server.url}/f.parquet")], target, data)
    assert not list(tmp_path.iterdir())
    beside.write_bytes(b"mine")
    assert fetch([], data / beside, data) is None  # it was there, and was not fetched


@pytest.mark.parametrize("lengths", [True, False])
def test_a_connection_that_is_cut_is_made_again(server: Server, tmp_path: Path, lengths: bool) -> None:
    server.files["/f.parquet"] = Served(CONTENT, cuts=[1000, 50_000] if lengths else [], lengths=lengths)
    fetch([UrlSource(url=f"{server.url}/f.parquet", md5=md5(CONTENT))], tmp_path / "f.parquet", tmp_path)
    assert (tmp_path / "f.parquet").read_bytes() == CONTENT
    ranges = [span for _, span in server.requests]
    assert ranges == ([None, "bytes=1000-", "bytes=51000-"] if lengths else [None])


def test_a_later_command_continues_where_the_first_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/f.parquet"] = Served(CONTENT, cuts=[100_000, 0])
    source = UrlSource(url=f"{server.url}/f.parquet")
    with pytest.raises(DownloadError, match=r"100,000 of 256,000 bytes came.*run the same command again"):
        fetch([source], tmp_path / "f.parquet", tmp_path)
    assert not (tmp_path / "f.parquet").exists()
    fetch([source], tmp_path / "f.parquet", tmp_path)
    assert (tmp_path / "f.parquet").read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=100000-"


@pytest.mark.parametrize(
    ("later", "checksum"),
    [
        pytest.param(Served(CONTENT[::-1], etag='"2"'), False, id="another ETag"),
        pytest.param(Served(CONTENT[::-1] + b"!", etag='"1"'), False, id="another size"),
        pytest.param(Served(CONTENT[:-9], etag='"1"'), False, id="smaller"),
        pytest.param(Served(CONTENT[:900], etag='"1"'), False, id="smaller than the partial file"),
        pytest.param(Served(CONTENT[::-1], etag='"2"', ranges=False), False, id="no ranges"),
        pytest.param(Served(CONTENT, ranges=False), True, id="no ranges, with a checksum"),
        pytest.param(Served(CONTENT[::-1], etag=None), False, id="ETag lost"),
    ],
)
def test_a_file_that_changed_meanwhile_is_downloaded_from_its_start(
    server: Server, tmp_path: Path, later: Served, checksum: bool
) -> None:
    source = UrlSource(url=f"{server.url}/f.parquet", md5=md5(later.content) if checksum else None)
    server.files["/f.parquet"] = Served(CONTENT, cuts=[1000, 0])
    with pytest.raises(DownloadError):
        fetch([source], tmp_path / "f.parquet", tmp_path)
    server.files["/f.parquet"] = later
    fetch([source], tmp_path / "f.parquet", tmp_path)
    assert (tmp_path / "f.parquet").read_bytes() == later.content


@pytest.mark.parametrize("checksum", [True, False])
def test_a_file_without_a_version_continues_only_with_a_checksum(
    server: Server, tmp_path: Path, checksum: bool
) -> None:
    server.files["/f.parquet"] = Served(CONTENT, etag=None, cuts=[1000, 0])
    source = UrlSource(url=f"{server.url}/f.parquet", md5=md5(CONTENT) if checksum else None)
    with pytest.raises(DownloadError):
        fetch([source], tmp_path / "f.parquet", tmp_path)
    fetch([source], tmp_path / "f.parquet", tmp_path)
    assert (tmp_path / "f.parquet").read_bytes() == CONTENT
    assert server.requests[-1][1] == ("bytes=1000-" if checksum else None)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), size=st.integers(1, 600), versions=st.booleans())
def test_wherever_it_is_cut_the_file_is_complete_or_absent(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], size: int, versions: bool
) -> None:
    content = os.urandom(size)
    folder = tmp_path_factory.mktemp("cut")
    with running() as server:
        server.files["/f.bin"] = Served(content, etag='"1"' if versions else None, cuts=list(cuts))
        for _ in range(len(cuts) + 1):
            try:
                fetch([UrlSource(url=f"{server.url}/f.bin")], folder / "f.bin", folder)
                break
            except DownloadError:
                assert not (folder / "f.bin").exists()
    assert (folder / "f.bin").read_bytes() == content


@pytest.mark.parametrize("checksum", ["md5", "sha256"])
def test_a_wrong_checksum_is_never_trusted(server: Server, tmp_path: Path, checksum: str) -> None:
    server.files["/f.parquet"] = Served(CONTENT)
    expected = hashlib.new(checksum, b"another file").hexdigest()
    source = UrlSource(url=f"{server.url}/f.parquet", **{checksum: expected})
    found = hashlib.new(checksum, CONTENT).hexdigest()
    for _ in range(2):
        with pytest.raises(DownloadError, match=f"{checksum} is {found}, {expected} expected, so it was deleted"):
            fetch([source], tmp_path / "f.parquet", tmp_path)
    assert not (tmp_path / "f.parquet").exists()
    assert fetched(tmp_path / "f.parquet", tmp_path) is None
    assert [span for _, span in server.requests] == [None, None]  # the second started from nothing, too


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "in a browser to see what its owner asks for"),
        (403, "in a browser to see what its owner asks for"),
        (404, "correct the source"),
        (500, "the server has a problem"),
        (503, "the server has a problem"),
    ],
)
def test_a_refusal_of_the_server_says_what_to_do(server: Server, tmp_path: Path, status: int, remedy: str) -> None:
    server.files["/f.zip"] = Served(b"no", status=status)
    with pytest.raises(DownloadError, match=rf"f\.zip: HTTP {status}: .*{remedy}") as raised:
        fetch([UrlSource(url=f"{server.url}/f.zip")], tmp_path / "f", tmp_path)
    assert "\n" not in str(raised.value)


def test_a_server_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with running() as server:
        url = f"{server.url}/f.zip"
    with pytest.raises(DownloadError, match=r"cannot reach 127\.0\.0\.1:\d+.*refused"):
        fetch([UrlSource(url=url)], tmp_path / "f", tmp_path)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Sign in</title>", b"\n <html><body>quota</body></html>"])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_web_page_in_place_of_the_file_is_refused(
    server: Server, tmp_path: Path, page: bytes, checksum: bool
) -> None:
    server.files["/set.zip"] = Served(page)
    source = UrlSource(url=f"{server.url}/set.zip", md5=md5(CONTENT) if checksum else None)
    with pytest.raises(DownloadError, match="a web page came in place of the file"):
        fetch([source], tmp_path / "set", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_the_next_source_is_tried_and_each_failure_reported(server: Server, tmp_path: Path) -> None:
    server.files["/second.zip"] = Served(archive("zip", PHOTOS))
    sources = [
        UrlSource(url=f"{server.url}/first.zip"),
        UrlSource(url=f"{server.url}/second.zip", inside="set/photos"),
        ManualSource(manual="ask the authors"),
    ]
    told: list[str] = []
    origin = fetch(sources, tmp_path / "photos", tmp_path, told.append)
    assert origin is not None
    assert origin.source == f"{server.url}/second.zip"
    assert len(told) == 1
    assert told[0].startswith(f"source 1 of 3 failed: {server.url}/first.zip: HTTP 404")


def test_a_manual_download_says_what_to_do_and_where_to_put_it(server: Server, tmp_path: Path) -> None:
    sources = [UrlSource(url=f"{server.url}/x.zip"), ManualSource(manual="accept the terms at example.org")]
    told: list[str] = []
    with pytest.raises(DownloadError, match=r"by hand: accept the terms at example.org; put it at .*/photos$"):
        fetch(sources, tmp_path / "photos", tmp_path, told.append)
    assert len(told) == 1
    with pytest.raises(DownloadError, match="no source is known; put it at"):
        fetch([], tmp_path / "photos", tmp_path)


# Archives


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_only_the_folder_inside_is_extracted(server: Server, tmp_path: Path, kind: str) -> None:
    server.files[f"/set.{kind}"] = Served(archive(kind, PHOTOS))
    fetch([UrlSource(url=f"{server.url}/set.{kind}", inside="set/photos")], tmp_path / "photos", tmp_path)
    assert files_below(tmp_path / "photos") == {"a/1.png": b"one", "b/2.png": b"two"}


def test_a_kept_archive_gives_other_sets_without_a_network(server: Server, tmp_path: Path) -> None:
    content = archive("tar.gz", PHOTOS)
    server.files["/set.tar.gz"] = Served(content)
    fetch([UrlSource(url=f"{server.url}/set.tar.gz", md5=md5(content), inside="set/photos")], tmp_path / "a", tmp_path)
    server.files.clear()
    mirror = UrlSource(url=f"{server.url}/mirror.tgz", md5=md5(content), inside="set/drawings")
    fetch([mirror], tmp_path / "b", tmp_path)
    assert files_below(tmp_path / "b") == {"3.png": b"three"}
    assert len(server.requests) == 1


def test_one_file_of_an_archive_can_be_extracted(server: Server, tmp_path: Path) -> None:
    server.files["/nets.zip"] = Served(archive("zip", {"nets/a.safetensors": b"a", "nets/b.safetensors": b"b"}))
    source = UrlSource(url=f"{server.url}/nets.zip", inside="nets/b.safetensors")
    fetch([source], tmp_path / "checkpoints" / "net.safetensors", tmp_path)
    assert (tmp_path / "checkpoints" / "net.safetensors").read_bytes() == b"b"


def test_an_archive_without_the_folder_is_kept(server: Server, tmp_path: Path) -> None:
    server.files["/set.zip"] = Served(archive("zip", PHOTOS))
    with pytest.raises(DownloadError, match="nothing in it lies in 'photos'; correct `inside`"):
        fetch([UrlSource(url=f"{server.url}/set.zip", inside="photos")], tmp_path / "photos", tmp_path)
    fetch([UrlSource(url=f"{server.url}/set.zip", inside="set")], tmp_path / "photos", tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.7])
def test_a_truncated_archive_is_deleted(server: Server, tmp_path: Path, kind: str, share: float) -> None:
    content = archive(kind, {f"set/{index}.bin": os.urandom(5000) for index in range(9)})
    served = server.files[f"/set.{kind}"] = Served(content[: int(share * len(content))])
    source = UrlSource(url=f"{server.url}/set.{kind}", inside="set")
    with pytest.raises(DownloadError, match="deleted; run the same command to download it again"):
        fetch([source], tmp_path / "set", tmp_path)
    assert not (tmp_path / "set").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".downloads"]
    served.content = content
    fetch([source], tmp_path / "set", tmp_path)
    assert len(files_below(tmp_path / "set")) == 9


def hostile_tar(member: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        good = tarfile.TarInfo("set/good.png")
        good.size = 1
        tar.addfile(good, io.BytesIO(b"x"))
        tar.addfile(member, io.BytesIO(b"y" * member.size))
    return stream.getvalue()


def hostile_zip(name: str, mode: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        zipped.writestr("set/good.png", b"x")
        about = zipfile.ZipInfo(name)
        about.external_attr = mode << 16
        zipped.writestr(about, b"/etc/passwd")
    return stream.getvalue()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


HOSTILE = {
    "tar: parent": hostile_tar(tar_member("set/../../evil")),
    "tar: absolute": hostile_tar(tar_member("/evil")),
    "tar: symbolic link": hostile_tar(tar_member("set/link", tarfile.SYMTYPE, "/etc/passwd")),
    "tar: link within": hostile_tar(tar_member("set/link", tarfile.SYMTYPE, "good.png")),
    "tar: hard link": hostile_tar(tar_member("set/link", tarfile.LNKTYPE, "set/good.png")),
    "tar: device": hostile_tar(tar_member("set/device", tarfile.CHRTYPE)),
    "tar: pipe": hostile_tar(tar_member("set/pipe", tarfile.FIFOTYPE)),
    "zip: parent": hostile_zip("set/../../evil"),
    "zip: absolute": hostile_zip("/evil"),
    "zip: of Windows": hostile_zip("set/..\\..\\evil"),
    "zip: drive": hostile_zip("C:/evil"),
    "zip: link": hostile_zip("set/link", 0o120777),
}


@pytest.mark.parametrize("inside", ["set", ""])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_no_member_of_an_archive_is_written_outside_of_the_folder(tmp_path: Path, content: bytes, inside: str) -> None:
    file = tmp_path / "hostile"
    file.write_bytes(content)
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    with pytest.raises(ArchiveError, match="is a link, a device or a path out of it") as raised:
        extract_folder(file, inside, tmp_path / "deep" / "deeper" / "new")
    assert not raised.value.damaged
    written = {path for path in tmp_path.rglob("*") if not path.is_dir()}
    assert written <= {file, *(tmp_path / "deep" / "deeper" / "new").rglob("good.png")}


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    (tmp_path / "both").write_bytes(archive("tar", {"set/a.png": b"a", "set/z.zip": archive("zip", {"b.png": b"b"})}))
    extract_folder(tmp_path / "both", "set", tmp_path / "new")
    assert sorted(files_below(tmp_path / "new")) == ["a.png", "z.zip"]


# Interruptions, and several processes at once

FETCHER = """
import sys
from pathlib import Path
from benchmark.images.downloads import fetch
from benchmark.images.sources import UrlSource

folder, target, url, inside = sys.argv[1:]
fetch([UrlSource(url=url, inside=inside)], Path(folder) / target, Path(folder))
"""


def fetcher(folder: Path, target: str, url: str, inside: str = "") -> subprocess.Popen[bytes]:
    """A process that fetches a target."""
    return subprocess.Popen([sys.executable, "-c", FETCHER, str(folder), target, url, inside], cwd=ROOT)


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_a_download_continues_after_its_process_was_killed(server: Server, tmp_path: Path) -> None:
    served = server.files["/f.parquet"] = Served(CONTENT * 8, pause_s=0.05)
    process = fetcher(tmp_path, "f.parquet", f"{server.url}/f.parquet")
    wait_for(lambda: any(path.stat().st_size for path in tmp_path.glob(".downloads/*.part")))
    process.kill()
    process.wait()
    (partial,) = tmp_path.glob(".downloads/*.part")
    size = partial.stat().st_size
    served.pause_s = 0
    fetch([UrlSource(url=f"{server.url}/f.parquet")], tmp_path / "f.parquet", tmp_path)
    assert (tmp_path / "f.parquet").read_bytes() == served.content
    assert server.requests[-1][1] == f"bytes={size}-"


def test_no_target_appears_when_the_process_is_killed_while_it_extracts(server: Server, tmp_path: Path) -> None:
    files = {f"set/{index}.png": b"x" for index in range(1000)}
    server.files["/set.zip"] = Served(archive("zip", files))
    process = fetcher(tmp_path, "set", f"{server.url}/set.zip", "set")
    new = tmp_path / ".set.new"
    wait_for(lambda: new.is_dir() and any(new.iterdir()))
    process.kill()
    process.wait()
    (new / "of an earlier archive.png").write_bytes(b"x")
    assert not (tmp_path / "set").exists()
    fetch([UrlSource(url=f"{server.url}/set.zip", inside="set")], tmp_path / "set", tmp_path)
    assert len(files_below(tmp_path / "set")) == 1000
    assert not new.exists()
    assert len(server.requests) == 1


def test_processes_that_fetch_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.files["/set.zip"] = Served(archive("zip", PHOTOS | {"noise": os.urandom(500_000)}), pause_s=0.05)
    url = f"{server.url}/set.zip"
    asked = [("a", "set/photos"), ("a", "set/photos"), ("b", "set/drawings")]
    processes = [fetcher(tmp_path, target, url, inside) for target, inside in asked]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert files_below(tmp_path / "a") == {"a/1.png": b"one", "b/2.png": b"two"}
    assert files_below(tmp_path / "b") == {"3.png": b"three"}
    assert len(server.requests) == 1


# The Hub: its client reads the endpoint when it is imported, so it runs in a process of its own

CLIENT = """
import json, sys
from pathlib import Path
from benchmark.images.downloads import DownloadError, fetch
from benchmark.images.sources import HubSource

folder = Path(sys.argv[1])
for target, source in json.loads(sys.argv[2]):
    try:
        print(fetch([HubSource(**source)], folder / target, folder).model_dump_json())
    except DownloadError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def on_hub(server: Server, tmp_path: Path) -> Callable[..., list[Any]]:
    """Fetches from the server's Hub, and gives the origin of each target, or the error."""

    def on_hub(*jobs: tuple[str, dict[str, Any]], **environment: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, str(tmp_path / "data"), json.dumps(jobs)],
            env=hub_environment(server, tmp_path) | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return on_hub


def hub_environment(server: Server, folder: Path) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return known | {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}


SHARDS = {f"data/test-{index:05d}-of-00003.parquet": os.urandom(5000) for index in range(3)}


def test_a_file_of_the_hub_is_fetched_with_the_commit_that_it_came_from(
    server: Server, tmp_path: Path, on_hub: Callable[..., list[Any]]
) -> None:
    old, new = ({"data/test.parquet": content, "README.md": b"a card"} for content in (b"old", b"new"))
    server.repositories["me/set"] = Repository({COMMITS[0]: old, COMMITS[1]: new})
    source = {"hub": "me/set", "files": ["data/test.parquet"]}
    unpinned, pinned, card = on_hub(
        ("new.parquet", source),
        ("old.parquet", source | {"revision": COMMITS[0]}),
        ("card.md", source | {"files": ["README.md"]}),
    )
    assert (tmp_path / "data" / "new.parquet").read_bytes() == b"new"
    assert (tmp_path / "data" / "old.parquet").read_bytes() == b"old"
    assert [unpinned["revision"], pinned["revision"]] == [COMMITS[1], COMMITS[0]]
    assert unpinned["checksums"] == {"data/test.parquet": f"sha256:{hashlib.sha256(b'new').hexdigest()}"}
    assert card["checksums"]["README.md"].startswith("git-sha1:")


def test_shards_and_folders_of_the_hub_become_folders(
    server: Server, tmp_path: Path, on_hub: Callable[..., list[Any]]
) -> None:
    photos = {"test/n1/a.b.jpeg": b"1", "test/n2/c.jpeg": b"2"}
    server.repositories["me/set"] = Repository({COMMITS[0]: SHARDS | photos})
    on_hub(
        ("shards", {"hub": "me/set", "files": ["data/test-*.parquet"]}),
        ("photos", {"hub": "me/set", "files": ["test/*/*.jpeg"]}),
    )
    shards = {name.removeprefix("data/"): content for name, content in SHARDS.items()}
    assert files_below(tmp_path / "data" / "shards") == shards
    assert files_below(tmp_path / "data" / "photos") == {"n1/a.b.jpeg": b"1", "n2/c.jpeg": b"2"}


def test_an_archive_of_the_hub_is_kept_too(server: Server, tmp_path: Path, on_hub: Callable[..., list[Any]]) -> None:
    server.repositories["me/set"] = Repository({COMMITS[0]: {"set.zip": archive("zip", PHOTOS)}})
    source = {"hub": "me/set", "files": ["set.zip"], "revision": COMMITS[0]}
    on_hub(("photos", source | {"inside": "set/photos"}))
    server.repositories.clear()
    (known,) = on_hub(("drawings", source | {"inside": "set/drawings"}), HF_HUB_OFFLINE="1")
    assert known["revision"] == COMMITS[0]
    assert files_below(tmp_path / "data" / "photos") == {"a/1.png": b"one", "b/2.png": b"two"}
    assert files_below(tmp_path / "data" / "drawings") == {"3.png": b"three"}


def test_each_refusal_of_the_hub_says_what_to_do(
    server: Server, tmp_path: Path, on_hub: Callable[..., list[Any]]
) -> None:
    server.repositories["me/gated"] = Repository({COMMITS[0]: {"x.parquet": b"x"}}, gated="secret")
    server.repositories["me/set"] = Repository({COMMITS[0]: {"x.parquet": b"x"}})
    server.repositories["me/damaged"] = Repository({COMMITS[0]: {"x.parquet": b"x1"}}, damaged=True)
    gated, unknown, revision, file, damaged = on_hub(
        ("1.parquet", {"hub": "me/gated", "files": ["x.parquet"], "gated": True}),
        ("2.parquet", {"hub": "me/unknown", "files": ["x.parquet"]}),
        ("3.parquet", {"hub": "me/set", "files": ["x.parquet"], "revision": COMMITS[1]}),
        ("4.parquet", {"hub": "me/set", "files": ["x.parquet", "y-*.parquet"]}),
        ("5.parquet", {"hub": "me/damaged", "files": ["x.parquet"]}),
    )
    assert (
        "accept its terms at https://huggingface.co/datasets/me/gated, then `hf auth login`, or set HF_TOKEN" in gated
    )
    assert "there is no such data set, or it is private" in unknown
    assert f"it has no commit {COMMITS[1]}" in revision
    assert "it has no file y-*.parquet" in file
    assert "x.parquet arrived damaged, and was deleted" in damaged
    assert not list((tmp_path / "data").glob("*.parquet"))
    wrong, right = (
        on_hub(("1.parquet", {"hub": "me/gated", "files": ["x.parquet"]}), HF_TOKEN=token)[0]
        for token in ("wrong", "secret")
    )
    assert "accept its terms" in wrong
    assert right["source"] == "me/gated"
    (offline,) = on_hub(("6.parquet", {"hub": "me/set", "files": ["x.parquet"]}), HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids every connection; unset it" in offline
    (away,) = on_hub(("7.parquet", {"hub": "me/set", "files": ["x.parquet"]}), HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot reach it" in away
    assert "\n" not in away


# The commands

SETS = """
[image_set.fetched]
title = "Photographs"
local = "photos"
classes = ["a", "b"]
images = {images}
licence = "CC0"
redistributable = true
list_id = "all two"
source = "tests/test_downloads.py"
sources = [{{ url = "{url}/set.zip", md5 = "{md5}", inside = "set/photos" }}, {{ manual = "draw them" }}]

[image_set.hubbed]
title = "Photographs of the Hub"
local = "hub/test.parquet"
columns = {{ image = "img" }}
classes = ["a", "b"]
labels = "index"
images = 4
licence = "CC0"
source = "tests/test_downloads.py"
contamination = [{{ of = "Colours", share = 0.25, inspected = 4, source = "its author" }}]
sources = [{{ hub = "me/set", files = ["test.parquet"], gated = true }}]

[image_set.by-hand]
title = "Drawings"
local = "drawings"
licence = "CC0"
source = "tests/test_downloads.py"
sources = [{{ manual = "draw them" }}]

[model.trained]
title = "A network"
source = "state-dict:test_resnet"
weights = "nets/net.safetensors"
weights_sha256 = "{sha256}"
preprocessing = {{ input_size = [3, 32, 32], mean = [0, 0, 0], std = [1, 1, 1] }}
sources = [{{ url = "{url}/net.safetensors" }}]
"""


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "PNG")
    return stream.getvalue()


@dataclass
class Commands:
    """`python -m benchmark` with a suite whose sets come from a server."""

    server: Server
    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def options(self) -> list[str]:
        return ["--suite", str(self.folder / "colours.toml"), "--data-dir", str(self.data)]

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """The exit code, the output and the error output."""
        code = main([*arguments, *self.options])
        return code, *self.capsys.readouterr()


@pytest.fixture
def commands(server: Server, user_world: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return with_sets(server, user_world, capsys)


def with_sets(server: Server, folder: Path, capsys: pytest.CaptureFixture[str], **how: Any) -> Commands:
    content = archive("zip", {"set/photos/a/1.png": png("red"), "set/photos/b/2.png": png("blue"), "x": b"x"})
    server.files |= {"/set.zip": Served(content), "/net.safetensors": Served(b"weights")}
    values = {"images": 2, "md5": md5(content), "sha256": hashlib.sha256(b"weights").hexdigest(), "url": server.url}
    with (folder / "colours.toml").open("a") as suite:
        suite.write(SETS.format(**values | how))
    return Commands(server, folder, capsys)


def test_a_set_and_weights_are_fetched_once(commands: Commands) -> None:
    code, out, err = commands("fetch", "fetched", "trained")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(
        f"fetched: 2 images in {commands.data}/photos, from {commands.server.url}/set.zip"
    )
    assert "trained: 0.0 MB in" in out
    known = fetched(commands.data / "photos", commands.data)
    assert known is not None
    assert known.verified
    assert commands("fetch", "fetched")[0] == 0
    assert len(commands.server.requests) == 2


def test_the_state_of_a_set_says_what_is_there(commands: Commands) -> None:
    def states() -> dict[str, str]:
        _, out, _ = commands("sets", "fetched", "hubbed", "by-hand", "noise", "--json")
        return {about["id"]: about["state"] for about in json.loads(out)}

    assert states() == {"fetched": "missing", "hubbed": "missing", "by-hand": "missing", "noise": "there"}
    (commands.data / "drawings").mkdir(parents=True)
    assert states()["by-hand"] == "missing"
    (commands.data / "drawings" / "1.png").write_bytes(b"not even an image: none is read")
    commands("fetch", "fetched")
    assert states() == {"fetched": "fetched", "hubbed": "missing", "by-hand": "there", "noise": "there"}
    (commands.data / "photos" / "a" / "1.png").unlink()
    assert states()["fetched"] == "incomplete"


def test_a_set_with_a_list_is_complete_when_the_files_of_the_list_are_there(commands: Commands) -> None:
    suite = commands.folder / "colours.toml"
    suite.write_text(suite.read_text().replace('list_id = "all two"', 'list_id = "all two"\nlist_file = "two.csv"'))
    code, _, err = commands("fetch", "fetched")
    assert code == 1
    assert err == f"fetched: the list of its images is missing: put it at {commands.data}/two.csv by hand\n"
    assert "state     incomplete" in commands("sets", "fetched")[1]
    (commands.data / "two.csv").write_text("path,class\na/1.png,a\nb/3.png,b\n")
    assert "state     incomplete" in commands("sets", "fetched")[1]
    (commands.data / "two.csv").write_text("path,class\na/1.png,a\nb/2.png,b\n")
    assert "state     there" in commands("sets", "fetched")[1]
    assert commands("fetch", "fetched")[0] == 0
    assert "state     fetched" in commands("sets", "fetched")[1]
    assert len(commands.server.requests) == 1


def test_the_table_of_sets_is_complete_and_fits(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        _, out, _ = commands("sets")
        assert [line.split()[0] for line in out.splitlines()[1:6]] == list(WORLD)
        assert max(map(len, out.splitlines()[:6])) <= columns
    _, out, _ = commands("sets", "fetched", "hubbed", "by-hand")
    for told in (
        "fetched: Photographs",
        "list: all two",
        "CC0; may be passed on",
        f"from 1    {commands.server.url}/set.zip",
        "from 2    by hand: draw them",
        "25.0% of 4 inspected images show a class of Colours; its author",
        "python -m benchmark fetch hubbed --suite",
    ):
        assert told in out


WORLD = ("colours-train", "colours-val", "colours-test", "greys", "noise")


@pytest.mark.parametrize(
    ("classes", "problem"),
    [(["a", "b"], "2 images in .*, 3 expected"), (["a", "b", "c"], "no image of class c")],
    ids=["count", "class"],
)
def test_a_set_that_does_not_fit_its_entry_does_not_count_as_fetched(
    server: Server, user_world: Path, capsys: pytest.CaptureFixture[str], classes: list[str], problem: str
) -> None:
    commands = with_sets(server, user_world, capsys, images=3)
    suite = user_world / "colours.toml"
    suite.write_text(suite.read_text().replace('classes = ["a", "b"]\nimages', f"classes = {classes}\nimages"))
    code, _, err = commands("fetch", "fetched")
    assert code == 1
    assert re.match(f"fetched: what was fetched is not what its entry says, .*{problem}.*delete .*photos", err)
    assert err.count("\n") == 1
    known = fetched(commands.data / "photos", commands.data)
    assert known is not None
    assert not known.verified


def test_weights_with_another_hash_are_not_trusted(
    server: Server, user_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = with_sets(server, user_world, capsys, sha256="0" * 64)
    code, _, err = commands("fetch", "trained")
    assert code == 1
    assert re.match("trained: .*has the sha256 .*0000 expected: do not trust it; delete it", err)


def test_each_set_that_cannot_be_fetched_gives_one_line(commands: Commands) -> None:
    code, out, err = commands("fetch", "by-hand", "fetched")
    assert code == 1
    assert err == f"by-hand: it has to be fetched by hand: draw them; put it at {commands.data}/drawings\n"
    assert out.startswith("fetched: 2 images")
    code, out, err = commands("fetch", "fetchd", "fetched")
    assert (code, out) == (1, "")
    assert err.startswith("nothing is called 'fetchd' (did you mean 'fetched'?); ")
    assert commands("fetch", "net")[2].startswith("nothing is called 'net'")
    assert commands("sets", "nois")[2].startswith("nothing is called 'nois' (did you mean 'noise'?)")


def test_one_source_can_be_chosen(commands: Commands) -> None:
    code, _, err = commands("fetch", "fetched", "--from", "2")
    assert code == 1
    assert "by hand: draw them" in err
    assert "there is no source 3: it has 2 sources" in commands("fetch", "fetched", "--from", "3")[2]
    assert commands("fetch", "fetched", "--from", "1")[0] == 0


def test_a_full_disk_is_told_and_the_download_continues_later(commands: Commands) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code, _, err = commands("fetch", "fetched")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert re.match("fetched: cannot write .*: File too large; .*--data-dir", err)
    assert commands("fetch", "fetched")[0] == 0
    assert commands.server.requests[1][1] == "bytes=100-"


def test_a_data_folder_that_cannot_be_written_is_named(commands: Commands) -> None:
    commands.data.write_text("a file")
    code, _, err = commands("fetch", "fetched")
    assert code == 1
    assert re.match("fetched: cannot write .*/data.*--data-dir", err)
    assert err.count("\n") == 1


def test_an_interrupted_fetch_continues_later(commands: Commands) -> None:
    served = commands.server.files["/net.safetensors"]
    served.content, served.pause_s = b"weights" * 100_000, 0.05

    def interrupt() -> None:
        wait_for(lambda: any(path.stat().st_size for path in commands.data.glob(".downloads/*.part")))
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    code, _, err = commands("fetch", "trained")
    assert code == 130, err
    assert "interrupted; trained: what is downloaded is kept, and the same command goes on with it" in err
    served.pause_s = 0
    commands("fetch", "trained")
    assert (commands.data / "nets" / "net.safetensors").read_bytes() == served.content
    assert commands.server.requests[-1][1] is not None


def test_a_parquet_file_of_the_hub_becomes_a_set(commands: Commands) -> None:
    images = [{"bytes": png(colour), "path": None} for colour in ("red", "blue", "green", "white")]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"img": images, "label": [0, 1, 1, 0]}, features=features)
    table.to_parquet(commands.folder / "made.parquet")
    content = (commands.folder / "made.parquet").read_bytes()
    commands.server.repositories["me/set"] = Repository({COMMITS[0]: {"test.parquet": content}}, gated="secret")
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", "fetch", "hubbed", *commands.options],
        env=hub_environment(commands.server, commands.folder) | {"HF_TOKEN": "secret"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"hubbed: 4 images in {commands.data}/hub/test.parquet, from me/set at {COMMITS[0][:12]}" in done.stdout
    _, out, _ = commands("sets", "hubbed")
    assert "state     fetched" in out
    assert f"from me/set at {COMMITS[0]}" in out
