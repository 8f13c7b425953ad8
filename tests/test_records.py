import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from benchmark.records import (
    OOD_ROLES,
    Case,
    Estimate,
    OODRole,
    PublishedRecord,
    PublishedValue,
    RecordError,
    Run,
    ScoresFile,
    Timing,
    parse_record,
    read_records,
)

DATA = Path(__file__).parent / "data" / "schema-1" / "colours"

RUN = Run(
    suite_option="s.toml",
    run="r1",
    suite="s",
    started="2026-01-01T00:00:00+00:00",
    command="pytest",
    package_version="0.1.0",
    git_commit=None,
    git_dirty=None,
    user_git_commit="0123456789abcdef0123456789abcdef01234567",
    user_git_dirty=True,
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


def write(file: Path, *records: Run | Case | PublishedRecord) -> None:
    file.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")


def test_records_survive_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r1.jsonl"
    write(file, RUN, CASE, PUBLISHED)
    assert list(read_records(file)) == [RUN, CASE, PUBLISHED]
    assert json.loads(file.read_text().splitlines()[1])["metrics"] is None


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "r1.jsonl"
    write(file, RUN)
    with file.open("a") as lines:
        lines.write(CASE.model_dump_json()[:40])
    assert list(read_records(file)) == [RUN]


def changed(record: Case | PublishedRecord = CASE, **values: object) -> str:
    return json.dumps(json.loads(record.model_dump_json()) | values)


SHARE = {"value": 0.5, "low": 0.25, "high": 0.75}
METRICS = {
    "fpr_at_95": SHARE,
    "fpr_at_95_pooled": SHARE,
    "fpr_at_95_ood_positive": SHARE,
    "auroc": SHARE,
    "aupr_id": SHARE,
    "aupr_ood": SHARE,
    "threshold": 1.5,
    "id_images": 40,
    "ood_images": 0,
}
TIMING = {"device": "d", "fit_s": 0.0, "score_ms_per_image": 1.0, "forward_ms_per_image": 2.0, "forward_ratio": 0.5}
LIMIT = {"goal": 1.0, "fpr_at_95": 0.0, "forward_ratio": 0.0, "source": "goals"}
SCORES_FILE = {"path": "a.parquet", "id_path": "a.parquet", "sha256": "0123456789abcdef" * 4}


@pytest.mark.parametrize(
    "line",
    [
        changed(model="a" * 120, detector="0.+_-"),
        changed(status="passed", metrics=METRICS, limit=LIMIT, timing=TIMING, scores=SCORES_FILE),
        changed(status="failed", metrics=METRICS | {"threshold": None}),
        changed(status="failed", scores=SCORES_FILE | {"path": "a/" * 249 + "ab"}),
        *(changed(role=role) for role in ("near", "far", "cleaned", "contaminated", "unit-test")),
    ],
)
def test_a_line_that_fits_is_read(tmp_path: Path, line: str) -> None:
    """The twin of the next test: what it refuses lies just beyond."""
    file = tmp_path / "r1.jsonl"
    file.write_text(line + "\n")
    [record] = read_records(file)
    assert {name: value for name, value in json.loads(record.model_dump_json()).items() if value} == {
        name: value for name, value in (json.loads(CASE.model_dump_json()) | _with_defaults(line)).items() if value
    }


def _with_defaults(line: str) -> dict[str, Any]:
    """What a line says, with the fields of its parts that it does not say."""
    content = json.loads(line)
    for name, more in (
        ("metrics", {"classes": [], "oscr": None, "aurc": None, "aurc_id": None}),
        ("limit", {"known_failure": None}),
        ("scores", {"shifted_paths": {}}),
    ):
        if content[name]:
            content[name] = more | content[name]
    return content


def test_roles_of_ood_sets_are_listed_once() -> None:
    assert get_args(OODRole) == OOD_ROLES


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CASE.status = "passed"  # type: ignore[misc]


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path: Path) -> None:
    file = tmp_path / "r1.jsonl"
    file.write_bytes((RUN.model_dump_json() + "\n").encode() + b'{"kind": "\xff\xfe"}\n')
    with pytest.raises(RecordError, match=r"r1.jsonl:2: not a record"):
        list(read_records(file))


def test_scores_of_schema_2_are_those_of_the_shifted_sets_too(tmp_path: Path) -> None:
    """One file held those of all sets."""
    shifted = {"dark": SHARE, "blurred": SHARE}
    old = {"path": "r1/net/msp.parquet", "sha256": "0" * 64}
    file = tmp_path / "r1.jsonl"
    file.write_text(changed(schema_version=2, shifted_accepted=shifted, scores=old) + "\n")
    [record] = read_records(file)
    assert isinstance(record, Case)
    assert record.scores == ScoresFile(
        path=old["path"], id_path=old["path"], shifted_paths=dict.fromkeys(shifted, old["path"]), sha256=old["sha256"]
    )


