"""A record becomes a sample: the image's pixels, its truth, and which pixels count."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageDraw

from binseg.data.dataset import counted, name_some, spread
from binseg.data.masks import MaskRule
from binseg.errors import ImageError
from binseg.imageio import (
    ImageInfo,
    probe,
    read_cover,
    read_image,
    read_labels,
    read_pixels,
    read_reduced,
)
from binseg.imageio.decoding import both_valid, missing_in, swaps_sides, turn, without
from binseg.transforms.preprocess import reduction
from binseg.types import Mask, Preprocessing, Record, Sample, Shape

NUM_LOOKED, NUM_DECODED = 64, 16
"""Masks, and images, that are looked at to tell of all."""
_ROWS_AT_ONCE = 8_000_000  # crossings of edges and rows that are worked on at once
CLEARLY, MOST_AGREE = 1.1, 0.8
"""Edges under a mask's outline in one pose, against the other's, that decide between them, and the
share of such decisions that decides for all."""
MOST_FOREGROUND, MOST_BORDER, FEW_ODD = 0.5, 0.6, 0.25
"""Shares of an image and of its border above which a mask looks inverted, and of such masks."""
MOST_SOFT = 0.5  # Share of transparency that is neither least nor full; more is a band of data
WHOLE_BORDER, BARE_BORDER = 0.95, 0.2
"""Shares of the border beyond which masks are the others' opposites, however many are so."""


def read_sample(record: Record, rule: MaskRule, shape: Preprocessing | None = None) -> Sample:
    """Read an image, reduced for a `shape`, and its truth by the rule; ImageError with the file."""
    if shape is not None and record.nodata is None and not record.further_images:
        image_HWC, data_HW, (height, width) = read_reduced(
            record.image_path, partial(reduction, preprocessing=shape), page=record.page
        )
    else:
        image_HWC, data_HW = read_pixels(record.image_path, page=record.page)
        height, width = image_HWC.shape[:2]
    for path in record.further_images:
        channel_HWC, also_HW = read_pixels(path, page=record.page)
        if channel_HWC.shape[:2] != (height, width):
            told = sizes_differ(record, channel_HWC.shape[:2], (height, width))
            raise ImageError(f"{path}: {told}")
        image_HWC = np.concatenate([image_HWC, channel_HWC], axis=2)
        data_HW = both_valid(data_HW, also_HW)
    if record.nodata is not None:
        image_HWC, declared_HW = without(image_HWC, record.nodata)
        data_HW = both_valid(data_HW, declared_HW)
    mask_HW, valid_HW = None, np.ones((height, width), dtype=bool)
    if record.shapes is not None:
        mask_HW, valid_HW = fill_outlines(record, (height, width))
    elif record.mask_path is not None:
        masks = read_mask(record, rule)
        mask_HW, valid_HW = (in_pose(one, (height, width), record) for one in masks)
        if mask_HW.shape != (height, width):
            sizes = sizes_differ(record, mask_HW.shape, (height, width))
            raise ImageError(f"{_shown(record.mask_path, record)}: {sizes}")
    if data_HW is not None:
        valid_HW = valid_HW & data_HW
    is_reduced = image_HWC.shape[:2] != (height, width)
    return Sample(record.id, image_HWC, mask_HW, valid_HW, is_reduced=is_reduced)


def _shown(path: Path, record: Record) -> str:
    return str(path) if record.page is None else f"{path} (page {record.page})"


