"""The results of cases as a program wants them: a table, a figure, records and scores."""

import html
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmark.api.table import short_table, table_of
from benchmark.errors import UserError
from benchmark.records import Case, ModelRecord, Record
from detectors.spelling import did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from benchmark.scores import CaseScores

SHOWN = 10  # of the cases that ended without figures
ROWS_SHOWN = 60


@dataclass(frozen=True, repr=False)
class EvaluationResults:
    """The results of some cases.

    records: the records of the cases, and of the runs, models, detectors and image sets that they are of.
    remarks: what a reader should know of the figures, a sentence each.
    scores_of: gives the scores of a case. It raises UserError where they are nowhere, or are not those of the case.
    """

    records: tuple[Record, ...]
    remarks: tuple[str, ...]
    scores_of: Callable[[Case], "CaseScores"]

    @property
    def cases(self) -> tuple[Case, ...]:
        """The records of the cases."""
        return tuple(record for record in self.records if isinstance(record, Case))

    def to_records(self) -> list[Record]:
        """All records, as `benchmark.records` describes them."""
        return list(self.records)

    def to_pandas(self) -> "pd.DataFrame":
        """A table with a row a case, in which numbers are numbers, and NaN where nothing was measured.

        suite, run, model, detector, set, role: which case it is.
        status: "passed", "failed", "error" or "skipped".
        reason: why, in words.
        expected: whether it failed as its baseline says it does.
        fpr_at_95, auroc, aupr_id, aupr_ood, ...: fractions, as `benchmark.records.Metrics` explains them.
        fpr_at_95_low, fpr_at_95_high, ...: the ends of their 95 % intervals.
        limit: the FPR@95 that the case was held to.
        threshold: the score from which an image is accepted.
        id_images, ood_images: how many images there were.
        fit_s, score_ms_per_image, forward_ms_per_image, forward_ratio: times, as `benchmark.records.Timing` has them.
        device: what they were measured on.
        id_accuracy: the accuracy of the model on the ID test images, with its interval.
        """
        models = [record for record in self.records if isinstance(record, ModelRecord)]
        return table_of(self.cases, {(model.suite, model.id): model.id_accuracy for model in models})

    def select(
        self,
        *,
        suites: str | Collection[str] | None = None,
        models: str | Collection[str] | None = None,
        detectors: str | Collection[str] | None = None,
        sets: str | Collection[str] | None = None,
        roles: str | Collection[str] | None = None,
        statuses: str | Collection[str] | None = None,
    ) -> "EvaluationResults":
        """The results of some of the cases. Each argument is one value or several; None stands for all.

        suites, models, detectors, sets: ids.
        roles: "near", "far", "cleaned", "contaminated", "unit-test".
        statuses: "passed", "failed", "error", "skipped".

        Raises UserError on a value that no case has.
        """
        asked = {"suite": suites, "model": models, "detector": detectors, "set": sets, "role": roles}
        chosen = self.cases
        for field, value in (asked | {"status": statuses}).items():
            if value is not None:
                wanted = known_values(field, value, [getattr(case, field) for case in self.cases])
                chosen = tuple(case for case in chosen if getattr(case, field) in wanted)
        others = tuple(record for record in self.records if not isinstance(record, Case))
        return replace(self, records=(*others, *chosen))

    def scores(self) -> "pd.DataFrame":
        """A table of the scores of the cases, with a row an image.

        suite, model, detector: what scored the image.
        set, image: the image.
        in_distribution: whether it is an ID test image; each is there once for each detector.
        score: float64; higher means more in-distribution.
        label: the index of its class among those of its set.
        correct: whether the network is right about it, where it is an ID test image.

        Raises UserError where the scores of a case are nowhere.
        """
        import pandas as pd  # here, since it is slow to import

        found: dict[tuple[str, ...], pd.DataFrame] = {}
        for case in self.cases:
            if case.metrics is not None:
                named = {"suite": case.suite, "model": case.model, "detector": case.detector}
                scores = self.scores_of(case)
                found[*named.values(), ""] = scores.test.to_pandas().assign(**named, in_distribution=True)
                found[*named.values(), case.set] = scores.ood.to_pandas().assign(**named, in_distribution=False)
        columns = ["suite", "model", "detector", "set", "image", "in_distribution", "score", "label", "correct"]
        return pd.concat([*found.values()], ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)

    def plot(self) -> "Figure":
        """A figure of FPR@95: a row a detector, a panel a set, with 95 % intervals. Lower is better.

        Models differ in colour and shape. A notebook shows it where it is the value of a cell; `savefig` of it writes a
        file. Raises UserError where there are no figures, several suites, or more models than a figure can tell apart.
        """
        from benchmark.api.figure import fpr_figure  # here, since matplotlib is slow to import

        return fpr_figure(self.cases)

    def __repr__(self) -> str:
        table = [short_table(self.cases).to_string(max_rows=ROWS_SHOWN, line_width=120)] if self._measured else []
        return "\n".join([self._title(), *table, *self._notes()])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        table = short_table(self.cases).to_html(escape=True, max_rows=ROWS_SHOWN) if self._measured else ""
        notes = "".join(f"<li>{html.escape(text)}</li>" for text in self._notes())
        return f"<p>{html.escape(self._title())}</p>{table}" + (f"<ul>{notes}</ul>" if notes else "")

    @property
    def _measured(self) -> bool:
        return any(case.metrics for case in self.cases)

    def _title(self) -> str:
        statuses = Counter("known failures" if case.expected else case.status for case in self.cases)
        counts = ", ".join(f"{number} {status}" for status, number in statuses.items()) or "no cases"
        suites = ", ".join(dict.fromkeys(case.suite for case in self.cases))
        title = f"{suites}: {counts}" if suites else counts
        return f"{title}. FPR@95 in %, lower is better:" if self._measured else title

    def _notes(self) -> list[str]:
        """How the cases without figures ended, a line each, and the remarks."""
        ended = [case for case in self.cases if case.metrics is None]
        lines = [f"{case.model}/{case.detector}/{case.set}: {case.status}: {case.reason}" for case in ended[:SHOWN]]
        more = [f"and {len(ended) - SHOWN} others without figures: see to_pandas()"] if len(ended) > SHOWN else []
        return [*lines, *more, *self.remarks]


def known_values(field: str, value: str | Collection[str], known: Collection[str]) -> list[str]:
    """One value, or several, as a list. Raises UserError on one that is not known."""
    asked = [value] if isinstance(value, str) else list(value)
    for one in asked:
        if one not in known:
            there = ", ".join(dict.fromkeys(known))
            raise UserError(f"no case has the {field} {one!r}{did_you_mean(one, known)}; there are: {there}")
    return asked
