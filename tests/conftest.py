"""A tiny world: three colours as classes, an untrained network, and a suite of them in a folder of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

# torch, timm and Pillow are imported where they are used: pytest reads this file for `--help`, too.

SUITE = """
title = "Colours"
models = ["net"]
detectors = ["msp", "mahalanobis"]
baselines = "colours.csv"

[in_distribution]
train = "colours-train"
val = "colours-val"
test = "colours-test"

[ood]
near = ["greys"]
far = ["noise"]

[goals]
near = 0.5
far = 0.25
unit-test = 0.1

[unit_tests]
size = [32, 32]
images = 12
detectors = ["mahalanobis"]

[model.net]
title = "An untrained network"
source = "local-dir:net"
recipe = "see tests/conftest.py"
"""

IMAGE_SET = """
[image_set.{id}]
title = "{id}"
folder = "images/{id}"
classes = {classes}
images = {images}
licence = "none needed"
source = "tests/conftest.py"
"""

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
PER_CLASS = {"colours-train": 12, "colours-val": 4, "colours-test": 12}


@pytest.fixture(scope="session")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    suite = SUITE
    for detector_id, count in PER_CLASS.items():
        for name, colour in COLOURS.items():
            _write_images(folder / "images" / detector_id / name, count, np.array(colour), 30, random)
        suite += IMAGE_SET.format(id=detector_id, classes=list(COLOURS), images=3 * count)
    for detector_id, spread in {"greys": 20, "noise": 128}.items():
        _write_images(folder / "images" / detector_id, 20, np.array([128, 128, 128]), spread, random)
        suite += IMAGE_SET.format(id=detector_id, classes=[], images=20)
    (folder / "colours.toml").write_text(suite)
    save_network(folder / "net", classes=3)
    return folder


def _write_images(folder: Path, count: int, colour: np.ndarray, spread: int, random: np.random.Generator) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for index in range(count):
        pixels = colour + random.integers(-spread, spread, (32, 32, 3), endpoint=False)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02d}.png")


def save_network(folder: Path, classes: int) -> None:
    import timm
    import torch
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=classes)
    network.pretrained_cfg |= {"input_size": (3, 32, 32), "crop_pct": 1.0, "test_input_size": None}
    config = {"num_classes": classes, "pretrained_cfg": network.pretrained_cfg}
    save_for_hf(network, folder, model_config=config, safe_serialization=True)


@pytest.fixture(scope="session")
def world(_world: Path) -> Path:
    """The folder of `colours.toml`, to be read only."""
    return _world


@pytest.fixture
def user_world(_world: Path, tmp_path: Path) -> Path:
    """A copy of the world that a test may change."""
    return Path(shutil.copytree(_world, tmp_path / "world"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way on matrices this small, and most on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
