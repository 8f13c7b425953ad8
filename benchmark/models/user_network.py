"""Networks of a user: a function in the user's module makes one, and here it gets the interface of timm's networks."""

import copy
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.errors import UserError
from benchmark.models.entries import MODULE, ModelEntry, ModelError, Preprocessing
from benchmark.models.preprocessing import Transform, describe_transform, timm_transform
from benchmark.models.trial import SIZES, Size, trial, trial_images, trial_sha256, trial_sizes

_REMEDY = "; give the network forward_features, forward_head and get_classifier as timm's networks have them"
TRIES = 8  # of a transform, to see whether it gives the same result each time


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
        names = getattr(network, "label_names", None)  # as a function of the user, or a library, may say them
        self.pretrained_cfg = {"architecture": _architecture_of(network), **_named(names)}

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


def _architecture_of(network: nn.Module) -> str:
    """The name of the class of a network, or of the one that it wraps for its interface alone."""
    inner = getattr(network, "network", None)
    return type(inner if isinstance(inner, nn.Module) else network).__name__


def _named(names: Any) -> dict[str, Any]:
    """The names of the outputs, of a list or of a mapping from indices."""
    return {} if not names else {"id2label" if isinstance(names, Mapping) else "label_names": names}


Prepared = tuple[nn.Module, Transform, dict[str, Any]]


