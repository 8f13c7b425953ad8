"""The contract that every detector keeps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from detectors.outputs import Head, Outputs, as_tensor

NEEDS = frozenset({"logits", "features", "head", "train", "val", "patches", "images", "model"})
_SHAPES = {"features": "(N, D)", "logits": "(N, C)", "patches": "(N, P, D)", "images": "(N, 3, H, W)"}
_MADE_DOUBLE = ("features", "logits", "patches")


@dataclass(kw_only=True, eq=False)
class Detector(ABC):
    """Tells images of a network's classes from all others. Higher scores mean more in-distribution.

    A subclass is a keyword-only dataclass: its fields are its options. It declares its `id` and `needs`, checks its
    options in `__post_init__`, and implements `_score` and, where it learns from data, `_fit`. It reads data through
    `_stream` and `_labels` alone, so that it sees checked float64 and never holds a whole data set.
    """

    id: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    # Small enough that the temporaries of a batch (16 MiB at 2,048 dimensions) are reused and not mapped anew.
    batch_rows: ClassVar[int] = 1024

    @torch.no_grad()
    def fit(self, train: Outputs | None, head: Head | None, *, val: Outputs | None = None, model: Any = None) -> Self:
        """Learns from in-distribution training outputs and returns itself. What the detector does not need it ignores.

        train: outputs of the training images, with labels. head: the network's last layer. val: outputs of a split
        that is neither train nor test. model: a callable from images (N, 3, H, W) to logits (N, C) that torch can
        differentiate.

        Raises ValueError when something that the detector needs is missing, does not fit or is not finite.
        """
        self._fitted = False
        self._row_shapes: dict[str, tuple[int, ...]] = {}
        for need, given in {"train": train, "head": head, "val": val, "model": model}.items():
            if need not in self.needs:
                continue
            if given is None:
                raise ValueError(f"{self.id} needs {need!r} to fit")
            if isinstance(given, Outputs) and len(given) == 0:
                raise ValueError(f"{self.id}: {need!r} has no rows")
        if head is not None and "head" in self.needs:
            head = head.double()
            if not (torch.isfinite(head.weight).all() and torch.isfinite(head.bias).all()):
                raise ValueError(f"{self.id}: the head has weights that are not finite")
            classes, width = head.weight.shape
            self._row_shapes = {"features": (width,), "logits": (classes,)}
        self._fit(train, head, val, model)
        self._fitted = True
        return self

    @torch.no_grad()
    def score(self, outputs: Outputs) -> Tensor:
        """Scores (N,) in float64, one an image, each from its own row only; higher means more in-distribution.

        Raises RuntimeError before `fit`, ValueError when a needed output is missing, is not finite or has another
        width than in `fit`.
        """
        if not getattr(self, "_fitted", False):
            raise RuntimeError(f"{self.id} is not fitted: call fit(train, head) before score(outputs)")
        scores = [self._score(batch) for batch in self._stream(outputs)]
        return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64)

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        """Sets the fitted state. The arguments that `needs` names are never None; a needed head is in float64."""
        return

    @abstractmethod
    def _score(self, batch: "Batch") -> Tensor:
        """Scores (n,) of a batch of n rows, which it must not change."""

    def _stream(self, outputs: Outputs, labels: Tensor | None = None) -> Iterator["Batch"]:
        """Checked batches of the outputs that the detector needs, with their part of `labels` (N,) where given."""
        wanted = sorted(self.needs & _SHAPES.keys())
        for name in wanted:
            if getattr(outputs, name) is None:
                raise ValueError(f"{self.id} needs outputs with {name}")
        first_row = 0
        for rows in outputs.only(wanted).batches(self._rows_in_a_batch(outputs)):
            values = {}
            for name in wanted:
                value = getattr(rows, name)
                self._check_shape(name, value)
                values[name] = value.double() if name in _MADE_DOUBLE else value
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
        if name not in _MADE_DOUBLE:
            return
        if not self._fitted:
            shape_in_fit = self._row_shapes.setdefault(name, shape)
        else:
            shape_in_fit = self._row_shapes.get(name, shape)
        if shape != shape_in_fit:
            raise ValueError(f"{self.id}: {name} have {shape} values a row, but it was fitted for {shape_in_fit}")

    def _labels(self, train: Outputs, head: Head | None) -> Tensor:
        """All labels (N,) in int64, checked: integers from 0 up to the number of classes of the head or the logits."""
        if train.labels is None:
            raise ValueError(f"{self.id} needs training outputs with labels")
        labels = torch.cat([as_tensor(rows.labels) for rows in train.only({"labels"}).batches(2**20)])
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{self.id}: labels must be integers (N,), got {labels.dtype} {tuple(labels.shape)}")
        labels = labels.long()
        classes, source = 2**63 - 1, "labels count from 0"
        if head is not None:
            classes, source = head.weight.shape[0], f"the head has {head.weight.shape[0]} classes"
        elif train.logits is not None:
            classes, source = train.logits.shape[1], f"the logits have {train.logits.shape[1]} classes"
        if (wrong := (labels < 0) | (labels >= classes)).any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"{self.id}: the label of row {row} is {int(labels[row])}, but {source}")
        return labels


class Batch:
    """Rows of what a detector needs: features, logits and patches in float64, images as given, labels in int64.

    All are finite. Reading what the detector did not declare is an AttributeError.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    patches: Tensor
    images: Tensor

    def __init__(self, **values: Tensor) -> None:
        vars(self).update(values)


def check_finite(rows: Tensor, what: str, first_row: int = 0) -> None:
    """Raises ValueError, naming the first such row, when a value of the rows (n, ...) is NaN or infinite."""
    # Both extremes are NaN where any value is, and finding them takes one pass and no memory (isfinite takes four).
    lowest, highest = rows.aminmax()
    if torch.isfinite(lowest) and torch.isfinite(highest):
        return
    finite = torch.isfinite(rows.flatten(1)).all(dim=1)
    row = first_row + int((~finite).nonzero()[0])
    raise ValueError(f"{what} of row {row} are not finite ({int((~finite).sum())} such rows in this batch)")
