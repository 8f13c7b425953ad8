"""A pytest session over a suite: the case at hand, its verdict, and the records that the run leaves behind."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.images.image_set import ImageSet
from benchmark.limits.comparisons import compare
from benchmark.limits.limits import TIME_FACTOR, TIME_FLOOR, Limits, Verdict, too_slow
from benchmark.records import Case, Record, Status, Timing
from benchmark.running.evaluation import Evaluation
from benchmark.running.fitted_detector import FittedDetector, Scores
from benchmark.running.loaded_suite import LoadedSuite, set_record
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
class Session:
    """A suite at work in one process: it takes a case from its images to its verdict.

    results: the folder of the scores, None where they are not written.
    """

    evaluation: Evaluation
    limits: Limits
    results: Path | None
    run: str
    _told: set[tuple[str, str]] = field(default_factory=set)

    @property
    def suite(self) -> LoadedSuite:
        return self.evaluation.suite

    def prepare(self, draft: Draft, image_set: ImageSet) -> "PreparedCase":
        """Fits the detector and makes the outputs, so that what is left to do is to score."""
        case = draft.case
        suite, model = self.suite, self.evaluation.model(case.model)
        self._tell(draft, "model", case.model, model.record)
        for role, split in suite.splits:
            self._tell(draft, "set", split.id, partial(set_record, split, role))
        if case.role != "unit-test":
            suite.check_is_ood(image_set)
        model.outputs(image_set)
        self._tell(draft, "set", image_set.id, partial(set_record, image_set, case.role))
        for shifted in model.shifted_sets:
            self._tell(draft, "set", shifted.id, partial(set_record, shifted, "shifted"))
        detector = self.evaluation.detector(case.model, case.detector)
        if detector.tuned:
            suite.check_not_tuned_on(image_set)
            tuning_set = suite.tuning_set()
            self._tell(draft, "set", tuning_set.id, partial(set_record, tuning_set, "tuning"))
            draft.parts["tuned"] = detector.tuned
        self._tell(draft, "detector", case.detector, detector.record)
        return PreparedCase(self, draft, detector, image_set)

    def _tell(self, draft: Draft, kind: str, record_id: str, record: Callable[..., Record]) -> None:
        """Adds a record to the draft where this process has not made it yet."""
        if (kind, record_id) not in self._told:
            draft.records.append(record(run=self.run, suite=self.suite.suite.id))
            self._told.add((kind, record_id))


@dataclass(frozen=True)
class PreparedCase:
    """A case whose detector is fitted and whose outputs are there."""

    session: Session
    draft: Draft
    detector: FittedDetector
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
        if session.results is not None:
            draft.parts["scores"] = self.detector.save(session.results, session.run, scores)
        draft.parts |= {"metrics": metrics, "shifted_accepted": self.detector.shifted_accepted}
        if draft.case.role != "unit-test":
            draft.parts["full_spectrum"] = self.detector.full_spectrum(scores)
        timing = self.detector.timing(scores, self.detector.model.forward_ms_per_image)
        forward = self.detector.model.forward_ms_per_image
        if session.limits.recording and timing.forward_ratio and TIME_FACTOR * timing.forward_ratio > TIME_FLOOR:
            timing = self._shortest(timing, [forward] * TIME_RETRIES)
        verdict = session.limits.verdict(draft.case, metrics.fpr_at_95.value, timing)
        if verdict.limit and too_slow(timing, verdict.limit):
            forwards = (self.detector.model.forward_ms_per_image_now() for _ in range(TIME_RETRIES))
            timing = self._shortest(timing, forwards)
            verdict = session.limits.verdict(draft.case, metrics.fpr_at_95.value, timing)
        draft.parts["timing"] = timing
        draft.verdict = verdict
        if verdict.status == "passed":
            return None
        fpr = metrics.fpr_at_95
        return f"{draft.case}: FPR@95 {fpr.value:.1%} (95 % interval {fpr.low:.1%} to {fpr.high:.1%}), {verdict.reason}"
