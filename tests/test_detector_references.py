"""Every detector against an independent one: plain loops written from the formulas, scipy, scikit-learn, pytorch-ood;
and the laws that the formulas imply."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from scipy.linalg import pinv
from scipy.special import log_softmax, logsumexp, rel_entr, softmax
from sklearn.covariance import EmpiricalCovariance
from torch import nn

from detectors import Head, Outputs, available, create
from detectors.shaping import percentile

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Data:
    """Features (N, D) and labels (N,) of training images, features (M, D) of test images, weights of a head."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight.T + self.bias

    def outputs(self, features: np.ndarray, labels: np.ndarray | None = None) -> Outputs:
        return Outputs(features=features, logits=self.logits(features), labels=labels)

    def scores(self, id: str, **options: Any) -> np.ndarray:
        head = Head(torch.from_numpy(self.weight), torch.from_numpy(self.bias))
        detector = create(id, **options)
        detector.batch_rows = 37
        return detector.fit(self.outputs(self.train, self.labels), head).score(self.outputs(self.test)).numpy()


def make_data(rows: int, width: int, classes: int, seed: int = 0, spread: float = 1.0) -> Data:
    random = np.random.default_rng(seed)
    means = spread * random.normal(size=(classes, width))
    labels = np.arange(rows) % classes
    train = means[labels] + random.normal(size=(rows, width)) * random.uniform(0.5, 2.0, width)
    near, far = means[np.arange(20) % classes] + random.normal(size=(20, width)), 3 * random.normal(size=(20, width))
    test = np.concatenate([train[:7], near, far])
    return Data(
        train, labels, test, random.normal(size=(classes, width)) / math.sqrt(width), random.normal(size=classes)
    )


def changed(data: Data, change: Callable[[np.ndarray], np.ndarray]) -> Data:
    return Data(change(data.train), data.labels, change(data.test), data.weight, data.bias)


def without_class(data: Data, label: int) -> Data:
    others = data.labels != label
    return Data(data.train[others], data.labels[others], data.test, data.weight, data.bias)


def relu_in_single_precision(features: np.ndarray) -> np.ndarray:
    return np.maximum(features + 0.5, 0).astype(np.float32).astype(np.float64)


def low_rank(features: np.ndarray) -> np.ndarray:
    return features[:, :5] @ np.random.default_rng(1).normal(size=(5, features.shape[1]))


def dead_and_duplicated(features: np.ndarray) -> np.ndarray:
    features = features.copy()
    features[:, 1] = 0.0
    features[:, 2] = features[:, 3]
    return features


DATA = {
    "random": make_data(300, 12, 5),
    "ReLU": changed(make_data(400, 32, 10, spread=2.0), relu_in_single_precision),
    "low rank": changed(make_data(300, 20, 5), low_rank),
    "more dimensions than images": make_data(30, 40, 4),
    "dead and duplicated dimensions": changed(make_data(300, 12, 5), dead_and_duplicated),
    "two images a class": make_data(8, 3, 4, spread=5.0),
    "one class": make_data(100, 6, 1),
    "far from the origin": changed(make_data(300, 8, 3), lambda features: features + 1000.0),
    "a class without images": without_class(make_data(200, 8, 3), 1),
}


# --- The references: one image and one class at a time, as the formulas read. ---


def msp(data: Data) -> list[float]:
    rows = data.logits(data.test).astype(np.longdouble)
    return [float(max(row - row.max() - np.log(np.exp(row - row.max()).sum()))) for row in rows]


def max_logit(data: Data) -> list[float]:
    return [max(row) for row in data.logits(data.test)]


def energy(data: Data, temperature: float = 1.0) -> list[float]:
    return [temperature * logsumexp(row / temperature) for row in data.logits(data.test)]


def kl_matching(data: Data, classes: str = "predicted") -> list[float]:
    logits = data.logits(data.train)
    members = data.labels if classes == "true" else np.array([int(np.argmax(row)) for row in logits])
    templates = [softmax(logits[members == c], axis=1).mean(axis=0) for c in sorted(set(members))]
    return [-min(rel_entr(softmax(row), template).sum() for template in templates) for row in data.logits(data.test)]


def unit_rows(features: np.ndarray) -> np.ndarray:
    return np.array([row / math.sqrt(sum(row**2)) for row in features])


