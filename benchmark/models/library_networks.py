"""Networks of libraries other than timm and open_clip: torchvision's, and image classifiers of transformers.

No pickle is run: of transformers only safetensors are read, and no code of a repository. torchvision reads its own
weights with `weights_only`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmark.models.entries import TORCHVISION, TRANSFORMERS, ModelEntry, ModelError
from benchmark.models.trial import Size
from benchmark.models.user_network import Prepared, UserNetworkError, prepare_network

LIBRARIES = (TORCHVISION, TRANSFORMERS)


def load_library_network(model_id: str, entry: ModelEntry, image_size: Callable[[], Size] | None) -> Prepared:
    """The network of a source `torchvision:NAME` or `transformers:PLACE`, with its transform and what that does.

    `torchvision:NAME` has the default weights, `torchvision:NAME/WEIGHTS` others, such as resnet50/IMAGENET1K_V1.
    `transformers:PLACE` is a folder, from that of the entry's file, or OWNER/NAME on the Hub.

    model_id: the id of the model, for messages.
    entry: its entry.
    image_size: gives the height and width of the images, for a transform that resizes none.
    Raises ModelError where the library is not there, or has no such network.
    """
    make = _from_torchvision if entry.source.startswith(TORCHVISION) else _from_transformers
    try:
        network, transform = make(entry)
        return prepare_network(network.eval(), entry.preprocessing, transform, image_size)
    except ModelError:
        raise
    except Exception as error:  # the libraries and the Hub's client raise many kinds of errors
        what = str(error) if isinstance(error, UserNetworkError) else f"{type(error).__name__}: {error}"
        raise ModelError(
            f"model {model_id}: cannot use {entry.source} (named in {entry.file}): {what}", entry.remedy(model_id)
        ) from error


def _from_torchvision(entry: ModelEntry) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    from torchvision import models  # here, since few networks are torchvision's

    from detectors import did_you_mean

    name, _, weights_name = entry.source.removeprefix(TORCHVISION).partition("/")
    known = models.list_models(module=models)
    if name not in known:
        raise UserNetworkError(f"torchvision has no classifier {name!r}{did_you_mean(name, known)}")
    choices = models.get_model_weights(name)
    if weights_name and weights_name not in choices.__members__:
        raise UserNetworkError(f"{name} has no weights {weights_name!r}, but {', '.join(choices.__members__)}")
    weights: Any = choices[weights_name] if weights_name else choices.DEFAULT
    network = models.get_model(name, weights=weights)
    network.label_names = weights.meta.get("categories")
    return network, weights.transforms()


class TransformersNetwork(nn.Module):
    """A classifier of transformers that takes images and gives logits, as other networks do.

    network: the classifier.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        config: Any = network.config
        self.label_names = config.id2label

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


class TransformersTransform:
    """The image processor of a checkpoint, for one image.

    processor: the processor.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Any) -> Tensor:
        pixels: Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def __repr__(self) -> str:
        return " ".join(str(self.processor).split())


def _from_transformers(entry: ModelEntry) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    try:
        import transformers
    except ImportError as error:
        raise UserNetworkError('it needs transformers: pip install "ood-benchmark[transformers]"') from error
    place = entry.source.removeprefix(TRANSFORMERS)
    folder = entry.file.parent / Path(place).expanduser()
    where = str(folder) if folder.is_dir() else place
    network = transformers.AutoModelForImageClassification.from_pretrained(where, use_safetensors=True)
    return TransformersNetwork(network), TransformersTransform(transformers.AutoImageProcessor.from_pretrained(where))
