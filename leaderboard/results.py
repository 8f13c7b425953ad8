"""Reads a folder of records and keeps, of everything, the newest."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from benchmark.records import (
    OOD_ROLES,
    Case,
    DetectorRecord,
    ModelRecord,
    PublishedRecord,
    Record,
    RecordError,
    Run,
    SetRecord,
)
from benchmark.results import ResultsFolder, RunId

CaseKey = tuple[str, str, str]
_Described = TypeVar("_Described", ModelRecord, DetectorRecord, SetRecord)
_ROLES = (*OOD_ROLES, "unit-test", "test", "shifted", "val", "train", "tuning")


@dataclass(frozen=True)
class Result:
    """A case and where it comes from.

    case: its record.
    run: the record of its run.
    folder: the folder that the path of its scores is relative to.
    stale: how its model, detector or image set differs from the newest one of that name, so that it does not compare.
        None where it compares.
    """

    case: Case
    run: Run
    folder: Path
    stale: str | None


@dataclass(frozen=True)
class SuiteResults:
    """The newest results of a suite, and the newest record of each model, detector and image set.

    id: the suite's id.
    runs: the runs that a result comes from, newest first.
    models: the newest record of each model, by its id.
    detectors: the newest record of each detector, by its id.
    sets: the newest record of each image set, by its id.
    results: the newest result of each case, by (model, detector, set).
    outdated: by id of the model, why a model's record does not compare: it was made with other images, or with another
        base, than the newest ones.
    published: what papers report of means and of groups of classes, beside what a run measured. A record is left out
        where a case of it is stale, or shown from another run.
    """

    id: str
    runs: list[Run]
    models: dict[str, ModelRecord]
    detectors: dict[str, DetectorRecord]
    sets: dict[str, SetRecord]
    results: dict[CaseKey, Result]
    outdated: dict[str, str]
    published: list[PublishedRecord]

    @cached_property
    def model_ids(self) -> list[str]:
        return sorted({model for model, _, _ in self.results})

    @cached_property
    def detector_ids(self) -> list[str]:
        return sorted({detector for _, detector, _ in self.results})

    def set_ids(self, role: str) -> list[str]:
        """The OOD sets of a role: those with a record in its order, then the rest by name."""
        recorded = [image_set.id for image_set in self.sets.values() if image_set.role == role]
        met = {result.case.set for result in self.results.values() if result.case.role == role}
        return recorded + sorted(met.difference(recorded))

    @property
    def unrecorded_sets(self) -> list[str]:
        return sorted({set_id for _, _, set_id in self.results}.difference(self.sets))

    @property
    def id_set(self) -> str | None:
        """The set of the ID test images; null where none is recorded, or more than one."""
        ids = [image_set.id for image_set in self.sets.values() if image_set.role == "test"]
        return ids[0] if len(ids) == 1 else None

    @property
    def ood_set_ids(self) -> list[str]:
        """The sets that figures are averaged over."""
        return self.set_ids("near") + self.set_ids("far")

    @property
    def tracks(self) -> dict[str, list[str]]:
        """The sets that stand beside those, by role."""
        return {role: ids for role in ("contaminated", "cleaned") if (ids := self.set_ids(role))}


@dataclass(frozen=True)
class Results:
    """What a results folder holds.

    suites: the suites with results, by id.
    damage: the files that could not be read, with the line and the reason.
    notes: what else is not shown, with the file.
    """

    suites: list[SuiteResults]
    damage: list[str]
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for suite in self.suites for run in suite.runs]

    @property
    def records(self) -> list[Record]:
        """Every record that the site shows."""
        shown: list[Record] = []
        for suite in self.suites:
            shown += [*suite.runs, *suite.models.values(), *suite.detectors.values(), *suite.sets.values()]
            shown += [result.case for result in suite.results.values()]
            shown += suite.published
        return shown

    @property
    def record_count(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class _RunRecords:
    """What one run recorded in one suite. A later record of the same thing has replaced the earlier one.

    run: the record of the run.
    started: when it began.
    folder: the folder of its file of records.
    models: the records of models, by id.
    detectors: the records of detectors, by id.
    sets: the records of image sets, by id.
    cases: the records of cases, by (model, detector, set).
    published: the records of published figures of several cases.
    """

    run: Run
    started: datetime
    folder: Path
    models: dict[str, ModelRecord]
    detectors: dict[str, DetectorRecord]
    sets: dict[str, SetRecord]
    cases: dict[CaseKey, Case]
    published: list[PublishedRecord]


def read_results(folder: Path) -> Results:
    """The newest result of each case in a results folder, by the start of its run. An unreadable file is left out."""
    results = ResultsFolder(folder)
    runs: list[_RunRecords] = []
    damage: list[str] = []
    notes: list[str] = []
    for run in results.runs():
        path = results.file(run)
        name = path.relative_to(folder).as_posix()
        try:
            runs += _read_runs(results, run)
            if not path.read_bytes().endswith(b"\n"):
                notes.append(f"{name}: its last line was cut off by a kill and is left out")
        except OSError as error:
            damage.append(f"{name}: {error.strerror}")
        except RecordError as error:
            damage.append(str(error).replace(str(path), name))
    runs.sort(key=lambda records: (records.started, records.run.run), reverse=True)
    suites = [
        _suite_results(suite_id, [records for records in runs if records.run.suite == suite_id])
        for suite_id in _suite_ids(runs)
    ]
    return Results([suite for suite in suites if suite.results], damage, notes)


def _suite_ids(runs: list[_RunRecords]) -> list[str]:
    return sorted({records.run.suite for records in runs})


def _read_runs(results: ResultsFolder, run: RunId) -> list[_RunRecords]:
    """What a file of records holds: usually of the one run that it is named after, of each run that it has a record of.

    Raises RecordError for a record that is damaged, or whose run has no record.
    """
    path = results.file(run)
    runs: dict[tuple[str, str], _RunRecords] = {}
    others: list[ModelRecord | DetectorRecord | SetRecord | Case | PublishedRecord] = []
    for record in results.records(run):
        if isinstance(record, Run):
            started = _started(record, path)
            runs[record.suite, record.run] = _RunRecords(record, started, path.parent, {}, {}, {}, {}, [])
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


def _suite_results(suite_id: str, newest_first: list[_RunRecords]) -> SuiteResults:
    """What the runs of a suite say together."""
    newest = _RunRecords(newest_first[0].run, newest_first[0].started, newest_first[0].folder, {}, {}, {}, {}, [])
    origin: dict[CaseKey, _RunRecords] = {}
    for records in newest_first:
        origin |= {
            key: records for key, case in records.cases.items() if key not in origin and case.status != "skipped"
        }
    for records in newest_first:
        origin |= {key: records for key in records.cases if key not in origin}  # what was only ever skipped
        _add_missing(newest.models, records.models)
        _add_missing(newest.detectors, records.detectors)
        _add_missing(newest.sets, records.sets)
    results = {
        key: Result(records.cases[key], records.run, records.folder, _stale(records.cases[key], records, newest))
        for key, records in sorted(origin.items(), key=lambda item: item[0])
    }
    shown = {result.run.run for result in results.values()}
    return SuiteResults(
        id=suite_id,
        runs=[records.run for records in newest_first if records.run.run in shown],
        models=dict(sorted(newest.models.items())),
        detectors=dict(sorted(newest.detectors.items())),
        sets=dict(sorted(newest.sets.items(), key=lambda item: _ROLES.index(item[1].role))),
        results=results,
        outdated=_outdated(newest_first, newest),
        published=[record for records in newest_first for record in records.published if _is_of_shown(record, results)],
    )


def _add_missing(newest: dict[str, _Described], older: dict[str, _Described]) -> None:
    """Adds the older records of what the newest ones do not have."""
    for record_id, record in older.items():
        newest.setdefault(record_id, record)


def _is_of_shown(record: PublishedRecord, results: dict[CaseKey, Result]) -> bool:
    """Whether the cases that are shown of its sets are those that it was measured from, and none is stale."""
    keys = [(record.model, record.detector, set_id) for set_id in record.sets]
    shown = [results[key] for key in keys if key in results]
    return {(result.run.run, result.stale) for result in shown} == {(record.run, None)}


def _stale(case: Case, then: _RunRecords, now: _RunRecords) -> str | None:
    """How what a case was made with differs from the newest of it, in words. None where it does not.

    then: the records of the case's own run.
    now: the newest records.
    """
    newest = _hashes(case, now)
    changed = [what for what, value in _hashes(case, then).items() if value != newest.get(what)]
    return f"made with {' and '.join(f'an older {what}' for what in changed)}" if changed else None


def _outdated(newest_first: list[_RunRecords], newest: _RunRecords) -> dict[str, str]:
    """By id of the model, with what older images or base its newest record was made."""
    outdated = {}
    for model_id, model in newest.models.items():
        then = next(records for records in newest_first if records.models.get(model_id) is model)
        tests = [image_set for image_set in then.sets.values() if image_set.role == "test"]
        changed = [
            f"version of {image_set.id}"
            for image_set in tests
            if newest.sets[image_set.id].content_sha256 != image_set.content_sha256
        ]
        base = then.models.get(model.base or "")
        if base and newest.models[base.id].weights_sha256 != base.weights_sha256:
            changed.append(f"checkpoint of {base.id}")
        if changed:
            outdated[model_id] = f"made with {' and '.join(f'an older {what}' for what in changed)}"
    return outdated


def _hashes(case: Case, records: _RunRecords) -> dict[str, str]:
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
