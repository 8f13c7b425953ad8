"""Compares variants with their bases, on the same images or over the same seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.special import stdtrit

from benchmark.metrics import Difference
from benchmark.records import Estimate, ModelRecord
from leaderboard.ranking import Comparisons
from leaderboard.results import Result, SuiteResults
from leaderboard.view import Cell, ModelTable, Row, results_of

Finding = Literal["better", "worse", "no difference found", "not compared"]
FINDINGS: tuple[Finding, ...] = ("better", "worse", "no difference found", "not compared")
Better = Literal["lower", "higher"]
CLASSIFIED_BY_BASE = "images are classified by the base"
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Figure:
    """A fraction, of one model or as the mean over several seeds.

    value: the fraction, from 0 to 1.
    interval: the sampling interval, of one model only.
    deviation: the standard deviation over the seeds, of several seeds only.
    seeds: the number of seeds.
    """

    value: float
    interval: Estimate | None = None
    deviation: float | None = None
    seeds: int = 1


@dataclass(frozen=True)
class FigureChange:
    """A figure of a base and of its variant.

    before: the figure of the base; None where there is none.
    after: the figure of the variant; None where there is none.
    finding: "better" or "worse" only where the interval of the difference does not contain 0.
    difference: after minus before, with its 95 % interval; None where they were not compared.
    reason: why they were not compared.
    """

    before: Figure | None
    after: Figure | None
    finding: Finding = "not compared"
    difference: Difference | None = None
    reason: str | None = None

    @property
    def value(self) -> float | None:
        return self.after.value - self.before.value if self.before and self.after else None


@dataclass(frozen=True)
class Variant:
    """One variant beside its base.

    record: the record of the variant.
    problem: why none of its figures can be compared; None where some can.
    accuracy: the ID accuracy.
    means: by detector, the mean FPR@95 over the OOD sets.
    sets: by detector, the FPR@95 on each OOD set.
    """

    record: ModelRecord
    problem: str | None
    accuracy: FigureChange
    means: dict[str, FigureChange]
    sets: dict[str, list[FigureChange]]


@dataclass(frozen=True)
class VariantLine:
    """A line of the table of variants: one variant, or several that differ only in their seed.

    id: the id of the variant, or the name of the group.
    base: the id of the base, or the name of the group of the bases.
    variants: the variants.
    accuracy: the ID accuracy.
    network_accuracy: the ID accuracy of the variant's own network, where images are classified by the base.
    means: by detector, the mean FPR@95 over the OOD sets.
    """

    id: str
    base: str
    variants: list[Variant]
    accuracy: FigureChange
    network_accuracy: Figure | None
    means: dict[str, FigureChange]

    @property
    def is_group(self) -> bool:
        """Whether the variants differ in their seed."""
        return self.variants[0].record.group is not None

    @property
    def problems(self) -> list[str]:
        """Why figures cannot be compared, for the variants of which none can."""
        return sorted({variant.problem for variant in self.variants if variant.problem})

    @property
    def counts(self) -> list[tuple[Finding, int]]:
        """How many detectors have each finding. Findings that no detector has are left out."""
        findings = [change.finding for change in self.means.values()]
        return [(finding, findings.count(finding)) for finding in FINDINGS if finding in findings]


def variant_lines(suite: SuiteResults, tables: Mapping[str, ModelTable]) -> tuple[list[VariantLine], list[str]]:
    """The lines of the table of variants, by base and name, and why scores could not be compared."""
    variants, problems = [], []
    for model_id in tables:
        record = suite.models.get(model_id)
        if record and record.base:
            comparisons = Comparisons()
            variants.append(_compare_variant(suite, tables, record, record.base, comparisons))
            problems += comparisons.problems
    lines: dict[tuple[bool, str], list[Variant]] = {}
    for variant in variants:
        group = variant.record.group
        lines.setdefault((group is not None, group or variant.record.id), []).append(variant)
    of_suite = [_variant_line(suite, line_id, members) for (_, line_id), members in lines.items()]
    return sorted(of_suite, key=lambda line: (line.base, line.id)), problems


def _compare_variant(
    suite: SuiteResults, tables: Mapping[str, ModelTable], record: ModelRecord, base: str, comparisons: Comparisons
) -> Variant:
    problem = None
    if base not in tables:
        problem = f"its base {base} has no results here"
    elif outdated := suite.outdated.get(record.id):
        problem = f"{record.id}: {outdated}"
    elif outdated := suite.outdated.get(base):
        problem = f"{base}: {outdated}"
    rows_before = tables[base].by_detector if base in tables else {}
    means, sets = {}, {}
    for detector, row in sorted(tables[record.id].by_detector.items()):
        before = rows_before.get(detector)
        means[detector] = _mean_change(before, row, problem, comparisons)
        cells_before = before.ood if before else [Cell(cell.set, None) for cell in row.ood]
        sets[detector] = [
            _set_change(*cells, problem, comparisons) for cells in zip(cells_before, row.ood, strict=True)
        ]
    return Variant(record, problem, _accuracy_change(suite.models.get(base), record, problem), means, sets)


def _mean_change(before: Row | None, after: Row, problem: str | None, comparisons: Comparisons) -> FigureChange:
    reason = problem
    if reason is None and before is None:
        reason = "the detector has no results on the base"
    for whose, row in (("the base", before), ("the variant", after)):
        if reason is None and row and not row.mean.value:
            reason = f"{whose} has a comparable figure on {row.mean.measured} of {row.mean.total} sets"
    return _fpr_change(
        before.mean.value if before else None,
        after.mean.value,
        results_of(before.ood) if before else [],
        results_of(after.ood),
        reason,
        comparisons,
    )


def _set_change(before: Cell, after: Cell, problem: str | None, comparisons: Comparisons) -> FigureChange:
    reason = problem
    for whose, cell in (("base", before), ("variant", after)):
        if reason is None and not cell.comparable:
            stale = cell.result.stale if cell.result else None
            reason = f"{whose}: {'stale, ' + stale if stale else cell.verdict}"
    return _fpr_change(before.fpr, after.fpr, results_of([before]), results_of([after]), reason, comparisons)


def _fpr_change(
    before: Estimate | None,
    after: Estimate | None,
    results_before: list[Result],
    results_after: list[Result],
    reason: str | None,
    comparisons: Comparisons,
) -> FigureChange:
    difference = None
    if reason is None:
        difference = comparisons.difference(results_after, results_before)
        reason = None if difference else "no scores to compare"
    return _figure_change(_figure(before), _figure(after), difference, "lower", reason)


def _figure(estimate: Estimate | None) -> Figure | None:
    return Figure(estimate.value, estimate) if estimate else None


def _figure_change(
    before: Figure | None, after: Figure | None, difference: Difference | None, better: Better, reason: str | None
) -> FigureChange:
    """The change from one figure to another.

    The interval of the difference weighs all images of a set alike, while the figure of a set with classes is a mean
    over its classes. So the difference of the figures may lie outside of the interval, which is then widened to contain
    it.
    """
    if not before or not after or not difference:
        return FigureChange(before, after, reason=reason)
    value = after.value - before.value
    low, high = min(difference.low, value), max(difference.high, value)
    finding: Finding = "no difference found"
    if low > 0 or high < 0:
        finding = "better" if (high < 0) == (better == "lower") else "worse"
    return FigureChange(before, after, finding, Difference(value, low, high))


def _accuracy_change(base: ModelRecord | None, record: ModelRecord, problem: str | None) -> FigureChange:
    """The change of the ID accuracy. It counts as a difference where the two intervals do not overlap.

    A paired comparison is not possible, since records do not say which images were classified right.
    """
    after = record.id_accuracy
    before = base.id_accuracy if base else None
    if record.classified_by_base or before is None or after is None or problem:
        lacking = "the ID images have no labels" if base else "the base has no record"
        reason = CLASSIFIED_BY_BASE if record.classified_by_base else problem or lacking
        return FigureChange(_figure(before), _figure(after), reason=reason)
    finding: Finding = "no difference found"
    if after.low > before.high or after.high < before.low:
        finding = "better" if after.low > before.high else "worse"
    return FigureChange(_figure(before), _figure(after), finding)


def _variant_line(suite: SuiteResults, model_id: str, variants: list[Variant]) -> VariantLine:
    first = variants[0]
    estimates = [
        v.record.network_accuracy for v in variants if v.record.classified_by_base and v.record.network_accuracy
    ]
    network_accuracy = mean_over_seeds([estimate.value for estimate in estimates]) if estimates else None
    if first.record.group is None:
        network_accuracy = _figure(estimates[0]) if estimates else None
        return VariantLine(model_id, str(first.record.base), variants, first.accuracy, network_accuracy, first.means)
    bases = {base.group or base.id for v in variants if (base := suite.models.get(str(v.record.base)))}
    detectors = sorted({detector for variant in variants for detector in variant.means})
    return VariantLine(
        model_id,
        ", ".join(sorted(bases or {str(variant.record.base) for variant in variants})),
        variants,
        _change_over_seeds(variants, [variant.accuracy for variant in variants], "higher"),
        network_accuracy,
        {
            detector: _change_over_seeds(variants, [variant.means.get(detector) for variant in variants], "lower")
            for detector in detectors
        },
    )


def _change_over_seeds(variants: list[Variant], changes: Sequence[FigureChange | None], better: Better) -> FigureChange:
    """The change of the mean over the seeds.

    variants: the variants of the group.
    changes: the change of each variant from its base, in the same order. Only seeds with both figures are used.
    better: whether lower or higher figures are better.
    """
    pairs = [
        (str(variant.record.base), change.before.value, change.after.value)
        for variant, change in zip(variants, changes, strict=True)
        if change and change.before and change.after and not variant.problem
    ]
    if not pairs:
        after = mean_over_seeds([change.after.value for change in changes if change and change.after])
        problem = next((v.problem for v in variants if v.problem), "no seed has both figures")
        return FigureChange(None, after, reason=problem)
    of_bases = mean_over_seeds([*{base: before for base, before, _ in pairs}.values()])
    before = replace(of_bases, value=statistics.fmean(before for _, before, _ in pairs)) if of_bases else None
    after = mean_over_seeds([after for *_, after in pairs])
    if all(variant.record.classified_by_base for variant in variants) and better == "higher":
        return FigureChange(before, after, reason=CLASSIFIED_BY_BASE)
    differences = [after - before for _, before, after in pairs]
    difference = difference_over_seeds(differences)
    return _figure_change(before, after, difference, better, None if difference else "too few seeds that differ")


def mean_over_seeds(values: Sequence[float]) -> Figure | None:
    """The mean of the figures of several seeds, with their standard deviation; None where there are none."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Figure(statistics.fmean(values), deviation=deviation, seeds=len(values))


def difference_over_seeds(differences: Sequence[float]) -> Difference | None:
    """The mean of the differences of several seeds, with its 95 % t-interval of n - 1 degrees of freedom.

    The interval covers other seeds, not other images. It is None for a single seed. It is also None where all
    differences
    are equal but not 0: that is chance, and would give an interval without width.
    """
    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation < _ROUNDING:
        return Difference(mean, mean, mean) if abs(mean) < _ROUNDING else None
    reach = float(stdtrit(len(differences) - 1, 0.975)) * deviation / math.sqrt(len(differences))
    return Difference(mean, mean - reach, mean + reach)
