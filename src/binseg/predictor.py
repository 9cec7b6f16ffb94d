"""The one way from a picture to a probability, for Python, the shell, training and evaluation.

    picture -> prepare -> batches -> normalise -> backend -> sigmoid -> blend -> Prediction

Batches only save time: a picture's probability doesn't depend on what it is batched with, beyond
the last bits of float32 that a runtime may round differently for another batch size.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Num, UInt8
from PIL import Image

from binseg.backends import Backend, open_backend
from binseg.bundle import Bundle, Card, read_bundle
from binseg.errors import BundleError, TrainingError, UsageError
from binseg.geometry import blend, plan
from binseg.imageio import from_pil, read_image
from binseg.imageio.pixels import orientation_of_exif, turn
from binseg.preprocess import normalise, prepare_batches
from binseg.structures import Prediction, Preprocessing

__all__ = ["GoldenCheck", "ImageLike", "Predictor", "load", "verify_golden"]

ImageLike = str | Path | np.ndarray | Image.Image
"""A file's path, an array (height x width, with or without channels at the end; uint8, uint16,
bool, or floats in [0, 1]), or a PIL image."""

_KEPT_PIXELS = 64_000_000
"""Larger pictures don't stay in their Prediction."""
_TOLERANCES = {"fp32": 1e-3, "bf16": 0.25}
"""Largest difference of a golden probability. fp32 differs between processors by their order of
summing alone; bf16 keeps 8 bits of each number, which undecided pixels feel most."""


