"""Image classifiers: networks with timm's interface, divided into features and a linear head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmark.models.checksums import check_checksums
from benchmark.models.class_order import label_names_in, label_names_of
from benchmark.models.entries import MODULE, MissingWeightsError, ModelEntry, ModelError
from benchmark.models.library_networks import LIBRARIES, load_library_network
from benchmark.models.model import Model
from benchmark.models.preprocessing import PreprocessingError, Transform, timm_transform
from benchmark.models.state_dicts import StateDictError, load_state_dict
from benchmark.models.trial import Size
from benchmark.models.user_network import given_network, load_user_network
from detectors import Head


@dataclass(frozen=True, eq=False)
class Classifier(Model):
    """A model whose network has timm's interface: it gives features, and one linear head gives the logits."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W), on the device of the images; torch can differentiate it."""
        return self.network(images.to(self.device)).to(images.device)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        hidden = self.network.forward_features(images.to(self.device, non_blocking=True))  # type: ignore[operator]
        features = self.network.forward_head(hidden, pre_logits=True)  # type: ignore[operator]
        return {"features": features, "logits": linear(features, *self.linear_head)}

    def features(self, images: Tensor) -> Tensor:
        """Pooled pre-logit features (N, D) of images (N, 3, H, W), on their device; torch can differentiate them."""
        hidden = self.network.forward_features(images.to(self.device))  # type: ignore[operator]
        return self.network.forward_head(hidden, pre_logits=True).to(images.device)  # type: ignore[operator]

    def layers(self, images: Tensor) -> list[Tensor]:
        """The outputs of the network's stages or blocks, first to last, averaged over all positions: each (N, C_l).

        Raises ModelError where timm gives no intermediate outputs of the architecture.
        """
        if not hasattr(self.network, "forward_intermediates"):
            raise ModelError(f"model {self.id}: timm gives no intermediate outputs of {self.architecture}")
        maps = self.network.forward_intermediates(  # type: ignore[operator]
            images.to(self.device), intermediates_only=True, output_fmt="NCHW"
        )
        return [layer.flatten(2).mean(dim=2).to(images.device) for layer in maps]

    def feature_map(self, images: Tensor) -> Tensor:
        """The last feature map (N, positions, channels) before pooling; for a transformer all its tokens.

        Raises ModelError where the network gives only pooled features.
        """
        hidden = self.network.forward_features(images.to(self.device)).to(images.device)  # type: ignore[operator]
        if hidden.ndim == 2:
            raise ModelError(f"model {self.id}: {self.architecture} gives only pooled features, no feature map")
        if hidden.ndim == 4 and not self._channels_last:
            hidden = hidden.movedim(1, 3)
        return hidden.flatten(1, -2)

    def logits_of_map(self, feature_map: Tensor) -> Tensor:
        """Logits (N, C) of a feature map (N, positions, channels), on the device of the feature map."""
        hidden = feature_map.to(self.device)
        if self._map_size:
            hidden = hidden.unflatten(1, self._map_size)
            hidden = hidden if self._channels_last else hidden.movedim(3, 1)
        return self.network.forward_head(hidden).to(feature_map.device)  # type: ignore[operator]

    @property
    def _channels_last(self) -> bool:
        return getattr(self.network, "output_fmt", "NCHW") == "NHWC"

    @cached_property
    def _map_size(self) -> tuple[int, ...]:
        """Height and width of the last feature map; empty where it is a sequence of tokens."""
        with torch.no_grad():
            blank = torch.zeros(1, *self.preprocessing["input_size"], device=self.device, dtype=self.head.weight.dtype)
            shape = self.network.forward_features(blank).shape  # type: ignore[operator]
        if len(shape) == 3:
            return ()
        return tuple(shape[1:3] if self._channels_last else shape[2:4])

    @property
    def classifier(self) -> nn.Linear | nn.Conv2d:
        return self.network.get_classifier()  # type: ignore[operator]

    @property
    def linear_head(self) -> tuple[Tensor, Tensor]:
        """The weight (C, D) and the bias (C,) of the head, on the model's device.

        They are the network's own tensors. A 1 x 1 convolution counts as linear; a head without bias gets zeros.
        """
        layer = self.classifier
        weight = layer.weight.flatten(1)
        return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias

    @property
    def head(self) -> Head:
        return Head(*(tensor.detach().cpu() for tensor in self.linear_head))

    @property
    def architecture(self) -> str:
        config: Any = getattr(self.network, "pretrained_cfg", {})
        return str(config.get("architecture", type(self.network).__name__))


