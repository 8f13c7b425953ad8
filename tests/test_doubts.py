"""A run warns of scores that need positive logits, where those of the training images are not."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmark import evaluate
from benchmark.api.results import EvaluationResults
from benchmark.running.summary import doubts
from detectors import Head, Outputs

pytestmark = pytest.mark.usefixtures("one_thread")

# Those that learn from training logits, and depend on a number that is added to all logits.
DOUBTED = {"vim", "openmax", "nnguide", "neco", "ls", "fm+ls", "ls+react", "himplos", "line+ls"}


def results(shift: float, detectors: Any = "all", **arguments: Any) -> EvaluationResults:
    """Detectors on outputs of three classes, with all logits shifted."""
    random = torch.Generator().manual_seed(0)
    means = 3 * torch.eye(3, 8)
    head = Head(means, torch.full((3,), shift))

    def outputs(rows: int, centres: torch.Tensor) -> Outputs:
        labels = torch.arange(rows) % len(centres)
        features = (centres[labels] + torch.randn(rows, 8, generator=random)).relu()
        return Outputs(features=features, logits=features @ head.weight.T + head.bias, labels=labels)

    test, train, val = outputs(60, means), outputs(120, means), outputs(30, means)
    ood = {"noise": outputs(50, torch.zeros(3, 8)), "other": outputs(50, 2 * torch.eye(8)[3:6])}
    given = {"in_distribution": test, "train": train, "val": val, "ood": ood, "detectors": detectors}
    return evaluate(head, **given, **arguments)


def warned(found: EvaluationResults) -> dict[str, int]:
    """The detectors that the remarks warn of, and how often."""
    lines = [re.match(r"WARNING: \S+ with (.*): the mean of the largest", text) for text in found.remarks]
    names = [name for line in lines if line for name in line[1].split(", ")]
    return {name: names.count(name) for name in names}


def test_each_detector_that_depends_on_the_level_is_warned_of_once() -> None:
    found = results(-60.0)
    assert warned(found) == dict.fromkeys(DOUBTED, 1)
    for case in found.cases:
        assert len(case.warnings) == (case.detector in DOUBTED), case.detector
    assert warned(results(0.0)) == {}


def test_the_warning_says_what_to_do_and_that_helps() -> None:
    (text,) = [text for text in results(-60.0, ["vim"]).remarks if text.startswith("WARNING")]
    added = re.search(r"the largest training logit is (-\S+), which is not above 0. .* add (\S+) to the head", text)
    assert added
    assert float(added[1]) < 0 < float(added[2])
    assert warned(results(-60.0 + float(added[2]), ["vim"])) == {}


def test_options_may_make_a_detector_sound() -> None:
    assert warned(results(-60.0, ["neco"], options={"neco": {"max_logit": False}})) == {}


def test_detectors_that_share_a_warning_stand_together() -> None:
    def case(model: str, detector: str, *warnings: str) -> Any:
        return SimpleNamespace(model=model, detector=detector, warnings=list(warnings))

    cases = [case("a", "x", "w"), case("a", "x", "w"), case("a", "y", "w", "v"), case("b", "x", "w"), case("b", "z")]
    assert list(doubts(cases)) == ["WARNING: a with x, y: w", "WARNING: a with y: v", "WARNING: b with x: w"]
