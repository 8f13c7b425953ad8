"""DICE against pytorch-ood, and the laws that its formula implies."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from scipy.special import logsumexp

from detectors import Head, create
from detectors.parts import Activations
from tests.references.data import DATA, Data, agree, make_data

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


def any_data(seed: int) -> Data:
    """Test images lie among the training images, so that a ReAct percentile of 100 clips nothing."""
    data = make_data(60, 6, 3, seed)
    return replace(data, test=data.train[:20])


def fitted(data: Data, detector_id: str, **options: Any) -> Any:
    head = Head(torch.from_numpy(data.weight), torch.from_numpy(data.bias))
    return create(detector_id, **options).fit(data.outputs(data.train, data.labels), head)


def contributions(data: Data) -> np.ndarray:
    return data.weight * data.train.mean(axis=0)


@pytest.mark.parametrize("kind", ["random", "ReLU", "more dimensions than images"])
@pytest.mark.parametrize("percentile", [10.0, 70.0, 90.0])
def test_dice_agrees_with_pytorch_ood(kind: str, percentile: float) -> None:
    """It has its mean, its weights and its threshold in single precision."""
    data = DATA[kind]
    train, labels, test, weight, bias = (
        torch.from_numpy(values) for values in (data.train, data.labels, data.test, data.weight, data.bias)
    )
    theirs = peer.DICE(None, weight, bias, percentile / 100).fit_features(train, labels).predict_features(test)
    assert agree(data.scores("dice", percentile=percentile), (-theirs).tolist(), 1e-5)


@few
@given(seeds)
def test_percentile_0_prunes_the_weight_that_contributes_least(seed: int) -> None:
    data = any_data(seed)
    weight = data.weight.copy()
    weight.flat[contributions(data).argmin()] = 0
    assert agree(data.scores("dice", percentile=0), replace(data, weight=weight).scores("energy").tolist(), 1e-12)


@few
@given(seeds)
def test_percentile_100_leaves_the_bias(seed: int) -> None:
    data = any_data(seed)
    np.testing.assert_allclose(data.scores("dice", percentile=100), logsumexp(data.bias), rtol=1e-12)


@pytest.mark.parametrize("percentile", [0.0, 50.0, 90.0, 100.0])
def test_equal_contributions_are_all_pruned(percentile: float) -> None:
    data = any_data(0)
    equal = replace(data, train=np.ones_like(data.train), weight=np.full_like(data.weight, 0.3))
    np.testing.assert_allclose(equal.scores("dice", percentile=percentile), logsumexp(data.bias), rtol=1e-12)


@few
@given(seeds, st.integers(0, 32))
def test_a_weight_at_the_threshold_is_pruned(seed: int, rank: int) -> None:
    """Of 33 weights, a percentile that is one of the contributions: it goes, and those below."""
    kept = fitted(make_data(60, 11, 3, seed), "dice", percentile=100 * rank / 32)._dice.kept
    assert int(kept.sum()) == 32 - rank


@few
@given(seeds, st.floats(1e-3, 1e3))
def test_the_unit_of_the_features_does_not_matter(seed: int, factor: float) -> None:
    data = any_data(seed)
    other = Data(factor * data.train, data.labels, factor * data.test, data.weight / factor, data.bias)
    for detector_id in ("dice", "dice+react"):
        assert agree(other.scores(detector_id, percentile=65), data.scores(detector_id, percentile=65).tolist(), 1e-9)


@few
@given(seeds)
def test_the_order_of_the_features_does_not_matter(seed: int) -> None:
    data = any_data(seed)
    order = np.random.default_rng(seed).permutation(6)
    other = Data(data.train[:, order], data.labels, data.test[:, order], data.weight[:, order], data.bias)
    for detector_id in ("dice", "dice+react"):
        assert agree(other.scores(detector_id, percentile=65), data.scores(detector_id, percentile=65).tolist(), 1e-9)


@few
@given(seeds)
def test_react_before_dice(seed: int) -> None:
    """It clips what is scored, and not what the contributions are learned from."""
    data = any_data(seed)
    np.testing.assert_array_equal(data.scores("dice+react", react_percentile=100), data.scores("dice", percentile=10))
    pruned = fitted(data, "dice", percentile=50)
    both = fitted(data, "dice+react", percentile=50, react_percentile=40)
    assert torch.equal(both._dice.kept, pruned._dice.kept)
    clipped = replace(data, test=np.minimum(data.test, np.percentile(data.train, 40)))
    assert agree(data.scores("dice+react", percentile=50, react_percentile=40), clipped.scores("dice", percentile=50))


def test_each_class_is_reached_by_what_its_weights_keep() -> None:
    data = any_data(0)
    dice = fitted(data, "dice", percentile=60)._dice
    head = Head(torch.from_numpy(data.weight), torch.from_numpy(data.bias))
    reach = dice.apply(Activations.of(head, torch.from_numpy(data.test), None)).reach
    threshold = np.percentile(contributions(data), 60)
    expected = [
        [
            sum(abs(h) for h, share in zip(row, shares, strict=True) if share > threshold)
            for shares in contributions(data)
        ]
        for row in data.test
    ]
    np.testing.assert_allclose(reach.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("detector_id", "option"),
    [("dice", "percentile"), ("dice+react", "percentile"), ("dice+react", "react_percentile")],
)
@pytest.mark.parametrize("value", [-1, 100.5, "90", True, float("nan"), None])
def test_bad_options_are_refused(detector_id: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} is .*; allowed: a number from 0 to 100") as error:
        create(detector_id, **{option: value})
    assert repr(value) in str(error.value)
    assert detector_id in str(error.value)
