"""What lies in a dataset repository of results.

    README.md                              the dataset card, which says all this to a reader and to the Hub
    records/<suite>/<run>.jsonl            the records of a run, as the run wrote them
    cases/<suite>/<run>.parquet            its cases, as a flat table; so are models/, detectors/, sets/ and runs/
    scores/<suite>/<run>/<model>.parquet   the scores of a model in it, where they were pushed

A file is added and never changed. The tables follow from the records, and are there for the Hub's viewer and for those
who read them with other tools; this package reads the records.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.hub.scores import pack, score_paths
from benchmark.hub.tables import cases_table, records_table
from benchmark.records import ID_PATTERN, DetectorRecord, ModelRecord, Run, SetRecord
from benchmark.results import ResultsFolder, RunId
from benchmark.run_records import RunRecords

LARGEST_RECORDS_BYTES = 1 << 30  # 27,000 cases have 60 MB
LARGEST_SCORES_BYTES = 1 << 34
TABLES = ("cases", "models", "detectors", "sets", "runs")
_ID = ID_PATTERN.strip("^$")
_RECORDS = re.compile(rf"records/({_ID})/({_ID})\.jsonl")
_SCORES = re.compile(rf"scores/({_ID})/({_ID})/({_ID})\.parquet")


def records_path(run: RunId) -> str:
    """Where the records of a run lie."""
    return f"records/{run.suite}/{run.run}.jsonl"


def scores_path(run: RunId, model: str) -> str:
    """Where the scores of a model in a run lie."""
    return f"scores/{run.suite}/{run.run}/{model}.parquet"


def run_of(path: str) -> RunId | None:
    """The run whose records lie at a path. None of any other file."""
    found = _RECORDS.fullmatch(path)
    return RunId(found[1], found[2]) if found else None


def scores_of(path: str) -> tuple[RunId, str] | None:
    """The run and the model whose scores lie at a path. None of any other file."""
    found = _SCORES.fullmatch(path)
    return (RunId(found[1], found[2]), found[3]) if found else None


def tables_of(run: RunRecords) -> dict[str, bytes]:
    """The tables of a run as Parquet, by path."""
    models = list(run.models.values())
    tables = {
        "cases": cases_table(run.cases.values(), run.run, models),
        "models": records_table(ModelRecord, models),
        "detectors": records_table(DetectorRecord, run.detectors.values()),
        "sets": records_table(SetRecord, run.sets.values()),
        "runs": records_table(Run, [run.run]),
    }
    return {f"{name}/{run.run.suite}/{run.run.run}.parquet": _parquet(table) for name, table in tables.items()}


def write_scores_of(results: ResultsFolder, run: RunRecords, folder: Path) -> Mapping[str, Path]:
    """Writes the scores of a run into a folder, a file a model. Gives the files by the path that they get."""
    run_id, files = RunId(run.run.suite, run.run.run), {}
    for model, paths in score_paths(run.cases.values()).items():
        file = folder / run_id.suite / run_id.run / f"{model}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pack(results, run_id, paths, file)
        files[scores_path(run_id, model)] = file
    return files


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
