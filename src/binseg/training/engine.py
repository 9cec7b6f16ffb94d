"""Lightning's Trainer as we use it: its loop, devices and precision, and nothing that it says."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from binseg.config.recipe import Recipe
from binseg.training.checkpoints import WholeFiles
from binseg.training.team import ALONE, Team

__all__ = ["build_trainer", "quiet"]

THIRD_PARTY_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Lightning advises more loader processes; a batch here is one indexing of an array.
    (".*does not have many workers", UserWarning),
    # A recipe's number of loader processes may exceed a small machine's cores; the run is the same.
    ("This DataLoader will create", UserWarning),
    # Lightning 2.6 uses a name that torch 2.13 is about to retire.
    (".*treespec, LeafSpec", FutureWarning),
    # Python 3.12 warns of any fork beside threads; loader processes only index arrays.
    (".*use of fork\\(\\) may lead to deadlocks", DeprecationWarning),
    # Our sampler starts at the step that the checkpoint names.
    (".*your dataloader is not resumable", UserWarning),
    # The leader's callbacks have their state in a checkpoint; the other processes have none.
    (".*Be aware that when using `ckpt_path`", UserWarning),
    # A 1x1 convolution's weights lie alike in memory, channels last or not; torch can't tell.
    (".*Grad strides do not match bucket view strides", UserWarning),
)


class _TeamStrategy(DDPStrategy):
    """DDP in which the leader alone saves, whenever it likes."""

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the others, but not around a checkpoint, which is the leader's own affair."""
        if args[:1] != ("Trainer.save_checkpoint",):
            super().barrier(*args, **kwargs)


def build_trainer(
    recipe: Recipe,
    *,
    device: torch.device,
    precision: str,
    callbacks: list[Callback],
    loggers: list[Logger],
    max_epochs: int,
    team: Team = ALONE,
) -> Trainer:
    """Build the Trainer of one process.

    Args:
        recipe: how many batches make a step.
        device: of this process.
        precision: bf16 or fp32.
        callbacks: all that happens around the steps.
        loggers: what hears of the figures.
        max_epochs: -1 where the pace ends the run.
        team: the processes that share each batch.
    """
    # Alone, whatever a batch script of SLURM's sets: Lightning would look for the others.
    together: dict[str, Any] = {"devices": 1, "plugins": [WholeFiles(), LightningEnvironment()]}
    if team.num > 1:
        together = {
            "devices": team.place.local_num,
            "num_nodes": team.num // team.place.local_num,
            "strategy": _TeamStrategy(cluster_environment=team.environment()),
            # torch has it for GPUs alone; elsewhere each process normalises by its own share.
            "sync_batchnorm": device.type == "cuda",
            "plugins": [WholeFiles()],
        }
    trainer = Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_epochs=max_epochs,
        accumulate_grad_batches=recipe.train.accumulate,
        callbacks=callbacks,
        logger=loggers or False,
        log_every_n_steps=1,  # else Lightning warns of short epochs; nothing is logged by step
        # All images have one size, so that cuDNN's search for the fastest kernels pays.
        benchmark=device.type == "cuda",
        # What follows is done by our own callbacks, through the predictor and `storage`.
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **together,
    )
    if team.num > 1:
        _let_team_decide(trainer)
    return trainer


def _let_team_decide(trainer: Trainer) -> None:
    """Keep Lightning from telling the processes of a SIGTERM by messages of its own.

    They would wait for an answer while the leader validates, or has stopped for another reason; our
    leader hears the signal and gives its word before the next step.
    """
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = lambda: None
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    epoch_loop._broadcast_sigterm_tensor = lambda: None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's chatter: it speaks to people who write training loops."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message, category in THIRD_PARTY_WARNINGS:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        logger.setLevel(level)
