"""Detectors that look up the nearest training features."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.numerics import unit
from detectors.options import is_integer, require
from detectors.outputs import Outputs, Rows, as_tensor
from detectors.state import learned


@registry.register
@dataclass(kw_only=True, eq=False)
class KNN(Detector):
    """Distance to the k-th nearest training feature, all scaled to norm 1.

    Formula: S = -|z - z_(k)|_2, z = h / |h|_2, z_(k) = the k-th nearest of all scaled training features
    Paper: Y. Sun, Y. Ming, X. Zhu, Y. Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022,
        arXiv:2204.06507
    Options:
    - k: from 1 to the number N of training images; None for N / 1000 rounded down, but at least 10 and at most 1000 and
        N. This gives the published 1000 for ImageNet and 50 for CIFAR
    Deviations:
    - The zero vector, which the paper leaves undefined, stays zero.
    """

    id = "knn"
    needs = frozenset({"features", "train"})
    k: int | None = None
    fitted_k: int = learned()
    bank: Rows = learned()

    def __post_init__(self) -> None:
        ok = self.k is None or (is_integer(self.k) and self.k >= 1)
        require(ok, self.id, "k", self.k, "an integer from 1 to the number of training images, or None")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        """Keeps a reference to the training features, which must not change afterwards, and no copy of them."""
        size = len(train)
        self.fitted_k = default_k(size) if self.k is None else self.k
        require(
            self.fitted_k <= size,
            self.id,
            "k",
            self.fitted_k,
            f"an integer from 1 to {size}, the number of training images",
        )
        for _ in self._stream(train):
            pass  # reading is checking: bad training features are found here and not in the first score
        self.bank = train.features

    def _score(self, batch: Batch) -> Tensor:
        queries = unit(batch.features)
        neighbours = self._kth_neighbours(queries).tolist()
        rows = torch.cat([as_tensor(self.bank[row : row + 1]) for row in neighbours])
        # The distance is taken from the two vectors: sqrt(2 - 2 cos) has no digits left for near-duplicates.
        return -torch.linalg.vector_norm(queries - unit(rows.double()), dim=1)

    def _kth_neighbours(self, queries: Tensor) -> Tensor:
        """The bank's row (n,) that is the k-th nearest of each query (n, D), all of norm 1."""
        similarities = queries.new_empty(len(queries), 0)
        rows = similarities.long()
        first_row = 0
        for bank in self._stream(Outputs(features=self.bank)):
            found = queries @ unit(bank.features).T
            found, found_rows = found.topk(min(self.fitted_k, len(bank.features)), dim=1)
            similarities = torch.cat([similarities, found], dim=1)
            rows = torch.cat([rows, found_rows + first_row], dim=1)
            similarities, kept = similarities.topk(min(self.fitted_k, similarities.shape[1]), dim=1)
            rows = rows.gather(1, kept)
            first_row += len(bank.features)
        return rows[:, -1]


def default_k(images: int) -> int:
    """A thousandth of the training images, within 10 and the published 1000, where there are as many."""
    return min(1000, max(10, images // 1000), images)
