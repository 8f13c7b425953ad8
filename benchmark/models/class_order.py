"""Which class each output of a network stands for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.models.entries import ModelError

Names = tuple[str, ...]


def label_names_of(config: Any) -> list[Names]:
    """The names that the configuration of a checkpoint gives its outputs, in their order: it may say it several times.

    config: the content of a config.json of timm or of transformers, or the `pretrained_cfg` of a network of timm.
    """
    if not isinstance(config, Mapping):
        return []
    found = [_in_order(config.get(key)) for key in ("label_names", "labels", "id2label")]
    found += label_names_of(config.get("pretrained_cfg"))
    return [names for names in dict.fromkeys(found) if names]


def label_names_in(file: Path) -> list[Names]:
    """The names that a config.json gives the outputs. None where there is no such file, or it says nothing of them."""
    try:
        return label_names_of(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return []


def _in_order(names: Any) -> Names:
    """Names as a list has them, or as a mapping from indices to names; none where they are neither."""
    if isinstance(names, Mapping):
        if {str(index) for index in names} != {str(index) for index in range(len(names))}:
            return ()
        names = [value for _, value in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, (list, tuple)):
        return ()
    return tuple(map(str, names)) if len({*map(str, names)}) == len(names) else ()


def order_of_outputs(model_id: str, label_names: Sequence[Names], classes: Names, words: Names, outputs: int) -> Names:
    """The class that each output of a network stands for.

    label_names: the names that its checkpoint gives the outputs; it may say it several times.
    classes: the classes of the images, in the order of the set.
    words: a word for each of these classes.
    outputs: how many outputs the network has.

    The checkpoint decides where its names are those of the classes, or of more: a test set may lack some of the classes
    of a network. Where it says nothing of them, the order is that of the set.
    Raises ModelError where the checkpoint contradicts itself, and where the numbers differ.
    """
    if not classes:
        return tuple(map(str, range(outputs)))
    orders = {}
    for names in label_names:
        for known in (classes, words):
            if len(names) == outputs and known and {*known} <= {*names}:
                class_of = dict(zip(known, classes, strict=True))
                orders[tuple(class_of.get(name, name) for name in names)] = names
                break
    if len(orders) > 1:
        one, other = list(orders)[:2]
        raise ModelError(
            f"model {model_id}: its checkpoint gives its outputs in two orders: {_shown(one)} and {_shown(other)}; "
            "correct `label_names` in its config.json"
        )
    if orders:
        return next(iter(orders))
    if outputs != len(classes):
        said = f" (its checkpoint names them {_shown(label_names[0])})" if label_names else ""
        raise ModelError(
            f"model {model_id}: it has {outputs} classes{said}, the in-distribution images have {len(classes)}: "
            f"{_shown(classes)}; use a checkpoint for these classes. Where the images lack some of its classes, give "
            "training images of all classes, or a checkpoint whose `label_names` are the names of the classes"
        )
    return classes


def check_order(model_id: str, label_names: Sequence[Names], classes: Names, words: Names, outputs: int) -> None:
    """Raises ModelError where the outputs of a network that is to be trained are not the classes of a set, in order."""
    order = order_of_outputs(model_id, label_names, classes, words, outputs)
    if classes and order != classes:
        raise ModelError(
            f"model {model_id}: its outputs are {_shown(order)}, and the classes of the training images are "
            f"{_shown(classes)}: name the same classes in the same order"
        )


def _shown(names: Names) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
