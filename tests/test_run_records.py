"""Which of several runs counts, and what is told of a run whose date cannot be right."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmark import load_results
from benchmark.limits.comparison_table import compare_with_records
from benchmark.records import Case, DetectorRecord, Estimate, ModelRecord, Record, SetRecord
from benchmark.results import ResultsFolder, RunId
from benchmark.run_records import RecordedRuns, newest, read_folder, stale
from benchmark.suites.loading import load_suite
from leaderboard.__main__ import main as leaderboard
from tests.test_leaderboard import detector_record, model_record, run_record, set_record, sha256, write_suite
from tests.test_records import CASE

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def _runs(folder: Path, **started: datetime) -> list[str]:
    """The ids of the runs of a folder in the order in which they count, at NOW."""
    for run, when in started.items():
        write_suite(folder, run=run, started=when.isoformat(), models=["digits-resnet"], detectors=["msp"])
    return [records.run.run for records in read_folder(folder, now=NOW).runs]


def test_a_run_in_the_future_counts_as_the_oldest(tmp_path: Path) -> None:
    days = {"old": -100, "today": 0, "zone": 0.9, "tomorrow": 1.1, "next-century": 40_000}
    order = _runs(tmp_path, **{run: NOW + timedelta(days=after) for run, after in days.items()})
    assert order == ["zone", "today", "old", "next-century", "tomorrow"]
    notes = read_folder(tmp_path, now=NOW).notes
    assert [note.split(" started")[0] for note in notes] == [
        "digits/next-century.jsonl: run next-century",
        "digits/tomorrow.jsonl: run tomorrow",
    ]
    assert all("\n" not in note and "in the future: it counts as the oldest run" in note for note in notes)


def test_a_run_in_the_future_hides_nothing_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    today = datetime.now(UTC)
    _runs(tmp_path / "results", today=today, future=today + timedelta(days=400))

    assert leaderboard(["build", "--results", str(tmp_path / "results"), "--output", str(tmp_path / "site")]) == 0
    assert "run future started at" in capsys.readouterr().err
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "digits/future.jsonl: run future started at" in page
    rows = (tmp_path / "site" / "records.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert rows
    assert all(",today," in row for row in rows)

    with pytest.warns(UserWarning, match="run future started at .* in the future"):
        results = load_results(tmp_path / "results")
    assert {case.run for case in results.cases} == {"today"}


def test_published_figures_are_compared_with_the_newest_run_that_has_a_date(tmp_path: Path) -> None:
    suite = load_suite("himplos-cifar10")
    figure = next(figures[0] for figures in suite.published.values() if figures[0].set in suite.image_sets)
    today = datetime.now(UTC)

    def at(run: str, when: datetime, value: float) -> None:
        def change(record):  # type: ignore[no-untyped-def]
            if record.kind != "case" or record.set != "letters" or record.metrics is None:
                return record if record.kind == "run" else None
            estimate = {"value": value, "low": value, "high": value}
            metrics = type(record.metrics).model_validate(
                record.metrics.model_dump() | {"fpr_at_95": estimate}, strict=False
            )
            names = {"model": figure.model, "detector": figure.detector, "set": figure.set, "metrics": metrics}
            return record.model_copy(update=names)

        write_suite(tmp_path, suite.id, run, when.isoformat(), ["digits-resnet"], ["msp"], change)

    at("a-newest", today, 0.25)
    at("z-older", today - timedelta(days=3), 0.5)  # which the order of the files' names takes for the newest
    at("zz-future", today + timedelta(days=30), 0.75)
    compared, notes = compare_with_records(suite, tmp_path)
    measured = {c.measured.value for c in compared if c.figure.cell == figure.cell and c.measured}
    assert measured == {0.25}
    assert len(notes) == 1
    assert "run zz-future started at" in notes[0]


# --- What a file holds, and which record counts. ---

DATE = "2026-05-01T10:00:00+00:00"
KEY = ("digits-vit", "msp", "letters")


def records_of(run: str = "r", suite: str = "digits") -> list[Record]:
    """The records of a run: of a model, a detector, the sets of each role, and one case with a shifted set."""
    ids = {"run": run, "suite": suite}
    roles = {"id-train": "train", "id-val": "val", "id-test": "test", "letters": "far", "more": "far"}
    shifted = {"dark": "shifted", "not-used": "shifted", "tuned-on": "tuning"}
    share = Estimate(value=0.5, low=0.4, high=0.6)
    case = CASE.model_copy(
        update={"model": KEY[0], "detector": KEY[1], "set": KEY[2], "shifted_accepted": {"dark": share}, **ids}
    )
    return [
        run_record(DATE, **ids),
        *(set_record(set_id, role, **ids) for set_id, role in (roles | shifted).items()),
        model_record(KEY[0], **ids),
        detector_record(KEY[1], **ids),
        case,
    ]


def written(folder: Path, *records: Record) -> RecordedRuns:
    for record in records:
        ResultsFolder(folder).add(record)
    return read_folder(folder, now=NOW)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("digits-vit", "checkpoint of the model"),
        ("msp", "source file of the detector"),
        ("letters", "version of letters"),
        ("id-train", "version of id-train"),
        ("id-val", "version of id-val"),
        ("id-test", "version of id-test"),
        ("dark", "version of dark"),
        ("more", None),  # another OOD set than the case's
        ("not-used", None),
        ("tuned-on", None),
    ],
)
def test_a_case_is_stale_where_what_its_figures_depend_on_has_changed(
    tmp_path: Path, part: str, told: str | None
) -> None:
    [run] = written(tmp_path, *records_of()).runs
    now = newest([run])
    assert stale(run.cases[KEY], run, now) is None
    other = sha256("another")
    for parts, name in ((now.models, "weights"), (now.detectors, "source"), (now.sets, "content")):
        if part in parts:
            parts[part] = parts[part].model_copy(update={f"{name}_sha256": other})  # type: ignore[index]
    assert stale(run.cases[KEY], run, now) == (told and f"made with an older {told}")


def test_a_case_is_stale_in_all_that_changed_or_is_gone(tmp_path: Path) -> None:
    [run] = written(tmp_path, *records_of()).runs
    now = newest([run])
    now.models.clear()
    now.sets["letters"] = now.sets["letters"].model_copy(update={"content_sha256": sha256("another")})
    told = stale(run.cases[KEY], run, now)
    assert told == "made with an older checkpoint of the model and an older version of letters"


def test_of_two_records_in_a_run_the_later_counts(tmp_path: Path) -> None:
    first = records_of()
    later = [
        first[-1].model_copy(update={"reason": "later"}),
        first[-2].model_copy(update={"source_sha256": sha256("later")}),
        first[-3].model_copy(update={"weights_sha256": sha256("later")}),
        first[1].model_copy(update={"content_sha256": sha256("later")}),
        first[-1].model_copy(update={"set": "more"}),
    ]
    [run] = written(tmp_path, *first, *later).runs
    assert run.cases[KEY].reason == "later"
    assert set(run.cases) == {KEY, ("digits-vit", "msp", "more")}
    assert run.detectors["msp"].source_sha256 == sha256("later")
    assert run.models["digits-vit"].weights_sha256 == sha256("later")
    assert run.sets["id-train"].content_sha256 == sha256("later")


def test_the_newest_record_of_each_part_counts_and_a_case_that_was_skipped_does_not(tmp_path: Path) -> None:
    def at(run: str, day: int, change: Callable[[Record], Record | None]) -> list[Record]:
        records = [change(record) for record in records_of(run)]
        dated = [record for record in records if record is not None]
        return [dated[0].model_copy(update={"started": f"2026-05-{day:02d}T10:00:00"}), *dated[1:]]

    def skipped(record: Record) -> Record | None:
        return record.model_copy(update={"status": "skipped"}) if isinstance(record, Case) else record

    def other_parts(record: Record) -> Record | None:
        if isinstance(record, ModelRecord):
            return record.model_copy(update={"weights_sha256": sha256("old")})
        if isinstance(record, DetectorRecord):
            return record.model_copy(update={"source_sha256": sha256("old")})
        return record.model_copy(update={"content_sha256": sha256("old")}) if isinstance(record, SetRecord) else record

    def only_skipped(record: Record) -> Record | None:
        return record.model_copy(update={"set": "a-first", "status": "skipped"}) if isinstance(record, Case) else record

    folder = written(
        tmp_path,
        *at("old", 1, other_parts),
        *at("middle", 2, lambda record: record),
        *at("new", 3, skipped),
        *at("never", 4, only_skipped),
    )
    assert [run.run.run for run in folder.runs] == ["never", "new", "middle", "old"]
    now = folder.suites["digits"]
    assert {key: run.run.run for key, run in now.origin.items()} == {KEY: "middle", (*KEY[:2], "a-first"): "never"}
    assert list(now.origin) == sorted(now.origin)  # the first was found last
    assert [case.status for case in now.cases] == ["skipped", "error"]
    assert now.models["digits-vit"].weights_sha256 == sha256("digits-vit") != sha256("old")
    assert now.detectors["msp"].source_sha256 != sha256("old")
    assert now.sets["letters"].content_sha256 == sha256("letters")


def test_runs_are_of_their_suite_and_a_file_of_another_suite_is_not_read(tmp_path: Path) -> None:
    folder = written(tmp_path, *records_of("r", "one"), *records_of("r", "two"), *records_of("s", "two"))
    assert {suite: [run.run.run for run in now.runs] for suite, now in folder.suites.items()} == {
        "one": ["r"],
        "two": ["s", "r"],
    }
    ResultsFolder(tmp_path).file(RunId("one", "r")).write_text("damaged\n")
    assert len(read_folder(tmp_path, now=NOW).damage) == 1
    of_two = read_folder(tmp_path, suite="two", now=NOW)
    assert [run.run.suite for run in of_two.runs] == ["two", "two"]
    assert of_two.damage == []


def test_of_runs_that_began_at_once_the_one_with_the_later_name_is_newer(tmp_path: Path) -> None:
    assert _runs(tmp_path, b=NOW, c=NOW, a=NOW) == ["c", "b", "a"]


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of this machine cannot be changed")
def test_a_date_without_a_time_zone_is_of_utc_and_another_zone_is_minded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # whatever that of this machine is
    time.tzset()
    request.addfinalizer(lambda: (monkeypatch.undo(), time.tzset()))
    for run, started in {
        "utc": "2026-05-01T10:00:00",
        "east": "2026-05-01T11:30:00+02:00",
        "west": "2026-05-01T09:00:00-02:00",
    }.items():
        ResultsFolder(tmp_path).add(run_record(started, run=run, suite="digits"))
    assert [run.run.run for run in read_folder(tmp_path, now=NOW).runs] == ["west", "utc", "east"]
    assert {run.started.utcoffset() for run in read_folder(tmp_path, now=NOW).runs if run.run.run == "utc"} == {
        timedelta(0)
    }


def test_a_record_of_a_run_without_its_first_line_is_named(tmp_path: Path) -> None:
    records = records_of("r", "one")
    folder = ResultsFolder(tmp_path)
    for record in (*records, *records_of("r", "two")[1:]):  # which the file of the second suite does not begin with
        folder.add(record)
    found = read_folder(tmp_path, now=NOW)
    assert [run.run.suite for run in found.runs] == ["one"]
    assert len(found.damage) == 1
    assert "two/r.jsonl: no record of kind 'run' for run 'r' of suite 'two'" in found.damage[0]
    # One file may hold two runs, of which each keeps its own.
    lines = [folder.file(RunId(suite, "r")).read_text() for suite in ("one", "two")]
    folder.file(RunId("one", "r")).write_text("".join(lines))
    folder.file(RunId("two", "r")).unlink()
    found = read_folder(tmp_path, now=NOW)
    assert (found.runs, len(found.damage)) == ([], 1)
    folder.file(RunId("one", "r")).write_text(
        run_record(DATE, run="r", suite="two").model_dump_json() + "\n" + "".join(lines)
    )
    found = read_folder(tmp_path, now=NOW)
    assert sorted((run.run.suite, len(run.cases)) for run in found.runs) == [("one", 1), ("two", 1)]


def test_a_last_line_that_a_kill_cut_off_is_noted(tmp_path: Path) -> None:
    folder = written(tmp_path, *records_of())
    assert folder.notes == []
    with ResultsFolder(tmp_path).file(RunId("digits", "r")).open("a") as file:
        file.write('{"kind": "ca')
    found = read_folder(tmp_path, now=NOW)
    assert found.notes == ["digits/r.jsonl: its last line was cut off by a kill and is left out"]
    assert len(found.runs[0].cases) == 1