class Predictor:
    """A model with its preprocessing and threshold: pictures in, predictions out.

    Args:
        backend: what computes the logits.
        preprocessing: how pictures become inputs; the model was trained with it.
        threshold: the probability above which a pixel is foreground.
        bundle_id: goes into every prediction.
        batch_size: largest number of inputs given to the backend at once.
        bundle: where the model comes from; None for one that is in training.
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
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: give 1 or more")
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold {threshold:g}: give a probability from 0 to 1")
        self.backend = backend
        self.preprocessing = preprocessing
        self.threshold = threshold
        self.bundle_id = bundle_id
        self.batch_size = batch_size
        self.bundle = bundle

    @property
    def card(self) -> Card | None:
        """What the model's bundle says about it; None for a model in training."""
        return self.bundle.card if self.bundle else None

    def predict(self, image: ImageLike, *, page: int | None = None) -> Prediction:
        """Find the foreground in one picture, at the picture's own size.

        Args:
            image: a path, an array or a PIL image (EXIF turns are applied to both files and PIL
                images). Arrays are height x width or height x width x channels: uint8 and uint16
                by their full range, bool as black and white, floats in [0, 1] (any range where
                the model was trained with `intensity: percentile`).
            page: the page of a multi-page file, from 0.

        Raises:
            UsageError: something that isn't a picture.
            PictureError: a picture that can't be read, or doesn't fit the model's channels.
        """
        image_HWC, name = _read(image, page)
        height, width = image_HWC.shape[:2]
        batches = prepare_batches(
            image_HWC, self.preprocessing, batch_size=self.batch_size, name=name
        )
        maps = (one for inputs, _ in batches for one in self.probability_of_inputs(inputs))
        probability_HW = blend(maps, plan(height, width, self.preprocessing), height, width)
        # Interpolation and the window's weights may leave [0, 1] by a rounding error.
        np.clip(probability_HW, 0.0, 1.0, out=probability_HW)
        return Prediction(
            probability_HW=probability_HW,
            threshold=self.threshold,
            bundle_id=self.bundle_id,
            image_HWC=image_HWC if height * width <= _KEPT_PIXELS else None,
        )

    def predict_many(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Predict pictures one after the other, as they are asked for; memory stays flat.

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
        assert inputs_NHWC.shape[1:] == (shape.height, shape.width, shape.channels)
        probability_NHW = np.empty(inputs_NHWC.shape[:3], np.float32)
        for start in range(0, len(inputs_NHWC), self.batch_size):
            batch = slice(start, start + self.batch_size)
            logits_BHW = self.backend.logits(normalise(inputs_NHWC[batch], shape))
            if not np.isfinite(logits_BHW).all():
                raise self._not_finite()
            probability_NHW[batch] = sigmoid(logits_BHW)
        return probability_NHW

    def _not_finite(self) -> BundleError | TrainingError:
        how = f"the model gives NaN or infinity ({self.backend.name}, {self.backend.precision})"
        if self.bundle:
            return BundleError(f"{self.bundle.path}: {how}; its training diverged, train it again")
        return TrainingError(f"{how}: training diverged; lower the learning rate or use fp32")

    def __repr__(self) -> str:
        shape = self.preprocessing
        name = f"{self.card.name!r}, {self.card.architecture.name}, " if self.card else ""
        return (
            f"Predictor({name}{shape.height}x{shape.width} {shape.fit}, threshold "
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


@dataclass(frozen=True, kw_only=True)
class GoldenCheck:
    """How near a runtime comes to the golden sample of a bundle."""

    largest_difference: float
    """Of any pixel's probability."""
    tolerance: float
    passed: bool


def load(
    path: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 8,
) -> Predictor:
    """Open a model to predict with.

    Args:
        path: a bundle's folder, its zip, or a run's folder.
        backend: auto or torch.
        device: auto, cpu or cuda.
        precision: auto (fp32, as the scores were taken), fp32 or bf16 (faster on processors that
            compute in it; undecided pixels may change sides).
        batch_size: largest number of inputs computed at once.

    Raises:
        BundleError: missing, damaged, edited, foreign, or of a newer format.
        UsageError: an unknown backend, device or precision.
        MissingExtraError: the runtime isn't installed.

    >>> load("runs/none")
    Traceback (most recent call last):
    binseg.errors.BundleError: runs/none: there is no such bundle; ...
    """
    bundle = read_bundle(path)
    return Predictor(
        backend=open_backend(bundle, name=backend, device=device, precision=precision),
        preprocessing=bundle.card.preprocessing,
        threshold=bundle.card.threshold.value,
        bundle_id=bundle.card.id,
        batch_size=batch_size,
        bundle=bundle,
    )


def verify_golden(predictor: Predictor, bundle: Bundle) -> GoldenCheck:
    """Compute a bundle's golden sample again and compare: does it work on this machine?

    It isn't run at each load, because it takes as long as a prediction.

    Args:
        predictor: any runtime of the bundle's model.
        bundle: holds the sample.

    Raises:
        BundleError: the golden sample is damaged.
    """
    golden = bundle.golden()
    probability_NHW = predictor.probability_of_inputs(golden.input_NHWC)
    difference = float(np.abs(probability_NHW - golden.probability_NHW).max())
    tolerance = _TOLERANCES[predictor.backend.precision]
    return GoldenCheck(
        largest_difference=difference, tolerance=tolerance, passed=difference <= tolerance
    )


def sigmoid(logits: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """The logistic function, which neither overflows nor loses small probabilities.

    >>> sigmoid(np.float32([-200, 0, 200])).tolist()
    [0.0, 0.5, 1.0]
    """
    # exp of a negative number only; scipy's expit would do, but costs its import at each start.
    power = np.exp(-np.abs(logits))
    result: np.ndarray = np.where(logits >= 0, np.float32(1), power) / (np.float32(1) + power)
    return result


def _read(image: object, page: int | None) -> tuple[Num[np.ndarray, "H W C"], str]:
    """The pixels, and what errors call them."""
    if isinstance(image, str | Path):
        return read_image(Path(image), page=page), str(image)
    if page is not None:
        raise UsageError(f"page={page} is for multi-page files; got {_kind(image)}")
    if isinstance(image, Image.Image):
        return _turned(image), "the PIL image"
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise UsageError(
                f"got an array of shape {image.shape}; predict takes one picture of height x "
                "width or height x width x channels, none of them 0 (predict_many takes several)"
            )
        image_HWC = image[:, :, None] if image.ndim == 2 else image
        if image_HWC.dtype == np.bool_:
            image_HWC = image_HWC.astype(np.uint8) * np.uint8(255)
        return image_HWC, "the array"
    raise UsageError(
        f"got {_kind(image)}; predict takes a path, a numpy array (height x width, or height x "
        "width x channels) or a PIL image"
    )


def _turned(image: Image.Image) -> Num[np.ndarray, "H W C"]:
    """The pixels as `read_image` would give them: the model learnt from turned pictures.

    Pillow keeps the EXIF block of a picture that it hasn't turned, and updates it when it has.
    """
    exif = image.info.get("exif")
    found = orientation_of_exif(exif) if isinstance(exif, bytes) else image.getexif().get(274, 1)
    return turn(from_pil(image), found if isinstance(found, int) else 1)


def _kind(image: object) -> str:
    kind = type(image)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
