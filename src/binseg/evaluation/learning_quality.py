"""The lessons of validation for a card: what images are usual, what Dice to expect, guarantees.

Every figure that makes a promise comes from images that its fit had not seen (cross-fitting). A
guaranteed threshold is taken only where validation would be a surprise (5 % at most) if the promise
were false: the betting bound of Waudby-Smith and Ramdas (2024), which needs no normal distribution
and few images, walked along the thresholds from the safe end (Bates et al. 2021). Of 100 such
calibrations at least 95 keep their promise; an ordinary conformal one keeps it on average.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from binseg.data.dataset import Dataset, spread
from binseg.errors import DataError, ImageError, UsageError, suggest
from binseg.evaluation.scoring import read_ahead
from binseg.imageio import read_pixel_size
from binseg.inference import ModelPredictor
from binseg.inference.quality import (
    NAMES,
    NUM_OF_IMAGE,
    STATISTICS,
    describe_image,
    distances,
    error_scale,
    expected_dice,
    figures,
    logit,
    rescaled,
)
from binseg.metrics import count, dice
from binseg.metrics.probabilities import NUM_THRESHOLDS, counts_of, histogram
from binseg.metrics.scores import score_table
from binseg.packaging import Guarantee
from binseg.packaging.card import Knowledge
from binseg.progress import SILENT, Detail, Progress, track
from binseg.types import Record

SURE = 0.95  # confidence of a guarantee
PROMISES = ("recall", "fpr", "dice")


def parse_guarantee(text: str) -> tuple[str, float]:
    """Read `recall=0.95`; UsageError for an unknown score, or a value outside of 0 to 1.

    >>> parse_guarantee("fpr=0.01")
    ('fpr', 0.01)
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in PROMISES:
        raise UsageError(
            f"--guarantee {text!r}: {suggest(name, PROMISES)}, for example recall=0.95"
        )
    try:
        wanted = float(value)
    except ValueError:
        wanted = math.nan
    if not 0 < wanted < 1:
        raise UsageError(f"--guarantee {text!r}: give a share between 0 and 1: {name}=0.95")
    return name, wanted


def choose_guaranteed(
    score: str,
    wanted: float,
    counts: Sequence[Num[np.ndarray, "T 4"]],
    *,
    groups: Sequence[Hashable],
    own_threshold: float,
) -> Guarantee:
    """Choose the threshold that keeps mean recall or Dice above, or mean fpr below, a value.

    `counts` are tp, fp, fn, tn of each image at each threshold; images of one group count as one,
    since they are alike. For the Dice the model's own threshold alone is tried: its best value is
    there, and one promise costs one test. Raises DataError where images are too few (it says how
    many are needed) or the model is too poor.
    """
    risk = wanted if score == "fpr" else 1 - wanted
    table_NT = np.stack([_losses(score, one) for one in counts])
    units_UT = np.stack(
        [
            table_NT[[index for index, one in enumerate(groups) if one == group]].mean(axis=0)
            for group in dict.fromkeys(groups)
        ]
    )
    units_UT = units_UT[np.random.default_rng(0).permutation(len(units_UT))]
    walk = range(NUM_THRESHOLDS)
    if score == "fpr":
        walk = range(NUM_THRESHOLDS - 1, -1, -1)
    if score == "dice":
        own = min(NUM_THRESHOLDS - 1, round(own_threshold * NUM_THRESHOLDS))
        walk = range(own, own + 1)
    best: int | None = None
    for place in walk:
        if not _is_shown(units_UT[:, place], risk):
            break
        best = place
    if best is None:
        raise DataError(_refusal(score, wanted, units_UT[:, walk[0]], risk))
    threshold = own_threshold if score == "dice" else best / NUM_THRESHOLDS
    kind = cast("Literal['recall', 'fpr', 'dice']", score)
    return Guarantee(score=kind, wanted=wanted, threshold=threshold, num_images=len(units_UT))


