"""Gaussian detectors beside scikit-learn, scipy and pytorch-ood, and the laws that their formulas imply."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from scipy.linalg import pinv
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score
from torch import Tensor

from detectors import Outputs, create, mixture
from detectors.clusters import halved_by_variance, k_means, move_to_nearest
from detectors.gaussian import Moments
from detectors.mixture import smallest_jitter
from detectors.numerics import unit
from detectors.subspace import principal_axes
from tests.references import gaussian as references
from tests.references.data import DATA, Data, agree, changed, make_data

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


def any_data(seed: int, rows: int = 90, width: int = 6, classes: int = 3, spread: float = 1.0) -> Data:
    return make_data(rows, width, classes, seed, spread)


def as_one_class(data: Data) -> Data:
    return Data(data.train, np.zeros_like(data.labels), data.test, data.weight[:1], data.bias[:1])


def any_map(seed: int, width: int = 6) -> np.ndarray:
    """An invertible matrix."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.normal(size=(width, width)))[0] for _ in range(2))
    return left * random.uniform(0.3, 3, width) @ right


def stretched(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    random = np.random.default_rng(seed)
    return lambda features: features * 10 ** random.uniform(-6, 6, (len(features), 1))


# --- A shared covariance. ---


def test_the_distance_is_that_of_scikit_learn() -> None:
    data = as_one_class(DATA["random"])
    expected = -EmpiricalCovariance().fit(data.train).mahalanobis(data.test)
    assert agree(data.scores("mahalanobis"), expected.tolist())


@few
@given(seeds)
def test_the_mean_squared_distance_to_the_own_class_is_the_width(seed: int) -> None:
    data = any_data(seed, spread=100.0)  # far apart, so that the nearest mean is the own one
    alone = replace(data, test=data.train)
    assert -alone.scores("mahalanobis").mean() == pytest.approx(6)
    assert -alone.scores("ssd", clusters=1).mean() == pytest.approx(6)


@few
@given(seeds)
def test_only_raw_features_have_the_same_distance_in_any_coordinates(seed: int) -> None:
    data = any_data(seed)
    mapped = changed(data, lambda features: features @ any_map(seed))
    assert agree(mapped.scores("mahalanobis"), data.scores("mahalanobis"))
    assert not agree(mapped.scores("mahalanobis++"), data.scores("mahalanobis++"), 1e-3)


@few
@given(seeds)
def test_the_global_covariance_is_the_sum_of_those_within_and_between_classes(seed: int) -> None:
    data = any_data(seed)
    batch = torch.from_numpy(data.train), torch.from_numpy(data.labels)
    pooled = Moments.of(lambda: iter([batch]), 3).pooled()
    np.testing.assert_allclose(pooled.covariance, np.cov(data.train.T, bias=True), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(pooled.means[0], data.train.mean(axis=0), rtol=1e-9, atol=1e-12)


@few
@given(seeds)
def test_constant_and_repeated_dimensions_change_no_distance(seed: int) -> None:
    data = any_data(seed)

    def widened(features: np.ndarray) -> np.ndarray:
        return np.concatenate([features, features[:, [2, 2]], np.full((len(features), 1), 0.3)], axis=1)

    wide = replace(changed(data, widened), weight=widened(data.weight))
    for detector_id in ("mahalanobis", "relative-mahalanobis"):
        assert agree(wide.scores(detector_id), data.scores(detector_id))


@few
@given(seeds)
def test_normalisation_undoes_norms_of_any_size(seed: int) -> None:
    """Where the norms say nothing, raw distances lose and normalised ones do not."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(4, 24))
    labels = np.arange(800) % 4

    def clusters(centres: np.ndarray) -> np.ndarray:
        norms = random.lognormal(0.0, 0.7, (len(centres), 1))
        return norms * (centres + 0.15 * random.normal(size=centres.shape))

    known, foreign = clusters(means[np.arange(200) % 4]), clusters(random.normal(size=(200, 24)))
    test = np.concatenate([known, foreign])
    data = Data(clusters(means[labels]), labels, test, random.normal(size=(4, 24)), np.zeros(4))
    is_known = np.arange(400) < 200
    raw, normalised = (
        roc_auc_score(is_known, data.scores(detector_id)) for detector_id in ("mahalanobis", "mahalanobis++")
    )
    assert normalised > 0.999
    assert raw < normalised


# --- A covariance for each class. ---


def test_the_log_density_is_that_of_scipy() -> None:
    data = DATA["random"]
    classes = [data.train[data.labels == label] for label in range(5)]
    peaks = [multivariate_normal(rows.mean(axis=0), np.cov(rows.T)).logpdf(data.test) for rows in classes]
    assert agree(data.scores("gmm"), np.max(peaks, axis=0).tolist(), 1e-9)


def test_the_log_density_is_that_of_scipy_where_jitter_is_large() -> None:
    """Single images have no covariance, and features of 1e8 need a jitter that scipy too can invert."""
    data = replace(any_data(0), labels=np.arange(90))
    data = changed(data, lambda features: 1e8 * features)
    data = replace(data, weight=np.ones((90, 6)), bias=np.zeros(90))
    cutoff = max((abs(row).max() * np.finfo(float).eps) ** 2 for row in data.train)
    jitter = smallest_jitter(torch.tensor([cutoff]))
    peaks = [multivariate_normal(mean, jitter * np.eye(6)).logpdf(data.test) for mean in data.train]
    assert agree(data.scores("gmm"), np.max(peaks, axis=0).tolist(), 1e-9)


def test_the_log_density_of_one_class_is_that_of_pytorch_ood() -> None:
    # It has 1/N in the covariances, and sums over the classes with priors: the same only for one class, and features
    # that are nearer to their mean by the missing factor.
    data = as_one_class(DATA["random"])
    rows = len(data.train)
    mean = data.train.mean(axis=0)
    nearer = replace(data, train=mean + (data.train - mean) * np.sqrt((rows - 1) / rows))
    other = peer.GMM(None, reg=0.0).fit_features(torch.from_numpy(data.train), torch.from_numpy(data.labels))
    expected = -other.predict_features(torch.from_numpy(data.test))
    assert agree(nearer.scores("gmm"), expected.tolist(), 1e-9)


@few
@given(seeds)
def test_equal_covariances_give_the_order_of_the_shared_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    around, means = random.normal(size=(30, 6)), 3 * random.normal(size=(3, 6))
    train = np.concatenate([around + mean for mean in means])
    test = 3 * random.normal(size=(40, 6))
    data = Data(train, np.arange(90) // 30, test, random.normal(size=(3, 6)), np.zeros(3))
    # 1/N within classes of 30 images in the one, 1/(N_c - 1) in the other
    unbiased = np.cov(around.T)
    peak = -0.5 * (6 * np.log(2 * np.pi) + np.linalg.slogdet(unbiased)[1])
    assert agree(data.scores("gmm"), (peak + 0.5 * 29 / 30 * data.scores("mahalanobis")).tolist())


@few
@given(seeds)
def test_a_map_of_the_features_adds_the_log_of_its_volume(seed: int) -> None:
    data = any_data(seed)
    linear = any_map(seed)
    mapped = changed(data, lambda features: features @ linear + 1.0)
    volume = np.linalg.slogdet(linear)[1]
    assert agree(mapped.scores("gmm"), (data.scores("gmm") - volume).tolist())


@few
@given(seeds)
def test_normalised_densities_and_clusters_see_the_direction_only(seed: int) -> None:
    data = any_data(seed)
    options: dict[str, dict[str, Any]] = {"mahalanobis++": {}, "gmm++": {}, "ssd": {"clusters": 4}}
    for detector_id, named in options.items():
        assert agree(changed(data, stretched(seed)).scores(detector_id, **named), data.scores(detector_id, **named))
    assert not agree(changed(data, stretched(seed)).scores("gmm"), data.scores("gmm"))


def test_a_jitter_is_added_only_where_a_covariance_is_singular() -> None:
    assert smallest_jitter(torch.tensor([])) == 0.0
    for cutoff, jitter in ((0.0, 1e-15), (1e-14, 1e-13), (2e-14, 1e-13), (0.2, 1.0), (1.0, 10.0), (3e20, 1e21)):
        assert smallest_jitter(torch.tensor([0.0, cutoff], dtype=torch.float64)) == pytest.approx(jitter, rel=1e-12)


@few
@given(seeds, st.integers(8, 30))
def test_singular_covariances_have_digits(seed: int, rows: int) -> None:
    """Neither the order of the images nor a rotation changes more than the last digits of scores."""
    data = any_data(seed, rows=rows, width=20, classes=2)
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(20, 20)))
    order = random.permutation(rows)
    for detector_id in ("gmm", "gmm++"):
        expected = data.scores(detector_id).tolist()
        assert agree(
            replace(data, train=data.train[order], labels=data.labels[order]).scores(detector_id), expected, 1e-9
        )
        assert agree(changed(data, lambda features: features @ turn).scores(detector_id), expected, 1e-7)


def test_blocks_and_gathered_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {kind: DATA[kind].scores("gmm").tolist() for kind in ("random", "a class without images")}
    for values in (1, 1000):
        monkeypatch.setattr(mixture, "_HELD_VALUES", values)
        for kind, scores in expected.items():
            assert agree(DATA[kind].scores("gmm"), scores, 1e-9)


# --- Clusters. ---


def stream(vectors: np.ndarray, batch: int = 17) -> Callable[[Tensor], Iterator[tuple[Tensor, Tensor]]]:
    rows = torch.from_numpy(vectors)
    return lambda labels: zip(rows.split(batch), labels.split(batch), strict=True)


def unit_vectors(seed: int, rows: int = 200, width: int = 5) -> np.ndarray:
    data = any_data(seed, rows=rows, width=width, classes=6, spread=2.0)
    return unit(torch.from_numpy(data.train)).numpy()


def same_partition(labels: Tensor, others: Tensor) -> bool:
    pairs = set(zip(labels.tolist(), others.tolist(), strict=True))
    return len(pairs) == len(labels.unique()) == len(others.unique())


@few
@given(seeds)
def test_one_cluster_is_one_class(seed: int) -> None:
    data = any_data(seed)
    assert agree(data.scores("ssd"), as_one_class(data).scores("mahalanobis++").tolist(), 1e-12)


@few
@given(seeds)
def test_clusters_that_are_classes_give_their_distance(seed: int) -> None:
    random = np.random.default_rng(seed)
    means = 10 * np.eye(6)[:4]
    labels = random.integers(0, 4, 100)
    labels[:4] = range(4)
    train, test = (means[own] + random.normal(size=(len(own), 6)) for own in (labels, labels[:20]))
    data = Data(train, labels, test, random.normal(size=(4, 6)), np.zeros(4))
    assert agree(data.scores("ssd", clusters=4), data.scores("mahalanobis++").tolist(), 1e-9)


@few
@given(seeds, st.integers(2, 12))
def test_clusters_are_those_of_scikit_learn(seed: int, clusters: int) -> None:
    vectors = unit_vectors(seed)
    start = halved_by_variance(stream(vectors), len(vectors), clusters)
    found = k_means(stream(vectors), len(vectors), clusters)
    assert len(start.unique()) == clusters
    assume(len(found.unique()) == clusters)  # it gives a cluster without vectors the farthest one
    centres = np.array([vectors[start.numpy() == label].mean(axis=0) for label in range(clusters)])
    other = KMeans(clusters, init=centres, n_init=1, tol=0.0, algorithm="lloyd").fit(vectors)
    assert same_partition(found, torch.from_numpy(other.labels_))


@few
@given(seeds, st.integers(2, 12))
def test_neither_order_nor_batches_change_the_clusters(seed: int, clusters: int) -> None:
    vectors = unit_vectors(seed)
    order = np.random.default_rng(seed).permutation(len(vectors))
    found = k_means(stream(vectors), len(vectors), clusters)
    assert same_partition(k_means(stream(vectors[order], batch=200), len(vectors), clusters), found[order])


@few
@given(seeds, st.integers(2, 12))
def test_order_does_not_break_ties(seed: int, clusters: int) -> None:
    """Directions of a cube, each many times and off by round-off: distances, scatters, variances and cuts are equal."""
    random = np.random.default_rng(seed)
    cube = np.array(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3)).reshape(3, -1).T
    vectors = unit(torch.from_numpy(np.tile(cube, (random.integers(3, 9), 1)))).numpy()
    order = random.permutation(len(vectors))
    found = k_means(stream(vectors), len(vectors), clusters)
    shifted = vectors[order] + 1e-15 * random.normal(size=vectors.shape)
    assert same_partition(k_means(stream(shifted, batch=5), len(vectors), clusters), found[order])


def test_a_vector_between_two_means_goes_to_the_first() -> None:
    vectors = np.full((40, 2), np.sqrt(0.5)) + 1e-15 * np.random.default_rng(0).normal(size=(40, 2))
    moved, sizes, _ = move_to_nearest(stream(vectors), torch.zeros(40), torch.eye(2, dtype=torch.float64))
    assert not moved.any()
    assert sizes.tolist() == [40, 0]


def test_there_are_no_more_clusters_than_features_that_differ() -> None:
    vectors = np.tile(np.eye(3), (10, 1))
    found = k_means(stream(vectors), 30, 8)
    assert same_partition(found, torch.arange(30) % 3)


def test_a_cluster_that_loses_all_vectors_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    start = torch.tensor([0, 0, 1, 1, 2, 2])  # the mean of the second lies between the two others
    monkeypatch.setattr("detectors.clusters.halved_by_variance", lambda *_: start)
    angles = np.array([-1.15, -1.05, -1.1, 1.1, 1.15, 1.05])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = k_means(stream(vectors, batch=4), 6, 3)
    assert same_partition(found, torch.tensor([0, 0, 0, 1, 1, 1]))


def test_the_number_of_clusters_is_held_to_the_images() -> None:
    outputs = Outputs(features=np.random.default_rng(0).normal(size=(9, 4)))
    create("ssd", clusters=9).fit(outputs, None)
    with pytest.raises(ValueError, match="clusters is 10; allowed: an integer from 1 to 9"):
        create("ssd", clusters=10).fit(outputs, None)
    for value in (0, -1, 2.0, "3", True, None):
        with pytest.raises(ValueError, match=f"clusters is {value!r}; allowed: an integer from 1 to N"):
            create("ssd", clusters=value)


# --- Features in other units. ---


def units_of(seed: int, width: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "powers of two":
        return 2.0 ** random.integers(-40, 41, width)
    if kind == "one feature":
        return np.where(np.arange(width) == random.integers(width), 10.0 ** random.choice([-8, 8]), 1.0)
    return 10.0 ** random.uniform(-8, 8, width)


@few
@given(seeds, st.sampled_from(["powers of two", "one feature", "any"]), st.sampled_from([0.0, 5.0]))
def test_units_of_the_features_change_no_gaussian_score(seed: int, kind: str, offset: float) -> None:
    data = changed(any_data(seed, width=12), lambda features: features + offset)
    units = units_of(seed, 12, kind)
    for detector_id in ("mahalanobis", "relative-mahalanobis"):
        scores = changed(data, lambda features: features * units).scores(detector_id)
        assert agree(scores, data.scores(detector_id).tolist(), 1e-7), detector_id
    densities = changed(data, lambda features: features * units).scores("gmm")
    assert agree(densities + np.log(units).sum(), data.scores("gmm").tolist(), 1e-7)


@few
@given(seeds, st.sampled_from(["powers of two", "one feature", "any"]))
def test_constant_and_repeated_features_count_once_in_any_unit(seed: int, kind: str) -> None:
    data = any_data(seed)

    def widened(features: np.ndarray) -> np.ndarray:
        parts = [features, features[:, [2]], np.full((len(features), 1), 0.3), np.zeros((len(features), 1))]
        return np.concatenate(parts, axis=1)

    wide = replace(changed(data, widened), weight=widened(data.weight))
    wide = changed(wide, lambda features: features * units_of(seed, 9, kind))
    for detector_id in ("mahalanobis", "relative-mahalanobis"):
        assert agree(wide.scores(detector_id), data.scores(detector_id).tolist())


def test_one_feature_in_another_unit_drops_no_direction() -> None:
    """One of 64 features is 1e7 times as large as the others. Cholesky's factor keeps the digits of all of them."""
    random = np.random.default_rng(0)
    labels = np.arange(600) % 4
    means = 3 * random.normal(size=(4, 64)) / 8
    train, known = (means[own] + random.normal(size=(len(own), 64)) for own in (labels, labels[:300]))
    foreign = means[labels[:300]] + random.normal(size=(300, 64)) + random.normal(size=(300, 64))
    data = Data(train, labels, np.concatenate([known, foreign]), random.normal(size=(4, 64)), np.zeros(4))
    data = changed(data, lambda features: features * np.where(np.arange(64) == 5, 1e7, 1.0))
    centred = data.train - np.array([data.train[labels == label].mean(axis=0) for label in range(4)])[labels]
    factor = np.linalg.cholesky(centred.T @ centred / 600)
    offsets = data.test[:, None] - np.array([data.train[labels == label].mean(axis=0) for label in range(4)])
    white = np.linalg.solve(factor, offsets.reshape(-1, 64).T).T.reshape(offsets.shape)
    is_known = np.arange(600) < 300
    expected = -(white**2).sum(axis=2).min(axis=1)
    assert agree(data.scores("mahalanobis"), expected.tolist())
    for scores in (expected, data.scores("gmm")):
        assert roc_auc_score(is_known, scores) > 0.99


@pytest.mark.parametrize("unit", [1e-8, 1e7, 1e9])
@pytest.mark.parametrize("kind", ["random", "ReLU", "more dimensions than images"])
def test_a_feature_in_another_unit_leaves_the_principal_subspace_its_dimension(kind: str, unit: float) -> None:
    data = DATA[kind]
    units = np.where(np.arange(data.train.shape[1]) == 4, unit, 1.0)
    data = replace(changed(data, lambda features: features * units), weight=data.weight / units)
    for dimension in (2, data.train.shape[1] // 3):
        origin = -pinv(data.weight) @ data.bias
        leading = np.linalg.svd(data.train - origin)[2][:dimension]
        centred = data.test - origin
        residuals = np.linalg.norm(centred - (centred @ leading.T) @ leading, axis=1)
        assert agree(data.scores("residual", dimension=dimension), (-residuals).tolist(), 1e-5)
        assert agree(data.scores("vim", dimension=dimension), references.vim(data, dimension), 1e-5)


@few
@given(seeds, st.sampled_from([1e-9, 1e-7, 1e7, 1e9]))
def test_principal_axes_are_those_of_the_features_in_their_own_units(seed: int, unit: float) -> None:
    """By the singular value decomposition of the features, which loses half as many digits as their scatter."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(80, 8)) * np.arange(1, 9)
    features[:, 3] *= unit
    features[:, 7] = features[:, 6]
    axes, rank = principal_axes(torch.from_numpy(features.T @ features))
    _, _, expected = np.linalg.svd(features)
    assert rank == 7
    for axis, other in zip(axes.T.flip(0).numpy()[:7], expected[:7], strict=True):
        assert abs(axis @ other) == pytest.approx(1.0, abs=1e-6)
