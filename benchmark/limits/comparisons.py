"""Comparisons: published figures beside what was measured."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.metrics import mean
from benchmark.records import Case, Estimate, Metrics, PublishedRecord, PublishedValue
from benchmark.suites.published import PublishedFigure
from benchmark.suites.suite import Suite

Status = Literal["reproduced", "differs", "not run"]


@dataclass(frozen=True)
class Comparison:
    """A published figure beside what was measured.

    figure: the published figure.
    measured: what was measured of it. None where nothing was.
    """

    figure: PublishedFigure
    measured: Estimate | None

    @property
    def value(self) -> PublishedValue:
        """What a record says of it."""
        return compare(self.figure, self.measured)


def compare(figure: PublishedFigure, measured: Estimate | None) -> PublishedValue:
    """A published figure beside a measured value.

    It is reproduced where the measured value is no further from the figure than its tolerance.

    figure: the published figure.
    measured: the measured value. None where nothing was measured.
    """
    difference = None if measured is None else measured.value - figure.fpr_at_95
    status: Status
    if difference is None:
        status = "not run"
    else:
        # A difference of exactly the tolerance, in decimal, is within it, whatever the last bits say.
        status = "reproduced" if abs(difference) <= figure.tolerance + 1e-9 else "differs"
    return PublishedValue(
        fpr_at_95=figure.fpr_at_95,
        tolerance=figure.tolerance,
        source=figure.source,
        note=figure.note or None,
        difference=difference,
        status=status,
    )


def comparisons(suite: Suite, cases: Iterable[Case]) -> list[Comparison]:
    """Every published figure that the suite can measure, beside what was measured of it.

    suite: the suite.
    cases: what was measured. Of two records of one case, the later counts.
    """
    possible = {str(case) for case in suite.whole().ood_cases()}
    measured = {f"{case.model}/{case.detector}/{case.set}": case.metrics for case in cases if case.metrics}
    figures = [figure for figures in suite.published.values() for figure in figures]
    return [
        Comparison(figure, _measured(suite, figure, measured))
        for figure in figures
        if possible.issuperset(_cells(suite, figure))
    ]


def published_records(run: str, suite: Suite, cases: Sequence[Case]) -> Iterator[PublishedRecord]:
    """What is published of means and of groups of classes, as far as a run had a case of it.

    What is published of one case stands in the record of that case.

    run: the id of the run.
    suite: the suite.
    cases: the records of all cases of the run.
    """
    ran = {f"{case.model}/{case.detector}/{case.set}" for case in cases}
    for comparison in comparisons(suite, cases):
        figure = comparison.figure
        if figure.set not in suite.image_sets and not ran.isdisjoint(_cells(suite, figure)):
            yield PublishedRecord(
                run=run,
                suite=suite.id,
                model=figure.model,
                detector=figure.detector,
                name=figure.set,
                sets=_sets(suite, figure),
                measured=comparison.measured,
                published=comparison.value,
            )


def _sets(suite: Suite, figure: PublishedFigure) -> list[str]:
    """The image sets that a figure is of: one, or those of a mean."""
    set_id, _, _ = figure.set.partition(":")
    return list(suite.entry.means.get(set_id, (set_id,)))


def _cells(suite: Suite, figure: PublishedFigure) -> list[str]:
    """The cases (`model/detector/set`) that a figure is of."""
    return [f"{figure.model}/{figure.detector}/{set_id}" for set_id in _sets(suite, figure)]


def _measured(suite: Suite, figure: PublishedFigure, measured: Mapping[str, Metrics]) -> Estimate | None:
    """What was measured of a figure's set, its group of classes, or all sets of its mean; None where one is missing."""
    metrics = [measured.get(cell) for cell in _cells(suite, figure)]
    set_id, _, group = figure.set.partition(":")
    if group:
        classes = {value.name: value.fpr_at_95 for value in metrics[0].classes} if metrics[0] else {}
        return _mean([classes.get(name) for name in suite.image_sets[set_id].class_groups[group]])
    return _mean([value.fpr_at_95 if value else None for value in metrics])


def _mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The unweighted mean, as papers take it; None where one is missing."""
    there = [estimate for estimate in estimates if estimate is not None]
    return mean(there) if there and len(there) == len(estimates) else None


def counts(compared: Iterable[Comparison]) -> str:
    """How many figures were reproduced, differ and were not run, in words."""
    number = Counter(comparison.value.status for comparison in compared)
    return ", ".join(f"{number[status]} {words}" for status, words in _IN_WORDS.items())


_IN_WORDS: dict[Status, str] = {"reproduced": "reproduced", "differs": "differ", "not run": "not run"}


def in_words(value: PublishedValue) -> str:
    """How a figure compares: 'reproduced', 'differs by +2.3 points', or 'not run'."""
    return value.status if value.status != "differs" else f"differs by {100 * (value.difference or 0):+.1f} points"
