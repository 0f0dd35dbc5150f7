"""One encoded image (JPEG, PNG, …) to uint8 pixels of one shape. What cannot be decoded is an error."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from localssl.errors import UsageError, first_line

GRAY = ("1", "L", "LA", "I")
KINDS = {**dict.fromkeys(GRAY, "grayscale"), "P": "palette", "RGB": "colour"}


class BadImage(Exception):
    """An image that cannot be decoded; the message is the reason, without the image's name."""


@dataclass(frozen=True)
class Part:
    """Encoded bytes that lie inside a larger file."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            UsageError: the file is gone, or shorter than it was.
        """
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(self.offset)
                found = stream.read(self.size)
        except OSError as error:
            raise UsageError(f"{self.file} cannot be read ({error.strerror or error})") from error
        if len(found) != self.size:
            raise UsageError(f"{self.file} is shorter than it was when it was opened")
        return found


Source = bytes | Path | Part | None  # None: the data set has no bytes for a row


def decode(source: Source, channels: int, size: int) -> tuple[NDArray[np.uint8], str | None]:
    """Decodes one image and brings it to (channels, size, size): the shorter side fitted, the centre kept.

    The centre square is resampled in one step (PIL, bilinear, antialiased), so that a very long image costs
    no more than a square one. Alpha is dropped and an EXIF rotation not applied, as in torchvision's readers.

    Args:
        source: the encoded bytes, the path of their file, their part of one, or None.
        channels: 1 (luma) or 3 (RGB).
        size: side of the result, in pixels.

    Returns:
        The pixels, and what kind of image was converted ("grayscale", "RGBA", …), None where nothing was.

    Raises:
        BadImage: missing, truncated, undecodable, or larger than PIL's limit against decompression bombs.
        UsageError: the file of a part is gone.
    """
    mode = "RGB" if channels == 3 else "L"
    try:
        with _open(source) as image:
            kind = "grayscale" if image.mode.startswith("I;16") else KINDS.get(image.mode, image.mode)
            image.load()
            flat = _convert(image, mode)
        if flat.size != (size, size):
            width, height = flat.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            centre = (left, top, left + side, top + side)
            flat = flat.resize((size, size), Image.Resampling.BILINEAR, box=centre)
        pixels = np.asarray(flat)
    except (BadImage, MemoryError, UsageError):
        raise
    except Exception as error:  # PIL's plugins raise nearly every type on damaged files
        raise BadImage(_reason(error)) from error
    pixels = pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]
    native = "colour" if channels == 3 else "grayscale"
    return pixels, None if kind == native else kind


def shorter_side(source: Source) -> int:
    """The shorter side in pixels, from the image's header.

    Raises:
        BadImage: the header cannot be read.
    """
    try:
        with _open(source) as image:
            return min(image.size)
    except (BadImage, MemoryError, UsageError):
        raise
    except Exception as error:
        raise BadImage(_reason(error)) from error


def is_colour(source: Source) -> bool:
    """Whether the image's header says RGB or the like; False where it cannot be read."""
    try:
        with _open(source) as image:
            return image.mode not in GRAY and not image.mode.startswith("I;16")
    except (MemoryError, UsageError):
        raise
    except Exception:  # as in decode
        return False


def _open(source: Source) -> Image.Image:
    if isinstance(source, Part):
        source = source.read()
    if source is None or source == b"":
        raise BadImage("no image bytes")
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:  # PIL itself only warns until twice that
        image.close()
        raise BadImage(f"{pixels:,} pixels, more than the {most:,} allowed")
    return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # PIL's own conversion clips 16-bit gray at 255: nearly white images
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImage(f"pixels of type {image.mode!r} have no fixed range; save the image with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that PIL can read"  # its own text names a memory address
    return first_line(error)
