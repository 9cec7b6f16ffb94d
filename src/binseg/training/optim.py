"""Optimisers by name, schedules of the learning rate, and the moving average of the weights.

A schedule is a closed formula of the step count: a rate that follows from the step alone is right
after any resume, and warm-up goes with all of them. Only `plateau` has a memory: the validation
losses that it was told.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from binseg.config.recipe import OptimizerConfig, ScheduleConfig

AVERAGE_WARMUP = 10
"""After n steps the decay is at most (1 + n) / (AVERAGE_WARMUP + n): a young average forgets its
random start, where a fixed decay of 0.999 would carry it through the first thousand steps."""
WARMUP_START = 0.01
"""Warm-up rises from this share of the rate."""
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1 / 25e4
"""torch's OneCycleLR: first rate and last rate as shares of the peak."""
ONECYCLE_MOMENTUM = (0.85, 0.95)
"""torch's OneCycleLR: momentum (Adam: first beta) at the peak of the rate, and at both ends."""
PLATEAU_THRESHOLD = 1e-4
"""torch's ReduceLROnPlateau: what counts as better, relative to the best."""

Curve = Callable[[int], float]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, encoder: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe for all weights that learn, in torch's fused form.

    Weight decay falls on every parameter, norms and biases included, as in the source reports and
    as torch does by default; Adam's decay is the L2 kind that the reports used, AdamW's is
    decoupled.

    Args:
        model: what learns.
        config: name, rate and decay.
        encoder: the part of it whose rate is multiplied by `encoder_lr_factor`.
    """
    weights = [one for one in model.parameters() if one.requires_grad]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if encoder is not None and config.encoder_lr_factor != 1:
        own = {id(one) for one in encoder.parameters()}
        rate = config.lr * config.encoder_lr_factor
        # The others come first: the rate that is shown is theirs.
        groups = [
            {"params": [one for one in weights if id(one) not in own]},
            {"params": [one for one in weights if id(one) in own], "lr": rate},
        ]
    how: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    match config.name:
        case "adam":
            return torch.optim.Adam(groups, **how)
        case "adamw":
            return torch.optim.AdamW(groups, **how)
        case "sgd":
            return torch.optim.SGD(groups, momentum=config.momentum, **how)


class Schedule(LRScheduler):
    """Sets rate = base rate * curve(step) * drops, where drops come from `observe` (plateau)."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        curve: Curve,
        momentum: Curve | None = None,
        plateau: ScheduleConfig | None = None,
    ) -> None:
        self._curve = curve
        self._momentum = momentum
        self._plateau = plateau
        self._best = math.inf
        self._num_bad = 0
        self._drops = 1.0
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Give the rates of this step (torch calls it from `step`)."""
        if self._momentum is not None:
            self._set_momentum(self._momentum(self.last_epoch))
        factor = self._curve(self.last_epoch) * self._drops
        return [base * factor for base in self.base_lrs]

    def _set_momentum(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (value, *group["betas"][1:])
            else:
                group["momentum"] = value

    def observe(self, val_loss: float) -> None:
        """Hear an epoch's validation loss; `plateau` lowers the rate when it stops falling."""
        if self._plateau is None:
            return
        if val_loss < self._best * (1 - PLATEAU_THRESHOLD):
            self._best, self._num_bad = val_loss, 0
        else:
            self._num_bad += 1
        if self._num_bad > self._plateau.patience:
            self._drops *= self._plateau.factor
            self._num_bad = 0
            for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = lr
            self._last_lr = self.get_lr()

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume needs: plain numbers, no functions."""
        return {
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "best": self._best,
            "num_bad": self._num_bad,
            "drops": self._drops,
            "last_lr": [float(lr) for lr in self._last_lr],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` left off; the optimiser restores its own rates."""
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["step_count"]
        self._best = state_dict["best"]
        self._num_bad = state_dict["num_bad"]
        self._drops = state_dict["drops"]
        self._last_lr = list(state_dict["last_lr"])


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: ScheduleConfig,
    *,
    epochs: int,
    steps_per_epoch: int,
    share: Callable[[float], float] | None = None,
) -> Schedule:
    """Build the schedule of a recipe; `step()` is to be called after every optimiser step.

    Args:
        optimizer: its rate moves.
        config: how.
        epochs: of the run.
        steps_per_epoch: of the optimiser.
        share: says how much of the run is over after so many epochs, where that isn't their number
            but, say, the clock.
    """
    total = epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    shape = _shape(config, total=total, warmup=warmup, steps_per_epoch=steps_per_epoch)

    def place(step: int) -> float:
        return step if share is None else share(step / steps_per_epoch) * total

    def curve(taken: int) -> float:
        step = place(taken)
        if step < warmup:
            return WARMUP_START + (1 - WARMUP_START) * step / warmup
        return shape(step)

    momentum = None
    if config.name == "onecycle":
        low, high = ONECYCLE_MOMENTUM

        def momentum(taken: int) -> float:
            return _one_cycle(
                place(taken) - warmup, total - warmup, rise=config.rise, values=(high, low, high)
            )

    return Schedule(
        optimizer,
        curve=curve,
        momentum=momentum,
        plateau=config if config.name == "plateau" else None,
    )


