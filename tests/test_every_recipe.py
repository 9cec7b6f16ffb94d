"""Every recipe that ships, run whole on tiny data: train, evaluate, predict, load again."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import binseg
from binseg.config import Recipe, load_recipe, recipe_names
from binseg.models import resolve_options
from binseg.pipelines.train_model import train

SMALL = (
    "input.size=32",
    "train.epochs=1",
    "train.batch_size=6",
    "train.device=cpu",
    "train.precision=fp32",
    "train.workers=0",
)
NUM_PAGES = 10


def draw(seed: int, *, height: int = 36, width: int = 44) -> tuple[np.ndarray, np.ndarray]:
    """A bright square on dark noise: an image (H, W, 3) and its mask (H, W)."""
    random = np.random.default_rng(seed)
    image_HW3 = random.integers(0, 80, (height, width, 3), dtype=np.uint8)
    mask_HW = np.zeros((height, width), np.bool_)
    top, left = random.integers(4, 20, 2)
    mask_HW[top : top + 14, left : left + 18] = True
    image_HW3[mask_HW] += 150
    return image_HW3, mask_HW


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout of Oxford-IIIT Pet with 14 squares: 12 to train, 2 to validate."""
    root = tmp_path_factory.mktemp("pets")
    (root / "images").mkdir()
    (root / "annotations" / "trimaps").mkdir(parents=True)
    names = [f"square_{seed}" for seed in range(14)]
    for seed, name in enumerate(names):
        image_HW3, mask_HW = draw(seed)
        Image.fromarray(image_HW3).save(root / "images" / f"{name}.jpg")
        trimap = np.where(mask_HW, 1, 2).astype(np.uint8)
        trimap[0] = 3
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
    (root / "annotations" / "trainval.txt").write_text("\n".join(names), "utf-8")
    return root


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey stack and its masks, 0 and 255, larger than one patch and of an odd size."""
    root = tmp_path_factory.mktemp("stack")
    pages = [draw(seed, height=40, width=50) for seed in range(NUM_PAGES)]
    images = np.stack([image_HW3[:, :, 0] for image_HW3, _ in pages])
    masks = np.stack([mask_HW.astype(np.uint8) * 255 for _, mask_HW in pages])
    tifffile.imwrite(root / "training.tif", images, photometric="minisblack")
    tifffile.imwrite(root / "training_groundtruth.tif", masks, photometric="minisblack")
    return root


def smaller(name: str, *, pets: Path, stack: Path) -> Recipe:
    """The recipe on data and with a network of a second's work; all else as it ships."""
    shipped = load_recipe(name)
    changes = [*SMALL, "model.options.width=4"]
    if shipped.model.encoder_weights:  # published weights fit their encoder at full width alone
        changes += ["model.encoder_weights=none", "input.mean=[0.5]", "input.std=[0.5]"]
    if shipped.data.split.method == "official":
        changes.append(f"data.path={pets}")
    elif shipped.input.resize == "tile":
        changes += [f"data.path={stack}", "data.page_group=1", "data.split.gap=1"]
    else:
        assert shipped.data.path == "synthetic"
        changes.append("data.path=synthetic:num=16,size=40")
    return load_recipe(name, overrides=changes)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs_whole(name: str, pets: Path, stack: Path, tmp_path: Path) -> None:
    """It trains, scores alike again from disk, and two loads predict the same at any size."""
    torch.set_num_threads(1)
    recipe = smaller(name, pets=pets, stack=stack)
    if recipe.model.decoder.startswith("keras") and find_spec("keras") is None:
        pytest.skip("keras is not installed")
    result = train(recipe, out=tmp_path / "run")
    assert np.isfinite(result.report.mean["original"]["dice"])
    again = binseg.evaluate(tmp_path / "run", split="val", device="cpu")
    assert again.mean == result.report.mean
    assert again.bundle_id == result.report.bundle_id
    first, second = (binseg.load(tmp_path / "run" / "bundle", device="cpu") for _ in "ab")
    image, _ = draw(99, height=45, width=70)
    prediction = first.predict(image)
    assert prediction.probability.shape == (45, 70)
    assert np.array_equal(prediction.probability, second.predict(image).probability)


def test_every_recipe_names_a_network_that_exists() -> None:
    """Recipes and networks agree, and each document's recipes are all there."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    for recipe in recipes.values():
        resolve_options(recipe.model.decoder, recipe.model.encoder, recipe.model.options)
    for letter, name in (("A", "plain"), ("B", "augmented"), ("D", "cosine")):
        for network in ("unet", "resnet34-unet"):
            source = recipes[f"pet-{network}-{name}"].about.source
            assert source == f"lab report {letter} on Oxford-IIIT Pet"
    assert {"em-keras-unet", "em-unet"} <= recipes.keys()


def test_the_twin_of_the_tutorial_differs_in_its_network_alone() -> None:
    """The PyTorch recipe of tutorial C changes nothing but the model."""
    keras, twin = (load_recipe(f"em-{name}") for name in ("keras-unet", "unet"))
    assert twin.model_copy(update={"about": keras.about, "model": keras.model}) == keras


def test_the_stack_is_cut_in_blocks_with_a_gap(stack: Path, pets: Path, tmp_path: Path) -> None:
    """Patches of one slice stay in one split: first slices train, the last ones validate."""
    recipe = smaller("em-unet", pets=pets, stack=stack)
    train(recipe, out=tmp_path / "run")
    lines = (tmp_path / "run" / "split.csv").read_text("utf-8").splitlines()[1:]
    splits = [line.split(",")[1] for line in lines]
    assert splits == ["train"] * 7 + ["none"] + ["val"] * 2
    report = binseg.evaluate(tmp_path / "run", split="all", device="cpu")
    assert len(report.images) == NUM_PAGES, "a page in the gap can be scored when all are asked for"
