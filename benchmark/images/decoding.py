"""Decoding: the bytes of an image file to RGB pixels, under a stated policy.

Files that decoders treat differently give other pixels, and so other scores. What is decided here holds for every set:

    palette, 1 bit, grey      their colours
    alpha                     dropped, whatever colours lie beneath it
    more than 8 bits, integer the highest 8 bits of a sample; 32-bit samples count as unsigned
    CMYK                      (255 - ink) (255 - black) / 255, no colour profile; Adobe's inverted inks turned back
    several frames            the first
    floating point            refused: there is no telling which value is white
    above PIXEL_LIMIT         refused

`Decoding` holds what a set may choose. Functions here change nothing outside of the image, so threads may share them.
"""

import io
import re
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from benchmark.errors import UserError

PIXEL_LIMIT = 178_956_970  # what Pillow refuses by default, as decompression bombs; here, whatever its setting
_UTF8_MARK = b"\xef\xbb\xbf"
_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")  # its marker, after which comes its length
_SEGMENT_BYTES = 65_537  # at most
_BITS_PER_SAMPLE = 258  # a tag of TIFF


class Decoding(BaseModel):
    """What a set decides about files that decoders treat differently. The defaults are what the papers' code does.

    orientation: whether an EXIF orientation is applied. truncated: whether a JPEG's missing end is an error or grey.
    Grey is what Pillow makes of it when told to go on, as OpenOOD tells it; but Pillow loses more of a progressive
    file, and goes on with PNG files, too, which are refused here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    orientation: Literal["as-stored", "exif"] = "as-stored"
    truncated: Literal["refuse", "grey"] = "refuse"

    def described(self) -> dict[str, Any]:
        """The whole policy, for a record."""
        return self.model_dump() | {
            "alpha": "dropped",
            "bits above 8": "the highest 8 are kept",
            "cmyk": "without colour profile",
            "frames": "the first",
        }


AS_PAPERS = Decoding()


class DecodingError(UserError):
    """Bytes that are no image that can be used; the message says why."""


def decode(content: bytes, policy: Decoding = AS_PAPERS) -> Image.Image:
    """The image of a file's content, in RGB. Raises DecodingError."""
    if not content:
        raise DecodingError("the file is empty")
    if content.removeprefix(_UTF8_MARK).lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise DecodingError("it is an HTML page, as servers send it in place of a file that is not there")
    if policy.truncated == "grey" and content.startswith(_JPEG):
        content = _ended(content)
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > PIXEL_LIMIT:
            raise DecodingError(f"its {image.width} x {image.height} pixels are more than {PIXEL_LIMIT}")
        return to_rgb(_oriented(image, policy))
    except DecodingError:
        raise
    except UnidentifiedImageError:
        raise DecodingError("it is no image of a known kind") from None
    except Exception as error:  # decoders raise all kinds of errors where a file is damaged
        raise DecodingError(str(error) or type(error).__name__) from error


def _ended(content: bytes) -> bytes:
    """A JPEG with an end, before which the decoder fills what is missing. Of a whole one, nothing more is read."""
    markers = [found.start() for found in _SEGMENT.finditer(content, max(len(content) - _SEGMENT_BYTES, 0))]
    if markers:
        start = markers[-1] + 2
        if len(content) < start + max(int.from_bytes(content[start : start + 2]), 2):
            content = content[: markers[-1]]  # which is cut, so that it would swallow the end
    return content + _END_OF_JPEG


def _oriented(image: Image.Image, policy: Decoding) -> Image.Image:
    if policy.orientation == "exif":
        return ImageOps.exif_transpose(image)
    if image.format == "TIFF":
        image.getexif()[ExifTags.Base.Orientation] = 1  # Pillow would apply it unasked
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB by the rules above, itself unchanged. Raises DecodingError for floating-point pixels."""
    if image.mode == "F":
        raise DecodingError("its pixels are floating-point numbers of no known range; save it with integers")
    if "transparency" in image.info:  # it would go, with a warning
        image = image.copy()
        del image.info["transparency"]
    if image.mode == "I" or image.mode.startswith("I;"):
        return _highest_8_bits(image).convert("RGB")
    return image.convert("RGB")


def _highest_8_bits(image: Image.Image) -> Image.Image:
    """Of grey pixels with 9 to 32 bits: all formats but TIFF hold, or are scaled to, 16."""
    bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,)))
    samples = np.asarray(image).astype(np.int64)
    samples = samples % 2**32 if bits == 32 else samples.clip(0, 2**bits - 1)
    return Image.fromarray((samples >> bits - 8).astype(np.uint8))
