"""Detectors of pytorch-ood (K. Kirchheim, M. Filax, F. Ortmeier, "PyTorch-OOD", CVPR Workshops 2022), as they are.

Their scores are higher for OOD images: the sign is turned, and nothing else is changed. They get single precision, in
which the library computes. What a detector is given follows from its base class in `pytorch_ood.api`:

    LogitsDetector       logits of the training images (`fit_logits`) and of those to score (`predict_logits`)
    FeaturesDetector     pooled features, with the head (`head`, or `w` and `b`, or `text_embeddings`) where it asks
    FeatureMapsDetector  the last feature map of the network before pooling, as (N, channels, positions, 1)
    MultiMahalanobis     the pooled outputs of the network's layers
    all others           the images, and the network as `model` or `encoder`; a loader of training images to fit

A detector whose constructor takes other parts of a network is not served: `Gram` and `NACUE` ask for its layers as
modules. Callables, such as `param_filter` of `GradNorm`, stay at their defaults.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detectors.base import Batch
from detectors.foreign.adapter import (
    ForeignDetector,
    Parameters,
    as_module,
    library_of,
    linear,
    make_adapter,
    name_of,
    parameters_of,
    summary_of,
)
from detectors.gradients import ImageDetector
from detectors.outputs import Head


def is_pytorch_ood_detector(kind: Any) -> bool:
    """Whether it is a subclass of `pytorch_ood.api.Detector`, which is not imported for this."""
    return isinstance(kind, type) and any(name_of(base) == "pytorch_ood.api.Detector" for base in kind.__mro__)


def adapt_detector(kind: type, detector_id: str | None, given: Mapping[str, Any]) -> type[ForeignDetector]:
    """The class of detectors that run this one of theirs. Raises NotAdaptableError."""
    base = next((route for name, route in _ROUTES.items() if _has_base(kind, name)), _OfImages)
    parameters = parameters_of(kind, base.supplies, given)
    needs = base.needs_of(kind) | ({"train"} if getattr(kind, "requires_fit", False) else set())
    needs |= {"head"} if parameters.supplied & base.of_head else set()
    needs |= {"text"} if "text_embeddings" in parameters.supplied else set()
    return make_adapter(
        base,
        kind,
        detector_id or f"{name_of(kind).partition('.')[0]}.{kind.__name__}",
        parameters.options,
        needs,
        _description(kind, base, parameters),
        parameters=parameters,
    )


def _has_base(kind: type, name: str) -> bool:
    return any(base.__name__ == name and base.__module__.startswith("pytorch_ood.") for base in kind.__mro__)


def _description(kind: type, base: type["_PytorchOOD"], parameters: Parameters) -> str:
    """The sections of the adapter's docstring, but for its options."""
    library, name = library_of(kind), name_of(kind)
    info = getattr(kind, "info", None)
    paper = f"none is named by {library}"
    if info is not None and info.paper is not None:
        title = info.paper.title.replace("; ", ", ")
        paper = f'As {library} names it, "{title}", {info.paper.venue} {info.paper.year}, {info.paper.url}'
    left = f"\n- {', '.join(parameters.left)}: left at the default, which is no plain value." if parameters.left else ""
    return f"""{summary_of(kind)[:-1]} (the foreign detector {name} of {library}).

Formula: S = -A, A = the outlier score of {name}, as its documentation defines it
Paper: {paper}
Deviations:
- The sign of its scores is turned: theirs are higher for OOD images.
- {base.given}{left}
Verified:
- against the library called directly, exactly: its own code computes the scores
"""


