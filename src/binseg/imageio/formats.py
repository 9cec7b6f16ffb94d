"""The public readers: a file, bytes or a Pillow image becomes an array."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Num, Shaped
from PIL import Image

from binseg.errors import ImageError
from binseg.imageio.decoding import Handle, ImageInfo, broken_files, one_line, turn
from binseg.imageio.raster import Raster, image_of, open_raster, raster_format
from binseg.imageio.tiff import TiffImage, is_tiff, open_tiff

__all__ = [
    "IMAGE_SUFFIXES",
    "TIFF_SUFFIXES",
    "decode_image",
    "from_pil",
    "num_pages",
    "opened",
    "probe",
    "probe_bytes",
    "read_image",
    "read_labels",
]

TIFF_SUFFIXES = frozenset({".tif", ".tiff", ".svs"})
"""Of files that may hold several pages, or be too large to be read whole; SVS is Aperio's TIFF."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}) | TIFF_SUFFIXES
"""Endings, in lower case, by which folders are searched for images."""
_READ = "JPEG, PNG, WebP, BMP and TIFF"


def probe(path: Path) -> ImageInfo:
    """Read an image's header and nothing else; of a multi-page file, the first page's.

    Raises:
        ImageError: no file, no image, damaged, animated or too large.
    """
    name = one_line(path)
    with opened(path) as handle, broken_files(name):
        return _decoder(handle, name=name, page=None, any_page=True).info()


def probe_bytes(data: bytes, *, name: str) -> ImageInfo:
    """Read the header of an image in memory, as `probe` does that of a file.

    Args:
        data: the whole file.
        name: what errors call it.

    Raises:
        ImageError: as `probe`.
    """
    with broken_files(name):
        return _decoder(io.BytesIO(data), name=name, page=None, any_page=True).info()


def num_pages(path: Path) -> int:
    """Count the pages of a file: 1, except for TIFF stacks.

    Raises:
        ImageError: as `probe`.
    """
    return probe(path).num_pages


def read_image(path: Path, *, page: int | None = None) -> Num[np.ndarray, "H W C"]:
    """Read an image as it is meant to be seen: turned by its EXIF, palette applied, no alpha.

    Args:
        path: a JPEG, PNG, WebP, BMP or TIFF file (or a still GIF), whatever its suffix says.
        page: which page of a multi-page TIFF, from 0; needed there, and 0 or None elsewhere.

    Returns:
        uint8 or uint16, or float32 for 32-bit files; 1 channel for grey, 3 for colour, as many as
        there are for other TIFFs. 1-bit images are 0 and 255. Float values stay as they are.

    Raises:
        ImageError: one line with the path, what is wrong and what to do.
    """
    name = one_line(path)
    with opened(path) as handle, broken_files(name):
        return _decoder(handle, name=name, page=page, any_page=False).image()


def read_labels(path: Path, *, page: int | None = None) -> Shaped[np.ndarray, "H W ..."]:
    """Read a mask file's own numbers, turned by its EXIF as `read_image` turns its image.

    Args:
        path: as for `read_image`.
        page: as for `read_image`.

    Returns:
        Integers of shape H x W: grey values, palette *indices* (0 and 255 for palettes of black
        and white alone, whichever comes first), or 0 and 1 of a 1-bit file; or
        uint8 of shape H x W x 3 for masks in colours. Alpha is dropped.

    Raises:
        ImageError: as `read_image`, and for masks with fractions or odd channels.
    """
    name = one_line(path)
    with opened(path) as handle, broken_files(name):
        return _decoder(handle, name=name, page=page, any_page=False).labels()


def decode_image(data: bytes, *, name: str) -> Num[np.ndarray, "H W C"]:
    """Read an image from memory, as `read_image` does from a file.

    Args:
        data: the whole file.
        name: what errors call it.

    Raises:
        ImageError: as `read_image`.
    """
    with broken_files(name):
        return _decoder(io.BytesIO(data), name=name, page=None, any_page=False).image()


def from_pil(image: Image.Image) -> Num[np.ndarray, "H W C"]:
    """Turn a Pillow image into the array that `read_image` would give for its pixels.

    The pixels stay where they are: an EXIF turn that Pillow hasn't applied isn't applied here, so
    that the answer to an image has the size of the object in the caller's hand.

    Raises:
        ImageError: float pixels that are NaN or infinite.
    """
    return turn(image_of(image, name="the image"), 1)


@contextmanager
def opened(path: Path) -> Iterator[Handle]:
    """Open a file to read, with one line for whatever the system says against it."""
    name = one_line(path)
    try:
        handle = Path(path).open("rb")  # noqa: SIM115 (closed by the `with` below)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file; check the name") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: a folder, not an image; name a file in it") from error
    except PermissionError as error:
        raise ImageError(f"{name}: you may not read it; change its permissions") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: can't be opened ({one_line(error)})") from error
    with handle:
        yield handle


def _decoder(handle: Handle, *, name: str, page: int | None, any_page: bool) -> Raster | TiffImage:
    """Choose by the first bytes: suffixes lie (the Pet set has PNGs and GIFs named .jpg)."""
    head = handle.read(32)
    if is_tiff(head):
        return open_tiff(handle, name=name, page=page, any_page=any_page)
    format_ = raster_format(head)
    if format_ is None:
        raise ImageError(_unknown(head, name))
    if page not in (None, 0):
        raise ImageError(f"{name}: there is no page {page}; a {format_} file has page 0 only")
    return open_raster(handle, name=name, format_=format_)


def _unknown(head: bytes, name: str) -> str:
    if not head:
        return f"{name}: the file is empty; get it anew or leave it out"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return f"{name}: a HEIC or AVIF image; save it as one of {_READ}"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"{name}: text, not an image; binseg reads {_READ}"
    return f"{name}: not an image that binseg knows; it reads {_READ}"
