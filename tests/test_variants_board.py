"""What the leaderboard says of changed networks, from records made up so that the answer is known."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmark.metrics import accuracy
from benchmark.records import Case, ModelRecord, Record, SetRecord
from benchmark.results import ResultsFolder
from leaderboard import trace
from leaderboard.board import Board, make_board
from leaderboard.changes import difference_over_seeds
from leaderboard.results import read_results
from tests.test_leaderboard import (
    DETECTORS,
    HOSTILE,
    IMAGES,
    OOD,
    Page,
    _case,
    broken_links,
    build,
    detector_record,
    edit,
    figure,
    model_record,
    pages,
    run_record,
    set_record,
    sha256,
    unescaped,
    write_scores,
)

EPOCHS = [{"epoch": 1 + i, "loss": 2 / (1 + i), "outlier loss": 1.5 / (1 + i), "rate": 0.01} for i in range(12)]
SEARCH = [
    {
        "tower": tower,
        "layer": layer,
        "weight": f"{tower}.blocks.{layer}.mlp.fc1.weight",
        "ratio": ratio,
        "total": 1.0 - 0.01 * layer,
        "id": 0.8,
        "ood": -0.2,
    }
    for tower, ratios in (("vision", (0.0, 0.15, 0.4)), ("text", (0.05, 0.0, 0.25)))
    for layer, ratio in enumerate(ratios)
]
# Of each model how far its scores part ID from OOD, relative to the detector's own, and what its record says more.
Models = dict[str, tuple[float, dict[str, Any]]]
MODELS: Models = {
    "digits-resnet": (1.0, {}),
    "digits-resnet+um": (
        1.4,
        {
            "base": "digits-resnet",
            "method": "um",
            "settings": {"schedule": {"epochs": 12, "learning_rate": 0.001}, "outliers": {"kind": "energy"}},
            "trace": EPOCHS,
            "id_accuracy": accuracy(300, 360),
        },
    ),
    "digits-resnet+umap": (
        0.6,
        {
            "base": "digits-resnet",
            "method": "umap",
            "settings": {"kept": 0.8},
            "classified_by_base": True,
            "network_accuracy": accuracy(324, 360),
        },
    ),
    "digits-resnet+setar": (1.0, {"base": "digits-resnet", "method": "setar", "trace": SEARCH}),
    "clip+setar": (1.2, {"base": "clip", "method": "setar", "settings": {HOSTILE: HOSTILE}}),
    **{
        f"digits-thin-s{seed}": (factor, {"group": "digits-thin", "seed": seed})
        for seed, factor in enumerate((0.6, 0.65, 0.7))
    },
    **{
        f"digits-thin-s{seed}+sam": (
            factor,
            {"base": f"digits-thin-s{seed}", "method": "sam", "group": "digits-thin+sam", "seed": seed},
        )
        for seed, factor in enumerate((0.8, 0.85, 0.9))
    },
    **{
        f"digits-thin-s{seed}+um": (
            factor,
            {"base": f"digits-thin-s{seed}", "method": "um", "group": "digits-thin+um", "seed": seed},
        )
        for seed, factor in enumerate((0.75, 0.66, 0.71))
    },
}
CORE = ("msp", "knn")


def write(
    folder: Path,
    models: Models,
    detectors: Iterable[str] = CORE,
    run: str = "run-1",
    started: str = "2026-05-01T10:00:00+00:00",
    change: Callable[[Record], Record | None] = lambda record: record,
) -> Path:
    """A run of the suite digits; `change` replaces a record, or leaves it out where it gives null."""
    path = folder / "digits" / f"{run}.jsonl"
    ids = {"run": run, "suite": "digits"}

    def append(record: Record) -> None:
        if changed := change(record):
            ResultsFolder(folder).add(changed)

    append(run_record(started, **ids))
    for model_id, role in {"digits-test": "test", **OOD}.items():
        append(set_record(model_id, role, **ids))
    for model, (apart, more) in models.items():
        append(model_record(model, **ids).model_copy(update=more))
        for detector in detectors:
            append(detector_record(detector, **ids))
            scores = scores_of(model, detector, apart)
            scores_in = write_scores(folder, model, detector, scores, **ids)
            for set_id, role in OOD.items():
                keys = {"model": model, "detector": detector, "set": set_id, "role": role, **ids}
                append(_case(scores["digits-test"], scores[set_id], scores_in(set_id), keys))
    return path


def scores_of(model: str, detector: str, apart: float) -> dict[str, np.ndarray]:
    """The images are the same for all; a model and a detector add a little noise of their own."""
    images = np.random.default_rng(0)
    own = np.random.default_rng(sum(f"{model}/{detector}".encode()))
    centres = {"digits-test": 0.0} | dict.fromkeys(OOD, -apart * DETECTORS[detector])
    return {
        set_id: centre + images.normal(size=IMAGES) + 0.01 * own.normal(size=IMAGES)
        for set_id, centre in centres.items()
    }


def board_of(folder: Path) -> tuple[Board, list[str]]:
    return make_board(read_results(folder).suites[0])


def only(*ids: str) -> Models:
    return {model_id: MODELS[model_id] for model_id in ids}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(folder, MODELS)
    return folder


@pytest.fixture(scope="module")
def board(results: Path) -> Board:
    return board_of(results)[0]


@pytest.fixture(scope="module")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    output = tmp_path_factory.mktemp("built") / "site"
    assert build(results, output) == 0
    assert broken_links(output) == []
    assert unescaped(output) == []
    with (output / "records.csv").open(encoding="utf-8", newline="") as file:
        by_model = {row["model"]: row for row in csv.DictReader(file)}
    assert [by_model["digits-resnet+um"][f"model_{name}"] for name in ("base", "method")] == ["digits-resnet", "um"]
    assert [by_model["digits-thin-s1"][f"model_{name}"] for name in ("base", "group", "seed")] == [
        "",
        "digits-thin",
        "1",
    ]
    return pages(output)


def table_with(page: Page, caption_column: str) -> dict[str, list[str]]:
    return next(table for table in page.tables if caption_column in table)


def line(page: Page, name: str) -> list[str]:
    """The row of a changed network in the table of changes."""
    rows = table_with(page, "Changed network")
    return next(row for head, row in rows.items() if head.split()[0] == name)


def words(page: Page) -> str:
    return " ".join(page.text.split())


def test_better_worse_and_equal_are_told_apart(board: Board) -> None:
    findings = {line.id: {d: change.finding for d, change in line.means.items()} for line in board.variant_lines}
    assert findings["digits-resnet+um"] == {"msp": "better", "knn": "better"}
    assert findings["digits-resnet+umap"] == {"msp": "worse", "knn": "worse"}
    assert findings["digits-resnet+setar"] == dict.fromkeys(CORE, "no difference found")


def test_the_figures_of_a_change_are_those_of_the_records(board: Board, results: Path, built: dict[str, Page]) -> None:
    suite = read_results(results).suites[0]
    cells = dict(zip(board.variant_detectors, line(built["suites/digits.html"], "digits-resnet+um")[3:], strict=True))
    for detector in CORE:
        means = [
            np.mean([suite.results[model, detector, set_id].case.metrics.fpr_at_95.value for set_id in OOD])
            for model in ("digits-resnet", "digits-resnet+um")
        ]
        before, after = (f"{100 * mean:.1f}" for mean in means)
        assert cells[detector].startswith(f"{before} → {after} ▼ −{100 * (means[0] - means[1]):.1f} better")


def test_accuracy_is_marked_only_where_the_intervals_are_apart(built: dict[str, Page]) -> None:
    page = built["suites/digits.html"]
    before = figure(accuracy(356, 360))
    assert line(page, "digits-resnet+um")[2] == f"{before} → {figure(accuracy(300, 360))} ▼ −15.6 worse"
    assert line(page, "digits-resnet+setar")[2] == f"{before} → {before} ≈ 0.0 no difference found"


def test_where_the_base_classifies_both_accuracies_stand(built: dict[str, Page]) -> None:
    own = figure(accuracy(324, 360))
    cell = line(built["suites/digits.html"], "digits-resnet+umap")[2]
    assert cell.endswith(f"images are classified by the base; this network alone: {own}")
    assert own.replace(" [", " % [") in words(built["models/digits-resnet+umap.html"])


def test_a_missing_base_is_named(board: Board, built: dict[str, Page]) -> None:
    row = line(built["suites/digits.html"], "clip+setar")
    assert "setar, from clip its base clip has no results here" in row[0]
    assert all("none →" in cell and "not compared" in cell for cell in row[3:])
    assert "Not compared: its base clip has no results here." in words(built["models/clip+setar.html"])


def test_a_group_is_one_line_of_means_and_spreads_over_seeds(board: Board) -> None:
    groups = {line.id: line for line in board.variant_lines if line.is_group}
    assert [*groups] == ["digits-thin+sam", "digits-thin+um"]
    change = groups["digits-thin+sam"].means["msp"]
    pairs = [
        [
            board.tables[model].by_detector["msp"].mean.value.value
            for model in (f"digits-thin-s{s}", f"digits-thin-s{s}+sam")
        ]
        for s in range(3)
    ]
    for figure_of, values in zip((change.before, change.after), zip(*pairs, strict=True), strict=True):
        assert (figure_of.value, figure_of.deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    expected = stats.ttest_1samp([after - before for before, after in pairs], 0).confidence_interval(0.95)
    assert (change.difference.low, change.difference.high) == pytest.approx((expected.low, expected.high))


def test_a_group_claims_only_what_excludes_0(board: Board) -> None:
    groups = {line.id: line for line in board.variant_lines if line.is_group}
    assert groups["digits-thin+sam"].means["msp"].finding == "better"
    unsure = groups["digits-thin+um"].means["msp"]
    assert unsure.value < -0.02
    assert unsure.difference.low < 0 < unsure.difference.high
    assert unsure.finding == "no difference found"
    # The same seeds, each alone: sampling intervals of one network do claim it, since they leave out the training.
    assert board.variant("digits-thin-s0+um").means["msp"].finding == "better"


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(-1, 1))
def test_intervals_over_seeds_shift_and_turn_round_with_the_differences(values: list[float], by: float) -> None:
    interval = difference_over_seeds(values)
    if interval and interval.high - interval.low > 1e-6:
        shifted, turned = difference_over_seeds([v + by for v in values]), difference_over_seeds([-v for v in values])
        assert (shifted.low, shifted.high) == pytest.approx((interval.low + by, interval.high + by), abs=1e-9)
        assert (turned.low, turned.high) == pytest.approx((-interval.high, -interval.low), abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "interval"),
    [([0.1], None), ([-0.05] * 3, None), ([0.1 + 0.2, 0.3, 0.3], None), ([0.0] * 3, (0, 0))],
)
def test_seeds_that_do_not_spread_give_no_width_to_claim_by(differences: list[float], interval: object) -> None:
    found = difference_over_seeds(differences)
    assert (found and (found.low, found.high)) == interval


def test_a_seed_whose_base_is_missing_is_left_out_of_the_means(tmp_path: Path) -> None:
    thin = [model_id for model_id in MODELS if model_id.startswith("digits-thin") and model_id != "digits-thin-s1"]
    write(tmp_path / "results", only(*thin))
    board, _ = board_of(tmp_path / "results")
    group = board.line_of("digits-thin-s1+sam")
    assert group.problems == ["its base digits-thin-s1 has no results here"]
    assert (group.means["msp"].before.seeds, group.means["msp"].after.seeds) == (2, 2)
    assert build(tmp_path / "results", tmp_path / "site") == 0
    cells = line(pages(tmp_path / "site")["suites/digits.html"], "digits-thin+sam")[3:]
    assert all(cell.endswith("2 of 3 seeds") for cell in cells)


def test_base_models_are_not_flooded(built: dict[str, Page]) -> None:
    overview = built["index.html"].tables[0]
    assert overview["Detector"] == ["Detector", "digits-resnet"]
    sections = [model_id for model_id in built["suites/digits.html"].ids if model_id.startswith("model/")]
    assert sections == ["model/digits-resnet"]
    assert all(f"models/{model}.html".replace("+", "%2B") in built["index.html"].links for model in MODELS)
    assert [*built["detectors/msp.html"].cases] == [""]


def test_seeds_of_a_base_stand_together(board: Board, built: dict[str, Page]) -> None:
    rows = table_with(built["suites/digits.html"], "ID accuracy")
    mean = board.seed_groups[0].means["knn"]
    assert rows["knn"][1] == f"{100 * mean.value:.1f} ± {100 * mean.deviation:.1f}"


def test_a_model_and_its_variants_lead_to_each_other(built: dict[str, Page]) -> None:
    assert {"../models/digits-resnet%2Bum.html", "../models/digits-resnet%2Bumap.html"} <= {
        *built["models/digits-resnet.html"].links
    }
    assert "../models/digits-resnet.html" in built["models/digits-resnet+um.html"].links
    assert "../suites/digits.html#changed/digits-thin%2Bsam" in built["models/digits-thin-s1+sam.html"].links


def test_the_page_of_a_variant_shows_every_set_and_how_it_was_made(built: dict[str, Page]) -> None:
    page = built["models/digits-resnet+um.html"]
    assert page.tables[0]["Detector"] == ["Detector", "Mean", *OOD]
    assert all("better" in cell for cell in page.tables[0]["msp"][1:])
    text = words(page)
    for part in ("schedule.learning_rate0.001", "outliers.kindenergy", "The losses while it was made", "outlier loss"):
        assert part in text
    assert table_with(page, "epoch")["12"] == ["12", "0.166667", "0.125", "0.01"]
    assert "Singular values removed" not in text
    assert "Singular values removed" in built["models/digits-resnet+setar.html"].text


def test_scores_that_are_missing_are_not_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "results", only("digits-resnet", "digits-resnet+um"))
    (path.parent / "run-1" / "digits-resnet" / "msp" / "digits-test.parquet").unlink()
    board, notes = board_of(tmp_path / "results")
    variant = board.variant("digits-resnet+um")
    assert [variant.means["msp"].finding, *(change.finding for change in variant.sets["msp"])] == ["not compared"] * 4
    assert variant.means["knn"].finding == "better"
    assert "no comparison with the base: digits/run-1/digits-resnet/msp/digits-test.parquet: not there" in notes
    assert build(tmp_path / "results", tmp_path / "site") == 0
    found = pages(tmp_path / "site")
    assert "not compared" in line(found["suites/digits.html"], "digits-resnet+um")[-1]
    assert "no scores to compare" in found["models/digits-resnet+um.html"].tables[0]["msp"][1]


def newer(kind: type, model_id: str, name: str) -> Callable[[Record], Record | None]:
    """Another content of one model or image set."""

    def change(record: Record) -> Record | None:
        if isinstance(record, kind) and record.id == model_id:
            return record.model_copy(update={name: sha256("newer")})
        return record

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            newer(ModelRecord, "digits-resnet", "weights_sha256"),
            "digits-resnet+um: made with an older checkpoint of digits-resnet",
        ),
        (
            newer(SetRecord, "digits-test", "content_sha256"),
            "digits-resnet+um: made with an older version of digits-test",
        ),
    ],
)
def test_variants_of_an_older_base_or_other_images_are_not_compared(
    tmp_path: Path, change: Callable[[Record], Record | None], problem: str
) -> None:
    write(tmp_path, only("digits-resnet", "digits-resnet+um"))
    write(tmp_path, only("digits-resnet"), run="run-2", started="2026-06-01", change=change)
    variant = board_of(tmp_path)[0].variant("digits-resnet+um")
    assert variant.problem == problem
    assert variant.accuracy.finding == "not compared"
    assert {change.finding for changes in variant.sets.values() for change in changes} == {"not compared"}


def test_detectors_that_the_base_or_the_variant_lacks_are_said_to(tmp_path: Path) -> None:
    def lacking(record: Record) -> Record | None:
        lost = isinstance(record, Case) and (record.model, record.detector, record.set) in {
            ("digits-resnet", "msp", set_id) for set_id in OOD
        } | {("digits-resnet+um", "knn", "letters")}
        return None if lost else record

    write(tmp_path / "results", only("digits-resnet", "digits-resnet+um"), change=lacking)
    means = board_of(tmp_path / "results")[0].variant("digits-resnet+um").means
    assert means["msp"].reason == "the detector has no results on the base"
    assert means["knn"].reason == "the variant has a comparable figure on 2 of 3 sets"
    assert build(tmp_path / "results", tmp_path / "site") == 0


def test_variants_alone_make_a_site(tmp_path: Path) -> None:
    write(tmp_path / "results", only("clip+setar", "digits-thin-s0"))
    assert build(tmp_path / "results", tmp_path / "site") == 0
    assert broken_links(tmp_path / "site") == []


HOSTILE_STEPS = [
    [{"epoch": "1", "loss": "0.5"}, {"epoch": "two", "loss": None}, {"loss": [1, {HOSTILE: HOSTILE}]}],
    [{HOSTILE: HOSTILE, f"loss $\\frac$ {HOSTILE}": 0.5}] * 3,
    [{"step": i, "loss": 1 / (1 + i), **{f"column {j}": "x" * 1000 for j in range(30)}} for i in range(3000)],
    [{"tower": HOSTILE, "layer": "1e400", "ratio": "0.1"}, {"tower": HOSTILE, "layer": "3", "ratio": "0.1"}],
    [{"layer": 1, "ratio": float("inf"), "total": "1e308", "loss": 10**400}, {"layer": -1, "ratio": 0.1}, {}],
]


@pytest.mark.parametrize("steps", HOSTILE_STEPS)
def test_hostile_traces_and_settings_stay_text_and_small(tmp_path: Path, steps: list[dict[str, Any]]) -> None:
    settings = {HOSTILE: {HOSTILE: HOSTILE}, "huge": ["<fast>"] * 10_000, **{f"setting {i}": i for i in range(200)}}
    more = {"base": "digits-resnet", "method": HOSTILE, "settings": settings, "trace": steps}
    write(tmp_path / "results", {**only("digits-resnet"), "bad": (1.0, more)}, ["msp"])
    assert build(tmp_path / "results", tmp_path / "site") == 0
    assert unescaped(tmp_path / "site") == []
    assert broken_links(tmp_path / "site") == []
    page = tmp_path / "site" / "models" / "bad.html"
    assert page.stat().st_size < 300_000
    text = words(Page(page))
    assert "and more" in text
    if len(steps) > 100:
        assert (
            "the first 60 of 3000 steps; the table has the first 12 of 32 columns; the plot has one step in 8" in text
        )


def test_numbers_of_a_trace_may_be_texts() -> None:
    found = trace.read_trace([{"epoch": "2", "loss": "0.5", "rate": "0.1"}, {"epoch": 3, "loss": "nan"}])
    assert found.losses == {"loss": [(2.0, 0.5)]}


def test_the_ratios_of_a_search_are_kept_by_tower_and_layer() -> None:
    found = trace.read_trace(SEARCH)
    assert found.ratios == {"vision": {0: 0.0, 1: 0.15, 2: 0.4}, "text": {0: 0.05, 1: 0.0, 2: 0.25}}
    assert [*found.losses] == ["total", "id", "ood"]


def test_records_of_before_variants_still_build(tmp_path: Path) -> None:
    fields = ("base", "method", "settings", "trace", "group", "seed", "classified_by_base", "network_accuracy")

    def drop(record: dict[str, Any]) -> None:
        if record["kind"] == "model":
            for name in fields:
                del record[name]

    edit(write(tmp_path / "results", only("digits-resnet")), drop)
    assert build(tmp_path / "results", tmp_path / "site") == 0
    records = json.loads((tmp_path / "site" / "records.json").read_text())
    assert next(record for record in records if record["kind"] == "model")["base"] is None
