"""Masks that any program has written, scored as a model's predictions are."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from binseg.data.dataset import Dataset, name_some
from binseg.errors import DataError, ImageError
from binseg.imageio import IMAGE_SUFFIXES, read_labels
from binseg.inference import Predictor
from binseg.inference.predict_options import Inputs, Maps, Pixels, PredictOptions, Probability
from binseg.inference.predictor import ModelPredictor, Tell, untold
from binseg.postprocess import NOTHING
from binseg.types import Record

_EXACTLY = "/"  # Before a path in the folder: it goes before names that are alike elsewhere
_ENDINGS = ("", "_mask", "_pred", "_prediction", "_seg", "-mask", "-pred")
"""Endings that programs add to an image's name to name its mask."""


class SavedMask(Predictor):
    """The mask that a file holds (0 and one other value) as the answer to one image.

    Without a path it stands for the whole folder that it is named by.
    """

    batch_size = 1
    threshold = 0.5
    postprocessing = NOTHING
    preprocessing = None
    name = ""

    def __init__(self, path: Path | None, *, name: str) -> None:
        self._path = path
        self.name = self.bundle_id = name

    @property
    def members(self) -> tuple[ModelPredictor, ...]:
        """No model."""
        return ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that must be read with its scores."""
        return ("Masks of files, not of a model: figures of probabilities say nothing.",)

    def with_options(self, options: PredictOptions) -> Self:
        """Return the same masks, which no setting changes."""
        del options
        return self

    def probability_of_image(
        self, image_HWC: Pixels, name: str = "the image", *, tell: Tell = untold
    ) -> Probability:
        """Read the mask as probabilities 0 and 1; ImageError for another size or more values."""
        assert self._path is not None, "a folder answers to nothing"
        labels = read_labels(self._path)
        if labels.shape != image_HWC.shape[:2]:
            raise ImageError(
                f"{self._path}: a mask of shape {labels.shape} for an image of "
                f"{image_HWC.shape[:2]}; give one value a pixel, at the image's size"
            )
        values = np.unique(labels)
        if np.count_nonzero(values) > 1:
            raise ImageError(
                f"{self._path}: values {', '.join(map(str, values[:6]))}; give masks of 0 and one "
                "other value"
            )
        mask_HW: Probability = (labels != 0).astype(np.float32)
        return mask_HW

    def probability_of_inputs(self, inputs_NHWC: Inputs) -> Maps:
        """Refuse: there is no network."""
        raise AssertionError("masks of files have no inputs")


def saved_masks(folder: Path, dataset: Dataset) -> dict[str, SavedMask]:
    """Find the mask of each record by its image's name; DataError where none is, or two may be."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; --predicted takes the folder of the masks")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            place = path.relative_to(folder).with_suffix("").as_posix()
            for name in (_EXACTLY + place, path.stem):
                files.setdefault(name, []).append(path)
    found = {one.id: _file_of(one, files, dataset.root) for one in dataset.records}
    if missing := [id_ for id_, path in found.items() if path is None]:
        raise DataError(
            f"{folder}: no mask for {len(missing)} of {len(found)} images: "
            f"{name_some(missing)}; masks have the names of their images"
        )
    if several := [path for path, num in Counter(found.values()).items() if path and num > 1]:
        names = name_some(path.relative_to(folder).as_posix() for path in several)
        raise DataError(f"{folder}: {names} would be of several images; keep their folders' names")
    return {id_: SavedMask(path, name=str(folder)) for id_, path in found.items()}


def _file_of(record: Record, files: Mapping[str, list[Path]], root: Path) -> Path | None:
    image = record.image_path
    places = [image.with_suffix(""), image]
    inside = [one.relative_to(root).as_posix() for one in places if one.is_relative_to(root)]
    page = "" if record.page is None else f"-page{record.page:04d}"
    names = (record.id, *inside, image.stem + page, image.name + page)
    for name in (*(_EXACTLY + one for one in names), *names):
        for ending in _ENDINGS:
            match files.get(name + ending, []):
                case [path]:
                    return path
                case [first, second, *_]:
                    raise DataError(
                        f"{first} and {second}: either may be the mask of {image}; keep one"
                    )
    return None
