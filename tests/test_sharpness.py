"""Sharpness: its invariances, its limits at small radii, its closed forms, and what it must leave alone."""

import copy
import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import kendalltau
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from benchmark.commands.app import main
from benchmark.training import sharpness as module
from benchmark.training.sharpness import (
    ModelSharpness,
    average_rise,
    correlate_sharpness_with_error,
    definitions,
    kendall_tau,
    kendall_tau_deviation,
    one_step_rise,
    sharpness,
    worst_rise,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 4
WORST: dict[str, Any] = {
    "case": "worst",
    "norm": "linf",
    "scaling": "adaptive",
    "normalise_logits": False,
    "rho": 0.02,
    "batch": 16,
    "steps": 8,
}
AVERAGE = WORST | {"case": "average", "norm": "l2", "rho": 0.1, "draws": 6}


def _network() -> nn.Sequential:
    """BatchNorm with statistics of its own, ReLU and a convolution, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        ).double()
        for layer in network:
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0, 0.3)
        network(_images(64))  # moves the running statistics
    return network.eval().requires_grad_(False)


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=Generator().manual_seed(1), dtype=torch.float64)


def _labels(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def _value(network: nn.Module, count: int = 32, **options: Any) -> float:
    return sharpness(network, _images(count), _labels(count), **(WORST | options)).value


def _rescaled(network: nn.Sequential) -> nn.Sequential:
    """The same function by other weights."""
    copied = copy.deepcopy(network)
    copied[1].weight.mul_(7.3)
    copied[1].bias.mul_(7.3)
    copied[3].weight.div_(7.3)
    return copied


def _flat(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def _gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    network = copy.deepcopy(network).requires_grad_()
    cross_entropy(network(images), labels).backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


# --- Invariances. ---


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("options", [WORST, WORST | {"steps": 1}, AVERAGE], ids=["worst", "one step", "average"])
def test_a_rescaling_of_weights_leaves_adaptive_sharpness_and_changes_standard(options: dict, norm: str) -> None:
    network = _network()
    other = _rescaled(network)
    torch.testing.assert_close(other(_images(8)), network(_images(8)), rtol=1e-12, atol=1e-12)

    options = options | {"norm": norm}
    assert _value(other, **options) == pytest.approx(_value(network, **options), rel=1e-12)
    # Without |w| the same weights have another sharpness: the test above can fail.
    standard = options | {"scaling": "standard"}
    assert _value(other, **standard) != pytest.approx(_value(network, **standard), rel=0.01)


@pytest.mark.parametrize("options", [WORST, AVERAGE], ids=["worst", "average"])
def test_a_rescaling_of_the_head_leaves_sharpness_of_normalised_logits(options: dict) -> None:
    network = _network()
    other = copy.deepcopy(network)
    other[-1].weight.mul_(5)
    other[-1].bias.mul_(5)
    normalised = options | {"normalise_logits": True}
    assert _value(other, **normalised) == pytest.approx(_value(network, **normalised), rel=1e-10)
    assert _value(other, **options) != pytest.approx(_value(network, **options), rel=0.1)


def test_normalised_logits_have_a_population_deviation_of_one() -> None:
    network, images, labels = _network(), _images(16), _labels(16)
    logits = network(images)
    spread = ((logits - logits.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True).sqrt()
    expected = -log_softmax(logits / spread, 1)[torch.arange(16), labels].mean().item()
    result = sharpness(network, images, labels, **(WORST | {"normalise_logits": True}))
    assert result.base_loss == pytest.approx(expected, rel=1e-12)


def test_equal_logits_can_be_normalised() -> None:
    network = _network()
    network[-1].weight.zero_()
    network[-1].bias.zero_()
    assert _value(network, normalise_logits=True) == 0  # with c = |w| a weight of zero does not move
    assert _value(network, normalise_logits=True, scaling="standard") > 0


# --- Small radii. ---


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("scaling", ["adaptive", "standard"])
def test_the_worst_case_goes_to_the_dual_norm_of_the_gradient(norm: str, dual: int, scaling: str, steps: int) -> None:
    network, rho = _network(), 1e-6
    gradient = _gradient(network, _images(16), _labels(16))
    scale = _flat(network).abs() if scaling == "adaptive" else 1.0
    limit = rho * torch.linalg.vector_norm(gradient * scale, dual).item()
    value = _value(network, 16, norm=norm, scaling=scaling, rho=rho, steps=steps)
    assert value == pytest.approx(limit, rel=2e-3)


def _at_a_minimum() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A loss of twelve weights, three classes that overlap, and its minimum."""
    random = Generator().manual_seed(3)
    inputs = torch.randn(40, 3, generator=random, dtype=torch.float64)
    labels = torch.randint(3, (40,), generator=random)

    def loss(weights: Tensor) -> Tensor:
        matrix, bias = weights[:9].view(3, 3), weights[9:]
        return cross_entropy(inputs @ matrix.T + bias, labels)

    weights = torch.randn(12, generator=random, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimizer.step(closure)
    assert weights.grad.norm() < 1e-8
    return loss, weights.detach()


@pytest.mark.parametrize(("norm", "variance"), [("l2", 1.0), ("linf", 1 / 3)])
def test_the_average_case_goes_to_the_trace_of_the_scaled_hessian(norm: str, variance: float) -> None:
    loss, weights = _at_a_minimum()
    scale, rho, draws = weights.abs(), 1e-3, 3000
    hessian = torch.autograd.functional.hessian(loss, weights)
    scaled = hessian * scale[:, None] * scale
    limit = rho**2 / 2 * variance * scaled.trace().item()
    # The deviation of d' A d / 2 over Gaussian d, which is more than over uniform d, over the draws.
    deviation = rho**2 / 2 * math.sqrt(2 * (scaled**2).sum().item() / draws)
    value = average_rise(loss, weights, scale, norm, rho, draws, Generator().manual_seed(0))
    assert value == pytest.approx(limit, abs=4 * deviation)
    assert abs(value - limit / variance * (4 / 3 - variance)) > 4 * deviation  # the other norm's limit is refused


@pytest.mark.parametrize(("norm", "variance"), [("l2", 1.0), ("linf", 1 / 3)])
def test_the_average_case_of_a_linear_loss_is_zero(norm: str, variance: float) -> None:
    weights, draws = torch.zeros(1000, dtype=torch.float64), 200
    deviation = math.sqrt(variance * len(weights) / draws)
    value = average_rise(torch.sum, weights, weights + 1, norm, 1.0, draws, Generator().manual_seed(0))
    assert value == pytest.approx(0, abs=4 * deviation)


def test_the_worst_case_at_a_minimum_goes_to_the_largest_eigenvalue() -> None:
    loss, weights = _at_a_minimum()
    scale, rho = weights.abs(), 1e-3
    hessian = torch.autograd.functional.hessian(loss, weights)
    limit = rho**2 / 2 * torch.linalg.eigvalsh(hessian * scale[:, None] * scale).max().item()
    value = worst_rise(loss, weights, scale, "l2", rho, 50, Generator().manual_seed(0))
    assert value == pytest.approx(limit, rel=0.01)


def _diagonal_network() -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """Half the squared error of <x, u * v> on whitened data, fitted exactly: loss, weights [u; v], scale, beta."""
    random = Generator().manual_seed(5)
    u, v = torch.randn(2, 5, generator=random, dtype=torch.float64)
    data = torch.linalg.qr(torch.randn(8, 5, generator=random, dtype=torch.float64))[0]
    target = data @ (u * v)

    def loss(weights: Tensor) -> Tensor:
        return ((data @ (weights[:5] * weights[5:]) - target) ** 2).sum() / 2

    scale = torch.cat([(u / v).abs().sqrt(), (v / u).abs().sqrt()])
    return loss, torch.cat([u, v]), scale, u * v


def test_a_diagonal_linear_network_has_closed_forms() -> None:
    loss, weights, scale, beta = _diagonal_network()
    rho, draws = 1e-3, 3000

    def average(scale: Tensor) -> float:
        return average_rise(loss, weights, scale, "l2", rho, draws, Generator().manual_seed(0)) / rho**2

    def worst(scale: Tensor) -> float:
        return worst_rise(loss, weights, scale, "l2", rho, 100, Generator().manual_seed(0)) / rho**2

    ones = torch.ones_like(weights)
    tolerance = 4 * math.sqrt(2 / draws)
    assert average(ones) == pytest.approx((weights**2).sum().item() / 2, rel=tolerance)
    assert average(scale) == pytest.approx(beta.norm(p=1).item(), rel=tolerance)
    assert average(weights.abs()) == pytest.approx(beta.norm().item() ** 2, rel=tolerance)
    assert worst(ones) == pytest.approx((weights[:5] ** 2 + weights[5:] ** 2).max().item() / 2, rel=0.01)
    assert worst(scale) == pytest.approx(beta.abs().max().item(), rel=0.01)
    assert worst(weights.abs()) == pytest.approx(beta.abs().max().item() ** 2, rel=0.01)
    # The paper prints the two halves of the scale the other way round, which does not give the norm of beta.
    assert average(scale.roll(5)) != pytest.approx(beta.norm(p=1).item(), rel=0.5)


# --- The search for the worst case. ---


def _auto_pgd(
    loss: Callable[[Tensor], Tensor], weights: Tensor, scale: Tensor, norm: str, rho: float, steps: int, start: Tensor
) -> float:
    """The paper's algorithm 1 by the letter, on lists that keep every iterate and every value."""

    def project(z: Tensor) -> Tensor:
        if norm == "linf":
            return torch.maximum(torch.minimum(z, torch.full_like(z, rho)), torch.full_like(z, -rho))
        return z if z.norm() <= rho else z / z.norm() * rho

    def value(z: Tensor) -> float:
        return loss(weights + scale * z).item()

    def ascent(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        loss(weights + scale * z).backward()
        return z.grad.sign() if norm == "linf" else z.grad / z.grad.norm()

    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checkpoints = [math.ceil(round(share * steps, 9)) for share in shares if share <= 1]
    w, f, eta = [start], [value(start)], [2 * rho]
    base = value(torch.zeros_like(start))
    best, f_best = max((start, f[0]), (torch.zeros_like(start), base), key=lambda found: found[1])
    best_at, success = {0: f_best}, []
    for k in range(steps):
        z = project(w[k] + eta[k] * ascent(w[k]))
        alpha, back = (0.75, w[k - 1]) if k else (1, w[k])
        w.append(project(w[k] + alpha * (z - w[k]) + (1 - alpha) * (w[k] - back)))
        f.append(value(w[k + 1]))
        success.append(f[k + 1] > f[k])
        eta.append(eta[k])
        if f[k + 1] > f_best:
            best, f_best = w[k + 1], f[k + 1]
        if k + 1 in checkpoints:
            last = checkpoints[checkpoints.index(k + 1) - 1]
            best_at[k + 1] = f_best
            condition_1 = sum(success[last:]) < 0.75 * (k + 1 - last)
            condition_2 = eta[max(last - 1, 0)] == eta[k] and best_at[last] == f_best
            if condition_1 or condition_2:
                eta[k + 1] = eta[k] / 2
                w[k + 1], f[k + 1] = best, f_best
    return f_best - base


@pytest.mark.parametrize("steps", [2, 7, 20, 101])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_search_is_the_algorithm(norm: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(10):
        random = Generator().manual_seed(seed)
        waves, weights = torch.randn(12, 30, generator=random, dtype=torch.float64), torch.linspace(-1, 1, 12).double()
        start = (torch.rand(12, generator=random, dtype=torch.float64) - 0.5) * 0.3

        def rugged(weights: Tensor, waves: Tensor = 3 * waves) -> Tensor:
            return (weights @ waves).sin().mean()

        monkeypatch.setattr(module, "_start_position", lambda *_, start=start: start)
        value = worst_rise(rugged, weights, weights.abs(), norm, 0.6, steps, random)
        assert value == pytest.approx(_auto_pgd(rugged, weights, weights.abs(), norm, 0.6, steps, start), rel=1e-9)


def test_checkpoints_come_sooner_and_sooner() -> None:
    assert list(module._checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_perturbation_stays_in_the_ball(norm: str) -> None:
    loss, weights = _at_a_minimum()
    scale, rho, seen = weights.abs() + 0.1, 0.3, []

    def watched(perturbed: Tensor) -> Tensor:
        seen.append(((perturbed.detach() - weights) / scale).norm(p=2 if norm == "l2" else math.inf).item())
        return loss(perturbed)

    worst_rise(watched, weights, scale, norm, rho, 20, Generator().manual_seed(0))
    assert len(seen) == 22  # the weights, the start, and one a step
    assert max(seen) == pytest.approx(rho)
    one_step_rise(watched, weights + 0.1, scale, norm, rho)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_more_steps_and_a_larger_radius_find_no_less(norm: str) -> None:
    network, rho = _network(), 0.2 if norm == "l2" else 0.02
    by_steps = [_value(network, norm=norm, rho=rho, steps=steps) for steps in (1, 5, 20, 60)]
    by_rho = [_value(network, norm=norm, rho=scale * rho, steps=20) for scale in (0.25, 0.5, 1, 2)]
    for values in (by_steps, by_rho):
        assert all(more >= 0.995 * less for less, more in pairwise(values))
    assert by_steps[2] > by_steps[0]
    assert by_rho[-1] > 4 * by_rho[0]


def test_the_worst_case_is_no_less_than_any_draw() -> None:
    network = _network()
    worst = _value(network, rho=0.05, steps=20)
    assert worst > max(_value(network, **(AVERAGE | {"norm": "linf", "rho": 0.05, "seed": seed})) for seed in range(5))


def test_the_worst_case_is_never_negative() -> None:
    def loss(weights: Tensor) -> Tensor:
        return -(weights**2).sum()  # its weights are at the top

    weights = torch.zeros(4, dtype=torch.float64)
    assert worst_rise(loss, weights, torch.ones(4), "linf", 0.1, 20, Generator().manual_seed(0)) == 0


# --- What it must leave alone, and what it must repeat. ---


@pytest.mark.parametrize("options", [WORST, WORST | {"steps": 1}, AVERAGE], ids=["worst", "one step", "average"])
def test_the_network_stays_as_it_was(options: dict) -> None:
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    places = [parameter.data_ptr() for parameter in network.parameters()]
    _value(network, **options)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [parameter.data_ptr() for parameter in network.parameters()] == places
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("options", [WORST | {"steps": 2}, AVERAGE], ids=["worst", "average"])
def test_the_seed_decides(options: dict) -> None:
    network = _network()
    state = torch.get_rng_state()
    first = _value(network, **options)
    assert first == _value(network, **options)
    assert first != _value(network, **options, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_value_is_the_mean_over_full_batches() -> None:
    network, images, labels = _network(), _images(40), _labels(40)
    result = sharpness(network, images, labels, **WORST | {"steps": 1})
    halves = [
        sharpness(network, images[rows], labels[rows], **WORST | {"steps": 1}) for rows in (slice(16), slice(16, 32))
    ]
    assert result.per_batch == tuple(half.value for half in halves)  # the last eight images are left out
    assert result.value == pytest.approx(sum(result.per_batch) / 2, rel=1e-15)
    assert result.base_loss == pytest.approx(cross_entropy(network(images[:32]), labels[:32]).item(), rel=1e-12)
    # One perturbation for all is less bad for each: m matters.
    assert sharpness(network, images[:32], labels[:32], **WORST | {"steps": 1, "batch": 32}).value < result.value
    assert result.seconds > 0


def test_batches_draw_differently() -> None:
    images, labels = _images(16).repeat(2, 1, 1, 1), _labels(16).repeat(2)
    first, second = sharpness(_network(), images, labels, **AVERAGE).per_batch
    assert first != second


def test_single_precision_agrees_with_double() -> None:
    network = _network()
    single = sharpness(copy.deepcopy(network).float(), _images(32).float(), _labels(32), **WORST)
    assert single.value == pytest.approx(_value(network), rel=0.02)


# --- Settings. ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("case", "best"),
        ("norm", "l1"),
        ("scaling", "relative"),
        ("normalise_logits", "maybe"),
        ("rho", 0.0),
        ("rho", -1.0),
        ("rho", math.inf),
        ("rho", math.nan),
        ("batch", 0),
        ("steps", 0),
        ("draws", 0),
        ("seed", -1),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){name}\n.*input_value={re.escape(repr(value))}"):
        _value(_network(), **{name: value})


def test_a_network_or_images_that_do_not_fit_are_refused() -> None:
    network = _network()
    with pytest.raises(ValueError, match="batch is 16; allowed: up to the number of images, 8"):
        _value(network, 8)
    with pytest.raises(ValueError, match="labels have the shape"):
        sharpness(network, _images(16), _labels(15), **WORST)
    with pytest.raises(ValueError, match="training mode"):
        _value(network.train())
    broken = _network()
    broken[-1].bias.fill_(math.nan)
    with pytest.raises(ValueError, match="the loss of the network is nan on batch 0"):
        _value(broken)


def test_the_definitions_are_those_of_the_paper() -> None:
    every = definitions()
    assert len(set(every)) == 12
    assert {(one.scaling, one.normalise_logits) for one in every} == {
        ("standard", False),
        ("adaptive", False),
        ("adaptive", True),
    }
    assert "worst-linf-adaptive-normalised" in map(str, every)
    for one in every:
        assert _value(_network(), **one._asdict(), rho=one.radius, steps=3, draws=2) != 0


def test_the_command_prints_a_line_for_each_value(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["worst-linf-adaptive-normalised", "average-l2-standard"]
    few = ["--images", "16", "--batch", "8", "--steps", "2", "--draws", "2", "--device", "cpu"]
    chosen = [text for name in names for text in ("--definition", name)]
    assert main(["sharpness", "digits-resnet", *chosen, "--rho", "0.001", "--rho", "0.002", *few]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:3] for line in lines] == [
        ["digits-resnet", name, rho] for name in names for rho in ("0.001", "0.002")
    ]
    assert main(["sharpness", "digits-resnet", "--definition", "worst-linf"]) == 1
    assert "no definition is called 'worst-linf' (did you mean 'worst-l" in capsys.readouterr().err
    assert main(["sharpness", "digits-resnt"]) == 1
    assert "no model is called 'digits-resnt' (did you mean 'digits-resnet'?)" in capsys.readouterr().err


# --- Correlation. ---


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=2, max_size=12))
@settings(max_examples=50, deadline=None)
def test_tau_is_scipys_without_ties_and_nearer_to_zero_with_them(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    tau = kendall_tau(first, second)
    concordant = sum((a > c) - (a < c) == (b > d) - (b < d) != 0 for a, b in pairs for c, d in pairs)
    discordant = sum((a > c) - (a < c) == (b < d) - (b > d) != 0 for a, b in pairs for c, d in pairs)
    assert tau == pytest.approx((concordant - discordant) / (len(pairs) * (len(pairs) - 1)))
    reference = kendalltau(first, second).statistic
    if len({*first}) == len({*second}) == len(pairs):
        assert tau == pytest.approx(reference)
    elif not math.isnan(reference):
        assert abs(tau) <= abs(reference) + 1e-12


def test_the_deviation_of_tau_is_that_of_shuffled_ranks() -> None:
    random = Generator().manual_seed(0)
    taus = [kendall_tau(range(12), torch.randperm(12, generator=random).tolist()) for _ in range(2000)]
    assert torch.tensor(taus).std().item() == pytest.approx(kendall_tau_deviation(12), rel=0.06)
    assert kendall_tau_deviation(12) == pytest.approx(0.22, abs=0.005)
    assert kendall_tau_deviation(56) == pytest.approx(0.09, abs=0.005)


def test_measurements_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(ValueError, match="M from 2"):
        kendall_tau([1.0], [1.0])
    with pytest.raises(ValueError, match="shapes"):
        kendall_tau([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        kendall_tau([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="models is 1"):
        kendall_tau_deviation(1)


def test_models_of_one_loss_surface_alone_are_correlated() -> None:
    pool = [ModelSharpness(str(index), "resnet", "digits", index, 1 / (1 + index)) for index in range(4)]
    assert correlate_sharpness_with_error(pool) == -1
    with pytest.raises(ValueError, match="architecture is resnet and vit; allowed: the same"):
        correlate_sharpness_with_error([*pool, ModelSharpness("other", "vit", "digits", 0.5, 0.5)])
    with pytest.raises(ValueError, match="training_set is digits and letters"):
        correlate_sharpness_with_error([*pool, ModelSharpness("other", "resnet", "letters", 0.5, 0.5)])
