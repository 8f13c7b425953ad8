from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.limits.baselines import Baseline, read_baselines, update_baselines, write_baselines
from benchmark.limits.limits import (
    FPR_MARGIN,
    Limits,
    Measured,
    judge,
    limit_of_baseline,
    limit_of_goal,
    limit_of_published,
)
from benchmark.metrics import Difference, measure
from benchmark.records import Estimate, Role, Timing
from benchmark.suites.loading import load_suite
from benchmark.suites.published import PublishedFigure
from benchmark.suites.suite import CaseId
from benchmark.user.messages import on_command_line

FAST = Timing(device="d", fit_s=0, score_ms_per_image=0.01, forward_ms_per_image=1, forward_ratio=0.01)
SLOW = FAST.model_copy(update={"forward_ratio": 3.0, "score_ms_per_image": 3.0})


def status(measured: float, recorded: float | None, goal: float, role: str = "far", timing: Timing = FAST) -> str:
    baseline = None if recorded is None else Baseline(recorded, 0.01, "run 1", "2026-01-01")
    limit = None if baseline is None else limit_of_baseline(baseline, role, goal, "t.csv")
    verdict = judge(measured, timing, limit, baseline)
    return "known" if verdict.expected else verdict.status


@pytest.mark.parametrize(
    ("measured", "recorded", "goal", "expected"),
    [
        (0.10, 0.10, 0.25, "passed"),
        (0.10 + FPR_MARGIN, 0.10, 0.25, "passed"),  # the margin is inclusive
        (0.13, 0.10, 0.25, "failed"),  # a regression, although the goal is met
        (0.26, 0.25, 0.25, "failed"),  # within the margin, above the goal
        (0.02, 0.10, 0.25, "passed"),  # better
        (0.80, 0.80, 0.25, "known"),
        (0.81, 0.80, 0.25, "known"),
        (0.83, 0.80, 0.25, "failed"),  # a known failure got worse
        (0.70, 0.80, 0.25, "failed"),  # a known failure got better: its baseline hides the next regression
        (0.10, 0.80, 0.25, "failed"),
        (0.25, 0.26, 0.25, "passed"),  # within the margin of a known failure, and the goal is met
        (1.00, 1.00, 0.25, "known"),
        (0.80 - FPR_MARGIN, 0.80, 0.25, "known"),  # the margin is inclusive on this side, too
    ],
)
def test_verdicts(measured: float, recorded: float, goal: float, expected: str) -> None:
    assert status(measured, recorded, goal) == expected


def test_a_unit_test_is_held_to_its_goal_not_to_its_baseline() -> None:
    assert status(0.10, 0.0, 0.1, "unit-test") == "passed"
    assert status(0.10, 0.0, 0.1, "far") == "failed"  # the twin
    assert status(0.1025, 0.0, 0.1, "unit-test") == "failed"
    assert status(0.5, 0.5, 0.1, "unit-test") == "known"


def test_without_a_baseline_an_ood_case_fails_and_says_how_to_record_one() -> None:
    verdict = judge(0.0, FAST, None, None)
    assert (verdict.status, verdict.reason) == ("failed", "no baseline")
    assert "--record-baselines" in on_command_line(verdict.remedy)
    assert judge(0.0, FAST, limit_of_goal(0.1, "goal"), None).status == "passed"


def verdict_of(detector: str, set_id: str, role: Role, recorded: float, measured: float, timing: Timing = FAST) -> str:
    case = CaseId("digits-vit", detector, set_id, role)
    limits = Limits(load_suite("digits"), {str(case): Baseline(recorded, 0.01, "run 1", "d")}, None, None, False)
    verdict = limits.verdict(case, case_measured(measured, timing))
    return "known" if verdict.expected else verdict.status


def case_measured(
    value: float,
    timing: Timing = FAST,
    half: float = 0.01,
    weights: str = "a" * 64,
    difference: Difference | None = None,
) -> Measured:
    fpr = Estimate(value=value, low=max(value - half, 0.0), high=min(value + half, 1.0))
    return Measured(fpr, timing, weights, lambda run: difference if run == "r1" else None)


