"""Inner layers: image by image with numpy, scipy and scikit-learn, against pytorch-ood, and the formulas' laws."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from scipy.linalg import pinvh
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from detectors import Outputs, create, restore
from detectors.gaussian import Moments
from detectors.layers import RunningMoments, logistic_regression, without_largest_singular_value
from tests.references.data import agree

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """Images (N, 3, 7, 7) -> feature map (N, 5, 5, 5) -> feature map (N, 9 positions, 6 channels) -> logits (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 5, 3), nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(5, 6, 3), nn.SiLU())
        self.head = nn.Linear(6, 4)

    def layers(self, images: Tensor) -> list[Tensor]:
        first = self.first(images)
        return [first.mean(dim=(2, 3)), self.second(first).mean(dim=(2, 3))]

    def feature_map(self, images: Tensor) -> Tensor:
        return self.second(self.first(images)).flatten(2).mT

    def logits_of_map(self, feature_map: Tensor) -> Tensor:
        return self.head(feature_map.mean(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits_of_map(self.feature_map(images))


MODEL = Network().double().eval().requires_grad_(False)


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TRAIN = Outputs(images=images(150, 1), labels=torch.arange(150) % 4)
VAL = Outputs(images=images(30, 2))
TEST = Outputs(images=images(20, 3))


# --- RankFeat. ---


def rankfeat(images: Tensor) -> list[float]:
    scores = []
    for feature_map in MODEL.feature_map(images).numpy():
        u, s, v = np.linalg.svd(feature_map)
        rest = feature_map - s[0] * np.outer(u[:, 0], v[0])
        scores.append(logsumexp(MODEL.head.weight.numpy() @ rest.mean(axis=0) + MODEL.head.bias.numpy()))
    return scores


def test_rankfeat_agrees_with_the_formula() -> None:
    scores = create("rankfeat").fit(None, None, model=MODEL).score(TEST)
    assert agree(scores.numpy(), rankfeat(TEST.images), 1e-9)


def test_rankfeat_agrees_with_pytorch_ood() -> None:
    theirs = peer.RankFeat(lambda images: MODEL.second(MODEL.first(images)), lambda x: MODEL.head(x.mean(dim=(2, 3))))
    scores = create("rankfeat").fit(None, None, model=MODEL).score(TEST)
    assert agree(scores.numpy(), (-theirs.predict(TEST.images)).tolist(), 1e-9)


@few
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_what_is_left_has_all_singular_values_but_the_largest(seed: int, rows: int, columns: int) -> None:
    matrices = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, rows, columns)))
    before = torch.linalg.svdvals(matrices)
    after = torch.linalg.svdvals(without_largest_singular_value(matrices))
    assert torch.allclose(after[:, :-1], before[:, 1:], atol=1e-7)
    assert (after[:, -1] < 1e-7).all()


def test_rankfeat_removes_all_of_a_map_of_rank_one() -> None:
    class Flat(Network):
        def feature_map(self, images: Tensor) -> Tensor:
            return super().feature_map(images).mean(dim=1, keepdim=True).expand(-1, 9, -1)

    model = Flat().double().eval()
    scores = create("rankfeat").fit(None, None, model=model).score(TEST)
    assert torch.allclose(scores, model.head.bias.logsumexp(dim=0))


@pytest.mark.parametrize("name", ["feature_map", "logits_of_map"])
def test_rankfeat_names_what_the_model_lacks(name: str) -> None:
    other = {"feature_map": "logits_of_map", "logits_of_map": "feature_map"}[name]
    model = type("Partial", (), {other: staticmethod(getattr(MODEL, other)), "__call__": MODEL.forward})()
    with pytest.raises(ValueError, match=rf"rankfeat needs a model with {name}\("):
        create("rankfeat").fit(None, None, model=model).score(TEST)


# --- Mahalanobis in several layers. ---


