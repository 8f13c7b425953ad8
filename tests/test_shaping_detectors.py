"""Shaped features against pytorch-ood, and the laws that their formulas imply."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from torch import Tensor, nn

from detectors import Head, Outputs, create
from detectors.percentile import column_percentiles
from tests.references.data import DATA, Data, agree, log_odds, make_data

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)
PERCENTILES = [0.0, 30.0, 65.0, 90.0, 99.0]

pytestmark = pytest.mark.usefixtures("one_thread")


def any_data(seed: int, relu: bool = False, classes: int = 3) -> Data:
    """Of 60 training images. The test images lie among them, so that a percentile of 100 clips nothing."""
    data = make_data(60, 8, classes, seed)
    if relu:
        data = replace(data, train=np.maximum(data.train, 0))
    return replace(data, test=data.train[:20])


def energy(data: Data, features: np.ndarray) -> np.ndarray:
    return replace(data, test=features).scores("energy")


# --- pytorch-ood: its outlier scores have the other sign. ---


def peer_arguments(data: Data) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Its head, the training features, their labels and the test features, as maps of one pixel where it wants maps."""
    weight, bias = torch.from_numpy(data.weight), torch.from_numpy(data.bias)

    def head(maps: Tensor) -> Tensor:
        return nn.functional.linear(maps.flatten(1), weight, bias)

    train, test = (torch.from_numpy(rows)[:, :, None, None] for rows in (data.train, data.test))
    return head, train, torch.from_numpy(data.labels), test


# In features of continuous noise no two are equal, so that its topk has no choice.
@pytest.mark.parametrize("kind", ["random", "more dimensions than images", "far from the origin"])
@pytest.mark.parametrize("percentile", [30.0, 65.0, 85.0])
def test_pruning_agrees_with_pytorch_ood(kind: str, percentile: float) -> None:
    data = DATA[kind]
    head, _, _, test = peer_arguments(data)
    for detector_id in ("ash-p", "ash-b", "ash-s"):
        theirs = peer.ASH(None, head, detector_id, percentile / 100).predict_feature_maps(test)
        assert agree(data.scores(detector_id, percentile=percentile), (-theirs).tolist(), 1e-9), detector_id
    theirs = peer.SCALE(None, head, percentile / 100).predict_feature_maps(test)
    assert agree(data.scores("scale", percentile=percentile), (-theirs).tolist(), 1e-9)


def test_vra_agrees_with_pytorch_ood_where_nothing_is_low() -> None:
    """It raises low features to the threshold; the paper and its code set them to 0. Its thresholds are float32."""
    data = any_data(0)
    head, train, labels, test = peer_arguments(data)
    vra = peer.VRA(None, head, lower_percentile=0.0, upper_percentile=0.8).fit_feature_maps(train, labels)
    scores = data.scores("vra", low_percentile=0, high_percentile=80)
    assert agree(scores, (-vra.predict_feature_maps(test)).tolist())
    vra = peer.VRA(None, head, lower_percentile=0.5, upper_percentile=0.8).fit_feature_maps(train, labels)
    scores = data.scores("vra", low_percentile=50, high_percentile=80)
    assert not agree(scores, (-vra.predict_feature_maps(test)).tolist())


# --- Limits. ---

WITHOUT_EFFECT: list[tuple[str, dict[str, Any]]] = [
    ("react", {"percentile": 100.0}),
    ("ash-p", {"percentile": 0.0}),
    ("vra", {"low_percentile": 0.0, "high_percentile": 100.0}),
    ("vra", {"low_percentile": 0.0, "high_percentile": 100.0, "thresholds": "shared"}),
    ("bats", {"lam": 1e6}),
    ("laps", {"lam": 1e6, "mean_weight": 13.0}),
]


@few
@given(seeds)
def test_a_part_without_effect_leaves_the_energy(seed: int) -> None:
    data = any_data(seed)
    expected = data.scores("energy").tolist()
    for detector_id, options in WITHOUT_EFFECT:
        assert agree(data.scores(detector_id, **options), expected, 1e-12), detector_id


@few
@given(seeds)
def test_without_pruning_the_scale_is_e(seed: int) -> None:
    data = any_data(seed)
    expected = energy(data, np.e * data.test).tolist()
    assert agree(data.scores("scale", percentile=0), expected, 1e-9)
    assert agree(data.scores("ash-s", percentile=0), expected, 1e-9)


@few
@given(seeds)
def test_vra_without_a_low_threshold_is_react(seed: int) -> None:
    data = any_data(seed)
    shared = data.scores("vra", low_percentile=0, high_percentile=80, thresholds="shared")
    np.testing.assert_array_equal(shared, data.scores("react", percentile=80))


@few
@given(seeds, st.floats(0, 3))
def test_laps_without_weights_is_bats(seed: int, lam: float) -> None:
    data = any_data(seed)
    np.testing.assert_array_equal(data.scores("laps", lam=lam, mean_weight=0), data.scores("bats", lam=lam))


