"""Perturbation-aware training: each step follows the gradient at weights that were moved uphill first.

    optimizer = SGD(network.parameters(), lr=0.1)
    sharp = SharpnessAware(Perturbation(variant="sam", scope="norm-only", rho=0.5), network, optimizer)
    sharp.step(lambda rows: cross_entropy(network(images[rows]), labels[rows]), torch.arange(len(images)))

Source: Mueller, Vlaar, Rolnick, Hein, "Normalization Layers Are All That Perturbation-Aware Minimization Needs",
NeurIPS 2023: section 3 and appendix A.3 (Table 9), which restate SAM (Foret et al. 2021), ASAM (Kwon et al. 2021) and
Fisher-SAM (Kim et al. 2022). Compared with the authors' public optimizers, for CIFAR and for ImageNet.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from benchmark.errors import UserError

NORM_LAYERS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
ASAM_ETA = 0.01
FISHER_ETA = 1.0


class Perturbation(BaseModel):
    """How the weights w are moved: to the loss's largest value, to first order, where ||T^-1 eps||_p <= rho.

    variant: T_i of an entry w_i, and p, which is 2 but for asam-linf (Table 9). T_i is 1 for `sam`; |w_i| for
        `asam-l2` and `asam-linf`; for `asam-l2-original` |w_i| + 0.01 in a parameter whose name ends in "weight", and 1
        in any other (section 3.2 and the authors' code; Table 9 prints 1.01); the l2 norm of its whole tensor for
        `layerwise-l2`; (1 + g_i^2)^-1/2 for `fisher`, g the gradient of the mean loss.
    scope: the entries that are moved; the whole rho is theirs. `norm-only` is SAM-ON: scale and shift of BatchNorm,
        LayerNorm and GroupNorm (the last is our addition). `no-norm` and `random` are the paper's controls: all
        others, and as many entries as norm-only has, drawn from all by `seed`, once (the paper does not say how often).
    rho: the radius. Its best value hangs on variant and scope; the paper's for CIFAR-10 ResNets are 0.1 for sam and
        0.5 for sam, norm-only.
    micro_batch: m-SAM: every so many samples of a batch have an eps of their own, and the gradients are averaged.
        None: the batch has one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["sam", "asam-l2", "asam-l2-original", "asam-linf", "layerwise-l2", "fisher"] = "sam"
    scope: Literal["all", "norm-only", "no-norm", "random"] = "all"
    rho: float = Field(ge=0, allow_inf_nan=False)
    micro_batch: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)


class SharpnessAware:
    """Steps of a torch optimizer with the gradients at the moved weights.

    It has no state of its own: to go on with a training, restore the weights, the buffers and the optimizer.
    masks: by the name of each parameter in the scope, which of its entries are moved, or None for all.
    """

    def __init__(self, settings: Perturbation, network: nn.Module, optimizer: Optimizer) -> None:
        """Raises ValueError, naming `scope`, where the network has nothing in it that the optimizer trains."""
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self.settings, self.optimizer, self.network = settings, optimizer, network
        parameters = {name: value for name, value in network.named_parameters() if id(value) in trained}
        self.masks = scope_masks(settings, parameters, norm_parameters(network) & parameters.keys())
        self._moved = {name: parameters[name] for name in self.masks}

    def step(self, loss_of: Callable[[Tensor], Tensor], rows: Tensor) -> float:
        """Takes one step on a batch; returns its mean loss at the weights as they were.

        rows: (n,), the indices of the batch. loss_of(some of them) gives their mean loss, with gradients; it is called
        twice for each micro-batch. Buffers, such as the running statistics of BatchNorm, keep what the first call made
        of them: the second sees weights that the network never has (the authors' code for CIFAR updates them in both).
        What loss_of draws at random, such as dropout, it draws anew in the second.
        """
        total = 0.0
        self.optimizer.zero_grad()
        for part in rows.split(self.settings.micro_batch or len(rows)):
            share = len(part) / len(rows)
            loss = loss_of(part)
            gradients = torch.autograd.grad(loss, list(self._moved.values()), allow_unused=True, materialize_grads=True)
            total += share * loss.item()
            weights = {name: value.detach() for name, value in self._moved.items()}
            moves = perturbation(self.settings, weights, dict(zip(weights, gradients, strict=True)), self.masks)
            with _moved_by(weights, moves), _kept(dict(self.network.named_buffers())):
                (share * loss_of(part)).backward()
        self.optimizer.step()
        return total


