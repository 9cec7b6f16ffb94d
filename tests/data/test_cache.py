import dataclasses
import os
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg import storage
from binseg.config.recipe import DataConfig, Recipe
from binseg.data import MaskRule, cache, detect_rule
from binseg.data.cache import open_cache
from binseg.data.patches import open_training_pixels
from binseg.data.samples import read_sample
from binseg.errors import DataError, OutputError, UsageError
from binseg.parallel import num_cores
from binseg.transforms import preprocess
from binseg.types import Preprocessing, Record

SMALL = Preprocessing(height=8, width=8)
TILES = Preprocessing(height=4, width=4, resize="tile")


@pytest.fixture
def records(fill: Callable[..., Path], tmp_path: Path) -> list[Record]:
    names = ("a", "b", "c")
    root = fill(tmp_path / "data", *names)
    return [
        Record(
            id=name,
            image_path=root / "images" / f"{name}.png",
            mask_path=root / "masks" / f"{name}.png",
        )
        for name in names
    ]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the records that were decoded."""
    seen: list[str] = []

    def read(record: Record, *how: Any, **named: Any) -> Any:
        seen.append(record.id)
        return read_sample(record, *how, **named)

    monkeypatch.setattr(cache, "read_sample", read)
    return seen


def test_huge_images_are_decoded_one_at_a_time(
    records: list[Record], rule: MaskRule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Small ones on all threads; a file that can't be read is named by the decoding alone."""
    assert cache._num_decoders(records) == num_cores() > 1
    (height, width) = read_sample(records[0], rule).image_HWC.shape[:2]
    monkeypatch.setattr(cache, "DECODED_PIXELS", 2 * height * width - 1)
    assert cache._num_decoders(records) == 1
    records[0].image_path.write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 3 records can't be read"):
        open_cache(records, rule, SMALL, folder=tmp_path)


def caches(folder: Path) -> list[Path]:
    return [path for path in (folder / "pixels").iterdir() if path.is_dir()]


