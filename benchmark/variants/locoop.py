"""The LoCoOp loss: the cross-entropy minus the weighted entropy of the patches that do not show the image's class."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmark.errors import UserError

IN_LOGARITHM = 1e-5


@dataclass(frozen=True)
class LoCoOpLoss:
    """The loss of one batch. `total`, `id` and `ood` are scalars that torch can differentiate.

    total: id + ood_weight * ood.
    id: the mean cross-entropy of the images, in nats.
    ood: the negated mean entropy of the OOD patches, in nats, from -ln(C) to 1e-5; 0 where there are no OOD patches.
    share: the share of all patches that are OOD patches, from 0 to 1; 0 without local logits.
    """

    total: Tensor
    id: Tensor
    ood: Tensor
    share: float


def locoop_loss(
    logits: Tensor, local_logits: Tensor | None, labels: Tensor, ood_weight: float, rank: int
) -> LoCoOpLoss:
    """The loss of one batch.

    logits: the logits of the images, (n, C). No temperature is applied: CLIP's logits are already 100 times the cosine.
        That is the temperature of 0.01 that the paper does not mention and its code applies.
    local_logits: the logits of the patches, (n, P, C); None where the network has no local features.
    labels: the classes of the images, (n,).
    ood_weight: lambda, the weight of the OOD patches; it must be 0 where there are no local logits.
    rank: K, from 0 to C. A patch is an OOD patch where the label is not among its K most probable classes. So with 0
        every patch is an OOD patch, and with C none is. Of equally probable classes, the lower index comes first.

    Raises ValueError for a rank out of its range, and for a weight without local logits.

    Source: LoCoOp (NeurIPS 2023), as stated in SeTAR (NeurIPS 2024), Equation 10 and Appendix B. From SeTAR's code: the
    rank is that of the true label; the logarithm is log(p + 1e-5); the mean is taken over all OOD patches of the batch
    together. The sentence about K in SeTAR's Section 4.4 says the opposite of its equation and its code.
    """
    classes = logits.shape[1]
    if not 0 <= rank <= classes:
        raise UserError(f"rank is {rank}; allowed: an integer from 0 to the number of classes, {classes}")
    if local_logits is None and ood_weight != 0:
        raise UserError(f"ood_weight is {ood_weight}; allowed: 0, since the network has no local features")
    id_loss = cross_entropy(logits, labels)
    if local_logits is None:
        return LoCoOpLoss(id_loss, id_loss, torch.zeros_like(id_loss), 0.0)
    is_ood = _classes_before_label(local_logits, labels) >= rank
    count = int(is_ood.sum())
    ood_loss = _negated_entropy(local_logits[is_ood]).mean() if count else torch.zeros_like(id_loss)
    return LoCoOpLoss(id_loss + ood_weight * ood_loss, id_loss, ood_loss, count / is_ood.numel())


def _classes_before_label(local_logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the image's label, when the classes of a patch are sorted from the most probable:
    (n, P).
    """
    of_label = local_logits.gather(2, labels[:, None, None].expand(-1, local_logits.shape[1], 1))
    index = torch.arange(local_logits.shape[2], device=labels.device)
    lower_index = index < labels[:, None, None]
    return ((local_logits > of_label) | ((local_logits == of_label) & lower_index)).sum(dim=2)


def _negated_entropy(logits: Tensor) -> Tensor:
    """The negated entropy of each row of logits (m, C), in nats: (m,). The logarithm has the constant of the code."""
    probabilities = logits.softmax(dim=1)
    return (probabilities * (probabilities + IN_LOGARITHM).log()).sum(dim=1)
