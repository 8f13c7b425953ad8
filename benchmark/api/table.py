"""Cases as a table of pandas, a row a case, and as a short one for a reader."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.records import Case, Estimate

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = ("suite", "run", "model", "detector", "set", "role", "status", "reason")
# Of each the value, and as NAME_low and NAME_high the ends of its 95 % interval.
_ESTIMATES = (
    *("fpr_at_95", "auroc", "aupr_id", "aupr_ood"),
    *("fpr_at_95_pooled", "fpr_at_95_ood_positive", "oscr", "aurc", "aurc_id"),
)
_COUNTS = ("id_images", "ood_images")
_TIMES = ("fit_s", "score_ms_per_image", "forward_ms_per_image", "forward_ratio")
_NAN = float("nan")


def table_of(cases: Sequence[Case], id_accuracies: Mapping[tuple[str, str], Estimate | None]) -> "pd.DataFrame":
    """A row a case; `EvaluationResults.to_pandas` explains the columns.

    id_accuracies: of each model, by (suite, model).
    """
    import pandas as pd  # here, since it is slow to import

    of = {name: [getattr(case, name) for case in cases] for name in (*_TEXTS, "expected", "metrics", "timing", "limit")}
    columns: dict[str, Any] = {name: of[name] for name in _TEXTS}
    columns["expected"] = pd.array(of["expected"], dtype=bool)
    for name in _ESTIMATES:
        columns |= _interval(name, [getattr(metrics, name, None) for metrics in of["metrics"]])
    columns["limit"] = _numbers(of["limit"], "fpr_at_95")
    columns["threshold"] = _numbers(of["metrics"], "threshold")
    for name in _COUNTS:
        columns[name] = pd.array([getattr(metrics, name, None) for metrics in of["metrics"]], dtype="Int64")
    columns |= {name: _numbers(of["timing"], name) for name in _TIMES}
    columns["device"] = [getattr(timing, "device", None) for timing in of["timing"]]
    columns |= _interval("id_accuracy", [id_accuracies.get((case.suite, case.model)) for case in cases])
    return pd.DataFrame(columns)


def _interval(name: str, estimates: Sequence[Estimate | None]) -> dict[str, Any]:
    return {f"{name}{end}": _numbers(estimates, field) for end, field in _ENDS.items()}


_ENDS = {"": "value", "_low": "low", "_high": "high"}


def _numbers(values: Iterable[Any], field: str) -> Any:
    """A field of each value as float64, NaN where there is none."""
    import numpy as np  # here, since a program that only asks for a table's module has no use for it

    found = [getattr(value, field, None) for value in values]
    return np.array([_NAN if number is None else number for number in found], dtype=np.float64)


def short_table(cases: Sequence[Case]) -> "pd.DataFrame":
    """FPR@95 in percent as texts: a row a detector, a column an OOD set; the unit tests have one column."""
    import pandas as pd  # here, since it is slow to import

    of_several = [name for name in ("suite", "model") if len({getattr(case, name) for case in cases}) > 1]
    names = [*of_several, "detector"]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    unit_tests: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        key = tuple(getattr(case, name) for name in names)
        row = cells.setdefault(key, {})
        if case.role == "unit-test":
            unit_tests.setdefault(key, []).append(case)
        else:
            row[case.set] = f"{100 * case.metrics.fpr_at_95.value:.1f}" if case.metrics else case.status
    for key, tests in unit_tests.items():
        cells[key]["unit tests failed"] = f"{sum(case.status != 'passed' for case in tests)} of {len(tests)}"
    keys = [key if len(names) > 1 else key[0] for key in cells]
    index = pd.MultiIndex.from_tuples(keys, names=names) if len(names) > 1 else pd.Index(keys, name=names[0])
    return pd.DataFrame(list(cells.values()), index=index).fillna("")
