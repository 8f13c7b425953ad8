"""Decoding: the rules for image files that decoders treat differently."""

import io
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from benchmark.images.decoding import AS_PAPERS, Decoding, DecodingError, decode
from benchmark.running.provenance import package_versions

RANDOM = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SMOOTH = Image.fromarray(RANDOM[:6, :8]).resize((64, 48), Image.Resampling.BICUBIC)
GREY = Decoding(truncated="grey")
EXIF = Decoding(orientation="exif")
START_OF_SCAN = b"\xff\xda"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes, policy: Decoding = AS_PAPERS) -> np.ndarray:
    image = decode(content, policy)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1).astype(np.uint8)


# Modes.


def test_colours_are_kept_and_alpha_is_dropped() -> None:
    alpha = RANDOM[..., :1] // 2
    luminance = np.ascontiguousarray(RANDOM[..., 0])
    assert np.array_equal(decoded(encoded(Image.fromarray(RANDOM), "png")), RANDOM)
    assert np.array_equal(decoded(encoded(Image.fromarray(np.dstack([RANDOM, alpha])), "png")), RANDOM)
    assert np.array_equal(decoded(encoded(Image.fromarray(luminance), "png")), grey(luminance))
    with_alpha = Image.merge("LA", [Image.fromarray(luminance), Image.fromarray(alpha[..., 0])])
    assert np.array_equal(decoded(encoded(with_alpha, "png")), grey(luminance))
    bits = luminance > 127
    assert np.array_equal(decoded(encoded(Image.fromarray(bits), "png")), grey(255 * bits))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 2))])
def test_a_palette_gives_its_colours_with_or_without_transparency(transparency: int | bytes | None) -> None:
    image = Image.fromarray(RANDOM[..., 0] % 128).convert("P")
    colours = np.arange(128 * 3, dtype=np.uint8).reshape(128, 3)
    image.putpalette(colours.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(decoded(encoded(image, "png", **options)), colours[RANDOM[..., 0] % 128])


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_of_16_bits_the_highest_8_are_kept(kind: str) -> None:
    samples = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(decoded(encoded(Image.fromarray(samples), kind)), grey(samples // 256))


def test_of_16_bits_in_each_colour_the_highest_8_are_kept() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RANDOM.astype(np.uint16) * 256 + 255)
    content = png(64, 48, bits=16, colours=2, rows=rows)
    assert np.array_equal(decoded(content), RANDOM)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_of_32_bits_the_highest_8_are_kept(bits: int) -> None:
    samples = (RANDOM[..., 0].astype(np.uint32) << 24) + 2**bits // 256
    content = encoded(Image.fromarray(samples.view(np.int32)), "tiff")
    assert np.array_equal(decoded(content), grey(samples >> 24))


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DecodingError, match="floating-point"):
        decode(encoded(Image.fromarray(RANDOM[..., 0].astype(np.float32)), "tiff"))


def test_cmyk_becomes_rgb_with_inverted_inks_or_without() -> None:
    inks = np.stack([np.full((16, 16), value, dtype=np.uint8) for value in (200, 100, 0, 50)], axis=-1)
    expected = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:]) / 255
    image = Image.fromarray(inks, mode="CMYK")
    inverted = encoded(image, "jpeg", quality=100)  # inverted and marked, as Adobe's programs write it
    assert b"Adobe" in inverted
    for content in (encoded(image, "tiff"), inverted):
        assert np.abs(decoded(content) - expected).max() <= 4


