"""Published figures: their files, the verdict of a comparison, means and groups of classes, and what a run says."""

import csv
import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.commands.app import main
from benchmark.limits.comparison_table import table
from benchmark.limits.comparisons import Comparison, compare, comparisons, counts, in_words, published_records
from benchmark.limits.curate_published import FILES, Curated, write_files
from benchmark.records import Case, ClassValue, Estimate, Metrics, PublishedRecord, Record, read_records
from benchmark.results import ResultsFolder
from benchmark.running.session import Draft
from benchmark.running.summary import summary
from benchmark.suites.loading import load_suite
from benchmark.suites.published import COLUMNS, PublishedFigure, read_published
from benchmark.suites.suite import CaseId, Suite
from leaderboard.results import SuiteResults, read_results
from leaderboard.view import published_rows, rerun_command

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[1]
TRANSCRIPTS = ROOT.parent / "shared" / "published"


def figure(percent: float, points: float, cell: str = "net/msp/greys", source: str = "P, Table 1") -> PublishedFigure:
    model, detector, set_id = cell.split("/")
    return PublishedFigure(model, detector, set_id, percent / 100, points / 100, source, "")


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


# ---- the files of the seed papers ------------------------------------------------------------------------------------


@pytest.mark.skipif(not TRANSCRIPTS.is_dir(), reason="needs the transcripts of the papers, ../shared/published")
def test_the_shipped_files_are_what_the_script_writes(tmp_path: Path) -> None:
    for file in write_files(TRANSCRIPTS, tmp_path):
        shipped = ROOT / "benchmark" / "limits" / "published" / file.name
        assert shipped.read_bytes() == file.read_bytes(), "make them with python -m benchmark.limits.curate_published"
    assert {path.stem for path in (ROOT / "benchmark" / "limits" / "published").iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_each_suite_of_a_paper_can_measure_every_figure_of_its_file(name: str) -> None:
    suite = load_suite(name)
    figures = [figure for figures in suite.published.values() for figure in figures]
    assert len(figures) == len(comparisons(suite, [])) > 0
    assert suite.entry.published[0].stem == name


@pytest.mark.parametrize(
    ("cell", "percent", "source"),
    [  # the specification's acceptance targets, which stand in other tables or in the papers' text too
        ("ninco:resnet50.a1_in1k/msp/mean-of-cleaned", None, "NINCO, ICML 2023, Table 14"),
        ("mahalanobispp-imagenet:convnextv2_large.fcmae_ft_in22k_in1k_384/mahalanobis++/ninco", 18.4, "Table 6"),
        ("mahalanobispp-imagenet:swinv2_small_window16_256.ms_in1k/relative-mahalanobis/ninco", 63.7, "Table 6"),
        ("itp-imagenet:resnet50.tv_in1k/itp/four-sets", 22.51, "Table 2"),
        ("itp-imagenet:resnet50.tv_in1k/energy/four-sets", 58.41, "Table 2"),
        ("setar-imagenet:clip-vit-b16/mcm/four-sets", 43.09, "Table 17"),
        ("setar-imagenet:clip-vit-b16+setar-imagenet/gl-mcm/four-sets", 33.12, "Table 17"),
        ("setar-voc:clip-vit-b16+setar-voc/gl-mcm/six-sets", 23.86, "Table 17"),
        ("um-cifar10:cifar10-densenet/energy/seven-sets", 42.69, "Table 1"),
    ],
)
def test_figures_that_the_papers_name_in_other_places_too(cell: str, percent: float | None, source: str) -> None:
    name, _, cell = cell.partition(":")
    with (ROOT / "benchmark" / "limits" / "published" / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if "/".join([row["model"], row["detector"], row["set"]]) == cell]
    (row,) = [row for row in rows if source in row["source"]]
    assert percent is None or float(row["fpr_at_95_percent"]) == percent


@pytest.mark.parametrize("name", FILES)
def test_an_average_that_is_shipped_is_the_mean_of_the_sets_that_are_shipped(name: str) -> None:
    suite = load_suite(name)
    for figures in suite.published.values():
        for mean in figures:
            sets = suite.entry.means.get(mean.set, ())
            parts = [suite.published.get(f"{mean.model}/{mean.detector}/{set_id}", ()) for set_id in sets]
            of_paper = [[part for part in part if _paper(part) == _paper(mean)] for part in parts]
            if sets and all(of_paper):
                value = sum(part[0].fpr_at_95 for part in of_paper) / len(sets)
                assert mean.fpr_at_95 == pytest.approx(value, abs=0.0011), mean


def _paper(figure: PublishedFigure) -> tuple[str, str]:
    """Whose figure it is: a paper's own, or copied from another one."""
    return figure.source.partition(", Table")[0], "copied" if "GL-MCM" in figure.note else ""


def test_a_tolerance_grows_with_all_that_may_differ() -> None:
    same = Curated("m", "d", "s", "50.0", "p")
    assert same.tolerance == pytest.approx(2.05)
    assert Curated("m", "d", "s", "50.00", "p").tolerance == pytest.approx(2.005)
    drawn = Curated("m", "d", "s", "50.0", "p", sampled=(10_000,))
    assert drawn.tolerance == pytest.approx(2.05 + 196 * (2 * 0.25 / 10_000) ** 0.5)
    mean = Curated("m", "d", "s", "50.0", "p", sampled=(10_000, 10_000), sets=4)
    assert mean.tolerance == pytest.approx(2.05 + 196 * (2 * 2 * 0.25 / 10_000) ** 0.5 / 4)
    other = Curated("m", "d", "s", "50.0", "p", training_sd=2.0, extra=4.0)
    assert other.tolerance == pytest.approx(2.05 + 1.96 * 2**0.5 * 2.0 + 4.0)


def tolerances(name: str) -> dict[tuple[str, str], tuple[float, str]]:
    """Of a shipped file: tolerance in points and note, by detector and set."""
    with (ROOT / "benchmark" / "limits" / "published" / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {(row["detector"], row["set"]): (float(row["tolerance_points"]), row["note"]) for row in rows}


def test_a_network_that_is_the_authors_own_has_no_tolerance_for_another_training() -> None:
    """HIMPLoS's for CIFAR-100 is: a set that is whole there has the margin alone, and a mean hardly more."""
    found = tolerances("himplos-cifar100")
    stated = {
        cell: tolerance for cell, (tolerance, _) in found.items() if cell[0] in ("msp", "energy", "himplos", "fm+ls")
    }
    assert {stated[cell] for cell in stated if cell[1] in ("isun", "lsun-crop", "lsun-resize", "textures")} == {2.0}
    assert all(2.2 < stated[cell] < 2.4 for cell in stated if cell[1] == "six-sets")
    assert max(tolerance for tolerance, _ in found.values()) < 7.5
    assert not any(note for _, note in found.values())


def test_what_is_not_known_of_a_network_is_called_that() -> None:
    assert all(
        "we do not know whether this is the authors' network" in note
        for _, note in tolerances("himplos-cifar10").values()
    )
    for name in FILES:
        trained_otherwise = any("another training" in note for _, note in tolerances(name).values())
        assert trained_otherwise == name.startswith("um-")


# ---- reading ---------------------------------------------------------------------------------------------------------

LINES = [",".join(COLUMNS), "net,msp,greys,12.50,1.00,Table 1,", "net,msp,mean,20,2,Table 1,other checkpoint"]
KNOWN = (["net"], ["msp", "knn"], ["greys", "mean"])


def test_a_file_is_read_by_cell_and_two_papers_may_differ(tmp_path: Path) -> None:
    file, other = tmp_path / "one.csv", tmp_path / "other.csv"
    file.write_text("\n".join([*LINES, "net,msp,greys,14.1,1,Table 7,"]))
    other.write_text("\n".join([LINES[0], "net,msp,greys,14.2,1,Table 8,"]))
    cells = read_published([file, other], *KNOWN)
    assert [(figure.fpr_at_95, figure.tolerance) for figure in cells["net/msp/greys"]] == [
        (0.125, 0.01),
        (0.141, 0.01),
        (0.142, 0.01),
    ]
    assert cells["net/msp/mean"][0].note == "other checkpoint"
    file.write_text("\n".join([LINES[0], "net,msp,greys,0,100,T,", "net,msp,mean,100,0.5,T,"]))
    ends = [(found[0].fpr_at_95, found[0].tolerance) for found in read_published([file], *KNOWN).values()]
    assert ends == [(0.0, 1.0), (1.0, 0.005)]
    assert read_published([], *KNOWN) == {}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("net,msp,greys", "ned,msp,greys", r"p.csv:2: no model is called 'ned' \(did you mean 'net'"),
        ("net,msp,mean", "net,mps,mean", r"p.csv:3: no detector is called 'mps' \(did you mean 'msp'"),
        ("net,msp,greys", "net,msp,grays", r"p.csv:2: no set is called 'grays' \(did you mean 'greys'"),
        ("12.50", "112.5", r"p.csv:2: fpr_at_95_percent of net/msp/greys must lie in 0..100"),
        ("12.50", "nan", "must lie in 0..100"),
        ("12.50", "12,5", "7 fields are needed"),
        ("12.50", "low", "must be numbers"),
        ("1.00", "0", "tolerance_points of net/msp/greys must lie above 0"),
        ("1.00", "-1", "must lie above 0"),
        ("1.00", "100.5", "must lie above 0, and up to 100"),
        ("12.50", "-0.1", "must lie in 0..100"),
        ("1.00,Table 1", "1.00,", "net/msp/greys needs a source"),
        ("set,", "ood_set,", "p.csv:1: the columns are"),
        ("net,msp,mean,20", "net,msp,greys,20", "p.csv:3: net/msp/greys of Table 1 stands there twice"),
        (",other checkpoint", "", "p.csv:3: 7 fields are needed"),
    ],
)
def test_a_mistake_in_a_file_names_its_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    file = tmp_path / "p.csv"
    text = "\n".join(LINES)
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=says):
        read_published([file], *KNOWN)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*p.csv"):
        read_published([tmp_path / "p.csv"], *KNOWN)