def load_user_network(
    model_id: str, entry: ModelEntry, classes: int, image_size: Callable[[], Size] | None
) -> Prepared:
    """The network that `module:NAME:FUNCTION` makes, its transform, and a description of the preprocessing as JSON.

    FUNCTION returns a network, or a pair of a network and a transform from a PIL image to a tensor (3, H, W). It is
    called with the number of classes where it has a parameter for it. NAME is a module beside the entry's file, in the
    current folder, or among the installed packages.

    model_id: the id of the model, for messages.
    entry: its entry.
    classes: the number of classes.
    image_size: gives the height and width of the images, for a transform that resizes none. None where nobody knows.
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
        prepared = prepare_network(network.eval(), entry.preprocessing, transform, image_size)
        # The trial covers what the code does to its images. What a part of the code does to others is in the code.
        code = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    except Exception as error:  # anything may happen in a user's module
        what = str(error) if isinstance(error, UserNetworkError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"model {model_id}: cannot use {entry.source} (named in {entry.file}): {what}") from error
    network, transform, preprocessing = prepared
    return network, transform, {**preprocessing, "code_sha256": code}


def given_network(
    model_id: str, network: nn.Module, transform: Transform | None, image_size: Callable[[], Size] | None
) -> Prepared:
    """A copy of a network that a program holds, on the CPU, with its transform and what that does.

    transform: from a PIL image to a tensor; None for that of the network's own `pretrained_cfg`, which timm's have.
    image_size: as of `load_user_network`.
    Raises ModelError.
    """
    try:
        network = copy.deepcopy(network).cpu().eval()  # a copy: whoever goes on training it finds it as it was
        if transform is None and not getattr(network, "pretrained_cfg", None):
            raise UserNetworkError("it does not say how images are prepared: give it with its transform")
        return prepare_network(network, None, transform, image_size)
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


def prepare_network(
    network: nn.Module, stated: Preprocessing | None, transform: Any, image_size: Callable[[], Size] | None
) -> Prepared:
    """A network with timm's interface in float32, its transform, and what that does with what comes out of a trial.

    The trial stands for all code that the numbers depend on: no hash of weights or of a file knows it.
    """
    transform, preprocessing = _choose_preprocessing(stated, network, transform, image_size)
    sizes = trial_sizes(preprocessing)
    network = _with_timms_interface(network.float(), transform, sizes)
    return network, transform, {**preprocessing, "trial_sha256": trial_sha256(trial(network, transform, sizes))}


def _choose_preprocessing(
    stated: Preprocessing | None, network: nn.Module, transform: Any, image_size: Callable[[], Size] | None
) -> tuple[Transform, dict[str, Any]]:
    """What is stated, else the transform that came with the network, else what its checkpoint asks for."""
    if stated is not None or (transform is None and getattr(network, "pretrained_cfg", None)):
        return timm_transform(stated, network)
    if transform is None:
        raise UserNetworkError(
            "it does not say how images are prepared: return a pair of network and transform, or state `preprocessing` "
            "in the entry"
        )
    shape = _shape_of(transform, SIZES)
    fixed = {}
    if shape is None and image_size is not None:  # it resizes none, so that it is for images of one size
        height, width = image_size()
        shape, fixed = _shape_of(transform, ((height, width),)), {"image_size": [height, width]}
    if shape is None:
        raise UserNetworkError(
            "its transform must give tensors (channels, height, width) of one shape for all images: begin it with a "
            "resize to (height, width)"
        )
    about = {"input_size": list(shape), **fixed, "transform": _name_at_least(transform)}
    images = trial_images(trial_sizes(about))
    for image in images:
        first = transform(image)
        if not all(torch.equal(first, transform(image)) for _ in range(TRIES)):
            raise UserNetworkError("its transform gives another result for the same image: remove its random steps")
    return transform, about


def _shape_of(transform: Any, sizes: Sequence[Size]) -> tuple[int, ...] | None:
    """The shape (3, H, W) that a transform gives to images of all these sizes. None where there is no such shape."""
    made = [transform(image) for image in trial_images(sizes)]
    if not all(isinstance(one, Tensor) and one.ndim == 3 and one.shape == made[0].shape for one in made):
        return None
    return tuple(made[0].shape)


def _name_at_least(transform: Any) -> str:
    """A transform in words, or the name of one that does not tell what it does."""
    try:
        return describe_transform(transform)
    except ValueError:
        return str(getattr(transform, "__qualname__", type(transform).__qualname__))


def _with_timms_interface(network: nn.Module, transform: Transform, sizes: Sequence[Size]) -> nn.Module:
    images = torch.stack([transform(image) for image in trial_images(sizes)])
    names = ("forward_features", "forward_head", "get_classifier")
    if not all(hasattr(network, name) for name in names) or not _is_linear(network.get_classifier()):  # type: ignore[operator]
        return _find_head(network, images)
    with torch.no_grad():
        _check_passes(network, images, network(images))
    return network


def _is_linear(layer: Any) -> bool:
    """Whether a head is one linear layer. Of a timm network with a head of its own, the last one in it counts."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def _check_passes(network: nn.Module, images: Tensor, logits: Tensor) -> None:
    """Raises UserNetworkError where the logits of an image depend on chance, or on the other images of its batch."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserNetworkError(f"its forward gives no logits (images, classes){_REMEDY}")
    if not logits.isfinite().all():
        raise UserNetworkError("its logits are NaN or infinite: check its weights")
    if not torch.allclose(network(images), logits, 1e-4, 1e-4):
        raise UserNetworkError("two passes of the same images differ: remove its random steps in evaluation mode")
    if not torch.allclose(torch.cat([network(image[None]) for image in images]), logits, 1e-3, 1e-3):
        raise UserNetworkError(
            "its output for an image depends on the other images of its batch: remove what is computed over the batch"
        )


def _find_head(network: nn.Module, images: Tensor) -> HeadedNetwork:
    """The network with the last linear layer that it calls as its head, on whose input the logits must depend alone."""
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
    with torch.no_grad():
        _check_passes(network, images, logits)
    if not called:
        raise UserNetworkError(f"it calls no torch.nn.Linear{_REMEDY}")
    headed = HeadedNetwork(network, names[called[-1]])
    with torch.no_grad():
        features = headed.forward_features(images)
        explained = headed.forward_head(features)
    if features.ndim != 2 or explained.shape != logits.shape or not torch.allclose(explained, logits, 1e-4, 1e-4):
        raise UserNetworkError(
            f"its logits are not those of {names[called[-1]]}, its last linear layer: return them as they are, without "
            f"softmax or scaling{_REMEDY}"
        )
    return headed
