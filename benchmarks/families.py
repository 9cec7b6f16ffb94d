"""Further kinds of generated images, each of which asks something else of a training recipe.

    python benchmarks/families.py cracks,num=100,size=480 vessels,num=28,size=512 --out made/

They stand for what people have: cracks that cover a hundredth of a wall, vessels, tiny dots, things
that fill the image, 16-bit microscopes, five-band cameras. Truth is known to the pixel. In each,
something that is not meant looks like what is: stains and joints beside cracks, a bright disc and
spots beside vessels, wide smudges beside dots.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

from binseg.data.sources.synthetic import write_series
from binseg.progress import SILENT
from binseg.storage import cache_dir

Drawn = tuple[Num[np.ndarray, "H W C"], Bool[np.ndarray, "H W"]]
Random = np.random.Generator
Extent = tuple[int, int]
SETS = (
    "cracks,num=100,size=480",
    "vessels,num=28,size=512",
    "dots,num=60,size=512",
    "huge,num=200,size=640",
    "micro,num=80,size=640",
    "bands,num=80,size=320",
)
"""The data sets of the benchmarks that take all families."""


def main() -> int:
    """Draw data sets as folders of images and masks with lists of their splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS, help="KIND,num=N,size=PIXELS,seed=S")
    parser.add_argument("--out", type=Path, help="folder of the folders; the cache by default")
    options = parser.parse_args()
    for one in options.sets:
        print(f"{one}: {folder_of(one, options.out)}")
    return 0


def folder_of(data: str, out: Path | None = None) -> str:
    """Draw a set of a family unless its folder is there; any other data is its own path."""
    kind, *parts = data.split(",")
    if kind not in FAMILIES or Path(data).exists():
        return data
    asked = dict(part.split("=") for part in parts)
    num, size, seed = (int(asked.get(name, usual)) for name, usual in USUAL.items())
    folder = (out or cache_dir() / "families") / f"{kind}-num{num}-size{size}-seed{seed}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draw = partial(draw_family, kind, size=size, seed=seed)
        write_series(folder, num, draw, SILENT, suffix=".png" if kind in COLOURED else ".tif")
    return str(folder)


def draw_family(kind: str, index: int, *, size: int, seed: int) -> Drawn:
    """Draw an image of a series, `size` pixels wide, and its truth; every pixel is decided."""
    number = sorted(FAMILIES).index(kind)
    return FAMILIES[kind](np.random.default_rng([seed, index, number, 7]), size)


def _cracks(random: Random, size: int) -> Drawn:
    """Cracks of 1 to 4 pixels in a rough wall, about 1 % of it; stains, scratches and joints."""
    shape = size * 2 // 3, size
    wall_HW = random.uniform(0.45, 0.7) + _rough(random, shape, (2, 6, 25), 0.035)
    for _ in range(random.integers(1, 5)):  # dark stains with soft edges
        wall_HW -= random.uniform(0.08, 0.25) * _spot(random, shape, 0.03, 0.12)
    for _ in range(random.integers(0, 3)):  # straight joints and bright scratches: no cracks
        line_HW = _path(random, shape, bend=0.0, branches=0, widths=(1.0, 3.5))
        wall_HW += random.choice([-0.2, 0.25]) * ndimage.gaussian_filter(line_HW.astype(float), 0.7)
    mask_HW = np.zeros(shape, bool)
    for _ in range(random.integers(1, 3)):
        mask_HW |= _path(random, shape, bend=0.2, branches=2, widths=(1.0, 3.5))
    depth_HW = 0.16 + 0.1 * _smooth(random, shape, 30)
    dark_HW = ndimage.gaussian_filter(mask_HW.astype(float), 0.6) * depth_HW.clip(0.08, 0.4)
    grey_HW = wall_HW - 1.2 * dark_HW + random.normal(0, 0.03, wall_HW.shape)
    tint = 1 + random.uniform(-0.06, 0.06, 3)
    return _bytes(grey_HW[:, :, None] * tint), mask_HW


