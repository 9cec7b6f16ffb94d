"""The objects of a mask, one record each."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from binseg.postprocess.mask_cleaning import label_objects


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """One object; lengths in pixels of the image's own size, y downwards."""

    label: int
    """From 1, in order of the first pixel by rows."""
    area: int
    centroid_y: float
    """Mean of the pixels' centres; the first pixel's centre is at 0.5."""
    centroid_x: float
    top: int
    left: int
    height: int
    width: int
    mean_probability: float | None = None
    """Mean over the object's pixels; None where no probability was given."""
    pixel_size: tuple[float, float] | None = None
    """Height and width of a pixel in `unit`, where known."""
    unit: str = ""

    def as_row(self) -> dict[str, int | float]:
        """The figures as one line of a table; physical ones are there only where known."""
        row: dict[str, int | float] = {
            "label": self.label,
            "area_px": self.area,
            "centroid_y": round(self.centroid_y, 3),
            "centroid_x": round(self.centroid_x, 3),
            "top": self.top,
            "left": self.left,
            "height": self.height,
            "width": self.width,
        }
        if self.mean_probability is not None:
            row["mean_probability"] = round(self.mean_probability, 6)
        if self.pixel_size is not None:
            tall, broad = self.pixel_size
            row[f"area_{self.unit}2"] = self.area * tall * broad
            row[f"centroid_y_{self.unit}"] = self.centroid_y * tall
            row[f"centroid_x_{self.unit}"] = self.centroid_x * broad
        return row


def find_objects(
    mask_HW: Bool[np.ndarray, "H W"],
    probability_HW: Float32[np.ndarray, "H W"] | None = None,
    *,
    pixel_size: tuple[float, float] | None = None,
    unit: str = "um",
) -> list[FoundObject]:
    """List the objects of a mask.

    Args:
        mask_HW: True where the objects are.
        probability_HW: for the mean over each object.
        pixel_size: height and width of a pixel, for figures in physical units.
        unit: of the pixel size.
    """
    from scipy import ndimage

    labels_HW, num = label_objects(mask_HW)
    if num == 0:
        return []
    # Only foreground pixels are looked at: masks are mostly background.
    rows, columns = np.nonzero(labels_HW)
    of_pixel = labels_HW[rows, columns]
    areas = np.bincount(of_pixel, minlength=num + 1)[1:]
    ys = np.bincount(of_pixel, weights=rows + 0.5, minlength=num + 1)[1:] / areas
    xs = np.bincount(of_pixel, weights=columns + 0.5, minlength=num + 1)[1:] / areas
    means: list[float | None] = [None] * num
    if probability_HW is not None:
        weights = probability_HW[rows, columns]
        means = list(np.bincount(of_pixel, weights=weights, minlength=num + 1)[1:] / areas)
    return [
        FoundObject(
            label=index + 1,
            area=int(areas[index]),
            centroid_y=float(ys[index]),
            centroid_x=float(xs[index]),
            top=box[0].start,
            left=box[1].start,
            height=box[0].stop - box[0].start,
            width=box[1].stop - box[1].start,
            mean_probability=None if mean is None else float(mean),
            pixel_size=pixel_size,
            unit=unit if pixel_size is not None else "",
        )
        for index, (box, mean) in enumerate(
            zip(ndimage.find_objects(labels_HW), means, strict=True)
        )
    ]
