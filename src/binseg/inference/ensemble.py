"""Several models that answer together, as the mean of their probabilities."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float32

from binseg.errors import UsageError
from binseg.inference.image_like import Inputs, Maps, Pixels, Probability
from binseg.inference.predict_options import PredictOptions
from binseg.inference.predictor import ModelPredictor, Predictor, Tell, untold
from binseg.postprocess import NOTHING


class EnsemblePredictor(Predictor):
    """The mean of two or more models of one border rule; without a threshold that of theirs."""

    def __init__(
        self, members: Sequence[ModelPredictor], *, threshold: float | None = None
    ) -> None:
        if len(members) < 2:
            raise UsageError(f"an ensemble of {len(members)}: give at least two models")
        ids = [one.bundle_id for one in members]
        if len(set(ids)) < len(ids):
            raise UsageError(f"an ensemble with a model twice ({', '.join(ids)}): give each once")
        borders = {one.card.border for one in members if one.card}
        if len(borders) > 1:
            raise UsageError(
                f"an ensemble of models that learnt other borders ({', '.join(sorted(borders))}): "
                "give models trained with one --border"
            )
        self.bundle_id = "+".join(ids)
        self.threshold = (
            sum(one.threshold for one in members) / len(members) if threshold is None else threshold
        )
        # Post-processing that only some of them bring wasn't chosen for their mean.
        each = {one.postprocessing for one in members}
        self.postprocessing = each.pop() if len(each) == 1 else NOTHING
        self._set_members(tuple(members))

    def _set_members(self, members: tuple[ModelPredictor, ...]) -> None:
        self._members = members
        self.batch_size = min(one.batch_size for one in members)
        shapes = {one.preprocessing for one in members}
        self.preprocessing = shapes.pop() if len(shapes) == 1 else None

    @property
    def name(self) -> str:
        """The names of all members."""
        return " + ".join(one.name for one in self._members)

    @property
    def members(self) -> tuple[ModelPredictor, ...]:
        """The single models that answer."""
        return self._members

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that must be read with its scores."""
        return (
            f"An ensemble of {len(self._members)} models: the mean of their probabilities. Each "
            "threshold was chosen alone; theirs is the mean, unless another one was asked for.",
            *dict.fromkeys(remark for one in self._members for remark in one.remarks),
        )

    def with_options(self, options: PredictOptions) -> Self:
        """Return the same members with other settings."""
        other = super().with_options(options)
        other._set_members(tuple(one.with_options(options) for one in self._members))
        return other

    def probability_of_image(
        self, image_HWC: Pixels, name: str = "the image", *, tell: Tell = untold
    ) -> Probability:
        """Compute the members' mean probability at the image's own size."""
        if self.preprocessing is not None:  # prepared, and brought back to its size, once for all
            return super().probability_of_image(image_HWC, name, tell=tell)
        return mean_of(
            [one.probability_of_image(image_HWC, name, tell=tell) for one in self._members]
        )

    def probability_of_inputs(self, inputs_NHWC: Inputs) -> Maps:
        """Compute the members' mean probability for inputs of the preprocessing they share."""
        assert self.preprocessing is not None, "members with inputs of their own share none"
        return mean_of([one.probability_of_inputs(inputs_NHWC) for one in self._members])

    def __repr__(self) -> str:
        members = ", ".join(map(repr, self._members))
        return f"{type(self).__name__}({members}, threshold {self.threshold:g})"


def mean_of(maps: Sequence[Float32[np.ndarray, "*shape"]]) -> Float32[np.ndarray, "*shape"]:
    """Average probabilities."""
    total = sum(maps[1:], maps[0])
    # The sum of float32 may pass 1 by a rounding error.
    return np.asarray(np.clip(total / np.float32(len(maps)), 0.0, 1.0))
