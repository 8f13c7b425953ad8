"""Precomputed outputs: a folder of features and logits, in place of a network and images.

    DIR/head.safetensors        weight (C, D) and bias (C,) of the network's last layer
    DIR/train.safetensors       features (N, D), logits (N, C), labels (N,), for detectors that learn
    DIR/val.safetensors         the same for other images than train and test, for detectors that choose an option
    DIR/test.safetensors        features, logits and, for the ID accuracy, labels
    DIR/ood/NAME.safetensors    features and logits of an OOD set

Each file may also hold `ids` (N,). Each may be an .npz file instead, whose ids may be texts. Safetensors files are
memory-mapped, npz files are read into memory.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmark.arrays import load_npz
from benchmark.entries import read_toml
from benchmark.errors import UserError
from benchmark.images.entries import ImageSetEntry
from benchmark.images.image_set import ImageSet
from benchmark.models.entries import ModelEntry
from benchmark.models.model import Model
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.store import Store
from benchmark.suites.entries import SuiteEntry
from benchmark.suites.loading import make_suite
from benchmark.suites.suite import Suite
from benchmark.user.ids import COMMAND_LINE, Words, id_of, id_of_place
from benchmark.user.suite_table import FILE, left_out
from detectors import Head, Outputs, available, describe, did_you_mean

ENDINGS = (".safetensors", ".npz")
NOT_KEPT = ("model", "images", "patches", "text")  # what a detector may need, and a folder of outputs lacks
CHECKED_ROWS = 256  # so many rows of each file, evenly spaced, must agree with features @ weight.T + bias
BATCH_ROWS = 4096  # so many rows are checked for NaN at a time
# A share of the largest logit. Half precision causes smaller errors; another head, order or transform larger ones.
HEAD_TOLERANCE = 0.02
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class PrecomputedError(UserError):
    """A file of outputs that cannot be used; the message names the file and says what is wrong in it."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The outputs of N images.

    features: (N, D).
    logits: (N, C).
    labels: the class index of each image, int64 (N,); None where they are unknown.
    ids: the id of each image.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor | None
    ids: tuple[str, ...]


class OutputsFolder:
    """A folder of outputs, checked short of what takes a pass over all values. Raises PrecomputedError.

    files: where the rows of each split and OOD set come from, by id.
    splits: those of train, val and test that there are.
    head: the last layer, in float64.
    rows: what is known of the images of each set, by id.
    """

    def __init__(self, path: Path, words: Words = COMMAND_LINE) -> None:
        path = path.expanduser()
        if not path.is_dir():
            raise PrecomputedError(f"{words.outputs} {path}: there is no such folder")
        _require_file(path, "test")
        self.splits = {role: file for role in ("train", "val", "test") if (file := _find_file(path, role))}
        names = sorted({file.stem for file in (path / "ood").glob("*") if file.suffix in ENDINGS})
        self.ood = {id_of(name): _require_file(path / "ood", name) for name in names}
        if len(self.ood) < len(names):
            raise PrecomputedError(f"{path / 'ood'}: two of {', '.join(names)} make one id; rename one of the files")
        if not self.ood:
            raise PrecomputedError(f"{path}: there is no ood/NAME.safetensors and no ood/NAME.npz")
        if same := sorted(self.splits.keys() & self.ood.keys()):
            raise PrecomputedError(f"{self.ood[same[0]]}: {same[0]} is the name of a split; rename the file")
        self.files: dict[str, Path] = self.splits | self.ood
        self.head = _head_of(_require_file(path, "head"))
        self.rows = {
            set_id: _rows(set_id, file, _read_tensors(file, _needed_of(set_id), ("labels", "ids")), self.head)
            for set_id, file in self.files.items()
        }


class GivenOutputs:
    """Outputs that a Python caller gives as arrays, checked as those of a folder are. Raises PrecomputedError.

    files: what the caller calls each of them, by id. The rest is as in OutputsFolder.
    """

    def __init__(self, head: Head, splits: Mapping[str, Outputs], ood: Mapping[str, Outputs], words: Words) -> None:
        self.splits = {role: str(getattr(words, role)) for role in splits}
        self.files = self.splits | {set_id: f"{words.ood} {set_id}" for set_id in ood}
        self.head = _head(words.model, head.weight, head.bias)
        self.rows = {
            set_id: _rows(set_id, self.files[set_id], _found(self.files[set_id], set_id, given), self.head)
            for set_id, given in {**splits, **ood}.items()
        }


