"""Networks of a user: a function in the user's module makes one, and here it gets the interface of timm's networks."""

import copy
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmark.errors import UserError
from benchmark.models.entries import MODULE, ModelEntry, ModelError, Preprocessing
from benchmark.models.preprocessing import Transform, describe_transform, timm_transform

TRIAL_SIZES = ((96, 64), (50, 80))  # of images to try a transform with; a usable one gives both the same size


class UserNetworkError(UserError):
    """A network or a transform that cannot be used; the message says what is wrong and what to do."""


class HeadedNetwork(nn.Module):
    """A network with the interface of timm's networks, made from one whose last layer is linear.

    Its features are the input of that layer.

    network: the user's network.
    head: the name of its last linear layer.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network, self._head = network, head
        self.pretrained_cfg = {"architecture": type(network).__name__}

    def get_classifier(self) -> nn.Module:
        return self.network.get_submodule(self._head)

    def forward_features(self, images: Tensor) -> Tensor:
        inputs: list[Tensor] = []
        hook = self.get_classifier().register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        try:
            self.network(images)
        finally:
            hook.remove()
        return inputs[-1]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.get_classifier()(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def load_user_network(model_id: str, entry: ModelEntry, classes: int) -> tuple[nn.Module, Transform, dict[str, Any]]:
    """The network that `module:NAME:FUNCTION` makes, its transform, and a description of the preprocessing as JSON.

    FUNCTION returns a network, or a pair of a network and a transform from a PIL image to a tensor (3, H, W). It is
    called with the number of classes where it has a parameter for it. NAME is a module beside the entry's file, in the
    current folder, or among the installed packages.

    model_id: the id of the model, for messages.
    entry: its entry.
    classes: the number of classes.
    Raises ModelError where the module or the function fails, or what it returns cannot be used.
    """
    name, _, function = entry.source.removeprefix(MODULE).rpartition(":")
    try:
        if not name:
            raise UserNetworkError(f"name a module and a function in it: {MODULE}NAME:FUNCTION")
        with importable(folders := (entry.file.parent.resolve(), Path.cwd())):
            module = importlib.import_module(name)
            _check_origin(module, folders)
            made = _call_function(getattr(module, function), classes)
        network, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(network, nn.Module):
            raise UserNetworkError(f"{function}() gives {type(network).__name__}; return a torch.nn.Module")
        network.eval()
        transform, preprocessing = _choose_preprocessing(entry.preprocessing, network, transform)
        # The hash of the weights does not know the code that the network and the transform are made of.
        code = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
        network = _with_timms_interface(network, transform)
    except Exception as error:  # anything may happen in a user's module
        what = str(error) if isinstance(error, UserNetworkError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"model {model_id}: cannot use {entry.source} (named in {entry.file}): {what}") from error
    return network, transform, {**preprocessing, "code_sha256": code}


def given_network(
    model_id: str, network: nn.Module, transform: Transform | None
) -> tuple[nn.Module, Transform, dict[str, Any]]:
    """A copy of a network that a program holds, on the CPU, with its transform and what that does.

    transform: from a PIL image to a tensor; None for that of the network's own `pretrained_cfg`, which timm's have.
    Raises ModelError.
    """
    try:
        network = copy.deepcopy(network).cpu().eval()  # a copy: whoever goes on training it finds it as it was
        if transform is None and not getattr(network, "pretrained_cfg", None):
            raise UserNetworkError("it does not say how images are prepared: give it with its transform")
        transform, preprocessing = _choose_preprocessing(None, network, transform, _name_at_least)
        network = _with_timms_interface(network, transform)
        # A program may change the code of the network and of the transform, which the hash of the weights does not
        # know and which no file may hold: what they make of two images stands for it.
        return network, transform, {**preprocessing, "trial_sha256": _trial_sha256(network, transform)}
    except Exception as error:  # anything may happen in a user's module
        what = str(error) if isinstance(error, UserNetworkError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"model {model_id}: cannot use this {type(network).__name__}: {what}") from error


@contextmanager
def importable(folders: tuple[Path, ...]) -> Iterator[None]:
    """Lets modules be imported from these folders, before all others."""
    before = sys.path
    sys.path = [*map(str, folders), *before]
    try:
        yield
    finally:
        sys.path = before


def _check_origin(module: Any, folders: tuple[Path, ...]) -> None:
    """Raises UserNetworkError where a module of this name was imported before, from another file than ours."""
    path = module.__name__.replace(".", "/")
    files = [folder / name for folder in folders for name in (f"{path}.py", f"{path}/__init__.py")]
    wanted = next((file for file in files if file.is_file()), None)
    if wanted and Path(module.__file__).resolve() != wanted.resolve():
        raise UserNetworkError(f"{module.__name__} is also the name of {module.__file__}: rename {wanted}")


def _call_function(function: Callable[..., Any], classes: int) -> Any:
    """What a function returns. It gets the number of classes where it has a parameter for that, or needs one."""
    parameters = inspect.signature(function).parameters
    if "num_classes" in parameters:
        return function(num_classes=classes)
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    needed = [each for each in parameters.values() if each.kind in positional and each.default is each.empty]
    return function(classes) if needed else function()


def _choose_preprocessing(
    stated: Preprocessing | None,
    network: nn.Module,
    transform: Any,
    describe: Callable[[Any], str] = describe_transform,
) -> tuple[Transform, dict[str, Any]]:
    """What is stated, else the transform that came with the network, else what its checkpoint asks for.

    describe: puts a transform in words; a ValueError where it cannot.
    """
    if stated is not None or (transform is None and getattr(network, "pretrained_cfg", None)):
        return timm_transform(stated, network)
    if transform is None:
        raise UserNetworkError(
            "it does not say how images are prepared: return a pair of network and transform, or state `preprocessing` "
            "in the entry"
        )
    first, second = (transform(image) for image in _trial_images())
    if not isinstance(first, Tensor) or first.ndim != 3 or first.shape != second.shape:
        raise UserNetworkError(
            "its transform must give tensors (channels, height, width) of one shape for all images: begin it with a "
            "resize to (height, width)"
        )
    if not torch.equal(first, transform(_trial_images()[0])):
        raise UserNetworkError("its transform gives another result for the same image: remove its random steps")
    try:
        return transform, {"input_size": list(first.shape), "transform": describe(transform)}
    except ValueError as error:
        raise UserNetworkError(
            f"its transform's {error}, so its stored outputs could be mistaken for those of another transform: "
            "give it a __repr__ with all its settings, or state `preprocessing` in the entry"
        ) from None


def _name_at_least(transform: Any) -> str:
    """A transform in words, or the name of one that does not tell what it does."""
    try:
        return describe_transform(transform)
    except ValueError:
        return str(getattr(transform, "__qualname__", type(transform).__qualname__))


def _trial_sha256(network: nn.Module, transform: Transform) -> str:
    """A hash of the logits (2, C) of the trial images, to three digits of the largest: the rest is the machine's."""
    with torch.no_grad():
        logits = network(torch.stack([transform(image) for image in _trial_images()])).double()
    scale = logits.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    digits = (logits / scale * 1000).round().to(torch.int64)
    return hashlib.sha256(f"{float(scale):.2e} {digits.tolist()}".encode()).hexdigest()


