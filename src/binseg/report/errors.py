"""The error map: where a prediction is right, what it missed and what it added.

The colours are of Okabe & Ito's set, told apart with any kind of colour vision
(https://jfly.uni-koeln.de/color/), and differ in brightness too, for print in grey.
"""

import numpy as np
from jaxtyping import Bool, Num, UInt8

from binseg.report.figure import ORANGE, PURPLE, SKY_BLUE, WHITE, Colour
from binseg.report.overlay import tint
from binseg.report.pixels import for_display

__all__ = ["ERROR_COLOURS", "IGNORED", "error_map"]

FOUND = "found"
MISSED = "missed"
EXTRA = "extra"
IGNORED = "ignored"
ERROR_COLOURS: dict[str, Colour] = {
    FOUND: WHITE,
    MISSED: ORANGE,
    EXTRA: SKY_BLUE,
    IGNORED: PURPLE,
}
"""What each colour of an error map says, in the order of the legend."""


def error_map(
    image_HWC: Num[np.ndarray, "H W C"],
    truth_HW: Bool[np.ndarray, "H W"],
    prediction_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Colour a dimmed grey copy of the image by what the prediction did there."""
    assert image_HWC.shape[:2] == truth_HW.shape == prediction_HW.shape, "all are of one size"
    valid_HW = np.ones(truth_HW.shape, dtype=np.bool_) if valid_HW is None else valid_HW
    grey_HW1 = for_display(image_HWC).mean(axis=2, keepdims=True)
    map_HW3 = np.repeat((grey_HW1 * 0.45).astype(np.uint8), 3, axis=2)
    right_HW = truth_HW & prediction_HW & valid_HW
    map_HW3 = tint(map_HW3, right_HW, ERROR_COLOURS[FOUND], 0.5)
    map_HW3 = tint(map_HW3, ~valid_HW, ERROR_COLOURS[IGNORED], 0.6)
    map_HW3 = tint(map_HW3, truth_HW & ~prediction_HW & valid_HW, ERROR_COLOURS[MISSED], 0.95)
    return tint(map_HW3, prediction_HW & ~truth_HW & valid_HW, ERROR_COLOURS[EXTRA], 0.95)
