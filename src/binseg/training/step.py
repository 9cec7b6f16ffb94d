"""One training step: augmented pixels in, gradients out, with the figures that a run shows."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from binseg.config.recipe import Recipe
from binseg.errors import UsageError
from binseg.inference.runtimes.torch import MIXED
from binseg.losses import BatchCounts, build_loss
from binseg.models.skeleton import EncoderDecoder
from binseg.progress import SILENT, Progress
from binseg.training.batches import Batch
from binseg.training.clock import Clock
from binseg.training.devices import compiled
from binseg.training.distributed import ALONE, ProcessGroup
from binseg.transforms.augmentation import build_augment, generator_for
from binseg.types import IGNORE

CUDA_LOOK = 20
"""On a GPU the loss is looked at every so many steps: each look waits for the GPU."""
FIRST_SCALE, CALM_STEPS = 2.0**14, 500
"""Factor of the loss in fp16, whose small gradients would be 0; steps after which it may grow."""


class Tensors(NamedTuple):
    """A batch as the network and the loss take it."""

    images_BCHW: torch.Tensor
    target_B1HW: torch.Tensor
    valid_B1HW: torch.Tensor


class TrainingStep:
    """The forward and backward pass of a network; `freeze` comes before each epoch's first step."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        device: torch.device,
        precision: Literal["bf16", "fp16", "fp32"],
        group: ProcessGroup = ALONE,
        clock: Clock | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.recipe, self.device, self.precision = recipe, device, precision
        self.group, self.progress = group, progress
        self.model = group.synchronised(model, device)
        self.model.to(device)
        self.loss = build_loss(recipe.loss.name, recipe.loss.options)
        self.encoder = encoder_of(self.model)
        self.augment = build_augment(recipe.augment)
        self.figures: dict[str, float] = {"loss": math.nan, "dice": math.nan, "lr": math.nan}
        """Values at the latest step that was looked at; the Dice is the epoch's so far."""
        self.phase: Callable[[str], AbstractContextManager[Any]] = nullcontext
        """Entered with the name of each part of a step; who measures puts a timer here."""
        self._fabric = group.fabric(device)
        self._clock = clock or Clock(recipe, seconds=None)
        self._sums = torch.zeros(3, device=device)
        """Loss, Dice and number of the epoch's images so far, of all ranks."""
        preprocessing = recipe.preprocessing()
        shape = (1, preprocessing.channels, 1, 1)
        self._mean = torch.tensor(preprocessing.mean, device=device).view(shape)
        self._std = torch.tensor(preprocessing.std, device=device).view(shape)
        # torch would take a compiled network for a second one with weights of its own.
        self._translated = compiled(
            self.model, asked=recipe.train.compile, device=device, progress=progress
        )
        self._is_frozen: bool | None = None
        self._scale, self._num_calm = (FIRST_SCALE if precision == "fp16" else 1.0), 0
        """Factor of the loss, and steps since it was last too large."""

    def freeze(self, *, epoch: int) -> None:
        """Let train what trains in this epoch, and keep still what doesn't."""
        config = self.recipe.train
        is_frozen = epoch < config.freeze_encoder_epochs
        self.model.train()
        if self.encoder is not None and (is_frozen or config.freeze_batch_norm):
            for module in self.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if is_frozen == self._is_frozen:
            return
        if self.encoder is not None and (is_frozen or self._is_frozen):
            self.encoder.requires_grad_(not is_frozen)
        self._is_frozen = is_frozen
        # Anew, since DDP asks for the gradients of all that learnt when it was wrapped.
        self.network = self._fabric.setup_module(self._translated)

    def prepare(self, batch: Batch, *, epoch: int) -> Tensors:
        """Augment and normalise a batch, on the device."""
        config = self.recipe.train
        inputs_BHWC, targets_BHW = self._fabric.to_device((batch.inputs_BHWC, batch.targets_BHW))
        # A view with the channels last in memory, which is how the network wants it.
        images_BCHW = inputs_BHWC.permute(0, 3, 1, 2)
        size = self._clock.training_size(epoch)
        if not self.recipe.draws_patches:  # which are cut at this size
            images_BCHW, targets_BHW = _shrink(images_BCHW, targets_BHW, size)
        place = {"seed": config.seed, "epoch": epoch, "step": batch.step}
        place |= {"size": size, "first": batch.first, "total": batch.total}
        images_BCHW, targets_BHW = self.augment(images_BCHW, targets_BHW, **place)
        images_BCHW = (images_BCHW - self._mean) / self._std
        target_B1HW = targets_BHW[:, None]
        return Tensors(
            images_BCHW.contiguous(memory_format=torch.channels_last),
            (target_B1HW == 1).float(),
            target_B1HW != IGNORE,
        )

    def learn(
        self,
        batch: Batch,
        *,
        epoch: int,
        lr: float = math.nan,
        weight: float = 1.0,
        starts: bool = True,
        syncs: bool = True,
    ) -> torch.Tensor:
        """Compute the gradients of this rank's share of a batch; give its loss, over all ranks.

        `lr` is to be shown, `weight` the batch's among those that make a step; unless it `starts`
        such a step its gradients are added, and the ranks' are averaged where it `syncs`.
        """
        with self.phase("augment"):
            tensors = self.prepare(batch, epoch=epoch)
        # The step alone decides the network's random numbers (dropout), as a resume needs; the
        # first number keeps them apart from the augmentation's, and the ranks from each other.
        seed = self.recipe.train.seed + 1 + self.group.rank
        generator = generator_for(seed=seed, epoch=epoch, step=batch.step)
        torch.manual_seed(generator.initial_seed())
        counts = BatchCounts.of(
            tensors.valid_B1HW, world_size=self.group.world_size, add=self.group.sum
        )
        with self._fabric.no_backward_sync(self.network, enabled=not syncs):
            kind, mixed = self.device.type, MIXED.get(self.precision)
            with torch.autocast(kind, mixed, enabled=mixed is not None, cache_enabled=False):
                with self.phase("forward"):
                    logits_B1HW = self.network(tensors.images_BCHW)
                with self.phase("loss"):
                    loss = self.loss(logits_B1HW, tensors.target_B1HW, tensors.valid_B1HW, counts)
            if starts:  # here, so that the new gradients take the memory of the old: 8 % faster
                self.model.zero_grad()
            with self.phase("backward"):
                self._fabric.backward(loss * (weight * self._scale))
        of_all = self._measure(loss.detach(), logits_B1HW.detach(), tensors, batch)
        self.figures["lr"] = lr
        if self.device.type == "cpu" or batch.step % CUDA_LOOK == 0:
            self.figures |= {"loss": of_all.item(), "dice": self.averages["dice"]}
        return of_all

    def clip(self) -> float:
        """Bound the gradient as the recipe says; give its norm before that, fp16's factor out."""
        learning = [one for one in self.model.parameters() if one.grad is not None]
        limit = self.recipe.train.gradient_clip or math.inf
        if self.precision != "fp16":
            return float(nn.utils.clip_grad_norm_(learning, limit))
        for one in learning:
            assert one.grad is not None
            one.grad /= self._scale
        norm = float(nn.utils.clip_grad_norm_(learning, limit))
        self._num_calm = self._num_calm + 1 if math.isfinite(norm) else 0
        if self._num_calm == 0:
            self._scale = max(1.0, self._scale / 2)
        elif self._num_calm % CALM_STEPS == 0:
            self._scale = min(FIRST_SCALE, 2 * self._scale)
        return norm

    def _measure(
        self, loss: torch.Tensor, logits_B1HW: torch.Tensor, tensors: Tensors, batch: Batch
    ) -> torch.Tensor:
        """Add a batch to the epoch's averages, without waiting for the device; give its loss."""
        found = (logits_B1HW > 0) & tensors.valid_B1HW
        truth = (tensors.target_B1HW > 0.5) & tensors.valid_B1HW
        both = (found & truth).sum(dim=(1, 2, 3))
        total = found.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
        dice = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
        num = 0 if batch.is_empty else len(dice)
        share = batch.total / self.group.world_size
        sums = torch.stack([loss.float() * share, dice[:num].sum(), dice.new_tensor(num)])
        sums = self.group.sum(sums)
        # A step that is left out tells nothing of the epoch.
        self._sums += torch.where(sums[0].isfinite(), sums, 0.0)
        return sums[0] / batch.total

    @property
    def averages(self) -> dict[str, float]:
        """Loss and hard Dice per image, averaged over the images of the epoch so far."""
        loss, dice, num = self._sums.tolist()
        return {"loss": loss / num, "dice": dice / num} if num else dict(self.figures)

    def reset_averages(self) -> None:
        """Start an epoch's averages."""
        self._sums = torch.zeros_like(self._sums)

    def state_dict(self) -> dict[str, Any]:
        """Give the figures that a resume within an epoch needs."""
        scale = (self._scale, self._num_calm)
        return {"sums": self._sums.cpu(), "figures": dict(self.figures), "scale": scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._sums = state["sums"].to(self._sums.device)
        self.figures = dict(state["figures"])
        self._scale, self._num_calm = state["scale"]


def _shrink(
    images_BCHW: torch.Tensor, targets_BHW: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring a batch to a smaller square size, as floats; an equal size stays as it is."""
    if images_BCHW.shape[-2:] == (size, size):
        return images_BCHW, targets_BHW
    top = 255.0 if images_BCHW.dtype == torch.uint8 else 1.0
    images = functional.interpolate(
        images_BCHW.float() / top, size=(size, size), mode="bilinear", antialias=True
    )
    targets = functional.interpolate(targets_BHW[:, None], size=(size, size), mode="nearest-exact")
    return images, targets[:, 0]


def encoder_of(model: nn.Module) -> nn.Module | None:
    """Give the part of a network that may bring weights of its own, where there is one."""
    return model.encoder if isinstance(model, EncoderDecoder) else None


def check_model(build: Callable[[], nn.Module], recipe: Recipe) -> None:
    """Refuse settings that a network, built only where one is used, can't follow: UsageError."""
    asked = {
        "optimizer.encoder_lr_factor": recipe.optimizer.encoder_lr_factor != 1,
        "train.freeze_encoder_epochs": recipe.train.freeze_encoder_epochs > 0,
        "train.freeze_batch_norm": recipe.train.freeze_batch_norm,
    }
    used = [name for name, is_used in asked.items() if is_used]
    if not used:
        return
    with torch.device("meta"):
        model = build()
    if encoder_of(model) is None:
        raise UsageError(f"{used[0]}: {recipe.model.name} has no encoder of its own; leave it out")
