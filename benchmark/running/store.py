"""The store: one forward pass per (model, image set), kept as checksummed shards and read back memory-mapped.

    STORE/<key>/about.json                        what the key stands for, for a reader
    STORE/<key>/trial.json                        what the network made of a few fixed images when it was stored
    STORE/<key>/00000.<sha256 of the file>.safetensors    the outputs on up to SHARD_ROWS images

Code that changes, such as another version of a library, gives another trial: then the outputs are computed again.

The key is a hash of the network's weights, its preprocessing, the images, how they are decoded, and the dtype. A shard
gets its name by one atomic rename after it is on the disk, and the name carries its checksum: a killed run leaves
nothing that a later one trusts, and a later run goes on at the next shard. A lock per shard keeps two processes from
writing the same one.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from benchmark.errors import Remedy
from benchmark.files import held, remove_litter, write_atomically
from benchmark.images.image_set import ImageSet
from benchmark.models.devices import device_name
from benchmark.models.model import Model
from benchmark.models.prepared_images import PreparedImages
from benchmark.models.trial import same_outcome
from benchmark.running.forward import BATCH_ROWS, StoreError, _slices, forward, forward_ms_per_image
from detectors import Outputs

SHARD_ROWS = 4096
SOON_MS = 2000.0
LONGEST_MS = 60_000.0  # an image; a longer stored time is not believed, since it would excuse any slow detector
LAYOUT = 1  # of a shard; a change makes every key new


class DamagedShardWarning(UserWarning):
    """A shard whose content is not what its name says. It is computed again."""


class OtherCodeWarning(UserWarning):
    """Outputs that other code made. They are computed again."""


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


@dataclass(frozen=True)
class Store:
    """A folder of outputs.

    folder: the folder, which need not be there yet.
    """

    folder: Path

    def remove_litter(self) -> None:
        """Removes what killed runs left, where it is old."""
        remove_litter(self.folder, "*/.writing-*")

    def outputs(self, model: Model, image_set: ImageSet) -> Outputs:
        """The outputs of a model on an image set, with labels and images; computed where they are not there yet.

        Raises StoreError when the folder cannot be written, or when the model gives NaN or infinite values.
        """
        folder = self.folder / self.key(model, image_set)
        _forget_other_code(folder, model)
        shards = [
            self._shard(folder, number, rows, model, image_set)
            for number, rows in enumerate(_slices(len(image_set), SHARD_ROWS))
        ]
        if len({(name, value.shape[1:]) for shard in shards for name, value in shard.items()}) > len(shards[0]):
            raise StoreError(f"{folder}: its shards hold tensors of other names or shapes; delete the folder")
        return Outputs(
            **{name: Shards([shard[name] for shard in shards]) for name in shards[0]},
            labels=None if image_set.labels is None else torch.from_numpy(image_set.labels),
            images=PreparedImages(model, image_set),
        )

    @staticmethod
    def about(model: Model, image_set: ImageSet) -> dict[str, Any]:
        """All that the outputs depend on. A set that is decoded as usual says nothing of its decoding."""
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
        """The name of the folder that holds the outputs: a hash of all that they depend on."""
        about = json.dumps(self.about(model, image_set), sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:40]

    def forward_ms_per_image(self, model: Model, outputs: Outputs) -> float | None:
        """The shortest forward time that was measured of the model on its device, in milliseconds an image.

        It is measured on up to BATCH_ROWS of the images. What takes a moment is measured again by each run: the run
        before may have shared the machine with others.
        """
        known = self.folder / "forward-times" / f"{model.weights_sha256[:40]}.json"
        device = device_name(model.device)
        times = _read_times(known)
        if times.get(device, 0.0) * BATCH_ROWS < SOON_MS:
            images = next(outputs.only({"images"}).batches(BATCH_ROWS)).images
            times[device] = min(forward_ms_per_image(model, images), times.get(device, math.inf))
            with suppress(OSError):  # a store that is complete and cannot be written can still be read
                known.parent.mkdir(parents=True, exist_ok=True)
                with held(known.parent):  # another process may measure the same model on another device
                    write_atomically(known, json.dumps(_read_times(known) | {device: times[device]}, indent=1).encode())
        return times[device]

    def _shard(self, folder: Path, number: int, rows: slice, model: Model, image_set: ImageSet) -> dict[str, Tensor]:
        expected = _expected(model, rows)
        shard = _read_shard(folder, number, expected)
        if shard is not None:
            return shard
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{number:05d}.lock").acquire()
        with lock:
            shard = _read_shard(folder, number, expected)
            if shard is None:
                with _writing(folder):
                    about = {"model": model.id, "image_set": image_set.id, **self.about(model, image_set)}
                    write_atomically(folder / "about.json", json.dumps(about, indent=1).encode())
                    write_atomically(folder / "trial.json", json.dumps(model.trial).encode())
                computed = forward(model, image_set, rows)
                with _writing(folder):
                    _write_shard(folder, number, computed)
                shard = _read_shard(folder, number, expected)
        if shard is None:
            raise StoreError(f"{folder}: shard {number} cannot be read back after it was written; check the disk")
        return shard


def _forget_other_code(folder: Path, model: Model) -> None:
    """Removes outputs that other code made: what the network makes of the trial images is not what it made then.

    Outputs without a trial are older than trials, and are trusted once.
    """
    file = folder / "trial.json"
    if not folder.is_dir():
        return
    stored = _read_trial(file)
    if stored is None:
        with suppress(OSError):  # a folder that cannot be written can still be read
            write_atomically(file, json.dumps(model.trial).encode())
    if stored is None or same_outcome(model.trial, stored):
        return
    with _writing(folder), FileLock(folder / "trial.lock"):
        if same_outcome(model.trial, _read_trial(file) or model.trial):  # another process was faster
            return
        warnings.warn(
            f"model {model.id} gives other outputs than when {folder} was stored: its code, or a library that it uses, "
            "has changed; they are computed again",
            OtherCodeWarning,
            stacklevel=2,
        )
        for path in folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)
        write_atomically(file, json.dumps(model.trial).encode())


def _read_trial(file: Path) -> list[float] | None:
    """What came out of the trial when the outputs were stored. None where nobody wrote it."""
    try:
        return [float(value) for value in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _read_times(file: Path) -> dict[str, float]:
    """Forward times by device, without those that no forward pass takes; none where the file is damaged."""
    try:
        times = json.loads(file.read_text())
        return {device: float(time) for device, time in times.items() if 0 < float(time) <= LONGEST_MS}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _expected(model: Model, rows: slice) -> dict[str, tuple[int, int]]:
    """The shape of each tensor of a shard, of those that every model has."""
    count = rows.stop - rows.start
    return {"features": (count, model.feature_dimensions), "logits": (count, model.classes)}


def _fits(tensors: dict[str, Tensor], expected: dict[str, tuple[int, int]]) -> bool:
    """Whether a shard holds what a model makes: the tensors that are expected, and perhaps patches of each image."""
    count = expected["features"][0]
    if tensors.keys() - {"patches"} != expected.keys():
        return False
    shapes = {name: expected.get(name, (count, *value.shape[1:])) for name, value in tensors.items()}
    return all(value.dtype == torch.float32 and value.shape == shapes[name] for name, value in tensors.items())


def _read_shard(folder: Path, number: int, expected: dict[str, tuple[int, int]]) -> dict[str, Tensor] | None:
    """The shard, memory-mapped, or None where there is none. A damaged one is removed, with a warning.

    expected: the shapes of the tensors that it must hold.
    """
    for path in sorted(folder.glob(f"{number:05d}.*.safetensors")):
        try:
            if _sha256(path) == path.name.split(".")[1] and _fits(tensors := load_file(path), expected):
                return tensors
        except (OSError, ValueError, KeyError, SafetensorError) as error:
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
            f"cannot write to the store {folder}: {error.strerror or error}; free some space or make it writable "
            "(what was stored before is kept)",
            Remedy("set", "store"),
        ) from error
