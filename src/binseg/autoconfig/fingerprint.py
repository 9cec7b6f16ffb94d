"""What is in a data set, as far as a training recipe depends on it: facts, no decisions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

from binseg.autoconfig.orientation import Symmetry, measure_symmetry
from binseg.autoconfig.shapes import Shapes, kept_by_resize, measure_shapes
from binseg.data.dataset import Dataset, spread
from binseg.data.samples import read_sample
from binseg.errors import DataError
from binseg.imageio import probe
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.transforms.geometry import resize_image
from binseg.types import Record, Sample

__all__ = ["SCALES", "SIZES", "Fingerprint", "Intensities", "take_fingerprint"]

SIZES = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Sides of square inputs for which `Fingerprint.kept_at_size` says what is kept."""
SCALES = (0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
"""Factors for which `Fingerprint.kept_at_scale` says what is kept."""
NUM_LOOKED = 200
"""Images that are read at most."""
NUM_SHAPED, LEAST_SHAPED = 64, 12
"""Of these, images whose shapes are measured: at most, and at least however large they are."""
SHAPED_PIXELS = 30_000_000
"""Pixels of masks whose shapes are measured, in all images together."""
WINDOW = 2048
"""Side of the part of a larger mask that is measured."""
THUMB = 16
"""Side of the images that tell whether there is an up."""
GREY_DIFFERENCE = 4.0
"""Grey levels (of 255) between channels that JPEG leaves in a grey image, on average."""
COLOUR_DIFFERENCE, COLOUR_PERCENTILE = 24.0, 99.9
"""Grey levels that a coloured pixel differs by, and the share of pixels that may do so in a grey
image: a thousandth."""
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """Mean and spread of each channel, in [0, 1] after the image's range was brought there."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The facts that the rules of a plan look at; lengths in pixels of the images."""

    num_train: int
    num_val: int
    num_test: int
    num_units: int
    """Independent training images: a stack or a group counts once."""
    is_stack: bool
    """Pages of stacks, of which neighbours are nearly the same image."""
    height: tuple[float, float, float]
    """5th percentile, median, 95th percentile; so is everything with three numbers."""
    width: tuple[float, float, float]
    aspect: tuple[float, float, float]
    """Width by height."""
    channels: int
    dtype: str
    """uint8, uint16 or float32; the widest."""
    is_grey: bool
    """One channel, or three that are equal."""
    range_used: tuple[float, float, float]
    """Share of the pixel type's range between an image's 0.5 and 99.5 percentile."""
    by_dtype: Intensities
    by_percentile: Intensities
    foreground: tuple[float, float, float]
    """Share of the pixels."""
    mean_foreground: float
    empty_share: float
    """Images without any foreground."""
    num_objects: float
    """Of an image with any, median."""
    diameter: tuple[float, float, float]
    """Of circles with the objects' areas; 10th percentile, median, 90th percentile."""
    spread_of_diameter: tuple[float, float]
    """Standard deviation, between images, of the logarithm of the images' median diameters: in
    pixels, and as a share of the side. What varies less is what nature or the camera keeps."""
    thin: float
    """Thickness that a tenth of the middle lines is below; median over images."""
    thick: float
    """Thickness that half of the foreground is below; median over images."""
    kept_at_size: dict[int, float]
    """Mean Dice of perfect answers at size x size, brought back to the images' own size."""
    kept_at_scale: dict[float, float]
    """Likewise at a factor of the images' own size."""
    up_down: Symmetry
    left_right: Symmetry

    @property
    def side(self) -> float:
        """Of a square with the area of the median image."""
        return float(np.sqrt(self.height[1] * self.width[1]))


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one image told."""

    size: tuple[int, int]
    channels: int
    dtype: str
    is_grey: bool
    range_used: float
    moments: tuple[np.ndarray, np.ndarray]
    """Mean and mean square of each channel, by dtype; the next likewise by percentile."""
    stretched: tuple[np.ndarray, np.ndarray]
    foreground: float
    thumbs: np.ndarray
    """Grey image and mask, 2 x THUMB x THUMB."""
    shapes: Shapes | None = None
    kept: tuple[np.ndarray, np.ndarray] | None = None


def take_fingerprint(
    dataset: Dataset, *, seed: int = 0, progress: Progress = SILENT
) -> Fingerprint:
    """Read a sample of the training images and say what they are like.

    Args:
        dataset: with its splits; only training images are looked at.
        seed: chooses the sample.
        progress: told of every image.

    Raises:
        DataError: no training image.
        ImageError: an image that can't be read.
    """
    train = dataset.of_split("train")
    chosen = _choose(train, NUM_LOOKED, seed)
    size = probe(chosen[len(chosen) // 2].image_path)
    fitting = SHAPED_PIXELS // max(1, min(size.height, WINDOW) * min(size.width, WINDOW))
    num_shaped = min(NUM_SHAPED, max(LEAST_SHAPED, fitting), len(chosen))
    first = set(spread(range(len(chosen)), num_shaped))

    def look(index: int, *, again: bool = False) -> _Look:
        sample = read_sample(chosen[index], dataset.rule)
        if sample.mask_HW is None:
            raise DataError(f"{sample.id}: a training image without a mask")
        return _look(sample, shaped=again or index in first)

    looking = map_ordered(look, range(len(chosen)), num_threads=2)
    total = len(chosen)
    looks = list(track(looking, progress=progress, label="looking at the images", total=total))
    # Where many images are empty, shapes are those of the others.
    lacking = num_shaped - sum(one.kept is not None for one in looks)
    others = [row for row, one in enumerate(looks) if one.foreground and one.kept is None]
    for row in spread(others, lacking):
        looks[row] = look(row, again=True)
    return _summarise(dataset, chosen, looks)


def _choose(records: Sequence[Record], num: int, seed: int) -> list[Record]:
    """Take records at random, but for stacks evenly over their pages."""
    if len(records) <= num:
        return list(records)
    if any(record.page is not None for record in records):
        rows = np.linspace(0, len(records) - 1, num).round().astype(int)
    else:
        rows = np.sort(np.random.default_rng(seed).permutation(len(records))[:num])
    return [records[row] for row in rows]


def _look(sample: Sample, *, shaped: bool) -> _Look:
    image_HWC, mask_HW = sample.image_HWC, sample.mask_HW
    assert mask_HW is not None
    mask_HW = mask_HW & sample.valid_HW
    height, width, channels = image_HWC.shape
    top = _top_of(image_HWC)
    step = max(1, int(np.sqrt(height * width / 65536)))
    some_HWC = image_HWC[::step, ::step].astype(np.float32)
    low, high = np.percentile(some_HWC, PERCENTILES)
    if high <= low:
        low, high = float(some_HWC.min()), max(float(some_HWC.max()), float(some_HWC.min()) + 1e-6)
    stretched_HWC = ((some_HWC - low) / (high - low)).clip(0, 1)
    unit_HWC = (some_HWC / top).clip(0, 1)
    thumbs = [
        resize_image(np.ascontiguousarray(plane_HW)[:, :, None].astype(np.float32), THUMB, THUMB)
        for plane_HW in (stretched_HWC.mean(axis=2), mask_HW[::step, ::step])
    ]
    return _Look(
        size=(height, width),
        channels=channels,
        dtype=str(image_HWC.dtype),
        is_grey=channels == 1
        or (channels == 3 and _looks_grey(some_HWC, top=top, used=high - low)),
        range_used=float((high - low) / top),
        moments=_moments(unit_HWC),
        stretched=_moments(stretched_HWC),
        foreground=float(mask_HW.sum() / max(1, sample.valid_HW.sum())),
        thumbs=np.stack([thumb[:, :, 0] for thumb in thumbs]),
        shapes=measure_shapes(_window(mask_HW)) if shaped else None,
        kept=_kept(mask_HW) if shaped and mask_HW.any() else None,
    )


def _looks_grey(pixels_HWC: np.ndarray, *, top: float, used: float) -> bool:
    """Tell whether three channels differ by no more than JPEG's noise, on average and anywhere.

    Few coloured pixels on grey (a red stamp, stained cells) may be all that matters.
    """
    full = top if top == 255.0 else used  # of 16 bits often only a part is used
    differences = np.abs(pixels_HWC - pixels_HWC.mean(axis=2, keepdims=True)) / full * 255
    most = np.percentile(differences.max(axis=2), COLOUR_PERCENTILE)
    return bool(differences.mean() < GREY_DIFFERENCE / 3 and most < COLOUR_DIFFERENCE)


def _top_of(image_HWC: Num[np.ndarray, "H W C"]) -> float:
    if image_HWC.dtype == np.bool_:
        return 1.0
    if image_HWC.dtype.kind in "ui":
        return float(np.iinfo(image_HWC.dtype).max)
    return max(1.0, float(np.abs(image_HWC).max()))


def _moments(unit_HWC: Float[np.ndarray, "H W C"]) -> tuple[np.ndarray, np.ndarray]:
    return unit_HWC.mean(axis=(0, 1)), np.square(unit_HWC).mean(axis=(0, 1))


def _kept(mask_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    part_HW = _window(mask_HW)
    (height, width), (rows, columns) = part_HW.shape, mask_HW.shape
    at_scales = [(max(1, round(height * s)), max(1, round(width * s))) for s in SCALES]
    at_sizes = [
        (max(1, round(size * height / rows)), max(1, round(size * width / columns)))
        for size in SIZES
    ]
    return kept_by_resize(part_HW, at_sizes), kept_by_resize(part_HW, at_scales)


def _window(mask_HW: np.ndarray) -> np.ndarray:
    """The part of a huge mask around a pixel amid its foreground; smaller ones whole."""
    if max(mask_HW.shape) <= WINDOW:
        return mask_HW
    middle = [length // 2 for length in mask_HW.shape]
    rows = np.flatnonzero(mask_HW.any(axis=1))
    if len(rows):  # the middle row and the middle column of all might meet where there is nothing
        middle[0] = int(rows[len(rows) // 2])
        columns = np.flatnonzero(mask_HW[middle[0]])
        middle[1] = int(columns[len(columns) // 2])
    starts = [
        max(0, min(at - WINDOW // 2, length - WINDOW))
        for at, length in zip(middle, mask_HW.shape, strict=True)
    ]
    return mask_HW[starts[0] : starts[0] + WINDOW, starts[1] : starts[1] + WINDOW]


def _summarise(dataset: Dataset, records: Sequence[Record], looks: Sequence[_Look]) -> Fingerprint:
    train = dataset.of_split("train")
    num_of = {
        name: sum(record.split == name for record in dataset.records)
        for name in ("train", "val", "test")
    }
    channels = max(look.channels for look in looks)
    of_channels = [look for look in looks if look.channels == channels]
    heights, widths = np.array([look.size for look in looks], float).T
    shares = [look.foreground for look in looks]
    shapes = [look.shapes for look in looks if look.shapes is not None]
    kept = [look.kept for look in looks if look.kept is not None]
    diameters = [diameter for one in shapes for diameter in one.diameters]
    thumbs = _independent_thumbs(records, looks)
    return Fingerprint(
        num_train=num_of["train"],
        num_val=num_of["val"],
        num_test=num_of["test"],
        num_units=len({_unit(record) for record in train}),
        is_stack=any(record.page is not None for record in train),
        height=_three(heights),
        width=_three(widths),
        aspect=_three(widths / heights),
        channels=channels,
        dtype=max((look.dtype for look in looks), key=("uint8", "uint16", "float32").index),
        is_grey=all(look.is_grey for look in looks),
        range_used=_three([look.range_used for look in looks]),
        by_dtype=_intensities([look.moments for look in of_channels]),
        by_percentile=_intensities([look.stretched for look in of_channels]),
        foreground=_three(shares),
        mean_foreground=float(np.mean(shares)),
        empty_share=float(np.mean([share == 0 for share in shares])),
        num_objects=float(np.median([len(one.diameters) for one in shapes])) if shapes else 0.0,
        diameter=_three(diameters or [0.0], (10, 50, 90)),
        spread_of_diameter=_spread_of_diameter(looks),
        thin=float(np.median([one.thin for one in shapes])) if shapes else 0.0,
        thick=float(np.median([one.thick for one in shapes])) if shapes else 0.0,
        kept_at_size=_means(SIZES, [one[0] for one in kept]),
        kept_at_scale=_means(SCALES, [one[1] for one in kept]),
        up_down=_worse(thumbs, axis=1),
        left_right=_worse(thumbs, axis=2),
    )


def _unit(record: Record) -> str:
    """What is independent of the rest: a file where pages are, a group where there are groups."""
    return str(record.image_path) if record.page is not None else record.group or record.id


def _independent_thumbs(records: Sequence[Record], looks: Sequence[_Look]) -> np.ndarray:
    """One thumbnail (of image and mask) for each independent unit, the mean over its images."""
    of_unit: dict[str, list[np.ndarray]] = {}
    for record, look in zip(records, looks, strict=True):
        of_unit.setdefault(_unit(record), []).append(look.thumbs)
    return np.stack([np.mean(thumbs, axis=0) for thumbs in of_unit.values()])


def _worse(thumbs_N2HW: np.ndarray, *, axis: int) -> Symmetry:
    """The one of image and mask that tells a direction more surely."""
    both = [measure_symmetry(thumbs_N2HW[:, row], axis=axis) for row in (0, 1)]
    return min(both, key=lambda one: (one.p, -one.share))


def _three(
    values: Iterable[float], at: tuple[float, float, float] = (5, 50, 95)
) -> tuple[float, float, float]:
    low, middle, high = np.percentile(np.asarray(list(values), float), at)
    return round(float(low), 4), round(float(middle), 4), round(float(high), 4)


def _intensities(moments: Sequence[tuple[np.ndarray, np.ndarray]]) -> Intensities:
    mean = np.mean([one[0] for one in moments], axis=0)
    square = np.mean([one[1] for one in moments], axis=0)
    std = np.sqrt((square - mean**2).clip(min=1e-4))
    return Intensities(
        mean=tuple(mean.round(4).tolist()), std=tuple(std.clip(min=0.02).round(4).tolist())
    )


def _spread_of_diameter(looks: Sequence[_Look]) -> tuple[float, float]:
    pixels, shares = [], []
    for look in looks:
        if look.shapes is not None and look.shapes.diameters:
            typical = float(np.median(look.shapes.diameters))
            pixels.append(np.log(typical))
            shares.append(np.log(typical / np.sqrt(look.size[0] * look.size[1])))
    if not pixels:
        return 0.0, 0.0
    return round(float(np.std(pixels)), 4), round(float(np.std(shares)), 4)


def _means(keys: Sequence, rows: Sequence[np.ndarray]) -> dict:  # type: ignore[type-arg]
    # Of things that weren't seen nobody knows how small they are: then nothing keeps them.
    values = np.mean(rows, axis=0) if rows else np.zeros(len(keys))
    return {key: round(float(value), 4) for key, value in zip(keys, values, strict=True)}
