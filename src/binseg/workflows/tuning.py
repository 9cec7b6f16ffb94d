"""What validation decides after training: the temperature of the logits, and the threshold.

One pass over the validation pictures serves both. The threshold is chosen among the network's own
probabilities and then follows them to where the temperature moves them, so that it cuts at the
same logit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from binseg.bundle import Threshold
from binseg.config import Recipe
from binseg.data.dataset import Dataset
from binseg.metrics import (
    LogitTally,
    Reliability,
    measure_reliability,
    summarise_calibration,
    tune_threshold,
)
from binseg.predictor import Predictor
from binseg.progress import SILENT, Progress, track
from binseg.structures import Report
from binseg.workflows.scoring import read_ahead

__all__ = ["Tuned", "move_threshold", "tell_calibration", "tune_on_validation"]

COLDEST, HOTTEST = 0.5, 5.0
"""Where validation is (almost) without a mistake, the likeliest temperature is 0: sharper and
sharper probabilities, which also magnify how processors round."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What validation decided."""

    threshold: Threshold
    temperature: float = 1.0
    ece_before: float | None = None
    """Calibration error at temperature 1; None where no temperature was fitted."""


def tune_on_validation(
    recipe: Recipe, judge: Predictor, val: Dataset, *, progress: Progress = SILENT
) -> Tuned:
    """Fit the temperature, and choose the threshold with the best Dice, both at original size.

    A recipe with a fixed threshold means the network's own probability: nothing is fitted.

    Args:
        recipe: whether the threshold is to be tuned.
        judge: the model, at temperature 1.
        val: the validation pictures.
        progress: told of every picture.
    """
    if recipe.train.threshold != "tune":
        fixed = Threshold(value=recipe.train.threshold, method="fixed by the recipe")
        return Tuned(threshold=fixed)
    logits, reliabilities = LogitTally(), list[Reliability]()

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
            reliabilities.append(measure_reliability(*answer))
            yield answer

    choice = tune_threshold(answers())
    temperature = round(min(max(logits.temperature(), COLDEST), HOTTEST), 4)
    threshold = move_threshold(choice.threshold, temperature)
    progress.say(
        f"threshold {threshold:.3f}: validation Dice {choice.dice:.4f} "
        f"(at 0.5: {choice.dice_at_half:.4f})"
    )
    return Tuned(
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
