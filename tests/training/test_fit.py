import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from binseg import metrics
from binseg.config.recipe import Recipe
from binseg.data.cache import PixelCache
from binseg.errors import OutputError, StoppedError, TrainingError
from binseg.inference import ModelPredictor
from binseg.inference.runtimes.torch import TorchBackend
from binseg.training import loggers
from binseg.training.loop import FitResult
from binseg.types import IGNORE

Run = Callable[..., FitResult]

EVERYTHING: dict[str, Any] = {
    "train__ema_decay": 0.9,
    "train__batch_size": 2,
    "train__accumulate": 2,
    "schedule__warmup_epochs": 0.5,
    "augment__preset": "pet-augmented",
}
"""Settings that bring all state there is into play."""
TIMES = {"seconds", "data_share"}


def same(one: FitResult, other: FitResult) -> bool:
    """Equal to the last bit, but for the clock."""
    assert one.best_state.keys() == other.best_state.keys()
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in result.history]
        for result in (one, other)
    ]
    weights = (np.array_equal(one.best_state[k], other.best_state[k]) for k in one.best_state)
    return rows[0] == rows[1] and all(weights)


def test_training_learns_and_writes_its_table(run: Run, listen: Any, tmp_path: Path) -> None:
    """The loss falls, every step and epoch is told, and metrics.csv is the history."""
    listener = listen()
    result = run(train__epochs=6, optimizer__lr=0.05, progress=listener)
    first, last = result.history[0], result.history[-1]
    assert last["train_loss"] < first["train_loss"]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == result.history
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert listener.done == listener.total == 12
    assert listener.figures[-1].keys() == {"loss", "dice", "lr"}
    assert sum(line.startswith("epoch ") for line in listener.lines) == 6
    assert result.seconds > 0


def test_the_same_seed_gives_the_same_weights(run: Run, tmp_path: Path) -> None:
    """Two runs are equal to the bit; another seed is another run."""
    first = run(folder=tmp_path / "a", **EVERYTHING)
    assert same(first, run(folder=tmp_path / "b", **EVERYTHING))
    assert not same(first, run(folder=tmp_path / "c", **EVERYTHING, train__seed=1))


def test_loader_workers_change_nothing(run: Run, tmp_path: Path) -> None:
    """Batches are decided by the sampler in the main process, whoever indexes the cache."""
    alone = run(folder=tmp_path / "a", **EVERYTHING)
    assert same(alone, run(folder=tmp_path / "b", **EVERYTHING, train__workers=2))


def test_global_random_numbers_are_left_alone(run: Run) -> None:
    """Training neither depends on torch's global generator nor moves it."""
    model = nn.Conv2d(3, 1, 1)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    run(train__epochs=1, model=model)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "schedule",
    [{"schedule__name": "cosine"}, {"schedule__name": "plateau", "schedule__patience": 0}],
    ids=["cosine", "plateau"],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    run: Run, listen: Any, tmp_path: Path, workers: int, schedule: dict[str, Any]
) -> None:
    """Ctrl-C within epoch 3 of 4, then --resume: weights and table are equal to the bit."""
    settings = EVERYTHING | schedule | {"train__epochs": 4}
    whole = run(folder=tmp_path / "whole", **settings)

    def press(step: int) -> None:
        if step == 10:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "parts"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError, match=r"up to epoch 3, step 2: .* --resume") as caught:
        run(folder=folder, progress=listen(at_step=press), **settings)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    listener = listen()
    resumed = run(folder=folder, progress=listener, resume=True, **settings, train__workers=workers)
    assert same(whole, resumed)
    assert listener.done == listener.total
    assert sum(line.startswith("epoch ") for line in listener.lines) == 2


def test_resuming_a_finished_run_gives_its_result(run: Run, tmp_path: Path) -> None:
    """There is nothing left to do, and nothing is done."""
    done = run(**EVERYTHING)
    table = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert same(done, run(**EVERYTHING, resume=True))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == table


def test_being_told_to_end_is_an_interrupt(run: Run, listen: Any) -> None:
    """SIGTERM, as cluster managers send it, keeps what is finished."""

    def end(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="up to epoch 2, step 2") as caught:
        run(progress=listen(at_step=end))
    assert caught.value.exit_code == 143


