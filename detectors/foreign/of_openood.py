"""Postprocessors of OpenOOD (J. Zhang and others, "OpenOOD v1.5", DMLR 2024), and objects with their interface.

A postprocessor has `setup(net, id_loader_dict, ood_loader_dict)` and `postprocess(net, data) -> (pred, conf)`, where a
higher `conf` means more in-distribution: it is the score as it is. OpenOOD is in no package registry: install it from
its repository. What it is given:

    net     `net(data)` gives logits, `net(data, return_feature=True)` logits and features; `net.fc`, `get_fc()`,
            `get_fc_layer()` and `feature_size` are those of its own networks
    data    in place of images, the stored features and logits of each in one row, which `net` takes apart. With
            network=True the images, which `net` takes through the network
    loaders `id_loader_dict["train"]` and `["val"]`, batches {"data", "label"} that are not shuffled; no OOD images
    config  the options under `postprocessor.postprocessor_args`, and `dataset` as `dataset.name`

All runs on the CPU, in single precision: while their code runs, `.cuda()` leaves everything where it is. Postprocessors
of ReAct, ASH and SCALE get the network inside of OpenOOD's ReactNet, ASHNet or ScaleNet, as its evaluator does it.

What does not work, and says so: a postprocessor that asks for lists of features (`return_feature_list`), for layers by
name, for OOD images to set up with, or, on stored outputs, for gradients in the images. Those that look up the number
of classes by the name of the dataset know OpenOOD's datasets alone. What trains a network of its own was not tried.
"""

import copy
import importlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn

from detectors.base import Batch
from detectors.foreign.adapter import (
    ForeignDetector,
    NotAdaptableError,
    Option,
    library_of,
    linear,
    make_adapter,
    name_of,
    parameters_of,
    summary_of,
)
from detectors.gradients import ImageDetector
from detectors.outputs import Head

# The networks that OpenOOD's evaluator puts around its own for some postprocessors.
_WRAPPERS = {
    "ReactPostprocessor": ("openood.networks.react_net", "ReactNet"),
    "ASHPostprocessor": ("openood.networks.ash_net", "ASHNet"),
    "ScalePostprocessor": ("openood.networks.scale_net", "ScaleNet"),
}


def is_postprocessor(kind: Any) -> bool:
    """Whether a class, or an object, has the functions of a postprocessor."""
    return all(callable(getattr(kind, name, None)) for name in ("setup", "postprocess"))


def adapt_postprocessor(kind: Any, detector_id: str | None, given: Mapping[str, Any]) -> type[ForeignDetector]:
    """The class of detectors that run this postprocessor. network=True among the options: it takes the images.

    Raises NotAdaptableError.
    """
    options = {name: value for name, value in given.items() if name != "network"}
    base = _OnImages if given.get("network", False) else _OnStoredOutputs
    made = make_adapter(
        base,
        kind,
        detector_id or name_of(kind).partition(".")[0] + "." + name_of(kind).rpartition(".")[2],
        _options_of(kind, options),
        base.reads | {"head"} | ({"train", "val"} if _sets_up(kind) else set()),
        _description(kind, base),
        takes_config=_takes_config(kind),
    )
    trial = made()
    assert isinstance(trial, _Postprocessor)
    try:
        trial._make()  # so that a setting that is missing is told before any work
    except ValueError as error:
        raise NotAdaptableError(str(error)) from error
    return made


def _options_of(kind: Any, given: Mapping[str, Any]) -> tuple[Option, ...]:
    if not isinstance(kind, type):
        if given:
            raise NotAdaptableError(f"{name_of(kind)} is an object, and not a class: it takes no options")
        return ()
    if not _takes_config(kind):
        return parameters_of(kind, (), given).options
    of_dataset = "the name of the in-distribution set, where the postprocessor looks something up by it"
    meanings = {"dataset": of_dataset}
    text = "config.postprocessor.postprocessor_args of the postprocessor"
    return tuple(Option(name, value, meanings.get(name, text)) for name, value in given.items())


def _takes_config(kind: Any) -> bool:
    return isinstance(kind, type) and "config" in inspect.signature(kind.__init__).parameters  # type: ignore[misc]


