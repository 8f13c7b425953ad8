"""The board of a suite from the field: published figures, cleaned and shifted sets, groups of classes."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from benchmark.metrics import accuracy
from benchmark.records import (
    Case,
    ClassValue,
    Estimate,
    ModelRecord,
    PublishedRecord,
    PublishedValue,
    Record,
    Run,
    SetRecord,
    Tuned,
)
from benchmark.results import ResultsFolder
from leaderboard import view
from leaderboard.results import read_results
from tests.test_leaderboard import HOSTILE, Page, build, pages, set_record, write_suite

SHIFTED = accuracy(80, 100)
PUBLISHED = [
    PublishedValue(fpr_at_95=0.2, tolerance=0.02, source=f"Table 3 {HOSTILE}", difference=0.01, status="reproduced"),
    PublishedValue(fpr_at_95=0.1, tolerance=0.02, source="Table 4", note=HOSTILE, difference=0.11, status="differs"),
]
NOT_RUN = PublishedValue(fpr_at_95=0.3, tolerance=0.02, source="Table 5", difference=None, status="not run")
MEAN = PublishedRecord(
    run="run-1",
    suite="field",
    model="digits-resnet",
    detector="energy",
    name=f"all {HOSTILE}",
    sets=["digits-8-9", "letters"],
    measured=None,
    published=NOT_RUN,
)
GROUP = MEAN.model_copy(
    update={
        "detector": "knn",
        "name": "digits-8-9:overlap",
        "sets": ["digits-8-9"],
        "measured": Estimate(value=0.21, low=0.15, high=0.25),
        "published": PUBLISHED[0],
    }
)


def of_the_field(record: Record) -> Record:
    """The record as a suite with everything has it: letters cleaned, patches contaminated, digits-noisy shifted."""
    match record:
        case Run():
            return record.model_copy(update={"suite_title": f"CIFAR {HOSTILE}", "suite_about": "What differs."})
        case SetRecord(id="letters"):
            return record.model_copy(update={"role": "cleaned", "list_id": "400 drawn", "redistributable": False})
        case SetRecord(id="photo-patches"):
            found = {"of": "imagenet-1k", "share": 0.256, "inspected": 400, "source": HOSTILE}
            return record.model_copy(update={"role": "contaminated", "contamination": [found]})
        case SetRecord(id="digits-8-9"):
            return record.model_copy(update={"class_groups": {"overlap": ["8"], "other": ["8", HOSTILE]}})
        case ModelRecord(id="digits-resnet"):
            return record.model_copy(update={"id_accuracy": None, "shifted_accuracy": {"digits-noisy": SHIFTED}})
        case Case(role="unit-test"):
            return record
        case Case():
            return _case(record)
    return record


def _case(case: Case) -> Case:
    roles = {"letters": "cleaned", "photo-patches": "contaminated"}
    update: dict[str, object] = {"role": roles.get(case.set, "near")}
    if case.metrics:
        update |= {"metrics": case.metrics.model_copy(update={"oscr": SHIFTED, "aurc": SHIFTED, "aurc_id": SHIFTED})}
        update |= {"full_spectrum": case.metrics, "shifted_accepted": {"digits-noisy": SHIFTED}}
        update |= {
            "published": PUBLISHED,
            "tuned": Tuned(ood="glyphs", options={"k": 5}, tried=[{"k": 5, "auroc": 0.9}]),
        }
    else:
        update |= {"published": [NOT_RUN]}
    if case.timing:
        update |= {"timing": case.timing.model_copy(update={"forward_ms_per_image": None, "forward_ratio": None})}
    return case.model_copy(update=update)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_suite(folder, suite="field", models=["digits-resnet"], change=of_the_field)
    for record in (set_record("digits-noisy", "shifted", run="run-1", suite="field"), MEAN, GROUP):
        ResultsFolder(folder).add(record)
    return folder


@pytest.fixture(scope="module")
def site(results: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    folder = tmp_path_factory.mktemp("site") / "site"
    assert build(results, folder) == 0
    return pages(folder)


def test_cleaned_and_contaminated_sets_stand_beside_the_mean(results: Path, site: dict[str, Page]) -> None:
    suite = read_results(results).suites[0]
    assert suite.ood_set_ids == ["digits-8-9"]
    assert suite.tracks == {"contaminated": ["photo-patches"], "cleaned": ["letters"]}
    row = site["suites/field.html"].tables[0]["msp k = 10"]
    fpr = suite.results["digits-resnet", "msp", "digits-8-9"].case.metrics
    assert fpr
    assert row[1].startswith(f"{100 * fpr.fpr_at_95.value:.1f} [")
    cleaned = suite.results["digits-resnet", "msp", "letters"].case.metrics
    assert cleaned
    table = next(table for table in site["suites/field.html"].tables if "letters" in table.get("Detector", []))
    assert table["msp"][1].startswith(f"{100 * cleaned.fpr_at_95.value:.1f} [")


def test_published_figures_are_counted_and_shown_with_difference_and_source(site: dict[str, Page]) -> None:
    page = site["suites/field.html"]
    measured, not_run = 5 * 3 - 2, 2 + 1
    assert f"{measured + 1} reproduced, {measured} differs, {not_run} not run." in " ".join(page.text.split())
    assert "+11.0" in page.text
    assert "Table 4" in page.text


def test_means_and_groups_of_classes_stand_with_the_cases_of_their_model_and_detector(
    results: Path, site: dict[str, Page]
) -> None:
    rows = view.published_rows(read_results(results).suites[0])
    assert [row.detector for row in rows] == sorted(row.detector for row in rows)
    of_energy = [row.name for row in rows if row.detector == "energy"]
    assert of_energy == ["digits-8-9", "digits-8-9", "letters", "photo-patches", MEAN.name]
    assert [row.name for row in rows if row.detector == "knn"][-1] == "digits-8-9:overlap"
    text = "".join(site["suites/field.html"].text.split())
    assert "".join(f"{MEAN.name} mean of digits-8-9, letters 30.0 ±2.0 not run Table 5".split()) in text
    assert "digits-8-9:overlap20.0±2.021.0[15.0,25.0]+1.0reproducedTable3" in text


def another_run(folder: Path, change: Callable[[Record], Record | None], *others: PublishedRecord) -> list[str]:
    """The names of the means and groups that are shown when a later run recorded what `change` leaves."""
    write_suite(folder, "field", "run-0", "2026-06-01", ["digits-resnet"], ["energy", "knn"], change)
    for record in others:
        ResultsFolder(folder).add(record.model_copy(update={"run": "run-0"}))
    return [record.name for record in read_results(folder).suites[0].published]


@pytest.mark.parametrize(
    ("of_later_run", "shown"),
    [
        ([], [MEAN.name, GROUP.name]),
        (["letters"], [GROUP.name]),  # the mean would be of two runs
        (["photo-patches"], [MEAN.name, GROUP.name]),  # which neither is of
        (["digits-8-9", "letters"], []),
    ],
)
def test_a_mean_is_shown_where_all_its_cases_are_of_its_run(
    results: Path, tmp_path: Path, of_later_run: list[str], shown: list[str]
) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))

    def change(record: Record) -> Record | None:
        return record if not isinstance(record, Case) or record.set in of_later_run else None

    assert another_run(folder, change) == shown


def test_a_later_run_of_all_cases_replaces_a_mean(results: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    assert another_run(folder, lambda record: record, MEAN, GROUP) == [MEAN.name, GROUP.name]
    assert {record.run for record in read_results(folder).suites[0].published} == {"run-0"}


def test_a_mean_of_stale_cases_is_left_out(results: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))

    def other_letters(record: Record) -> Record | None:
        changed = isinstance(record, SetRecord) and record.id == "letters"
        return record.model_copy(update={"content_sha256": "0" * 64}) if changed else _no_case(record)

    assert another_run(folder, other_letters) == [GROUP.name]


def _no_case(record: Record) -> Record | None:
    return None if isinstance(record, Case) else record


def test_a_mean_without_cases_is_left_out(results: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    assert another_run(folder, _no_case, MEAN.model_copy(update={"model": "gone"})) == [MEAN.name, GROUP.name]


def test_downloads_hold_means_in_the_records_and_cases_alone_in_the_table(results: Path, tmp_path: Path) -> None:
    assert build(results, tmp_path / "site") == 0
    records = TypeAdapter(list[Record]).validate_json((tmp_path / "site" / "records.json").read_bytes())
    assert [record for record in records if isinstance(record, PublishedRecord)] == [MEAN, GROUP]
    assert "PublishedRecord" in (tmp_path / "site" / "schema.json").read_text()
    with (tmp_path / "site" / "records.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(isinstance(record, Case) for record in records)


def test_shifted_sets_and_the_other_conventions_have_columns(site: dict[str, Page]) -> None:
    table = next(table for table in site["suites/field.html"].tables if "OOD positive" in table)
    assert table["OOD positive"] == [
        "OOD positive",
        "OSCR",
        "AURC",
        "FPR@95, full spectrum",
        "AUROC, full spectrum",
        "digits-noisy",
    ]
    assert table["msp"][2].startswith("80.0 [")
    assert table["msp"][6].startswith("80.0 [")


def test_a_model_without_labels_and_with_shifted_accuracy_has_its_page(site: dict[str, Page]) -> None:
    text = " ".join(site["models/digits-resnet.html"].text.split())
    assert "360 ID images without labels" in text
    assert "Accuracy on digits-noisy80.0 % [" in text
    assert "Options chosen on glyphs" in text
    assert "forward pass not timed" in text


def test_groups_of_classes_have_means(results: Path, site: dict[str, Page]) -> None:
    suite = read_results(results).suites[0]
    metrics = suite.results["digits-resnet", "msp", "digits-8-9"].case.metrics
    assert metrics
    (table,) = view.class_tables({"msp": view.model_tables(suite)[0][0].by_detector["msp"]}, suite)
    overlap, other, *_ = table.rows
    assert overlap[0] == "mean of overlap, 1 classes"
    assert overlap[2] == [metrics.classes[0].fpr_at_95]
    assert other[2][0]
    assert other[2][0].value == pytest.approx(sum(value.fpr_at_95.value for value in metrics.classes) / 2)


def test_classes_of_cleaned_and_contaminated_sets_have_a_table(tmp_path: Path) -> None:
    """Where the set with classes is no part of the mean."""
    roles = {"digits-8-9": "cleaned", "letters": "contaminated"}

    def change(record: Record) -> Record:
        match record:
            case SetRecord(id=set) if set in roles:
                return record.model_copy(update={"role": roles[set]})
            case Case(set=set) if set in roles:
                classes = [ClassValue(name="a", fpr_at_95=SHIFTED, images=20)] if set == "letters" else None
                update = {"metrics": record.metrics.model_copy(update={"classes": classes})} if classes else {}
                return record.model_copy(update={"role": roles[set]} | update)
        return record

    write_suite(tmp_path, models=["digits-resnet"], detectors=["msp", "knn"], change=change)
    suite = read_results(tmp_path).suites[0]
    tables = view.class_tables(view.model_tables(suite)[0][0].by_detector, suite)
    assert {table.set: [name for name, _, _ in table.rows] for table in tables} == {
        "letters": ["a"],
        "digits-8-9": ["8", HOSTILE],
    }
    assert all(values[0] for table in tables for _, _, values in table.rows)


def test_title_about_and_set_facts_are_on_the_suite_page(site: dict[str, Page]) -> None:
    text = " ".join(site["suites/field.html"].text.split())
    assert "What differs." in text
    assert "25.6 % of 400 inspected images show a class of imagenet-1k" in text
    assert "must not be redistributed" in text
    assert site["suites/field.html"].tags["script"] == 0