def suite_of_outputs(name: str | None, place: str) -> Suite:
    """The suite of a folder of outputs. The detectors that ask for more than it holds have no cases."""
    model = id_of(name) if name else id_of_place(Path(place).expanduser())
    return suite_of_rows(OutputsFolder(Path(place)), model, f"outputs in {place}")


def suite_of_rows(
    folder: OutputsFolder | GivenOutputs,
    model: str,
    source: str,
    changes: Mapping[str, Any] | None = None,
    words: Words = COMMAND_LINE,
) -> Suite:
    """The suite of some outputs. The detectors that ask for more than they hold have no cases.

    model: the id of the network that made them.
    source: where they come from, in words.
    changes: what differs from the table of user.toml.
    """
    table = read_toml(FILE) | dict(changes or {})
    asked = available() if tuple(table["detectors"]) == ("*",) else table["detectors"]
    needs = {detector_id: set(describe(detector_id)["needs"]) for detector_id in asked}
    served = [detector_id for detector_id in needs if not needs[detector_id].intersection(NOT_KEPT)]
    absent = [role for role in ("train", "val") if role not in folder.rows]
    about = [left_out(needs, NOT_KEPT, "the network and its images")]
    about += [left_out(served, [role], f"outputs called {role}") for role in absent]
    classes = tuple(str(index) for index in range(len(folder.head.weight)))
    table |= {
        "title": f"Outputs of {model}",
        "about": " ".join(filter(None, about)),
        "models": (model,),
        "detectors": served,
        "in_distribution": {role: role for role in folder.splits},
        "ood": {"far": tuple(set_id for set_id in folder.files if set_id not in folder.splits)},
        "unit_tests": {"detectors": ()},
    }
    image_sets = {
        set_id: ImageSetEntry.in_file(
            Path(words.outputs),
            title=set_id,
            licence="not stated",
            source=f"outputs in {file}",
            classes=classes if set_id in folder.splits else (),
            local=str(Path(file).resolve()),
        )
        for set_id, file in folder.files.items()
    }
    entry = ModelEntry.in_file(Path(words.outputs), title=model, source=source)
    return make_suite(f"own-{model}", SuiteEntry.parse(table, FILE, ""), {model: entry}, image_sets)


class LoadedOutputs(LoadedSuite):
    """A loaded suite of precomputed outputs. Its image sets are rows of tensors, and its model is only a head."""

    def __init__(self, suite: Suite, folder: OutputsFolder | GivenOutputs) -> None:
        super().__init__(suite, OutputsStore(Path(), folder), torch.device("cpu"))
        self._folder = folder

    def image_set(self, set_id: str) -> ImageSet:
        return self._image_sets(
            set_id, lambda: _image_set(set_id, self.suite.image_sets[set_id], self._folder.rows[set_id])
        )

    def load_model(self, model_id: str) -> Model:
        weight, bias = self._folder.head.weight, self._folder.head.bias
        layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype)
        layer.load_state_dict({"weight": weight, "bias": bias})
        return HeadAlone(
            model_id, self.suite.models[model_id], layer.requires_grad_(False), _refuse_images, {}, self.device
        )


@dataclass(frozen=True)
class OutputsStore(Store):
    """Rows that are there already, in place of forward passes."""

    rows_of: OutputsFolder | GivenOutputs

    def outputs(self, model: Model, image_set: ImageSet) -> Outputs:
        """The outputs of an image set. Raises PrecomputedError where a value is NaN or infinite."""
        rows = self.rows_of.rows[image_set.id]
        for name, values in (("features", rows.features), ("logits", rows.logits)):
            for start in range(0, len(values), BATCH_ROWS):
                _check_finite(self.rows_of.files[image_set.id], name, values[start : start + BATCH_ROWS], start)
        return Outputs(features=rows.features, logits=rows.logits, labels=rows.labels)

    def forward_ms_per_image(self, model: Model, outputs: Outputs) -> None:
        """None: the network is not here, so that its time per image cannot be measured."""


