"""The built-in generator: seeded, quick, and hard for a threshold."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from binseg.config.recipe import DataConfig
from binseg.data import open_dataset, read_sample
from binseg.data.sources.synthetic import draw_synthetic, otsu_dice
from binseg.errors import UsageError
from binseg.storage import cache_dir


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINSEG_CACHE", str(tmp_path))


def digest(index: int, seed: int) -> str:
    image_HW3, mask_HW = draw_synthetic(index, size=64, seed=seed)
    return hashlib.sha256(image_HW3.tobytes() + mask_HW.tobytes()).hexdigest()


def test_seed_and_index_decide_every_pixel() -> None:
    """The same numbers give the same image; other ones another."""
    assert digest(3, 0) == digest(3, 0)
    assert len({digest(3, 0), digest(4, 0), digest(3, 1)}) == 3


def test_images_are_drawn_once_and_found_again() -> None:
    """A second opening draws nothing, and a longer series starts with the shorter one."""
    first = open_dataset(DataConfig(path="synthetic:num=12,size=32"))
    path = first.records[0].image_path
    before = path.stat().st_mtime_ns
    again = open_dataset(DataConfig(path="synthetic:size=32,num=12", kind="synthetic"))
    assert path.stat().st_mtime_ns == before
    assert again.fingerprint() == first.fingerprint()
    longer = open_dataset(DataConfig(path="synthetic:num=13,size=32"))
    assert longer.records[0].image_path.read_bytes() == path.read_bytes()
    assert not [p.name for p in cache_dir().iterdir() if p.name.startswith(".synthetic")]


def test_it_brings_an_official_split() -> None:
    """70 / 15 / 15, as any data set with lists."""
    data = open_dataset(DataConfig(path="synthetic:num=20,size=16"))
    assert Counter(r.split for r in data.records) == {"train": 14, "val": 3, "test": 3}
    assert data.kind == "synthetic"


def test_every_image_has_an_object_and_a_background() -> None:
    """Objects cover a fair share; hardly an image is empty or full."""
    data = open_dataset(DataConfig(path="synthetic:num=30,size=48"))
    shares = []
    for record in data.records:
        mask_HW = read_sample(record, data.rule).mask_HW
        assert mask_HW is not None
        shares.append(mask_HW.mean())
    assert 0.1 < np.mean(shares) < 0.4
    assert min(shares) > 0
    assert max(shares) < 0.8


def test_otsu_fails_on_it() -> None:
    """A threshold on grey, even with the better polarity, stays far below a model's 0.9."""
    data = open_dataset(DataConfig(path="synthetic:num=40,size=64"))
    assert otsu_dice(data.records, data.rule) < 0.5


@pytest.mark.parametrize(
    "path",
    ["synthetic:num", "synthetic:num=x", "synthetic:pics=3", "synthetic:num=2", "synthetic:size=8",
     "synthetic:num=9,num=9", "synthetic:seed=-1"],
)  # fmt: skip
def test_settings_that_cannot_be(path: str) -> None:
    """A typo in the settings is told with the right form or the limits."""
    with pytest.raises(UsageError, match=r"synthetic:num=240,size=128,seed=0|must be \d+ to \d+"):
        open_dataset(DataConfig(path=path))


def test_a_folder_called_synthetic_stays_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./synthetic` is a folder; the plain word is the generator."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    with pytest.raises(Exception, match="no images with masks"):
        open_dataset(DataConfig(path="./synthetic"))
