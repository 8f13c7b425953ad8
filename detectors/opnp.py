"""Detectors that prune the parameters and neurons to which the energy is least and most sensitive."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.catalogue import registry
from detectors.itp import pruned
from detectors.logits import Energy
from detectors.options import require, require_percentile
from detectors.parts import USUAL_INVARIANCES, Activations, Part, Training, combination
from detectors.percentile import percentile
from detectors.shaping import ReAct
from detectors.state import learned


@dataclass(kw_only=True, eq=False)
class OPNP(Part):
    """A head without the parameters and neurons to which the energy is hardly sensitive or far too sensitive.

    Formula: o_c = sum_d [P_low < M_cd < P_high] [N_low < n_d < N_high] W_cd h_d + b_c, M_cd = mean over training images
        of |dE/dW_cd| = softmax(o)_c |h_d|, n_d = mean of M_cd over c, the limits = percentiles of all M and of all n
    Paper: C. Chen, Z. Fu, K. Liu, Z. Chen, M. Tao, J. Ye, "Optimal Parameter and Neuron Pruning for Out-of-Distribution
        Detection", NeurIPS 2023, arXiv:2402.10062
    Options:
    - parameters_low: percent of the parameters that are pruned for too little sensitivity, from 0 to 100
    - parameters_high: percent of the parameters that are pruned for too much
    - neurons_low: percent of the neurons that are pruned for too little sensitivity, from 0 to 100
    - neurons_high: percent of the neurons that are pruned for too much
    Deviations:
    - Not checked against the authors' code, of which none was found, nor against the paper's full text: M and the
        pruning of both ends are the paper's; that n is the mean of M over the classes is inferred.
    - The default percentages are this project's; those of the paper could not be obtained.
    Verified:
    - plain loops written from the formula, 1e-6; M against torch's gradients of the energy
    """

    id = "opnp"
    needs = frozenset({"train"})
    parameters_low: float = 10.0
    parameters_high: float = 1.0
    neurons_low: float = 10.0
    neurons_high: float = 1.0
    kept: Tensor = learned()

    def __post_init__(self) -> None:
        for kind in ("parameters", "neurons"):
            low, high = getattr(self, f"{kind}_low"), getattr(self, f"{kind}_high")
            for option, value in ((f"{kind}_low", low), (f"{kind}_high", high)):
                require_percentile(self.id, option, value)
            require(low + high <= 100, self.id, f"{kind}_high", high, f"a number up to 100 - {kind}_low")

    def fit(self, training: Training) -> None:
        head, sums = training.head, torch.zeros_like(training.head.weight)
        for batch in training.batches():
            probabilities = torch.addmm(head.bias, batch.features, head.weight.T).softmax(dim=1)
            sums += probabilities.T @ batch.features.abs()
        sensitivities = sums / training.images
        parameters = _between(sensitivities, self.parameters_low, self.parameters_high)
        self.kept = parameters & _between(sensitivities.mean(dim=0), self.neurons_low, self.neurons_high)

    def apply(self, activations: Activations) -> Activations:
        return pruned(activations, self.kept)


def _between(values: Tensor, low: float, high: float) -> Tensor:
    """Which values are neither among the lowest nor among the highest percent of all; of 0 percent there are none."""

    def limit(percent: float) -> float:
        return percentile(lambda: iter([values.flatten()]), values.numel(), percent)

    above = values > limit(low) if low > 0 else torch.ones_like(values, dtype=torch.bool)
    return above & (values < limit(100 - high)) if high > 0 else above


registry.register(combination("opnp", Energy, OPNP, invariant_to=USUAL_INVARIANCES))
registry.register(combination("opnp+react", Energy, ReAct, OPNP, react_percentile=90.0, invariant_to=USUAL_INVARIANCES))