def _vessels(random: Random, size: int) -> Drawn:
    """A reddish disc with branching vessels of 1 to 8 pixels; a bright disc and pale spots."""
    shape = height, width = size, size
    y_HW, x_HW = np.mgrid[:height, :width]
    away_HW = np.hypot(y_HW - height / 2, x_HW - width / 2) / (size * 0.48)
    inside_HW = away_HW < 1
    light_HW = 0.55 + 0.1 * _smooth(random, shape, size / 6) - 0.15 * away_HW**2
    disc_y, disc_x = height * random.uniform(0.4, 0.6), width * random.choice([0.25, 0.75])
    mask_HW = np.zeros(shape, bool)
    for _ in range(random.integers(5, 8)):
        mask_HW |= _tree(random, (disc_y, disc_x), (height, width))
    mask_HW &= inside_HW
    bright_HW = np.exp(-((y_HW - disc_y) ** 2 + (x_HW - disc_x) ** 2) / (size * 0.05) ** 2)
    light_HW = light_HW + 0.35 * bright_HW + _rough(random, shape, (3, 12), 0.02)
    for _ in range(random.integers(0, 12)):
        light_HW += random.uniform(-0.12, 0.2) * _spot(random, shape, 0.005, 0.03)
    thick_HW = ndimage.distance_transform_edt(mask_HW)
    contrast_HW = ndimage.gaussian_filter(mask_HW * (0.5 + 0.12 * thick_HW), 0.8)
    light_HW = (light_HW - random.uniform(0.1, 0.2) * contrast_HW) * inside_HW
    colour = np.array([1.25, 0.7, 0.35]) * random.uniform(0.85, 1.1)
    noise = random.normal(0, 0.02, (height, width, 3)) * inside_HW[:, :, None]
    return _bytes(light_HW[:, :, None] * colour + noise), mask_HW


def _dots(random: Random, size: int) -> Drawn:
    """Faint dots of 3 to 6 pixels across on noise; smudges and lines are none."""
    shape = height, width = size, size
    ground_HW = 0.25 + 0.08 * _smooth(random, shape, size / 8)
    for _ in range(random.integers(3, 10)):
        ground_HW += random.uniform(0.1, 0.35) * _spot(random, shape, 0.015, 0.05)
    line_HW = _path(random, shape, bend=0.1, branches=0, widths=(2.0, 4.0))
    ground_HW += 0.2 * ndimage.gaussian_filter(line_HW.astype(float), 1.0)
    mask_HW = np.zeros(shape, bool)
    y_HW, x_HW = np.mgrid[:height, :width]
    for _ in range(random.integers(15, 60)):
        y, x = random.uniform(4, height - 4), random.uniform(4, width - 4)
        radius = random.uniform(1.5, 3.0)
        window = np.s_[max(0, int(y) - 9) : int(y) + 10, max(0, int(x) - 9) : int(x) + 10]
        away = np.hypot(y_HW[window] - y, x_HW[window] - x)
        mask_HW[window] |= away <= radius
        ground_HW[window] += random.uniform(0.12, 0.3) * np.exp(-((away / radius) ** 2))
    return _bytes((ground_HW + random.normal(0, 0.04, ground_HW.shape))[:, :, None]), mask_HW


def _huge(random: Random, size: int) -> Drawn:
    """One thing that fills a fifth to two thirds of the image, told by texture, not colour."""
    shape = height, width = size * 3 // 4, size
    y_HW, x_HW = np.mgrid[:height, :width]
    angle_HW = np.arctan2(
        y_HW - height * random.uniform(0.4, 0.6), x_HW - width * random.uniform(0.4, 0.6)
    )
    away_HW = np.hypot(y_HW - height / 2, x_HW - width / 2)
    outline_HW = size * random.uniform(0.22, 0.36) * np.ones(shape)
    for lobes in (2, 3, 4, 7):
        phase = random.uniform(0, 2 * np.pi)
        outline_HW *= 1 + random.uniform(0, 0.4 / lobes) * np.sin(lobes * angle_HW + phase)
    mask_HW = away_HW < outline_HW
    ground = random.uniform(0.3, 0.7, 3)
    skin = ground + random.uniform(-0.1, 0.1, 3)
    fine_HW = _rough(random, shape, (1.5, 3), 0.06)
    coarse_HW = _rough(random, shape, (9, 20), 0.06)
    image = np.where(
        mask_HW[:, :, None], skin + fine_HW[:, :, None], ground + coarse_HW[:, :, None]
    )
    light_HW = 1 + 0.3 * _smooth(random, shape, size / 3)
    noise = random.normal(0, 0.02, image.shape)
    return _bytes(image * light_HW[:, :, None] + noise), mask_HW


