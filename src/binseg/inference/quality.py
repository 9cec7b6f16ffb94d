"""The quality of a prediction, judged without a truth: from the image and its probabilities alone.

An image's statistics are compared with those of the training data, which travel in the card; the
Dice to expect comes from the probabilities, corrected by what validation taught.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Num, UInt

from binseg.packaging.card import Knowledge
from binseg.postprocess import label_objects
from binseg.transforms.geometry import SmallMap, cut, resize_image
from binseg.transforms.preprocess import prepare, prepare_image, reduction
from binseg.types import Box, Preprocessing

Flag = Literal["ok", "look", "unlike the training data"]
UNLIKE: Flag = "unlike the training data"
LOOK_BELOW = 0.7  # expected Dice below which somebody should look
_SIDE = 384  # pixels; an image of tiles shows its statistics in up to four squares of this side
_EPS = 1e-3


class Statistic(NamedTuple):
    """One figure of an image or its mask."""

    name: str
    least: float  # Least spread by which differences mean something
    low: str
    high: str  # words for a value below, or above, those of the training data


_CONTRAST, _FLAT = 1, 0.005  # The contrast in `STATISTICS`; with less nothing can be seen
STATISTICS = (  # Figures of the image as the network sees it, then of its mask
    Statistic("brightness", 0.06, "darker", "brighter"),
    Statistic("contrast", 0.05, "less contrast", "more contrast"),
    Statistic("darkest", 0.06, "darker shadows", "no dark parts"),
    Statistic("brightest", 0.08, "no bright parts", "brighter lights"),
    Statistic("saturation", 0.15, "grey where training was colour",
              "colour where training was grey"),
    Statistic("red", 0.02, "less red", "more red"),
    Statistic("blue", 0.02, "less blue", "more blue"),
    Statistic("sharpness", 0.35, "smoother", "rougher, or noise"),
    Statistic("detail 2", 0.12, "grainier: finer detail, or noise",
              "smoother: blurred or magnified"),
    Statistic("detail 4", 0.12, "structures smaller than in training",
              "structures larger than in training"),
    Statistic("detail 8", 0.12, "structures smaller than in training",
              "structures larger than in training"),
    Statistic("edges", 0.3, "evenly rough, as noise is", "flat areas with a few hard edges"),
    Statistic("foreground", 0.7, "{factor} x less foreground",
              "{factor} x more foreground"),
    Statistic("doubt", 0.4, "unusually certain", "many undecided pixels"),
    Statistic("object size", 0.5, "objects of {factor} x smaller area",
              "objects of {factor} x larger area"),
)  # fmt: skip
NAMES = tuple(one.name for one in STATISTICS)
_MIXTURE = "an unusual mixture of brightness, colour, detail and mask"
_FACTORS = {"foreground": np.e, "object size": 2.0}  # Bases of logarithms, told as factors
_OF_MASK = ("foreground", "doubt", "object size")
NUM_SIGNS = 6 + len(_OF_MASK)  # `signs` and the statistics of the mask
NUM_OF_IMAGE = len(NAMES) - len(_OF_MASK)  # statistics that need no mask; they come first
_SCALES = (  # Reasons, in the order of `rescaled`
    "finer structures than in training, as larger pixels show",
    "blurrier or larger structures than in training, as smaller pixels show",
)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The quality of one prediction, as far as it can be told without a truth."""

    expected_dice: float
    low: float
    high: float  # The interval that holds the Dice of 90 % of images like the validation images
    flag: Flag
    reason: str  # The unusual, in words; empty where nothing is
    distance: float  # From the training data; above 1 the image is unlike them

    def as_dict(self) -> dict[str, Any]:
        """Give the figures as plain data."""
        figures = ("expected_dice", "low", "high", "distance")
        return asdict(self) | {name: round(getattr(self, name), 4) for name in figures}

    def __str__(self) -> str:
        told = f"expected Dice {self.expected_dice:.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"{told}, {self.flag}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Judges predictions of one model by what its card knows of the training data."""

    knowledge: Knowledge
    preprocessing: Preprocessing

    def quality(
        self,
        image_HWC: Num[np.ndarray, "h w C"],
        probability: Float32[np.ndarray, "H W"] | SmallMap,
        mask_HW: Bool[np.ndarray, "H W"],
    ) -> Quality:
        """Judge the mask of an image by its pixels, which may come reduced, and probabilities."""
        known = self.knowledge
        statistics_D, signs_K = figures(image_HWC, probability, mask_HW, self.preprocessing)
        # A figure that is no number must not pass as a usual one.
        statistics_D = np.nan_to_num(statistics_D, nan=1e6)
        distance = float(distances(statistics_D[None], known)[0]) / known.limit
        strange_S = off_scale(statistics_D[None], known)[:, 0]
        expected = float(expected_dice(signs_K[None], known.coefficients)[0])
        low, high = (float(one) for one in interval(expected, known))
        reasons = unusual(statistics_D, known)
        if strange_S.max(initial=0) > 0:
            distance = max(distance, 1 + float(strange_S.max()))
            reasons = [_SCALES[strange_S.argmax()], *(one for one in reasons if one != _MIXTURE)]
        if statistics_D[_CONTRAST] < _FLAT:  # ratios of nothing to nothing say nothing
            reasons = ["no contrast: all of it has one shade"]
        flag: Flag = "ok"
        if distance > 1:
            flag = UNLIKE
            low, high = 0.0, 1.0  # validation says nothing of such images
        elif expected < LOOK_BELOW:
            flag = "look"
            reasons = ["the probabilities promise a poor mask", *reasons]
        told = "; ".join(reasons[:3]) if flag != "ok" else ""
        found: Any = {"expected_dice": expected, "low": low, "high": high, "distance": distance}
        return Quality(flag=flag, reason=told, **found)


def figures(
    image_HWC: Num[np.ndarray, "h w C"],
    probability: Float32[np.ndarray, "H W"] | SmallMap,
    mask_HW: Bool[np.ndarray, "H W"],
    preprocessing: Preprocessing,
) -> tuple[Float64[np.ndarray, " D"], Float64[np.ndarray, " K"]]:
    """Compute `describe` and all signs of the Dice, of huge images by some of their pixels."""
    step = reduction(mask_HW.shape, preprocessing)
    some, size = slice(step // 2, None, step), mask_HW.shape
    if isinstance(probability, SmallMap):
        some_hw = probability.every(step)
    else:
        some_hw = probability[some, some]
    mask_hw = mask_HW[some, some]
    scores_D = describe(image_HWC, some_hw, mask_hw, preprocessing, size=size, step=step)
    return scores_D, np.r_[signs(some_hw, mask_hw, step=step), scores_D[NUM_OF_IMAGE:]]


def describe(
    image_HWC: Num[np.ndarray, "h w C"],
    probability_HW: Float32[np.ndarray, "H W"],
    mask_HW: Bool[np.ndarray, "H W"],
    preprocessing: Preprocessing,
    *,
    size: tuple[int, int] | None = None,
    step: int = 1,
) -> Float64[np.ndarray, " D"]:
    """Compute the `STATISTICS` at the network's scale, of a mask's every `step`-th pixel."""
    size = size or image_HWC.shape[:2]
    whole = preprocessing.height * preprocessing.width / (size[0] * size[1])
    area = step**2 * (preprocessing.scale**2 if preprocessing.resize == "tile" else whole)
    labels_HW, num = label_objects(mask_HW)
    sizes = np.bincount(labels_HW.ravel())[1:] if num else np.zeros(1)
    # The area of the object that a random pixel of the foreground lies in: specks weigh nothing.
    typical = float((sizes**2).sum() / max(1, sizes.sum()))
    doubt = float((4 * probability_HW * (1 - probability_HW)).mean())
    return np.array([
        *describe_image(image_HWC, preprocessing, size=size),
        np.log(mask_HW.mean() + 1e-3), np.log10(doubt + _EPS), np.log2(typical * area + 16),
    ], np.float64)  # fmt: skip


def describe_image(
    image_HWC: Num[np.ndarray, "h w C"], preprocessing: Preprocessing, *, size: tuple[int, int]
) -> Float64[np.ndarray, " I"]:
    """Compute the `STATISTICS` that need no mask."""
    view_HWC = _view(image_HWC, preprocessing, size)
    grey_HW = view_HWC.mean(axis=2, dtype=np.float32) / preprocessing.top
    dark, bright = np.percentile(grey_HW[::2, ::2], [5, 95])
    contrast = float(grey_HW.std())
    every = max(1, min(image_HWC.shape[:2]) // 128)
    raw_HWC = image_HWC[::every, ::every].astype(np.float32)
    top = {"uint8": 255.0, "uint16": 65535.0}.get(image_HWC.dtype.name, float(raw_HWC.max()) or 1)
    mean_C = raw_HWC.mean(axis=(0, 1)) / top
    # In logarithms: without any colour is far from with some, however colourful others are.
    saturation = np.log10(float(raw_HWC.std(axis=2).mean()) / top + 0.002)
    tint_C = mean_C - mean_C.mean()
    steps = [_roughness(grey_HW, by) for by in (1, 2, 4, 8)]
    down = np.abs(np.diff(grey_HW, axis=0))
    peaks = float((down**2).mean()) / (float(down.mean()) ** 2 + 1e-6)
    return np.array([
        grey_HW.mean(), contrast, dark, bright, saturation, tint_C[0], tint_C[-1],
        np.log2((steps[0] + _EPS) / (contrast + _EPS)),
        *(np.log2((wide + _EPS) / (near + _EPS)) for near, wide in pairwise(steps)),
        np.log2(peaks + 1),
    ], np.float64)  # fmt: skip


def rescaled(image_HWC: Num[np.ndarray, "h w C"]) -> tuple[np.ndarray, np.ndarray]:
    """Give an image, mirrored around, by pixels thrice as large; its middle by a third as large."""
    if image_HWC.dtype not in (np.uint8, np.uint16, np.float32):
        image_HWC = image_HWC.astype(np.float32)
    height, width = image_HWC.shape[:2]
    tall, wide = max(1, height // 3), max(1, width // 3)
    small_HWC = resize_image(image_HWC, tall, wide)
    around = Box(top=(tall - height) // 2, left=(wide - width) // 2, height=height, width=width)
    middle = Box(top=(height - tall) // 2, left=(width - wide) // 2, height=tall, width=wide)
    return cut(small_HWC, around), resize_image(cut(image_HWC, middle), height, width)


def _view(
    image_HWC: Num[np.ndarray, "H W C"], preprocessing: Preprocessing, size: tuple[int, int]
) -> UInt[np.ndarray, "h w channels"]:
    """Give the image as the network sees it, or four squares of a large one cut in tiles."""
    if preprocessing.resize != "tile":
        whole_hwc: np.ndarray = prepare(image_HWC, preprocessing, size=size)[0][0]
        return whole_hwc
    side = max(16, round(_SIDE / preprocessing.scale))
    rows, columns = (_squares(length, side) for length in image_HWC.shape[:2])
    return prepare_image(image_HWC[np.ix_(rows, columns)], preprocessing)


def _squares(length: int, side: int) -> np.ndarray:
    """Give all rows of a small image, two stretches of those of a large one."""
    if length <= 2 * side:
        return np.arange(length)
    starts = [length // 4 - side // 2, 3 * length // 4 - side // 2]
    return np.concatenate([np.arange(start, start + side) for start in starts])


def _roughness(grey_HW: Float32[np.ndarray, "h w"], by: int) -> float:
    """Give the mean difference of pixels that are `by` apart."""
    if min(grey_HW.shape) <= by:
        return 0.0
    across = np.abs(grey_HW[:, by:] - grey_HW[:, :-by]).mean()
    return float(across + np.abs(grey_HW[by:] - grey_HW[:-by]).mean()) / 2


def distances(
    statistics_ND: Float64[np.ndarray, "N D"], known: Knowledge
) -> Float64[np.ndarray, " N"]:
    """Compute the Mahalanobis distances from the nearest image of the training data.

    From the mean would not do: between grey and stained tissue there is nothing usual.
    """
    off_NMD = (statistics_ND[:, None] - np.array(known.references)) / np.array(known.spread)
    square_NM = np.einsum("nmd,nmd->nm", off_NMD @ np.array(known.precision), off_NMD)
    return np.asarray(np.sqrt(np.maximum(square_NM.min(axis=1), 0)))


def off_scale(
    statistics_ND: Float64[np.ndarray, "N D"], known: Knowledge
) -> Float64[np.ndarray, "S N"]:
    """Tell which images look as if taken with larger, or smaller, pixels than usual: above 0."""
    lines = np.array(known.scales).reshape(-1, 1 + NUM_OF_IMAGE)
    return np.asarray(lines[:, :1] + lines[:, 1:] @ statistics_ND[:, :NUM_OF_IMAGE].T)


def unusual(statistics_D: Float64[np.ndarray, " D"], known: Knowledge) -> list[str]:
    """Say in words what lies outside of the training data, the farthest first."""
    low_D, high_D, spread_D = (np.array(one) for one in (known.low, known.high, known.spread))
    past_D = np.maximum(low_D - statistics_D, statistics_D - high_D) / spread_D
    told: list[str] = []
    of_mask: list[str] = []
    for index in np.argsort(-past_D, kind="stable"):
        one, value = STATISTICS[index], statistics_D[index]
        if past_D[index] < 1:
            break
        base = _FACTORS.get(one.name, 2.0)
        factor = base ** abs(value - known.centre[index])
        shown = f"{factor:.2g}" if factor < 100 else "over 100"
        text = (one.low if value < low_D[index] else one.high).format(factor=shown)
        if text not in (lines := of_mask if one.name in _OF_MASK else told):
            lines.append(text)
    told += of_mask  # the image explains its mask
    return told or [_MIXTURE]


def signs(
    probability_HW: Float32[np.ndarray, "H W"], mask_HW: Bool[np.ndarray, "H W"], *, step: int = 1
) -> Float64[np.ndarray, " K"]:
    """Compute what the probabilities promise of a mask, in logits; the first is the Dice itself.

    Where every `step`-th pixel is given, outlines are that many times longer.
    """
    inside_N = probability_HW[mask_HW].astype(np.float64)
    area, total = float(mask_HW.sum()), float(probability_HW.sum(dtype=np.float64))
    few = 5e-4 * mask_HW.size
    soft = (2 * inside_N.sum() + few) / (area + total + few)
    sure = (inside_N.sum() + few) / (area + few)
    wide, tight = (float((probability_HW > cut).sum()) for cut in (0.2, 0.8))
    stable = (2 * tight + few) / (wide + tight + few)
    sides = (mask_HW[1:] ^ mask_HW[:-1]).sum() + (mask_HW[:, 1:] ^ mask_HW[:, :-1]).sum()
    doubt = float((4 * probability_HW * (1 - probability_HW)).sum(dtype=np.float64))
    return np.array([
        logit(soft), logit(sure), logit(stable),
        np.log((doubt + few) / (float(sides) / step + few)),
        np.log((area + few) / mask_HW.size),
        np.log((float(sides) + 1 / step) / np.sqrt(area + few)),
    ], np.float64)  # fmt: skip


def logit(share: float | np.ndarray) -> Any:
    """Give the logit of a share, kept within 0.003 and 0.997."""
    kept = np.clip(share, 0.003, 0.997)
    return np.log(kept / (1 - kept))


def expected_dice(
    signs_NK: Float64[np.ndarray, "N K"], coefficients: Sequence[float]
) -> Float64[np.ndarray, " N"]:
    """Predict the Dice: the promised one, corrected by a line in all signs where one was fitted."""
    value_N = signs_NK[:, 0].copy()
    if coefficients:
        value_N += coefficients[0] + signs_NK @ np.array(coefficients[1:])
    return np.asarray(1 / (1 + np.exp(-value_N)))


def interval(expected: Any, known: Knowledge) -> tuple[Any, Any]:
    """Give the bounds that hold the Dice of 90 % of images like the validation images."""
    low, high = (expected + one * error_scale(expected) for one in known.residuals)
    return np.clip(np.minimum(low, expected), 0, 1), np.clip(np.maximum(high, expected), 0, 1)


def error_scale(expected: Any) -> Any:
    """Give the size of errors to expect: poor masks are predicted less exactly than good ones."""
    return 0.01 + np.asarray(expected) * (1 - np.asarray(expected))
