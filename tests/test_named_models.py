"""What --model takes: networks of other libraries and files of weights as what they are, or with what to do."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from benchmark.errors import UserError
from benchmark.models.classifier import Classifier
from benchmark.models.entries import ModelError
from benchmark.models.loading import load_model
from benchmark.models.user_network import prepare_network
from benchmark.running.loaded_model import order_of_outputs
from benchmark.user.models import named_model

COLOURS = ("blue", "green", "red")
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def load(text: str) -> Classifier:
    model_id, entry = named_model(text, {})
    model = load_model(model_id, {model_id: entry}, CPU, COLOURS)
    assert isinstance(model, Classifier)
    return model


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("net.onnx", "networks in ONNX are not run: .* with --outputs"),
        ("net.pt", r"does not say of which network they are.*state-dict:ARCHITECTURE:\S+net\.pt\. .*is code"),
        ("net.pth", r"torch\.load\('net\.pth', weights_only=True\)"),
        ("net.safetensors", "does not say of which network they are"),
        ("net.txt", "this is a file of no kind that holds weights: name hf-hub:OWNER/NAME"),
    ],
)
def test_a_file_gets_what_to_do_and_is_not_opened(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(UserError, match=rf"^--model {re.escape(str(tmp_path / name))}: .*{says}") as caught:
        named_model(str(tmp_path / name), {})
    assert "\n" not in str(caught.value)


def test_a_state_dict_is_loaded_into_the_architecture_that_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        model = load(f"state-dict:test_resnet:{tmp_path / name}")
        assert model.id == "test_resnet-weights"
        images = torch.rand(2, *model.preprocessing["input_size"])
        torch.testing.assert_close(model(images), network(images))
    for text, says in {
        "state-dict:test_resnt:weights.pth": "no architecture 'test_resnt' (did you mean 'test_resnet'?)",
        "state-dict:test_resnet": "name the file of the weights: state-dict:ARCHITECTURE:FILE",
        f"state-dict:test_resnet:{tmp_path / 'gone.pth'}": "there is no file",
    }.items():
        with pytest.raises(UserError, match=re.escape(says)):
            named_model(text, {})


def test_a_network_of_torchvision_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    untrained = models.resnet18(num_classes=3)
    asked: list[Any] = []
    monkeypatch.setattr(models, "get_model", lambda name, weights: asked.append(weights) or untrained)
    model = load("torchvision:resnet18")
    assert asked == [models.ResNet18_Weights.DEFAULT]
    assert model.id == "torchvision-resnet18"
    assert (model.architecture, model.feature_dimensions) == ("ResNet", 512)
    assert model.preprocessing["transform"].startswith("ImageClassification( crop_size=[224]")
    assert model.label_names[0][:2] == ("tench", "goldfish")
    load("torchvision:resnet18/IMAGENET1K_V1")
    for text, says in {
        "torchvision:resnet": "no classifier 'resnet'",
        "torchvision:resnet18/V9": "resnet18 has no weights 'V9', but IMAGENET1K_V1",
    }.items():
        with pytest.raises(ModelError, match=says):
            load(text)


def test_a_classifier_of_transformers_is_taken_with_its_names(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=3,
        id2label={0: "red", 1: "blue", 2: "green"},
    )
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    model = load(f"transformers:{tmp_path / 'vit'}")
    assert (model.id, model.architecture, model.feature_dimensions) == ("vit", "ViTForImageClassification", 16)
    assert order_of_outputs("vit", model.label_names, COLOURS, COLOURS, 3) == ("red", "blue", "green")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(images), network(pixel_values=images).logits)
    outputs = model.outputs(images)
    torch.testing.assert_close(outputs["features"] @ model.head.weight.T + model.head.bias, outputs["logits"])
    with pytest.raises(UserError, match=f"this is a folder of transformers: name transformers:{tmp_path}/vit"):
        named_model(f"local-dir:{tmp_path / 'vit'}", {})
    (tmp_path / "vit" / "model.safetensors").rename(tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="model vit: cannot use transformers:"):  # no pickle is read
        load(f"transformers:{tmp_path / 'vit'}")


def test_transformers_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'it needs transformers: pip install "ood-benchmark\[transformers\]"'):
        load("transformers:me/vit")


def test_a_timm_network_with_a_head_of_its_own_works_as_one_of_torchvision_does() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3)
    width = network.num_features
    network.fc = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3))
    headed, _, about = prepare_network(network.eval(), None, None, None)
    images = torch.rand(2, *about["input_size"])
    assert headed.forward_features(images).shape == (2, 8)
    torch.testing.assert_close(headed(images), network(images))
    assert headed.get_classifier().out_features == 3
