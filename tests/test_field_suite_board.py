"""The board of a suite from the field: published figures, cleaned and shifted sets, groups of classes."""

from pathlib import Path

import pytest

from benchmark.metrics import accuracy
from benchmark.records import Case, ModelRecord, PublishedValue, Record, Run, SetRecord, Tuned, append_record
from leaderboard import view
from leaderboard.results import read_results
from tests.test_leaderboard import HOSTILE, Page, build, pages, set_record, write_suite

SHIFTED = accuracy(80, 100)
PUBLISHED = [
    PublishedValue(fpr_at_95=0.2, tolerance=0.02, source=f"Table 3 {HOSTILE}", difference=0.01, status="reproduced"),
    PublishedValue(fpr_at_95=0.1, tolerance=0.02, source="Table 4", note=HOSTILE, difference=0.11, status="differs"),
]
NOT_RUN = PublishedValue(fpr_at_95=0.3, tolerance=0.02, source="Table 5", difference=None, status="not run")


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
    path = write_suite(folder, suite="field", models=["digits-resnet"], change=of_the_field)
    append_record(path, set_record("digits-noisy", "shifted", run="run-1", suite="field"))
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
    measured, not_run = 5 * 3 - 2, 2
    assert f"{measured} reproduced, {measured} differs, {not_run} not run." in " ".join(page.text.split())
    assert "+11.0" in page.text
    assert "Table 4" in page.text


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


def test_title_about_and_set_facts_are_on_the_suite_page(site: dict[str, Page]) -> None:
    text = " ".join(site["suites/field.html"].text.split())
    assert "What differs." in text
    assert "25.6 % of 400 inspected images show a class of imagenet-1k" in text
    assert "not to be passed on" in text
    assert site["suites/field.html"].tags["script"] == 0
