"""Perturbation-aware training: the size of a perturbation, where it lies, and the steps against plain loops."""

import copy
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer

from benchmark.training.sharpness_aware import Perturbation, SharpnessAware, norm_parameters, perturbation, scope_masks

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS = ("sam", "asam-l2", "asam-l2-original", "asam-linf", "layerwise-l2", "fisher")
SCOPES = ("all", "norm-only", "no-norm", "random")
SHAPES = {
    "conv.weight": (4, 3, 3, 3),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "head.weight": (5, 4),
    "head.bias": (5,),
    "token": (1, 1, 4),
}
NORM = {"norm.weight", "norm.bias"}


def _draw(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = Generator().manual_seed(seed)
    weights, gradients = (
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
        for _ in range(2)
    )
    return weights, gradients


def _scale(variant: str, name: str, weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """T, entry by entry, from Table 9 of the paper."""
    scale = np.empty_like(weight)
    for index in np.ndindex(weight.shape):
        scale[index] = {
            "sam": 1.0,
            "asam-l2": abs(weight[index]),
            "asam-linf": abs(weight[index]),
            "asam-l2-original": abs(weight[index]) + 0.01 if name.endswith("weight") else 1.0,
            "layerwise-l2": np.sqrt((weight**2).sum()),
            "fisher": 1 / np.sqrt(1 + gradient[index] ** 2),
        }[variant]
    return scale


@pytest.mark.parametrize(("variant", "scope"), list(product(VARIANTS, SCOPES)))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), rho=st.floats(1e-4, 100))
def test_a_perturbation_has_the_radius_and_stays_in_its_scope(variant: str, scope: str, seed: int, rho: float) -> None:
    weights, gradients = _draw(seed)
    sharpness = Perturbation(variant=variant, scope=scope, rho=rho, seed=seed)
    masks = scope_masks(sharpness, weights, NORM)
    within = {name: weights[name] for name in masks}
    eps = perturbation(sharpness, within, {name: gradients[name] for name in masks}, masks)
    unscaled, slope = [], []
    for name, move in eps.items():
        mask = torch.ones(SHAPES[name], dtype=torch.bool) if masks[name] is None else masks[name]
        assert not move[~mask].any()
        scale = _scale(variant, name, weights[name].numpy(), gradients[name].numpy())
        unscaled.extend((move.numpy() / scale)[mask])
        slope.extend((move * gradients[name])[mask].tolist())
    size = np.abs(unscaled).max() if variant == "asam-linf" else np.linalg.norm(unscaled)
    assert size == pytest.approx(rho, rel=1e-9)
    assert min(slope) >= 0  # uphill in every entry


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_no_perturbation_of_that_radius_climbs_further(seed: int) -> None:
    weights, gradients = _draw(seed)
    masks = dict.fromkeys(weights)
    for variant in ("asam-l2", "asam-linf"):
        eps = perturbation(Perturbation(variant=variant, rho=0.3), weights, gradients, masks)
        best = sum((eps[name] * gradients[name]).sum() for name in weights)
        random = {name: torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        flat = torch.cat([value.flatten() for value in random.values()])
        size = flat.norm() if variant == "asam-l2" else flat.abs().max()
        climbed = sum((0.3 * random[name] / size * weights[name].abs() * gradients[name]).sum() for name in weights)
        assert climbed <= best * (1 + 1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gradient_of_zero_gives_no_perturbation(variant: str) -> None:
    weights, gradients = _draw(0)
    flat = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    eps = perturbation(Perturbation(variant=variant, rho=1), weights, flat, dict.fromkeys(weights))
    assert all(torch.equal(move, flat[name]) for name, move in eps.items())


def test_the_controls_complement_and_match_norm_only() -> None:
    weights, _ = _draw(0)
    masks = {scope: scope_masks(Perturbation(scope=scope, rho=1), weights, NORM) for scope in SCOPES}
    assert masks["norm-only"].keys() == NORM
    assert masks["no-norm"].keys() == weights.keys() - NORM
    assert masks["all"].keys() == weights.keys()
    assert sum(int(mask.sum()) for mask in masks["random"].values() if mask is not None) == 8
    again, other = (scope_masks(Perturbation(scope="random", rho=1, seed=seed), weights, NORM) for seed in (0, 1))

    def same(one: dict[str, Tensor | None]) -> bool:
        return one.keys() == masks["random"].keys() and all(torch.equal(one[n], masks["random"][n]) for n in one)

    assert same(again)
    assert not same(other)


class _Net(nn.Module):
    """A convolution, a norm layer and a head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), norm, nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def _network(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Net(nn.BatchNorm2d(4)).to(dtype)


def _batch(network: nn.Module, calls: list[Tensor] | None = None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    generator = Generator().manual_seed(1)
    dtype = next(network.parameters()).dtype
    images, labels = torch.randn(12, 3, 6, 6, generator=generator, dtype=dtype), torch.arange(12) % 5

    def loss_of(rows: Tensor) -> Tensor:
        if calls is not None:
            calls.append(rows)
        return cross_entropy(network(images[rows]), labels[rows])

    return loss_of, torch.arange(12)


def _sgd(network: nn.Module) -> Optimizer:
    return SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def _adamw(network: nn.Module) -> Optimizer:
    return AdamW(network.parameters(), lr=1e-2, weight_decay=0.05)


def _trained(
    sharpness: Perturbation, optimizer_of: Callable[[nn.Module], Optimizer] = _sgd, steps: int = 3
) -> nn.Module:
    network = _network()
    loss_of, rows = _batch(network)
    sharp = SharpnessAware(sharpness, network, optimizer_of(network))
    for _ in range(steps):
        sharp.step(loss_of, rows)
    return network


def _plain(optimizer_of: Callable[[nn.Module], Optimizer], steps: int = 3) -> nn.Module:
    network = _network()
    loss_of, rows = _batch(network)
    optimizer = optimizer_of(network)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(rows).backward()
        optimizer.step()
    return network


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("variant", "scope", "optimizer_of"), list(product(VARIANTS, SCOPES, [_sgd, _adamw])))
def test_a_radius_of_zero_is_the_base_optimizer(
    variant: str, scope: str, optimizer_of: Callable[[nn.Module], Optimizer]
) -> None:
    base = _plain(optimizer_of)
    assert _same(_trained(Perturbation(variant=variant, scope=scope, rho=0), optimizer_of), base)
    assert not _same(_trained(Perturbation(variant=variant, scope=scope, rho=0.5), optimizer_of), base)


@pytest.mark.parametrize("scope", SCOPES)
def test_weights_come_back_bit_by_bit_and_statistics_count_the_first_pass(scope: str) -> None:
    network = _network()
    before = copy.deepcopy(network)
    seen = []
    loss_of, rows = _batch(network)

    def watched(part: Tensor) -> Tensor:
        seen.append({name: value.detach().clone() for name, value in network.named_parameters()})
        return loss_of(part)

    SharpnessAware(Perturbation(scope=scope, rho=0.7), network, SGD(network.parameters(), lr=0.0)).step(watched, rows)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    first, second = seen
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved <= scope_masks(Perturbation(scope=scope, rho=0.7), first, norm_parameters(network)).keys()
    assert moved
    loss_of_before, _ = _batch(before)
    loss_of_before(rows)  # one pass at the weights as they were
    assert _same(network, before)
    assert network.norm.num_batches_tracked == 1


def test_weights_come_back_after_a_failure() -> None:
    network = _network()
    before = copy.deepcopy(network)
    loss_of, rows = _batch(network)
    calls: list[Tensor] = []

    def fails(part: Tensor) -> Tensor:
        calls.append(part)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss_of(part)

    with pytest.raises(KeyboardInterrupt):
        SharpnessAware(Perturbation(rho=0.5), network, _sgd(network)).step(fails, rows)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))


def test_a_step_takes_two_gradients_of_each_part_and_gives_the_loss_before() -> None:
    calls: list[Tensor] = []
    network = _network()
    loss_of, rows = _batch(network, calls)
    loss = loss_of(rows).item()
    calls.clear()
    assert SharpnessAware(Perturbation(rho=0.5), network, _sgd(network)).step(loss_of, rows) == loss
    assert [len(part) for part in calls] == [12, 12]
    calls.clear()
    SharpnessAware(Perturbation(rho=0.5, micro_batch=5), network, _sgd(network)).step(loss_of, rows)
    assert [len(part) for part in calls] == [5, 5, 5, 5, 2, 2]


def test_the_first_pass_stores_no_gradient() -> None:
    network = _network()
    loss_of, rows = _batch(network)
    stored: list[bool] = []

    def watched(part: Tensor) -> Tensor:
        stored.append(any(value.grad is not None for value in network.parameters()))
        return loss_of(part)

    SharpnessAware(Perturbation(scope="norm-only", rho=0.5), network, _sgd(network)).step(watched, rows)
    assert stored == [False, False]
    assert all(value.grad is not None for value in network.parameters())


def test_micro_batches_of_the_whole_batch_are_sam_and_smaller_ones_are_not() -> None:
    whole = _trained(Perturbation(rho=0.5))
    assert _same(_trained(Perturbation(rho=0.5, micro_batch=12)), whole)
    assert not _same(_trained(Perturbation(rho=0.5, micro_batch=4)), whole)


def test_micro_batches_average_their_gradients() -> None:
    """Each part's gradient at its own moved weights, by a loop over copies of the network."""
    for rho, micro_batch in ((0.0, 5), (0.5, 5)):
        network = _Net(nn.GroupNorm(2, 4)).double()
        loss_of, rows = _batch(network)
        wanted = [torch.zeros_like(value) for value in network.parameters()]
        for part in rows.split(micro_batch):
            gradients = torch.autograd.grad(loss_of(part), list(network.parameters()))
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            moved = copy.deepcopy(network)
            with torch.no_grad():
                for value, gradient in zip(moved.parameters(), gradients, strict=True):
                    value += rho * gradient / norm
            moved_loss_of, _ = _batch(moved)
            for total, gradient in zip(
                wanted, torch.autograd.grad(moved_loss_of(part), list(moved.parameters())), strict=True
            ):
                total += len(part) / len(rows) * gradient
        optimizer = SGD(network.parameters(), lr=0.0)
        SharpnessAware(Perturbation(rho=rho, micro_batch=micro_batch), network, optimizer).step(loss_of, rows)
        for value, gradient in zip(network.parameters(), wanted, strict=True):
            torch.testing.assert_close(value.grad, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("variant", ["sam", "asam-l2", "asam-linf"])
def test_steps_are_those_of_plain_loops(variant: str) -> None:
    """A two-layer ReLU net without biases under squared loss, its gradients written out by hand in numpy."""
    random = np.random.default_rng(3)
    inputs, wanted = random.normal(size=(7, 4)), random.normal(size=(7, 2))
    first, second = random.normal(size=(5, 4)), random.normal(size=(2, 5))
    rate, rho = 0.05, 0.2

    network = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.from_numpy(first))
        network[2].weight.copy_(torch.from_numpy(second))
    images, targets = torch.from_numpy(inputs), torch.from_numpy(wanted)
    sharp = SharpnessAware(Perturbation(variant=variant, rho=rho), network, SGD(network.parameters(), lr=rate))

    def slopes(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden = inputs @ one.T
        shown = np.maximum(hidden, 0)
        error = (shown @ two.T - wanted) / len(inputs)
        return ((error @ two) * (hidden > 0)).T @ inputs, error.T @ shown

    for _ in range(4):
        sharp.step(lambda rows: (network(images[rows]) - targets[rows]).square().sum(1).mean() / 2, torch.arange(7))
        pair = slopes(first, second)
        scales = [np.ones_like(first), np.ones_like(second)] if variant == "sam" else [abs(first), abs(second)]
        if variant == "asam-linf":
            moves = [rho * scale * np.sign(slope) for scale, slope in zip(scales, pair, strict=True)]
        else:
            total = np.sqrt(sum(((scale * slope) ** 2).sum() for scale, slope in zip(scales, pair, strict=True)))
            moves = [rho * scale**2 * slope / total for scale, slope in zip(scales, pair, strict=True)]
        pair = slopes(first + moves[0], second + moves[1])
        first, second = first - rate * pair[0], second - rate * pair[1]
    np.testing.assert_allclose(network[0].weight.detach(), first, rtol=1e-12)
    np.testing.assert_allclose(network[2].weight.detach(), second, rtol=1e-12)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_norm_parameters_of_timm_networks(architecture: str) -> None:
    """timm's own layers are subclasses of torch's and are called after them."""
    network = timm.create_model(architecture, num_classes=4)
    owners = {name: type(network.get_submodule(name.rpartition(".")[0])) for name, _ in network.named_parameters()}
    named = {name for name, owner in owners.items() if "Norm" in owner.__name__}
    assert named
    assert norm_parameters(network) == named


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 4, 4]), nn.SyncBatchNorm(4)])
def test_every_kind_of_norm_layer_is_found(norm: nn.Module) -> None:
    assert norm_parameters(_Net(norm)) == {"norm.weight", "norm.bias"}


