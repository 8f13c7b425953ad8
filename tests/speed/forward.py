"""The stored forward pass beside a bare loop over batches that are in memory already.

    python tests/speed/forward.py [MODEL ...]

Prints, for each model of the digits suite, the speed of the loop that fills the store (its checks, both outputs, the
shards on the disk) as a share of the bare loop's, once with the images in memory and once with decoding them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmark import store
from benchmark.image_sets import ImageSet, image_set_of_pixels, load_image_set
from benchmark.models import load_model
from benchmark.suites import load_suite

ROUNDS = 5


def main() -> None:
    suite = load_suite("digits")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(suite.models))
    for id in parser.parse_args().models:
        model = load_model(id, suite.models[id], torch.device("cpu"), classes=8)
        images = full_shard(load_image_set("digits-train", suite.image_sets))
        images.content_sha256  # noqa: B018  it is needed once a set, not once a model
        preloaded = store.PreparedImages(model, images)[0 : len(images)]
        batches = preloaded.split(store.BATCH_ROWS)

        def bare(model: store.Model = model, batches: tuple[torch.Tensor, ...] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    model.network(batch)

        def stored(model: store.Model = model, images: ImageSet = images) -> None:
            with tempfile.TemporaryDirectory() as folder:
                store.Store(Path(folder)).outputs(model, images)

        def stored_from_memory(preloaded: torch.Tensor = preloaded, stored: Callable[[], None] = stored) -> None:
            with patch.object(store.PreparedImages, "__getitem__", lambda _, rows: preloaded[rows]):
                stored()

        bare_s, memory_s, decoded_s = interleaved(bare, stored_from_memory, stored)
        print(
            f"{id}: bare loop {1000 * bare_s / len(images):.3f} ms an image; "
            f"stored from memory {bare_s / memory_s:.1%} of its speed, stored from files {bare_s / decoded_s:.1%}"
        )


def full_shard(images: ImageSet) -> ImageSet:
    """The images over and over, as many as a shard holds: what a set costs once should not stand for what it costs."""
    return image_set_of_pixels(
        images.id,
        images.title,
        store.SHARD_ROWS,
        lambda index: np.asarray(images[index % len(images)]),
        licence=images.licence,
        source=images.source,
    )


def interleaved(*runs: Callable[[], None]) -> list[float]:
    """The median seconds of each, run in turn so that a change of the machine's speed meets all alike."""
    seconds: list[list[float]] = [[] for _ in runs]
    for round in range(1 + ROUNDS):  # the first one warms up
        for run, times in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            if round:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
