"""Image sets that a user names: their classes, the order of these, what is held out, and what may not be shared.

The functions are called as a run calls them, without a network.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.errors import UserError
from benchmark.images.entries import ClassPart, ImageSetEntry
from benchmark.images.image_set import ImageSet, ImageSetError, image_set_of_pixels
from benchmark.images.readers import Images
from benchmark.user.image_sets import (
    MOST_CLASSES,
    GivenImages,
    NamedSet,
    _label_values,
    _sort_names,
    check_apart,
    classes_of,
    hold_out,
    median_size,
    named_set,
)
from tests.test_image_sets import png, write_image


def named(role: str, text: str | Path, **known: ImageSetEntry) -> NamedSet:
    return named_set(role, str(text), known, Path("data"))


def folders(place: Path, **images: int) -> Path:
    """A folder with so many images of each class."""
    for name, count in images.items():
        (place / name).mkdir(parents=True)
        for number in range(count):
            write_image(place / name / f"{number}.png", (number, 0, 0))
    return place


def table(file: Path, names: list[str] | None = None, **columns: object) -> Path:
    """A Parquet file of images, perhaps with the names that `datasets` keeps of its classes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = len(next(iter(columns.values())))  # type: ignore[arg-type]
    content = pa.table({"image": [{"bytes": png(row), "path": None} for row in range(rows)], **columns})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(content, file)
    return file


def entry_of(folder: Path, classes: tuple[str, ...], **values: object) -> ImageSetEntry:
    about = {"title": "t", "licence": "l", "source": "s", "folder": folder, "classes": classes}
    return ImageSetEntry.in_file(Path("sets.toml"), Path("data"), **about, **values)


def loaded(given: NamedSet, classes: tuple[str, ...]) -> ImageSet:
    return given.with_classes(classes).load({})


# --- Classes of a table. ---


def test_a_table_of_the_hub_says_what_its_indices_stand_for(tmp_path: Path) -> None:
    """Also where the names are numbers in another order, so that an index could be taken for a name."""
    for names in (["pear", "apple", "fig"], ["2", "0", "1"]):
        file = table(tmp_path / f"{names[0]}.parquet", names, label=[0, 2, 1, 0])
        given = named("test", file)
        assert _label_values([file], "label") == (names, True)
        assert classes_of(given, []) == tuple(names)
        assert loaded(given, tuple(names)).labels.tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        ([3, 0], ["0", "1", "2", "3"], True),  # indices of which some have no images
        (["10", "9", "a"], ["10", "9", "a"], False),  # not all are numbers
        (["b", "a", "b"], ["a", "b"], False),
        ([MOST_CLASSES - 1], None, True),
    ],
)
def test_the_classes_of_a_column(
    tmp_path: Path, labels: list[object], classes: list[str] | None, indices: bool
) -> None:
    found, are_indices = _label_values([table(tmp_path / "t.parquet", label=labels)], "label")
    assert are_indices == indices
    assert len(found) == MOST_CLASSES if classes is None else found == classes


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, None], "one has none or a negative number"),
        (["a", None], "one has none or a negative number"),
        ([0, -1], "one has none or a negative number"),
        ([0, MOST_CLASSES], "is no index of a class"),
    ],
)
def test_a_column_that_lacks_a_class_is_refused_of_in_distribution_images_alone(
    tmp_path: Path, labels: list[object], says: str
) -> None:
    file = table(tmp_path / "t.parquet", label=labels)
    with pytest.raises(UserError, match=f"t.parquet: column label: .*{says}"):
        named("test", file)
    assert len(named("ood", file).load({})) == 2  # whose classes nobody asks for


def test_of_two_columns_of_classes_the_one_called_label_is_taken(tmp_path: Path) -> None:
    both = table(tmp_path / "both.parquet", fine_label=[2, 1, 0], label=[0, 1, 0])
    fine = table(tmp_path / "fine.parquet", fine_label=[2, 1, 0])
    assert classes_of(named("test", both), []) == ("0", "1")
    assert loaded(named("test", both), ("0", "1")).labels.tolist() == [0, 1, 0]
    assert loaded(named("test", fine), ("0", "1", "2")).labels.tolist() == [2, 1, 0]


# --- Classes of several sets. ---