def gaussian(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    """The squared distance to the nearest class mean, by scikit-learn's pseudo-inverse."""
    means = {c: features[labels == c].mean(axis=0) for c in set(labels.tolist())}
    centred = np.array([row - means[c] for row, c in zip(features, labels.tolist(), strict=True)])
    precision = EmpiricalCovariance(assume_centered=True).fit(centred).precision_
    return lambda row: min((row - mean) @ precision @ (row - mean) for mean in means.values())


def mahalanobis(data: Data, normalise: bool = False) -> list[float]:
    train, test = (unit_rows(data.train), unit_rows(data.test)) if normalise else (data.train, data.test)
    distance = gaussian(train, data.labels)
    return [-distance(row) for row in test]


def relative_mahalanobis(data: Data, normalise: bool = False, global_fit: str = "normalised") -> list[float]:
    train, test = (unit_rows(data.train), unit_rows(data.test)) if normalise else (data.train, data.test)
    background = gaussian(train if global_fit == "normalised" else data.train, np.zeros_like(data.labels))
    return [score + background(row) for score, row in zip(mahalanobis(data, normalise), test, strict=True)]


def vim(data: Data, dimension: int | None = None) -> list[float]:
    origin = -pinv(data.weight) @ data.bias
    dimension = data.train.shape[1] // 2 if dimension is None else dimension
    _, _, directions = np.linalg.svd(data.train - origin)

    def residual(row: np.ndarray) -> float:
        row = row - origin
        return float(np.linalg.norm(row - sum((row @ direction) * direction for direction in directions[:dimension])))

    residuals = sum(residual(row) for row in data.train)
    is_zero = residuals < 1e-9 * np.linalg.norm(data.train - origin)
    alpha = 0.0 if is_zero else sum(max(row) for row in data.logits(data.train)) / residuals
    return [logsumexp(data.logits(row)) - alpha * residual(row) for row in data.test]


def react(data: Data, percentile: float = 99.0) -> list[float]:
    limit = np.percentile(data.train, percentile)
    return [logsumexp(data.logits(np.minimum(row, limit))) for row in data.test]


def knn(data: Data, k: int = 10) -> list[float]:
    train, test = unit_rows(data.train), unit_rows(data.test)
    k = min(k, len(train))
    return [-sorted(math.dist(row, other) for other in train)[k - 1] for row in test]


def cosines(data: Data) -> list[list[float]]:
    means = [data.train[data.labels == c].mean(axis=0) for c in sorted(set(data.labels.tolist()))]
    norm = np.linalg.norm
    return [[row @ mean / (norm(row) * norm(mean)) for mean in means] for row in data.test]


def cosine(data: Data) -> list[float]:
    return [max(row) for row in cosines(data)]


def relative_cosine(data: Data) -> list[float]:
    return [max(log_softmax(row)) for row in cosines(data)]


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("msp", {}, msp),
    ("max-logit", {}, max_logit),
    ("energy", {}, energy),
    ("energy", {"temperature": 2.5}, energy),
    ("kl-matching", {}, kl_matching),
    ("kl-matching", {"classes": "true"}, kl_matching),
    ("mahalanobis", {}, mahalanobis),
    ("mahalanobis++", {}, partial(mahalanobis, normalise=True)),
    ("relative-mahalanobis", {}, relative_mahalanobis),
    ("relative-mahalanobis++", {}, partial(relative_mahalanobis, normalise=True)),
    ("relative-mahalanobis++", {"global_fit": "raw"}, partial(relative_mahalanobis, normalise=True)),
    ("vim", {}, vim),
    ("vim", {"dimension": 0}, vim),
    ("vim", {"dimension": 2}, vim),
    ("react", {}, react),
    ("react", {"percentile": 60.0}, react),
    ("knn", {}, knn),
    ("knn", {"k": 1}, knn),
    ("knn", {"k": 7}, knn),
    ("cosine", {}, cosine),
    ("relative-cosine", {}, relative_cosine),
]


def test_every_detector_has_a_reference() -> None:
    assert {id for id, _, _ in REFERENCES} | {"odin"} == set(available())


