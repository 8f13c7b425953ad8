"""Image sets: folders, lists and Parquet files are read as their entries say, and mistakes in them are named."""

import hashlib
import io
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from benchmark.entries import read_entries
from benchmark.images.entries import BUILT_IN, ClassPart, Columns, Contamination, ImageSetEntry
from benchmark.images.image_set import (
    ImageSet,
    ImageSetError,
    MissingImageSetError,
    _is_in_part,
    image_set_of_pixels,
    load_image_set,
)
from benchmark.running.loaded_suite import set_record
from benchmark.running.store import Store
from benchmark.suites.loading import load_suite
from benchmark.user.messages import told

SHARED = Path(__file__).parents[2] / "shared" / "data"


def folder_set(folder: Path, **values: object) -> dict[str, ImageSetEntry]:
    entry = ImageSetEntry.in_file(folder / "sets.toml", title="t", licence="l", source="s", folder=folder, **values)
    return {"set": entry}


def write_image(path: Path, colour: tuple[int, ...] = (1, 2, 3), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6), colour).save(path)


def test_a_folder_of_classes_gives_ids_labels_and_rgb_images(world: Path) -> None:
    images = load_image_set("colours-train", load_suite(str(world / "colours.toml")).image_sets)
    assert len(images) == 36
    assert images.image_ids[:2] == ("blue/00.png", "blue/01.png")
    assert images.labels is not None
    assert np.bincount(images.labels).tolist() == [12, 12, 12]
    assert images[0].mode == "RGB"
    assert images[0].size == (32, 32)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    write_image(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), 1 if mode in "LP1" else (9, 9, 9, 255), mode)
    assert load_image_set("set", folder_set(tmp_path))[0].mode == "RGB"


def test_image_files_are_found_whatever_their_ending(tmp_path: Path) -> None:
    write_image(tmp_path / "a.gif")
    write_image(tmp_path / "b.JPEG")
    assert load_image_set("set", folder_set(tmp_path)).image_ids == ("a.gif", "b.JPEG")


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "the file is empty"), (None, "truncated"), (b"no image", "no image of a known kind")]
)
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    random = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(random).save(tmp_path / "bad.png")
    whole = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    images = load_image_set("set", folder_set(tmp_path))
    with pytest.raises(ImageSetError, match=rf"image set set: cannot decode bad.png: .*{says}"):
        images[0]
    (tmp_path / "bad.png").write_bytes(whole)
    assert images[0].size == (64, 64)  # the twin: the complete file decodes


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ImageSetError, match=rf"no image files in {tmp_path}"):
        load_image_set("set", folder_set(tmp_path))


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"there is no folder .*nowhere"):
        load_image_set("set", folder_set(tmp_path / "nowhere"))
    entry = folder_set(tmp_path)["set"].model_copy(update={"folder": None, "parquet": tmp_path / "no.parquet"})
    with pytest.raises(ImageSetError, match=r"there is no file .*no\.parquet"):
        load_image_set("set", {"set": entry})


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    entry = folder_set(tmp_path)["set"].model_copy(update={"folder": None, "parquet": tmp_path / "bad.parquet"})
    with pytest.raises(ImageSetError, match=r"cannot read .*bad\.parquet"):
        load_image_set("set", {"set": entry})


def test_a_set_with_another_count_than_expected_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    assert len(load_image_set("set", folder_set(tmp_path, images=1))) == 1
    with pytest.raises(ImageSetError, match=r"1 images .* 2 expected"):
        load_image_set("set", folder_set(tmp_path, images=2))


def test_unknown_class_folders_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "a.png")
    with pytest.raises(ImageSetError, match=r"unknown classes \['cat'\]"):
        load_image_set("set", folder_set(tmp_path, classes=("dog",)))


def test_the_content_hash_changes_with_pixels_names_and_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "a.png")
    write_image(tmp_path / "dog" / "b.png")
    first = load_image_set("set", folder_set(tmp_path, classes=("cat", "dog"))).content_sha256
    assert load_image_set("set", folder_set(tmp_path, classes=("cat", "dog"))).content_sha256 == first
    assert load_image_set("set", folder_set(tmp_path, classes=("dog", "cat"))).content_sha256 != first
    (tmp_path / "cat" / "a.png").rename(tmp_path / "cat" / "c.png")
    assert load_image_set("set", folder_set(tmp_path, classes=("cat", "dog"))).content_sha256 != first
    (tmp_path / "cat" / "c.png").rename(tmp_path / "cat" / "a.png")
    write_image(tmp_path / "cat" / "a.png", (3, 2, 1))
    assert load_image_set("set", folder_set(tmp_path, classes=("cat", "dog"))).content_sha256 != first


def test_hashes_are_those_that_their_docstrings_document(tmp_path: Path) -> None:
    """Stored outputs are found by them: another hash would compute them all anew."""
    write_tree(tmp_path / "t", "cat/1.png", "dog/2.png", "dog/3.png")
    ids = ("cat/1.png", "dog/2.png", "dog/3.png")
    digests = [hashlib.sha256((tmp_path / "t" / path).read_bytes()).hexdigest() for path in ids]
    labelled, plain = load(tmp_path, "t", classes=("dog", "cat")), load(tmp_path, "t")
    for images, labels in ((labelled, [1, 0, 0]), (plain, ["", "", ""])):
        lines = [f"{path}\t{digest}\t{label}\n" for path, digest, label in zip(ids, digests, labels, strict=True)]
        assert images.content_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
        assert images.image_sha256s == {digest[:16]: path for path, digest in zip(ids, digests, strict=True)}


