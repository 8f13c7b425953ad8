"""The contract that every detector keeps."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Self, get_type_hints

import torch
from torch import Tensor

from detectors.numerics import l1_norms
from detectors.outputs import Head, Outputs, as_tensor
from detectors.state import digest, join_value, plain, split_value

# "text": the head's weights are embeddings of class names by a vision-language model.
NEEDS = frozenset({"logits", "features", "head", "train", "val", "patches", "images", "model", "text"})
_SHAPES = {"features": "(N, D)", "logits": "(N, C)", "patches": "(N, P, D)", "images": "(N, 3, H, W)"}
_KINDS = {"train": Outputs, "val": Outputs, "head": Head}
_MADE_DOUBLE = ("features", "logits", "patches")


@dataclass(kw_only=True, eq=False)
class Detector(ABC):
    """Tells images of a network's classes from all others. Higher scores mean more in-distribution.

    A subclass is a keyword-only dataclass. It consists of:

        fields: its options and, marked by `learned()`, what `_fit` sets: tensors, numbers, texts, dataclasses of such.
        id: its name, which no other detector has.
        needs: what it reads of a network and its images, from `NEEDS`.
        __post_init__: checks the options.
        _score: gives the scores of a batch.
        _fit: sets what it learns, where it learns from data.

    It reads data through `_stream` and `_labels` alone. So it gets checked values in float64, and never holds a whole
    data set.
    """

    id: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    # Small enough that the temporaries of a batch (16 MiB at 2,048 dimensions) are reused and not mapped anew.
    batch_rows: ClassVar[int] = 1024
    # How far apart two scores of an image may be, relatively, and count as the same to `detectors/contract.py`.
    precision: ClassVar[float] = 1e-9
    # Counts up when the scores of the same outputs become other numbers. It is part of the state: a threshold that was
    # found on another scale would accept and reject the wrong images.
    score_scale: ClassVar[int] = 1
    made_of: ClassVar[tuple[type, ...]] = ()  # other classes that it is put together from
    # The checks of `detectors/contract.py` that it cannot pass -> why not. One that passes nevertheless is an error.
    expected_failures: ClassVar[Mapping[str, str]] = {}

    @torch.no_grad()
    def fit(self, train: Outputs | None, head: Head | None, *, val: Outputs | None = None, model: Any = None) -> Self:
        """Learns from in-distribution training outputs, and returns itself. It ignores what it does not need.

            train: outputs of the training images, with labels.
            head: the network's last layer.
            val: outputs of a split that is neither train nor test.
            model: a callable from images (N, 3, H, W) to logits (N, C) that torch can differentiate.

        Some detectors ask the model for more, by these names:

            features(images): (N, D), pre-logit features.
            layers(images): list of (N, C_l), the pooled outputs of several layers, first to last.
            feature_map(images): (N, positions, channels), the last one before pooling.
            logits_of_map(feature_map): (N, C).
            text_features(words): (number of words, D), of a vision-language model.

        Raises ValueError when something that the detector needs is missing, does not fit or is not finite.
        """
        self._fitted = False
        self._row_shapes: dict[str, tuple[int, ...]] = {}
        for need, given in {"train": train, "head": head, "val": val, "model": model}.items():
            if need not in self.needs:
                continue
            if given is None:
                raise ValueError(f"{self.id} needs {need!r} to fit")
            kind = _KINDS.get(need, object)
            if not isinstance(given, kind):
                raise ValueError(f"{self.id}: {need!r} must be {kind.__name__}, got {type(given).__name__}")
            if isinstance(given, Outputs) and len(given) == 0:
                raise ValueError(f"{self.id}: {need!r} has no rows")
        if head is not None and "head" in self.needs:
            head = head.double()
            if not (torch.isfinite(head.weight).all() and torch.isfinite(head.bias).all()):
                raise ValueError(f"{self.id}: the head has weights that are not finite")
            classes, width = head.weight.shape
            self._row_shapes = {"features": (width,), "logits": (classes,)}
        if "model" in self.needs:
            self._take_network(model)
        self._fit(train, head, val, model)
        self._fitted = True
        return self

    @torch.no_grad()
    def score(self, outputs: Outputs) -> Tensor:
        """Scores (N,) in float64, one for each image, from its own row alone. Higher means more in-distribution.

        Raises RuntimeError before `fit`. Raises ValueError when a needed output is missing, is not finite, or has
        another width than in `fit`.
        """
        self._check_fitted()
        if not isinstance(outputs, Outputs):
            raise ValueError(f"{self.id} scores Outputs, got {type(outputs).__name__}")
        scores = [self._score(batch).cpu() for batch in self._stream(outputs)]
        return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the detector is and has learned: tensors for a safetensors file, and the rest as values for JSON.

        `restore(tensors, about)` gives the detector back. It refuses a state that was changed in between, since a hash
        of all of it is among the values. Raises RuntimeError before `fit`.
        """
        self._check_fitted()
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for entry in fields(self):
            if not entry.init:
                split_value(getattr(self, entry.name), entry.name, tensors, values)
        options = {option.name: plain(getattr(self, option.name)) for option in option_fields(self)}
        shapes = {name: list(shape) for name, shape in self._row_shapes.items()}
        about: dict[str, Any] = {"id": self.id, "options": options, "row_shapes": shapes, "values": values}
        if self.score_scale != 1:  # states of the first scale do not have it
            about["score_scale"] = self.score_scale
        return tensors, {**about, "sha256": digest(tensors, about)}

    def _take_state(self, tensors: dict[str, Tensor], about: dict[str, Any], model: Any) -> None:
        """Takes the state of a fitted detector with the same options."""
        if about.get("score_scale", 1) != self.score_scale:
            raise ValueError(f"this state of {self.id} is of a version whose scores are other numbers: fit it again")
        hints = get_type_hints(type(self))
        for entry in fields(self):
            if not entry.init:
                setattr(self, entry.name, join_value(hints[entry.name], entry.name, tensors, about["values"]))
        self._row_shapes = {name: tuple(shape) for name, shape in about["row_shapes"].items()}
        if {"model", "images"} <= self.needs:
            if model is None:
                raise ValueError(f"{self.id} scores with the network: restore(tensors, about, model=...)")
            self._take_network(model)
        self._fitted = True
        if self.state()[1] != about:
            self._fitted = False
            raise ValueError(f"this state of {self.id} is not as it was saved: its SHA-256 is another one")

    def _take_network(self, model: Any) -> None:
        """Takes the network that `fit` or `restore` was given."""
        if getattr(model, "training", False):
            raise ValueError(
                f"{self.id} needs the network in evaluation mode, where an image's output does not depend on the other "
                "images of its batch: call model.eval() first"
            )
        self._model = model

    def _ask_model(self, name: str, *arguments: Any) -> Any:
        """What a function of the network gives that not every network has."""
        if not callable(getattr(self._model, name, None)):
            raise ValueError(f"{self.id} needs a model with {name}(...), which {type(self._model).__name__} lacks")
        return getattr(self._model, name)(*arguments)

    def _check_fitted(self) -> None:
        if not getattr(self, "_fitted", False):
            raise RuntimeError(f"{self.id} is not fitted: call fit(train, head) before score(outputs)")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        """Sets the fitted state. The arguments that `needs` names are never None; a needed head is in float64."""
        return

    @abstractmethod
    def _score(self, batch: "Batch") -> Tensor:
        """Scores (n,) of a batch of n rows, which it must not change."""

    def _stream(
        self, outputs: Outputs, labels: Tensor | None = None, only: Collection[str] = _SHAPES.keys()
    ) -> Iterator["Batch"]:
        """Checked batches of the outputs that the detector needs, from the first row on.

        labels: (N,), where each batch is to hold those of its rows.
        only: the outputs that are read. To read images is to decode them: a fit without a use for them leaves them
            out.
        """
        wanted = sorted(self.needs & _SHAPES.keys() & set(only))
        if not wanted:
            raise ValueError(f"{self.id} reads outputs, but its needs name none of {', '.join(_SHAPES)}")
        for name in wanted:
            if getattr(outputs, name) is None:
                raise ValueError(f"{self.id} needs outputs with {name}")
        first_row = 0
        for rows in outputs.only(wanted).batches(self._rows_in_a_batch(outputs)):
            values = {}
            for name in wanted:
                value = getattr(rows, name)
                self._check_shape(name, value)
                values[name] = value.to("cpu", torch.float64) if name in _MADE_DOUBLE else value
                check_finite(values[name], f"{self.id}: {name}", first_row)
            if labels is not None:
                values["labels"] = labels[first_row : first_row + len(rows)]
            yield Batch(**values)
            first_row += len(rows)

    def _rows_in_a_batch(self, outputs: Outputs) -> int:
        """How many rows are in memory at once."""
        return self.batch_rows

    def _check_shape(self, name: str, rows: Tensor) -> None:
        shape = tuple(rows.shape[1:])
        if len(shape) != _SHAPES[name].count(",") or 0 in shape:
            raise ValueError(f"{self.id}: {name} must have shape {_SHAPES[name]}, got {tuple(rows.shape)}")
        if rows.is_complex():
            raise ValueError(f"{self.id}: {name} must be real numbers, got {rows.dtype}")
        if name not in _MADE_DOUBLE:
            return
        if not self._fitted:
            shape_in_fit = self._row_shapes.setdefault(name, shape)
        else:
            shape_in_fit = self._row_shapes.get(name, shape)
        if shape != shape_in_fit:
            raise ValueError(f"{self.id}: {name} have {shape} values a row, but it was fitted for {shape_in_fit}")

    def _labels(self, outputs: Outputs, head: Head | None) -> Tensor:
        """All labels (N,) in int64, checked: integers from 0 up to the number of classes of the head or the logits."""
        if outputs.labels is None:
            raise ValueError(f"{self.id} needs outputs with labels")
        labels = torch.cat([as_tensor(rows.labels) for rows in outputs.only({"labels"}).batches(2**20)])
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{self.id}: labels must be integers (N,), got {labels.dtype} {tuple(labels.shape)}")
        labels = labels.to("cpu", torch.int64)
        classes, source = 2**63 - 1, "labels count from 0"
        if head is not None:
            classes, source = head.weight.shape[0], f"the head has {head.weight.shape[0]} classes"
        elif outputs.logits is not None:
            classes, source = outputs.logits.shape[1], f"the logits have {outputs.logits.shape[1]} classes"
        if (wrong := (labels < 0) | (labels >= classes)).any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"{self.id}: the label of row {row} is {int(labels[row])}, but {source}")
        return labels


