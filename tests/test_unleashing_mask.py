"""Unleashing Mask: the loss target, the trainings that hold to it, and the controls that do not."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmark.images.image_set import load_image_set
from benchmark.models.classifier import Classifier
from benchmark.models.edits import Edit, load_edit
from benchmark.models.loading import load_model
from benchmark.models.model import Model
from benchmark.suites.loading import load_suite
from benchmark.training.optimisation import Progress, Schedule
from benchmark.variants import unleashing_mask
from benchmark.variants.method import Method, TrainingData
from benchmark.variants.outliers import OutlierTerm
from benchmark.variants.unleashing_mask import (
    UM,
    UMAP,
    LearnedPruning,
    LossTarget,
    estimate_loss_target,
    flooding_objective,
    keep_largest,
    maskable_weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NO_PROGRESS = Progress(None, {})
TARGET = 0.3
SHORT = Schedule(epochs=2, batch=16, learning_rate=0.05)
TERM = OutlierTerm(loss="uniform", weight=0.5)


class Images:
    """Stands in for a TrainingSet. calls: how many batches were asked for; after `stop` of them the power fails."""

    def __init__(self, images: Tensor, labels: Tensor | None, stop: int | None = None) -> None:
        self.pixels, self.labels, self.stop, self.calls = images, labels, stop, 0
        self.image_set = SimpleNamespace(id="some", image_sha256s={"0": "some"})

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: Tensor) -> Tensor:
        self.calls += 1
        if self.stop is not None and self.calls > self.stop:
            raise KeyboardInterrupt
        return self.pixels[rows]


@pytest.fixture(scope="module")
def base() -> Model:
    entries = load_suite("digits").known_models
    return load_model("digits-resnet", entries, torch.device("cpu"), "01234567")


@pytest.fixture(scope="module")
def pixels(base: Model) -> tuple[Tensor, Tensor]:
    """144 digits, of which the smaller tests take some."""
    image_set = load_image_set("digits-val")
    images = torch.stack([base.transform(image_set[index]) for index in range(len(image_set))])
    return images, torch.as_tensor(image_set.labels).long()


@pytest.fixture
def images(pixels: tuple[Tensor, Tensor]) -> Images:
    return Images(*pixels)


@pytest.fixture
def few(pixels: tuple[Tensor, Tensor]) -> Images:
    return Images(pixels[0][:48], pixels[1][:48])


def data(train: Images, outliers: Images | None = None) -> TrainingData:
    return TrainingData(train=train, outliers=outliers)  # type: ignore[arg-type]


def noise(count: int = 30) -> Images:
    return Images(torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)), None)


def variant(base: Model, edit: Edit) -> Model:
    changed = replace(base, network=copy.deepcopy(base.network))
    edit.apply(changed.network)
    return changed


def weights_hash(model: Model) -> str:
    return replace(model).weights_sha256


# --- masks


@given(
    st.lists(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20, unique=True), min_size=1, max_size=3),
    st.floats(0.01, 1),
)
def test_the_largest_scores_of_each_layer_stay(layers: list[list[float]], kept: float) -> None:
    masks = keep_largest({str(index): torch.tensor(layer) for index, layer in enumerate(layers)}, kept)
    for index, layer in enumerate(layers):
        removed = round((1 - kept) * len(layer))
        dropped = sorted(layer)[:removed]
        assert masks[str(index)].tolist() == [value not in dropped for value in layer]


def test_over_the_whole_model_the_largest_scores_of_all_stay() -> None:
    scores = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([9.0, 0.0, 8.0, 7.0])}
    masks = keep_largest(scores, 0.5, "model")
    assert masks["a"].tolist() == [[False, False], [False, True]]
    assert masks["b"].tolist() == [True, False, True, True]


def test_only_convolutional_and_linear_weights_are_masked(base: Model) -> None:
    kinds = {type(base.network.get_submodule(name.removesuffix(".weight"))) for name in maskable_weights(base)}
    assert kinds == {nn.Conv2d, nn.Linear}
    assert len(maskable_weights(base)) == 16


# --- the loss target


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_loss_target_by_magnitude_is_that_of_a_plain_loop(base: Model, few: Images, scope: Any) -> None:
    estimate = estimate_loss_target(base, few, 0.6, scope=scope, by="magnitude")  # type: ignore[arg-type]
    network = copy.deepcopy(base.network)
    modules = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    sizes = [np.abs(module.weight.detach().numpy()) for module in modules]
    everything = np.sort(np.concatenate([size.ravel() for size in sizes]))
    for module, size in zip(modules, sizes, strict=True):
        ranked = np.sort(size.ravel()) if scope == "layer" else everything
        smallest_kept = ranked[round(0.4 * ranked.size)]
        module.weight.data[torch.from_numpy(size < smallest_kept)] = 0
    logits = network(few.pixels).double().numpy()
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    chosen = (shifted / shifted.sum(1, keepdims=True))[np.arange(len(few)), few.labels]
    assert estimate.losses == (pytest.approx(-np.log(chosen).mean(), rel=1e-5),)
    assert estimate.spread == 0


def test_a_network_of_which_nothing_stays_shows_the_loss_of_its_bias(base: Model, few: Images) -> None:
    estimate = estimate_loss_target(base, few, 1e-9, masks=2)  # type: ignore[arg-type]
    of_bias = cross_entropy(base.head.bias.expand(len(few), -1), few.labels).item()
    assert estimate.losses == pytest.approx([of_bias, of_bias])


def test_with_all_weights_the_target_is_the_networks_own_loss(base: Model, few: Images) -> None:
    estimate = estimate_loss_target(base, few, 1, masks=2)  # type: ignore[arg-type]
    own = cross_entropy(base(few.pixels), few.labels).item()
    assert estimate.losses == pytest.approx([own, own], rel=1e-4)


def test_masked_loss_grows_as_fewer_weights_stay(base: Model, few: Images) -> None:
    targets = [estimate_loss_target(base, few, kept).mean for kept in (1, 0.99, 0.97, 0.9)]  # type: ignore[arg-type]
    assert targets == sorted(targets)
    assert targets[-1] > 5 * targets[0]


def test_the_masks_of_a_seed_are_always_the_same(base: Model, few: Images) -> None:
    first, again = (estimate_loss_target(base, few, 0.97, masks=masks) for masks in (3, 2))  # type: ignore[arg-type]
    assert first.losses[:2] == again.losses
    assert len(set(first.losses)) == 3
    other = estimate_loss_target(base, few, 0.97, seed=1, masks=3)  # type: ignore[arg-type]
    assert not set(first.losses) & set(other.losses)


def test_spread_is_the_standard_deviation_over_masks() -> None:
    assert LossTarget((1.0, 2.0, 6.0)).mean == 3
    assert LossTarget((1.0, 2.0, 6.0)).spread == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert LossTarget((1.0,)).spread == 0


def test_some_batches_are_a_part_of_the_images(base: Model, few: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unleashing_mask, "PASS_BATCH", 16)
    estimate_loss_target(base, few, 0.97, masks=1, batches=2)  # type: ignore[arg-type]
    assert few.calls == 2
    whole, more = (estimate_loss_target(base, few, 0.97, batches=count) for count in (None, 9))  # type: ignore[arg-type]
    assert whole == more


def test_the_target_of_moved_images_is_another(base: Model, few: Images) -> None:
    plain = estimate_loss_target(base, few, 1, masks=1)  # type: ignore[arg-type]
    moved = estimate_loss_target(base, few, 1, masks=1, augmentation="affine")  # type: ignore[arg-type]
    assert plain != moved


def test_an_estimate_goes_on_where_it_was_killed(base: Model, few: Images, tmp_path: Path) -> None:
    progress = Progress(tmp_path / "target", {"a": 1})
    expected = estimate_loss_target(base, few, 0.97, masks=4)  # type: ignore[arg-type]
    killed = Images(few.pixels, few.labels, stop=2)
    with pytest.raises(KeyboardInterrupt):
        estimate_loss_target(base, killed, 0.97, masks=4, progress=progress)  # type: ignore[arg-type]
    few.calls = 0
    assert estimate_loss_target(base, few, 0.97, masks=4, progress=progress) == expected  # type: ignore[arg-type]
    assert few.calls == 2


# --- the objective


@given(st.floats(0, 5), st.floats(0, 5))
def test_objective_descends_above_the_target_and_ascends_below(loss: float, target: float) -> None:
    value = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
    objective = flooding_objective(target)(value)
    objective.backward()
    assert objective.item() == pytest.approx(max(loss, 2 * target - loss))
    assert value.grad is not None
    assert value.grad.item() == np.sign(loss - target)


# --- the trainings

TRAINED = Schedule(epochs=12, batch=36, learning_rate=0.05)


def losses_of(method: Method, base: Model, train: Images) -> list[float]:
    return method.make_edit(base, data(train), NO_PROGRESS).about["losses"]


def settled(losses: list[float]) -> bool:
    return abs(np.mean(losses[-4:]) / TARGET - 1) < 0.3


@pytest.mark.parametrize("method", [UM, UMAP])
def test_training_loss_settles_at_the_target(method: type[UM] | type[UMAP], base: Model, images: Images) -> None:
    assert settled(losses_of(method(loss_target=TARGET, schedule=TRAINED), base, images))


def test_without_the_absolute_value_the_loss_does_not_settle(
    base: Model, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unleashing_mask, "flooding_objective", lambda _: lambda loss: loss)
    losses = losses_of(UM(loss_target=TARGET, schedule=TRAINED), base, images)
    assert not settled(losses)
    assert losses[-1] < 0.1 * TARGET


def test_under_plain_pruning_the_loss_does_not_settle(base: Model, images: Images) -> None:
    losses = losses_of(LearnedPruning(schedule=TRAINED), base, images)
    assert not settled(losses)
    assert losses[-1] < 0.3 * TARGET


@pytest.mark.parametrize(
    "training",
    [
        UM(loss_target=TARGET, schedule=SHORT, augmentation="affine"),
        UM(target_kept=0.97, target_masks=2, schedule=SHORT, outliers=TERM),
        UMAP(loss_target=TARGET, schedule=SHORT, outliers=TERM),
        LearnedPruning(schedule=SHORT),
    ],
    ids=["um", "um-outliers", "umap-outliers", "learned-pruning"],
)
def test_a_training_goes_on_where_it_was_killed_and_leaves_the_base(
    training: UM | UMAP | LearnedPruning, base: Model, few: Images, tmp_path: Path
) -> None:
    before = weights_hash(base)
    expected = training.make_edit(base, data(few, noise()), NO_PROGRESS)
    assert few.calls >= 6
    progress = Progress(tmp_path / "kept", training.about(base))
    killed = Images(few.pixels, few.labels, stop=few.calls - 2)
    with pytest.raises(KeyboardInterrupt):
        training.make_edit(base, data(killed, noise()), progress)
    resumed = Images(few.pixels, few.labels)
    edit = training.make_edit(base, data(resumed, noise()), progress)
    assert 0 < resumed.calls < few.calls
    assert edit.about == expected.about
    for part, other in ((edit.weights, expected.weights), (edit.masks, expected.masks)):
        assert part.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in part.items())
    assert weights_hash(base) == before
    assert not any(parameter.requires_grad for parameter in base.network.parameters())
    assert not base.network.training


def test_um_keeps_all_that_changed(base: Model, few: Images, tmp_path: Path) -> None:
    edit = UM(loss_target=TARGET, schedule=SHORT).make_edit(base, data(few), NO_PROGRESS)
    floats = {name for name, value in base.network.state_dict().items() if value.is_floating_point()}
    assert edit.weights.keys() == floats
    assert edit.weights["fc.weight"].dtype == torch.float16
    assert edit.weights["bn1.running_var"].dtype == torch.float32
    assert edit.about["classified_by_base"] is False
    assert edit.about["loss_target"] == TARGET
    edit.save(tmp_path)
    assert variant(base, load_edit(tmp_path)).weights_sha256 == variant(base, edit).weights_sha256


def test_um_without_training_steps_changes_no_weight(base: Model, few: Images) -> None:
    still = UM(loss_target=TARGET, schedule=SHORT.model_copy(update={"learning_rate": 0.0}))
    assert all("running" in name for name in still.make_edit(base, data(few), NO_PROGRESS).weights)


def test_umap_masks_weights_and_renews_batchnorm_statistics_alone(base: Model, few: Images) -> None:
    edit = UMAP(kept=0.7, loss_target=TARGET, schedule=SHORT).make_edit(base, data(few), NO_PROGRESS)
    assert edit.masks.keys() == maskable_weights(base).keys()
    for mask in edit.masks.values():
        assert int(mask.sum()) == mask.numel() - round(0.3 * mask.numel())
    assert all(name.endswith(("running_mean", "running_var")) for name in edit.weights)
    assert edit.about["classified_by_base"] is True
    masked = variant(base, edit)
    assert weights_hash(masked) != weights_hash(base)


def test_a_score_gets_the_gradient_of_its_mask(base: Model, few: Images) -> None:
    schedule = Schedule(epochs=1, batch=len(few), learning_rate=0.5, seed=3)
    edit = UMAP(kept=0.8, loss_target=50, schedule=schedule, weight_decay=0.1).make_edit(base, data(few), NO_PROGRESS)
    network = copy.deepcopy(base.network).train()
    weights = {name: network.get_parameter(name) for name in maskable_weights(base)}
    frozen = {name: weight.detach().clone() for name, weight in weights.items()}
    scores = unleashing_mask._initial_scores(frozen, seed=3)
    changed = 0
    with torch.no_grad():
        for name, mask in keep_largest({name: score.abs() for name, score in scores.items()}, 0.8).items():
            weights[name].copy_(frozen[name] * mask).requires_grad_()
    cross_entropy(network(few.pixels), few.labels).backward()
    for name, score in scores.items():
        gradient = weights[name].grad
        assert gradient is not None
        ascent = -gradient * frozen[name] * score.sign()  # the loss is below the target
        stepped = (score - 0.5 * (ascent + 0.1 * score)).detach().abs()
        size = stepped.flatten().sort().values
        threshold = size[round(0.2 * size.numel())]
        clear = (stepped - threshold).abs() > 1e-5  # of the order of the sums, some ranks hang
        assert torch.equal((stepped >= threshold)[clear], edit.masks[name][clear])
        changed += int((edit.masks[name] != (frozen[name] * 0 + (score.abs() >= score.abs().quantile(0.2)))).sum())
    assert changed > 100


@pytest.mark.parametrize("term", [None, TERM])
@pytest.mark.parametrize("target", [0.0, 50.0])
def test_a_step_of_um_is_that_of_the_formula(base: Model, few: Images, term: OutlierTerm | None, target: float) -> None:
    outlier = noise(1)
    schedule = Schedule(epochs=1, batch=len(few), learning_rate=0.1)
    training = UM(loss_target=target, schedule=schedule, weight_decay=0.1, outliers=term)
    edit = training.make_edit(base, data(few, outlier), NO_PROGRESS)
    assert edit.about.get("outliers") == (None if term is None else "some")
    network = copy.deepcopy(base.network).train().requires_grad_()
    images = few.pixels if term is None else torch.cat([few.pixels, outlier.pixels.expand(len(few), -1, -1, -1)])
    logits = network(images)
    descent = cross_entropy(logits[: len(few)], few.labels) * (1 if target == 0 else -1)
    uniform = 0 if term is None else (logits[len(few) :].logsumexp(1) - logits[len(few) :].mean(1)).mean()
    (descent + 0.5 * uniform).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        stepped = parameter.detach() - 0.1 * (parameter.grad + 0.1 * parameter.detach())
        torch.testing.assert_close(edit.weights[name].float(), stepped, rtol=1e-3, atol=1e-4)


# --- refusals


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"target_kept": 0}, "target_kept"),
        ({"target_kept": 1.1}, "target_kept"),
        ({"loss_target": -0.1}, "loss_target"),
        ({"loss_target": float("inf")}, "loss_target"),
        ({"kept": 0}, "kept"),
        ({"kept": 1.01}, "kept"),
        ({"target_masks": 0}, "target_masks"),
        ({"augmentation": "flip"}, "augmentation"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"keep": 0.8}, "keep"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], setting: str) -> None:
    with pytest.raises(ValidationError) as error:
        UMAP(**settings)
    assert error.value.errors()[0]["loc"] == (setting,)


@pytest.mark.parametrize(
    ("settings", "setting"),
    [({"kept": 0}, "kept"), ({"kept": 1.5}, "kept"), ({"masks": 0}, "masks"), ({"batches": 0}, "batches")],
)
def test_estimates_out_of_range_are_refused_by_name(
    base: Model, few: Images, settings: dict[str, Any], setting: str
) -> None:
    with pytest.raises(ValueError, match=f"loss target: {setting} is {settings[setting]}; allowed: "):
        estimate_loss_target(base, few, **({"kept": 0.9} | settings))  # type: ignore[arg-type]
    assert few.calls == 0


@pytest.mark.parametrize("method", [UM(outliers=TERM), UMAP(outliers=TERM)])
def test_outliers_that_the_suite_does_not_name_are_refused(method: Method, base: Model, few: Images) -> None:
    with pytest.raises(ValueError, match=f"{method.id}: outliers is 'uniform'; allowed: none"):
        method.make_edit(base, data(few), NO_PROGRESS)
    assert few.calls == 0


@pytest.mark.parametrize("method", [UM(), UMAP(), LearnedPruning()])
def test_networks_and_images_that_do_not_fit_are_refused(method: Method, base: Model, few: Images) -> None:
    bare = replace(base, network=nn.Sequential(nn.Flatten(), nn.LayerNorm(3)))
    with pytest.raises(ValueError, match="model digits-resnet: the network has no convolutional or linear weight"):
        method.make_edit(bare, data(few), NO_PROGRESS)
    other = SimpleNamespace(id="clip", network=base.network)
    with pytest.raises(ValueError, match="model clip: a mask needs an image classifier"):
        method.make_edit(other, data(few), NO_PROGRESS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{method.id}: the training images have no labels"):
        method.make_edit(base, data(Images(few.pixels, None)), NO_PROGRESS)
    assert isinstance(base, Classifier)
    assert few.calls == 0


def test_a_last_batch_of_one_image_is_refused_where_batchnorm_is(base: Model, few: Images) -> None:
    with pytest.raises(ValueError, match=r"umap: schedule\.batch is 47; allowed: "):
        UMAP(schedule=Schedule(epochs=1, batch=47, learning_rate=0.1)).make_edit(base, data(few), NO_PROGRESS)
    assert few.calls == 0


def test_a_training_that_diverges_is_no_variant(base: Model, few: Images) -> None:
    fast = UM(loss_target=TARGET, schedule=Schedule(epochs=2, batch=16, learning_rate=1e30))
    with pytest.raises(
        ValueError, match=r"um: the training diverged .*learning_rate is 1e\+30; allowed: a smaller one"
    ):
        fast.make_edit(base, data(few), NO_PROGRESS)
