"""What may happen between a network's features and the logits that a score reads, and combinations of such parts.

A part shapes the features (ReAct), prunes the head (DICE) or changes the logits. A score (Energy, MSP, ODIN) reads what
comes out. So a combination is one line:

    registry.register(combination("dice+react", Energy, ReAct, DICE))
"""

import copyreg
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, make_dataclass, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from detectors.base import Batch, Detector, option_fields
from detectors.description import join_descriptions
from detectors.numerics import l1_norms
from detectors.options import OptionError
from detectors.outputs import Head, Outputs
from detectors.state import learned

# What most combinations are invariant to: their parts compare features, or contributions, with each other.
USUAL_INVARIANCES = "logit shift, class order, feature scale"


@dataclass(frozen=True, eq=False)
class Activations:
    """A batch on its way from the network's own outputs to the logits that a score reads.

        head: the network's last layer, in float64.
        network_features: (n, D), as the network gave them.
        network_logits: (n, C), as the network gave them; None unless a part declares that it needs "logits".
        features: (n, D), as the parts so far changed them.

    A part gives new activations and never writes to those that it got: torch may differentiate all of it.
    """

    head: Head
    network_features: Tensor
    network_logits: Tensor | None
    features: Tensor
    _logits: Tensor | None = None
    _reach: Callable[[], Tensor] | None = None

    @classmethod
    def of(cls, head: Head, features: Tensor, logits: Tensor | None) -> "Activations":
        return cls(head, features, logits, features)

    @property
    def predicted(self) -> Tensor:
        """The classes (n,) that the network itself predicts, for a part that needs "logits"."""
        if self.network_logits is None:
            raise ValueError('a part that reads the predicted class declares "logits" in its needs')
        return self.network_logits.argmax(dim=1)

    @property
    def logits(self) -> Tensor:
        """The logits (n, C): those that a part gave, or the head's for the features as they are now."""
        if self._logits is not None:
            return self._logits
        return torch.addmm(self.head.bias, self.features, self.head.weight.T)

    @property
    def reach(self) -> Tensor:
        """The L1 norm of the features (n, 1), or, where each class has a mask of its own, of what reaches it (n, C)."""
        if self._reach is not None:
            return self._reach()
        return l1_norms(self.features)

    def with_features(self, features: Tensor) -> "Activations":
        """The activations with other features (n, D), and the head's logits of them.

        Raises ValueError when an earlier part gave logits: they would be lost.
        """
        if self._logits is not None:
            raise ValueError("a part that changes features comes before those that change logits")
        return replace(self, features=features)

    def with_logits(self, logits: Tensor, reach: Callable[[], Tensor] | None = None) -> "Activations":
        """The activations with other logits (n, C) of the same features.

            reach: computes `reach`; a part that prunes the head gives it.

        Raises ValueError where a part prunes the head after another part gave logits.
        """
        if reach is not None and self._logits is not None:
            raise ValueError("only one part can prune the head, and only before those that change its logits")
        return replace(self, _logits=logits, _reach=reach or self._reach)


@dataclass(frozen=True, eq=False)
class Training:
    """What a part learns from: the network's own outputs on the training images, whatever other parts do.

    head: the network's last layer, in float64.
    images: how many training images there are.
    """

    head: Head
    images: int
    _stream: Callable[[Tensor | None], Iterator[Batch]]
    _labels: Callable[[], Tensor]

    def batches(self) -> Iterator[Batch]:
        """Batches with features, and logits where a part needs them, from the first image on."""
        return self._stream(None)

    def labelled_batches(self) -> Iterator[Batch]:
        """The same batches with labels."""
        return self._stream(self._labels())


@dataclass(kw_only=True, eq=False)
class Part(ABC):
    """A change on the way from the features to the logits.

    A subclass is described and checked like a detector. It is a keyword-only dataclass: its fields are its options and,
    marked by `learned()`, what `fit` sets. Features and the head are always there. A part that learns from training
    outputs declares that it needs "train"; one that reads the network's own logits or predictions declares "logits".
    """

    id: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    def fit(self, training: Training) -> None:
        """Sets what the part learns. By default it learns nothing."""
        return

    @abstractmethod
    def apply(self, activations: Activations) -> Activations:
        """The activations after this part."""


class CombinationClass(ABCMeta):
    """The class of the classes that `combination` makes, which no module holds: pickle makes such a class again."""

    recipe: Callable[[], type["Combination"]]


def _reduce_class(kind: CombinationClass) -> Any:
    return (kind.recipe, ()) if "recipe" in vars(kind) else kind.__qualname__


copyreg.pickle(CombinationClass, _reduce_class)