def _with_timms_interface(network: nn.Module, transform: Transform) -> nn.Module:
    if all(hasattr(network, name) for name in ("forward_features", "forward_head", "get_classifier")):
        return network
    return _find_head(network, transform)


def _find_head(network: nn.Module, transform: Transform) -> HeadedNetwork:
    """The network with the last linear layer that it calls as its head, on whose input the logits must depend alone."""
    images = torch.stack([transform(image) for image in _trial_images()])
    names: dict[nn.Module, str] = {
        module: name for name, module in network.named_modules() if isinstance(module, nn.Linear)
    }
    called: list[nn.Module] = []
    hooks = [layer.register_forward_pre_hook(lambda layer, _: called.append(layer)) for layer in names]
    try:
        with torch.no_grad():
            logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    remedy = "; give the network forward_features, forward_head and get_classifier as timm's networks have them"
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserNetworkError(f"its forward gives no logits (images, classes){remedy}")
    if not called:
        raise UserNetworkError(f"it calls no torch.nn.Linear{remedy}")
    if not logits.isfinite().all():
        raise UserNetworkError("its logits are NaN or infinite: check its weights")
    headed = HeadedNetwork(network, names[called[-1]])
    with torch.no_grad():
        features = headed.forward_features(images)
        explained = headed.forward_head(features)
        if not torch.allclose(network(images), logits, 1e-4, 1e-4):
            raise UserNetworkError("two passes of the same images differ: remove its random steps in evaluation mode")
    if features.ndim != 2 or explained.shape != logits.shape or not torch.allclose(explained, logits, 1e-4, 1e-4):
        raise UserNetworkError(
            f"its logits are not those of {names[called[-1]]}, its last linear layer: return them as they are, without "
            f"softmax or scaling{remedy}"
        )
    return headed


def _trial_images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in TRIAL_SIZES]