def test_the_hash_of_pixels_covers_all_of_them_and_their_shape() -> None:
    def sha256(pixels: np.ndarray) -> str:
        return image_set_of_pixels("p", "P", len(pixels), pixels.__getitem__, licence="l", source="s").content_sha256

    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 6, 3), dtype=np.uint8)
    changed = pixels.copy()
    changed[2, -1, -1, -1] ^= 1
    assert len({sha256(pixels), sha256(changed), sha256(pixels.reshape(3, 6, 8, 3))}) == 3
    assert sha256(pixels.copy()) == sha256(pixels)


def test_pixels_without_files_are_an_image_set() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    images = image_set_of_pixels("p", "P", 2, pixels.__getitem__, licence="l", source="s")
    assert np.array_equal(np.asarray(images[1]), pixels[1])
    other = image_set_of_pixels("p", "P", 2, (pixels + 1).__getitem__, licence="l", source="s")
    assert images.content_sha256 != other.content_sha256


# Sets below the data folder.


def local_set(data_dir: Path, local: str, **values: object) -> dict[str, ImageSetEntry]:
    about = {"title": "t", "licence": "l", "source": "s", "local": local}
    return {"set": ImageSetEntry.in_file(BUILT_IN, data_dir, **about, **values)}


def load(data_dir: Path, local: str, **values: object) -> ImageSet:
    return load_image_set("set", local_set(data_dir, local, **values))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256, 7)).save(file, "png")
    return file.getvalue()