@dataclass(frozen=True, eq=False)
class HeadAlone(Model):
    """A model of which only the last layer is known. It takes no images: that raises PrecomputedError."""

    @property
    def head(self) -> Head:
        layer: Any = self.network
        return Head(layer.weight, layer.bias)

    @property
    def architecture(self) -> str:
        return "not stated"

    def __call__(self, images: Tensor) -> Tensor:
        return _refuse_images(images)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        return _refuse_images(images)

    def features(self, images: Tensor) -> Tensor:
        return _refuse_images(images)


def _refuse_images(images: Any) -> NoReturn:
    raise PrecomputedError("precomputed outputs come without the network: it takes no images")


def _image_set(set_id: str, entry: ImageSetEntry, rows: Rows) -> ImageSet:
    """Rows as an image set. The content of an image is its outputs, since nothing else of it is known."""
    return ImageSet(
        id=set_id,
        title=entry.title,
        licence=entry.licence,
        source=entry.source,
        coding="outputs",
        image_ids=rows.ids,
        labels=None if rows.labels is None or not entry.classes else rows.labels.numpy(),
        classes=entry.classes,
        encoded=_BytesOfRow(rows.features, rows.logits),
        class_names=entry.classes,
    )


@dataclass(frozen=True, eq=False)
class _BytesOfRow:
    """The bytes of the features (N, D) and logits (N, C) of row i."""

    features: Tensor
    logits: Tensor

    def __call__(self, row: int) -> bytes:
        values = (self.features[row], self.logits[row])
        return b"".join(value.contiguous().view(torch.uint8).numpy().tobytes() for value in values)


def _find_file(folder: Path, name: str) -> Path | None:
    """The file of a name, .safetensors or .npz; None where there is none. Raises PrecomputedError for two."""
    found = [file for ending in ENDINGS if (file := folder / f"{name}{ending}").is_file()]
    if len(found) > 1:
        raise PrecomputedError(f"{folder}: {found[0].name} and {found[1].name}: which one counts? Remove the other")
    return found[0] if found else None


def _require_file(folder: Path, name: str) -> Path:
    """The file of a name, .safetensors or .npz. Raises PrecomputedError where there is none."""
    if file := _find_file(folder, name):
        return file
    raise PrecomputedError(f"{folder}: there is neither {' nor '.join(name + ending for ending in ENDINGS)}")


def _read_tensors(file: Path, needed: Collection[str], allowed: Collection[str]) -> dict[str, Any]:
    """The tensors of a file by name; arrays of texts stay arrays.

    needed: names that the file must hold.
    allowed: further names that it may hold.
    Raises PrecomputedError where the file cannot be read, or holds other names.
    """
    try:
        if file.suffix == ".npz":
            found = {name: _tensor_unless_text(array) for name, array in load_npz(file).items()}
        else:
            found = load_file(file)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError, SafetensorError) as error:
        raise PrecomputedError(f"{file}: cannot read it: {error}") from None
    if missing := [name for name in needed if name not in found]:
        raise PrecomputedError(f"{file}: it holds no {missing[0]}, only {', '.join(found) or 'nothing'}")
    if unknown := sorted(found.keys() - {*needed, *allowed}):
        hint = did_you_mean(unknown[0], allowed)
        raise PrecomputedError(f"{file}: it holds {unknown[0]}{hint}; expected are {', '.join([*needed, *allowed])}")
    return found


def _tensor_unless_text(array: np.ndarray) -> Any:
    return array if array.dtype.kind == "U" else torch.from_numpy(array)


def _head_of(file: Path) -> Head:
    found = _read_tensors(file, ("weight", "bias"), ())
    return _head(file, found["weight"], found["bias"])


def _head(file: Path | str, weight: Any, bias: Any) -> Head:
    try:
        head = Head(weight, bias).double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise PrecomputedError(f"{file}: {error}") from None
    if not (torch.isfinite(head.weight).all() and torch.isfinite(head.bias).all()):
        raise PrecomputedError(f"{file}: NaN or infinite values")
    return head


def _needed_of(set_id: str) -> tuple[str, ...]:
    """What the rows of a split or an OOD set have to hold."""
    return ("features", "logits", *(("labels",) if set_id in ("train", "val") else ()))


