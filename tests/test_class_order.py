"""Which class an output stands for: the checkpoint decides, and where nothing does, a bad fit is told."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark import evaluate
from benchmark.errors import UserError
from benchmark.models.class_order import check_order, label_names_in, label_names_of, order_of_outputs
from benchmark.models.entries import ModelError
from benchmark.records import ModelRecord
from benchmark.running.class_doubt import doubt_of_order
from benchmark.user.image_sets import _label_values

COLOURS = ("blue", "green", "red")


def order(
    label_names: Sequence[tuple[str, ...]], outputs: int = 3, words: tuple[str, ...] = COLOURS
) -> tuple[str, ...]:
    return order_of_outputs("net", label_names, COLOURS, words, outputs)


# --- The checkpoint decides. ---


def test_the_names_of_the_checkpoint_decide_where_they_are_those_of_the_classes() -> None:
    assert order([("red", "blue", "green")]) == ("red", "blue", "green")
    assert order([("0", "1", "2"), ("red", "blue", "green")]) == ("red", "blue", "green")  # the others say nothing
    assert order([("r", "b", "g")], words=("b", "g", "r")) == ("red", "blue", "green")
    assert order([]) == order([("x", "y", "z")]) == COLOURS


def test_a_set_may_lack_classes_that_the_checkpoint_names() -> None:
    assert order([("red", "grey", "blue", "green")], outputs=4) == ("red", "grey", "blue", "green")
    with pytest.raises(
        ModelError, match=r"model net: it has 4 classes, the in-distribution images have 3: blue, green"
    ):
        order([], outputs=4)
    with pytest.raises(
        ModelError, match=r"it has 4 classes \(its checkpoint names them w, x, y, z\), .* training images"
    ):
        order([("w", "x", "y", "z")], outputs=4)
    with pytest.raises(ModelError, match="it has 2 classes"):
        order([("red", "blue")], outputs=2)


def test_names_that_are_more_than_the_outputs_say_nothing_of_them() -> None:
    assert order([("red", "grey", "blue", "green")]) == COLOURS
    assert order([("red", "grey", "blue", "green"), ("green", "red", "blue")]) == ("green", "red", "blue")


def test_a_network_that_is_to_be_trained_has_the_classes_of_its_images_in_their_order() -> None:
    check_order("net", [COLOURS], COLOURS, COLOURS, 3)
    check_order("net", [], (), (), 3)
    with pytest.raises(ModelError, match=r"its outputs are red, blue, green, and the classes .* are blue, green, red"):
        check_order("net", [("red", "blue", "green")], COLOURS, COLOURS, 3)
    with pytest.raises(ModelError, match="its outputs are blue, green, red, grey"):
        check_order("net", [(*COLOURS, "grey")], COLOURS, COLOURS, 4)


def test_a_checkpoint_that_contradicts_itself_is_refused_with_both_orders() -> None:
    with pytest.raises(ModelError, match="in two orders: red, blue, green and green, red, blue"):
        order([("red", "blue", "green"), ("green", "red", "blue")])
    assert order([("red", "blue", "green"), ("red", "blue", "green")]) == ("red", "blue", "green")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"label_names": ["b", "a"]}, [("b", "a")]),
        ({"id2label": {"1": "a", "0": "b"}}, [("b", "a")]),
        ({"id2label": {"10": "x"} | {str(i): f"c{i}" for i in range(10)}}, [(*(f"c{i}" for i in range(10)), "x")]),
        ({"label_names": ["b", "a"], "pretrained_cfg": {"label_names": ["a", "b"]}}, [("b", "a"), ("a", "b")]),
        ({"label_names": {"0": "b", "1": "a"}}, [("b", "a")]),
        ({"labels": ["b", "a"]}, [("b", "a")]),
        ({"label_names": ["a", "a"]}, []),
        ({"id2label": {"2": "a", "0": "b"}}, []),
        ({"label_names": "ab", "pretrained_cfg": 3}, []),
        ([], []),
        (None, []),
    ],
)
def test_names_are_read_wherever_a_checkpoint_keeps_them(
    tmp_path: Path, config: object, names: list[tuple[str, ...]]
) -> None:
    assert label_names_of(config) == names
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert label_names_in(tmp_path / "config.json") == names
    assert label_names_in(tmp_path / "gone.json") == []


@pytest.fixture
def other_order(world: Path, tmp_path: Path) -> Callable[[str, Sequence[str]], Path]:
    """A checkpoint whose outputs are those of the network of the world, in the order of its classes, turned round."""

    def make(key: str, names: Sequence[str]) -> Path:
        folder = shutil.copytree(world / "net", tmp_path / "net")
        config = json.loads((folder / "config.json").read_text())
        config.pop("label_names", None)
        where = config["pretrained_cfg"] if key == "pretrained_cfg" else config
        where["label_names" if key == "pretrained_cfg" else key] = (
            {str(index): name for index, name in enumerate(names)} if key == "id2label" else list(names)
        )
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize("key", ["label_names", "id2label", "pretrained_cfg"])
def test_a_run_takes_the_order_of_the_checkpoint(
    world: Path, other_order: Callable[[str, Sequence[str]], Path], key: str
) -> None:
    """Folders that are called otherwise, so that they sort otherwise, give the same figures."""
    given = {"in_distribution": str(world / "images/colours-test"), "train": str(world / "images/colours-train")}
    ood, detectors = {"noise": str(world / "images/noise")}, ["msp", "mahalanobis", "kl-matching"]
    straight = evaluate(f"local-dir:{world / 'net'}", **given, ood=ood, detectors=detectors)
    names = ["x-blue", "m-green", "a-red"]
    renamed = {}
    for role, place in given.items():
        renamed[role] = str(world.parent / f"{key}-{role}")
        for name in names:
            shutil.copytree(Path(place) / name.split("-")[1], Path(renamed[role]) / name)
    turned = evaluate(f"local-dir:{other_order(key, names)}", **renamed, ood=ood, detectors=detectors)
    accuracy = [next(record for record in run.records if isinstance(record, ModelRecord)) for run in (straight, turned)]
    assert accuracy[0].id_accuracy == accuracy[1].id_accuracy
    for one, other in zip(straight.cases, turned.cases, strict=True):
        assert one.metrics.oscr.value == other.metrics.oscr.value
        assert one.metrics.fpr_at_95.value == other.metrics.fpr_at_95.value


# --- A doubt where nothing says the order. ---


def predictions(accuracy: float, classes: int, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and what a network of some accuracy predicts."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    right = generator.random(len(labels)) < accuracy
    return labels, np.where(right, labels, generator.integers(0, classes, len(labels)))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.integers(2, 30), st.integers(1, 40), st.integers(0, 2**31))
def test_a_right_order_is_not_doubted_however_weak_the_network(
    accuracy: float, classes: int, per_class: int, seed: int
) -> None:
    labels, predicted = predictions(accuracy, classes, per_class, seed)
    assert doubt_of_order(labels, predicted, [f"c{index}" for index in range(classes)]) is None


def test_of_many_right_orders_none_is_doubted_by_chance() -> None:
    """Networks that guess, for which another order is often a little better."""
    for seed in range(400):
        labels, predicted = predictions(0.1 * (seed % 2), 4, 12, seed)
        assert doubt_of_order(labels, predicted, "abcd") is None, seed


def test_the_order_of_the_images_hides_no_doubt() -> None:
    """Of images of two classes in turn, every other one is of one class."""
    labels = np.tile([0, 1], 60)
    for shuffled in (labels, np.sort(labels), np.random.default_rng(0).permutation(labels)):
        told = doubt_of_order(shuffled, 1 - shuffled, ["cat", "dog"])
        assert told
        assert "0.0% of the ID test images are right, and with another order 100.0% would be" in told


def test_a_doubt_tells_the_class_of_which_most_images_show_it() -> None:
    labels = np.repeat([0, 1, 2, 3], [20, 20, 90, 80])
    turn = np.array([1, 0, 3, 2])
    told = doubt_of_order(labels, turn[labels], ["a", "b", "c", "d"])
    assert told
    assert "Output 3 is taken for 'd', and is largest for images of 'c'." in told


@pytest.mark.parametrize("swapped", [2, 4, 8])
def test_a_wrong_order_is_told_even_where_half_of_the_classes_are_right(swapped: int) -> None:
    labels, predicted = predictions(0.9, 8, 25, 0)
    turn = np.r_[np.roll(np.arange(swapped), 1), np.arange(swapped, 8)]
    names = ["Apple", "Cherry", "Elder", "Grape", "banana", "date", "fig", "honey"]
    told = doubt_of_order(labels, turn[predicted], names)
    assert told
    assert "with another order 85.0% would be" in told
    shown = next(index for index in range(swapped) if f"largest for images of {names[index]!r}" in told)
    assert f"is taken for {names[turn[shown]]!r}" in told


def test_a_network_that_confuses_two_classes_is_not_doubted() -> None:
    """It calls half of the cats dogs: another order fits no better."""
    labels, predicted = predictions(1.0, 4, 100, 0)
    predicted = predicted.copy()
    predicted[:50] = 1
    assert doubt_of_order(labels, predicted, "abcd") is None


def test_a_run_tells_a_doubt(world: Path) -> None:
    place = world.parent / "doubted"
    digits = Path("benchmark/models/checkpoints/digits-resnet")
    checkpoint = shutil.copytree(Path(__file__).parents[1] / digits, world.parent / "unnamed")
    (checkpoint / "SHA256SUMS").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"label_names": None}))
    from benchmark.images.image_set import load_image_set

    digits_test = load_image_set("digits-test")
    for index in range(0, len(digits_test), 2):
        label = int(digits_test.labels[index])
        folder = place / f"{'bcadefgh'[label]}"
        folder.mkdir(parents=True, exist_ok=True)
        digits_test[index].save(folder / f"{index}.png")
    found = evaluate(
        f"local-dir:{checkpoint}",
        in_distribution=str(place),
        ood={"noise": str(world / "images/noise")},
        detectors="msp",
    )
    [told] = [remark for remark in found.remarks if remark.startswith("WARNING")]
    assert "its outputs seem to stand for other classes than they are taken for" in told


# --- Labels of a table keep the order of their values. ---


@pytest.mark.parametrize(
    ("values", "kind", "classes", "indices"),
    [
        ([10.0, 2.0, 1.0], pa.float64(), ["1.0", "2.0", "10.0"], False),
        ([2, 0, 1], pa.int64(), ["0", "1", "2"], True),
        (["10", "9", "1"], pa.string(), ["1", "9", "10"], False),
        (["b", "a"], pa.dictionary(pa.int32(), pa.string()), ["a", "b"], False),
        ([True, False], pa.bool_(), ["0", "1"], True),
        ([-1.5, 3.0], pa.float32(), ["-1.5", "3.0"], False),
    ],
)
def test_labels_keep_the_order_of_their_values(
    tmp_path: Path, values: list[object], kind: pa.DataType, classes: list[str], indices: bool
) -> None:
    file = tmp_path / "images.parquet"
    pq.write_table(pa.table({"label": pa.array(values, pa.string() if "dict" in str(kind) else kind).cast(kind)}), file)
    assert _label_values([file], "label") == (classes, indices)


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.struct([("a", pa.int64())])])
def test_labels_that_are_no_single_value_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    file = tmp_path / "images.parquet"
    pq.write_table(pa.table({"label": pa.nulls(3, kind)}), file)
    with pytest.raises(UserError, match=r"images.parquet: column label holds .*: each image needs one class"):
        _label_values([file], "label")


def test_a_network_that_is_to_be_trained_has_the_order_of_the_set() -> None:
    check_order("net", [("blue", "green", "red")], COLOURS, COLOURS, 3)
    check_order("net", [], COLOURS, COLOURS, 3)
    check_order("net", [], (), (), 3)
    with pytest.raises(
        ModelError, match="its outputs are red, blue, green, and the classes of the training images are"
    ):
        check_order("net", [("red", "blue", "green")], COLOURS, COLOURS, 3)
