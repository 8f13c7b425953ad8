"""Preprocessing: what is done to an image before a network takes it, as a function and as a description."""

import json
import re
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from benchmark.errors import UserError
from benchmark.models.entries import LONGEST_SIDE, Preprocessing

Transform = Callable[[Image.Image], Tensor]


class PreprocessingError(UserError):
    """A preprocessing that cannot be done; the message says why."""


def timm_transform(stated: Preprocessing | None, network: nn.Module) -> tuple[Transform, dict[str, Any]]:
    """The transform of images for a timm network, and its description as JSON.

    stated: the preprocessing that the entry states. None: that of the network's checkpoint, at its test size.
    network: the timm network.
    Raises PreprocessingError where what the checkpoint says cannot be done.
    """
    import timm  # here, since it is slow to import

    try:
        config = timm.data.resolve_data_config(stated.model_dump() if stated else {}, model=network, use_test_size=True)
        _check_size(config["input_size"])
        with torch.device("cpu"):  # where images are prepared, whatever the device of the network
            transform = timm.data.create_transform(**config)
            described = {**json.loads(json.dumps(config)), "transform": describe_transform(transform)}
            made = transform(Image.new("RGB", (8, 6)))
    except Exception as error:  # the values are those of a file, and timm and torchvision check few of them
        what = str(error) if isinstance(error, PreprocessingError) else f"{type(error).__name__}: {error}"
        raise PreprocessingError(
            f"images cannot be prepared as it says: {what}; correct its config.json, or state `preprocessing` in the "
            "entry"
        ) from None
    if tuple(made.shape) != tuple(config["input_size"]) or not made.isfinite().all():
        raise PreprocessingError(
            f"images cannot be prepared as it says: that gives {tuple(made.shape)} for {config['input_size']}, or no "
            "finite values; correct its config.json, or state `preprocessing` in the entry"
        )
    return transform, described


def _check_size(input_size: Any) -> None:
    """Raises PreprocessingError unless a size is three positive numbers, channels, height and width."""
    sides = list(input_size) if isinstance(input_size, list | tuple) else []
    if len(sides) != 3 or any(type(side) is not int or not 1 <= side <= LONGEST_SIDE for side in sides):
        raise PreprocessingError(f"its input_size is {input_size!r}, not [3, HEIGHT, WIDTH] up to {LONGEST_SIDE}")


def describe_transform(transform: Any) -> str:
    """The steps of a transform as text. Raises ValueError where the text of a step does not say what it does."""
    steps = [" ".join(str(step).split()) for step in getattr(transform, "transforms", [transform])]
    if silent := [step for step in steps if re.search(r" at 0x[0-9a-f]+|^Lambda\(\)$", step)]:
        raise ValueError(f"{silent[0]} does not say what it does")
    return " | ".join(steps)
