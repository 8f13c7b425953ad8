"""Detectors and image sets go to the processes of a pool. No file is ever unpickled."""

import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.images.entries import ImageSetEntry
from benchmark.images.image_set import ImageSet, load_image_set
from benchmark.running.loaded_suite import LoadedSuite
from benchmark.running.store import Store
from benchmark.suites.loading import load_suite
from detectors import Detector, available, contract, create
from detectors.contract import build_world
from detectors.logits import Energy
from detectors.options import OptionError
from detectors.parts import Combination, combination
from detectors.shaping import ReAct
from tests.test_detectors import OPTIONS
from unit_tests_ood.image_sets import unit_test_set

pytestmark = pytest.mark.usefixtures("one_thread")


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def scores(make: Callable[[], Detector]) -> list[float]:
    world = build_world()
    return contract.fitted(make, world).score(world.test).tolist()


def scores_of_fitted(detector: Detector) -> list[float]:
    return detector.score(build_world().test).tolist()


@pytest.mark.parametrize("detector_id", available())
def test_a_detector_can_be_pickled(detector_id: str) -> None:
    detector, world = create(detector_id, **OPTIONS.get(detector_id, {})), build_world()
    assert type(again(detector)) is type(detector)
    contract.fit(detector, world)
    assert torch.equal(again(detector).score(world.test), detector.score(world.test))


def test_a_combination_is_the_same_class_again() -> None:
    kind = type(create("dice+react"))
    assert again(kind) is kind
    assert again(Combination) is Combination
    assert combination("react", Energy, ReAct) is combination("react", Energy, ReAct)
    assert combination("react", Energy, ReAct, percentile=90) is not combination(
        "react", Energy, ReAct, percentile=90.0
    )


def test_a_combination_keeps_its_options() -> None:
    assert again(create("dice+react", react_percentile=80.0)).react_percentile == 80.0


def test_the_error_of_an_option_can_be_pickled() -> None:
    with pytest.raises(OptionError) as caught:
        create("knn", k=0)
    error = again(caught.value)
    assert (str(error), error.option, error.value) == (str(caught.value), "k", 0)


def test_combinations_cross_processes() -> None:
    """With spawn: the other process knows nothing but what pickle tells it."""
    fitted = contract.fitted(partial(create, "odin+react"), build_world())
    kind = type(create("dice+react"))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(scores, kind).result() == scores(kind)
        assert pool.submit(scores_of_fitted, fitted).result() == scores_of_fitted(fitted)


# --- Image sets. ---


def hashes(image_set: ImageSet) -> tuple[str, tuple[int, ...], str]:
    """What tells a set from others: its content, its first image's size, and a pixel of it."""
    return image_set.content_sha256, image_set[0].size, str(image_set[0].getpixel((0, 0)))


def image_sets(world: Path) -> dict[str, ImageSet]:
    """A set of each kind: a folder, a list, Parquet, corrupted, chosen classes, generated pixels."""
    suite = LoadedSuite(load_suite(str(world / "colours.toml"), world), Store(world / "store"), torch.device("cpu"))
    (world / "list.txt").write_text("00.png\n01.png\n")
    common = {"title": "t", "licence": "l", "source": "s"}
    file, folder = world / "colours.toml", world / "images/greys"
    entries = {
        "listed": ImageSetEntry.in_file(file, world, local="images/greys", list_file="list.txt", **common),
        "corrupted": ImageSetEntry.in_file(
            file, world, folder=folder, corruption={"kind": "blur", "amount": 2}, **common
        ),
    }
    return {
        "folder": suite.image_set("colours-test"),
        "parquet": load_image_set("letters"),
        "generated": unit_test_set("smooth-pixel-permutation", suite),
        **{name: load_image_set(name, entries) for name in entries},
    }


def test_image_sets_cross_processes(user_world: Path) -> None:
    sets = image_sets(user_world)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for name, image_set in sets.items():
            copy = again(image_set)  # taken before the hashes are known, and so are made anew from the images
            assert pool.submit(hashes, copy).result() == hashes(image_set), name
    assert len({hashes(image_set)[0] for image_set in sets.values()}) == len(sets)


def test_a_pickled_parquet_set_leaves_its_table_behind() -> None:
    image_set = load_image_set("letters")
    image_set[0]
    assert len(pickle.dumps(image_set)) < 20 * len(image_set) + 20_000
