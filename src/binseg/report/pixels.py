"""Any image as 8-bit RGB for the eye; models never see what this gives."""

import numpy as np
from jaxtyping import Float64, Num, UInt8

__all__ = ["for_display"]

_DARKEST, _BRIGHTEST = 0.5, 99.5  # percentiles: a few hot pixels must not turn the rest black


def for_display(image_HWC: Num[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    """Turn an image of any type and number of channels into RGB that a screen shows well.

    8-bit images keep their values; others are stretched between their 0.5 and 99.5 percentiles.
    One or two channels become grey, of more than three the first three are shown.
    """
    channels = image_HWC.shape[2]
    if channels == 2:
        image_HWC = image_HWC.mean(axis=2, keepdims=True)
    image_HWC = image_HWC[:, :, :3]
    bytes_HWC = image_HWC if image_HWC.dtype == np.uint8 else _stretch(image_HWC)
    return np.array(np.broadcast_to(bytes_HWC, (*bytes_HWC.shape[:2], 3)), order="C")


def _stretch(image_HWC: Num[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W C"]:
    values_HWC: Float64[np.ndarray, "H W C"] = image_HWC.astype(np.float64)
    finite = values_HWC[np.isfinite(values_HWC)]
    if finite.size == 0:
        return np.zeros(image_HWC.shape, dtype=np.uint8)
    low, high = np.percentile(finite, [_DARKEST, _BRIGHTEST])
    # A flat image has nothing to stretch: it is shown as middle grey.
    unit_HWC = (values_HWC - low) / (high - low) if high > low else np.full(image_HWC.shape, 0.5)
    unit_HWC = np.nan_to_num(unit_HWC, nan=0.0, posinf=1.0, neginf=0.0)
    bytes_HWC: UInt8[np.ndarray, "H W C"] = np.rint(unit_HWC.clip(0, 1) * 255).astype(np.uint8)
    return bytes_HWC
