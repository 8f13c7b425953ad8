"""A gate: one model with one fitted detector, which accepts or rejects single images. docs/gate.md shows its use.

    FOLDER/detector.safetensors    the tensors that the detector learned
    FOLDER/gate.json               everything else: a `SavedGate`

Nothing is pickled. The network's weights stay where its entry says; the gate knows their hash.
"""

import hashlib
import json
import math
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer
from safetensors.torch import load, save
from torch import Tensor

from benchmark.entries import DATA_DIR
from benchmark.errors import UserError
from benchmark.files import write_atomically
from benchmark.images.decoding import Decoding, to_rgb
from benchmark.images.image_set import ImageSet
from benchmark.metrics import accuracy, threshold_at_tpr
from benchmark.models.devices import choose_device, device_name
from benchmark.models.entries import BUILT_IN, ModelEntry, base_of
from benchmark.models.loading import load_model
from benchmark.models.model import Model
from benchmark.models.prepared_images import PreparedImages
from benchmark.records import Count, Estimate, Sha256
from benchmark.running.evaluation import Evaluation
from benchmark.running.fitted_detector import FittedDetector, source_sha256
from benchmark.running.forward import BATCH_ROWS
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.provenance import package_git_state, package_version, package_versions
from benchmark.running.store import Store
from benchmark.suites.suite import Suite
from benchmark.user.command_line import Named
from detectors import Detector, Outputs, available, did_you_mean, restore

TENSORS, ABOUT = "detector.safetensors", "gate.json"
SCHEMA: Literal[1] = 1

AnImage = str | Path | bytes | Image.Image


class GateError(UserError):
    """A gate that cannot be saved or loaded; the message names the folder or the file, and the remedy."""


@dataclass(frozen=True)
class Decision:
    """What a gate says of an image.

    accepted: whether its score is at least the threshold.
    score: its score. Higher means more in-distribution.
    threshold: the score from which an image is accepted.
    label: the index of the class that the network takes it for. It means little where the image is not accepted.
    class_name: the name of that class.
    probability: the softmax of that class, from 0 to 1.
    """

    accepted: bool
    score: float
    threshold: float
    label: int
    class_name: str
    probability: float


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SavedEntry(_Table):
    """A model's entry.

    table: its table.
    file: the file that it stands in, seen from the gate's folder. Null for the built-in file.
    data_dir: the data folder, seen from the gate's folder.
    """

    table: dict[str, Any]
    file: str | None
    data_dir: str


class SavedModel(_Table):
    """The model of a gate.

    id: the model's id.
    entries: the entry of the model and, where it is a variant, those of its bases, by id.
    weights_sha256: of its weights, with all edits.
    preprocessing: what is done to an image before the network sees it.
    """

    id: str
    entries: dict[str, SavedEntry]
    weights_sha256: Sha256
    preprocessing: dict[str, Any]


class SavedSet(_Table):
    """An image set that a gate learned from, or was measured on.

    id: the set's id.
    images: how many images it has.
    content_sha256: of every image's id, content and label, in order.
    """

    id: str
    images: Count
    content_sha256: Sha256


class SavedGate(_Table):
    """The content of gate.json.

    schema_version: the schema that it is written in.
    model: the model.
    class_names: the name of each class, in the order of the network's.
    decoding: what was decided about files that decoders treat differently.
    detector: the detector's state but its tensors.
    tensors_sha256: of the file of the tensors.
    threshold: the largest score that at least 95 % of the ID test images reach. "inf" and "-inf" stand for what JSON
        cannot write.
    accepted: the share of the ID test images that reach it, with its 95 % sampling interval.
    sets: what it learned from and was measured on, by role.
    made: by what code, when and where.

    The file has a key `sha256` too: of all of this.
    """

    schema_version: Literal[1] = SCHEMA
    model: SavedModel
    class_names: list[str]
    decoding: Decoding
    detector: dict[str, Any]
    tensors_sha256: Sha256
    threshold: float = Field(ge=-math.inf)  # which NaN is not
    accepted: Estimate
    sets: dict[str, SavedSet]
    made: dict[str, Any]

    @field_serializer("threshold", when_used="json")
    def _json_number(self, value: float) -> float | str:
        return value if math.isfinite(value) else str(value)


