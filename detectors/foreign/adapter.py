"""What the detectors of all other libraries have in common: options, description, and what they cannot do."""

import importlib.metadata
import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from detectors.base import Detector
from detectors.outputs import Head
from detectors.spelling import did_you_mean

# What is made of parts of a network: no text and no number can name it.
_OF_A_NETWORK = re.compile(r"Callable|Module|Linear\b|device")


class NotAdaptableError(ValueError):
    """A detector of another library that cannot be served as it was asked for; the message is one line."""


@dataclass(kw_only=True, eq=False)
class ForeignDetector(Detector):
    """A detector of another library. `fit` makes a new object of theirs, and no other process gets it.

    Errors of their code are ValueErrors that name the class and the options.
    """

    library: ClassVar[str]  # name and version
    kind: ClassVar[Any]  # theirs: a class, or an object to be copied
    option_names: ClassVar[tuple[str, ...]] = ()
    precision: ClassVar[float] = 1e-3  # they compute in single precision, some with inverses of matrices
    expected_failures: ClassVar[Mapping[str, str]] = {
        "a_saved_state_gives_the_same_scores": "what a detector of another library learned is not saved"
    }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Raises RuntimeError: what it learned is in objects of another library, which only pickle could save."""
        self._check_fitted()
        raise RuntimeError(f"{self.id} {self._no_state()}")

    def _take_state(self, tensors: dict[str, Tensor], about: dict[str, Any], model: Any) -> None:
        raise ValueError(f"{self.id} {self._no_state()}")

    def _no_state(self) -> str:
        return f"is a detector of {self.library}: what it learned cannot be saved and restored; fit it where it is used"

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).option_names}

    @contextmanager
    def _their_code(self, function: str) -> Iterator[None]:
        """Their code runs with gradients, as they expect. What goes wrong in it is a ValueError in one line."""
        try:
            with torch.enable_grad():
                yield
        except Exception as error:
            options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
            name = name_of(self.kind).rpartition(".")[2]
            what = " ".join(str(error).split()) or "no message"
            raise ValueError(f"{self.id}: {name}({options}).{function}: {type(error).__name__}: {what}") from error

    def _scores(self, values: Any, rows: int) -> Tensor:
        """What they gave for so many rows, as (n,) in float64. Raises ValueError for another shape."""
        scores = torch.as_tensor(values).detach().to("cpu", torch.float64)
        if scores.shape != (rows,):
            raise ValueError(f"{self.id}: {rows} images have scores of shape {tuple(scores.shape)}")
        return scores


@dataclass(frozen=True)
class Option:
    """An option of theirs: its name, its default, what their documentation says of it, and whether it is a tensor."""

    name: str
    default: Any
    meaning: str
    is_tensor: bool = False


@dataclass(frozen=True)
class Parameters:
    """What a constructor of theirs takes.

    options: those with plain values.
    supplied: the names of those that the adapter gives.
    left: the names of those that stay at their defaults, since no plain value can be given for them.
    """

    options: tuple[Option, ...]
    supplied: frozenset[str]
    left: tuple[str, ...]

    def converted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the options as the constructor takes them."""
        tensors = {option.name for option in self.options if option.is_tensor}
        return {name: torch.tensor(value) if name in tensors else value for name, value in values.items()}


def parameters_of(kind: type, supplied: Collection[str], given: Mapping[str, Any]) -> Parameters:
    """What the constructor of a class takes. given: the options that somebody named, which become defaults.

    Raises NotAdaptableError where one is unknown, or one that is needed is missing.
    """
    options, left, lacking, any_name = [], [], [], False
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:  # type: ignore[misc]
        if parameter.kind is parameter.VAR_KEYWORD:
            any_name = True
        elif name in supplied or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif _OF_A_NETWORK.search(str(parameter.annotation)) or not (
            name in given or parameter.default is parameter.empty or is_plain(parameter.default)
        ):
            left.append(name)
            if parameter.default is parameter.empty:
                raise NotAdaptableError(
                    f"{name_of(kind)} takes {name}, a part of a network, which no option can name: it is not served"
                )
        elif name not in given and parameter.default is parameter.empty:
            lacking.append(name)
        else:
            default = given.get(name, parameter.default)
            options.append(Option(name, default, meaning_of(kind, name), parameter.annotation is Tensor))
    if lacking:
        example = ",".join(f"{name}=..." for name in lacking)
        example = f"{kind.__module__.partition('.')[0]}:{kind.__name__},{example}"
        raise NotAdaptableError(f"{name_of(kind)} needs {', '.join(lacking)}: name it, as in {example}")
    known = [option.name for option in options]
    if any_name:
        options += [Option(name, given[name], "as in the documentation") for name in given if name not in known]
    elif unknown := [name for name in given if name not in known]:
        of_network = " (it is a part of a network)" if unknown[0] in {*left, *supplied} else ""
        raise NotAdaptableError(
            f"{name_of(kind)} has no option {unknown[0]!r}{of_network or did_you_mean(unknown[0], known)}; "
            f"its options: {', '.join(known) or 'none'}"
        )
    taken = supplied & inspect.signature(kind.__init__).parameters.keys()  # type: ignore[misc]
    return Parameters(tuple(options), frozenset(taken), tuple(left))


