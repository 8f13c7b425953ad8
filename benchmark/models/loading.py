"""Loading: from an entry to a model, with all edits of a variant applied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from benchmark.models.classifier import load_classifier
from benchmark.models.edits import EditError, load_edit
from benchmark.models.entries import OPEN_CLIP, ModelEntry, ModelError, base_of, root_of
from benchmark.models.model import Model
from benchmark.models.trial import Size
from benchmark.models.zero_shot import load_zero_shot


def load_model(
    model_id: str,
    entries: Mapping[str, ModelEntry],
    device: torch.device,
    class_names: Sequence[str],
    image_size: Callable[[], Size] | None = None,
) -> Model:
    """The model of an id: a checkpoint, or its base with an edit.

    model_id: the id.
    entries: the entries by id.
    device: where the network runs.
    class_names: a word for each of the C classes. A vision-language model makes its head from these words.
    image_size: gives the height and width of the images, for a user's transform that resizes none.
    Raises ModelError where a file is damaged, the weights do not fit the classes, or an edit does not fit its base, and
    MissingWeightsError where a file has not been fetched yet.
    """
    entry = entries[model_id]
    if entry.edit is None:
        if entry.source.startswith(OPEN_CLIP):
            return load_zero_shot(model_id, entry, device, class_names)
        return load_classifier(model_id, entry, device, class_names, image_size)
    root_of(model_id, entries)  # raises where bases go in a circle, which would never end here
    base = load_model(base_of(model_id, entries), entries, device, class_names, image_size)
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
