"""Training looks for leaks first."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from binseg.config import load_recipe
from binseg.errors import DataError
from binseg.pipelines.train_model import train


def test_train_refuses_leaks_unless_told(
    write_discs: Callable[[Path, Sequence[int]], Path], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """An image in two splits stops the run and is named; data.allow_leaks lets it go on."""
    data = write_discs(tmp_path / "data", range(8))
    for name in ("images", "masks"):
        (data / name / "twin.png").write_bytes((data / name / "disc001.png").read_bytes())
    (data / "train.txt").write_text("".join(f"disc{n:03d}\n" for n in range(6)), "utf-8")
    (data / "val.txt").write_text("twin\ndisc006\ndisc007\n", "utf-8")
    sections = {"data": {"path": str(data)}}
    with pytest.raises(DataError, match=r"disc001, twin.*data\.allow_leaks"):
        train(load_recipe(overrides=tiny, sections=sections), out=tmp_path / "refused")
    allowed = load_recipe(overrides=(*tiny, "data.allow_leaks=true"), sections=sections)
    train(allowed, out=tmp_path / "run")
    assert (tmp_path / "run" / "bundle").is_dir()
