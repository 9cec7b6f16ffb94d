"""One training step: augmented pixels in, loss out, with the figures that a run shows."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from binseg.config.recipe import Recipe
from binseg.losses import Loss, batch_shared_by
from binseg.progress import Progress
from binseg.training.batches import Batch, Batches
from binseg.training.checkpoints import check_same_recipe
from binseg.training.guard import StepGuard
from binseg.training.optimizers import build_optimizer
from binseg.training.pace import Pace
from binseg.training.position import Position, loader_from, set_counters
from binseg.training.schedules import Schedule, build_schedule
from binseg.training.team import ALONE, Team
from binseg.transforms.augmentation import Augment, generator_for
from binseg.types import IGNORE

__all__ = ["SegmentationModule"]


CUDA_LOOK = 20
"""On a GPU the loss is looked at every so many steps: each look waits for the GPU."""


class BatchFacts(NamedTuple):
    """What the latest batch was."""

    step: int
    num: int
    """Inputs that count here."""
    total: int
    """Inputs in all processes."""


class Tensors(NamedTuple):
    """A batch as the model and the loss take it."""

    images_BCHW: torch.Tensor
    target_B1HW: torch.Tensor
    valid_B1HW: torch.Tensor


class SegmentationModule(LightningModule):
    """A network with its loss, augmentation, optimiser and schedule."""

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: Recipe,
        loss: Loss,
        augment: Augment,
        batches: Batches,
        progress: Progress,
        pace: Pace | None = None,
        team: Team = ALONE,
        forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        # In a tuple, since torch would take a compiled network for a second one to train.
        self._forward = (forward or model,)
        self._team = team
        self.recipe = recipe
        self.schedule: Schedule | None = None
        self.batch_arrived: Callable[[], None] = lambda: None
        """Called when the loader has given a batch, before anything is done with it."""
        self.figures: dict[str, float] = {"loss": math.nan, "dice": math.nan, "lr": math.nan}
        """Of the latest step that was looked at; the Dice is the epoch's so far."""
        self.mean: torch.Tensor
        self.std: torch.Tensor
        preprocessing = recipe.input.preprocessing()
        shape = (1, preprocessing.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(shape), persistent=False)
        self._loss = loss
        self._augment = augment
        self._batches = batches
        self._progress = progress
        self._pace = pace or Pace(recipe, seconds=None)
        self.guard = StepGuard(model, recipe=recipe, progress=progress)
        self.start = Position(epoch=0, step=0)
        """Where this process takes up the run."""
        self.position = self.start
        """Where the run is when it is saved; whoever saves says so."""
        self._batch = BatchFacts(step=0, num=0, total=0)
        self._sums = torch.zeros(3)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Give the logits of normalised images."""
        logits: torch.Tensor = self._forward[0](images_BCHW)
        return logits

    def train_dataloader(self) -> DataLoader[Batch]:
        """Give Lightning the batches; validation goes through the predictor instead."""
        start = self.start
        if start.step == len(self._batches):
            start = Position(epoch=start.epoch + 1, step=0)
        loader = self._batches.loader(epoch=start.epoch)
        return loader_from(loader, start, progress=self._progress)

    @property
    def num_steps(self) -> int:
        """Batches in an epoch."""
        return len(self._batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resume must agree with, and what Lightning doesn't know."""
        checkpoint["binseg"] = {
            "recipe": self.recipe.model_dump_json(),
            "epoch": self.position.epoch,
            "step": self.position.step,
            "sums": self._sums.cpu(),
            "figures": dict(self.figures),
            "guard": self.guard.state_dict(),
            "pace": self._pace.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the recipe, and take up the run at its step."""
        ours = checkpoint["binseg"]
        check_same_recipe(ours["recipe"], self.recipe, self._progress)
        self.start = Position(epoch=ours["epoch"], step=ours["step"])
        self._sums, self.figures = ours["sums"], dict(ours["figures"])
        self.guard.load_state_dict(ours["guard"])
        # Here and not in a callback: every process must know the size before its first batch.
        self._pace.load_state_dict(ours.get("pace", {}))
        set_counters(checkpoint["loops"]["fit_loop"], self.start, num_steps=len(self._batches))

    def on_train_start(self) -> None:
        """Bring what was loaded to the device that trains."""
        self._sums = self._sums.to(self.device)
        self.guard.start()

    def on_train_epoch_start(self) -> None:
        """Start the epoch's averages."""
        self._sums = torch.zeros(3, device=self.device)

    @property
    def averages(self) -> dict[str, float]:
        """Loss and hard Dice per image, averaged over the images of the epoch so far."""
        loss, dice, num = self._sums.tolist()
        return {"loss": loss / num, "dice": dice / num} if num else dict(self.figures)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Tell the watch that the loader has done its part."""
        del dataloader_idx
        self.batch_arrived()
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Tensors:
        """Augment and normalise the batch, on the device where it now is."""
        del dataloader_idx
        num = 0 if batch.is_empty else len(batch.inputs_BHWC)
        self._batch = BatchFacts(step=batch.step, num=num, total=batch.total or num)
        with torch.no_grad():
            # A view with the channels last in memory, which is how the network wants it.
            images, targets = batch.inputs_BHWC.permute(0, 3, 1, 2), batch.targets_BHW
            size = self._pace.training_size(self.current_epoch)
            if not self.recipe.draws_patches:  # whose places are drawn at this size
                images, targets = _shrink(images, targets, size)
            images, targets = self._augment(
                images,
                targets,
                seed=self.recipe.train.seed,
                epoch=self.current_epoch,
                step=batch.step,
                size=size,
                first=batch.first,
                total=batch.total,
            )
            images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            targets = targets[:, None]
            return Tensors(images, (targets == 1).float(), targets != IGNORE)

    def training_step(self, batch: Tensors, batch_idx: int) -> torch.Tensor:
        """Give the loss of a batch."""
        del batch_idx  # as the batch's own
        self._seed_dropout()
        logits_BLHW = self(batch.images_BCHW)  # one level, the answer, unless others learn too
        with self._team_shares_batch():
            loss = self._loss(logits_BLHW, batch.target_B1HW, batch.valid_B1HW)
        of_all = self._measure(loss.detach(), logits_BLHW[:, :1].detach(), batch)
        self.figures["lr"] = self._lr()
        if self.device.type == "cpu" or self._batch.step % CUDA_LOOK == 0:
            self.figures |= {"loss": of_all.item(), "dice": self.averages["dice"]}
        return loss * self._share_of_step()

    def _share_of_step(self) -> float:
        """Make up for Lightning, which divides by `accumulate` where the last group is shorter."""
        accumulate = self.recipe.train.accumulate
        first = self._batch.step // accumulate * accumulate
        return accumulate / min(accumulate, len(self._batches) - first)

    def _team_shares_batch(self) -> contextlib.AbstractContextManager[None]:
        if self._team.num == 1:
            return contextlib.nullcontext()
        return batch_shared_by(self._team.num, add=self._team.add)

    def _lr(self) -> float:
        """The rate that the coming step of the optimiser uses."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return float(optimizer.param_groups[0]["lr"])

    def _seed_dropout(self) -> None:
        """Let the step alone decide what the network draws (dropout), as a resume needs."""
        train = self.recipe.train
        # The augmentation's own stream is (seed, epoch, step); the first number keeps them apart,
        # and the processes that share a batch.
        seed = train.seed + 1 + self._team.rank
        generator = generator_for(seed=seed, epoch=self.current_epoch, step=self._batch.step)
        torch.manual_seed(generator.initial_seed())

    def _measure(self, loss: torch.Tensor, logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
        """Add the batch to the epoch's averages, without waiting for the device; give its loss."""
        answer = (logits > 0) & batch.valid_B1HW
        truth = (batch.target_B1HW > 0.5) & batch.valid_B1HW
        both = (answer & truth).sum(dim=(1, 2, 3))
        total = answer.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
        dice = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
        num, num_all = self._batch.num, self._batch.total
        # The mean of the processes' losses is that of the batch; an empty share's Dice is nobody's.
        sums = torch.stack(
            [loss.float() * (num_all / self._team.num), dice[:num].sum(), dice.new_tensor(num)]
        )
        sums = self._team.add(sums)
        # A step that is left out tells nothing of the epoch.
        self._sums += torch.where(sums[0].isfinite(), sums, 0.0)
        return sums[0] / num_all

    def configure_optimizers(self) -> Any:
        """Give Lightning the optimiser, and the schedule that moves after each of its steps."""
        optimizer = build_optimizer(self.model, self.recipe.optimizer)
        self.schedule = build_schedule(
            optimizer,
            self.recipe.schedule,
            epochs=self.recipe.train.epochs,
            share=self._pace.share if self._pace.is_timed else None,
            steps_per_epoch=-(-len(self._batches) // self.recipe.train.accumulate),
        )
        return [optimizer], [{"scheduler": self.schedule, "interval": "step"}]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm, and leave out the step where that is no number.

        Lightning's own clipping refuses fused optimisers, for the sake of fp16's gradient scaling,
        which bf16 doesn't have.
        """
        del gradient_clip_val, gradient_clip_algorithm
        limit = self.recipe.train.gradient_clip
        if limit > 0:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        else:
            grads = [x.grad for x in self.model.parameters() if x.grad is not None]
            norm = nn.utils.get_total_norm(grads)
        self.guard.judge(float(norm), optimizer, epoch=self.current_epoch)


def _shrink(
    images_BCHW: torch.Tensor, targets_BHW: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring a batch of bytes to a smaller square size, as floats; an equal size stays as it is."""
    if images_BCHW.shape[-2:] == (size, size):
        return images_BCHW, targets_BHW
    images = functional.interpolate(
        images_BCHW.float().div_(255.0),
        size=(size, size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    targets = functional.interpolate(targets_BHW[:, None], size=(size, size), mode="nearest-exact")
    return images, targets[:, 0]
