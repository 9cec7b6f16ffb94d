"""Scores after an epoch, and signs that a run goes wrong, each with the setting to change."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from binseg import metrics
from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.data.patches import ImageCache
from binseg.errors import TrainingError
from binseg.inference import ModelPredictor
from binseg.inference.runtimes.torch import TorchBackend
from binseg.losses import Loss, build_loss
from binseg.progress import Progress
from binseg.report.overlay import Rgb, for_display, overlay
from binseg.training.checkpoint import Stateful
from binseg.training.devices import COMPILE_ADVICE, NO_MEMORY, is_of_compiler, lacking_memory
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


_ALONE = "set train.workers to 0, which gives the same run"
_DIED = "another process of this run has died; what it said is above"
ADVICE = {
    "DataLoader timed out": "the loader processes gave nothing for a long time (a hanging file "
    f"system, or a deadlock); {_ALONE}",
    "DataLoader worker": f"a loader process died, most likely for lack of memory; {_ALONE}",
    "shared memory": f"there is no shared memory left for the loader processes; {_ALONE}",
    "Connection closed by peer": _DIED,
    "Connection reset by peer": _DIED,
    "Broken pipe": _DIED,
    "more than 1 value per channel": "batch norm can't learn from batches of one image that the "
    "network shrinks to one pixel; raise train.batch_size or input.size",
}
"""Parts of torch's messages, each with its cause and what a user can do about it."""

MANY = 10  # so many bad steps in a row end the run: no single image is to blame for them
EXPLODING = 100.0  # a gradient norm that has grown so much is on its way to infinity
FEWEST = 8  # steps in an epoch below which its norms say nothing
ALL, NOTHING = 0.999, 0.001
"""Share of the pixels that is "everything", and the Dice up to which nothing is found."""
RARE = 0.05  # share of foreground below which a pixel-wise loss is content with none
LASTING = 3  # after so many epochs it is no longer the first epochs' fumbling


class StepGuard(Stateful):
    """Leaves out steps whose gradient isn't finite, and all that they changed."""

    kept = ("_in_row", "_skipped", "_norms", "_calmest")

    def __init__(self, model: nn.Module, *, recipe: Recipe, progress: Progress) -> None:
        self._model, self._recipe, self._progress = model, recipe, progress
        self._in_row = self._skipped = 0
        self._norms: list[float] = []
        self._calmest = math.inf  # the lowest median norm of an epoch so far
        self._buffers: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []

    @property
    def is_calm(self) -> bool:
        """Return True if the latest step was a good one."""
        return self._in_row == 0

    def start(self) -> None:
        """Remember batch norm's statistics, once they are where and what they will be."""
        self._buffers = list(self._model.buffers())
        self._before = [buffer.detach().clone() for buffer in self._buffers]

    def judge(self, norm: float, optimizer: torch.optim.Optimizer, *, epoch: int) -> None:
        """Look at a gradient's norm before clipping; TrainingError at too many bad ones."""
        if math.isfinite(norm):
            self._in_row = 0
            self._norms.append(norm)
            if self._buffers:
                torch._foreach_copy_(self._before, self._buffers)
            return
        optimizer.zero_grad(set_to_none=True)
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)
        self._in_row += 1
        self._skipped += 1
        if self._skipped == 1:
            self._progress.say(
                f"the gradient is infinite or not a number at a step of epoch {epoch + 1}: the "
                f"step is left out; {MANY} in a row would end the run"
            )
        if self._in_row >= MANY:
            raise diverged(f"the gradient of {MANY} steps in a row", self._recipe, epoch + 1)

    def close_epoch(self, epoch: int) -> None:
        """Say what an epoch's steps were like, and start the next one's record."""
        if self._skipped > 1:
            self._progress.say(
                f"{self._skipped} steps of epoch {epoch + 1} were left out, since their gradients "
                f"were infinite or not a number; {_advice(self._recipe)}"
            )
        if len(self._norms) >= FEWEST:
            quarter = len(self._norms) // 4
            early, late = self._norms[:quarter], statistics.median(self._norms[-quarter:])
            calm = min(self._calmest, statistics.median(early))
            if late > EXPLODING * calm:
                self._progress.say(
                    f"the gradient norm grew from {calm:.3g} to {late:.3g} by the end of epoch "
                    f"{epoch + 1}: training is about to diverge; {_advice(self._recipe)}"
                )
            self._calmest = min(self._calmest, statistics.median(self._norms))
        self._norms, self._skipped = [], 0