# ---- comparing -------------------------------------------------------------------------------------------------------


def test_three_verdicts() -> None:
    told = figure(50, 2)
    assert compare(told, None).status == "not run"
    assert compare(told, None).difference is None
    assert (compare(told, exactly(0.53)).fpr_at_95, compare(told, exactly(0.53)).tolerance) == (0.5, 0.02)
    assert compare(told, exactly(0.53)).difference == pytest.approx(0.03)
    assert compare(told, exactly(0.51)).status == "reproduced"
    assert compare(told, exactly(0.49)).status == "reproduced"
    assert compare(told, exactly(0.53)).status == "differs"
    assert compare(told, exactly(0.47)).status == "differs"
    assert in_words(compare(told, exactly(0.53))) == "differs by +3.0 points"
    assert in_words(compare(told, exactly(0.45))) == "differs by -5.0 points"


percents = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)


@given(percent=percents, points=st.integers(1, 2_000).map(lambda hundredths: hundredths / 100), up=st.booleans())
def test_the_tolerance_itself_is_within_and_a_hair_more_is_not(percent: float, points: float, up: bool) -> None:
    at = percent + points if up else percent - points
    if 0.01 <= at <= 99.99:
        assert compare(figure(percent, points), exactly(at / 100)).status == "reproduced"
        beyond = at + 0.001 if up else at - 0.001
        assert compare(figure(percent, points), exactly(beyond / 100)).status == "differs"