def load_classifier(
    model_id: str,
    entry: ModelEntry,
    device: torch.device,
    class_names: Sequence[str],
    image_size: Callable[[], Size] | None = None,
) -> Classifier:
    """The model of an entry whose source is a timm checkpoint, a state dict, or a function of the user.

    model_id: the id of the model, for messages.
    entry: the entry.
    device: where the network runs.
    class_names: a word for each of the classes; their number is told to a user's function and to a state dict's.
    image_size: gives the height and width of the images, for a user's transform that resizes none.
    Raises ModelError where the weights are damaged, or have no linear head, and
    MissingWeightsError where their file has not been fetched yet.
    """
    # Here, since timm is slow to import, and a run that only collects cases does not need it.
    import benchmark.models.cifar_networks  # noqa: F401  # it registers them with timm

    classes = len(class_names)
    if entry.source.startswith(MODULE):
        network, transform, preprocessing = load_user_network(model_id, entry, classes, image_size)
    elif entry.source.startswith(LIBRARIES):
        network, transform, preprocessing = load_library_network(model_id, entry, image_size)
    else:
        network = _timm_network(model_id, entry, classes)
        try:
            transform, preprocessing = timm_transform(entry.preprocessing, network)
        except PreprocessingError as error:
            raise ModelError(f"model {model_id}: {entry.source} (named in {entry.file}): {error}") from None
    return _classifier(model_id, entry, network, transform, preprocessing, device)


def given_classifier(
    model_id: str,
    entry: ModelEntry,
    network: nn.Module,
    transform: Transform | None,
    device: torch.device,
    class_names: Sequence[str],
    image_size: Callable[[], Size],
) -> Classifier:
    """A network that a program holds, for these classes; its own stays as it is. Raises ModelError."""
    network, transform, preprocessing = given_network(model_id, network, transform, image_size)
    return _classifier(model_id, entry, network, transform, preprocessing, device)


def _classifier(
    model_id: str,
    entry: ModelEntry,
    network: nn.Module,
    transform: Transform,
    preprocessing: dict[str, Any],
    device: torch.device,
) -> Classifier:
    _check_head(model_id, entry, network.get_classifier())  # type: ignore[operator]
    names = label_names_of(getattr(network, "pretrained_cfg", None))
    if entry.source.startswith("local-dir:"):  # timm keeps one of the places that say it
        names += label_names_in(_folder_of(entry) / "config.json")
    network = network.eval().requires_grad_(False).to(device)
    return Classifier(
        model_id, entry, network, transform, preprocessing, device, label_names=tuple(dict.fromkeys(names))
    )


def _folder_of(entry: ModelEntry) -> Path:
    """The folder of a checkpoint that lies on this machine."""
    return (entry.file.parent / Path(entry.source.partition(":")[2]).expanduser()).resolve()


def _timm_network(model_id: str, entry: ModelEntry, classes: int) -> nn.Module:
    """The network of a timm checkpoint or a state dict, with its weights. Raises ModelError."""
    import timm

    kind, _, place = entry.source.partition(":")
    if entry.weights is not None and not entry.weights_file.is_file():
        raise MissingWeightsError(
            f"model {model_id}: there are no weights at {entry.weights_file} (named in {entry.file})",
            entry.remedy(model_id),
        )
    try:
        if entry.weights is not None:
            network = timm.create_model(place, num_classes=classes)
            load_state_dict(network, entry.weights_file, entry.weights_sha256)
            return network
        source = entry.source
        if kind == "local-dir":
            check_checksums(_folder_of(entry))
            source = f"{kind}:{_folder_of(entry)}"
        # Without pretrained=True a local folder gives random weights without a warning.
        return timm.create_model(source, pretrained=True)
    except StateDictError as error:
        raise ModelError(
            f"model {model_id}: cannot use {entry.weights_file} (named in {entry.file}) for {entry.source}: {error}"
        ) from error
    except Exception as error:  # timm, torch, safetensors and the Hub's client raise many kinds of errors
        raise ModelError(
            f"model {model_id}: cannot load {entry.source} (named in {entry.file}): {error}", entry.remedy(model_id)
        ) from error


def _check_head(model_id: str, entry: ModelEntry, layer: Any) -> None:
    """Raises ModelError where the head is not one linear layer."""
    if not isinstance(layer, nn.Linear) and not (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
        kind = type(layer).__name__
        if isinstance(layer, nn.Identity):
            kind = "missing (it gives features alone)"
        elif isinstance(layer, (tuple, list, nn.ModuleList)):  # distilled DeiT and LeViT have a head for each token
            kind = f"the mean of {len(layer)} ({', '.join(type(part).__name__ for part in layer)})"
        raise ModelError(
            f"model {model_id}: the head of {entry.source} is {kind}, not one linear layer; "
            "detectors that read the head need logits = features @ weight.T + bias: use a checkpoint with such a head"
        )