def _micro(random: Random, size: int) -> Drawn:
    """16 bits, of which a microscope uses a twentieth: blobs of 15 to 40 pixels, uneven light."""
    shape = height, width = size * 3 // 4, size
    mask_HW = np.zeros(shape, bool)
    cells_HW = np.zeros(shape)
    y_HW, x_HW = np.mgrid[:height, :width]
    for _ in range(random.integers(12, 40)):
        y, x = random.uniform(0, height), random.uniform(0, width)
        long, short = random.uniform(8, 20), random.uniform(7, 14)
        turn = random.uniform(0, np.pi)
        along = (y_HW - y) * np.sin(turn) + (x_HW - x) * np.cos(turn)
        across = (y_HW - y) * np.cos(turn) - (x_HW - x) * np.sin(turn)
        away_HW = np.hypot(along / long, across / short)
        inside_HW = away_HW < 1
        glow = random.uniform(0.35, 1.0)
        mask_HW |= inside_HW
        cells_HW = np.maximum(cells_HW, np.where(inside_HW, glow * (1 - 0.3 * away_HW**2), 0))
    cells_HW *= 1 + 3 * _rough(random, shape, (2, 5), 0.05)
    light_HW = 0.6 + 0.4 * _smooth(random, shape, size / 4)
    for _ in range(random.integers(2, 8)):
        light_HW += random.uniform(0.1, 0.35) * _spot(random, shape, 0.03, 0.08)
    blurred_HW = ndimage.gaussian_filter(cells_HW, 1.2)
    counts_HW = random.uniform(250, 500) + 400 * light_HW + random.uniform(500, 2500) * blurred_HW
    counts_HW = counts_HW.clip(50)
    counts_HW += random.normal(0, 1, counts_HW.shape) * np.sqrt(counts_HW) * 2
    return counts_HW.clip(0, 65535).astype(np.uint16)[:, :, None], mask_HW


def _bands(random: Random, size: int) -> Drawn:
    """Five bands: a crop that only the ratio of two of them tells from weeds and soil."""
    shape = size, size
    plants_HW = _smooth(random, shape, size / 14) > random.uniform(0.1, 0.6)
    is_crop_HW = _smooth(random, shape, size / 7) > 0
    mask_HW = plants_HW & is_crop_HW
    bands = []
    for band in range(5):
        soil = random.uniform(0.25, 0.4)
        leaf = soil + (0.15 if band in (1, 3) else 0.02)
        ground_HW = np.where(plants_HW, leaf, soil)
        if band in (2, 3):  # the crop is brighter in one and darker in the other
            ground_HW = ground_HW + (0.07 if band == 3 else -0.07) * mask_HW
        bands.append(ground_HW + _rough(random, shape, (2, 8), 0.03))
    light_HW = 1 + 0.35 * _smooth(random, shape, size / 4)
    whole = np.stack(bands, axis=2) * light_HW[:, :, None]
    return _bytes(whole + random.normal(0, 0.03, whole.shape)), mask_HW


FAMILIES: Mapping[str, Callable[[Random, int], Drawn]] = MappingProxyType(
    {
        "cracks": _cracks,
        "vessels": _vessels,
        "dots": _dots,
        "huge": _huge,
        "micro": _micro,
        "bands": _bands,
    }
)
"""Every kind by its name."""
COLOURED = {"cracks", "vessels", "huge"}  # The others have one channel or five, as TIFF
USUAL = {"num": 240, "size": 128, "seed": 0}


def _bytes(unit_HWC: Float[np.ndarray, "H W C"]) -> Num[np.ndarray, "H W C"]:
    return (unit_HWC.clip(0, 1) * 255).round().astype(np.uint8)