@given(published=percents, measured=percents, points=st.floats(0.01, 30))
def test_exchanging_the_two_values_changes_the_sign_alone(published: float, measured: float, points: float) -> None:
    one = compare(figure(published, points), exactly(measured / 100))
    other = compare(figure(measured, points), exactly(published / 100))
    assert one.status == other.status
    assert one.difference == -(other.difference or 0.0)


def test_a_wide_interval_reproduces_nothing() -> None:
    wide = Estimate(value=0.6, low=0.2, high=0.9)
    assert compare(figure(50, 2), wide).status == "differs"


# ---- means and groups ------------------------------------------------------------------------------------------------

SUITE = """
means = { both = ["greys", "noise"] }
published = ["published.csv"]
"""


def with_figures(world: Path, lines: list[str], groups: str = "") -> Suite:
    """The suite of colours with published figures, and perhaps groups of classes of its greys."""
    (world / "published.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    text = (world / "colours.toml").read_text().replace('baselines = "colours.csv"', SUITE)
    (world / "colours.toml").write_text(text.replace("[image_set.greys]", f"[image_set.greys]\n{groups}"))
    return load_suite(str(world / "colours.toml"))


def case(set_id: str, fpr: Estimate, classes: dict[str, float] | None = None) -> Case:
    metrics = Metrics(
        fpr_at_95=fpr,
        fpr_at_95_pooled=fpr,
        fpr_at_95_ood_positive=fpr,
        auroc=fpr,
        aupr_id=fpr,
        aupr_ood=fpr,
        threshold=0.0,
        id_images=10,
        ood_images=10,
        classes=[ClassValue(name=n, fpr_at_95=exactly(v), images=2) for n, v in (classes or {}).items()],
    )
    return Case(
        run="r",
        suite="colours",
        model="net",
        detector="msp",
        set=set_id,
        role="far",
        status="failed",
        expected=False,
        reason=None,
        metrics=metrics,
        timing=None,
        limit=None,
        scores=None,
    )


GROUPS = 'class_groups = { dark = ["black", "slate"], light = ["white"] }'


def test_means_are_of_sets_and_groups_of_classes(user_world: Path) -> None:
    lines = [f"net,msp,{set_id},50,1,T," for set_id in ("greys", "both", "greys:dark", "greys:light")]
    suite = with_figures(user_world, lines, GROUPS)
    greys = case("greys", Estimate(value=0.4, low=0.3, high=0.5), {"black": 0.2, "slate": 0.8, "pink": 0.0})
    noise = case("noise", Estimate(value=0.6, low=0.55, high=0.7))

    by_set = {c.figure.set: c for c in comparisons(suite, [greys, noise])}
    assert by_set["greys"].measured == greys.metrics.fpr_at_95
    assert by_set["both"].measured.model_dump() == pytest.approx({"value": 0.5, "low": 0.425, "high": 0.6})
    assert by_set["both"].value.status == "reproduced"
    assert by_set["greys:dark"].measured.value == 0.5
    assert by_set["greys:light"].measured is None  # white has no image here
    assert by_set["greys:light"].value.status == "not run"

    alone = {c.figure.set: c.value.status for c in comparisons(suite, [greys])}
    assert alone == {"greys": "differs", "both": "not run", "greys:dark": "reproduced", "greys:light": "not run"}

    worse = case("greys", exactly(0.9))
    assert {c.figure.set: c.value.status for c in comparisons(suite, [greys, worse])}["greys"] == "differs"
    assert comparisons(suite, [greys, worse])[0].measured == exactly(0.9)  # the later one


def test_a_run_records_the_means_and_groups_that_it_had_a_case_of(user_world: Path) -> None:
    names = ["greys", "both", "greys:dark"]
    lines = [f"net,{detector},{name},50,1,T," for detector in ("msp", "mahalanobis") for name in names]
    suite = with_figures(user_world, [*lines, "net,msp,both,60,1,U,"], GROUPS)
    greys = case("greys", exactly(0.4), {"black": 0.2, "slate": 0.8})
    noise = case("noise", exactly(0.6))

    def recorded(*cases: Case) -> dict[tuple[str, str], tuple[list[str], float | None, str]]:
        found = list(published_records("r", suite, cases))
        assert {record.detector for record in found} <= {"msp"}  # no case of the other was there
        return {
            (record.name, record.published.source): (
                record.sets,
                record.measured and round(record.measured.value, 9),
                record.published.status,
            )
            for record in found
        }

    assert recorded(greys, noise) == {
        ("both", "T"): (["greys", "noise"], 0.5, "reproduced"),
        ("both", "U"): (["greys", "noise"], 0.5, "differs"),
        ("greys:dark", "T"): (["greys"], 0.5, "reproduced"),
    }
    half = {("both", source): (["greys", "noise"], None, "not run") for source in ("T", "U")}
    assert recorded(noise) == half
    assert recorded(noise, greys.model_copy(update={"metrics": None, "status": "skipped"})) == half | {
        ("greys:dark", "T"): (["greys"], None, "not run")
    }
    assert recorded() == {}


def test_what_the_suite_cannot_measure_is_not_counted(user_world: Path) -> None:
    cells = ["net,knn,greys", "digits-vit,msp,greys", "net,msp,digits-8-9", "net,msp,greys"]
    suite = with_figures(user_world, [f"{cell},50,1,T," for cell in cells])
    assert [comparison.figure.cell for comparison in comparisons(suite, [])] == ["net/msp/greys"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("net,msp,both", "net,msp,bot", "published.csv:2: no set is called 'bot'"),
        ("net,msp,both", "net,msp,greys:pale", "no set is called 'greys:pale'"),
        ('both = ["greys"', 'both = ["greens"', r"no OOD set of the suite \(in means.both\) is called 'greens'"),
        ('both = ["greys"', 'both = ["colours-val"', "in means.both"),
        ("both =", "greys =", "means.greys: an image set has this name"),
        ('["greys", "noise"]', "[]", "means.both: it has no set"),
    ],
)
def test_a_mean_with_a_mistake_is_refused(user_world: Path, old: str, new: str, says: str) -> None:
    with_figures(user_world, ["net,msp,both,50,1,T,"], GROUPS)
    for file in (user_world / "colours.toml", user_world / "published.csv"):
        file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=says):
        load_suite(str(user_world / "colours.toml"))


