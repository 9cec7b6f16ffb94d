"""A model against the truth of many images: the one loop behind validation and `evaluate`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32, Num
from pydantic import TypeAdapter

from binseg.data.dataset import Dataset, name_some
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import DataError, ImageError
from binseg.evaluation.report_files import make_folder
from binseg.imageio import IMAGE_SUFFIXES, read_labels
from binseg.inference import Predictor
from binseg.inference.predict_options import Inputs, Maps, Pixels, PredictOptions, Probability
from binseg.inference.predictor import ModelPredictor, Tell, untold
from binseg.metrics import (
    OutlineRule,
    ProbabilityTally,
    Reliability,
    check_columns,
    count,
    count_objects,
    measure_outline,
    measure_reliability,
    score_image,
    summarise,
)
from binseg.parallel import map_ordered
from binseg.postprocess import NOTHING
from binseg.progress import SILENT, Progress, track
from binseg.transforms.geometry import blend
from binseg.transforms.preprocess import prepare, prepare_truth
from binseg.types import (
    IGNORE,
    Counts,
    ImageScores,
    Placement,
    Preprocessing,
    Record,
    Report,
    Sample,
    Size,
)

_IMAGE = TypeAdapter(ImageScores)


def read_ahead(
    records: Sequence[Record], rule: MaskRule, shape: Preprocessing | None = None
) -> Iterator[Sample]:
    """Read samples in order as a model of this shape takes them, while it is busy with others."""
    return map_ordered(lambda one: read_sample(one, rule, shape), records, num_threads=1, ahead=2)


def score_dataset(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: str,
    title: str,
    by: Sequence[str] = (),
    outline: OutlineRule | None = None,
    folder: Path | None = None,
    predictor_of: Mapping[str, Predictor] | None = None,
    known: Sequence[Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Predict every image of a data set and compare it with its truth.

    The folder of the report is made at once, rather than refused after hours; the tolerance of the
    outline scores is 2 pixels if left out; columns of few values make slices without `by`.
    `predictor_of` gives each image's predictor by id, where it isn't one for all. What is `known`
    of all images, from `Scoring.as_dict`, isn't predicted again. Raises OutputError, ImageError (an
    image or mask that can't be read) and UsageError (no image has such a column).
    """
    check_columns(by, {name for record in dataset.records for name in record.columns})
    if folder is not None:
        make_folder(folder)
    scoring = Scoring(outline=outline)
    label = f"scoring {split}"
    if known is None:
        scoring.add(predictor, dataset, label=label, predictor_of=predictor_of, progress=progress)
    else:
        scoring.join(known, dataset)
    return scoring.report(dataset, [predictor], split=split, title=title, by=by)


