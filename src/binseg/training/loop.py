"""The training loop: every rank runs it on its share of each batch, rank 0 writes.

`_Run.train` is the run, `_Run._train_epoch` its steps, and `_Run._close_epoch` what follows them,
in an order for runs that are killed: the best weights are on disk before the checkpoint that counts
them as such. A run that is stopped while it validates goes on with that validation.
"""

import math
from collections.abc import Iterator, Mapping
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
from binseg.report.overlay import Rgb
from binseg.training.batches import Batches, Shares, build_batches
from binseg.training.checkpoint import Checkpointer, Position, read_best, shared_state
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
    ValidationScores,
    advice_on,
    check_learnable,
    diverged,
    draw_validation,
    is_finite,
    thinned,
    validate,
)
from binseg.training.distributed import ALONE, ProcessGroup, quiet, rank_device
from binseg.training.loggers import COLUMNS, EpochLog, running_loggers
from binseg.training.optim import MovingAverage, Schedule, build_optimizer
from binseg.training.step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The outcome of a training run."""

    best_state: dict[str, np.ndarray]
    """The weights of the best epoch, by the model's own names; on rank 0 alone."""
    best_epoch: int  # from 1
    history: list[dict[str, float]]  # one row an epoch, as in metrics.csv
    precision: str
    seconds: float  # duration of all epochs, those before a resume included


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

    Of `val`, which chooses the best epoch on rank 0, as much is looked at as an epoch is worth.
    Rank 0 writes tables, weights and checkpoints to the folder; `resume` goes on from the newest
    one that is whole. Epochs take `seconds` in all, those before a resume included; else the recipe
    counts them. `command` goes on with the run, if not `binseg train --out FOLDER --resume`. Raises
    TrainingError (nothing to learn, bad numbers, no resume), StoppedError and OutputError.
    """
    state = shared_state(folder, recipe, group, progress) if resume else None
    check_learnable(train, val, progress)
    device, config = rank_device(recipe.train.device, group.ranks), recipe.train
    with (
        quiet(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        hearing_interrupts() as stop,
        running_loggers(config.loggers if group.is_first else [], folder, progress) as loggers,
    ):
        precision = resolve_precision(config.precision, device, progress)
        model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        is_mixed = precision != "fp32"
        memory = check_memory(model, recipe, bf16=is_mixed, ranks=group.ranks, progress=progress)
        clock = Clock(recipe, seconds=seconds)
        parts: Any = {"group": group, "clock": clock, "progress": progress}
        step = TrainingStep(model, recipe, device=device, precision=precision, **parts)
        batches = build_batches(
            train,
            recipe,
            device=device,
            context=step.augment.context,
            size_of=clock.training_size,
            shares=Shares(group.rank, group.world_size),
            reserve=memory.total,
            progress=progress,
        )
        first = group.is_first
        checkpoints = Checkpointer(folder, recipe, command=command, progress=progress, writes=first)
        log = EpochLog(folder, recipe, loggers=loggers, progress=progress, writes=first)
        run = _Run(step, batches, val, clock=clock, log=log, checkpoints=checkpoints, stop=stop)
        if state is not None:
            run.load_state_dict(state)
        with progress.task("training", total=run.length) as task, run.explained():
            run.train(task)
    return FitResult(
        best_state=read_best(folder) if group.is_first else {},
        best_epoch=log.best_epoch,
        history=log.history,
        precision=precision,
        seconds=sum(row["seconds"] for row in log.history),
    )


class _Run:
    """One rank's part of a run: its parts, and where it is."""

    def __init__(
        self,
        step: TrainingStep,
        batches: Batches,
        val: PixelCache | None,
        *,
        clock: Clock,
        log: EpochLog,
        checkpoints: Checkpointer,
        stop: StopRequest,
    ) -> None:
        recipe, config, num_steps = step.recipe, step.recipe.train, len(batches)
        self._recipe, self._group, self._device = recipe, step.group, step.device
        self._how: Any = {"recipe": recipe, "device": step.device, "precision": step.precision}
        self._log, self._checkpoints = log, checkpoints
        self._progress, self._stop, self._clock = step.progress, stop, clock
        self._step, self._batches, self._num_steps = step, batches, num_steps
        self._signal = 0
        """Number of the signal to stop that all ranks have agreed on; 0 where there is none."""
        self._position = Position(epoch=0, step=0)
        self._is_whole = False  # False in the middle of a step, whose weights are nobody's
        self.length = BAR_UNITS if clock.is_timed else config.epochs * num_steps
        """Length of the progress bar: steps, or thousandths of the time."""
        self._optimizer = build_optimizer(step.model, recipe.optimizer, encoder=step.encoder)
        self._schedule = Schedule(
            self._optimizer,
            recipe.schedule,
            epochs=config.epochs,
            steps_per_epoch=-(-num_steps // config.accumulate),
            share=clock.share if clock.is_timed else None,
        )
        decay = config.ema_decay
        self._average = MovingAverage(step.model, decay=decay) if decay else None
        self._shipped = self._average.model if self._average else step.model
        self._guard = StepGuard(step.model, recipe=recipe, progress=step.progress)
        self._timer = Timer(clock)
        self._num_val = len(val) if val is not None else 0
        self._val = val and thinned(val, recipe, num_steps, is_timed=clock.is_timed)

    def train(self, task: Task) -> None:
        """Train until the epochs, or the time, are over."""
        self._log.write()
        self._timer.start_run(task, self._position.epoch * self._num_steps + self._position.step)
        self._guard.start()
        while self._position.step == self._num_steps or not self._is_over:
            if self._position.step < self._num_steps:
                self._train_epoch()
            self._close_epoch()
        self._checkpoints.write_best()
        self._log.write()

    def _train_epoch(self) -> None:
        """Take the steps of an epoch, from where the run is."""
        epoch, first = self._position.epoch, self._position.step
        accumulate = self._recipe.train.accumulate
        self._step.freeze(epoch=epoch)
        if first == 0:
            self._step.reset_averages()
            self._timer.start_epoch()
        for batch in self._batches.epoch(epoch, first=first):
            self._timer.batch_arrived()
            self._is_whole = False
            start = batch.step // accumulate * accumulate
            num = min(accumulate, self._num_steps - start)  # batches of this optimiser step
            is_first, is_last = batch.step == start, batch.step == start + num - 1
            lr = self._optimizer.param_groups[0]["lr"]
            self._step.learn(
                batch, epoch=epoch, lr=lr, weight=1 / num, starts=is_first, syncs=is_last
            )
            if is_last:
                self._guard.judge(self._step.clip(), self._optimizer, epoch=epoch)
                self._optimizer.step()  # does nothing where the guard took the gradients away
                if self._average is not None:
                    self._average.update()
                self._agree()
                self._schedule.step()
            self._timer.step_done(self._step.figures)
            if self._clock.is_over:
                break
            if is_last and batch.step + 1 < self._num_steps:  # the epoch's end has its own turn
                self._position = Position(epoch=epoch, step=batch.step + 1)
                self._is_whole = True
                self._stop_if_asked()
                if self._checkpoints.is_due:
                    self._save()
        self._position = Position(epoch=epoch, step=self._num_steps)

    def _agree(self) -> None:
        """Read the clock, and hear whether to stop, alike on all ranks."""
        self._signal, now = self._group.agree(self._stop.number, self._clock.now)
        self._clock.read(now)

    def _close_epoch(self) -> None:
        """Validate, keep the best weights, write the table and the checkpoint."""
        epoch = self._position.epoch
        if self._checkpoints.is_due:
            self._save()
        found = self._group.share_json(self._validate(epoch) if self._group.is_first else None)
        if found is None:
            self._save_and_stop()
        if self._log.add(found["row"]):
            self._checkpoints.keep_best(self._shipped)
        self._schedule.observe(found["row"]["val_loss"])
        self._log.try_to_write()
        self._guard.close_epoch(epoch)
        self._log.look_for_symptoms(ValidationScores(**found["scores"]))
        self._clock.validated(self._timer.epoch_seconds - self._timer.training_seconds)
        self._agree()
        self._position = Position(epoch=epoch + 1, step=0)
        self._save()
        self._log.tell(
            f" ({self._clock.time_share:.0%} of the time)"
            if self._clock.is_timed
            else f"/{self._recipe.train.epochs}"
        )
        self._log.show(self._draw)
        if self._log.is_hopeless:
            self._progress.say(
                f"stopped early: no better validation {self._recipe.train.monitor} for "
                f"{self._recipe.train.early_stopping} epochs"
            )
        self._stop_if_asked()

    def _draw(self) -> Rgb:
        assert self._val is not None, "only rank 0 has loggers"
        return draw_validation(self._shipped, self._val, **self._how)

    def _validate(self, epoch: int) -> dict[str, Any] | None:
        """Give an epoch's row and scores as plain data; None where the run is asked to stop."""
        assert self._val is not None, "rank 0 has it"
        averages = self._step.averages
        if not math.isfinite(averages["loss"]):
            raise diverged("the training loss", self._recipe, epoch + 1)
        try:
            scores = validate(self._shipped, self._val, between=self._stop.check, **self._how)
        except StopAskedError:
            return None
        except TrainingError:
            what = "the prediction of a validation image"
            raise diverged(what, self._recipe, epoch + 1) from None
        if not math.isfinite(scores.loss):
            raise diverged("the validation loss", self._recipe, epoch + 1)
        row = (
            *(epoch + 1, self._step.figures["lr"], averages["loss"], averages["dice"]),
            *(scores.loss, scores.dice, len(self._val), self._num_val),
            *(self._timer.epoch_seconds, self._timer.data_share),
        )
        return {"row": dict(zip(COLUMNS, row, strict=True)), "scores": asdict(scores)}

    @property
    def _is_over(self) -> bool:
        if self._log.is_hopeless:
            return True
        if self._clock.is_timed:
            return self._clock.is_over and bool(self._log.history)
        return self._position.epoch >= self._recipe.train.epochs

    def _stop_if_asked(self) -> None:
        if self._group.world_size == 1:  # what was asked since the last agreement counts at once
            self._signal = self._stop.number
        if self._signal:
            self._save_and_stop()

    def _save(self) -> None:
        self._checkpoints.save(self._position, self.state_dict)

    def _save_once(self) -> None:
        if self._checkpoints.saved != self._position:
            self._save()

    def _save_and_stop(self) -> NoReturn:
        self._save_once()
        self._is_whole = False
        raise self._stopped()

    def _stopped(self) -> StoppedError:
        number = self._signal or self._stop.number
        return StoppedError(f"interrupted; {self._checkpoints.way_on}", signal_number=number)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Keep what is whole, and turn what stops a run into one line."""
        try:
            yield
        except KeyboardInterrupt:  # asked a second time
            raise self._stopped() from None
        except Exception as problem:
            if self._is_whole:  # between two steps
                try:
                    self._save_once()
                except RuntimeError:  # torch tells of a dead loader process wherever we are
                    self._save_once()
            advice = advice_on(problem, self._recipe, self._device)
            if isinstance(problem, BinsegError) or advice is None:
                raise
            number, of = self._group.rank + 1, self._group.world_size
            raise TrainingError(
                f"{advice}; {self._checkpoints.way_on}"
                if self._group.is_first
                else f"process {number} of {of} stopped: {advice}"
            ) from None

    def state_dict(self) -> dict[str, Any] | None:
        """Give all that the run goes on from; None where its numbers went bad."""
        if not self._guard.is_calm or not is_finite(self._step.model):
            return None
        return {
            "binseg": {"recipe": self._recipe.model_dump_json(), **asdict(self._position)},
            "model": self._step.model.state_dict(),
            **{name: part.state_dict() for name, part in self._stateful.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the run where `state_dict` left off."""
        self._position = self._checkpoints.saved = Position(
            epoch=state["binseg"]["epoch"], step=state["binseg"]["step"]
        )
        self._step.model.load_state_dict(state["model"])
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
            "epochs": self._log,
            "clock": self._clock,
            "timer": self._timer,
        }
        return {name: part for name, part in parts.items() if part is not None}
