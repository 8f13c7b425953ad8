"""Training with outliers: a classifier that is fine-tuned to be unsure of images that show none of its classes."""

import math
from abc import abstractmethod
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from benchmark.errors import UserError
from benchmark.models.edits import Edit, trained_weights
from benchmark.models.model import Model
from benchmark.training.augmentation import Augmentation, augmented
from benchmark.training.optimisation import Progress, Schedule, optimise
from benchmark.variants.method import Method, TrainingData

OutlierLoss = Literal["uniform", "jensen-shannon", "energy-bounded"]


def _default_weight(data: dict[str, Any]) -> float:
    return {"uniform": 0.5, "energy-bounded": 0.1}.get(data.get("loss", ""), 1.0)


def _default_margin(margin: float) -> Any:
    return Field(default_factory=lambda data: margin if data.get("loss") == "energy-bounded" else None)


def _require_margins(m_in: float | None, m_out: float | None) -> None:
    if m_in is None or m_out is None or not -math.inf < m_in <= m_out < math.inf:
        raise UserError(f"m_in and m_out are {m_in} and {m_out}; allowed: two numbers, m_in not above m_out")


class OutlierTerm(BaseModel):
    """What a training with outliers adds to its loss: `weight` times the mean over the batch.

    loss: "uniform", the cross-entropy of the outliers to the uniform distribution, logsumexp(z) - mean(z) over logits z
    (Hendrycks et al. 2019, arXiv:1812.04606; in this form in the authors' code, not in the paper).
    "jensen-shannon", the divergence of the outliers' softmax to the uniform distribution, from 0 to log 2 (the loss of
    JensUn, put in the place of the cross-entropy by us). A saturated softmax gets almost no gradient from it.
    "energy-bounded", the squared hinges max(0, E - m_in)^2 of the ID images and max(0, m_out - E)^2 of the outliers,
    E = -logsumexp(z) (Liu et al. 2020, arXiv:2010.03759).
    weight: by default 0.5 for "uniform" and 0.1 for "energy-bounded", as in the papers and the authors' code, and 1 for
    "jensen-shannon", since JensUn weighs its two terms alike.
    m_in, m_out: of "energy-bounded" alone, by default -25 and -7. These are the authors' for a WideResNet on CIFAR;
    the scale of the energies is each network's own, so another network needs other margins.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    loss: OutlierLoss
    weight: float = Field(default_factory=_default_weight, ge=0, allow_inf_nan=False)
    m_in: float | None = _default_margin(-25.0)
    m_out: float | None = _default_margin(-7.0)

    @model_validator(mode="after")
    def _margins_fit(self) -> Self:
        if self.loss == "energy-bounded":
            _require_margins(self.m_in, self.m_out)
        elif (self.m_in, self.m_out) != (None, None):
            raise UserError(
                f"m_in and m_out are {self.m_in} and {self.m_out}; allowed: none where loss is {self.loss!r}"
            )
        return self

    def __call__(self, id_logits: Tensor, outlier_logits: Tensor) -> Tensor:
        """The term, a scalar, of logits (N, C) of ID images and (M, C) of outliers."""
        return self.weight * self._mean(id_logits, outlier_logits)

    def _mean(self, id_logits: Tensor, outlier_logits: Tensor) -> Tensor:
        if self.loss == "uniform":
            return (outlier_logits.logsumexp(dim=1) - outlier_logits.mean(dim=1)).mean()
        if self.loss == "jensen-shannon":
            log_probabilities = outlier_logits.log_softmax(dim=1)
            uniform = log_probabilities.new_full((), -math.log(outlier_logits.shape[1])).expand_as(log_probabilities)
            return jensen_shannon(log_probabilities, uniform).mean()
        assert self.m_in is not None  # as validated
        assert self.m_out is not None
        too_high = (-id_logits.logsumexp(dim=1) - self.m_in).relu()
        too_low = (self.m_out + outlier_logits.logsumexp(dim=1)).relu()
        return too_high.square().mean() + too_low.square().mean()


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence (N,), in nats, of distributions given by their log-probabilities (N, C).

    With M = (P + Q) / 2 it is KL(P||M) / 2 + KL(Q||M) / 2, from 0 to log 2. A probability of 0 may be given as -inf
    where no gradient is asked for.
    """
    log_m = log_p.logaddexp(log_q) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return (p * (log_p - log_q).where(p > 0, 0)).sum(dim=1)


