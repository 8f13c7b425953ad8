"""Models: checkpoints, state dicts and a user's networks become features and a linear head, or are refused."""

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from open_clip import list_pretrained
from safetensors.torch import save_file
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

import benchmark.models.cifar_networks  # noqa: F401  # it registers them with timm
from benchmark.entries import DATA_DIR, read_entries
from benchmark.models.checksums import NAME, ChecksumError, check_checksums, with_checksums
from benchmark.models.class_order import check_order
from benchmark.models.classifier import Classifier, load_classifier
from benchmark.models.entries import BUILT_IN, OPEN_CLIP, MissingWeightsError, ModelEntry, ModelError
from benchmark.models.loading import load_model
from benchmark.models.state_dicts import StateDictError, load_state_dict
from benchmark.user.messages import on_command_line, told

CPU = torch.device("cpu")
PUBLISHED = Path(__file__).parents[2] / "shared" / "published"

pytestmark = pytest.mark.usefixtures("one_thread")


COLOURS = ("blue", "green", "red")


def entry(folder: Path, source: str = "local-dir:net") -> ModelEntry:
    return ModelEntry.in_file(folder / "models.toml", title="Net", source=source, recipe="train it")


def load(folder: Path, source: str = "local-dir:net", class_names: Sequence[str] = COLOURS) -> Classifier:
    model = load_model("net", {"net": entry(folder, source)}, CPU, class_names)
    assert isinstance(model, Classifier)
    return model


@pytest.fixture
def model(world: Path) -> Classifier:
    return load(world)


def test_one_pass_gives_features_and_the_logits_of_the_network(model: Classifier) -> None:
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        features, logits = model.outputs(images).values()
        expected = model.network(images)
    assert features.shape == (4, model.classifier.in_features)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(features @ model.head.weight.T + model.head.bias, expected)


def test_a_model_has_the_weights_of_its_checkpoint(world: Path, model: Classifier) -> None:
    again = load(world)
    assert again.weights_sha256 == model.weights_sha256
    random = timm.create_model(f"local-dir:{world / 'net'}", pretrained=False)
    twin = Classifier("net", model.entry, random, model.transform, model.preprocessing, CPU)
    assert twin.weights_sha256 != model.weights_sha256


def test_the_weights_hash_changes_with_weights_and_structure(world: Path, model: Classifier) -> None:
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


def test_a_model_can_be_differentiated_by_its_images_and_keeps_no_gradients(model: Classifier) -> None:
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_a_checkpoint_with_another_number_of_classes_is_refused(world: Path) -> None:
    model = load(world, class_names="01234567")
    with pytest.raises(ModelError, match="model net: it has 3 classes, the in-distribution images have 8: 0, 1, 2"):
        check_order("net", model.label_names, (*"01234567",), (*"01234567",), model.classes)


def test_a_missing_checkpoint_is_refused_with_its_recipe(world: Path) -> None:
    with pytest.raises(ModelError, match="model net: cannot load local-dir:gone") as refused:
        load(world, "local-dir:gone")
    assert told(refused.value).endswith("; make it again with: train it")


def test_a_damaged_checkpoint_is_refused(user_world: Path) -> None:
    weights = user_world / "net" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="model net: cannot load"):
        load(user_world)


def test_a_head_that_is_not_one_linear_layer_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    network.fc = nn.Sequential(nn.Linear(96, 3))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: network)
    with pytest.raises(ModelError, match="Sequential, not one linear layer"):
        load(world)


def bit(classes: int = 3) -> nn.Module:
    """A BiT, whose head is a 1 x 1 convolution, with fewer layers and channels."""
    torch.manual_seed(0)
    return ResNetV2((1, 1), (128, 128), num_classes=classes, stem_chs=32, stem_type="fixed", conv_layer=StdConv2d)


def network(name: str) -> Classifier:
    if name == "bit":
        net = bit()
    elif name == "swin":
        net = SwinTransformer(32, 2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), num_classes=3)
    else:
        net = (
            timm.create_model(name, num_classes=3, img_size=32)
            if "vit" in name
            else timm.create_model(name, num_classes=3)
        )
    config = {"input_size": [3, 32, 32]}
    return Classifier(name, entry(Path()), net.double().eval().requires_grad_(False), lambda image: image, config, CPU)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "swin", "bit", "cifar_wide_resnet40_2"])