def make_adapter(
    base: type[ForeignDetector],
    kind: Any,
    detector_id: str,
    options: Iterable[Option],
    needs: Collection[str],
    description: str,
    **attributes: Any,
) -> type[ForeignDetector]:
    """A subclass of `base` with the options as its fields. description: the sections of its docstring but Options."""
    options = tuple(options)
    if clash := [option.name for option in options if hasattr(base, option.name)]:
        raise NotAdaptableError(f"{name_of(kind)}: an adapter has no room for an option called {clash[0]!r}")
    head, _, tail = description.partition("Deviations:")
    lines = [f"- {option.name}: {option.meaning}" for option in options]
    explained = "\n".join(["Options:", *lines, ""]) if lines else ""
    made = make_dataclass(
        name_of(kind).rpartition(".")[2],
        [(option.name, Any, field(default=option.default)) for option in options],
        bases=(base,),
        namespace={
            "id": detector_id,
            "needs": frozenset(needs),
            "kind": kind,
            "option_names": tuple(option.name for option in options),
            "made_of": (kind if isinstance(kind, type) else type(kind),),
            "library": library_of(kind),
            "__doc__": f"{head}{explained}Deviations:{tail}",
            **attributes,
        },
        kw_only=True,
        eq=False,
    )
    made.__module__ = base.__module__
    return made


# --- What their code gets. ---


def linear(head: Head) -> nn.Linear:
    """The head as a layer in single precision."""
    # Without a first value, for which torch would draw random numbers.
    layer = skip_init(nn.Linear, head.weight.shape[1], head.weight.shape[0])
    layer.weight.data, layer.bias.data = head.weight.float(), head.bias.float()
    return layer.requires_grad_(False)


class NetworkModule(nn.Module):
    """A network that is no module, as one: it has the parameters of the network that it holds as `network`, if any."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if isinstance(getattr(model, "network", None), nn.Module):
            self.network = model.network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def as_module(model: Any) -> nn.Module:
    """The network as a module, for code that asks for its parameters or its mode."""
    return model if isinstance(model, nn.Module) else NetworkModule(model)


# --- What is said of them. ---


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, None, or a list of such."""
    return value is None or isinstance(value, bool | int | float | str) or _is_plain_list(value)


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_plain, value))


def name_of(kind: Any) -> str:
    """The full name of a class, or of the class of an object."""
    of = kind if isinstance(kind, type) else type(kind)
    return f"{of.__module__}.{of.__qualname__}"


def library_of(kind: Any) -> str:
    """The distribution that a class comes from, with its version; its module where no distribution has it."""
    module = (kind if isinstance(kind, type) else type(kind)).__module__.partition(".")[0]
    found = _distributions().get(module)
    return f"{found[0]} {importlib.metadata.version(found[0])}" if found else f"the module {module}"


@lru_cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def summary_of(kind: Any) -> str:
    """The first sentence of their docstring, without its markup."""
    text = inspect.cleandoc((kind if isinstance(kind, type) else type(kind)).__doc__ or "")
    found = re.match(r"(.+?\.)(\s|$)", _plain_text(text.partition("\n\n")[0]))
    return found[1] if found else "It has no description."


def meaning_of(kind: type, name: str) -> str:
    """What their documentation says of a parameter."""
    for text in (kind.__init__.__doc__, kind.__doc__):  # type: ignore[misc]
        found = re.search(rf":param {name}:(.*?)(?=\n\s*:\w|\n\s*\n|\Z)", text or "", flags=re.DOTALL)
        if found and (meaning := _plain_text(found[1])):
            return meaning
    return "as in the documentation of the class"


def _plain_text(text: str) -> str:
    """A text of reStructuredText in one line, without its roles and stars."""
    text = re.sub(r":[\w:]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", text)
    return " ".join(re.sub(r"``|\*", "", text).split())
