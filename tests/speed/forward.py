"""The stored forward pass beside its physical limits, in one run.

    python tests/speed/forward.py [MODEL ...]

Prints, for each model of the digits suite, over a full shard of images:

- the bare loop: the network over batches that are in memory already;
- the store over the same batches (both outputs, its checks, hashing, writing and reading the shard), as a share of the
  bare loop's speed. Exits 1 when it is below 90 %;
- the store from image files, beside decoding and preparing them without a network. Both keep all cores busy, so the
  limit there is about the sum of the two.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmark.images.image_set import ImageSet, image_set_of_pixels, load_image_set
from benchmark.models.loading import load_model
from benchmark.running import store
from benchmark.suites.loading import load_suite

ROUNDS = 9
LEAST_SHARE = 0.9


def main() -> None:
    suite = load_suite("digits")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(suite.models))
    slow = False
    for name in parser.parse_args().models:
        model = load_model(name, suite.models, torch.device("cpu"), "01234567")
        images = full_shard(load_image_set("digits-train", suite.image_sets))
        images.content_sha256  # noqa: B018  it is needed once a set, not once a model
        prepared = store.PreparedImages(model, images)
        rows = [slice(start, start + store.BATCH_ROWS) for start in range(0, len(images), store.BATCH_ROWS)]
        batches = prepared[0 : len(images)].split(store.BATCH_ROWS)

        def bare(model: store.Model = model, batches: tuple[torch.Tensor, ...] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    model.network(batch)

        def stored_from_files(model: store.Model = model, images: ImageSet = images) -> None:
            with tempfile.TemporaryDirectory() as folder:
                store.Store(Path(folder)).outputs(model, images)

        def stored_from_memory(
            batches: tuple[torch.Tensor, ...] = batches, stored: Callable[[], None] = stored_from_files
        ) -> None:
            with patch.object(store, "prefetched", lambda *_: iter(batches)):
                stored()

        def decoded(prepared: store.PreparedImages = prepared, rows: list[slice] = rows) -> None:
            for _ in store.prefetched(prepared, rows):
                pass

        bare_s, memory_s, files_s, decoded_s = interleaved(bare, stored_from_memory, stored_from_files, decoded)
        slow |= bare_s / memory_s < LEAST_SHARE
        print(
            f"{name}: bare loop {1000 * bare_s / len(images):.3f} ms an image; "
            f"stored from memory at {bare_s / memory_s:.1%} of its speed; "
            f"decoding {1000 * decoded_s / len(images):.3f} ms an image, "
            f"stored from files at {(bare_s + decoded_s) / files_s:.1%} of the speed of both in turn"
        )
    sys.exit(slow)


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
    """The shortest seconds of each, run in turn: what else the machine does can only add to them."""
    seconds: list[list[float]] = [[] for _ in runs]
    for round_ in range(1 + ROUNDS):  # the first one warms up
        for run, times in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            if round_:
                times.append(time.perf_counter() - started)
    return [min(times) for times in seconds]


if __name__ == "__main__":
    main()
