"""Results: where records and scores are kept, and the one way in which they are written and read.

A backend is a place of results: a folder (`ResultsFolder`), or the memory of this process (`ResultsInMemory`). In each
of them a run of a suite has a list of records, and a table of scores for each model, detector and image set.

To add a backend, write a class with the methods of `Backend` into this module, and add it to BACKENDS in
tests/test_results.py, which holds each of them to the same contract.

This module needs neither torch nor timm.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.errors import Remedy, UserError
from benchmark.files import remove_litter, replacing
from benchmark.memory import too_large
from benchmark.records import Record, read_records


class RunId(NamedTuple):
    """A run of a suite.

    suite: the id of the suite.
    run: the id of the run.
    """

    suite: str
    run: str


class Backend(Protocol):
    """A place of results. Its methods raise OSError where it cannot be read or written."""

    def name_of(self, run: RunId) -> str:
        """Where the records of a run are, for a message."""

    def add(self, record: Record) -> None:
        """Adds a record to those of its run and suite. A reader sees all of it or none of it."""

    def write_scores(self, run: RunId, path: str, scores: pa.Table) -> None:
        """Keeps the scores of a model and detector on an image set, in place of those that were there.

        path: what `scores_path` gives, and a record says.
        scores: a table as `benchmark.scores` describes it.
        Raises UserError that names the place.
        """

    def runs(self) -> list[RunId]:
        """The runs that have records here, sorted."""

    def records(self, run: RunId) -> Iterator[Record]:
        """The records of a run, in the order in which they were added. None for a run that is not here.

        Raises RecordError for a record that is damaged or of a newer schema.
        """

    def scores(self, run: RunId, path: str) -> pa.Table | None:
        """The scores at a path, as they were written last. None where there are none.

        Raises OSError, or pyarrow's ArrowException, where they are damaged.
        """

    def close(self) -> None:
        """Says that a writer adds no more: whoever collects what it is given hands it on now."""


def scores_path(run: str, model: str, detector: str, set_id: str) -> str:
    """The path of the scores of a model and detector on an image set, as `ScoresFile` has it."""
    return f"{run}/{model}/{detector}/{set_id}.parquet"


def scores_options(columns: Sequence[str]) -> dict[str, Any]:
    """How scores are written as Parquet: ids of neighbours begin alike, and the exponents of scores are alike."""
    encodings = {"image": "DELTA_BYTE_ARRAY", "score": "BYTE_STREAM_SPLIT"}
    others = [name for name in columns if name not in encodings]
    return {"compression": "zstd", "use_dictionary": others, "column_encoding": encodings}


class ResultsFolder:
    """A folder of results.

        FOLDER/<suite>/<run>.jsonl                              the records, one JSON line each
        FOLDER/<suite>/<run>/<model>/<detector>/<set>.parquet   the scores

    A record is appended as a whole line. A file of scores is written in one step, and is not changed afterwards.

    folder: the folder, which need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remove_litter(self) -> None:
        """Removes what killed runs left beside the scores, where it is old."""
        remove_litter(self.folder, "*/*/**/.writing-*", "*/*/**/*.writing")  # the latter of earlier versions

    def file(self, run: RunId) -> Path:
        """The file of a run's records."""
        return self.folder / run.suite / f"{run.run}.jsonl"

    def scores_file(self, run: RunId, path: str) -> Path:
        """The file of some scores."""
        return self.folder / run.suite / path

    def name_of(self, run: RunId) -> str:
        return str(self.file(run))

    def add(self, record: Record) -> None:
        file = self.file(RunId(record.suite, record.run))
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(record.model_dump_json() + "\n")

    def write_scores(self, run: RunId, path: str, scores: pa.Table) -> None:
        file = self.scores_file(run, path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:  # of its own, since two workers may score the ID images
                pq.write_table(scores, temporary, **scores_options(scores.column_names))
        except OSError as error:
            raise UserError(
                f"cannot write the scores {file}: {error.strerror or error}; free some space", Remedy("set", "results")
            ) from error

    def runs(self) -> list[RunId]:
        return sorted(RunId(file.parent.name, file.stem) for file in self.folder.glob("*/*.jsonl"))

    def records(self, run: RunId) -> Iterator[Record]:
        return read_records(self.file(run)) if self.file(run).exists() else iter(())

    def scores(self, run: RunId, path: str) -> pa.Table | None:
        file = self.scores_file(run, path)
        if not file.exists():
            return None
        table = pq.ParquetFile(file)
        about = table.metadata
        declared = max(about.num_rows, sum(about.row_group(at).total_byte_size for at in range(about.num_row_groups)))
        if problem := too_large(declared):
            raise pa.ArrowInvalid(f"its rows take {problem}: it is damaged")
        return table.read()

    def close(self) -> None:
        """Everything is in the folder already."""


class ResultsInMemory:
    """Results that live as long as this object does. Nothing is written."""

    def __init__(self) -> None:
        self._records: dict[RunId, list[Record]] = {}
        self._scores: dict[tuple[RunId, str], pa.Table] = {}

    def name_of(self, run: RunId) -> str:
        return f"run {run.run} of {run.suite}, in memory"

    def add(self, record: Record) -> None:
        self._records.setdefault(RunId(record.suite, record.run), []).append(record)

    def write_scores(self, run: RunId, path: str, scores: pa.Table) -> None:
        self._scores[run, path] = scores

    def runs(self) -> list[RunId]:
        return sorted(self._records)

    def records(self, run: RunId) -> Iterator[Record]:
        return iter(self._records.get(run, ()))

    def scores(self, run: RunId, path: str) -> pa.Table | None:
        return self._scores.get((run, path))

    def close(self) -> None:
        """What was added stays readable."""
