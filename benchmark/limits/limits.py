"""Limits: what a case is held to, and the verdict."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmark.errors import Remedy
from benchmark.limits.baselines import Baseline
from benchmark.metrics import Difference
from benchmark.records import Estimate, Limit, Role, Status, Timing
from benchmark.suites.published import PublishedFigure
from benchmark.suites.suite import CaseId, Suite

# A run of the same network on other hardware or another release of torch moves a few images across the threshold, not
# more. Of another network the margin is at least this.
FPR_MARGIN = 0.02

# A detector may get this much slower than its baseline, and below a tenth of a forward pass nobody waits for it.
TIME_FACTOR = 4.0
TIME_FLOOR = 0.1

# The scores of these detectors are drawn by chance: where the last bit of a logit differs, as it does from processor to
# processor, they are other numbers. Two draws are often further apart than the margin. Of equal images, which share a
# score, all or none are accepted. So one FPR@95 of theirs says nothing about the next one.
DRAWN_BY_CHANCE = frozenset({"random"})
# Where a limit comes from that somebody named for this run alone.
LIMIT_OF_RUN = "the limit of this run"


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    status: passed, failed, error or skipped.
    reason: why, in words. None where there is nothing to say.
    limit: what it was held to. None where it had no limit.
    expected: whether it failed as it is known to.
    remedy: what mends a failure for want of a good baseline. None of any other.
    """

    status: Status
    reason: str | None
    limit: Limit | None
    expected: bool = False
    remedy: Remedy | None = None


@dataclass(frozen=True)
class Measured:
    """What a case is judged by.

    fpr_at_95: FPR@95 with its interval.
    timing: how long it took.
    weights_sha256: the hash of the network.
    difference: gives FPR@95 minus that of the run whose id is given, on the same images, where its scores are there.
    """

    fpr_at_95: Estimate
    timing: Timing
    weights_sha256: str
    difference: Callable[[str], Difference | None]

    def margin(self, baseline: Baseline | None) -> float:
        """How far FPR@95 may lie from its baseline, as a fraction.

        Another network than the baseline's is held to what the images can tell: the part of the 95 % interval of the
        difference on the far side of the difference, of the same images where the scores of the baseline's run are
        there, else of independent ones. It says nothing of how far two equally good trainings lie apart.
        """
        if baseline is None or baseline.is_of(self.weights_sha256):
            return FPR_MARGIN
        if found := self.difference(baseline.source.removeprefix("run ")):
            return max(FPR_MARGIN, found.value - found.low, found.high - found.value)
        return max(FPR_MARGIN, _margin_unpaired(self.fpr_at_95))


def _margin_unpaired(estimate: Estimate) -> float:
    """The half of the interval of the difference of an estimate and one like it, on images of their own.

    The squares of both parts are added, as Newcombe (Statistics in Medicine 17, 1998) does for two shares.
    """
    return math.hypot(estimate.value - estimate.low, estimate.high - estimate.value)


def limit_of_baseline(baseline: Baseline, role: Role, goal: float, file: str, margin: float = FPR_MARGIN) -> Limit:
    """A case stays within its goal or, where it is known to exceed that, within the margin of its baseline.

    A case of an OOD set that meets its goal stays within the margin too. A unit test has its goal alone.

    baseline: what was recorded of the case.
    role: what the suite uses the set for.
    goal: the FPR@95 that the suite asks for.
    file: the name of the file of baselines.
    margin: how far FPR@95 may lie above the baseline.
    """
    known = baseline.fpr_at_95 > goal
    allowed = min(baseline.fpr_at_95 + margin, 1.0)
    of_another = f", another network, margin {100 * margin:.1f} points" if margin > FPR_MARGIN else ""
    return Limit(
        goal=goal,
        fpr_at_95=allowed if known else goal if role == "unit-test" else min(allowed, goal),
        forward_ratio=max(TIME_FACTOR * baseline.forward_ratio, TIME_FLOOR),
        source=f"{file}, {baseline.source}, {baseline.date}{of_another}",
        known_failure=f"{baseline.fpr_at_95:.1%} recorded {baseline.date}, the goal is {goal:.0%}" if known else None,
    )


def limit_of_chance(limit: Limit) -> Limit:
    """The limit of a detector whose scores are drawn by chance: any FPR@95 is allowed, and its time is judged as usual.

    limit: what another detector with its baseline would be held to.
    """
    known = f"its scores are drawn by chance and differ between machines, the goal is {limit.goal:.0%}"
    return limit.model_copy(update={"fpr_at_95": 1.0, "known_failure": known})


def limit_of_published(figures: Sequence[PublishedFigure], goal: float) -> Limit:
    """The limit of a case without a baseline: the published figure and its tolerance.

    Where the figure meets the goal, the goal is a limit too. Of several figures the highest counts, because each is
    what the method gave somebody.
    """
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
    """Whether a case took longer than its limit allows. It did not where there is no time, or no limit of it."""
    if timing.forward_ratio is None or limit.forward_ratio is None:
        return False
    return timing.forward_ratio > limit.forward_ratio


