"""`binseg train --logger`: trackers by name, and training goes on without a missing one."""

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
    assert (out / "metrics.csv").is_file()
    assert (out / "bundle").is_dir()


def test_an_unknown_tracker_is_refused_with_the_nearest_name(discs: Path, tmp_path: Path) -> None:
    """A typo ends before anything is read."""
    result = CliRunner().invoke(
        app,
        ["train", "--data", str(discs), "--out", str(tmp_path / "run"), "--logger", "tensorbord"],
    )
    assert result.exit_code == 2
    assert "did you mean tensorboard?" in result.stderr
    assert not (tmp_path / "run").exists()
