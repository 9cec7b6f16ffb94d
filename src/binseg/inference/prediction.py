"""What a model says about one image."""

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Num

from binseg.postprocess.steps import NOTHING, PostProcessing, clean

__all__ = ["Prediction"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says about one image, at the image's own size."""

    probability_HW: Float32[np.ndarray, "H W"]
    threshold: float
    bundle_id: str
    postprocessing: PostProcessing = NOTHING
    """Corrections that the mask has."""
    image_HWC: Num[np.ndarray, "H W C"] | None = None
    """The image as it was read, for overlays; None where it was too large to keep."""

    @property
    def probability(self) -> Float32[np.ndarray, "H W"]:
        """The probability of foreground, float32 in [0, 1], at the original size."""
        return self.probability_HW

    @cached_property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """True where the probability is above the threshold, corrected by `postprocessing`."""
        return clean(self.probability_HW > self.threshold, self.postprocessing)

    def __repr__(self) -> str:
        height, width = self.probability_HW.shape
        return (
            f"Prediction({height}x{width}, foreground {self.mask.mean():.1%}, "
            f"threshold {self.threshold:g}, bundle {self.bundle_id})"
        )

    def _repr_png_(self) -> bytes:
        """The mask as notebooks show it: white on black."""
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(self.mask).save(out, format="PNG")
        return out.getvalue()
