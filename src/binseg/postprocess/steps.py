"""Small corrections of a mask, always the same ones in the same order."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from binseg.errors import UsageError

__all__ = ["NOTHING", "PostProcessing", "clean"]


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """Which corrections; areas are in pixels of the image's own size.

    Raises:
        UsageError: a negative area.
    """

    min_area: int = 0
    """Objects of fewer pixels are removed."""
    fill_holes: int = 0
    """Holes of up to so many pixels are filled."""
    largest_only: bool = False
    """Only the largest object stays; of equal ones the first by row, then column."""

    def __post_init__(self) -> None:
        for name in ("min_area", "fill_holes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} {getattr(self, name)}: give a number of pixels from 0")

    @property
    def is_empty(self) -> bool:
        """Whether it leaves every mask as it is."""
        return self == NOTHING

    def as_dict(self) -> dict[str, int | bool]:
        """The settings as plain data."""
        return {
            "min_area": self.min_area,
            "fill_holes": self.fill_holes,
            "largest_only": self.largest_only,
        }


NOTHING = PostProcessing()
"""No correction."""


def clean(
    mask_HW: Bool[np.ndarray, "H W"], postprocessing: PostProcessing
) -> Bool[np.ndarray, "H W"]:
    """Fill small holes, then remove small objects, then keep the largest; the mask is not changed.

    Args:
        mask_HW: True where the object is.
        postprocessing: what to do.
    """
    if postprocessing.is_empty:
        return mask_HW
    from scipy import ndimage  # its import would slow every start

    cleaned_HW = mask_HW.copy()
    if postprocessing.fill_holes:
        labels_HW, num = ndimage.label(~cleaned_HW)
        small = np.bincount(labels_HW.ravel(), minlength=num + 1) <= postprocessing.fill_holes
        small[0] = False
        for edge in (labels_HW[0], labels_HW[-1], labels_HW[:, 0], labels_HW[:, -1]):
            small[edge] = False  # what reaches the image's edge is no hole
        cleaned_HW |= small[labels_HW]
    if postprocessing.min_area > 1 or postprocessing.largest_only:
        labels_HW, num = ndimage.label(cleaned_HW, structure=np.ones((3, 3), bool))
        areas = np.bincount(labels_HW.ravel(), minlength=num + 1)
        areas[0] = 0
        kept = areas >= postprocessing.min_area
        kept[0] = False
        if postprocessing.largest_only and num:
            kept &= np.arange(num + 1) == int(np.argmax(areas))
        cleaned_HW = kept[labels_HW]
    return cleaned_HW
