"""Detectors and image sets go to the processes of a pool. No file is ever unpickled."""

import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import pytest
import torch

from detectors import Detector, available, contract, create
from detectors.contract import build_world
from detectors.logits import Energy
from detectors.options import OptionError
from detectors.parts import Combination, combination
from detectors.shaping import ReAct
from tests.test_detectors import OPTIONS

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