def test_asked_twice_it_stops_at_once(run: Run, listen: Any) -> None:
    """The step isn't finished and nothing is saved; where nothing was, nobody goes to --resume."""

    def press(step: int) -> None:
        if step == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(StoppedError, match="start again") as caught:
        run(progress=listen(at_step=press))
    assert caught.value.exit_code == 130


def test_the_best_epoch_is_kept(
    run: Run,
    network: Callable[..., nn.Module],
    recipe: Callable[..., Recipe],
    pixels: Callable[..., PixelCache],
) -> None:
    """best_state scores, through the predictor, exactly the best epoch's validation Dice."""
    val = pixels(3, seed=1)
    result = run(train__epochs=5, optimizer__lr=0.05, val=val, train__ema_decay=0.5)
    scores = [row["val_dice"] for row in result.history]
    assert result.best_epoch == int(np.argmax(scores)) + 1
    model = network(dropout=0.2)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in result.best_state.items()})
    predictor = ModelPredictor(
        backend=TorchBackend(model),
        preprocessing=recipe().input.preprocessing(),
        threshold=0.5,
        bundle_id="",
        batch_size=4,
    )
    probability_NHW = predictor.probability_of_inputs(val.inputs_NHWC)
    dice = [
        metrics.dice(metrics.count(probability > 0.5, target == 1, target != IGNORE))
        for probability, target in zip(probability_NHW, val.targets_NHW, strict=True)
    ]
    assert float(np.mean(dice)) == pytest.approx(max(scores), abs=1e-12)


def test_the_best_by_loss_is_the_lowest(run: Run) -> None:
    """`monitor: loss` chooses by validation loss."""
    result = run(train__epochs=4, train__monitor="loss")
    losses = [row["val_loss"] for row in result.history]
    assert result.best_epoch == int(np.argmin(losses)) + 1


def test_early_stopping_stops_and_stays_stopped(run: Run, listen: Any) -> None:
    """No better epoch for so long ends the run; resuming it doesn't start it again."""
    settings: dict[str, Any] = {"train__epochs": 9, "train__early_stopping": 2}
    settings |= {"optimizer__lr": 1e-12}
    settings |= {"augment__preset": "none", "schedule__name": "none"}
    listener = listen()
    model = nn.Conv2d(3, 1, 1)
    stopped = run(model=model, progress=listener, **settings)
    assert stopped.best_epoch == 1
    assert len(stopped.history) == 3
    assert "stopped early" in listener.lines[-1]
    again = run(model=nn.Conv2d(3, 1, 1), resume=True, **settings)
    assert len(again.history) == 3


def test_validation_pools_the_tiles_of_one_image(
    run: Run, pixels: Callable[..., PixelCache]
) -> None:
    """Inputs that show one record are counted as one image."""
    val = pixels(4, seed=1)
    tiles = PixelCache(
        inputs_NHWC=val.inputs_NHWC, targets_NHW=val.targets_NHW, record_of_N=np.zeros(4, int)
    )
    result = run(model=constant(1.0), val=tiles, train__epochs=1, optimizer__lr=1e-12)
    foreground = int((val.targets_NHW == 1).sum())
    valid = int((val.targets_NHW != IGNORE).sum())
    assert result.history[0]["val_dice"] == pytest.approx(2 * foreground / (foreground + valid))


def constant(logit: float) -> nn.Module:
    """A network that gives the same logit everywhere."""
    layer = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        assert layer.bias is not None
        layer.bias.fill_(logit)
    return layer


def test_bf16_trains_and_says_so(run: Run) -> None:
    """Autocast changes the numbers a little and the result's own word."""
    result = run(train__precision="bf16")
    assert result.precision == "bf16"
    assert all(value.dtype != np.uint16 for value in result.best_state.values())
    assert np.isfinite([row["val_loss"] for row in result.history]).all()


def test_a_diverged_run_is_one_line(run: Run) -> None:
    """NaN in the loss names the likely cause and the setting, and keeps the best weights."""
    with pytest.raises(
        TrainingError, match=r"epoch 1: .* lower optimizer.lr \(now 0.01\)"
    ) as caught:
        run(model=constant(float("nan")))
    assert "\n" not in str(caught.value)