def judge(
    fpr_at_95: float,
    timing: Timing,
    limit: Limit | None,
    baseline: Baseline | None,
    margin: float = FPR_MARGIN,
) -> Verdict:
    """Compares a case with its limit, in quality and in time.

    A known failure is expected while it stays within the margin of its baseline on both sides. One that got better
    needs a new baseline, because the old one would hide its next regression.

    fpr_at_95: what was measured.
    timing: how long it took.
    limit: what the case is held to. None where nothing was recorded of it.
    baseline: what was recorded of it. None where improvement does not count.
    margin: how far FPR@95 may lie from the baseline.
    """
    if limit is None:
        return Verdict("failed", "no baseline", None, remedy=Remedy("record", "baseline"))
    if fpr_at_95 > limit.fpr_at_95:
        allowed = _in_percent(limit.fpr_at_95, fpr_at_95)
        return Verdict("failed", f"allowed {allowed} ({limit.source})", limit)
    if too_slow(timing, limit):
        reason = (
            f"score time {timing.score_ms_per_image:.3g} ms an image is {timing.forward_ratio:.2f} of a forward pass, "
            f"allowed {limit.forward_ratio:.2f} ({limit.source})"
        )
        return Verdict("failed", reason, limit)
    improved = baseline is not None and fpr_at_95 < baseline.fpr_at_95 - margin
    if limit.known_failure and improved:
        reason, remedy = f"improved: {limit.known_failure}", Remedy("record", "improvement")
        return Verdict("failed", reason, limit, remedy=remedy)
    if limit.known_failure and fpr_at_95 > limit.goal:
        return Verdict("failed", f"known failure: {limit.known_failure}", limit, expected=True)
    if limit.forward_ratio is None:
        return Verdict("passed", "its time is not judged: no baseline", limit)
    return Verdict("passed", f"improved from {baseline.fpr_at_95:.1%}" if baseline and improved else None, limit)


def _in_percent(limit: float, measured: float) -> str:
    """A limit in percent, with the digits that it takes to see that what was measured lies above it."""
    for digits in range(1, 6):
        if f"{limit:.{digits}%}" != f"{measured:.{digits}%}":
            break
    return f"{limit:.{digits}%}"


@dataclass(frozen=True)
class Limits:
    """What the cases of a suite are held to: a baseline, else a published figure, else the suite's goal.

    suite: the suite.
    baselines: what was recorded, by case (`model/detector/set`).
    fpr_limit: the FPR@95 that OOD sets are held to instead. None where nobody asks for one.
    unit_test_limit: the FPR@95 that is the goal of unit tests instead. None where nobody asks for one.
    recording: whether baselines are being recorded: each case is held to what it has just measured.
    user_detectors: the detectors of a user's file. No baseline of theirs is recorded, so that the goals hold.
    user_models: the models that a user names in place of the suite's, likewise.
    """

    suite: Suite
    baselines: dict[str, Baseline]
    fpr_limit: float | None
    unit_test_limit: float | None
    recording: bool
    user_detectors: Collection[str] = ()
    user_models: Collection[str] = ()

    def goal(self, role: Role) -> float:
        """The FPR@95 that a role asks for."""
        if role == "unit-test":
            return self.suite.entry.goals.of(role) if self.unit_test_limit is None else self.unit_test_limit
        return self.suite.entry.goals.of(role) if self.fpr_limit is None else self.fpr_limit

    def verdict(self, case: CaseId, measured: Measured) -> Verdict:
        """How a case ended that was measured."""
        goal, baseline = self.goal(case.role), self.baselines.get(str(case))
        fpr_at_95, timing = measured.fpr_at_95.value, measured.timing
        if self.recording:
            baseline = Baseline(
                fpr_at_95, timing.forward_ratio or 0.0, "this run", datetime.now(UTC).date().isoformat()
            )
        margin = measured.margin(baseline)
        limit = self._limit(case, goal, baseline, margin)
        return judge(fpr_at_95, timing, limit, None if case.detector in DRAWN_BY_CHANCE else baseline, margin)

    def _limit(self, case: CaseId, goal: float, baseline: Baseline | None, margin: float) -> Limit | None:
        role = case.role
        named = self.unit_test_limit if role == "unit-test" else self.fpr_limit
        if role != "unit-test" and named is not None:
            return limit_of_goal(goal, LIMIT_OF_RUN)
        if baseline is not None:
            file = self.suite.entry.baselines
            limit = limit_of_baseline(baseline, role, goal, file.name if file else "this run", margin)
            return limit_of_chance(limit) if case.detector in DRAWN_BY_CHANCE else limit
        if figures := self.suite.published.get(str(case)):
            return limit_of_published(figures, goal)
        of_user = case.detector in self.user_detectors or case.model in self.user_models
        if role == "unit-test" or self.suite.entry.baselines is None or of_user:
            return limit_of_goal(goal, f"goals in {self.suite.entry.file.name}" if named is None else LIMIT_OF_RUN)
        return None
