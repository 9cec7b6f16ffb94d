"""One model with its preprocessing and threshold: images in, predictions out."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from html import escape
from typing import Self, get_args

import numpy as np
from jaxtyping import Float32, Num, UInt8

from binseg.errors import BundleError, TrainingError, UsageError
from binseg.inference.images import ImageLike, pixels_of
from binseg.inference.prediction import Prediction
from binseg.inference.runtimes import Backend
from binseg.packaging import Bundle, Card
from binseg.postprocess.steps import NOTHING, PostProcessing
from binseg.transforms.geometry import blend, plan, tiles_for
from binseg.transforms.preprocess import normalise, prepare_batches
from binseg.types import TTA, Preprocessing

__all__ = ["Predictor", "mean_of", "sigmoid"]

_AXES: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (2,)),
    "all": ((), (2,), (1,), (1, 2)),
}

_KEPT_PIXELS = 64_000_000
"""Larger images don't stay in their Prediction."""


class Predictor:
    """A model with its preprocessing and threshold: images in, predictions out.

    Args:
        backend: what computes the logits.
        preprocessing: how images become inputs; the model was trained with it.
        threshold: the probability above which a pixel is foreground.
        bundle_id: goes into every prediction.
        batch_size: largest number of inputs given to the backend at once.
        bundle: where the model comes from; None for one that is in training.
        tta: which mirror images are averaged.
        temperature: divides the logits, so that probabilities mean what they say.
        postprocessing: corrections of every mask.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        preprocessing: Preprocessing,
        threshold: float,
        bundle_id: str,
        batch_size: int = 8,
        bundle: Bundle | None = None,
        tta: TTA = "none",
        temperature: float = 1.0,
        postprocessing: PostProcessing = NOTHING,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: give 1 or more")
        if tta not in get_args(TTA):
            raise UsageError(f"tta {tta!r}: give one of {', '.join(get_args(TTA))}")
        _check_threshold(threshold)
        assert temperature > 0, "a temperature of 0 or below would turn the answer round"
        self.backend = backend
        self.preprocessing = preprocessing
        self._own_pixels = preprocessing.height * preprocessing.width
        self.threshold = threshold
        self.temperature = temperature
        self.bundle_id = bundle_id
        self.batch_size = batch_size
        self.bundle = bundle
        self.tta = tta
        self.postprocessing = postprocessing

    @property
    def name(self) -> str:
        """What reports call the model."""
        name = self.card.name if self.card else "model"
        return name if self.tta == "none" else f"{name}, tta {self.tta}"

    @property
    def members(self) -> "tuple[Predictor, ...]":
        """The single models that answer."""
        return (self,)

    @property
    def has_one_input(self) -> bool:
        """Whether an image becomes exactly one input, of one size for all members."""
        return self.preprocessing.resize != "tile"

    @property
    def shares_inputs(self) -> bool:
        """Whether all members take the same inputs of an image."""
        return True

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that must be read with its scores."""
        if self.card is None or self.tta == self.card.tta:
            return ()
        own = "without tta" if self.card.tta == "none" else f"with tta {self.card.tta}"
        return (f"The threshold was chosen {own}, the answers are of tta {self.tta}.",)

    def with_threshold(self, threshold: float) -> Self:
        """Return the same model with another threshold.

        Raises:
            UsageError: a threshold outside [0, 1].
        """
        _check_threshold(threshold)
        other = copy(self)
        other.threshold = threshold
        return other

    def with_postprocessing(self, postprocessing: PostProcessing) -> Self:
        """Return the same model with other corrections of its masks."""
        other = copy(self)
        other.postprocessing = postprocessing
        return other

    def with_tta(self, tta: TTA) -> Self:
        """Return the same model that averages other mirror images."""
        other = copy(self)
        other.tta = tta
        return other

    def with_tiles(
        self, *, scale: float = 1.0, size: int | None = None, overlap: float | None = None
    ) -> Self:
        """Return the same model with other tiles, for images unlike those it was trained on.

        Args:
            scale: what images are resized by beforehand: 0.5 for pixels of 0.25 um where the
                model learnt from 0.5 um.
            size: height and width of a tile, instead of the model's input. Larger ones show the
                model more of the surroundings, and take more memory.
            overlap: share of a tile that overlaps its neighbour.

        Raises:
            UsageError: values out of range, or a model that takes whole images.
        """
        shape = self.preprocessing
        if shape.resize != "tile":
            raise UsageError(
                f"{self.name} resizes whole images to {shape.width} x {shape.height}, so that "
                "there are no tiles and no scale to set; train with input.resize: tile for that"
            )
        if not 0.01 <= scale <= 100:
            raise UsageError(f"scale {scale:g}: give a factor from 0.01 to 100")
        if size is not None and not (32 <= size <= 8192 and size % 32 == 0):
            # Exported networks are proven at the multiples of their coarsest stride.
            raise UsageError(f"tiles of {size} pixels: give a multiple of 32 from 32 to 8192")
        if overlap is not None and not 0 <= overlap <= 0.9:
            raise UsageError(f"overlap {overlap:g}: give a share of the tile from 0 to 0.9")
        other = copy(self)
        other.preprocessing = replace(
            shape,
            scale=shape.scale * scale,
            height=shape.height if size is None else size,
            width=shape.width if size is None else size,
            overlap=shape.overlap if overlap is None else overlap,
            largest_tile=shape.largest_tile if size is None else 0,
        )
        return other

    @property
    def card(self) -> Card | None:
        """What the model's bundle says about it; None for a model in training."""
        return self.bundle.card if self.bundle else None

    def batch_for(self, height: int, width: int) -> int:
        """How many inputs of an image of this size are computed at once.

        `batch_size` of those of the model's own size; of larger tiles as many as hold no more
        pixels, at least one.
        """
        shape = tiles_for(height, width, self.preprocessing)
        return self._batch_of(shape.height, shape.width)

    def _batch_of(self, height: int, width: int) -> int:
        own = self._own_pixels
        return max(1, self.batch_size * own // max(own, height * width))

    def predict(self, image: ImageLike, *, page: int | None = None) -> Prediction:
        """Find the foreground in one image, at the image's own size.

        Args:
            image: a path, an array or a PIL image (EXIF turns are applied to both files and PIL
                images). Arrays are height x width or height x width x channels: uint8 and uint16
                by their full range, bool as black and white, floats in [0, 1] (any range where
                the model was trained with `intensity: percentile`).
            page: the page of a multi-page file, from 0.

        Raises:
            UsageError: something that isn't an image.
            ImageError: an image that can't be read, or doesn't fit the model's channels.
        """
        image_HWC, name = pixels_of(image, page)
        height, width = image_HWC.shape[:2]
        return Prediction(
            probability_HW=self.probability_of_image(image_HWC, name),
            threshold=self.threshold,
            bundle_id=self.bundle_id,
            postprocessing=self.postprocessing,
            image_HWC=image_HWC if height * width <= _KEPT_PIXELS else None,
        )

    def prediction_of(
        self,
        image_HWC: Num[np.ndarray, "H W C"],
        maps_NHW: Float32[np.ndarray, "N height width"],
    ) -> Prediction:
        """Bring the probability of an image's inputs back to the image's size.

        Args:
            image_HWC: the image.
            maps_NHW: what `probability_of_inputs` gave for the inputs that `preprocess.prepare`
                made of it: the way to compute inputs of several images in one batch.
        """
        height, width = image_HWC.shape[:2]
        return Prediction(
            probability_HW=self._blended(maps_NHW, height, width),
            threshold=self.threshold,
            bundle_id=self.bundle_id,
            postprocessing=self.postprocessing,
            image_HWC=image_HWC if height * width <= _KEPT_PIXELS else None,
        )

    def probability_of_image(
        self, image_HWC: Num[np.ndarray, "H W C"], name: str = "the image"
    ) -> Float32[np.ndarray, "H W"]:
        """The probability at the image's own size; errors call the image `name`."""
        height, width = image_HWC.shape[:2]
        batches = prepare_batches(
            image_HWC, self.preprocessing, batch_size=self.batch_for(height, width), name=name
        )
        maps = (one for inputs, _ in batches for one in self.probability_of_inputs(inputs))
        return self._blended(maps, height, width)

    def _blended(
        self, maps: Iterable[Float32[np.ndarray, "height width"]], height: int, width: int
    ) -> Float32[np.ndarray, "H W"]:
        probability_HW = blend(maps, plan(height, width, self.preprocessing), height, width)
        # Interpolation and the window's weights may leave [0, 1] by a rounding error.
        np.clip(probability_HW, 0.0, 1.0, out=probability_HW)
        return probability_HW

    def predict_many(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Predict images one after the other, as they are asked for; memory stays flat.

        Args:
            images: as `predict` takes them; may be endless.
        """
        for image in images:
            yield self.predict(image)

    def probability_of_inputs(
        self, inputs_NHWC: UInt8[np.ndarray, "N height width channels"]
    ) -> Float32[np.ndarray, "N height width"]:
        """The probability for inputs that are prepared already (`preprocess.prepare`).

        Args:
            inputs_NHWC: any number of them; they are computed `batch_size` at a time.

        Raises:
            BundleError: the model of a bundle gives NaN or infinity.
            TrainingError: the model in training does.
        """
        shape = self.preprocessing
        size = inputs_NHWC.shape[1:3]
        assert size == (shape.height, shape.width) or shape.largest_tile, size
        assert inputs_NHWC.shape[3] == shape.channels
        probability_NHW = np.empty(inputs_NHWC.shape[:3], np.float32)
        num = self._batch_of(*size)
        for start in range(0, len(inputs_NHWC), num):
            batch = slice(start, start + num)
            probability_NHW[batch] = self._mean_over_tta(inputs_NHWC[batch])
        return probability_NHW

    def _mean_over_tta(
        self, inputs_BHWC: UInt8[np.ndarray, "B height width channels"]
    ) -> Float32[np.ndarray, "B height width"]:
        """Predict every mirror image, turn the answers back, and average them.

        Logits are averaged, so that the temperature and a threshold that was moved with it cut the
        mean just where they would cut one answer.
        """
        all_axes = _AXES[self.tta]
        total_BHW: Float32[np.ndarray, "B height width"] | None = None
        for axes in all_axes:
            view_BHWC = np.flip(inputs_BHWC, axes)
            logits_BHW = self.backend.logits(normalise(view_BHWC, self.preprocessing))
            if not np.isfinite(logits_BHW).all():
                raise self._not_finite()
            turned_BHW = np.flip(logits_BHW, axes)
            total_BHW = turned_BHW if total_BHW is None else total_BHW + turned_BHW
        assert total_BHW is not None
        return sigmoid(total_BHW / np.float32(len(all_axes) * self.temperature))

    def _not_finite(self) -> BundleError | TrainingError:
        how = f"the model gives NaN or infinity ({self.backend.name}, {self.backend.precision})"
        if self.bundle:
            return BundleError(f"{self.bundle.path}: {how}; its training diverged, train it again")
        return TrainingError(f"{how}: training diverged; lower the learning rate or use fp32")

    def __repr__(self) -> str:
        shape = self.preprocessing
        name = f"{self.card.name!r}, {self.card.architecture.name}, " if self.card else ""
        return (
            f"Predictor({name}{shape.height}x{shape.width} {shape.resize}, threshold "
            f"{self.threshold:g}, {self.backend.name} {self.backend.precision}, "
            f"bundle {self.bundle_id})"
        )

    def _repr_html_(self) -> str:
        """The card's table, as notebooks show it."""
        rows = [*(self.card.rows() if self.card else [("bundle", self.bundle_id)])]
        rows.append(("computed by", f"{self.backend.name}, {self.backend.precision}"))
        lines = "".join(
            f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in rows
        )
        return f"<table>{lines}</table>"


def mean_of(maps: Sequence[Float32[np.ndarray, "*shape"]]) -> Float32[np.ndarray, "*shape"]:
    """Average probabilities."""
    total = maps[0].copy()
    for one in maps[1:]:
        total += one
    total /= np.float32(len(maps))
    # The sum of float32 may pass 1 by a rounding error.
    clipped: np.ndarray = np.clip(total, 0.0, 1.0, out=total)
    return clipped


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold {threshold:g}: give a probability from 0 to 1")


def sigmoid(logits: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """The logistic function, which neither overflows nor loses small probabilities.

    >>> sigmoid(np.float32([-200, 0, 200])).tolist()
    [0.0, 0.5, 1.0]
    """
    # exp of a negative number only; scipy's expit would do, but costs its import at each start.
    power = np.exp(-np.abs(logits))
    result: np.ndarray = np.where(logits >= 0, np.float32(1), power) / (np.float32(1) + power)
    return result