def _found(place: str, set_id: str, given: Any) -> dict[str, Any]:
    """The tensors of outputs that a caller gives. A memory map stays one."""
    if not isinstance(given, Outputs):
        raise PrecomputedError(f"{place}: beside a Head this must be Outputs, not {type(given).__name__}")
    values = {name: getattr(given, name) for name in ("features", "logits", "labels")}
    try:
        found = {name: _tensor(value) for name, value in values.items() if value is not None}
    except TypeError as error:
        raise PrecomputedError(f"{place}: {error}") from None
    if missing := [name for name in _needed_of(set_id) if name not in found]:
        raise PrecomputedError(f"{place}: it holds no {missing[0]}, only {', '.join(found) or 'nothing'}")
    return found


def _tensor(rows: Any) -> Any:
    if not isinstance(rows, np.ndarray):
        return rows.detach().cpu() if isinstance(rows, Tensor) else rows[:]
    with warnings.catch_warnings():  # of a map that may not be written to, which nobody here does
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(rows)


def _rows(set_id: str, file: Path | str, found: dict[str, Any], head: Head) -> Rows:
    """The rows of a set. Raises PrecomputedError where they do not fit each other or the head."""
    features, logits, labels, ids = found["features"], found["logits"], found.get("labels"), found.get("ids")
    classes, width = head.weight.shape
    for name, values, size in (("features", features, width), ("logits", logits, classes)):
        if not isinstance(values, Tensor) or values.ndim != 2 or not values.is_floating_point() or not len(values):
            raise PrecomputedError(
                f"{file}: {name} must be floating-point (rows, {size}), not {_describe_tensor(values)}"
            )
        if values.shape[1] != size:
            raise PrecomputedError(
                f"{file}: {name} {tuple(values.shape)} do not fit the head's weight {classes, width}"
            )
    rows = len(features)
    if len(logits) != rows:
        raise PrecomputedError(f"{file}: {rows} rows of features, {len(logits)} of logits")
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.shape != (rows,) or labels.dtype not in _INTEGERS:
            raise PrecomputedError(f"{file}: labels must be integers ({rows},), not {_describe_tensor(labels)}")
        labels = labels.to(torch.int64)
        if labels.min() < 0 or labels.max() >= classes:
            raise PrecomputedError(
                f"{file}: labels {labels.min()} to {labels.max()}, but the head has {classes} classes"
            )
    if ids is not None and ids.shape != (rows,):
        raise PrecomputedError(f"{file}: ids must be ({rows},), one for each row, not {_describe_tensor(ids)}")
    names = tuple(f"{set_id}-{row:07d}" for row in range(rows)) if ids is None else tuple(map(str, ids.tolist()))
    if len(names) != rows or len(set(names)) != rows:
        raise PrecomputedError(f"{file}: {len(set(names))} different ids for {rows} rows; each row needs another id")
    _check_head(file, features, logits, head)
    return Rows(features, logits, labels, names)


def _check_finite(file: Path | str, name: str, values: Tensor, first: int) -> None:
    """Raises PrecomputedError where one of some rows is NaN or infinite. `first`: the number of the first of them."""
    finite = torch.isfinite(values).all(dim=1)
    if not finite.all():
        row = first + int((~finite).nonzero()[0])
        raise PrecomputedError(
            f"{file}: the {name} of row {row} are NaN or infinite; leave the row out, or compute it again"
        )


def _check_head(file: Path | str, features: Tensor, logits: Tensor, head: Head) -> None:
    """Raises PrecomputedError where the head does not explain the logits of a sample of rows."""
    step = -(-len(features) // CHECKED_ROWS)
    sample, given = features[::step].double(), logits[::step].double()
    # A row that is not finite says nothing of the head. It is an error of its set when its outputs are asked for.
    finite = torch.isfinite(sample).all(dim=1) & torch.isfinite(given).all(dim=1)
    sample, given = sample.where(finite[:, None], 0.0), given.where(finite[:, None], head.bias)
    error, scale = (given - sample @ head.weight.T - head.bias).abs(), float(given.abs().max())
    if float(error.max()) > HEAD_TOLERANCE * max(scale, 1.0):
        row = step * int(error.amax(dim=1).argmax())
        raise PrecomputedError(
            f"{file}: features @ weight.T + bias differs from the logits by {float(error.max()):.3g} in row {row} (the "
            f"largest logit is {scale:.3g}): features must be what the last linear layer takes, in the same order"
        )


def _describe_tensor(values: Any) -> str:
    return f"{values.dtype} {tuple(values.shape)}"
