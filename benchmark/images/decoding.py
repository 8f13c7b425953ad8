"""Decoding: from the bytes of an image file to RGB pixels, by stated rules.

Decoders treat some files differently: they give other pixels, and so other scores. These rules hold for every set:

    palette, 1 bit, grey      the colours that they stand for
    alpha                     dropped; the colours below it stay as they are
    integers above 8 bits     the highest 8 bits of each sample are kept; 32-bit samples count as unsigned
    CMYK                      (255 - ink) (255 - black) / 255, without a colour profile; Adobe's inverted inks are
                              inverted back
    several frames            the first frame is taken
    floating point            refused, since the file does not say which value is white
    above PIXEL_LIMIT         refused

`Decoding` holds what a set may choose. The functions have no state, so threads may share them.
"""

import io
import re
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from benchmark.errors import UserError

# More pixels are refused as a decompression bomb. This is Pillow's default limit, whatever limit a user sets there.
PIXEL_LIMIT = 178_956_970
_UTF8_MARK = b"\xef\xbb\xbf"
_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")  # the marker of a segment of a JPEG, which its length follows
_SEGMENT_BYTES = 65_537  # of the longest segment that a JPEG can have
_BITS_PER_SAMPLE = 258  # the number of a TIFF tag


class Decoding(BaseModel):
    """What a set may choose for files that decoders treat differently. The defaults are what the papers' code does.

    orientation: "as-stored" ignores an EXIF orientation, "exif" applies it.
    truncated: "refuse" makes a JPEG without its end an error, "grey" fills the missing pixels with grey. OpenOOD does
        the latter, by Pillow's LOAD_TRUNCATED_IMAGES. Pillow itself loses more of a progressive JPEG, and also accepts
        truncated PNG files, which are refused here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    orientation: Literal["as-stored", "exif"] = "as-stored"
    truncated: Literal["refuse", "grey"] = "refuse"

    def described(self) -> dict[str, Any]:
        """All rules as texts, for a record."""
        return self.model_dump() | {
            "alpha": "dropped",
            "bits above 8": "the highest 8 are kept",
            "cmyk": "without colour profile",
            "frames": "the first",
        }


AS_PAPERS = Decoding()


class DecodingError(UserError):
    """Bytes that cannot be used as an image; the message says why."""


def decode(content: bytes, policy: Decoding = AS_PAPERS) -> Image.Image:
    """The image in RGB.

    content: the bytes of the image file.
    policy: what the set has chosen.
    Raises DecodingError where the bytes are no image, are damaged, or are refused by the rules above.
    """
    if not content:
        raise DecodingError("the file is empty")
    if content.removeprefix(_UTF8_MARK).lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise DecodingError("it is an HTML page, as servers send it in place of a file that is not there")
    if policy.truncated == "grey" and content.startswith(_JPEG):
        content = _with_end(content)
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > PIXEL_LIMIT:
            raise DecodingError(f"its {image.width} x {image.height} pixels are more than {PIXEL_LIMIT}")
        return to_rgb(_apply_orientation(image, policy))
    except DecodingError:
        raise
    except UnidentifiedImageError:
        raise DecodingError("it is no image of a known kind") from None
    except Exception as error:  # decoders raise all kinds of errors where a file is damaged
        raise DecodingError(str(error) or type(error).__name__) from error


def _with_end(content: bytes) -> bytes:
    """A JPEG with an end marker added, so that the decoder fills the missing pixels. A whole file decodes as before."""
    markers = [found.start() for found in _SEGMENT.finditer(content, max(len(content) - _SEGMENT_BYTES, 0))]
    if markers:
        start = markers[-1] + 2
        if len(content) < start + max(int.from_bytes(content[start : start + 2]), 2):
            content = content[: markers[-1]]  # the last segment is cut, and would hide the end marker
    return content + _END_OF_JPEG


def _apply_orientation(image: Image.Image, policy: Decoding) -> Image.Image:
    if policy.orientation == "exif":
        return ImageOps.exif_transpose(image)
    if image.format == "TIFF":
        image.getexif()[ExifTags.Base.Orientation] = 1  # Pillow applies that of a TIFF without being asked
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of the image in RGB, by the rules above. Raises DecodingError for floating-point pixels."""
    if image.mode == "F":
        raise DecodingError("its pixels are floating-point numbers of no known range; save it with integers")
    if "transparency" in image.info:  # Pillow would drop it, too, but with a warning
        image = image.copy()
        del image.info["transparency"]
    if image.mode == "I" or image.mode.startswith("I;"):
        return _highest_8_bits(image).convert("RGB")
    return image.convert("RGB")


def _highest_8_bits(image: Image.Image) -> Image.Image:
    """The image with the highest 8 bits of grey samples of 9 to 32 bits. Formats other than TIFF give 16 bits."""
    bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,)))
    samples = np.asarray(image).astype(np.int64)
    samples = samples % 2**32 if bits == 32 else samples.clip(0, 2**bits - 1)
    return Image.fromarray((samples >> bits - 8).astype(np.uint8))
