"""The facts about a data set that a training recipe depends on; nothing is decided here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from binseg.data.dataset import Dataset, spread
from binseg.data.samples import read_sample
from binseg.errors import DataError
from binseg.imageio import probe
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.transforms.geometry import resize_image
from binseg.types import Mask, Record, Sample

K = TypeVar("K", int, float)
Three = tuple[float, float, float]

SIZES = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Sides of square inputs, in pixels, listed by `Fingerprint.kept_at_size`."""
SCALES = (0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
"""Factors of the image's own size, listed by `Fingerprint.kept_at_scale`."""
MAX_READ = 200  # images that are read at most
MAX_SHAPED, MIN_SHAPED = 24, 12
"""Images whose shapes are measured: at most, and at least (however large they are)."""
SHAPED_PIXELS = 30_000_000  # mask pixels whose shapes are measured, over all images
WINDOW = 2048  # pixels; of masks with a longer side, a part of this side is measured
THUMB = 16  # pixels; side of the thumbnails that are tested for an upright orientation
GREY_DIFFERENCE = 4.0
"""Grey levels (of 255) by which JPEG makes the channels of a grey image differ, on average."""
COLOUR_DIFFERENCE, COLOUR_PERCENTILE = 24.0, 99.9
"""Grey levels that make a pixel coloured; in a grey image up to a thousandth of the pixels may."""
PERCENTILES = (0.5, 99.5)
MIN_AREA = 4  # pixels; smaller specks don't count as objects
NUM_SIGN_FLIPS = 999  # random sign flips that the real images are compared with
SIGNIFICANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """The share in common of `num` images' differences to their mirror images; `p` by chance."""

    share: float
    p: float
    num: int

    @property
    def is_broken(self) -> bool:
        """True if images and their mirror images differ beyond chance."""
        return self.p < SIGNIFICANCE


def measure_symmetry(
    thumbs_NHW: Float[np.ndarray, "N H W"], *, axis: int, seed: int = 0
) -> Symmetry:
    """Test whether images (or masks), small and independent, can be told from their mirror images.

    If the images have no up, each could as well have been taken upside down, and the part that
    changes sign in the mirror cancels out over many images. Mirroring the images at random tells
    how far it misses cancelling out by chance (a sign-flip test, exact under that hypothesis). Axis
    1 mirrors top and bottom, axis 2 left and right.
    """
    num = len(thumbs_NHW)
    if num < 2:
        return Symmetry(share=0.0, p=1.0, num=num)
    odd_ND = ((thumbs_NHW - np.flip(thumbs_NHW, axis)) / 2).reshape(num, -1)
    # Unit length, so that one image of high contrast can't decide for all.
    odd_ND /= np.linalg.norm(odd_ND, axis=1, keepdims=True).clip(min=1e-9)
    seen = float(np.square(odd_ND.mean(axis=0)).sum())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(NUM_SIGN_FLIPS, num))
    by_chance = np.square(signs @ odd_ND / num).sum(axis=1)
    p = (1 + int((by_chance >= seen).sum())) / (NUM_SIGN_FLIPS + 1)
    # The mean of unit vectors that share nothing has a square of 1 / num by chance.
    share = max(0.0, (seen - 1 / num) / (1 - 1 / num))
    return Symmetry(share=round(share, 4), p=p, num=num)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Objects' diameters in pixels; thickness below which a tenth of ridges, half the area lie."""

    diameters: tuple[float, ...]
    thin: float
    thick: float


def measure_shapes(mask_HW: Mask) -> Shapes | None:
    """Measure the objects of a mask at the image's own size; None if the mask is empty."""
    labels_HW, num = ndimage.label(mask_HW, structure=np.ones((3, 3)))
    if num == 0:
        return None
    areas = np.bincount(labels_HW.ravel())[1:]
    areas = areas[areas >= MIN_AREA] if (areas >= MIN_AREA).any() else areas
    thin, thick = thickness_quantiles(mask_HW)
    diameters = np.sqrt(4 * areas / np.pi).round(2)
    return Shapes(diameters=tuple(diameters.tolist()), thin=thin, thick=thick)


