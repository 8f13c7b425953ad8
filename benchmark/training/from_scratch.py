"""Trains the classifiers of the digits suite: `python -m benchmark train digits-resnet [--output DIR]`.

A network is trained on the training split only. The validation accuracy is printed, but nothing depends on it: the
weights of the last epoch are kept. The same seed, number of threads and machine give the same weights.

The weights are written when the training is finished, so an interruption changes no file of an older training. A recipe
with the "cosine" schedule saves its state beside the folder while it runs, and the same command continues from there.

Another recipe, such as SAM-ON as ASAM with AdamW, takes a few lines:

    sharpness = Perturbation(variant="asam-l2", scope="norm-only", rho=3)
    recipe = replace(RECIPES["digits-thin-s0"], optimizer="adamw", learning_rate=2e-3, sharpness=sharpness)
    network = train(recipe, load_image_set("digits-train"))
    save(network, recipe, load_image_set("digits-train").classes, Path("my-network"))
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

from benchmark.files import scratch_beside
from benchmark.images.image_set import ImageSet, load_image_set
from benchmark.models.checksums import with_checksums
from benchmark.training.augmentation import PREPROCESSING, augment_affine
from benchmark.training.optimisation import MOST_EPOCHS, Progress, Schedule, optimise
from benchmark.training.sharpness_aware import Perturbation, SharpnessAware

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
THREADS = 2  # another number of threads adds numbers in another order, which gives slightly different weights


@dataclass(frozen=True)
class Recipe:
    """A timm architecture with its arguments, and how it is trained.

    architecture: the name that timm knows it by.
    arguments: the keyword arguments of `timm.create_model`.
    epochs: how often all training images are used.
    learning_rate: the largest learning rate of the schedule.
    weight_decay: the factor of the optimizer's weight decay.
    batch: images a step.
    seed: the seed of the first weights, of the order of the images and of the augmentation.
    optimizer: AdamW, or SGD with a momentum of 0.9.
    schedule: "one-cycle" is torch's schedule, with a warm-up over a tenth of the steps. It draws from torch's global
        random state, as the first checkpoints did, and cannot be continued after an interruption. "cosine" falls from
        the learning rate to 0, and can be continued.
    label_smoothing: the share of the target that is spread over all classes, from 0 to below 1.
    sharpness: how the weights are moved before each gradient is taken; it needs the "cosine" schedule.
    half: whether the weights are rounded to float16 at the end and written so. A loaded network is float32 again.

    Raises ValueError where a value is out of its range, or where two of them do not go together.
    """

    architecture: str
    arguments: dict[str, Any]
    epochs: int = Field(ge=1, le=MOST_EPOCHS)
    learning_rate: float = Field(ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    batch: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    sharpness: Perturbation | None = None
    half: bool = False

    def __post_init__(self) -> None:
        if self.sharpness is None:
            return
        if self.schedule != "cosine":
            raise ValueError(f"schedule is {self.schedule!r}; allowed with sharpness: 'cosine'")
        micro_batch = self.sharpness.micro_batch
        if micro_batch and self.batch % micro_batch:
            raise ValueError(f"micro_batch is {micro_batch}; allowed: a divisor of batch, which is {self.batch}")


RECIPES = {
    "digits-resnet": Recipe("test_resnet", {}, epochs=40, learning_rate=2e-3),
    "digits-convnext": Recipe("test_convnext", {}, epochs=80, learning_rate=4e-3),
    "digits-vit": Recipe("test_vit", {"img_size": 32, "patch_size": 8}, epochs=120, learning_rate=2e-3),
}

# The recipe of the SAM-ON paper for ResNets on CIFAR-10 (section 4.1 and appendix A.1), with its rho. Epochs are fewer
# and batches smaller, which is enough for the digits.
THIN = Recipe(
    "test_resnet",
    {"channels": [16, 24, 24, 48]},
    epochs=40,
    learning_rate=0.1,
    weight_decay=5e-4,
    optimizer="sgd",
    schedule="cosine",
    label_smoothing=0.1,
    half=True,
)


for _seed in range(3):
    _thin = replace(THIN, seed=_seed)
    RECIPES |= {
        f"digits-thin-s{_seed}": _thin,
        f"digits-thin-s{_seed}+sam": replace(_thin, sharpness=Perturbation(rho=0.1)),
        f"digits-thin-s{_seed}+sam-on": replace(_thin, sharpness=Perturbation(scope="norm-only", rho=0.5)),
    }


@dataclass(frozen=True)
class Trained:
    """A network that was trained and written.

    folder: the folder of its checkpoint.
    parameters: the number of trained parameters.
    accuracy: the accuracy on the validation images, from 0 to 1.
    training_s: how long the training took, in seconds.
    """

    folder: Path
    parameters: int
    accuracy: float
    training_s: float


def train_and_save(model_id: str, folder: Path) -> Trained:
    """Trains a network of the digits suite by its recipe, and writes it. After an interruption, it is continued.

    model_id: the id of the network.
    folder: where to write.

    Raises KeyError where there is no recipe with this id.
    """
    recipe = RECIPES[model_id]
    train_set, val_set = load_image_set("digits-train"), load_image_set("digits-val")
    started = time.perf_counter()
    progress = progress_beside(folder, recipe, train_set)
    network = train(recipe, train_set, progress)
    save(network, recipe, train_set.classes, folder)
    progress.clear()
    parameters, training_s = sum(parameter.numel() for parameter in network.parameters()), time.perf_counter() - started
    return Trained(folder, parameters, _accuracy(network, *_tensors(network, val_set)), training_s)


def train(recipe: Recipe, train_set: ImageSet, progress: Progress | None = None) -> nn.Module:
    """Trains a network for the classes of an image set. Torch's random state is not changed.

    recipe: the network and how to train it.
    train_set: the training images with their classes.
    progress: where the state of a "cosine" training is kept; None keeps nothing.

    Returns the network in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = timm.create_model(
            recipe.architecture,
            num_classes=len(train_set.classes),
            pretrained_cfg_overlay={**PREPROCESSING, "tag": "digits", "license": "apache-2.0"},
            **recipe.arguments,
        )
        images, labels = _tensors(network, train_set)
        if recipe.schedule == "one-cycle":
            _train_one_cycle(network, recipe, images, labels)
        else:
            _train_cosine(network, recipe, images, labels, progress or Progress(None, {}))
    return (network.half().float() if recipe.half else network).eval()