def _sets_up(kind: Any) -> bool:
    """Whether its setup does anything: that of OpenOOD's base class does not."""
    of = kind if isinstance(kind, type) else type(kind)
    owner = next(base for base in of.__mro__ if "setup" in vars(base))
    return owner.__name__ != "BasePostprocessor"


def _description(kind: Any, base: type["_Postprocessor"]) -> str:
    library, name = library_of(kind), name_of(kind)
    return f"""{summary_of(kind)[:-1]} (the foreign detector {name} of {library}).

Formula: S = conf of {name}.postprocess
Paper: none is named by {library}
Deviations:
- {base.given}
- All runs on the CPU, where OpenOOD asks for a GPU.
- Training images come in their order, and no OOD images are there to set up with.
Verified:
- against stand-ins with the interface of OpenOOD, 1e-5; OpenOOD's own postprocessors were run, and not compared
"""


class _Settings(SimpleNamespace):
    """Settings of a config, which say how to name one that is missing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which Python asks for, as copy does
            raise AttributeError(name)
        raise AttributeError(f"it reads the setting {name!r}: name it, as in {self.example},{name}=...")


class _Loaders(dict[str, Any]):
    """Loaders by split; what is asked for and is not there is named."""

    def __missing__(self, split: str) -> Any:
        there = " and ".join(map(repr, self)) or "none"
        raise ValueError(f"it asks for the loader {split!r}, and here there is {there}: OOD images are not given")


@dataclass(frozen=True)
class _Loader:
    """Batches {"data", "label"} as often as somebody asks for them, with what a DataLoader says of itself.

    dataset: as long as there are images. batch_size: how many are in a batch.
    """

    batches: Callable[[], Iterator[dict[str, Tensor]]]
    dataset: range
    batch_size: int

    def __iter__(self) -> "_LoaderIterator":
        return _LoaderIterator(self.batches(), len(self))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)


@dataclass(frozen=True)
class _LoaderIterator:
    """One pass over a loader, which knows its length, as that of a DataLoader does."""

    left: Iterator[dict[str, Tensor]]
    length: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        return next(self.left)

    def __len__(self) -> int:
        return self.length


class _Network(nn.Module):
    """What a postprocessor gets as `net`."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.fc = linear(head)
        self.feature_size = self.fc.in_features
        self.eval()

    def forward(self, data: Tensor, return_feature: bool = False, return_feature_list: bool = False) -> Any:
        if return_feature_list:
            raise ValueError("it asks for the features of several layers (return_feature_list), which nobody has here")
        logits, features = self._outputs(data, return_feature)
        return (logits, features) if return_feature else logits

    @abstractmethod
    def _outputs(self, data: Tensor, with_features: bool) -> tuple[Tensor, Any]:
        """Logits (n, C), and features (n, D) where they are asked for."""

    def get_fc(self) -> Any:
        return self.fc.weight.detach().numpy(), self.fc.bias.detach().numpy()

    def get_fc_layer(self) -> nn.Linear:
        return self.fc


class _StoredNetwork(_Network):
    """Takes stored features and logits apart, which lie beside each other in a row."""

    def _outputs(self, data: Tensor, with_features: bool) -> tuple[Tensor, Any]:
        if data.requires_grad:
            raise ValueError("it asks for gradients in the images, and stored outputs have none: say network=True")
        return data[:, self.feature_size :], data[:, : self.feature_size]


class _ImageNetwork(_Network):
    """Takes images through the network."""

    def __init__(self, head: Head, logits: Callable[[Tensor], Tensor], features: Callable[[Tensor], Tensor]) -> None:
        super().__init__(head)
        self._logits_of, self._features_of = logits, features

    def _outputs(self, data: Tensor, with_features: bool) -> tuple[Tensor, Any]:
        if not with_features:
            return self._logits_of(data).float(), None
        features = self._features_of(data).float()
        return self.fc(features), features


