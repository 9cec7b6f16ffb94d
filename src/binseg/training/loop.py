"""The training loop: every rank runs it on its share of each batch, rank 0 writes.

`_Run.train` is the run, `_Run.train_epoch` its steps, and `_Run.close_epoch` what follows them. The
order there matters to a run that is killed: the best weights are on disk before the checkpoint that
counts them as such, and an epoch that is run again after a resume gives the same ones. A run that
is stopped while it validates goes on with that validation.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.data.patches import ImageCache
from binseg.errors import BinsegError, StoppedError, TrainingError
from binseg.progress import SILENT, Progress, Task
from binseg.training.batches import Shares, build_batches
from binseg.training.checkpoint import (
    Checkpointer,
    Position,
    read_best,
    resume_command,
    shared_state,
)
from binseg.training.clock import (
    BAR_UNITS,
    Clock,
    StopAskedError,
    StopRequest,
    Timer,
    hearing_interrupts,
)
from binseg.training.devices import check_memory, resolve_precision
from binseg.training.diagnostics import (
    StepGuard,
    advice_on,
    check_learnable,
    diverged,
    is_finite,
)
from binseg.training.distributed import ALONE, ProcessGroup, quiet, rank_device
from binseg.training.loggers import COLUMNS, EpochLog, Logger, running_loggers
from binseg.training.optim import MovingAverage, build_optimizer, build_schedule
from binseg.training.step import TrainingStep
from binseg.training.validation import ValidationScores, thinned, validate


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The outcome of a training run."""

    best_state: dict[str, np.ndarray]
    """The weights of the best epoch, by the model's own names; on rank 0 alone."""
    best_epoch: int
    """From 1."""
    history: list[dict[str, float]]
    """One row an epoch, as in metrics.csv."""
    precision: str
    seconds: float
    """Duration of all epochs, those before a resume included."""


