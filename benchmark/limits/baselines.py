"""Thresholds: what was recorded for a case, what it is held to, and the verdict."""

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.limits.published import PublishedFigure
from benchmark.records import Limit, Role, Status, Timing
from detectors import did_you_mean

# A run on other hardware or another release of torch moves a few images across the threshold, not more.
FPR_MARGIN = 0.02
# A detector may get this much slower than its baseline, and below a tenth of a forward pass nobody waits for it.
TIME_FACTOR = 4.0
TIME_FLOOR = 0.1

COLUMNS = ("model", "detector", "set", "fpr_at_95", "forward_ratio", "source", "date")


@dataclass(frozen=True)
class Baseline:
    """What an earlier run measured: FPR@95 (a fraction), score time over forward time, and who says so."""

    fpr_at_95: float
    forward_ratio: float
    source: str
    date: str


@dataclass(frozen=True)
class Verdict:
    """The status of a case, the reason in words, the limit it was held to, and whether a failure was expected."""

    status: Status
    reason: str | None
    limit: Limit | None
    expected: bool = False


def read_baselines(file: Path | None, cases: Collection[str]) -> dict[str, Baseline]:
    """The baselines of a suite by case (`model/detector/set`); none where it has no file, or none yet.

    Raises ValueError naming file and line for a case that the suite does not have, and for a value that is none.
    """
    if file is None or not file.is_file():
        return {}
    known = set(cases)
    baselines: dict[str, Baseline] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        table = csv.DictReader(lines)
        if tuple(table.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"{file}:1: the columns are {table.fieldnames}, not {list(COLUMNS)}; delete it and record anew"
            )
        for row in table:
            place = f"{file}:{table.line_num}"
            if None in row.values() or None in row:
                raise ValueError(f"{place}: {len(COLUMNS)} fields are needed: {', '.join(COLUMNS)}")
            case = f"{row['model']}/{row['detector']}/{row['set']}"
            if case not in known:
                raise ValueError(
                    f"{place}: the suite has no case {case!r}{did_you_mean(case, known)}; "
                    "remove the line, or correct it"
                )
            try:
                fpr, ratio = float(row["fpr_at_95"]), float(row["forward_ratio"])
            except (TypeError, ValueError):
                raise ValueError(f"{place}: fpr_at_95 and forward_ratio of {case} must be numbers") from None
            if not (0 <= fpr <= 1 and 0 <= ratio < float("inf")):
                raise ValueError(f"{place}: fpr_at_95 of {case} must lie in 0..1 and forward_ratio be positive")
            baselines[case] = Baseline(fpr, ratio, row["source"], row["date"])
    return baselines


def write_baselines(file: Path, baselines: Mapping[str, Baseline]) -> None:
    """Writes all baselines of a suite, sorted by case."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.writing")
    with temporary.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(COLUMNS)
        for case, baseline in sorted(baselines.items()):
            numbers = (f"{baseline.fpr_at_95:.6g}", f"{baseline.forward_ratio:.3g}")
            table.writerow([*case.split("/"), *numbers, baseline.source, baseline.date])
    temporary.replace(file)


def limit_of_baseline(baseline: Baseline, role: Role, goal: float, file: str) -> Limit:
    """A case stays within its goal or, where it is known to exceed that, within the margin of its baseline.

    A case of an OOD set that meets its goal stays within the margin too; a unit test is passed or failed.
    """
    known = baseline.fpr_at_95 > goal
    allowed = min(baseline.fpr_at_95 + FPR_MARGIN, 1.0)
    return Limit(
        goal=goal,
        fpr_at_95=allowed if known else goal if role == "unit-test" else min(allowed, goal),
        forward_ratio=max(TIME_FACTOR * baseline.forward_ratio, TIME_FLOOR),
        source=f"{file}, {baseline.source}, {baseline.date}",
        known_failure=f"{baseline.fpr_at_95:.1%} recorded {baseline.date}, the goal is {goal:.0%}" if known else None,
    )


def limit_of_published(figures: Sequence[PublishedFigure], goal: float) -> Limit:
    """A case without a baseline stays within the tolerance of what was published and, where that meets the goal, within
    the goal. Of several figures the highest counts: each is what the method gave somebody."""
    highest = max(figures, key=lambda figure: figure.fpr_at_95 + figure.tolerance)
    known = highest.fpr_at_95 > goal
    allowed = min(highest.fpr_at_95 + highest.tolerance, 1.0)
    return Limit(
        goal=goal,
        fpr_at_95=allowed if known else min(allowed, goal),
        forward_ratio=None,
        source=f"published, {highest.source}",
        known_failure=f"{highest.fpr_at_95:.1%} published, the goal is {goal:.0%}" if known else None,
    )


def limit_of_goal(goal: float, source: str) -> Limit:
    """A case without a baseline is held to a goal; its time is not judged."""
    return Limit(goal=goal, fpr_at_95=goal, forward_ratio=None, source=source)


def too_slow(timing: Timing, limit: Limit) -> bool:
    if timing.forward_ratio is None or limit.forward_ratio is None:
        return False
    return timing.forward_ratio > limit.forward_ratio


def judge(fpr_at_95: float, timing: Timing, limit: Limit | None, baseline: Baseline | None) -> Verdict:
    """Holds a case to its limit, in quality and in time.

    A known failure is an expected one while it stays within the margin of its baseline on both sides: one that got
    better needs a new baseline, or the old one would hide its next regression.
    """
    if limit is None:
        return Verdict(
            "failed", "no baseline: record one with --record-baselines, or name a limit with --fpr-limit", None
        )
    if fpr_at_95 > limit.fpr_at_95:
        return Verdict("failed", f"allowed {limit.fpr_at_95:.1%} ({limit.source})", limit)
    if too_slow(timing, limit):
        reason = (
            f"score time {timing.score_ms_per_image:.3g} ms an image is {timing.forward_ratio:.2f} of a forward pass, "
            f"allowed {limit.forward_ratio:.2f} ({limit.source})"
        )
        return Verdict("failed", reason, limit)
    improved = baseline is not None and fpr_at_95 < baseline.fpr_at_95 - FPR_MARGIN
    if limit.known_failure and improved:
        return Verdict("failed", f"improved: {limit.known_failure}; record it with --record-baselines", limit)
    if limit.known_failure and fpr_at_95 > limit.goal:
        return Verdict("failed", f"known failure: {limit.known_failure}", limit, expected=True)
    if limit.forward_ratio is None:
        return Verdict("passed", "its time is not judged: no baseline", limit)
    return Verdict("passed", f"improved from {baseline.fpr_at_95:.1%}" if baseline and improved else None, limit)
