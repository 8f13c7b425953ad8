"""Image classifiers: timm checkpoints, split into features and a linear head."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmark.models import Model, ModelEntry, ModelError
from detectors import Head


@dataclass(frozen=True, eq=False)
class Classifier(Model):
    """A timm network: features and one linear head."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W), on the device of the images; torch can differentiate it."""
        return self.network(images.to(self.device)).to(images.device)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        hidden = self.network.forward_features(images.to(self.device, non_blocking=True))  # type: ignore[operator]
        features = self.network.forward_head(hidden, pre_logits=True)  # type: ignore[operator]
        return {"features": features, "logits": self.classifier(features)}

    def features(self, images: Tensor) -> Tensor:
        """Pooled pre-logit features (N, D) of images (N, 3, H, W), on their device; torch can differentiate them."""
        hidden = self.network.forward_features(images.to(self.device))  # type: ignore[operator]
        return self.network.forward_head(hidden, pre_logits=True).to(images.device)  # type: ignore[operator]

    def layers(self, images: Tensor) -> list[Tensor]:
        """The outputs of the network's stages or blocks, first to last, each averaged over its positions: (N, C_l).

        Raises ModelError where timm gives no intermediate outputs of the architecture.
        """
        if not hasattr(self.network, "forward_intermediates"):
            raise ModelError(f"model {self.id}: timm gives no intermediate outputs of {self.architecture}")
        maps = self.network.forward_intermediates(  # type: ignore[operator]
            images.to(self.device), intermediates_only=True, output_fmt="NCHW"
        )
        return [layer.flatten(2).mean(dim=2).to(images.device) for layer in maps]

    def feature_map(self, images: Tensor) -> Tensor:
        """The last feature map (N, positions, channels) before pooling; for a transformer all its tokens."""
        hidden = self.network.forward_features(images.to(self.device)).to(images.device)  # type: ignore[operator]
        if hidden.ndim == 4 and not self._channels_last:
            hidden = hidden.movedim(1, 3)
        return hidden.flatten(1, -2)

    def logits_of_map(self, feature_map: Tensor) -> Tensor:
        """Logits (N, C) of a feature map (N, positions, channels)."""
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
        """Height and width of the last feature map; none where it is a sequence of tokens."""
        with torch.no_grad():
            blank = torch.zeros(1, *self.preprocessing["input_size"], device=self.device)
            shape = self.network.forward_features(blank).shape  # type: ignore[operator]
        if len(shape) == 3:
            return ()
        return tuple(shape[1:3] if self._channels_last else shape[2:4])

    @property
    def classifier(self) -> nn.Linear:
        return self.network.get_classifier()  # type: ignore[operator]

    @property
    def head(self) -> Head:
        layer = self.classifier
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().cpu()
        return Head(layer.weight.detach().cpu(), bias)

    @property
    def architecture(self) -> str:
        return str(self.network.pretrained_cfg.get("architecture", type(self.network).__name__))  # type: ignore[union-attr, operator]


def load_classifier(id: str, entry: ModelEntry, device: torch.device, class_names: Sequence[str]) -> Classifier:
    """The timm model of an entry, for these classes.

    Raises ModelError when the checkpoint is missing or damaged, has another number of classes, or has no linear head.
    """
    import timm  # here, since it is slow to import and a run that only collects has no use for it

    kind, _, place = entry.source.partition(":")
    source = f"{kind}:{(entry.file.parent / place).resolve()}" if kind == "local-dir" else entry.source
    try:
        # Without pretrained=True a local folder gives random weights in silence.
        network = timm.create_model(source, pretrained=True)
    except Exception as error:  # timm, safetensors and the Hub's client raise many kinds
        raise ModelError(
            f"model {id}: cannot load {entry.source} (named in {entry.file}): {error}{entry.remedy(id)}"
        ) from error
    layer = network.get_classifier()
    if not isinstance(layer, nn.Linear):
        raise ModelError(
            f"model {id}: the head of {entry.source} is {type(layer).__name__}, not one linear layer; "
            "detectors that read the head need logits = features @ weight.T + bias"
        )
    if layer.out_features != len(class_names):
        raise ModelError(
            f"model {id}: {entry.source} has {layer.out_features} classes, the in-distribution set has "
            f"{len(class_names)}; use a checkpoint for these classes, or correct the set's `classes`"
        )
    config = timm.data.resolve_data_config({}, model=network, use_test_size=True)
    transform = timm.data.create_transform(**config)
    network = network.eval().requires_grad_(False).to(device)
    preprocessing = {**json.loads(json.dumps(config)), "transform": " | ".join(map(str, transform.transforms))}
    return Classifier(id, entry, network, transform, preprocessing, device)
