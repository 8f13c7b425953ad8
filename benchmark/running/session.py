"""A pytest session over a suite: the case at hand, its verdict, and the records that the run leaves behind."""

import os
import platform
import secrets
import shlex
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmark.images.image_set import ImageSet
from benchmark.limits.baselines import (
    TIME_FACTOR,
    TIME_FLOOR,
    Baseline,
    Verdict,
    judge,
    limit_of_baseline,
    limit_of_goal,
    limit_of_published,
    read_baselines,
    too_slow,
    write_baselines,
)
from benchmark.limits.published import compare
from benchmark.models.devices import device_name
from benchmark.records import Case, Limit, ModelRecord, Record, Role, Run, Status, Timing, append_record
from benchmark.running.evaluation import DetectorBench, Scores, Workbench, set_record
from benchmark.running.provenance import git_state, package_versions
from benchmark.suites.suite import CaseId, Suite

# A time that is recorded, or that is above its limit, is measured again this often: another process may have had the
# processor.
TIME_RETRIES = 3


@dataclass
class Draft:
    """What is known of a case so far: the records of what it uses, the parts of its own, and its verdict."""

    case: CaseId
    records: list[Record] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None

    def finished(self, run: str, suite: Suite, message: str, *, skipped: bool = False) -> list[Record]:
        """The records of a case that ended: with its verdict, or without one as an error or as skipped."""
        status: Status = "skipped" if skipped else "error"
        verdict = self.verdict or Verdict(status, message.removeprefix(f"{self.case}: ")[:1000], None)
        metrics = self.parts.get("metrics")
        measured = metrics.fpr_at_95 if metrics else None
        case = Case(
            run=run,
            suite=suite.id,
            **vars(self.case),
            status=verdict.status,
            expected=verdict.expected,
            reason=verdict.reason,
            metrics=metrics,
            timing=self.parts.get("timing"),
            limit=verdict.limit,
            scores=self.parts.get("scores"),
            full_spectrum=self.parts.get("full_spectrum"),
            shifted_accepted=self.parts.get("shifted_accepted", {}),
            tuned=self.parts.get("tuned"),
            published=[compare(figure, measured) for figure in suite.published.get(str(self.case), ())],
        )
        return [*self.records, case]


@dataclass(frozen=True)
class Limits:
    """What cases are held to: baselines of a file, else published figures, else goals of a suite; or what the command
    line says instead.

    own_detectors: those of a user's file, of which no baseline is recorded, so that the goals hold.
    """

    suite: Suite
    baselines: dict[str, Baseline]
    fpr_limit: float | None
    unit_test_limit: float | None
    recording: bool
    own_detectors: Collection[str] = ()

    def goal(self, role: Role) -> float:
        if role == "unit-test":
            return self.suite.entry.goals.of(role) if self.unit_test_limit is None else self.unit_test_limit
        return self.suite.entry.goals.of(role) if self.fpr_limit is None else self.fpr_limit

    def verdict(self, case: CaseId, fpr_at_95: float, timing: Timing) -> Verdict:
        goal, baseline = self.goal(case.role), self.baselines.get(str(case))
        if self.recording:
            baseline = Baseline(
                fpr_at_95, timing.forward_ratio or 0.0, "this run", datetime.now(UTC).date().isoformat()
            )
        return judge(fpr_at_95, timing, self._limit(case, goal, baseline), baseline)

    def _limit(self, case: CaseId, goal: float, baseline: Baseline | None) -> Limit | None:
        role = case.role
        option = self.unit_test_limit if role == "unit-test" else self.fpr_limit
        if role != "unit-test" and option is not None:
            return limit_of_goal(goal, "--fpr-limit")
        if baseline is not None:
            file = self.suite.entry.thresholds
            return limit_of_baseline(baseline, role, goal, file.name if file else "this run")
        if figures := self.suite.published.get(str(case)):
            return limit_of_published(figures, goal)
        if role == "unit-test" or self.suite.entry.thresholds is None or case.detector in self.own_detectors:
            return limit_of_goal(
                goal, f"goals in {self.suite.entry.file.name}" if option is None else "--unit-test-limit"
            )
        return None


