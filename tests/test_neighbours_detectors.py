"""Neighbours and prototypes: against pytorch-ood and faiss, and the laws that the formulas imply."""

import math
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from torch import nn

from detectors import Head, Outputs, create
from detectors.neighbours import default_kept, largest, lots
from tests.references.data import DATA, Data, agree, make_data, unit_rows

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


def fitted_scores(detector_id: str, train: np.ndarray, test: np.ndarray, **options: Any) -> np.ndarray:
    """Scores of features alone; the energies are those of logits that are 0, of two classes."""

    def outputs(features: np.ndarray) -> Outputs:
        return Outputs(features=features, logits=np.zeros((len(features), 2)))

    return create(detector_id, **options).fit(outputs(train), None).score(outputs(test)).numpy()


# --- Peers. ---


@pytest.mark.parametrize("k", [1, 5, 300])
def test_knn_agrees_with_faiss(k: int) -> None:
    data = DATA["ReLU"]
    train, test = unit_rows(data.train).astype(np.float32), unit_rows(data.test).astype(np.float32)
    index = faiss.IndexFlatL2(train.shape[1])
    index.add(train)
    squared, _ = index.search(test, k)
    # Its single-precision products cancel for near-duplicates: squared distances agree to an absolute 1e-6.
    np.testing.assert_allclose(data.scores("knn", k=k) ** 2, squared[:, -1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [1, 7])
def test_nnguide_agrees_with_faiss(k: int) -> None:
    data = DATA["ReLU"]
    energies = [np.logaddexp.reduce(data.logits(features), axis=1) for features in (data.train, data.test)]
    index = faiss.IndexFlatIP(data.train.shape[1])
    index.add((unit_rows(data.train) * energies[0][:, None]).astype(np.float32))
    products, _ = index.search(unit_rows(data.test).astype(np.float32), k)
    assert agree(data.scores("nnguide", k=k), (products.mean(axis=1) * energies[1]).tolist(), 1e-5)


def test_scores_agree_with_pytorch_ood() -> None:
    data = DATA["ReLU"]
    # A head of the nearest class mean, which gets some images of every class right, as pytorch-ood's SHE asks for.
    means = np.stack([data.train[data.labels == c].mean(axis=0) for c in range(10)])
    data = Data(data.train, data.labels, data.test, means, -(means**2).sum(axis=1) / 2)
    train, test, labels = (torch.from_numpy(values) for values in (data.train, data.test, data.labels))
    head = nn.Linear(*data.weight.shape[::-1], dtype=torch.float64)
    head.weight.data, head.bias.data = torch.from_numpy(data.weight), torch.from_numpy(data.bias)

    def same(detector_id: str, outlier_scores: torch.Tensor, digits: float = 1e-6, **options: Any) -> None:
        assert agree(data.scores(detector_id, **options), (-outlier_scores).tolist(), digits), detector_id

    she = peer.SHE(None, head)
    with torch.no_grad():
        same("she", she.fit_features(train, labels).predict_features(test))
    # These two compute in single precision.
    train, test, head = train.float(), test.float(), head.float()
    guide = peer.NNGuide(None, head, k=4).fit_features(train, labels)
    same("nnguide", guide.predict_features(test), 1e-4, k=4)
    same("fdbd", peer.fDBD(None, head).fit_features(train).predict_features(test), 1e-4)


# --- The largest of blocks, and the rows that are kept. ---


@few
@given(seeds, st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_the_largest_of_blocks_are_those_of_the_matrix(seed: int, k: int, widths: list[int]) -> None:
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, sum(widths))))
    values, columns = largest(iter(matrix.split(widths, dim=1)), k)
    expected = matrix.topk(min(k, sum(widths)), dim=1)
    assert torch.equal(values, expected.values)
    assert torch.equal(columns, expected.indices)


@few
@given(seeds)
def test_nnguide_does_not_see_the_order_of_the_training_images(seed: int) -> None:
    data = make_data(60, 6, 3, seed)
    order = np.random.default_rng(seed).permutation(60)
    shuffled = Data(data.train[order], data.labels[order], data.test, data.weight, data.bias)
    assert agree(shuffled.scores("nnguide", fraction=0.3), data.scores("nnguide", fraction=0.3).tolist(), 1e-12)