def test_a_negative_limit_still_clips_from_above() -> None:
    data = replace(any_data(0), train=-1 - np.abs(any_data(0).train), test=-np.abs(any_data(0).test))
    limit = np.percentile(data.train, 50)
    assert limit < 0
    np.testing.assert_allclose(data.scores("react", percentile=50), energy(data, np.minimum(data.test, limit)))


# --- Invariances. ---


@few
@given(seeds, st.sampled_from(PERCENTILES), st.floats(1e-3, 1e3))
def test_the_sharpness_is_the_same_for_scaled_features(seed: int, percentile: float, factor: float) -> None:
    data = any_data(seed, relu=True, classes=1)
    data = replace(data, bias=np.zeros(1))
    scaled = replace(data, test=factor * data.test)
    for model_id in ("scale", "ash-s", "ash-p", "ash-b"):
        expected = factor * data.scores(model_id, percentile=percentile)
        np.testing.assert_allclose(scaled.scores(model_id, percentile=percentile), expected, rtol=1e-9)


@few
@given(seeds, st.sampled_from(PERCENTILES))
def test_ash_b_keeps_the_sum(seed: int, percentile: float) -> None:
    """Also where more features are 0 than are pruned."""
    data = any_data(seed, relu=True, classes=1)
    sums = replace(data, weight=np.ones_like(data.weight))
    np.testing.assert_allclose(sums.scores("ash-b", percentile=percentile), sums.scores("energy"), rtol=1e-9)


@few
@given(seeds)
def test_the_default_of_laps_does_not_depend_on_the_unit(seed: int) -> None:
    data = any_data(seed)
    other_unit = Data(7 * data.train, data.labels, 7 * data.test, data.weight / 7, data.bias)
    assert agree(other_unit.scores("laps"), data.scores("laps").tolist(), 1e-9)
    assert not agree(other_unit.scores("laps", mean_weight=0.5), data.scores("laps", mean_weight=0.5).tolist())


ALL: list[tuple[str, dict[str, Any]]] = [
    *((detector_id, {}) for detector_id in ("react", "ash-p", "ash-b", "ash-s", "scale", "vra", "bats", "laps")),
    ("ash-b", {"percentile": 30.0}),  # many more features are 0
]


@few
@given(seeds)
def test_the_order_of_the_features_does_not_matter(seed: int) -> None:
    """Also not where features are equal: after ReLU many are 0, and two are twins here."""
    data = any_data(seed, relu=True)
    for rows in (data.train, data.test):
        rows[:, 0] = rows[:, 1]
    order = np.random.default_rng(seed).permutation(8)
    other = Data(data.train[:, order], data.labels, data.test[:, order], data.weight[:, order], data.bias)
    for detector_id, options in ALL:
        assert agree(other.scores(detector_id, **options), data.scores(detector_id, **options).tolist(), 1e-9), (
            detector_id
        )


# --- Equal features. ---


@pytest.mark.parametrize(
    "features", [[3, 1, 1, 1, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0], [5] * 8, [4, 4, 4, 2, 2, 1, 0, 0]]
)
@pytest.mark.parametrize("percentile", [30.0, 50.0, 65.0, 80.0])
def test_equal_features_share_what_the_source_gives_to_any_of_them(features: list[int], percentile: float) -> None:
    """The score of one class is linear in the features, so that of the mean is the mean over all choices."""
    row = np.array(features, dtype=float)
    head = np.random.default_rng(0).normal(size=8)
    count = 8 - round(8 * percentile / 100)
    best = sum(sorted(features)[8 - count :])
    choices = [list(chosen) for chosen in combinations(range(8), count) if row[list(chosen)].sum() == best]
    pruned = np.mean([head[chosen] @ row[chosen] for chosen in choices])
    binary = np.mean([head[chosen].sum() * row.sum() / count for chosen in choices])
    data = Data(row[None], np.zeros(1, dtype=int), row[None], head[None], np.zeros(1))
    assert data.scores("ash-p", percentile=percentile) == pytest.approx(pruned, rel=1e-9)
    assert data.scores("ash-b", percentile=percentile) == pytest.approx(binary, rel=1e-9)
    assert data.scores("ash-s", percentile=percentile) == pytest.approx(pruned * np.exp(row.sum() / best), rel=1e-9)


@pytest.mark.parametrize(("features", "exponent"), [([0.0, 0, -1, -2], -300), ([-1e-9, -1, -1, -1], 300)])
def test_the_exponent_is_held(features: list[float], exponent: float) -> None:
    """Where the largest features add up to little, next to others far below 0."""
    row = np.array(features)[None]
    data = Data(row, np.zeros(1, dtype=int), row, np.ones((1, 4)), np.zeros(1))
    assert data.scores("scale", percentile=75) == pytest.approx(row.sum() * np.exp(exponent), rel=1e-9, abs=0)
    assert data.scores("ash-s", percentile=75) == pytest.approx(row.max() * np.exp(exponent), rel=1e-9, abs=0)