def mahalanobis_layers(epsilon: float, adversarial_epsilon: float) -> list[float]:
    labels = TRAIN.labels.numpy()
    known = [layer.numpy() for layer in MODEL.layers(TRAIN.images)]
    means = [[torch.from_numpy(layer[labels == c].mean(axis=0)) for c in range(4)] for layer in known]
    precisions = []
    for layer, of_classes in zip(known, means, strict=True):
        centred = np.array([row - of_classes[label].numpy() for row, label in zip(layer, labels, strict=True)])
        precisions.append(torch.from_numpy(pinvh(centred.T @ centred / len(centred))))

    def distance(image: Tensor, layer: int) -> Tensor:
        row = MODEL.layers(image[None])[layer][0]
        return min((row - mean) @ precisions[layer] @ (row - mean) for mean in means[layer])

    def confidences(image: Tensor) -> list[float]:
        found = []
        for layer in range(2):
            image = image.detach().clone().requires_grad_()
            distance(image, layer).backward()
            found.append(-float(distance(image.detach() - epsilon * image.grad.sign(), layer)))
        return found

    def adversarial(image: Tensor) -> Tensor:
        image = image.clone().requires_grad_()
        logits = MODEL(image[None])
        nn.functional.cross_entropy(logits, logits.argmax(dim=1)).backward()
        return image.detach() + adversarial_epsilon * image.grad.sign()

    inputs = np.array([confidences(image) for image in VAL.images] + [confidences(adversarial(i)) for i in VAL.images])
    middle, width = inputs.mean(axis=0), inputs.std(axis=0)
    regression = LogisticRegression(tol=1e-12, max_iter=10_000).fit((inputs - middle) / width, [1] * 30 + [0] * 30)
    tests = np.array([confidences(image) for image in TEST.images])
    return regression.decision_function((tests - middle) / width).tolist()


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.05}, {"epsilon": 0.0, "adversarial_epsilon": 0.3}])
def test_mahalanobis_layers_agrees_with_the_formula(options: dict[str, float]) -> None:
    detector = create("mahalanobis-layers", **options)
    scores = detector.fit(TRAIN, None, val=VAL, model=MODEL).score(TEST)
    assert agree(scores.numpy(), mahalanobis_layers(detector.epsilon, detector.adversarial_epsilon))


def test_the_distances_agree_with_pytorch_ood() -> None:
    """Its distances are halved, and its covariance lacks 1/N."""
    theirs = peer.MultiMahalanobis([nn.Identity()])
    for layer in range(2):
        theirs.fit_structured([MODEL.layers(TRAIN.images)[layer].float()], TRAIN.labels)
        expected = -2 * 150 * theirs.predict_structured([MODEL.layers(TEST.images)[layer].float()[:, :, None]])
        detector = create("mahalanobis-layers", epsilon=0.0).fit(TRAIN, None, val=VAL, model=MODEL)
        detector.weights, detector.bias = torch.eye(2, dtype=torch.float64)[layer], 0.0
        assert agree(detector.score(TEST).numpy(), expected.tolist(), 1e-3)


def test_a_layer_alone_orders_images_like_its_mahalanobis_distance() -> None:
    class OneLayer(Network):
        def layers(self, images: Tensor) -> list[Tensor]:
            return super().layers(images)[-1:]

    model = OneLayer().double().eval()
    scores = create("mahalanobis-layers", epsilon=0.0).fit(TRAIN, None, val=VAL, model=model).score(TEST)
    train, test = (
        Outputs(features=model.layers(outputs.images)[0].detach(), labels=outputs.labels) for outputs in (TRAIN, TEST)
    )
    distances = create("mahalanobis").fit(train, None).score(test)
    order = np.corrcoef(scores, distances)[0, 1]
    assert abs(order) == pytest.approx(1.0)


def test_layers_of_any_widths_are_restored() -> None:
    detector = create("mahalanobis-layers").fit(TRAIN, None, val=VAL, model=MODEL)
    again = restore(*detector.state(), model=MODEL)
    assert torch.equal(again.score(TEST), detector.score(TEST))
    assert [gaussian.means.shape for gaussian in again.gaussians.layers()] == [(4, 5), (4, 6)]


def test_a_fit_in_inference_mode_is_the_same() -> None:
    expected = create("mahalanobis-layers").fit(TRAIN, None, val=VAL, model=MODEL).score(TEST)
    with torch.inference_mode():
        detector = create("mahalanobis-layers").fit(TRAIN, None, val=VAL, model=MODEL)
    assert torch.equal(detector.score(TEST), expected)