@pytest.mark.parametrize(
    ("weights", "value", "half", "difference", "status"),
    [
        ("", 0.13, 0.1, None, "failed"),  # of which network it is was not written down: as of the same
        ("a" * 16, 0.13, 0.1, None, "failed"),  # the same network: two points, whatever the images can tell
        ("b" * 16, 0.13, 0.1, None, "passed"),  # another one: sqrt(2) * 10 points
        ("b" * 16, 0.25, 0.1, None, "failed"),
        ("b" * 16, 0.13, 0.001, None, "failed"),  # so many images that three points are news
        ("b" * 16, 0.115, 0.001, None, "passed"),  # never less than two points
        ("b" * 16, 0.13, 0.1, Difference(0.03, 0.005, 0.055), "failed"),  # on the same images they can tell more
        ("b" * 16, 0.13, 0.001, Difference(0.03, -0.01, 0.07), "passed"),
    ],
)
def test_another_network_is_held_to_what_the_images_can_tell(
    weights: str, value: float, half: float, difference: Difference | None, status: str
) -> None:
    case = CaseId("digits-vit", "msp", "letters", "far")
    baseline = Baseline(0.10, 0.01, "run r1", "2026-01-01", weights)
    limits = Limits(load_suite("digits"), {str(case): baseline}, 0.3, None, False)
    limits = replace(limits, fpr_limit=None)
    verdict = limits.verdict(case, case_measured(value, half=half, difference=difference))
    assert verdict.status == status
    assert ("another network" in verdict.limit.source) == (verdict.limit.fpr_at_95 > 0.10 + FPR_MARGIN + 1e-9)


def test_two_samples_of_one_network_are_seldom_told_apart() -> None:
    """Images of their own for each: the limit of the first is exceeded by the second in about 2.5 % of the pairs."""
    generator = np.random.default_rng(0)
    exceeded = 0
    for _ in range(200):
        first, second = (measure(generator.normal(2, 1, 200), generator.normal(0, 1, 100)).fpr_at_95 for _ in range(2))
        measured = Measured(second, FAST, "b" * 64, lambda run: None)
        baseline = Baseline(first.value, 0.01, "run 1", "d", "a" * 16)
        exceeded += second.value > limit_of_baseline(baseline, "far", 1.0, "f", measured.margin(baseline)).fpr_at_95
    assert exceeded <= 12


@pytest.mark.parametrize(
    ("limit", "measured", "told"),
    [(0.1, 0.25, "10.0%"), (0.1, 0.1004, "10.00%"), (0.0012, 0.00121, "0.120%"), (0.02, 0.0200001, "2.00000%")],
)
def test_a_limit_is_told_with_the_digits_that_show_that_it_is_exceeded(
    limit: float, measured: float, told: str
) -> None:
    assert f"allowed {told} (" in str(judge(measured, FAST, limit_of_goal(limit, "goal"), None).reason)