def fit(
    model: nn.Module,
    *,
    recipe: Recipe,
    train: PixelCache | ImageCache,
    val: PixelCache | None,
    folder: Path,
    progress: Progress = SILENT,
    resume: bool = False,
    seconds: float | None = None,
    command: str | None = None,
    group: ProcessGroup = ALONE,
) -> FitResult:
    """Train a network as the recipe says, on every rank alike; its weights change in place.

    Args:
        model: with its first weights; the caller seeds those.
        recipe: everything else that decides the result.
        train: what it learns from; whole images where the recipe trains on random patches.
        val: what chooses the best epoch, on rank 0; of many tiles, about as many as an epoch has
            patches, and with a budget of time a quarter as many inputs as an epoch.
        folder: gets metrics.csv, best.safetensors, last.ckpt and previous.ckpt, from rank 0.
        progress: hears of steps and epochs.
        resume: go on from the folder's newest checkpoint that is whole.
        seconds: for all epochs, those before a resume included; the recipe's epochs decide where
            it is left out.
        command: goes on with the run, if it isn't plain `binseg train --out FOLDER --resume`.
        group: the ranks that share each batch.

    Raises:
        TrainingError: nothing to learn, the numbers went bad, or the run can't be resumed.
        StoppedError: it was asked to stop, and says how to go on.
        OutputError: the folder can't be written.
    """
    state = shared_state(folder, recipe, group, progress) if resume else None
    check_learnable(train, val, progress)
    device = rank_device(recipe.train.device, group.ranks)
    with (
        quiet(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        hearing_interrupts() as stop,
        running_loggers(
            recipe.train.loggers if group.is_first else [], folder, progress
        ) as loggers,
    ):
        run = _Run(
            model,
            recipe=recipe,
            train=train,
            val=val,
            folder=folder,
            progress=progress,
            seconds=seconds,
            command=command or resume_command(folder),
            group=group,
            device=device,
            stop=stop,
            loggers=loggers,
        )
        if state is not None:
            run.load_state_dict(state)
        with progress.task("training", total=run.length) as task, _explained(run):
            run.train(task)
    return FitResult(
        best_state=read_best(folder) if group.is_first else {},
        best_epoch=run.epochs.best_epoch,
        history=run.epochs.history,
        precision=run.precision,
        seconds=sum(row["seconds"] for row in run.epochs.history),
    )


class _Run:
    """One rank's part of a run; `resize` says what the arguments are."""

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: Recipe,
        train: PixelCache | ImageCache,
        val: PixelCache | None,
        folder: Path,
        progress: Progress,
        seconds: float | None,
        command: str,
        group: ProcessGroup,
        device: torch.device,
        stop: StopRequest,
        loggers: Sequence[Logger],
    ) -> None:
        config, ranks = recipe.train, group.ranks
        self.recipe, self.group, self.device = recipe, group, device
        self.precision = resolve_precision(config.precision, device, progress)
        self._progress, self._stop = progress, stop
        self._signal = 0
        """Number of the signal to stop that all ranks have agreed on; 0 where there is none."""
        self._position = Position(epoch=0, step=0)
        self._whole: Position | None = None
        """Position of the run; None in the middle of a step."""
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        memory = check_memory(
            model,
            recipe,
            bf16=self.precision == "bf16",
            world_size=ranks.world_size,
            local_world_size=ranks.local_world_size,
            progress=progress,
        )
        model = group.synchronised(model, device)
        self._clock = Clock(recipe, seconds=seconds)
        self._step = TrainingStep(
            model,
            recipe=recipe,
            device=device,
            bf16=self.precision == "bf16",
            group=group,
            clock=self._clock,
            progress=progress,
        )
        self._batches = build_batches(
            train,
            recipe,
            device=device,
            context=self._step.augment.context,
            size_of=self._clock.training_size,
            shares=Shares(ranks.rank, ranks.world_size),
            reserve=memory.total,
            progress=progress,
        )
        self._num_steps = len(self._batches)
        self.length = BAR_UNITS if self._clock.is_timed else config.epochs * self._num_steps
        """Length of the progress bar: steps, or thousandths of the time."""
        learner = self._step.learner
        self._optimizer = build_optimizer(learner, recipe.optimizer, encoder=self._step.encoder)
        self._schedule = build_schedule(
            self._optimizer,
            recipe.schedule,
            epochs=config.epochs,
            steps_per_epoch=-(-self._num_steps // config.accumulate),
            share=self._clock.share if self._clock.is_timed else None,
        )
        self._average = MovingAverage(model, decay=config.ema_decay) if config.ema_decay else None
        self._shipped = self._average.model if self._average else model
        self._guard = StepGuard(learner, recipe=recipe, progress=progress)
        self._timer = Timer(self._clock)
        if val is not None:
            val = thinned(val, recipe, self._num_steps, is_timed=self._clock.is_timed)
        self._val = val
        self.epochs = EpochLog(
            folder, recipe=recipe, progress=progress, loggers=loggers, writes=group.is_first
        )
        self.checkpoints = Checkpointer(
            folder,
            minutes=config.checkpoint_minutes,
            progress=progress,
            command=command,
            state=self.state_dict,
            writes=group.is_first,
        )

    def train(self, task: Task) -> None:
        """Train until the epochs, or the time, are over."""
        self.epochs.write()
        self._timer.start_run(task, self._position.epoch * self._num_steps + self._position.step)
        self._guard.start()
        while self._position.step == self._num_steps or not self._is_over:
            if self._position.step < self._num_steps:
                self._train_epoch()
            self._close_epoch()
        self.checkpoints.write_best()
        self.epochs.write()

    def _train_epoch(self) -> None:
        """Take the steps of an epoch, from where the run is."""
        epoch, first = self._position.epoch, self._position.step
        accumulate = self.recipe.train.accumulate
        self._step.freeze(epoch=epoch)
        if first == 0:
            self._step.reset_averages()
            self._timer.start_epoch()
        for batch in self._batches.epoch(epoch, first=first):
            self._timer.batch_arrived()
            self._whole = None
            start = batch.step // accumulate * accumulate
            num = min(accumulate, self._num_steps - start)  # batches of this optimiser step
            is_first, is_last = batch.step == start, batch.step == start + num - 1
            lr = self._optimizer.param_groups[0]["lr"]
            self._step.learn(
                batch, epoch=epoch, lr=lr, weight=1 / num, starts=is_first, syncs=is_last
            )
            if is_last:
                self._update(epoch)
            self._timer.step_done(self._step.figures)
            if self._clock.is_over:
                break
            if is_last and batch.step + 1 < self._num_steps:  # the epoch's end has its own turn
                self._position = self._whole = Position(epoch=epoch, step=batch.step + 1)
                self._stop_if_asked()
                self.checkpoints.save_if_due(self._position)
        self._position = Position(epoch=epoch, step=self._num_steps)

    def _update(self, epoch: int) -> None:
        """Let the optimiser take its step, unless the gradients are no numbers."""
        parameters = [one for one in self._step.learner.parameters() if one.grad is not None]
        limit = self.recipe.train.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        self._guard.judge(float(norm), self._optimizer, epoch=epoch)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        self._agree()
        self._schedule.step()

    def _agree(self) -> None:
        """Read the clock, and hear whether to stop, alike on all ranks."""
        self._signal, now = self.group.agree(self._stop.number, self._clock.now)
        self._clock.read(now)

    def _close_epoch(self) -> None:
        """Validate, keep the best weights, write the table and the checkpoint."""
        epoch = self._position.epoch
        self.checkpoints.save_if_due(self._position)
        found = self.group.share_json(self._validate(epoch) if self.group.is_first else None)
        if found is None:
            self._save_and_stop()
        if self.epochs.add(found["row"]):
            self.checkpoints.keep_best(self._shipped)
        self._schedule.observe(found["row"]["val_loss"])
        self.epochs.try_to_write()
        self._guard.close_epoch(epoch)
        self.epochs.look_for_symptoms(ValidationScores(**found["scores"]))
        self._clock.validated(self._timer.epoch_seconds - self._timer.training_seconds)
        self._agree()
        self._position = Position(epoch=epoch + 1, step=0)
        self.checkpoints.save(self._position)
        self.epochs.tell(
            f" ({self._clock.time_share:.0%} of the time)"
            if self._clock.is_timed
            else f"/{self.recipe.train.epochs}"
        )
        if self.epochs.is_hopeless:
            self._progress.say(
                f"stopped early: no better validation {self.recipe.train.monitor} for "
                f"{self.recipe.train.early_stopping} epochs"
            )
        self._stop_if_asked()

    def _validate(self, epoch: int) -> dict[str, Any] | None:
        """Give an epoch's row and scores as plain data; None where the run is asked to stop."""
        assert self._val is not None, "rank 0 has it"
        averages = self._step.averages
        if not math.isfinite(averages["loss"]):
            raise diverged("the training loss", self.recipe, epoch + 1)
        try:
            scores = validate(
                self._shipped,
                self._val,
                recipe=self.recipe,
                device=self.device,
                precision=self.precision,
                between=self._stop.check,
            )
        except StopAskedError:
            return None
        except TrainingError:
            raise diverged("the prediction of a validation image", self.recipe, epoch + 1) from None
        if not math.isfinite(scores.loss):
            raise diverged("the validation loss", self.recipe, epoch + 1)
        figures = (
            epoch + 1,
            self._step.figures["lr"],
            averages["loss"],
            averages["dice"],
            scores.loss,
            scores.dice,
            self._timer.epoch_seconds,
            self._timer.data_share,
        )
        return {"row": dict(zip(COLUMNS, figures, strict=True)), "scores": asdict(scores)}

    @property
    def _is_over(self) -> bool:
        if self.epochs.is_hopeless:
            return True
        if self._clock.is_timed:
            return self._clock.is_over and bool(self.epochs.history)
        return self._position.epoch >= self.recipe.train.epochs

    def _stop_if_asked(self) -> None:
        if self.group.world_size == 1:  # what was asked since the last agreement counts at once
            self._signal = self._stop.number
        if self._signal:
            self._save_and_stop()

    def _save_and_stop(self) -> NoReturn:
        self.checkpoints.save_once(self._position)
        self._whole = None
        raise self.stopped()

    def stopped(self) -> StoppedError:
        """Give the error that ends a run which was asked to stop."""
        return StoppedError(
            f"interrupted; {self.checkpoints.way_on}",
            signal_number=self._signal or self._stop.number,
        )

    def ended(self, advice: str) -> str:
        """Say why a run has ended, and the way on; rank 0 knows it."""
        if self.group.is_first:
            return f"{advice}; {self.checkpoints.way_on}"
        return f"process {self.group.rank + 1} of {self.group.world_size} stopped: {advice}"

    def save_what_is_whole(self) -> None:
        """Save what the last step gave, where something failed between two steps."""
        if self._whole is None:
            return
        try:
            self.checkpoints.save_once(self._whole)
        except RuntimeError:  # torch tells of a dead loader process wherever the program is
            self.checkpoints.save_once(self._whole)

    def state_dict(self, position: Position) -> dict[str, Any] | None:
        """Give all that the run goes on from; None where its numbers went bad."""
        if not self._guard.is_calm or not is_finite(self._step.learner):
            return None
        return {
            "binseg": {
                "recipe": self.recipe.model_dump_json(),
                "epoch": position.epoch,
                "step": position.step,
            },
            "model": self._step.learner.state_dict(),
            **{name: part.state_dict() for name, part in self._stateful.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the run where `state_dict` left off."""
        self._position = self.checkpoints.saved = Position(
            epoch=state["binseg"]["epoch"], step=state["binseg"]["step"]
        )
        self._step.learner.load_state_dict(state["model"])
        for name, part in self._stateful.items():
            part.load_state_dict(state[name])

    @property
    def _stateful(self) -> dict[str, Any]:
        """The parts with a state, by their names in a checkpoint."""
        parts = {
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            "average": self._average,
            "guard": self._guard,
            "step": self._step,
            "epochs": self.epochs,
            "clock": self._clock,
            "timer": self._timer,
        }
        return {name: part for name, part in parts.items() if part is not None}


@contextmanager
def _explained(run: _Run) -> Iterator[None]:
    """Keep what is whole, and turn what stops a run into one line."""
    try:
        yield
    except KeyboardInterrupt:  # asked a second time
        raise run.stopped() from None
    except Exception as problem:
        run.save_what_is_whole()
        advice = (
            None if isinstance(problem, BinsegError) else advice_on(problem, run.recipe, run.device)
        )
        if advice is None:
            raise
        raise TrainingError(run.ended(advice)) from None
