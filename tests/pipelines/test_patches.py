"""Runs on patches from end to end: any channels and depth, at a scale, with its sheet."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import binseg
from binseg.config import Recipe, load_recipe
from binseg.pipelines.check_data import plot_augmentation
from binseg.pipelines.train_model import train

SETTINGS = (
    "model.name=unet",
    "model.options={width: 4, depth: 2}",
    "input.size=16",
    "input.resize=tile",
    "train.epochs=2",
    "train.batch_size=6",
    "train.device=cpu",
    "train.precision=fp32",
    "optimizer.lr=0.02",
    "patches.per_epoch=60",
    "augment.preset=strong",
    "augment.orientation=any",
)


def recipe_of(data: Path, *more: str) -> Recipe:
    return load_recipe(overrides=[*SETTINGS, *more], sections={"data": {"path": str(data)}})


@pytest.fixture
def five_channels(tmp_path: Path) -> Path:
    """Images of five 16-bit channels and two sizes, with bright squares in the third."""
    root = tmp_path / "five"
    random = np.random.default_rng(0)
    for number in range(8):
        height, width = (40, 52) if number % 2 else (20, 70)
        image = random.integers(0, 20_000, (height, width, 5), dtype=np.uint16)
        mask = np.zeros((height, width), np.uint8)
        top, left = random.integers(0, 8), random.integers(0, 40)
        mask[top : top + 12, left : left + 12] = 255
        image[mask > 0, 2] += 40_000
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / "images" / f"{number}.tif", image, photometric="minisblack",
                         planarconfig="contig", metadata=None)  # fmt: skip
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


def test_patches_of_any_image_train_a_bundle(five_channels: Path, tmp_path: Path) -> None:
    """Five channels of 16 bits become a bundle that keeps its scale and answers at any size."""
    recipe = recipe_of(
        five_channels, "input.channels=5", "input.intensity=percentile", "input.scale=0.5",
        "augment.noise=0.05",
    )  # fmt: skip
    result = train(recipe, out=tmp_path / "run")
    assert result.num_epochs == 2
    model = binseg.load(tmp_path / "run" / "bundle")
    assert model.preprocessing.scale == 0.5
    image = tifffile.imread(five_channels / "images" / "0.tif")
    assert model.predict(image).mask.shape == image.shape[:2]


def test_aspect_is_kept_by_padding(discs: Path, tmp_path: Path) -> None:
    """`resize: letterbox` trains, tunes and scores: padding counts for nothing."""
    result = train(
        recipe_of(
            discs,
            "input.resize=letterbox",
            "patches.per_epoch=auto",
            "input.size=32",
            "train.epochs=3",
        ),
        out=tmp_path / "run",
    )
    assert result.report.mean["original"]["dice"] > 0.5


def test_the_sheet_shows_patches(discs: Path, tmp_path: Path) -> None:
    """A sheet of a patch recipe has patches of the input's size; without change all are equal."""
    recipe = recipe_of(discs, "augment.preset=none", "augment.orientation=fixed")
    plot_augmentation(recipe, out=tmp_path / "sheet.png", num_samples=2, num_variants=1)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert np.array_equal(sheet[4:20, 4:20], sheet[4:20, 28:44])
    changed = recipe_of(discs)
    plot_augmentation(changed, out=tmp_path / "sheet.png", num_samples=2, num_variants=3)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (4 * (16 + 4) + 3 * 4, 2 * (16 + 4) + 4)