class Exploding(nn.Module):
    """Gives NaN from its nth training step on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        self.after = after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.after -= self.training
        logits: torch.Tensor = self.layer(x)
        return logits * (1.0 if self.after >= 0 else float("nan"))


def test_divergence_keeps_the_last_good_state(run: Run, tmp_path: Path) -> None:
    """What earlier epochs learnt stays on disk."""
    with pytest.raises(TrainingError, match="in epoch 2"):
        run(model=Exploding(after=3))
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize(("value", "word"), [(0, "foreground"), (1, "background")])
def test_masks_that_are_all_alike_teach_nothing(
    run: Run, pixels: Callable[..., PixelCache], value: int, word: str
) -> None:
    """A training set without foreground, or without background, is refused at once."""
    blank = pixels(4)
    blank.targets_NHW[:] = value
    with pytest.raises(TrainingError, match=f"nothing to learn: no training mask has a {word}"):
        run(train=blank)


def test_a_validation_set_without_foreground_is_told(
    run: Run, listen: Any, pixels: Callable[..., PixelCache]
) -> None:
    """It is allowed, and its score's meaning is said."""
    blank = pixels(2)
    blank.targets_NHW[:] = 0
    listener = listen()
    run(val=blank, train__epochs=1, progress=listener)
    assert "no validation mask" in listener.lines[0]


def test_a_missing_logger_does_not_stop_the_run(
    run: Run, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named, and training goes on."""

    def absent(folder: Path) -> Any:
        raise ModuleNotFoundError(name="wandb")

    monkeypatch.setitem(loggers.LOGGERS, "wandb", absent)
    listener = listen()
    result = run(train__loggers=["wandb"], train__epochs=1, progress=listener)
    assert any("binseg[wandb]" in line for line in listener.lines)
    assert len(result.history) == 1


def test_batch_norm_on_one_value_is_one_line(run: Run, pixels: Callable[..., PixelCache]) -> None:
    """A single image shrunk to one pixel can't train batch norm, and the line says what can."""
    model = nn.Sequential(
        nn.Conv2d(3, 1, 16), nn.BatchNorm2d(1), nn.Upsample(size=(16, 16), mode="nearest")
    )
    with pytest.raises(TrainingError, match=r"raise train\.batch_size or input\.size"):
        run(model=model, train=pixels(1))


def test_an_unwritable_folder_is_one_line(run: Run, tmp_path: Path) -> None:
    """A file where the folder should be is an OutputError, before anything is trained."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't write"):
        run(folder=tmp_path / "file" / "run")


def test_resume_without_a_checkpoint_is_one_line(run: Run) -> None:
    """Nothing to go on from is an error, not a new run."""
    with pytest.raises(TrainingError, match="nothing to resume"):
        run(resume=True)


def test_accumulated_batches_are_one_larger_batch(
    run: Run, pixels: Callable[..., PixelCache], tmp_path: Path
) -> None:
    """Two batches of 4 accumulated give the step of one batch of 8 (without batch norm)."""
    settings = {"augment__preset": "none", "loss__name": "bce", "train__epochs": 1}
    results = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        result = run(
            model=constant(0.5),
            train=pixels(8),
            folder=tmp_path / str(batch_size),
            train__batch_size=batch_size,
            train__accumulate=accumulate,
            **settings,
        )
        results.append(result.best_state["weight"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_shorter_last_group_counts_as_its_own_batches_do(
    run: Run, pixels: Callable[..., PixelCache], tmp_path: Path
) -> None:
    """One batch an epoch with accumulate 4 is one step of that batch, not a quarter of it."""
    settings: dict[str, Any] = {
        "augment__preset": "none",
        "train__epochs": 1,
        "train__batch_size": 8,
        "optimizer__name": "sgd",
    }
    results = [
        run(
            model=constant(0.5),
            train=pixels(8),
            folder=tmp_path / str(accumulate),
            train__accumulate=accumulate,
            **settings,
        ).best_state["weight"]
        for accumulate in (1, 4)
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert results[0] != pytest.approx(0.5)
