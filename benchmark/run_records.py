"""What runs recorded, read back from a results folder, and which record of a case counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from benchmark.records import (
    Case,
    DetectorRecord,
    ModelRecord,
    PublishedRecord,
    RecordError,
    Run,
    SetRecord,
)
from benchmark.results import ResultsFolder, RunId

CaseKey = tuple[str, str, str]
# A clock may be a time zone off. A run that started later than this after now has a wrong date.
AHEAD = timedelta(days=1)
_Key = TypeVar("_Key")
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class RunRecords:
    """What one run recorded in one suite; a later record of the same thing has replaced the earlier one.

    run: its provenance.
    started: when it started.
    models, detectors, sets: the records of the parts, by id.
    cases: by (model, detector, set).
    published: what papers report of several cases at once.
    """

    run: Run
    started: datetime
    models: dict[str, ModelRecord]
    detectors: dict[str, DetectorRecord]
    sets: dict[str, SetRecord]
    cases: dict[CaseKey, Case]
    published: list[PublishedRecord]


@dataclass(frozen=True)
class Newest:
    """The records of a suite that count.

    runs: all runs of the suite, newest first.
    origin: by case, sorted, the run whose record of it counts: the newest run in which the case was not skipped or,
        where it was only ever skipped, the newest run.
    models, detectors, sets: the newest record of each part, by id.
    """

    runs: list[RunRecords]
    origin: dict[CaseKey, RunRecords]
    models: dict[str, ModelRecord]
    detectors: dict[str, DetectorRecord]
    sets: dict[str, SetRecord]

    @property
    def cases(self) -> list[Case]:
        return [run.cases[key] for key, run in self.origin.items()]


@dataclass(frozen=True)
class RecordedRuns:
    """All runs of a results folder.

    runs: newest first, by their start and then by their id. Runs that started in the future come last.
    damage: files that could not be read, and why.
    notes: what else was left out. Both name files and lines.
    """

    runs: list[RunRecords]
    damage: list[str]
    notes: list[str]

    @property
    def suites(self) -> dict[str, Newest]:
        """What counts, by suite."""
        ids = sorted({records.run.suite for records in self.runs})
        return {suite: newest([records for records in self.runs if records.run.suite == suite]) for suite in ids}


def read_folder(folder: Path, *, suite: str | None = None, now: datetime | None = None) -> RecordedRuns:
    """The runs of a results folder. A file that cannot be read is left out.

    A run that started in the future counts as the oldest, so that it hides no other. A note says so.

    folder: the folder.
    suite: the suite whose runs are read. None: all.
    now: the present time, with its time zone. None: that of the clock.
    """
    latest = (now or datetime.now(UTC)) + AHEAD
    results = ResultsFolder(folder)
    runs: list[RunRecords] = []
    damage: list[str] = []
    notes: list[str] = []
    for run in results.runs():
        if suite not in (None, run.suite):
            continue
        path = results.file(run)
        name = path.relative_to(folder).as_posix()
        try:
            found = read_runs(results, run)
            runs += found
            notes += [f"{name}: {_told_ahead(records)}" for records in found if records.started > latest]
            if not path.read_bytes().endswith(b"\n"):
                notes.append(f"{name}: its last line was cut off by a kill and is left out")
        except OSError as error:
            damage.append(f"{name}: {error.strerror}")
        except RecordError as error:
            damage.append(str(error).replace(str(path), name))
    runs.sort(key=lambda records: (records.started <= latest, records.started, records.run.run), reverse=True)
    return RecordedRuns(runs, damage, notes)


def _told_ahead(records: RunRecords) -> str:
    return (
        f"run {records.run.run} started at {records.run.started}, which is in the future: it counts as the oldest run; "
        "correct `started` in its first line"
    )


def newest(newest_first: Sequence[RunRecords]) -> Newest:
    """What counts of the runs of one suite."""
    found = Newest(list(newest_first), {}, {}, {}, {})
    origin: dict[CaseKey, RunRecords] = {}
    for records in newest_first:
        _fill(origin, {key: records for key, case in records.cases.items() if case.status != "skipped"})
    for records in newest_first:
        _fill(origin, dict.fromkeys(records.cases, records))  # what was only ever skipped
        _fill(found.models, records.models)
        _fill(found.detectors, records.detectors)
        _fill(found.sets, records.sets)
    found.origin.update(sorted(origin.items()))
    return found


def stale(case: Case, then: RunRecords, now: Newest) -> str | None:
    """How a case's model, detector or image sets differ from the newest of their names; None where they do not."""
    newest = _hashes(case, now)
    changed = [what for what, value in _hashes(case, then).items() if value != newest.get(what)]
    return f"made with {' and '.join(f'an older {what}' for what in changed)}" if changed else None


def _hashes(case: Case, records: RunRecords | Newest) -> dict[str, str]:
    """The hashes that a case's figures depend on, as far as its run recorded them."""
    hashes = {}
    if model := records.models.get(case.model):
        hashes["checkpoint of the model"] = model.weights_sha256
    if detector := records.detectors.get(case.detector):
        hashes["source file of the detector"] = detector.source_sha256
    for image_set in records.sets.values():
        if (
            image_set.id == case.set
            or image_set.role in ("train", "val", "test")
            or image_set.id in case.shifted_accepted
        ):
            hashes[f"version of {image_set.id}"] = image_set.content_sha256
    return hashes


def _fill(newest: dict[_Key, _Part], older: Mapping[_Key, _Part]) -> None:
    for key, part in older.items():
        newest.setdefault(key, part)


def read_runs(results: ResultsFolder, run: RunId) -> list[RunRecords]:
    """What a file of records holds: usually of the one run that it is named after, of each run that it has a record of.

    Raises RecordError for a record that is damaged, or whose run has no record.
    """
    path = results.file(run)
    runs: dict[tuple[str, str], RunRecords] = {}
    others: list[ModelRecord | DetectorRecord | SetRecord | Case | PublishedRecord] = []
    for record in results.records(run):
        if isinstance(record, Run):
            started = _started(record, path)
            runs[record.suite, record.run] = RunRecords(record, started, {}, {}, {}, {}, [])
        else:
            others.append(record)
    for record in others:
        if (record.suite, record.run) not in runs:
            raise RecordError(
                f"{path}: no record of kind 'run' for run {record.run!r} of suite {record.suite!r}: "
                "when and how its figures came about is unknown; run the benchmark again or remove the file"
            )
        of_run = runs[record.suite, record.run]
        match record:
            case ModelRecord():
                of_run.models[record.id] = record
            case DetectorRecord():
                of_run.detectors[record.id] = record
            case SetRecord():
                of_run.sets[record.id] = record
            case Case():
                of_run.cases[record.model, record.detector, record.set] = record
            case PublishedRecord():
                of_run.published.append(record)
    return list(runs.values())


def _started(run: Run, path: Path) -> datetime:
    """When a run began, in UTC where it does not say. Raises RecordError, naming the file, for what is no date."""
    try:
        started = datetime.fromisoformat(run.started)
    except ValueError:
        raise RecordError(f"{path}: run {run.run!r} started at {run.started!r}, which is no ISO 8601 date") from None
    return started if started.tzinfo else started.replace(tzinfo=UTC)
