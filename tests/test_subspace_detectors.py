"""Subspace detectors beside scikit-learn, and the laws that their formulas imply."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import pinv
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from detectors import create
from detectors.subspace import explaining
from tests.references.data import DATA, Data, agree, changed, low_rank, make_data

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


def any_data(seed: int, rows: int = 60, width: int = 6, classes: int = 3) -> Data:
    return make_data(rows, width, classes, seed)


def origin(data: Data) -> np.ndarray:
    return -pinv(data.weight) @ data.bias


@few
@given(seeds, st.integers(0, 5))
def test_the_residual_is_the_reconstruction_error_of_scikit_learn(seed: int, dimension: int) -> None:
    data = any_data(seed)
    centred, test = data.train - origin(data), data.test - origin(data)
    # Mirrored, so that their mean is the origin.
    components = PCA().fit(np.concatenate([centred, -centred])).components_[:dimension]
    error = np.linalg.norm(test - test @ components.T @ components, axis=1)
    assert agree(data.scores("residual", dimension=dimension), (-error).tolist())


@few
@given(seeds)
def test_a_residual_shrinks_as_the_subspace_grows(seed: int) -> None:
    data = any_data(seed)
    residuals = np.stack([-data.scores("residual", dimension=dimension) for dimension in range(6)])
    np.testing.assert_allclose(residuals[0], np.linalg.norm(data.test - origin(data), axis=1), rtol=1e-9)
    assert (np.diff(residuals, axis=0) <= 1e-12).all()


@few
@given(seeds)
def test_residuals_are_the_same_after_a_rotation(seed: int) -> None:
    data = any_data(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))
    turned = replace(changed(data, lambda features: features @ turn), weight=data.weight @ turn)
    for detector_id in ("residual", "vim"):
        assert agree(turned.scores(detector_id), data.scores(detector_id).tolist())


@few
@given(seeds, st.integers(0, 5))
def test_the_virtual_logit_is_as_large_as_the_largest_one_on_average(seed: int, dimension: int) -> None:
    data = any_data(seed)
    train = replace(data, test=data.train)
    energy, vim, residual = (
        train.scores(detector_id, **options)
        for detector_id, options in (
            ("energy", {}),
            ("vim", {"dimension": dimension}),
            ("residual", {"dimension": dimension}),
        )
    )
    virtual_logits = energy - vim
    assert virtual_logits.mean() == pytest.approx(data.logits(data.train).max(axis=1).mean())
    alpha = -virtual_logits / residual
    np.testing.assert_allclose(alpha, alpha[0], rtol=1e-9)


@few
@given(seeds)
def test_directions_that_no_training_feature_has_are_no_principal_ones(seed: int) -> None:
    """Even where more of them are named than there are: which ones would be chance."""
    flat = changed(make_data(60, 12, 3, seed), low_rank)
    flat = replace(flat, bias=np.zeros(3))  # no origin, so that the rank is 5
    random = np.random.default_rng(seed)
    off = replace(flat, test=flat.test + random.normal(size=flat.test.shape))
    spanned = np.linalg.svd(flat.train)[2][:5]
    error = np.linalg.norm(off.test - off.test @ spanned.T @ spanned, axis=1)
    for dimension in (5, 6, 11):
        assert agree(off.scores("residual", dimension=dimension), (-error).tolist())
        assert agree(off.scores("vim", dimension=dimension), off.scores("energy").tolist(), 1e-12)
    assert agree(off.scores("neco", dimension=8), off.scores("neco", dimension=5).tolist(), 1e-12)


# --- NECO. ---


@pytest.mark.parametrize("kind", ["random", "ReLU", "far from the origin"])
@pytest.mark.parametrize("dimension", [None, 1, 4])
def test_neco_agrees_with_scikit_learn(kind: str, dimension: int | None) -> None:
    data = DATA[kind]
    scaler = StandardScaler().fit(data.train)
    train, test = scaler.transform(data.train), scaler.transform(data.test)
    # Of a share, it takes the fewest components that explain more than it.
    pca = PCA(0.9 if dimension is None else dimension, svd_solver="full").fit(train)
    projected = np.linalg.norm(pca.transform(test), axis=1)
    share = projected / np.linalg.norm(test, axis=1)
    largest = data.logits(data.test).max(axis=1)
    assert agree(data.scores("neco", dimension=dimension), (largest * share).tolist())
    raw_share = projected / np.linalg.norm(data.test, axis=1)
    named: dict[str, Any] = {"dimension": dimension, "denominator": "raw", "max_logit": False}
    assert agree(data.scores("neco", **named), raw_share.tolist())


@few
@given(seeds)
def test_all_components_leave_the_largest_logit(seed: int) -> None:
    data = any_data(seed)
    assert agree(data.scores("neco", dimension=6), data.scores("max-logit").tolist())
    np.testing.assert_allclose(data.scores("neco", dimension=6, max_logit=False), 1.0, rtol=1e-9)


@few
@given(seeds)
def test_a_share_is_one_and_grows_with_the_components(seed: int) -> None:
    data = any_data(seed)
    shares = np.stack([data.scores("neco", dimension=dimension, max_logit=False) for dimension in range(1, 7)])
    assert (shares >= 0).all()
    assert (shares <= 1 + 1e-12).all()
    assert (np.diff(shares, axis=0) >= -1e-12).all()


@few
@given(seeds)
def test_units_of_the_dimensions_do_not_matter(seed: int) -> None:
    data = any_data(seed)
    random = np.random.default_rng(seed)
    units, zero = 10 ** random.uniform(-3, 3, 6), random.normal(size=6)
    other = changed(data, lambda features: features * units + zero)
    # The head reads the features as they were.
    weight = data.weight / units
    other = replace(other, weight=weight, bias=data.bias - weight @ zero)
    assert agree(other.scores("neco"), data.scores("neco").tolist())


def test_a_dimension_that_is_constant_in_training_is_not_scaled() -> None:
    data = DATA["dead and duplicated dimensions"]
    moved = data.test.copy()
    moved[:, 1] += 3.0
    scaler = StandardScaler().fit(data.train)  # which does not scale it either
    still, away = (np.linalg.norm(scaler.transform(features), axis=1) for features in (data.test, moved))
    expected = data.scores("neco", max_logit=False) * still / away
    assert agree(replace(data, test=moved).scores("neco", max_logit=False), expected.tolist())


def test_the_mean_of_the_training_features_has_no_share() -> None:
    train = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    data = Data(train, np.zeros(4, int), np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1))
    for denominator in ("standardised", "raw"):
        assert data.scores("neco", denominator=denominator) == 0.0


def test_the_fewest_components_that_explain_a_share_are_taken() -> None:
    for variances, count in (([9.0, 1.0], 1), ([8.9, 1.1], 2), ([1.0] * 10, 9), ([1.1] * 20, 18), ([1.0, 0.0], 1)):
        assert explaining(torch.tensor(variances, dtype=torch.float64), 0.9) == count
    assert explaining(torch.zeros(3, dtype=torch.float64), 0.9) == 1


# --- Options. ---


@pytest.mark.parametrize(
    ("detector_id", "option", "values", "allowed"),
    [
        ("residual", "dimension", [-1, 2.0, "3", True], "an integer from 0 to D - 1"),
        ("neco", "dimension", [0, -1, 2.0, "3", True], "an integer from 1 to D"),
        ("neco", "max_logit", [0, 1, None, "yes"], "True or False"),
        ("neco", "denominator", ["standardized", None, 1], "'standardised' or 'raw'"),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any], allowed: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{detector_id}: {option} is {value!r}; allowed: {allowed}"):
            create(detector_id, **{option: value})


@pytest.mark.parametrize(("detector_id", "most"), [("residual", 11), ("vim", 11), ("neco", 12)])
def test_a_named_dimension_is_held_to_the_width(detector_id: str, most: int) -> None:
    data = DATA["random"]
    data.scores(detector_id, dimension=most)
    with pytest.raises(ValueError, match=f"dimension is {most + 1}; allowed: .* to {most}"):
        data.scores(detector_id, dimension=most + 1)


def test_the_default_dimensions_follow_their_rules() -> None:
    data = DATA["random"]
    assert agree(data.scores("residual"), data.scores("residual", dimension=6).tolist(), 1e-12)
    shares = PCA().fit(StandardScaler().fit_transform(data.train)).explained_variance_ratio_
    fewest = int((shares.cumsum() < 0.9).sum()) + 1
    assert agree(data.scores("neco"), data.scores("neco", dimension=fewest).tolist(), 1e-12)
    assert not agree(data.scores("neco"), data.scores("neco", dimension=fewest - 1).tolist())
