"""Processes that are killed between two steps. What they leave is old or new, never neither, and no litter for ever."""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmark import files
from benchmark.files import (
    exchange,
    held,
    is_held,
    remove,
    remove_litter,
    replacing,
    scratch_beside,
    signature,
    write_atomically,
)
from benchmark.images.downloads import fetch, fetched
from benchmark.images.origins import Fetched, write_fetched
from benchmark.images.sources import UrlSource
from benchmark.limits.baselines import Baseline, read_baselines, update_baselines
from benchmark.results import ResultsFolder, RunId
from benchmark.running.store import Store
from benchmark.scores import ScoresOf, scores_table
from leaderboard import site
from tests.local_servers import Served, running

MOST_STEPS = 400
YESTERDAY_S = files.STALE_S + 60


def _killed_at(step: int, work: Callable[[], Any]) -> bool:
    """Does some work in a process of its own, which is killed at a step of it: a call that Python audits, such as one
    that makes, renames or removes a file. Whether the work ended before that step.
    """
    child = os.fork()
    if child == 0:
        steps = iter(range(step))

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            audited = event.startswith(("os.", "shutil.", "open", "ctypes.", "fcntl.")) and event != "os.kill"
            if audited and next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        failed = 1
        try:
            sys.addaudithook(count)
            work()
            failed = 0
        finally:
            os._exit(failed)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def _make_old(*places: Path) -> None:
    for place in places:
        then = time.time() - YESTERDAY_S
        os.utime(place, (then, then))


# --- The site. ---

PAGES = ("index.html", "records.csv", "records.json", "schema.json", "suites/digits.html", "models/net.html")


def _write_pages(content: str, results: Any, folder: Path) -> list[str]:
    for name in PAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return []


def _content(output: Path) -> set[str] | None:
    """What the pages of a site say; None where a page is missing."""
    if not all((output / name).is_file() for name in PAGES):
        return None
    return {(output / name).read_text() for name in PAGES}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed in a copy of itself")
@pytest.mark.parametrize("can_exchange", [True, False])
def test_wherever_a_build_is_killed_there_is_a_whole_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(site, "exchange", lambda one, other: False)
    output = tmp_path / "site"
    missing, met = 0, set()

    def build(content: str) -> None:
        monkeypatch.setattr(site, "_write_site", partial(_write_pages, content))
        site.build_site(None, output)  # type: ignore[arg-type]

    build("old")
    for step in range(MOST_STEPS):
        ended = _killed_at(step, partial(build, "new"))
        missing += not output.exists()
        # Where there is none, the next build finds one, even if that build comes to nothing.
        site._bring_back(output)
        content = _content(output)
        assert content in ({"old"}, {"new"}), step
        met |= content
        _make_old(*tmp_path.glob(".site-*"))
        build("old")
        assert [path.name for path in tmp_path.iterdir()] == ["site"]
        assert _content(output) == {"old"}
        if ended:
            break
    else:
        pytest.fail(f"the build has more than {MOST_STEPS} steps")
    assert met == {"old", "new"}
    assert bool(missing) == (not can_exchange)  # the broken twin: two renames have a moment without a site


def test_this_system_can_exchange_two_folders_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "1").mkdir(parents=True)
    (other / "2").mkdir(parents=True)
    if not exchange(one, other):
        pytest.skip("it cannot; the site is then put in its place by two renames")
    assert (one / "2").is_dir()
    assert (other / "1").is_dir()
    assert not exchange(one, tmp_path / "nowhere")
    assert (one / "2").is_dir()


def test_a_folder_of_somebody_else_is_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_write_site", partial(_write_pages, "new"))
    notes = tmp_path / ".site-mynotes1"
    (notes / "important").mkdir(parents=True)
    _make_old(notes)
    site.build_site(None, tmp_path / "site")  # type: ignore[arg-type]
    assert (notes / "important").is_dir()


# --- Litter. ---


def test_only_what_is_old_and_in_nobodys_hands_is_removed(tmp_path: Path) -> None:
    old, young, in_use = (tmp_path / f".writing-{name}" for name in ("old", "young", "in-use"))
    for file in (old, young, in_use):
        file.write_bytes(b"half")
    _make_old(old, in_use)
    with in_use.open() as opened:
        assert files._take(opened.fileno())
        assert is_held(in_use)
        write_atomically(tmp_path / "made", b"whole")
        assert {path.name for path in tmp_path.iterdir()} == {"made", ".writing-young", ".writing-in-use"}
    remove_litter(tmp_path, ".writing-*")
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".writing-young"}


def test_a_file_that_is_written_for_more_than_a_day_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "slow") as temporary:
        _make_old(temporary)
        write_atomically(tmp_path / "other", b"1")
        temporary.write_bytes(b"2")
    assert (tmp_path / "slow").read_bytes() == b"2"


