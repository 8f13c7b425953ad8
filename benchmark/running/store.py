"""The store: one forward pass per (model, image set), kept as checksummed shards and read back memory-mapped.

    STORE/<key>/about.json                        what the key stands for, for a reader
    STORE/<key>/00000.<sha256 of the file>.safetensors    the outputs on up to SHARD_ROWS images

The key is a hash of the network's weights, its preprocessing, the images, how they are decoded, and the dtype. A shard
gets its name by one atomic rename after it is on the disk, and the name carries its checksum: a killed run leaves
nothing that a later one trusts, and a later run goes on at the next shard. A lock per shard keeps two processes from
writing the same one.
"""

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from benchmark.files import write_atomically
from benchmark.images.image_set import ImageSet
from benchmark.models.devices import device_name
from benchmark.models.model import Model
from detectors import Outputs

SHARD_ROWS = 4096
BATCH_ROWS = 256
HEAD_ROWS = 8  # enough to see that a head is not linear; each one costs a second forward pass
SOON_MS = 2000.0
LAYOUT = 1  # of a shard; a change makes every key new


class StoreError(RuntimeError):
    """Outputs that cannot be made or kept; the message names the model, the images or the folder, and the remedy."""


class DamagedShardWarning(UserWarning):
    """A shard whose content is not what its name says. It is computed again."""


class Shards:
    """Rows that lie in several tensors, one after the other. Slicing them gives one tensor."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self.shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("shards are sliced without a step")
        pieces, first = [], 0
        for part in self._parts:
            piece = part[max(start - first, 0) : max(stop - first, 0)]
            if len(piece):
                pieces.append(piece)
            first += len(part)
        return pieces[0] if len(pieces) == 1 else torch.cat([self._parts[0][:0], *pieces])


class PreparedImages:
    """The images of a set as a model takes them, (N, 3, H, W), decoded when they are sliced."""

    def __init__(self, model: Model, image_set: ImageSet) -> None:
        self._model, self._image_set = model, image_set
        self.shape = (len(image_set), *model.preprocessing["input_size"])

    def __getitem__(self, rows: slice) -> Tensor:
        indices = range(*rows.indices(self.shape[0]))
        pixels = torch.empty(len(indices), *self.shape[1:])
        self.prepare(indices, pixels)
        return pixels

    def prepare(self, indices: Sequence[int], pixels: Tensor) -> None:
        """Fills pixels (n, 3, H, W) with the images at `indices`."""
        for index, place in zip(indices, pixels, strict=True):
            place.copy_(self._model.transform(self._image_set[index]))


@dataclass(frozen=True)
class Store:
    """A folder of outputs."""

    folder: Path

    def outputs(self, model: Model, image_set: ImageSet) -> Outputs:
        """The outputs of a model on an image set, with labels and images; computed where they are not there yet.

        Raises StoreError when the folder cannot be written, or when the model gives NaN or infinite values.
        """
        folder = self.folder / self.key(model, image_set)
        shards = [
            self._shard(folder, number, rows, model, image_set)
            for number, rows in enumerate(_slices(len(image_set), SHARD_ROWS))
        ]
        return Outputs(
            **{name: Shards([shard[name] for shard in shards]) for name in shards[0]},
            labels=None if image_set.labels is None else torch.from_numpy(image_set.labels),
            images=PreparedImages(model, image_set),
        )

    @staticmethod
    def about(model: Model, image_set: ImageSet) -> dict[str, Any]:
        """All that the outputs depend on. A set that is decoded as usual says nothing of it."""
        decoding = image_set.decoding.model_dump(exclude_defaults=True)
        return {
            "layout": LAYOUT,
            "weights_sha256": model.weights_sha256,
            "preprocessing": model.preprocessing,
            "images_sha256": image_set.content_sha256,
            "dtype": "float32",
            **({"decoding": decoding} if decoding else {}),
        }

    def key(self, model: Model, image_set: ImageSet) -> str:
        about = json.dumps(self.about(model, image_set), sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:40]

    def forward_ms_per_image(self, model: Model, outputs: Outputs) -> float | None:
        """The shortest forward time of the model that was measured on its device, on up to BATCH_ROWS of the images.

        What takes a moment is measured again by each run: the run before may have shared the machine with others.
        """
        known = self.folder / "forward-times" / f"{model.weights_sha256[:40]}.json"
        device = device_name(model.device)
        times = _read_times(known)
        if times.get(device, 0.0) * BATCH_ROWS < SOON_MS:
            images = next(outputs.only({"images"}).batches(BATCH_ROWS)).images
            times[device] = min(forward_ms_per_image(model, images), times.get(device, math.inf))
            with _writing(self.folder):
                known.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(known, json.dumps(times, indent=1).encode())
        return times[device]

    def _shard(self, folder: Path, number: int, rows: slice, model: Model, image_set: ImageSet) -> dict[str, Tensor]:
        shard = _read_shard(folder, number)
        if shard is not None:
            return shard
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{number:05d}.lock").acquire()
        with lock:
            shard = _read_shard(folder, number)
            if shard is None:
                with _writing(folder):
                    about = {"model": model.id, "image_set": image_set.id, **self.about(model, image_set)}
                    write_atomically(folder / "about.json", json.dumps(about, indent=1).encode())
                computed = forward(model, image_set, rows)
                with _writing(folder):
                    _write_shard(folder, number, computed)
                shard = _read_shard(folder, number)
        if shard is None:
            raise StoreError(f"{folder}: shard {number} cannot be read back after it was written; check the disk")
        return shard


def forward(model: Model, image_set: ImageSet, rows: slice) -> dict[str, Tensor]:
    """A model's outputs on some images of a set, in float32 on the CPU, in one forward pass.

    Raises StoreError when a value is NaN or infinite, or when the model's head does not explain its logits.
    """
    images = PreparedImages(model, image_set)
    parts: list[dict[str, Tensor]] = []
    batches = [slice(rows.start + part.start, rows.start + part.stop) for part in _slices(rows.stop - rows.start)]
    title = f"{model.id} on {image_set.id}"
    with (
        torch.inference_mode(),
        tqdm(total=len(image_set), initial=rows.start, desc=title, unit="image", disable=None, leave=False) as bar,
    ):
        for batch, pixels in zip(batches, prefetched(images, batches), strict=True):
            outputs = {name: values.float().cpu() for name, values in model.outputs(pixels).items()}
            _check_finite(model, image_set, batch.start, outputs)
            if not parts:
                _check_head(model, pixels[:HEAD_ROWS], outputs["logits"][:HEAD_ROWS])
            parts.append(outputs)
            bar.update(len(pixels))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def forward_ms_per_image(model: Model, images: Any) -> float:
    """The time of a forward pass over images (N, 3, H, W): the shortest of up to ten within half a second.

    The shortest, because what else the machine does can only add to it.
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
    expected = model(pixels).float()
    error = float((logits - expected).abs().max())
    scale = float(expected.abs().max())
    if not error <= 1e-4 * max(scale, 1.0):
        raise StoreError(
            f"model {model.id}: features @ weight.T + bias differs from its logits by {error:.3g} "
            f"(the largest logit is {scale:.3g}); its head is more than one linear layer"
        )


