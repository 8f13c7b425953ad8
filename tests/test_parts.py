"""Parts between the features and the logits, and what `combination` makes of them and a score."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors import Detector, Outputs, Registry, create
from detectors.base import Batch, option_fields
from detectors.contract import World, build_world, checks, fitted, refusal
from detectors.gaussian import Mahalanobis
from detectors.gradients import ODIN
from detectors.invariance import measure_invariances
from detectors.logits import MSP, Energy, MaxLogit
from detectors.options import OptionError, is_number, require
from detectors.parts import Activations, Combination, Part, Training, combination
from detectors.state import learned

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = build_world()


@dataclass(kw_only=True, eq=False)
class Ceiling(Part):
    """Features clipped at a share of their largest training value.

    Formula: o = W min(h, share * max_i h_i) + b
    Paper: A. Author, "Ceilings", 2020, not on arXiv
    Options:
    - share: from 0 to 1
    - slope: of what lies above, from 0
    Deviations:
    - None of note.
    Verified:
    - by hand, 1e-9
    """

    id = "ceil"
    needs = frozenset({"train"})
    share: float = 0.5
    slope: float = 0.0
    limit: float = learned()

    def __post_init__(self) -> None:
        require(is_number(self.share) and 0 <= self.share <= 1, self.id, "share", self.share, "a number from 0 to 1")
        require(is_number(self.slope) and self.slope >= 0, self.id, "slope", self.slope, "a number from 0")

    def fit(self, training: Training) -> None:
        largest = max(float(batch.features.max()) for batch in training.batches())
        allowed = f"from 0 to {training.images}, the number of training images"
        require(self.slope <= training.images, self.id, "slope", self.slope, allowed)
        self.limit = self.share * largest

    def apply(self, activations: Activations) -> Activations:
        features = activations.features
        above = (features - self.limit).clamp(min=0)
        return activations.with_features(features - above + self.slope * above)


@dataclass(kw_only=True, eq=False)
class Mask(Part):
    """The head's weights that are below the mean of their class left out.

    Formula: o_c = sum_d [w_cd >= share * mean_d w_cd] w_cd h_d + b_c
    Paper: B. Author, "Masks", 2021, not on arXiv
    Options:
    - share: from -100 to 100
    Deviations:
    - None of note.
    Verified:
    - by hand, 1e-9
    """

    id = "class-mask"
    share: float = 1.0

    def __post_init__(self) -> None:
        require(is_number(self.share) and abs(self.share) <= 100, self.id, "share", self.share, "from -100 to 100")

    def apply(self, activations: Activations) -> Activations:
        weight = activations.head.weight
        kept = weight >= self.share * weight.mean(dim=1, keepdim=True)
        logits = activations.features @ (weight * kept).T + activations.head.bias
        return activations.with_logits(logits, lambda: activations.features.abs() @ kept.double().T)


@dataclass(kw_only=True, eq=False)
class Favour(Part):
    """The logit of the class that the network predicts raised by one.

    Formula: o_m + 1, m = argmax_c o_c
    Paper: C. Author, "Favours", 2022, not on arXiv
    Verified:
    - by hand, 1e-9
    """

    id = "favour"
    needs = frozenset({"logits"})

    def apply(self, activations: Activations) -> Activations:
        one_hot = torch.nn.functional.one_hot(activations.predicted, activations.logits.shape[1])
        return activations.with_logits(activations.logits + one_hot)


@dataclass(kw_only=True, eq=False)
class SecretlyFavour(Favour):
    """It reads the prediction, and does not say so.

    Formula: o_m + 1, m = argmax_c o_c
    Paper: C. Author, "Favours", 2022, not on arXiv
    Verified:
    - by hand, 1e-9
    """

    id = "secret"
    needs = frozenset()


@dataclass(kw_only=True, eq=False)
class Reach(Detector):
    """The smallest of what reaches a class.

    Formula: S = min_c |h_c|_1
    Paper: D. Author, "Reach", 2023, not on arXiv
    Verified:
    - by hand, 1e-9
    """

    id = "reach"
    needs = frozenset({"features"})

    def _score(self, batch: Batch) -> Tensor:
        return batch.reach.amin(dim=1)


def scores(kind: type[Detector], world: World = WORLD, **options: Any) -> Tensor:
    return fitted(partial(kind, **options), world).score(world.test)


def ceiling(features: Tensor, share: float = 0.5) -> Tensor:
    return features.clamp(max=share * float(WORLD.train.features.max()))


def mask(features: Tensor, share: float = 1.0) -> Tensor:
    weight = WORLD.head.weight
    kept = weight >= share * weight.mean(dim=1, keepdim=True)
    return features @ (weight * kept).T + WORLD.head.bias


def options_of(kind: Any) -> dict[str, Any]:
    return {option.name: option.default for option in option_fields(kind)}


# --- Options: their names and defaults. ---


def test_the_first_in_the_id_keeps_its_option_names() -> None:
    assert options_of(combination("ceil+class-mask", Energy, Ceiling, Mask)) == {
        "share": 0.5,
        "slope": 0.0,
        "class_mask_share": 1.0,
    }
    assert options_of(combination("class-mask+ceil", Energy, Ceiling, Mask)) == {
        "ceil_share": 0.5,
        "ceil_slope": 0.0,
        "share": 1.0,
    }


def test_a_score_that_the_id_names_shows_its_options() -> None:
    assert options_of(combination("odin+ceil", ODIN, Ceiling)) == {
        "temperature": 1000.0,
        "epsilon": 0.0014,
        "ceil_share": 0.5,
        "ceil_slope": 0.0,
    }
    assert options_of(combination("ceil+energy", Energy, Ceiling)) == {
        "energy_temperature": 1.0,
        "share": 0.5,
        "slope": 0.0,
    }


def test_what_the_id_does_not_name_shows_no_options() -> None:
    assert options_of(combination("ceil", Energy, Ceiling)) == {"share": 0.5, "slope": 0.0}
    assert options_of(combination("ceil", Energy, Ceiling, Mask)) == {"share": 0.5, "slope": 0.0}


def test_defaults_are_by_the_names_of_the_combination() -> None:
    kind = combination("class-mask+ceil", Energy, Ceiling, Mask, ceil_share=0.25, share=0.75)
    assert options_of(kind) == {"ceil_share": 0.25, "ceil_slope": 0.0, "share": 0.75}
    assert torch.equal(scores(kind), scores(kind, ceil_share=0.25, share=0.75))
    assert not torch.equal(scores(kind), scores(kind, ceil_share=0.75, share=0.25))


def test_the_defaults_of_a_combination_are_its_own() -> None:
    combination("ceil", Energy, Ceiling, share=0.25)
    assert options_of(Ceiling)["share"] == 0.5
    assert options_of(combination("ceil", Energy, Ceiling))["share"] == 0.5


def test_a_default_of_no_option_is_refused() -> None:
    text = refusal(ValueError, combination, "class-mask+ceil", Energy, Ceiling, Mask, slope=1.0, share=0.5)
    assert "class-mask+ceil has no option 'slope'" in text
    assert "ceil_share, ceil_slope, share" in text


def test_options_reach_their_part() -> None:
    kind = combination("class-mask+ceil", Energy, Ceiling, Mask)
    logits = mask(ceiling(WORLD.test.features, 0.25), 0.5)
    assert torch.allclose(scores(kind, ceil_share=0.25, share=0.5), logits.logsumexp(dim=1), rtol=1e-12)


# --- Errors. ---


def test_a_bad_option_has_its_name_in_the_combination() -> None:
    kind = combination("class-mask+ceil", Energy, Ceiling, Mask)
    text = refusal(OptionError, kind, ceil_share=2.0)
    assert text == "class-mask+ceil: ceil_share is 2.0; allowed: a number from 0 to 1"
    assert refusal(OptionError, kind, share="all").startswith("class-mask+ceil: share is 'all'")
    kind = combination("ceil+energy", Energy, Ceiling)
    assert refusal(OptionError, kind, energy_temperature=0).startswith("ceil+energy: energy_temperature is 0")


def test_an_option_that_the_data_refuse_has_its_name_in_the_combination() -> None:
    kind = combination("class-mask+ceil", Energy, Ceiling, Mask)
    text = refusal(OptionError, fitted, partial(kind, ceil_slope=49), WORLD)
    assert text == "class-mask+ceil: ceil_slope is 49; allowed: from 0 to 48, the number of training images"


def test_a_default_is_checked_when_the_combination_is_made() -> None:
    assert "ceil: share is 7" in refusal(OptionError, combination, "ceil", Energy, Ceiling, share=7)


def test_a_word_of_the_id_that_is_no_part_is_refused() -> None:
    assert "ciel is none of energy, ceil, class-mask" in refusal(
        ValueError, combination, "class-mask+ciel", Energy, Ceiling, Mask
    )


def test_a_score_and_parts_are_not_mixed_up() -> None:
    assert "Ceiling is no Detector" in refusal(ValueError, combination, "x", Ceiling, Energy)
    assert "Energy is no Part" in refusal(ValueError, combination, "x", Energy, Energy)
    assert "mahalanobis learns" in refusal(ValueError, combination, "x", Mahalanobis, Ceiling)
    assert "once" in refusal(ValueError, combination, "x", Energy, Ceiling, Ceiling)


def test_a_part_that_reads_the_prediction_must_say_so() -> None:
    detector = fitted(combination("secret", Energy, SecretlyFavour), WORLD)
    assert '"logits"' in refusal(ValueError, detector.score, WORLD.test)


# --- What the score reads. ---


def test_parts_are_applied_in_their_order() -> None:
    features = WORLD.test.features
    clipped_then_masked = mask(ceiling(features)).logsumexp(dim=1)
    assert torch.allclose(scores(combination("x", Energy, Ceiling, Mask)), clipped_then_masked, rtol=1e-12)
    with pytest.raises(ValueError, match="features comes before"):
        scores(combination("x", Energy, Mask, Ceiling))
    with pytest.raises(ValueError, match="only one part can prune"):
        scores(combination("x", Energy, Favour, Mask))


def test_without_parts_the_logits_are_those_of_the_head() -> None:
    assert torch.allclose(scores(combination("plain", MSP)), scores(MSP), rtol=1e-9)


def test_any_score_of_logits_serves() -> None:
    logits = mask(WORLD.test.features)
    assert torch.allclose(scores(combination("x", MaxLogit, Mask)), logits.amax(dim=1), rtol=1e-12)
    largest = logits.softmax(dim=1).amax(dim=1)
    assert torch.allclose(scores(combination("x", MSP, Mask)), largest.logit(), rtol=1e-9)


def test_the_reach_is_that_of_the_features_or_of_the_mask() -> None:
    features, weight = WORLD.test.features, WORLD.head.weight
    norms = features.abs().sum(dim=1)
    assert torch.allclose(scores(combination("x", Reach)), norms, rtol=1e-12)
    assert torch.allclose(scores(combination("x", Reach, Ceiling)), ceiling(features).abs().sum(dim=1), rtol=1e-12)
    kept = (weight >= weight.mean(dim=1, keepdim=True)).double()
    reached = (features.abs() @ kept.T).amin(dim=1)
    assert torch.allclose(scores(combination("x", Reach, Mask)), reached, rtol=1e-12)
    assert torch.allclose(scores(combination("x", Reach, Mask, Favour)), reached, rtol=1e-12)


def test_the_prediction_is_that_of_the_network() -> None:
    kind = combination("x", MaxLogit, Mask, Favour)
    # Whatever the features, the network says that it is the last class.
    logits = torch.zeros(20, 4, dtype=torch.float64)
    logits[:, 3] = 1.0
    found = fitted(kind, WORLD).score(Outputs(features=WORLD.test.features, logits=logits))
    expected = (mask(WORLD.test.features) + logits).amax(dim=1)
    assert torch.allclose(found, expected, rtol=1e-12)


def test_parts_learn_from_the_network_alone() -> None:
    alone = fitted(combination("ceil", Energy, Ceiling), WORLD)
    second = fitted(combination("ceil", Energy, Mask, Favour, Ceiling), WORLD)
    assert alone._ceil.limit == second._ceil.limit == 0.5 * float(WORLD.train.features.max())


def test_each_detector_has_parts_of_its_own() -> None:
    kind = combination("ceil", Energy, Ceiling)
    one, other = fitted(kind, WORLD), fitted(partial(kind, share=0.25), WORLD)
    assert one._ceil is not other._ceil
    assert one._ceil.limit == 2 * other._ceil.limit


def test_odin_sees_the_network_after_the_parts() -> None:
    images, head = WORLD.test.images, WORLD.head
    for parts, change in (((), lambda h: h @ head.weight.T + head.bias), ((Ceiling, Mask), lambda h: mask(ceiling(h)))):

        def confidence(images: Tensor, change: Any = change) -> Tensor:
            return (change(WORLD.model.features(images)) / 1000).log_softmax(dim=1).amax(dim=1)

        moved = images.clone().requires_grad_()
        confidence(moved).sum().backward()
        expected = confidence(images + 0.0014 * moved.grad.sign()).detach().exp().logit()
        assert torch.allclose(scores(combination("odin", ODIN, *parts)), expected, rtol=1e-12)


def test_odin_over_parts_needs_the_features_of_the_network() -> None:
    kind = combination("odin+ceil", ODIN, Ceiling)
    detector = fitted(kind, WORLD, model=lambda images: WORLD.model(images))
    assert "features(...)" in refusal(ValueError, detector.score, WORLD.test)
    assert "eval()" in refusal(ValueError, fitted, kind, WORLD, model=build_world().model.train())


def test_the_batches_of_a_combination_are_no_larger_than_those_of_its_score() -> None:
    detector = fitted(combination("odin+ceil", ODIN, Ceiling), WORLD)
    assert detector._rows_in_a_batch(WORLD.test) == ODIN()._rows_in_a_batch(WORLD.test)
    assert combination("ceil", Energy, Ceiling)()._rows_in_a_batch(WORLD.test) == Energy.batch_rows


# --- What a combination is. ---


@pytest.mark.parametrize(
    ("score", "parts", "needs"),
    [
        (Energy, (), {"features", "head"}),
        (Energy, (Mask,), {"features", "head"}),
        (Energy, (Ceiling, Mask), {"features", "head", "train"}),
        (MSP, (Mask, Favour), {"features", "head", "logits"}),
        (ODIN, (Ceiling,), {"features", "head", "train", "images", "model"}),
    ],
)
def test_a_combination_needs_what_its_parts_need(score: Any, parts: Any, needs: set[str]) -> None:
    assert combination("x", score, *parts).needs == needs


def test_descriptions_are_joined() -> None:
    registry = Registry()
    registry.register(combination("class-mask+ceil", Reach, Ceiling, Mask))
    assert registry.describe("class-mask+ceil") == {
        "id": "class-mask+ceil",
        "summary": "The smallest of what reaches a class, with features clipped at a share of their largest training "
        "value; then the head's weights that are below the mean of their class left out.",
        "formula": "o = W min(h, share * max_i h_i) + b; o_c = sum_d [w_cd >= share * mean_d w_cd] w_cd h_d + b_c; "
        "S = min_c |h_c|_1",
        "paper": 'A. Author, "Ceilings", 2020, not on arXiv; B. Author, "Masks", 2021, not on arXiv; '
        'D. Author, "Reach", 2023, not on arXiv',
        "needs": ["features", "head", "train"],
        "options": {
            "ceil_share": "from 0 to 1",
            "ceil_slope": "of what lies above, from 0",
            "share": "from -100 to 100",
        },
        "defaults": {"ceil_share": 0.5, "ceil_slope": 0.0, "share": 1.0},
        "deviations": ["None of note."],
        "verified": ["ceil: by hand, 1e-9", "class-mask: by hand, 1e-9", "reach: by hand, 1e-9"],
        "invariances": measure_invariances(combination("class-mask+ceil", Reach, Ceiling, Mask)),
        "invariances_declared": False,
    }


def test_a_combination_declares_its_invariances_where_it_is_told_them() -> None:
    registry = Registry()
    registry.register(combination("ceil", Energy, Ceiling, invariant_to="logit shift, class order, feature scale"))
    described = registry.describe("ceil")
    assert described["invariances_declared"]
    assert [name for name, holds in described["invariances"].items() if holds] == [
        "logit shift",
        "class order",
        "feature scale",
    ]
    with pytest.raises(ValueError, match=r"`Invariant to: logit shifts` \(did you mean 'logit shift'\?\)"):
        registry.register(combination("ceil2", Energy, Ceiling, invariant_to="logit shifts"))


def test_the_order_of_defaults_makes_no_other_class() -> None:
    one, other = (
        combination("class-mask+ceil", Energy, Ceiling, Mask, **dict(pairs))
        for pairs in ([("share", 2.0), ("ceil_share", 0.1)], [("ceil_share", 0.1), ("share", 2.0)])
    )
    assert one is other


def test_a_combination_comes_from_the_module_of_its_part() -> None:
    assert combination("x", Energy, Ceiling).__module__ == __name__
    assert combination("x", Energy).__module__ == "detectors.logits"
    assert type(create("react")).__module__ == "detectors.shaping"


def test_the_name_of_the_class_is_that_of_the_id() -> None:
    assert combination("class-mask+ceil", Energy, Ceiling, Mask).__name__ == "ClassMaskCeil"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("check", checks())
@pytest.mark.parametrize(
    "kind",
    [
        combination("ceil", Energy, Ceiling, share=0.9),
        combination("class-mask+ceil", MSP, Ceiling, Mask, share=-1.0),
        combination("favour", MaxLogit, Favour),
    ],
    ids=lambda kind: kind.id,
)
def test_combinations_keep_the_contract(kind: type[Combination], check: str) -> None:
    checks()[check](kind)