def test_a_folder_in_which_something_is_built_for_more_than_a_day_stays(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "site", "new") as scratch:
        _make_old(scratch)
        with scratch_beside(tmp_path / "site", "new") as other:
            assert scratch.is_dir()
            assert other != scratch
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed in a copy of itself")
def test_a_killed_write_leaves_the_old_file_and_a_later_one_cleans_up(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"old")
    for step in range(MOST_STEPS):
        ended = _killed_at(step, partial(write_atomically, place, b"new"))
        assert place.read_bytes() in (b"old", b"new")
        if ended:
            break
        place.write_bytes(b"old")
    left = list(tmp_path.glob(".writing-*"))
    assert left
    _make_old(*left)
    write_atomically(place, b"last")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_later_run_cleans_the_store_and_the_results(tmp_path: Path) -> None:
    of = ScoresOf("s", "r", "net", "msp", "a")
    table = scores_table(of, ["b"], np.array([0.5]))
    results, path = ResultsFolder(tmp_path / "results"), of.path
    results.write_scores(RunId("s", "r"), path, table)
    assert results.scores(RunId("s", "r"), path) == table
    left = [tmp_path / "results" / "s" / "r" / "net" / name for name in (".writing-0123", "knn.writing")] + [
        tmp_path / "store" / "0a1b" / ".writing-0123"
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    _make_old(*left)
    results.remove_litter()
    Store(tmp_path / "store").remove_litter()
    found = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert found == ["a.parquet"]


def test_a_later_fetch_removes_what_killed_ones_left_in_the_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    there, gone, now = data / "sets" / "there.bin", data / "sets" / "gone.bin", data / "sets" / "now.bin"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"1")
    origin = Fetched(source="https://host.org/x", checksums={}, date="2026-01-01")
    for target in (there, gone):
        write_fetched(origin, target, data)
    half = data / "sets" / ".gone.bin.new"
    half.write_bytes(b"half")
    writing = data / ".fetched" / "sets" / ".writing-0123"
    writing.write_bytes(b"half")
    partial_download = data / ".downloads" / "url-0.part"
    partial_download.parent.mkdir(exist_ok=True)
    partial_download.write_bytes(b"half")
    _make_old(half, writing, partial_download, *(data / ".fetched" / "sets").glob("*.json"))
    with running() as server:
        server.files["/now.bin"] = Served(b"2")
        fetch([UrlSource(url=f"{server.url}/now.bin")], now, data)
    assert fetched(gone, data) is None
    assert fetched(there, data) == origin
    assert not half.exists()
    assert not writing.exists()
    assert partial_download.exists()  # a later fetch goes on with it


# --- Two at once. ---


def _record(file: Path, cases: list[str], case: str) -> None:
    update_baselines(file, cases, {case: Baseline(0.5, 0.1, "run r", "2026-01-01")})


def test_runs_that_record_baselines_at_once_lose_none(tmp_path: Path) -> None:
    file = tmp_path / "new" / "baselines.csv"
    cases = [f"net/msp/{index}" for index in range(24)]
    with get_context("fork").Pool(8) as pool:
        pool.starmap(_record, [(file, cases, case) for case in cases], chunksize=1)
    assert sorted(read_baselines(file, cases)) == sorted(cases)
    assert [path.name for path in file.parent.iterdir()] == ["baselines.csv"]  # no file that a lock leaves


def test_who_holds_a_folder_makes_others_wait(tmp_path: Path) -> None:
    """The broken twin of the test above: without the wait, both would be inside at once."""
    with get_context("fork").Pool(1) as pool:
        with held(tmp_path):
            waiting = pool.apply_async(_hold, (tmp_path,))
            time.sleep(0.3)
            assert not (tmp_path / "inside").exists()
        waiting.get(timeout=30)
    assert (tmp_path / "inside").exists()


def _hold(folder: Path) -> None:
    with held(folder):
        (folder / "inside").touch()


# --- What the disk says of files. ---


@pytest.mark.parametrize("change", ["st_size", "st_mtime_ns", "st_ctime_ns"])
def test_a_signature_changes_with_each_thing_that_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    said = {"st_size": 3, "st_mtime_ns": 10, "st_ctime_ns": 20}
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(**said))
    before = signature([tmp_path / "a"])
    assert signature([str(tmp_path / "a")]) == before
    said[change] += 1
    assert signature([tmp_path / "a"]) != before


def test_a_signature_is_of_the_files_in_their_order(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("x")
    os.link(one, other)  # of which the disk says the same
    assert len({signature(files) for files in ([one], [other], [one, other], [other, one], [one, one])}) == 5
    with pytest.raises(FileNotFoundError):
        signature([one, tmp_path / "gone"])


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    assert (tmp_path / "theirs" / "file").read_text() == "kept"
    remove(tmp_path / "theirs")
    remove(tmp_path / "theirs")  # what is not there is no error
    assert not list(tmp_path.iterdir())


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine that loses its power could leave an empty file under a name that is trusted."""
    steps: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (steps.append(name), real(*given))[1])
    write_atomically(tmp_path / "file", b"content")
    assert steps == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == b"content"
