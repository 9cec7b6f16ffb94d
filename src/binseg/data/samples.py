"""A record becomes a sample: the image's pixels, its truth, and which pixels count."""

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageDraw

from binseg.data.dataset import counted, name_some, spread
from binseg.data.masks import MaskRule
from binseg.errors import ImageError
from binseg.imageio import probe, read_labels, read_pixels, read_reduced
from binseg.imageio.decoding import swaps_sides, turn
from binseg.transforms.preprocess import reduction
from binseg.types import Preprocessing, Record, Sample, Shape

NUM_LOOKED = 64
"""Masks that `looks_inverted` looks at."""
MOST_FOREGROUND, MOST_BORDER, FEW_ODD = 0.5, 0.6, 0.25
"""Shares of an image and of its border above which a mask looks inverted, and of such masks."""


def read_sample(record: Record, rule: MaskRule, shape: Preprocessing | None = None) -> Sample:
    """Read one record's image and truth at their own size.

    Args:
        record: where they are.
        rule: how the values of its mask are read.
        shape: a model's, by which the image may come reduced (`read_reduced`).

    Raises:
        ImageError: a file that can't be read, a mask of another size than its image, or a
            mask value that the rule doesn't know; the text names the file.
    """
    if shape is not None and not record.further_images:
        image_HWC, data_HW, (height, width) = read_reduced(
            record.image_path, partial(reduction, preprocessing=shape), page=record.page
        )
    else:
        image_HWC, data_HW = read_pixels(record.image_path, page=record.page)
        height, width = image_HWC.shape[:2]
    for path in record.further_images:
        channel_HWC, also_HW = read_pixels(path, page=record.page)
        if channel_HWC.shape[:2] != (height, width):
            raise ImageError(
                f"{path}: {_sizes_differ(record, channel_HWC.shape[:2], (height, width))}"
            )
        image_HWC = np.concatenate([image_HWC, channel_HWC], axis=2)
        if also_HW is not None:
            data_HW = also_HW if data_HW is None else data_HW & also_HW
    mask_HW, valid_HW = None, np.ones((height, width), dtype=bool)
    if record.shapes is not None:
        mask_HW, valid_HW = fill_shapes(record.shapes, height, width)
    elif record.mask_path is not None:
        mask_HW, valid_HW = (
            in_pose(one, (height, width), record.image_path) for one in read_mask(record, rule)
        )
        if mask_HW.shape != (height, width):
            sizes = _sizes_differ(record, mask_HW.shape, (height, width))
            raise ImageError(f"{_shown(record.mask_path, record)}: {sizes}")
    if data_HW is not None:
        valid_HW = valid_HW & data_HW
    return Sample(
        id=record.id,
        image_HWC=image_HWC,
        mask_HW=mask_HW,
        valid_HW=valid_HW,
        is_reduced=image_HWC.shape[:2] != (height, width),
    )


def _shown(path: Path, record: Record) -> str:
    return str(path) if record.page is None else f"{path} (page {record.page})"


