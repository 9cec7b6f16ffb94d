"""The choices that validation makes after training: tta, temperature, threshold, post-processing.

TTA comes first; one pass over the validation images then serves all the others. The threshold is
chosen among the network's own probabilities and then follows them to where the temperature moves
them, so that it cuts at the same logit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from binseg.config import Recipe
from binseg.data.dataset import Dataset, spread
from binseg.evaluation.scoring import read_ahead
from binseg.inference import PredictOptions, Predictor
from binseg.metrics import (
    LogitTally,
    Reliability,
    count,
    dice,
    measure_reliability,
    summarise_calibration,
    tune_threshold,
)
from binseg.packaging import Threshold
from binseg.postprocess import NOTHING, PostProcessing, clean, label_objects
from binseg.progress import SILENT, Detail, Progress, track
from binseg.transforms.batch_transforms import resolve_preset
from binseg.types import TTA, TTA_PASSES, Report

LOWEST, HIGHEST = 0.02, 0.98  # thresholds outside call nearly all or none of the pixels foreground
COLDEST, HOTTEST = 0.5, 5.0
"""Bounds of the temperature. On validation images (almost) without a mistake the likeliest is 0:
sharper and sharper probabilities, which also magnify how processors round."""
LEAST_GAIN = 0.001
"""Dice below which neither tta is worth its time nor a step of post-processing its explanation."""
NUM_TRIED, LEAST_FOR_TTA = 64, 3  # validation images that decide on tta, at most and at least
LEAST_FOR_POSTPROCESSING = 10
"""Validation images below which a mean gain and its error mean nothing."""
MOST_PIXELS = 60_000_000
"""240 MB; of the validation predictions that are kept to choose post-processing, the first ones."""
ERRORS = 2.0
"""Standard errors that the gain of a step of post-processing must exceed: several are tried, so
that one would do so by chance too often."""
SINGLE = 0.95
"""Share of the true masks that must be one object before the largest one alone is tried."""

Validation = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Probability (or the mask above the threshold), truth and valid pixels of a validation image."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The settings that validation chose."""

    threshold: Threshold
    temperature: float = 1.0
    postprocessing: PostProcessing = NOTHING
    ece_before: float | None = None
    """Calibration error at temperature 1; None where no temperature was fitted."""
    tta: TTA = "none"


def tune_on_validation(
    recipe: Recipe, model: Predictor, val: Dataset, *, progress: Progress = SILENT
) -> Tuned:
    """Choose TTA, temperature, the threshold with the best Dice, and post-processing.

    All at the images' original size, for a model at temperature 1. A recipe with a fixed threshold
    means the network's own probability: nothing is fitted or corrected.
    """
    asked = recipe.train.tta
    tta: TTA = choose_tta(recipe, model, val, progress=progress) if asked == "tune" else asked
    model = model.with_options(PredictOptions(tta=tta))
    is_corrected = recipe.train.postprocess == "tune"
    if recipe.train.threshold != "tune":
        if is_corrected:
            progress.say(Detail("post-processing: not tried, since train.threshold is fixed"))
        fixed = Threshold(value=recipe.train.threshold, method="fixed by the recipe")
        return Tuned(threshold=fixed, tta=tta)
    logits, reliabilities, kept = LogitTally(), list[Reliability](), list[Validation]()

    def predictions() -> Iterator[Validation]:
        for one in _predict(model, val, progress):
            logits.add(*one)
            reliabilities.append(measure_reliability(*one))
            if is_corrected and sum(x[0].size for x in kept) + one[0].size <= MOST_PIXELS:
                kept.append((one[0].astype(np.float16), *one[1:]))
            yield one

    choice = tune_threshold(predictions())
    temperature = round(min(max(logits.temperature(), COLDEST), HOTTEST), 4)
    # A network that has hardly learnt may score best where it calls everything foreground.
    own = min(max(choice.threshold, LOWEST), HIGHEST)
    if own != choice.threshold:
        progress.say(
            f"validation would choose the threshold {choice.threshold:.3f}, which calls nearly "
            f"everything or nothing foreground; {own:g} is taken: the network has learnt too little"
        )
    threshold = move_threshold(own, temperature)
    told = (
        f"threshold {threshold:.3f}"
        + (f": validation Dice {choice.dice:.4f} " if own == choice.threshold else " ")
        + f"(at 0.5: {choice.dice_at_half:.4f}"
        + ("; of all pixels together, since most images are empty)" if choice.is_pooled else ")")
    )
    progress.say(Detail(told))
    postprocessing = NOTHING
    if is_corrected:
        postprocessing, told = choose_postprocessing(
            [(p > own, truth, valid) for p, truth, valid in kept]
        )
        some = f" (by the first {len(kept)} of {len(val.records)}, to spare memory)"
        told = f"post-processing: {told}" + (some if len(kept) < len(val.records) else "")
        progress.say(Detail(told) if postprocessing.is_empty else told)
    return Tuned(
        postprocessing=postprocessing,
        tta=tta,
        threshold=Threshold(value=threshold, method="tuned on validation, original size"),
        temperature=temperature,
        ece_before=summarise_calibration(reliabilities, num_resamples=0).scores["ece"].value,
    )


def _predict(model: Predictor, val: Dataset, progress: Progress) -> Iterator[Validation]:
    samples = read_ahead(val.records, val.rule, model.preprocessing)
    label = "choosing the threshold"
    for sample in track(samples, progress=progress, label=label, total=len(val.records)):
        assert sample.mask_HW is not None
        found = model.predict_array(sample.image_HWC, size=sample.valid_HW.shape)
        yield found.probability, sample.mask_HW, sample.valid_HW


