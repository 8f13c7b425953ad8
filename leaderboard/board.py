"""All that is shown of a suite: base models in full, several seeds together, variants beside their bases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.records import DetectorRecord, Estimate, ModelRecord
from leaderboard.changes import Change, Changed, Figure, Variant, changed_models, mean_over_seeds
from leaderboard.results import SuiteResults
from leaderboard.view import ModelTable, Row, model_tables

MatrixRow = tuple[str, list[Row | None]]


@dataclass(frozen=True)
class SeedGroup:
    """Base models that differ in their seed alone. means: by detector, mean FPR@95 over the OOD sets of each seed."""

    id: str
    models: list[str]
    accuracy: Figure | None
    means: dict[str, Figure]


@dataclass(frozen=True)
class Board:
    """tables: of every model. bases: those shown in full. matrix: each detector with its row of each base, in order."""

    suite: SuiteResults
    tables: dict[str, ModelTable]
    bases: list[ModelTable]
    matrix: list[MatrixRow]
    seed_groups: list[SeedGroup]
    changed: list[Changed]

    @property
    def changed_detectors(self) -> list[str]:
        """The detectors that met a variant, in the order of the matrix."""
        met = {detector for line in self.changed for detector in line.means}
        return [detector for detector, _ in self.matrix if detector in met]

    @property
    def seed_group_detectors(self) -> list[str]:
        """The detectors that met a seed group, the lowest mean first."""
        met = {detector for group in self.seed_groups for detector in group.means}
        return sorted(
            met, key=lambda detector: _rank([group.means.get(detector) for group in self.seed_groups], detector)
        )

    @property
    def comparisons(self) -> int:
        """How many differences of means were tested."""
        return sum(change.difference is not None for line in self.changed for change in line.means.values())

    def variant(self, model: str) -> Variant | None:
        return next((variant for line in self.changed for variant in line.variants if variant.record.id == model), None)

    def line_of(self, model: str) -> Changed | None:
        """The line of the table of changes that a variant is in."""
        return next((line for line in self.changed if model in (v.record.id for v in line.variants)), None)

    def variants_of(self, model: str) -> list[Variant]:
        return [variant for line in self.changed for variant in line.variants if variant.record.base == model]

    def seeds_of(self, model: str) -> list[str]:
        """The models that differ from one in their seed alone, itself included; none where there is no other."""
        groups = [[*group.models] for group in self.seed_groups]
        groups += [[v.record.id for v in line.variants] for line in self.changed if line.is_group]
        return next((models for models in groups if model in models), [])

    def rows_of(self, detector: str) -> dict[str, Row]:
        """The rows of one detector by base model, seeds included."""
        variants = {variant.record.id for line in self.changed for variant in line.variants}
        return {
            model_id: row
            for model_id, table in self.tables.items()
            if model_id not in variants and (row := table.by_detector.get(detector))
        }

    def changes_of(self, detector: str) -> list[tuple[Changed, Change]]:
        return [(line, line.means[detector]) for line in self.changed if detector in line.means]


def make_board(suite: SuiteResults) -> tuple[Board, list[str]]:
    """The board of a suite, and what could not be compared."""
    tables, problems = model_tables(suite)
    by_id = {table.model: table for table in tables}
    changed, more = changed_models(suite, by_id)
    bases = [table for table in tables if not _grouped_or_changed(suite.models.get(table.model))]
    board = Board(suite, by_id, bases, matrix_rows(suite, bases), seed_groups(suite, by_id), changed)
    notes = [f"no comparison with the best detector: {problem}" for problem in problems]
    notes += [f"no comparison with the base: {problem}" for problem in dict.fromkeys(more)]
    return board, notes


def _grouped_or_changed(record: ModelRecord | None) -> bool:
    return record is not None and bool(record.group or record.base)


def matrix_rows(suite: SuiteResults, tables: Sequence[ModelTable]) -> list[MatrixRow]:
    """Detectors by models: those with means on all models come first, the best on top, then the rest by name."""
    by_model = [table.by_detector for table in tables]
    rows = [(detector, [rows.get(detector) for rows in by_model]) for detector in suite.detector_ids]
    return sorted(rows, key=lambda row: _rank([cells.mean.value if cells else None for cells in row[1]], row[0]))


def _rank(means: Sequence[Estimate | Figure | None], name: str) -> tuple[bool, float, str]:
    values = [mean.value for mean in means if mean]
    complete = len(values) == len(means)
    return not complete, sum(values) if complete else 0.0, name


def seed_groups(suite: SuiteResults, tables: Mapping[str, ModelTable]) -> list[SeedGroup]:
    members: dict[str, list[ModelRecord]] = {}
    for model_id in tables:
        record = suite.models.get(model_id)
        if record and record.group and not record.base:
            members.setdefault(record.group, []).append(record)
    return [_seed_group(model_id, records, tables) for model_id, records in sorted(members.items())]


def _seed_group(group_id: str, records: Sequence[ModelRecord], tables: Mapping[str, ModelTable]) -> SeedGroup:
    models = [record.id for record in records]
    fprs: dict[str, list[float]] = {}
    for model in models:
        for row in tables[model].rows:
            fprs.setdefault(row.detector, []).extend([row.mean.value.value] if row.mean.value else [])
    means = {detector: figure for detector, values in fprs.items() if (figure := mean_over_seeds(values))}
    return SeedGroup(
        group_id, models, mean_over_seeds([record.id_accuracy.value for record in records if record.id_accuracy]), means
    )


def detector_records(boards: Sequence[Board]) -> dict[str, DetectorRecord | None]:
    """Every detector by id, with the record that describes it if there is one."""
    ids = sorted({detector for board in boards for detector in board.suite.detector_ids})
    known = {detector_id: record for board in boards for detector_id, record in board.suite.detectors.items()}
    return {detector_id: known.get(detector_id) for detector_id in ids}
