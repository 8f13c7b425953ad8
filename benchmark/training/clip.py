"""Trains the vision-language model of the digits suite: `python -m benchmark train digits-clip`.

The network is trained on the training split only. The validation accuracy is printed, but nothing depends on it: the
weights of the last epoch are kept. The same seed, number of threads and machine give the same weights.

The weights are written when the training is finished. A training that was stopped continues from its last saved state.
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
from benchmark.models.checksums import with_checksums
from benchmark.models.zero_shot import CONFIG, WEIGHTS, CutTokenizer
from benchmark.training.augmentation import PREPROCESSING, augment_affine
from benchmark.training.from_scratch import Trained, progress_beside
from benchmark.training.optimisation import Progress, Schedule, optimise

NAME = "digits-clip"
THREADS = 1  # a step is too small for several threads; on a busy machine they make it many times slower
# The first is the prompt of the model's entry. All images of a training step get the same template, so that a batch
# never has two different captions for one class.
TEMPLATES = ("a photo of the digit {}", "a drawing of the digit {}", "a handwritten {}", "the number {}")
LARGEST_SCALE = 100.0  # the bound that CLIP has

NETWORK: dict[str, Any] = {
    "embed_dim": 64,
    # CLIP's value at the end of its training. This short training would not reach it from CLIP's first value.
    "init_logit_scale": math.log(LARGEST_SCALE),
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
    """How the network is trained: with AdamW, and with weight decay on matrices only, as CLIP is.

    schedule: the epochs, the batch size and the learning rates.
    weight_decay: the factor of AdamW's weight decay.
    """

    schedule: Schedule
    weight_decay: float = 0.05


RECIPE = Recipe(Schedule(epochs=100, batch=64, learning_rate=1e-3, warm_up=0.1))


def train_and_save(folder: Path) -> Trained:
    """Trains the network on the digits, and writes it into a folder. After an interruption, it is continued."""
    train_set, val_set = load_image_set("digits-train"), load_image_set("digits-val")
    started = time.perf_counter()
    progress = progress_beside(folder, (RECIPE, NETWORK, TEMPLATES, PREPROCESS), train_set)
    network, tokenizer = train(RECIPE, train_set, progress)
    save(network, tokenizer, folder)
    progress.clear()
    parameters, training_s = sum(parameter.numel() for parameter in network.parameters()), time.perf_counter() - started
    return Trained(folder, parameters, accuracy(network, tokenizer, val_set, train_set.class_names), training_s)


def train(recipe: Recipe, train_set: ImageSet, progress: Progress | None = None) -> tuple[Any, CutTokenizer]:
    """Trains a CLIP to match each image with the caption of its class. Torch's random state is not changed.

    recipe: how to train.
    train_set: the training images with their classes.
    progress: where the state of the training is kept; None keeps nothing.

    Returns the network, in evaluation mode, and its tokenizer.
    """
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
        classes, captions_of_images = labels[rows].unique(return_inverse=True)
        image_features = network.encode_image(augment_affine(images[rows], generator), normalize=True)
        text_features = network.encode_text(template[classes], normalize=True)
        loss = contrastive_loss(network.logit_scale.exp() * image_features @ text_features.T, captions_of_images)
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


def contrastive_loss(logits: Tensor, captions_of_images: Tensor) -> Tensor:
    """CLIP's symmetric loss, for batches in which several images have the same caption.

    logits: scaled similarities of N images and the K distinct captions of the batch, (N, K).
    captions_of_images: the index of the caption of each image, (N,). Every caption belongs to at least one image.

    From images to captions it is the cross-entropy over the K distinct captions. (CLIP would count a repeated caption
    as a wrong answer.) From captions to images, every image of a caption is a right answer: the loss of a caption is
    the mean of the negative log-probabilities of its images, and it is averaged over the captions. Where every image
    has a caption of its own, both are CLIP's losses (A. Radford et al., ICML 2021, figure 3).

    J. Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", CVPR 2022, treat repeated labels in the
    same way, but keep one caption for each image. It was not compared with their code.
    """
    shared = nn.functional.one_hot(captions_of_images, logits.shape[1]).T.to(logits.dtype)
    to_captions = cross_entropy(logits, captions_of_images)
    return (to_captions + cross_entropy(logits.T, shared / shared.sum(dim=1, keepdim=True))) / 2


def cut_tokenizer(texts: list[str]) -> CutTokenizer:
    """open_clip's tokenizer, cut to the tokens that occur in these texts."""
    import open_clip

    whole = open_clip.SimpleTokenizer(context_length=NETWORK["text_cfg"]["context_length"])
    return CutTokenizer(whole, tuple(whole(texts).unique().tolist()), NAME)


def save(network: nn.Module, tokenizer: CutTokenizer, folder: Path) -> None:
    """Writes a folder in open_clip's local-dir format, with the `vocabulary` of benchmark/models/zero_shot.py."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": _architecture(tokenizer), "preprocess_cfg": PREPROCESS, "vocabulary": tokenizer.kept}
    weights = to_safetensors(network.state_dict())
    with with_checksums(folder):
        write_atomically(folder / WEIGHTS, weights)
        write_atomically(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


@torch.inference_mode()
def accuracy(network: Any, tokenizer: CutTokenizer, image_set: ImageSet, class_names: Sequence[str]) -> float:
    """The share of images, from 0 to 1, that the network classifies right."""
    image_features = network.encode_image(_images(image_set))
    prompts = tokenizer([TEMPLATES[0].format(name) for name in class_names])
    text_features = network.encode_text(prompts, normalize=True)
    return (image_features @ text_features.T).argmax(1).eq(torch.as_tensor(image_set.labels)).double().mean().item()


def _architecture(tokenizer: CutTokenizer) -> dict[str, Any]:
    return {**NETWORK, "text_cfg": {**NETWORK["text_cfg"], "vocab_size": len(tokenizer.kept)}}


def _images(image_set: ImageSet) -> Tensor:
    """The images (N, 3, H, W) after the preprocessing that is written into the checkpoint."""
    import open_clip

    config = open_clip.transform.PreprocessCfg(size=NETWORK["vision_cfg"]["image_size"], **PREPROCESS)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    return torch.stack([transform(image_set[index]) for index in range(len(image_set))])
