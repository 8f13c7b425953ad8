"""What detectors are invariant to: the changes do what they say, and a wrong declaration is found."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors import Detector, available, contract, create, describe
from detectors.base import Batch
from detectors.invariance import _WORLDS, CHANGES, _exchanged_pairs, broken_by, measure_invariances
from detectors.worlds import build_world

pytestmark = pytest.mark.usefixtures("one_thread")

PARTS = ("train", "val", "test", "ood")
# Detectors whose score depends on a number that is added to all logits, and that training does not fix.
SHIFTED = {
    *("vim", "residual", "openmax", "nnguide", "neco", "ls", "fm+ls", "ls+react", "himplos", "line+ls"),
    "random",
}


# --- The changes. ---


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_leaves_what_it_says_that_it_leaves(name: str) -> None:
    plain = build_world()
    for build in _WORLDS[name]:
        world = build()
        for part in PARTS:
            before, after = getattr(plain, part), getattr(world, part)
            assert torch.equal(after.images, before.images)
            assert torch.allclose(world.model(after.images), after.logits, rtol=1e-12, atol=1e-12)
            assert torch.allclose(after.features @ world.head.weight.T + world.head.bias, after.logits, atol=1e-9)
            assert torch.allclose(world.model.logits_of_map(after.patches), after.logits, atol=1e-9)
            moved = not torch.allclose(after.logits, before.logits, atol=1e-9)
            assert moved == (name in ("logit shift", "logit scale", "class order"))
            assert torch.equal(after.features, before.features) == (not name.startswith("feature"))
            if name == "logit shift":
                assert torch.allclose(after.logits.softmax(dim=1), before.logits.softmax(dim=1), rtol=1e-9)
            if before.labels is not None:
                right = before.logits.argmax(dim=1) == before.labels
                assert torch.equal(after.logits.argmax(dim=1) == after.labels, right)
        words = ["class 0", "a word"]
        similarities = world.model.text_features(words) @ world.test.features.T
        if name == "feature rotation":
            expected = plain.model.text_features(words) @ plain.test.features.T
            assert torch.allclose(similarities, expected, atol=1e-9)


def test_only_the_order_of_scores_counts() -> None:
    scores = torch.tensor([0.0, 1.0, 1.0, 5.0, 9.0], dtype=torch.float64)
    assert _exchanged_pairs(scores, scores.exp()) == 0
    assert _exchanged_pairs(scores, 3 * scores - 100) == 0
    assert _exchanged_pairs(scores, scores + 1e-12 * torch.rand(5, dtype=torch.float64)) == 0
    assert _exchanged_pairs(scores, torch.tensor([0.0, 1.0, 1.0, 9.0, 5.0]).double()) == 2  # lost, and new
    assert _exchanged_pairs(scores, torch.tensor([0.0, 1.0, 1.0, 5.0, 5.0]).double()) == 1  # a new tie
    assert (
        _exchanged_pairs(scores, torch.tensor([0.0, 1.0, 2.0, 5.0, 9.0]).double()) == 1
    )  # a tie that is none any more
    assert _exchanged_pairs(torch.zeros(3).double(), torch.zeros(3).double()) == 0


# --- What is found of known scores. ---


def test_the_scores_that_depend_on_a_shift_of_the_logits_are_known() -> None:
    assert {detector_id for detector_id in available() if not describe(detector_id)["invariances"]["logit shift"]} == (
        SHIFTED
    )


@pytest.mark.parametrize("detector_id", sorted(SHIFTED - {"random"}))
def test_deviations_say_that_a_score_depends_on_a_shift_of_the_logits(detector_id: str) -> None:
    assert any("same for all of them" in deviation for deviation in describe(detector_id)["deviations"])


def test_options_may_make_a_detector_invariant() -> None:
    assert not measure_invariances(partial(create, "neco"))["logit shift"]
    assert measure_invariances(partial(create, "neco", max_logit=False))["logit shift"]
    assert not measure_invariances(partial(create, "she"))["feature shift"]
    assert measure_invariances(partial(create, "she", metric="euclidean"))["feature shift"]


def test_what_cannot_be_fitted_has_no_invariances() -> None:
    assert measure_invariances(partial(create, "neglabel")) == {}


def test_measuring_draws_none_of_the_random_numbers() -> None:
    state = torch.get_rng_state()
    measure_invariances(partial(create, "vim"))
    assert torch.equal(torch.get_rng_state(), state)


# --- What is declared. ---


@dataclass(kw_only=True, eq=False)
class Gap(Detector):
    """A score."""

    id = "gap"
    needs = frozenset({"logits"})

    def _score(self, batch: Batch) -> Tensor:
        largest = batch.logits.topk(2, dim=1).values
        return largest[:, 0] - largest[:, 1]


TRUE = ", ".join(CHANGES)


@pytest.mark.parametrize(
    ("detector", "declared", "says"),
    [
        (Gap, TRUE, None),
        (Gap, None, None),
        (Gap, TRUE.replace("logit shift, ", ""), "it is invariant to logit shift, but does not declare it"),
        (Gap, "nothing", "it is invariant to logit shift, but does not declare it"),
        (type(create("energy")), TRUE, "it declares that it is invariant to logit scale, which exchanges"),
        (type(create("vim")), "logit shift, class order, feature scale, feature rotation", "invariant to logit shift"),
    ],
)
def test_a_wrong_declaration_is_found(detector: type[Detector], declared: str | None, says: str | None) -> None:
    text = "A score." if declared is None else f"A score.\n\nInvariant to: {declared}\n"
    made: Any = type("Declared", (detector,), {"__doc__": text})
    if says is None:
        contract.run_check("invariances_are_as_declared", made)
    else:
        with pytest.raises(AssertionError, match=says):
            contract.run_check("invariances_are_as_declared", made)


def test_the_pairs_are_counted_in_the_change_that_exchanges_them() -> None:
    broken = broken_by(partial(create, "energy"))
    assert broken.keys() == CHANGES.keys()
    assert [name for name, pairs in broken.items() if pairs] == ["logit scale"]