# Orientation, frames.


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff"])
def test_an_orientation_is_applied_only_where_the_policy_says_so(kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned right by 90 degrees
    content = encoded(SMOOTH, kind, exif=exif)
    plain = decoded(encoded(SMOOTH, kind))
    assert np.array_equal(decoded(content), plain)
    assert np.array_equal(decoded(content, EXIF), np.rot90(plain, -1))
    assert np.array_equal(decoded(encoded(SMOOTH, kind), EXIF), plain)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "webp" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) == 3
    assert np.unique(decoded(content).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


# Damage.


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_refused_or_filled_as_pillow_fills_it(monkeypatch: pytest.MonkeyPatch, progressive: bool) -> None:
    whole = encoded(SMOOTH, "jpeg", progressive=progressive)
    filled = {}
    for end in range(whole.index(START_OF_SCAN) + 14, len(whole) - 2, 7):
        with pytest.raises(DecodingError, match="truncated"):
            decode(whole[:end])
        filled[end] = decoded(whole[:end], GREY)
    assert np.array_equal(decoded(whole, GREY), decoded(whole))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for end, pixels in filled.items():
        if not _within_header(whole, end):  # Pillow loses the scans before a cut header
            assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(whole[:end])).convert("RGB")))


def _within_header(jpeg: bytes, end: int) -> bool:
    starts = [found.end() for found in re.finditer(rb"\xff[\xc4\xda]", jpeg)]
    return any(start <= end < start + int.from_bytes(jpeg[start : start + 2]) for start in starts)


def test_a_cut_between_two_scans_loses_no_scan() -> None:
    whole = encoded(SMOOTH, "jpeg", progressive=True)
    table = whole.index(b"\xff\xc4", whole.index(START_OF_SCAN))
    expected = decoded(whole[:table], GREY)
    assert len(np.unique(expected)) > 20
    for end in range(table, table + 20):
        assert np.array_equal(decoded(whole[:end], GREY), expected)


def test_a_jpeg_that_ends_before_its_first_pixel_is_refused() -> None:
    whole = encoded(SMOOTH, "jpeg")
    for end in range(2, whole.index(START_OF_SCAN), 50):
        with pytest.raises(DecodingError):
            decode(whole[:end], GREY)


def test_threads_with_different_policies_do_not_disturb_each_other() -> None:
    whole = encoded(Image.fromarray(RANDOM).resize((256, 256)), "jpeg")
    cut = whole[: len(whole) // 2]

    def outcome(index: int) -> bool:
        try:
            return decode(cut, GREY if index % 2 else Decoding()).mode == "RGB"
        except DecodingError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, range(400))) == [False, True] * 200
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ["png", "gif", "tiff", "webp", "bmp"])
def test_cut_files_of_other_formats_are_refused_even_where_a_jpeg_is_filled(kind: str) -> None:
    whole = encoded(Image.fromarray(RANDOM), kind)
    assert decode(whole, GREY).size == (64, 48)
    with pytest.raises(DecodingError):
        decode(whole[: len(whole) // 2], GREY)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\n <!DOCTYPE html>\n<title>404</title>", "HTML page"),
        (b"<html><body>Quota exceeded</body></html>", "HTML page"),
        (b"\xef\xbb\xbf<!doctype html>", "HTML page"),
        (b"GIF89a", "."),
        (b"no image at all", "no image of a known kind"),
        (b"\xff\xd8\xff\xe0", "."),
    ],
)
def test_a_file_that_is_no_image_is_refused_in_one_line(content: bytes, says: str) -> None:
    for policy in (Decoding(), GREY, EXIF):
        with pytest.raises(DecodingError, match=says) as caught:
            decode(content, policy)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)


@pytest.mark.parametrize("limit", [89_478_485, None])
def test_a_decompression_bomb_is_refused_whatever_pillows_limit_is(
    monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert decode(png(4, 4)).size == (4, 4)
    with pytest.raises(DecodingError, match="pixels"):
        decode(png(20_000, 20_000))


def png(width: int, height: int, bits: int = 8, colours: int = 0, rows: bytes | None = None) -> bytes:
    """A PNG file of that header, black where no rows are given (of 4 x 4 pixels)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    rows = bytes(20) if rows is None else rows
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_the_policy_is_described_for_records() -> None:
    assert Decoding().described() != EXIF.described() != GREY.described()
    assert Decoding().described()["orientation"] == "as-stored"
    assert all(isinstance(value, str) for value in GREY.described().values())


def test_provenance_names_the_decoder_of_jpegs() -> None:
    assert package_versions().keys() & {"libjpeg-turbo", "libjpeg"}
