"""Gradients of the network: image by image with plain backward passes, against pytorch-ood, and the formulas' laws."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood import detector as peer
from scipy.linalg import pinvh
from torch import Tensor, nn

from detectors import Outputs, create
from detectors.gradients import ODIN, MahalanobisODIN
from tests.references.data import DATA, agree, make_data

few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """Images (N, 3, 6, 6) -> convolution -> features (N, 6) -> logits (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(6, 4)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


MODEL = Network().double().eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def train(model: nn.Module = MODEL) -> Outputs:
    given = images(200, seed=1)
    with torch.no_grad():
        return Outputs(images=given, features=model.features(given), labels=torch.arange(200) % 4)


def test_outputs() -> Outputs:
    with torch.no_grad():
        return Outputs(images=images(40), features=MODEL.features(images(40)))


test_outputs.__test__ = False  # a helper


# --- GradNorm. ---


def test_gradnorm_agrees_with_pytorch_ood() -> None:
    data = DATA["ReLU"]
    head = nn.Linear(*data.weight.shape[::-1], dtype=torch.float64)
    head.weight.data, head.bias.data = torch.from_numpy(data.weight), torch.from_numpy(data.bias)
    for temperature in (1.0, 2.5):
        theirs = peer.GradNorm(head, param_filter=lambda name: name == "weight", temperature=temperature)
        expected = -theirs.to("cpu").predict(torch.from_numpy(data.test))
        assert agree(data.scores("gradnorm", temperature=temperature), expected.tolist())


def gradnorm(features: Any, logits: Any, **options: Any) -> np.ndarray:
    outputs = Outputs(features=np.asarray(features), logits=np.asarray(logits))
    return create("gradnorm", **options).fit(None, None).score(outputs).numpy()


def test_gradnorm_is_zero_for_a_uniform_softmax_and_at_most_twice_the_norm_of_the_features() -> None:
    features = np.array([[1.0, -2.0, 4.0]])
    for shift in (0.0, 1e6):
        assert gradnorm(features, np.full((1, 5), shift)) == 0
    # All of the probability in one of C classes: |1 - 1/C| + (C - 1) / C.
    assert gradnorm(features, [[1e3, 0, 0, 0, 0.0]]) == pytest.approx(7 * 1.6)


def test_gradnorm_keeps_its_digits_where_the_softmax_is_almost_uniform() -> None:
    logits = 1e-12 * np.array([[1.0, 2.0, 3.0, 6.0]])
    assert gradnorm([[1.0]], logits) == pytest.approx(6e-12 / 4, rel=1e-9, abs=0)


@few
@given(seeds)
def test_gradnorm_of_logits_over_the_temperature(seed: int) -> None:
    data = make_data(10, 6, 4, seed)
    logits = data.logits(data.test)
    scores = gradnorm(data.test, logits, temperature=3.0)
    assert agree(gradnorm(data.test, logits / 3) / 3, scores.tolist())
    assert agree(gradnorm(-2 * data.test, logits + 7.0, temperature=3.0), (2 * scores).tolist())


# --- Mahalanobis with a step of the image. ---


def mahalanobis_odin(model: Network, train: Outputs, images: Tensor, epsilon: float) -> list[float]:
    features, labels = train.features.numpy(), train.labels.numpy()
    means = [features[labels == c].mean(axis=0) for c in sorted(set(labels.tolist()))]
    centred = np.array([row - means[label] for row, label in zip(features, labels, strict=True)])
    precision = torch.from_numpy(pinvh(centred.T @ centred / len(centred)))

    def distance(image: Tensor) -> Tensor:
        features = model.features(image[None])[0]
        return min((features - mean) @ precision @ (features - mean) for mean in map(torch.from_numpy, means))

    scores = []
    for image in images:
        image = image.clone().requires_grad_()
        distance(image).backward()
        scores.append(-float(distance(image.detach() - epsilon * image.grad.sign()).detach()))
    return scores


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.05}, {"epsilon": 0.0}])
def test_mahalanobis_odin_agrees_with_the_formula(options: dict[str, float]) -> None:
    detector = create("mahalanobis-odin", **options).fit(train(), None, model=MODEL)
    expected = mahalanobis_odin(MODEL, train(), images(40), detector.epsilon)
    assert agree(detector.score(test_outputs()).numpy(), expected, 1e-9)


def test_mahalanobis_odin_without_a_step_is_mahalanobis() -> None:
    still = create("mahalanobis-odin", epsilon=0.0).fit(train(), None, model=MODEL).score(test_outputs())
    plain = create("mahalanobis").fit(train(), None).score(test_outputs())
    assert agree(still.numpy(), plain.tolist(), 1e-12)