def test_names_are_in_order_and_by_value_where_all_are_numbers() -> None:
    assert _sort_names(["10", "9", "1"]) == ["1", "9", "10"]
    assert _sort_names(["10", "9", "x"]) == ["10", "9", "x"]


def test_training_images_say_what_the_classes_are_and_test_images_may_lack_some(tmp_path: Path) -> None:
    train = named("train", folders(tmp_path / "train", a=2, b=2, c=2))
    test = named("test", folders(tmp_path / "test", c=1, a=1))
    val = named("val", folders(tmp_path / "val", b=1))
    classes = classes_of(test, [train, val])
    assert classes == classes_of(test, [val, train]) == ("a", "b", "c")
    assert loaded(test, classes).labels.tolist() == [0, 2]
    assert loaded(val, classes).labels.tolist() == [1]
    assert classes_of(test, []) == ("a", "c")
    with pytest.raises(UserError, match=r"val: unknown classes b: the 2 classes are those of --id .*test \(a, c"):
        classes_of(test, [val])
    with pytest.raises(ImageSetError, match="no image of class d"):  # the twin: of training images no class may lack
        loaded(train, (*classes, "d"))


def test_an_empty_folder_of_a_class_is_a_mistake(tmp_path: Path) -> None:
    test = named("test", folders(tmp_path / "test", a=1, b=0, c=1))
    assert classes_of(test, []) == ("a", "b", "c")
    with pytest.raises(ImageSetError, match="no image of class b"):
        loaded(test, ("a", "b", "c"))
    assert len(loaded(test, ("a", "b", "c", "d"))) == 2  # a class of other images, of which these have no folder


def test_hidden_folders_are_no_classes_and_images_beside_folders_have_theirs(tmp_path: Path) -> None:
    place = folders(tmp_path / "test", a=1, b=1)
    (place / ".cache").mkdir()
    folders(place / "b", inside=1)
    test = named("test", place)
    assert classes_of(test, []) == ("a", "b")
    assert loaded(test, ("a", "b")).labels.tolist() == [0, 1, 1]


def test_an_entry_decides_the_order_and_that_of_the_training_images_first(tmp_path: Path) -> None:
    place = folders(tmp_path / "known", a=1, b=1, c=1)
    known = {
        "known-test": entry_of(place, ("c", "a", "b")),
        "known-train": entry_of(place, ("b", "c", "a")),
    }
    test, train = named("test", "known-test", **known), named("train", "known-train", **known)
    of_user = named("train", folders(tmp_path / "train", a=1, b=1))
    assert classes_of(test, [of_user]) == ("c", "a", "b")
    assert classes_of(test, [train]) == classes_of(test, [of_user, train]) == ("b", "c", "a")
    assert test.with_classes(("x",)) is test  # its entry knows better


# --- What may not be shared. ---


def test_no_place_is_in_distribution_and_ood_or_two_splits(tmp_path: Path) -> None:
    whole = folders(tmp_path / "whole", a=1, b=1)
    test, inside = named("test", whole), f"{whole}/a"
    for other, where in (("ood", inside), ("ood", tmp_path), ("train", inside), ("val", whole)):
        sets = [[test, named(other, f"other={where}")], []] if other != "ood" else [[test], [named(other, where)]]
        why = "cannot be OOD" if other == "ood" else "each split needs images of its own"
        with pytest.raises(UserError, match=rf"these are images of --id .*whole: .*{why}"):
            check_apart(*sets)
    check_apart([test], [named("ood", folders(tmp_path / "else", a=1))])
    # Two OOD sets may share images: a set, and a part of it.
    far = folders(tmp_path / "far", x=1, y=1)
    check_apart([test], [named("ood", far), named("ood", far / "x")])


def test_two_sets_need_two_names(tmp_path: Path) -> None:
    one, other = folders(tmp_path / "1" / "same", a=1), folders(tmp_path / "2" / "same", a=1)
    for sets in ([[named("test", one), named("train", other)], []], [[named("test", one)], [named("ood", other)]]):
        with pytest.raises(UserError, match="is called same, too: name one, as in"):
            check_apart(*sets)
    check_apart([named("test", one)], [named("ood", f"x={other}")])


