import sys
from pathlib import Path
from typing import Any

import pytest

from binseg.training import loggers
from binseg.training.loggers import open_loggers


def test_a_missing_tracker_is_told_with_its_extra(
    listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker that isn't installed costs one line that names the extra, not the run."""

    def absent(folder: Path) -> Any:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")

    monkeypatch.setitem(loggers.LOGGERS, "wandb", absent)
    listener = listen()
    assert open_loggers(["wandb"], tmp_path, listener) == []
    assert 'pip install "binseg[wandb]"' in listener.lines[0]
    assert "goes on without" in listener.lines[0]


def test_a_failing_tracker_is_told(
    listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker whose server is away costs one line too."""

    def broken(folder: Path) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(loggers.LOGGERS, "mlflow", broken)
    listener = listen()
    assert open_loggers(["mlflow"], tmp_path, listener) == []
    assert listener.lines == [
        "the logger mlflow doesn't start (no route to host); training goes on without it"
    ]


@pytest.mark.parametrize("name", sorted(loggers.LOGGERS))
def test_every_tracker_opens_or_is_told(
    listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever is installed here, each name gives a logger or one line."""
    monkeypatch.setitem(sys.modules, name, None)
    listener = listen()
    opened = open_loggers([name], tmp_path, listener)
    assert len(opened) + len(listener.lines) == 1