def test_features_layers_feature_maps_and_logits_agree(name: str) -> None:
    model = network(name)  # in float64, where the order of a sum does not matter at the tolerance of assert_close
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(model.features(images) @ model.head.weight.T + model.head.bias, model(images))
    torch.testing.assert_close(model.outputs(images)["logits"], model(images))
    feature_map = model.feature_map(images)
    assert feature_map.shape[::2] == (2, model.network.num_features)
    torch.testing.assert_close(model.logits_of_map(feature_map), model(images))
    layers = model.layers(images)
    assert len(layers) > 1
    assert all(layer.ndim == 2 and len(layer) == 2 for layer in layers)
    for part in (model.features(images), feature_map, model.logits_of_map(feature_map), *layers):
        (gradient,) = torch.autograd.grad(part.sum(), images, retain_graph=True, allow_unused=True)
        assert gradient is not None
    # Each row depends only on its own image.
    for row, both in zip(model.layers(images[:1]), layers, strict=True):
        torch.testing.assert_close(row, both[:1])


def test_an_architecture_without_intermediate_outputs_is_refused(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Classifier("plain", model.entry, nn.Linear(1, 1), model.transform, model.preprocessing, CPU)
    monkeypatch.setattr(Classifier, "architecture", "plain-net")
    with pytest.raises(ModelError, match="model plain: timm gives no intermediate outputs of plain-net"):
        plain.layers(torch.rand(1, 3, 8, 8))


# ---- The built-in entries --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built_in() -> dict[str, ModelEntry]:
    return read_entries(BUILT_IN, ModelEntry)


def test_every_source_is_a_checkpoint_that_timm_or_open_clip_knows(built_in: dict[str, ModelEntry]) -> None:
    tags, pairs = set(timm.list_pretrained()), {f"{OPEN_CLIP}{'/'.join(pair)}" for pair in list_pretrained()}
    for model_id, entry in built_in.items():
        if entry.weights:
            assert timm.is_model(entry.source.partition(":")[2]), model_id
        elif ":" not in entry.source and entry.source:
            assert entry.source in tags, model_id
            assert model_id in (entry.source, "swinv2-base"), model_id
        elif entry.source.startswith(OPEN_CLIP) and "-dir:" not in entry.source and "-hub:" not in entry.source:
            assert entry.source in pairs, model_id


def test_all_networks_of_the_papers_have_an_entry(built_in: dict[str, ModelEntry]) -> None:
    of_paper = {
        paper: [entry.papers[paper] for entry in built_in.values() if paper in entry.papers]
        for paper in ("ninco", "mahalanobispp")
    }
    assert {paper: len(set(names)) for paper, names in of_paper.items()} == {"ninco": 28, "mahalanobispp": 43}
    assert all(len(names) == len(set(names)) for names in of_paper.values())
    for paper, names in of_paper.items():
        if not PUBLISHED.is_dir():
            pytest.skip("needs the published tables (../shared/published)")
        table = (PUBLISHED / f"{paper}_tables.csv").read_text()
        assert [name for name in names if f",{name}," not in table] == []


@pytest.mark.parametrize(
    ("model_id", "size", "crop_pct", "crop_mode"),
    [
        ("convnext_base.fb_in22k_ft_in1k", 288, 1.0, "center"),
        ("convnextv2_tiny.fcmae_ft_in22k_in1k_384", 384, 1.0, "squash"),
        ("eva02_tiny_patch14_336.mim_in22k_ft_in1k", 336, 1.0, "center"),
        ("tf_efficientnetv2_s.in1k", 384, 1.0, "center"),
        ("efficientnet_b0.ra_in1k", 224, 0.875, "center"),
        ("mixer_b16_224.goog_in21k_ft_in1k", 224, 0.875, "center"),
        ("swinv2_small_window16_256.ms_in1k", 256, 0.9, "center"),
        ("xcit_medium_24_p16_224.fb_dist_in1k", 224, 1.0, "center"),
        ("resnetv2_101x1_bit.goog_in21k_ft_in1k", 448, 1.0, "center"),
        ("resnet50.tv2_in1k", 224, 0.965, "center"),
        ("vit_small_patch16_224.augreg_in1k", 224, 0.9, "center"),
        ("vit_base_patch16_clip_384.openai_ft_in12k_in1k", 384, 0.95, "squash"),
        ("vit_so400m_patch14_siglip_378.webli_ft_in1k", 378, 1.0, "squash"),
    ],
)
def test_a_network_of_every_family_gives_features_at_its_test_size(
    built_in: dict[str, ModelEntry],
    monkeypatch: pytest.MonkeyPatch,
    model_id: str,
    size: int,
    crop_pct: float,
    crop_mode: str,
) -> None:
    """On torch's meta device, which computes only shapes. The sizes are those of Mahalanobis++'s and NINCO's tables."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda source, pretrained: create(source))
    with torch.device("meta"):
        model = load_model(model_id, built_in, torch.device("meta"), [str(index) for index in range(1000)])
        outputs = model.outputs(torch.rand(1, 3, size, size))
        assert model(torch.rand(1, 3, size, size)).shape == outputs["logits"].shape == (1, 1000)
    about = model.preprocessing
    assert (about["input_size"], about["crop_pct"], about["crop_mode"]) == ([3, size, size], crop_pct, crop_mode)


# ---- Heads that are not linear --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "says"),
    [
        ("deit_tiny_distilled_patch16_224", 3, "the mean of 2 (Linear, Linear), not one linear layer"),
        ("levit_128s", 3, "the mean of 2 (NormLinear, NormLinear), not one linear layer"),
        ("vit_tiny_patch16_224", 0, "missing (it gives features alone), not one linear layer"),
    ],
)
def test_a_head_that_is_not_linear_is_refused_and_described(
    world: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int, says: str
) -> None:
    net = timm.create_model(name, num_classes=classes)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: net)
    with pytest.raises(ModelError, match=re.escape(f"model net: the head of local-dir:net is {says}")) as error:
        load(world)
    assert "\n" not in str(error.value)


# ---- State dicts -----------------------------------------------------------------------------------------------------

PREPROCESSING = {"input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}


def state_dict_entry(folder: Path, file: str = "net.safetensors", **other: Any) -> ModelEntry:
    table = {
        "title": "Net",
        "source": "state-dict:cifar_resnet20",
        "weights": file,
        "preprocessing": PREPROCESSING,
    }
    return ModelEntry.parse(table | other, BUILT_IN, "net", data_dir=folder)


def load_entry(entry: ModelEntry) -> Classifier:
    model = load_model("net", {"net": entry}, CPU, COLOURS)
    assert isinstance(model, Classifier)
    return model


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model("cifar_resnet20", num_classes=3).state_dict()


def test_a_state_dict_becomes_a_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "net.safetensors")
    model = load_entry(state_dict_entry(tmp_path))
    assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())
    assert model.preprocessing["mean"] == [0.5, 0.4, 0.3]
    assert model.preprocessing["transform"].startswith("Resize(size=32, interpolation=bilinear")


@pytest.mark.parametrize(
    "saved",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "best": 0.9, "state_dict": {f"module.{name}": state[name] for name in state}},
        lambda state: {"net": {f"module.{name}": state[name] for name in state}, "acc": 91.0},
        lambda state: {name.replace("linear", "fc"): value for name, value in state.items()},
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    ],
    ids=["plain", "nested, parallel", "nested, another key", "timm's names", "no counters"],
)
def test_the_forms_in_which_training_scripts_save_weights_are_loaded(
    tmp_path: Path, state: dict[str, Tensor], saved: Callable[[dict[str, Tensor]], Any]
) -> None:
    torch.save(saved(state), tmp_path / "net.pth")
    model = load_entry(state_dict_entry(tmp_path, "net.pth"))
    assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("bn1.weight"), "it lacks bn1.weight"),
        (lambda state: state.clear(), "it lacks bn1.bias, bn1.running_mean, bn1.running_var, bn1.weight and 93 more"),
        (lambda state: state.update({"extra.bias": torch.ones(1)}), "it has what the network lacks: extra.bias"),
        (lambda state: state.update({"bn1.weight": torch.ones(4)}), "of another shape: bn1.weight (4,) for (16,)"),
        (lambda state: state.update({"linear.bias": torch.tensor([0, torch.nan, 0])}), "NaN or infinite: linear.bias"),
        (
            lambda state: state.update({"linear.weight": torch.ones(7, 64), "linear.bias": torch.ones(7)}),
            "it has 7 classes, the in-distribution set has 3; use weights for these classes",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_with_the_names_of_its_tensors(
    tmp_path: Path, state: dict[str, Tensor], change: Callable[[dict[str, Tensor]], Any], says: str
) -> None:
    change(state)
    save_file(state, tmp_path / "net.safetensors")
    entry = state_dict_entry(tmp_path)
    with pytest.raises(ModelError, match="model net: cannot use .*net.safetensors .*" + re.escape(says)):
        load_entry(entry)


def test_the_error_for_missing_weights_says_how_to_fetch_them(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError) as missing:
        load_entry(state_dict_entry(tmp_path))
    assert told(missing.value).endswith(f"; get it with: python -m benchmark fetch net --data-dir {tmp_path}")
    assert on_command_line(state_dict_entry(DATA_DIR).remedy("net")).endswith("python -m benchmark fetch net")


def test_weights_with_another_hash_than_the_entry_states_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match=r"its sha256 is [0-9a-f]{64}, not 0{64}"):
        load_entry(state_dict_entry(tmp_path, weights_sha256="0" * 64))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda file: torch.save(nn.Linear(1, 1), file), "it cannot be read as weights alone"),
        (lambda file: torch.save({"epoch": 3}, file), "it holds no state dict"),
        (lambda file: torch.save([torch.ones(1)], file), "it holds no state dict"),
        (lambda file: file.write_bytes(b"<html>"), "it cannot be read as weights alone"),
        (lambda file: file.write_bytes(b""), "it cannot be read as weights alone"),
    ],
    ids=["code", "no weights", "a list", "a page", "empty"],
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, write: Callable[[Path], Any], says: str) -> None:
    write(tmp_path / "net.pth")
    with pytest.raises(ModelError, match=f"model net: cannot use .*{says}") as error:
        load_entry(state_dict_entry(tmp_path, "net.pth"))
    assert "\n" not in str(error.value)


def test_npz_files_of_the_bit_authors_are_read_with_their_head(tmp_path: Path) -> None:
    arrays = bit_arrays(net := bit())
    np.savez(tmp_path / "net.npz", **arrays)
    load_state_dict(twin := bit().requires_grad_(False), tmp_path / "net.npz")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(twin.eval()(images), net.eval()(images))
    with pytest.raises(StateDictError, match=r"it has no fitting and finite head\.fc\.bias, head\.fc\.weight"):
        load_state_dict(bit(classes=7), tmp_path / "net.npz")


def bit_arrays(net: nn.Module) -> dict[str, np.ndarray]:
    """A network's weights under the names, and with the axes, of google-research/big_transfer's files."""
    arrays = {}
    for name, value in net.state_dict().items():
        name = name.replace("stem.conv.weight", "root_block/standardized_conv2d/kernel")
        name = re.sub(r"^norm\.", "group_norm/", name)
        name = re.sub(
            r"stages\.(\d)\.blocks\.(\d)\.", lambda at: f"block{int(at[1]) + 1}/unit{int(at[2]) + 1:02d}/", name
        )
        name = name.replace("downsample.conv.weight", "a/proj/standardized_conv2d/kernel")
        for number, letter in zip("123", "abc", strict=True):
            name = name.replace(f"conv{number}.weight", f"{letter}/standardized_conv2d/kernel")
            name = name.replace(f"norm{number}.", f"{letter}/group_norm/")
        name = name.replace("head.fc.weight", "head/conv2d/kernel").replace("head.fc.bias", "head/conv2d/bias")
        name = re.sub("group_norm/weight$", "group_norm/gamma", name)
        name = re.sub("group_norm/bias$", "group_norm/beta", name)
        arrays[f"resnet/{name}"] = (value.permute(2, 3, 1, 0) if value.ndim == 4 else value).numpy()
    return arrays


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"weights": None}, "`weights` name the file"),
        ({"preprocessing": None}, "name its `preprocessing`"),
        ({"source": "resnet18.a1_in1k"}, "`weights` name the file"),
        ({"weights_sha256": "12"}, "weights_sha256"),
        ({"preprocessing": PREPROCESSING | {"std": (0.2, 0.2, 0.0)}}, "preprocessing.std"),
        ({"preprocessing": {"input_size": (3, 32, 32)}}, "preprocessing.mean"),
        ({"source": "open-clip:ViT-B-16/openai", "weights": None}, "`preprocessing` is that of the base or"),
    ],
)
def test_an_incomplete_or_contradictory_entry_is_refused(tmp_path: Path, table: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        state_dict_entry(tmp_path, **table)


# ---- The network of a user -------------------------------------------------------------------------------------------

USER = """
import timm
import torch
from torch import nn
from torchvision import transforms

STEPS = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])


