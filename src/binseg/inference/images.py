"""What `predict` takes, as pixels: paths, arrays and PIL images."""

from pathlib import Path

import numpy as np
from jaxtyping import Num
from PIL import Image

from binseg.errors import UsageError
from binseg.imageio import from_pil, read_image
from binseg.imageio.decoding import orientation_of_exif, turn

__all__ = ["ImageLike", "pixels_of"]

ImageLike = str | Path | np.ndarray | Image.Image
"""A file's path, an array (height x width, with or without channels at the end; uint8, uint16,
bool, or floats in [0, 1]), or a PIL image."""


def pixels_of(image: object, page: int | None) -> tuple[Num[np.ndarray, "H W C"], str]:
    """The pixels, and what errors call them."""
    if isinstance(image, str | Path):
        return read_image(Path(image), page=page), str(image)
    if page is not None:
        raise UsageError(f"page={page} is for multi-page files; got {_kind(image)}")
    if isinstance(image, Image.Image):
        return _turned(image), "the PIL image"
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise UsageError(
                f"got an array of shape {image.shape}; predict takes one image of height x "
                "width or height x width x channels, none of them 0 (predict_many takes several)"
            )
        image_HWC = image[:, :, None] if image.ndim == 2 else image
        if image_HWC.dtype == np.bool_:
            image_HWC = image_HWC.astype(np.uint8) * np.uint8(255)
        return image_HWC, "the array"
    raise UsageError(
        f"got {_kind(image)}; predict takes a path, a numpy array (height x width, or height x "
        "width x channels) or a PIL image"
    )


def _turned(image: Image.Image) -> Num[np.ndarray, "H W C"]:
    """The pixels as `read_image` would give them: the model learnt from turned images.

    Pillow keeps the EXIF block of an image that it hasn't turned, and updates it when it has.
    """
    exif = image.info.get("exif")
    found = orientation_of_exif(exif) if isinstance(exif, bytes) else image.getexif().get(274, 1)
    return turn(from_pil(image), found if isinstance(found, int) else 1)


def _kind(image: object) -> str:
    kind = type(image)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
