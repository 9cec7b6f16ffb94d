"""JSON that someone else's tool wrote: read whole, and looked into with clear errors."""

import json
import math
from pathlib import Path
from typing import Any

from binseg.errors import DataError, ImageError
from binseg.imageio import probe
from binseg.types import Ring

__all__ = ["has_keys", "read_json", "ring_of", "size_problem"]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: a file that can't be read or isn't a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deeply to be annotations") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a list or a value, not annotations (an object)")
    return content


def has_keys(path: Path, *keys: str) -> bool:
    """Tell whether a file looks like a JSON object with these keys, without parsing it all."""
    if path.suffix.lower() != ".json":
        return False
    try:
        content = path.read_bytes()
    except OSError:
        # Reading it as what it was asked for will say why it can't be read.
        return False
    return all(f'"{key}"'.encode() in content for key in keys)


def ring_of(points: object) -> Ring:
    """Read [[x, y], ...] or [x, y, x, y, ...] as a ring.

    Raises:
        ValueError: anything else, numbers that aren't finite included; says what it is.
    """
    if not isinstance(points, list):
        raise ValueError("is not a list of points")  # noqa: TRY004  # the file's fault, not a type's
    flat = [v for point in points for v in point] if _nested(points) else points
    if len(flat) % 2:
        raise ValueError("has an x without a y")
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in flat):
        raise ValueError("holds something that is no number")
    return tuple(zip(map(float, flat[::2]), map(float, flat[1::2]), strict=True))


def _nested(points: list[Any]) -> bool:
    return bool(points) and all(isinstance(p, list) and len(p) == 2 for p in points)


def size_problem(image: Path, height: object, width: object) -> str | None:
    """Say how an image's size differs from the one its outlines were drawn on, if it does."""
    if height is None or width is None:
        return None
    try:
        info = probe(image)
    except ImageError:
        # Reading the image will say what is wrong with it.
        return None
    if (info.height, info.width) == (height, width):
        return None
    return f"{image.name} is {info.height}x{info.width}, its outlines are for {height}x{width}"
