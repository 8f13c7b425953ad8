"""Detectors that compare the direction of the features with one prototype a class."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.numerics import class_means, unit
from detectors.state import learned


@registry.register
@dataclass(kw_only=True, eq=False)
class Cosine(Detector):
    """Cosine similarity of the features with the nearest class mean.

    Formula: S = max_c cos(u_c, h), u_c = mean of the training features of class c
    Paper: J. Bitterwolf, M. Müller, M. Hein, "In or Out? Fixing ImageNet Out-of-Distribution Detection Evaluation",
        ICML 2023, arXiv:2306.00826
    Deviations:
    - The zero vector, which the paper leaves undefined, has similarity 0 with everything.
    - A class without a training image has no prototype.
    """

    id = "cosine"
    needs = frozenset({"features", "train"})
    prototypes: Tensor = learned()

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        classes, indices = self._labels(train, head).unique(return_inverse=True)
        rows = ((batch.features, batch.labels) for batch in self._stream(train, indices))
        _, means = class_means(rows, len(classes))
        self.prototypes = unit(means)

    def _score(self, batch: Batch) -> Tensor:
        return self._similarities(batch).amax(dim=1)

    def _similarities(self, batch: Batch) -> Tensor:
        return unit(batch.features) @ self.prototypes.T


@registry.register
@dataclass(kw_only=True, eq=False)
class RelativeCosine(Cosine):
    """Softmax, over the classes, of the cosine similarities with the class means.

    Formula: S = max_c log softmax(s)_c, s_c = cos(u_c, h), u_c = mean of the training features of class c
    Paper: Y. Ming, Z. Cai, J. Gu, Y. Sun, W. Li, Y. Li, "Delving into Out-of-Distribution Detection with
        Vision-Language Representations", NeurIPS 2022, arXiv:2211.13445
    Deviations:
    - Class means stand in for text embeddings, as in NINCO (arXiv:2306.00826), at the paper's temperature 1.
    - The logarithm of the probability is returned: same order.
    - The zero vector, which the paper leaves undefined, has similarity 0 with everything.
    """

    id = "relative-cosine"

    def _score(self, batch: Batch) -> Tensor:
        return self._similarities(batch).log_softmax(dim=1).amax(dim=1)
