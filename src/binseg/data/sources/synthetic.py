"""A generator of images with truth: small, seeded, and not to be solved by grey levels alone.

Objects with soft outlines and a striped skin lie on a mottled ground; both take their colours from
the same distribution. Bars hide parts of the objects, patches without stripes look like objects and
are none, and light falls from one side. So a threshold on grey (`otsu_dice`) fails, while
a small network that sees texture and shading learns it within minutes on a CPU.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from binseg.data.dataset import SPLITS
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import DataError, OutputError, UsageError
from binseg.imageio import write_image, write_mask
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.storage import cache_dir, locked, write_text
from binseg.types import Record

Random = np.random.Generator
Colour = Float[np.ndarray, "3"]
_VERSION = 1  # part of the cache's key: raise it whenever the images change
_LIMITS = {"num": (3, 100_000), "size": (16, 2048), "seed": (0, 2**32 - 1)}


@dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """Parameters of the images: the same numbers give the same images, whatever `num` is."""

    num: int = 240
    size: int = 128
    seed: int = 0


def is_synthetic(path: str) -> bool:
    """Tell whether a data path names the generator; `./synthetic` is a folder."""
    return re.match(r"synthetic(:|$)", path) is not None


def parse_synthetic(path: str) -> SyntheticSpec:
    """Read `synthetic` or `synthetic:num=240,size=128,seed=0`, in any order, any left out.

    >>> parse_synthetic("synthetic:num=60,seed=3")
    SyntheticSpec(num=60, size=128, seed=3)
    """
    given: dict[str, Any] = {}
    for part in filter(None, path.partition(":")[2].split(",")):
        name, _, text = (word.strip() for word in part.partition("="))
        if name not in _LIMITS or not text.isdecimal() or name in given:
            told = f"can't read {part!r}; write synthetic:num=240,size=128,seed=0"
            raise UsageError(f"data.path {path!r}: {told}")
        low, high = _LIMITS[name]
        given[name] = int(text)
        if not low <= given[name] <= high:
            raise UsageError(f"data.path {path!r}: {name} must be {low} to {high}")
    return SyntheticSpec(**given)


def make_synthetic(spec: SyntheticSpec, *, progress: Progress = SILENT) -> Path:
    """Give the folder of these images and their split lists, drawn on the first call."""
    name = f"synthetic-v{_VERSION}-num{spec.num}-size{spec.size}-seed{spec.seed}"
    folder = cache_dir() / name
    if folder.is_dir():
        return folder
    with locked(folder):
        # Another process may have drawn them while this one waited.
        if not folder.is_dir():
            draw = partial(draw_synthetic, size=spec.size, seed=spec.seed)
            write_series(folder, spec.num, draw, progress)
    return folder


def write_series(
    folder: Path,
    num: int,
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]],
    progress: Progress,
    *,
    suffix: str = ".png",
) -> None:
    """Draw images and masks beside the goal and rename, so that a folder that is there is whole."""
    temporary: Path | None = None
    names = [f"{index:05d}" for index in range(num)]

    def write(index: int) -> None:
        assert temporary is not None
        image_HWC, mask_HW = draw(index)
        write_image(temporary / "images" / f"{names[index]}{suffix}", image_HWC)
        write_mask(temporary / "masks" / f"{names[index]}.png", mask_HW)

    try:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        for name in ("images", "masks"):
            (temporary / name).mkdir()
        # Most of the time goes into waiting for the disk, file by file.
        drawn = map_ordered(write, range(num), num_threads=8)
        for _ in track(drawn, progress=progress, label="drawing synthetic images", total=num):
            pass
        num_held = max(1, round(num * 0.15))
        ends = (0, num - 2 * num_held, num - num_held, num)
        for split, start, end in zip(SPLITS, ends, ends[1:], strict=False):
            write_text(temporary / f"{split}.txt", "".join(f"{x}\n" for x in names[start:end]))
        temporary.rename(folder)
    except OSError as error:
        told = f"the images can't be written: {error.strerror}; BINSEG_CACHE names another place"
        raise OutputError(f"{folder}: {told}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def draw_synthetic(
    index: int, *, size: int, seed: int
) -> tuple[UInt8[np.ndarray, "S S 3"], Bool[np.ndarray, "S S"]]:
    """Draw an image of the series `seed` and its truth; `index` and `seed` decide every pixel."""
    random = np.random.default_rng([_VERSION, seed, index])
    ground = random.uniform(0.25, 0.75, 3)
    image_HW3 = ground + _mottle(random, size, ((4, 0.09), (11, 0.06), (29, 0.04)))
    mask_HW = np.zeros((size, size), dtype=bool)
    for _ in range(random.integers(0, 3)):
        away_HW = _blob(random, size)
        patch = _colour_unlike(random, ground) + _mottle(random, size, ((9, 0.06),))
        image_HW3 = np.where((away_HW < 1)[..., None], patch, image_HW3)
    for _ in range(random.integers(1, 4)):
        away_HW = _blob(random, size)
        inside_HW = away_HW < 1
        skin_HW3 = _skin(random, size, away_HW, _colour_unlike(random, ground))
        image_HW3 = np.where(inside_HW[..., None], skin_HW3, image_HW3)
        mask_HW |= inside_HW
    for _ in range(random.integers(0, 3)):
        bar_HW = _bar(random, size)
        colour = random.uniform(0.1, 0.9, 3) + _mottle(random, size, ((9, 0.04),))
        image_HW3 = np.where(bar_HW[..., None], colour, image_HW3)
        mask_HW &= ~bar_HW
    image_HW3 = image_HW3 * _light(random, size)[..., None]
    image_HW3 += random.normal(0, 0.025, image_HW3.shape)
    return (image_HW3.clip(0, 1) * 255).round().astype(np.uint8), mask_HW


def _skin(
    random: Random, size: int, away_HW: Float[np.ndarray, "S S"], colour: Colour
) -> Float[np.ndarray, "S S 3"]:
    """Stripes bent by noise, darker towards the outline, as on a round body."""
    y_HW, x_HW = _grid(size)
    angle, waves = random.uniform(0, np.pi), random.uniform(14, 22)
    along_HW = x_HW * np.cos(angle) + y_HW * np.sin(angle) + 0.05 * _noise(random, size, 5)[0]
    stripes_HW = 0.14 * np.sin(2 * np.pi * waves * along_HW)
    shade_HW = 1.08 - 0.3 * np.minimum(away_HW, 1) ** 4
    return np.asarray((colour + stripes_HW[..., None]) * shade_HW[..., None])


def _blob(random: Random, size: int) -> Float[np.ndarray, "S S"]:
    """Give the distance from a random soft star's centre, 1 on its outline."""
    y_HW, x_HW = _grid(size)
    centre_y, centre_x = random.uniform(0.15, 0.85, 2)
    radius = random.uniform(0.13, 0.27)
    away_HW = (x_HW - centre_x) + 1j * (y_HW - centre_y)
    length_HW = np.abs(away_HW)
    # Powers of a unit number turn k times as fast: cos(k angle) without a cosine a pixel.
    turn_HW = away_HW / np.maximum(length_HW, 1e-9)
    square_HW = turn_HW * turn_HW
    cube_HW = square_HW * turn_HW
    outline_HW = np.ones((size, size))
    for lobes, power_HW in ((2, square_HW), (3, cube_HW), (5, cube_HW * square_HW)):
        strength, phase = random.uniform(0, 0.5 / lobes), random.uniform(0, 2 * np.pi)
        outline_HW += strength * (power_HW * np.exp(1j * phase)).real
    return np.asarray(length_HW / (radius * outline_HW))


