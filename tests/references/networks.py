"""Small untrained networks for the tests of variants."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmark.models.entries import ModelEntry
from benchmark.models.zero_shot import ZeroShotClassifier


def clip_network(vision_layers: int = 2, text_layers: int = 2) -> nn.Module:
    """Of 16x16 images in four patches, and texts of four tokens."""
    import open_clip  # here, since it is an extra

    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": vision_layers, "head_width": 16}
    text = {"context_length": 4, "vocab_size": 9, "width": 16, "heads": 2, "layers": text_layers}
    return open_clip.model.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)


def model_fields(detector_id: str, network: nn.Module, folder: Path = Path()) -> tuple[Any, ...]:
    """What every model needs, for a network that is given images as it takes them."""
    entry = ModelEntry.in_file(folder / "models.toml", title=detector_id, source="none")
    return detector_id, entry, network.eval().requires_grad_(False), None, {}, torch.device("cpu")


def zero_shot(network: nn.Module, folder: Path = Path()) -> ZeroShotClassifier:
    """A model of four classes, a to d, with a token for each."""
    names = tuple("abcd")
    return ZeroShotClassifier(
        *model_fields("clip", network, folder),
        tokenizer=lambda texts: torch.tensor([[1, names.index(text) + 2, 8, 0] for text in texts]),
        class_names=names,
        prompt="{}",
    )
