"""The recorder: it hands the records of a run to a backend."""

import os
import platform
import secrets
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmark.limits.baselines import Baseline, update_baselines
from benchmark.models.devices import device_name
from benchmark.records import Case, ModelRecord, PublishedRecord, Record, Run, SetRecord
from benchmark.results import Backend, RunId
from benchmark.running.provenance import package_git_state, package_version, package_versions, user_git_state
from benchmark.suites.suite import Suite


def new_run_id() -> str:
    """An id that no other run has: date and time in UTC, and a random number."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def run_record(run: str, suite: Suite, suite_option: str, folder: Path, device: torch.device) -> Run:
    """The provenance of a run that begins now.

    run: its id.
    suite: the suite that runs.
    suite_option: what its --suite was, or all options that name it, as one types them.
    folder: where the user runs it.
    device: where networks run.
    """
    package, user = package_git_state(), user_git_state(folder)
    return Run(
        run=run,
        suite=suite.id,
        suite_option=suite_option,
        suite_title=suite.entry.title,
        suite_about=suite.entry.about,
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
        command=shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        package_version=package_version(),
        git_commit=package.commit,
        git_dirty=package.dirty,
        user_git_commit=user.commit,
        user_git_dirty=user.dirty,
        packages=package_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        device=device_name(device),
    )


class Recorder:
    """The one writer of a run's records. It keeps the cases, the models and the image sets for the summary.

    place: where the records are, for a message.
    cases: the records of cases that were added.
    models: the records of models that were added.
    sets: the records of image sets that were added.
    """

    def __init__(self, results: Backend, run: Run) -> None:
        """
        results: where the records go.
        run: the record of the run, which is written before all others.
        """
        self.place = results.name_of(RunId(run.suite, run.run))
        self.cases: list[Case] = []
        self.models: list[ModelRecord] = []
        self.sets: list[SetRecord] = []
        self._results, self._run = results, run
        self._described: set[tuple[str, str]] = set()
        self._begun = False

    def add(self, records: Iterable[Record]) -> None:
        """Writes records, each at once. What describes a model, a detector or a set is written the first time only.

        Raises OSError where one cannot be written.
        """
        if not self._begun:
            self._results.add(self._run)
            self._begun = True
        for record in records:
            if isinstance(record, Case):
                self.cases.append(record)
            elif not isinstance(record, Run | PublishedRecord):
                if (record.kind, record.id) in self._described:
                    continue
                self._described.add((record.kind, record.id))
                if isinstance(record, ModelRecord):
                    self.models.append(record)
                elif isinstance(record, SetRecord):
                    self.sets.append(record)
            self._results.add(record)

    def close(self) -> None:
        """Ends the run: a backend that collects what it is given hands it on now."""
        self._results.close()

    def record_baselines(self, file: Path, known: Iterable[str]) -> None:
        """Writes what this run measured into the suite's file of baselines, beside what it did not run.

        file: the file of baselines.
        known: the cases of the suite (`model/detector/set`).
        """
        measured = {
            f"{case.model}/{case.detector}/{case.set}": Baseline(
                case.metrics.fpr_at_95.value,
                case.timing.forward_ratio,
                f"run {self._run.run}",
                self._run.started[:10],
            )
            for case in self.cases
            if case.metrics and case.timing and case.timing.forward_ratio is not None
        }
        update_baselines(file, list(known), measured)
