"""The fingerprint of generated families, whose facts are known."""

from dataclasses import replace

import pytest

from binseg.config.recipe import DataConfig
from binseg.data.dataset import Dataset
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.errors import DataError
from binseg.planning import Fingerprint, take_fingerprint


def fingerprint_of(path: str) -> Fingerprint:
    config = DataConfig(path=path)
    return take_fingerprint(assign_splits(open_dataset(config), config.split))


@pytest.fixture(scope="module")
def micro() -> Fingerprint:
    return fingerprint_of("synthetic:kind=micro,num=8,size=160")


def test_a_microscopes_pictures_are_16_bits_grey_and_narrow(micro: Fingerprint) -> None:
    """One channel, of whose range a twentieth is used."""
    assert (micro.channels, micro.dtype, micro.is_grey) == (1, "uint16", True)
    assert micro.range_used[1] < 0.1
    assert (micro.height[1], micro.width[1]) == (120, 160)
    assert micro.by_percentile.mean[0] > 5 * micro.by_dtype.mean[0]


def test_only_training_pictures_are_counted_as_such(micro: Fingerprint) -> None:
    """The official split of the generator: 70 / 15 / 15."""
    assert (micro.num_train, micro.num_val, micro.num_test) == (6, 1, 1)


def test_thin_cracks_are_rare_and_lost_at_half_the_size() -> None:
    """About one pixel in a hundred, and less than nine tenths are kept."""
    cracks = fingerprint_of("synthetic:kind=cracks,num=8,size=240")
    assert 0.001 < cracks.mean_foreground < 0.05
    assert cracks.kept_at_scale[0.5] < 0.9
    assert cracks.thin <= 3


def test_huge_things_survive_any_size_and_five_bands_are_five() -> None:
    """Nothing is lost at 64x64; channels are counted."""
    huge = fingerprint_of("synthetic:kind=huge,num=8,size=240")
    assert huge.kept_at_size[64] > 0.97
    assert huge.num_objects == 1
    bands = fingerprint_of("synthetic:kind=bands,num=8,size=96")
    assert bands.channels == 5
    assert not bands.is_grey
    assert len(bands.by_dtype.mean) == 5


def test_the_same_data_has_the_same_fingerprint(micro: Fingerprint) -> None:
    """The sample is seeded."""
    assert fingerprint_of("synthetic:kind=micro,num=8,size=160") == micro


def test_pictures_without_truth_are_refused() -> None:
    """They can't tell what is looked for."""
    config = DataConfig(path="synthetic:kind=micro,num=8,size=160")
    dataset = assign_splits(open_dataset(config), config.split)
    blind = tuple(replace(record, mask_path=None) for record in dataset.records)
    with pytest.raises(DataError, match="without a mask"):
        take_fingerprint(Dataset(**{**vars(dataset), "records": blind}))
