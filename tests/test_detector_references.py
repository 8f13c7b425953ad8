"""Every detector against an independent one: the plain loops of `tests/references`, pytorch-ood; and the laws that the
formulas imply."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from torch import nn

from detectors import Outputs, available, create
from detectors.percentile import percentile
from tests.references import REFERENCES, gaussian
from tests.references.data import DATA, Data, agree, changed, log_odds, make_data

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)


pytestmark = pytest.mark.usefixtures("one_thread")


# These read images, a validation split, patches or words: the test files of their families compare them.
ELSEWHERE = {
    *("odin", "odin+react", "odin+itp", "odin+himplos", "mahalanobis-odin", "mahalanobis-layers", "rankfeat"),
    *("temperature-scaling", "gl-mcm", "neglabel"),
}


def test_every_detector_has_a_reference() -> None:
    assert {detector_id for detector_id, _, _ in REFERENCES} | ELSEWHERE == set(available())


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    ("detector_id", "options", "reference"),
    REFERENCES,
    ids=[f"{detector_id}-{options}" for detector_id, options, _ in REFERENCES],
)
def test_scores_agree_with_the_formula(
    detector_id: str, options: dict[str, Any], reference: Callable[..., list[float]], kind: str
) -> None:
    assert agree(DATA[kind].scores(detector_id, **options), reference(DATA[kind], **options))


def test_the_comparison_notices_a_wrong_denominator() -> None:
    data = DATA["random"]
    classes, rows = data.weight.shape[0], len(data.labels)
    wrong = np.array(gaussian.mahalanobis(data)) * (rows - classes) / rows
    assert not agree(data.scores("mahalanobis"), wrong.tolist())


# --- pytorch-ood, where it agrees: its outlier scores have the other sign, and no 1/N in its covariances. ---


def test_scores_agree_with_pytorch_ood() -> None:
    data = DATA["ReLU"]
    rows = len(data.labels)
    train, test, labels = (torch.from_numpy(values) for values in (data.train, data.test, data.labels))
    train_logits, test_logits = (torch.from_numpy(data.logits(values)) for values in (data.train, data.test))
    weight, bias = torch.from_numpy(data.weight), torch.from_numpy(data.bias)

    def same(detector_id: str, outlier_scores: torch.Tensor, digits: float = 1e-6, **options: Any) -> None:
        assert agree(data.scores(detector_id, **options), (-outlier_scores).tolist(), digits), detector_id

    same("msp", -(-peer.MaxSoftmax(None).predict_logits(test_logits)).logit())
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
        scores.append(log_odds((model(moved) / temperature)[0].detach()))
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

# Detectors that read nothing of an image but its softmax probabilities.
UNSATURATED: dict[str, dict[str, Any]] = {"msp": {}, "entropy": {}, "gen": {}}


def any_data(seed: int, rows: int = 60, width: int = 6, classes: int = 3) -> Data:
    return make_data(rows, width, classes, seed)


@few
@given(seeds)
def test_mahalanobis_is_the_same_in_any_coordinates(seed: int) -> None:
    data = any_data(seed)
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(6, 6)))
    linear = turn * random.uniform(0.1, 10, 6)
    for detector_id in ("mahalanobis", "relative-mahalanobis"):
        assert agree(
            changed(data, lambda features: features @ linear + 1.0).scores(detector_id), data.scores(detector_id)
        )


@few
@given(seeds)
def test_normalised_detectors_see_the_direction_only(seed: int) -> None:
    data = any_data(seed)
    random = np.random.default_rng(seed)

    def stretched(features: np.ndarray) -> np.ndarray:
        return features * 10 ** random.uniform(-6, 6, (len(features), 1))

    for detector_id in ("mahalanobis++", "relative-mahalanobis++", "knn"):
        assert agree(changed(data, stretched).scores(detector_id), data.scores(detector_id))
    assert not agree(changed(data, stretched).scores("mahalanobis"), data.scores("mahalanobis"))


@few
@given(seeds)
def test_directions_keep_their_scores_under_a_rotation(seed: int) -> None:
    data = any_data(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))
    for detector_id in ("knn", "cosine", "relative-cosine", "mahalanobis++"):
        assert agree(changed(data, lambda features: features @ turn).scores(detector_id), data.scores(detector_id))


@few
@given(seeds)
def test_one_class_has_no_relative_distance(seed: int) -> None:
    data = any_data(seed, classes=1)
    for detector_id in ("relative-mahalanobis", "relative-mahalanobis++"):
        assert (data.scores(detector_id) == 0).all()


@few
@given(seeds, st.integers(4, 60))
def test_the_mean_squared_distance_to_the_own_class_is_the_rank(seed: int, rows: int) -> None:
    data = any_data(seed, rows=rows)
    own = np.zeros_like(data.labels)  # one class, so that the nearest mean is the own one
    alone = Data(data.train, own, data.train, data.weight[:1], data.bias[:1])
    assert -alone.scores("mahalanobis").mean() == pytest.approx(min(6, rows - 1))


@few
@given(seeds)
def test_what_reads_probabilities_does_not_saturate(seed: int) -> None:
    """Log-odds keep images apart that a probability of 1, and its logarithm of 0, would tie."""
    gaps = np.sort(np.random.default_rng(seed).uniform(700, 10000, 20))
    outputs = Outputs(logits=np.stack([gaps, np.zeros(20), np.full(20, -3.0)], axis=1))
    for detector_id, options in UNSATURATED.items():
        scores = create(detector_id, **options).fit(None, None).score(outputs).numpy()
        assert (np.diff(scores) > 0).all(), detector_id


def test_odin_does_not_saturate() -> None:
    """A network whose logits are 3000 times the mean of the image: its probabilities are 1, and their gradients 0."""
    images = torch.linspace(0.3, 3.0, 20, dtype=torch.float64)[:, None, None, None].expand(20, 3, 2, 2)

    def network(images: torch.Tensor) -> torch.Tensor:
        means = 3000 * images.mean(dim=(1, 2, 3))
        return torch.stack([means, -means], dim=1)

    scores = create("odin", temperature=1.0).fit(None, None, model=network).score(Outputs(images=images))
    assert (scores.diff() > 0).all()


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
