"""The forward pass: a model's outputs on the images of a set, and its time."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from benchmark.errors import UserError
from benchmark.images.image_set import ImageSet
from benchmark.models.model import Model
from benchmark.models.prepared_images import PreparedImages
from benchmark.running.progress import progress_bar

BATCH_ROWS = 256
HEAD_ROWS = 8  # enough to see that a head is not linear; each one costs a second forward pass


class StoreError(UserError, RuntimeError):
    """Outputs that cannot be made or kept; the message names the model, the images or the folder, and the remedy."""


def forward(model: Model, image_set: ImageSet, rows: slice) -> dict[str, Tensor]:
    """A model's outputs on some images of a set, in float32 on the CPU, in one forward pass, by name.

    rows: which images.
    Raises StoreError when a value is NaN or infinite, or when the model's head does not explain its logits.
    """
    images = PreparedImages(model, image_set)
    parts: list[dict[str, Tensor]] = []
    batches = [slice(rows.start + part.start, rows.start + part.stop) for part in _slices(rows.stop - rows.start)]
    title = f"{model.id} on {image_set.id}"
    with (
        torch.inference_mode(),
        progress_bar(total=len(image_set), initial=rows.start, desc=title, unit="image", leave=False) as bar,
    ):
        for batch, pixels in zip(batches, prefetched(images, batches), strict=True):
            outputs = {name: values.float().cpu() for name, values in model.outputs(pixels).items()}
            _check_finite(model, image_set, batch.start, outputs)
            if not parts:
                first = min(HEAD_ROWS, -(-len(pixels) // 2))  # fewer than the batch, to see whether that matters
                _check_head(model, pixels[:first], outputs["logits"][:first])
            parts.append(outputs)
            bar.update(len(pixels))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def forward_ms_per_image(model: Model, images: Any) -> float:
    """The time of a forward pass, in milliseconds an image: the shortest of up to ten within half a second.

    It is the shortest, because what else the machine does can only add to it.

    model: the network.
    images: the prepared images, (N, 3, H, W).
    """
    seconds: list[float] = []
    with torch.inference_mode():
        model(images)
        while not seconds or (len(seconds) < 10 and sum(seconds) < 0.5):
            started = time.perf_counter()
            model(images)
            seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds) / len(images)


def prefetched(images: PreparedImages, batches: list[slice]) -> Iterator[Tensor]:
    """The batches in order, each prepared by all cores while the one before it is used."""
    workers = os.cpu_count() or 1

    def start(batch: slice) -> tuple[Tensor, list[Future[None]]]:
        with torch.inference_mode(False):  # the mode is of this thread, and the pool's could not fill the tensor
            pixels = torch.empty(batch.stop - batch.start, *images.shape[1:])
        indices, step = range(batch.start, batch.stop), -(-len(pixels) // workers)
        parts = [slice(first, first + step) for first in range(0, len(pixels), step)]
        return pixels, [pool.submit(images.prepare, indices[part], pixels[part]) for part in parts]

    def finish(pixels: Tensor, parts: list[Future[None]]) -> Tensor:
        for part in parts:
            part.result()
        return pixels

    with ThreadPoolExecutor(workers) as pool:
        ahead = []
        for batch in batches:
            ahead.append(start(batch))
            if len(ahead) == 2:
                yield finish(*ahead.pop(0))
        yield from (finish(*batch) for batch in ahead)


def _check_head(model: Model, pixels: Tensor, logits: Tensor) -> None:
    """Raises StoreError where the logits of a batch are not those that the network gives to its first images alone."""
    expected = model(pixels).float()
    scale = float(expected.abs().max())
    if _furthest(logits, expected) <= 1e-4 * max(scale, 1.0):
        return
    if _furthest(model.outputs(pixels)["logits"].float().cpu(), expected) <= 1e-4 * max(scale, 1.0):
        raise StoreError(
            f"model {model.id}: its output for an image depends on the other images of its batch: remove what is "
            "computed over the batch"
        )
    raise StoreError(
        f"model {model.id}: features @ weight.T + bias differs from its logits by {_furthest(logits, expected):.3g} "
        f"(the largest logit is {scale:.3g}); its head is more than one linear layer"
    )


def _furthest(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where one is NaN."""
    return float((one - other).abs().nan_to_num(nan=torch.inf).max())


def _check_finite(model: Model, image_set: ImageSet, start: int, outputs: dict[str, Tensor]) -> None:
    for name, values in outputs.items():
        finite = torch.isfinite(values.flatten(1)).all(dim=1)
        if not finite.all():
            image = image_set.image_ids[start + int((~finite).nonzero()[0])]
            raise StoreError(
                f"model {model.id} gives NaN or infinite {name} for image {image} of {image_set.id}; "
                "check the checkpoint and its preprocessing (nothing was stored for this part of the set)"
            )


def _slices(rows: int, size: int = BATCH_ROWS) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