@dataclass(frozen=True, eq=False)
class Gate:
    """A model with a fitted detector and the threshold from which an image is accepted.

    model: the network that the detector scores.
    classifier: the network that names the class: the model itself, or its base where the base goes on classifying.
    entries: the entries of the model and of its bases, by id.
    class_names: the name of each class, in the order of the network's.
    decoding: what was decided about files that decoders treat differently.
    detector: the fitted detector.
    threshold: the score from which an image is accepted.
    accepted: the share of ID test images that is accepted, with its 95 % sampling interval.
    sets: what it learned from and was measured on, by role.
    made: by what code, when and where.
    """

    model: Model
    classifier: Model
    entries: dict[str, ModelEntry]
    class_names: tuple[str, ...]
    decoding: Decoding
    detector: Detector
    threshold: float
    accepted: Estimate
    sets: dict[str, SavedSet]
    made: dict[str, Any]

    @classmethod
    def fit(
        cls,
        model: str,
        detector: str,
        *,
        suite: str = "digits",
        in_distribution: str | None = None,
        train: str | None = None,
        val: str | None = None,
        data_dir: Path | str = DATA_DIR,
        store: Path | str = ".store",
        device: str | None = None,
    ) -> Self:
        """A model and a detector of a suite, as a run of the suite fits them. What a run has stored is used again.

        model: the model's id, or a network of one's own: what `--model` of a run takes.
        detector: the detector's id.
        suite: a suite by name, or the path of its TOML file.
        in_distribution: the test images that set the threshold, in place of the suite's: what `--id` takes.
        train, val: the images to learn from, likewise.
        data_dir: the folder of downloaded images and weights.
        store: the folder for the outputs of networks.
        device: where networks run, as torch names it. None for a GPU where there is one.
        Raises ValueError for what the suite lacks, and what loading a model or an image set raises.
        """
        if detector not in available():
            hint = did_you_mean(detector, available())
            raise GateError(f"no detector is called {detector!r}{hint}; known: {', '.join(available())}")
        known = Named(suite, Path(data_dir), (model,), in_distribution, train, val).make_suite()
        loaded = LoadedSuite(known, Store(Path(store)), choose_device(device))
        return cls.of(Evaluation(loaded).detector(next(iter(known.models)), detector))

    @classmethod
    def of(cls, fitted: FittedDetector) -> Self:
        """The gate of a detector that is fitted already. Warns where its scores are doubtful."""
        for text in fitted.warnings:
            warnings.warn(f"{fitted.model.model.id}/{fitted.id}: {text}", stacklevel=2)
        loaded, model = fitted.model.suite, fitted.model.model
        threshold = threshold_at_tpr(fitted.id_scores.values)
        accepted = int((fitted.id_scores.values >= threshold).sum())
        sets = {role: loaded.image_set(set_id) for role, set_id in loaded.suite.splits()}
        return cls(
            model=model,
            classifier=loaded.base_of(model) if model.classified_by_base else model,
            entries=_with_bases(model.id, loaded.suite.known_models),
            class_names=fitted.model.class_names,
            decoding=fitted.model.test_set.decoding,
            detector=fitted.detector,
            threshold=threshold,
            accepted=accuracy(accepted, len(fitted.model.test_set)),
            sets={role: SavedSet(id=s.id, images=len(s), content_sha256=s.content_sha256) for role, s in sets.items()},
            made=_provenance(loaded.suite, model, fitted.detector),
        )

    @overload
    def __call__(self, images: AnImage) -> Decision: ...  # type: ignore[overload-overlap]  # a str is a sequence too

    @overload
    def __call__(self, images: Sequence[AnImage]) -> list[Decision]: ...

    def __call__(self, images: AnImage | Sequence[AnImage]) -> Decision | list[Decision]:
        """What is made of an image, or of each of a list, which are taken through the network together.

        images: paths, the bytes of image files, or PIL images (taken as they are: no EXIF orientation is applied).
        Raises ImageSetError, naming it, for an image that is missing or damaged.
        """
        if isinstance(images, AnImage):
            return self._decide([images])[0]
        if not hasattr(images, "__len__"):
            raise TypeError(f"an image is a path, bytes or a PIL image, or a list of them, not {type(images).__name__}")
        slices = range(0, len(images), BATCH_ROWS)
        return [decision for start in slices for decision in self._decide(images[start : start + BATCH_ROWS])]

    def _decide(self, images: Sequence[AnImage]) -> list[Decision]:
        pixels = PreparedImages(self.model, _image_set(images, self.decoding))[:]
        with torch.no_grad():
            outputs = {name: values.float().cpu() for name, values in self.model.outputs(pixels).items()}
            logits = outputs["logits"] if self.classifier is self.model else self.classifier(pixels)
        scores = self.detector.score(Outputs(**outputs, images=pixels)).tolist()
        if any(map(math.isnan, scores)):
            raise UserError(f"{self.model.id}/{self.detector.id}: the score of an image is NaN")
        probabilities, labels = logits.double().softmax(dim=1).max(dim=1)
        return [
            Decision(score >= self.threshold, score, self.threshold, label, self.class_names[label], probability)
            for score, label, probability in zip(scores, labels.tolist(), probabilities.tolist(), strict=True)
        ]

    def save(self, folder: Path | str) -> None:
        """Writes the two files. A folder without gate.json, which is written last, holds no gate.

        Raises GateError, naming the folder, where they cannot be written.
        """
        folder = Path(folder)
        tensors, state = self.detector.state()
        content = save(tensors)
        about = SavedGate(
            model=SavedModel(
                id=self.model.id,
                entries={model_id: _saved_entry(entry, folder) for model_id, entry in self.entries.items()},
                weights_sha256=self.model.weights_sha256,
                preprocessing=self.model.preprocessing,
            ),
            class_names=list(self.class_names),
            decoding=self.decoding,
            detector=state,
            tensors_sha256=hashlib.sha256(content).hexdigest(),
            threshold=self.threshold,
            accepted=self.accepted,
            sets=self.sets,
            made=self.made,
        ).model_dump(mode="json")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ABOUT).unlink(missing_ok=True)
            write_atomically(folder / TENSORS, content)
            write_atomically(folder / ABOUT, json.dumps({**about, "sha256": _digest(about)}, indent=1).encode())
        except OSError as error:
            raise GateError(f"cannot write the gate {folder}: {error.strerror or error}; name another folder") from None

    @classmethod
    def load(cls, folder: Path | str, device: str | None = None, data_dir: Path | str | None = None) -> Self:
        """The gate in a folder.

        folder: the folder.
        device: where the networks run, as torch names it. None for a GPU where there is one.
        data_dir: where downloaded weights lie, if not where they lay when the gate was saved.
        Raises GateError where a file is missing, was changed, or is of a newer version, and where the model is not the
        one that the detector was fitted on; ModelError where its weights are not there.
        """
        folder = Path(folder)
        about, tensors = _read(folder)
        entries = {
            model_id: _entry(model_id, saved, folder, data_dir) for model_id, saved in about.model.entries.items()
        }
        model_id, on = about.model.id, choose_device(device)
        image_size = about.model.preprocessing.get("image_size", ())
        model = load_model(model_id, entries, on, about.class_names, lambda: tuple(image_size))
        _check_model(model, about.model, folder)
        try:
            detector = restore(tensors, about.detector, model=model)
        except ValueError as error:
            raise GateError(f"{folder}: {error}; {_remedy(folder)}") from None
        return cls(
            model=model,
            classifier=load_model(base_of(model_id, entries), entries, on, about.class_names)
            if model.classified_by_base
            else model,
            entries=entries,
            class_names=tuple(about.class_names),
            decoding=about.decoding,
            detector=detector,
            threshold=about.threshold,
            accepted=about.accepted,
            sets=about.sets,
            made=about.made,
        )