def test_baselines_say_of_which_network_they_are_and_older_files_do_not(tmp_path: Path) -> None:
    file = tmp_path / "b.csv"
    case = "net/msp/greys"
    write_baselines(file, {case: Baseline(0.5, 0.25, "run 1", "2026-01-01", "abc")})
    assert read_baselines(file, [case])[case].weights == "abc"
    assert read_baselines(file, [case])[case].is_of("abcdef")
    assert not read_baselines(file, [case])[case].is_of("abdef")
    lines = [line.rpartition(",")[0] for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")
    assert read_baselines(file, [case])[case] == Baseline(0.5, 0.25, "run 1", "2026-01-01")
    assert read_baselines(file, [case])[case].is_of("anything")


@pytest.mark.parametrize(
    ("set_id", "role", "recorded", "measured", "expected"),
    [
        ("letters", "far", 0.955, 0.932, "known"),  # as two machines drew it
        ("letters", "far", 0.932, 0.955, "known"),
        ("black", "unit-test", 0.0, 1.0, "known"),  # one score for all images: all or none are accepted
        ("black", "unit-test", 1.0, 0.0, "passed"),
    ],
)
def test_no_draw_of_chance_is_news(set_id: str, role: Role, recorded: float, measured: float, expected: str) -> None:
    assert verdict_of("random", set_id, role, recorded, measured) == expected
    assert verdict_of("msp", set_id, role, recorded, measured) == "failed"  # the twin


def test_what_is_drawn_by_chance_takes_no_longer_than_it_may() -> None:
    assert verdict_of("random", "letters", "far", 0.955, 0.955, SLOW) == "failed"


def published(measured: float, goal: float, *figures: tuple[float, float]) -> str:
    told = [PublishedFigure("m", "d", "s", fpr, tolerance, f"paper {fpr}", "") for fpr, tolerance in figures]
    verdict = judge(measured, SLOW, limit_of_published(told, goal), None)
    return "known" if verdict.expected else verdict.status


@pytest.mark.parametrize(
    ("measured", "goal", "figures", "expected"),
    [
        (0.42, 1.0, [(0.40, 0.02)], "passed"),
        (0.43, 1.0, [(0.40, 0.02)], "failed"),
        (0.10, 1.0, [(0.40, 0.02)], "passed"),  # better than published
        (0.43, 1.0, [(0.40, 0.02), (0.30, 0.14)], "passed"),  # one of two papers has it
        (0.45, 1.0, [(0.40, 0.02), (0.30, 0.14)], "failed"),
        (0.26, 0.25, [(0.24, 0.03)], "failed"),  # the paper meets the goal, so it holds
        (0.26, 0.25, [(0.25, 0.03)], "failed"),  # as exactly as can be
        (0.41, 0.25, [(0.40, 0.02)], "known"),
        (0.43, 0.25, [(0.40, 0.02)], "failed"),
        (0.20, 0.25, [(0.40, 0.02)], "passed"),
        (1.00, 1.0, [(0.99, 0.05)], "passed"),
    ],
)
def test_without_a_baseline_a_published_figure_is_the_limit(
    measured: float, goal: float, figures: list[tuple[float, float]], expected: str
) -> None:
    assert published(measured, goal, *figures) == expected


@given(measured=st.floats(0, 1), fpr=st.floats(0, 1), tolerance=st.floats(0.001, 0.3), goal=st.floats(0, 1))
def test_nothing_worse_than_published_and_its_tolerance_passes(
    measured: float, fpr: float, tolerance: float, goal: float
) -> None:
    if measured > fpr + tolerance:
        assert published(measured, goal, (fpr, tolerance)) == "failed"


def test_a_limit_names_the_paper_that_it_comes_from() -> None:
    figures = [PublishedFigure("m", "d", "s", fpr, 0.01, f"paper {fpr}", "") for fpr in (0.3, 0.5)]
    assert limit_of_published(figures, 1.0).source == "published, paper 0.5"
    assert limit_of_published(figures, 1.0).known_failure is None
    assert limit_of_published(figures, 0.4).known_failure == "50.0% published, the goal is 40%"


def test_a_slow_detector_fails_whatever_its_quality() -> None:
    assert status(0.1, 0.1, 0.25, timing=SLOW) == "failed"
    assert status(0.1, 0.1, 0.25, timing=FAST) == "passed"
    assert status(0.8, 0.8, 0.25, timing=SLOW) == "failed"  # not hidden behind a known failure


@pytest.mark.parametrize(
    ("recorded", "ratio", "expected"),
    [
        (0.5, 2.0, "passed"),  # four times as slow
        (0.5, 2.0001, "failed"),
        (0.001, 0.1, "passed"),  # a tenth of a forward pass is nothing that anybody waits for
        (0.001, 0.1001, "failed"),
        (0.0, 0.1, "passed"),
        (0.5, None, "passed"),  # outputs that were computed elsewhere have no forward time
    ],
)
def test_a_detector_may_get_four_times_slower_or_take_a_tenth_of_a_forward_pass(
    recorded: float, ratio: float | None, expected: str
) -> None:
    limit = limit_of_baseline(Baseline(0.1, recorded, "run 1", "2026-01-01"), "far", 0.25, "t.csv")
    assert judge(0.1, FAST.model_copy(update={"forward_ratio": ratio}), limit, None).status == expected


def test_a_limit_names_the_file_the_run_and_the_date_that_it_comes_from() -> None:
    baseline = Baseline(0.5, 0.01, "run 1", "2026-01-02")
    assert limit_of_baseline(baseline, "far", 0.25, "t.csv").source == "t.csv, run 1, 2026-01-02"
    assert limit_of_baseline(baseline, "far", 0.25, "t.csv").known_failure == (
        "50.0% recorded 2026-01-02, the goal is 25%"
    )


@pytest.mark.parametrize(
    ("difference", "margin"),
    [
        (Difference(0.0, -0.01, 0.06), 0.06),
        (Difference(0.0, -0.06, 0.01), 0.06),
        (Difference(0.05, 0.02, 0.06), 0.03),
        (Difference(0.0, -0.001, 0.001), FPR_MARGIN),
        (None, 0.13),  # of images of their own: the root of the sum of the squares of 12 and 5 points
    ],
)
def test_the_margin_of_another_network_is_the_longer_side_of_the_interval(
    difference: Difference | None, margin: float
) -> None:
    baseline = Baseline(0.5, 0.01, "run r1", "2026-01-01", "b" * 16)
    for low, high in ((0.38, 0.55), (0.45, 0.62)):
        measured = Measured(Estimate(value=0.5, low=low, high=high), FAST, "a" * 64, lambda run: difference)
        assert measured.margin(baseline) == pytest.approx(margin)
        assert measured.margin(replace(baseline, weights="a" * 16)) == FPR_MARGIN


# --- What a case is held to: what somebody names for this run, a baseline, a published figure, or a goal. ---

FAR, BLACK = CaseId("digits-vit", "msp", "letters", "far"), CaseId("digits-vit", "msp", "black", "unit-test")


def held_to(
    case: CaseId, baselines: dict[str, Baseline] | None = None, measured: float = 0.0, **named: object
) -> tuple[float, str] | None:
    """The FPR@95 that a case of the digits may have, and where that comes from. None where nothing is recorded."""
    limits = replace(Limits(load_suite("digits"), baselines or {}, None, None, False), **named)
    limit = limits.verdict(case, case_measured(measured)).limit
    return None if limit is None else (limit.fpr_at_95, limit.source)


def test_without_a_baseline_unit_tests_and_what_a_user_brings_are_held_to_the_goals() -> None:
    goals = {FAR: 0.25, BLACK: 0.1}
    assert held_to(FAR) is None  # a case of the suite that nobody recorded
    assert held_to(BLACK) == (goals[BLACK], "goals in digits.toml")
    for brought in ({"user_detectors": ["msp"]}, {"user_models": ["digits-vit"]}):
        assert held_to(FAR, **brought) == (goals[FAR], "goals in digits.toml")
    for others in ({"user_detectors": ["knn"]}, {"user_models": ["digits-resnet"]}):
        assert held_to(FAR, **others) is None
    suite = load_suite("digits")
    without = replace(suite, entry=suite.entry.model_copy(update={"baselines": None}))
    assert held_to(FAR, suite=without) == (goals[FAR], "goals in digits.toml")


def test_a_limit_that_is_named_for_a_run_is_that_of_its_role_alone() -> None:
    ours = "the limit of this run"
    recorded = {str(case): Baseline(0.05, 0.01, "run 1", "2026-01-01") for case in (FAR, BLACK)}
    for baselines in ({}, recorded):
        assert held_to(FAR, baselines, fpr_limit=0.3) == (0.3, ours)
        assert held_to(FAR, baselines, fpr_limit=0.0) == (0.0, ours)
        assert held_to(FAR, baselines, unit_test_limit=0.3) == held_to(FAR, baselines)
        assert held_to(BLACK, baselines, fpr_limit=0.3) == held_to(BLACK, baselines)
    assert held_to(BLACK, unit_test_limit=0.3) == (0.3, ours)
    # One that has a baseline may still be known to exceed its goal. The goal is the one that is named.
    assert held_to(BLACK, recorded, unit_test_limit=0.3) == (0.3, "digits.csv, run 1, 2026-01-01")
    assert held_to(BLACK, recorded, unit_test_limit=0.04) == (0.07, "digits.csv, run 1, 2026-01-01")
    assert held_to(FAR, recorded) == (0.07, "digits.csv, run 1, 2026-01-01")


def test_a_published_figure_holds_where_there_is_no_baseline() -> None:
    suite = load_suite("digits")
    published = replace(suite, published={str(FAR): (PublishedFigure("m", "d", "s", 0.4, 0.02, "Table 1", ""),)})
    assert held_to(FAR, suite=published) == (pytest.approx(0.42), "published, Table 1")
    recorded = {str(FAR): Baseline(0.05, 0.01, "run 1", "2026-01-01")}
    assert held_to(FAR, recorded, suite=published) == held_to(FAR, recorded)


def test_a_run_that_records_holds_each_case_to_what_it_has_just_measured() -> None:
    slow = FAST.model_copy(update={"forward_ratio": 3.0})
    limits = Limits(load_suite("digits"), {str(FAR): Baseline(0.9, 0.01, "run 1", "d")}, None, None, True)
    verdict = limits.verdict(FAR, case_measured(0.125, slow))
    assert verdict.status == "passed"
    assert verdict.limit.fpr_at_95 == 0.125 + FPR_MARGIN
    assert verdict.limit.forward_ratio == 12.0  # four times what it took
    assert verdict.limit.source.startswith("digits.csv, this run, 20")
    known = limits.verdict(FAR, case_measured(0.5, slow))
    assert known.expected  # above its goal


@given(measured=st.floats(0, 1), recorded=st.floats(0, 1), goal=st.floats(0, 1))
def test_nothing_worse_than_its_baseline_and_margin_passes(measured: float, recorded: float, goal: float) -> None:
    if measured > recorded + FPR_MARGIN:
        assert status(measured, recorded, goal) == "failed"


CASES = ["net/msp/a", "net/msp/b", "net/mahalanobis++/a"]


def test_baselines_survive_the_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "t.csv"
    assert read_baselines(file, CASES) == {}
    baselines = {case: Baseline(0.125 * i, 0.25 * i, "run 1", "2026-01-01") for i, case in enumerate(CASES)}
    write_baselines(file, baselines)
    assert read_baselines(file, CASES) == baselines
    assert [path.name for path in file.parent.iterdir()] == ["t.csv"]


def test_numbers_keep_the_digits_that_matter(tmp_path: Path) -> None:
    """FPR@95 of 50,000 images has five digits, and a detector may take a thousandth of a forward pass."""
    file = tmp_path / "t.csv"
    write_baselines(file, {CASES[0]: Baseline(0.12346, 0.000123, "run 1", "2026-01-01")})
    found = read_baselines(file, CASES)[CASES[0]]
    assert (found.fpr_at_95, found.forward_ratio) == (0.12346, 0.000123)


def test_a_run_replaces_what_it_measured_and_keeps_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "new" / "t.csv"
    first = {case: Baseline(0.5, 0.25, "run 1", "2026-01-01") for case in CASES[:2]}
    second = {CASES[1]: Baseline(0.25, 0.5, "run 2", "2026-01-02", "abc")}
    update_baselines(file, CASES, first)
    update_baselines(file, CASES, second)
    assert read_baselines(file, CASES) == {**first, **second}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("net,msp,b", "net,mps,b", r"t.csv:4: the suite has no case 'net/mps/b' \(did you mean 'net/msp/b'"),
        ("0.125", "1.5", r"t.csv:\d: fpr_at_95 of net/.* must lie in 0..1"),
        ("0.125", "nan", "must lie in 0..1"),
        ("0.125", "a lot", "must be numbers"),
        ("0.25", "-0.1", "forward_ratio be positive"),
        ("0.25", "inf", "forward_ratio be positive"),
        ("0.25", "nan", "forward_ratio be positive"),
        ("fpr_at_95", "fpr", "t.csv:1: the columns are"),
        (",run 1,2026-01-01,\n", "\n", r"t.csv:\d: 8 fields are needed"),
        ("net,msp,b", "net,msp,a", r"t.csv:4: net/msp/a has a line above already; keep one of the two"),
    ],
)
def test_a_threshold_file_with_a_mistake_names_file_line_and_case(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    file = tmp_path / "t.csv"
    write_baselines(file, {case: Baseline(0.125, 0.25, "run 1", "2026-01-01") for case in CASES})
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=says):
        read_baselines(file, CASES)