def option_fields(detector: Any) -> list[Field[Any]]:
    """The fields of a detector (or part of one), class or instance, that a caller may set."""
    return [option for option in fields(detector) if option.init]


class Batch:
    """Rows of what a detector needs. All values are finite. To read what it did not declare is an AttributeError.

    features: (n, D) in float64.
    logits: (n, C) in float64.
    labels: (n,) in int64.
    patches: (n, P, D) in float64.
    images: (n, 3, H, W) as they were given.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    patches: Tensor
    images: Tensor

    def __init__(self, **values: Tensor) -> None:
        vars(self).update(values)

    @property
    def reach(self) -> Tensor:
        """The L1 norm of the features (n, 1), or, where each class has a mask of its own, of what reaches it (n, C)."""
        return l1_norms(self.features)


def check_finite(rows: Tensor, what: str, first_row: int = 0) -> None:
    """Raises ValueError, naming the first such row, when a value of the rows (n, ...) is NaN or infinite."""
    # Both extremes are NaN where any value is, and finding them takes one pass and no memory (isfinite takes four).
    lowest, highest = rows.aminmax()
    if torch.isfinite(lowest) and torch.isfinite(highest):
        return
    finite = torch.isfinite(rows.flatten(1)).all(dim=1)
    row = first_row + int((~finite).nonzero()[0])
    raise ValueError(f"{what} of row {row} are not finite ({int((~finite).sum())} such rows in this batch)")
