"""All that the site shows of a suite: base models with all figures, models that differ only in their seed as one group,
and variants beside their bases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.records import DetectorRecord, Estimate, ModelRecord
from leaderboard.changes import Figure, FigureChange, Variant, VariantLine, mean_over_seeds, variant_lines
from leaderboard.results import SuiteResults
from leaderboard.view import ModelTable, Row, model_tables

MatrixRow = tuple[str, list[Row | None]]


@dataclass(frozen=True)
class SeedGroup:
    """Base models that differ only in their seed.

    id: the name of the group.
    models: the ids of the models.
    accuracy: the ID accuracy over the seeds; None where it is not recorded.
    means: by detector, the mean FPR@95 over the OOD sets, as a figure over the seeds.
    """

    id: str
    models: list[str]
    accuracy: Figure | None
    means: dict[str, Figure]


@dataclass(frozen=True)
class Board:
    """All that the site shows of a suite.

    suite: the newest results.
    tables: the table of every model, by its id.
    bases: the tables of the base models that are shown with all figures, each on its own.
    matrix: each detector with its row in each of the bases, in their order; the best detector first.
    seed_groups: the groups of base models that differ only in their seed.
    variant_lines: the variants beside their bases.
    """

    suite: SuiteResults
    tables: dict[str, ModelTable]
    bases: list[ModelTable]
    matrix: list[MatrixRow]
    seed_groups: list[SeedGroup]
    variant_lines: list[VariantLine]

    @property
    def variant_detectors(self) -> list[str]:
        """The detectors that were run on a variant, in the order of the matrix."""
        on_variants = {detector for line in self.variant_lines for detector in line.means}
        return [detector for detector, _ in self.matrix if detector in on_variants]

    @property
    def seed_group_detectors(self) -> list[str]:
        """The detectors that were run on a seed group, the lowest mean first."""
        on_groups = {detector for group in self.seed_groups for detector in group.means}
        return sorted(
            on_groups,
            key=lambda detector: _rank_key([group.means.get(detector) for group in self.seed_groups], detector),
        )

    @property
    def comparison_count(self) -> int:
        """How many differences of means have an interval."""
        return sum(change.difference is not None for line in self.variant_lines for change in line.means.values())

    def variant(self, model: str) -> Variant | None:
        """The variant with this id; None where the model is none."""
        return next(
            (variant for line in self.variant_lines for variant in line.variants if variant.record.id == model), None
        )

    def line_of(self, model: str) -> VariantLine | None:
        """The line of a variant in the table of variants; None where the model is none."""
        return next((line for line in self.variant_lines if model in (v.record.id for v in line.variants)), None)

    def variants_of(self, model: str) -> list[Variant]:
        """The variants of which this model is the base."""
        return [variant for line in self.variant_lines for variant in line.variants if variant.record.base == model]

    def seeds_of(self, model: str) -> list[str]:
        """The models that differ from this one only in their seed, and itself. Empty where it is in no group."""
        groups = [[*group.models] for group in self.seed_groups]
        groups += [[v.record.id for v in line.variants] for line in self.variant_lines if line.is_group]
        return next((models for models in groups if model in models), [])

    def rows_of(self, detector: str) -> dict[str, Row]:
        """The rows of a detector, by model, for all models that are no variants."""
        variants = {variant.record.id for line in self.variant_lines for variant in line.variants}
        return {
            model_id: row
            for model_id, table in self.tables.items()
            if model_id not in variants and (row := table.by_detector.get(detector))
        }

    def changes_of(self, detector: str) -> list[tuple[VariantLine, FigureChange]]:
        """The change of a detector's mean FPR@95 on each variant, with its line."""
        return [(line, line.means[detector]) for line in self.variant_lines if detector in line.means]


def make_board(suite: SuiteResults) -> tuple[Board, list[str]]:
    """The board of a suite, and notes on what could not be compared."""
    tables, problems = model_tables(suite)
    by_id = {table.model: table for table in tables}
    lines, more = variant_lines(suite, by_id)
    bases = [table for table in tables if not _is_seed_or_variant(suite.models.get(table.model))]
    board = Board(suite, by_id, bases, matrix_rows(suite, bases), seed_groups(suite, by_id), lines)
    notes = [f"no comparison with the best detector: {problem}" for problem in problems]
    notes += [f"no comparison with the base: {problem}" for problem in dict.fromkeys(more)]
    return board, notes


def _is_seed_or_variant(record: ModelRecord | None) -> bool:
    return record is not None and bool(record.group or record.base)


def matrix_rows(suite: SuiteResults, tables: Sequence[ModelTable]) -> list[MatrixRow]:
    """Each detector with its row in each table; None where it has no row.

    First come the detectors with a mean on every model, the lowest mean first. The others follow by name.
    """
    by_model = [table.by_detector for table in tables]
    rows = [(detector, [rows.get(detector) for rows in by_model]) for detector in suite.detector_ids]
    return sorted(rows, key=lambda row: _rank_key([cells.mean.value if cells else None for cells in row[1]], row[0]))


def _rank_key(means: Sequence[Estimate | Figure | None], name: str) -> tuple[bool, float, str]:
    values = [mean.value for mean in means if mean]
    complete = len(values) == len(means)
    return not complete, sum(values) if complete else 0.0, name


def seed_groups(suite: SuiteResults, tables: Mapping[str, ModelTable]) -> list[SeedGroup]:
    """The groups of base models that differ only in their seed, by name."""
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
    """Every detector by its id, with the record that describes it; None where there is no such record."""
    ids = sorted({detector for board in boards for detector in board.suite.detector_ids})
    known = {detector_id: record for board in boards for detector_id, record in board.suite.detectors.items()}
    return {detector_id: known.get(detector_id) for detector_id in ids}