def agree(scores: np.ndarray, expected: list[float], digits: float = 1e-6) -> bool:
    """To a relative 1e-6; differences of large terms, near 0, to that share of the largest score."""
    return np.allclose(scores, expected, rtol=digits, atol=1e-3 * digits * np.abs(expected).max() + 1e-12)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    ("id", "options", "reference"), REFERENCES, ids=[f"{id}-{options}" for id, options, _ in REFERENCES]
)
def test_scores_agree_with_the_formula(
    id: str, options: dict[str, Any], reference: Callable[..., list[float]], kind: str
) -> None:
    assert agree(DATA[kind].scores(id, **options), reference(DATA[kind], **options))


def test_the_comparison_notices_a_wrong_denominator() -> None:
    data = DATA["random"]
    classes, rows = data.weight.shape[0], len(data.labels)
    wrong = np.array(mahalanobis(data)) * (rows - classes) / rows
    assert not agree(data.scores("mahalanobis"), wrong.tolist())


# --- pytorch-ood, where it agrees: its outlier scores have the other sign, and no 1/N in its covariances. ---


def test_scores_agree_with_pytorch_ood() -> None:
    data = DATA["ReLU"]
    rows = len(data.labels)
    train, test, labels = (torch.from_numpy(values) for values in (data.train, data.test, data.labels))
    train_logits, test_logits = (torch.from_numpy(data.logits(values)) for values in (data.train, data.test))
    weight, bias = torch.from_numpy(data.weight), torch.from_numpy(data.bias)

    def same(id: str, outlier_scores: torch.Tensor, digits: float = 1e-6, **options: Any) -> None:
        assert agree(data.scores(id, **options), (-outlier_scores).tolist(), digits), id

    same("msp", -(-peer.MaxSoftmax(None).predict_logits(test_logits)).log())
    same("max-logit", peer.MaxLogit(None).predict_logits(test_logits))
    same("energy", peer.EnergyBased(None, t=2.0).predict_logits(test_logits), temperature=2.0)
    same("kl-matching", peer.KLMatching(None).fit_logits(train_logits).predict_logits(test_logits))
    same("knn", peer.KNN(None, k=5).fit_features(train, labels).predict_features(test), k=5)
    react = peer.ReAct(None, partial(nn.functional.linear, weight=weight, bias=bias), percentile=0.95)
    same("react", react.fit_feature_maps(train, labels).predict_feature_maps(test), percentile=95)
    # These three compute in single precision.
    train, test = train.float(), test.float()
    same("mahalanobis", 2 * rows * peer.Mahalanobis(None).fit_features(train, labels).predict_features(test), 1e-3)
    same("relative-mahalanobis", rows * peer.RMD(None).fit_features(train, labels).predict_features(test), 1e-3)
    same("vim", peer.ViM(None, 9, weight, bias).fit_features(train, labels).predict_features(test), 1e-3, dimension=9)


# --- ODIN: image by image, with a plain backward pass. ---


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    return nn.Sequential(*layers).double().eval()


def odin(model: nn.Module, images: torch.Tensor, temperature: float, epsilon: float) -> list[float]:
    scores = []
    for image in images:
        image = image[None].clone().requires_grad_()
        logits = model(image) / temperature
        nn.functional.cross_entropy(logits, logits.argmax(dim=1)).backward()
        moved = image.detach() - epsilon * image.grad.sign()
        scores.append(float((model(moved) / temperature).softmax(dim=1).max().log().detach()))
    return scores


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "epsilon": 0.05}, {"epsilon": 0.0}])
def test_odin_agrees_with_the_formula(options: dict[str, float]) -> None:
    images = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    detector = create("odin", **options)
    scores = detector.fit(None, None, model=small_network()).score(Outputs(images=images))
    expected = odin(small_network(), images, detector.temperature, detector.epsilon)
    assert agree(scores.numpy(), expected, 1e-12)


def test_odin_moves_images_towards_confidence() -> None:
    images = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    still, moved = (
        create("odin", epsilon=epsilon).fit(None, None, model=small_network()).score(Outputs(images=images))
        for epsilon in (0.0, 0.01)
    )
    assert (moved > still).all()


# --- Laws. ---


def any_data(seed: int, rows: int = 60, width: int = 6, classes: int = 3) -> Data:
    return make_data(rows, width, classes, seed)