@dataclass(kw_only=True, eq=False)
class Combination(Detector, metaclass=CombinationClass):
    """A score over the logits that parts have changed; `combination` makes its subclasses."""

    score_class: ClassVar[type[Detector]]
    part_classes: ClassVar[tuple[type[Part], ...]]
    option_names: ClassVar[dict[str, dict[str, str]]]  # id of the score or part -> its option -> the combination's
    head: Head = learned()

    def __post_init__(self) -> None:
        self._reader = self._make_kind(self.score_class)
        for part in self.part_classes:
            setattr(self, _attribute(part), self._make_kind(part))

    def _fit(self, train: Any, head: Any, val: Any, model: Any) -> None:
        self.head = head

        def stream(labels: Tensor | None) -> Iterator[Batch]:
            return self._stream(outputs, labels, only={"features", "logits"})

        outputs: Any = (
            None if train is None else train.only({"features", "logits", "labels"})
        )  # images make small batches
        training = Training(head, 0 if train is None else len(train), stream, lambda: self._labels(train, head))
        for part in self._parts():
            try:
                part.fit(training)
            except OptionError as error:
                raise self._renamed(part.id, error) from None

    def _score(self, batch: Batch) -> Tensor:
        if "images" in self._reader.needs:
            return self._reader._score(batch)
        return self._reader._score(
            self._change_activations(batch.features, batch.logits if "logits" in self.needs else None)
        )

    def _take_network(self, model: Any) -> None:
        super()._take_network(model)
        self._reader._take_network(self._changed_network)

    def _rows_in_a_batch(self, outputs: Outputs) -> int:
        return min(self.batch_rows, self._reader._rows_in_a_batch(outputs))

    def _changed_network(self, images: Tensor) -> Tensor:
        features = self._ask_model("features", images).to("cpu", torch.float64)
        logits = torch.addmm(self.head.bias, features, self.head.weight.T)
        return self._change_activations(features, logits if "logits" in self.needs else None).logits

    def _change_activations(self, features: Tensor, logits: Tensor | None) -> Activations:
        activations = Activations.of(self.head, features, logits)
        for part in self._parts():
            activations = part.apply(activations)
        return activations

    def _parts(self) -> list[Part]:
        return [getattr(self, _attribute(part)) for part in self.part_classes]

    def _make_kind(self, kind: Any) -> Any:
        names = self.option_names[kind.id]
        try:
            return kind(**{option: getattr(self, name) for option, name in names.items()})
        except OptionError as error:
            raise self._renamed(kind.id, error) from None

    def _renamed(self, kind: str, error: OptionError) -> OptionError:
        return OptionError(self.id, self.option_names[kind].get(error.option, error.option), error.value, error.allowed)


def combination(
    detector_id: str, score: type[Detector], *parts: type[Part], invariant_to: str | None = None, **defaults: Any
) -> type[Combination]:
    """The detector in which `score` reads the logits after `parts`, which are applied in their order.

        detector_id: its id. It joins with '+' the ids of those parts, and of the score, that lend it their options.
        score: the detector that reads the logits.
        parts: what changes them.
        invariant_to: what a docstring says under `Invariant to`. None to have it measured.
        defaults: the defaults of options, by the names that they have here. All others are the parts' own.

    The options of the part (or score) that the id names first keep their names. Those of the others begin with the id
    of their part: `dice+react` has `percentile` and `react_percentile`. The same arguments give the same class, in
    each process that unpickles it.

    Raises ValueError for a default of no option or outside its range, for a word of the id that names none of the
    parts, for a score that learns, and for a part that is given twice.
    """
    # The order in which defaults are named makes no other class.
    return _combination(detector_id, score, *parts, invariant_to=invariant_to, **dict(sorted(defaults.items())))


@lru_cache(maxsize=None, typed=True)
def _combination(
    detector_id: str, score: type[Detector], *parts: type[Part], invariant_to: str | None, **defaults: Any
) -> type[Combination]:
    named = detector_id.split("+")
    recipe = partial(_combination, detector_id, score, *parts, invariant_to=invariant_to, **defaults)
    _check_plan(detector_id, score, parts)
    option_names: dict[str, dict[str, str]] = {}
    options: list[tuple[str, Any, Any]] = []
    meanings: dict[str, tuple[Any, str]] = {}
    kinds: tuple[Any, ...] = (score, *parts)
    for kind in kinds:
        prefix = "" if kind.id == named[0] else f"{kind.id.replace('-', '_')}_"
        shown = option_fields(kind) if kind.id in named else []
        option_names[kind.id] = {option.name: prefix + option.name for option in shown}
        for option in shown:
            name = prefix + option.name
            options.append((name, option.type, field(default=defaults.pop(name, option.default))))
            meanings[name] = (kind, option.name)
    if defaults:
        raise ValueError(
            f"{detector_id} has no option {', '.join(map(repr, defaults))}; its options: {', '.join(meanings)}"
        )
    network = {"images", "model"} & score.needs
    needs = {"features", "head"} | network | set().union(*(part.needs for part in parts))
    made = make_dataclass(
        "".join(word.capitalize() for word in detector_id.replace("+", "-").split("-")),
        [*options, *((_attribute(part), part, learned()) for part in parts)],
        bases=(Combination,),
        namespace={
            "id": detector_id,
            "needs": frozenset(needs),
            "score_class": score,
            "score_scale": score.score_scale,
            "part_classes": parts,
            "option_names": option_names,
            "made_of": (score, *parts),
            "recipe": recipe,
            "__doc__": join_descriptions(score, parts, meanings, invariant_to),
        },
        kw_only=True,
        eq=False,
    )
    made.__module__ = (parts[0] if parts else score).__module__
    made()  # checks the defaults
    return made


def _check_plan(detector_id: str, score: type[Detector], parts: tuple[type[Part], ...]) -> None:
    for kind, base in ((score, Detector), *((part, Part) for part in parts)):
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise ValueError(f"{detector_id}: {getattr(kind, '__name__', kind)} is no {base.__name__}")
    if "train" in score.needs:
        raise ValueError(
            f"{detector_id}: {score.id} learns from training outputs, and cannot read those of changed logits"
        )
    kinds: tuple[Any, ...] = (score, *parts)
    known = [kind.id for kind in kinds]
    if len(set(known)) < len(known):
        raise ValueError(f"{detector_id}: each part can be applied once, got {', '.join(known)}")
    words = detector_id.split("+")
    if len(words) > 1 and (unknown := [word for word in words if word not in known]):
        raise ValueError(f"{detector_id}: {', '.join(unknown)} is none of {', '.join(known)}")


def _attribute(part: type[Part]) -> str:
    return f"_{part.id.replace('-', '_')}"
