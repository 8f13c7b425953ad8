"""Scores: all figures of a record follow from the files of its run, and scores of another record are refused."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.metrics import measure
from benchmark.records import Case, ScoresFile
from benchmark.results import ResultsFolder, ResultsInMemory, RunId, scores_path
from benchmark.run_records import RunRecords, read_folder
from benchmark.scores import (
    METADATA,
    SCORES,
    CaseScores,
    ScoresError,
    ScoresOf,
    accuracy_in,
    read_case_scores,
    scores_of,
    scores_sha256,
    scores_table,
)
from tests.test_evaluation import records_of, session_of
from tests.test_records import CASE, RUN

OLD = Path(__file__).parent / "data" / "schema-2"


@pytest.fixture(scope="module")
def _results(_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run with labels, shifted sets, and an OOD set with classes."""
    world = shutil.copytree(_world, tmp_path_factory.mktemp("scores") / "world")
    greys = world / "images" / "greys"
    for number, image in enumerate(sorted(greys.rglob("*.png"))):
        folder = greys / ("light" if number % 3 else "heavy")
        folder.mkdir(exist_ok=True)
        image.rename(folder / f"{number}.png")
    session = session_of(world, '["dark", "two"]', ("classes = []", 'classes = ["heavy", "light"]'))
    session.results.add(RUN.model_copy(update={"run": "run", "suite": "colours"}))
    for set_id in ("noise", "greys"):
        for record in records_of(session, set_id=set_id):
            session.results.add(record)
    return world / "results"


@pytest.fixture
def results(_results: Path, tmp_path: Path) -> Path:
    return shutil.copytree(_results, tmp_path / "results")


def the_run(folder: Path) -> RunRecords:
    return read_folder(folder).runs[0]


def assert_figures_follow(folder: Path) -> None:
    """Asserts that every figure of a run follows from its files alone."""
    for run in read_folder(folder).runs:
        for case in run.cases.values():
            scores = read_case_scores(ResultsFolder(folder), case)
            classes = run.sets[case.set].classes
            assert case.metrics == scores.metrics(classes)
            assert case.full_spectrum in (None, scores.full_spectrum(classes))
            assert case.shifted_accepted == scores.shifted_accepted
            assert case.scores.sha256 == scores.sha256
            model = run.models[case.model]
            assert model.id_accuracy == accuracy_in(scores.test)
            assert model.network_accuracy in (
                accuracy_in(scores.test),
                accuracy_in(scores.test, "network_correct"),
            )
            assert model.shifted_accuracy == {set_id: accuracy_in(table) for set_id, table in scores.shifted.items()}


def test_every_figure_follows_from_the_files_of_the_run(results: Path) -> None:
    run = the_run(results)
    cases = run.cases.values()
    assert {case.set for case in cases} == {"noise", "greys"}
    assert all(case.metrics.oscr and case.full_spectrum and case.shifted_accepted for case in cases)
    assert [value.name for value in run.cases["net", "msp", "greys"].metrics.classes] == ["heavy", "light"]
    assert_figures_follow(results)


@pytest.mark.parametrize("column", ["score", "correct", "label"])
def test_a_changed_column_changes_a_figure(results: Path, column: str) -> None:
    """The broken twin: the figures need each column."""
    file = results / "colours" / the_run(results).cases["net", "msp", "greys"].scores.path
    file = file.with_name("colours-test.parquet") if column == "correct" else file
    table = pq.ParquetFile(file).read()
    values = table[column].to_numpy(zero_copy_only=False)
    other = ~values if column == "correct" else 1 - values
    pq.write_table(
        table.set_column(SCORES.names.index(column), column, pa.array(other, SCORES.field(column).type)), file
    )
    with pytest.raises((AssertionError, ScoresError)):
        assert_figures_follow(results)


def test_a_file_holds_one_set_and_says_so(results: Path) -> None:
    files = {file.relative_to(results).as_posix() for file in results.rglob("*.parquet")}
    sets = {"colours-test", "dark", "two", "noise", "greys"}
    assert files == {f"colours/run/net/msp/{set_id}.parquet" for set_id in sets}
    for file in results.rglob("*.parquet"):
        table = pq.ParquetFile(file).read()
        assert set(table["set"].to_pylist()) == {file.stem}
        assert table.schema.names == SCORES.names
        assert json.loads(table.schema.metadata[METADATA]) == {
            "schema": 3,
            "suite": "colours",
            "run": "run",
            "model": "net",
            "detector": "msp",
            "set": file.stem,
        }


