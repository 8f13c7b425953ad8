import json
from pathlib import Path

import pytest

from benchmark.records import (
    Case,
    Estimate,
    PublishedRecord,
    PublishedValue,
    RecordError,
    Run,
    append_record,
    read_records,
)

RUN = Run(
    suite_option="s.toml",
    run="r1",
    suite="s",
    started="2026-01-01T00:00:00+00:00",
    command="pytest",
    git_commit=None,
    git_dirty=None,
    packages={"torch": "2"},
    python="3.11",
    platform="p",
    device="d",
)
CASE = Case(
    run="r1",
    suite="s",
    model="net",
    detector="mahalanobis++",
    set="greys",
    role="near",
    status="error",
    expected=False,
    reason="it broke",
    metrics=None,
    timing=None,
    limit=None,
    scores=None,
)
PUBLISHED = PublishedRecord(
    run="r1",
    suite="s",
    model="net",
    detector="msp",
    name="greys:dark ones",
    sets=["greys"],
    measured=None,
    published=PublishedValue(fpr_at_95=0.5, tolerance=0.02, source="Table 1", difference=None, status="not run"),
)


def test_records_survive_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s" / "r1.jsonl"
    append_record(file, RUN)
    append_record(file, CASE)
    append_record(file, PUBLISHED)
    assert list(read_records(file)) == [RUN, CASE, PUBLISHED]
    assert json.loads(file.read_text().splitlines()[1])["metrics"] is None


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "r1.jsonl"
    append_record(file, RUN)
    with file.open("a") as lines:
        lines.write(CASE.model_dump_json()[:40])
    assert list(read_records(file)) == [RUN]


def changed(record: Case | PublishedRecord = CASE, **values: object) -> str:
    return json.dumps(json.loads(record.model_dump_json()) | values)


@pytest.mark.parametrize(
    "line",
    [
        changed(schema_version=2),
        changed(kind="virus"),
        changed(status="great"),
        changed(model="../../etc/passwd"),
        changed(model="<script>"),
        changed(status="passed"),
        changed(extra=1),
        changed(scores={"path": "../outside.parquet", "sha256": "0" * 64}),
        changed(scores={"path": "/absolute.parquet", "sha256": "0" * 64}),
        changed(metrics={"fpr_at_95": "0.5"}),
        changed(PUBLISHED, sets=[]),
        changed(PUBLISHED, sets=["greys:dark ones"]),
        changed(PUBLISHED, measured=0.5),
        '{"kind": "case"',
        "not json",
        "[]",
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    file = tmp_path / "r1.jsonl"
    append_record(file, RUN)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(RecordError, match=r"r1.jsonl:2: not a record of schema 1"):
        list(read_records(file))


@pytest.mark.parametrize(("low", "high"), [(0.6, 1.0), (0.0, 0.4), (0.6, 0.4)])
def test_an_interval_holds_its_value(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="outside of its interval"):
        Estimate(value=0.5, low=low, high=high)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "0.5", None])
def test_a_fraction_is_a_number_in_0_to_1(value: object) -> None:
    Estimate(value=0.5, low=0.0, high=1.0)
    with pytest.raises(ValueError, match="value"):
        Estimate(value=value, low=0.0, high=1.0)