@dataclass(frozen=True)
class Session:
    """A suite at work in one process: it takes a case from its images to its verdict."""

    workbench: Workbench
    limits: Limits
    results: Path
    run: str
    _told: set[tuple[str, str]] = field(default_factory=set)

    def prepare(self, draft: Draft, image_set: ImageSet) -> "PreparedCase":
        """Fits the detector and makes the outputs, so that what is left to do is to score."""
        case = draft.case
        bench = self.workbench.model(case.model)
        self._tell(draft, "model", case.model, bench.record)
        for role, split in self.workbench.splits:
            self._tell(draft, "set", split.id, partial(set_record, split, role))
        if case.role != "unit-test":
            self.workbench.check_is_ood(image_set)
        bench.outputs(image_set)
        self._tell(draft, "set", image_set.id, partial(set_record, image_set, case.role))
        for shifted in bench.shifted_sets:
            self._tell(draft, "set", shifted.id, partial(set_record, shifted, "shifted"))
        detector = bench.detector(case.detector)
        if detector.tuned:
            self.workbench.check_not_tuned_on(image_set)
            tuning_set = self.workbench.tuning_set()
            self._tell(draft, "set", tuning_set.id, partial(set_record, tuning_set, "tuning"))
            draft.parts["tuned"] = detector.tuned
        self._tell(draft, "detector", case.detector, detector.record)
        return PreparedCase(self, draft, detector, image_set)

    def _tell(self, draft: Draft, kind: str, id: str, record: Callable[..., Record]) -> None:
        """Adds a record to the draft where this process has not made it yet."""
        if (kind, id) not in self._told:
            draft.records.append(record(run=self.run, suite=self.workbench.suite.id))
            self._told.add((kind, id))


@dataclass(frozen=True)
class PreparedCase:
    """A case whose detector is fitted and whose outputs are there."""

    session: Session
    draft: Draft
    detector: DetectorBench
    image_set: ImageSet

    @property
    def expected(self) -> bool:
        """Whether the case failed as its baseline says it does."""
        return self.draft.verdict is not None and self.draft.verdict.expected

    def score(self) -> Scores:
        return self.detector.score(self.image_set)

    def _shortest(self, first: Timing, forwards_ms_per_image: Iterable[float | None]) -> Timing:
        """The shortest of a first time and of one beside each forward time: what slows the machine slows both."""
        again = (self.detector.timing(self.score(), forward) for forward in forwards_ms_per_image)
        return min((first, *again), key=lambda timing: timing.forward_ratio or 0.0)

    def judge(self, scores: Scores) -> str | None:
        """Measures and judges the scores. Returns one line for a case that failed, None for one that passed."""
        draft, session = self.draft, self.session
        metrics = self.detector.metrics(scores)
        draft.parts["scores"] = self.detector.save(session.results, session.run, scores)
        draft.parts |= {"metrics": metrics, "shifted_accepted": self.detector.shifted_accepted}
        if draft.case.role != "unit-test":
            draft.parts["full_spectrum"] = self.detector.full_spectrum(scores)
        timing = self.detector.timing(scores, self.detector.bench.forward_ms_per_image)
        forward = self.detector.bench.forward_ms_per_image
        if session.limits.recording and timing.forward_ratio and TIME_FACTOR * timing.forward_ratio > TIME_FLOOR:
            timing = self._shortest(timing, [forward] * TIME_RETRIES)
        verdict = session.limits.verdict(draft.case, metrics.fpr_at_95.value, timing)
        if verdict.limit and too_slow(timing, verdict.limit):
            forwards = (self.detector.bench.forward_ms_per_image_now() for _ in range(TIME_RETRIES))
            timing = self._shortest(timing, forwards)
            verdict = session.limits.verdict(draft.case, metrics.fpr_at_95.value, timing)
        draft.parts["timing"] = timing
        draft.verdict = verdict
        if verdict.status == "passed":
            return None
        fpr = metrics.fpr_at_95
        return f"{draft.case}: FPR@95 {fpr.value:.1%} (95 % interval {fpr.low:.1%} to {fpr.high:.1%}), {verdict.reason}"


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