def _shape(
    config: ScheduleConfig, *, total: int, warmup: int, steps_per_epoch: int
) -> Callable[[float], float]:
    """Give the factor of the rate at each step after warm-up."""

    def cosine(step: float) -> float:
        at = step if config.per_step else step // steps_per_epoch * steps_per_epoch
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, at - warmup) / (total - warmup))))

    def one_cycle(step: float) -> float:
        values = (ONECYCLE_START, 1.0, ONECYCLE_END)
        return _one_cycle(step - warmup, total - warmup, rise=config.rise, values=values)

    def steps(step: float) -> float:
        return float(config.factor ** (step // steps_per_epoch // config.step_epochs))

    def multistep(step: float) -> float:
        passed = sum(step // steps_per_epoch >= milestone for milestone in config.milestones)
        return float(config.factor**passed)

    def constant(step: float) -> float:
        del step
        return 1.0

    shapes: dict[str, Callable[[float], float]] = {
        "none": constant,
        "plateau": constant,
        "cosine": cosine,
        "onecycle": one_cycle,
        "step": steps,
        "multistep": multistep,
    }
    return shapes[config.name]


def _one_cycle(
    step: float, total: int, *, rise: float, values: tuple[float, float, float]
) -> float:
    """Go from the first value to the second and on to the third, in half cosines."""
    first, middle, third = values
    top = rise * total - 1
    if step <= top and top > 0:
        return _half_cosine(first, middle, max(0, step) / top)
    return _half_cosine(middle, third, min(1.0, (step - top) / max(total - 1 - top, 1e-9)))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


class MovingAverage:
    """Averages the weights after each optimiser step, and batch norm's statistics with them.

    torch's `AveragedModel` does the averaging; it has no warm-up of the decay.

    Args:
        model: the network that learns, on its device; the average starts as its copy.
        decay: share of the average that stays at each step.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._step = 0
        self._average = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The averaged network."""
        return self._average.module

    def _blend(self, averages: Any, values: Any, num_averaged: Any) -> None:
        """Move tensors of one type towards their values."""
        del num_averaged
        if averages[0].is_floating_point():
            decay = min(self._decay, (1 + self._step) / (AVERAGE_WARMUP + self._step))
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:  # batch norm's count of batches
            torch._foreach_copy_(averages, values)

    def update(self) -> None:
        """Follow a step of the optimiser."""
        self._average.update_parameters(self._model)
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume needs."""
        return {"step": self._step, "average": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._step = state["step"]
        self._average.load_state_dict(state["average"])
