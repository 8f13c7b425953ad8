"""What a detector learned is saved as named tensors and plain values, and what is no such state is refused."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from detectors import Head, Outputs, create, restore
from detectors.contract import build_world, fitted, refusal
from detectors.outputs import Rows
from detectors.state import digest, join_value, learned, split_value

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = build_world()
State = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Inner:
    mean: Tensor
    count: int
    made: float = field(init=False, default=0.0)


@dataclass(frozen=True, eq=False)
class Outer:
    first: Inner
    second: Inner
    title: str
    limit: float | None = None


def outer() -> Outer:
    first, second = Inner(torch.arange(3.0), 3), Inner(torch.ones(2, 2), 4)
    object.__setattr__(second, "made", 0.5)
    return Outer(first, second, "a title")


def packed(value: Any, name: str = "it") -> State:
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    split_value(value, name, tensors, values)
    return tensors, values


def state(detector_id: str, **options: Any) -> State:
    tensors, about = fitted(lambda: create(detector_id, **options), WORLD).state()
    return tensors, json.loads(json.dumps(about))


# --- Packing. ---


def test_nested_dataclasses_are_taken_apart_by_name() -> None:
    tensors, values = packed(outer())
    assert tensors.keys() == {"it.first.mean", "it.second.mean"}
    assert values == {
        "it.first.count": 3,
        "it.first.made": 0.0,
        "it.second.count": 4,
        "it.second.made": 0.5,
        "it.title": "a title",
        "it.limit": None,
    }


def test_nested_dataclasses_are_put_together_again() -> None:
    again = join_value(Outer, "it", *packed(outer()))
    assert isinstance(again, Outer)
    assert isinstance(again.first, Inner)
    assert torch.equal(again.first.mean, torch.arange(3.0))
    assert (again.second.count, again.second.made, again.title, again.limit) == (4, 0.5, "a title", None)


def test_names_that_begin_alike_are_apart() -> None:
    tensors, values = packed(Inner(torch.zeros(1), 1), "a")
    split_value(Inner(torch.ones(1), 2), "aa", tensors, values)
    assert join_value(Inner, "a", tensors, values).count == 1
    assert join_value(Inner, "aa", tensors, values).count == 2


def test_slices_and_transposes_are_stored_in_their_order() -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    tensors, _ = packed(rows.T)
    assert tensors["it"].is_contiguous()
    assert torch.equal(safetensors.torch.load(safetensors.torch.save(tensors))["it"], rows.T)


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)])
def test_numbers_of_numpy_become_numbers_of_python(value: Any) -> None:
    _, values = packed(value)
    assert json.loads(json.dumps(values)) == {"it": value.item()}


def test_numbers_of_numpy_serve_as_options() -> None:
    tensors, about = state("knn", k=np.int64(5))
    assert about["options"] == {"k": 5}
    assert about["values"] == {"fitted_k": 5}
    expected = fitted(lambda: create("knn", k=5), WORLD).score(WORLD.test)
    assert torch.equal(restore(tensors, about).score(WORLD.test), expected)


@pytest.mark.parametrize("name", ["it.first.mean", "it.second.count", "it.title"])
def test_what_is_missing_is_named(name: str) -> None:
    tensors, values = packed(outer())
    tensors.pop(name, None), values.pop(name, None)
    assert repr(name) in refusal(ValueError, join_value, Outer, "it", tensors, values)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "3"),
        (int, 3.5),
        (int, True),
        (int, None),
        (int, [3]),
        (int, torch.ones(())),
        (float, "nan"),
        (float, False),
        (float, {"value": 1.0}),
        (str, 3),
        (str, ["a"]),
        (Tensor, 3.0),
        (Tensor, [1.0, 2.0]),
        (Rows, "rows"),
        (float | None, "3"),
        (Inner, 3),
        (Inner, torch.ones(2)),
    ],
)
def test_values_of_another_type_are_refused(kind: Any, value: Any) -> None:
    given = ({"it": value}, {}) if isinstance(value, Tensor) else ({}, {"it": value})
    text = refusal(ValueError, join_value, kind, "it", *given)
    assert "'it'" in text
    assert type(value).__name__ in text


@pytest.mark.parametrize(
    ("kind", "value"), [(int, 3), (float, 0.5), (float, 3), (str, "a"), (bool, True), (float | None, None), (Any, 1)]
)
def test_values_of_their_type_are_taken(kind: Any, value: Any) -> None:
    assert join_value(kind, "it", {}, {"it": value}) == value


def test_learned_fields_are_no_options() -> None:
    @dataclass
    class Sample:
        size: float = 1.0
        mean: Tensor = learned()

    assert refusal(TypeError, Sample, mean=torch.ones(1))
    assert repr(Sample()).endswith("Sample(size=1.0)")


# --- The states of detectors. ---


@pytest.mark.parametrize("detector_id", ["msp", "entropy", "gen", "temperature-scaling", "msp+react", "mcm"])
@pytest.mark.parametrize("saved_scale", [None, 1, 3])
def test_a_state_of_another_scale_of_scores_is_refused(detector_id: str, saved_scale: int | None) -> None:
    """A threshold that was found on the old scale would accept and reject the wrong images."""
    tensors, about = state(detector_id)
    assert about["score_scale"] == 2
    assert restore(tensors, about).score_scale == 2
    del about["score_scale"], about["sha256"]
    about |= {} if saved_scale is None else {"score_scale": saved_scale}
    old = {**about, "sha256": digest(tensors, about)}
    text = refusal(ValueError, restore, tensors, old)
    assert text == f"this state of {detector_id} is of a version whose scores are other numbers: fit it again"


def test_a_state_of_the_first_scale_does_not_name_it() -> None:
    _, about = state("knn")
    assert "score_scale" not in about


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_bank_keeps_its_stored_precision(dtype: torch.dtype) -> None:
    train = replace(WORLD.train, features=WORLD.train.features.to(dtype))
    detector = fitted(lambda: create("knn"), WORLD, train=train)
    tensors, about = detector.state()
    assert tensors["bank"].dtype == dtype
    assert torch.equal(tensors["bank"], train.features)
    assert torch.equal(restore(tensors, about).score(WORLD.test), detector.score(WORLD.test))


def test_a_bank_in_a_file_is_saved_whole() -> None:
    class Shards:
        """Rows that can only be sliced."""

        shape = WORLD.train.features.shape

        def __getitem__(self, rows: slice) -> np.ndarray:
            return WORLD.train.features[rows].numpy().astype(np.float32)

    detector = fitted(lambda: create("knn"), WORLD, train=replace(WORLD.train, features=Shards()))
    tensors, _ = detector.state()
    assert torch.equal(tensors["bank"], WORLD.train.features.float())


def test_there_is_no_state_before_a_fit() -> None:
    assert "not fitted" in refusal(RuntimeError, create("mahalanobis").state)


@pytest.mark.parametrize(
    ("detector_id", "options"),
    [
        ("energy", {"temperature": 2.0}),
        ("knn", {"k": 3}),
        ("react", {"percentile": 80}),
        ("relative-mahalanobis++", {"global_fit": "raw"}),
    ],
)
def test_options_are_restored_with_the_state(detector_id: str, options: dict[str, Any]) -> None:
    again = restore(*state(detector_id, **options))
    assert again.id == detector_id
    assert {name: getattr(again, name) for name in options} == options
    expected = fitted(lambda: create(detector_id, **options), WORLD).score(WORLD.test)
    assert torch.equal(again.score(WORLD.test), expected)


def test_a_restored_detector_knows_the_shapes_of_its_fit() -> None:
    detector = restore(*state("mahalanobis"))
    text = refusal(ValueError, detector.score, Outputs(features=torch.zeros(2, 5)))
    assert "features" in text
    assert "(16,)" in text


def test_a_restored_detector_can_be_fitted_again() -> None:
    other = build_world(samples_a_class=5)
    detector = restore(*state("mahalanobis"))
    expected = fitted(lambda: create("mahalanobis"), other).score(WORLD.test)
    assert torch.equal(fitted(lambda: detector, other).score(WORLD.test), expected)


def test_a_detector_that_scores_with_the_network_is_restored_with_it() -> None:
    tensors, about = state("odin")
    assert "model=" in refusal(ValueError, restore, tensors, about)
    assert "eval()" in refusal(ValueError, restore, tensors, about, model=build_world().model.train())
    expected = fitted(lambda: create("odin"), WORLD).score(WORLD.test)
    assert torch.equal(restore(tensors, about, model=WORLD.model).score(WORLD.test), expected)


def put(place: str, value: Any) -> Callable[[State], None]:
    """Sets what lies under 'about', 'about/key' or 'about/key/key'."""

    def change(state: State) -> None:
        *path, last = place.split("/")
        holder = state[1]
        for key in path:
            holder = holder[key]
        holder[last] = value

    return change


def remove(place: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        *path, last = place.split("/")
        holder = state[1]
        for key in path:
            holder = holder[key]
        del holder[last]

    return change


@pytest.mark.parametrize(
    ("detector_id", "change", "says"),
    [
        ("knn", put("id", "no-such"), "'no-such'"),
        ("knn", put("id", ["knn"]), "state of a detector"),
        ("knn", put("id", "mahalanobis"), "mahalanobis has no option 'k'"),
        ("cosine", put("id", "mahalanobis"), "'class_gaussians"),
        ("knn", put("options", []), "state of a detector"),
        ("knn", put("options", {"k": 3, "size": 4}), "'size'"),
        ("knn", put("options/k", "3"), "k is '3'"),
        ("knn", put("options/k", [3]), "k is [3]"),
        ("knn", put("options/k", -1), "k is -1"),
        ("knn", put("row_shapes", [16]), "state of a detector"),
        ("knn", put("row_shapes", {"features": 16}), "state of a detector"),
        ("knn", put("values", None), "state of a detector"),
        ("knn", put("values/fitted_k", [3]), "'fitted_k' is a list, not int"),
        ("knn", put("values/fitted_k", "3"), "'fitted_k' is a str, not int"),
        ("knn", put("values/fitted_k", None), "'fitted_k' is a NoneType, not int"),
        ("react", put("values/_react.limit", {}), "'_react.limit' is a dict, not float"),
        ("react", put("values/_react.limit", "high"), "'_react.limit' is a str, not float"),
        ("react", put("options/percentile", 50), "react is not as it was saved"),
        ("knn", put("values/fitted_k", 9), "knn is not as it was saved"),
        ("knn", put("options/k", 9), "knn is not as it was saved"),
        ("knn", put("row_shapes", {}), "knn is not as it was saved"),
        ("knn", put("more", 1), "knn is not as it was saved"),
        ("knn", remove("sha256"), "knn is not as it was saved"),
        ("knn", remove("id"), "'id'"),
        ("knn", remove("options"), "'options'"),
        ("knn", remove("row_shapes"), "'row_shapes'"),
        ("knn", remove("values"), "'values'"),
        ("knn", remove("values/fitted_k"), "'fitted_k'"),
        ("react", remove("values/_react.percentile"), "'_react.percentile'"),
    ],
)
def test_what_is_no_state_is_refused(detector_id: str, change: Callable[[State], None], says: str) -> None:
    tensors, about = copy.deepcopy(state(detector_id))
    change((tensors, about))
    assert says in refusal(ValueError, restore, tensors, about)


@pytest.mark.parametrize("detector_id", ["cosine", "knn", "itp", "kl-matching"])
@pytest.mark.parametrize(
    "change",
    [lambda t: t * torch.nan, lambda t: t[:-1], lambda t: t.float(), lambda t: t + 1, lambda t: t[None]],
    ids=["NaN", "a row less", "single precision", "other values", "an axis more"],
)
def test_a_tensor_that_was_changed_is_refused(detector_id: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors, about = copy.deepcopy(state(detector_id))
    name = next(name for name in tensors if tensors[name].is_floating_point() and "head" not in name)
    tensors[name] = change(tensors[name]).contiguous()
    assert f"{detector_id} is not as it was saved" in refusal(ValueError, restore, tensors, about)


@pytest.mark.parametrize(
    ("detector_id", "name"),
    [("knn", "bank"), ("mahalanobis", "class_gaussians.whitening"), ("react", "head.bias"), ("vim", None)],
)
def test_a_tensor_that_is_missing_is_named(detector_id: str, name: str | None) -> None:
    tensors, about = state(detector_id)
    name = name or next(iter(tensors))
    del tensors[name]
    assert repr(name) in refusal(ValueError, restore, tensors, about)


@pytest.mark.parametrize("about", [None, [], "knn", 3, {}])
def test_what_is_no_description_is_refused(about: Any) -> None:
    assert "not the state of a detector" in refusal(ValueError, restore, {}, about)


def test_a_head_that_does_not_fit_is_refused() -> None:
    tensors, about = state("react")
    tensors["head.bias"] = torch.zeros(3)
    assert "a head needs" in refusal(ValueError, restore, tensors, about)
    assert "a head needs" in refusal(ValueError, Head, torch.zeros(4, 16), torch.zeros(3))
