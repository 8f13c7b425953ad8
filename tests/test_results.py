"""Every backend keeps the same contract; the folder's files are those that readers know."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark import results as results_module
from benchmark.errors import UserError
from benchmark.records import RecordError
from benchmark.results import Backend, ResultsFolder, ResultsInMemory, RunId, scores_path
from benchmark.running.recorder import Recorder
from benchmark.scores import SCORES, ScoresOf, scores_table
from tests.test_records import CASE, PUBLISHED, RUN

BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "folder": lambda folder: ResultsFolder(folder / "results"),
    "memory": lambda folder: ResultsInMemory(),
}
HERE = RunId("s", "r1")
PATH = scores_path("r1", "net", "mahalanobis++", "greys")


def scores(**values: float) -> pa.Table:
    of = ScoresOf("s", "r1", "net", "mahalanobis++", "greys")
    return scores_table(of, [*values], np.array([*values.values()]))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return BACKENDS[request.param](tmp_path)


def test_records_come_back_in_order_run_by_run(backend: Backend) -> None:
    assert backend.runs() == []
    other = RUN.model_copy(update={"run": "r0"})
    for record in (RUN, other, CASE, PUBLISHED):
        backend.add(record)
    backend.close()
    assert backend.runs() == [RunId("s", "r0"), HERE]
    assert list(backend.records(HERE)) == [RUN, CASE, PUBLISHED]
    assert list(backend.records(RunId("s", "r0"))) == [other]
    assert list(backend.records(RunId("t", "r1"))) == []


def test_runs_are_sorted_by_suite_and_by_run(backend: Backend) -> None:
    names = [("t", "r1"), ("s", "r10"), ("s", "r2"), ("u", "a"), ("s", "r1"), ("t", "r0"), ("b", "z"), ("a", "z")]
    for suite, run in names:
        backend.add(RUN.model_copy(update={"suite": suite, "run": run}))
    assert backend.runs() == [RunId(*name) for name in sorted(names)]


def test_scores_replace_those_that_were_there(backend: Backend) -> None:
    assert backend.scores(HERE, PATH) is None
    backend.write_scores(HERE, PATH, scores(a=0.5))
    backend.write_scores(HERE, PATH, scores(a=0.5, b=float("inf")))
    assert backend.scores(HERE, PATH).equals(scores(a=0.5, b=float("inf")))
    assert backend.scores(RunId("t", "r1"), PATH) is None
    assert backend.scores(HERE, scores_path("r1", "net", "msp", "greys")) is None
    assert backend.runs() == []  # scores alone are no run


def test_each_names_the_run_in_messages(backend: Backend) -> None:
    assert "r1" in backend.name_of(HERE)
    assert Recorder(backend, RUN).place == backend.name_of(HERE)


def test_a_recorder_writes_the_run_first_and_each_description_once(backend: Backend) -> None:
    recorder = Recorder(backend, RUN)
    assert backend.runs() == []  # a run without records leaves nothing
    recorder.add([CASE, PUBLISHED])
    recorder.add([CASE])
    recorder.close()
    assert list(backend.records(HERE)) == [RUN, CASE, PUBLISHED, CASE]
    assert recorder.cases == [CASE, CASE]


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.add(RUN)
    folder.write_scores(HERE, PATH, scores(a=0.5))
    files = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {"s/r1.jsonl", "s/r1/net/mahalanobis++/greys.parquet"}
    assert (tmp_path / "s/r1.jsonl").read_text(encoding="utf-8") == RUN.model_dump_json() + "\n"
    assert pq.read_table(tmp_path / "s" / PATH).column_names == SCORES.names
    group = pq.ParquetFile(tmp_path / "s" / PATH).metadata.row_group(0)
    assert {group.column(at).compression for at in range(group.num_columns)} == {"ZSTD"}


@pytest.mark.parametrize("room", [100, 10_000_000])
def test_scores_that_declare_more_than_the_memory_holds_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Either many bytes, or rows that take next to none of them, such as a column of one value."""
    folder = ResultsFolder(tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(
        results_module, "too_large", lambda size: (asked.append(size), "too much" if size > room else "")[1]
    )
    folder.write_scores(HERE, PATH, scores(**{f"image-{number}": number / 7 for number in range(50)}))
    pq.write_table(pa.table({"score": pa.nulls(20_000_000)}), tmp_path / "s" / PATH.replace("greys", "nulls"))
    if room == 100:
        with pytest.raises(pa.ArrowException, match="its rows take too much: it is damaged"):
            folder.scores(HERE, PATH)
        assert asked[0] > 50 * 8
    else:
        assert len(folder.scores(HERE, PATH)) == 50
        with pytest.raises(pa.ArrowException, match="its rows take too much"):
            folder.scores(HERE, PATH.replace("greys", "nulls"))


def test_scores_that_cannot_be_written_leave_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ResultsFolder(tmp_path)
    folder.write_scores(HERE, PATH, scores(a=0.5))

    def half_written(table: pa.Table, file: Path, **options: object) -> None:
        file.write_bytes(b"PAR1")
        raise OSError("no space")

    monkeypatch.setattr(pq, "write_table", half_written)
    with pytest.raises(UserError, match=f"cannot write the scores {tmp_path}.*free some space"):
        folder.write_scores(HERE, PATH, scores(a=0.7))
    monkeypatch.undo()
    assert folder.scores(HERE, PATH).equals(scores(a=0.5))
    assert [file.name for file in (tmp_path / "s/r1/net/mahalanobis++").iterdir()] == ["greys.parquet"]


def test_a_damaged_record_is_an_error_of_its_run(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path)
    folder.add(RUN)
    folder.add(RUN.model_copy(update={"run": "r2"}))
    folder.file(HERE).write_text("no record\n")
    with pytest.raises(RecordError, match=r"r1\.jsonl:1: not a record"):
        list(folder.records(HERE))
    assert len(list(folder.records(RunId("s", "r2")))) == 1
