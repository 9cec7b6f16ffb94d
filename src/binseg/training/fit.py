"""The one function that trains a network, on Lightning's Trainer."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import nn

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.data.whole_images import ImageCache
from binseg.errors import TrainingError
from binseg.losses import build_loss
from binseg.progress import SILENT, Progress
from binseg.training.averaging import MovingAverage
from binseg.training.batches import Shares, build_batches
from binseg.training.callbacks import BAR_UNITS, Books, Watch
from binseg.training.checkpoints import newest_whole
from binseg.training.companions import Lead, LeadClock, leading
from binseg.training.compiling import COMPILE_ADVICE, compiled, is_of_compiler
from binseg.training.engine import build_trainer, quiet
from binseg.training.interrupts import hearing_interrupts
from binseg.training.keeping import Keeper, read_best, resume_command
from binseg.training.loggers import running_loggers
from binseg.training.memory import NO_MEMORY, check_memory, lacking_memory
from binseg.training.module import SegmentationModule
from binseg.training.pace import Pace
from binseg.training.precision import resolve_device, resolve_precision
from binseg.training.supervision import supervised
from binseg.training.team import ALONE, Team
from binseg.training.validation import validate
from binseg.transforms.augmentation import build_augment

__all__ = ["FitResult", "fit"]

LEAST_TILES = 128
"""Validation tiles that are scored after an epoch of patches, however short it is."""

LEAST_TIMED = 48
"""Validation inputs after an epoch of a run with a budget: else a quarter of the epoch's inputs,
which takes a twelfth of its time or so."""

ADVICE = {
    "DataLoader timed out": "the loader processes gave nothing for a long time (a hanging file "
    "system, or a deadlock); set train.workers to 0, which gives the same run",
    "DataLoader worker": "a loader process died, most likely for lack of memory; set train.workers "
    "to 0, which gives the same run",
    "shared memory": "there is no shared memory left for the loader processes; set train.workers "
    "to 0, which gives the same run",
    "Connection closed by peer": "another process of this run has died; what it said is above",
    "Connection reset by peer": "another process of this run has died; what it said is above",
    "more than 1 value per channel": "batch norm can't learn from batches of one image that the "
    "network shrinks to one pixel; raise train.batch_size or input.size",
}
"""What torch says, and what a user can do about it."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run has learnt."""

    best_state: dict[str, np.ndarray]
    """The weights of the best epoch, by the model's own names."""
    best_epoch: int
    """From 1."""
    history: list[dict[str, float]]
    """One row an epoch, as in metrics.csv."""
    precision: str
    seconds: float
    """Of all epochs, those before a resume included."""


