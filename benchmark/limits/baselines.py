"""Baselines: what was recorded of a suite's cases, in a CSV file."""

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UserError
from benchmark.files import held, write_atomically
from benchmark.tables import read_csv
from detectors import did_you_mean

COLUMNS = ("model", "detector", "set", "fpr_at_95", "forward_ratio", "source", "date")
ADDED = ("weights",)  # columns that older files lack
WEIGHTS_DIGITS = 16  # so many hexadecimal digits of a network's hash tell it from others


@dataclass(frozen=True)
class Baseline:
    """What an earlier run measured of a case.

    fpr_at_95: FPR@95, as a fraction.
    forward_ratio: score time over forward time.
    source: the run.
    date: its date.
    weights: the first digits of the hash of the network that it is of. Empty where nobody wrote them down.
    """

    fpr_at_95: float
    forward_ratio: float
    source: str
    date: str
    weights: str = ""

    def is_of(self, weights_sha256: str) -> bool:
        """Whether it is of the network of a hash. Where nobody wrote down of which, it is taken to be."""
        return not self.weights or weights_sha256.startswith(self.weights)


def read_baselines(file: Path | None, cases: Collection[str]) -> dict[str, Baseline]:
    """The baselines of a suite by case (`model/detector/set`). None where it has no file, or none yet.

    file: the CSV file.
    cases: the cases that the suite has.
    Raises ValueError naming file and line for a case that the suite does not have or that has two lines, and for a
    value that is none.
    """
    if file is None or not file.is_file():
        return {}
    known = set(cases)
    baselines: dict[str, Baseline] = {}
    for place, row in read_csv(file, COLUMNS, "delete it and record anew", ADDED):
        case = f"{row['model']}/{row['detector']}/{row['set']}"
        if case not in known:
            raise UserError(
                f"{place}: the suite has no case {case!r}{did_you_mean(case, known)}; remove the line, or correct it"
            )
        if case in baselines:
            raise UserError(f"{place}: {case} has a line above already; keep one of the two")
        try:
            fpr, ratio = float(row["fpr_at_95"]), float(row["forward_ratio"])
        except ValueError:
            raise UserError(f"{place}: fpr_at_95 and forward_ratio of {case} must be numbers") from None
        if not (0 <= fpr <= 1 and 0 <= ratio < float("inf")):
            raise UserError(f"{place}: fpr_at_95 of {case} must lie in 0..1 and forward_ratio be positive")
        baselines[case] = Baseline(fpr, ratio, row["source"], row["date"], row["weights"])
    return baselines


def write_baselines(file: Path, baselines: Mapping[str, Baseline]) -> None:
    """Writes all baselines of a suite, sorted by case. A reader sees the old file or the whole new one.

    file: the CSV file.
    baselines: the baselines by case.
    """
    lines = io.StringIO(newline="")
    table = csv.writer(lines, lineterminator="\n")
    table.writerow([*COLUMNS, *ADDED])
    for case, baseline in sorted(baselines.items()):
        numbers = (f"{baseline.fpr_at_95:.6g}", f"{baseline.forward_ratio:.3g}")
        table.writerow([*case.split("/"), *numbers, baseline.source, baseline.date, baseline.weights])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lines.getvalue().encode())


def update_baselines(file: Path, cases: Collection[str], measured: Mapping[str, Baseline]) -> None:
    """Writes what a run measured into the baselines of a suite, beside what it did not run.

    Of several runs at once, each waits for the one before, and keeps what that wrote.

    file: the CSV file.
    cases: the cases that the suite has.
    measured: the baselines by case.
    Raises what `read_baselines` raises, and OSError where the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with held(file.parent):
        write_baselines(file, {**read_baselines(file, cases), **measured})
