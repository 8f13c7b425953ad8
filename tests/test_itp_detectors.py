"""Instance-aware test pruning: image by image where images are read, and the laws that its formulas imply."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detectors import Head, Outputs, create, itp
from detectors.itp import products_above
from tests.references.data import Data, agree, changed, log_odds, make_data, reordered, without_class
from tests.references.pruning import mean_contributions

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)
NO_LIMIT = 1e9

pytestmark = pytest.mark.usefixtures("one_thread")


def any_data(seed: int, classes: int = 4) -> Data:
    return make_data(80, 9, classes, seed)


# --- The sums below: by one large array, and their gradients by differences. ---


def any_sums(rows: int, classes: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = ((rows, width), (classes, width), (rows, width), (classes, width))
    values, weights, compared, limits = (torch.randn(shape, generator=random).double() for shape in shapes)
    limits[:, 0] = compared[0, 0]  # a tie, which is not above
    return values, weights, compared, limits


@pytest.mark.parametrize("block", [1, 40, 2**15])
@pytest.mark.parametrize("threads", [1, 3])
def test_sums_are_those_of_one_large_array(monkeypatch: pytest.MonkeyPatch, block: int, threads: int) -> None:
    monkeypatch.setattr(itp, "_BLOCK", block)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    values, weights, compared, limits = any_sums(21, 5, 8)
    expected = (values[:, None] * weights * (compared[:, None] > limits)).sum(dim=2)
    assert torch.allclose(products_above(values, weights, compared, limits), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_sums_are_those_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itp, "_BLOCK", 16)
    values, weights, compared, limits = any_sums(5, 3, 8)
    for changing in (values, weights):
        changing.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda values, weights: products_above(values, weights, compared, limits), (values, weights)
    )


# --- ODIN through a pruned head: image by image, with the contributions written out. ---


class Network(nn.Module):
    """Images (N, 3, 6, 6) -> convolution -> features (N, 8) -> logits (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
        self.head = nn.Linear(8, 4).double()

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def odin(logits_of: Callable[[Tensor], Tensor], images: Tensor, temperature: float, epsilon: float) -> list[float]:
    scores = []
    for image in images:
        image = image.clone().requires_grad_()
        logits = logits_of(image) / temperature
        (-logits.log_softmax(dim=0).max()).backward()
        moved = image.detach() - epsilon * image.grad.sign()
        scores.append(log_odds((logits_of(moved) / temperature).detach()))
    return scores


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0, "epsilon": 0.1, "itp_percentile": 60.0, "itp_z": 0.5}, {"epsilon": 0.0}]
)
def test_odin_reads_the_pruned_network(options: dict[str, Any]) -> None:
    model = Network().eval()
    images = torch.randn(70, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    train, test, labels = images[:60], images[60:], torch.arange(60) % 4
    weight, bias = model.head.weight.detach(), model.head.bias.detach()
    features = model.features(train).detach()
    detector = create("odin+itp", **options)
    contributions = torch.stack([features[labels == label] * weight[label] for label in range(4)])
    means, deviations = contributions.mean(dim=1), contributions.std(dim=1)
    important = means > np.percentile(means.numpy(), detector.itp_percentile)

    def logits_of(image: Tensor) -> Tensor:
        found = model.features(image[None]) * weight
        return (found * important * (found <= means + detector.itp_z * deviations)).sum(dim=1) + bias

    outputs = Outputs(features=features, logits=model(train).detach(), labels=labels, images=train)
    test_outputs = Outputs(features=model.features(test).detach(), images=test)
    scores = detector.fit(outputs, Head(weight, bias), model=model).score(test_outputs)
    expected = odin(logits_of, test, detector.temperature, detector.epsilon)
    assert agree(scores.numpy(), expected, 1e-9)
    with torch.inference_mode():
        assert torch.equal(detector.score(replace(test_outputs, images=test.clone())), scores)


# --- Laws. ---


@few
@given(seeds)
def test_without_limits_it_is_the_energy(seed: int) -> None:
    data = any_data(seed)
    assert agree(data.scores("itp-ftp", z=NO_LIMIT), data.scores("energy"))
    means = mean_contributions(data)
    weight = data.weight.copy()
    weight[np.unravel_index(means.argmin(), means.shape)] = 0.0
    for detector_id, options in (("itp", {"z": NO_LIMIT}), ("itp-crp", {})):
        assert agree(data.scores(detector_id, percentile=0, **options), replace(data, weight=weight).scores("energy"))


@few
@given(seeds, st.floats(0, 100), st.floats(0.1, 3))
def test_itp_is_both_prunings(seed: int, percentile: float, z: float) -> None:
    data = any_data(seed)
    without = data.scores("itp", percentile=percentile, z=NO_LIMIT)
    assert agree(without, data.scores("itp-crp", percentile=percentile))
    assert not agree(data.scores("itp", percentile=percentile, z=0.01), data.scores("itp-ftp", z=0.01)) or (
        percentile == 0
    )


@few
@given(seeds, st.floats(0, 99))
def test_coarse_pruning_of_one_class_is_dice(seed: int, percentile: float) -> None:
    data = any_data(seed, classes=1)
    assert agree(data.scores("itp-crp", percentile=percentile), data.scores("dice", percentile=percentile))


@few
@given(seeds)
def test_the_order_of_the_features_does_not_matter(seed: int) -> None:
    data = any_data(seed)
    turned = reordered(data, seed)
    for detector_id in ("itp", "itp-crp", "itp-ftp", "itp+react", "gradnorm+itp"):
        assert agree(turned.scores(detector_id), data.scores(detector_id)), detector_id


@few
@given(seeds)
def test_units_of_the_features_do_not_matter(seed: int) -> None:
    data = any_data(seed)
    units = 10 ** np.random.default_rng(seed).uniform(-4, 4, 9)
    stretched = replace(changed(data, lambda features: features * units), weight=data.weight / units)
    for detector_id in ("itp", "itp-crp", "itp-ftp", "msp+itp"):
        assert agree(stretched.scores(detector_id), data.scores(detector_id)), detector_id


@few
@given(seeds)
def test_of_positive_contributions_only_logits_are_lost(seed: int) -> None:
    data = changed(any_data(seed), np.abs)
    data = replace(data, weight=np.abs(data.weight))
    scores = [data.scores("max-logit+itp", itp_percentile=0, itp_z=z) for z in (0.1, 1.0, 3.0, NO_LIMIT)]
    assert (np.diff(scores, axis=0) >= -1e-12).all()
    assert (scores[0] < scores[-1]).any()


@few
@given(seeds)
def test_features_that_are_constant_in_a_class_pass_the_z_test(seed: int) -> None:
    constants = np.random.default_rng(seed).normal(size=9)
    data = changed(any_data(seed), lambda features: np.tile(constants, (len(features), 1)))
    assert agree(data.scores("itp-ftp"), data.scores("energy"))


def test_a_class_without_images_keeps_its_weights() -> None:
    data = without_class(any_data(0), 2)
    kept = replace(data, weight=np.where(np.arange(4)[:, None] == 2, 1e3 * np.abs(data.weight), 0.0))
    kept = changed(kept, np.abs)
    assert agree(kept.scores("max-logit+itp"), kept.scores("max-logit"))


def test_another_head_is_as_good_as_the_first() -> None:
    data, other = any_data(0), any_data(1)
    first, second = (Head(torch.from_numpy(one.weight), torch.from_numpy(one.bias)) for one in (data, other))
    train, test = data.outputs(data.train, data.labels), Outputs(features=data.test)
    refitted, new = create("itp").fit(train, first).fit(train, second), create("itp").fit(train, second)
    assert torch.equal(refitted.score(test), new.score(test))


@pytest.mark.parametrize(
    ("detector_id", "option", "values"),
    [
        ("itp", "percentile", [-1, 100.5, "30", True, None]),
        ("itp", "z", [0, -1.0, "1", True, float("inf"), None]),
        ("itp-crp", "percentile", [-1, float("nan")]),
        ("itp-ftp", "z", [0, float("nan")]),
        ("msp+itp", "itp_z", [0]),
        ("itp+react", "react_percentile", [101]),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"{option} is {value!r}; allowed: a number (from 0 to 100|above 0)"):
            create(detector_id, **{option: value})