@dataclass(kw_only=True, eq=False)
class _Postprocessor(ForeignDetector):
    """What they have in common, whatever takes the place of images."""

    takes_config: ClassVar[bool]
    reads: ClassVar[frozenset[str]]
    given: ClassVar[str]  # a sentence on what it reads

    @abstractmethod
    def _network(self, head: Head) -> _Network:
        """The `net` of the postprocessor."""

    @abstractmethod
    def _data(self, batch: Batch) -> Iterator[Tensor]:
        """What takes the place of images in a batch, in parts of (n, ...)."""

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self._make()
        self._net = self._wrapped(self._network(head))
        if "train" in self.needs:
            loaders = _Loaders(train=self._loader(train, head), val=self._loader(val, head))
            with self._their_code("setup"), _on_the_cpu():
                self._theirs.setup(self._net, loaders, _Loaders())

    def _make(self) -> None:
        with self._their_code("__init__"), _on_the_cpu():
            if not isinstance(self.kind, type):
                self._theirs = copy.deepcopy(self.kind)
            elif self.takes_config:
                self._theirs = self.kind(self._config())
            else:
                self._theirs = self.kind(**self._options())

    def _config(self) -> SimpleNamespace:
        options = self._options()
        dataset = options.pop("dataset", "")
        arguments = _Settings(**options)
        vars(arguments)["example"] = f"{self.kind.__module__.partition('.')[0]}:{self.kind.__name__}"
        return SimpleNamespace(
            postprocessor=SimpleNamespace(postprocessor_args=arguments, postprocessor_sweep=SimpleNamespace()),
            dataset=SimpleNamespace(name=dataset),
        )

    def _wrapped(self, net: _Network) -> nn.Module:
        """The network inside of the one that OpenOOD's evaluator puts around it for this postprocessor."""
        for base in type(self._theirs).__mro__:
            if base.__module__.startswith("openood.") and base.__name__ in _WRAPPERS:
                module, name = _WRAPPERS[base.__name__]
                return getattr(importlib.import_module(module), name)(net)
        return net

    def _loader(self, outputs: Any, head: Head) -> _Loader:
        labels = self._labels(outputs, head)

        def batches() -> Iterator[dict[str, Tensor]]:
            for batch in self._stream(outputs, labels):
                first = 0
                for data in self._data(batch):
                    yield {"data": data, "label": batch.labels[first : first + len(data)]}
                    first += len(data)

        return _Loader(batches, range(len(outputs)), self._rows_in_a_batch(outputs))

    def _score(self, batch: Batch) -> Tensor:
        scores = []
        for data in self._data(batch):
            with self._their_code("postprocess"), _on_the_cpu():
                _, confidence = self._theirs.postprocess(self._net, data)
            scores.append(self._scores(confidence, len(data)))
        return torch.cat(scores)


@dataclass(kw_only=True, eq=False)
class _OnStoredOutputs(_Postprocessor):
    reads: ClassVar[frozenset[str]] = frozenset({"features", "logits"})
    given: ClassVar[str] = "It reads stored features and logits in single precision in place of images."

    def _network(self, head: Head) -> _Network:
        return _StoredNetwork(head)

    def _data(self, batch: Batch) -> Iterator[Tensor]:
        yield torch.cat([batch.features, batch.logits], dim=1).float()


@dataclass(kw_only=True, eq=False)
class _OnImages(_Postprocessor, ImageDetector):
    reads: ClassVar[frozenset[str]] = frozenset({"images", "model"})
    given: ClassVar[str] = "It takes the images through the network, a few at a time."

    def _network(self, head: Head) -> _Network:
        return _ImageNetwork(head, self._model, self._features)

    def _features(self, images: Tensor) -> Tensor:
        return self._ask_model("features", images)

    def _data(self, batch: Batch) -> Iterator[Tensor]:
        for images in self._parts(batch.images):
            yield images.clone()  # it may ask for gradients in them

    def _score_images(self, images: Tensor) -> Tensor:
        raise NotImplementedError  # `_score` goes another way


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """OpenOOD calls .cuda() wherever it makes a tensor or a layer. Here that leaves both where they are."""

    def stay(value: Any, *_: Any, **__: Any) -> Any:
        return value

    with mock.patch.object(Tensor, "cuda", stay), mock.patch.object(nn.Module, "cuda", stay):
        yield