def fill_shapes(
    shapes: Sequence[Shape], height: int, width: int
) -> tuple[Bool[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """Fill outlines: mask_HW, and valid_HW, which is False where only ignored ones lie."""
    mask_HW = rasterise([one for one in shapes if not one.ignored], height, width)
    apart_HW = rasterise([one for one in shapes if one.ignored], height, width)
    return mask_HW, mask_HW | ~apart_HW


def fill_outlines(record: Record, size: tuple[int, int]) -> tuple[Mask, Mask]:
    """Fill a record's outlines as `fill_shapes`, for its image of a height and width as seen."""
    is_lying = record.mask_as_stored and swaps_sides(probe(record.image_path).orientation)
    mask_HW, valid_HW = fill_shapes(record.shapes or (), *(size[::-1] if is_lying else size))
    return in_pose(mask_HW, size, record), in_pose(valid_HW, size, record)


def in_pose(
    mask: Shaped[np.ndarray, "h w ..."], size: tuple[int, ...], record: Record
) -> Shaped[np.ndarray, "H W ..."]:
    """Turn a mask as its image's EXIF asks, where sides or record say that it is as stored."""
    if mask.shape[:2] == size and not record.mask_as_stored:
        return mask
    orientation = probe(record.image_path).orientation
    if swaps_sides(orientation) and size[0] != size[1]:
        return turn(mask, orientation) if mask.shape[:2] == size[::-1] else mask
    return turn(mask, orientation) if record.mask_as_stored else mask


def find_stored_poses(
    records: Sequence[Record], rule: MaskRule
) -> tuple[tuple[Record, ...], str | None]:
    """Mark masks made before EXIF turned their images, by sides or most outlines, and say so."""
    alone = [row for row, one in enumerate(records) if _is_turned_alone(one)]
    if not alone:
        return tuple(records), None
    found = [_is_as_stored(records[row], rule) for row in spread(alone, NUM_LOOKED)]
    verdict, num = agreed(found)
    told = counted(len(alone), "image is", "images are") + " turned by EXIF and the mask isn't: "
    if verdict is None:
        why = "their outlines don't tell in which pose they were made"
        return tuple(records), f"{told}such masks are taken as seen, since {why}; look at them"
    told += f"by their sides and outlines ({num} compared) such masks "
    if not verdict:
        return tuple(records), f"{told}lie on the images as they are seen"
    stored = {records[row].id for row in alone}
    marked = (replace(one, mask_as_stored=one.id in stored) for one in records)
    return tuple(marked), f"{told}are turned like their images"


def agreed(votes: Sequence[bool | None]) -> tuple[bool | None, int]:
    """Give what most votes say, or None where they differ, and how many say anything."""
    said = [one for one in votes if one is not None]
    share = sum(said) / len(said) if said else 0.5
    return None if 1 - MOST_AGREE < share < MOST_AGREE else share > 0.5, len(said)


def _is_turned_alone(record: Record) -> bool:
    """Tell whether EXIF turns the image, and not its mask; pages of stacks are left out."""
    has_truth = record.mask_path is not None or record.shapes is not None
    with contextlib.suppress(ImageError):  # reading the sample will name it
        if has_truth and record.page is None and probe(record.image_path).turned:
            return not any(probe(path).turned for path in record.mask_paths)
    return False


def _is_as_stored(record: Record, rule: MaskRule) -> bool | None:
    """Compare both poses of a mask; None where they fit alike."""
    if record.mask_as_stored:
        return True  # the annotation says for which size it is
    try:
        image_HWC, orientation = read_image(record.image_path), probe(record.image_path).orientation
        size = image_HWC.shape[0], image_HWC.shape[1]
        if record.shapes is not None:
            stored = replace(record, mask_as_stored=True)
            return fits_second(image_HWC, *(fill_outlines(o, size)[0] for o in (record, stored)))
        mask_HW = read_mask(record, rule)[0]
    except ImageError:
        return None
    if swaps_sides(orientation) and size[0] != size[1]:
        return mask_HW.shape == size[::-1]
    if mask_HW.shape != size:
        return None
    return fits_second(image_HWC, mask_HW, turn(mask_HW, orientation))


def fits_second(
    image_HWC: Shaped[np.ndarray, "H W C"], first_HW: Mask, second_HW: Mask
) -> bool | None:
    """Tell which of two masks has the image's edges under its outline; None if both alike."""
    from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter  # slow to import

    smooth_HW = gaussian_filter(image_HWC.mean(axis=2, dtype=np.float32), 1.0)
    edges_HW = np.hypot(*np.gradient(smooth_HW))
    first, second = (
        float(edges_HW[binary_dilation(one) ^ binary_erosion(one, border_value=1)].sum())
        for one in (first_HW, second_HW)
    )
    return None if max(first, second) <= CLEARLY * min(first, second) else second > first


def read_mask(record: Record, rule: MaskRule) -> tuple[Mask, Mask]:
    """Read a record's mask files as mask_HW and valid_HW, at their own size; raises as above."""
    mask_HW = valid_HW = None
    for path in record.mask_paths:
        labels = read_labels(path, page=record.page, read_as=rule.read_as)
        try:
            marked_HW, counts_HW = rule.apply(labels)
        except ImageError as error:
            raise ImageError(f"{_shown(path, record)}: {error}") from None
        if mask_HW is None or valid_HW is None:
            mask_HW, valid_HW = marked_HW, counts_HW
        elif mask_HW.shape != marked_HW.shape:
            raise ImageError(f"{path}: {sizes_differ(record, marked_HW.shape, mask_HW.shape)}")
        else:
            mask_HW, valid_HW = mask_HW | marked_HW, valid_HW & counts_HW
    assert mask_HW is not None
    assert valid_HW is not None
    return mask_HW, valid_HW


def notes_on_images(records: Sequence[Record]) -> list[str]:
    """Say (of up to 64 images) which pixels are no data, and which channels are called amiss."""
    infos, notes = list[ImageInfo](), list[str]()
    for record in spread(records, NUM_LOOKED):
        with contextlib.suppress(ImageError):  # reading the samples will name it
            infos.append(probe(record.image_path))
    if values := sorted({one.nodata for one in infos if one.nodata is not None}):
        told = ", ".join(f"{value:g}" for value in values)
        notes.append(f"pixels of the value {told} are no data by the files' tag, and don't count")
    if kept := sum(one.keeps_alpha for one in infos):
        some = counted(kept, "image has a channel", "images have a channel")
        notes.append(
            f"{some} that is marked as transparency but varies like data: it is kept "
            f"(input.channels={max(one.channels for one in infos)})"
        )
    looked, num_held = spread(records, NUM_DECODED), 0
    soft: list[float] = []  # Share of each transparency that is neither least nor full
    nodata = records[0].nodata if records else None
    for record in looked:
        with contextlib.suppress(ImageError):  # reading the samples will name it
            opacity_HW, _ = read_cover(record.image_path, page=record.page)
            if opacity_HW is not None and (least := opacity_HW.min()) < 255:
                soft.append(float(((opacity_HW > least) & (opacity_HW < opacity_HW.max())).mean()))
            if nodata is not None:
                image_HWC = read_image(record.image_path, page=record.page)
                num_held += bool(missing_in(image_HWC, nodata).any())
    if soft:
        told = f"transparency is ignored ({len(soft)} of {len(looked)} images looked at have it)"
        if max(soft) > MOST_SOFT:
            told += "; it varies like a channel of data: save those as TIFF to keep it"
        notes.append(told)
    if nodata is not None:
        told = f"data.nodata: {nodata:g} is in {num_held} of {len(looked)} images looked at"
        notes.append(f"{told}; such pixels don't count" if num_held else f"{told}: is it right?")
    return notes


def looks_inverted(records: Sequence[Record], rule: MaskRule) -> str | None:
    """Say that of up to 64 masks a few, or all, look inverted: most of image and border."""
    odd: list[str] = []
    borders: list[float] = []
    for record in spread([one for one in records if one.mask_path is not None], NUM_LOOKED):
        with contextlib.suppress(ImageError):  # reading the samples will name it
            mask_HW, valid_HW = read_mask(record, rule)
            rim_HW = valid_HW.copy()
            rim_HW[1:-1, 1:-1] = False
            if not rim_HW.any() or mask_HW.all():
                borders.append(BARE_BORDER)
                continue
            borders.append(float(mask_HW[rim_HW].mean()))
            if mask_HW[valid_HW].mean() > MOST_FOREGROUND and borders[-1] > MOST_BORDER:
                odd += [path.name for path in record.mask_paths[:1]]
    # Objects may fill an image and its border; then there are some in between.
    are_opposite = not any(BARE_BORDER < one < WHOLE_BORDER for one in borders)
    if not odd or (FEW_ODD * len(borders) < len(odd) < len(borders) and not are_opposite):
        return None
    seen = "foreground is more than half of the image and most of its border"
    if len(odd) < len(borders):
        told = counted(len(odd), "mask looks", "masks look")
        return f"{told} inverted beside the others: {seen} ({name_some(odd)}); fix the files"
    turn = rule.turned_by
    way_on = f"; if the object is the rest, say {turn}" if turn else "; is the object the rest?"
    return f"the masks look inverted: in all of them {seen}{way_on}"


def sizes_differ(record: Record, of_mask: tuple[int, ...], of_image: tuple[int, int]) -> str:
    """Say in what a mask's height and width differ from its image's, and what may be the cause."""
    text = f"the mask is {of_mask[0]}x{of_mask[1]} (height x width), but its image "
    text += f"{record.image_path.name} is {of_image[0]}x{of_image[1]}"
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
        if shape.closed:  # with the pixels under its outline, as OpenCV and Pillow fill contours
            image = Image.new("1", (width, height))
            ImageDraw.Draw(image).polygon([*shape.rings[0]], fill=1, outline=1)
            filled_HW = np.array(image)
            for hole in shape.rings[1:]:
                filled_HW &= ~rasterise([Shape(rings=(hole,))], height, width)
            mask_HW |= filled_HW
            continue
        corners = [np.asarray(ring, np.float64) for ring in shape.rings if len(ring) >= 3]
        if edges := [np.hstack([one, np.roll(one, -1, axis=0)]) for one in corners]:
            _fill(mask_HW, np.concatenate(edges))
    return mask_HW


def _fill(mask_HW: Mask, edges_E4: Float[np.ndarray, "E 4"]) -> None:
    """Add one shape: toggle where an edge crosses a row of centres; odd running sums are inside."""
    height, width = mask_HW.shape
    # Half-open in y: a corner that lies exactly on a row of centres is crossed once, not twice.
    first = np.clip(np.ceil(edges_E4[:, 1::2].min(axis=1) - 0.5), 0, height).astype(np.int64)
    past = np.clip(np.ceil(edges_E4[:, 1::2].max(axis=1) - 0.5), 0, height).astype(np.int64)
    num_rows = past - first
    if not num_rows.any():
        return
    # Only the shape's own box is worked on: many small objects in a large image stay cheap.
    top, bottom = first[num_rows > 0].min(), past.max()
    ends = edges_E4[num_rows > 0, ::2]
    left, right = np.clip(np.ceil([ends.min() - 0.5, ends.max() - 0.5]), 0, width).astype(np.int64)
    size = bottom - top, right - left + 1
    toggles = np.zeros(size[0] * size[1], np.uint8)  # only whether their sum is odd counts
    # Part by part: a million edges across many rows would fill the memory.
    whole = np.cumsum(num_rows)
    ends_of_parts = np.searchsorted(whole, np.arange(_ROWS_AT_ONCE, whole[-1], _ROWS_AT_ONCE))
    for part in np.split(np.arange(len(first)), ends_of_parts):
        edge = np.repeat(part, num_rows[part])
        starts = np.repeat(np.cumsum(num_rows[part]) - num_rows[part], num_rows[part])
        rows = first[edge] + np.arange(len(edge)) - starts
        x0, y0, x1, y1 = edges_E4[edge].T
        x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        columns = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
        where = (rows - top) * size[1] + columns - left
        toggles ^= (np.bincount(where, minlength=len(toggles)) & 1).astype(np.uint8)
    inside = np.cumsum(toggles.reshape(size), axis=1, dtype=np.uint8) & 1
    mask_HW[top:bottom, left:right] |= inside[:, :-1].astype(bool)
