"""Sharpness-aware training: each step uses the gradient at weights that were first moved to a larger loss.

    optimizer = SGD(network.parameters(), lr=0.1)
    sharp = SharpnessAware(Perturbation(variant="sam", scope="norm-only", rho=0.5), network, optimizer)
    sharp.step(lambda rows: cross_entropy(network(images[rows]), labels[rows]), torch.arange(len(images)))

Source: Mueller, Vlaar, Rolnick, Hein, "Normalization Layers Are All That Perturbation-Aware Minimization Needs",
NeurIPS 2023: section 3 and appendix A.3 (Table 9), which restate SAM (Foret et al. 2021), ASAM (Kwon et al. 2021) and
Fisher-SAM (Kim et al. 2022). It was compared with the authors' public optimizers, for CIFAR and for ImageNet.
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
    """How the weights w are moved by eps: to the largest loss, to first order, with ||T^-1 eps||_p <= rho.

    variant: which T and p are used. p is 2, except for `asam-linf` (Table 9). T_i, for an entry w_i, is
        - 1 for `sam`;
        - |w_i| for `asam-l2` and `asam-linf`;
        - for `asam-l2-original`, |w_i| + 0.01 in a parameter whose name ends in "weight", and 1 in any other (section
          3.2 and the authors' code; Table 9 prints 1.01);
        - for `layerwise-l2`, the l2 norm of the whole tensor of w_i;
        - for `fisher`, (1 + g_i^2)^-1/2, where g is the gradient of the mean loss.
    scope: which entries are moved; rho is the norm of their perturbation. `norm-only` is SAM-ON: the scale and shift of
        BatchNorm, LayerNorm and GroupNorm (GroupNorm is our addition). `no-norm` and `random` are the paper's controls.
        `no-norm` is all other entries. `random` is as many entries as `norm-only` has, drawn from all entries by
        `seed`. They are drawn once; the paper does not say how often.
    rho: the radius. The best value depends on variant and scope. The paper has, for ResNets on CIFAR-10, 0.1 for `sam`
        and 0.5 for `sam` with `norm-only`.
    micro_batch: the number of images that share one eps (m-SAM); the gradients of the micro-batches are averaged. None
        takes one eps for the whole batch.
    seed: the seed of the draw for the scope `random`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["sam", "asam-l2", "asam-l2-original", "asam-linf", "layerwise-l2", "fisher"] = "sam"
    scope: Literal["all", "norm-only", "no-norm", "random"] = "all"
    rho: float = Field(ge=0, allow_inf_nan=False)
    micro_batch: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)


class SharpnessAware:
    """Takes steps with a torch optimizer, with the gradients at moved weights.

    It keeps no state: to continue a training, restore the weights, the buffers and the optimizer.

    settings: how the weights are moved.
    optimizer: the optimizer that takes the steps.
    network: the network that is trained.
    masks: for each parameter in the scope, by its name, which entries are moved; None for all of them.
    """

    def __init__(self, settings: Perturbation, network: nn.Module, optimizer: Optimizer) -> None:
        """Raises ValueError, which names `scope`, where the optimizer trains no parameter in the scope."""
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self.settings, self.optimizer, self.network = settings, optimizer, network
        parameters = {name: value for name, value in network.named_parameters() if id(value) in trained}
        self.masks = scope_masks(settings, parameters, norm_parameters(network) & parameters.keys())
        self._moved = {name: parameters[name] for name in self.masks}

    def step(self, loss_of: Callable[[Tensor], Tensor], rows: Tensor) -> float:
        """Takes one step on a batch, and returns its mean loss at the weights before the step.

        loss_of: a function from some of the rows to their mean loss, with gradients. It is called twice for each
            micro-batch: at the weights, and at the moved weights. Random numbers, such as dropout's, differ between the
            two calls.
        rows: the indices of the batch, (n,).

        Buffers, such as the running statistics of BatchNorm, are those after the first call, because the network never
        keeps the moved weights. (The authors' code for CIFAR updates them in both calls.)
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
            with _moved_weights(weights, moves), _restored_values(dict(self.network.named_buffers())):
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
    """eps of each parameter, by its name: rho T^2 g / ||T g||_2; for p = infinity, rho T sign(g).

    It is 0 where T g is 0.

    settings: the variant and rho.
    weights: the parameters in the scope, by name.
    gradients: the gradient g of each, by name.
    masks: which entries of each are in the scope; None for all.

    With `asam-l2` and `asam-linf`, an entry that is 0 has T = 0 and is not moved.
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
    """The names of the scales and shifts of normalisation layers. The type of a layer decides what it is.

    The authors' code for CIFAR looks for "norm" or "bn" in the name. It misses layers with other names.
    """
    return {
        f"{place}.{name}" if place else name
        for place, module in network.named_modules()
        if isinstance(module, NORM_LAYERS)
        for name, _ in module.named_parameters(recurse=False)
    }


def scope_masks(settings: Perturbation, parameters: Mapping[str, Tensor], norm: set[str]) -> dict[str, Tensor | None]:
    """Which entries of each parameter are in the scope: a mask (bool, in its shape), or None for all of them.

    settings: the scope, and the seed for "random".
    parameters: what the optimizer trains, by name.
    norm: the names of the parameters of normalisation layers.

    Parameters without an entry in the scope are left out. Raises ValueError where no parameter is in the scope.
    """
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
    """The diagonal of T for one parameter, in the shape of the parameter."""
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
def _moved_weights(weights: Mapping[str, Tensor], moves: Mapping[str, Tensor]) -> Iterator[None]:
    """Moves the weights inside of the block. Afterwards they have the same bits as before.

    Subtracting the moves would not give the same bits, because of rounding.
    """
    with _restored_values(weights):
        for name, weight in weights.items():
            weight.add_(moves[name])
        yield


@contextmanager
def _restored_values(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Gives tensors, at the end of the block, the values that they had at its start."""
    copies = {name: value.detach().clone() for name, value in tensors.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in tensors.items():
                value.copy_(copies[name])
