"""The images of the digits suite: what the file holds, and that the script still makes the same."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
import pytest
from PIL import Image, features

from benchmark.entries import read_entries
from benchmark.images import make_digits
from benchmark.images.entries import BUILT_IN, ImageSetEntry
from benchmark.images.image_set import load_image_set
from benchmark.images.make_digits import FONTS, ID_CLASSES, IMAGES_A_FONT, PARQUET, Row, summary

RECORDED = {
    "digits-train": (721, "059ac886ce5f5a8ec01af15d808add4fd5c131277ae9c5f031b58faab7da097f"),
    "digits-val": (144, "50498ba39fa63e935eb8b5aa9be354ff3ce43b477d308bb9e020c3697ed0dba9"),
    "digits-test": (578, "e284f0a873c824a75b82a7cc5bc5f6bd7725412ec41f8227fea0052767d29880"),
    "digits-8-9": (354, "206e16aba5e01d0eaaf6200eac40fb1ac59ab885281cf1499260d6f0a982a82d"),
    "letters": (396, "876b91126910b8f8904f38e210734be00428a5d46384273c8f1af13f43fd93b3"),
    "photo-patches": (400, "7c6ae731f55d1361b5796aab0fea6bae25003e236347ea6031666d5eba31b6c8"),
    "digits-glyphs": (540, "2e3b1656f63091cc13b1898cd628326b41d8d7536e0b79fc3b0de4e7909122d4"),
}
RECORDED_FONTS = "16babe5c0753da54aeeea137816d6f96e5c7c2cb606e2973064f5fe7922d4261"
LETTERS_LIKE_A_DIGIT = set("BCDGIJLOQSTUXYZ")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The rows of the committed file, decoded by `datasets` alone."""
    table = datasets.Dataset.from_parquet(str(PARQUET), keep_in_memory=True)
    return [{**row, "image": np.asarray(row["image"])} for row in table]


def _of_set(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if row["set"] == name]


def _recorded(*names: str) -> dict[str, tuple[int, str]]:
    return {name: RECORDED[name] for name in names}


def test_the_file_holds_the_recorded_images(rows: list[Row]) -> None:
    assert summary(rows) == RECORDED
    assert PARQUET.stat().st_size < 3_000_000


@pytest.mark.parametrize("change", ["pixel", "id", "order"])
def test_the_recorded_hash_sees_any_change(rows: list[Row], change: str) -> None:
    letters = _of_set(rows, "letters")
    first = dict(letters[0])
    if change == "pixel":
        first["image"] = first["image"].copy()
        first["image"][0, 0] ^= 1
    elif change == "id":
        first["id"] += "x"
    changed = [*letters[1:], first] if change == "order" else [first, *letters[1:]]
    assert summary(letters) == _recorded("letters")
    assert summary(changed) != _recorded("letters")


def test_every_image_is_a_lossless_32_by_32_png() -> None:
    table = datasets.Dataset.from_parquet(str(PARQUET), keep_in_memory=True)
    for row in table.cast_column("image", datasets.Image(decode=False)):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (image.format, image.size) == ("PNG", (32, 32)), row["id"]
        assert image.mode == ("RGB" if row["set"] == "photo-patches" else "L"), row["id"]


def test_no_image_and_no_id_occurs_twice(rows: list[Row]) -> None:
    assert len({row["id"] for row in rows}) == len(rows)
    pixels = Counter(row["image"].tobytes() for row in rows)
    assert not [row["id"] for row in rows if pixels[row["image"].tobytes()] > 1]


def test_every_split_has_its_share_of_every_class(rows: list[Row]) -> None:
    counts = Counter((row["label"], row["split"]) for row in _of_set(rows, "digits"))
    for label in ID_CLASSES:
        train, val, test = (counts[label, split] for split in ("train", "val", "test"))
        assert np.array([train, val, test]) / (train + val + test) == pytest.approx([0.5, 0.1, 0.4], abs=0.01)


