"""Pairs of cases, and what may be said of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmark.comparing.differences import (
    Change,
    accuracy_change,
    auroc_change,
    fpr_change,
    holm,
    unpaired_change,
)
from benchmark.records import Case, Estimate, ModelRecord
from benchmark.results import Backend
from benchmark.run_records import Newest, RunRecords
from benchmark.scores import CaseScores, ScoresError, read_case_scores

Standing = Literal["better", "worse", "within noise"]
LEVEL = 0.05  # the chance that any of the differences is called one where there is none
# A score time this much longer is worse, and below a tenth of a forward pass nobody waits for it (as in limits).
TIME_FACTOR, TIME_FLOOR = 4.0, 0.1
LOWER_IS_BETTER = {"FPR@95": True, "AUROC": False, "ID accuracy": False, "score time": True}


@dataclass(frozen=True)
class Side:
    """A case of one side of a comparison.

    case: its record.
    run: the records of its run.
    results: where its scores are.
    """

    case: Case
    run: RunRecords
    results: Backend

    @property
    def model(self) -> ModelRecord | None:
        """The record of its model, where its run has one."""
        return self.run.models.get(self.case.model)


@dataclass(frozen=True)
class Finding:
    """What a comparison says of one figure.

    name: of the case, or of the model for its accuracy.
    figure: a key of LOWER_IS_BETTER.
    base, new: the two figures.
    change: their difference with its interval. None of a time.
    p: the chance of such a difference without a cause, corrected for the number of comparisons. None of a time.
    standing: what the new one is, compared with the base.
    note: why it was not compared in pairs. Empty where it was.
    """

    name: str
    figure: str
    base: float
    new: float
    change: Change | None
    p: float | None
    standing: Standing
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """A comparison of two sides.

    findings: of all cases that both sides have, in order.
    only_base, only_new: the cases that one side alone has measured, each with why the other has not.
    failed: those of `only_base` that ended with an error on the new side.
    """

    findings: list[Finding]
    only_base: list[str]
    only_new: list[str]
    failed: list[str]

    def of(self, standing: Standing) -> list[Finding]:
        """The findings of a standing."""
        return [finding for finding in self.findings if finding.standing == standing]

    @property
    def verdict(self) -> str:
        """The verdict of the whole: "worse", "no worse" or "nothing to compare"."""
        if self.of("worse") or self.failed:
            return "worse"
        return "no worse" if self.findings else "nothing to compare"


def sides_of(newest: Newest, results: Backend) -> dict[str, Side]:
    """The cases of a suite that count, by `suite/model/detector/set`."""
    return {"/".join((run.run.suite, *key)): Side(run.cases[key], run, results) for key, run in newest.origin.items()}


def compare_sides(base: Mapping[str, Side], new: Mapping[str, Side], allow: float = 0.0) -> Comparison:
    """Compares the cases that both sides have, by their names.

    allow: a worsening of at most so much is none, as a fraction.
    """
    both = [name for name in base if name in new and base[name].case.metrics and new[name].case.metrics]
    drafts = [draft for name in both for draft in _drafts(name, base[name], new[name])]
    drafts += _accuracies([(base[name], new[name]) for name in both])
    lost = [name for name, side in base.items() if side.case.metrics and name not in both]
    found = [name for name, side in new.items() if side.case.metrics and name not in both]
    return Comparison(
        _judged(drafts, allow),
        [f"{name}: {_why(new.get(name))}" for name in lost],
        [f"{name}: {_why(base.get(name))}" for name in found],
        [name for name in lost if name in new and new[name].case.status == "error"],
    )


def _why(side: Side | None) -> str:
    return "not there" if side is None else f"{side.case.status}: {side.case.reason}"


def _drafts(name: str, base: Side, new: Side) -> list[Finding]:
    """The figures of a case, before the number of comparisons is taken into account."""
    a, b = base.case.metrics, new.case.metrics
    assert a
    assert b
    try:
        of_base, of_new = _same_images(base, new)
        test = [of["score"].to_numpy() for of in (of_base.test, of_new.test)]
        ood = [of["score"].to_numpy() for of in (of_base.ood, of_new.ood)]
        labels = None if of_new.ood["label"].null_count else of_new.ood["label"].to_numpy()
        fpr = fpr_change(test[0], ood[0], test[1], ood[1], labels)
        auroc, note = auroc_change(test[0], ood[0], test[1], ood[1]), ""
    except ScoresError as error:
        fpr, auroc, note = unpaired_change(a.fpr_at_95, b.fpr_at_95), unpaired_change(a.auroc, b.auroc), str(error)
    drafts = [
        Finding(name, "FPR@95", a.fpr_at_95.value, b.fpr_at_95.value, fpr, None, "within noise", note),
        Finding(name, "AUROC", a.auroc.value, b.auroc.value, auroc, None, "within noise", note),
    ]
    return drafts + _time(name, base.case, new.case)


def _time(name: str, base: Case, new: Case) -> list[Finding]:
    """The score times of a case, where both were measured on the same device."""
    a, b = base.timing, new.timing
    if not a or not b or a.device != b.device:
        return []
    slow = b.score_ms_per_image > TIME_FACTOR * a.score_ms_per_image
    waited_for = b.forward_ratio is None or b.forward_ratio > TIME_FLOOR
    fast = a.score_ms_per_image > TIME_FACTOR * b.score_ms_per_image
    standing: Standing = "worse" if slow and waited_for else "better" if fast else "within noise"
    return [Finding(name, "score time", a.score_ms_per_image, b.score_ms_per_image, None, None, standing)]


def _accuracies(pairs: Iterable[tuple[Side, Side]]) -> list[Finding]:
    """The ID accuracy of each model, once."""
    found: dict[str, Finding] = {}
    for base, new in pairs:
        name = f"{new.case.suite}/{new.case.model}"
        a, b = _accuracy(base), _accuracy(new)
        if name in found or a is None or b is None:
            continue
        try:
            of_base, of_new = _same_images(base, new)
            if of_base.test["correct"].null_count or of_new.test["correct"].null_count:
                raise ScoresError("its scores do not say which images were classified right")
            change, note = accuracy_change(of_base.test["correct"], of_new.test["correct"]), ""
        except ScoresError as error:
            change, note = unpaired_change(a, b), str(error)
        found[name] = Finding(name, "ID accuracy", a.value, b.value, change, None, "within noise", note)
    return list(found.values())


def _accuracy(side: Side) -> Estimate | None:
    return side.model.id_accuracy if side.model else None


def _same_images(base: Side, new: Side) -> tuple[CaseScores, CaseScores]:
    """The scores of both cases. Raises ScoresError where they are not there, or not of the same images in order."""
    of_base, of_new = read_case_scores(base.results, base.case), read_case_scores(new.results, new.case)
    for one, other in ((of_base.test, of_new.test), (of_base.ood, of_new.ood)):
        if not one["image"].equals(other["image"]):
            raise ScoresError(f"{new.case.suite}/{new.case.set}: the images are not the same ones")
    return of_base, of_new


def _judged(drafts: Sequence[Finding], allow: float) -> list[Finding]:
    """The findings with their standings, all of them together at the level of 5 %."""
    worsening = [_worsening(finding) for finding in drafts]
    tested = [index for index, change in enumerate(worsening) if change]
    # Both sides of a difference are tested, so that each p-value is doubled.
    raw = [
        min(1.0, 2 * min(change.p_above(allow), (-change).p_above(0.0)))
        for index in tested
        if (change := worsening[index])
    ]
    judged = list(drafts)
    for index, p in zip(tested, holm(raw), strict=True):
        change = worsening[index]
        assert change
        standing: Standing = "within noise" if p > LEVEL else "worse" if change.value > 0 else "better"
        judged[index] = replace(drafts[index], p=p, standing=standing)
    return judged


def _worsening(finding: Finding) -> Change | None:
    """The change in the direction that is worse. None of a time."""
    if finding.change is None:
        return None
    return finding.change if LOWER_IS_BETTER[finding.figure] else -finding.change
