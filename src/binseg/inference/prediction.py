"""A model's result for one image: mask, objects and outlines, as arrays, files and bytes."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from PIL import Image

from binseg import imageio, postprocess
from binseg.errors import ImageError, UsageError, needing
from binseg.imageio.decoding import Cover, Valid
from binseg.inference.predict_options import (
    OutputName,
    Pixels,
    PredictOptions,
    Probability,
    cover_of,
)
from binseg.inference.quality import Judge, Quality
from binseg.postprocess import FoundObject
from binseg.postprocess.found_objects import Project
from binseg.report.overlay import cropped, cutout, on_colour, overlay, soft_alpha
from binseg.report.rendering import Entry, thumbnail
from binseg.storage import cell, csv_text, write_bytes, write_text
from binseg.transforms.geometry import SmallMap

KEPT_PIXELS = 64_000_000  # larger images don't stay in their Prediction
ENCODED = ("mask", "probability", "overlay", "cutout", "json")
"""Outputs that `Prediction.encode` makes."""
_COLUMNS = ("label", "area_px", "centroid_y", "centroid_x", "top", "left", "height", "width")
_SHOWN_SIDE = 720  # longest side of the image that a notebook shows


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's result for one image, at the image's own size."""

    probability_HW: Probability | SmallMap
    """As it was found; `probability` is that of every pixel."""
    threshold: float
    bundle_id: str
    postprocessing: postprocess.PostProcessing = postprocess.NOTHING
    """Corrections of the mask."""
    image_HWC: Pixels | None = None
    """The image as it was read, perhaps reduced; None where it was too large to keep."""
    name: str = "image"
    """The name of the image in outputs."""
    pixel_size: imageio.PixelSize | None = None
    georeference: imageio.Georeference | None = None
    valid_HW: Valid = None
    """False where the image has no data: never foreground, and of probability 0."""
    origin: Mapping[str, object] = field(default_factory=dict)
    """The facts that `--resume` needs of image and settings; only the mask's file keeps it."""
    source: Path | bytes | Image.Image | None = field(default=None, repr=False)
    """The image's file, its bytes, or a PIL image: cut-outs ask it for transparency."""
    page: int | None = None
    """Page of the file."""
    cover: Cover | None = field(default=None, repr=False)
    """Transparency and ICC profile, where they were read with the image."""
    judge: Judge | None = field(default=None, repr=False)
    """Judges the quality; None for an ensemble, or a model that learnt nothing of its data."""

    @cached_property
    def probability(self) -> Probability:
        """The probability of foreground, float32 in [0, 1], at the original size."""
        found = self.probability_HW
        return found.whole() if isinstance(found, SmallMap) else found

    @cached_property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """True where the probability is above the threshold, corrected by `postprocessing`."""
        mask_HW = postprocess.segment(self.probability_HW, self.threshold, self.postprocessing)
        return mask_HW if self.valid_HW is None else mask_HW & self.valid_HW

    @property
    def foreground(self) -> float:
        """The share of the pixels that are foreground."""
        return np.count_nonzero(self.mask) / self.mask.size

    @cached_property
    def quality(self) -> Quality | None:
        """The expected Dice with a 90 % interval, and a flag with its reason.

        None where the model can't judge, or the image was too large to be kept.
        """
        if self.judge is None or self.image_HWC is None:
            return None
        return self.judge.quality(self.image_HWC, self.probability_HW, self.mask)

    def overlay(self) -> UInt8[np.ndarray, "H W 3"]:
        """Draw the mask over the image, as 8-bit RGB; UsageError if it was too large to be kept."""
        return overlay(self._image(), self.mask)

    def cutout(
        self, *, crop: int | None = None, background: str | None = None
    ) -> UInt8[np.ndarray, "H2 W2 C"]:
        """Cut the foreground out of the image, as 8-bit RGBA with soft edges.

        `crop` ends so many pixels around the foreground; `background` is a colour to lie on (a
        name, or #rrggbb), which gives RGB. What is transparent in the image's file stays so.
        UsageError: the image was too large to be kept, or something that is no colour.
        """
        return self._cut(PredictOptions(outputs=("cutout",), crop=crop, background=background))

    def _cut(self, options: PredictOptions) -> UInt8[np.ndarray, "H2 W2 C"]:
        alpha_HW = soft_alpha(self.mask, self.probability, self.threshold)
        own_HW, _ = self._cover
        if own_HW is not None:
            alpha_HW = alpha_HW * (own_HW / np.float32(255))
        cut_HW4 = cutout(self._image(), alpha_HW)
        if options.crop is not None:
            cut_HW4 = cut_HW4[cropped(self.mask, options.crop)]
        return cut_HW4 if options.ground is None else on_colour(cut_HW4, options.ground)

    @cached_property
    def _cover(self) -> Cover:
        """Transparency of the image's file, and the ICC profile of a cut-out's colours."""
        alpha_HW, icc = self.cover or cover_of(self.source, self.page)
        is_kept = self.image_HWC is not None and self.image_HWC.dtype == np.uint8
        return alpha_HW, icc if is_kept and icc is not None and icc[16:20] == b"RGB " else None

    def objects(self) -> list[FoundObject]:
        """List the mask's connected objects with area, box, centroid and mean probability."""
        return self._objects

    def polygons(self, *, tolerance: float = 0.0) -> list[postprocess.Polygon]:
        """Trace the outlines along pixels' edges, simplified by up to `tolerance` pixels."""
        return postprocess.trace_polygons(self.mask, tolerance=tolerance)

    def geojson(self, *, tolerance: float = 0.0) -> dict[str, Any]:
        """Give the outlines as GeoJSON, in degrees (EPSG:4326) where the image has a place.

        Raises ImageError where its coordinate system has no code, MissingExtraError without pyproj.
        """
        place = self.georeference
        if place is not None and place.crs is None and place.keys:
            raise ImageError(
                f"{self.name}: its coordinate system has no EPSG code, which GeoJSON needs; "
                "reproject the image (gdalwarp -t_srs EPSG:4326), or leave out --geojson"
            )
        return postprocess.geojson(
            self.polygons(tolerance=tolerance),
            self._objects,
            properties={**self.facts, "image": self.name},
            transform=place.transform if place else None,
            project=_to_degrees(place.crs) if place and place.crs else None,
        )

    def coco(self, *, tolerance: float = 0.0) -> dict[str, Any]:
        """Give the objects as a COCO data set of this one image."""
        polygons = self.polygons(tolerance=tolerance)
        of_image = [(self.name, self.mask, polygons, self._objects)]
        found = postprocess.coco(of_image, info=self.facts)
        if self.page is not None:
            found["images"][0]["page"] = self.page
        return found

    def labels(self) -> Int32[np.ndarray, "H W"]:
        """Number the mask's objects from 1, in the order of `objects`."""
        return postprocess.label_objects(self.mask)[0]

    def kaggle(self) -> str:
        """Give the mask as a line of Kaggle's CSV of run lengths, below a line of names."""
        runs = postprocess.kaggle_runs(self.mask)
        return f"ImageId,EncodedPixels\n{cell(Path(self.name).stem)},{runs}\n"

    def table(self) -> str:
        """Give the objects as CSV, a line each below a line of names."""
        made: dict[str, object] = {"model": self.bundle_id, "threshold": self.threshold}
        if found := self.quality:
            made |= {"expected_dice": round(found.expected_dice, 4), "quality": found.flag}
        return table_of({self.name: self._objects}, made)

    @property
    def facts(self) -> dict[str, object]:
        """The makings of the prediction, which every output states where its format has room."""
        return {
            "binseg": version("binseg"),
            "model": self.bundle_id,
            "threshold": self.threshold,
            "postprocess": self.postprocessing.as_dict(),
            **({} if self.valid_HW is None else {"no_data": float((~self.valid_HW).mean())}),
        }

    def as_dict(self, *, tolerance: float = 0.0) -> dict[str, Any]:
        """Give all that is known but the pixels as plain data."""
        height, width = self.mask.shape
        return {
            **self.facts,
            "width": width,
            "height": height,
            "foreground_share": self.foreground,
            "num_objects": len(self._objects),
            "quality": self.quality.as_dict() if self.quality else None,
            "objects": [one.as_row() for one in self._objects],
            "polygons": self.geojson(tolerance=tolerance),
            "rle": postprocess.encode_rle(self.mask),
        }

    def save(self, path: str | Path, *, kind: str | None = None, **how: Any) -> Path:
        """Write the mask, or another kind of output, whole or not at all.

        Args:
            path: .png or .tif (the mask, 0 and 255), .geojson (outlines), .json (COCO) or .csv (a
                line an object), unless `kind` says otherwise.
            kind: mask, overlay, cutout, probability (.tif), geojson, coco, table, labels (.tif,
                numbered objects), rois (.zip, ImageJ's) or kaggle (.csv, run lengths).
            how: tolerance, crop and background, which `PredictOptions` describes.

        Raises:
            UsageError: another kind, or a suffix that tells none.
            OutputError: the disk refused, or the kind isn't written with this suffix.
        """
        path = Path(path)
        kind = kind or _KIND_OF_SUFFIX.get(path.suffix.lower(), "")
        if kind not in FILES:
            raise UsageError(
                f"{path}: the name must end in one of {', '.join(_KIND_OF_SUFFIX)}, or give kind= "
                f"one of {', '.join(FILES)}"
            )
        outputs = cast("tuple[OutputName, ...]", () if kind == "mask" else (kind,))
        FILES[kind].write(self, path, PredictOptions(outputs=outputs, **how))
        return path

    def encode(self, kind: str, options: PredictOptions | None = None) -> tuple[bytes, str]:
        """Make one output of `ENCODED` in memory, and tell its media type; else UsageError.

        `options` say how far outlines may be simplified, and how cut-outs end.
        """
        options, encode = options or PredictOptions(), imageio.encode_image
        match kind:
            case "mask":
                data = imageio.encode_mask(self.mask, facts=self.facts)
            case "probability":  # of 8 bits
                data = imageio.encode_probability(self.probability)
            case "overlay":
                data = encode(self.overlay(), facts=self.facts)
            case "cutout":
                data = encode(self._cut(options), facts=self.facts, icc=self._cover[1])
            case "json":
                data = json.dumps(self.as_dict(tolerance=options.tolerance)).encode()
            case _:
                listed = ", ".join(ENCODED)
                raise UsageError(f"there is no output {kind!r}; choose one of {listed}")
        return data, "application/json" if kind == "json" else "image/png"

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return (
            f"Prediction({height}x{width}, foreground {self.foreground:.1%}, "
            f"threshold {self.threshold:g}, bundle {self.bundle_id}"
            + (f", {self.quality})" if self.quality else ")")
        )

    def _repr_png_(self) -> bytes:
        """Show the overlay in a notebook, or the mask where the image wasn't kept."""
        every = (slice(None, None, -(-max(self.mask.shape) // _SHOWN_SIDE)),) * 2
        mask_HW = self.mask[every]
        if self.image_HWC is None:
            return imageio.encode_mask(mask_HW)
        return imageio.encode_image(overlay(self._image()[every], mask_HW))

    def _repr_html_(self) -> str:
        """Show the same above a line with its name and figures, in bold where one should look."""
        data = base64.b64encode(self._repr_png_()).decode()
        told = f"{escape(self.name)}: {escape(repr(self))}"
        if self.quality and self.quality.flag != "ok":
            told = f"<strong>{told}</strong>"
        return (
            f'<figure><img alt="prediction" src="data:image/png;base64,{data}">'
            f"<figcaption>{told}</figcaption></figure>"
        )

    def entry(self) -> Entry:
        """Give its line of a report on many predictions, with a small image."""
        size, judged = self.pixel_size, self.quality.as_dict() if self.quality else {}
        judged.pop("distance", None)
        return Entry(
            name=self.name,
            thumb="" if self.image_HWC is None else thumbnail(self.image_HWC, self.mask),
            num_objects=len(self._objects),
            foreground=self.foreground,
            area=size.height * size.width * float(self.mask.sum()) if size else None,
            unit="µm²" if size else "",
            **judged,
        )

    @cached_property
    def _objects(self) -> list[FoundObject]:
        size = self.pixel_size
        pixel_size = (size.height, size.width) if size else None
        return postprocess.find_objects(self.mask, self.probability, pixel_size=pixel_size)

    def _image(self) -> Pixels:
        if self.image_HWC is None:
            raise UsageError(
                f"{self.name}: the image was too large to keep (above {KEPT_PIXELS / 1e6:.0f} "
                "megapixels); draw on a smaller one"
            )
        if self.image_HWC.shape[:2] == self.mask.shape:
            return self.image_HWC
        if isinstance(self.source, bytes):
            return imageio.decode_image(self.source, name=self.name)
        assert isinstance(self.source, Path), "whoever reduces an image knows its file"
        return imageio.read_image(self.source, page=self.page)


def table_of(objects: Mapping[str, Sequence[FoundObject]], made: Mapping[str, object]) -> str:
    """Give the objects of images by name as CSV, each with what `made` says of all."""
    rows = [{"image": name, **one.as_row()} for name, some in objects.items() for one in some]
    names = list(rows[0]) if rows else ["image", *_COLUMNS, "mean_probability"]
    return csv_text(({**row, **made} for row in rows), [*names, *made])


def _to_degrees(crs: str) -> Project | None:
    """Find the way from a coordinate system to longitude and latitude, which GeoJSON is in."""
    if crs == "EPSG:4326":
        return None
    with needing("pyproj", extra="geo", purpose=f"GeoJSON of {crs}"):
        import pyproj
    way = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    return lambda x, y: np.stack(way.transform(x, y), axis=1)


Write = Callable[[Prediction, Path, PredictOptions], None]


class FileKind(NamedTuple):
    """A file that a prediction becomes."""

    ending: str  # The end of its name, behind the image's; the mask's may be .tif as well
    write: Write  # Takes the path, and how far outlines are simplified and cut-outs end


def _write_mask(one: Prediction, path: Path, _: PredictOptions) -> None:
    facts = {**one.facts, **one.origin}
    place = None if path.suffix.lower() == ".png" else one.georeference
    imageio.write_mask(path, one.mask, facts=facts, georeference=place, pixel_size=one.pixel_size)


def _write_cutout(one: Prediction, path: Path, options: PredictOptions) -> None:
    imageio.write_image(path, one._cut(options), facts=one.facts, icc=one._cover[1])


def _numbers(make: Callable[[Prediction], np.ndarray]) -> Write:
    return lambda one, path, _: imageio.write_numbers(
        path, make(one), facts=one.facts, georeference=one.georeference, pixel_size=one.pixel_size
    )


def _known(one: Prediction) -> Probability:
    pixels = one.probability
    return pixels if one.valid_HW is None else np.where(one.valid_HW, pixels, np.float32(np.nan))


def _json(make: Callable[..., dict[str, Any]]) -> Write:
    return lambda one, path, how: write_text(path, json.dumps(make(one, tolerance=how.tolerance)))


FILES: Mapping[str, FileKind] = MappingProxyType(
    {
        "mask": FileKind(".png", _write_mask),
        "overlay": FileKind(
            "_overlay.png",
            lambda one, path, _: imageio.write_image(path, one.overlay(), facts=one.facts),
        ),
        "cutout": FileKind("_cutout.png", _write_cutout),
        "probability": FileKind("_probability.tif", _numbers(_known)),
        "geojson": FileKind(".geojson", _json(Prediction.geojson)),
        "coco": FileKind("_coco.json", _json(Prediction.coco)),
        "table": FileKind("_objects.csv", lambda one, path, _: write_text(path, one.table())),
        "labels": FileKind("_labels.tif", _numbers(Prediction.labels)),
        "rois": FileKind(
            "_rois.zip",
            lambda one, path, how: write_bytes(
                path, postprocess.imagej_rois(one.polygons(tolerance=how.tolerance))
            ),
        ),
        "kaggle": FileKind("_kaggle.csv", lambda one, path, _: write_text(path, one.kaggle())),
    }
)
"""Files that a prediction becomes; a new one is a row here and a name in `OutputName`."""
_KIND_OF_SUFFIX = {
    **dict.fromkeys((".png", ".tif", ".tiff"), "mask"),
    ".geojson": "geojson",
    ".json": "coco",
    ".csv": "table",
}