@pytest.mark.parametrize(
    "line",
    [
        changed(schema_version=4),
        changed(schema_version=0),
        changed(schema_version="1"),
        changed(schema_version=True),
        changed(schema_version=[1]),
        changed(schema_version=1, status="great"),
        changed(schema_version=1, package_version="0.1.0"),
        changed(kind="virus"),
        changed(status="great"),
        changed(model="../../etc/passwd"),
        changed(model="<script>"),
        changed(model="..", set=".hidden"),
        changed(model="-o"),
        changed(model=""),
        changed(model="a" * 121),
        changed(status="passed"),
        changed(status="passed", limit=LIMIT),
        changed(status="passed", metrics=METRICS),
        changed(status="failed", metrics=METRICS | {"id_images": -1}),
        changed(status="failed", metrics=METRICS | {"threshold": float("inf")}),
        changed(status="failed", metrics=METRICS | {"auroc": {"value": 1.5, "low": 0.5, "high": 2.0}}),
        changed(status="failed", limit=LIMIT | {"forward_ratio": -0.5}),
        changed(status="failed", limit=LIMIT | {"goal": 1.01}),
        changed(timing=TIMING | {"fit_s": -1.0}),
        changed(timing=TIMING | {"fit_s": float("nan")}),
        changed(timing=TIMING | {"fit_s": "1.0"}),
        changed(scores=SCORES_FILE | {"sha256": "0" * 63}),
        changed(scores=SCORES_FILE | {"sha256": "A" * 64}),
        changed(scores=SCORES_FILE | {"path": "a/" * 249 + "abc"}),
        changed(extra=1),
        changed(scores={"path": "../outside.parquet", "id_path": "a.parquet", "sha256": "0" * 64}),
        changed(scores={"path": "/absolute.parquet", "id_path": "a.parquet", "sha256": "0" * 64}),
        changed(scores={"path": "a.parquet", "id_path": "../outside.parquet", "sha256": "0" * 64}),
        changed(scores={"path": "a.parquet", "id_path": "a.parquet", "shifted_paths": {"s": "/x"}, "sha256": "0" * 64}),
        changed(schema_version=2, scores={"sha256": "0" * 64}),
        changed(schema_version=2, scores=[]),
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
    write(file, RUN)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(RecordError, match=r"r1.jsonl:2: not a record of schema 3"):
        list(read_records(file))


# --- Records of older schemas. tests/data/schema-1 was written by the code at e7d84c7, of a suite like that of
# tests/conftest.py with published figures: by a run in a clean checkout, and by one outside of any, of damaged and
# missing images. Run ids, platform, device and the folder in a message were made shorter by hand. ---


@pytest.mark.parametrize(
    ("run", "commit", "dirty"),
    [("checkout", "e7d84c7348095622b1f1b55aa9458a312025d044", False), ("elsewhere", None, None)],
)
def test_records_of_schema_1_are_read(run: str, commit: str | None, dirty: bool | None) -> None:
    lines = [json.loads(line) for line in (DATA / f"{run}.jsonl").read_text(encoding="utf-8").splitlines()]
    records = list(read_records(DATA / f"{run}.jsonl"))
    assert [record.kind for record in records] == [line["kind"] for line in lines]
    assert {line["schema_version"] for line in lines} == {1}
    of_run = records[0]
    assert of_run.git_commit == commit
    assert of_run.git_dirty is dirty
    assert (of_run.package_version, of_run.user_git_commit, of_run.user_git_dirty) == (None, None, None)
    for record, line in zip(records, lines, strict=True):  # all else says what it said
        now = json.loads(record.model_dump_json())
        if now.get("scores"):
            assert now["scores"].pop("id_path") == line["scores"]["path"]
            assert now["scores"].pop("shifted_paths") == dict.fromkeys(line["shifted_accepted"], line["scores"]["path"])
        assert {name: now[name] for name in line if name != "schema_version"} == {
            name: value for name, value in line.items() if name != "schema_version"
        }
        assert record.schema_version == 3
        assert parse_record(line) == record


def test_the_old_files_have_every_kind_of_record() -> None:
    records = [record for file in sorted(DATA.glob("*.jsonl")) for record in read_records(file)]
    assert {record.kind for record in records} == {"run", "model", "detector", "set", "case", "published"}
    assert {record.status for record in records if isinstance(record, Case)} == {"passed", "failed", "error", "skipped"}


@pytest.mark.parametrize(("low", "high"), [(0.6, 1.0), (0.0, 0.4), (0.6, 0.4)])
def test_an_interval_holds_its_value(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="outside of its interval"):
        Estimate(value=0.5, low=low, high=high)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "0.5", None])
def test_a_fraction_is_a_number_in_0_to_1(value: object) -> None:
    Estimate(value=0.5, low=0.0, high=1.0)
    with pytest.raises(ValueError, match="value"):
        Estimate(value=value, low=0.0, high=1.0)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_no_number_of_a_record_is_infinite_or_nan(value: float) -> None:
    Timing(device="cpu", fit_s=1.0, score_ms_per_image=1.0, forward_ms_per_image=None, forward_ratio=None)
    with pytest.raises(ValueError, match="finite number"):
        Timing(device="cpu", fit_s=value, score_ms_per_image=1.0, forward_ms_per_image=None, forward_ratio=None)
