"""What kinds of pixels an exported file takes."""

from typing import Literal

__all__ = ["Pixels"]

Pixels = Literal["uint8", "float32"]
"""Bytes, or floats (0 to 1 where the model's `intensity` is dtype, any numbers otherwise)."""