def _check_finite(model: Model, image_set: ImageSet, start: int, outputs: dict[str, Tensor]) -> None:
    for name, values in outputs.items():
        finite = torch.isfinite(values.flatten(1)).all(dim=1)
        if not finite.all():
            image = image_set.image_ids[start + int((~finite).nonzero()[0])]
            raise StoreError(
                f"model {model.id} gives NaN or infinite {name} for image {image} of {image_set.id}; "
                "check the checkpoint and its preprocessing (nothing was stored for this part of the set)"
            )


def _read_times(file: Path) -> dict[str, float]:
    """Forward times by device; none where the file is not there or holds no such thing."""
    try:
        times = json.loads(file.read_text())
        return {device: float(time) for device, time in times.items() if float(time) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _slices(rows: int, size: int = BATCH_ROWS) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _read_shard(folder: Path, number: int) -> dict[str, Tensor] | None:
    """The shard, memory-mapped, or None where there is none. A damaged one is removed, with a warning."""
    for path in sorted(folder.glob(f"{number:05d}.*.safetensors")):
        try:
            if _sha256(path) == path.name.split(".")[1]:
                return load_file(path)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"{path} cannot be read ({error})", DamagedShardWarning, stacklevel=2)
        warnings.warn(f"{path} is damaged; it is removed and computed again", DamagedShardWarning, stacklevel=2)
        with _writing(folder):
            path.unlink(missing_ok=True)
    return None


def _write_shard(folder: Path, number: int, tensors: dict[str, Tensor]) -> None:
    content = save(tensors)
    write_atomically(folder / f"{number:05d}.{hashlib.sha256(content).hexdigest()}.safetensors", content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write to the store {folder}: {error.strerror or error}; free some space or make it writable, "
            "or name another folder with --store (what was stored before is kept)"
        ) from error