def move_threshold(threshold: float, temperature: float) -> float:
    """Find the threshold that cuts the calibrated probabilities where `threshold` cut the others.

    >>> move_threshold(0.5, 3.0), move_threshold(0.0, 3.0), round(move_threshold(0.9, 2.0), 3)
    (0.5, 0.0, 0.75)
    """
    if threshold in {0.0, 1.0}:
        return threshold
    logit = math.log(threshold) - math.log1p(-threshold)
    return 1 / (1 + math.exp(-logit / temperature))


def tell_calibration(tuned: Tuned, report: Report, progress: Progress) -> None:
    """Say what the temperature did to the calibration error on validation."""
    if tuned.ece_before is None or report.calibration is None:
        return
    after = report.calibration.scores["ece"].value
    told = f"temperature {tuned.temperature:g}: expected calibration error on validation "
    progress.say(Detail(f"{told}{tuned.ece_before:.4f} before, {after:.4f} after"))


def allowed_tta(recipe: Recipe) -> TTA:
    """Find the mirror images that the network has learnt from."""
    preset = resolve_preset(recipe.augment)
    if preset.flip and (preset.flip_vertical or preset.quarter_turn):
        return "all"
    return "horizontal" if preset.flip else "none"


def choose_tta(
    recipe: Recipe, model: Predictor, val: Dataset, *, progress: Progress = SILENT
) -> TTA:
    """Average over mirror images where that raises the mean Dice on validation beyond its error.

    Up to 64 images decide, with the mirror images that the network has learnt from. Both sides cut
    at 0.5, since no threshold is chosen yet.
    """
    tta = allowed_tta(recipe)
    if tta == "none" or len(val.records) < LEAST_FOR_TTA:
        return "none"
    chosen = spread(val.records, NUM_TRIED)
    samples = read_ahead(chosen, val.rule, model.preprocessing)
    gains = []
    for sample in track(samples, progress=progress, label="trying tta", total=len(chosen)):
        assert sample.mask_HW is not None
        mirrored, plain = (
            dice(count(one.predict_array(sample.image_HWC, size=sample.valid_HW.shape).probability
                       > 0.5, sample.mask_HW, sample.valid_HW))
            for one in (model.with_options(PredictOptions(tta=tta)), model)
        )  # fmt: skip
        gains.append(mirrored - plain)
    gain, error = _mean_and_error(np.array(gains))
    told = f"validation Dice {gain:+.4f} (standard error {error:.4f}, {len(gains)} images)"
    if gain <= max(LEAST_GAIN, error):
        progress.say(Detail(f"tta: none, since {tta} gives {told}"))
        return "none"
    progress.say(
        f"tta {tta}: {told}; predictions take {TTA_PASSES[tta]} times as long (--tta none "
        "leaves it out)"
    )
    return tta


def _mean_and_error(values_N: np.ndarray) -> tuple[float, float]:
    """Find the mean of the values and its standard error."""
    return float(values_N.mean()), float(values_N.std(ddof=1) / math.sqrt(len(values_N)))


def choose_postprocessing(images: Sequence[Validation]) -> tuple[PostProcessing, str]:
    """Try each step of post-processing, and keep those that raise the mean Dice beyond chance.

    The images are those that the model wasn't trained on; a clause for people comes with the steps.
    """
    if len(images) < LEAST_FOR_POSTPROCESSING:
        return NOTHING, f"not tried: {len(images)} validation images are too few to tell"
    before_N = _dices(images, NOTHING)
    chosen, dice_N = NOTHING, before_N
    for changes in _candidates(images):
        tried = replace(chosen, **changes)  # type: ignore[arg-type]
        tried_N = _dices(images, tried)
        gain, error = _mean_and_error(tried_N - dice_N)
        if gain > max(LEAST_GAIN, ERRORS * error):
            chosen, dice_N = tried, tried_N
    if chosen.is_empty:
        return NOTHING, "none helps beyond chance on validation"
    gain, error = _mean_and_error(dice_N - before_N)
    return chosen, f"{chosen.describe()}: validation Dice {gain:+.4f} (standard error {error:.4f})"


def _candidates(images: Sequence[Validation]) -> list[dict[str, int | bool]]:
    """List the steps worth a try: areas follow from the true objects' areas."""
    labelled = [label_objects(truth_HW) for _, truth_HW, _ in images]
    every = np.concatenate([np.bincount(labels.ravel())[1:] for labels, _ in labelled])
    if not len(every):
        return []
    candidates: list[dict[str, int | bool]] = []
    if np.mean([num <= 1 for _, num in labelled]) >= SINGLE:
        candidates.append({"largest_only": True})
    # Only specks that are smaller than almost every true object are removed.
    smallest, typical = np.quantile(every, 0.02), np.median(every)
    candidates += [{"min_area": int(share * smallest)} for share in (0.25, 0.5, 1.0)]
    candidates += [{"fill_holes": int(share * typical)} for share in (0.05, 0.25)]
    return [one for one in candidates if next(iter(one.values())) > 0]


def _dices(images: Sequence[Validation], postprocessing: PostProcessing) -> np.ndarray:
    """Score each image, empty masks as everywhere else."""
    return np.array(
        [dice(count(clean(mask, postprocessing), truth, valid)) for mask, truth, valid in images]
    )