def test_the_seed_chooses_the_training_images() -> None:
    data = DATA["random"]
    first, again, other = (data.scores("nnguide", fraction=0.1, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_the_training_images_are_chosen_evenly() -> None:
    """Whatever the features look like: a tenth of all is a tenth of those with a small mean, and so on."""
    random = np.random.default_rng(0)
    for features in (random.normal(size=(20_000, 4)), random.integers(0, 2, (20_000, 40)).astype(float)):
        drawn = lots(torch.from_numpy(features), 0).numpy()
        small = features.mean(axis=1) < np.median(features.mean(axis=1))
        assert (drawn[small] < np.quantile(drawn, 0.1)).mean() == pytest.approx(0.1, abs=0.015)


def test_round_off_draws_the_same_training_images() -> None:
    random = np.random.default_rng(0)
    features = np.maximum(random.normal(size=(20_000, 64)), 0)
    drawn, again = (
        {*lots(torch.from_numpy(rows), 0).argsort()[:500].tolist()}
        for rows in (features, features * (1 + 1e-7 * random.normal(size=features.shape)))
    )
    assert len(drawn & again) >= 498


def test_features_of_few_values_are_not_drawn_together() -> None:
    features = torch.randn(100_000, 8, generator=torch.Generator().manual_seed(0)).bfloat16().double()
    distinct = len(features.unique(dim=0))
    assert len(lots(features, 0).unique()) > 0.999 * distinct
    binary = (torch.arange(2**14)[:, None] >> torch.arange(14) & 1).double()
    assert len(lots(binary, 0).unique()) > 0.999 * 2**14


def test_knn_finds_zero_vectors_at_distance_one() -> None:
    bank = torch.tensor([[0.3, 0.954], [0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    queries = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    distances = torch.cdist(queries, bank / bank.norm(dim=1, keepdim=True).clamp_min(1e-9)).sort(dim=1).values
    for k in (1, 2, 3, 4):
        scores = create("knn", k=k).fit(Outputs(features=bank), None).score(Outputs(features=queries))
        np.testing.assert_allclose(scores, -distances[:, k - 1], rtol=1e-12)


@pytest.mark.parametrize(("images", "kept"), [(1, 1), (500, 500), (50_000, 500), (60_000, 600), (1_281_167, 12_811)])
def test_the_default_number_of_kept_images_follows_its_rule(images: int, kept: int) -> None:
    assert default_kept(images) == kept


def test_nnguide_keeps_what_its_defaults_say() -> None:
    for images, kept, k in ((7, 7, 7), (600, 500, 10)):
        features = np.random.default_rng(0).normal(size=(images, 3))
        detector = create("nnguide").fit(Outputs(features=features, logits=features), None)
        assert len(detector.bank) == kept
        assert detector.fitted_k == k


def test_nnguide_holds_its_options_to_the_data() -> None:
    features = np.random.default_rng(0).normal(size=(50, 3))

    def fit(**options: Any) -> None:
        create("nnguide", **options).fit(Outputs(features=features, logits=features), None)

    fit(fraction=0.1, k=5)
    with pytest.raises(ValueError, match=r"k is 6; allowed: an integer from 1 to 5"):
        fit(fraction=0.1, k=6)
    with pytest.raises(ValueError, match=r"fraction is 0\.01; allowed: at least 1 / 50"):
        fit(fraction=0.01)


@pytest.mark.parametrize(
    ("detector_id", "option", "values"),
    [
        ("nnguide", "k", [0, 2.0, "3", True]),
        ("nnguide", "fraction", [0, -0.1, 1.5, True, "0.1", float("nan")]),
        ("nnguide", "seed", [-1, 1.5, None, True]),
        ("ssc", "scale", [0, -1.0, "1", True, None, float("inf")]),
        ("she", "metric", ["inner_product", None, 1]),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"{detector_id}: {option} is .*; allowed: ") as error:
            create(detector_id, **{option: value})
        assert repr(value) in str(error.value)


# --- Laws. ---


@few
@given(seeds)
def test_nnguide_sees_the_direction_of_the_features_and_the_energy(seed: int) -> None:
    data = make_data(60, 6, 3, seed)
    factors = np.random.default_rng(seed).uniform(0.1, 10, (2, 60, 1))
    scores = fitted_scores("nnguide", data.train, data.test)
    assert agree(fitted_scores("nnguide", data.train * factors[0], data.test * factors[1][:47]), scores.tolist())
    # With one energy for all, the guidance of all images is a mean of cosines: at most 1, and 1 for a training image.
    energy = math.log(2)
    alone = fitted_scores("nnguide", data.train, data.train, k=1)
    assert np.allclose(alone, energy**2, rtol=1e-12)
    assert (scores <= energy**2 * (1 + 1e-12)).all()


@few
@given(seeds)
def test_ssc_sees_directions_only_and_no_bias(seed: int) -> None:
    data = make_data(60, 6, 3, seed)
    random = np.random.default_rng(seed)
    weight, test = (rows * random.uniform(0.1, 10, (len(rows), 1)) for rows in (data.weight, data.test))
    other = Data(data.train, data.labels, test, weight, data.bias + 5.0)
    assert agree(other.scores("ssc"), data.scores("ssc").tolist())


def test_ssc_with_a_large_scale_is_certain_and_with_a_small_one_undecided() -> None:
    data = DATA["random"]
    assert (data.scores("ssc", scale=1e9) > 1e5).all()
    assert np.allclose(data.scores("ssc", scale=1e-9), -math.log(len(data.weight) - 1))


@few
@given(seeds)
def test_she_is_linear_in_the_features_where_the_prediction_stays(seed: int) -> None:
    data = make_data(60, 6, 3, seed)
    data = Data(data.train, data.labels, data.test, data.weight, np.zeros(3))
    doubled = Data(data.train, data.labels, 2 * data.test, data.weight, data.bias)
    assert agree(doubled.scores("she"), (2 * data.scores("she")).tolist())
    assert agree(doubled.scores("she", metric="cosine"), data.scores("she", metric="cosine").tolist())


def test_she_does_not_learn_from_what_the_network_gets_wrong() -> None:
    features = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0], [100.0, 100.0]])
    logits = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    detector = create("she").fit(Outputs(features=features, logits=logits, labels=np.array([0, 0, 1, 0])), None)
    assert detector.patterns.tolist() == [[2.0, 0.0], [0.0, 8.0], [26.0, 27.0]]


@few
@given(seeds)
def test_fdbd_is_the_distance_to_where_the_prediction_changes(seed: int) -> None:
    data = make_data(60, 6, 2, seed)
    normal = data.weight[0] - data.weight[1]
    normal /= np.linalg.norm(normal)
    mean = data.train.mean(axis=0)
    for row, score in zip(data.test, data.scores("fdbd"), strict=True):
        signed = np.subtract(*data.logits(row)) / np.linalg.norm(data.weight[0] - data.weight[1])
        assert score * np.linalg.norm(row - mean) == pytest.approx(abs(signed))
        assert np.subtract(*data.logits(row - signed * normal)) == pytest.approx(0, abs=1e-9)


@few
@given(seeds)
def test_fdbd_sees_differences_of_classes_only(seed: int) -> None:
    data = make_data(60, 6, 4, seed)
    random = np.random.default_rng(seed)
    shifted = Data(data.train, data.labels, data.test, data.weight + random.normal(size=6), data.bias + random.normal())
    assert agree(shifted.scores("fdbd"), data.scores("fdbd").tolist())
    turn, _ = np.linalg.qr(random.normal(size=(6, 6)))
    turned = Data(data.train @ turn, data.labels, data.test @ turn, data.weight @ turn, data.bias)
    assert agree(turned.scores("fdbd"), data.scores("fdbd").tolist())


def test_fdbd_keeps_its_digits_for_similar_classes() -> None:
    random = np.random.default_rng(0)
    apart = random.normal(size=(3, 6))
    train, test = random.normal(size=(50, 6)), random.normal(size=(20, 6))
    bias = random.normal(size=3)
    plain = Data(train, np.arange(50) % 3, test, apart, bias)
    # The same boundaries, but of weights that differ in their last digits: 2**-40 is exact, and so is its product.
    similar = Data(train, plain.labels, test, np.round(apart * 2**10) * 2.0**-40 + 1.0, bias * 2.0**-30)
    exact = Data(train, plain.labels, test, np.round(apart * 2**10) / 2**10, bias)
    assert agree(similar.scores("fdbd"), exact.scores("fdbd").tolist(), 1e-4)


def test_fdbd_counts_no_boundary_between_classes_with_the_same_weights() -> None:
    data = DATA["random"]
    weight, bias = np.concatenate([data.weight, data.weight[:2]]), np.concatenate([data.bias, data.bias[:2] - 1.0])
    twins = Data(data.train, data.labels, data.test, weight, bias).scores("fdbd")
    assert np.isfinite(twins).all()
    for difference in (0.0, 1e-16):
        pair = data.weight[[0, 0]] * [[1.0], [1.0 + difference]] + [[0.0], [difference]]
        assert (Data(data.train, data.labels, data.test, pair, np.array([0.0, 1.0])).scores("fdbd") == 0).all()


def test_fdbd_is_finite_at_the_training_mean() -> None:
    train = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    head = Head(torch.eye(2), torch.tensor([0.5, 0.0]))
    scores = create("fdbd").fit(Outputs(features=train), head).score(Outputs(features=torch.tensor([[2.0, 1.0]])))
    assert torch.isfinite(scores).all()
    assert scores > 1e10