class _TrainingWithOutliers(Method):
    """Fine-tunes all of a network on ID images, with as many outliers in each batch, and an OutlierTerm in its loss.

    SGD with Nesterov momentum 0.9 and a learning rate that falls along a cosine, 10 epochs, ID batches of 128, weight
    decay 5e-4: as in the code of Hendrycks et al. and of Liu et al. Their learning rate is 0.001 and their outlier
    batches are twice the ID ones; 0.01 and batches of one size are those of the Unleashing Mask's code.
    One forward pass takes ID images and outliers together, as in the first two: BatchNorm normalises them as one batch,
    and its running statistics become those of the mixture.
    Ours: each outlier batch is drawn with replacement; theirs goes through the outliers from a random place on.
    augmentation: of ID images and outliers, see benchmark/training/augmentation.py. The authors augment both as in the
    base's own training (crops and flips).
    The edit holds what changed, BatchNorm's buffers included (see `trained_weights`).
    """

    schedule: Schedule = Schedule(epochs=10, batch=128, learning_rate=0.01)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    augmentation: Augmentation = "none"

    @property
    def uses_outliers(self) -> bool:
        return True

    @property
    @abstractmethod
    def term(self) -> OutlierTerm: ...

    def id_loss(self, base: Model, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The rest of the loss, of ID images (n, 3, H, W), their logits (n, C) and their labels (n,)."""
        return cross_entropy(logits, labels)

    def make(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
        if data.outliers is None:
            raise UserError(f"{self.id}: outliers is None; allowed: an image set that the suite names as `outliers`")
        train, outliers, labels = data.train, data.outliers, data.train.labels
        if labels is None:
            raise UserError(f"{self.id}: the training images have no labels; allowed: an image set with `classes`")
        model = base.copy()
        network = model.network.requires_grad_(True).train()
        optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, nesterov=True, weight_decay=self.weight_decay)

        def update(rows: Tensor, generator: Generator) -> float:
            drawn = torch.randint(len(outliers), (len(rows),), generator=generator)
            images = torch.cat([train.images(rows), outliers.images(drawn)])
            images = augmented(images, self.augmentation, generator, base.preprocessing)
            id_logits, outlier_logits = model(images).split(len(rows))
            loss = self.id_loss(base, images[: len(rows)], id_logits, labels[rows])
            loss = loss + self.term(id_logits, outlier_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        losses = optimise(optimizer, self.schedule, len(train), update, network.state_dict(), progress, self.id)
        about = self.about(
            base,
            **self.about_outliers(outliers),
            losses=losses,
        )
        return Edit(about, weights=trained_weights(base.network, network))


class OutlierExposure(_TrainingWithOutliers):
    """Outlier Exposure: the outliers' softmax is drawn to the uniform one (Hendrycks et al. 2019, arXiv:1812.04606)."""

    id = "oe"
    weight: float = Field(default=0.5, ge=0, allow_inf_nan=False)

    @property
    def term(self) -> OutlierTerm:
        return OutlierTerm(loss="uniform", weight=self.weight)


class JensenShannonExposure(_TrainingWithOutliers):
    """Outlier Exposure with a bounded divergence: JensUn, made for language models to forget, put to images by us.

    on_id: the loss of the ID images. "cross-entropy", as in Outlier Exposure, or JensUn's "retain": the Jensen-Shannon
    divergence to the base's softmax on the same pixels. At the base's own logits that is 0 and has no gradient; with
    BatchNorm the training starts a little off them, since batch statistics take the place of the running ones.
    """

    id = "oe-jsd"
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    on_id: Literal["cross-entropy", "retain"] = "cross-entropy"

    @property
    def term(self) -> OutlierTerm:
        return OutlierTerm(loss="jensen-shannon", weight=self.weight)

    def id_loss(self, base: Model, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if self.on_id == "cross-entropy":
            return cross_entropy(logits, labels)
        with torch.no_grad():
            reference = base(images).log_softmax(dim=1)
        return jensen_shannon(logits.log_softmax(dim=1), reference).mean()


class EnergyBounded(_TrainingWithOutliers):
    """Energy-bounded learning: ID energies are pushed below m_in, those of outliers above m_out (Liu et al. 2020).

    The default margins fit the authors' networks on CIFAR; see OutlierTerm.
    """

    id = "energy-bounded"
    weight: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    m_in: float = -25.0
    m_out: float = -7.0

    @model_validator(mode="after")
    def _margins_fit(self) -> Self:
        _require_margins(self.m_in, self.m_out)
        return self

    @property
    def term(self) -> OutlierTerm:
        return OutlierTerm(loss="energy-bounded", weight=self.weight, m_in=self.m_in, m_out=self.m_out)
