"""A moving average of the weights, which is what is validated and shipped when it is on."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["MovingAverage"]

WARMUP = 10
"""After n steps the decay is at most (1 + n) / (WARMUP + n): a young average forgets its random
start, where a fixed decay of 0.999 would carry it through the first thousand steps."""


class MovingAverage(Callback):
    """Averages the weights after each optimiser step, and batch norm's statistics with them.

    torch's `AveragedModel` does the averaging. Lightning's own callback around it isn't used: it
    has no warm-up of the decay, and exchanges weights at Lightning's validation hooks, while our
    validation is the predictor's.

    Args:
        model: the network that learns; the average starts as its copy.
        decay: share of the average that stays at each step.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._step = 0
        self._average = AveragedModel(
            model,
            multi_avg_fn=self._blend,
            use_buffers=True,
        )

    @property
    def model(self) -> nn.Module:
        """The averaged network."""
        return self._average.module

    def _blend(self, averages: Any, values: Any, num_averaged: Any) -> None:
        """Move tensors of one type towards their values."""
        del num_averaged
        if averages[0].is_floating_point():
            decay = min(self._decay, (1 + self._step) / (WARMUP + self._step))
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:  # batch norm's count of batches
            torch._foreach_copy_(averages, values)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Move to the device that trains."""
        del trainer, stage
        self._average.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average once for each step of the optimiser, not for each accumulated batch."""
        del pl_module, outputs, batch, batch_idx
        if trainer.global_step > self._step:
            self._average.update_parameters(self._model)
            self._step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """Give what a resume needs."""
        return {"step": self._step, "average": self._average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._step = state_dict["step"]
        self._average.load_state_dict(state_dict["average"])
