"""A data set as a whole: its splits and its fingerprint."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from binseg.config.recipe import DataConfig
from binseg.data import Dataset, MaskRule, open_dataset
from binseg.errors import DataError
from binseg.types import Record

Fill = Callable[..., Path]


def test_a_split_that_does_not_exist_names_those_that_do(tmp_path: Path, rule: MaskRule) -> None:
    """An empty split is an error, never an empty answer."""
    records = tuple(Record(id=str(i), image_path=tmp_path, split="train") for i in range(3))
    dataset = Dataset(kind="folder", root=tmp_path, records=records, rule=rule)
    assert dataset.of_split("train") == records
    with pytest.raises(DataError, match=r"no split 'test'; there are train \(3\)"):
        dataset.of_split("test")
    unsplit = replace(dataset, records=(Record(id="a", image_path=tmp_path),))
    with pytest.raises(DataError, match="not been split yet"):
        unsplit.of_split("train")


def test_ids_are_unique(tmp_path: Path, rule: MaskRule) -> None:
    """Two records with one id are refused by name."""
    records = (Record(id="cat", image_path=tmp_path),) * 2
    with pytest.raises(DataError, match=r"more than one image \(cat\)"):
        Dataset(kind="folder", root=tmp_path, records=records, rule=rule)


def test_fingerprint_follows_content_not_place(fill: Fill, tmp_path: Path) -> None:
    """Moving or reordering the data keeps the fingerprint; one changed byte changes it."""
    here = open_dataset(DataConfig(path=str(fill(tmp_path / "here", "a", "b"))))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = open_dataset(DataConfig(path=str(tmp_path / "there")))
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint() == replace(there, records=there.records[::-1]).fingerprint()
    first, second = there.records
    drawn_in_two = replace(first, further_masks=second.mask_paths)
    assert here.fingerprint() != replace(there, records=(drawn_in_two, second)).fingerprint()
    with (tmp_path / "there" / "masks" / "b.png").open("ab") as file:
        file.write(b"x")
    assert here.fingerprint() != there.fingerprint()


def test_fingerprint_of_a_vanished_file_names_it(fill: Fill, tmp_path: Path) -> None:
    """A file that went away since is one clear error."""
    dataset = open_dataset(DataConfig(path=str(fill(tmp_path, "a", "b"))))
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"can't read .*a\.png"):
        dataset.fingerprint()
