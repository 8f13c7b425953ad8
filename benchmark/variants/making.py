"""Makes the edit of a variant: reads its recipe, loads the base and the images, and runs the method."""

from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from benchmark.errors import UserError
from benchmark.images.image_set import ImageSet, load_image_set
from benchmark.models.class_order import check_order
from benchmark.models.edits import Edit
from benchmark.models.entries import base_of
from benchmark.models.loading import load_model
from benchmark.suites.suite import Suite
from benchmark.training.data import TrainingSet
from benchmark.training.optimisation import Progress
from benchmark.variants.method import Method, TrainingData
from benchmark.variants.methods import METHODS
from detectors import did_you_mean


def make_edit(model_id: str, suite: Suite, device: torch.device, progress_file: Path | None = None) -> Edit:
    """Makes the edit of a variant, by its recipe, from the training images of a suite.

    model_id: the id of the variant.
    suite: the suite that gives the images and knows the models.
    device: where the networks run.
    progress_file: where the state of the computation is saved, so that it can be continued; None saves nothing.

    Raises ValueError, which names the entry, where the recipe, the model or the images are not usable.
    """
    method = method_of(model_id, suite)
    train = load_image_set(suite.train, suite.image_sets)
    entries = suite.known_models
    base = load_model(base_of(model_id, entries), entries, device, train.class_names)
    check_order(base.id, base.label_names, train.classes, train.class_names, base.classes)
    sets = {"train": train, "outliers": _outliers(suite) if method.uses_outliers else None}
    data = TrainingData(**{role: TrainingSet(base, images) for role, images in sets.items() if images})
    key = {
        **method.about(base, **{role: images.content_sha256 for role, images in sets.items() if images}),
        "preprocessing": base.preprocessing,
        "computed_by": [torch.__version__, device.type, torch.get_num_threads()],  # the last bits depend on these
    }
    try:
        return method.make_edit(base, data, Progress(progress_file, key))
    except UserError as error:
        raise UserError(f"{entries[model_id].file}: {model_id}: {error}") from error


def make_and_save(model_id: str, suite: Suite, device: torch.device, folder: Path) -> None:
    """Makes the edit of a variant and writes it into a folder. After an interruption, the computation is continued.

    model_id: the id of the variant.
    suite: the suite that gives the images and knows the models.
    device: where the networks run.
    folder: where to write; the state of the computation is saved in it, too.

    Raises ValueError as `make_edit`, where another process is making the edit, and where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".progress.lock", blocking=False):
            make_edit(model_id, suite, device, folder / ".progress.safetensors").save(folder)
            for file in folder.glob(".progress*"):
                file.unlink()
    except Timeout:
        raise UserError(f"{folder}: another process is making it; wait for that, or name another folder") from None
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; free some space, or name another folder (what is "
            "finished is kept there, and is taken up again)"
        ) from None


def edit_folder(model_id: str, suite: Suite) -> Path:
    """The folder of the edit of a variant. Raises ValueError where the suite has no such variant."""
    entries = suite.known_models
    edited = {known: entry.edit for known, entry in entries.items() if entry.edit}
    if model_id in entries and model_id not in edited:
        raise UserError(
            f"{model_id} is no edit of another model; its recipe is: {entries[model_id].recipe or 'not stated'}"
        )
    if model_id not in edited:
        raise UserError(
            f"no model is called {model_id!r}{did_you_mean(model_id, edited)}; variants: {', '.join(edited)}"
        )
    return edited[model_id]


def method_of(model_id: str, suite: Suite) -> Method:
    """The method that the recipe of a variant names, with its settings.

    Raises ValueError, which names the entry and the setting, where the recipe names no method or a setting is wrong.
    """
    entry = suite.known_models[model_id]
    place = f"{entry.file}: {model_id}: recipe"
    if not entry.recipe:
        raise UserError(f"{entry.file}: {model_id}: it has no recipe; its files came with the entry")
    if not isinstance(entry.recipe, dict) or "method" not in entry.recipe:
        raise UserError(f'{place}: it needs `recipe = {{ method = "...", ... }}`; methods: {", ".join(METHODS)}')
    settings = dict(entry.recipe)
    name = settings.pop("method")
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(
            f"{place}: no method is called {name!r}{did_you_mean(str(name), METHODS)}; known: {', '.join(METHODS)}"
        )
    try:
        return METHODS[name](**settings)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"]) or name
        raise UserError(f"{place}: {setting}: {first['msg']}, got {first['input']!r}") from None


def _outliers(suite: Suite) -> ImageSet | None:
    """The outliers of a suite; None where it has none.

    Raises ValueError where one of their images is also in a set that the suite evaluates.
    """
    if suite.entry.outliers is None:
        return None
    outliers = load_image_set(suite.entry.outliers, suite.image_sets)
    hashes = outliers.image_sha256s
    for set_id in suite.entry.evaluated():
        shared = hashes.keys() & load_image_set(set_id, suite.image_sets).image_sha256s.keys()
        if shared:
            raise UserError(
                f"{suite.entry.file}: outliers: {outliers.id} shares {len(shared)} images with {set_id}, on which the "
                f"suite evaluates, such as {hashes[min(shared)]}: remove them, or name another set"
            )
    return outliers
