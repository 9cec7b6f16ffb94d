"""Masks for files: as a stream, in bounded memory, resumable."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from jaxtyping import Num

from binseg.errors import DataError, ImageError, MissingExtraError, UsageError
from binseg.imageio import probe, read_facts, read_georeference, read_pixel_size
from binseg.inference import Prediction, Predictor
from binseg.inference.inputs import (
    Failure,
    InputImage,
    failure_of,
    find_images,
    name_answers,
    refuse_overwriting,
)
from binseg.inference.large import predict_large
from binseg.inference.outputs import Answer, OutputKinds, write_outputs
from binseg.inference.overlap import predictions
from binseg.progress import SILENT, Progress, track

__all__ = ["Failure", "PredictResult", "Written", "predict_files"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """One image's answer on disk."""

    source: Path
    page: int | None
    """The page of a multi-page file, from 0."""
    mask: Path
    others: tuple[Path, ...]
    """Overlay, cut-out, outlines and so on, as asked."""
    foreground: float
    """Share of the pixels that are foreground."""


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """What was written and what was not."""

    written: tuple[Written, ...]
    failures: tuple[Failure, ...]
    num_skipped: int = 0
    """Images whose answers an earlier run had written (resume)."""

    def __add__(self, other: "PredictResult") -> "PredictResult":
        """Both together."""
        return PredictResult(
            written=self.written + other.written,
            failures=self.failures + other.failures,
            num_skipped=self.num_skipped + other.num_skipped,
        )

    @property
    def num_inputs(self) -> int:
        """Images (and inputs that are none) in all."""
        return len(self.written) + len(self.failures) + self.num_skipped

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "written": [
                {
                    "source": str(one.source),
                    "page": one.page,
                    "mask": str(one.mask),
                    "others": [str(path) for path in one.others],
                    "foreground": one.foreground,
                }
                for one in self.written
            ],
            "failures": [{"source": one.source, "reason": one.reason} for one in self.failures],
            "skipped": self.num_skipped,
        }


def predict_files(
    predictor: Predictor,
    inputs: Iterable[str | Path],
    *,
    out: str | Path,
    kinds: OutputKinds | None = None,
    tolerance: float = 0.0,
    threshold: float | None = None,
    overwrite: bool = False,
    resume: bool = False,
    owners: dict[Path, Path] | None = None,
    progress: Progress = SILENT,
) -> PredictResult:
    """Write a 0/255 mask for every image, at the image's own size.

    Args:
        predictor: the model.
        inputs: files, folders (with the folders in them, whose structure is kept) and globs.
        out: folder for the masks.
        kinds: which files each image gets; a PNG mask if left out.
        tolerance: by how many pixels outlines may be simplified.
        threshold: instead of the model's own.
        overwrite: replace files of an earlier run; inputs are never replaced.
        resume: leave out images whose answers are there already, if they are of these images,
            this model and these settings.
        owners: the image behind each answer of earlier rounds (`watch`).
        progress: told of every image.

    Returns:
        What was written; inputs that failed are in it too, and stop nothing.

    Raises:
        UsageError: an answer would replace a file that is there, or one that was to be kept is of
            another image, model or setting.
        OutputError: an answer can't be written.
    """
    out = Path(out)
    chosen = kinds or OutputKinds()
    if threshold is not None:
        predictor = predictor.with_threshold(threshold)
    # Other answers than masks and probabilities are made page by page.
    per_page = any((chosen.overlay, chosen.cutout, chosen.geojson, chosen.coco, chosen.table))
    images, failures = find_images(inputs, out, whole_stacks=not per_page)
    stems = name_answers(images, out, chosen, progress, owners=owners)
    refuse_overwriting(
        (image.path for image in images),
        (file for one in zip(images, stems, strict=True) for file in _files_of(*one, chosen)),
        allowed=overwrite or resume,
    )
    both = list(zip(images, stems, strict=True))
    if resume:
        both = [one for one in both if not _is_answered(predictor, *one, chosen)]
    large = [one for one in both if one[0].is_large]
    asked = [one for one in both if not one[0].is_large]
    if len(both) < len(images):
        progress.say(f"{len(images) - len(both)} of {len(images)} are there already")

    def finish(index: int, image_HWC: Num[np.ndarray, "H W C"], prediction: Prediction) -> Written:
        image, stem = asked[index]
        answer = answer_of(image, image_HWC, prediction, kinds=chosen, tolerance=tolerance)
        return _write(answer, image, stem, chosen)

    written = []
    answers = predictions(predictor, [image for image, _ in asked], finish)
    labelled = track(answers, progress=progress, label="predicting", total=len(asked))
    for (image, _), answer in zip(asked, labelled, strict=True):
        if isinstance(answer, ImageError):
            failures.append(failure_of(image.path, answer))
        else:
            written.append(answer)
    for image, stem in large:
        if per_page:
            progress.say(f"{image.path}: too large for other answers than mask and probability")
        try:
            written.append(
                _predict_large(
                    predictor,
                    image,
                    stem,
                    probability=chosen.probability,
                    overwrite=overwrite or resume,
                    progress=progress,
                )
            )
        except (DataError, MissingExtraError) as error:
            failures.append(failure_of(image.path, str(error)))
    return PredictResult(
        written=tuple(written),
        failures=tuple(failures),
        num_skipped=len(images) - len(both),
    )


