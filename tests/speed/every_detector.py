"""Fit and score of every detector beside what a user would run instead, and beside the work that it is made of.

    python tests/speed/every_detector.py [DETECTOR ...]

At 1,000 classes and 2,048 dimensions (class covariances: 100 and 512), float64, on the processor, in one process:

- `limit`: the matrix products, sorts or selections that the score is made of, on the same rows. The columns give our
  time over theirs; the target is at most 1.5, for Mahalanobis at most 2.
- `pytorch-ood`: its detector on the same tensors (on fewer rows where it loops over classes); the target is at most
  1.5. Those in SINGLE compute in single precision, which is half the work, so no target holds for them.
- `loop`: the loops over classes or images that peers ship, on fewer rows. The target is at most 1/50.

Exits with 1 where a target is missed. Detectors that run the network are not here: their time is the network's.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_ood import detector as peers
from torch import Tensor, nn

from detectors import Head, Outputs, available, create, describe

ROWS, ROUNDS, LOOP_ROWS = 2048, 5, 16
TRAIN_ROWS_A_CLASS = 6

Work = Callable[[], object]


@dataclass(frozen=True)
class World:
    """Outputs like a network's after ReLU, in float64."""

    train: Outputs
    test: Outputs
    head: Head

    @classmethod
    def of(cls, classes: int, width: int, train_rows: int) -> "World":
        random = torch.Generator().manual_seed(0)
        weight = torch.randn(classes, width, generator=random, dtype=torch.float64) / width**0.5
        bias = torch.randn(classes, generator=random, dtype=torch.float64) / 10
        means = torch.rand(classes, width, generator=random, dtype=torch.float64) + 20 * weight

        def outputs(rows: int) -> Outputs:
            labels = torch.arange(rows) % classes
            features = (means[labels] + torch.randn(rows, width, generator=random, dtype=torch.float64)).relu()
            return Outputs(features, features @ weight.T + bias, labels)

        return cls(outputs(train_rows), outputs(ROWS), Head(weight, bias))

    @property
    def linear(self) -> nn.Linear:
        layer = nn.Linear(self.head.weight.shape[1], self.head.weight.shape[0], dtype=torch.float64)
        layer.weight.data, layer.bias.data = self.head.weight, self.head.bias
        return layer.requires_grad_(False)


def single(outputs: Outputs) -> Outputs:
    return Outputs(outputs.features.float(), outputs.logits.float(), outputs.labels)


# --- The work that a score is made of. ---


def product(world: World, *widths: int) -> Work:
    """Products of the features (rows, D) with matrices, one after the other, of these widths."""
    matrices = [
        torch.randn(first, second, dtype=torch.float64)
        for first, second in zip([world.test.features.shape[1], *widths], widths, strict=False)
    ]

    def work() -> Tensor:
        result = world.test.features
        for matrix in matrices:
            result = result @ matrix
        return result

    return work


def logit_product(world: World) -> Work:
    classes = world.head.weight.shape[0]
    matrix = torch.randn(classes, classes, dtype=torch.float64)
    return lambda: world.test.logits @ matrix


def selection_and_product(world: World, percent: float) -> Work:
    """The largest features of each row, and the head's product."""
    kept = max(1, round(world.test.features.shape[1] * (1 - percent / 100)))
    head = product(world, world.head.weight.shape[0])

    def work() -> None:
        world.test.features.topk(kept, dim=1)
        head()

    return work


def bank_product(world: World, rows: int, k: int) -> Work:
    """Similarities with a bank of that many rows, and the k largest of each."""
    bank = torch.randn(rows, world.test.features.shape[1], dtype=torch.float64)
    return lambda: (world.test.features @ bank.T).topk(min(k, rows), dim=1)


def class_products(world: World) -> Work:
    """One whitening product a class."""
    classes, width = world.head.weight.shape
    matrix = torch.randn(width, width, dtype=torch.float64)

    def work() -> None:
        for _ in range(classes):
            world.test.features @ matrix

    return work


def masked_terms(world: World) -> Work:
    """One comparison and one product for each image, class and dimension, a class at a time."""
    weight, limits = world.head.weight, world.train.features[: len(world.head.weight)]

    def work() -> None:
        for row, limit in zip(weight, limits, strict=True):
            world.test.features.where(world.test.features <= limit, 0.0) @ row

    return work


# Detectors whose score is one product with the head, or with a matrix of its size.
HEAD_PRODUCT = {
    *("react", "bats", "laps", "vra", "dice", "dice+react", "opnp", "itp-crp", "fm", "ls", "fm+ls", "himplos", "fdbd"),
    *("cosine", "relative-cosine", "ssc", "mcm"),
}


