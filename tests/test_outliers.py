"""Training with outliers: its losses, and what it does to a small network."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import ValidationError
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmark.images.image_set import image_set_of_pixels
from benchmark.models.classifier import Classifier
from benchmark.models.edits import Edit
from benchmark.models.entries import ModelEntry
from benchmark.models.model import Model
from benchmark.training.data import TrainingSet
from benchmark.training.optimisation import Progress, Schedule
from benchmark.variants.method import TrainingData
from benchmark.variants.outliers import (
    EnergyBounded,
    JensenShannonExposure,
    OutlierExposure,
    OutlierTerm,
    jensen_shannon,
)

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = [
    OutlierExposure(),
    JensenShannonExposure(),
    JensenShannonExposure(on_id="retain"),
    EnergyBounded(m_in=-4, m_out=-1.5),
]
NOT_KEPT = Progress(None, {})

logits = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6), elements=some.floats(-40, 40))


def _uniform(z: np.ndarray) -> float:
    uniform = np.full(z.shape[1], 1 / z.shape[1])
    return float(np.mean([-(uniform * log_softmax(row)).sum() for row in z]))


def _divergence(z: np.ndarray) -> float:
    uniform = np.full(z.shape[1], 1 / z.shape[1])
    halves = [[rel_entr(side, (softmax(row) + uniform) / 2).sum() for side in (softmax(row), uniform)] for row in z]
    return float(np.mean(halves))


def _energy(id_logits: np.ndarray, z: np.ndarray) -> float:
    energies = [[-math.log(sum(math.exp(value) for value in row)) for row in side] for side in (id_logits, z)]
    squares = [max(0, energy + 25) ** 2 for energy in energies[0]], [max(0, -7 - energy) ** 2 for energy in energies[1]]
    return sum(sum(side) / len(side) for side in squares)


@given(logits)
def test_terms_agree_with_plain_references(z: np.ndarray) -> None:
    id_logits = z[::-1] - 3
    expected = {
        "uniform": 0.5 * _uniform(z),
        "jensen-shannon": _divergence(z),
        "energy-bounded": _energy(id_logits, z) / 10,
    }
    for loss, value in expected.items():
        term = OutlierTerm(loss=loss)(torch.from_numpy(id_logits.copy()), torch.from_numpy(z))
        assert term.item() == pytest.approx(value, rel=1e-9, abs=1e-9), loss


@pytest.mark.parametrize("loss", ["uniform", "jensen-shannon"])
def test_outliers_that_are_already_uniform_have_no_gradient(loss: Any) -> None:
    z = torch.full((4, 5), 3.0, requires_grad=True)
    OutlierTerm(loss=loss)(torch.zeros(2, 5), z).backward()
    torch.testing.assert_close(z.grad, torch.zeros(4, 5), atol=1e-7, rtol=0)


@given(logits, some.data())
def test_the_divergence_is_bounded_and_symmetric(z: np.ndarray, data: some.DataObject) -> None:
    other = data.draw(arrays(np.float64, z.shape, elements=some.floats(-1e4, 1e4)))
    log_p, log_q = (torch.from_numpy(values).float().log_softmax(dim=1).requires_grad_() for values in (z, other))
    divergence = jensen_shannon(log_p, log_q)
    assert divergence.detach().min() >= -1e-6
    assert divergence.detach().max() <= math.log(2) + 1e-6
    torch.testing.assert_close(divergence, jensen_shannon(log_q, log_p))
    divergence.sum().backward()
    for side in (log_p, log_q):
        assert side.grad is not None
        assert side.grad.isfinite().all()


def test_the_divergence_of_distributions_that_share_nothing_is_log_2() -> None:
    one_hot = torch.eye(2).log()
    torch.testing.assert_close(jensen_shannon(one_hot, one_hot.flip(0)), torch.full((2,), math.log(2)))
    torch.testing.assert_close(jensen_shannon(one_hot, one_hot), torch.zeros(2))


@given(logits)
def test_with_a_one_hot_target_the_gradient_is_at_most_log_2_halves_of_the_cross_entropys(z: np.ndarray) -> None:
    target = torch.zeros(len(z), dtype=torch.long)
    gradients = []
    for loss in (
        lambda z: jensen_shannon(z.log_softmax(dim=1), nn.functional.one_hot(target, z.shape[1]).double().log()).sum(),
        lambda z: cross_entropy(z, target, reduction="sum"),
    ):
        leaf = torch.from_numpy(z).requires_grad_()
        gradients.append(torch.autograd.grad(loss(leaf), leaf)[0].abs())
    assert (gradients[0] <= math.log(2) / 2 * gradients[1] + 1e-12).all()


def test_energies_within_their_margins_cost_nothing() -> None:
    term = OutlierTerm(loss="energy-bounded", m_in=-5, m_out=-2)
    id_logits = torch.tensor([[9.0, 0.0]], requires_grad=True)
    outlier_logits = torch.tensor([[0.0, 0.5]], requires_grad=True)
    inside = term(id_logits, outlier_logits)
    inside.backward()
    assert inside.item() == 0
    assert not id_logits.grad.any()  # type: ignore[union-attr]
    assert not outlier_logits.grad.any()  # type: ignore[union-attr]
    assert term(id_logits - 8, outlier_logits).item() > 0
    assert term(id_logits, outlier_logits + 8).item() > 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss": "kl"}, "loss"),
        ({"loss": "uniform", "weight": -1}, "weight"),
        ({"loss": "uniform", "weight": math.inf}, "weight"),
        ({"loss": "uniform", "m_in": -25}, "m_in and m_out are -25.0 and None"),
        ({"loss": "energy-bounded", "m_in": -1, "m_out": -2}, "m_in and m_out are -1.0 and -2.0"),
        ({"loss": "energy-bounded", "m_out": math.nan}, "m_in and m_out are -25.0 and nan"),
        ({"loss": "uniform", "margin": 1}, "margin"),
    ],
)
def test_a_term_refuses_bad_settings(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        OutlierTerm(**settings)


def test_a_term_is_made_again_of_what_it_says_of_itself() -> None:
    for loss, weight in {"uniform": 0.5, "jensen-shannon": 1.0, "energy-bounded": 0.1}.items():
        term = OutlierTerm(loss=loss)
        assert term.weight == weight
        assert OutlierTerm(**term.model_dump()) == term


@pytest.mark.parametrize("settings", [{"m_in": 0.0, "m_out": -1.0}, {"m_in": math.inf}])
def test_energy_bounded_learning_refuses_bad_margins(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="m_in and m_out"):
        EnergyBounded(**settings)


# A network that tells red, green and blue images apart, and takes the outliers, orange, for red.


def _set(model: Model, name: str, colours: np.ndarray, labels: np.ndarray | None) -> TrainingSet:
    noise = np.random.default_rng(len(colours)).integers(-50, 50, (len(colours), 8, 8, 3))
    pixels = (colours[:, None, None] + noise).clip(0, 255).astype(np.uint8)
    images = image_set_of_pixels(name, name, len(pixels), lambda index: pixels[index], licence="none", source="here")
    training_set = TrainingSet(model, images)
    training_set.labels = None if labels is None else torch.from_numpy(labels)
    return training_set


@pytest.fixture(scope="module")
def base() -> Model:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def transform(image: Any) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1

    model = Classifier(
        "toy",
        ModelEntry.in_file(Path("here.toml"), title="Toy", source="nowhere"),
        network,
        transform,
        {"input_size": (3, 8, 8)},
        torch.device("cpu"),
    )
    train = _data(model).train
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(network(train.images(torch.arange(len(train)))), train.labels).backward()  # type: ignore[arg-type]
        optimizer.step()
    network.eval().requires_grad_(False)
    return model


def _data(model: Model) -> TrainingData:
    labels = np.arange(90) % 3
    colours = 80 + 90 * np.eye(3)[labels]
    oranges = np.tile([190, 140, 80], (40, 1))
    return TrainingData(
        _set(model, "train", colours, labels),
        _set(model, "oranges", oranges, None),
    )


@pytest.fixture
def data(base: Model) -> TrainingData:
    return _data(base)


def _short(method: Any, **changes: Any) -> Any:
    schedule = Schedule(**({"epochs": 15, "batch": 30, "learning_rate": 0.03} | changes))
    return method.model_copy(update={"schedule": schedule})


def _variant(base: Model, edit: Edit) -> Model:
    network = copy.deepcopy(base.network)
    edit.apply(network)
    return replace(base, network=network)


def _confidence(model: Model, images: TrainingSet) -> float:
    return model(images.images(torch.arange(len(images)))).softmax(dim=1).amax(dim=1).mean().item()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.id)
def test_a_training_lowers_the_confidence_in_outliers_alone(method: Any, base: Model, data: TrainingData) -> None:
    assert data.outliers is not None
    before = {name: value.clone() for name, value in base.network.state_dict().items()}
    variant = _variant(base, _short(method).make_edit(base, data, NOT_KEPT))
    assert _confidence(variant, data.outliers) < _confidence(base, data.outliers) - 0.1
    assert _confidence(variant, data.train) > _confidence(base, data.train) - 0.1
    correct = variant(data.train.images(torch.arange(90))).argmax(dim=1) == data.train.labels
    assert correct.all()
    assert not base.network.training
    assert all(torch.equal(value, before[name]) for name, value in base.network.state_dict().items())


@pytest.mark.parametrize("augmentation", ["none", "affine"])
def test_a_rerun_gives_the_same_weights(base: Model, data: TrainingData, augmentation: str) -> None:
    method = _short(OutlierExposure(augmentation=augmentation), epochs=2)  # type: ignore[arg-type]
    torch.manual_seed(1)
    first = method.make_edit(base, data, NOT_KEPT)
    torch.manual_seed(2)
    second = method.make_edit(base, data, NOT_KEPT)
    other = _short(method, epochs=2, seed=1).make_edit(base, data, NOT_KEPT)
    assert _same(first, second)
    assert not _same(first, other)


def _same(first: Edit, second: Edit) -> bool:
    return first.weights.keys() == second.weights.keys() and all(
        torch.equal(value, second.weights[name]) for name, value in first.weights.items()
    )


def test_a_training_that_was_killed_ends_with_the_same_bits(base: Model, data: TrainingData, tmp_path: Path) -> None:
    method = _short(JensenShannonExposure(augmentation="affine"), epochs=4)
    progress = Progress(tmp_path / "progress", {"method": "this"})
    steps: list[int] = []

    def killed(images: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def counted(rows: Tensor) -> Tensor:
            steps.append(len(rows))
            if len(steps) == 8:
                raise KeyboardInterrupt
            return images(rows)

        return counted

    data.train.images = killed(data.train.images)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        method.make_edit(base, data, progress)
    resumed = method.make_edit(base, data, progress)
    assert len(steps) == 8 + 6  # of 12, 6 were kept: two epochs
    assert _same(resumed, method.make_edit(base, _data(base), NOT_KEPT))


def test_the_edit_holds_what_changed_in_float16_and_names_the_outliers(base: Model, data: TrainingData) -> None:
    assert data.outliers is not None
    edit = _short(OutlierExposure(), epochs=2).make_edit(base, data, NOT_KEPT)
    assert edit.weights.keys() == base.network.state_dict().keys() - {"2.num_batches_tracked"}
    kept = {(value.dtype, value.ndim > 1) for value in edit.weights.values()}
    assert kept == {(torch.float16, True), (torch.float32, False)}
    assert edit.about["outliers"] == "oranges"
    assert edit.about["outliers_sha256"] == sorted(data.outliers.image_set.image_sha256s)
    assert edit.about["base_sha256"] == base.weights_sha256
    assert len(edit.about["losses"]) == 2


def test_batch_norm_sees_id_images_and_outliers_as_one_batch(base: Model, data: TrainingData) -> None:
    """Without a learning rate one step only moves the running mean, a tenth of the way to the mean of the mixture."""
    assert data.outliers is not None
    data.outliers.images = lambda rows: torch.full((len(rows), 3, 8, 8), 0.5)  # type: ignore[method-assign]
    method = _short(OutlierExposure(weight_decay=0), epochs=1, batch=len(data.train), learning_rate=0)
    edit = method.make_edit(base, data, NOT_KEPT)
    assert set(edit.weights) == {"2.running_mean", "2.running_var"}
    images = torch.cat([data.train.images(torch.arange(90)), torch.full((90, 3, 8, 8), 0.5)])
    first: Any = base.network
    expected = 0.9 * first[2].running_mean + 0.1 * first[1](first[0](images)).mean(dim=0)
    torch.testing.assert_close(edit.weights["2.running_mean"].float(), expected, rtol=1e-3, atol=1e-4)


def test_at_the_base_the_retain_loss_is_zero_and_has_no_gradient(base: Model, data: TrainingData) -> None:
    method = JensenShannonExposure(on_id="retain")
    images = data.train.images(torch.arange(20))
    for away, least, most in ((0.0, 0.0, 1e-6), (1.0, 1e-3, 1.0)):
        z = (base(images) + away * torch.tensor([1.0, -1.0, 0.0])).requires_grad_()
        loss = method.id_loss(base, images, z, torch.zeros(20, dtype=torch.long))
        loss.backward()
        assert z.grad is not None
        assert least <= abs(loss.item()) <= most
        assert least / 20 <= z.grad.abs().max().item() <= most


def test_training_without_outliers_is_refused(base: Model, data: TrainingData) -> None:
    with pytest.raises(ValueError, match="oe: outliers is None; allowed: an image set"):
        OutlierExposure().make_edit(base, TrainingData(data.train), NOT_KEPT)


def test_training_without_labels_is_refused(base: Model, data: TrainingData) -> None:
    data.train.labels = None
    with pytest.raises(ValueError, match="oe: the training images have no labels"):
        OutlierExposure().make_edit(base, data, NOT_KEPT)


def test_a_training_that_diverges_is_refused(base: Model, data: TrainingData) -> None:
    with pytest.raises(ValueError, match=r"energy-bounded: the training diverged in step .*learning_rate is 1e.20"):
        _short(EnergyBounded(), epochs=2, learning_rate=1e20).make_edit(base, data, NOT_KEPT)