@pytest.mark.parametrize("preprocessing", [SMALL, TILES], ids=["stretch", "tile"])
def test_a_cache_holds_what_preprocessing_gives(
    records: list[Record], rule: MaskRule, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    """Rows are `prepare` and `prepare_truth` of each record in order, whatever the fit."""
    got = open_cache(records, rule, preprocessing, folder=tmp_path)
    inputs, targets, owners = [], [], []
    for index, record in enumerate(records):
        sample = read_sample(record, rule)
        assert sample.mask_HW is not None
        some, placements = preprocess.prepare(sample.image_HWC, preprocessing)
        inputs.append(some)
        targets.append(preprocess.prepare_truth(sample.mask_HW, sample.valid_HW, placements))
        owners += [index] * len(some)
    assert np.array_equal(got.inputs_NHWC, np.concatenate(inputs))
    assert np.array_equal(got.targets_NHW, np.concatenate(targets))
    assert got.record_of_N.tolist() == owners
    assert len(got) == len(owners)
    assert got.num_bytes == got.inputs_NHWC.size + got.targets_NHW.size


def test_images_are_decoded_once(
    records: list[Record], rule: MaskRule, tmp_path: Path, decoded: list[str]
) -> None:
    """The second run decodes nothing."""
    first = open_cache(records, rule, SMALL, folder=tmp_path)
    assert sorted(decoded) == ["a", "b", "c"]
    second = open_cache(records, rule, SMALL, folder=tmp_path)
    assert len(decoded) == 3
    assert np.array_equal(first.inputs_NHWC, second.inputs_NHWC)


def test_mean_and_std_share_a_cache(
    records: list[Record], rule: MaskRule, tmp_path: Path, decoded: list[str]
) -> None:
    """Normalisation is done later, so that changing it decodes nothing."""
    open_cache(records, rule, SMALL, folder=tmp_path)
    other = dataclasses.replace(SMALL, mean=(0.5,) * 3, std=(0.5,) * 3)
    open_cache(records, rule, other, folder=tmp_path)
    assert len(decoded) == 3


def test_whatever_decides_the_pixels_decides_the_cache(
    records: list[Record], rule: MaskRule, tmp_path: Path, save: Callable[..., Path]
) -> None:
    """Another size, rule, order, mask or file content never meets old pixels."""
    open_cache(records, rule, SMALL, folder=tmp_path)
    open_cache(records, rule, TILES, folder=tmp_path)
    inverse = dataclasses.replace(rule, foreground=rule.background, background=rule.foreground)
    open_cache(records, inverse, SMALL, folder=tmp_path)
    open_cache(records[::-1], rule, SMALL, folder=tmp_path)
    mask_path = records[1].mask_path
    assert mask_path is not None
    drawn_in_two = dataclasses.replace(records[0], further_masks=(mask_path,))
    open_cache([drawn_in_two, *records[1:]], rule, SMALL, folder=tmp_path)
    save(records[0].image_path, np.full((4, 6, 3), 200, np.uint8))
    changed = open_cache(records, rule, SMALL, folder=tmp_path)
    assert len(caches(tmp_path)) == 6
    assert (changed.inputs_NHWC[0] == 200).all()


@pytest.mark.parametrize("damage", ["cut", "grown", "gone", "facts"])
def test_a_broken_cache_is_built_again_and_told(
    records: list[Record], rule: MaskRule, tmp_path: Path, listener: Any, damage: str
) -> None:
    """A file of the wrong size, or a missing one, costs one line and the decoding."""
    before = np.array(open_cache(records, rule, SMALL, folder=tmp_path).inputs_NHWC)
    path = caches(tmp_path)[0] / ("facts.json" if damage == "facts" else "inputs.npy")
    if damage == "gone":
        path.unlink()
    elif damage == "grown":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.write_bytes(path.read_bytes()[:-9])
    again = open_cache(records, rule, SMALL, folder=tmp_path, progress=listener)
    assert np.array_equal(again.inputs_NHWC, before)
    assert any("is broken" in line and "building it again" in line for line in listener.lines)


def test_unreadable_records_are_named_together(
    fill: Callable[..., Path], rule: MaskRule, tmp_path: Path
) -> None:
    """Ten are named and the rest counted, and no cache is left."""
    names = [f"p{number:02d}" for number in range(14)]
    root = fill(tmp_path / "data", *names)
    records = [
        Record(
            id=name,
            image_path=root / "images" / f"{name}.png",
            mask_path=root / "masks" / f"{name}.png",
        )
        for name in names
    ]
    for name in names[1:13]:
        (root / "images" / f"{name}.png").write_text("no image")
    with pytest.raises(DataError, match=r"^12 of 14 records .*p01.*p10.* and 2 more$") as caught:
        open_cache(records, rule, SMALL, folder=tmp_path)
    assert "p11" not in str(caught.value)
    assert caches(tmp_path) == []


def test_absent_files_and_masks_are_named(
    records: list[Record], rule: MaskRule, tmp_path: Path
) -> None:
    """An image that is gone, or one without truth, is a DataError with its name."""
    records[0].image_path.unlink()
    bare = dataclasses.replace(records[1], mask_path=None)
    with pytest.raises(DataError, match=r"2 of 3 .*a\.png.*b: it has no mask"):
        open_cache([records[0], bare, records[2]], rule, SMALL, folder=tmp_path)


def test_an_empty_split_is_refused(rule: MaskRule, tmp_path: Path) -> None:
    """No records is a mistake of the split, and said so."""
    with pytest.raises(DataError, match="the split is empty"):
        open_cache([], rule, SMALL, folder=tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    records: list[Record], rule: MaskRule, tmp_path: Path
) -> None:
    """What can't be written is an OutputError; no half cache stays."""
    big = dataclasses.replace(SMALL, height=64, width=64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="can't write the pixel cache"):
            open_cache(records, rule, big, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert caches(tmp_path) == []
    assert len(open_cache(records, rule, big, folder=tmp_path)) == 3


def test_a_killed_builders_remains_are_ignored(
    records: list[Record], rule: MaskRule, tmp_path: Path
) -> None:
    """A half-built folder of a run that was killed is swept away."""
    whole = open_cache(records, rule, SMALL, folder=tmp_path)
    place = caches(tmp_path)[0]
    place.rename(place.with_suffix(".building"))
    (place.with_suffix(".building") / "inputs.npy").write_bytes(b"half")
    again = open_cache(records, rule, SMALL, folder=tmp_path)
    assert again.inputs_NHWC.shape == whole.inputs_NHWC.shape
    assert caches(tmp_path) == [place]


def test_two_runs_build_one_cache(
    records: list[Record],
    rule: MaskRule,
    tmp_path: Path,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that comes while another builds waits for it, and decodes nothing itself."""
    locked, waiting = storage.locked, threading.Barrier(2)

    @contextmanager
    def together(path: Path) -> Iterator[None]:
        waiting.wait(timeout=10)
        with locked(path):
            yield

    monkeypatch.setattr(storage, "locked", together)
    results: list[Any] = []

    def build() -> None:
        results.append(open_cache(records, rule, SMALL, folder=tmp_path))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert sorted(decoded) == ["a", "b", "c"]


def test_old_caches_make_room_but_none_in_use_goes(
    records: list[Record],
    rule: MaskRule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond the limit, the cache unused for longest goes first; one that is mapped stays."""

    def place_of(size: int) -> Path:
        before = set(caches(tmp_path))
        open_cache(records, rule, Preprocessing(height=size, width=size), folder=tmp_path)
        (new,) = set(caches(tmp_path)) - before
        return new

    (tmp_path / "pixels").mkdir()
    used = open_cache(records, rule, SMALL, folder=tmp_path)
    (in_use,) = caches(tmp_path)
    older, old = place_of(9), place_of(10)
    for age, place in enumerate((old, older, in_use), start=1):
        os.utime(place, (1e9 - age, 1e9 - age))
    num_bytes = sum(path.stat().st_size for path in [*in_use.iterdir(), *old.iterdir()])
    monkeypatch.setenv("BINSEG_CACHE_GB", str(2.2 * num_bytes / 1e9))
    open_cache(records, rule, Preprocessing(height=11, width=11), folder=tmp_path)
    assert older.is_dir(), "all fits"
    monkeypatch.setenv("BINSEG_CACHE_GB", "0")
    with storage.locked(old):
        open_cache(records, rule, SMALL, folder=tmp_path)
        assert in_use.stat().st_mtime > 1e9, "opening it is using it"
        assert set(caches(tmp_path)) == {in_use, old}, "another process is opening `old`"
    del used
    place_of(12)
    assert in_use not in caches(tmp_path)
    assert len(caches(tmp_path)) == 1
    assert not old.exists()


def test_a_strange_limit_is_refused(
    records: list[Record], rule: MaskRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that is no number is a usage error before anything is decoded."""
    for text in ("many", "-1", "nan"):
        monkeypatch.setenv("BINSEG_CACHE_GB", text)
        with pytest.raises(UsageError, match="BINSEG_CACHE_GB"):
            open_cache(records, rule, SMALL, folder=tmp_path)
    assert not (tmp_path / "pixels").exists()


@pytest.mark.parametrize("method", ["stretch", "tile"])
def test_twelve_bits_of_sixteen_are_told(tmp_path: Path, method: str, listener: Any) -> None:
    """A recipe that divides 12-bit values by 65535 leaves 16 levels: the user hears the option."""
    random, records = np.random.default_rng(0), []
    for number in range(3):
        image, mask = tmp_path / f"{number}.tif", tmp_path / f"{number}.png"
        tifffile.imwrite(image, random.integers(0, 4096, (40, 48), dtype=np.uint16))
        Image.fromarray(np.eye(40, 48, dtype=np.uint8) * 255).save(mask)
        records.append(Record(id=str(number), image_path=image, mask_path=mask))
    rule = detect_rule(records, DataConfig())
    for intensity, is_told in (("dtype", True), ("percentile", False)):
        listener.lines.clear()
        changes = {"size": 32, "channels": 1, "intensity": intensity, "resize": method}
        recipe = Recipe.model_validate({"input": changes})
        open_training_pixels(records, rule, recipe, progress=listener, folder=tmp_path / "cache")
        told = [line for line in listener.lines if "input.intensity=percentile" in line]
        assert bool(told) == is_told
        assert not told or re.search(r"sees 1[5-7] of 256 grey levels", told[0])