# --- Percentiles of a stream. ---


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.floats(-1e300, 1e300) | st.sampled_from([0.0, -0.0, 1.0]),
            st.sampled_from([0.0, 0.0, 1.0, 1e-300]),
            st.floats(0, 1),
        ),
        min_size=1,
    ),
    st.floats(0, 100) | st.sampled_from([0.0, 50.0, 100.0]),
    st.sampled_from([0, 1, 5, 2**22]),
)
def test_streamed_percentiles_of_columns_are_those_of_numpy(
    rows: list[tuple[float, ...]], percent: float, held: int
) -> None:
    stream = torch.tensor(rows, dtype=torch.float64)
    found = column_percentiles(lambda: iter(stream.split(3)), (len(rows), 3), (percent, 30.0), held)
    np.testing.assert_array_equal(found.numpy(), np.percentile(stream.numpy(), (percent, 30.0), axis=0) + 0.0)


# --- ReAct with other scores. ---


class Network(nn.Module):
    """Images -> features (24) -> logits (4), with the head by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(24, 4)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def odin_react(model: Network, images: Tensor, limit: float, temperature: float, epsilon: float) -> list[float]:
    """Image by image, with a plain backward pass."""

    def logits(image: Tensor) -> Tensor:
        return model.head(torch.minimum(model.features(image), torch.tensor(limit))) / temperature

    scores = []
    for image in images:
        image = image[None].clone().requires_grad_()
        nn.functional.cross_entropy(logits(image), logits(image).argmax(dim=1)).backward()
        moved = image.detach() - epsilon * image.grad.sign()
        scores.append(log_odds(logits(moved)[0].detach()))
    return scores


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "epsilon": 0.05}, {"react_percentile": 60.0, "temperature": 2.0}]
)
def test_odin_after_react_agrees_with_the_formula(options: dict[str, float]) -> None:
    model = Network().double().eval()
    images = torch.randn(100, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        train = Outputs(features=model.features(images[:60]), labels=torch.zeros(60, dtype=torch.int64))
    head = Head(model.head.weight.detach(), model.head.bias.detach())
    detector = create("odin+react", **options)
    test = Outputs(images=images[60:], features=model.features(images[60:]).detach())
    scores = detector.fit(train, head, model=model).score(test)
    limit = np.percentile(train.features.numpy(), detector.react_percentile)
    expected = odin_react(model, images[60:], limit, detector.temperature, detector.epsilon)
    assert agree(scores.numpy(), expected, 1e-9)
    plain = create("odin", **{name: value for name, value in options.items() if name != "react_percentile"})
    assert not agree(plain.fit(None, None, model=model).score(test).numpy(), expected)


@few
@given(seeds)
def test_msp_after_react_without_effect_is_msp(seed: int) -> None:
    data = any_data(seed)
    assert agree(data.scores("msp+react", react_percentile=100), data.scores("msp").tolist(), 1e-9)


# --- Options. ---


@pytest.mark.parametrize(
    ("detector_id", "option", "values", "allowed"),
    [
        *(
            (detector_id, "percentile", [-1, 99.5, "90", True, None], "from 0 to 99")
            for detector_id in ("ash-p", "ash-b", "ash-s", "scale")
        ),
        ("vra", "low_percentile", [-1, 101, "60", True, None], "from 0 to 100"),
        ("vra", "high_percentile", [59.9, 100.5, "90", True, None], "from low_percentile, 60.0, to 100"),
        ("vra", "thresholds", ["pooled", None, 1], "'per-feature' or 'shared'"),
        ("bats", "lam", [-0.1, "1", True, None, float("inf")], "from 0"),
        ("laps", "lam", [-0.1, "1", True, None, float("nan")], "from 0"),
        ("laps", "mean_weight", [-13, "13", True, float("inf")], "from 0"),
        ("laps", "deviation_weight", [-1, "1", True, None], "from 0"),
        ("msp+react", "react_percentile", [-1, 100.5, "90", True, None], "from 0 to 100"),
        ("odin+react", "react_percentile", [-1, 100.5, "90", True, None], "from 0 to 100"),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any], allowed: str) -> None:
    for value in values:
        with pytest.raises(
            ValueError, match=rf"{detector_id.replace('+', '.')}: {option} is .*; allowed: .*{allowed}"
        ) as error:
            create(detector_id, **{option: value})
        assert repr(value) in str(error.value)


def test_the_default_weight_of_laps_is_as_documented() -> None:
    data = any_data(0)
    weight = 0.3 / data.train.mean(axis=0).std()
    assert agree(data.scores("laps"), data.scores("laps", mean_weight=weight).tolist(), 1e-9)
