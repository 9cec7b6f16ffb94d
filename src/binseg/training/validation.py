"""Scores after an epoch: the model as it would ship, through the predictor that `evaluate` uses."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from binseg import metrics
from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.inference import ModelPredictor
from binseg.inference.runtimes.torch import TorchBackend
from binseg.losses import Loss, build_loss
from binseg.report.overlay import Rgb, for_display, overlay
from binseg.types import IGNORE, Counts

THRESHOLD = 0.5
"""Threshold of the probability while training; the shipped one is tuned on the best weights."""
CHUNK = 64
"""Inputs that are predicted and counted at a time, so that memory doesn't grow with the data."""
LEAST_TILES = 128  # validation tiles that are scored after an epoch of patches, however short it is
LEAST_TIMED = 48
"""Validation inputs after an epoch of a run with a budget: else a quarter of the epoch's inputs,
which takes a twelfth of its time or so."""
NUM_DRAWN = 4  # validation inputs that trackers show
EPSILON = 1e-7
"""Probabilities are kept this far from 0 and 1 when they become logits again for the loss."""


@dataclass(frozen=True, kw_only=True)
class ValidationScores:
    """The validation scores by which the best epoch is chosen."""

    loss: float
    dice: float
    """Mean over images, the tiles of one counted together. Pooled over all pixels where only
    some tiles are looked at, or most images are empty: the mean would praise a model that never
    answers, with a full score for each image whose foreground isn't there to be missed."""
    answered_share: float  # share of all valid pixels that are predicted as foreground
    true_share: float  # share of all valid pixels that are foreground


def thinned(cache: PixelCache, recipe: Recipe, num_steps: int, *, is_timed: bool) -> PixelCache:
    """Keep as many validation inputs as an epoch of so many steps is worth."""
    num = num_steps * recipe.train.batch_size
    if is_timed:
        return cache.thinned(max(LEAST_TIMED, num // 4))
    if recipe.draws_patches:  # whose number, not that of the images, is an epoch's cost
        return cache.thinned(max(LEAST_TILES, num))
    return cache


def validate(
    model: nn.Module,
    cache: PixelCache,
    *,
    recipe: Recipe,
    device: torch.device,
    precision: str,
    between: Callable[[], None] = lambda: None,
) -> ValidationScores:
    """Predict the cache's inputs at the model's size, and score them; `between` may raise."""
    predictor = _judge(model, recipe, device=device, precision=precision)
    loss = build_loss(recipe.loss.name, recipe.loss.options)
    losses: list[float] = []
    sizes: list[int] = []
    counts: dict[int, list[Counts]] = defaultdict(list)
    for start in range(0, len(cache), CHUNK):
        between()
        rows = slice(start, start + CHUNK)
        targets_NHW = np.array(cache.targets_NHW[rows])  # torch warns of read-only arrays
        probability_NHW = predictor.probability_of_inputs(np.asarray(cache.inputs_NHWC[rows]))
        losses.append(_loss(loss, probability_NHW, targets_NHW))
        sizes.append(len(targets_NHW))
        for row, probability_HW, target_HW in zip(
            cache.record_of_N[rows], probability_NHW, targets_NHW, strict=True
        ):
            counted = metrics.count(probability_HW > THRESHOLD, target_HW == 1, target_HW != IGNORE)
            counts[int(row)].append(counted)
    images = [metrics.pool(of_image) for of_image in counts.values()]
    whole = metrics.pool(images)
    num_valid = max(1, whole.tp + whole.fp + whole.fn + whole.tn)
    return ValidationScores(
        loss=float(np.average(losses, weights=sizes)),
        dice=_dice(images, is_partial=cache.is_partial),
        answered_share=(whole.tp + whole.fp) / num_valid,
        true_share=(whole.tp + whole.fn) / num_valid,
    )


def draw_validation(
    model: nn.Module, cache: PixelCache, *, recipe: Recipe, device: torch.device, precision: str
) -> Rgb:
    """Draw the first inputs of the cache below each other: truth at the left, prediction right."""
    predictor = _judge(model, recipe, device=device, precision=precision)
    inputs_NHWC = np.asarray(cache.inputs_NHWC[:NUM_DRAWN])
    rows = zip(
        map(for_display, inputs_NHWC),
        np.asarray(cache.targets_NHW[:NUM_DRAWN]) == 1,
        predictor.probability_of_inputs(inputs_NHWC) > THRESHOLD,
        strict=True,
    )
    return np.vstack([np.hstack([overlay(x, true), overlay(x, found)]) for x, true, found in rows])


def _judge(
    model: nn.Module, recipe: Recipe, *, device: torch.device, precision: str
) -> ModelPredictor:
    return ModelPredictor(
        backend=TorchBackend(model, device=str(device), precision=precision),
        preprocessing=recipe.preprocessing(),
        threshold=THRESHOLD,
        bundle_id="training",
        batch_size=recipe.train.batch_size,
    )


def _dice(images: list[Counts], *, is_partial: bool) -> float:
    num_empty = sum(one.tp + one.fn == 0 for one in images)
    if is_partial or metrics.is_mostly_empty(num_empty, len(images)):
        return metrics.dice(metrics.pool(images))
    return float(np.nanmean([metrics.dice(one) for one in images]))


def _loss(loss: Loss, probability_NHW: np.ndarray, targets_NHW: np.ndarray) -> float:
    """The training loss of a chunk; on the CPU, where the predictor's answers are."""
    probability = torch.from_numpy(probability_NHW)[:, None]
    targets = torch.from_numpy(targets_NHW)[:, None]
    with torch.no_grad():
        logits = torch.logit(probability, EPSILON)
        return float(loss(logits, (targets == 1).float(), targets != IGNORE))
