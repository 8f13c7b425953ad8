"""References for gradients of the network: one image at a time, by torch's automatic differentiation."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from tests.references.data import Data


def gradnorm(data: Data, temperature: float = 1.0) -> list[float]:
    scores = []
    for row in torch.from_numpy(data.test):
        weight = torch.from_numpy(data.weight).clone().requires_grad_()
        logits = weight @ row + torch.from_numpy(data.bias)
        uniform = torch.full_like(logits, 1 / len(logits))
        divergence = functional.kl_div((logits / temperature).log_softmax(dim=0), uniform, reduction="sum")
        (gradient,) = torch.autograd.grad(divergence, weight)
        scores.append(float(gradient.abs().sum()))
    return scores


REFERENCES: list[tuple[str, dict[str, Any], Callable[..., list[float]]]] = [
    ("gradnorm", {}, gradnorm),
    ("gradnorm", {"temperature": 3.0}, gradnorm),
]