class Plain(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(5, classes)
        self.first = nn.Linear(192, 5)

    def forward(self, images):
        return self.last(torch.relu(self.first(images.flatten(1))))


class Scaled(Plain):
    def forward(self, images):
        return 2 * super().forward(images)


class Dictionary(Plain):
    def forward(self, images):
        return {"logits": super().forward(images)}


class Quiet:
    def __call__(self, image):
        return STEPS(image)


class Described(Quiet):
    def __repr__(self):
        return "resized to 8 x 8"


class Centred(Plain):
    def forward(self, images):
        features = torch.relu(self.first(images.flatten(1)))
        return self.last(features - 0.5 * features.mean(dim=0))


class InHalf(Plain):
    def forward(self, images):
        return super().forward(images.half())


def centred(): return Centred(), STEPS
def half(): return Plain().half(), STEPS
def cast(): return InHalf().half(), STEPS
def unresized(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), transforms.ToTensor()
def flipped(): return Plain(), transforms.Compose([transforms.RandomHorizontalFlip(), STEPS])
def imported():
    import FACTORS
    class Weighted(Plain):
        def forward(self, images):
            return super().forward(FACTORS.factor * images)
    return Weighted(), lambda image: FACTORS.offset + STEPS(image)
def plain(): return Plain(), STEPS
def sized(num_classes): return Plain(num_classes), STEPS
def sized_otherwise(classes, /): return Plain(classes), STEPS
def optional(width=5): return Plain(), STEPS
def unprepared(): return Plain()
def quiet(): return Plain(), Quiet()
def described(): return Plain(), Described()
def silent(): return Plain(), transforms.Lambda(STEPS)
def unsized(): return Plain(), transforms.Compose([transforms.Resize(8), transforms.ToTensor()])
def random(): return Plain(), transforms.Compose([transforms.RandomResizedCrop(8), transforms.ToTensor()])
def scaled(): return Scaled(), STEPS
def dictionary(): return Dictionary(), STEPS
def headless(): return nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), STEPS
def of_timm(num_classes): return timm.create_model("test_resnet", num_classes=num_classes)
def nothing(): return None
def broken(): raise RuntimeError("no such luck")
"""


@pytest.fixture
def load_user_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Classifier]:
    """Loads the network that a function in a user's module makes. The module has another name in each test."""
    name = f"user_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(USER)

    def load(function: str, **other: Any) -> Classifier:
        table = {"title": "A user's", "source": f"module:{name}:{function}"} | other
        return load_entry(ModelEntry.parse(table, tmp_path / "suite.toml", "net"))

    return load


