"""SeTAR+FT and LoRA: where they start, what they train, and what they leave alone."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.func import functional_call

from benchmark.models.classifier import Classifier
from benchmark.models.edits import Edit
from benchmark.models.low_rank import drop_minor_components, removed_components
from benchmark.models.model import Model
from benchmark.training import optimisation as training
from benchmark.training.data import images_of_each_class
from benchmark.training.optimisation import Progress
from benchmark.variants.low_rank_tuning import (
    LoRA,
    SeTARFineTuning,
    crop_and_flip,
    logits_of,
    lora_adapter,
    minor_adapter,
    up_matrices,
    weight_of,
    with_adapters,
)
from benchmark.variants.method import TrainingData
from tests.references.networks import clip_network, model_fields, zero_shot

open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 4
VISION = "visual.transformer.resblocks.{}.mlp.c_fc.weight"
TEXT = "transformer.resblocks.{}.mlp.c_fc.weight"
RATIOS = {
    "clip": {VISION.format(1): 0.4, VISION.format(0): 0.0, TEXT.format(1): 0.25, TEXT.format(0): 0.1},
    "vit": {"blocks.1.mlp.fc1.weight": 0.3, "blocks.0.mlp.fc1.weight": 0.0},
}
SCHEDULE = {"epochs": 3, "batch": 8, "learning_rate": 0.01}


def _clip(folder: Path) -> Model:
    return zero_shot(clip_network(), folder)


def _vit(folder: Path) -> Model:
    network = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES
    )
    nn.init.normal_(network.head.weight)
    return Classifier(*model_fields("vit", network, folder))


@pytest.fixture(params=["clip", "vit"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    torch.manual_seed(0)
    model = {"clip": _clip, "vit": _vit}[request.param](tmp_path)
    about = {"method": "setar", "base_sha256": model.weights_sha256}
    Edit(about, ratios=RATIOS[request.param]).save(tmp_path / "setar")
    return model


@pytest.fixture
def clip(tmp_path: Path) -> Model:
    torch.manual_seed(0)
    model = _clip(tmp_path)
    Edit({"base_sha256": None}, ratios=RATIOS["clip"]).save(tmp_path / "setar")
    return model


class Images:
    """Four classes, each noise about a colour pattern of its own."""

    def __init__(self, per_class: int = 6, size: int = 16, dtype: torch.dtype = torch.float32) -> None:
        generator = Generator().manual_seed(1)
        self.labels = torch.arange(CLASSES).repeat(per_class)
        patterns = torch.randn(CLASSES, 3, size, size, generator=generator)
        noise = torch.randn(len(self.labels), 3, size, size, generator=generator)
        self._images = (patterns[self.labels] + 0.3 * noise).to(dtype)
        self.calls_left = math.inf

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: Tensor) -> Tensor:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise KeyboardInterrupt
        return self._images[rows]


def data(images: Images | None = None) -> TrainingData:
    return TrainingData(images or Images())  # type: ignore[arg-type]


def method(kind: type, **settings: Any) -> Any:
    own = {"ratios_of": "setar"} if kind is SeTARFineTuning else {"adapter_rank": 3}
    common = {"ood_weight": 0.1, "rank": 2, "images_per_class": 4, "schedule": SCHEDULE, "flip": False}
    return kind(**(own | common | settings))


def nothing_kept() -> Progress:
    return Progress(None, {})


BOTH = pytest.mark.parametrize("kind", [SeTARFineTuning, LoRA])


# -- Where the training starts


@BOTH
def test_training_starts_from_the_base(base, kind):
    adapters = method(kind).adapters(base)
    images = Images().images(torch.arange(4))
    before, after = logits_of(base, images), logits_of(with_adapters(base, adapters), images)
    for own, others in zip(before, after, strict=True):
        torch.testing.assert_close(own, others, atol=1e-5, rtol=0)


def test_what_setar_keeps_is_frozen_and_what_it_drops_is_trained(base):
    adapters = method(SeTARFineTuning).adapters(base)
    tuned = with_adapters(base, adapters)
    for name, ratio in RATIOS[base.id].items():
        if ratio == 0:
            assert name not in adapters
            continue
        module = tuned.network.get_submodule(name.removesuffix(".weight"))
        expected = drop_minor_components(base.network.get_parameter(name), ratio)
        torch.testing.assert_close(module.parametrizations.weight.original, expected, atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(2, 12),
    columns=st.integers(2, 12),
    ratio=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    seed=st.integers(),
)
def test_minor_components_are_shared_out_evenly(rows, columns, ratio, seed):
    weight = torch.randn(rows, columns, generator=Generator().manual_seed(seed % 2**63), dtype=torch.float64)
    adapter = minor_adapter(weight, ratio)
    count = removed_components(weight.shape, ratio)
    assert adapter.up.shape == (rows, count)
    assert adapter.down.shape == (count, columns)
    torch.testing.assert_close(weight - adapter.up @ adapter.down, drop_minor_components(weight, ratio))
    values = torch.linalg.svdvals(weight)[len(torch.linalg.svdvals(weight)) - count :]
    torch.testing.assert_close(adapter.up.T @ adapter.up, values.diag())
    torch.testing.assert_close(adapter.down @ adapter.down.T, values.diag())


def test_lora_starts_at_zero_within_its_bound_and_counts_alpha_over_rank_times():
    adapter = lora_adapter(torch.zeros(40, 25), rank=8, alpha=16, generator=Generator().manual_seed(0))
    assert not adapter.up.any()
    assert 0.19 < adapter.down.abs().max() <= 0.2
    assert adapter.down.mean().abs() < 0.03
    nn.init.ones_(adapter.up)
    torch.testing.assert_close(adapter(torch.zeros(40, 25))[0], 2 * adapter.down.sum(dim=0))


# -- What is trained


@BOTH
def test_only_adapters_are_trained(base, kind):
    adapters = method(kind).adapters(base)
    tuned = with_adapters(base, adapters)
    trained = {id(parameter) for parameter in tuned.network.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for adapter in adapters.values() for parameter in adapter.parameters()}


@BOTH
def test_gradients_reach_every_adapter_of_both_towers(base, kind):
    adapters = method(kind).adapters(base)
    logits, local_logits = logits_of(with_adapters(base, adapters), Images().images(torch.arange(4)))
    (logits.square().sum() + local_logits.square().sum()).backward()
    assert all(adapter.up.grad.any() for adapter in adapters.values())


def test_lora_adapts_the_first_matrix_of_every_mlp(base):
    assert set(method(LoRA).adapters(base)) == set(up_matrices(base)) == RATIOS[base.id].keys()


@BOTH
def test_base_stays_as_it_was_and_the_edit_names_adapted_weights_alone(base, kind):
    before = copy.deepcopy(base.network.state_dict())
    chosen = method(kind)
    edit = chosen.make_edit(base, data(), nothing_kept())
    after = base.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert edit.weights.keys() == chosen.adapters(base).keys()
    assert all(not torch.equal(value.float(), before[name].half().float()) for name, value in edit.weights.items())
    assert edit.about["base_sha256"] == base.weights_sha256
    json.dumps(edit.about)


@BOTH
def test_merged_weights_give_what_the_adapters_give(base, kind):
    adapters = method(kind).adapters(base)
    tuned = with_adapters(base, adapters)
    with torch.no_grad():
        for parameter in tuned.network.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=Generator().manual_seed(2))
    merged = replace(base, network=copy.deepcopy(base.network))
    Edit({}, {name: weight_of(tuned.network, name).detach() for name in adapters}).apply(merged.network)
    images = Images().images(torch.arange(4))
    for own, others in zip(logits_of(merged, images), logits_of(tuned, images), strict=True):
        torch.testing.assert_close(own, others.detach(), atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(merged(images), tuned(images), atol=1e-5, rtol=0)
        assert (merged(images) - base(images)).abs().max() > 1e-2


@BOTH
def test_loss_falls(base, kind):
    schedule = {"epochs": 20, "batch": 16, "learning_rate": 0.002}
    losses = method(kind, schedule=schedule, smallest_crop=1.0).make_edit(base, data(), nothing_kept()).about["losses"]
    assert len(losses) == 20
    assert losses[-1] < 0.95 * losses[0]


def test_trained_parameters_are_counted(base):
    edit = method(SeTARFineTuning).make_edit(base, data(), nothing_kept())
    shapes = {name: base.network.get_parameter(name).shape for name in RATIOS[base.id]}
    minor = sum(removed_components(shapes[name], ratio) * sum(shapes[name]) for name, ratio in RATIOS[base.id].items())
    assert edit.about["trained_parameters"] == minor
    edit = method(LoRA).make_edit(base, data(), nothing_kept())
    assert edit.about["trained_parameters"] == 3 * sum(sum(shape) for shape in shapes.values())


# -- Against a plain loop


class Outputs(nn.Module):
    """What a model gives of images, as one function of its weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.network = model, model.network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model.outputs(images)
        network = self.network
        texts = self.model.text_features(self.model.class_names)
        return outputs["logits"], network.logit_scale.exp() * outputs["patches"] @ texts.T