def _losses(score: str, counts_T4: Num[np.ndarray, "T 4"]) -> Float64[np.ndarray, " T"]:
    """Give the loss at each threshold: what recall or Dice lack of 1, or the fpr."""
    _, fp_T, _, tn_T = counts_T4.astype(np.float64).T
    if score == "fpr":
        return np.asarray(fp_T / np.maximum(1, fp_T + tn_T))
    loss_T: Float64[np.ndarray, " T"] = 1 - np.asarray(score_table(counts_T4)[score])
    # Without any foreground nothing can be missed, whatever the empty rule says of alarms.
    nothing_T = counts_T4[:, [0, 2]].sum(axis=1) == 0
    return np.where(nothing_T, 0.0, loss_T) if score == "recall" else loss_T


def _is_shown(losses_U: Float64[np.ndarray, " U"], risk: float) -> bool:
    """Tell whether losses of a true mean of `risk` would make a gambler rich with 5 % at most."""
    num = len(losses_U)
    # Each bet knows only the images before it.
    before_U = np.arange(1, num + 1)
    mean_U = np.concatenate([[0.5], (0.5 + np.cumsum(losses_U)[:-1]) / before_U[1:]])
    square_U = (losses_U - mean_U) ** 2
    spread_U = np.concatenate([[0.25], (0.25 + np.cumsum(square_U)[:-1]) / before_U[1:]])
    bet_U = np.sqrt(2 * math.log(1 / (1 - SURE)) / (num * np.maximum(spread_U, 1e-4)))
    bet_U = np.minimum(bet_U, 0.999 / (1 - risk))
    wealth_U = np.cumsum(np.log1p(bet_U * (risk - losses_U)))
    return bool(wealth_U.max() >= math.log(1 / (1 - SURE)))


def _refusal(score: str, wanted: float, losses_U: Float64[np.ndarray, " U"], risk: float) -> str:
    """Say why no threshold is taken, and how many images would do."""
    num, mean = len(losses_U), float(losses_U.mean())
    what = f"{score} {'below' if score == 'fpr' else 'of'} {wanted:g}"
    if mean < risk:
        for times in range(2, 200):
            if _is_shown(np.tile(losses_U, times), risk):
                few = f"{num} validation images (or groups) are too few to guarantee {what}"
                return f"{few}; about {num * times} are needed"
    shown = f"{mean if score == 'fpr' else 1 - mean:.3f}"
    return f"{what} can't be guaranteed: validation itself shows {shown}; ask for less"


