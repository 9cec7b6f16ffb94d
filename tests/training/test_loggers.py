import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from binseg.config import load_recipe
from binseg.training import loggers
from binseg.training.loggers import COLUMNS, EpochLog, running_loggers


def test_a_missing_tracker_is_told_with_its_extra(
    listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker that isn't installed costs one line that names the extra, not the run."""

    def absent(folder: Path) -> Any:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")

    monkeypatch.setitem(loggers.LOGGERS, "wandb", absent)
    listener = listen()
    with running_loggers(["wandb"], tmp_path, listener) as opened:
        assert opened == []
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
    with running_loggers(["mlflow"], tmp_path, listener) as opened:
        assert opened == []
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
    with running_loggers([name], tmp_path, listener) as opened:
        assert len(opened) + len(listener.lines) == 1


def test_a_trackers_run_is_finished(
    listen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What wandb began is ended, also when training fails, so that the next run is its own."""
    finished: list[bool] = []
    run: Any = SimpleNamespace(close=lambda: finished.append(True))
    monkeypatch.setitem(loggers.LOGGERS, "wandb", lambda folder: run)
    with pytest.raises(ValueError, match="stop"), running_loggers(["wandb"], tmp_path, listen()):
        raise ValueError("stop")
    assert finished == [True]


def test_scores_of_some_inputs_say_of_how_many(listen: Any, tmp_path: Path) -> None:
    """An epoch's validation figures name their inputs where they are not all; metrics.csv, too."""
    listener = listen()
    log = EpochLog(tmp_path, load_recipe(), loggers=[], progress=listener, writes=True)
    row = dict.fromkeys(COLUMNS, 0.5) | {"epoch": 1, "val_inputs": 368}
    for scored in (48, 368):
        log.add(row | {"val_scored": scored})
        log.tell(" of 2")
    log.write()
    first, second = (str(line) for line in listener.lines)
    assert "Dice 0.5000 on 48 of 368 inputs (best)" in first
    assert "of 368" not in second
    head, *rows = (tmp_path / "metrics.csv").read_text("utf-8").splitlines()
    of = head.split(",").index("val_scored")
    assert [line.split(",")[of] for line in rows] == ["48", "368"]