def plain_loss(logits: Tensor, local_logits: Tensor, labels: Tensor, ood_weight: float, rank: int) -> Tensor:
    id_losses, entropies = [], []
    for row, patches, label in zip(logits, local_logits, labels.tolist(), strict=True):
        id_losses.append(-torch.log(row.exp()[label] / row.exp().sum()))
        for patch in patches:
            probabilities = patch.exp() / patch.exp().sum()
            if label not in probabilities.argsort(descending=True)[:rank].tolist():
                entropies.append(-sum(p * torch.log(p + 1e-5) for p in probabilities))
    assert entropies
    return sum(id_losses) / len(id_losses) - ood_weight * sum(entropies) / len(entropies)


@BOTH
def test_a_plain_loop_gives_the_same_losses_and_weights(clip, kind):
    steps, rate, momentum, decay, ood_weight, rank = 4, 0.02, 0.9, 0.01, 0.3, 1
    model = replace(clip, network=copy.deepcopy(clip.network).double())
    images = Images(per_class=3, dtype=torch.float64)
    schedule = {"epochs": steps, "batch": 12, "learning_rate": rate}
    chosen = method(
        kind,
        schedule=schedule,
        momentum=momentum,
        weight_decay=decay,
        ood_weight=ood_weight,
        rank=rank,
        images_per_class=3,
        smallest_crop=1.0,
    )
    edit = chosen.make_edit(model, data(images), nothing_kept())

    factors, frozen, scaling = {}, {}, 1.0
    for name, adapter in chosen.adapters(model).items():
        factors[name] = [adapter.up.detach().clone(), adapter.down.detach().clone()]
        weight = model.network.get_parameter(name)
        if kind is SeTARFineTuning:
            frozen[name] = drop_minor_components(weight, RATIOS["clip"][name])
        else:
            frozen[name], scaling = weight.clone(), 16 / 3
    velocities = {name: [torch.zeros_like(factor) for factor in pair] for name, pair in factors.items()}
    outputs, losses = Outputs(model), []
    for step in range(steps):
        leaves = {name: [factor.clone().requires_grad_() for factor in pair] for name, pair in factors.items()}
        weights = {f"network.{name}": frozen[name] + scaling * up @ down for name, (up, down) in leaves.items()}
        logits, local_logits = functional_call(outputs, weights, images.images(torch.arange(12)))
        loss = plain_loss(logits, local_logits, images.labels, ood_weight, rank)
        loss.backward()
        losses.append(loss.item())
        for name, pair in factors.items():
            for index, factor in enumerate(pair):
                velocity = velocities[name][index]
                velocity.mul_(momentum).add_(leaves[name][index].grad + decay * factor)
                factor -= rate * (1 + math.cos(math.pi * step / steps)) / 2 * velocity
    assert edit.about["losses"] == pytest.approx(losses, abs=1e-9)
    for name, (up, down) in factors.items():
        torch.testing.assert_close(
            edit.weights[name], (frozen[name] + scaling * up @ down).half(), rtol=1e-3, atol=1e-6
        )


