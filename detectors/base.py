"""The contract that every detector keeps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from detectors.outputs import Head, Outputs

NEEDS = frozenset({"logits", "features", "head", "train", "val", "patches", "images", "model"})
_FLOATING = ("features", "logits", "patches")


@dataclass(kw_only=True, eq=False)
class Detector(ABC):
    """Tells images of a network's classes from all others. Higher scores mean more in-distribution.

    A subclass is a keyword-only dataclass: its fields are its options. It declares its `id` and `needs`, checks its
    options in `__post_init__`, and implements `_score` and, where it learns from data, `_fit`. It reads data through
    `_stream` alone, so that it sees float64 and never holds a whole data set.
    """

    id: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    batch_rows: ClassVar[int] = 4096

    def fit(self, train: Outputs | None, head: Head | None, *, val: Outputs | None = None, model: Any = None) -> Self:
        """Learns from in-distribution training outputs and returns itself. What the detector does not need it ignores.

        train: outputs of the training images, with labels. head: the network's last layer. val: outputs of a split
        that is neither train nor test. model: a callable from images (N, 3, H, W) to logits (N, C) that torch can
        differentiate.

        Raises ValueError when something that the detector needs is missing, does not fit or is not finite.
        """
        for need, given in {"train": train, "head": head, "val": val, "model": model}.items():
            if need in self.needs and given is None:
                raise ValueError(f"{self.id} needs {need!r} to fit")
        if head is not None and "head" in self.needs:
            head = head.double()
            if not (torch.isfinite(head.weight).all() and torch.isfinite(head.bias).all()):
                raise ValueError(f"{self.id}: the head has weights that are not finite")
        self._fit(train, head, val, model)
        self._fitted = True
        return self

    def score(self, outputs: Outputs) -> Tensor:
        """Scores (N,) in float64, one an image, each from its own row only; higher means more in-distribution.

        Raises RuntimeError before `fit`, ValueError when a needed output is missing or is not finite.
        """
        if not getattr(self, "_fitted", False):
            raise RuntimeError(f"{self.id} is not fitted: call fit(train, head) before score(outputs)")
        scores = [self._score(batch) for batch in self._stream(outputs)]
        return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64)

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        """Sets the fitted state. The arguments that `needs` names are never None; the head is in float64."""
        return

    @abstractmethod
    def _score(self, batch: "Batch") -> Tensor:
        """Scores (n,) of a batch of n rows."""

    def _stream(self, outputs: Outputs, *, labelled: bool = False) -> Iterator["Batch"]:
        """Checked batches of the outputs that the detector needs; with labels where `labelled`."""
        wanted = (self.needs & {*_FLOATING, "images"}) | ({"labels"} if labelled else set())
        for name in sorted(wanted):
            if getattr(outputs, name) is None:
                raise ValueError(f"{self.id} needs outputs with {name}")
        first_row = 0
        for rows in outputs.only(wanted).batches(self.batch_rows):
            values = {name: getattr(rows, name) for name in wanted}
            for name in wanted.intersection(_FLOATING):
                values[name] = values[name].double()
                _check_finite(values[name], f"{self.id}: {name}", first_row)
            yield Batch(**values)
            first_row += len(rows)


class Batch:
    """Rows of what a detector needs: features, logits and patches in float64 and finite, labels and images as given.

    Reading what the detector did not declare is an AttributeError.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    patches: Tensor
    images: Tensor

    def __init__(self, **values: Tensor) -> None:
        vars(self).update(values)


def _check_finite(rows: Tensor, what: str, first_row: int) -> None:
    finite = torch.isfinite(rows.flatten(1)).all(dim=1)
    if not finite.all():
        row = first_row + int((~finite).nonzero()[0])
        raise ValueError(f"{what} of row {row} are not finite ({int((~finite).sum())} such rows in this batch)")
