"""LINe and OPNP: what they learn against torch's own gradients, and the laws that their formulas imply."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import Head, Outputs, create
from tests.references.data import Data, agree, changed, make_data, reordered
from tests.references.himplos import similarity
from tests.references.pruning import line, line_logits

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)
NO_LIMIT = 1e9

pytestmark = pytest.mark.usefixtures("one_thread")


def any_data(seed: int, classes: int = 3, width: int = 7) -> Data:
    return make_data(80, width, classes, seed)


def head_of(data: Data) -> Head:
    return Head(torch.from_numpy(data.weight), torch.from_numpy(data.bias))


@few
@given(seeds, st.floats(0, 99))
def test_line_keeps_the_neurons_with_the_largest_first_order_shapley_values(seed: int, percentile: float) -> None:
    """Activation times gradient of the true class's logit, as the authors compute it."""
    data = any_data(seed)
    head, labels = head_of(data), torch.from_numpy(data.labels)
    features = torch.from_numpy(data.train).requires_grad_()
    logits = torch.nn.functional.linear(features, head.weight, head.bias)
    (gradients,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), features)
    values = (features * gradients).detach()
    means = np.array([values[labels == label].mean(dim=0).numpy() for label in range(3)])
    limits = np.percentile(means, percentile, axis=1, keepdims=True)
    detector = create("line", activation_percentile=percentile).fit(data.outputs(data.train, data.labels), head)
    assert (detector._line.neurons.numpy() == (means > limits)).all()


@few
@given(seeds)
def test_line_removes_the_weight_at_the_limit(seed: int) -> None:
    """Of 3 x 7 products the one with just 2, 10, 18 below it is the percentile itself."""
    data = any_data(seed)
    for percentile in (10.0, 50.0, 90.0):
        assert agree(data.scores("line", weight_percentile=percentile), line(data, weight_percentile=percentile))


@few
@given(seeds)
def test_line_with_little_to_prune_is_react(seed: int) -> None:
    """Strictly above the 0th percentile is all but the least: here a dimension that no logit depends on."""
    data = any_data(seed)
    weight = data.weight.copy()
    weight[:, 0] = 0.0
    data = changed(replace(data, weight=np.abs(weight)), np.abs)
    scores = data.scores("line", activation_percentile=0, weight_percentile=0)
    assert agree(scores, data.scores("react", percentile=90))
    scores = data.scores("line", activation_percentile=0, weight_percentile=0, clip=NO_LIMIT)
    assert agree(scores, data.scores("energy"))


@few
@given(seeds)
def test_smoothing_scales_the_logits_of_line(seed: int) -> None:
    data = any_data(seed)
    logits = np.array(line_logits(data, 10.0, 10.0, None))
    scaled = logits * np.array([[similarity(data, row)] for row in data.test])
    assert agree(data.scores("line+ls"), np.log(np.exp(scaled).sum(axis=1)).tolist())


def test_a_predicted_class_without_images_prunes_nothing() -> None:
    data = any_data(0)
    data = replace(data, bias=data.bias + np.array([0.0, 0.0, NO_LIMIT]), labels=data.labels % 2)
    assert agree(data.scores("line", clip=NO_LIMIT), data.scores("energy"), 1e-15)


@few
@given(seeds)
def test_opnp_keeps_what_lies_between_torchs_gradients_of_the_energy(seed: int) -> None:
    data = any_data(seed)
    weight, bias = (torch.from_numpy(values) for values in (data.weight, data.bias))
    weight.requires_grad_()
    sensitivities = np.zeros((3, 7))
    for row in torch.from_numpy(data.train):
        energy = torch.nn.functional.linear(row, weight, bias).logsumexp(dim=0)
        sensitivities += torch.autograd.grad(energy, weight)[0].abs().numpy() / len(data.train)
    for low, high in ((20.0, 30.0), (5.0, 10.0)):
        options = {"parameters_low": low, "parameters_high": high, "neurons_low": 0, "neurons_high": 0}
        detector = create("opnp", **options).fit(data.outputs(data.train), head_of(data))
        lowest, highest = np.percentile(sensitivities, [low, 100 - high])
        expected = (sensitivities > lowest) & (sensitivities < highest)
        assert (detector._opnp.kept.numpy() == expected).all()


@few
@given(seeds)
def test_opnp_that_prunes_nothing_is_the_energy(seed: int) -> None:
    data = any_data(seed)
    nothing = dict.fromkeys(("parameters_low", "parameters_high", "neurons_low", "neurons_high"), 0)
    assert agree(data.scores("opnp", **nothing), data.scores("energy"))
    assert agree(data.scores("opnp+react", **nothing), data.scores("react", percentile=90))
    assert agree(data.scores("opnp", **{**nothing, "parameters_low": 100}), [np.log(np.exp(data.bias).sum())] * 47)


@few
@given(seeds)
def test_opnp_removes_neurons_that_training_leaves_dead(seed: int) -> None:
    data = any_data(seed, width=20)
    train, test = data.train.copy(), data.test.copy()
    train[:, 4], test[:, 4] = 0.0, 1e6
    data = replace(data, train=train, test=test)
    without = replace(data, test=np.where(np.arange(20) == 4, 0.0, test))
    assert agree(data.scores("opnp"), without.scores("opnp"))


@few
@given(seeds)
def test_the_order_of_the_features_does_not_matter(seed: int) -> None:
    data = any_data(seed)
    turned = reordered(data, seed)
    for detector_id in ("line", "opnp", "opnp+react"):
        assert agree(turned.scores(detector_id), data.scores(detector_id)), detector_id


def test_another_head_is_as_good_as_the_first() -> None:
    data, other = any_data(0), any_data(1)
    train, test = data.outputs(data.train, data.labels), Outputs(features=data.test)
    for detector_id in ("line", "opnp"):
        refitted = create(detector_id).fit(train, head_of(data)).fit(train, head_of(other))
        assert torch.equal(refitted.score(test), create(detector_id).fit(train, head_of(other)).score(test))


@pytest.mark.parametrize(
    ("detector_id", "option", "values", "allowed"),
    [
        ("line", "activation_percentile", [-1, 100.5, "30", True, None], "a number from 0 to 100"),
        ("line", "weight_percentile", [-1, float("nan")], "a number from 0 to 100"),
        ("line", "clip", [0, "1", False], "a number above 0, or None for the rule"),
        ("opnp", "parameters_low", [-1, "1", True, None], "a number from 0 to 100"),
        ("opnp", "neurons_low", [101], "a number from 0 to 100"),
        ("opnp", "neurons_high", [91], "a number up to 100 - neurons_low"),
        ("opnp+react", "parameters_high", [99], "a number up to 100 - parameters_low"),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any], allowed: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"{option} is {value!r}; allowed: {allowed}"):
            create(detector_id, **{option: value})