def test_a_file_is_written_once(user_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    keep = ResultsFolder.write_scores
    monkeypatch.setattr(
        ResultsFolder,
        "write_scores",
        lambda self, run, path, table: (written.append(path), keep(self, run, path, table)),
    )
    session = session_of(user_world, '["dark"]')
    for set_id in ("noise", "greys"):
        records_of(session, set_id=set_id)
    assert sorted(written) == [f"run/net/msp/{set_id}.parquet" for set_id in ("colours-test", "dark", "greys", "noise")]


def test_the_hash_is_of_the_lines_that_records_document(results: Path) -> None:
    case = the_run(results).cases["net", "msp", "noise"]
    lines = []
    for set_id in ("colours-test", "noise"):
        table = pq.ParquetFile(results / f"colours/run/net/msp/{set_id}.parquet").read()
        lines += [f"{row['image']}\t{row['score'].hex()}\n" for row in table.to_pylist()]
    assert case.scores.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def _written_anew(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda file: pq.write_table(change(pq.ParquetFile(file).read()), file)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.unlink(), "not there"),
        (lambda file: file.write_bytes(b""), "Parquet"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "Parquet"),
        (_written_anew(lambda table: table.slice(0, 0)), "it has no rows"),
        (_written_anew(lambda table: table.drop_columns("score")), "score"),
        (_written_anew(lambda table: table.set_column(3, "score", pa.nulls(len(table)))), "it lacks images or scores"),
        (_written_anew(lambda table: table.set_column(3, "score", pa.array(["x"] * len(table)))), "x"),
        (
            _written_anew(lambda table: table.replace_schema_metadata({METADATA: '{"schema": 4}'})),
            "of schema 4.*update",
        ),
        *(
            (
                _written_anew(lambda table, schema=schema: table.replace_schema_metadata({METADATA: schema})),
                "of schema .*update",
            )
            for schema in (
                '{"schema": true}',
                '{"schema": 2.0}',
                '{"schema": "3"}',
                '{"schema": 0}',
                '{"schema": null}',
            )
        ),
        (_written_anew(lambda table: table.replace_schema_metadata({METADATA: "{"})), "its metadata are damaged"),
        (
            _written_anew(lambda table: table.replace_schema_metadata({METADATA: "[" * 9999})),
            "its metadata are damaged",
        ),
    ],
)
@pytest.mark.parametrize("of", ["colours-test", "noise", "dark"])
def test_scores_that_are_not_those_of_the_record_are_refused(
    results: Path, damage: Callable[[Path], None], says: str, of: str
) -> None:
    case = the_run(results).cases["net", "msp", "noise"]
    damage(results / "colours" / "run" / "net" / "msp" / f"{of}.parquet")
    with pytest.raises(ScoresError, match=rf"^colours/run/net/msp/{of}\.parquet: .*{says}") as error:
        read_case_scores(ResultsFolder(results), case)
    assert str(results) not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("of", ["colours-test", "noise"])
def test_scores_of_another_run_are_refused(results: Path, of: str) -> None:
    case = the_run(results).cases["net", "msp", "noise"]
    _written_anew(lambda table: table.slice(1))(results / "colours" / "run" / "net" / "msp" / f"{of}.parquet")
    with pytest.raises(ScoresError, match=r"noise\.parquet: its scores on noise are not those that were recorded"):
        read_case_scores(ResultsFolder(results), case)


def test_a_case_without_scores_says_so(results: Path) -> None:
    case = the_run(results).cases["net", "msp", "noise"].model_copy(update={"scores": None})
    with pytest.raises(ScoresError, match="colours/net/msp/noise: its run recorded no scores"):
        read_case_scores(ResultsFolder(results), case)


def test_runs_of_schema_2_are_read_and_their_scores_with_them() -> None:
    """tests/data/schema-2 was written by the code at 5cbe7f3; paths and the machine were made shorter by hand."""
    run = the_run(OLD)
    assert len(run.cases) == 4
    for case in run.cases.values():
        scores = read_case_scores(ResultsFolder(OLD), case)
        found = scores.metrics(run.sets[case.set].classes)
        assert found.oscr is found.aurc is found.aurc_id is None  # which need to know what was classified right
        assert found == case.metrics.model_copy(update={"oscr": None, "aurc": None, "aurc_id": None})
        assert accuracy_in(scores.test) is None
        assert (len(scores.test), len(scores.ood)) == (case.metrics.id_images, case.metrics.ood_images)


