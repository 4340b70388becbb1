"""Pixels and masks of one picture, from a file or from a tensor, cut and resized to a bucket.

Letters in shapes: H, W are the bucket's height and width, h, w the picture's, C its channels.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from torch import Tensor

from .buckets import crop_box

# What Pillow raises on files that are damaged, cut off, or no pictures at all.
READ_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, RuntimeError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip
LARGEST_PX = 2 * 89_478_485  # where Pillow itself refuses, even if a host has lifted that
READING = threading.RLock()
# What to do to a picture with this EXIF orientation; from 5 on, width and height change places.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Source(Protocol):
    """Where a picture's pixels come from; opens it anew each time and keeps nothing."""

    def pixels(self, bucket_px: tuple[int, int]) -> Tensor:
        """fp32 (H, W, 3) in 0..1."""

    def mask(self, bucket_px: tuple[int, int]) -> Tensor | None:
        """fp32 (H, W) in 0..1, 1 where it is trained, or None."""

    def digest(self) -> bytes:
        """A hash of the picture and its mask."""


@dataclass(frozen=True)
class Control:
    """A control image: what an edit model is shown, to make the picture from it.

    Attributes:
        name: for messages.
        size_px: (width, height) that it is cut and resized to; see buckets.control_size.
    """

    name: str
    size_px: tuple[int, int]
    source: Source = field(repr=False)


@dataclass(frozen=True)
class Picture:
    """One picture: what it is called, how large it is, what it trains at.

    Attributes:
        name: for messages, a path from the dataset's folder or "image 3".
        width_px, height_px: the whole picture's, upright as EXIF says.
        caption: of one line or several; see trainers.objective.prompts.
        bucket_px: (width, height) it trains at.
        repeats: how often it counts in one pass.
        source: opens its pixels; Dataset.pixels and .mask are the way to them.
        controls: its control images in order; Dataset.controls is the way to their pixels.
    """

    name: str
    width_px: int
    height_px: int
    caption: str
    bucket_px: tuple[int, int]
    repeats: int = 1
    has_mask: bool = False
    source: Source = field(kw_only=True, repr=False)
    controls: tuple[Control, ...] = ()


def file_hash(path: Path) -> bytes:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).digest()


@dataclass(frozen=True)
class FileSource:
    """A picture file; its mask is `mask_path`'s brightness or else, if asked, its own alpha.

    Attributes:
        hash_file: the SHA-256 of a file, where that may be known.
    """

    path: Path
    mask_path: Path | None = None
    alpha_mask: bool = False
    hash_file: Callable[[Path], bytes] = field(default=file_hash, repr=False, compare=False)

    def pixels(self, bucket_px: tuple[int, int]) -> Tensor:
        with opened(self.path) as image:
            rgb = to_rgb(upright(image))
        resized = rgb.resize(
            bucket_px, Image.Resampling.LANCZOS, box=crop_box(rgb.width, rgb.height, bucket_px)
        )
        return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255)

    def mask(self, bucket_px: tuple[int, int]) -> Tensor | None:
        if self.mask_path is None and not self.alpha_mask:
            return None
        with opened(self.mask_path or self.path) as image:
            turned = upright(image)
            if self.mask_path:
                grey = to_rgb(turned, background="black").convert("L")
            else:
                grey = turned.convert("RGBA").getchannel("A")
        values = np.asarray(grey, dtype=np.float32) / np.float32(255)
        return _resized_plane(values, bucket_px, soft=True)

    def digest(self) -> bytes:
        digest = hashlib.sha256(f"alpha mask: {self.alpha_mask}".encode())
        for path in (self.path, self.mask_path):
            digest.update(self.hash_file(path) if path else hashlib.sha256().digest())
        return digest.digest()


@dataclass(frozen=True, eq=False)
class TensorSource:
    """A picture (h, w, C) in 0..1 with 1, 3 or 4 channels, and maybe a mask (any h, any w)."""

    image: Tensor
    given_mask: Tensor | None = None

    def pixels(self, bucket_px: tuple[int, int]) -> Tensor:
        values = self.image.detach()
        if values.shape[2] == 4:
            alpha = values[..., 3:]
            values = values[..., :3] * alpha + (1 - alpha)
        planes = [_resized_plane(_array(plane), bucket_px) for plane in values.unbind(2)]
        return torch.stack(planes, dim=2).expand(-1, -1, 3).contiguous()

    def mask(self, bucket_px: tuple[int, int]) -> Tensor | None:
        if self.given_mask is None:
            return None
        return _resized_plane(_array(self.given_mask), bucket_px, soft=True)

    def digest(self) -> bytes:
        digest = hashlib.sha256()
        for tensor in (self.image, self.given_mask):
            if tensor is not None:
                digest.update(f"{tuple(tensor.shape)}".encode())
                digest.update(_array(tensor).tobytes())
        return digest.digest()


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture file for reading, its first frame; a file that is cut off raises.

    One at a time, whichever thread asks: what it sets while it reads belongs to the process.

    Raises:
        READ_ERRORS: on opening and, since Pillow decodes late, in the body.
    """
    with READING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # a host may leave it on: half a picture, no error
        try:
            with Image.open(path) as image:
                if image.width * image.height > LARGEST_PX:
                    raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
                yield image
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def inspect(path: Path) -> tuple[int, int, bool]:
    """Decode a file to see that it can be; its width and height, rotated, and whether it has
    transparent parts.

    Raises:
        READ_ERRORS: it cannot be decoded.
    """
    with opened(path) as image:
        width, height = image.size
        turned = orientation(image) >= 5
        image.draft("RGB", (64, 64))  # JPEG: all of the file is read, but at an eighth of the size
        to_rgb(image)
        transparent = (
            image.has_transparency_data
            and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255
        )
    if turned:
        width, height = height, width
    return width, height, transparent


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any mode as 8-bit RGB; transparent parts show `background`."""
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        return _grey_8bit(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    below = Image.new("RGBA", layer.size, background)
    return Image.alpha_composite(below, layer).convert("RGB")


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where there is none or it makes no sense. From 5 on it lies on its side."""
    value = image.getexif().get(ExifTags.Base.Orientation)
    return value if value in TURNS else 1


def _grey_8bit(image: Image.Image) -> Image.Image:
    """16-bit grey (0..65535) or float grey (0..1, or 0..255 if it goes beyond 1) as mode L."""
    values = np.array(image, dtype=np.float32)
    if image.mode != "F":
        values *= 1 / 257
    elif values.max() <= 1:
        values *= 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().cpu().float().numpy(), dtype=np.float32)


def _resized_plane(
    plane: NDArray[np.float32], bucket_px: tuple[int, int], soft: bool = False
) -> Tensor:
    """(h, w) to (H, W) in 0..1. `soft` never rings: what a mask leaves out stays out."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    filter = Image.Resampling.BILINEAR if soft else Image.Resampling.LANCZOS
    resized = image.resize(bucket_px, filter, box=crop_box(image.width, image.height, bucket_px))
    return torch.from_numpy(np.asarray(resized).clip(0, 1))
