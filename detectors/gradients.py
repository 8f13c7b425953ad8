"""Detectors that differentiate the network."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.base import Batch, Detector, check_finite
from detectors.catalogue import registry
from detectors.options import is_number, require
from detectors.outputs import Outputs

# A backward pass holds the network's activations, which grow with the pixels: 64 images of 32 x 32, 20 of 224 x 224.
_PIXELS_AT_ONCE = 2**20


@registry.register
@dataclass(kw_only=True, eq=False)
class ODIN(Detector):
    """Maximum softmax probability at a high temperature, of images moved a step towards a higher one.

    Formula: S = max_c log softmax(f(x') / T)_c, x' = x + epsilon sign(grad_x max_c log softmax(f(x) / T)_c)
    Paper: S. Liang, Y. Li, R. Srikant, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural
        Networks", ICLR 2018, arXiv:1706.02690
    Options:
    - temperature: T, above 0
    - epsilon: size of the step for each value of the image as the model takes it, at least 0
    Deviations:
    - epsilon stays at 0.0014, the usual default; the paper tunes it for each OOD set, and no detector sees those here.
    - epsilon counts in units of the image as the model takes it. The authors' code divides the step by the channel's
        standard deviation s, so that epsilon counts in pixels from 0 to 1: name epsilon / s to follow it.
    - The logarithm of the probability is returned: same order.
    """

    id = "odin"
    needs = frozenset({"images", "model"})
    batch_rows = 64
    temperature: float = 1000.0
    epsilon: float = 0.0014

    def __post_init__(self) -> None:
        ok = is_number(self.temperature) and self.temperature > 0
        require(ok, self.id, "temperature", self.temperature, "a number above 0")
        ok = is_number(self.epsilon) and self.epsilon >= 0
        require(ok, self.id, "epsilon", self.epsilon, "a number from 0")

    def _rows_in_a_batch(self, outputs: Outputs) -> int:
        """As many values as 32 images of 224 x 224: the network's activations stay in memory for the backward pass."""
        values_in_an_image = math.prod(outputs.images.shape[1:]) if outputs.images is not None else 1
        return max(1, min(self.batch_rows, 32 * 3 * 224 * 224 // max(1, values_in_an_image)))

    def _score(self, batch: Batch) -> Tensor:
        # Half-precision images are only a way to store them; double ones are for a double network.
        images = batch.images.to(torch.promote_types(batch.images.dtype, torch.float32))
        parts = images.split(max(1, _PIXELS_AT_ONCE // images[0, 0].numel()))
        return torch.cat([self._confidence(part + self.epsilon * self._gradient(part).sign()) for part in parts])

    def _gradient(self, images: Tensor) -> Tensor:
        """The gradient of the confidence in the images alone: the network's parameters get none."""
        with torch.inference_mode(False), torch.enable_grad():
            images = images.clone().requires_grad_()
            confidence = self._confidence(images)
            if not confidence.requires_grad:
                raise ValueError(f"{self.id} needs a model that torch can differentiate: its logits have no gradient")
            (gradient,) = torch.autograd.grad(confidence.sum(), images)
        return gradient

    def _confidence(self, images: Tensor) -> Tensor:
        logits = self._model(images)
        check_finite(logits.detach(), f"{self.id}: the network's logits")
        return (logits.double() / self.temperature).log_softmax(dim=1).max(dim=1).values