def _image_set(images: Sequence[AnImage], decoding: Decoding) -> ImageSet:
    """Images as the loader of image sets sees them, so that they are decoded as those of the suite are."""
    names = tuple(_name(image) or f"image {place}" for place, image in enumerate(images))
    return ImageSet("gate", "", "", "", "", names, None, (), _GivenImages(images), decoding=decoding)


@dataclass(frozen=True)
class _GivenImages:
    """Reads image i of those that somebody gave: pictures, bytes or files."""

    images: Sequence[AnImage]

    def __call__(self, index: int) -> bytes | np.ndarray:
        image = self.images[index]
        if isinstance(image, Image.Image):
            return np.asarray(to_rgb(image))
        return image if isinstance(image, bytes) else Path(image).read_bytes()


def _name(image: AnImage) -> str:
    """The file of an image, as far as that is known."""
    return str(image) if isinstance(image, str | Path) else str(getattr(image, "filename", ""))


def _with_bases(model_id: str, entries: Mapping[str, ModelEntry]) -> dict[str, ModelEntry]:
    """The entry of a model and, where it is a variant, of its bases."""
    found = {model_id: entries[model_id]}
    while entries[model_id].edit is not None:
        model_id = base_of(model_id, entries)
        found[model_id] = entries[model_id]
    return found


