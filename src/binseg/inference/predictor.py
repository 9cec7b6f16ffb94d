"""One model with its preprocessing and threshold: images in, predictions out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Protocol, Self, TypedDict, TypeVar, Unpack, overload, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt

from binseg.errors import BundleError, TrainingError, UsageError
from binseg.imageio import PixelSize
from binseg.imageio.decoding import both_valid, without
from binseg.inference.predict_options import (
    ImageLike,
    Inputs,
    Maps,
    Pixels,
    PredictOptions,
    Probability,
    pixels_of,
)
from binseg.inference.prediction import KEPT_PIXELS, Prediction
from binseg.inference.quality import NAMES, NUM_OF_IMAGE, NUM_SIGNS, Judge
from binseg.inference.runtimes import Backend
from binseg.packaging import Bundle, Card
from binseg.postprocess import NOTHING, PostProcessing, segment
from binseg.transforms.geometry import SmallMap, blend, plan, tiles_for
from binseg.transforms.preprocess import Size, normalise, prepare, prepare_batches
from binseg.types import TTA, Preprocessing

SAME_SCALE = 0.05  # difference of two pixel sizes that is none
Tell = Callable[[int], object]  # hears of units of work as they are done
_Image = TypeVar("_Image", bound=ImageLike)
_AXES: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (2,)),
    "all": ((), (2,), (1,), (1, 2)),
}


class _How(TypedDict, total=False):
    page: int | None
    batch_size: int | None
    options: PredictOptions | None


def untold(_: int) -> None:
    """Tell nobody."""


@runtime_checkable
class Predictor(Protocol):
    """A predictor of images: one model (`ModelPredictor`), or several (`EnsemblePredictor`)."""

    bundle_id: str
    threshold: float
    postprocessing: PostProcessing
    batch_size: int
    preprocessing: Preprocessing | None
    """The way from images to inputs; None for an ensemble whose members have ways of their own."""

    @property
    def name(self) -> str:
        """The model's name in reports."""

    @property
    def members(self) -> "tuple[ModelPredictor, ...]":
        """The single models that answer."""

    @property
    def nodata(self) -> set[float]:
        """The values that its members were told to be no data."""
        return {x for one in self.members if (x := one.preprocessing.nodata) is not None}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that must be read with its scores."""

    def with_options(self, options: PredictOptions) -> Self:
        """Return the same model with other settings; the one place where options take effect.

        Raises UsageError for tiles or a scale for a model that takes whole images.
        """
        other = copy(self)
        other.postprocessing = options.postprocessing_for(self.postprocessing)
        other.threshold = self.threshold if options.threshold is None else options.threshold
        return other

    def scaled_to(self, pixel_size: PixelSize | None, options: PredictOptions) -> "Predictor":
        """Return a predictor that resizes an image of such pixels to the model's; often itself.

        Raises UsageError where `options` name a pixel size, and the model knows none or takes whole
        images.
        """
        asked, judge, shape = options.pixel_size, self.judge, self.preprocessing
        own = judge.knowledge.pixel_um if judge else None
        is_tiled = shape is not None and shape.resize == "tile"
        if asked is not None and not (own and is_tiled):
            why = "takes whole images" if not is_tiled else "doesn't know the pixels it learnt from"
            raise UsageError(
                f"{self.name} {why}, so a pixel size says nothing to it; leave it out"
                + (", or give --scale" if is_tiled else "")
            )
        have = (pixel_size.height * pixel_size.width) ** 0.5 if pixel_size else asked
        if not own or not is_tiled or have is None or options.scale != 1.0:
            return self
        factor = have / own
        is_same = abs(factor - 1) < SAME_SCALE
        return self if is_same else self.with_options(PredictOptions(scale=factor))

    def probability_of_image(
        self, image_HWC: Pixels, name: str = "the image", *, tell: Tell = untold
    ) -> Probability:
        """Compute the probability at an image's own size; `tell` hears of inputs as done."""
        assert self.preprocessing is not None, "members with inputs of their own are asked each"
        height, width = image_HWC.shape[:2]
        num = min(one.batch_for(height, width) for one in self.members)
        batches = prepare_batches(image_HWC, self.preprocessing, batch_size=num, name=name)

        def maps() -> Iterator[Float32[np.ndarray, "height width"]]:
            for inputs_BHWC, _ in batches:
                yield from self.probability_of_inputs(inputs_BHWC)
                tell(len(inputs_BHWC))

        return _blended(maps(), height, width, self.preprocessing)

    def probability_of_inputs(self, inputs_NHWC: Inputs) -> Maps:
        """Compute the probability for inputs that `preprocess.prepare` made, in batches.

        NaN or infinity is a BundleError, of a model in training a TrainingError.
        """

    @property
    def judge(self) -> Judge | None:
        """The judge of its predictions; None for an ensemble, or a model that learnt nothing."""
        return None

    @property
    def has_one_input(self) -> bool:
        """True where an image becomes exactly one input, of one size for all members."""
        return self.preprocessing is not None and self.preprocessing.resize != "tile"

    def num_inputs(self, height: int, width: int) -> int:
        """Count the inputs of an image, all members together; known without listing them."""
        shapes = [self.preprocessing] if self.preprocessing else []
        return sum(
            len(plan(height, 1, shape)) * len(plan(1, width, shape))
            for shape in shapes or [one.preprocessing for one in self.members]
        )

    def shares_batches(self, height: int, width: int) -> bool:
        """Tell whether all inputs of such an image fit into one batch, beside those of others."""
        most = min(one.batch_for(height, width) for one in self.members)
        return self.preprocessing is not None and self.num_inputs(height, width) <= most

    @overload
    def predict(self, images: ImageLike, **how: Unpack[_How]) -> Prediction: ...
    @overload
    def predict(
        self, images: list[_Image] | tuple[_Image, ...], **how: Unpack[_How]
    ) -> list[Prediction]: ...
    def predict(
        self,
        images: object,
        *,
        page: int | None = None,
        batch_size: int | None = None,
        options: PredictOptions | None = None,
    ) -> Prediction | list[Prediction]:
        """Find the foreground in an image, or in each of a list, at the image's own size.

        The images of a list share batches, whatever their sizes.

        Args:
            images: a path, an array or a PIL image, or a list of these (EXIF turns are applied to
                files and PIL images). Arrays are height x width or height x width x channels:
                uint8 and uint16 by their full range, bool as black and white, floats in [0, 1]
                (any range where the model was trained with `intensity: percentile`).
            page: the page of a multi-page file, from 0.
            batch_size: most inputs that are computed at once, instead of the model's.
            options: other settings than the model's own.

        Returns:
            One prediction for one image, a list for a list.

        Raises:
            UsageError: something that isn't an image.
            ImageError: an image that can't be read, or doesn't fit the model's channels.
        """
        asked = options or PredictOptions()
        chosen = self.with_options(replace(asked, batch_size=batch_size or asked.batch_size))
        if not isinstance(images, list | tuple):
            return chosen._together([images], page, asked)[0]
        num = chosen.batch_size
        groups = (images[start : start + num] for start in range(0, len(images), num))
        return [one for group in groups for one in chosen._together(group, page, asked)]

    def predict_many(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Predict images, perhaps endlessly many, one by one as they are asked for."""
        for image in images:
            yield self.predict(image)

    def predict_array(
        self,
        image_HWC: Pixels,
        *,
        read_as: str = "the image",
        tell: Tell = untold,
        size: Size | None = None,
        **facts: Any,
    ) -> Prediction:
        """Predict decoded pixels, which errors call `read_as`; `size` is the image's own."""
        if self.has_one_input and self.preprocessing is not None:
            inputs, _ = prepare(image_HWC, self.preprocessing, name=read_as, size=size)
            maps_NHW = self.probability_of_inputs(inputs)
            tell(1)
            return self.prediction_of(image_HWC, maps_NHW, size=size, **facts)
        probability_HW = self.probability_of_image(image_HWC, read_as, tell=tell)
        return self._prediction(image_HWC, facts, probability_HW)

    def probabilities_together(
        self, inputs: Sequence[UInt[np.ndarray, "_ _ _ C"]]
    ) -> list[Float32[np.ndarray, "_ _ _"]]:
        """Compute the inputs of several images; those of one size share batches."""
        maps: dict[int, np.ndarray] = {}
        for size in {one.shape[1:] for one in inputs}:
            which = [index for index, one in enumerate(inputs) if one.shape[1:] == size]
            joined_NHWC = np.concatenate([inputs[index] for index in which])
            ends = np.cumsum([len(inputs[index]) for index in which])
            parts = np.split(self.probability_of_inputs(joined_NHWC), ends[:-1])
            maps.update(zip(which, parts, strict=True))
        return [maps[index] for index in range(len(inputs))]

    def prediction_of(
        self, image_HWC: Pixels, maps_NHW: Maps, *, size: Size | None = None, **facts: Any
    ) -> Prediction:
        """Bring the maps of an image's inputs back to its size; `facts` go into the Prediction."""
        assert self.preprocessing is not None, "members have no inputs in common"
        height, width = size or image_HWC.shape[:2]
        small = None
        if self.has_one_input and facts.get("valid_HW") is None:
            (placement,) = plan(height, width, self.preprocessing)
            small = SmallMap.of(maps_NHW[0], placement)
        found = small or _blended(maps_NHW, height, width, self.preprocessing)
        return self._prediction(image_HWC, facts, found)

    def mask_of(self, probability_HW: Probability) -> Bool[np.ndarray, "H W"]:
        """Cut probabilities at the threshold and correct the mask, as every prediction does."""
        return segment(probability_HW, self.threshold, self.postprocessing)

    def _prediction(
        self, image_HWC: Pixels, facts: dict[str, Any], found: Probability | SmallMap
    ) -> Prediction:
        for value in self.nodata:
            image_HWC, declared_HW = without(image_HWC, value)
            facts = {**facts, "valid_HW": both_valid(facts.get("valid_HW"), declared_HW)}
        if (valid_HW := facts.get("valid_HW")) is not None:
            found = found.whole() if isinstance(found, SmallMap) else found
            found = np.where(valid_HW, found, np.float32(0))
        height, width = found.size if isinstance(found, SmallMap) else found.shape
        return Prediction(
            probability_HW=found,
            threshold=self.threshold,
            bundle_id=self.bundle_id,
            postprocessing=self.postprocessing,
            image_HWC=image_HWC if height * width <= KEPT_PIXELS else None,
            judge=self.judge,
            **facts,
        )

    def _together(
        self, images: Sequence[object], page: int | None, options: PredictOptions
    ) -> list[Prediction]:
        """Predict some images, in one batch as far as they can share it."""
        read = [pixels_of(image, page, self.preprocessing) for image in images]
        fit = [self.scaled_to(facts.get("pixel_size"), options) for _, _, facts in read]
        inputs = {
            index: prepare(image_HWC, self.preprocessing, name=name, size=facts.get("size"))[0]
            for index, (image_HWC, name, facts) in enumerate(read)
            if len(read) > 1
            and fit[index] is self
            and self.preprocessing
            and self.shares_batches(*facts.get("size", image_HWC.shape[:2]))
        }
        maps = dict(zip(inputs, self.probabilities_together([*inputs.values()]), strict=True))
        return [
            self.prediction_of(image_HWC, maps[index], **facts)
            if index in maps
            else fit[index].predict_array(image_HWC, read_as=name, **facts)
            for index, (image_HWC, name, facts) in enumerate(read)
        ]


@dataclass(kw_only=True, eq=False, repr=False)
class ModelPredictor(Predictor):
    """A model with its preprocessing and threshold."""

    backend: Backend
    preprocessing: Preprocessing
    threshold: float
    bundle_id: str
    batch_size: int = 8  # most inputs of the model's own size that are computed at once
    bundle: Bundle | None = None  # None for a model that is in training
    tta: TTA = "none"
    temperature: float = 1.0  # divides the logits, so that probabilities mean what they say
    postprocessing: PostProcessing = NOTHING

    def __post_init__(self) -> None:
        # refuses odd values
        PredictOptions(threshold=self.threshold, tta=self.tta, batch_size=self.batch_size)
        assert self.temperature > 0, "a temperature of 0 or below would invert the answer"
        self._own_pixels = self.preprocessing.height * self.preprocessing.width

    @classmethod
    def of_bundle(cls, bundle: Bundle, backend: Backend, **changes: Any) -> Self:
        """Make the predictor of a bundle, by its card, without tta and post-processing."""
        card = bundle.card
        return cls(
            backend=backend,
            preprocessing=card.preprocessing,
            threshold=card.threshold.value,
            bundle_id=card.id,
            temperature=card.temperature,
            bundle=bundle,
            **changes,
        )

    @property
    def name(self) -> str:
        """The card's name for it, and its test-time augmentation."""
        name = self.card.name if self.card else "model"
        return name if self.tta == "none" else f"{name}, tta {self.tta}"

    @property
    def card(self) -> Card | None:
        """The card of the model's bundle; None for a model in training."""
        return self.bundle.card if self.bundle else None

    @property
    def judge(self) -> Judge | None:
        """The judge of its predictions; None where the card has no knowledge of these figures."""
        known = self.card.knowledge if self.card else None
        if known is None or known.names != NAMES or not known.references:
            return None
        fits = len(known.coefficients) in (0, NUM_SIGNS + 1)
        fits &= all(len(one) == NUM_OF_IMAGE + 1 for one in known.scales)
        return Judge(knowledge=known, preprocessing=self.preprocessing) if fits else None

    @property
    def members(self) -> "tuple[ModelPredictor, ...]":
        """The model alone."""
        return (self,)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that must be read with its scores."""
        if self.card is None or self.tta == self.card.tta:
            return ()
        own = "without tta" if self.card.tta == "none" else f"with tta {self.card.tta}"
        return (f"The threshold was chosen {own}, the predictions are of tta {self.tta}.",)

    def with_options(self, options: PredictOptions) -> Self:
        """Return the same model with other settings."""
        other = super().with_options(options)
        other.preprocessing = options.preprocessing_for(self.preprocessing, name=self.name)
        other.tta = options.tta or self.tta
        other.batch_size = options.batch_size or self.batch_size
        return other

    def batch_for(self, height: int, width: int) -> int:
        """Tell how many inputs of an image of this size hold no more pixels than a batch."""
        shape = tiles_for(height, width, self.preprocessing)
        return self._batch_of(shape.height, shape.width)

    def _batch_of(self, height: int, width: int) -> int:
        own = self._own_pixels
        return max(1, self.batch_size * own // max(own, height * width))

    def probability_of_inputs(self, inputs_NHWC: Inputs) -> Maps:
        """Compute the probability for inputs that are prepared already, in batches."""
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

    def _mean_over_tta(self, inputs_BHWC: Inputs) -> Maps:
        """Predict every mirror image, and average the logits, so that thresholds cut as in one."""
        total_BHW: Any = np.float32(0)
        for axes in _AXES[self.tta]:
            view_BHWC = np.flip(inputs_BHWC, axes)
            logits_BHW = self.backend.logits(normalise(view_BHWC, self.preprocessing))
            if not np.isfinite(logits_BHW).all():
                what = f"the model gives NaN or infinity ({self._runtime}): training diverged"
                if self.bundle is None:
                    raise TrainingError(f"{what}; lower the learning rate or use fp32")
                raise BundleError(f"{self.bundle.path}: {what}; train it again")
            total_BHW = total_BHW + np.flip(logits_BHW, axes)
        return sigmoid(total_BHW / np.float32(len(_AXES[self.tta]) * self.temperature))

    @property
    def _runtime(self) -> str:
        return f"{self.backend.name}, {self.backend.precision}"

    def __repr__(self) -> str:
        shape = self.preprocessing
        name = f"{self.card.name!r}, {self.card.architecture.name}, " if self.card else ""
        return (
            f"{type(self).__name__}({name}{shape.height}x{shape.width} {shape.resize}, threshold "
            f"{self.threshold:g}, {self.backend.name} {self.backend.precision}, "
            f"bundle {self.bundle_id})"
        )

    def _repr_html_(self) -> str:
        """Show the card's table in a notebook."""
        rows = [*(self.card.rows() if self.card else [("bundle", self.bundle_id)])]
        rows.append(("computed by", self._runtime))
        cells = ((escape(label), escape(text)) for label, text in rows)
        return f"<table>{''.join(f'<tr><th>{x}</th><td>{y}</td></tr>' for x, y in cells)}</table>"


def sigmoid(logits: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Compute the logistic function, which neither overflows nor loses small probabilities.

    >>> sigmoid(np.float32([-200, 0, 200])).tolist()
    [0.0, 0.5, 1.0]
    """
    # exp of a negative number only; scipy's expit would do, but costs its import at each start.
    power = np.exp(-np.abs(logits))
    result: np.ndarray = np.where(logits >= 0, np.float32(1), power) / (np.float32(1) + power)
    return result


def _blended(
    maps: Iterable[Float32[np.ndarray, "height width"]],
    height: int,
    width: int,
    preprocessing: Preprocessing,
) -> Probability:
    probability_HW = blend(maps, plan(height, width, preprocessing), height, width)
    # Interpolation and the window's weights may leave [0, 1] by a rounding error.
    np.clip(probability_HW, 0.0, 1.0, out=probability_HW)
    return probability_HW