def thickness_quantiles(mask_HW: Mask) -> tuple[float, float]:
    """Measure how thick the foreground is across its middle lines: `Shapes.thin` and `thick`.

    A ridge pixel of the distance map (no neighbour lies farther from the background) is the centre
    of an inscribed disc that touches both sides; the disc's diameter is the thickness there, and
    the pixel stands for as much area as it is thick.

    >>> line = np.zeros((40, 40), bool)
    >>> line[10:13] = True
    >>> thickness_quantiles(line)
    (3.0, 3.0)
    """
    if not mask_HW.any():
        return 0.0, 0.0
    # Objects are cut off at the image's edge: assume that they go on beyond it.
    padded_HW = np.pad(mask_HW, 1, mode="edge")
    distance_HW = ndimage.distance_transform_edt(padded_HW)[1:-1, 1:-1]
    ridge_HW = mask_HW & (distance_HW >= ndimage.maximum_filter(distance_HW, size=3) - 1e-6)
    width_N = np.sort(2 * distance_HW[ridge_HW] - 1)
    share_N = np.cumsum(width_N) / width_N.sum()
    thick = width_N[np.searchsorted(share_N, 0.5)]
    return round(float(np.quantile(width_N, 0.1)), 2), round(float(thick), 2)


def kept_by_resize(mask_HW: Mask, sizes: Sequence[tuple[int, int]]) -> Float[np.ndarray, "S"]:
    """Return the Dice of a perfect mask made at other sizes and resized back to the image's own."""
    height, width = mask_HW.shape
    soft_HW1, area, kept = mask_HW.astype(np.float32)[:, :, None], int(mask_HW.sum()), []
    for small_height, small_width in sizes:
        if area == 0 or (small_height >= height and small_width >= width):
            kept.append(1.0)
            continue
        small = resize_image(soft_HW1, small_height, small_width) > 0.5
        back_HW = resize_image(small.astype(np.float32), height, width)[:, :, 0] > 0.5
        kept.append(2 * int((back_HW & mask_HW).sum()) / (area + int(back_HW.sum())))
    return np.array(kept)


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """Mean and standard deviation of each channel, after the image's range became [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The facts for the rules of a plan: pixels, shares, and 5th, 50th, 95th percentiles."""

    num_train: int
    num_val: int
    num_test: int
    num_units: int  # independent training images: a stack or a group counts once
    is_stack: bool  # True for pages of stacks, whose neighbours look nearly the same
    height: Three
    width: Three
    aspect: Three  # width divided by height
    channels: int
    dtype: str  # the widest pixel type found: uint8, uint16 or float32
    grey_share: float  # share of the images that have one channel, or three equal ones
    range_used: Three  # share of the pixel type's range between an image's 0.5 and 99.5 percentile
    by_dtype: Intensities
    by_percentile: Intensities
    foreground: Three
    mean_foreground: float
    empty_share: float  # share of the images that have no foreground
    brighter_share: float
    """Share of those with foreground in which it is brighter than the rest, on average."""
    num_objects: float  # median over the images that have any
    diameter: Three
    """Diameters of discs of the objects' areas: 10th percentile, median, 90th percentile."""
    thin: float
    thick: float  # thickness (`Shapes`), medians over images
    kept_at_size: dict[int, float]
    """Mean Dice of perfect masks made at size x size and resized back to the images' own size."""
    kept_at_scale: dict[float, float]  # the same of masks made at a factor of the images' own size
    up_down: Symmetry
    left_right: Symmetry

    @property
    def is_grey(self) -> bool:
        """True if all images are grey."""
        return self.grey_share == 1


@dataclass(frozen=True)
class _Look:
    """The facts about one image; `shapes` and `kept` are None where not measured."""

    size: tuple[int, int]
    channels: int
    dtype: str
    is_grey: bool
    range_used: float
    moments: tuple[np.ndarray, np.ndarray]
    stretched: tuple[np.ndarray, np.ndarray]
    foreground: float
    is_brighter: bool | None
    thumbs: np.ndarray
    shapes: Shapes | None
    kept: tuple[np.ndarray, np.ndarray] | None