@dataclass(kw_only=True, eq=False)
class _PytorchOOD(ForeignDetector):
    """What they have in common, whatever they read."""

    parameters: ClassVar[Parameters]
    supplies: ClassVar[frozenset[str]]  # the parameters of a constructor that `_supply` gives
    of_head: ClassVar[frozenset[str]] = frozenset()  # those of them that are made of the network's last layer
    given: ClassVar[str]  # a sentence on what it reads

    @classmethod
    @abstractmethod
    def needs_of(cls, kind: type) -> set[str]:
        """What a detector of theirs needs, but for `train`, `head` and `text`."""

    @abstractmethod
    def _supply(self, head: Head | None) -> dict[str, Any]:
        """The values of the parameters that this adapter gives."""

    @abstractmethod
    def _learn(self, train: Any, labels: Tensor) -> None:
        """Fits their detector."""

    @abstractmethod
    def _predict(self, batch: Batch) -> Tensor:
        """Their outlier scores (n,)."""

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        head = head if "head" in self.needs else None
        with self._their_code("__init__"):
            self._make(head)
        if "train" in self.needs:
            self._learn(train, self._labels(train, head))

    def _make(self, head: Head | None) -> None:
        supplied = {name: value for name, value in self._supply(head).items() if name in self.parameters.supplied}
        self._theirs = self.kind(**supplied, **self.parameters.converted(self._options()))

    def _score(self, batch: Batch) -> Tensor:
        with self._their_code("predict"):
            outliers = self._predict(batch)
        return -self._scores(outliers, len(next(iter(vars(batch).values()))))


@dataclass(kw_only=True, eq=False)
class _OfLogits(_PytorchOOD):
    supplies: ClassVar[frozenset[str]] = frozenset({"model"})
    given: ClassVar[str] = "It reads the logits in single precision; one that is fitted gets all of them at once."

    @classmethod
    def needs_of(cls, kind: type) -> set[str]:
        return {"logits"}

    def _supply(self, head: Head | None) -> dict[str, Any]:
        return {"model": None}

    def _learn(self, train: Any, labels: Tensor) -> None:
        logits = torch.cat([batch.logits.float() for batch in self._stream(train)])
        with self._their_code("fit_logits"):
            self._theirs.fit_logits(logits, labels)

    def _predict(self, batch: Batch) -> Tensor:
        return self._theirs.predict_logits(batch.logits.float())


@dataclass(kw_only=True, eq=False)
class _OfFeatures(_PytorchOOD):
    supplies: ClassVar[frozenset[str]] = frozenset({"encoder", "head", "w", "b", "text_embeddings"})
    of_head: ClassVar[frozenset[str]] = frozenset({"head", "w", "b", "text_embeddings"})
    given: ClassVar[str] = (
        "It reads the pooled features in single precision, with the network's last layer where it asks for one; one "
        "that is fitted gets all of them at once."
    )

    @classmethod
    def needs_of(cls, kind: type) -> set[str]:
        return {"features"}

    def _supply(self, head: Head | None) -> dict[str, Any]:
        if head is None:
            return {"encoder": None}
        layer = linear(head)
        weight, bias = layer.weight.data, layer.bias.data
        return {"encoder": None, "head": layer, "w": weight, "b": bias, "text_embeddings": weight}

    def _learn(self, train: Any, labels: Tensor) -> None:
        features = torch.cat([batch.features.float() for batch in self._stream(train)])
        with self._their_code("fit_features"):
            self._theirs.fit_features(features, labels)

    def _predict(self, batch: Batch) -> Tensor:
        return self._theirs.predict_features(batch.features.float())


@dataclass(kw_only=True, eq=False)
class _OfNetwork(_PytorchOOD, ImageDetector):
    """Those that take images through the network."""

    @classmethod
    def needs_of(cls, kind: type) -> set[str]:
        return {"images", "model"}

    def _predict(self, batch: Batch) -> Tensor:
        return torch.cat([torch.as_tensor(self._score_images(images)) for images in self._parts(batch.images)])

    def _read(self, train: Any, read: Callable[[Tensor], Any]) -> Iterator[Any]:
        """What a function of the network gives for the training images, a few at a time."""
        for batch in self._stream(train, only={"images"}):
            for images in self._parts(batch.images):
                with torch.no_grad():
                    yield read(images)


