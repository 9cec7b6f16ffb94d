"""The nearest name for a typo, in one place for recipes, models, losses and options."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["closest"]


def closest(name: str, accepted: Iterable[str]) -> str:
    """Return the hint that ends a message about an unknown name.

    >>> closest("resnet34unet", ["unet", "resnet34-unet"])
    'did you mean resnet34-unet? accepted: resnet34-unet, unet'
    >>> closest("x", ["unet"])
    'accepted: unet'
    """
    names = sorted(accepted)
    near = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    listed = f"accepted: {', '.join(names)}"
    return f"did you mean {near[0]}? {listed}" if near else listed
