"""Which of several runs counts, and what is told of a run whose date cannot be right."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmark import load_results
from benchmark.limits.comparison_table import compare_with_records
from benchmark.records import Estimate
from benchmark.run_records import newest, read_folder, stale
from benchmark.suites.loading import load_suite
from leaderboard.__main__ import main as leaderboard
from tests.test_leaderboard import write_suite

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


@pytest.mark.parametrize(
    ("role", "set_id", "counts"),
    [
        ("train", "other", True),
        ("val", "other", True),
        ("test", "other", True),
        ("far", "letters", True),
        ("shifted", "dark", True),
        ("shifted", "other", False),
        ("far", "photo-patches", False),
        ("tuning", "other", False),
    ],
)
def test_a_case_is_stale_where_an_image_set_that_it_depends_on_has_changed(
    tmp_path: Path, role: str, set_id: str, counts: bool
) -> None:
    write_suite(tmp_path, models=["digits-resnet"], detectors=["msp"])
    [then] = read_folder(tmp_path).runs
    case = then.cases["digits-resnet", "msp", "letters"]
    shift = Estimate(value=0.5, low=0.4, high=0.6)
    case = case.model_copy(update={"shifted_accepted": {"dark": shift}})
    one = then.sets["letters"].model_copy(update={"id": set_id, "role": role, "content_sha256": "1" * 64})
    other = one.model_copy(update={"content_sha256": "2" * 64})
    then = replace(then, sets={**then.sets, set_id: one})
    now = newest([replace(then, sets={**then.sets, set_id: other})])
    assert bool(stale(case, then, now)) == counts
    assert stale(case, then, newest([then])) is None
    if counts:
        assert stale(case, then, now) == f"made with an older version of {set_id}"