def test_the_table_and_the_summary_say_what_was_reproduced() -> None:
    compared = [
        Comparison(figure(50, 2, "net/msp/greys", "P, Table 1"), exactly(0.51)),
        Comparison(figure(50, 2, "net/msp/noise", "P, Table 2"), Estimate(value=0.4, low=0.3, high=0.5)),
        Comparison(figure(50, 2, "net/msp/both", "Q"), None),
    ]
    assert counts(compared) == "1 reproduced, 1 differ, 1 not run"
    lines = list(table(compared))
    assert lines[2].split("  ")[0] == "net/msp/noise"
    assert "50.00 ± 2.00" in lines[2]
    assert "40.00 (30.00 to 50.00)" in lines[2]
    assert lines[2].endswith("differs by -10.0 points  P, Table 2")
    text = ["".join(piece for piece, _ in line) for line in summary([case("greys", exactly(0.51))], [], compared)]
    assert "  published figures: 1 reproduced, 1 differ, 1 not run" in text
    assert "    msp on noise differs by -10.0 points from 50.0% ± 2.0 (P, Table 2)" in text


# ---- a run -----------------------------------------------------------------------------------------------------------


def options(world: Path) -> list[str]:
    """What a run of the suite of colours needs on its command line."""
    folders = ["--store", world / "store", "--results", world / "results", "--suite", world / "colours.toml"]
    fixed = [f"--rootdir={ROOT}", "-c", ROOT / "tox.ini", "-p", "no:cacheprovider", *folders, ROOT / "benchmark"]
    return list(map(str, fixed))


