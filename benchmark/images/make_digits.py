"""Makes benchmark/images/digits.parquet, the images of the digits suite: `python -m benchmark.images.make_digits`.

Needs scikit-learn (extra `test`). The file is committed, so that another version of a font or of a codec changes no
figure of the suite; this script shows where each pixel comes from. Columns: id, image (PNG), label (class name or
null), set, split.

digits         scikit-learn's handwritten digits 0-7. Per class and in the order of a SHA-256 of the pixels, 50 % are
               train, 10 % val and 40 % test. The test split is that large because the score threshold at 95 %
               depends on the lowest 5 % of its scores, here 29 images.
digits-8-9     the handwritten 8s and 9s: the same writers and the same preparation, but other classes.
letters        printed letters, prepared as the digits were: a 32x32 bitmap, filled to its full height, is reduced to
               8x8 counts of ink. Each letter gets the amount of ink of a digit, so that a detector cannot use
               brightness or boldness.
photo-patches  32x32 patches of three photographs, without patches that have almost no contrast.
digits-glyphs  printed signs and symbols, made as the letters are. They are outliers to train with; no test set has one.
"""

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as MplPath
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from sklearn.datasets import load_digits, load_sample_image

PARQUET = Path(__file__).parent / "digits.parquet"
SIDE = 32
SEED = "digits suite"

ID_CLASSES = "01234567"
TRAIN_SHARE, VAL_SHARE = 0.5, 0.1

# A letter that looks like an ID digit would be a wrong label, not an OOD image. At 8x8 pixels these letters do:
# C D O Q U like 0, I J L T X like 1, Z like 2, Y like 4, S like 5, C G like 6, T Y Z like 7. B looks like the OOD 8.
# Small letters have the shapes above (c j o s u x y z) or those of the capitals in use (p v w), look like 0, 1, 6 or 9
# (a b d e f g h i k l n q r t), or cannot be read (m).
LETTERS = "AEFHKMNPRVW"
# Chosen by looking at their 8x8 pixels in every font: none looks like a digit 0-9 or like a letter of LETTERS.
# Some that do: arrows like 1, 4 or H, # and % like 8, $ like 5, ? like 2, rings and boxes like 0, much Greek, Cyrillic.
GLYPHS = "=≡≈±÷«»:∹░☀♠♣◣▶"
IMAGES_A_FONT = 3
FONTS = [
    f"DejaVu{family}{style}.ttf"
    for family, slanted in [("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic")]
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
]
MAX_TILT_DEGREES = 8
WIDTHS = range(18, 26)

PATCHES = 400
MIN_CONTRAST = 12.0  # standard deviation of the grey levels, of 255

Pixels = NDArray[np.uint8]
Row = dict[str, Any]


def main() -> None:
    datasets.disable_progress_bars()
    write(PARQUET)
    print(f"{PARQUET}: {PARQUET.stat().st_size / 1e6:.2f} MB")
    for name, (count, digest) in summary(rows()).items():
        print(f"{name:<14}{count:>5} images  pixels sha256 {digest}")


def write(path: Path) -> None:
    features = datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image()}
        | dict.fromkeys(["label", "set", "split"], datasets.Value("string"))
    )
    encoded = [{**row, "image": {"bytes": _png(row["image"]), "path": f"{row['id']}.png"}} for row in rows()]
    part = path.with_suffix(".part")
    datasets.Dataset.from_list(encoded, features=features).to_parquet(part)
    part.replace(path)


def rows() -> list[Row]:
    """All images in the order of the file. The value of `image` is the pixels, uint8, (32, 32) or (32, 32, 3)."""
    return [*digits(), *letters(), *photo_patches(), *glyphs()]


def summary(images: list[Row]) -> dict[str, tuple[int, str]]:
    """For each split of each set the number of images, and the SHA-256 of all their ids and pixels."""
    digests: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for row in images:
        name = f"{row['set']}-{row['split']}" if row["set"] == "digits" else row["set"]
        digests.setdefault(name, hashlib.sha256()).update(row["id"].encode() + np.asarray(row["image"]).tobytes())
        counts[name] = counts.get(name, 0) + 1
    return {name: (counts[name], digest.hexdigest()) for name, digest in digests.items()}


def digits() -> Iterator[Row]:
    bunch = load_digits()
    counts, labels = bunch.images.astype(np.uint8), bunch.target.astype(str)
    splits = _splits(counts, labels)
    for index, (ink, label) in enumerate(zip(counts, labels, strict=True)):
        name = "digits" if label in ID_CLASSES else "digits-8-9"
        yield _row(name, index, _upscale(ink), label, splits.get(index, "test"))


def _splits(counts: Pixels, labels: NDArray[np.str_]) -> dict[int, str]:
    """The split of each ID image, by the image's index. Each class is split in the same shares."""
    splits: dict[int, str] = {}
    for label in ID_CLASSES:
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda index: _digest(counts[index].tobytes()))
        train, val = round(TRAIN_SHARE * len(members)), round(VAL_SHARE * len(members))
        names = ["train"] * train + ["val"] * val + ["test"] * (len(members) - train - val)
        splits |= dict(zip(members, names, strict=True))
    return splits


