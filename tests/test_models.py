from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from benchmark.classifier import Classifier
from benchmark.models import ModelEntry, ModelError, load_model

CPU = torch.device("cpu")


COLOURS = ("blue", "green", "red")


def entry(folder: Path, source: str = "local-dir:net") -> ModelEntry:
    return ModelEntry(file=folder / "models.toml", title="Net", source=source, recipe="train it")


def load(folder: Path, source: str = "local-dir:net", class_names: Sequence[str] = COLOURS) -> Classifier:
    model = load_model("net", {"net": entry(folder, source)}, CPU, class_names)
    assert isinstance(model, Classifier)
    return model


@pytest.fixture
def model(world: Path) -> Classifier:
    return load(world)


def test_one_pass_gives_features_and_the_networks_own_logits(model: Classifier) -> None:
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        features, logits = model.outputs(images).values()
        expected = model.network(images)
    assert features.shape == (4, model.classifier.in_features)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(features @ model.head.weight.T + model.head.bias, expected)


def test_a_checkpoint_gives_its_own_weights_not_random_ones(world: Path, model: Classifier) -> None:
    again = load(world)
    assert again.weights_sha256 == model.weights_sha256
    random = timm.create_model(f"local-dir:{world / 'net'}", pretrained=False)
    twin = Classifier("net", model.entry, random, model.transform, model.preprocessing, CPU)
    assert twin.weights_sha256 != model.weights_sha256


def test_the_weights_hash_follows_weights_and_structure(world: Path, model: Classifier) -> None:
    changed = load(world)
    with torch.no_grad():
        changed.classifier.bias[0] += 1e-6
    assert changed.weights_sha256 != model.weights_sha256
    other = load(world)
    other.network.act1 = nn.GELU()
    assert other.weights_sha256 != model.weights_sha256


def test_preprocessing_comes_from_the_checkpoint(model: Classifier) -> None:
    assert model.preprocessing["input_size"] == [3, 32, 32]
    assert "Resize(size=32" in model.preprocessing["transform"]


def test_a_model_is_differentiable_in_its_images_and_leaves_no_gradients(model: Classifier) -> None:
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_a_wrong_class_count_is_refused(world: Path) -> None:
    with pytest.raises(ModelError, match="net: local-dir:net has 3 classes, the in-distribution set has 8"):
        load(world, class_names="01234567")


def test_a_missing_checkpoint_is_refused_with_its_recipe(world: Path) -> None:
    with pytest.raises(ModelError, match=r"model net: cannot load local-dir:gone .*train it"):
        load(world, "local-dir:gone")


def test_a_damaged_checkpoint_is_refused(own_world: Path) -> None:
    weights = own_world / "net" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="model net: cannot load"):
        load(own_world)


def test_a_head_that_is_not_one_linear_layer_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    network.fc = nn.Sequential(nn.Linear(96, 3))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: network)
    with pytest.raises(ModelError, match="Sequential, not one linear layer"):
        load(world)


def network(name: str) -> Classifier:
    if name == "swin":
        net = SwinTransformer(32, 2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), num_classes=3)
    else:
        net = (
            timm.create_model(name, num_classes=3, img_size=32)
            if "vit" in name
            else timm.create_model(name, num_classes=3)
        )
    config = {"input_size": [3, 32, 32]}
    return Classifier(name, entry(Path()), net.eval().requires_grad_(False), lambda image: image, config, CPU)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "swin"])
def test_what_detectors_ask_of_a_network_fits_together(name: str) -> None:
    model = network(name)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    torch.testing.assert_close(model.classifier(model.features(images)), model(images))
    feature_map = model.feature_map(images)
    assert feature_map.shape[::2] == (2, model.network.num_features)
    torch.testing.assert_close(model.logits_of_map(feature_map), model(images))
    layers = model.layers(images)
    assert len(layers) > 1
    assert all(layer.ndim == 2 and len(layer) == 2 for layer in layers)
    for part in (model.features(images), feature_map, model.logits_of_map(feature_map), *layers):
        (gradient,) = torch.autograd.grad(part.sum(), images, retain_graph=True, allow_unused=True)
        assert gradient is not None
    # Each row is of its own image.
    for row, both in zip(model.layers(images[:1]), layers, strict=True):
        torch.testing.assert_close(row, both[:1])


def test_layers_that_timm_does_not_give_are_refused(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Classifier("plain", model.entry, nn.Linear(1, 1), model.transform, model.preprocessing, CPU)
    monkeypatch.setattr(Classifier, "architecture", "plain-net")
    with pytest.raises(ModelError, match="model plain: timm gives no intermediate outputs of plain-net"):
        plain.layers(torch.rand(1, 3, 8, 8))
