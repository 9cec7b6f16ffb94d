"""The fingerprint of generated families, whose facts are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.families import folder_of
from PIL import Image

from binseg.autoconfig import Fingerprint, fingerprint, take_fingerprint
from binseg.config.recipe import DataConfig
from binseg.data.dataset import Dataset
from binseg.data.masks import MaskRule
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.errors import DataError
from binseg.types import Record


def fingerprint_of(path: str) -> Fingerprint:
    config = DataConfig(path=folder_of(path))
    return take_fingerprint(assign_splits(open_dataset(config), config.split))


@pytest.fixture(scope="module")
def micro() -> Fingerprint:
    return fingerprint_of("micro,num=8,size=160")


def test_a_microscopes_images_are_16_bits_grey_and_narrow(micro: Fingerprint) -> None:
    """One channel, of whose range a twentieth is used."""
    assert (micro.channels, micro.dtype, micro.is_grey) == (1, "uint16", True)
    assert micro.range_used[1] < 0.1
    assert (micro.height[1], micro.width[1]) == (120, 160)
    assert micro.by_percentile.mean[0] > 5 * micro.by_dtype.mean[0]


def test_only_training_images_are_counted_as_such(micro: Fingerprint) -> None:
    """The official split of the generator: 70 / 15 / 15."""
    assert (micro.num_train, micro.num_val, micro.num_test) == (6, 1, 1)


def test_thin_cracks_are_rare_and_lost_at_half_the_size() -> None:
    """About one pixel in a hundred, and less than nine tenths are kept."""
    cracks = fingerprint_of("cracks,num=8,size=240")
    assert 0.001 < cracks.mean_foreground < 0.05
    assert cracks.kept_at_scale[0.5] < 0.9
    assert cracks.thin <= 3


def test_huge_things_survive_any_size_and_five_bands_are_five() -> None:
    """Nothing is lost at 64x64; channels are counted."""
    huge = fingerprint_of("huge,num=8,size=240")
    assert huge.kept_at_size[64] > 0.97
    assert huge.num_objects == 1
    bands = fingerprint_of("bands,num=8,size=96")
    assert bands.channels == 5
    assert not bands.is_grey
    assert len(bands.by_dtype.mean) == 5


def test_the_same_data_has_the_same_fingerprint(micro: Fingerprint) -> None:
    """The sample is seeded."""
    assert fingerprint_of("micro,num=8,size=160") == micro


def test_images_without_truth_are_refused() -> None:
    """They can't tell what is looked for."""
    config = DataConfig(path=folder_of("micro,num=8,size=160"))
    dataset = assign_splits(open_dataset(config), config.split)
    blind = tuple(replace(record, mask_path=None) for record in dataset.records)
    with pytest.raises(DataError, match="without a mask"):
        take_fingerprint(Dataset(**{**vars(dataset), "records": blind}))


def test_shapes_are_those_of_images_that_hold_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of ten has a speck: it is measured, wherever it stands; else nobody knows."""
    monkeypatch.setattr(fingerprint, "SHAPED_PIXELS", 0)
    monkeypatch.setattr(fingerprint, "MIN_SHAPED", 3)
    rare = draw(tmp_path / "rare", num=20, specks={4, 13})
    assert rare.kept_at_size[64] < 0.9
    assert rare.diameter[1] < 10
    assert rare.empty_share > 0.8
    assert rare.brighter_share == 1.0
    assert draw(tmp_path / "none", num=8, specks=set()).kept_at_size[512] == 0.0


def test_the_window_holds_what_it_is_about() -> None:
    """Things in two opposite corners: their middle is nothing."""
    mask = np.zeros((5000, 5000), bool)
    mask[:20, :20] = mask[-20:, -20:] = True
    assert fingerprint._window(mask).any()


def test_a_red_stamp_on_grey_is_colour(tmp_path: Path) -> None:
    """Half a per cent of the pixels is red, which the mean hides."""
    assert draw(tmp_path / "grey", num=6, specks={0, 1}).is_grey
    assert not draw(tmp_path / "stamp", num=6, specks={0, 1, 2, 3, 4, 5}, red=True).is_grey


def draw(folder: Path, *, num: int, specks: set[int], red: bool = False) -> Fingerprint:
    """Noise, in some images with a speck of six pixels a side."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    records = []
    for number in range(num):
        image = np.repeat(random.integers(90, 160, (240, 240, 1), dtype=np.uint8), 3, axis=2)
        mask = np.zeros((240, 240), np.uint8)
        if number in specks:
            at = (slice(60, 66), slice(70, 76))
            mask[at] = 255
            image[at] = (255, 0, 0) if red else 240
            if red:
                image[100:114, 100:114] = (250, 10, 10)
        paths = [folder / name / f"{number:03}.png" for name in ("images", "masks")]
        for path, pixels in zip(paths, (image, mask), strict=True):
            Image.fromarray(pixels).save(path)
        records.append(
            Record(id=f"{number:03}", image_path=paths[0], mask_path=paths[1], split="train")
        )
    rule = MaskRule(kind="values", foreground=frozenset({255}), background=frozenset({0}))
    return take_fingerprint(Dataset(kind="folder", root=folder, records=tuple(records), rule=rule))