def _saved_entry(entry: ModelEntry, folder: Path) -> SavedEntry:
    table = entry.model_dump(mode="json", exclude_defaults=True)
    if entry.edit is not None:
        table["edit"] = _seen_from(entry.file.parent, entry.edit)
    file = None if entry.file == BUILT_IN else _seen_from(folder, entry.file)
    return SavedEntry(table=table, file=file, data_dir=_seen_from(folder, entry.data_dir))


def _entry(model_id: str, saved: SavedEntry, folder: Path, data_dir: Path | str | None) -> ModelEntry:
    file = BUILT_IN if saved.file is None else _path_from(folder, saved.file)
    return ModelEntry.parse(saved.table, file, model_id, Path(data_dir or _path_from(folder, saved.data_dir)))


def _seen_from(folder: Path, path: Path) -> str:
    """A path as it is written into a file of a folder, so that both can be moved together."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _path_from(folder: Path, path: str) -> Path:
    """The path that is written so into a file of a folder."""
    return Path(os.path.normpath(folder / path))


def _provenance(suite: Suite, model: Model, detector: Detector) -> dict[str, Any]:
    """By what code, when and where a gate is made now. The version and the commit are those of this package."""
    package = package_git_state()
    return {
        "suite": suite.id,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "package_version": package_version(),
        "git_commit": package.commit,
        "git_dirty": package.dirty,
        "packages": package_versions(),
        "device": device_name(model.device),
        "detector_source_sha256": source_sha256(type(detector)),
    }


def _remedy(folder: Path) -> str:
    """What to do where a gate cannot be used, as the end of a message: what it was made of may not be readable."""
    return f"save it again with: {shlex.join(['python', '-m', 'benchmark', 'save', 'MODEL', 'DETECTOR', str(folder)])}"


def _read(folder: Path) -> tuple[SavedGate, dict[str, Tensor]]:
    """The content of a gate's two files, checked. Raises GateError for what is missing, damaged or changed."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        content = (folder / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise GateError(f"{folder} holds no gate: there is no {Path(error.filename).name}; {_remedy(folder)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise GateError(f"{folder}: {ABOUT} or {TENSORS} cannot be read: {error}; {_remedy(folder)}") from None
    if not isinstance(about, dict) or about.get("schema_version") != SCHEMA:
        raise GateError(f"{folder / ABOUT} is no gate of schema {SCHEMA}; load it with the version that saved it")
    if about.pop("sha256", None) != _digest(about):
        raise GateError(
            f"{folder / ABOUT} was changed after it was saved: its SHA-256 is another one; {_remedy(folder)}"
        )
    try:
        saved = SavedGate.model_validate(about)
        if hashlib.sha256(content).hexdigest() != saved.tensors_sha256:
            raise GateError(
                f"{folder / TENSORS} is not the file that {ABOUT} names: its SHA-256 is another; {_remedy(folder)}"
            )
        return saved, load(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise GateError(
            f"{folder / ABOUT}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {_remedy(folder)}"
        ) from None


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _check_model(model: Model, saved: SavedModel, folder: Path) -> None:
    """Raises GateError unless the model is the one that the detector was fitted on."""
    if model.weights_sha256 != saved.weights_sha256:
        raise GateError(
            f"{folder}: the detector was fitted on other weights than those of {model.entry.source or model.id}: their "
            f"SHA-256 is {model.weights_sha256[:12]}..., not {saved.weights_sha256[:12]}...; bring the old ones back, "
            "or save the gate again"
        )
    now, then = model.preprocessing, saved.preprocessing
    if differing := sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name)):
        name = differing[0]
        raise GateError(
            f"{folder}: {model.id} prepares images otherwise than when the detector was fitted: {name} is "
            f"{now.get(name)!r}, not {then.get(name)!r}; bring that back, or save the gate again"
        )
