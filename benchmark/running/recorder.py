"""The recorder: it writes the records of a run."""

import os
import platform
import secrets
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmark.limits.baselines import Baseline, read_baselines, write_baselines
from benchmark.models.devices import device_name
from benchmark.records import Case, ModelRecord, Record, Run, append_record
from benchmark.running.provenance import git_state, package_versions
from benchmark.suites.suite import Suite


def new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def run_record(run: str, suite: Suite, suite_option: str, folder: Path, device: torch.device) -> Run:
    commit, dirty = git_state(folder)
    return Run(
        run=run,
        suite=suite.id,
        suite_option=suite_option,
        suite_title=suite.entry.title,
        suite_about=suite.entry.about,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        git_commit=commit,
        git_dirty=dirty,
        packages=package_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        device=device_name(device),
    )


class Recorder:
    """Writes the records of a run, each as soon as it is there, and keeps the cases for the summary."""

    def __init__(self, file: Path, run: Run) -> None:
        self.file = file
        self.cases: list[Case] = []
        self.models: list[ModelRecord] = []
        self._run = run
        self._written: set[tuple[str, str]] = set()

    def add(self, records: Iterable[Record]) -> None:
        """Appends records; what a model, a detector on a model or a set says is written once."""
        if not self.file.exists():
            append_record(self.file, self._run)
        for record in records:
            if isinstance(record, Case):
                self.cases.append(record)
            elif (record.kind, record.id) in self._written:  # type: ignore[union-attr]
                continue
            else:
                self._written.add((record.kind, record.id))  # type: ignore[union-attr]
                if isinstance(record, ModelRecord):
                    self.models.append(record)
            append_record(self.file, record)

    def record_baselines(self, file: Path, known: Iterable[str]) -> int:
        """Writes what this run measured into the suite's threshold file, beside what it did not run."""
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
        write_baselines(file, read_baselines(file, list(known)) | measured)
        return len(measured)