def limit_of(detector_id: str, world: World, detector: Any) -> Work | None:
    classes, width = world.head.weight.shape
    if detector_id in HEAD_PRODUCT:
        return product(world, classes)
    if detector_id in ("mahalanobis", "mahalanobis++"):
        return product(world, width, classes)
    if detector_id in ("relative-mahalanobis", "relative-mahalanobis++"):
        nearest, background = product(world, width, classes), product(world, width)
        return lambda: (nearest(), background())
    if detector_id in ("gmm", "gmm++"):
        return class_products(world)
    if detector_id in ("ash-p", "ash-b", "ash-s", "scale"):
        return selection_and_product(world, detector.percentile)
    if detector_id == "kl-matching":
        return logit_product(world)
    if detector_id in ("vim", "residual"):
        return product(world, detector.residual_basis.shape[1])
    if detector_id == "neco":
        return product(world, detector.components.shape[1])
    if detector_id in ("knn", "nnguide"):
        return bank_product(world, len(detector.bank), detector.fitted_k)
    if detector_id == "ssd":
        return product(world, width)
    if "itp" in detector_id or detector_id == "line":
        return masked_terms(world)
    return None


# --- pytorch-ood on the same tensors: (fit, score). ---

SINGLE = {"mahalanobis", "relative-mahalanobis", "vim", "fdbd", "nnguide"}
LOOPING = {"mahalanobis", "relative-mahalanobis", "gmm", "kl-matching", "dice"}


def peer_rows(detector_id: str) -> int:
    return LOOP_ROWS if detector_id in LOOPING else ROWS


def peer_of(detector_id: str, world: World) -> tuple[Work, Work] | None:
    test, train = (single(outputs) if detector_id in SINGLE else outputs for outputs in (world.test, world.train))
    test = next(test.batches(peer_rows(detector_id)))
    linear = world.linear.float() if detector_id in SINGLE else world.linear
    weight, bias = linear.weight, linear.bias
    double = nn.Identity().double()  # without a parameter its detectors fall back to single precision

    def of_logits(detector: Any) -> tuple[Work, Work]:
        return lambda: None, lambda: detector.predict_logits(test.logits)

    def of_features(detector: Any) -> tuple[Work, Work]:
        fit = partial(detector.fit_features, train.features, train.labels) if hasattr(detector, "fit_features") else int
        return fit, lambda: detector.predict_features(test.features)

    def of_maps(detector: Any) -> tuple[Work, Work]:
        fit = getattr(detector, "fit_feature_maps", None)
        maps, train_maps = test.features[:, :, None, None], train.features[:, :, None, None]
        return (partial(fit, train_maps, train.labels) if fit else int), lambda: detector.predict_feature_maps(maps)

    def pooled_linear(maps: Tensor) -> Tensor:
        return linear(maps.flatten(1))

    if detector_id == "kl-matching":
        matching = peers.KLMatching(None)
        return partial(matching.fit_logits, train.logits), lambda: matching.predict_logits(test.logits)
    if detector_id == "openmax":
        openmax = peers.OpenMax(None, tailsize=TRAIN_ROWS_A_CLASS, alpha=3)
        return partial(openmax.fit_logits, train.logits, train.labels), lambda: openmax.predict_logits(test.logits)
    makers: dict[str, Callable[[], tuple[Work, Work]]] = {
        "msp": lambda: of_logits(peers.MaxSoftmax(None)),
        "max-logit": lambda: of_logits(peers.MaxLogit(None)),
        "energy": lambda: of_logits(peers.EnergyBased(None)),
        "entropy": lambda: of_logits(peers.Entropy(None)),
        "gen": lambda: of_logits(peers.GEN(None, M=100)),
        "mahalanobis": lambda: of_features(peers.Mahalanobis(None)),
        "relative-mahalanobis": lambda: of_features(peers.RMD(None)),
        "gmm": lambda: of_features(peers.GMM(None)),
        "vim": lambda: of_features(peers.ViM(None, 1000, weight, bias)),
        "knn": lambda: of_features(peers.KNN(None, k=10)),
        "nnguide": lambda: of_features(peers.NNGuide(double, linear, k=10)),
        "fdbd": lambda: of_features(peers.fDBD(double, linear)),
        "she": lambda: of_features(peers.SHE(double, linear)),
        "dice": lambda: of_features(peers.DICE(None, weight, bias, p=0.9)),
        "react": lambda: of_maps(peers.ReAct(double, pooled_linear, percentile=0.99)),
        "ash-p": lambda: of_maps(peers.ASH(double, pooled_linear, "ash-p", 0.9)),
        "ash-b": lambda: of_maps(peers.ASH(double, pooled_linear, "ash-b", 0.65)),
        "ash-s": lambda: of_maps(peers.ASH(double, pooled_linear, "ash-s", 0.9)),
        "scale": lambda: of_maps(peers.SCALE(double, pooled_linear, 0.85)),
        "vra": lambda: of_maps(peers.VRA(double, pooled_linear)),
    }
    return makers[detector_id]() if detector_id in makers else None