def _is_answered(predictor: Predictor, image: InputImage, stem: Path, kinds: OutputKinds) -> bool:
    """Whether all answers to an image are there, made as they would be now."""
    files = _files_of(image, stem, kinds)
    if not all(file.exists() for file in files):
        return False
    made = read_facts(files[0])
    expected = {
        "image": ("path_hash", _hash_of_path(image)),
        "model": ("model", predictor.bundle_id),
        "threshold": ("threshold", predictor.threshold),
        "post-processing": ("postprocess", predictor.postprocessing.as_dict()),
    }
    for noun, (key, value) in expected.items():
        if made.get(key, value) != value:
            raise UsageError(
                f"{files[0]} is of another {noun}; choose another folder with --out, or replace "
                "what is there with --overwrite"
            )
    return True


def _hash_of_path(image: InputImage) -> str:
    """What tells images of one name apart, without naming anybody's folders."""
    place = f"{image.path.resolve()}#{image.page}"
    return blake2b(place.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _files_of(image: InputImage, stem: Path, kinds: OutputKinds) -> list[Path]:
    """The answers that an image gets."""
    if not image.is_large:
        return list(kinds.files(stem))
    mask = _large_mask(stem)
    return [mask, *([mask.with_stem(f"{mask.stem}_probability")] if kinds.probability else [])]


def _large_mask(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.tif")


def _predict_large(
    predictor: Predictor,
    image: InputImage,
    stem: Path,
    *,
    probability: bool,
    overwrite: bool,
    progress: Progress,
) -> Written:
    """A huge image or a stack, in parts; its mask is a TIFF with as many pages."""
    made = predict_large(
        predictor,
        image.path,
        out=_large_mask(stem),
        probability="float32" if probability else None,
        overwrite=overwrite,
        progress=progress,
    )
    return Written(
        source=image.path,
        page=None,
        mask=made.mask,
        others=() if made.probability is None else (made.probability,),
        foreground=made.foreground,
    )


def answer_of(
    image: InputImage,
    image_HWC: Num[np.ndarray, "H W C"],
    prediction: Prediction,
    *,
    kinds: OutputKinds,
    tolerance: float = 0.0,
) -> Answer:
    """Put a prediction and what the image's file says about the world together."""
    wants_place = kinds.mask == "tif" or kinds.geojson or kinds.probability
    wants_size = kinds.table or kinds.geojson
    # The file's own axes, which an image that was turned by its EXIF no longer has.
    is_turned = (wants_place or wants_size) and probe(image.path).turned
    return Answer(
        prediction=prediction,
        image_HWC=image_HWC,
        name=image.path.name,
        pixel_size=read_pixel_size(image.path) if wants_size and not is_turned else None,
        georeference=read_georeference(image.path) if wants_place and not is_turned else None,
        tolerance=tolerance,
        path_hash=_hash_of_path(image),
    )


def _write(answer: Answer, image: InputImage, stem: Path, kinds: OutputKinds) -> Written:
    paths: Sequence[Path] = write_outputs(answer, stem=stem, kinds=kinds)
    return Written(
        source=image.path,
        page=image.page,
        mask=paths[0],
        others=tuple(paths[1:]),
        foreground=float(answer.mask_HW.mean()),
    )
