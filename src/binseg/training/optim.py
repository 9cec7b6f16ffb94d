"""Optimisers by name, schedules of the learning rate, and the moving average of the weights.

A rate that follows from the step alone is right after any resume; only `plateau` has a memory.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from binseg.config.recipe import OptimizerConfig, ScheduleConfig
from binseg.training.checkpoint import Stateful

AVERAGE_WARMUP = 10
"""After n steps the decay is at most (1 + n) / (AVERAGE_WARMUP + n): a young average forgets its
random start, where a fixed decay of 0.999 would carry it through the first thousand steps."""
WARMUP_START = 0.01  # warm-up rises from this share of the rate
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1 / 25e4
"""torch's OneCycleLR: first rate and last rate as shares of the peak."""
ONECYCLE_MOMENTUM = (0.85, 0.95)
"""torch's OneCycleLR: momentum (Adam: first beta) at the peak of the rate, and at both ends."""
PLATEAU_THRESHOLD = 1e-4  # torch's ReduceLROnPlateau: what counts as better, relative to the best


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, encoder: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe for all weights that learn; `encoder` has its own rate."""
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


class Schedule(Stateful):
    """Sets rate = base rate * curve(steps taken) * drops; `observe` makes the drops of `plateau`.

    `step` is to be called after every step of the optimiser; `share` says how much of the run is
    over after so many epochs, where a clock decides, which none of torch's schedulers follows.
    """

    kept = ("_step", "_best", "_num_bad", "_drops")  # the optimiser keeps its own rates

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: ScheduleConfig,
        *,
        epochs: int,
        steps_per_epoch: int,
        share: Callable[[float], float] | None = None,
    ) -> None:
        self._optimizer, self._config, self._share = optimizer, config, share
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._epoch_steps, self._total = steps_per_epoch, epochs * steps_per_epoch
        self._warmup = min(round(config.warmup_epochs * steps_per_epoch), self._total - 1)
        self._step = self._num_bad = 0
        self._best, self._drops = math.inf, 1.0
        self._set_rates()

    def step(self) -> None:
        """Move on to the next step's rate."""
        self._step += 1
        self._set_rates()

    def _set_rates(self) -> None:
        share, per_epoch = self._share, self._epoch_steps
        place = self._step if share is None else share(self._step / per_epoch) * self._total
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * (self._factor(place) * self._drops)
            if self._config.name == "onecycle":
                low, high = ONECYCLE_MOMENTUM
                momentum = self._one_cycle(place, high, low, high)
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum

    def _factor(self, step: float) -> float:
        """Give the factor of the rate at a step, drops of `plateau` left out."""
        config, epoch = self._config, step // self._epoch_steps
        if step < self._warmup:
            return WARMUP_START + (1 - WARMUP_START) * step / self._warmup
        match config.name:
            case "cosine":
                at = step if config.per_step else epoch * self._epoch_steps
                share = max(0, at - self._warmup) / (self._total - self._warmup)
                return _half_cosine(1.0, 0.0, share)
            case "onecycle":
                return self._one_cycle(step, ONECYCLE_START, 1.0, ONECYCLE_END)
            case "step":
                return float(config.factor ** (epoch // config.step_epochs))
            case "multistep":
                return float(config.factor ** sum(epoch >= one for one in config.milestones))
            case _:
                return 1.0

    def _one_cycle(self, step: float, first: float, middle: float, last: float) -> float:
        """Go from the first value to the second and on to the third, in half cosines."""
        step, total = step - self._warmup, self._total - self._warmup
        top = self._config.rise * total - 1
        if step <= top and top > 0:
            return _half_cosine(first, middle, max(0, step) / top)
        return _half_cosine(middle, last, (step - top) / max(total - 1 - top, 1e-9))

    def observe(self, val_loss: float) -> None:
        """Hear an epoch's validation loss; `plateau` lowers the rate when it stops falling."""
        if self._config.name != "plateau":
            return
        if val_loss < self._best * (1 - PLATEAU_THRESHOLD):
            self._best, self._num_bad = val_loss, 0
        else:
            self._num_bad += 1
        if self._num_bad > self._config.patience:
            self._drops, self._num_bad = self._drops * self._config.factor, 0
            self._set_rates()


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class MovingAverage:
    """Averages the weights, and batch norm's statistics, after each step of the optimiser."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._model, self._decay = model, decay
        self._step = 0
        self._average = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The averaged network."""
        return self._average.module

    def _blend(self, averages: Any, values: Any, num_averaged: Any) -> None:
        """Move tensors of one type towards their values."""
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
