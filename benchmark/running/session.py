"""A pytest session over a suite. The life of a case:

1. It begins as a `Draft`. From here on it leaves a record, whatever goes wrong.
2. `Session.prepare` loads the model, computes its outputs and fits the detector, or finds them made by the case before.
3. `PreparedCase.score` scores the images of the OOD set, while a clock runs.
4. `PreparedCase.judge` computes the metrics, keeps the scores, and compares the case with its limit: its verdict.
5. `Draft.finished` makes the records. The process that the user started hands them to its `Recorder`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmark.images.image_set import ImageSet
from benchmark.limits.comparisons import compare
from benchmark.limits.limits import TIME_FACTOR, TIME_FLOOR, Limits, Verdict, too_slow
from benchmark.public import public_message
from benchmark.records import Case, Record, Status, Timing
from benchmark.results import Backend
from benchmark.running.evaluation import Evaluation
from benchmark.running.fitted_detector import FittedDetector, Scores
from benchmark.running.loaded_suite import LoadedSuite, set_record
from benchmark.suites.suite import CaseId, Suite

# A time that is recorded, or that is above its limit, is measured again this often: another process may have had the
# processor.
TIME_RETRIES = 3


@dataclass
class Draft:
    """What is known of a case so far.

    case: the case.
    records: the records of the model, the detector and the image sets that it uses, as far as this process has not made
        them for a case before.
    found: what its own record will say, by field of `Case`.
    verdict: how it ended. None until it is judged.
    """

    case: CaseId
    records: list[Record] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None

    def finished(self, run: str, suite: Suite, message: str, *, skipped: bool = False) -> list[Record]:
        """The records of a case that ended, the last of which is its own.

        run: the id of the run.
        suite: the suite.
        message: why it ended, where it has no verdict.
        skipped: whether a case without a verdict was skipped. Else it is an error.
        """
        status: Status = "skipped" if skipped else "error"
        verdict = self.verdict or Verdict(status, public_message(message.removeprefix(f"{self.case}: "))[:1000], None)
        metrics = self.found.get("metrics")
        measured = metrics.fpr_at_95 if metrics else None
        case = Case(
            run=run,
            suite=suite.id,
            **vars(self.case),
            status=verdict.status,
            expected=verdict.expected,
            reason=verdict.reason,
            metrics=metrics,
            timing=self.found.get("timing"),
            limit=verdict.limit,
            scores=self.found.get("scores"),
            full_spectrum=self.found.get("full_spectrum"),
            shifted_accepted=self.found.get("shifted_accepted", {}),
            tuned=self.found.get("tuned"),
            warnings=self.found.get("warnings", []),
            published=[compare(figure, measured) for figure in suite.published.get(str(self.case), ())],
        )
        return [*self.records, case]


@dataclass(frozen=True)
class Session:
    """A suite at work in one process.

    evaluation: its models with their outputs, and its fitted detectors.
    limits: what its cases are held to.
    results: where scores are kept.
    run: the id of the run.
    """

    evaluation: Evaluation
    limits: Limits
    results: Backend
    run: str
    _described: set[tuple[str, str]] = field(default_factory=set)

    @property
    def suite(self) -> LoadedSuite:
        """The suite with its image sets."""
        return self.evaluation.suite

    def prepare(self, draft: Draft, image_set: ImageSet) -> "PreparedCase":
        """Fits the detector and makes the outputs, so that what is left to do is to score.

        Raises the error that names what is missing or damaged of the model, the images or the detector.
        """
        case = draft.case
        suite, model = self.suite, self.evaluation.model(case.model)
        self._describe(draft, "model", case.model, model.record)
        for role, split in suite.splits:
            self._describe(draft, "set", split.id, partial(set_record, split, role))
        if case.role != "unit-test":
            suite.check_splits()
            suite.check_is_ood(image_set)
        model.outputs(image_set)
        self._describe(draft, "set", image_set.id, partial(set_record, image_set, case.role))
        for shifted in model.shifted_sets:
            self._describe(draft, "set", shifted.id, partial(set_record, shifted, "shifted"))
        detector = self.evaluation.detector(case.model, case.detector)
        if detector.tuned:
            suite.check_not_tuned_on(image_set)
            tuning_set = suite.tuning_set()
            self._describe(draft, "set", tuning_set.id, partial(set_record, tuning_set, "tuning"))
            draft.found["tuned"] = detector.tuned
        self._describe(draft, "detector", case.detector, detector.record)
        return PreparedCase(self, draft, detector, image_set)

    def _describe(self, draft: Draft, kind: str, record_id: str, record: Callable[..., Record]) -> None:
        """Adds the record of a model, a detector or a set to the draft where this process has not made it yet."""
        if (kind, record_id) not in self._described:
            draft.records.append(record(run=self.run, suite=self.suite.suite.id))
            self._described.add((kind, record_id))


@dataclass(frozen=True)
class PreparedCase:
    """A case whose detector is fitted and whose outputs are there.

    session: the suite at work.
    draft: what is known of the case so far.
    detector: the fitted detector.
    image_set: the images of the OOD set.
    """

    session: Session
    draft: Draft
    detector: FittedDetector
    image_set: ImageSet

    @property
    def expected(self) -> bool:
        """Whether the case failed as its baseline says it does."""
        return self.draft.verdict is not None and self.draft.verdict.expected

    def score(self) -> Scores:
        """The scores of the OOD set. Raises ValueError that names the case where they cannot be made."""
        return self.detector.score(self.image_set)

    def _shortest_timing(self, first: Timing, forwards_ms_per_image: Iterable[float | None]) -> Timing:
        """The shortest of a first time and of one beside each forward time: what slows the machine slows both."""
        again = (self.detector.timing(self.score(), forward) for forward in forwards_ms_per_image)
        return min((first, *again), key=lambda timing: timing.forward_ratio or 0.0)

    def judge(self, scores: Scores) -> str | None:
        """Computes the metrics, keeps the scores, and compares the case with its limit.

        Returns one line for a case that failed, None for one that passed.
        Raises OSError where the scores cannot be written.
        """
        draft, session = self.draft, self.session
        metrics = self.detector.metrics(scores)
        draft.found["scores"] = self.detector.keep_scores(session.results, session.run, scores)
        draft.found |= {"metrics": metrics, "shifted_accepted": self.detector.shifted_accepted}
        draft.found["warnings"] = list(self.detector.warnings)
        if draft.case.role != "unit-test":
            draft.found["full_spectrum"] = self.detector.full_spectrum(scores)
        timing = self.detector.timing(scores, self.detector.model.forward_ms_per_image)
        forward = self.detector.model.forward_ms_per_image
        if session.limits.recording and timing.forward_ratio and TIME_FACTOR * timing.forward_ratio > TIME_FLOOR:
            timing = self._shortest_timing(timing, [forward] * TIME_RETRIES)
        verdict = session.limits.verdict(draft.case, metrics.fpr_at_95.value, timing)
        if verdict.limit and too_slow(timing, verdict.limit):
            forwards = (self.detector.model.forward_ms_per_image_now() for _ in range(TIME_RETRIES))
            timing = self._shortest_timing(timing, forwards)
            verdict = session.limits.verdict(draft.case, metrics.fpr_at_95.value, timing)
        draft.found["timing"] = timing
        draft.verdict = verdict
        if verdict.status == "passed":
            return None
        fpr = metrics.fpr_at_95
        return f"{draft.case}: FPR@95 {fpr.value:.1%} (95 % interval {fpr.low:.1%} to {fpr.high:.1%}), {verdict.reason}"