@pytest.mark.parametrize("function", ["plain", "sized", "sized_otherwise", "optional", "described"])
def test_a_network_with_a_linear_head_gives_the_input_of_the_head_as_features(
    load_user_network: Callable[..., Classifier], function: str
) -> None:
    model = load_user_network(function)
    images = torch.rand(4, *model.preprocessing["input_size"], requires_grad=True)
    outputs = model.outputs(images)
    assert outputs["features"].shape == (4, 5)
    torch.testing.assert_close(outputs["logits"], model(images))
    torch.testing.assert_close(outputs["features"] @ model.head.weight.T + model.head.bias, model(images))
    (gradient,) = torch.autograd.grad(model.features(images).sum(), images)
    assert gradient.abs().sum() > 0
    assert model.architecture == "Plain"
    for ask in (model.layers, model.feature_map):
        with pytest.raises(ModelError, match=r"model net: .*Plain"):
            ask(images)
    twin = model.copy()
    torch.testing.assert_close(twin.features(images), model.features(images))
    assert twin.weights_sha256 == model.weights_sha256


def test_a_network_of_timm_is_used_as_it_is(load_user_network: Callable[..., Classifier]) -> None:
    model = load_user_network("of_timm")
    assert type(model.network) is type(timm.create_model("test_resnet"))
    assert model.preprocessing["input_size"] == [3, 160, 160]
    assert len(model.layers(torch.rand(1, 3, 64, 64))) > 1


