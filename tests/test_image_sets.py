from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.image_sets import ImageSetEntry, ImageSetError, image_set_of_pixels, load_image_set
from benchmark.suites import load_suite


def folder_set(folder: Path, **values: object) -> dict[str, ImageSetEntry]:
    entry = ImageSetEntry(file=folder / "sets.toml", title="t", licence="l", source="s", folder=folder, **values)
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


def test_the_one_gif_of_a_set_is_found(tmp_path: Path) -> None:
    write_image(tmp_path / "a.gif")
    write_image(tmp_path / "b.JPEG")
    assert load_image_set("set", folder_set(tmp_path)).image_ids == ("a.gif", "b.JPEG")


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "the file is empty"), (None, "truncated"), (b"no image", "cannot")]
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
    assert images[0].size == (64, 64)  # the twin: the whole file is fine


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ImageSetError, match=rf"no image files in {tmp_path}"):
        load_image_set("set", folder_set(tmp_path))


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"there is no folder .*nowhere"):
        load_image_set("set", folder_set(tmp_path / "nowhere"))
    entry = folder_set(tmp_path)["set"].model_copy(update={"folder": None, "parquet": tmp_path / "no.parquet"})
    with pytest.raises(ImageSetError, match=r"there is no file .*no\.parquet"):
        load_image_set("set", {"set": entry})


def test_a_parquet_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    entry = folder_set(tmp_path)["set"].model_copy(update={"folder": None, "parquet": tmp_path / "bad.parquet"})
    with pytest.raises(ImageSetError, match=r"cannot read .*bad\.parquet"):
        load_image_set("set", {"set": entry})


def test_another_count_than_expected_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    assert len(load_image_set("set", folder_set(tmp_path, images=1))) == 1
    with pytest.raises(ImageSetError, match=r"1 images .* 2 expected"):
        load_image_set("set", folder_set(tmp_path, images=2))


def test_unknown_class_folders_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "a.png")
    with pytest.raises(ImageSetError, match=r"unknown classes \['cat'\]"):
        load_image_set("set", folder_set(tmp_path, classes=("dog",)))


def test_the_content_hash_follows_pixels_names_and_labels(tmp_path: Path) -> None:
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


def test_pixels_without_files_are_an_image_set() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    images = image_set_of_pixels("p", "P", 2, pixels.__getitem__, licence="l", source="s")
    assert np.array_equal(np.asarray(images[1]), pixels[1])
    other = image_set_of_pixels("p", "P", 2, (pixels + 1).__getitem__, licence="l", source="s")
    assert images.content_sha256 != other.content_sha256