# -- Interruptions


@BOTH
@pytest.mark.parametrize("steps_done", [1, 2, 5])
def test_a_killed_training_ends_with_the_same_bits(clip, kind, steps_done, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY_S", -1.0)
    chosen = method(kind, smallest_crop=0.8, flip=True)
    whole = chosen.make_edit(clip, data(), nothing_kept())
    progress = Progress(tmp_path / "progress.safetensors", {"settings": "these"})
    killed = Images()
    killed.calls_left = steps_done
    with pytest.raises(KeyboardInterrupt):
        chosen.make_edit(clip, data(killed), progress)
    resumed = Images()
    again = chosen.make_edit(clip, data(resumed), progress)
    assert again.about == whole.about
    assert all(torch.equal(again.weights[name], whole.weights[name]) for name in whole.weights)


def test_steps_on_other_ratios_are_not_taken_up(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY_S", -1.0)
    progress = Progress(tmp_path / "progress.safetensors", {"settings": "these"})
    killed = Images()
    killed.calls_left = 2
    with pytest.raises(KeyboardInterrupt):
        method(SeTARFineTuning).make_edit(clip, data(killed), progress)
    Edit({"base_sha256": None}, ratios={VISION.format(0): 0.4}).save(tmp_path / "setar")
    resumed = method(SeTARFineTuning).make_edit(clip, data(), progress)
    assert resumed.about["losses"] == method(SeTARFineTuning).make_edit(clip, data(), nothing_kept()).about["losses"]


@BOTH
def test_the_seed_decides(clip, kind):
    def losses(seed: int) -> list[float]:
        torch.manual_seed(torch.seed())
        chosen = method(kind, schedule=SCHEDULE | {"seed": seed}, flip=True, smallest_crop=0.5)
        return chosen.make_edit(clip, data(), nothing_kept()).about["losses"]

    assert losses(0) == losses(0) != losses(1)


# -- What is refused


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (LoRA, {"adapter_rank": 17}, "adapter_rank is 17; allowed: an integer from 1 to 16"),
        (LoRA, {"rank": 5}, "rank is 5; allowed: an integer from 0 to the number of classes, 4"),
        (SeTARFineTuning, {"images_per_class": 7}, "images_per_class is 7; allowed: at most the images of each class"),
        (SeTARFineTuning, {"ratios_of": "nowhere"}, "ratios_of is 'nowhere'; allowed: the folder of a SeTAR edit"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(clip, kind, wrong, message):
    untouched = Images()
    untouched.calls_left = 0
    with pytest.raises(ValueError, match=message):
        method(kind, **wrong).make_edit(clip, data(untouched), nothing_kept())


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({}, "drops no component"),
        ({VISION.format(0): 0.0}, "drops no component"),
        ({VISION.format(7): 0.2}, "no matrix of clip"),
        ({"visual.conv1.weight": 0.2}, "no matrix of clip"),
        ({"visual.transformer.resblocks.0.mlp.c_fc.bias": 0.2}, "no matrix of clip"),
    ],
)
def test_ratios_that_name_no_matrix_are_refused(clip, ratios, message, tmp_path):
    Edit({"base_sha256": None}, ratios=ratios).save(tmp_path / "setar")
    with pytest.raises(ValueError, match=f"ratios_of .*{message}"):
        method(SeTARFineTuning).make_edit(clip, data(), nothing_kept())


def test_ratios_of_other_weights_are_refused(clip, tmp_path):
    Edit({"base_sha256": "another"}, ratios=RATIOS["clip"]).save(tmp_path / "setar")
    with pytest.raises(ValueError, match=r"ratios_of .*other weights"):
        method(SeTARFineTuning).make_edit(clip, data(), nothing_kept())


def test_images_without_labels_are_refused(clip):
    with pytest.raises(ValueError, match="labels"):
        method(LoRA).make_edit(clip, data(SimpleNamespace(labels=None)), nothing_kept())


def test_a_network_without_local_features_has_the_cross_entropy_alone(tmp_path):
    convnext = Classifier(*model_fields("convnext", timm.create_model("test_convnext", num_classes=CLASSES), tmp_path))
    with pytest.raises(ValueError, match=r"ood_weight is 0\.1; allowed: 0"):
        method(LoRA).make_edit(convnext, data(Images(size=32)), nothing_kept())
    assert method(LoRA, ood_weight=0).make_edit(convnext, data(Images(size=32)), nothing_kept()).about["losses"][0] > 0


def test_a_network_without_matrices_is_refused(tmp_path):
    network = timm.create_model("test_resnet", num_classes=CLASSES)
    with pytest.raises(ValueError, match="resnet has no MLPs"):
        method(LoRA).make_edit(Classifier(*model_fields("resnet", network, tmp_path)), data(), nothing_kept())


# -- The images


def test_images_of_each_class_are_drawn_by_the_seed():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 1, 0])
    rows = images_of_each_class(labels, 3, 2, seed=0)
    assert labels[rows].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(rows.tolist())) == 6
    assert torch.equal(rows, images_of_each_class(labels, 3, 2, seed=0))
    assert any(not torch.equal(rows, images_of_each_class(labels, 3, 2, seed)) for seed in range(1, 5))


