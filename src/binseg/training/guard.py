"""Watches the numbers of each step: one bad step is left out, many end the run.

A gradient that is infinite or not a number would make all weights so, for ever. Such a step is left
out: the weights, the optimiser's memory and batch norm's statistics stay as they were before it.
"""

import math
import statistics
from typing import Any

import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.errors import TrainingError
from binseg.progress import Progress

__all__ = ["StepGuard", "diverged", "is_finite"]

MANY = 10
"""So many bad steps in a row end the run: no single image is to blame for them."""
EXPLODING = 100.0
"""A gradient norm that has grown so much is on its way to infinity."""
FEWEST = 8
"""Steps in an epoch below which its norms say nothing."""


class StepGuard:
    """Leaves out steps whose gradient is infinite or not a number, and remembers the others' norms.

    Args:
        model: what learns.
        recipe: names the settings to change.
        progress: hears of steps that are left out.
    """

    def __init__(self, model: nn.Module, *, recipe: Recipe, progress: Progress) -> None:
        self._model = model
        self._recipe = recipe
        self._progress = progress
        self._in_row = 0
        self._skipped = 0
        self._norms: list[float] = []
        self._calmest = math.inf
        """The lowest median norm of an epoch so far."""
        self._buffers: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []

    @property
    def is_calm(self) -> bool:
        """Whether the latest step was a good one."""
        return self._in_row == 0

    def start(self) -> None:
        """Remember batch norm's statistics, once they are where and what they will be."""
        self._buffers = list(self._model.buffers())
        self._before = [buffer.detach().clone() for buffer in self._buffers]

    def judge(self, norm: float, optimizer: torch.optim.Optimizer, *, epoch: int) -> None:
        """Look at the gradient of a step that is about to be taken.

        Args:
            norm: of the whole gradient, before clipping.
            optimizer: its step does nothing where there is no gradient.
            epoch: from 0.

        Raises:
            TrainingError: it is one bad step of too many.
        """
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
        """Say what an epoch's steps were like, and start the next one's record.

        Args:
            epoch: from 0.
        """
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

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume needs."""
        return {
            "in_row": self._in_row,
            "skipped": self._skipped,
            "norms": list(self._norms),
            "calmest": self._calmest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._in_row, self._skipped = state["in_row"], state["skipped"]
        self._norms, self._calmest = list(state["norms"]), state["calmest"]


def is_finite(model: nn.Module) -> bool:
    """Tell whether all weights and statistics of a network are numbers."""
    return all(
        bool(value.isfinite().all())
        for value in model.state_dict().values()
        if value.is_floating_point()
    )


def diverged(what: str, recipe: Recipe, epoch: int) -> TrainingError:
    """The one line that tells that numbers went bad, the likely cause, and what to change.

    Args:
        what: became infinite.
        recipe: names the settings.
        epoch: from 1.
    """
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
