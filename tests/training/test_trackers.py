"""Trackers for real, each skipped where it isn't installed."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from binseg.training.loop import FitResult

Run = Callable[..., FitResult]


def test_tensorboard_shows_the_numbers_of_metrics_csv(run: Run, tmp_path: Path) -> None:
    """Its event file, read by TensorBoard itself, holds each epoch's figures."""
    pytest.importorskip("tensorboard")
    accumulator: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = run(folder=tmp_path / "run", train__loggers=["tensorboard"]).history
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_loss", "val_dice", "lr"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(row["epoch"], pytest.approx(row[name])) for row in history]
    drawn = events.Images("validation")
    assert [event.step for event in drawn] == [1]
    with Image.open(io.BytesIO(drawn[0].encoded_image_string)) as image:
        assert image.width * 3 == image.height * 2  # three rows of truth beside prediction
        assert len(image.getcolors(image.width * image.height) or []) > 2


@pytest.mark.filterwarnings("default")  # a tracker's own calls may be out of date
def test_wandb_offline_writes_its_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network or an account a run is kept on disk, ready for `wandb sync`."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for folder in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{folder}_DIR", str(tmp_path / folder))
    run(folder=tmp_path / "run", train__loggers=["wandb"])
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    # wandb's own process writes it, and may end a moment after us.
    end = time.monotonic() + 20
    while b"val_dice" not in kept.read_bytes() and time.monotonic() < end:
        time.sleep(0.05)
    assert b"val_dice" in kept.read_bytes()


@pytest.mark.filterwarnings("default")
def test_mlflow_files_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server the figures are files in the run's folder."""
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    history = run(folder=tmp_path / "run", train__loggers=["mlflow"]).history
    (metric,) = (tmp_path / "run" / "mlruns").glob("*/*/metrics/val_dice")
    values = [float(line.split()[1]) for line in metric.read_text("utf-8").splitlines()]
    assert values == [pytest.approx(row["val_dice"]) for row in history]