def test_only_what_the_optimizer_trains_is_moved() -> None:
    network = _network()
    head = SGD(network.head.parameters(), lr=0.1)
    assert SharpnessAware(Perturbation(rho=0.1), network, head).masks.keys() == {"head.weight", "head.bias"}
    with pytest.raises(ValueError, match="scope is 'norm-only', but the optimizer trains no scale"):
        SharpnessAware(Perturbation(scope="norm-only", rho=0.1), network, head)
    norm = SGD(network.norm.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="scope is 'no-norm', but the optimizer trains no parameter"):
        SharpnessAware(Perturbation(scope="no-norm", rho=0.1), network, norm)


@pytest.mark.parametrize("scope", ["norm-only", "random"])
def test_a_network_without_norm_layers_has_no_such_scope(scope: str) -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=f"scope is '{scope}'.*allowed: 'all' or 'no-norm'"):
        SharpnessAware(Perturbation(scope=scope, rho=0.1), network, SGD(network.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rho", -0.1),
        ("rho", float("nan")),
        ("rho", float("inf")),
        ("variant", "asam"),
        ("scope", "norm_only"),
        ("micro_batch", 0),
        ("seed", -1),
        ("radius", 1),
    ],
)
def test_bad_settings_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ValidationError, match=setting):
        Perturbation(**{"rho": 0.1, setting: value})
