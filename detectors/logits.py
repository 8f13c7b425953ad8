"""Detectors that read the logits alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detectors.base import Batch, Detector
from detectors.catalogue import registry
from detectors.numerics import class_means
from detectors.options import is_number, require
from detectors.state import learned


@registry.register
@dataclass(kw_only=True, eq=False)
class MSP(Detector):
    """Maximum softmax probability.

    Formula: S = max_c log softmax(o)_c = -log(1 + sum_{c != m} exp(o_c - o_m)) with m = argmax_c o_c
    Paper: D. Hendrycks, K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
        Networks", ICLR 2017, arXiv:1610.02136
    Deviations:
    - The logarithm of the probability is returned: same order, but probabilities near 1 stay apart.
    """

    id = "msp"
    needs = frozenset({"logits"})

    def _score(self, batch: Batch) -> Tensor:
        # log1p of the others' sum keeps the digits that 1 + sum would round away.
        top, predicted = batch.logits.max(dim=1, keepdim=True)
        others = (batch.logits - top).exp_().scatter_(1, predicted, 0.0)
        return -others.sum(dim=1).log1p()


@registry.register
@dataclass(kw_only=True, eq=False)
class MaxLogit(Detector):
    """The largest logit.

    Formula: S = max_c o_c
    Paper: D. Hendrycks, S. Basart, M. Mazeika, A. Zou, J. Kwon, M. Mostajabi, J. Steinhardt, D. Song, "Scaling
        Out-of-Distribution Detection for Real-World Settings", ICML 2022, arXiv:1911.11132
    """

    id = "max-logit"
    needs = frozenset({"logits"})

    def _score(self, batch: Batch) -> Tensor:
        return batch.logits.amax(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class Energy(Detector):
    """Negative free energy of the logits.

    Formula: S = T log sum_c exp(o_c / T)
    Paper: W. Liu, X. Wang, J. D. Owens, Y. Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020,
        arXiv:2010.03759
    Options:
    - temperature: T, above 0
    """

    id = "energy"
    needs = frozenset({"logits"})
    temperature: float = 1.0

    def __post_init__(self) -> None:
        ok = is_number(self.temperature) and self.temperature > 0
        require(ok, self.id, "temperature", self.temperature, "a number above 0")

    def _score(self, batch: Batch) -> Tensor:
        return self.temperature * (batch.logits / self.temperature).logsumexp(dim=1)


@registry.register
@dataclass(kw_only=True, eq=False)
class KLMatching(Detector):
    """Divergence of the predicted distribution from the nearest class template.

    Formula: S = -min_c KL(p || d_c), p = softmax(o), d_c = mean of p over the training images of class c
    Paper: D. Hendrycks, S. Basart, M. Mazeika, A. Zou, J. Kwon, M. Mostajabi, J. Steinhardt, D. Song, "Scaling
        Out-of-Distribution Detection for Real-World Settings", ICML 2022, arXiv:1911.11132
    Options:
    - classes: what puts a training image into class c: 'predicted' (its largest logit) or 'true' (its label)
    Deviations:
    - The templates come from the training set, as in NINCO (arXiv:2306.00826); the paper takes a validation split.
    - A template's probability below 2.2e-308 counts as that, so that the divergence stays finite.
    - A class without a training image has no template.
    """

    id = "kl-matching"
    needs = frozenset({"logits", "train"})
    classes: str = "predicted"
    log_templates: Tensor = learned()

    def __post_init__(self) -> None:
        require(self.classes in ("predicted", "true"), self.id, "classes", self.classes, "'predicted' or 'true'")

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        if self.classes == "true":
            batches = self._stream(train, self._labels(train, head))
            rows = ((batch.logits.softmax(dim=1), batch.labels) for batch in batches)
        else:
            rows = ((batch.logits.softmax(dim=1), batch.logits.argmax(dim=1)) for batch in self._stream(train))
        sizes, templates = class_means(rows, train.logits.shape[1])
        self.log_templates = templates[sizes > 0].clamp_min(torch.finfo(templates.dtype).tiny).log()

    def _score(self, batch: Batch) -> Tensor:
        log_p = batch.logits.log_softmax(dim=1)
        p = log_p.exp()
        return (p @ self.log_templates.T).amax(dim=1) - (p * log_p).sum(dim=1)