def test_no_ood_image_shows_an_id_class(rows: list[Row]) -> None:
    labels = {name: {row["label"] for row in _of_set(rows, name)} for name in ("digits-8-9", "letters")}
    assert labels["digits-8-9"] == {"8", "9"}
    assert not labels["letters"] & (LETTERS_LIKE_A_DIGIT | set(ID_CLASSES))
    assert {row["split"] for row in rows if row["set"] not in ("digits", "digits-glyphs")} == {"test"}


def test_no_outlier_shows_what_a_test_set_holds(rows: list[Row]) -> None:
    outliers = _of_set(rows, "digits-glyphs")
    assert {row["split"] for row in outliers} == {"train"}
    assert len({row["label"] for row in outliers}) == len(make_digits.GLYPHS) == 15
    assert not [row["label"] for row in outliers if row["label"].isalnum()]


def test_the_image_sets_cover_the_file(rows: list[Row]) -> None:
    entries = read_entries(BUILT_IN, ImageSetEntry)
    names = [name for name, entry in entries.items() if entry.parquet == PARQUET and not entry.corruption]
    loaded = [load_image_set(name) for name in names]
    assert Counter(set_id for image_set in loaded for set_id in image_set.image_ids) == Counter(
        row["id"] for row in rows
    )
    assert {name: len(image_set) for name, image_set in zip(names, loaded, strict=True)} == {
        name: count for name, (count, _) in RECORDED.items()
    }


def _low_level(rows: Iterable[Row]) -> np.ndarray:
    """Mean grey, its spread, and the share of black: what tells two sources apart without looking at shapes."""
    grey = np.stack([row["image"] if row["image"].ndim == 2 else row["image"].mean(axis=2) for row in rows]) / 255.0
    return np.array([grey.mean(), grey.std(), (grey == 0).mean()])


@pytest.mark.parametrize("printed", ["letters", "digits-glyphs"])
def test_printed_characters_are_not_given_away_by_their_ink(rows: list[Row], printed: str) -> None:
    digits, letters, photos = (_low_level(_of_set(rows, name)) for name in ("digits", printed, "photo-patches"))
    np.testing.assert_allclose(letters, digits, atol=0.05)
    assert np.abs(photos - digits).max() > 0.05


def test_the_script_still_makes_the_digits() -> None:
    assert summary(list(make_digits.digits())) == _recorded("digits-train", "digits-val", "digits-test", "digits-8-9")


@pytest.mark.skipif(not features.check("libjpeg_turbo"), reason="another JPEG decoder gives slightly other pixels")
def test_the_script_still_makes_the_photo_patches() -> None:
    assert summary(list(make_digits.photo_patches())) == _recorded("photo-patches")


def _fonts_sha256() -> str:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return hashlib.sha256(b"".join((folder / font).read_bytes() for font in FONTS)).hexdigest()


@pytest.mark.skipif(_fonts_sha256() != RECORDED_FONTS, reason="matplotlib comes with another version of the fonts")
@pytest.mark.parametrize("printed", ["letters", "digits-glyphs"])
def test_the_script_still_makes_the_printed_characters(rows: list[Row], printed: str) -> None:
    made = make_digits.letters() if printed == "letters" else make_digits.glyphs()
    one_character = len(FONTS) * IMAGES_A_FONT
    assert summary([*islice(made, one_character)]) == summary(_of_set(rows, printed)[:one_character])


def test_a_written_file_gives_back_ids_labels_and_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few: list[dict[str, Any]] = [*make_digits.digits()][:3] + [*make_digits.photo_patches()][:2]
    monkeypatch.setattr(make_digits, "rows", lambda: few)
    make_digits.write(tmp_path / "few.parquet")
    read = datasets.Dataset.from_parquet(str(tmp_path / "few.parquet"), keep_in_memory=True)
    assert [row["label"] for row in read] == ["0", "1", "2", None, None]
    assert summary([{**row, "image": np.asarray(row["image"])} for row in read]) == summary(few)
    assert [path.name for path in tmp_path.iterdir()] == ["few.parquet"]
