import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from binseg.config.recipe import Recipe
from binseg.errors import OutputError, TrainingError
from binseg.progress import SILENT
from binseg.training.checkpoint import (
    Position,
    check_same_recipe,
    newest_whole,
    parse_checkpoint,
    sealed,
    write_checkpoint,
)
from binseg.training.run_folder import LAST, PREVIOUS


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    """Tensors and plain values survive; nothing else is allowed in."""
    path = tmp_path / "last.ckpt"
    write_checkpoint({"binseg": {"epochs": 1}, "x": torch.ones(2)}, path)
    assert torch.equal(parse_checkpoint(path.read_bytes(), path)["x"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """A write that fails half-way is one line, and the old file stays whole."""
    path = tmp_path / "last.ckpt"
    write_checkpoint({"binseg": {"epochs": 1}}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="can't write"):
            write_checkpoint({"binseg": {}, "x": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


class Evil:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


def test_torn_foreign_and_hostile_files_are_refused(tmp_path: Path) -> None:
    """Anything but a whole checkpoint of ours is one line, and no code in it runs."""
    path = tmp_path / "last.ckpt"
    with pytest.raises(TrainingError, match="nothing to resume"):
        newest_whole(tmp_path, SILENT)
    write_checkpoint({"binseg": {}, "x": torch.ones(5000)}, path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(TrainingError, match="torn or no checkpoint") as caught:
        parse_checkpoint(path.read_bytes(), path)
    assert "\n" not in str(caught.value)
    torch.save({"binseg": Evil()}, path)
    with pytest.raises(TrainingError, match="torn or no checkpoint"):
        parse_checkpoint(path.read_bytes(), path)
    strangers: tuple[dict[str, Any], ...] = ({"binseg": Evil()}, {"state_dict": {}})
    for foreign in strangers:
        path.write_bytes(sealed(foreign))
        with pytest.raises(TrainingError, match="no checkpoint of"):
            parse_checkpoint(path.read_bytes(), path)


def test_the_checkpoint_before_stays(tmp_path: Path, listen: Any) -> None:
    """Two are kept; of a damaged newest one the checksum tells, and the one before is taken."""
    for number in range(3):
        write_checkpoint({"binseg": {"epochs": number}}, tmp_path / LAST)
    assert {file.name for file in tmp_path.iterdir()} == {LAST, PREVIOUS}
    listener = listen()
    newest = newest_whole(tmp_path, listener)
    assert parse_checkpoint(newest[1], newest[0])["binseg"] == {"epochs": 2}
    assert listener.lines == []
    damaged = bytearray((tmp_path / LAST).read_bytes())
    damaged[len(damaged) // 2] ^= 1  # a single bit
    (tmp_path / LAST).write_bytes(damaged)
    newest = newest_whole(tmp_path, listener)
    assert parse_checkpoint(newest[1], newest[0])["binseg"] == {"epochs": 1}
    assert listener.lines == [
        "last.ckpt is damaged (its checksum is wrong): going on from previous.ckpt, the one "
        "before it"
    ]
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"delete what is damaged, and --resume starts"):
        newest_whole(tmp_path, listener)


def test_without_hard_links_there_are_two_as_well(
    tmp_path: Path, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that has none gets a rename; what it leaves at any moment is found."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr("os.link", refuse)
    for number in range(2):
        write_checkpoint({"binseg": {"epochs": number}}, tmp_path / LAST)
    assert {file.name for file in tmp_path.iterdir()} == {LAST, PREVIOUS}
    (tmp_path / LAST).unlink()  # killed between the two renames
    assert newest_whole(tmp_path, listen())[0] == tmp_path / PREVIOUS


def test_a_run_goes_on_with_its_own_settings(recipe: Callable[..., Recipe], listen: Any) -> None:
    """Settings that decide the result must be as before; the machine's may change."""
    before = recipe().model_dump_json()
    listener = listen()
    check_same_recipe(before, recipe(train__workers=3, train__early_stopping=2), listener)
    assert listener.lines == []
    with pytest.raises(TrainingError, match=r"optimizer.lr was 0.01 and is 0.5"):
        check_same_recipe(before, recipe(optimizer__lr=0.5), listener)
    check_same_recipe(before, recipe(train__epochs=9), listener)
    assert "9 epochs instead of 2" in listener.lines[0]


def test_positions_in_words() -> None:
    """As the messages say them."""
    assert str(Position(epoch=3, step=0)) == "epoch 3"
    assert str(Position(epoch=3, step=7)) == "epoch 4, step 7"