def test_the_preprocessing_of_a_users_network_is_described(load_user_network: Callable[..., Classifier]) -> None:
    assert load_user_network("plain").preprocessing["transform"].startswith("Resize(size=(8, 8)")
    assert load_user_network("described").preprocessing["transform"] == "resized to 8 x 8"
    stated = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    for function in ("unprepared", "plain", "quiet", "random"):
        assert load_user_network(function, preprocessing=stated).preprocessing["mean"] == [0.5, 0.5, 0.5]


def test_a_network_in_half_precision_runs_in_float32(load_user_network: Callable[..., Classifier]) -> None:
    model = load_user_network("half")
    assert model.outputs(torch.rand(2, 3, 8, 8))["logits"].dtype == torch.float32
    assert "Lambda" in load_user_network("silent").preprocessing["transform"]
    assert load_user_network("quiet").preprocessing["transform"] == "Quiet"


def test_a_transform_that_resizes_nothing_is_for_images_of_the_size_that_is_there(
    tmp_path: Path, load_user_network: Callable[..., Classifier]
) -> None:
    (file,) = tmp_path.glob("user_*.py")
    entry = ModelEntry.parse(
        {"title": "A user's", "source": f"module:{file.stem}:unresized"}, tmp_path / "s.toml", "net"
    )
    model = load_classifier("net", entry, CPU, COLOURS, lambda: (32, 32))
    assert model.preprocessing["image_size"] == [32, 32]
    assert model.preprocessing["input_size"] == [3, 32, 32]
    with pytest.raises(ModelError, match="begin it with a resize"):
        load_user_network("unresized")


