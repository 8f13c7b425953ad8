"""Trains a network of the digits suite: `python -m benchmark.train digits-resnet [--output DIR]`.

A recipe sees the training split alone. The validation accuracy is shown and decides nothing: the weights of the last
epoch are kept. The same seed, number of threads and machine give the same weights. They are written only when the
training is over, so that an interruption leaves what was there before.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from tqdm import tqdm

from benchmark.image_sets import ImageSet, load_image_set
from detectors import did_you_mean

CHECKPOINTS = Path(__file__).parent / "checkpoints"
THREADS = 2  # sums are taken in another order on another number of threads, and the weights drift apart


@dataclass(frozen=True)
class Recipe:
    """A timm architecture with its arguments, and how it is trained: AdamW under a cosine schedule with warm-up."""

    architecture: str
    arguments: dict[str, Any]
    epochs: int
    learning_rate: float
    weight_decay: float = 0.05
    batch: int = 64
    seed: int = 0


RECIPES = {
    "digits-resnet": Recipe("test_resnet", {}, epochs=40, learning_rate=2e-3),
    "digits-convnext": Recipe("test_convnext", {}, epochs=80, learning_rate=4e-3),
    "digits-vit": Recipe("test_vit", {"img_size": 32, "patch_size": 8}, epochs=120, learning_rate=2e-3),
}

# Plain pixels in [-1, 1]: the networks start from nothing, so no other data's statistics have a claim.
PREPROCESSING: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
BLACK = -1.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.train", description="Train a network of the digits suite."
    )
    parser.add_argument("model", help=", ".join(RECIPES))
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"default: {CHECKPOINTS.name}/MODEL beside this file"
    )
    options = parser.parse_args(arguments)
    if options.model not in RECIPES:
        hint = did_you_mean(options.model, RECIPES)
        parser.error(f"no recipe is called {options.model!r}{hint}; available: {', '.join(RECIPES)}")
    recipe, folder = RECIPES[options.model], options.output or CHECKPOINTS / options.model
    train_set, val_set = load_image_set("digits-train"), load_image_set("digits-val")
    started = time.perf_counter()
    network = train(recipe, train_set, val_set)
    save(network, recipe, train_set.classes, folder)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{folder}: {parameters:,} parameters, trained in {time.perf_counter() - started:.0f} s")


def train(recipe: Recipe, train_set: ImageSet, val_set: ImageSet) -> nn.Module:
    """A network for the classes of `train_set`, in evaluation mode. Leaves torch's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = timm.create_model(
            recipe.architecture,
            num_classes=len(train_set.classes),
            pretrained_cfg_overlay={**PREPROCESSING, "tag": "digits", "license": "apache-2.0"},
            **recipe.arguments,
        )
        (images, labels), val = _tensors(network, train_set), _tensors(network, val_set)
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        steps = recipe.epochs * math.ceil(len(images) / recipe.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        with tqdm(range(recipe.epochs), desc=recipe.architecture, unit="epoch") as epochs:
            for _ in epochs:
                network.train()
                for rows in torch.randperm(len(images)).split(recipe.batch):
                    loss = cross_entropy(network(_augment(images[rows])), labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                epochs.set_postfix(loss=f"{loss.item():.4f}", val_accuracy=f"{_accuracy(network, *val):.1%}")
    return network.eval()


def save(network: nn.Module, recipe: Recipe, classes: Sequence[str], folder: Path) -> None:
    """Writes timm's Hub format: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        save_for_hf(
            network,
            part,
            model_config={"label_names": list(classes)},
            model_args=recipe.arguments,
            safe_serialization=True,
        )
        for name in ("model.safetensors", "config.json"):
            Path(part, name).replace(folder / name)


def _tensors(network: nn.Module, image_set: ImageSet) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W), preprocessed as the network's checkpoint will ask for, and labels (N,)."""
    transform = create_transform(**resolve_data_config({}, model=network, use_test_size=True))
    images = torch.stack([transform(image_set[index]) for index in range(len(image_set))])
    return images, torch.as_tensor(image_set.labels)


def _augment(images: Tensor) -> Tensor:
    """Each image turned by up to 10 degrees, scaled by up to 10 % and shifted by up to 2 pixels, over black."""
    count, _, _, width = images.shape
    angle = torch.empty(count).uniform_(-math.radians(10), math.radians(10))
    scale = torch.empty(count).uniform_(0.9, 1.1)
    shift = torch.empty(count, 2).uniform_(-2, 2) * (2 / width)  # affine_grid's image is 2 wide
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    turn = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    grid = affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return grid_sample(images - BLACK, grid, align_corners=False) + BLACK


@torch.inference_mode()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (network.eval()(images).argmax(1) == labels).double().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    main()
