"""Training with outliers: a classifier is fine-tuned to be uncertain about images that show none of its classes."""

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
from benchmark.training.augmentation import Augmentation, augment_images
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
    """The term that a training with outliers adds to its loss: `weight` times a mean over the batch.

    loss: which mean it is, over logits z.
        - "uniform": the cross-entropy of the outliers to the uniform distribution, logsumexp(z) - mean(z) (Hendrycks et
          al. 2019, arXiv:1812.04606; this form is in the authors' code, not in the paper).
        - "jensen-shannon": the divergence of the outliers' softmax from the uniform distribution, from 0 to log 2. It
          is the loss of JensUn; that it replaces the cross-entropy here is our choice. It has almost no gradient where
          the softmax is saturated.
        - "energy-bounded": the squared hinges max(0, E - m_in)^2 of the ID images and max(0, m_out - E)^2 of the
          outliers, with E = -logsumexp(z) (Liu et al. 2020, arXiv:2010.03759).
    weight: the factor of the mean. The default is 0.5 for "uniform" and 0.1 for "energy-bounded", as in the papers and
        the authors' code, and 1 for "jensen-shannon", since JensUn gives its two terms the same weight.
    m_in, m_out: the margins, for "energy-bounded" only. The defaults of -25 and -7 are the authors' for a WideResNet on
        CIFAR. Energies have another scale in another network, which then needs other margins.

    Raises ValueError for margins that do not fit, and for margins of another loss.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    loss: OutlierLoss
    weight: float = Field(default_factory=_default_weight, ge=0, allow_inf_nan=False)
    m_in: float | None = _default_margin(-25.0)
    m_out: float | None = _default_margin(-7.0)

    @model_validator(mode="after")
    def _check_margins(self) -> Self:
        if self.loss == "energy-bounded":
            _require_margins(self.m_in, self.m_out)
        elif (self.m_in, self.m_out) != (None, None):
            raise UserError(
                f"m_in and m_out are {self.m_in} and {self.m_out}; allowed: none where loss is {self.loss!r}"
            )
        return self

    def __call__(self, id_logits: Tensor, outlier_logits: Tensor) -> Tensor:
        """The term, a scalar, from logits of ID images (N, C) and of outliers (M, C)."""
        return self.weight * self._mean_loss(id_logits, outlier_logits)

    def _mean_loss(self, id_logits: Tensor, outlier_logits: Tensor) -> Tensor:
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
    """The Jensen-Shannon divergence of pairs of distributions, in nats: (N,).

    log_p, log_q: the log-probabilities of the distributions, (N, C). A probability of 0 may be given as -inf where no
        gradient is needed.

    With M = (P + Q) / 2 it is KL(P||M) / 2 + KL(Q||M) / 2, from 0 to log 2.
    """
    log_m = log_p.logaddexp(log_q) - math.log(2)
    return (_kl_divergence(log_p, log_m) + _kl_divergence(log_q, log_m)) / 2


def _kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return (p * (log_p - log_q).where(p > 0, 0)).sum(dim=1)


class _TrainingWithOutliers(Method):
    """Fine-tunes all weights of a network on ID images and as many outliers in each batch, with an OutlierTerm.

    The optimizer is SGD with a Nesterov momentum of 0.9; the learning rate falls along a cosine. From the code of
    Hendrycks et al. and of Liu et al.: 10 epochs, ID batches of 128, weight decay 5e-4. Their learning rate is 0.001,
    and their outlier batches are twice as large as the ID batches. The learning rate of 0.01 and outlier batches of the
    same size are from the code of Unleashing Mask.

    As in the first two, ID images and outliers go through the network together. So BatchNorm normalises them as one
    batch, and its running statistics are those of the mixture. Each batch of outliers is drawn with replacement; the
    authors' code takes the outliers in order, from a random place on. The edit holds the weights that changed, and the
    buffers of BatchNorm (see `trained_weights`).

    schedule: the epochs, the batch size, the learning rates and the seed.
    weight_decay: the factor of SGD's weight decay.
    augmentation: how ID images and outliers are changed, see benchmark/training/augmentation.py. The authors augment
        both as in the training of the base (crops and flips).
    """

    schedule: Schedule = Schedule(epochs=10, batch=128, learning_rate=0.01)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    augmentation: Augmentation = "none"

    @property
    def uses_outliers(self) -> bool:
        return True

    @property
    @abstractmethod
    def term(self) -> OutlierTerm:
        """What is added to the loss of the ID images."""

    def id_loss(self, base: Model, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of the ID images, a scalar.

        base: the base model.
        images: the ID images of a batch, (n, 3, H, W).
        logits: their logits in the trained network, (n, C).
        labels: their classes, (n,).
        """
        return cross_entropy(logits, labels)

    def make_edit(self, base: Model, data: TrainingData, progress: Progress) -> Edit:
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
            images = augment_images(images, self.augmentation, generator, base.preprocessing)
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
    """Outlier Exposure: the softmax of outliers is trained to be uniform (Hendrycks et al. 2019, arXiv:1812.04606).

    weight: the factor of the OutlierTerm.
    """

    id = "oe"
    weight: float = Field(default=0.5, ge=0, allow_inf_nan=False)

    @property
    def term(self) -> OutlierTerm:
        return OutlierTerm(loss="uniform", weight=self.weight)


class JensenShannonExposure(_TrainingWithOutliers):
    """Outlier Exposure with a bounded divergence. It is JensUn, an unlearning method for language models, used on
    images.

    weight: the factor of the OutlierTerm.
    on_id: the loss of the ID images: "cross-entropy", as in Outlier Exposure, or "retain", as in JensUn: the
        Jensen-Shannon divergence from the base's softmax on the same pixels. At the logits of the base, "retain" is 0
        and has no gradient. With BatchNorm the training does not start exactly there, since it uses the statistics of
        the batch instead of the running ones.
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
    """Energy-bounded learning (Liu et al. 2020): energies of ID images are trained to be below m_in, of outliers above
    m_out.

    weight: the factor of the OutlierTerm.
    m_in, m_out: the margins. The defaults suit the authors' networks on CIFAR, see OutlierTerm.
    """

    id = "energy-bounded"
    weight: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    m_in: float = -25.0
    m_out: float = -7.0

    @model_validator(mode="after")
    def _check_margins(self) -> Self:
        _require_margins(self.m_in, self.m_out)
        return self

    @property
    def term(self) -> OutlierTerm:
        return OutlierTerm(loss="energy-bounded", weight=self.weight, m_in=self.m_in, m_out=self.m_out)
