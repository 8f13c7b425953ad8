"""Loading: from an entry to a model, over all the edits that a variant is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from benchmark.models.classifier import load_classifier
from benchmark.models.edits import EditError, load_edit
from benchmark.models.entries import OPEN_CLIP, ModelEntry, ModelError, base_of, root_of
from benchmark.models.model import Model
from benchmark.models.zero_shot import load_zero_shot


def load_model(
    model_id: str, entries: Mapping[str, ModelEntry], device: torch.device, class_names: Sequence[str]
) -> Model:
    """The model of that id, for these classes: a checkpoint, or its base with an edit.

    class_names: a word for each class, which a vision-language model makes its head of.
    Raises ModelError when a file is missing or damaged, or does not fit the classes, or an edit its base.
    """
    entry = entries[model_id]
    if entry.edit is None:
        load = load_zero_shot if entry.source.startswith(OPEN_CLIP) else load_classifier
        return load(model_id, entry, device, class_names)
    root_of(model_id, entries)  # which ends where bases go in a circle
    base = load_model(base_of(model_id, entries), entries, device, class_names)
    base_sha256 = base.weights_sha256
    try:
        edit = load_edit(entry.edit)
        if edit.about.get("base_sha256") not in (None, base_sha256):
            raise EditError(f"it was made for other weights than those of {base.id}")
        edit.apply(base.network)
    except EditError as error:
        raise ModelError(
            f"model {model_id}: cannot apply {entry.edit} (named in {entry.file}) to {base.id}: {error}",
            entry.remedy(model_id),
        ) from error
    return replace(base, id=model_id, entry=entry, edits=(*base.edits, edit), base_sha256=base_sha256)