def is_finite(model: nn.Module) -> bool:
    """Tell whether all weights and statistics of a network are numbers."""
    # Whole numbers, batch norm's count, are finite always.
    return all(bool(value.isfinite().all()) for value in model.state_dict().values())


def diverged(what: str, recipe: Recipe, epoch: int) -> TrainingError:
    """Give the one line that tells what went bad in an epoch (from 1), and what to change."""
    kept = "; the best weights so far are kept" if epoch > 1 else ""
    return TrainingError(
        f"{what} became infinite or not a number in epoch {epoch}: training diverged, most "
        f"likely from too large steps; {_advice(recipe)}{kept}"
    )


def _advice(recipe: Recipe) -> str:
    causes = [f"lower optimizer.lr (now {recipe.optimizer.lr:g})"]
    if recipe.train.gradient_clip == 0 or recipe.train.gradient_clip > 1:
        causes.append("set train.gradient_clip to 1")
    if recipe.train.precision != "fp32":
        causes.append("set train.precision to fp32")
    return " or ".join(causes)


def symptom_of(scores: ValidationScores) -> str | None:
    """Name what is wrong with an epoch's answers, or None; nothing is wrong without foreground."""
    if scores.true_share == 0:
        return None
    if scores.answered_share == 0:
        return "empty"
    if scores.answered_share >= ALL > scores.true_share:
        return "full"
    return "elsewhere" if scores.dice <= NOTHING else None


def symptom_line(
    symptom: str, scores: ValidationScores, recipe: Recipe, *, num_epochs: int
) -> str | None:
    """Give the line for a symptom, where it is new or has lasted for so many epochs."""
    if num_epochs not in {1, LASTING}:
        return None
    lr = f"optimizer.lr (now {recipe.optimizer.lr:g})"
    if symptom == "empty":
        share = f"foreground is {scores.true_share:.2%} of the validation pixels"
        sign, advice = f", since nothing is found ({share})", f"raise {lr}"
        if scores.true_share < RARE and recipe.loss.name == "bce":
            advice = f"set loss.name to bce-dice (now {recipe.loss.name}) or {advice}"
    elif symptom == "full":
        sign = ", which an all-white mask scores: everything is called foreground"
        how = "what you mean (data.foreground, data.border)"
        advice = f"lower {lr}, and look with `binseg check` whether the masks are {how}"
    else:
        found = f"{scores.answered_share:.2%} of the pixels are called foreground"
        sign = f", though {found}: what is found is not what the masks show"
        how = "inverted, shifted or of other images (data.foreground)"
        advice = f"look with `binseg check` whether masks are {how}"
    when = "normal early on; if it stays, " if num_epochs < LASTING else f"{LASTING} epochs now: "
    return f"validation Dice {scores.dice:.3f}{sign}: {when}{advice}"


def check_learnable(
    train: PixelCache | ImageCache, val: PixelCache | None, progress: Progress
) -> None:
    """Refuse masks that are all alike, which no loss can tell from success."""
    for value, name in ((1, "foreground"), (0, "background")):
        if not train.holds(value):
            raise TrainingError(
                f"nothing to learn: no training mask has a {name} pixel; check data.foreground, "
                "data.threshold and data.border, and look at the masks with binseg check"
            )
    if val is not None and not val.holds(1):
        progress.say(
            "no validation mask has a foreground pixel: the validation Dice only tells how clean "
            "the background stays; check the split"
        )


def advice_on(problem: Exception, recipe: Recipe, device: torch.device) -> str | None:
    """Say what a user can do about an error of torch's that ended the training; None if unknown."""
    text, full = str(problem), torch.OutOfMemoryError | MemoryError
    if isinstance(problem, full) or any(part in text for part in NO_MEMORY):
        return lacking_memory(recipe, device)
    if isinstance(problem, ConnectionError | EOFError):
        # A loader process that dies while it hands a batch over, or before its files are fetched.
        return ADVICE["DataLoader worker"]
    if recipe.train.compile and is_of_compiler(problem):
        return COMPILE_ADVICE
    return next((line for part, line in ADVICE.items() if part in text), None)