# --- Scores that a program keeps in memory. ---


def table_of(set_id: str, scores: Sequence[float], correct: Sequence[bool | None] | None = None) -> pa.Table:
    images = [f"{set_id}-{number}" for number in range(len(scores))]
    table = scores_table(ScoresOf("s", "r7", "net", "msp", set_id), images, np.array(scores, dtype=np.float64))
    if correct is None:
        return table
    return table.set_column(SCORES.names.index("correct"), "correct", pa.array(correct, pa.bool_()))


def kept(test: pa.Table, ood: pa.Table) -> tuple[ResultsInMemory, Case]:
    """The results of a run, and the record of a case of it."""
    results, run = ResultsInMemory(), RunId("s", "r7")
    paths = [scores_path("r7", "net", "msp", set_id) for set_id in ("test", "far")]
    for path, table in zip(paths, (test, ood), strict=True):
        results.write_scores(run, path, table)
        results.write_scores(RunId("s", "another"), path, table.slice(1))
    file = ScoresFile(path=paths[1], id_path=paths[0], sha256=scores_sha256(test, ood))
    return results, CASE.model_copy(update={"suite": "s", "run": "r7", "detector": "msp", "set": "far", "scores": file})


def test_scores_are_those_of_the_run_of_the_case() -> None:
    test, ood = table_of("test", [3.0, 2.0, 1.0]), table_of("far", [0.5, 2.5])
    results, case = kept(test, ood)
    assert read_case_scores(results, case).metrics([]) == measure([3.0, 2.0, 1.0], [0.5, 2.5])


def test_a_score_that_is_nan_is_refused_although_its_hash_is_right() -> None:
    results, case = kept(table_of("test", [3.0, 2.0]), table_of("far", [0.5, float("nan")]))
    with pytest.raises(ScoresError, match=r"^s/r7/net/msp/far\.parquet: a score is NaN"):
        read_case_scores(results, case)


def test_what_is_not_known_of_an_image_is_not_known_of_its_set() -> None:
    """A share of right answers over some of the images would be another figure."""
    known, partly = table_of("test", [3.0, 2.0], [True, False]), table_of("two", [3.0, 2.0], [True, None])
    ood = table_of("far", [0.5])
    assert accuracy_in(known).value == 0.5
    assert accuracy_in(partly) is None
    assert CaseScores(known, ood).metrics([]).oscr.value == 0.5
    assert CaseScores(partly, ood).metrics([]).oscr is None
    both = CaseScores(known, ood, {"two": partly})
    assert both.metrics([]).oscr.value == 0.5
    assert both.full_spectrum([]).oscr is None
    assert both.full_spectrum([]).id_images == 4


@pytest.mark.parametrize("results", ["folder", "memory"])
def test_scores_are_given_for_the_images_that_they_are_of_alone(tmp_path: Path, results: str) -> None:
    place = ResultsFolder(tmp_path) if results == "folder" else ResultsInMemory()
    of = ScoresOf("s", "r7", "net", "msp", "far")
    images = ["far-0", "far-1", "far-2"]
    assert scores_of(place, of, images) is None  # they are not there
    place.write_scores(RunId("s", "r7"), of.path, table_of("far", [0.5, 2.5, 1.0]))
    assert scores_of(place, of, images).tolist() == [0.5, 2.5, 1.0]
    for others in (images[::-1], images[:2], [*images, "far-3"], ["far-0", "far-1", "else"]):
        assert scores_of(place, of, others) is None
    assert scores_of(place, replace(of, run="gone"), images) is None
    place.write_scores(RunId("s", "r7"), of.path, table_of("far", [0.5, float("nan"), 1.0]))
    assert scores_of(place, of, images) is None
    for column in ("image", "score"):
        place.write_scores(RunId("s", "r7"), of.path, table_of("far", [0.5, 2.5, 1.0]).drop_columns(column))
        assert scores_of(place, of, images) is None
    if results == "folder":
        (tmp_path / "s" / of.path).write_bytes(b"PAR1 not really")
        assert scores_of(place, of, images) is None
