"""Loading the results that runs have written."""

import warnings
from collections import Counter
from functools import partial
from pathlib import Path

from benchmark.api.results import EvaluationResults, known_values
from benchmark.errors import UserError
from benchmark.hub.folder import results_folder
from benchmark.records import Record
from benchmark.results import ResultsFolder
from benchmark.run_records import Newest, read_folder, stale
from benchmark.scores import read_case_scores


def load_results(results: str | Path, *, suite: str | None = None) -> EvaluationResults:
    """The results that runs of the benchmark have written, those of pytest and those of `evaluate`.

    results: their folder: what `--results` of pytest named (`results` by default), or `evaluate(results=...)`. Or
        hf://datasets/ORG/NAME, perhaps with @REVISION: results on the Hub, which are brought here once.
    suite: the suite to load; all of them by default.

    Of each case the newest run counts in which it was not skipped, as on the leaderboard. A run that is dated in the
    future counts as the oldest, with a warning. A file that cannot be read is
    left out with a warning. Raises UserError, in one line, for a folder that is not there, that holds no results, or
    that is one level off.
    """
    folder = results_folder(str(results), lambda line: warnings.warn(line, stacklevel=4))
    _check_form(folder)
    found = read_folder(folder)
    for text in (*found.damage, *found.notes):
        warnings.warn(f"{folder}/{text}", stacklevel=2)
    suites = {suite_id: newest for suite_id, newest in found.suites.items() if newest.origin}
    if not suites:
        raise UserError(
            f"{folder}: no case can be read there; {'; '.join(found.damage) or 'all runs ended before one'}"
        )
    if suite is not None:
        suites = {suite_id: suites[suite_id] for suite_id in known_values("suite", suite, suites)}
    return EvaluationResults(
        tuple(record for newest in suites.values() for record in _records(newest)),
        tuple(text for newest in suites.values() for text in _stale_cases(newest)),
        partial(read_case_scores, ResultsFolder(folder)),
    )


def _check_form(folder: Path) -> None:
    """Raises UserError for a folder that does not hold SUITE/RUN.jsonl."""
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: this is a file; name the folder that holds the folders of the suites")
    if next(folder.glob("*/*.jsonl"), None):
        return
    if next(folder.glob("*.jsonl"), None):
        here = folder.resolve()
        raise UserError(f"{folder}: this is the folder of one suite; load {here.parent} with suite={here.name!r}")
    if below := next(folder.glob("*/*/*.jsonl"), None):
        raise UserError(f"{folder}: the results are one level further down; load {below.parents[1]}")
    raise UserError(f"{folder}: no results are there; a run of pytest or evaluate(..., results=...) writes some")


def _records(newest: Newest) -> list[Record]:
    """The records that count: of the runs that a case comes from, of what the cases are of, and of the cases."""
    runs = {run.run.run: run.run for run in newest.origin.values()}
    return [*runs.values(), *newest.models.values(), *newest.detectors.values(), *newest.sets.values(), *newest.cases]


def _stale_cases(newest: Newest) -> list[str]:
    """Which cases do not compare with the others, and why, a sentence for each reason."""
    found = [stale(run.cases[key], run, newest) for key, run in newest.origin.items()]
    return [
        f"{count} of the {len(found)} cases of {newest.runs[0].run.suite} do not compare with the others: {why}"
        for why, count in Counter(filter(None, found)).items()
    ]