@pytest.mark.parametrize("change", ["factor = 2", "offset = 0.1"])
def test_code_that_a_module_imports_is_in_the_key(
    tmp_path: Path, load_user_network: Callable[..., Classifier], change: str
) -> None:
    """The network's and the transform's: neither the weights nor the module's own text change."""
    (file,) = tmp_path.glob("user_*.py")
    helper = f"helper_of_{file.stem}"
    file.write_text(USER.replace("FACTORS", helper))
    about = []
    for text in ("factor = 1\noffset = 0\n", f"factor = 1\noffset = 0\n{change}\n", "factor = 1\noffset = 0\n"):
        (tmp_path / f"{helper}.py").write_text(text)
        sys.modules.pop(helper, None)
        importlib.invalidate_caches()
        about.append(load_user_network("imported").preprocessing)
    assert about[0] == about[2]
    assert about[0]["code_sha256"] == about[1]["code_sha256"]
    assert about[0]["trial_sha256"] != about[1]["trial_sha256"]


def test_a_trial_has_the_same_hash_in_another_process() -> None:
    code = """
import torch, timm
from benchmark.models.preprocessing import timm_transform
from benchmark.models.trial import trial, trial_sha256
torch.manual_seed(0)
network = timm.create_model("test_resnet", num_classes=3).eval()
print(trial_sha256(trial(network, timm_transform(None, network)[0])))
"""
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_a_module_with_other_code_gives_another_code_hash(
    tmp_path: Path, load_user_network: Callable[..., Classifier]
) -> None:
    before = load_user_network("plain").preprocessing["code_sha256"]
    (file,) = tmp_path.glob("user_*.py")
    other = file.with_name(f"{file.stem}_too.py")
    other.write_text(USER.replace("torch.relu", "torch.tanh"))
    after = load_user_network("plain", source=f"module:{other.stem}:plain").preprocessing["code_sha256"]
    assert after != before


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("unprepared", "it does not say how images are prepared: return a pair of network and transform, or state"),
        ("unsized", "its transform must give tensors (channels, height, width) of one shape"),
        ("random", "its transform gives another result for the same image: remove its random steps"),
        ("flipped", "its transform gives another result for the same image: remove its random steps"),
        ("centred", "its output for an image depends on the other images of its batch: remove what is computed over"),
        ("cast", "RuntimeError: "),
        ("scaled", "its logits are not those of last, its last linear layer"),
        ("dictionary", "its forward gives no logits (images, classes)"),
        ("headless", "it calls no torch.nn.Linear; give the network forward_features"),
        ("nothing", "nothing() gives NoneType; return a torch.nn.Module"),
        ("broken", "RuntimeError: no such luck"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_a_user_network_that_cannot_be_used_is_refused_with_the_remedy(
    load_user_network: Callable[..., Classifier], function: str, says: str
) -> None:
    with pytest.raises(ModelError, match=f"model net: cannot use module:user_.*:{function} .*" + re.escape(says)):
        load_user_network(function)


@pytest.mark.parametrize("source", ["module:no_such_module:make", "module:make", "module:"])
def test_a_module_that_is_not_there_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(ModelError, match=f"model net: cannot use {source}"):
        load_entry(ModelEntry.in_file(tmp_path / "suite.toml", title="A user's", source=source))


def test_a_second_module_of_the_same_name_is_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name.py").write_text(USER)
    entries = [
        ModelEntry.in_file(tmp_path / folder / "suite.toml", title="A user's", source="module:same_name:plain")
        for folder in ("one", "two")
    ]
    load_entry(entries[0])
    with pytest.raises(ModelError, match=r"same_name is also the name of .*one/same_name\.py: rename .*two/"):
        load_entry(entries[1])


def test_a_network_of_torchvision_is_divided_into_features_and_head(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    untrained = models.mobilenet_v2(num_classes=3)
    monkeypatch.setattr(models, "mobilenet_v2", lambda weights: untrained)
    entry = read_entries(BUILT_IN, ModelEntry)["mobilenetv2-torchvision"]
    model = load_entry(entry)
    assert model.feature_dimensions == 1280
    assert model.preprocessing["input_size"] == [3, 224, 224]
    assert model.preprocessing["transform"].startswith("ImageClassification( crop_size=[224] resize_size=[256] mean=")


# --- Checksums beside the files. ---


@pytest.mark.parametrize("folder", sorted(BUILT_IN.parent.glob("checkpoints/*/")), ids=lambda folder: folder.name)
def test_every_shipped_folder_has_checksums_of_all_its_files(folder: Path) -> None:
    named = {line.split("  ")[1] for line in (folder / NAME).read_text().splitlines()}
    assert named == {path.name for path in folder.iterdir()} - {NAME}
    check_checksums(folder)


@pytest.mark.parametrize(
    ("source", "name", "change"),
    [
        ("digits-resnet", "model.safetensors", lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]),
        ("digits-resnet", "config.json", lambda content: content.replace(b"0.5", b"0.4", 1)),
        ("digits-clip", "open_clip_config.json", lambda content: content.replace(b"0.5", b"0.4", 1)),
        ("digits-resnet+setar", "edit.json", lambda content: content.replace(b": 0.", b": 0.0", 1)),
        ("digits-resnet+um", "edit.safetensors", lambda content: content[:-1]),
    ],
)
def test_a_changed_byte_of_a_shipped_file_is_seen(
    tmp_path: Path, source: str, name: str, change: Callable[[bytes], bytes]
) -> None:
    entries = {}
    for model_id in {"digits-resnet", source}:
        shutil.copytree(BUILT_IN.parent / "checkpoints" / model_id, tmp_path / model_id)
        kind = "open-clip:local-dir:" if "clip" in model_id else "local-dir:"
        where = {"base": "digits-resnet", "edit": model_id} if "+" in model_id else {"source": kind + model_id}
        entries[model_id] = ModelEntry.parse({"title": "A net"} | where, tmp_path / "models.toml", model_id)
    classes = [f"digit {number}" for number in range(8)]
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven"] if "clip" in source else classes
    load_model(source, entries, CPU, words)
    file = tmp_path / source / name
    changed = change(file.read_bytes())
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    with pytest.raises(ModelError, match=rf"{re.escape(str(file))} (was changed or )?is damaged: "):
        load_model(source, entries, CPU, words)


@pytest.mark.parametrize(
    ("text", "says"),
    [("0" * 64 + "  gone.bin\n", "gone.bin is missing"), ("nonsense\n", "line 1: not a SHA-256"), (b"\xff\n", "line 1"),
     ("0" * 64 + "  ../a\n", "line 1")],
)  # fmt: skip
def test_checksums_that_do_not_fit_are_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    check_checksums(tmp_path)  # a folder without any is taken as it is
    (tmp_path / NAME).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ChecksumError, match=says):
        check_checksums(tmp_path)


def test_a_folder_whose_writing_is_interrupted_has_no_checksums(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with with_checksums(tmp_path):
        (tmp_path / "a").write_text("new")
    check_checksums(tmp_path)

    def interrupted() -> None:
        with with_checksums(tmp_path):
            (tmp_path / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / NAME).exists()
