"""The scores of a run on the Hub: one Parquet file for each model, as one flat table.

    suite, run, model, detector     which scores a row is of
    set, image, label, score, correct, network_correct      as `benchmark.scores` describes them

Each file of scores of the run is a row group of its own, so that it can be taken out again without reading the others.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.errors import UserError
from benchmark.records import Case
from benchmark.results import ResultsFolder, RunId, scores_options
from benchmark.scores import METADATA, SCORES, ScoresOf, about_scores

_OF = pa.schema({name: pa.string() for name in ("suite", "run", "model", "detector", "file")})
PACKED = pa.schema([*_OF, *SCORES])
LARGEST_TABLE_ROWS = 50_000_000  # of one image set; ImageNet's training images are 1.3 million


def score_paths(cases: Iterable[Case]) -> dict[str, list[str]]:
    """The paths of the score files of some cases, by model, each once."""
    found: dict[str, dict[str, None]] = {}
    for case in cases:
        if case.scores:
            paths = (case.scores.id_path, *case.scores.shifted_paths.values(), case.scores.path)
            found.setdefault(case.model, {}).update(dict.fromkeys(paths))
    return {model: sorted(paths) for model, paths in sorted(found.items())}


def pack(results: ResultsFolder, run: RunId, paths: Iterable[str], file: Path) -> None:
    """Writes the scores of a model as one file.

    paths: of its score files, as the records name them.
    Raises UserError that names a file which is not there, or is damaged.
    """
    with pq.ParquetWriter(file, PACKED, **scores_options(PACKED.names)) as writer:
        for path in paths:
            table = _read(results, run, path)
            _, model, rest = path.split("/", 2)
            detector = rest.split("/")[0].removesuffix(".parquet")
            of = [pa.repeat(pa.scalar(name), len(table)) for name in (run.suite, run.run, model, detector, path)]
            writer.write_table(pa.table([*of, *table.columns], schema=PACKED), row_group_size=len(table))


def _read(results: ResultsFolder, run: RunId, path: str) -> pa.Table:
    name = f"{run.suite}/{path}"
    try:
        table = results.scores(run, path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: its scores cannot be read: {' '.join(str(error).split())}") from None
    if table is None:
        raise UserError(f"{name}: its scores are gone; push the run without scores")
    for column in SCORES:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    return table.select(SCORES.names).cast(SCORES)


def unpack(file: Path) -> Iterator[tuple[str, pa.Table]]:
    """The score files that `pack` put into one: the path of each, and its table.

    Raises UserError where it is no such file. Nothing that it says is a path of ours before it has been compared with
    what the records name.
    """
    try:
        packed = pq.ParquetFile(file)
        if packed.schema_arrow.names != PACKED.names:
            raise UserError(
                f"{file.name}: it has the columns {', '.join(packed.schema_arrow.names)[:200]}; those of "
                f"scores are {', '.join(PACKED.names)}"
            )
        if packed.metadata.num_rows > LARGEST_TABLE_ROWS * max(packed.num_row_groups, 1):
            raise UserError(f"{file.name}: it says that it has {packed.metadata.num_rows} rows")
        for number in range(packed.num_row_groups):
            if packed.metadata.row_group(number).num_rows:
                yield _table_of(packed.read_row_group(number).cast(PACKED))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file.name}: it cannot be read: {' '.join(str(error).split())}") from None


def _table_of(group: pa.Table) -> tuple[str, pa.Table]:
    """The path and the scores of a row group."""
    first = {name: group[name][0].as_py() for name in (*_OF.names, "set")}
    scores = group.select(SCORES.names)
    if first["file"].count("/") == 3:  # of today's layout, which says in the file what it is of
        of = ScoresOf(first["suite"], first["run"], first["model"], first["detector"], first["set"])
        scores = scores.replace_schema_metadata({METADATA: about_scores(of)})
    return first["file"], scores