def letters() -> Iterator[Row]:
    for index, letter, image in _print_characters("letter", LETTERS):
        yield _row("letters", index, image, letter)


def glyphs() -> Iterator[Row]:
    for index, glyph, image in _print_characters("glyph", GLYPHS):
        yield _row("digits-glyphs", index, image, glyph, split="train")


def _print_characters(what: str, characters: str) -> Iterator[tuple[int, str, Pixels]]:
    """Number, character and image, of each character in every font. `what` seeds the random draws."""
    ink_of_digits = load_digits().data.sum(axis=1).astype(int)
    for index, (character, font, _) in enumerate(itertools.product(characters, FONTS, range(IMAGES_A_FONT))):
        draw = _drawer(f"{what} {index}")
        tilt = draw(200 * MAX_TILT_DEGREES) / 100 - MAX_TILT_DEGREES
        shape = _draw_shape(character, font, tilt, width=WIDTHS[draw(len(WIDTHS))], shift=draw(5) - 2)
        bitmap = _thicken(shape, int(ink_of_digits[draw(len(ink_of_digits))]))
        yield index, character, _upscale(_blocks(bitmap, 4).sum(axis=(1, 3)))


def _draw_shape(character: str, font: str, tilt_degrees: float, width: int, shift: int) -> NDArray[np.bool_]:
    """The pixels that the character covers, bool (128, 128), four times as fine as the bitmap.

    character: it fills the full height.
    font: the name of the font file.
    tilt_degrees: the angle that it is turned by, in degrees.
    width: its width, in pixels of the bitmap.
    shift: how far its centre is to the right of the bitmap's, in pixels of the bitmap.
    """
    font_file = Path(matplotlib.get_data_path(), "fonts", "ttf", font)
    upright = TextPath((0, 0), character, size=100, prop=FontProperties(fname=str(font_file)))
    outline = upright.transformed(Affine2D().rotate_deg(tilt_degrees))
    box = outline.get_extents()
    fit = Affine2D().translate(-box.x0, -box.y1).scale(width / box.width, -SIDE / box.height)
    fit = fit.translate((SIDE - width) / 2 + shift, 0).scale(4)
    centres = np.arange(4 * SIDE) + 0.5
    points = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    contours = [MplPath(contour).contains_points(points) for contour in outline.transformed(fit).to_polygons()]
    inside = np.logical_xor.reduce(contours)  # a contour inside another one is a hole, as in A, P and R
    return inside.reshape(4 * SIDE, 4 * SIDE)


def _thicken(shape: NDArray[np.bool_], ink: int) -> NDArray[np.bool_]:
    """The 32x32 bitmap with `ink` pixels set: those deepest inside the shape, then those nearest to it."""
    distance = distance_transform_edt(~shape) - distance_transform_edt(shape)
    order = np.argsort(_blocks(distance, 4).mean(axis=(1, 3)), axis=None, kind="stable")
    bitmap = np.zeros(SIDE * SIDE, dtype=bool)
    bitmap[order[:ink]] = True
    return bitmap.reshape(SIDE, SIDE)


def photo_patches() -> Iterator[Row]:
    with Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")) as file:
        grace_hopper = np.asarray(file.convert("RGB"))
    photos = [load_sample_image("china.jpg"), load_sample_image("flower.jpg"), grace_hopper]
    tiles = np.concatenate([_tiles(photo) for photo in photos])
    clear = np.flatnonzero(tiles.mean(axis=3).std(axis=(1, 2)) >= MIN_CONTRAST).tolist()
    chosen = sorted(clear, key=lambda place: _digest(f"patch {place}".encode()))[:PATCHES]
    for index, place in enumerate(sorted(chosen)):
        yield _row("photo-patches", index, tiles[place])


def _tiles(photo: Pixels) -> Pixels:
    """The photograph cut along a grid, (N, 32, 32, 3). What is left at the right and at the bottom is not used."""
    height, width = photo.shape[0] // SIDE * SIDE, photo.shape[1] // SIDE * SIDE
    return _blocks(photo[:height, :width], SIDE).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)


def _row(name: str, index: int, image: Pixels, label: str | None = None, split: str = "test") -> Row:
    return {"id": f"{name}-{index:04d}", "image": image, "label": label, "set": name, "split": split}


def _upscale(ink: NDArray[Any]) -> Pixels:
    """An image of 8x8 counts of ink, 0 to 16: grey levels (ink is white), enlarged to 32x32 by bilinear resizing."""
    grey = np.rint(ink * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _blocks(image: NDArray[Any], side: int) -> NDArray[Any]:
    """The image (H, W, ...) in blocks, (H / side, side, W / side, side, ...)."""
    height, width, *rest = image.shape
    return image.reshape(height // side, side, width // side, side, *rest)


def _drawer(what: str) -> Callable[[int], int]:
    """A function that draws whole numbers from 0 to a limit, exclusive, by hashing `what`, without a random library."""
    count = 0

    def draw(limit: int) -> int:
        nonlocal count
        count += 1
        return int.from_bytes(_digest(f"{what}, draw {count}".encode())) % limit

    return draw


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(SEED.encode() + b": " + content).digest()


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