def _bar(random: Random, size: int) -> Bool[np.ndarray, "S S"]:
    y_HW, x_HW = _grid(size)
    angle = random.uniform(0, np.pi)
    y, x = random.uniform(0.2, 0.8, 2)
    across_HW = (x_HW - x) * np.cos(angle) + (y_HW - y) * np.sin(angle)
    return np.asarray(np.abs(across_HW) < random.uniform(0.015, 0.035))


def _light(random: Random, size: int) -> Float[np.ndarray, "S S"]:
    y_HW, x_HW = _grid(size)
    angle, strength = random.uniform(0, 2 * np.pi), random.uniform(0.2, 0.8)
    along_HW = (x_HW - 0.5) * np.cos(angle) + (y_HW - 0.5) * np.sin(angle)
    return np.asarray(1 + strength * along_HW)


def _colour_unlike(random: Random, ground: Colour) -> Colour:
    """Draw from the ground's own distribution, but no colour that can't be told from it."""
    for _ in range(20):
        colour = random.uniform(0.25, 0.75, 3)
        if np.abs(colour - ground).max() > 0.12:
            break
    return colour


def _mottle(
    random: Random, size: int, octaves: tuple[tuple[int, float], ...]
) -> Float[np.ndarray, "S S 3"]:
    total_CHW = sum(strength * _noise(random, size, cells, 3) for cells, strength in octaves)
    return np.moveaxis(np.asarray(total_CHW), 0, 2)


