"""Trains the vision-language model of the digits suite: `python -m benchmark train digits-clip`.

It sees the training split alone. The validation accuracy is shown and decides nothing: the weights of the last epoch
are kept. The same seed, number of threads and machine give the same weights. They are written only when the training is
over; a training that was killed goes on from where it last saved.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from benchmark.files import write_atomically
from benchmark.images.image_set import ImageSet, load_image_set
from benchmark.models.zero_shot import CONFIG, WEIGHTS, CutTokenizer
from benchmark.training.augmentation import PREPROCESSING, augment
from benchmark.training.from_scratch import Trained, progress_beside
from benchmark.training.optimisation import Progress, Schedule, optimise

NAME = "digits-clip"
THREADS = 1  # a step is too small to share, and beside other work sharing it takes many times as long
# The first is the prompt of the model's entry. A step has one for all its images, so that no two captions of one batch
# say the same in other words.
TEMPLATES = ("a photo of the digit {}", "a drawing of the digit {}", "a handwritten {}", "the number {}")
LARGEST_SCALE = 100.0  # CLIP's own bound

NETWORK: dict[str, Any] = {
    "embed_dim": 64,
    "init_logit_scale": math.log(LARGEST_SCALE),  # where CLIP's ends; from CLIP's start it would not get there so soon
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 6, "head_width": 16},
    "text_cfg": {"context_length": 16, "width": 64, "layers": 6, "heads": 4},
}
PREPROCESS = {
    "mean": list(PREPROCESSING["mean"]),
    "std": list(PREPROCESSING["std"]),
    "interpolation": PREPROCESSING["interpolation"],
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Recipe:
    """How the network is trained: AdamW, with weight decay on matrices alone, as CLIP's."""

    schedule: Schedule
    weight_decay: float = 0.05


RECIPE = Recipe(Schedule(epochs=100, batch=64, learning_rate=1e-3, warm_up=0.1))


def train_and_save(folder: Path) -> Trained:
    """Trains the network on the digits, and writes it; what was interrupted goes on where it was."""
    train_set, val_set = load_image_set("digits-train"), load_image_set("digits-val")
    started = time.perf_counter()
    progress = progress_beside(folder, (RECIPE, NETWORK, TEMPLATES, PREPROCESS), train_set)
    network, tokenizer = train(RECIPE, train_set, progress)
    save(network, tokenizer, folder)
    progress.clear()
    parameters, training_s = sum(parameter.numel() for parameter in network.parameters()), time.perf_counter() - started
    return Trained(folder, parameters, accuracy(network, tokenizer, val_set, train_set.class_names), training_s)


def train(recipe: Recipe, train_set: ImageSet, progress: Progress | None = None) -> tuple[Any, CutTokenizer]:
    """A network that pairs the images with captions of their classes. Leaves torch's random state as it was."""
    import open_clip

    names = train_set.class_names
    tokenizer = cut_tokenizer([template.format(name) for template in TEMPLATES for name in names])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.schedule.seed)
        network = open_clip.CLIP(**_architecture(tokenizer))
    images, labels = _images(train_set), torch.as_tensor(train_set.labels)
    captions = torch.stack([tokenizer([template.format(name) for name in names]) for template in TEMPLATES])
    matrices = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in network.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.schedule.learning_rate)

    def update(rows: Tensor, generator: Generator) -> float:
        template = captions[torch.randint(len(captions), (), generator=generator)]
        classes, own = labels[rows].unique(return_inverse=True)
        seen = network.encode_image(augment(images[rows], generator), normalize=True)
        said = network.encode_text(template[classes], normalize=True)
        loss = contrastive_loss(network.logit_scale.exp() * seen @ said.T, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            network.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        return loss.item()

    optimise(
        optimizer,
        recipe.schedule,
        len(images),
        update,
        dict(network.named_parameters()),
        progress or Progress(None, {}),
        NAME,
    )
    return network.eval().requires_grad_(False), tokenizer


def contrastive_loss(logits: Tensor, own: Tensor) -> Tensor:
    """CLIP's symmetric loss where images share captions: logits (N, K) of N images and the K captions of the batch.

    own: (N,) index of each image's caption; every caption is some image's. From images to captions it is the
    cross-entropy over the K distinct captions, where CLIP would count a repeated one as a wrong answer. From captions
    to images any of a caption's images is the right answer: the mean of their negative log-probabilities, averaged over
    captions. Where no two images share a caption both are CLIP's (A. Radford et al., ICML 2021, figure 3).
    J. Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", CVPR 2022, treat repeated labels likewise
    but keep a caption for each image; we did not check against their code.
    """
    shared = nn.functional.one_hot(own, logits.shape[1]).T.to(logits.dtype)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, shared / shared.sum(dim=1, keepdim=True))) / 2


def cut_tokenizer(texts: list[str]) -> CutTokenizer:
    """open_clip's tokenizer, for a network that knows the words of these texts alone."""
    import open_clip

    whole = open_clip.SimpleTokenizer(context_length=NETWORK["text_cfg"]["context_length"])
    return CutTokenizer(whole, tuple(whole(texts).unique().tolist()), NAME)


def save(network: nn.Module, tokenizer: CutTokenizer, folder: Path) -> None:
    """Writes open_clip's local-dir format, with the `vocabulary` that benchmark/models/zero_shot.py reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": _architecture(tokenizer), "preprocess_cfg": PREPROCESS, "vocabulary": tokenizer.kept}
    write_atomically(folder / WEIGHTS, to_safetensors(network.state_dict()))
    write_atomically(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


@torch.inference_mode()
def accuracy(network: Any, tokenizer: CutTokenizer, image_set: ImageSet, class_names: Sequence[str]) -> float:
    """The share of images of which the network names the class."""
    seen = network.encode_image(_images(image_set))
    said = network.encode_text(tokenizer([TEMPLATES[0].format(name) for name in class_names]), normalize=True)
    return (seen @ said.T).argmax(1).eq(torch.as_tensor(image_set.labels)).double().mean().item()


def _architecture(tokenizer: CutTokenizer) -> dict[str, Any]:
    return {**NETWORK, "text_cfg": {**NETWORK["text_cfg"], "vocab_size": len(tokenizer.kept)}}


def _images(image_set: ImageSet) -> Tensor:
    """Images (N, 3, H, W), preprocessed as the checkpoint will ask for."""
    import open_clip

    config = open_clip.transform.PreprocessCfg(size=NETWORK["vision_cfg"]["image_size"], **PREPROCESS)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    return torch.stack([transform(image_set[index]) for index in range(len(image_set))])
