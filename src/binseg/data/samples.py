"""A record becomes a sample: the image's pixels, its truth, and which pixels count."""

import numpy as np

from binseg.data.masks import MaskRule
from binseg.data.polygons import rasterise
from binseg.errors import ImageError
from binseg.imageio import read_image, read_labels
from binseg.types import Record, Sample

__all__ = ["read_sample"]


def read_sample(record: Record, rule: MaskRule) -> Sample:
    """Read one record's image and truth at their own size.

    Args:
        record: where they are.
        rule: how the values of its mask are read.

    Raises:
        ImageError: a file that can't be read, a mask of another size than its image, or a
            mask value that the rule doesn't know; the text names the file.
    """
    image_HWC = read_image(record.image_path, page=record.page)
    height, width = image_HWC.shape[:2]
    everywhere_HW = np.ones((height, width), dtype=bool)
    if record.shapes is not None:
        mask_HW = rasterise(record.shapes, height, width)
        return Sample(id=record.id, image_HWC=image_HWC, mask_HW=mask_HW, valid_HW=everywhere_HW)
    if record.mask_path is None:
        return Sample(id=record.id, image_HWC=image_HWC, mask_HW=None, valid_HW=everywhere_HW)
    mask_HW, valid_HW = np.zeros_like(everywhere_HW), everywhere_HW
    for path in record.mask_paths:
        page = "" if record.page is None else f" (page {record.page})"
        labels = read_labels(path, page=record.page)
        if labels.shape[:2] != (height, width):
            sizes = _sizes_differ(record, labels.shape[:2], (height, width))
            raise ImageError(f"{path}{page}: {sizes}")
        try:
            marked_HW, counts_HW = rule.apply(labels)
        except ImageError as error:
            raise ImageError(f"{path}{page}: {error}") from None
        mask_HW, valid_HW = mask_HW | marked_HW, valid_HW & counts_HW
    return Sample(id=record.id, image_HWC=image_HWC, mask_HW=mask_HW, valid_HW=valid_HW)


def _sizes_differ(record: Record, of_mask: tuple[int, ...], of_image: tuple[int, int]) -> str:
    text = (
        f"the mask is {of_mask[0]}x{of_mask[1]} (height x width), but its "
        f"image {record.image_path.name} is {of_image[0]}x{of_image[1]}"
    )
    if of_mask == of_image[::-1]:
        # Cameras store a turned image with an EXIF note; drawing tools often drop that note.
        return f"{text}; one of them is turned: does only one carry an EXIF orientation?"
    return f"{text}; make them the same size (masks without interpolation)"
