"""The model that comes with binseg: cats and dogs in photos, 4.1 M parameters.

`pets.zip` is `binseg train --recipe pet` on Oxford-IIIT Pet (CC BY-SA 4.0), begun from
EfficientNet-Lite0's ImageNet weights (Apache-2.0) and packed with `--half`; its card tells the
rest. `cat.jpg` is Chelsea, photographed by Stefan van der Walt (CC0), as in scikit-image's
collection.
"""

from pathlib import Path

__all__ = ["BUILT_IN", "default_bundle_path", "photo_path"]


def default_bundle_path() -> Path:
    """Give the path of the bundle that `binseg predict PHOTO` uses when no model is named."""
    return Path(__file__).parent / "pets.zip"


def photo_path() -> Path:
    """Give the path of the photo of a cat that the demo shows the model on."""
    return Path(__file__).parent / "cat.jpg"


BUILT_IN = {"pets": default_bundle_path()}
"""Models that go by a name (`binseg train --from pets`)."""
