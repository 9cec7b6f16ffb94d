"""The real electron-microscopy stack, where it is at hand, read and cut as the recipes do."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile

from binseg.config import load_recipe
from binseg.data import Dataset, assign_splits, open_dataset
from binseg.data.cache import open_cache

STACK = Path(__file__).parents[3] / "shared" / "data" / "em-mitochondria"
PAGE = 97

pytestmark = pytest.mark.skipif(not STACK.is_dir(), reason="the stack is not here")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """The stack as recipe C takes it."""
    data = load_recipe("em-unet").data.model_copy(update={"path": str(STACK)})
    return assign_splits(open_dataset(data), data.split)


def test_the_stack_is_split_in_two_blocks_with_a_gap(dataset: Dataset) -> None:
    """Of 100 slices the first 75 train and the last 20 validate; 5 between them are left out."""
    assert Counter(r.split for r in dataset.records) == {"train": 75, "val": 20, None: 5}
    assert dataset.rule.describe().startswith("255 foreground")
    trained = max(r.page or 0 for r in dataset.of_split("train"))
    assert min(r.page or 0 for r in dataset.of_split("val")) - trained == 6


def test_patches_are_the_stack_s_own_pixels(dataset: Dataset, tmp_path: Path) -> None:
    """Each of the 12 patches of a slice is found in the file, and its mask at the same place."""
    recipe = load_recipe("em-unet")
    records = [record for record in dataset.records if record.page == PAGE]
    cache = open_cache(
        records, dataset.rule, recipe.input.preprocessing().as_trained(), folder=tmp_path
    )
    image = tifffile.imread(STACK / "training.tif", key=PAGE)
    truth = tifffile.imread(STACK / "training_groundtruth.tif", key=PAGE)
    corners = [(top, left) for top in (0, 256, 512) for left in (0, 256, 512, 768)]
    assert len(cache) == len(corners)
    for row, (top, left) in enumerate(corners):
        place = (slice(top, top + 256), slice(left, left + 256))
        assert np.array_equal(cache.inputs_NHWC[row, :, :, 0], image[place])
        assert np.array_equal(cache.targets_NHW[row] == 1, truth[place] == 255)
