"""A sheet of real samples before and after augmentation, with the outlines of their masks."""

from pathlib import Path

import numpy as np
import torch

from binseg.config import Recipe
from binseg.data.dataset import Dataset, spread
from binseg.data.patches import WholeImages, open_images, sample_places
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.errors import DataError
from binseg.imageio import write_image
from binseg.progress import SILENT, Progress
from binseg.report import for_display, overlay
from binseg.transforms.augmentation import build_augment
from binseg.transforms.preprocess import prepare, prepare_truth
from binseg.types import Record

GAP = 4
Sample = tuple[np.ndarray, np.ndarray]  # Image as bytes, and target, as the model sees them


def plot_augmentation(
    recipe: Recipe,
    *,
    out: str | Path,
    num_samples: int = 4,
    num_variants: int = 5,
    progress: Progress = SILENT,
) -> None:
    """Show a recipe's augmentation in the PNG `out`, a row a sample; DataError without any mask."""
    dataset = open_dataset(recipe.data, progress=progress)
    chosen = spread([r for r in dataset.records if r.mask_path or r.shapes], num_samples)
    if not chosen:
        raise DataError(f"{dataset.root}: no image has a mask; there is nothing to show")
    augment, size, seed = build_augment(recipe.augment), recipe.input.size, recipe.train.seed
    pairs = [
        _patch(record, dataset, recipe, augment.context)
        if recipe.draws_patches
        else _prepared(record, dataset, recipe)
        for record in chosen
    ]
    inputs_NHWC, targets_NHW = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    margin = (inputs_NHWC.shape[1] - size) // 2
    middle = (slice(None), slice(margin, margin + size), slice(margin, margin + size))
    columns = [_outlined(inputs_NHWC[middle], targets_NHW[middle])]
    if inputs_NHWC.dtype == np.uint16:
        inputs_NHWC = inputs_NHWC.astype(np.float32) / np.float32(65535)
    images = torch.from_numpy(inputs_NHWC).permute(0, 3, 1, 2)
    targets = torch.from_numpy(targets_NHW)
    for epoch in range(num_variants):
        changed, target = augment(images, targets, seed=seed, epoch=epoch, step=0, size=size)
        bytes_NCHW = (changed * 255).round().clamp(0, 255).to(torch.uint8)
        columns.append(_outlined(bytes_NCHW.permute(0, 2, 3, 1).numpy(), target.numpy()))
    write_image(Path(out), _sheet(columns))


def _prepared(record: Record, dataset: Dataset, recipe: Recipe) -> Sample:
    """Prepare a sample for the model; of tiles, take the one with the most foreground."""
    sample = read_sample(record, dataset.rule)
    assert sample.mask_HW is not None
    inputs_NHWC, placements = prepare(sample.image_HWC, recipe.preprocessing().as_trained())
    targets_NHW = prepare_truth(sample.mask_HW, sample.valid_HW, placements)
    best = int((targets_NHW == 1).sum(axis=(1, 2)).argmax())
    return inputs_NHWC[best], targets_NHW[best]


def _patch(record: Record, dataset: Dataset, recipe: Recipe, context: float) -> Sample:
    """Cut a patch as training does, surroundings included: the first one with foreground."""
    cache = open_images([record], dataset.rule, recipe.preprocessing().as_trained())
    size, seed = recipe.input.size, recipe.train.seed
    margin = round(size * (context - 1) / 2)
    places_N3 = sample_places(cache, size=size, num=1, foreground=1.0, seed=seed, epoch=0)
    places_N3[:, 1:] -= margin
    inputs_NCHW, targets_NHW = WholeImages(cache).patches(places_N3, size=size + 2 * margin)
    return inputs_NCHW[0].transpose(1, 2, 0), targets_NHW[0]


def _outlined(inputs_NHWC: np.ndarray, targets_NHW: np.ndarray) -> list[np.ndarray]:
    return [
        overlay(for_display(np.ascontiguousarray(image_HWC)), target_HW == 1, strength=0.0)
        for image_HWC, target_HW in zip(inputs_NHWC, targets_NHW, strict=True)
    ]


def _sheet(columns: list[list[np.ndarray]]) -> np.ndarray:
    def framed(image_HW3: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        return np.pad(image_HW3, ((top, bottom), (left, right), (0, 0)), constant_values=255)

    first, *others = (np.concatenate([framed(x, GAP, GAP, 0, 0) for x in one]) for one in columns)
    return framed(np.concatenate([framed(first, 0, 0, 0, GAP), *others], 1), 0, 0, GAP, 2 * GAP)
