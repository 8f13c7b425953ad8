"""What a network gives a detector: its outputs, row by row, and its head."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Rows(Protocol):
    """A tensor, or anything that yields one when its first axis is sliced, such as memory-mapped shards."""

    @property
    def shape(self) -> Any: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def as_tensor(rows: Any) -> Tensor:
    """Rows as a tensor. An array is copied: torch must not write to it and warns of memory maps that it may not."""
    return rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of one network on N images. Every field has N rows or is None.

        features: (N, D), pooled and before the logits.
        logits: (N, C).
        labels: (N,), integer class indices.
        patches: (N, P, D), patch features of a vision-language model.
        images: (N, 3, H, W), as the network takes them.

    Raises ValueError when two fields differ in their number of rows.
    """

    features: Rows | None = None
    logits: Rows | None = None
    labels: Rows | None = None
    patches: Rows | None = None
    images: Rows | None = None

    def __post_init__(self) -> None:
        for name, value in self._present().items():
            if not hasattr(value, "shape"):
                raise ValueError(f"{name} must be a tensor, an array or shards, got {type(value).__name__}")
        rows = {name: value.shape[0] for name, value in self._present().items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"all outputs need the same number of rows, got {rows}")

    def _present(self) -> dict[str, Rows]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __len__(self) -> int:
        return next((int(value.shape[0]) for value in self._present().values()), 0)

    def only(self, names: Collection[str]) -> "Outputs":
        """The same outputs without the fields that are not in `names`: what is left out is never read."""
        return Outputs(**{name: value for name, value in self._present().items() if name in names})

    def batches(self, rows: int) -> Iterator["Outputs"]:
        """Consecutive outputs of at most `rows` rows each, as tensors."""
        if rows < 1:
            raise ValueError(f"a batch needs at least one row, got {rows}")
        present = self._present()
        for start in range(0, len(self), rows):
            yield Outputs(**{name: as_tensor(value[start : start + rows]) for name, value in present.items()})


@dataclass(frozen=True, eq=False)
class Head:
    """The last linear layer: logits = features @ weight.T + bias. Tensors or arrays will do.

        weight: (C, D).
        bias: (C,).

    Raises ValueError when the shapes do not fit.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            if not hasattr(value, "shape"):
                raise ValueError(f"a head's {name} must be a tensor or an array, got {type(value).__name__}")
        object.__setattr__(self, "weight", as_tensor(self.weight))
        object.__setattr__(self, "bias", as_tensor(self.bias))
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"a head needs a weight of shape (C, D) and a bias of shape (C,), "
                f"got {tuple(self.weight.shape)} and {tuple(self.bias.shape)}"
            )

    def double(self) -> "Head":
        """The same layer in float64, on the CPU."""
        return Head(*(values.detach().to("cpu", torch.float64) for values in (self.weight, self.bias)))
