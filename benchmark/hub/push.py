"""Pushing runs: one commit of files that are added and never changed."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UserError
from benchmark.hub.address import Address
from benchmark.hub.card import card
from benchmark.hub.layout import LARGEST_RECORDS_BYTES, records_path, run_of, tables_of, write_scores_of
from benchmark.hub.repository import Changes, HubError, RemoteFile, Repository
from benchmark.records import RecordError, migrated, parse_record
from benchmark.results import ResultsFolder, RunId
from benchmark.run_records import RunRecords, read_folder, read_runs

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    new: the runs that the repository did not have.
    known: those that it had already.
    files: how many files were added.
    url: the page of the commit or of the pull request. None where there was nothing to add.
    address: where the runs are now: of a pull request its revision.
    """

    new: list[RunId]
    known: list[RunId]
    files: int
    url: str | None
    address: Address


def push(
    results: Path,
    address: Address,
    runs: Sequence[RunId],
    *,
    scores: bool = False,
    pull_request: bool = False,
) -> Pushed:
    """Pushes runs of a results folder to a dataset repository, in one commit.

    results: the folder.
    address: the repository, which is made where it is not there. Its revision, if any, is the branch that is pushed to.
    runs: which runs.
    scores: whether their scores are pushed too.
    pull_request: whether to open a pull request, for which it is enough to be able to read.

    A run that is there already stays as it is, so the same push twice changes nothing.
    Raises UserError for a run that is damaged, and HubError where the Hub refuses; both leave the folder as it is.
    """
    folder = ResultsFolder(results)
    found = {run: _readable(folder, run) for run in runs}
    if not pull_request and not Repository(address).exists():
        Repository(address).create(private=False)
    known: list[RunId] = []
    added: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        packed = {
            run: dict(write_scores_of(folder, records, Path(temporary))) if scores else {}
            for run, records in found.items()
        }

        def changes(repository: Repository) -> Changes:
            there = repository.files()
            known[:] = [run for run in found if _is_there(repository, there, folder, run)]
            files: dict[str, bytes | Path | None] = {}
            for run, records in found.items():
                if run not in known:
                    files |= {records_path(run): folder.file(run), **tables_of(records)}
                files |= {path: file for path, file in packed[run].items() if path not in there}
            added[:] = [*files]
            if files:
                files[CARD] = _card(repository, there, found.values(), [*there, *files]).encode()
            return files

        commit = Repository(address).change(changes, _message(list(found)), pull_request=pull_request)
    return Pushed([run for run in found if run not in known], known, len(added), commit.url, commit.address)


def chosen_runs(results: Path, ids: Sequence[str] | None, newest: bool) -> list[RunId]:
    """The runs of a results folder that somebody asks for.

    ids: their ids; all runs by default.
    newest: whether the newest run of each suite is meant.
    Raises UserError for an id that is not there, and for a folder without runs.
    """
    there = ResultsFolder(results).runs()
    if not there:
        raise UserError(f"{results}: no results are there; a run of pytest writes some")
    for run in ids or ():
        if run not in {found.run for found in there}:
            known = ", ".join(found.run for found in there[-5:])
            raise UserError(f"{results}: there is no run {run!r}; the last ones are: {known}")
    if newest:
        suites = read_folder(results).suites.values()
        there = [RunId(found.runs[0].run.suite, found.runs[0].run.run) for found in suites]
    return [found for found in there if ids is None or found.run in ids]


def _readable(folder: ResultsFolder, run: RunId) -> RunRecords:
    """A run's records. Raises UserError where they are damaged, or are not of that run alone."""
    found = read_runs(folder, run)
    if [(records.run.suite, records.run.run) for records in found] != [run]:
        raise UserError(f"{folder.file(run)}: it is named after a run, and holds records of another; it stays here")
    _refuse_private(folder.file(run))
    return found[0]


def _refuse_private(file: Path) -> None:
    """Raises UserError where a record says more than everybody may read: an older version wrote paths and names.

    Records are pushed as they stand. What is read of them is clean, so that a difference shows what is not.
    """
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        written = migrated(json.loads(line))
        clean = parse_record(json.loads(line)).model_dump(mode="json")
        if private := [name for name, value in written.items() if clean.get(name) != value]:
            raise UserError(
                f"{file}:{number}: its {private[0]} names a place, a user or a secret of this machine, as older "
                "versions wrote it: run the benchmark again, and push that run"
            )


def _is_there(repository: Repository, there: dict[str, RemoteFile], folder: ResultsFolder, run: RunId) -> bool:
    """Whether the repository has a run. Raises HubError where it has another one of its name."""
    file = there.get(records_path(run))
    if file and not file.is_of(folder.file(run)):
        raise HubError(
            f"{repository.address}: {records_path(run)} is there with other content, and a run is never changed; "
            "run the benchmark again, or push to another repository"
        )
    return file is not None


def _card(
    repository: Repository, there: dict[str, RemoteFile], ours: Iterable[RunRecords], paths: Iterable[str]
) -> str:
    """The card that tells the truth once our runs are there."""
    newest = {records.run.suite: records for records in sorted(ours, key=lambda records: records.started)}
    last: dict[str, RunId] = {}
    for run in sorted(filter(None, map(run_of, there))):
        last[run.suite] = run  # run ids begin with their date
    for suite, run in last.items():
        theirs = _remote_run(repository, there, run)
        if theirs and (suite not in newest or theirs.started > newest[suite].started):
            newest[suite] = theirs
    return card(repository.address.repository, list(newest.values()), {path.split("/")[0] for path in paths})


def _remote_run(repository: Repository, there: dict[str, RemoteFile], run: RunId) -> RunRecords | None:
    """A run of the repository. None where it cannot be read: somebody else's damage stops no push."""
    path = records_path(run)
    try:
        local = repository.fetch(path, there[path], LARGEST_RECORDS_BYTES)
        return next(iter(read_runs(ResultsFolder(local.parents[1]), run)), None)
    except (RecordError, HubError):
        return None


def _message(runs: Sequence[RunId]) -> str:
    if len(runs) == 1:
        return f"Add the run {runs[0].run} of {runs[0].suite}"
    return f"Add {len(runs)} runs of {', '.join(sorted({run.suite for run in runs}))}"[:200]
