"""Reads a folder of records and keeps, of everything, the newest."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmark.records import OOD_ROLES, Case, DetectorRecord, ModelRecord, PublishedRecord, Record, Run, SetRecord
from benchmark.results import Backend, ResultsFolder
from benchmark.run_records import CaseKey, Newest, read_folder, stale

_ROLES = (*OOD_ROLES, "unit-test", "test", "shifted", "val", "train", "tuning")


@dataclass(frozen=True)
class Result:
    """A case and where it comes from.

    case: its record.
    run: the record of its run.
    results: where its scores are.
    stale: how its model, detector or image set differs from the newest one of that name, so that it does not compare.
        None where it compares.
    """

    case: Case
    run: Run
    results: Backend
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


def read_results(folder: Path) -> Results:
    """The newest result of each case in a results folder, by the start of its run. An unreadable file is left out."""
    found = read_folder(folder)
    scores = ResultsFolder(folder)
    suites = [_suite_results(suite_id, newest, scores) for suite_id, newest in found.suites.items() if newest.origin]
    return Results(suites, found.damage, found.notes)


def _suite_results(suite_id: str, newest: Newest, folder: Backend) -> SuiteResults:
    """What the runs of a suite say together."""
    results = {
        key: Result(records.cases[key], records.run, folder, stale(records.cases[key], records, newest))
        for key, records in newest.origin.items()
    }
    shown = {result.run.run for result in results.values()}
    return SuiteResults(
        id=suite_id,
        runs=[records.run for records in newest.runs if records.run.run in shown],
        models=dict(sorted(newest.models.items())),
        detectors=dict(sorted(newest.detectors.items())),
        sets=dict(sorted(newest.sets.items(), key=lambda item: _ROLES.index(item[1].role))),
        results=results,
        outdated=_outdated(newest),
        published=[record for records in newest.runs for record in records.published if _is_of_shown(record, results)],
    )


def _is_of_shown(record: PublishedRecord, results: dict[CaseKey, Result]) -> bool:
    """Whether the cases that are shown of its sets are those that it was measured from, and none is stale."""
    keys = [(record.model, record.detector, set_id) for set_id in record.sets]
    shown = [results[key] for key in keys if key in results]
    return {(result.run.run, result.stale) for result in shown} == {(record.run, None)}


def _outdated(newest: Newest) -> dict[str, str]:
    """By id of the model, with what older images or base its newest record was made."""
    outdated = {}
    for model_id, model in newest.models.items():
        then = next(records for records in newest.runs if records.models.get(model_id) is model)
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
