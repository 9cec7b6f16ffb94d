"""What validation decides after training: tta, temperature, threshold, post-processing.

One pass over the validation images serves all but the tta, which come before. The threshold is
chosen among the network's own probabilities and then follows them to where the temperature moves
them, so that it cuts at the same logit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from binseg.config import Recipe
from binseg.data.dataset import Dataset
from binseg.evaluation.postprocessing_choice import MOST_PIXELS, Answered, choose_postprocessing
from binseg.evaluation.scoring import read_ahead
from binseg.evaluation.tta_choice import choose_tta
from binseg.inference import PredictOptions, Predictor
from binseg.metrics import (
    LogitTally,
    Reliability,
    measure_reliability,
    summarise_calibration,
    tune_threshold,
)
from binseg.packaging import Threshold
from binseg.postprocess import NOTHING, PostProcessing
from binseg.progress import SILENT, Progress, track
from binseg.types import TTA, Report

__all__ = ["Tuned", "move_threshold", "tell_calibration", "tune_on_validation"]

LOWEST, HIGHEST = 0.02, 0.98
"""Thresholds outside call nearly all or none of the pixels foreground."""
COLDEST, HOTTEST = 0.5, 5.0
"""Where validation is (almost) without a mistake, the likeliest temperature is 0: sharper and
sharper probabilities, which also magnify how processors round."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What validation decided."""

    threshold: Threshold
    temperature: float = 1.0
    postprocessing: PostProcessing = NOTHING
    """Corrections of masks that help."""
    ece_before: float | None = None
    """Calibration error at temperature 1; None where no temperature was fitted."""
    tta: TTA = "none"
    """Mirror images that are averaged."""


def tune_on_validation(
    recipe: Recipe, judge: Predictor, val: Dataset, *, progress: Progress = SILENT
) -> Tuned:
    """Choose TTA, temperature, the threshold with the best Dice, and post-processing.

    All at the images' original size. A recipe with a fixed threshold means the network's own
    probability: nothing is fitted or corrected.

    Args:
        recipe: whether the threshold is to be tuned.
        judge: the model, at temperature 1.
        val: the validation images.
        progress: told of every image.
    """
    asked = recipe.train.tta
    tta: TTA = choose_tta(recipe, judge, val, progress=progress) if asked == "tune" else asked
    judge = judge.with_options(PredictOptions(tta=tta))
    if recipe.train.threshold != "tune":
        if recipe.train.postprocess == "tune":
            progress.say("post-processing: not tried, since train.threshold is fixed")
        fixed = Threshold(value=recipe.train.threshold, method="fixed by the recipe")
        return Tuned(threshold=fixed, tta=tta)
    cleans = recipe.train.postprocess == "tune"
    logits, reliabilities = LogitTally(), list[Reliability]()
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def answers() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        samples = read_ahead(val.records, val.rule)
        watched = track(
            samples, progress=progress, label="choosing the threshold", total=len(val.records)
        )
        for sample in watched:
            assert sample.mask_HW is not None
            probability_HW = judge.predict(sample.image_HWC).probability
            answer = (probability_HW, sample.mask_HW, sample.valid_HW)
            logits.add(*answer)
            held = sum(each[0].size for each in kept)
            if cleans and held + probability_HW.size <= MOST_PIXELS:
                kept.append((probability_HW.astype(np.float16), *answer[1:]))
            reliabilities.append(measure_reliability(*answer))
            yield answer

    choice = tune_threshold(answers())
    temperature = round(min(max(logits.temperature(), COLDEST), HOTTEST), 4)
    # A network that has hardly learnt may score best where it calls everything foreground.
    own = min(max(choice.threshold, LOWEST), HIGHEST)
    if own != choice.threshold:
        progress.say(
            f"validation would choose the threshold {choice.threshold:.3f}, which calls nearly "
            f"everything or nothing foreground; {own:g} is taken: the network has learnt too little"
        )
    threshold = move_threshold(own, temperature)
    progress.say(
        f"threshold {threshold:.3f}"
        + (f": validation Dice {choice.dice:.4f} " if own == choice.threshold else " ")
        + f"(at 0.5: {choice.dice_at_half:.4f}"
        + ("; of all pixels together, since most images are empty)" if choice.is_pooled else ")")
    )
    postprocessing = NOTHING
    if cleans:
        postprocessing, told = choose_postprocessing(
            [
                Answered(mask_HW=probability_HW > own, truth_HW=truth_HW, valid_HW=valid_HW)
                for probability_HW, truth_HW, valid_HW in kept
            ]
        )
        some = f" (by the first {len(kept)} of {len(val.records)}, to spare memory)"
        progress.say(f"post-processing: {told}" + (some if len(kept) < len(val.records) else ""))
    return Tuned(
        postprocessing=postprocessing,
        tta=tta,
        threshold=Threshold(value=threshold, method="tuned on validation, original size"),
        temperature=temperature,
        ece_before=summarise_calibration(reliabilities, draws=1).ece.value,
    )


def move_threshold(threshold: float, temperature: float) -> float:
    """The threshold that cuts the calibrated probabilities where `threshold` cut the others.

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
    progress.say(
        f"temperature {tuned.temperature:g}: expected calibration error on validation "
        f"{tuned.ece_before:.4f} before, {report.calibration.ece.value:.4f} after"
    )
