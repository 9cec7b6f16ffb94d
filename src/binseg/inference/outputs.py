"""What a prediction becomes: files beside each other on disk, or bytes for a client."""

import csv
import io
import json
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Num

from binseg import storage
from binseg.errors import UsageError
from binseg.imageio import (
    Georeference,
    PixelSize,
    encode_image,
    encode_mask,
    encode_probability,
    write_mask,
    write_probability,
    write_rgb,
    write_rgba,
)
from binseg.inference import Prediction
from binseg.postprocess import (
    FoundObject,
    Polygon,
    coco,
    encode_rle,
    find_objects,
    geojson,
    trace_polygons,
)
from binseg.report import cutout as cut_out
from binseg.report import overlay as draw_over

__all__ = ["Answer", "OutputKinds", "encode_output", "write_outputs"]

COLUMNS = ("label", "area_px", "centroid_y", "centroid_x", "top", "left", "height", "width")
ENCODED = ("mask", "probability", "overlay", "cutout", "json")


@dataclass(frozen=True, kw_only=True)
class OutputKinds:
    """Which files an image gets; the mask is always one of them."""

    mask: Literal["png", "tif"] = "png"
    """tif keeps the georeference of the image."""
    overlay: bool = False
    """NAME_overlay.png: the image with the mask drawn over it."""
    cutout: bool = False
    """NAME_cutout.png: the objects on transparent ground."""
    probability: bool = False
    """NAME_probability.tif: 32-bit floats."""
    geojson: bool = False
    """NAME.geojson: outlines, in map coordinates where the image has them."""
    coco: bool = False
    """NAME_coco.json: one image's annotations."""
    table: bool = False
    """NAME_objects.csv: one line an object."""

    def endings(self) -> list[str]:
        """The ends of all file names of one image, the mask's first."""
        return [
            f".{self.mask}",
            *(["_overlay.png"] if self.overlay else []),
            *(["_cutout.png"] if self.cutout else []),
            *(["_probability.tif"] if self.probability else []),
            *([".geojson"] if self.geojson else []),
            *(["_coco.json"] if self.coco else []),
            *(["_objects.csv"] if self.table else []),
        ]

    def files(self, stem: Path) -> list[Path]:
        """All files of the image whose names begin with `stem`."""
        return [stem.with_name(stem.name + ending) for ending in self.endings()]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prediction, and what all kinds of output are made of.

    Costly parts (objects, outlines) are computed once, when the first output asks for them.
    """

    prediction: Prediction
    image_HWC: Num[np.ndarray, "H W C"]
    name: str
    """Of the image, for outputs that name it."""
    pixel_size: PixelSize | None = None
    georeference: Georeference | None = None
    tolerance: float = 0.0
    """By how many pixels outlines may be simplified."""
    path_hash: str = ""
    """What tells the image from others of its name; only the mask file keeps it."""

    @property
    def mask_HW(self) -> Bool[np.ndarray, "H W"]:
        """The mask, corrected."""
        return self.prediction.mask

    @cached_property
    def objects(self) -> list[FoundObject]:
        """The objects of the mask."""
        size = self.pixel_size
        return find_objects(
            self.mask_HW,
            self.prediction.probability_HW,
            pixel_size=(size.height, size.width) if size else None,
        )

    @cached_property
    def polygons(self) -> list[Polygon]:
        """The outlines of the mask."""
        return trace_polygons(self.mask_HW, tolerance=self.tolerance)

    @property
    def facts(self) -> dict[str, object]:
        """What made the answer; every output carries it where its format has room."""
        return {
            "binseg": version("binseg"),
            "model": self.prediction.bundle_id,
            "threshold": self.prediction.threshold,
            "postprocess": self.prediction.postprocessing.as_dict(),
        }

    def geojson(self) -> dict[str, Any]:
        """The outlines, in map coordinates where the image has them."""
        place = self.georeference
        return geojson(
            self.polygons,
            self.objects,
            properties={**self.facts, "image": self.name},
            transform=place.transform if place else None,
            crs=place.crs if place else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """All that is known of the answer but its pixels, as plain data."""
        height, width = self.mask_HW.shape
        return {
            **self.facts,
            "width": width,
            "height": height,
            "foreground_share": float(self.mask_HW.mean()),
            "num_objects": len(self.objects),
            "objects": [one.as_row() for one in self.objects],
            "polygons": self.geojson(),
            "rle": encode_rle(self.mask_HW),
        }

    def table(self) -> str:
        """The objects as CSV with a line of names, which programs read unchanged."""
        rows = [one.as_row() for one in self.objects]
        names = list(rows[0]) if rows else [*COLUMNS, "mean_probability"]
        text = io.StringIO()
        writer = csv.DictWriter(text, ["image", *names, "model", "threshold"], lineterminator="\n")
        writer.writeheader()
        made = {"model": self.facts["model"], "threshold": self.facts["threshold"]}
        writer.writerows({"image": self.name, **row, **made} for row in rows)
        return text.getvalue()


def write_outputs(answer: Answer, *, stem: Path, kinds: OutputKinds) -> list[Path]:
    """Write all files of an image, the mask first; each is whole or not there.

    Args:
        answer: the prediction.
        stem: path without the endings.
        kinds: which files.

    Raises:
        OutputError: the disk refused.
    """
    paths = kinds.files(stem)
    waiting = iter(paths)
    write_mask(
        next(waiting),
        answer.mask_HW,
        facts={**answer.facts, **({"path_hash": answer.path_hash} if answer.path_hash else {})},
        georeference=answer.georeference if kinds.mask == "tif" else None,
    )
    if kinds.overlay:
        write_rgb(next(waiting), draw_over(answer.image_HWC, answer.mask_HW), facts=answer.facts)
    if kinds.cutout:
        write_rgba(next(waiting), cut_out(answer.image_HWC, answer.mask_HW), facts=answer.facts)
    if kinds.probability:
        write_probability(
            next(waiting),
            answer.prediction.probability_HW,
            facts=answer.facts,
            georeference=answer.georeference,
        )
    if kinds.geojson:
        storage.write_text(next(waiting), json.dumps(answer.geojson()))
    if kinds.coco:
        storage.write_text(next(waiting), json.dumps(_coco(answer)))
    if kinds.table:
        storage.write_text(next(waiting), answer.table())
    return paths


def _coco(answer: Answer) -> dict[str, Any]:
    return coco([(answer.name, answer.mask_HW, answer.polygons, answer.objects)], info=answer.facts)


def encode_output(kind: str, answer: Answer) -> tuple[bytes, str]:
    """One output in memory, with its media type.

    Args:
        kind: mask, probability (8-bit PNG), overlay, cutout or json.
        answer: the prediction.

    Raises:
        UsageError: another kind.
    """
    match kind:
        case "mask":
            return encode_mask(answer.mask_HW, facts=answer.facts), "image/png"
        case "probability":
            return encode_probability(answer.prediction.probability_HW), "image/png"
        case "overlay":
            painted = draw_over(answer.image_HWC, answer.mask_HW)
            return encode_image(painted, facts=answer.facts), "image/png"
        case "cutout":
            cut = cut_out(answer.image_HWC, answer.mask_HW)
            return encode_image(cut, facts=answer.facts), "image/png"
        case "json":
            return json.dumps(answer.as_dict()).encode(), "application/json"
    raise UsageError(f"there is no output {kind!r}; choose one of {', '.join(ENCODED)}")