def test_one_pass_of_the_network_over_the_training_images_is_enough() -> None:
    seen = []

    class Counting(Network):
        def layers(self, images: Tensor) -> list[Tensor]:
            seen.append(len(images))
            return super().layers(images)

    model = Counting().double().eval()
    create("mahalanobis-layers", epsilon=0.0).fit(TRAIN, None, val=VAL, model=model).score(TEST)
    assert sum(seen) == 150 + 2 * 30 + 20


# --- Moments of a stream, and the regression. ---


@few
@given(seeds, st.lists(st.integers(1, 20), min_size=1, max_size=8), st.sampled_from([0.0, 1e6]))
def test_running_moments_are_those_of_all_features(seed: int, sizes: list[int], shift: float) -> None:
    random = np.random.default_rng(seed)
    features = torch.from_numpy(random.normal(size=(sum(sizes), 3)) + shift)
    labels = torch.from_numpy(random.integers(0, 3, sum(sizes))).unique(return_inverse=True)[1]
    classes = int(labels.max()) + 1
    running = RunningMoments.none(classes, 3)
    for rows, classes_of_rows in zip(features.split(sizes), labels.split(sizes), strict=True):
        running.add(rows, classes_of_rows)
    expected = Moments.of(lambda: iter([(features, labels)]), classes)
    for name, tolerance in (("sizes", 0.0), ("means", 1e-12 * (1 + shift)), ("covariance", 1e-12 * (1 + shift))):
        found = getattr(running.moments(), name)
        assert torch.allclose(found, getattr(expected, name), rtol=0.0, atol=tolerance), name


def regression_by_scikit_learn(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    inputs = np.concatenate([positives, negatives])
    scaled = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    model = LogisticRegression(tol=1e-14, max_iter=10_000, solver="newton-cholesky")
    return model.fit(scaled, [1] * len(positives) + [0] * len(negatives)).decision_function(scaled)


def regression(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    weights, bias = logistic_regression(torch.from_numpy(positives), torch.from_numpy(negatives))
    return np.concatenate([positives, negatives]) @ weights.numpy() + bias


@few
@given(seeds, st.floats(0, 100), st.floats(1e-6, 1e6))
def test_the_regression_is_that_of_scikit_learn(seed: int, apart: float, scale: float) -> None:
    random = np.random.default_rng(seed)
    inputs = scale * (random.normal(size=(40, 3)) + apart), scale * random.normal(size=(30, 3))
    np.testing.assert_allclose(regression(*inputs), regression_by_scikit_learn(*inputs), rtol=1e-6, atol=1e-6)


def test_the_regression_finds_its_way_where_full_newton_steps_do_not() -> None:
    random = np.random.default_rng(426)
    positives, negatives = 1e-4 * random.normal(size=(2000, 3)), 1e-4 * random.normal(size=(2000, 3)) + 5e-4
    positives[:2] = 100 * random.normal(size=(1, 3))
    negatives[:1] = 100 * random.normal(size=(1, 3))
    expected = regression_by_scikit_learn(positives, negatives)
    np.testing.assert_allclose(regression(positives, negatives), expected, rtol=1e-6, atol=1e-6)


def test_an_input_that_is_constant_does_not_count() -> None:
    positives = torch.tensor([[1.0, 5.0], [2.0, 5.0]], dtype=torch.float64)
    negatives = torch.tensor([[-1.0, 5.0 + 1e-15]], dtype=torch.float64)
    weights, bias = logistic_regression(positives, negatives)
    assert weights[0] > 0
    assert weights[1] == 0
    same = torch.full((4, 2), 3.0, dtype=torch.float64)
    weights, bias = logistic_regression(same, same)
    assert (weights == 0).all()
    assert bias == pytest.approx(0)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("epsilon", [-0.1, "1", False, None, float("inf")]),
        ("adversarial_epsilon", [0, -0.1, "1", True, None, float("nan")]),
    ],
)
def test_bad_options_are_refused(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"mahalanobis-layers: {option} is .*; allowed: ") as error:
            create("mahalanobis-layers", **{option: value})
        assert repr(value) in str(error.value)
