"""Preprocessing: what is done to an image before a network takes it, as a function and as a description."""

import json
import re
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor, nn

from benchmark.models.entries import Preprocessing

Transform = Callable[[Image.Image], Tensor]


def timm_transform(stated: Preprocessing | None, network: nn.Module) -> tuple[Transform, dict[str, Any]]:
    """The transform of images for a timm network, and its description as JSON.

    stated: the preprocessing that the entry states. None: that of the network's checkpoint, at its test size.
    network: the timm network.
    """
    import timm  # here, since it is slow to import

    config = timm.data.resolve_data_config(stated.model_dump() if stated else {}, model=network, use_test_size=True)
    transform = timm.data.create_transform(**config)
    return transform, {**json.loads(json.dumps(config)), "transform": describe_transform(transform)}


def describe_transform(transform: Any) -> str:
    """The steps of a transform as text. Raises ValueError where the text of a step does not say what it does."""
    steps = [" ".join(str(step).split()) for step in getattr(transform, "transforms", [transform])]
    if silent := [step for step in steps if re.search(r" at 0x[0-9a-f]+|^Lambda\(\)$", step)]:
        raise ValueError(f"{silent[0]} does not say what it does")
    return " | ".join(steps)