def write_table(file: Path, images: int, first: int = 0, **columns: list[object]) -> None:
    """A Parquet file with the columns of the Hub's CIFAR: `img`, and the given ones."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": png(first + index), "path": None} for index in range(images)]
    pq.write_table(pa.table({"img": pictures, **columns}), file)


IMG = Columns(image="img", label="fine_label")
COLOURS = ("red", "green", "blue")


def red(images: ImageSet) -> list[int]:
    """The red value of each image, which `png` wrote into it."""
    return [int(np.asarray(images[index])[0, 0, 0]) for index in range(len(images))]


def test_a_table_is_read_by_the_columns_that_its_entry_names(tmp_path: Path) -> None:
    write_table(tmp_path / "cifar" / "test.parquet", 6, fine_label=[2, 0, 1, 2, 0, 1], coarse_label=[9] * 6)
    images = load(tmp_path, "cifar/test.parquet", columns=IMG, labels="index", classes=COLOURS)
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert red(images) == list(range(6))
    assert images.image_ids[0] == "set-0000000"
    assert images.coding == "png"
    assert load(tmp_path, "cifar/test.parquet", columns=IMG).labels is None


def test_a_path_with_brackets_is_not_read_as_a_pattern(tmp_path: Path) -> None:
    write_table(tmp_path / "old [1] {2}" / "t.parquet", 2)
    assert len(load(tmp_path, "old [1] {2}/t.parquet", columns=IMG)) == 2


def test_shards_are_one_table_in_order(tmp_path: Path) -> None:
    for shard in range(3):
        write_table(tmp_path / f"v/val-{shard:05d}-of-00003.parquet", 4, first=4 * shard, fine_label=[shard] * 4)
    images = load(tmp_path, "v", columns=IMG, labels="index", classes=COLOURS)
    assert red(images) == list(range(12))
    assert images.labels is not None
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    (tmp_path / "v" / "val-00001-of-00003.parquet").unlink()
    with pytest.raises(ImageSetError, match=r"1 of the 3 shards val are not in .*val-00001-of-00003.parquet"):
        load(tmp_path, "v", columns=IMG)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, r"test\.parquet has no column 'image' but img, fine_label"),
        ({"columns": IMG, "labels": "index", "classes": ("a", "b")}, r"unknown classes \['2'\].*0 to 1"),
        ({"columns": IMG, "classes": ("2", "red", "1")}, r"unknown classes \['0'\]"),
        ({"columns": IMG, "list_file": "list.txt"}, r"`list_file` goes with a folder of images"),
        ({"columns": IMG, "images": (5, 7)}, r"6 images in .*test\.parquet, 5 or 7 expected"),
        ({"columns": IMG, "rows": {"split": "test"}}, r"no column 'split'"),
        ({"columns": IMG, "leave_out": ("folder",)}, r"`leave_out` names 'folder'"),
        ({"columns": Columns(image="fine_label")}, r"cannot read .*test\.parquet"),
    ],
)
def test_a_table_that_does_not_fit_its_entry_is_refused(tmp_path: Path, values: dict, says: str) -> None:
    write_table(tmp_path / "test.parquet", 6, fine_label=[2, 0, 1, 2, 0, 1])
    (tmp_path / "list.txt").write_text("test.parquet\n")
    with pytest.raises(ImageSetError, match=says) as caught:
        load(tmp_path, "test.parquet", **values)
    assert not isinstance(caught.value, MissingImageSetError)
    assert len(load(tmp_path, "test.parquet", columns=IMG, images=(6, 7))) == 6  # the twin


def test_integers_of_a_table_are_indices_where_no_class_has_an_integer_as_its_name(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 3, fine_label=[2, 0, 1])
    as_names = load(tmp_path, "t.parquet", columns=IMG, classes=("2", "1", "0")).labels
    as_indices = load(tmp_path, "t.parquet", columns=IMG, classes=COLOURS).labels
    assert as_names is not None
    assert as_names.tolist() == [0, 2, 1]
    assert as_indices is not None
    assert as_indices.tolist() == [2, 0, 1]


@pytest.mark.parametrize("labels", [[[0], [1]], [0.0, 1.0], [None, 0], [-1, 0]])
def test_labels_that_are_not_indices_are_refused(tmp_path: Path, labels: list[object]) -> None:
    write_table(tmp_path / "t.parquet", 2, fine_label=labels)
    with pytest.raises(ImageSetError, match=r"unknown classes .* in .*t\.parquet"):
        load(tmp_path, "t.parquet", columns=IMG, labels="index", classes=COLOURS)


def test_a_table_with_paths_in_place_of_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "/home/me/a.png"}]}), tmp_path / "t.parquet")
    with pytest.raises(ImageSetError, match=r"no bytes, only the path /home/me/a.png"):
        load(tmp_path, "t.parquet")


def test_a_damaged_or_deleted_file_does_not_count_as_a_missing_set(tmp_path: Path) -> None:
    write_table(tmp_path / "v" / "a.parquet", 3)
    (tmp_path / "v" / "b.parquet").write_bytes((tmp_path / "v" / "a.parquet").read_bytes()[:-9])
    with pytest.raises(ImageSetError, match=r"cannot read .*b\.parquet") as caught:
        load(tmp_path, "v", columns=IMG)
    assert not isinstance(caught.value, MissingImageSetError)
    write_image(tmp_path / "w" / "a.png")
    images = load(tmp_path, "w")
    (tmp_path / "w" / "a.png").unlink()
    with pytest.raises(ImageSetError, match=r"image set set: cannot read a\.png"):
        images[0]


# Sets that nobody has fetched.

URL = {"url": "https://example.org/set.zip"}
MANUAL = {"manual": "Accept the terms at example.org,\nand unpack set.zip in imagenet"}


@pytest.mark.parametrize("there", [False, True])  # an empty folder counts as missing, too
def test_the_error_for_a_missing_set_says_how_to_get_it(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "imagenet").mkdir()
    with pytest.raises(MissingImageSetError) as caught:
        load(tmp_path, "imagenet", sources=(URL, MANUAL))
    assert str(caught.value) == f"image set set: there is no {tmp_path}/imagenet"
    assert told(caught.value) == f"{caught.value}; get it with: python -m benchmark fetch set --data-dir {tmp_path}"


def test_the_command_that_fetches_a_set_of_a_suite_file_names_that_file(tmp_path: Path) -> None:
    entry = local_set(tmp_path, "x", sources=(URL,))["set"].model_copy(update={"file": tmp_path / "my suite.toml"})
    with pytest.raises(MissingImageSetError) as caught:
        load_image_set("set", {"set": entry})
    assert f"fetch set --suite '{tmp_path}/my suite.toml' --data-dir" in told(caught.value)


def test_the_error_for_a_manual_download_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingImageSetError) as caught:
        load(tmp_path, "imagenet/val", sources=(MANUAL,))
    assert str(caught.value) == (
        f"image set set: there is no {tmp_path}/imagenet/val; get it by hand: Accept the terms at example.org, "
        f"and unpack set.zip in imagenet (paths start from {tmp_path})"
    )
    with pytest.raises(MissingImageSetError, match=r"get it by hand \(paths start"):
        load(tmp_path, "imagenet/val")


def test_a_set_is_missing_where_its_list_or_all_of_its_images_are(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "other" / "a.png")
    with pytest.raises(MissingImageSetError, match=r"there is no list .*lists/ninco\.txt"):
        load(tmp_path, "images", list_file="lists/ninco.txt")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "ninco.txt").write_text("ninco/a.png -1\nninco/b.png -1\n")
    with pytest.raises(MissingImageSetError, match=r"none of the images of .*ninco\.txt are in .*images"):
        load(tmp_path, "images", list_file="lists/ninco.txt")
    write_image(tmp_path / "images" / "ninco" / "b.png")
    with pytest.raises(ImageSetError, match=r"1 of the 2 files in the list .* such as ninco/a\.png") as caught:
        load(tmp_path, "images", list_file="lists/ninco.txt")
    assert not isinstance(caught.value, MissingImageSetError)


# Lists.


def listed(tmp_path: Path, name: str, text: str, **values: object) -> ImageSet:
    for path in ("b/1.png", "b/2.png", "a/1.png", "a b/1 1.png"):
        write_image(tmp_path / "images" / path)
    (tmp_path / name).write_text(text)
    return load(tmp_path, "images", list_file=name, **values)


def test_a_list_chooses_images_and_their_order(tmp_path: Path) -> None:
    images = listed(tmp_path, "l.txt", "b/2.png -1\na/1.png -1\n\na b/1 1.png\n")
    assert images.image_ids == ("b/2.png", "a/1.png", "a b/1 1.png")
    assert images.labels is None


def test_classes_come_from_the_list_or_else_from_the_folders(tmp_path: Path) -> None:
    flat = listed(tmp_path, "l.txt", "b/2.png 1\na/1.png 0\n", classes=("x", "y"), labels="index")
    table = listed(tmp_path, "l.csv", 'image_location,class\nb/2.png,y\n"a b/1 1.png",x\n', classes=("x", "y"))
    folders = listed(tmp_path, "o.txt", "b/2.png -1\na b/1 1.png -1\n", classes=("a b", "b"))
    for images in (flat, table, folders):
        assert images.labels is not None
        assert images.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.txt", "\n", "is empty"),
        ("l.csv", "path,class\n", "is empty"),
        ("l.txt", "a/1.png 0\n../a/1.png 0\n", r"leaves its folder: \.\./a"),
        ("l.txt", "a/1.png\n/etc/1.png\n", "leaves its folder: /etc"),
        ("l.txt", "a/1.png 0\nb/1.png 1\na/1.png 1\n", "names a/1.png twice"),
        ("l.txt", "a/1.png 0\nb/1.png 2\n", r"unknown classes \['2'\] in .*l\.txt"),
        ("l.txt", "a/1.png 0\nb/1.png\n", r"unknown classes \['b'\] in .*l\.txt"),
    ],
)
def test_a_wrong_list_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(ImageSetError, match=says):
        listed(tmp_path, name, text, classes=("x", "y"), labels="index")


# Classes.


def write_tree(folder: Path, *paths: str) -> None:
    for number, path in enumerate(paths):
        write_image(folder / path, (number, 0, 0))


def labels_of(images: ImageSet) -> dict[str, str]:
    assert images.labels is not None
    return {image_id: images.classes[label] for image_id, label in zip(images.image_ids, images.labels, strict=True)}


@pytest.mark.parametrize(
    "files",
    [
        ("test-00000-of-00001.parquet", "train-00000-of-00001.parquet"),
        ("test.parquet", "train.parquet"),
        ("train-00000-of-00001.parquet", "test.parquet", "more.parquet"),
    ],
)
def test_a_folder_with_several_splits_is_not_read_as_one_table(tmp_path: Path, files: tuple[str, ...]) -> None:
    for first, name in enumerate(files):
        write_table(tmp_path / "v" / name, 4, first=4 * first, fine_label=[0] * 4)
    with pytest.raises(
        ImageSetError, match="v holds several splits: test, train; name one of them, as in v:test, or the file of one"
    ):
        load(tmp_path, "v", columns=IMG)


@pytest.mark.parametrize("files", [("train.parquet",), ("a.parquet", "b.parquet"), ("train.parquet", "more.parquet")])
def test_parquet_files_of_a_folder_are_one_table(tmp_path: Path, files: tuple[str, ...]) -> None:
    for first, name in enumerate(files):
        write_table(tmp_path / "v" / name, 4, first=4 * first, fine_label=[0] * 4)
    assert len(load(tmp_path, "v", columns=IMG)) == 4 * len(files)


def test_folders_named_by_indices_are_read_as_numbers(tmp_path: Path) -> None:
    write_tree(tmp_path / "v2", "0/a.jpeg", "10/b.jpeg", "2/c.jpeg")
    classes = tuple(f"n{index:08d}" for index in range(11))
    images = load(tmp_path, "v2", classes=classes, labels="index", images=3)
    assert labels_of(images) == {"0/a.jpeg": classes[0], "10/b.jpeg": classes[10], "2/c.jpeg": classes[2]}
    write_tree(tmp_path / "v2", "011/d.jpeg")
    with pytest.raises(ImageSetError, match=r"unknown classes \['011'\]"):
        load(tmp_path, "v2", classes=classes, labels="index", images=4)


def test_the_top_folder_with_the_name_of_a_class_gives_the_class(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", "test/cat/images/1.png", "test/dog/2.png", "test/dog/cat/3.png")
    images = load(tmp_path, "t", classes=("dog", "cat"))
    assert labels_of(images) == {
        "test/cat/images/1.png": "cat",
        "test/dog/2.png": "dog",
        "test/dog/cat/3.png": "dog",  # a part of the dogs that is called like another class
    }


def test_a_missing_class_folder_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", "cat/1.png", "dog/2.png")
    with pytest.raises(ImageSetError, match=r"no image of class cow in .*t; complete the set"):
        load(tmp_path, "t", classes=("cat", "cow", "dog"))
    with pytest.raises(ImageSetError, match=r"2 images in .*t, 3 expected, and no image of class cow \(and 1 other"):
        load(tmp_path, "t", classes=("cat", "cow", "dog", "elk"), images=3)
    shifted = load(
        tmp_path, "t", classes=("cat", "cow", "dog"), images=2
    )  # complete by its count, though it has only some classes
    assert labels_of(shifted) == {"cat/1.png": "cat", "dog/2.png": "dog"}


def test_a_class_list_gives_classes_and_a_word_for_each(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", "n02/1.png", "n01/2.png")
    (tmp_path / "classes.csv").write_text('class,name\nn02,"house cat, indoors"\nn01,dog\n')
    groups = {"pets": ("n01", "n02"), "cats": ("n02",)}
    images = load(tmp_path, "t", class_list=tmp_path / "classes.csv", class_groups=groups)
    assert images.classes == ("n02", "n01")
    assert images.class_names == ("house cat, indoors", "dog")
    assert images.about["class_groups"] == {"pets": ["n01", "n02"], "cats": ["n02"]}
    with pytest.raises(ImageSetError, match=r"class_groups\.pets: 'n03' is no class"):
        load(tmp_path, "t", class_list=tmp_path / "classes.csv", class_groups={"pets": ("n03",)})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no class list .*c.csv"),
        ("", "c.csv:1: a class list begins with"),
        ("n01,dog\n", "c.csv:1: a class list begins with"),
        ("class,name\n", "c.csv lists no class"),
        ("class,name\nn01,dog\nn02\n", "c.csv:3: a class and its name are expected, not 'n02'"),
        ("class,name\nn01, \n", "c.csv:2: a class and its name"),
        ("class,name\nn01,house cat, indoors\n", "c.csv:2: a class and its name"),
        ("class,name\nn01,dog\nn01,cat\n", "c.csv:3: 'n01' is there twice"),
        ("class,name\nn01,dog\nn02,dog\n", "c.csv:3: 'dog' is there twice"),
    ],
)
def test_a_wrong_line_of_a_class_list_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    write_tree(tmp_path / "t", "n01/1.png")
    if text is not None:
        (tmp_path / "c.csv").write_text(text)
    with pytest.raises(ImageSetError, match=says):
        load(tmp_path, "t", class_list=tmp_path / "c.csv")


def test_classes_that_are_named_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="name the classes once"):
        local_set(Path("data"), "t", class_list=Path("c.csv"), classes=("a",))
    with pytest.raises(ValueError, match="`classes` must differ"):
        local_set(Path("data"), "t", classes=("a", "a"))


def test_folders_and_classes_can_be_left_out(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", "cat/1.png", "cow/2.png", "dog/3.png", "spare/dog/4.png")
    classes = ("cat", "cow", "dog")
    images = load(tmp_path, "t", classes=classes, class_names=("A", "B", "C"), leave_out=("cow", "spare"))
    assert labels_of(images) == {"cat/1.png": "cat", "dog/3.png": "dog"}
    assert images.class_names == ("A", "C")
    assert load(tmp_path, "t", leave_out=("cow", "spare")).image_ids == ("cat/1.png", "dog/3.png")
    with pytest.raises(ImageSetError, match="`leave_out` names 'cows'"):
        load(tmp_path, "t", leave_out=("cows",))
    with pytest.raises(ImageSetError, match="no image in"):
        load(tmp_path, "t", leave_out=("cat", "cow", "dog"))


def test_a_class_that_is_left_out_takes_its_own_images_alone(tmp_path: Path) -> None:
    """A folder inside of another class, which has its name, is of that class; a table has no folders."""
    write_tree(tmp_path / "t", "cat/1.png", "cow/2.png", "dog/cow/3.png")
    images = load(tmp_path, "t", classes=("cat", "cow", "dog"), leave_out=("cow",))
    assert labels_of(images) == {"cat/1.png": "cat", "dog/cow/3.png": "dog"}
    write_table(tmp_path / "t.parquet", 6, fine_label=[2, 0, 1, 2, 0, 1])
    images = load(tmp_path, "t.parquet", columns=IMG, labels="index", classes=COLOURS, leave_out=("green",))
    assert (red(images), images.labels.tolist(), images.classes) == ([0, 1, 3, 4], [1, 0, 1, 0], ("red", "blue"))
    assert images.image_ids == tuple(f"set-{row:07d}" for row in (0, 1, 3, 4))


def test_a_folder_beside_the_file_is_read_as_images_whatever_else_lies_in_it(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_table(tmp_path / "t.parquet", 3)
    assert load_image_set("set", folder_set(tmp_path)).image_ids == ("a.png",)


def test_some_classes_may_have_no_images_where_the_set_is_complete(tmp_path: Path) -> None:
    write_tree(tmp_path / "images", "b/1.png", "a/1.png", "b/2.png")
    (tmp_path / "l.txt").write_text("b/2.png\na/1.png\n")
    classes = ("a", "none", "b")
    by_list = load(tmp_path, "images", list_file="l.txt", classes=classes)
    assert by_list.labels.tolist() == [2, 0]
    allowed = load(tmp_path, "images", classes=classes, may_lack_classes=True)
    assert allowed.labels.tolist() == [0, 2, 2]
    with pytest.raises(ImageSetError, match="no image of class none"):
        load(tmp_path, "images", classes=classes)


def test_hidden_files_are_not_read_as_images(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", "cat/1.png", "cat/._1.png", ".thumbnails/1.png")
    assert load(tmp_path, "t").image_ids == ("cat/1.png",)


# Parts.


@given(st.lists(st.integers(0, 3), min_size=40, max_size=80), st.integers(1, 3))
def test_each_image_is_in_exactly_one_of_a_part_and_its_others(labels: list[int], per_class: int) -> None:
    known = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, *labels])[::-1]
    entry = local_set(Path("data"), "t", classes=("a", "b", "c", "d"))["set"]
    first = _is_in_part(ClassPart(per_class=per_class), known, entry)
    others = _is_in_part(ClassPart(per_class=per_class, others=True), known, entry)
    assert (first != others).all()
    for label in range(4):
        rows = np.flatnonzero(known == label)
        assert first[rows].tolist() == [True] * per_class + [False] * (len(rows) - per_class)


def test_the_parts_of_a_set_keep_ids_pixels_and_labels(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 8, fine_label=[2, 0, 2, 1, 0, 1, 1, 0])
    about = {"columns": IMG, "labels": "index", "classes": COLOURS}
    first = load(tmp_path, "t.parquet", part=ClassPart(per_class=1), **about)
    others = load(tmp_path, "t.parquet", part=ClassPart(per_class=1, others=True), **about)
    assert (red(first), red(others)) == ([0, 1, 3], [2, 4, 5, 6, 7])
    assert first.labels is not None
    assert others.labels is not None
    assert (first.labels.tolist(), others.labels.tolist()) == ([2, 0, 1], [2, 0, 1, 1, 0])
    assert set(first.image_ids).isdisjoint(others.image_ids)
    without_classes = load(tmp_path, "t.parquet", columns=IMG, part=ClassPart(per_class=3))
    assert red(without_classes) == [0, 1, 2]
    with pytest.raises(ImageSetError, match=r"class blue has only 2 images in .*t\.parquet, and `part` takes 3"):
        load(tmp_path, "t.parquet", part=ClassPart(per_class=3), **about)
    with pytest.raises(ImageSetError, match="no image of class blue"):
        load(tmp_path, "t.parquet", part=ClassPart(per_class=2, others=True), **about)


def test_a_part_of_a_set_that_may_lack_classes_takes_images_of_those_that_it_has(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 5, fine_label=[2, 0, 2, 0, 2])
    about = {"columns": IMG, "labels": "index", "classes": COLOURS, "may_lack_classes": True}
    assert red(load(tmp_path, "t.parquet", part=ClassPart(per_class=2), **about)) == [0, 1, 2, 3]
    with pytest.raises(ImageSetError, match=r"class red has only 2 images .* takes 3"):
        load(tmp_path, "t.parquet", part=ClassPart(per_class=3), **about)
    with pytest.raises(ImageSetError, match=r"class green has only 0 images .* takes 1"):
        load(tmp_path, "t.parquet", part=ClassPart(per_class=1), **about | {"may_lack_classes": False})


# Sets that may overlap.


def overlap(data_dir: Path, one: dict[str, object], other: dict[str, object]) -> bool:
    entries = [local_set(data_dir, **values)["set"] for values in (one, other)]  # type: ignore[arg-type]
    assert entries[0].may_overlap(entries[1]) == entries[1].may_overlap(entries[0])
    return entries[0].may_overlap(entries[1])


def test_sets_at_one_place_may_overlap_unless_their_rows_or_parts_are_disjoint(tmp_path: Path) -> None:
    first, second = ClassPart(per_class=5), ClassPart(per_class=3)
    rest = ClassPart(per_class=5, others=True)
    here = {"local": "a/t.parquet", "classes": COLOURS}
    assert overlap(tmp_path, here, here)
    assert overlap(tmp_path, here, here | {"local": "a"})
    assert not overlap(tmp_path, here, here | {"local": "b"})
    assert not overlap(tmp_path, here | {"local": "ab"}, here | {"local": "a"})
    assert not overlap(tmp_path, here | {"rows": {"split": "a"}}, here | {"rows": {"split": "b"}})
    assert overlap(tmp_path, here | {"part": first}, here | {"part": second})
    assert overlap(tmp_path, here | {"part": first}, here)
    assert overlap(tmp_path, here | {"part": rest}, here | {"part": rest})
    assert not overlap(tmp_path, here | {"part": first}, here | {"part": rest})
    assert not overlap(tmp_path, here | {"part": second}, here | {"part": rest})
    assert overlap(tmp_path, here | {"part": ClassPart(per_class=6)}, here | {"part": rest})
    assert overlap(tmp_path, here | {"part": first}, here | {"part": rest, "leave_out": ("red",)})


def test_lists_at_one_place_overlap_where_they_name_the_same_file(tmp_path: Path) -> None:
    texts = {"val": "openimage/a.png -1\n", "test": "openimage/b.png -1\nninco/c.png\n", "both": "openimage/a.png 3\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    val, test, both, none = ({"local": "i", "list_file": f"{name}.txt"} for name in ("val", "test", "both", "none"))
    assert overlap(tmp_path, val, both)
    assert not overlap(tmp_path, val, test)
    assert not overlap(tmp_path, val, none)  # the list has not been fetched
    assert overlap(tmp_path, val, {"local": "i"})
    assert overlap(tmp_path, test, {"local": "i/ninco"})
    assert not overlap(tmp_path, val, {"local": "i/ninco"})


# Records, decoding, hashes.


def test_the_record_of_a_set_repeats_what_its_entry_says(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", "cat/1.png")
    found = Contamination(of="ImageNet-1k", share=0.2, inspected=400, source="somebody")
    about = {"list_id": "DTD, all", "redistributable": False, "contamination": (found,)}
    record = set_record(load(tmp_path, "t", **about, decoding={"truncated": "grey"}), "far", "run", "suite")
    assert (record.list_id, record.redistributable) == ("DTD, all", False)
    assert record.contamination == [{"of": "ImageNet-1k", "share": 0.2, "inspected": 400, "source": "somebody"}]
    assert record.decoding["truncated"] == "grey"
    assert record.decoding["orientation"] == "as-stored"


def test_images_are_decoded_as_the_entry_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "t").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "t" / "a.jpg", exif=exif)
    assert load(tmp_path, "t")[0].size == (60, 40)
    assert load(tmp_path, "t", decoding={"orientation": "exif"})[0].size == (40, 60)


def test_the_key_of_stored_outputs_changes_only_with_another_decoding(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", "a.png")
    model = SimpleNamespace(weights_sha256="0", preprocessing={})
    usual, named, grey, turned = (
        Store.about(model, load(tmp_path, "t", decoding=decoding))  # type: ignore[arg-type]
        for decoding in ({}, {"truncated": "refuse"}, {"truncated": "grey"}, {"orientation": "exif"})
    )
    assert usual == named
    assert "decoding" not in usual  # so that stores from the time before this choice stay valid
    assert usual != grey != turned != usual


class Reads:
    """Counts how often the files of a set are read."""

    def __init__(self, images: ImageSet) -> None:
        self.count = 0
        self.images = replace(images, encoded=self._read)
        self._encoded = images.encoded

    def _read(self, index: int) -> bytes | np.ndarray:
        self.count += 1
        return self._encoded(index)


def test_files_are_hashed_once_and_only_a_sample_is_hashed_in_the_next_run(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", *(f"{index:03d}.png" for index in range(40)))
    first = Reads(load(tmp_path, "t"))
    expected = first.images.content_sha256, first.images.image_sha256s
    assert first.count <= 41
    second = Reads(load(tmp_path, "t"))
    assert (second.images.content_sha256, second.images.image_sha256s) == expected
    assert 10 <= second.count <= 16  # a sample


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"rows": {"split": "a"}}, {"rows": {"split": "b"}}),
        ({"part": ClassPart(per_class=40)}, {"part": ClassPart(per_class=40, others=True)}),
        ({"rows": {"split": "a"}}, {"rows": {"split": "a"}, "columns": Columns(image="other", label="fine_label")}),
    ],
    ids=["rows", "part", "column"],
)
def test_stored_hashes_are_not_those_of_other_images_of_the_same_file(
    tmp_path: Path, before: dict, after: dict
) -> None:
    """The images that are looked at as a sample are the same in both."""
    pictures = [{"bytes": png(row), "path": None} for row in range(40)]
    others = [pictures[row] if row % 3 == 0 else {"bytes": png(100 + row), "path": None} for row in range(40)]
    columns = {"img": pictures + others, "other": others + pictures, "split": ["a"] * 40 + ["b"] * 40}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    first = load(tmp_path, "t.parquet", **{"columns": IMG} | before)
    kept = first.content_sha256
    second = load(tmp_path, "t.parquet", **{"columns": IMG} | after)
    assert len(first) == len(second) == 40
    assert [row for row, (one, other) in enumerate(zip(red(first), red(second), strict=True)) if one == other] == [
        *range(0, 40, 3)
    ]
    found = second.content_sha256
    shutil.rmtree(tmp_path / ".hashes")
    assert found == load(tmp_path, "t.parquet", **{"columns": IMG} | after).content_sha256 != kept


def test_corrupted_images_differ_by_their_ids_and_their_hashes_are_not_stored(tmp_path: Path) -> None:
    """The code of a corruption may change while the files stay."""
    for name in ("a", "b"):
        write_image(tmp_path / "t" / f"{name}.png", (100, 100, 100))
    images = load(tmp_path, "t", corruption={"kind": "noise", "amount": 30})
    assert images.coding == "pixels"
    assert not np.array_equal(np.asarray(images[0]), np.asarray(images[1]))  # each has noise of its own
    again = load(tmp_path, "t", corruption={"kind": "noise", "amount": 30})
    assert np.array_equal(np.asarray(images[1]), np.asarray(again[1]))
    weaker = load(tmp_path, "t", corruption={"kind": "noise", "amount": 20})
    assert len({images.content_sha256, weaker.content_sha256, load(tmp_path, "t").content_sha256}) == 3
    shutil.rmtree(tmp_path / ".hashes")
    assert images.content_sha256 == again.content_sha256
    assert not (tmp_path / ".hashes").exists()


@pytest.mark.parametrize("damage", ["changed file", "changed sample", "damaged", "cut", "other images"])
def test_stored_hashes_are_computed_again_where_anything_differs(tmp_path: Path, damage: str) -> None:
    write_tree(tmp_path / "t", *(f"{index:03d}.png" for index in range(40)))
    before = load(tmp_path, "t").content_sha256
    kept = tmp_path / ".hashes" / "set"
    content = kept.read_bytes()
    if damage == "changed file":
        write_image(tmp_path / "t" / "001.png", (99, 9, 9))
    elif damage == "changed sample":  # with the same size and time of change
        file = tmp_path / "t" / "000.png"
        state = file.stat()
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif damage == "other images":
        (tmp_path / "t" / "039.png").rename(tmp_path / "t" / "040.png")
    else:
        first, place = (content[32:64], 70)  # of the second image, which is not in the sample
        assert len(content) == 32 + 40 * 32 + 32
        assert first.hex() == hashlib.sha256((tmp_path / "t" / "000.png").read_bytes()).hexdigest()
        other = bytes([content[place] ^ 1])
        kept.write_bytes(content[:place] + other + content[place + 1 :] if damage == "damaged" else content[:-1])
    again = Reads(load(tmp_path, "t"))
    assert (again.images.content_sha256 == before) == (damage in ("damaged", "cut"))
    assert again.count >= 40
    shutil.rmtree(kept.parent)
    assert load(tmp_path, "t").content_sha256 == again.images.content_sha256


def test_a_read_only_data_folder_stays_as_it_is(tmp_path: Path) -> None:
    write_tree(tmp_path / "t", "a.png")
    tmp_path.chmod(0o555)
    try:
        assert load(tmp_path, "t").content_sha256
        assert not (tmp_path / ".hashes").exists()
    finally:
        tmp_path.chmod(0o755)


def test_the_class_lists_of_all_built_in_entries_can_be_read() -> None:
    for entry in read_entries(BUILT_IN, ImageSetEntry).values():
        entry.with_classes()


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(("name", "column", "classes"), [("cifar10", "label", 10), ("cifar100", "fine_label", 100)])
def test_real_cifar_loads(name: str, column: str, classes: int) -> None:
    columns = Columns(image="img", label=column)
    names = tuple(f"class {index}" for index in range(classes))
    images = load(SHARED, f"{name}/test.parquet", columns=columns, labels="index", classes=names, images=10_000)
    assert images.labels is not None
    assert np.bincount(images.labels).tolist() == [10_000 // classes] * classes
    assert (images[0].mode, images[0].size) == ("RGB", (32, 32))


def test_links_are_followed_unless_they_lead_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_image(folder / "a.png")
    (folder / "back").symlink_to(tmp_path)
    assert load_image_set("set", folder_set(folder)).image_ids == ("a.png",)
    (folder / "broken.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ImageSetError, match=r"image set set: cannot read .*broken.png"):
        load_image_set("set", folder_set(folder)).content_sha256  # noqa: B018
    (tmp_path / "else").mkdir()
    write_image(tmp_path / "else" / "b.png")
    (folder / "broken.png").unlink()
    (folder / "more").symlink_to(tmp_path / "else")
    assert load_image_set("set", folder_set(folder)).image_ids == ("a.png", "more/b.png")  # the twin


def test_a_parquet_file_without_rows_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    entry = folder_set(tmp_path)["set"].model_copy(update={"folder": None, "parquet": tmp_path / "none.parquet"})
    with pytest.raises(ImageSetError, match=r"none\.parquet has no rows"):
        load_image_set("set", {"set": entry})


# --- What lies beside the images, names that are no text, splits, and files that change. ---


def test_files_that_are_no_images_are_told_by_their_ending_with_an_example(tmp_path: Path) -> None:
    for number in range(5):
        write_image(tmp_path / "a" / f"{number}.png")
        (tmp_path / "a" / f"{number}.HEIC").write_bytes(b"x")
    (tmp_path / "README").write_text("x")
    for litter in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", ".hidden/0.heic", "__MACOSX/a/0.heic"):
        (tmp_path / litter).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / litter).write_bytes(b"x")
    images = load_image_set("set", folder_set(tmp_path))
    assert len(images) == 5
    [remark] = images.about["remarks"]
    assert remark == (
        f"6 of the 11 files in {tmp_path.name} were not read, since they are no images: .heic (5, such as a/0.HEIC), "
        "no ending (1, such as README)"
    )
    assert set_record(images, "far", "r", "s").remarks == [remark]
    for file in [*tmp_path.rglob("*.HEIC"), tmp_path / "README"]:
        file.unlink()
    assert load_image_set("set", folder_set(tmp_path)).about["remarks"] == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a" / "0.png")
    write_image(tmp_path / "b" / "0.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageSetError, match=r"cannot read the folder .*/b: Permission denied; make it readable"):
        load_image_set("set", folder_set(tmp_path))


def test_a_name_that_is_not_utf_8_becomes_text(tmp_path: Path) -> None:
    for folder in (b"caf\xe9", b"plain"):
        write_image(tmp_path / os.fsdecode(folder) / os.fsdecode(b"\xff0.png"))
        write_image(tmp_path / os.fsdecode(folder) / "1.png")
    images = load_image_set("set", folder_set(tmp_path, classes=("caf\\xe9", "plain")))
    assert images.image_ids == ("caf\\xe9/1.png", "caf\\xe9/\\xff0.png", "plain/1.png", "plain/\\xff0.png")
    assert images.labels.tolist() == [0, 0, 1, 1]
    for image in range(4):
        assert images[image].size == (8, 6)
    "".join(images.image_ids).encode()
    assert len(images.content_sha256) == 64


def test_a_split_of_a_folder_is_chosen_by_its_name(tmp_path: Path) -> None:
    for split, count in {"train": 3, "test": 2}.items():
        write_table(tmp_path / "hub" / f"{split}-00000-of-00001.parquet", count)
    write_table(tmp_path / "plain" / "test.parquet", 1)
    columns = Columns(image="img")
    assert len(load(tmp_path, "hub", split="test", columns=columns)) == 2
    assert len(load(tmp_path, "hub", split="train", columns=columns)) == 3
    assert len(load(tmp_path, "plain", split="test", columns=columns)) == 1
    with pytest.raises(ImageSetError, match="holds several splits: test, train; name one of them, as in hub:test"):
        load(tmp_path, "hub")
    with pytest.raises(ImageSetError, match="has no split 'dev': its splits are test, train"):
        load(tmp_path, "hub", split="dev")
    entries = [local_set(tmp_path, "hub", split=split)["set"] for split in ("test", "train", "test")]
    assert not entries[0].may_overlap(entries[1])
    assert entries[0].may_overlap(entries[2])


def test_a_file_that_keeps_its_size_and_time_is_read_anew(tmp_path: Path) -> None:
    """As copying programs leave it that set the time of modification back."""
    write_table(tmp_path / "t.parquet", 3)
    before = load(tmp_path, "t.parquet", columns=Columns(image="img"))
    pixels, content = red(before), before.content_sha256
    about = os.stat(tmp_path / "t.parquet")
    write_table(tmp_path / "t.parquet", 3, first=100)
    padding = about.st_size - (tmp_path / "t.parquet").stat().st_size
    assert padding == 0  # else this test would not show what it is for
    os.utime(tmp_path / "t.parquet", ns=(about.st_atime_ns, about.st_mtime_ns))
    after = load(tmp_path, "t.parquet", columns=Columns(image="img"))
    assert red(after) != pixels
    assert after.content_sha256 != content
