"""Images on which an export is proven: validation ones where they are, odd sizes always."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Num

from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.errors import BinsegError
from binseg.packaging import Bundle
from binseg.packaging.raw_pixels import Pixels
from binseg.progress import SILENT, Progress
from binseg.training.run_folder import RunFolder
from binseg.types import Preprocessing, Sample

MAX_IMAGES = 24
MAX_SIDE = 1024
"""Larger images are proven on their middle: whole ones would take gigabytes."""
ODD_SIZES = ((2, 3), (7, 300), (97, 33), (256, 256), (401, 223))
REFERENCE_SIDE = 192


@dataclass(frozen=True, kw_only=True)
class ProofImages:
    """Images as they are read (uint8, uint16 or float32), each with its truth where it is known."""

    images: list[Num[np.ndarray, "H W C"]]
    truths: list[Bool[np.ndarray, "H W"] | None]


def find_images(run: Path, bundle: Bundle, progress: Progress) -> ProofImages:
    """Find up to 24 validation images of a run, else its bundle's reference sample; and odd sizes.

    A bundle may stand for the run; `progress` is told where there is no truth.
    """
    images, truths = _validation(run, bundle.card.preprocessing.channels, progress)
    reference = bundle.reference().input_NHWC
    if not images:
        images, truths = list(reference), [None] * len(reference)
    random = np.random.default_rng(0)
    for height, width in ODD_SIZES:
        # Real pixels rather than noise, which no network was made for.
        source = reference[int(random.integers(len(reference)))]
        rows = np.linspace(0, len(source) - 1, height).astype(int)
        columns = np.linspace(0, source.shape[1] - 1, width).astype(int)
        images.append(np.ascontiguousarray(source[rows][:, columns]))
        truths.append(None)
    return ProofImages(images=images, truths=truths)


def as_pixels(images: ProofImages, pixels: Pixels, preprocessing: Preprocessing) -> ProofImages:
    """Convert images into an exported file's pixels; with `intensity: percentile` floats stay."""

    def as_floats(image_HWC: np.ndarray) -> np.ndarray:
        is_whole = image_HWC.dtype.kind != "f" and preprocessing.intensity != "percentile"
        full = np.iinfo(image_HWC.dtype).max if is_whole else 1
        return (image_HWC / np.float32(full)).astype(np.float32)

    convert = _as_bytes if pixels == "uint8" else as_floats
    return replace(images, images=[convert(one) for one in images.images])


def small(image_HWC: Num[np.ndarray, "H W C"]) -> Num[np.ndarray, "h w C"]:
    """Thin an image out to 192 pixels a side, so that it can travel inside a file."""
    every = -(-max(image_HWC.shape[:2]) // REFERENCE_SIDE)
    return np.ascontiguousarray(image_HWC[::every, ::every])


def _as_bytes(image_HWC: Num[np.ndarray, "H W C"]) -> Num[np.ndarray, "H W C"]:
    if image_HWC.dtype == np.uint8:
        return image_HWC
    if image_HWC.dtype == np.uint16:
        return (image_HWC >> 8).astype(np.uint8)
    low, high = float(image_HWC.min()), float(image_HWC.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.rint((image_HWC - low) / (high - low or 1.0) * 255).astype(np.uint8)


def _validation(
    run: Path, channels: int, progress: Progress
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Read validation images of a run with their masks; none where its data isn't at hand."""
    if not (run / "recipe.yaml").is_file():
        progress.say("no run folder: proven on the bundle's reference sample, without truth")
        return [], []
    folder = RunFolder.open(run)
    recipe = folder.recipe()
    try:
        dataset = open_dataset(recipe.data, progress=SILENT)
        splits = folder.splits()
        records = [one for one in dataset.records if splits.get(one.id) == "val"]
        chosen = records[:: max(1, len(records) // MAX_IMAGES)][:MAX_IMAGES]
        # One whole image in memory at a time: they may be large.
        pairs = [_middle_of(read_sample(one, dataset.rule)) for one in chosen]
    except BinsegError as problem:
        progress.say(f"the run's data is not at hand ({problem}): proven without truth")
        return [], []
    images, truths = [], []
    for image_HWC, truth_HW in pairs:
        # Grey is repeated for a model of several channels; other numbers are left out.
        if image_HWC.shape[2] in (channels, 1):
            images.append(image_HWC.repeat(channels // image_HWC.shape[2], axis=2))
            truths.append(truth_HW)
    return images, truths


def _middle_of(sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut image and mask to their middle, of at most MAX_SIDE on a side."""
    height, width = sample.image_HWC.shape[:2]
    top, left = max(0, height - MAX_SIDE) // 2, max(0, width - MAX_SIDE) // 2
    middle = np.s_[top : top + MAX_SIDE, left : left + MAX_SIDE]
    mask_HW = None if sample.mask_HW is None else np.ascontiguousarray(sample.mask_HW[middle])
    return np.ascontiguousarray(sample.image_HWC[middle]), mask_HW