def fill_shapes(
    shapes: Sequence[Shape], height: int, width: int
) -> tuple[Bool[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """Fill outlines: mask_HW, and valid_HW, which is False where only ignored ones lie."""
    mask_HW = rasterise([one for one in shapes if not one.ignored], height, width)
    apart_HW = rasterise([one for one in shapes if one.ignored], height, width)
    return mask_HW, mask_HW | ~apart_HW


def in_pose(
    mask: Shaped[np.ndarray, "h w ..."], size: tuple[int, ...], image: Path
) -> Shaped[np.ndarray, "H W ..."]:
    """Turn a mask as its image's EXIF asks, where it was made from the pixels as they are stored.

    Only a turn by 90 degrees shows, by the sides; other masks are given as they are.
    """
    if mask.shape[:2] == size or mask.shape[:2] != size[::-1]:
        return mask
    orientation = probe(image).orientation
    return turn(mask, orientation) if swaps_sides(orientation) else mask


def read_mask(
    record: Record, rule: MaskRule
) -> tuple[Bool[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Read the mask files of a record, of which each may hold an object, at their own size.

    Gives mask_HW, True where foreground, and valid_HW, False where the pixel doesn't count; raises
    as `read_sample`.
    """
    mask_HW = valid_HW = None
    for path in record.mask_paths:
        labels = read_labels(path, page=record.page, indices=rule.indices)
        try:
            marked_HW, counts_HW = rule.apply(labels)
        except ImageError as error:
            raise ImageError(f"{_shown(path, record)}: {error}") from None
        if mask_HW is None or valid_HW is None:
            mask_HW, valid_HW = marked_HW, counts_HW
        elif mask_HW.shape != marked_HW.shape:
            raise ImageError(f"{path}: {_sizes_differ(record, marked_HW.shape, mask_HW.shape)}")
        else:
            mask_HW, valid_HW = mask_HW | marked_HW, valid_HW & counts_HW
    assert mask_HW is not None
    assert valid_HW is not None
    return mask_HW, valid_HW


def notes_on_images(records: Sequence[Record]) -> list[str]:
    """Say which pixels of images count as no data, and which channels aren't what they are called.

    Up to 64 images are looked at.
    """
    infos = []
    for record in spread(records, NUM_LOOKED):
        with contextlib.suppress(ImageError):  # reading the samples will name it
            infos.append(probe(record.image_path))
    turned = 0
    for record in spread([r for r in records if r.mask_path is not None], NUM_LOOKED):
        with contextlib.suppress(ImageError):
            image, mask = probe(record.image_path), probe(record.mask_paths[0])
            sizes = (mask.height, mask.width), (image.width, image.height)
            is_alone = swaps_sides(image.orientation) and mask.orientation == 1
            turned += is_alone and image.height != image.width and sizes[0] == sizes[1]
    notes = []
    if values := sorted({one.nodata for one in infos if one.nodata is not None}):
        told = ", ".join(f"{value:g}" for value in values)
        notes.append(f"pixels of the value {told} are no data by the files' tag, and don't count")
    if kept := sum(one.keeps_alpha for one in infos):
        some = counted(kept, "image has a channel", "images have a channel")
        notes.append(
            f"{some} that is marked as transparency but varies like data: it is kept "
            f"(input.channels={max(one.channels for one in infos)})"
        )
    if turned:
        some = counted(turned, "image is", "images are")
        notes.append(
            f"{some} turned by EXIF and the mask isn't, of those looked at: such masks are turned "
            "like their images"
        )
    return notes


def looks_inverted(records: Sequence[Record], rule: MaskRule) -> str | None:
    """Say that masks look inverted: foreground that is most of an image and of its border.

    Up to 64 masks are looked at. A few that differ so from the rest were made in another way; if
    all are so, the rule may be the wrong way round.
    """
    odd: list[str] = []
    looked = 0
    for record in spread([one for one in records if one.mask_path is not None], NUM_LOOKED):
        with contextlib.suppress(ImageError):  # reading the samples will name it
            mask_HW, valid_HW = read_mask(record, rule)
            looked += 1
            rim_HW = valid_HW.copy()
            rim_HW[1:-1, 1:-1] = False
            if not rim_HW.any() or mask_HW.all():
                continue
            if mask_HW[valid_HW].mean() > MOST_FOREGROUND and mask_HW[rim_HW].mean() > MOST_BORDER:
                odd += [path.name for path in record.mask_paths[:1]]
    if not odd or FEW_ODD * looked < len(odd) < looked:
        return None
    seen = "foreground is more than half of the image and most of its border"
    if len(odd) < looked:
        told = counted(len(odd), "mask looks", "masks look")
        return f"{told} inverted beside the others: {seen} ({name_some(odd)}); fix the files"
    turn = rule.turned_by
    way_on = f"; if the object is the rest, say {turn}" if turn else "; is the object the rest?"
    return f"the masks look inverted: in all of them {seen}{way_on}"


def _sizes_differ(record: Record, of_mask: tuple[int, ...], of_image: tuple[int, int]) -> str:
    text = (
        f"the mask is {of_mask[0]}x{of_mask[1]} (height x width), but its "
        f"image {record.image_path.name} is {of_image[0]}x{of_image[1]}"
    )
    if of_mask == of_image[::-1]:
        # Cameras store a turned image with an EXIF note; drawing tools often drop that note.
        return f"{text}; one of them is turned: does only one carry an EXIF orientation?"
    return f"{text}; make them the same size (masks without interpolation)"


def rasterise(shapes: Iterable[Shape], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Fill shapes: a pixel is foreground where its centre lies inside any of them.

    Coordinates are (x, y) in pixels with (0, 0) at the outer corner of the first pixel, so that
    the centre of row 0, column 0 is (0.5, 0.5). Within one shape the even-odd rule holds: a ring
    inside a ring is a hole. What reaches past the image is cut off.

    >>> square = Shape(rings=(((1.0, 0.0), (3.0, 0.0), (3.0, 2.0), (1.0, 2.0)),))
    >>> rasterise([square], 2, 4).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    mask_HW = np.zeros((height, width), dtype=bool)
    for shape in shapes:
        if shape.closed:
            _fill_closed(mask_HW, shape)
            continue
        corners = [np.asarray(ring, np.float64) for ring in shape.rings if len(ring) >= 3]
        if edges := [np.hstack([one, np.roll(one, -1, axis=0)]) for one in corners]:
            _fill(mask_HW, np.concatenate(edges))
    return mask_HW


def _fill_closed(mask_HW: Bool[np.ndarray, "H W"], shape: Shape) -> None:
    """Add a shape with the pixels under its outline, as OpenCV and Pillow fill contours."""
    height, width = mask_HW.shape
    image = Image.new("1", (width, height))
    ImageDraw.Draw(image).polygon([*shape.rings[0]], fill=1, outline=1)
    filled_HW = np.array(image)
    for hole in shape.rings[1:]:
        filled_HW &= ~rasterise([Shape(rings=(hole,))], height, width)
    mask_HW |= filled_HW


def _fill(mask_HW: Bool[np.ndarray, "H W"], edges_E4: Float[np.ndarray, "E 4"]) -> None:
    """Add one shape: toggle where an edge crosses a row of centres; odd running sums are inside."""
    height, width = mask_HW.shape
    x0, y0, x1, y1 = edges_E4.T
    # Half-open in y: a corner that lies exactly on a row of centres is crossed once, not twice.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    past = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    num_rows = past - first
    edge = np.repeat(np.arange(len(first)), num_rows)
    if not len(edge):
        return
    starts = np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
    rows = first[edge] + np.arange(len(edge)) - starts
    x = x0[edge] + (rows + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    # Only the shape's own box is worked on: many small objects in a large image stay cheap.
    top, left, box_height, box_width = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns)
    where = (rows - top) * (box_width + 1) + columns - left
    toggles = np.bincount(where, minlength=box_height * (box_width + 1))
    inside = np.cumsum(toggles.reshape(box_height, box_width + 1), axis=1) & 1
    mask_HW[top : top + box_height, left : left + box_width] |= inside[:, :-1].astype(bool)
