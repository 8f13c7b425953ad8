"""Published figures: what papers report of a suite's cases, and whether a run says the same.

A suite names CSV files of them with these columns; `benchmark/limits/published/` holds those of the seed papers, which
`python -m benchmark.limits.curate_published` makes.

* model: the id of the model here.
* detector: the id of the detector here.
* set: an image set, a mean of the suite's table `means`, or `SET:GROUP` for a group of classes of a set.
* fpr_at_95_percent: as printed, in percent. Two papers that print different values for a cell are two lines.
* tolerance_points: how many percentage points a measured value may be away and still say the same. It has to hold all
  that is known to differ (rounding, other images of the same kind, another checkpoint, other releases of libraries).
  The interval of the measured value is shown beside the comparison and does not enter it: a small sample would
  otherwise reproduce everything.
* source: the paper and the table.
* note: what was different there, or nothing.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UserError
from benchmark.tables import read_csv
from detectors import did_you_mean

COLUMNS = ("model", "detector", "set", "fpr_at_95_percent", "tolerance_points", "source", "note")


@dataclass(frozen=True)
class PublishedFigure:
    """An FPR@95 that somebody published.

    model: the model's id.
    detector: the detector's id.
    set: an image set, a mean of the suite, or `SET:GROUP`.
    fpr_at_95: the published value, as a fraction.
    tolerance: how far a measured value may be away and still say the same, as a fraction.
    source: the paper and the table.
    note: what was different there, "" where nothing is known to be.
    """

    model: str
    detector: str
    set: str
    fpr_at_95: float
    tolerance: float
    source: str
    note: str

    @property
    def cell(self) -> str:
        """The cell that it stands in: `model/detector/set`."""
        return f"{self.model}/{self.detector}/{self.set}"


Figures = Mapping[str, tuple[PublishedFigure, ...]]


def read_published(
    files: Iterable[Path], models: Collection[str], detectors: Collection[str], sets: Collection[str]
) -> dict[str, tuple[PublishedFigure, ...]]:
    """The figures of files by cell (`model/detector/set`), in their order.

    files: the CSV files.
    models: the models that are known, of which a suite may use a part.
    detectors: the detectors that are known.
    sets: the image sets, means and groups of classes that are known.
    Raises ValueError naming file and line for what is not known, for a value that is none, and for a line twice.
    """
    cells: dict[str, tuple[PublishedFigure, ...]] = {}
    for file in files:
        for place, figure in _read(file, {"model": models, "detector": detectors, "set": sets}):
            earlier = cells.get(figure.cell, ())
            if figure.source in {other.source for other in earlier}:
                raise UserError(f"{place}: {figure.cell} of {figure.source} stands there twice; remove one")
            cells[figure.cell] = (*earlier, figure)
    return cells


def _read(file: Path, known: Mapping[str, Collection[str]]) -> Iterator[tuple[str, PublishedFigure]]:
    """The figures of a file, each with its place; known: the names that each column may have."""
    if not file.is_file():
        raise UserError(f"there is no file {file} of published figures; correct the suite's `published`")
    for place, row in read_csv(file, COLUMNS, "correct the line"):
        for column, names in known.items():
            if row[column] not in names:
                hint = did_you_mean(row[column], names)
                raise UserError(f"{place}: no {column} is called {row[column]!r}{hint}; correct the line")
        yield place, _figure(row, place)


def _figure(row: Mapping[str, str], place: str) -> PublishedFigure:
    """The figure of a line whose names are known."""
    model, detector, set_id = row["model"], row["detector"], row["set"]
    cell = f"{model}/{detector}/{set_id}"
    try:
        percent, points = float(row["fpr_at_95_percent"]), float(row["tolerance_points"])
    except ValueError:
        raise UserError(f"{place}: fpr_at_95_percent and tolerance_points of {cell} must be numbers") from None
    if not 0 <= percent <= 100:
        raise UserError(f"{place}: fpr_at_95_percent of {cell} must lie in 0..100")
    if not 0 < points <= 100:
        raise UserError(f"{place}: tolerance_points of {cell} must lie above 0, and up to 100")
    if not row["source"].strip():
        raise UserError(f"{place}: {cell} needs a source: the paper and the table")
    return PublishedFigure(model, detector, set_id, percent / 100, points / 100, row["source"], row["note"])
