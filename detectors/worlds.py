"""Toy worlds: a network with its outputs, small enough that a detector is fitted in a few milliseconds."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detectors.base import Detector
from detectors.outputs import Head, Outputs

Make = Callable[[], Detector]

CLASSES, WIDTH = 4, 16
UNITS_A_CLASS = 3  # the units 12 to 15 belong to no class: out-of-distribution images excite those


@dataclass(frozen=True)
class Coordinates:
    """Other coordinates for features, in which the head gives the same logits: features @ matrix + offset.

    matrix: (D, D), invertible.
    offset: (D,).
    """

    matrix: Tensor = field(default_factory=lambda: torch.eye(WIDTH, dtype=torch.float64))
    offset: Tensor = field(default_factory=lambda: torch.zeros(WIDTH, dtype=torch.float64))

    def of_features(self, features: Tensor) -> Tensor:
        """The features (..., D) in these coordinates."""
        return features @ self.matrix.to(features) + self.offset.to(features)

    def of_weights(self, weights: Tensor) -> Tensor:
        """The weights (..., D) that give the features in these coordinates the same products, but for the offset."""
        return weights @ torch.linalg.inv(self.matrix).T.to(weights)

    def of_head(self, head: Head) -> Head:
        """The head whose logits are the same in these coordinates."""
        weight = self.of_weights(head.weight)
        return Head(weight, head.bias - weight @ self.offset)


class Network(nn.Module):
    """Images (N, 3, 4, 4) -> ReLU features (N, 16) -> logits (N, C), with all that `Detector.fit` may ask a model for.

    head: its last layer.
    bend: changes the features (N, 16) into those of a degenerate world.
    coordinates: those in which it gives features, feature maps and texts.
    """

    def __init__(self, head: Head, bend: Callable[[Tensor], Tensor], coordinates: Coordinates) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        basis, _ = torch.linalg.qr(torch.randn(48, WIDTH, generator=random, dtype=torch.float64))
        self.body = nn.Linear(48, WIDTH, bias=False, dtype=torch.float64)
        self.body.weight.data = basis.T.contiguous()
        self.bend, self.coordinates = bend, coordinates
        # A unit sees one, two or three of the six places; its mean over all of them is its feature.
        sees = torch.tensor([[6, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 2], [0, 0, 2], [0, 0, 2]], dtype=torch.float64)
        self.sees = nn.Parameter(sees[:, torch.arange(WIDTH) % 3])
        self.head = nn.Linear(WIDTH, len(head.weight), dtype=torch.float64)
        self.head.weight.data, self.head.bias.data = head.weight.clone(), head.bias.clone()

    def features(self, images: Tensor) -> Tensor:
        return self.coordinates.of_features(self._bent(images))

    def layers(self, images: Tensor) -> list[Tensor]:
        excitation = self._excitation(images)
        return [torch.cat([excitation.relu(), (-excitation).relu()], dim=1), self.features(images)]

    def feature_map(self, images: Tensor) -> Tensor:
        return self.coordinates.of_features(self._bent(images)[:, None, :] * self.sees)

    def logits_of_map(self, feature_map: Tensor) -> Tensor:
        return self.head(feature_map.mean(dim=1))

    def text_features(self, words: Sequence[str]) -> Tensor:
        """The head's weights for 'class 0', 'class 1' and so on; all other words name things of no class."""
        classes = {f"class {index}": weight for index, weight in enumerate(self.head.weight)}
        return torch.stack([classes[word] if word in classes else self._foreign_text(word) for word in words])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def _bent(self, images: Tensor) -> Tensor:
        return self.bend(self._excitation(images).relu())

    def _excitation(self, images: Tensor) -> Tensor:
        return self.body(images.double().flatten(1))

    def _foreign_text(self, word: str) -> Tensor:
        random = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        text = 0.05 * torch.rand(WIDTH, generator=random, dtype=torch.float64)
        text[CLASSES * UNITS_A_CLASS :] *= 20
        return self.coordinates.of_weights(text.to(self.head.weight))


@dataclass(frozen=True)
class World:
    """What a detector gets of a network.

    train: outputs of the training images, with labels.
    val: outputs of validation images, with labels.
    test: outputs of in-distribution test images.
    ood: outputs of out-of-distribution images.
    head: the network's last layer.
    model: the network.
    """

    train: Outputs
    val: Outputs
    test: Outputs
    ood: Outputs
    head: Head
    model: Network


def _unchanged(value: Any) -> Any:
    """The value as it is. It is no lambda, so that pickle can take the network along."""
    return value


def build_world(
    *,
    samples_a_class: int = 12,
    labels: Callable[[Tensor], Tensor] = _unchanged,
    features: Callable[[Tensor], Tensor] = _unchanged,
    head: Callable[[Head], Head] = _unchanged,
    coordinates: Coordinates | None = None,
) -> World:
    """A world whose classes excite three units each. The arguments make another world of it, such as a degenerate one.

        samples_a_class: how many training images a class has.
        labels: changes the labels (N,).
        features: changes the features (N, 16).
        head: changes the last layer.
        coordinates: other coordinates of the features. The head follows them, so that logits stay.

    It takes a millisecond. Each check builds its own world, since the detector that it tries may write to it.
    """
    random = torch.Generator().manual_seed(0)
    classes = torch.eye(CLASSES, dtype=torch.float64).repeat_interleave(UNITS_A_CLASS, dim=1)
    classes = torch.cat([classes, torch.zeros(CLASSES, WIDTH - classes.shape[1], dtype=torch.float64)], dim=1)
    weight = 0.5 * classes + 0.01 * torch.randn(classes.shape, generator=random, dtype=torch.float64)
    coordinates = coordinates or Coordinates()
    last_layer = coordinates.of_head(head(Head(weight, torch.linspace(-0.1, 0.1, CLASSES, dtype=torch.float64))))
    model = Network(last_layer, features, coordinates).eval()

    @torch.no_grad()
    def outputs(units: Tensor, labels: Tensor | None = None) -> Outputs:
        noise = 0.3 * torch.randn(units.shape, generator=random, dtype=torch.float64)
        images = ((4 * units + noise) @ model.body.weight).reshape(-1, 3, 4, 4)
        return Outputs(
            features=model.features(images),
            logits=model(images),
            labels=labels,
            patches=model.feature_map(images),
            images=images,
        )

    def of_classes(count: int) -> tuple[Tensor, Tensor]:
        true = torch.arange(count) % CLASSES
        return classes[true], labels(true)

    foreign = torch.zeros(15, WIDTH, dtype=torch.float64)
    foreign[:, CLASSES * UNITS_A_CLASS :] = 0.6  # a network is less excited by what it was not trained for
    return World(
        train=outputs(*of_classes(samples_a_class * CLASSES)),
        test=outputs(of_classes(20)[0]),
        ood=outputs(foreign),
        val=outputs(*of_classes(16)),
        head=last_layer,
        model=model,
    )


def fit(detector: Detector, world: World, **changes: Any) -> Detector:
    """Fits the detector in the world, and gives it back.

    changes: what takes the place of the world's train, head, val or model.
    """
    given = {"train": world.train, "head": world.head, "val": world.val, "model": world.model, **changes}
    return detector.fit(given["train"], given["head"], val=given["val"], model=given["model"])


def fitted(make: Make, world: World, **changes: Any) -> Detector:
    """A new detector, fitted as `fit` does it."""
    return fit(make(), world, **changes)
