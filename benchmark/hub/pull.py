"""Pulling runs into a results folder. What is there stays; what is no record, or not what its hash says, is refused."""

import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.errors import UserError
from benchmark.files import write_atomically
from benchmark.hub.address import Address
from benchmark.hub.layout import LARGEST_RECORDS_BYTES, LARGEST_SCORES_BYTES, run_of, scores_of
from benchmark.hub.repository import HubError, RemoteFile, Repository
from benchmark.hub.scores import score_paths, unpack
from benchmark.records import Case
from benchmark.results import ResultsFolder, RunId
from benchmark.run_records import RunRecords, read_runs
from benchmark.scores import read_case_scores


@dataclass
class Pulled:
    """What a pull did.

    commit: the commit that it is the state of.
    new: the runs that the folder did not have.
    known: those that it had already.
    score_files: how many files of scores were added.
    refused: what was left out, and why, a line each.
    """

    commit: str
    new: list[RunId] = field(default_factory=list)
    known: list[RunId] = field(default_factory=list)
    score_files: int = 0
    refused: list[str] = field(default_factory=list)


def pull(address: Address, results: Path, *, scores: bool = True) -> Pulled:
    """Brings the runs of a repository into a results folder, byte for byte.

    address: the repository, at its revision or at its newest commit.
    results: the folder, which need not be there yet.
    scores: whether their scores are brought too, where the repository has them. They are checked against the records.

    Raises HubError where the repository cannot be read, or holds no runs.
    """
    repository = Repository(address)
    files = repository.files()
    runs = {path: run for path in sorted(files) if (run := run_of(path))}
    if not runs:
        raise HubError(f"{address}: it holds no runs; `push` puts some there")
    pulled, folder = Pulled(repository.commit_sha), ResultsFolder(results)
    for path, run in runs.items():
        try:
            records = _pull_records(repository, path, files[path], folder, run, pulled)
        except UserError as error:
            pulled.refused.append(str(error))
            continue
        if scores:
            _pull_scores(repository, files, folder, records, pulled)
    return pulled


def _pull_records(
    repository: Repository, path: str, file: RemoteFile, folder: ResultsFolder, run: RunId, pulled: Pulled
) -> RunRecords:
    """Puts the records of a run into the folder. Raises UserError, naming the file, where they are refused."""
    local = repository.fetch(path, file, LARGEST_RECORDS_BYTES)
    found = read_runs(ResultsFolder(local.parents[1]), run)
    if [(records.run.suite, records.run.run) for records in found] != [run]:
        raise HubError(f"{repository.address}: {path}: it holds records of another run than the one that it is called")
    target = folder.file(run)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, local.read_bytes())
        pulled.new.append(run)
    elif file.is_of(target):
        pulled.known.append(run)
    else:
        raise UserError(f"{target}: it is there with other content than {path} of {repository.address}; it stays")
    return found[0]


def _pull_scores(
    repository: Repository, files: dict[str, RemoteFile], folder: ResultsFolder, records: RunRecords, pulled: Pulled
) -> None:
    run = RunId(records.run.suite, records.run.run)
    paths = score_paths(records.cases.values())
    for remote in sorted(files):
        of = scores_of(remote)
        if of is None or of[0] != run or of[1] not in paths:
            continue
        missing = [path for path in paths[of[1]] if not folder.scores_file(run, path).exists()]
        if missing:
            cases = [case for case in records.cases.values() if case.model == of[1] and case.scores]
            try:
                local = repository.fetch(remote, files[remote], LARGEST_SCORES_BYTES)
                pulled.score_files += _unpack(local, folder, run, paths[of[1]], cases)
            except UserError as error:
                pulled.refused.append(str(error).replace(str(folder.folder), folder.folder.name))


def _unpack(local: Path, folder: ResultsFolder, run: RunId, paths: Collection[str], cases: Iterable[Case]) -> int:
    """Puts those of a model's scores into the folder that it lacks, once all of them fit the records.

    paths: the paths that the records name. Whatever else the file holds is left out.
    Returns how many files were added. Raises UserError that names what does not fit.
    """
    folder.folder.mkdir(parents=True, exist_ok=True)
    added = 0
    with tempfile.TemporaryDirectory(dir=folder.folder, prefix=".pulling-") as temporary:
        beside = ResultsFolder(Path(temporary))
        for path, table in unpack(local):
            if path in paths:
                beside.write_scores(run, path, table)
        for case in cases:
            read_case_scores(beside, case)
        for path in paths:
            target = folder.scores_file(run, path)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                beside.scores_file(run, path).replace(target)
                added += 1
    return added
