"""A suite at work, of which a Python caller gives the network or images as objects."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from benchmark.images.image_set import ImageSet, select_images
from benchmark.images.readers import Images
from benchmark.models.classifier import given_classifier
from benchmark.models.model import Model
from benchmark.models.preprocessing import Transform
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.store import Store
from benchmark.suites.suite import Suite


@dataclass(frozen=True, eq=False)
class GivenNetwork:
    """A network that a caller gives.

    network: it is copied and stays as it is.
    transform: from a PIL image to a tensor; None for that of the network's own `pretrained_cfg`.
    """

    network: nn.Module
    transform: Transform | None


class GivenSuite(LoadedSuite):
    """A suite with its image sets and models, some of which are objects of a caller's.

    images: those of image sets, by id; the others are loaded from where their entries say.
    network: the suite's only model, None where its entry says what it is.
    """

    def __init__(
        self,
        suite: Suite,
        store: Store,
        device: torch.device,
        images: Mapping[str, Images],
        network: GivenNetwork | None,
    ) -> None:
        super().__init__(suite, store, device)
        self._given, self._network = images, network

    def image_set(self, set_id: str) -> ImageSet:
        if set_id not in self._given:
            return super().image_set(set_id)
        entry = self.suite.image_sets[set_id]
        return self._image_sets(set_id, lambda: select_images(set_id, entry, self._given[set_id]))

    def load_model(self, model_id: str) -> Model:
        if self._network is None:
            return super().load_model(model_id)
        network, transform = self._network.network, self._network.transform
        entry = self.suite.known_models[model_id]
        return given_classifier(model_id, entry, network, transform, self.device, self.classes[1], self._image_size)
