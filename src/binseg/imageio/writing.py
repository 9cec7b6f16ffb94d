"""Masks, pictures and probabilities to files, each whole or not at all."""

from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from binseg.errors import OutputError
from binseg.imageio.pixels import one_line
from binseg.storage import atomic_path

__all__ = ["write_mask", "write_probability", "write_rgb", "write_rgba"]

_TIFF = (".tif", ".tiff")


def write_mask(path: Path, mask_HW: Bool[np.ndarray, "H W"]) -> None:
    """Write a mask as 8-bit grey, 0 and 255 (0 and 1 would look black), PNG or TIFF by suffix.

    Raises:
        OutputError: another suffix, or the disk refused.
    """
    assert mask_HW.dtype == np.bool_, mask_HW.dtype
    assert mask_HW.ndim == 2, mask_HW.shape
    _write(path, mask_HW.astype(np.uint8) * np.uint8(255), (".png", *_TIFF))


def write_rgb(path: Path, image_HW3: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write a colour picture as PNG, TIFF or JPEG by suffix.

    Raises:
        OutputError: another suffix, or the disk refused.
    """
    assert image_HW3.dtype == np.uint8, image_HW3.dtype
    assert image_HW3.ndim == 3, image_HW3.shape
    assert image_HW3.shape[2] == 3, image_HW3.shape
    _write(path, image_HW3, (".png", ".jpg", ".jpeg", *_TIFF))


def write_rgba(path: Path, image_HW4: UInt8[np.ndarray, "H W 4"]) -> None:
    """Write a colour picture with transparency as PNG or TIFF by suffix.

    Raises:
        OutputError: another suffix, or the disk refused.
    """
    assert image_HW4.dtype == np.uint8, image_HW4.dtype
    assert image_HW4.ndim == 3, image_HW4.shape
    assert image_HW4.shape[2] == 4, image_HW4.shape
    _write(path, image_HW4, (".png", *_TIFF))


def write_probability(path: Path, probability_HW: Float32[np.ndarray, "H W"]) -> None:
    """Write a map of probabilities as a float32 TIFF, packed without loss (deflate).

    Raises:
        OutputError: another suffix, or the disk refused.
    """
    assert probability_HW.dtype == np.float32, probability_HW.dtype
    assert probability_HW.ndim == 2, probability_HW.shape
    _write(path, probability_HW, _TIFF)


def _write(path: Path, pixels: np.ndarray, suffixes: tuple[str, ...]) -> None:
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise OutputError(
            f"can't write {one_line(path)}: the name must end in one of {', '.join(suffixes)}"
        )
    with atomic_path(path) as temporary:
        if suffix in _TIFF:
            tifffile.imwrite(
                temporary,
                pixels,
                photometric="rgb" if pixels.ndim == 3 else "minisblack",
                extrasamples=("unassalpha",) if pixels.shape[2:] == (4,) else None,
                compression="zlib",
                metadata=None,  # else tifffile notes the array's shape in the file's description
                software=False,
            )
        else:
            Image.fromarray(pixels).save(
                temporary, format="PNG" if suffix == ".png" else "JPEG", quality=92
            )