def _noise(random: Random, size: int, cells: int, num: int = 1) -> Float[np.ndarray, "N S S"]:
    """Smooth noise: random numbers on a coarse grid, blended in between."""
    spread = _spread(size, cells)
    return np.asarray(spread @ random.normal(0, 1, (num, cells, cells)) @ spread.T)


@lru_cache(maxsize=32)
def _spread(size: int, cells: int) -> Float[np.ndarray, "size cells"]:
    at = np.linspace(0, cells - 1, size)
    lower = np.minimum(at.astype(np.int64), cells - 2)
    share = at - lower
    share = share * share * (3 - 2 * share)
    spread = np.zeros((size, cells))
    spread[np.arange(size), lower] = 1 - share
    spread[np.arange(size), lower + 1] = share
    return spread


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Float[np.ndarray, "S S"], Float[np.ndarray, "S S"]]:
    line = (np.arange(size) + 0.5) / size
    y_HW, x_HW = np.meshgrid(line, line, indexing="ij")
    return y_HW, x_HW


def otsu_threshold(grey_HW: UInt8[np.ndarray, "H W"]) -> int:
    """Find the last grey level of the darker of the two most distant classes (Otsu 1979)."""
    counts = np.bincount(grey_HW.ravel(), minlength=256).astype(np.float64)
    below, sums = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = sums / below - (sums[-1] - sums) / above
    between = np.nan_to_num(below * above * apart**2)
    return int(between.argmax())


def otsu_dice(records: Iterable[Record], rule: MaskRule) -> float:
    """Score Otsu's threshold: mean Dice over images, each with the polarity that suits it best."""
    scores = []
    for record in records:
        sample = read_sample(record, rule)
        if sample.mask_HW is None:
            raise DataError(f"{record.image_path}: has no mask, so nothing can be scored")
        grey_HW = sample.image_HWC.mean(axis=2, dtype=np.float64)
        if sample.image_HWC.dtype != np.uint8:
            grey_HW = (grey_HW - grey_HW.min()) / max(np.ptp(grey_HW), 1e-12) * 255
        levels_HW = grey_HW.round().astype(np.uint8)
        bright = (levels_HW > otsu_threshold(levels_HW))[sample.valid_HW]
        truth = sample.mask_HW[sample.valid_HW]
        dices = []
        for answer in (bright, ~bright):
            total = int(answer.sum()) + int(truth.sum())
            # Nothing there and nothing found is right.
            dices.append(2 * int((answer & truth).sum()) / total if total else 1.0)
        scores.append(max(dices))
    if not scores:
        raise DataError("there are no images to score")
    return float(np.mean(scores))
