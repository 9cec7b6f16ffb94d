"""`binseg train --logger`: trackers by name, and training goes on without a missing one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from binseg.cli import app


def test_a_missing_tracker_costs_a_line_not_the_run(
    discs: Path, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two trackers asked for, one isn't installed: its extra is named, the other works."""
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = tmp_path / "run"
    settings = [part for setting in tiny for part in ("--set", setting)]
    asked = ["--logger", "tensorboard", "--logger", "wandb"]
    result = CliRunner().invoke(
        app, ["train", "--data", str(discs), "--out", str(out), *asked, *settings]
    )
    assert result.exit_code == 0, result.stderr
    assert 'pip install "binseg[wandb]"' in result.stderr
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    filed = events.EventAccumulator(str(out / "tensorboard")).Reload()
    assert [one.step for one in filed.Images("validation")][:1] == [1]
    assert (out / "metrics.csv").is_file()
    assert (out / "bundle").is_dir()


@pytest.mark.slow
def test_wandb_gets_a_gallery_offline(discs: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The validation's images lie in the run's own folder, without a network or an account."""
    pytest.importorskip("wandb")
    settings = [part for setting in tiny for part in ("--set", setting)]
    words = ["train", "--data", str(discs), "--out", str(tmp_path / "run"), "--logger", "wandb"]
    command = [sys.executable, "-m", "binseg", *words, *settings]
    facts = {**os.environ, "WANDB_MODE": "offline"}
    subprocess.run(command, check=True, capture_output=True, env=facts)
    assert list((tmp_path / "run").rglob("media/images/validation_1_*.png"))


def test_an_unknown_tracker_is_refused_with_the_nearest_name(discs: Path, tmp_path: Path) -> None:
    """A typo ends before anything is read."""
    result = CliRunner().invoke(
        app,
        ["train", "--data", str(discs), "--out", str(tmp_path / "run"), "--logger", "tensorbord"],
    )
    assert result.exit_code == 2
    assert "did you mean tensorboard?" in result.stderr
    assert not (tmp_path / "run").exists()