def without_goals(world: Path) -> None:
    suite = world / "colours.toml"
    suite.write_text(suite.read_text().replace("near = 0.5", "near = 1.0").replace("far = 0.25", "far = 1.0"))


def test_a_case_that_was_skipped_was_not_run(user_world: Path) -> None:
    suite = with_figures(user_world, ["net,msp,greys,50,1,T,"])
    (skipped,) = Draft(CaseId("net", "msp", "greys", "near")).finished("r", suite, "data missing", skipped=True)
    (other,) = Draft(CaseId("net", "msp", "noise", "far")).finished("r", suite, "data missing", skipped=True)
    assert (skipped.status, skipped.published[0].status) == ("skipped", "not run")
    assert other.published == []


def test_the_command_needs_a_suite_with_published_figures(user_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["published", "--suite", str(user_world / "colours.toml")]) == 1
    assert "colours.toml: published: the suite names no file of published figures" in capsys.readouterr().err


def test_a_run_holds_cases_to_what_is_published(
    user_world: Path, pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    """One figure that the run reproduces, one from which it differs, and one that it does not run."""
    suite = user_world / "colours.toml"

    def run(*arguments: str) -> tuple[pytest.RunResult, dict[str, Case]]:
        result = pytester.runpytest_inprocess(*options(user_world), *arguments)
        newest = max((user_world / "results" / "colours").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        cases = [record for record in read_records(newest) if isinstance(record, Case)]
        return result, {f"{case.detector}/{case.set}": case for case in cases}

    _, cases = run("--fpr-limit", "1", "-k", "msp and noise")
    measured = cases["msp/noise"].metrics.fpr_at_95.value
    assert 0.1 < measured < 0.97
    lines = [
        f"net,msp,noise,{100 * measured:.4f},1,Table 1,",
        "net,msp,greys,50,1,Table 2,drawn anew",
        "net,mahalanobis,greys,50,1,Table 1,",
    ]
    with_figures(user_world, lines)
    goals = suite.read_text()
    without_goals(user_world)
    result, cases = run("-k", "msp")
    noise, greys = cases["msp/noise"], cases["msp/greys"]
    assert (noise.status, noise.published[0].status, noise.limit.source) == (
        "passed",
        "reproduced",
        "published, Table 1",
    )
    assert noise.limit.fpr_at_95 == pytest.approx(measured + 0.01, abs=1e-5)
    assert (greys.published[0].status, greys.published[0].note) == ("differs", "drawn anew")
    assert greys.published[0].difference == pytest.approx(greys.metrics.fpr_at_95.value - 0.5)
    result.stdout.fnmatch_lines(["*published figures: 1 reproduced, 1 differ, 1 not run", "*msp on greys differs by *"])

    # Worse than published fails.
    published = user_world / "published.csv"
    published.write_text(published.read_text().replace(f"{100 * measured:.4f},1", f"{100 * measured - 2:.4f},1"))
    _, cases = run("-k", "msp and noise")
    assert (cases["msp/noise"].status, cases["msp/noise"].expected) == ("failed", False)
    assert "(published, Table 1)" in cases["msp/noise"].reason

    # A published value above the goal is a known failure, and a case that ended before its metrics was not run.
    published.write_text(published.read_text().replace(f"{100 * measured - 2:.4f},1", f"{100 * measured:.4f},1"))
    suite.write_text(goals.replace("far = 0.25", "far = 0.05"))
    (user_world / "images" / "greys" / "07.png").write_bytes(b"")
    _, cases = run("-k", "msp")
    assert (cases["msp/noise"].status, cases["msp/noise"].expected) == ("failed", True)
    assert "published, the goal is 5%" in cases["msp/noise"].limit.known_failure
    assert (cases["msp/greys"].status, cases["msp/greys"].published[0].status) == ("error", "not run")

    # The table takes each case from the newest run that measured it.
    arguments = ["published", "--suite", suite, "--results", user_world / "results"]
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 0
    shown = capsys.readouterr().out
    assert "drawn anew" in shown
    assert shown.splitlines()[-1] == "FPR@95 in %: 1 reproduced, 1 differ, 1 not run"


def test_means_reach_the_site_from_the_run_whose_cases_are_shown(user_world: Path, pytester: pytest.Pytester) -> None:
    with_figures(user_world, ["net,msp,both,50,1,T,", "net,msp,noise,80,20,T,"])
    without_goals(user_world)

    def newest() -> SuiteResults:
        return read_results(user_world / "results").suites[0]

    def shown() -> dict[str, float | None]:
        return {row.name: row.measured and row.measured.value for row in published_rows(newest())}

    data_dir = str(user_world / "my data")
    pytester.runpytest_inprocess(*options(user_world), "-k", "msp and greys", "--data-dir", data_dir)
    assert shown() == {"both": None}
    (result,) = newest().results.values()
    # A record has the last two parts of a path that is neither here nor at home.
    named = ["--suite", ".../world/colours.toml", "--data-dir", ".../world/my data"]
    assert shlex.split(rerun_command(result))[1:5] == named

    # Two processes write once what one does; and the option stays away where it has its default.
    command = [sys.executable, "-m", "pytest", *options(user_world), "-k", "msp", "-n", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    greys, noise = (
        newest().results["net", "msp", set_id].case.metrics.fpr_at_95.value for set_id in ("greys", "noise")
    )
    assert shown() == {"noise": noise, "both": pytest.approx((greys + noise) / 2)}
    assert [record.name for record in newest().published] == ["both"]
    assert newest().runs[0].suite_option == ".../world/colours.toml"

    # With one of its cases from another run, the mean is of no run.
    pytester.runpytest_inprocess(*options(user_world), "-k", "msp and noise")
    assert shown() == {"noise": noise}


def test_a_disk_that_is_full_at_the_end_of_a_run_does_not_cost_its_summary(
    user_world: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = ResultsFolder.add

    def add_unless_full(self: ResultsFolder, record: Record) -> None:
        if isinstance(record, PublishedRecord):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, record)

    with_figures(user_world, ["net,msp,both,50,1,T,"])
    without_goals(user_world)
    monkeypatch.setattr(ResultsFolder, "add", add_unless_full)
    result = pytester.runpytest_inprocess(*options(user_world), "-k", "msp and greys")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*published figures: 0 reproduced, 0 differ, 1 not run", "records: *"])
    assert f"cannot write the records {user_world}" in result.stderr.str()
