"""References for SeTAR: the loss patch by patch, and the search without keeping anything between two evaluations."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmark.models.model import Model
from benchmark.models.zero_shot import ZeroShotClassifier
from benchmark.variants.locoop import locoop_loss
from benchmark.variants.network_towers import towers_of
from benchmark.variants.setar import SeTAR, layers_of


def losses_of_batch(
    logits: np.ndarray, local_logits: np.ndarray, labels: np.ndarray, rank: int
) -> tuple[float, float, float]:
    """Cross-entropy, OOD loss and share of the OOD patches."""
    id_losses = [-np.log(_softmax(row)[label]) for row, label in zip(logits, labels, strict=True)]
    negated_entropies = []
    for patches, label in zip(local_logits, labels, strict=True):
        for patch in patches:
            most_probable = sorted(range(len(patch)), key=lambda c: (-patch[c], c))[:rank]
            if label not in most_probable:
                probabilities = _softmax(patch)
                negated_entropies.append(sum(p * np.log(p + 1e-5) for p in probabilities))
    ood = float(np.mean(negated_entropies)) if negated_entropies else 0.0
    return float(np.mean(id_losses)), ood, len(negated_entropies) / local_logits[..., 0].size


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@dataclass
class Plain:
    """The search as Algorithm 1 states it: every loss is that of a whole forward pass of all towers."""

    settings: SeTAR
    model: Model
    images: Tensor
    labels: Tensor
    ood_weight: float
    rank: int
    evaluations: int = 0

    def loss(self) -> float:
        self.evaluations += 1
        total = 0.0
        towers = towers_of(self.model)
        for images, labels in zip(
            self.images.split(self.settings.batch), self.labels.split(self.settings.batch), strict=True
        ):
            features, local = towers["vision"](images)
            weight, bias = self.head(towers)
            local_logits = None if local is None else linear(local, weight, bias)
            batch = locoop_loss(linear(features, weight, bias), local_logits, labels, self.ood_weight, self.rank)
            total += float(batch.total) * len(labels) / len(self.labels)
        return total

    def head(self, towers: Any) -> tuple[Tensor, Tensor | None]:
        model: Any = self.model
        if not isinstance(self.model, ZeroShotClassifier):
            return model.classifier.weight, model.classifier.bias
        tokens = model.tokenizer([model.prompt.replace("{}", name) for name in model.class_names])
        features = torch.cat([towers["text"](some)[0] for some in tokens.split(self.settings.batch)])
        return model.network.logit_scale.exp() * features, None

    def put(self, layer: Any, ratio: float, original: Tensor) -> None:
        """The approximation of an original weight, by sums in the same order, since the loss is to agree to the bit."""
        weight = self.model.network.state_dict()[layer.matrix.tensor][layer.matrix.rows]
        dropped = list(self.settings.removed_indices(layer, ratio, weight.shape))
        if not dropped:
            weight.copy_(original)
            return
        kernels = original.double() if original.ndim == 2 else original.double().permute(2, 3, 0, 1)
        left, values, right = torch.linalg.svd(kernels, full_matrices=False)
        kept = [index for index in range(values.shape[-1]) if index not in dropped]
        low_rank = left[..., kept] * values[..., None, kept] @ right[..., kept, :]
        weight.copy_(low_rank if original.ndim == 2 else low_rank.permute(2, 3, 0, 1))


def plain_search(
    settings: SeTAR, base: Model, images: Tensor, labels: Tensor, ood_weight: float, rank: int
) -> tuple[list[tuple[str, int, float, float]], int]:
    """(tower, layer, ratio, loss) of every decision, and the number of evaluations."""
    model = replace(base, network=copy.deepcopy(base.network))
    plain = Plain(settings, model, images, labels, ood_weight, rank)
    towers = towers_of(model)
    vision = layers_of(towers["vision"], settings.weight)[::-1]
    text = layers_of(towers["text"], settings.weight)[::-1] if "text" in towers else []
    order = {
        "vision-then-text": vision + text,
        "text-then-vision": text + vision,
        "vision": vision,
        "text": text,
        "alternating": [layer for pair in zip(vision, text, strict=False) for layer in pair],
    }[settings.towers]
    tensors = base.network.state_dict()
    originals = [tensors[layer.matrix.tensor][layer.matrix.rows] for layer in order]
    ratios = [ratio for ratio in settings.ratios if ratio]
    decisions, remaining, lowest = [], list(range(len(order))), plain.loss()
    while remaining:
        tried: Sequence[int] = remaining[:1] if settings.search == "greedy" else remaining
        chosen, chosen_ratio = None, 0.0
        for index in tried:
            for ratio in ratios:
                plain.put(order[index], ratio, originals[index])
                loss = plain.loss()
                if loss < lowest:
                    chosen, chosen_ratio, lowest = index, ratio, loss
            plain.put(order[index], 0.0, originals[index])
        if chosen is not None:
            plain.put(order[chosen], chosen_ratio, originals[chosen])
        for index in tried if chosen is None else [chosen]:
            decisions.append((order[index].tower, order[index].number, chosen_ratio, lowest))
            remaining = [other for other in remaining if other != index]
    return decisions, plain.evaluations