def test_mahalanobis_odin_moves_images_towards_the_nearest_mean() -> None:
    still, moved = (
        create("mahalanobis-odin", epsilon=epsilon).fit(train(), None, model=MODEL).score(test_outputs())
        for epsilon in (0.0, 1e-4)
    )
    assert (moved > still).all()


def test_mahalanobis_odin_agrees_with_pytorch_ood() -> None:
    """Its distances are halved, and its covariance lacks 1/N."""
    model = Network().eval()
    given = train(model.double())
    detector = create("mahalanobis-odin", epsilon=0.01).fit(given, None, model=model)
    ours = detector.score(test_outputs())
    model = model.float()
    theirs = peer.MahalanobisODIN(model.features, eps=0.01).fit_features(given.features.float(), given.labels)
    expected = -2 * 200 * theirs.predict(images(40).float())
    assert agree(ours.numpy(), expected.tolist(), 1e-3)


def test_training_images_are_not_decoded_and_do_not_make_the_batches_of_features_small() -> None:
    class Rows:
        def __init__(self, rows: Tensor) -> None:
            self.rows, self.shape, self.taken = rows, rows.shape, []

        def __getitem__(self, rows: slice) -> Tensor:
            self.taken.append(len(self.rows[rows]))
            return self.rows[rows]

    given = train()
    spies = {name: Rows(getattr(given, name)) for name in ("images", "features")}
    create("mahalanobis-odin").fit(Outputs(**spies, labels=given.labels), None, model=MODEL)
    assert not spies["images"].taken
    assert set(spies["features"].taken) == {200}


# --- What all of them do with images. ---


def test_a_fit_and_a_score_in_inference_mode_are_the_same() -> None:
    expected = create("mahalanobis-odin").fit(train(), None, model=MODEL).score(test_outputs())
    with torch.inference_mode():
        detector = create("mahalanobis-odin").fit(train(), None, model=MODEL)
        assert torch.equal(detector.score(test_outputs()), expected)
    assert torch.equal(detector.score(test_outputs()), expected)


def test_a_network_in_single_precision_serves() -> None:
    for dtype in (torch.float32, torch.float16):
        test = Outputs(images=images(40).to(dtype), features=test_outputs().features)
        scores = create("mahalanobis-odin").fit(train(), None, model=Network().eval()).score(test)
        test = Outputs(images=images(40).to(dtype).double(), features=test.features)
        expected = create("mahalanobis-odin").fit(train(), None, model=MODEL).score(test)
        assert agree(scores.numpy(), expected.tolist(), 1e-3)


def test_features_that_are_not_finite_are_refused() -> None:
    class Broken:
        def features(self, images: Tensor) -> Tensor:
            return MODEL.features(images) * torch.nan

    detector = create("mahalanobis-odin").fit(train(), None, model=Broken())
    with pytest.raises(ValueError, match="the network's features of row 0 are not finite"):
        detector.score(test_outputs())


def test_a_network_without_a_gradient_is_refused() -> None:
    class Detached:
        def features(self, images: Tensor) -> Tensor:
            return MODEL.features(images).detach()

    detector = create("mahalanobis-odin").fit(train(), None, model=Detached())
    with pytest.raises(ValueError, match="differentiate"):
        detector.score(test_outputs())


def test_a_model_without_features_is_refused() -> None:
    detector = create("mahalanobis-odin").fit(train(), None, model=MODEL.forward)
    with pytest.raises(ValueError, match=r"mahalanobis-odin needs a model with features"):
        detector.score(test_outputs())


@pytest.mark.parametrize(("size", "rows"), [(4, 64), (224, 32), (448, 8), (4000, 1)])
def test_as_many_images_at_once_as_memory_allows(size: int, rows: int) -> None:
    assert ODIN()._rows_in_a_batch(Outputs(images=torch.zeros(1).expand(100, 3, size, size))) == rows
    assert MahalanobisODIN()._rows_in_a_batch(Outputs(features=torch.zeros(100, 2))) == MahalanobisODIN.batch_rows


@pytest.mark.parametrize(
    ("detector_id", "option", "values"),
    [
        ("gradnorm", "temperature", [0, -1.0, "1", True, None, float("inf")]),
        ("mahalanobis-odin", "epsilon", [-0.1, "1", False, None, float("inf")]),
    ],
)
def test_bad_options_are_refused(detector_id: str, option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"{detector_id}: {option} is .*; allowed: ") as error:
            create(detector_id, **{option: value})
        assert repr(value) in str(error.value)