def _smooth(random: Random, shape: Extent, sigma: float) -> Float[np.ndarray, "H W"]:
    """Smooth noise of unit variance; drawn coarsely and enlarged where it has no fine detail."""
    step = max(1, int(sigma / 3))
    rows, columns = (-(-side // step) + 2 for side in shape)
    coarse = ndimage.gaussian_filter(random.normal(0, 1, (rows, columns)), sigma / step)
    coarse /= coarse.std() + 1e-9
    if step == 1:
        return np.asarray(coarse[: shape[0], : shape[1]])
    grid = np.mgrid[: shape[0], : shape[1]] / step
    return np.asarray(ndimage.map_coordinates(coarse, grid, order=1))


def _rough(
    random: Random, shape: Extent, sigmas: tuple[float, ...], strength: float
) -> Float[np.ndarray, "H W"]:
    return strength * sum((_smooth(random, shape, sigma) for sigma in sigmas), np.zeros(shape))


def _spot(random: Random, shape: Extent, low: float, high: float) -> Float[np.ndarray, "H W"]:
    """A soft spot of height 1; its radius is a share of the width."""
    y_HW, x_HW = np.mgrid[: shape[0], : shape[1]]
    y, x = random.uniform(0, shape[0]), random.uniform(0, shape[1])
    radius = shape[1] * random.uniform(low, high)
    return np.asarray(np.exp(-(((y_HW - y) ** 2 + (x_HW - x) ** 2) / radius**2)))


def _path(
    random: Random, shape: Extent, *, bend: float, branches: int, widths: tuple[float, float]
) -> Bool[np.ndarray, "H W"]:
    """A line that wanders through the image, with its branches."""
    mask_HW = np.zeros(shape, bool)
    y, x = random.uniform(0, shape[0]), random.uniform(0, shape[1])
    angle = random.uniform(0, 2 * np.pi)
    thick = random.uniform(*widths)
    length = int(max(shape) * (random.uniform(0.4, 1.0) if bend else 2))
    if not bend:  # joints go through the whole image
        y, x = y - np.sin(angle) * length / 2, x - np.cos(angle) * length / 2
    _walk(random, mask_HW, (y, x), angle=angle, thick=thick, length=length, bend=bend)
    for _ in range(int(random.integers(0, branches + 1))):
        rows, columns = np.nonzero(mask_HW)
        if len(rows):
            at = random.integers(len(rows))
            turned = angle + random.choice([-1, 1]) * random.uniform(0.5, 1.3)
            start = (float(rows[at]), float(columns[at]))
            shorter, thinner = length // 3, thick * 0.7
            _walk(random, mask_HW, start, angle=turned, thick=thinner, length=shorter, bend=bend)
    return mask_HW


def _tree(
    random: Random, root: tuple[float, float], shape: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """A vessel that thins and forks from its root."""
    mask_HW = np.zeros(shape, bool)
    size = shape[1]
    open_ends = [(root, random.uniform(0, 2 * np.pi), random.uniform(4.0, 7.5) * size / 512)]
    while open_ends:
        start, angle, thick = open_ends.pop()
        length = int(size * random.uniform(0.1, 0.3))
        end, angle = _walk(
            random, mask_HW, start, angle=angle, thick=thick, length=length, bend=0.12
        )
        if thick * 0.75 > 0.9 and 0 < end[0] < shape[0] and 0 < end[1] < shape[1]:
            open_ends += [
                (end, angle + side * random.uniform(0.2, 0.7), thick * 0.75) for side in (-1, 1)
            ]
    return mask_HW


def _walk(
    random: Random,
    mask_HW: Bool[np.ndarray, "H W"],
    start: tuple[float, float],
    *,
    angle: float,
    thick: float,
    length: int,
    bend: float,
) -> tuple[tuple[float, float], float]:
    """Draw one stroke into the mask; give where it ended and in which direction."""
    y, x = start
    height, width = mask_HW.shape
    radius = thick / 2
    reach = int(np.ceil(radius))
    turn = 0.0
    for _ in range(length):
        turn = 0.8 * turn + random.normal(0, bend / 2)
        angle += turn * 0.3
        y, x = y + np.sin(angle), x + np.cos(angle)
        rows = np.arange(max(0, int(y) - reach), min(height, int(y) + reach + 1))
        columns = np.arange(max(0, int(x) - reach), min(width, int(x) + reach + 1))
        if len(rows) and len(columns):
            away = (rows[:, None] + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2
            window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            mask_HW[window] |= away <= max(radius, 0.6) ** 2
    return (y, x), angle


if __name__ == "__main__":
    raise SystemExit(main())
