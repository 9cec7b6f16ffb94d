"""Settings that a prediction starts from, the same at every door, and anything as pixels."""

from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float32, Num, UInt
from PIL import Image

from binseg import imageio
from binseg.errors import UsageError
from binseg.imageio.decoding import Cover, orientation_of_exif, turn
from binseg.imageio.raster import image_of
from binseg.postprocess import NOTHING, PostProcessing
from binseg.transforms.preprocess import reduction
from binseg.types import TTA, Preprocessing

OutputName = Literal[
    "overlay", "cutout", "probability", "geojson", "coco", "table", "labels", "rois", "kaggle"
]
EXTRA_OUTPUTS: tuple[OutputName, ...] = get_args(OutputName)
"""Files that an image can get beside its mask."""
_POSTPROCESSING = ("min_area", "fill_holes", "largest_only", "separate")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Settings of a prediction; what is left out is the model's own. Raises UsageError."""

    threshold: float | None = None
    """A pixel is foreground where its probability is above this."""
    min_area: int | None = None
    """Objects of fewer pixels are removed."""
    fill_holes: int | None = None
    """Holes of up to so many pixels are filled."""
    largest_only: bool | None = None
    """Only the largest object stays."""
    separate: bool | None = None
    """Objects that touch are cut apart."""
    own_postprocessing: bool = True
    """False leaves out the post-processing that the model brings."""
    tta: TTA | None = None
    """Test-time augmentation: mirror images that are predicted too and averaged."""
    scale: float = 1.0
    """Models of tiles: what images are resized by beforehand; 0.5 for pixels of 0.25 um where the
    model learnt from 0.5 um."""
    pixel_size: float | None = None
    """Micrometres of a pixel's side, for files that don't tell; models of tiles that know the pixel
    size of their training resize images of another one to it."""
    tile: int | None = None
    """Models of tiles: height and width of a tile. Larger ones see more of their surroundings, and
    take more memory."""
    overlap: float | None = None
    """Models of tiles: share of a tile that overlaps its neighbour."""
    batch_size: int | None = None
    """Most inputs that are computed at once."""
    outputs: tuple[OutputName, ...] = ()
    """Files beside the mask."""
    mask_format: Literal["png", "tif"] = "png"
    """tif keeps the georeference of the image."""
    tolerance: float = 0.0
    """By how many pixels outlines may be simplified."""
    crop: int | None = None
    """Cut-outs end so many pixels around the object; None keeps the image's size."""
    background: str | None = None
    """Colour that cut-outs lie on: a name, or #rrggbb; None leaves them transparent."""

    def __post_init__(self) -> None:
        for told, value, low, high, wanted in (
            ("threshold", self.threshold, 0, 1, "a probability from 0 to 1"),
            ("scale", self.scale, 0.01, 100, "a factor from 0.01 to 100"),
            ("pixel size", self.pixel_size, 1e-4, 1e7, "micrometres from 0.0001 to 10000000"),
            ("overlap", self.overlap, 0, 0.9, "a share of the tile from 0 to 0.9"),
            ("batch_size", self.batch_size, 1, inf, "1 or more"),
            ("tolerance", self.tolerance, 0, inf, "pixels from 0"),
            ("crop", self.crop, 0, inf, "pixels from 0"),
        ):
            if value is not None and not low <= value <= high:
                raise UsageError(f"{told} {value:g}: give {wanted}")
        if self.tta not in (None, *get_args(TTA)):
            raise UsageError(f"tta {self.tta!r}: give one of {', '.join(get_args(TTA))}")
        # Exported networks are proven at the multiples of their coarsest stride.
        if self.tile is not None and not (32 <= self.tile <= 8192 and self.tile % 32 == 0):
            raise UsageError(f"tiles of {self.tile} pixels: give a multiple of 32 from 32 to 8192")
        if (self.crop, self.background) != (None, None) and "cutout" not in self.outputs:
            raise UsageError("crop and background are for cut-outs; ask for --cutout, too")
        self.ground  # noqa: B018  # refuses what is no colour
        if unknown := [one for one in self.outputs if one not in EXTRA_OUTPUTS]:
            raise UsageError(f"output {unknown[0]!r}: give one of {', '.join(EXTRA_OUTPUTS)}")
        PostProcessing(min_area=self.min_area or 0, fill_holes=self.fill_holes or 0)

    @property
    def is_per_page(self) -> bool:
        """True where each page of a file gets its own outputs, and not all one stack of masks."""
        return bool(self.separate) or any(one != "probability" for one in self.outputs)

    @property
    def ground(self) -> tuple[int, int, int] | None:
        """The background as red, green and blue."""
        if self.background is None:
            return None
        from PIL import ImageColor

        try:
            return ImageColor.getrgb(self.background)[:3]
        except ValueError:
            told = f"background {self.background!r}: give a colour's name, or #rrggbb"
            raise UsageError(told) from None

    def postprocessing_for(self, own: PostProcessing) -> PostProcessing:
        """Lay what is asked for over the post-processing that a model brings."""
        return replace(own if self.own_postprocessing else NOTHING, **self._asked())

    def unasked_from(self, own: PostProcessing) -> PostProcessing:
        """Give the part of a model's own post-processing that is done though nobody asked."""
        unasked = {name: getattr(NOTHING, name) for name in self._asked()}
        return replace(own if self.own_postprocessing else NOTHING, **unasked)

    def _asked(self) -> dict[str, Any]:
        asked = {name: getattr(self, name) for name in _POSTPROCESSING}
        return {name: value for name, value in asked.items() if value is not None}

    def preprocessing_for(self, own: Preprocessing, *, name: str) -> Preprocessing:
        """Lay scale and tiles over a model's; UsageError if it takes whole images."""
        if (self.scale, self.tile, self.overlap) == (1.0, None, None):
            return own
        if own.resize != "tile":
            raise UsageError(
                f"{name} resizes whole images to {own.width} x {own.height}, so that there are no "
                "tiles and no scale to set; train with input.resize: tile for that"
            )
        return replace(
            own,
            scale=own.scale * self.scale,
            height=self.tile or own.height,
            width=self.tile or own.width,
            overlap=own.overlap if self.overlap is None else self.overlap,
            largest_tile=0 if self.tile else own.largest_tile,
        )


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
        # As `read_image` gives the pixels: the model learnt from turned images.
        turned = turn(image_of(image, name="the image"), _orientation(image))
        return turned, "the PIL image", {"source": image}
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


def _orientation(image: Image.Image) -> int:
    """Tell the turn of a PIL image, which keeps its EXIF until Pillow has turned it."""
    exif = image.info.get("exif")
    found = orientation_of_exif(exif) if isinstance(exif, bytes) else image.getexif().get(274, 1)
    return found if isinstance(found, int) else 1


def _kind(image: object) -> str:
    kind = type(image)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