def take_fingerprint(
    dataset: Dataset, *, seed: int = 0, progress: Progress = SILENT
) -> Fingerprint:
    """Measure a sample of the training images; DataError without masks, ImageError."""
    chosen = _choose(dataset.of_split("train"), MAX_READ, seed)
    size = probe(chosen[len(chosen) // 2].image_path)
    fitting = SHAPED_PIXELS // max(1, min(size.height, WINDOW) * min(size.width, WINDOW))
    num_shaped = min(MAX_SHAPED, max(MIN_SHAPED, fitting), len(chosen))
    first = set(spread(range(len(chosen)), num_shaped))

    def look(index: int, *, again: bool = False) -> _Look:
        sample = read_sample(chosen[index], dataset.rule)
        if sample.mask_HW is None:
            raise DataError(f"{sample.id}: a training image without a mask")
        return _look(sample, shaped=again or index in first)

    label, total = "looking at the images", len(chosen)
    looking = map_ordered(look, range(total), num_threads=2)
    looks = list(track(looking, progress=progress, label=label, total=total))
    # Where many images are empty, shapes are those of the others.
    lacking = num_shaped - sum(one.kept is not None for one in looks)
    others = [row for row, one in enumerate(looks) if one.foreground and one.kept is None]
    for row in spread(others, lacking):
        looks[row] = look(row, again=True)
    return _summarise(dataset, chosen, looks)


def _choose(records: Sequence[Record], num: int, seed: int) -> list[Record]:
    if len(records) <= num or any(record.page is not None for record in records):
        return spread(records, num)
    rows = np.sort(np.random.default_rng(seed).permutation(len(records))[:num])
    return [records[row] for row in rows]


def _look(sample: Sample, *, shaped: bool) -> _Look:
    image_HWC, mask_HW = sample.image_HWC, sample.mask_HW
    assert mask_HW is not None
    mask_HW = mask_HW & sample.valid_HW
    height, width, channels = image_HWC.shape
    top = max(1.0, float(np.abs(image_HWC).max()))
    if image_HWC.dtype.kind in "ui":
        top = float(np.iinfo(image_HWC.dtype).max)
    step = max(1, int(np.sqrt(height * width / 65536)))
    some_HWC = image_HWC[::step, ::step].astype(np.float32)
    low, high = np.percentile(some_HWC, PERCENTILES)
    if high <= low:
        low, high = float(some_HWC.min()), max(float(some_HWC.max()), float(some_HWC.min()) + 1e-6)
    stretched_HWC = ((some_HWC - low) / (high - low)).clip(0, 1)
    inside_HW = mask_HW[::step, ::step]
    outside_HW = (~mask_HW & sample.valid_HW)[::step, ::step]
    grey_HW, is_brighter = stretched_HWC.mean(axis=2), None
    if inside_HW.any() and outside_HW.any():
        is_brighter = bool(grey_HW[inside_HW].mean() > grey_HW[outside_HW].mean())
    planes = (one_HW[:, :, None].astype(np.float32) for one_HW in (grey_HW, inside_HW))
    thumbs = [resize_image(np.ascontiguousarray(one), THUMB, THUMB) for one in planes]
    is_grey = channels == 3 and _looks_grey(some_HWC, image_HWC[mask_HW], top, high - low)
    stored = ((height, width), channels, str(image_HWC.dtype), is_grey or channels == 1)
    moments = (_moments((some_HWC / top).clip(0, 1)), _moments(stretched_HWC))
    foreground = float(mask_HW.sum() / max(1, sample.valid_HW.sum()))
    used, both = float((high - low) / top), np.stack([thumb[:, :, 0] for thumb in thumbs])
    shapes = measure_shapes(_window(mask_HW)) if shaped else None
    kept = _kept(mask_HW) if shaped and mask_HW.any() else None
    return _Look(*stored, used, *moments, foreground, is_brighter, both, shapes, kept)


def _looks_grey(pixels_HWC: np.ndarray, object_NC: np.ndarray, top: float, used: float) -> bool:
    """Tell whether three channels differ only by JPEG's noise, in the object too."""
    full = top if top == 255.0 else used  # 16-bit images often use only a part of their range
    differences = np.abs(pixels_HWC - pixels_HWC.mean(axis=2, keepdims=True)) / full * 255
    few_NC = object_NC[:: max(1, len(object_NC) // 65536)].astype(np.float32)
    inside = np.abs(few_NC - few_NC.mean(axis=1, keepdims=True)) / full * 255
    if len(few_NC) and inside.mean() >= GREY_DIFFERENCE:
        return False
    most = np.percentile(differences.max(axis=2), COLOUR_PERCENTILE)
    return bool(differences.mean() < GREY_DIFFERENCE / 3 and most < COLOUR_DIFFERENCE)


def _moments(unit_HWC: Float[np.ndarray, "H W C"]) -> tuple[np.ndarray, np.ndarray]:
    return unit_HWC.mean(axis=(0, 1)), np.square(unit_HWC).mean(axis=(0, 1))


def _kept(mask_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    part_HW, (rows, columns) = _window(mask_HW), mask_HW.shape
    height, width = part_HW.shape

    def kept(factors: Iterable[tuple[float, float]]) -> np.ndarray:
        sizes = [(max(1, round(height * y)), max(1, round(width * x))) for y, x in factors]
        return kept_by_resize(part_HW, sizes)

    by_size = kept((size / rows, size / columns) for size in SIZES)
    return by_size, kept((scale, scale) for scale in SCALES)


def _window(mask_HW: np.ndarray) -> np.ndarray:
    """Cut a window around a pixel amid the foreground out of a huge mask."""
    if max(mask_HW.shape) <= WINDOW:
        return mask_HW
    middle = [length // 2 for length in mask_HW.shape]
    rows = np.flatnonzero(mask_HW.any(axis=1))
    if len(rows):  # the middle row and the middle column of all might meet in the background
        middle[0] = int(rows[len(rows) // 2])
        columns = np.flatnonzero(mask_HW[middle[0]])
        middle[1] = int(columns[len(columns) // 2])
    top, left = (
        max(0, min(at - WINDOW // 2, length - WINDOW))
        for at, length in zip(middle, mask_HW.shape, strict=True)
    )
    return mask_HW[top : top + WINDOW, left : left + WINDOW]


def _summarise(dataset: Dataset, records: Sequence[Record], looks: Sequence[_Look]) -> Fingerprint:
    splits = [record.split for record in dataset.records]
    train = dataset.of_split("train")
    channels = max(look.channels for look in looks)
    of_channels = [look for look in looks if look.channels == channels]
    heights, widths = np.array([look.size for look in looks], float).T
    shares = [look.foreground for look in looks]
    shapes = [look.shapes for look in looks if look.shapes is not None]
    sides = [look.is_brighter for look in looks if look.is_brighter is not None]
    kept = [look.kept for look in looks if look.kept is not None]
    of_unit: dict[str, list[np.ndarray]] = {}
    for record, look in zip(records, looks, strict=True):
        of_unit.setdefault(_unit(record), []).append(look.thumbs)
    thumbs = np.stack([np.mean(each, axis=0) for each in of_unit.values()])
    return Fingerprint(
        num_train=splits.count("train"),
        num_val=splits.count("val"),
        num_test=splits.count("test"),
        num_units=len({_unit(record) for record in train}),
        is_stack=any(record.page is not None for record in train),
        height=_three(heights),
        width=_three(widths),
        aspect=_three(widths / heights),
        channels=channels,
        dtype=max((look.dtype for look in looks), key=("uint8", "uint16", "float32").index),
        grey_share=float(np.mean([look.is_grey for look in looks])),
        range_used=_three([look.range_used for look in looks]),
        by_dtype=_intensities([look.moments for look in of_channels]),
        by_percentile=_intensities([look.stretched for look in of_channels]),
        foreground=_three(shares),
        mean_foreground=float(np.mean(shares)),
        empty_share=float(np.mean([share == 0 for share in shares])),
        brighter_share=float(np.mean(sides)) if sides else 0.5,
        num_objects=_median([len(one.diameters) for one in shapes]),
        diameter=_three([one for each in shapes for one in each.diameters] or [0.0], (10, 50, 90)),
        thin=_median([one.thin for one in shapes]),
        thick=_median([one.thick for one in shapes]),
        kept_at_size=_means(SIZES, [one[0] for one in kept]),
        kept_at_scale=_means(SCALES, [one[1] for one in kept]),
        up_down=_clearer(thumbs, axis=1),
        left_right=_clearer(thumbs, axis=2),
    )


def _unit(record: Record) -> str:
    return str(record.image_path) if record.page is not None else record.group or record.id


def _clearer(thumbs_N2HW: np.ndarray, *, axis: int) -> Symmetry:
    both = [measure_symmetry(thumbs_N2HW[:, row], axis=axis) for row in (0, 1)]
    return min(both, key=lambda one: (one.p, -one.share))


def _three(values: Iterable[float], at: Three = (5, 50, 95)) -> Three:
    low, middle, high = np.percentile(np.asarray(list(values), float), at)
    return round(float(low), 4), round(float(middle), 4), round(float(high), 4)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def _intensities(moments: Sequence[tuple[np.ndarray, np.ndarray]]) -> Intensities:
    mean, square = (np.mean(each, axis=0) for each in zip(*moments, strict=True))
    std = np.sqrt((square - mean**2).clip(min=1e-4)).clip(min=0.02)
    return Intensities(mean=tuple(mean.round(4).tolist()), std=tuple(std.round(4).tolist()))


def _means(keys: Sequence[K], rows: Sequence[np.ndarray]) -> dict[K, float]:
    # Nobody knows how small objects are that weren't seen: assume that no size keeps them.
    values = np.mean(rows, axis=0) if rows else np.zeros(len(keys))
    return {key: round(float(value), 4) for key, value in zip(keys, values, strict=True)}
