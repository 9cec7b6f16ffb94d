"""Paths, arrays and PIL images, as `predict` takes them, become pixels with facts of their file."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Num, UInt
from PIL import Image

from binseg import imageio
from binseg.errors import UsageError
from binseg.imageio.decoding import Cover, orientation_of_exif, turn
from binseg.imageio.raster import image_of
from binseg.transforms.preprocess import reduction
from binseg.types import Preprocessing

Pixels = Num[np.ndarray, "H W C"]
Probability = Float32[np.ndarray, "H W"]
Inputs = UInt[np.ndarray, "N height width C"]  # Inputs of a network, before they are normalised
Maps = Float32[np.ndarray, "N height width"]  # Probabilities, or logits, of inputs
ImageLike = str | Path | np.ndarray | Image.Image
"""A file's path, an array (height x width, with or without channels at the end; uint8, uint16,
bool, or floats in [0, 1]), or a PIL image."""


def facts_of_file(path: Path, *, place: bool = True) -> dict[str, Any]:
    """Read name, place on a map and pixel size of an image's file, as fields of a Prediction."""
    # An image that was turned by its EXIF no longer has the file's own axes.
    knows_axes = not imageio.probe(path).turned
    return {
        "name": path.name,
        "georeference": imageio.read_georeference(path) if place and knows_axes else None,
        "pixel_size": imageio.read_pixel_size(path) if knows_axes else None,
    }


def cover_of(source: Path | bytes | Image.Image | None, page: int | None) -> Cover:
    """Read the transparency and the ICC profile of what `predict` took."""
    if not isinstance(source, Image.Image):
        return (None, None) if source is None else imageio.read_cover(source, page=page)
    if not source.has_transparency_data:
        return None, source.info.get("icc_profile")
    alpha_HW = np.asarray(source.convert("RGBA").getchannel("A"))
    return turn(alpha_HW, _orientation(source)), source.info.get("icc_profile")


def pixels_of(
    image: object, page: int | None, shape: Preprocessing | None
) -> tuple[Pixels, str, dict[str, Any]]:
    """Decode what `predict` takes, a JPEG reduced: pixels, name in errors, the file's facts."""
    if isinstance(image, str | Path):
        path, facts = Path(image), facts_of_file(Path(image))
        facts |= {"source": path, "page": page}
        way = partial(reduction, preprocessing=shape)
        image_HWC, facts["valid_HW"], size = imageio.read_reduced(path, way, page=page)
        if image_HWC.shape[:2] != size:
            facts["size"] = size
        return image_HWC, str(image), facts
    if page is not None:
        raise UsageError(f"page={page} is for multi-page files; got {_kind(image)}")
    if isinstance(image, Image.Image):
        return _turned(image), "the PIL image", {"source": image}
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise UsageError(
                f"got an array of shape {image.shape}; predict takes one image of height x "
                "width or height x width x channels, none of them 0, or a list of such images"
            )
        image_HWC = image[:, :, None] if image.ndim == 2 else image
        if image_HWC.dtype == np.bool_:
            image_HWC = image_HWC.astype(np.uint8) * np.uint8(255)
        return image_HWC, "the array", {}
    raise UsageError(
        f"got {_kind(image)}; predict takes a path, a numpy array (height x width, or height x "
        "width x channels) or a PIL image, or a list of these"
    )


def _turned(image: Image.Image) -> Pixels:
    """Give the pixels as `read_image` would: the model learnt from turned images."""
    return turn(image_of(image, name="the image"), _orientation(image))


def _orientation(image: Image.Image) -> int:
    """Tell the turn of a PIL image, which keeps its EXIF until Pillow has turned it."""
    exif = image.info.get("exif")
    found = orientation_of_exif(exif) if isinstance(exif, bytes) else image.getexif().get(274, 1)
    return found if isinstance(found, int) else 1


def _kind(image: object) -> str:
    kind = type(image)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