@torch.no_grad()
def perturbation(
    settings: Perturbation,
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    masks: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """eps by the name of a parameter: rho T^2 g / ||T g||_2, or for p = infinity rho T sign(g); 0 where T g is 0.

    An entry that is 0 has T = 0 in asam-l2 and asam-linf, and so is not moved.
    """
    scales = {}
    for name, weight in weights.items():
        mask = masks[name]
        scale = _scale(settings.variant, name, weight, gradients[name])
        scales[name] = scale if mask is None else scale * mask
    if settings.variant == "asam-linf":
        return {name: settings.rho * scale * gradients[name].sign() for name, scale in scales.items()}
    scaled = {name: scale * gradients[name] for name, scale in scales.items()}
    norm = torch.stack([value.double().norm() for value in scaled.values()]).norm()
    if norm == 0:
        return {name: torch.zeros_like(value) for name, value in scaled.items()}
    return {name: settings.rho * (value / norm) * scales[name] for name, value in scaled.items()}


def norm_parameters(network: nn.Module) -> set[str]:
    """The names of the scales and shifts of normalisation layers, by the type of the layer.

    The authors' code for CIFAR goes by "norm" or "bn" in the name, which misses those that are called otherwise.
    """
    return {
        f"{place}.{name}" if place else name
        for place, module in network.named_modules()
        if isinstance(module, NORM_LAYERS)
        for name, _ in module.named_parameters(recurse=False)
    }


def scope_masks(settings: Perturbation, parameters: Mapping[str, Tensor], norm: set[str]) -> dict[str, Tensor | None]:
    """Of each parameter with entries in the scope, which entries (bool, of its shape), or None for all."""
    if settings.scope in ("norm-only", "random") and not norm:
        raise UserError(
            f"scope is {settings.scope!r}, but the optimizer trains no scale or shift of a BatchNorm, LayerNorm or "
            "GroupNorm of this network; allowed: 'all' or 'no-norm'"
        )
    masks: dict[str, Tensor | None]
    if settings.scope == "random":
        total = sum(value.numel() for value in parameters.values())
        count = sum(parameters[name].numel() for name in norm)
        chosen = torch.zeros(total, dtype=torch.bool)
        chosen[torch.randperm(total, generator=Generator().manual_seed(settings.seed))[:count]] = True
        parts = chosen.split([value.numel() for value in parameters.values()])
        pairs = zip(parameters.items(), parts, strict=True)
        masks = {name: part.view(value.shape).to(value.device) for (name, value), part in pairs if part.any()}
    elif settings.scope == "all":
        masks = dict.fromkeys(parameters)
    else:
        masks = dict.fromkeys(name for name in parameters if (name in norm) == (settings.scope == "norm-only"))
    if not masks:
        raise UserError(f"scope is {settings.scope!r}, but the optimizer trains no parameter in it; allowed: 'all'")
    return masks


def _scale(variant: str, name: str, weight: Tensor, gradient: Tensor) -> Tensor:
    """The diagonal of T for one parameter, in its shape."""
    match variant:
        case "asam-l2" | "asam-linf":
            return weight.abs()
        case "asam-l2-original" if name.endswith("weight"):
            return weight.abs() + ASAM_ETA
        case "layerwise-l2":
            return weight.norm().expand_as(weight)
        case "fisher":
            return (1 + FISHER_ETA * gradient.square()).rsqrt()
        case _:
            return torch.ones_like(weight)


@contextmanager
def _moved_by(weights: Mapping[str, Tensor], moves: Mapping[str, Tensor]) -> Iterator[None]:
    """The weights moved; afterwards the same bits as before, which subtracting would not give back."""
    with _kept(weights):
        for name, weight in weights.items():
            weight.add_(moves[name])
        yield


@contextmanager
def _kept(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    copies = {name: value.detach().clone() for name, value in tensors.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in tensors.items():
                value.copy_(copies[name])
