"""Several models that answer together; for everyone else they are one predictor."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float32, Num, UInt8

from binseg.errors import UsageError
from binseg.inference.single import Predictor, mean_of
from binseg.postprocess.steps import NOTHING
from binseg.types import TTA

__all__ = ["Ensemble"]


class Ensemble(Predictor):
    """Several models that answer together: the mean of their probabilities.

    Args:
        members: at least two, of one border rule; they may differ in everything else.
        threshold: of the mean; the mean of the members' own if left out.
    """

    def __init__(self, members: Sequence[Predictor], *, threshold: float | None = None) -> None:
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
        first = members[0]
        own = sum(one.threshold for one in members) / len(members)
        super().__init__(
            backend=first.backend,
            preprocessing=first.preprocessing,
            threshold=own if threshold is None else threshold,
            bundle_id="+".join(ids),
            batch_size=first.batch_size,
            bundle=first.bundle,
            # Corrections that only some of them bring are no member's word for the mean.
            postprocessing=first.postprocessing
            if len({one.postprocessing for one in members}) == 1
            else NOTHING,
        )
        self._members = tuple(members)
        self._is_alike = all(one.preprocessing == first.preprocessing for one in members)

    @property
    def name(self) -> str:
        """The names of all members."""
        return " + ".join(one.name for one in self._members)

    @property
    def members(self) -> tuple[Predictor, ...]:
        """The single models that answer."""
        return self._members

    @property
    def has_one_input(self) -> bool:
        """Whether all members take the same single input of an image."""
        return self._is_alike and super().has_one_input

    @property
    def shares_inputs(self) -> bool:
        """Whether all members take the same inputs of an image."""
        return self._is_alike

    def with_tta(self, tta: TTA) -> Self:
        """Return the same members that average other mirror images."""
        other = super().with_tta(tta)
        other._members = tuple(one.with_tta(tta) for one in self._members)
        return other

    def with_tiles(
        self, *, scale: float = 1.0, size: int | None = None, overlap: float | None = None
    ) -> Self:
        """Return the same members with other tiles; see `Predictor.with_tiles`."""
        other = super().with_tiles(scale=scale, size=size, overlap=overlap)
        other._members = tuple(
            one.with_tiles(scale=scale, size=size, overlap=overlap) for one in self._members
        )
        return other

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that must be read with its scores."""
        return (
            f"An ensemble of {len(self._members)} models: the mean of their probabilities. Each "
            "threshold was chosen alone; theirs is the mean, unless another one was asked for.",
            *dict.fromkeys(remark for one in self._members for remark in one.remarks),
        )

    def probability_of_image(
        self, image_HWC: Num[np.ndarray, "H W C"], name: str = "the image"
    ) -> Float32[np.ndarray, "H W"]:
        """The members' mean probability at the image's own size."""
        if self._is_alike:  # prepared, and brought back to its size, once for all
            return super().probability_of_image(image_HWC, name)
        return mean_of([one.probability_of_image(image_HWC, name) for one in self._members])

    def probability_of_inputs(
        self, inputs_NHWC: UInt8[np.ndarray, "N height width channels"]
    ) -> Float32[np.ndarray, "N height width"]:
        """The members' mean probability for inputs that are prepared already.

        Args:
            inputs_NHWC: of the preprocessing that all members share.
        """
        assert self._is_alike, "members with preprocessings of their own share no inputs"
        return mean_of([one.probability_of_inputs(inputs_NHWC) for one in self._members])

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(map(repr, self._members))}, threshold {self.threshold:g})"