def test_whole_images_stay_as_they_are():
    images = torch.randn(5, 3, 12, 16)
    kept = crop_and_flip(images, 1.0, False, Generator().manual_seed(0))
    torch.testing.assert_close(kept, images, atol=1e-5, rtol=0)


def test_half_of_the_images_are_mirrored():
    images = torch.randn(200, 3, 6, 6)
    flipped = crop_and_flip(images, 1.0, True, Generator().manual_seed(0))
    mirrored = (flipped - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    kept = (flipped - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (mirrored ^ kept).all()
    assert 70 <= mirrored.sum() <= 130


@settings(max_examples=20, deadline=None)
@given(smallest=st.floats(0.3, 1.0), seed=st.integers(0, 2**32))
def test_crops_lie_in_the_image_and_have_the_area_asked_for(smallest, seed):
    size, count = 64, 30
    # Where a crop shows a coordinate tells where it was cut.
    ramp = ((torch.arange(size) + 0.5) / size).expand(size, size)
    images = torch.stack([ramp, ramp.T, torch.ones_like(ramp)]).expand(count, 3, size, size)
    crops = crop_and_flip(images, smallest, False, Generator().manual_seed(seed))
    assert torch.allclose(crops[:, 2], torch.ones(count, size, size))
    inner = slice(8, -8)  # border pixels repeat the outermost centres
    width = crops[:, 0, :, inner].diff(dim=2).mean(dim=(1, 2)) * size
    height = crops[:, 1, inner].diff(dim=1).mean(dim=(1, 2)) * size
    tolerance = 1e-3
    assert ((width * height > smallest - tolerance) & (width * height < 1 + tolerance)).all()
    assert ((width / height < 4 / 3 + tolerance) & (height / width < 4 / 3 + tolerance)).all()
    for coordinate, side in ((crops[:, 0], width), (crops[:, 1], height)):
        middle = coordinate.mean(dim=(1, 2))
        assert (middle - side / 2 > -tolerance).all()
        assert (middle + side / 2 < 1 + tolerance).all()