def _train_one_cycle(network: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor) -> None:
    optimizer = _optimizer(network, recipe)
    steps = recipe.epochs * math.ceil(len(images) / recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    network.train()
    with tqdm(range(recipe.epochs), desc=recipe.architecture, unit="epoch", disable=None, leave=False) as epochs:
        for _ in epochs:
            for rows in torch.randperm(len(images)).split(recipe.batch):
                logits = network(augment_affine(images[rows]))
                loss = cross_entropy(logits, labels[rows], label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            epochs.set_postfix(loss=f"{loss.item():.4f}")


def _train_cosine(network: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor, progress: Progress) -> None:
    optimizer = _optimizer(network, recipe)
    sharp = None if recipe.sharpness is None else SharpnessAware(recipe.sharpness, network, optimizer)

    def update(rows: Tensor, generator: Generator) -> float:
        batch, targets = augment_affine(images[rows], generator), labels[rows]

        def loss_of(part: Tensor) -> Tensor:
            return cross_entropy(network(batch[part]), targets[part], label_smoothing=recipe.label_smoothing)

        whole_batch = torch.arange(len(rows))
        if sharp is not None:
            return sharp.step(loss_of, whole_batch)
        loss = loss_of(whole_batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    schedule = Schedule(epochs=recipe.epochs, batch=recipe.batch, learning_rate=recipe.learning_rate, seed=recipe.seed)
    network.train()
    optimise(optimizer, schedule, len(images), update, network.state_dict(), progress, recipe.architecture)


def _optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=0.9, **settings)
    return torch.optim.AdamW(network.parameters(), **settings)


def progress_beside(folder: Path, recipe: object, train_set: ImageSet) -> Progress:
    """The file that keeps the state of a training. It lies beside the folder: it is no part of the checkpoint.

    folder: where the checkpoint will be written.
    recipe: all that says how to train; a file of another recipe is not used.
    train_set: the training images; a file of other images is not used.
    """
    key = {
        "recipe": repr(recipe),
        "train_set": train_set.content_sha256,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    place = folder.resolve()
    return Progress(place.with_name(f".{place.name}.progress.safetensors"), key)


def save(network: nn.Module, recipe: Recipe, classes: Sequence[str], folder: Path) -> None:
    """Writes a folder in timm's Hub format: config.json and model.safetensors.

    network: the trained network.
    recipe: its recipe; with `half`, the weights are written in float16.
    classes: the names of the classes, in the order of the logits.
    folder: where to write; it is made where there is none.
    """
    kept = copy.deepcopy(network).half() if recipe.half else network
    folder.mkdir(parents=True, exist_ok=True)
    files = ("model.safetensors", "config.json")
    with scratch_beside(folder / "part", *files) as part:
        save_for_hf(
            kept,
            part,
            model_config={"label_names": list(classes)},
            model_args=recipe.arguments,
            safe_serialization=True,
        )
        with with_checksums(folder):
            for name in files:
                (part / name).replace(folder / name)


def _tensors(network: nn.Module, image_set: ImageSet) -> tuple[Tensor, Tensor]:
    """The images (N, 3, H, W) after the preprocessing that is written into the checkpoint, and the labels (N,)."""
    transform = create_transform(**resolve_data_config({}, model=network, use_test_size=True))
    images = torch.stack([transform(image_set[index]) for index in range(len(image_set))])
    return images, torch.as_tensor(image_set.labels)


@torch.inference_mode()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (network.eval()(images).argmax(1) == labels).double().mean().item()