def fit(
    model: nn.Module,
    *,
    recipe: Recipe,
    train: PixelCache | ImageCache,
    val: PixelCache,
    folder: Path,
    progress: Progress = SILENT,
    resume: bool = False,
    seconds: float | None = None,
    command: str | None = None,
    team: Team = ALONE,
) -> FitResult:
    """Train a network as the recipe says; its weights change in place.

    Args:
        model: with its first weights; the caller seeds those.
        recipe: everything else that decides the result.
        train: what it learns from; whole images where the recipe draws patches.
        val: what chooses the best epoch; of many tiles, about as many as an epoch has patches,
            and with a budget of time a quarter as many inputs as an epoch.
        folder: gets metrics.csv, best.safetensors, last.ckpt and previous.ckpt.
        progress: hears of steps and epochs.
        resume: go on from the folder's newest checkpoint that is whole.
        seconds: for all epochs, those before a resume included; the recipe's epochs decide where
            it is left out.
        command: goes on with the run, if it isn't plain `binseg train --out FOLDER --resume`.
        team: the processes that share each batch, of which this one leads.

    Raises:
        TrainingError: nothing to learn, the numbers went bad, or the run can't be resumed.
        StoppedError: it was asked to stop, and says how to go on.
        OutputError: the folder can't be written.
    """
    checkpoint = newest_whole(folder, progress) if resume else None
    _check_learnable(train, val, progress)
    config = recipe.train
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device, progress)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    memory = check_memory(
        model, recipe, bf16=precision == "bf16", place=team.place, progress=progress
    )
    loss = build_loss(recipe.loss.name, recipe.loss.options)
    learner, training_loss = supervised(model, loss, recipe)
    augment = build_augment(recipe.augment)
    clock = LeadClock()
    pace = Pace(recipe, seconds=seconds, clock=clock)
    batches = build_batches(
        train,
        recipe,
        device=device,
        context=augment.context,
        size_of=pace.training_size,
        shares=Shares(team.rank, team.num),
        reserve=memory.total,
    )
    if pace.is_timed:
        val = val.thinned(max(LEAST_TIMED, len(batches) * config.batch_size // 4))
    elif recipe.draws_patches:  # whose number, not that of the images, is an epoch's cost
        val = val.thinned(max(LEAST_TILES, len(batches) * config.batch_size))
    module = SegmentationModule(
        learner,
        recipe=recipe,
        loss=training_loss,
        augment=augment,
        batches=batches,
        progress=progress,
        pace=pace,
        team=team,
        forward=compiled(learner, asked=config.compile, device=device, progress=progress),
    )
    average = MovingAverage(model, decay=config.ema_decay) if config.ema_decay else None
    score = partial(
        validate,
        cache=val,
        loss=loss,
        preprocessing=recipe.input.preprocessing(),
        device=device,
        precision=precision,
        batch_size=config.batch_size,
    )
    with (
        quiet(),
        leading(team),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        hearing_interrupts() as stop,
        running_loggers(config.loggers, folder, progress) as loggers,
        progress.task("training", total=_length(pace, config.epochs * len(batches))) as task,
    ):
        watch = Watch(task, steps_per_epoch=len(batches), pace=pace)
        module.batch_arrived = watch.batch_arrived
        keeper = Keeper(
            folder,
            minutes=config.checkpoint_minutes,
            num_steps=len(batches),
            accumulate=config.accumulate,
            progress=progress,
            stop=stop,
            command=command or resume_command(folder),
        )
        books = Books(
            folder=folder,
            recipe=recipe,
            progress=progress,
            watch=watch,
            pace=pace,
            keeper=keeper,
            shipped=average.model if average else model,
            score=partial(score, between=stop.check),
        )
        lead = [Lead(team, pace, clock)] if team.num > 1 else []
        trainer = build_trainer(
            recipe,
            device=device,
            precision=precision,
            callbacks=[*lead, watch, *([average] if average else []), books, keeper],
            loggers=loggers,
            max_epochs=-1 if pace.is_timed else config.epochs,
            team=team,
        )
        _run(trainer, module, keeper, checkpoint=checkpoint)
        # Where nothing but the last validation was left; Lightning's end has moved all off the GPU.
        module.to(device)
        books.catch_up(trainer, module)
        books.finish()
    return FitResult(
        best_state=read_best(folder),
        best_epoch=books.best_epoch,
        history=books.history,
        precision=precision,
        seconds=sum(row["seconds"] for row in books.history),
    )


def _check_learnable(train: PixelCache | ImageCache, val: PixelCache, progress: Progress) -> None:
    """Refuse masks that are all alike, which no loss can tell from success."""
    for value, name in ((1, "foreground"), (0, "background")):
        if not train.holds(value):
            raise TrainingError(
                f"nothing to learn: no training mask has a {name} pixel; check data.foreground, "
                "data.threshold and data.border, and look at the masks with binseg check"
            )
    if not val.holds(1):
        progress.say(
            "no validation mask has a foreground pixel: the validation Dice only tells how clean "
            "the background stays; check the split"
        )


def _length(pace: Pace, num_steps: int) -> int:
    """Units of the progress bar: steps, or thousandths of the time."""
    return BAR_UNITS if pace.is_timed else num_steps


def _run(
    trainer: Trainer, module: SegmentationModule, keeper: Keeper, *, checkpoint: Path | None
) -> None:
    """Let Lightning train, and turn what stops it into one line."""
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except (KeyboardInterrupt, SystemExit):
        # Asked a second time; Lightning turns that into SystemExit after its own post-processing.
        raise keeper.stopped() from None
    except (torch.OutOfMemoryError, MemoryError):
        raise TrainingError(lacking_memory(module.recipe, module.device)) from None
    except (ConnectionError, EOFError):
        # A loader process that dies while it hands a batch over, or before its files are fetched.
        raise TrainingError(f"{ADVICE['DataLoader worker']}; {keeper.way_on}") from None
    except (RuntimeError, ValueError, OSError) as problem:
        if any(part in str(problem) for part in NO_MEMORY):
            raise TrainingError(lacking_memory(module.recipe, module.device)) from None
        advice = [text for part, text in ADVICE.items() if part in str(problem)]
        if module.recipe.train.compile and is_of_compiler(problem):
            advice = [COMPILE_ADVICE]
        if not advice:
            raise
        raise TrainingError(f"{advice[0]}; {keeper.way_on}") from None
