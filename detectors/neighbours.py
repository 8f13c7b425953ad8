"""Detectors that look up the nearest training features."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.numerics import norms, unit
from detectors.options import is_integer, is_number, require
from detectors.outputs import Outputs, Rows, as_tensor
from detectors.state import learned

# Selecting from this many batches of a bank at once is several times faster than from each, and holds 64 MiB.
_BATCHES_AT_ONCE = 8


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
    Invariant to: logit shift, logit scale, class order, feature scale, feature rotation
    Deviations:
    - The zero vector, which the paper leaves undefined, stays zero.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4, 1e-6
    - faiss (IndexFlatL2), the same squared distances up to its single precision, 1e-6
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
        _, rows = largest(self._similarities(queries), self.fitted_k)
        neighbours = torch.cat([as_tensor(self.bank[row : row + 1]) for row in rows[:, -1].tolist()])
        # The distance is taken from the two vectors: sqrt(2 - 2 cos) has no digits left for near-duplicates.
        return -torch.linalg.vector_norm(queries - unit(neighbours.to("cpu", torch.float64)), dim=1)

    def _similarities(self, queries: Tensor) -> Iterator[Tensor]:
        """The cosines of queries (n, D), of norm 1 or 0, with the bank, in blocks of columns."""
        found = []
        for bank in self._stream(Outputs(features=self.bank)):
            cosines = queries @ unit(bank.features).T
            # A zero row stays zero, so its distance is 1: as far as a cosine of 1/2.
            found.append(cosines.masked_fill_(~bank.features.any(dim=1), 0.5))
            if len(found) == _BATCHES_AT_ONCE:
                yield torch.cat(found, dim=1)
                found.clear()
        if found:
            yield torch.cat(found, dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class NNGuide(Detector):
    """Energy times the similarity to the nearest training features, each weighted by its own energy.

    Formula: S = E(o) (1/k) sum_{i in the k largest} z.(E(o_i) z_i), z = h / |h|_2, E(o) = log sum_c exp(o_c), i over a
        random subset of the training images
    Paper: J. Park, Y. G. Jung, A. B. J. Teoh, "Nearest Neighbor Guidance for Out-of-Distribution Detection", ICCV 2023,
        arXiv:2309.14888
    Options:
    - k: from 1 to the number of training images that are kept; None for the published 10, or all that are kept if these
        are fewer. 100 is in use for CIFAR
    - fraction: of the training images that is kept, rounded down, above 0 and at most 1; None for the published 0.01,
        but at least 500 images where there are as many. The kept features are copied
    - seed: of the choice of these images, an integer from 0
    Invariant to: class order, feature scale, feature rotation
    Deviations:
    - Training fixes the logits up to a number that is the same for all of them. The energies, which are
        factors, depend on it, as in the paper. They are meant to be positive.
    - An image is drawn by its features and the seed and not by its position, so that the order of the training images
        does not matter.
    - The zero vector, which the paper leaves undefined, stays zero.
    Verified:
    - plain loops written from the formula, 1e-6
    - pytorch-ood 0.4 with all training images kept, 1e-4: it computes in single precision
    - faiss (IndexFlatIP), as in the authors' code, 1e-5: it computes in single precision
    """

    id = "nnguide"
    needs = frozenset({"features", "logits", "train"})
    k: int | None = None
    fraction: float | None = None
    seed: int = 0
    fitted_k: int = learned()
    bank: Tensor = learned()

    def __post_init__(self) -> None:
        ok = self.k is None or (is_integer(self.k) and self.k >= 1)
        require(ok, self.id, "k", self.k, "an integer from 1 to the number of training images that are kept, or None")
        ok = self.fraction is None or (is_number(self.fraction) and 0 < self.fraction <= 1)
        require(ok, self.id, "fraction", self.fraction, "a number above 0, at most 1, or None")
        ok = is_integer(self.seed) and self.seed >= 0
        require(ok, self.id, "seed", self.seed, "an integer from 0")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        size = len(train)
        kept = default_kept(size) if self.fraction is None else math.floor(self.fraction * size + 1e-9)
        require(kept >= 1, self.id, "fraction", self.fraction, f"at least 1 / {size}, one of the training images")
        self.fitted_k = min(10, kept) if self.k is None else self.k
        allowed = f"an integer from 1 to {kept}, the number of training images that are kept"
        require(self.fitted_k <= kept, self.id, "k", self.fitted_k, allowed)
        drawn = torch.cat([lots(batch.features, self.seed) for batch in self._stream(train)])
        is_kept = torch.zeros(size, dtype=torch.bool).index_fill_(0, drawn.argsort()[:kept], True)
        bank, first_row = [], 0
        for batch in self._stream(train):
            chosen = is_kept[first_row : first_row + len(batch.features)]
            bank.append(unit(batch.features[chosen]) * batch.logits[chosen].logsumexp(dim=1, keepdim=True))
            first_row += len(chosen)
        self.bank = torch.cat(bank)

    def _score(self, batch: Batch) -> Tensor:
        queries = unit(batch.features)
        blocks = self.bank.split(_BATCHES_AT_ONCE * self.batch_rows)
        similarities, _ = largest((queries @ block.T for block in blocks), self.fitted_k)
        return similarities.mean(dim=1) * batch.logits.logsumexp(dim=1)


def default_k(images: int) -> int:
    """A thousandth of the training images, within 10 and the published 1000, where there are as many."""
    return min(1000, max(10, images // 1000), images)


def default_kept(images: int) -> int:
    """A hundredth of the training images, but at least 500, where there are as many."""
    return min(images, max(500, images // 100))


def largest(blocks: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k largest values (n, k) in each row of a matrix that comes in blocks of columns, and their columns (n, k)."""
    values: list[Tensor] = []
    columns: list[Tensor] = []
    first_column = 0
    for block in blocks:
        found, found_columns = block.topk(min(k, block.shape[1]), dim=1)
        candidates = torch.cat([*values, found], dim=1)
        best, kept = candidates.topk(min(k, candidates.shape[1]), dim=1)
        columns = [torch.cat([*columns, found_columns + first_column], dim=1).gather(1, kept)]
        values = [best]
        first_column += block.shape[1]
    return values[0], columns[0]


def lots(features: Tensor, seed: int) -> Tensor:
    """A number (n,) from 0 to 1 for each row (n, D) that depends on nothing but its values and the seed.

    It is continuous, up to wrapping from 1 to 0: the round-off of another machine draws the same rows.
    """
    direction = torch.from_numpy(np.random.default_rng(seed).normal(size=features.shape[1]))
    lengths = norms(features)
    return (100 * (features / lengths @ direction + lengths[:, 0].log())).remainder(1.0)