@dataclass(kw_only=True, eq=False)
class _OfFeatureMaps(_OfNetwork):
    supplies: ClassVar[frozenset[str]] = frozenset({"backbone", "head"})
    given: ClassVar[str] = (
        "It reads the network's last feature map before pooling, with its positions in one axis: (N, channels, "
        "positions, 1). One that is fitted gets all of them at once."
    )

    def _supply(self, head: Head | None) -> dict[str, Any]:
        return {"backbone": self._maps, "head": self._logits}

    def _learn(self, train: Any, labels: Tensor) -> None:
        maps = torch.cat(list(self._read(train, self._maps)))
        with self._their_code("fit_feature_maps"):
            self._theirs.fit_feature_maps(maps, labels)

    def _score_images(self, images: Tensor) -> Tensor:
        return self._theirs.predict_feature_maps(self._maps(images))

    def _maps(self, images: Tensor) -> Tensor:
        return self._ask_model("feature_map", images).mT.unsqueeze(3).contiguous()

    def _logits(self, maps: Tensor) -> Tensor:
        return self._ask_model("logits_of_map", maps.squeeze(3).mT)


@dataclass(kw_only=True, eq=False)
class _OfLayers(_OfNetwork):
    supplies: ClassVar[frozenset[str]] = frozenset({"model"})
    given: ClassVar[str] = (
        "It reads the outputs of the network's layers, averaged over their positions; one that is fitted gets all of "
        "them at once."
    )

    def _supply(self, head: Head | None) -> dict[str, Any]:
        return {"model": [nn.Identity()]}  # in place of layers, of which it only gets the outputs

    def _learn(self, train: Any, labels: Tensor) -> None:
        layers = [torch.cat(outputs) for outputs in zip(*self._read(train, self._layers), strict=True)]
        with self._their_code("fit_structured"):
            if not self._options().get("alpha"):
                self._theirs.alpha = [1.0] * len(layers)  # their own default, for as many layers as there are
            self._theirs.fit_structured(layers, labels)

    def _score_images(self, images: Tensor) -> Tensor:
        return self._theirs.predict_structured(self._layers(images))

    def _layers(self, images: Tensor) -> list[Tensor]:
        return [layer.float() for layer in self._ask_model("layers", images)]


class _Loader:
    """Batches (images, labels) as often as somebody asks for them."""

    def __init__(self, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches()


@dataclass(kw_only=True, eq=False)
class _OfImages(_OfNetwork):
    supplies: ClassVar[frozenset[str]] = frozenset({"model", "encoder"})
    given: ClassVar[str] = "It takes the images through the network, a few at a time."

    @classmethod
    def needs_of(cls, kind: type) -> set[str]:
        return super().needs_of(kind) | ({"features"} if _fits_features(kind) else set())

    def _supply(self, head: Head | None) -> dict[str, Any]:
        return {"model": as_module(self._model), "encoder": self._features}

    def _learn(self, train: Any, labels: Tensor) -> None:
        if _fits_features(self.kind):
            features = torch.cat([batch.features.float() for batch in self._stream(train, only={"features"})])
            with self._their_code("fit_features"):
                self._theirs.fit_features(features, labels)
            return

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in self._stream(train, labels, only={"images"}):
                images = self._parts(batch.images)
                yield from zip(images, batch.labels.split([len(part) for part in images]), strict=True)

        with self._their_code("fit"):
            self._theirs.fit(_Loader(batches))

    def _score_images(self, images: Tensor) -> Tensor:
        return self._theirs.predict(images)

    def _features(self, images: Tensor) -> Tensor:
        return self._ask_model("features", images).float()


def _fits_features(kind: type) -> bool:
    """Whether the class, which scores images, learns from features: `MahalanobisODIN` does."""
    return bool(getattr(kind, "requires_fit", False)) and callable(getattr(kind, "fit_features", None))


_ROUTES: dict[str, type[_PytorchOOD]] = {
    "LogitsDetector": _OfLogits,
    "FeaturesDetector": _OfFeatures,
    "FeatureMapsDetector": _OfFeatureMaps,
    "MultiMahalanobis": _OfLayers,
}
