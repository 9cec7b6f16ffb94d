"""A mask over its image, and an image cut out by its mask."""

import numpy as np
from jaxtyping import Bool, Float32, Num, UInt8

from binseg.report.figure import INK, SKY_BLUE, Colour
from binseg.report.pixels import for_display

__all__ = ["cutout", "overlay", "tint"]


def overlay(
    image_HWC: Num[np.ndarray, "H W C"],
    mask_HW: Bool[np.ndarray, "H W"],
    *,
    colour: Colour = SKY_BLUE,
    strength: float = 0.4,
) -> UInt8[np.ndarray, "H W 3"]:
    """Lay a colour over the masked part of an image, with an outline seen on any background.

    Args:
        image_HWC: an image of any type and number of channels.
        mask_HW: True where the colour goes; same size as the image.
        colour: red, green and blue, 0 to 255.
        strength: of the colour inside the outline, from 0 (none) to 1 (nothing else).
    """
    assert image_HWC.shape[:2] == mask_HW.shape, "image and mask are of one size"
    painted_HW3 = tint(for_display(image_HWC), mask_HW, colour, strength)
    width = max(1, round(min(mask_HW.shape) / 160))  # as broad to the eye in small and large
    painted_HW3 = tint(painted_HW3, _inner_edge(~mask_HW, max(1, width // 2)), INK, 0.6)
    painted_HW3[_inner_edge(mask_HW, width)] = colour
    return painted_HW3


def cutout(
    image_HWC: Num[np.ndarray, "H W C"],
    alpha_HW: Bool[np.ndarray, "H W"] | Float32[np.ndarray, "H W"],
) -> UInt8[np.ndarray, "H W 4"]:
    """Cut the masked part out of an image; all else is transparent.

    Args:
        image_HWC: an image of any type and number of channels.
        alpha_HW: a mask for hard edges, or values in [0, 1] (a probability) for soft ones.
    """
    assert image_HWC.shape[:2] == alpha_HW.shape, "image and mask are of one size"
    alpha_HW1 = np.rint(alpha_HW[:, :, None].astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
    return np.concatenate([for_display(image_HWC), alpha_HW1], axis=2)


def tint(
    image_HW3: UInt8[np.ndarray, "H W 3"],
    mask_HW: Bool[np.ndarray, "H W"],
    colour: Colour,
    strength: float,
) -> UInt8[np.ndarray, "H W 3"]:
    """Mix a colour into the masked pixels of a copy of the image."""
    painted_HW3 = image_HW3.copy()
    mixed_N3 = (1 - strength) * image_HW3[mask_HW] + strength * np.array(colour)
    painted_HW3[mask_HW] = np.rint(mixed_N3).astype(np.uint8)
    return painted_HW3


def _inner_edge(mask_HW: Bool[np.ndarray, "H W"], width: int) -> Bool[np.ndarray, "H W"]:
    """Pixels of the mask within `width` steps of its outside; the image's edge is none."""
    inside_HW = mask_HW
    for _ in range(width):
        padded = np.pad(inside_HW, 1, mode="edge")
        inside_HW = (
            inside_HW & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        )
    edge_HW: Bool[np.ndarray, "H W"] = mask_HW & ~inside_HW
    return edge_HW
