import io
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, linear, relu
from torchvision.models import DenseNet

from benchmark.entries import read_entries
from benchmark.models.cifar_networks import NETWORKS, PaddedShortcut
from benchmark.models.entries import BUILT_IN, ModelEntry
from benchmark.models.loading import load_model
from benchmark.models.state_dicts import load_state_dict

REAL = Path(__file__).parents[2] / "shared" / "data"
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def untrained(name: str, classes: int = 10) -> nn.Module:
    """A network whose statistics of batch normalisation are those of no other layer."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    return network.eval().requires_grad_(False)


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("cifar_resnet20", "0.27"),
        ("cifar_resnet32", "0.46"),
        ("cifar_resnet44", "0.66"),
        ("cifar_resnet56", "0.85"),
        ("cifar_resnet110", "1.73"),
        ("cifar_resnet18", "11.17"),
        ("cifar_resnet34", "21.28"),
        ("cifar_wide_resnet40_2", "2.24"),
        ("cifar_wide_resnet40_4", "8.95"),
        ("cifar_wide_resnet28_10", "36.48"),
        ("cifar_densenet_bc_100_12", "0.77"),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, millions: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=10)
    assert f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f}" == millions


def test_every_network_has_its_count() -> None:
    (mark,) = test_parameter_counts_are_the_published_ones.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _ in mark.args[1]} == NETWORKS.keys()


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet18", "cifar_wide_resnet40_2"])
def test_it_is_used_like_timms_own_networks(name: str) -> None:
    network = untrained(name)
    last, stages = network.forward_intermediates(images())
    features = network.forward_head(last, pre_logits=True)
    assert features.shape == (2, network.num_features)
    torch.testing.assert_close(network.get_classifier()(features), network(images()))
    torch.testing.assert_close(network.forward_features(images()), last)
    assert [stage.shape[2] for stage in stages] == [32, 16, 8, 4][: len(stages)]
    network.reset_classifier(0)
    torch.testing.assert_close(network(images()), features)


def test_a_checkpoint_of_timms_hub_format_is_loaded_by_its_architecture(tmp_path: Path) -> None:
    network = untrained("cifar_resnet20", classes=4)
    save_for_hf(network, tmp_path / "net", model_config={"num_classes": 4}, safe_serialization=True)
    entry = ModelEntry.in_file(tmp_path / "models.toml", title="Net", source="local-dir:net")
    model = load_model("net", {"net": entry}, CPU, "0123")
    torch.testing.assert_close(model(images()), network(images()))
    assert model.architecture == "cifar_resnet20"


def test_a_padded_shortcut_skips_pixels_and_adds_zeros_on_both_sides() -> None:
    image = torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    padded = PaddedShortcut(added=2, stride=2)(image)
    assert padded[0].tolist() == [[[0, 0], [0, 0]], [[1, 3], [9, 11]], [[0, 0], [0, 0]]]


def test_resnet18_is_timms_with_another_stem(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs = theirs.eval().requires_grad_(False)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = untrained("cifar_resnet18")
    load_state_dict(ours, tmp_path / "theirs.safetensors")
    torch.testing.assert_close(ours(images()), theirs(images()))


def test_the_densenet_is_torchvisions_with_another_stem() -> None:
    ours = untrained("cifar_densenet_bc_100_12")
    theirs = DenseNet(growth_rate=12, block_config=(16, 16, 16), num_init_features=24, bn_size=4, num_classes=10)
    theirs.features.conv0 = nn.Conv2d(3, 24, kernel_size=3, padding=1, bias=False)
    theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
    values = ours.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images()), theirs.eval()(images()))


def test_a_wide_resnet_computes_what_its_paper_says() -> None:
    network = untrained("cifar_wide_resnet40_2")
    w = network.state_dict()

    def active(x: Tensor, name: str) -> Tensor:
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return relu(batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"]))

    x = conv2d(images(), w["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(6):
            name = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            before = active(x, f"{name}.bn1")
            if block == 0:
                x = conv2d(before, w[f"{name}.convShortcut.weight"], stride=stride)
            hidden = conv2d(before, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = x + conv2d(active(hidden, f"{name}.bn2"), w[f"{name}.conv2.weight"], padding=1)
    features = avg_pool2d(active(x, "bn1"), 8).flatten(1)
    torch.testing.assert_close(network(images()), linear(features, w["fc.weight"], w["fc.bias"]))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs real CIFAR images and networks (../shared/data)")
@pytest.mark.parametrize(
    ("model_id", "count", "accuracy"),
    [
        ("cifar10-resnet20", 500, 0.9173),
        ("cifar10-resnet44", 500, 0.93),
        ("cifar10-densenet", 30, 0.94),
        ("cifar100-densenet", 30, 0.74),
    ],
)
def test_real_checkpoints_classify_real_images(model_id: str, count: int, accuracy: float) -> None:
    classes = 100 if model_id.startswith("cifar100") else 10
    model = load_model(
        model_id, read_entries(BUILT_IN, ModelEntry, data_dir=REAL), CPU, [str(i) for i in range(classes)]
    )
    table = parquet.read_table(REAL / f"cifar{classes}" / "test.parquet").slice(0, count)
    pictures = [Image.open(io.BytesIO(image["bytes"])) for image in table["img"].to_pylist()]
    with torch.inference_mode():
        outputs = model.outputs(torch.stack([model.transform(picture) for picture in pictures]))
    labels = torch.tensor(table[table.column_names[1]].to_pylist())
    correct = int((outputs["logits"].argmax(dim=1) == labels).sum())
    # Four standard deviations of the number of right answers among so many.
    assert abs(correct - accuracy * count) < 4 * (count * accuracy * (1 - accuracy)) ** 0.5