# --- The loops that peers ship, on LOOP_ROWS rows. ---


def mahalanobis_loop(world: World) -> Work:
    """A matrix of all pairs of rows for each class, of which the diagonal is used."""
    features, means = world.test.features[:LOOP_ROWS], world.train.features[: len(world.head.weight)]
    precision = torch.eye(features.shape[1], dtype=torch.float64)

    def work() -> None:
        for mean in means:
            ((features - mean) @ precision @ (features - mean).T).diag()

    return work


def dice_loop(world: World) -> Work:
    """The products of all features and weights, (rows, C, D), and their sum."""
    features, weight = world.test.features[:LOOP_ROWS], world.head.weight
    return lambda: (features[:, None, :] * weight).sum(dim=2).logsumexp(dim=1)


def gradnorm_loop(world: World) -> Work:
    """One backward pass an image."""
    layer = world.linear.requires_grad_()
    uniform = torch.full((1, len(world.head.weight)), 1 / len(world.head.weight), dtype=torch.float64)

    def work() -> None:
        for row in world.test.features[:LOOP_ROWS]:
            layer.zero_grad()
            torch.sum(-uniform * layer(row[None]).log_softmax(dim=1)).backward()
            layer.weight.grad.abs().sum()  # type: ignore[union-attr]

    return work


LOOPS: dict[str, Callable[[World], Work]] = {
    "mahalanobis": mahalanobis_loop,
    "mahalanobis++": mahalanobis_loop,
    "relative-mahalanobis": mahalanobis_loop,
    "relative-mahalanobis++": mahalanobis_loop,
    "dice": dice_loop,
    "gradnorm": gradnorm_loop,
}


def seconds(works: list[Work | None], rounds: int = ROUNDS) -> list[float | None]:
    """The shortest time of each, run in turn after a first round that warms up: what else runs can only add to it.

    After ten seconds no further round begins.
    """
    times: list[list[float]] = [[] for _ in works]
    begun = time.perf_counter()
    for round_ in range(1 + rounds):
        if round_ > 1 and time.perf_counter() - begun > 10:
            break
        for work, spent in zip(works, times, strict=True):
            if work is not None:
                started = time.perf_counter()
                work()
                if round_:
                    spent.append(time.perf_counter() - started)
    return [min(spent) if spent else None for spent in times]


def measure(detector_id: str, world: World) -> bool:
    """Prints the line of a detector; whether it meets its targets."""
    detector = create(detector_id)
    started = time.perf_counter()
    detector.fit(world.train, world.head, val=world.test)
    fit_s = time.perf_counter() - started
    peer = peer_of(detector_id, world)
    peer_fit_s = None
    if peer:
        started = time.perf_counter()
        peer[0]()
        peer_fit_s = time.perf_counter() - started
    loop = LOOPS[detector_id](world) if detector_id in LOOPS else None
    with torch.no_grad():
        score_s, limit_s, peer_s = seconds(
            [lambda: detector.score(world.test), limit_of(detector_id, world, detector), peer[1] if peer else None]
        )
    (loop_s,) = seconds([loop], 1)
    assert score_s is not None
    peer_target = math.inf if detector_id in SINGLE else 1.5
    ratios = {
        "limit": (score_s / limit_s if limit_s else None, 2.0 if "mahalanobis" in detector_id else 1.5),
        "pytorch-ood": (score_s / ROWS / (peer_s / peer_rows(detector_id)) if peer_s else None, peer_target),
        "its fit": (fit_s / peer_fit_s if peer_fit_s and peer_fit_s > 0.01 else None, peer_target),
        "loop": (score_s / ROWS / (loop_s / LOOP_ROWS) if loop_s else None, 1 / 50),
    }
    cells = [f"{'-' if value is None else f'{value:.3g}':>8}" for value, _ in ratios.values()]
    missed = [name for name, (value, target) in ratios.items() if value is not None and value > target]
    print(
        f"{detector_id:24} {1e6 * fit_s / len(world.train):9.1f} {1e6 * score_s / ROWS:9.1f} {' '.join(cells)}"
        + (f"  over its target: {', '.join(missed)}" if missed else ""),
        flush=True,
    )
    return not missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="*", default=available())
    ids = [
        detector_id
        for detector_id in parser.parse_args().detectors
        if not {"images", "model", "patches"} & {*describe(detector_id)["needs"]}
    ]
    large = World.of(1000, 2048, 1000 * TRAIN_ROWS_A_CLASS)
    small = World.of(100, 512, 100 * 600)
    print(f"{'':24} {'fit':>9} {'score':>9} {'our score or fit over':>26}")
    print(f"{'':24} {'µs a row':>9} {'µs a row':>9} {'limit':>8} {'pt-ood':>8} {'its fit':>8} {'loop':>8}")
    met = [measure(detector_id, small if detector_id.startswith("gmm") else large) for detector_id in ids]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
