"""What goes to the Hub: flat tables of one schema, scores that come out as they went in, and a card that is true."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from benchmark.errors import UserError
from benchmark.hub.address import Address
from benchmark.hub.card import card
from benchmark.hub.folder import results_folder
from benchmark.hub.layout import run_of, scores_of, tables_of
from benchmark.hub.push import _refuse_private
from benchmark.hub.scores import PACKED, pack, score_paths, unpack
from benchmark.hub.tables import cases_table, columns
from benchmark.records import Case, DetectorRecord, Estimate, ModelRecord, Run, SetRecord
from benchmark.results import ResultsFolder, RunId
from benchmark.run_records import RunRecords, read_folder
from tests.test_leaderboard import write_suite

OLD = Path(__file__).parent / "data" / "schema-2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "results"
    write_suite(folder)
    write_suite(folder, suite="other", run="run-2", models=["digits-vit"], detectors=["msp"])
    return folder


def run_in(folder: Path, suite: str = "digits") -> RunRecords:
    return next(run for run in read_folder(folder).runs if run.run.suite == suite)


# --- Addresses. ---


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("me/results", "me/results", None),
        ("hf://datasets/me/results", "me/results", None),
        ("me/ood.results-2@v1.0", "me/ood.results-2", "v1.0"),
        ("hf://datasets/me/results@refs/pr/3", "me/results", "refs/pr/3"),
    ],
)
def test_an_address_is_read(text: str, repository: str, revision: str | None) -> None:
    address = Address.parse(text)
    assert (address.repository, address.revision) == (repository, revision)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "results",
        "",
        "a/b/c",
        "../b",
        "a/..",
        "me/x@",
        "me/x@../y",
        "hf://me/x",
        "hf://spaces/me/x",
        "me/x y",
        "-me/x",
        "a--b/c",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no dataset repository on the Hub: write ORG/NAME"):
        Address.parse(text)


def test_a_folder_stays_a_folder() -> None:
    assert results_folder("me/results", print) == Path("me/results")


# --- Tables. ---


def test_the_table_of_cases_holds_what_the_records_say(folder: Path) -> None:
    run = run_in(folder)
    table = cases_table(run.cases.values(), run.run, list(run.models.values()))
    rows = {(row["model"], row["detector"], row["set"]): row for row in table.to_pylist()}
    assert rows.keys() == run.cases.keys()
    for key, case in run.cases.items():
        row, metrics = rows[key], case.metrics
        assert (row["suite"], row["run"], row["status"], row["reason"]) == (
            case.suite,
            case.run,
            case.status,
            case.reason,
        )
        assert row["started"] == run.run.started
        assert row["weights_sha256"] == run.models[case.model].weights_sha256
        assert row["id_accuracy_low"] == run.models[case.model].id_accuracy.low
        assert row["fpr_at_95"] == (metrics.fpr_at_95.value if metrics else None)
        assert row["auroc_high"] == (metrics.auroc.high if metrics else None)
        assert row["ood_images"] == (metrics.ood_images if metrics else None)
        assert row["forward_ratio"] == (case.timing.forward_ratio if case.timing else None)
        assert row["limit_goal"] == (case.limit.goal if case.limit else None)
        assert [one["name"] for one in row["classes"]] == [one.name for one in (metrics.classes if metrics else [])]
        assert [one["fpr_at_95_low"] for one in row["classes"]] == [
            one.fpr_at_95.low for one in (metrics.classes if metrics else [])
        ]
    assert any(row["classes"] for row in rows.values())
    assert any(row["fpr_at_95"] is None for row in rows.values())


def test_all_runs_have_the_same_schema(folder: Path) -> None:
    """An old run, one without figures and one with all of them: a table of many files has one schema."""
    schemas = {}
    full = run_in(folder)
    nothing = {"metrics": None, "timing": None, "limit": None, "scores": None, "status": "error"}
    bare = replace(full, cases={key: case.model_copy(update=nothing) for key, case in full.cases.items()})
    for run in (full, bare, replace(full, cases={}, models={}, detectors={}, sets={}), run_in(OLD, "colours")):
        for path, content in tables_of(run).items():
            schemas.setdefault(path.split("/")[0], []).append(pq.read_schema(pa.BufferReader(content)))
    assert set(schemas) == {"cases", "models", "detectors", "sets", "runs"}
    for name, found in schemas.items():
        assert len(found) == 4
        assert all(schema.equals(found[0]) for schema in found), name
        assert not any(pa.types.is_null(field.type) for field in found[0]), name


@pytest.mark.parametrize("kind", [Run, ModelRecord, DetectorRecord, SetRecord, Case])
def test_every_field_of_a_record_has_a_column_and_no_two_have_the_same(kind: type) -> None:
    names = [column.name for column in columns(kind)]
    assert len(names) == len(set(names))
    inner = {"metrics": "fpr_at_95", "timing": "fit_s"}
    for name in kind.model_fields.keys() - {"kind"}:
        assert any(column == inner.get(name, name) or column.startswith(f"{name}_") for column in names), name


def test_what_has_no_fixed_form_is_json(folder: Path) -> None:
    run = run_in(folder)
    run = replace(run, detectors={"x": next(iter(run.detectors.values())).model_copy(update={"defaults": {"k": 5}})})
    table = pq.read_table(pa.BufferReader(tables_of(run)["detectors/digits/run-1.parquet"]))
    assert json.loads(table["defaults"][0].as_py()) == {"k": 5}
    assert table["needs"][0].as_py() == next(iter(run.detectors.values())).needs


# --- Scores. ---


def test_scores_come_out_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    results, run = ResultsFolder(folder), run_in(folder)
    run_id, back = RunId("digits", run.run.run), ResultsFolder(tmp_path / "back")
    paths = score_paths(run.cases.values())
    assert paths.keys() == {case.model for case in run.cases.values() if case.scores}
    for model, of_model in paths.items():
        pack(results, run_id, of_model, tmp_path / "packed.parquet")
        for path, table in unpack(tmp_path / "packed.parquet"):
            back.write_scores(run_id, path, table)
        flat = pq.read_table(tmp_path / "packed.parquet", partitioning=None)
        assert set(flat["model"].to_pylist()) == {model}
        assert flat.schema.equals(PACKED)
    files = {path: results.scores_file(run_id, path).read_bytes() for of_model in paths.values() for path in of_model}
    assert files == {path: back.scores_file(run_id, path).read_bytes() for path in files}


def test_scores_of_older_runs_come_out_with_the_same_content(tmp_path: Path) -> None:
    run, back = run_in(OLD, "colours"), ResultsFolder(tmp_path / "back")
    run_id = RunId("colours", run.run.run)
    [(_, paths)] = score_paths(run.cases.values()).items()
    pack(ResultsFolder(OLD), run_id, paths, tmp_path / "packed.parquet")
    unpacked = dict(unpack(tmp_path / "packed.parquet"))
    assert unpacked.keys() == set(paths)
    for path, table in unpacked.items():
        before = ResultsFolder(OLD).scores(run_id, path)
        assert table.select(before.column_names).equals(before)
    assert not back.folder.exists()


@pytest.mark.parametrize("damage", [b"", b"PAR1", "cut", "columns"])
def test_a_packed_file_that_is_damaged_is_named(folder: Path, tmp_path: Path, damage: bytes | str) -> None:
    run, file = run_in(folder), tmp_path / "net.parquet"
    pack(ResultsFolder(folder), RunId("digits", "run-1"), next(iter(score_paths(run.cases.values()).values())), file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "columns":
        pq.write_table(pa.table({"a": np.arange(3)}), file)
    else:
        file.write_bytes(damage)
    with pytest.raises(UserError, match=r"^net\.parquet: ") as caught:
        list(unpack(file))
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scores_that_are_gone_stop_a_push_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"digits/run-1/x/msp/y\.parquet: its scores are gone; push the run without scores"
    ):
        pack(ResultsFolder(folder), RunId("digits", "run-1"), ["run-1/x/msp/y.parquet"], tmp_path / "packed.parquet")


# --- Names and the card. ---


@pytest.mark.parametrize(
    "path",
    [
        "records/../x.jsonl",
        "records/a/../../b.jsonl",
        "records/a/b/c.jsonl",
        "x/records/a/b.jsonl",
        "records/a/b.jsonl.gz",
        "records/.a/b.jsonl",
    ],
)
def test_names_that_are_no_runs_are_none(path: str) -> None:
    assert run_of(path) is None
    assert scores_of(path.replace("records", "scores").replace(".jsonl", ".parquet")) is None or "/c." in path


def test_the_card_is_what_the_hub_reads(folder: Path) -> None:
    runs = [run_in(folder), run_in(folder, "other")]
    text = card("me/results", runs, ["cases", "runs", "records", "scores"])
    data = DatasetCard(text).data
    assert [config["config_name"] for config in data.configs] == ["cases", "runs", "scores"]
    assert [config.get("default") for config in data.configs] == [True, None, None]
    assert data.license == "cc-by-4.0"
    figures = {}
    for case in runs[1].cases.values():
        if case.role != "unit-test":
            figures.setdefault(case.detector, []).append(case.metrics.fpr_at_95.value)
    [(detector, values)] = figures.items()
    mean = 100 * sum(values) / len(values)
    assert (
        f"| other | {runs[1].started:%Y-%m-%d %H:%M} UTC | 1 | 1 | 20 | {mean:.1f} % (digits-vit, {detector}, 3 sets) |"
        in text
    )
    assert "scores" not in [config["config_name"] for config in DatasetCard(card("me/x", [], ["cases"])).data.configs]


def test_an_estimate_is_three_numbers() -> None:
    names = [column.name for column in columns(ModelRecord) if column.name.startswith("id_accuracy")]
    of = [
        column.of(type("Record", (), {"id_accuracy": Estimate(value=0.5, low=0.4, high=0.6)}))
        for column in columns(ModelRecord)
        if column.name in names
    ]
    assert dict(zip(names, of, strict=True)) == {"id_accuracy": 0.5, "id_accuracy_low": 0.4, "id_accuracy_high": 0.6}


def test_a_record_of_an_older_version_that_names_a_place_is_not_pushed(tmp_path: Path) -> None:
    write_suite(tmp_path, models=["digits-vit"], detectors=["msp"])
    [file] = tmp_path.rglob("*.jsonl")
    _refuse_private(file)
    lines = file.read_text().splitlines()
    record = json.loads(lines[0])
    lines[0] = json.dumps({**record, "command": "pytest --store /home/somebody/secret/store"})
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"run-1\.jsonl:1: its command names a place, a user or a secret"):
        _refuse_private(file)
    _refuse_private(OLD / "colours" / "run-2.jsonl")
