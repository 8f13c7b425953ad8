"""What is done to an image before a network sees it, as a function and as a description."""

import json
import re
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor, nn

from benchmark.models.entries import Preprocessing

Transform = Callable[[Image.Image], Tensor]


def timm_transform(stated: Preprocessing | None, network: nn.Module) -> tuple[Transform, dict[str, Any]]:
    """The stated preprocessing, else the one of the network's own checkpoint at its test size, and its description."""
    import timm  # here, since it is slow to import

    config = timm.data.resolve_data_config(stated.model_dump() if stated else {}, model=network, use_test_size=True)
    transform = timm.data.create_transform(**config)
    return transform, {**json.loads(json.dumps(config)), "transform": described(transform)}


def described(transform: Any) -> str:
    """A transform in words, step by step. Raises ValueError where they do not tell what it does."""
    steps = [" ".join(str(step).split()) for step in getattr(transform, "transforms", [transform])]
    if silent := [step for step in steps if re.search(r" at 0x[0-9a-f]+|^Lambda\(\)$", step)]:
        raise ValueError(f"{silent[0]} does not tell what it does")
    return " | ".join(steps)