def test_splits_of_one_folder_are_apart_and_the_whole_of_it_is_not(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table(tmp_path / "hub" / f"{split}-00000-of-00001.parquet", label=[0, 1])
    file = tmp_path / "hub" / "test-00000-of-00001.parquet"
    test, train = (named(role, f"{tmp_path / 'hub'}:{role}") for role in ("test", "train"))
    check_apart([test, train], [])
    for again in (named("val", f"v={tmp_path / 'hub'}:test"), named("val", f"v={file}")):
        with pytest.raises(UserError, match="each split needs images of its own"):
            check_apart([test, again], [])


def test_one_object_is_not_two_sets_and_equal_ones_are_two(tmp_path: Path) -> None:
    def given(role: str, origin: object) -> NamedSet:
        images = Images(ids=["a"], names=[], encoded=lambda index: b"", coding="png", files=list)
        return NamedSet(role, role, role, None, entry_of(tmp_path, ()), GivenImages(origin, images, None))

    one, equal = [1, 2], [1, 2]
    check_apart([given("test", one)], [given("ood", equal), named("ood", folders(tmp_path / "x", a=1))])
    with pytest.raises(UserError, match="cannot be OOD"):
        check_apart([given("test", one)], [given("ood", one)])


# --- Images that are held out. ---


def labelled(*counts: int) -> ImageSet:
    """Images without content, so many of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = image_set_of_pixels("s", "S", len(labels), lambda index: np.zeros((1, 1, 3)), licence="l", source="s")
    return replace(images, labels=labels)


@pytest.mark.parametrize(
    ("counts", "held"),
    [((9, 4), 0), ((9, 5), 1), ((40, 9), 1), ((10, 40), 2), ((249, 900), 49), ((250, 900), 50), ((900, 900), 50)],
)
def test_a_fifth_of_the_smallest_class_is_held_out_of_each_and_fifty_at_most(
    tmp_path: Path, counts: tuple[int, ...], held: int
) -> None:
    test = named("test", folders(tmp_path / "test", a=1, b=1))
    others, splits, told = hold_out(test, {"train": test}, labelled(*counts))
    if not held:
        assert (others, splits) == (test, {"train": test})
        assert told == "Nothing of test is held out as val: its smallest class has 4 images."
        return
    assert (others.id, others.role) == ("test", "test")
    assert others.entry.part == ClassPart(per_class=held, others=True)
    assert {role: split.id for role, split in splits.items()} == {"train": "test", "val": "test-val"}
    assert splits["val"].entry.part == ClassPart(per_class=held)
    assert f"the first {held} images of each class of test, {2 * held} in all, are held out as val" in told
    assert f"the other {sum(counts) - 2 * held} are the test images" in told


def test_of_a_set_with_a_known_number_of_images_some_are_held_out(tmp_path: Path) -> None:
    place = folders(tmp_path / "known", a=5, b=6)
    known = {"known": entry_of(place, ("a", "b"), images=11)}
    test = named("test", "known", **known)
    others, splits, _ = hold_out(test, {}, test.load(known))
    assert [len(given.load(known)) for given in (others, splits["val"])] == [9, 2]


def test_of_a_part_of_a_set_nothing_is_held_out(tmp_path: Path) -> None:
    part = {"known": entry_of(folders(tmp_path / "known", a=9), ("a",), part=ClassPart(per_class=7))}
    test = named("test", "known", **part)
    assert hold_out(test, {}, labelled(7)) == (
        test, {}, "Nothing of known is held out as val: it is a part of a set already."
    )  # fmt: skip


# --- The size of the unit tests. ---


def sized(*sizes: tuple[int, int]) -> ImageSet:
    """Images of some heights and widths."""
    return image_set_of_pixels(
        "s", "S", len(sizes), lambda index: np.zeros((*sizes[index], 3), np.uint8), licence="l", source="s"
    )


def test_unit_tests_have_the_median_height_and_width_but_not_more_than_the_suites() -> None:
    assert median_size(sized((20, 30), (40, 10), (30, 200)), (224, 224)) == (30, 30)
    assert median_size(sized((20, 30)), (224, 224)) == (20, 30)  # height and width
    assert median_size(sized((300, 400)), (224, 192)) == (224, 192)
    assert median_size(sized((100, 400)), (224, 224)) == (100, 400)
    # A sample of the images shows it, and not the first one alone.
    assert median_size(sized((9, 9), *[(20, 30)] * 99), (224, 224)) == (20, 30)