class Scoring:
    """Adds up predicted images, of one model or of several, and reports on all of them."""

    def __init__(self, *, outline: OutlineRule | None = None) -> None:
        self._outline = outline or OutlineRule()
        self._tally = ProbabilityTally()
        self._images: list[ImageScores] = []
        self._reliabilities: dict[str, Reliability] = {}
        """By image, of those with a valid pixel."""

    def as_dict(self) -> dict[str, Any]:
        """Give all that was measured as plain data, for `join`."""
        reliabilities = {
            id_: {name: values.tolist() for name, values in vars(one).items()}
            for id_, one in self._reliabilities.items()
        }
        images = [asdict(replace(one, columns=dict(one.columns))) for one in self._images]
        return {"images": images, "reliabilities": reliabilities, "tally": self._tally.as_dict()}

    def join(self, parts: Sequence[Mapping[str, Any]], dataset: Dataset) -> None:
        """Take in what others measured of parts of a data set, in its order.

        Raises:
            DataError: an image that nobody measured, or one that the data set doesn't have.
        """
        scores: dict[str, ImageScores] = {}
        reliabilities: dict[str, Reliability] = {}
        for part in parts:
            scores |= {one["id"]: _IMAGE.validate_python(one) for one in part["images"]}
            reliabilities |= {
                id_: Reliability(**{name: np.array(values) for name, values in one.items()})
                for id_, one in part["reliabilities"].items()
            }
            self._tally.join(part["tally"])
        ids = [record.id for record in dataset.records]
        if odd := sorted(set(ids) ^ set(scores)):
            raise DataError(
                f"{len(odd)} images ({odd[0]} first) are in the data or in the shards alone: the "
                "data changed; run the shards again"
            )
        self._images += [scores[id_] for id_ in ids]
        self._reliabilities |= {id_: reliabilities[id_] for id_ in ids if id_ in reliabilities}

    def add(
        self,
        predictor: Predictor,
        dataset: Dataset,
        *,
        label: str,
        predictor_of: Mapping[str, Predictor] | None = None,
        progress: Progress = SILENT,
    ) -> None:
        """Predict and measure every image of a data set; `label` names the work for progress."""
        samples = track(
            read_ahead(
                dataset.records, dataset.rule, None if predictor_of else predictor.preprocessing
            ),
            progress=progress,
            label=label,
            total=len(dataset.records),
        )
        for record, sample in zip(dataset.records, samples, strict=True):
            self._add_sample((predictor_of or {}).get(record.id, predictor), record, sample)

    def _add_sample(self, predictor: Predictor, record: Record, sample: Sample) -> None:
        """Measure one image at its own size; count it at the model's too, where that is another."""
        assert sample.mask_HW is not None
        truth_HW, valid_HW = sample.mask_HW, sample.valid_HW
        if predictor.has_one_input:
            probability_HW, probability_hw, placement = predict_at_both_sizes(
                predictor, sample.image_HWC, sample.valid_HW.shape
            )
        else:
            probability_HW = predictor.predict(sample.image_HWC).probability
        mask_HW = predictor.mask_of(probability_HW)
        # Tiles are cut at the image's own scale, and an ensemble may have no size of its own.
        at_model_size = at_original_size = count(mask_HW, truth_HW, valid_HW)
        if predictor.has_one_input:
            target_hw = prepare_truth(truth_HW, valid_HW, (placement,))[0]
            at_model_size = count(
                probability_hw > predictor.threshold, target_hw == 1, target_hw != IGNORE
            )
        self._tally.add(probability_HW, truth_HW, valid_HW)
        reliability = measure_reliability(probability_HW, truth_HW, valid_HW)
        if valid_HW.any():
            self._reliabilities[record.id] = reliability
        counts: dict[Size, Counts] = {"original": at_original_size, "model": at_model_size}
        self._images.append(
            replace(
                score_image(record.id, counts, record.columns, group=record.group),
                outline=measure_outline(mask_HW, truth_HW, valid_HW, rule=self._outline),
                objects=count_objects(mask_HW, truth_HW, valid_HW),
                probability=reliability.scores,
            )
        )

    def report(
        self,
        dataset: Dataset,
        predictors: Sequence[Predictor],
        *,
        split: str,
        title: str,
        by: Sequence[str] = (),
    ) -> Report:
        """Report on all images so far; several models' threshold is their mean."""
        return summarise(
            self._images,
            title=title,
            bundle_id="+".join(one.bundle_id for one in predictors),
            split=split,
            threshold=sum(one.threshold for one in predictors) / len(predictors),
            border=dataset.rule.border or "none",
            rule=self._outline,
            reliabilities=list(self._reliabilities.values()),
            tally=self._tally,
            by=by,
            notes=(*_notes(dataset, predictors), *dataset.notes),
        )


def predict_at_both_sizes(
    predictor: Predictor,
    image_HWC: Num[np.ndarray, "h w C"],
    size: tuple[int, int] | None = None,
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "height width"], Placement]:
    """Predict an image of one input; give the probability at its own size and at the input's.

    `size` is the image's own, where it was reduced as it was decoded. The first one equals
    `predictor.predict(image).probability` to the bit.
    """
    assert predictor.preprocessing is not None
    inputs_NHWC, placements = prepare(image_HWC, predictor.preprocessing, size=size)
    assert len(placements) == 1, "stretch and letterbox make one input of an image"
    probability_NHW = predictor.probability_of_inputs(inputs_NHWC)
    height, width = size or image_HWC.shape[:2]
    probability_HW = blend(iter(probability_NHW), placements, height, width).clip(0.0, 1.0)
    return probability_HW, probability_NHW[0], placements[0]


def _notes(dataset: Dataset, predictors: Sequence[Predictor]) -> list[str]:
    """Say what must be read with the numbers of this data set."""
    first, border = predictors[0], dataset.rule.border
    remarks = dict.fromkeys(remark for one in predictors for remark in one.remarks)
    notes = [*remarks, f"Masks: {dataset.rule.describe()}."]
    num_corrected = sum(not one.postprocessing.is_empty for one in predictors)
    if num_corrected:
        whose = "the model's" if len(predictors) == 1 else f"{num_corrected} of the models' own"
        notes.append(
            f"Scores at original size are of post-processed masks ({whose} settings); "
            + ("those at the model's size, " if first.has_one_input else "")
            + "the curve over thresholds and the calibration are of the network alone."
        )
    if border is None:
        return notes
    notes.append(
        "The border rule moves the score of trimaps more than most models do: a perfect mask "
        "under border = background, scored under border = foreground, gets Dice 0.817 on "
        "Oxford-IIIT Pet's validation split. Compare only figures of one rule."
    )
    card = first.members[0].card if first.members else None
    trained_border = card.border if card is not None else None
    if trained_border not in (None, border):
        notes.append(
            f"The model was trained with border = {trained_border}, and is scored here with "
            f"border = {border}."
        )
    return notes


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