def test_what_a_run_did_not_measure_stays_among_the_baselines(tmp_path: Path) -> None:
    file = tmp_path / "new" / "b.csv"
    old, new = (Baseline(value, 0.25, f"run {value}", "2026-01-01") for value in (0.5, 0.25))
    update_baselines(file, CASES, {CASES[0]: old, CASES[1]: old})
    update_baselines(file, CASES, {CASES[1]: new})
    assert read_baselines(file, CASES) == {CASES[0]: old, CASES[1]: new}


@pytest.mark.parametrize(
    ("role", "changes", "goal", "source"),
    [
        ("far", {"user_detectors": ("msp",)}, 0.25, "goals in digits.toml"),
        ("far", {"user_models": ("digits-vit",)}, 0.25, "goals in digits.toml"),
        ("far", {"user_detectors": ("knn",), "user_models": ("another",)}, None, None),
        ("far", {"fpr_limit": 0.7}, 0.7, "the limit of this run"),
        ("unit-test", {"fpr_limit": 0.7}, 0.1, "goals in digits.toml"),
        ("unit-test", {"unit_test_limit": 0.3}, 0.3, "the limit of this run"),
        ("far", {"unit_test_limit": 0.3, "user_models": ("digits-vit",)}, 0.25, "goals in digits.toml"),
    ],
)
def test_what_a_case_without_a_baseline_is_held_to(
    role: Role, changes: dict[str, object], goal: float | None, source: str | None
) -> None:
    limits = replace(Limits(load_suite("digits"), {}, None, None, False), **changes)
    verdict = limits.verdict(CaseId("digits-vit", "msp", "letters", role), case_measured(0.05))
    if goal is None:
        assert (verdict.status, verdict.reason) == ("failed", "no baseline")
    else:
        assert (verdict.limit.fpr_at_95, verdict.limit.source) == (goal, source)