@few
@given(seeds)
def test_mahalanobis_is_the_same_in_any_coordinates(seed: int) -> None:
    data = any_data(seed)
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(6, 6)))
    linear = turn * random.uniform(0.1, 10, 6)
    for id in ("mahalanobis", "relative-mahalanobis"):
        assert agree(changed(data, lambda features: features @ linear + 1.0).scores(id), data.scores(id))


@few
@given(seeds)
def test_normalised_detectors_see_the_direction_only(seed: int) -> None:
    data = any_data(seed)
    random = np.random.default_rng(seed)

    def stretched(features: np.ndarray) -> np.ndarray:
        return features * 10 ** random.uniform(-6, 6, (len(features), 1))

    for id in ("mahalanobis++", "relative-mahalanobis++", "knn"):
        assert agree(changed(data, stretched).scores(id), data.scores(id))
    assert not agree(changed(data, stretched).scores("mahalanobis"), data.scores("mahalanobis"))


@few
@given(seeds)
def test_directions_keep_their_scores_under_a_rotation(seed: int) -> None:
    data = any_data(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))
    for id in ("knn", "cosine", "relative-cosine", "mahalanobis++"):
        assert agree(changed(data, lambda features: features @ turn).scores(id), data.scores(id))


@few
@given(seeds, st.floats(-100, 100))
def test_a_shift_of_all_logits(seed: int, shift: float) -> None:
    logits = 3 * np.random.default_rng(seed).normal(size=(30, 5))

    def scores(id: str, logits: np.ndarray) -> np.ndarray:
        return create(id).fit(Outputs(logits=logits), None).score(Outputs(logits=logits)).numpy()

    for id in ("msp", "kl-matching"):
        np.testing.assert_allclose(scores(id, logits + shift), scores(id, logits), rtol=1e-9, atol=1e-12)
    for id in ("energy", "max-logit"):
        np.testing.assert_allclose(scores(id, logits + shift), scores(id, logits) + shift, rtol=1e-12, atol=1e-12)


@few
@given(seeds)
def test_one_class_has_no_relative_distance(seed: int) -> None:
    data = any_data(seed, classes=1)
    for id in ("relative-mahalanobis", "relative-mahalanobis++"):
        assert (data.scores(id) == 0).all()


@few
@given(seeds, st.integers(4, 60))
def test_the_mean_squared_distance_to_the_own_class_is_the_rank(seed: int, rows: int) -> None:
    data = any_data(seed, rows=rows)
    own = np.zeros_like(data.labels)  # one class, so that the nearest mean is the own one
    alone = Data(data.train, own, data.train, data.weight[:1], data.bias[:1])
    assert -alone.scores("mahalanobis").mean() == pytest.approx(min(6, rows - 1))


@few
@given(seeds)
def test_msp_does_not_saturate(seed: int) -> None:
    """The logarithm keeps images apart that a probability of 1 would tie."""
    gaps = np.sort(np.random.default_rng(seed).uniform(40, 600, 20))
    logits = np.stack([gaps, np.zeros(20)], axis=1)
    scores = create("msp").fit(None, None).score(Outputs(logits=logits)).numpy()
    assert (np.diff(scores) > 0).all()


def test_knn_keeps_its_digits_for_near_duplicates() -> None:
    train = torch.eye(3, dtype=torch.float64)
    test = train + 1e-10 * torch.ones(3, 3)
    scores = create("knn", k=1).fit(Outputs(features=train), None).score(Outputs(features=test))
    np.testing.assert_allclose(scores, [-math.sqrt(2) * 1e-10] * 3, rtol=1e-6)
    again = create("knn", k=1).fit(Outputs(features=test), None).score(Outputs(features=test))
    assert (again.abs() < 1e-15).all()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1),
    st.floats(0, 100),
    st.sampled_from([0, 1, 5, 2**24]),
)
def test_a_streamed_percentile_is_that_of_numpy(values: list[float], percent: float, held: int) -> None:
    stream = torch.tensor(values, dtype=torch.float64) / 4  # differences must not overflow, in numpy as here
    found = percentile(lambda: iter(stream.split(3)), len(values), percent, held)
    assert found == pytest.approx(np.percentile(stream.numpy(), percent), rel=1e-12, abs=1e-300)
