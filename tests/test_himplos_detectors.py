"""HIMPLoS and its steps: image by image where images are read, and the laws that its formulas imply."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors import Head, Outputs, create
from tests.references.data import Data, agree, changed, make_data, reordered, without_class
from tests.references.himplos import similarity
from tests.test_itp_detectors import Network, odin

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)
NO_LIMIT = 1e9

pytestmark = pytest.mark.usefixtures("one_thread")


def any_data(seed: int, classes: int = 4) -> Data:
    return make_data(80, 9, classes, seed)


def on_the_rays_of_classes(seed: int) -> Data:
    """Every image is a multiple of the direction of its class, which the network predicts: all similarities are 1."""
    random = np.random.default_rng(seed)
    directions, labels = np.abs(random.normal(size=(4, 9))) + 3 * np.eye(4, 9), np.arange(40) % 4
    features = random.uniform(1, 3, (40, 1)) * directions[labels]
    weight = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return Data(features, labels, features[:20], weight, np.zeros(4))


@few
@given(seeds)
def test_without_masks_it_is_what_follows(seed: int) -> None:
    data = any_data(seed)
    assert agree(data.scores("fm", percentile=0), data.scores("energy"))
    assert agree(data.scores("fm+ls", percentile=0), data.scores("ls"))
    assert agree(data.scores("fm+react", percentile=0), data.scores("react", percentile=90))
    assert agree(data.scores("himplos", percentile=0), data.scores("ls+react"))
    assert agree(data.scores("himplos", percentile=0, clip=NO_LIMIT), data.scores("ls"))


@few
@given(seeds)
def test_similarities_of_1_change_nothing(seed: int) -> None:
    data = on_the_rays_of_classes(seed)
    assert agree(data.scores("ls"), data.scores("energy"))
    assert agree(data.scores("himplos"), data.scores("fm+react"))
    assert agree(data.scores("himplos", percentile=0, clip=NO_LIMIT), data.scores("energy"))
    assert agree(data.scores("fm+le+react", le_alpha=7), data.scores("fm+react") + 7)


@few
@given(seeds, st.floats(0, 100))
def test_enhancing_adds_alpha_times_the_similarity(seed: int, alpha: float) -> None:
    data = any_data(seed)
    similarities = np.array([similarity(data, row) for row in data.test])
    assert agree(data.scores("fm+le+react", le_alpha=alpha), data.scores("fm+react") + alpha * similarities)


@few
@given(seeds)
def test_a_clip_is_named_or_follows_the_rule(seed: int) -> None:
    data = changed(any_data(seed), np.abs)
    limit = float(np.percentile(data.train, 90))
    assert agree(data.scores("himplos"), data.scores("himplos", clip=limit))
    assert agree(data.scores("line"), data.scores("line", clip=limit))
    assert not agree(data.scores("himplos"), data.scores("himplos", clip=limit / 2))


@few
@given(seeds)
def test_the_order_of_the_features_does_not_matter(seed: int) -> None:
    data = any_data(seed)
    turned = reordered(data, seed)
    for detector_id in ("fm", "ls", "fm+le+react", "himplos", "line+ls"):
        assert agree(turned.scores(detector_id), data.scores(detector_id)), detector_id


@few
@given(seeds)
def test_the_sizes_of_training_classes_do_not_matter(seed: int) -> None:
    """Prototypes are directions: twice the features of one class in training change nothing."""
    data = any_data(seed)
    twice = replace(data, train=data.train * np.where(data.labels == 1, 2.0, 1.0)[:, None])
    assert agree(twice.scores("fm+ls"), data.scores("fm+ls"))


def test_what_has_no_direction_has_similarity_0() -> None:
    data = any_data(0)
    nothing = replace(data, test=np.zeros((3, 9)))
    assert np.allclose(nothing.scores("ls"), np.log(4))
    assert agree(nothing.scores("fm+le+react"), nothing.scores("fm+react"))
    data = without_class(data, 1)
    predicted_1 = np.array([data.logits(row).argmax() == 1 for row in data.test])
    assert predicted_1.any()
    assert np.allclose(data.scores("himplos")[predicted_1], np.log(4))


def test_another_head_is_as_good_as_the_first() -> None:
    data, other = any_data(0), any_data(1)
    first, second = (Head(torch.from_numpy(one.weight), torch.from_numpy(one.bias)) for one in (data, other))
    train, test = data.outputs(data.train, data.labels), data.outputs(data.test)
    refitted, new = create("himplos").fit(train, first).fit(train, second), create("himplos").fit(train, second)
    assert torch.equal(refitted.score(test), new.score(test))


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 2.0, "epsilon": 0.1, "himplos_percentile": 60.0, "himplos_clip": 0.1}, {"epsilon": 0.0}],
)
def test_odin_reads_the_masked_network(options: dict[str, Any]) -> None:
    model = Network().eval()
    images = torch.randn(70, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    train, test, labels = images[:60], images[60:], torch.arange(60) % 4
    weight, bias = model.head.weight.detach(), model.head.bias.detach()
    features = model.features(train).detach()
    detector = create("odin+himplos", **options)
    clip = detector.himplos_clip or np.percentile(features.numpy(), 90)

    def logits_of(image: Tensor) -> Tensor:
        own = model.features(image[None])[0]
        predicted = int((weight @ own + bias).argmax())
        important = weight[predicted] >= np.percentile(weight[predicted].numpy(), detector.himplos_percentile)
        prototype = features[labels == predicted].mean(dim=0)
        similarity = torch.nn.functional.cosine_similarity(own, prototype, dim=0)
        return similarity * (weight @ (own * important).clamp(max=clip) + bias)

    outputs = Outputs(features=features, logits=model(train).detach(), labels=labels, images=train)
    scores = detector.fit(outputs, Head(weight, bias), model=model).score(
        Outputs(features=model.features(test).detach(), logits=model(test).detach(), images=test)
    )
    assert agree(scores.numpy(), odin(logits_of, test, detector.temperature, detector.epsilon), 1e-9)


@pytest.mark.parametrize(
    ("detector_id", "option", "values", "allowed"),
    [
        ("fm", "percentile", [-1, 100.5, "30", True, None], "a number from 0 to 100"),
        ("himplos", "percentile", [-1, float("nan")], "a number from 0 to 100"),
        ("himplos", "clip", [0, -1, "1", True, float("inf")], "a number above 0, or None for the rule"),
        ("msp+himplos", "himplos_clip", [0], "a number above 0, or None for the rule"),
        ("fm+react", "percentile", [101], "a number from 0 to 100"),
        ("fm+le+react", "le_alpha", [-1, "1", True, None], "a number from 0"),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any], allowed: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"{option} is {value!r}; allowed: {allowed}"):
            create(detector_id, **{option: value})
