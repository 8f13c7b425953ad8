"""The LoCoOp loss: cross-entropy, less the entropy of the patches that do not show the image's class."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmark.errors import UserError

IN_LOGARITHM = 1e-5


@dataclass(frozen=True)
class LoCoOpLoss:
    """total = id + ood_weight * ood, scalars that torch can differentiate.

    id: mean cross-entropy of the images. ood: the negated mean entropy, in nats, of the OOD patches, from -ln(C) to
    1e-5; 0 where there are none. share: how many of all patches are OOD patches, from 0 to 1; 0 without local logits.
    """

    total: Tensor
    id: Tensor
    ood: Tensor
    share: float


def locoop_loss(
    logits: Tensor, local_logits: Tensor | None, labels: Tensor, ood_weight: float, rank: int
) -> LoCoOpLoss:
    """The loss of one batch.

    logits: (n, C). local_logits: (n, P, C) of the patches, or None where a network has none, which asks for an
    ood_weight of 0. labels: (n,). Logits are softmaxed as they are: CLIP's come as 100 times the cosine, which is the
    temperature of 0.01 that the paper leaves out and its code applies.
    ood_weight: lambda. rank: K, from 0 to C; a patch is an OOD patch where the label is not among its K most probable
    classes, so that 0 makes every patch one and C none. Among equally probable classes the lower index comes first.

    LoCoOp (NeurIPS 2023) as SeTAR (NeurIPS 2024), Equation 10 and Appendix B, states it; from SeTAR's code: the rank is
    the true label's, log(p + 1e-5), the mean over all OOD patches of the batch together. The sentence on K in SeTAR's
    Section 4.4 says the reverse of its equation and code.
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
    """How many classes come before the image's label in each patch's descending order: (n, P)."""
    own = local_logits.gather(2, labels[:, None, None].expand(-1, local_logits.shape[1], 1))
    index = torch.arange(local_logits.shape[2], device=labels.device)
    lower_index = index < labels[:, None, None]
    return ((local_logits > own) | ((local_logits == own) & lower_index)).sum(dim=2)


def _negated_entropy(logits: Tensor) -> Tensor:
    """Of each row of (m, C), in nats, with the code's constant in the logarithm."""
    probabilities = logits.softmax(dim=1)
    return (probabilities * (probabilities + IN_LOGARITHM).log()).sum(dim=1)