NUM_USUAL = 60  # images below which some that trained the model help to say what is usual
NUM_REFERENCES = 200  # images whose statistics travel in the card
MOST = 500  # validation images that teach, at most
LEAST_FOR_LINE = 20  # validation images below which the promised Dice is taken as it is
_FOLDS = 10
_PENALTIES = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One image with a known truth, as figures."""

    statistics_D: Float64[np.ndarray, " D"]
    scaled_SI: Float64[np.ndarray, "S I"]  # of the image at other scales
    signs_K: Float64[np.ndarray, " K"]
    dice: float
    group: Hashable
    pixel_um: float | None
    counts_T4: Int64[np.ndarray, "T 4"]  # tp, fp, fn, tn at each threshold, without post-processing


def gather_lessons(
    predictor: ModelPredictor, dataset: Dataset, *, progress: Progress = SILENT
) -> list[Lesson]:
    """Predict the validation images of a data set, up to 500, and measure them."""
    val = [one for one in dataset.records if one.split == "val"]
    return list(_lessons(predictor, replace(dataset, records=tuple(spread(val, MOST))), progress))


def learn_quality(
    predictor: ModelPredictor,
    dataset: Dataset,
    lessons: Sequence[Lesson],
    *,
    progress: Progress = SILENT,
) -> Knowledge:
    """Learn from validation what is usual, and what Dice to expect.

    Where it has few images, some that trained the model help to say what an image looks like.
    """
    train = [one for one in dataset.records if one.split == "train"]
    helpers = spread(train, max(0, NUM_USUAL - len(lessons)))
    further = list(_lessons(predictor, replace(dataset, records=tuple(helpers)), progress))
    known = fit_knowledge(lessons, further)
    if known.num_images < LEAST_FOR_LINE:
        told = f"quality: {known.num_images} validation images are too few to check the Dice that "
        told += f"predictions promise (from {LEAST_FOR_LINE} on); intervals are wide"
        progress.say(Detail(told))
    return known


def _lessons(predictor: ModelPredictor, dataset: Dataset, progress: Progress) -> Iterator[Lesson]:
    samples = read_ahead(dataset.records, dataset.rule, predictor.preprocessing)
    label, total = "learning what is usual", len(dataset.records)
    watched = track(samples, progress=progress, label=label, total=total)
    for record, sample in zip(dataset.records, watched, strict=True):
        assert sample.mask_HW is not None
        if not sample.valid_HW.any():
            continue
        found = predictor.predict_array(sample.image_HWC, size=sample.valid_HW.shape)
        probability_HW, mask_HW = found.probability, found.mask
        statistics_D, signs_K = figures(
            sample.image_HWC, probability_HW, mask_HW, predictor.preprocessing
        )
        shape, size = predictor.preprocessing, sample.valid_HW.shape
        scaled = [describe_image(x, shape, size=size) for x in rescaled(sample.image_HWC)]
        yield Lesson(
            statistics_D=statistics_D,
            scaled_SI=np.stack(scaled),
            signs_K=signs_K,
            dice=dice(count(mask_HW, sample.mask_HW, sample.valid_HW)),
            group=record.id if record.group is None else record.group,
            pixel_um=_pixel_um(record),
            counts_T4=counts_of(histogram(probability_HW, sample.mask_HW, sample.valid_HW)),
        )


def _pixel_um(record: Record) -> float | None:
    try:
        size = read_pixel_size(record.image_path)
    except ImageError:
        return None
    return (size.height * size.width) ** 0.5 if size else None


def fit_knowledge(lessons: Sequence[Lesson], further: Sequence[Lesson] = ()) -> Knowledge:
    """Fit what the card knows; `further` images tell what is usual, but nothing of the Dice."""
    usual = [*lessons, *further]
    table_ND = np.stack([one.statistics_D for one in usual])
    fold_N = folds([one.group for one in usual])

    left_out_N = np.empty(len(usual))
    for fold in range(fold_N.max() + 1):
        rest_ND = table_ND[fold_N != fold]
        fitted = _usual(rest_ND if len(rest_ND) > 1 else table_ND)
        left_out_N[fold_N == fold] = distances(table_ND[fold_N == fold], fitted)
    # Chance alone puts some outside, and few images hardly show how far usual ones lie.
    limit = max(2.0, float(np.quantile(left_out_N, 0.98)) * (1 + 5 / len(usual)))
    sizes = [one.pixel_um for one in usual if one.pixel_um]
    common = Counter(round(size, 6) for size in sizes).most_common(1)
    is_one_scale = bool(common) and max(sizes) < 1.1 * min(sizes) and len(sizes) == len(usual)
    coefficients, residuals = _fit_dice(lessons)
    scaled_SNI = np.stack([one.scaled_SI for one in usual], axis=1)
    pairs = [np.stack([table_ND[:, :NUM_OF_IMAGE], one_NI]) for one_NI in scaled_SNI]
    return _usual(table_ND).model_copy(
        update={
            "num_images": len(lessons),
            "limit": limit,
            "scales": tuple(_scale_line(one, fold_N) for one in pairs),
            "pixel_um": common[0][0] if is_one_scale else None,
            "coefficients": coefficients,
            "residuals": residuals,
        }
    )


def _scale_line(pair_SNI: Float64[np.ndarray, "2 N I"], fold_N: np.ndarray) -> tuple[float, ...]:
    """Fit a line that is above 0 for rescaled images, the second, and hardly a usual one."""
    found_N = np.empty(len(fold_N))
    for fold in [*np.unique(fold_N), -1]:  # the last is of all
        rest_N = (fold_N != fold) | (fold_N.max() == 0)
        rest_MI = pair_SNI[:, rest_N].reshape(-1, pair_SNI.shape[2])
        line = _ridge(rest_MI, np.repeat([-1.0, 1.0], len(rest_MI) // 2), 3.0)
        found_N[fold_N == fold] = line[0] + pair_SNI[0, fold_N == fold] @ line[1]
    limit = np.quantile(found_N, 0.99) + found_N.std() * 2 / len(found_N) + 0.15
    return (round(float(line[0] - limit), 6), *line[1].round(6).tolist())


def folds(groups: Sequence[Hashable]) -> Int64[np.ndarray, " N"]:
    """Spread images over up to ten folds; those of one group stay together."""
    number_of = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    order = np.random.default_rng(0).permutation(len(number_of))
    return np.array([order[number_of[one]] % _FOLDS for one in groups], np.int64)


def _usual(table_ND: Float64[np.ndarray, "N D"]) -> Knowledge:
    """Fit the mean and a covariance that is shrunk towards no correlation."""
    num, width = table_ND.shape
    least_D = np.array([one.least for one in STATISTICS])
    centre_D = table_ND.mean(axis=0)
    spread_D = np.hypot(table_ND.std(axis=0), least_D)
    unit_ND = (table_ND - centre_D) / spread_D
    share = width / (num + width)
    own_DD = unit_ND.T @ unit_ND / num + np.diag((least_D / spread_D) ** 2)
    precision_DD = np.linalg.inv((1 - share) * own_DD + share * np.eye(width))
    return Knowledge(
        names=NAMES,
        centre=tuple(centre_D.round(6)),
        spread=tuple(spread_D.round(6)),
        low=tuple(table_ND.min(axis=0).round(6)),
        high=tuple(table_ND.max(axis=0).round(6)),
        precision=tuple(tuple(row) for row in precision_DD.round(6)),
        references=tuple(tuple(row) for row in spread(table_ND.round(4).tolist(), NUM_REFERENCES)),
        limit=1.0,
    )


def _fit_dice(lessons: Sequence[Lesson]) -> tuple[tuple[float, ...], tuple[float, float]]:
    """Fit the line that corrects the promised Dice, and the errors that it leaves."""
    signs_NK = np.stack([one.signs_K for one in lessons])
    dice_N = np.array([one.dice for one in lessons])
    fold_N = folds([one.group for one in lessons])
    num = len(lessons)

    def line(some_N: Bool[np.ndarray, " N"], penalty: float) -> tuple[float, ...]:
        off_N = logit(dice_N) - signs_NK[:, 0]
        constant, slope_K = _ridge(signs_NK[some_N], off_N[some_N], penalty)
        return (round(constant, 6), *slope_K.round(6).tolist())

    tried = {0.0: expected_dice(signs_NK, ())}
    for penalty in _PENALTIES if num >= LEAST_FOR_LINE and fold_N.max() > 0 else ():
        tried[penalty] = np.empty(num)
        for fold in np.unique(fold_N):
            own_N = fold_N == fold
            tried[penalty][own_N] = expected_dice(signs_NK[own_N], line(~own_N, penalty))
    best = min(tried, key=lambda one: float(np.abs(tried[one] - dice_N).mean()))
    residual_N = np.sort((dice_N - tried[best]) / error_scale(tried[best]))
    if num < LEAST_FOR_LINE:
        # No order statistic of so few images bounds 5 % on either side.
        widest = 2 * float(np.abs(residual_N).max()) + 0.5
        return (), (-widest, widest)
    place = int(np.floor(0.05 * (num + 1))) - 1
    coefficients = line(fold_N >= 0, best) if best else ()
    return coefficients, (float(residual_N[place]), float(residual_N[num - 1 - place]))


def _ridge(
    table_NK: Float64[np.ndarray, "N K"], target_N: Float64[np.ndarray, " N"], penalty: float
) -> tuple[float, Float64[np.ndarray, " K"]]:
    """Fit constant and slopes by ridge regression, the columns being standardised."""
    mean_K, std_K = table_NK.mean(axis=0), table_NK.std(axis=0) + 1e-3
    unit_NK = (table_NK - mean_K) / std_K
    square_KK = unit_NK.T @ unit_NK + penalty * np.eye(unit_NK.shape[1])
    slope_K = np.linalg.solve(square_KK, unit_NK.T @ (target_N - target_N.mean())) / std_K
    return float(target_N.mean() - mean_K @ slope_K), slope_K
