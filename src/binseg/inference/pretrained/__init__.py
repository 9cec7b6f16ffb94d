"""The model that comes with binseg: cats and dogs in photos, 4.1 M parameters.

`pets.zip` is `binseg train --recipe pet` on Oxford-IIIT Pet (CC BY-SA 4.0), begun from
EfficientNet-Lite0's ImageNet weights (Apache-2.0) and packed with `--half`; its card tells the
rest. `cat.jpg` is Chelsea, photographed by Stefan van der Walt (CC0), as in scikit-image's
collection.
"""

from pathlib import Path

NAME = "pets"  # the name by which the model is asked for


def default_bundle_path() -> Path:
    """Give the path of the bundle that comes with binseg."""
    return Path(__file__).parent / "pets.zip"


def model_of(path: str | Path) -> Path | None:
    """Tell a run or bundle, and the built-in model by its name, from what is none."""
    given = Path(path)
    if given.is_dir():
        marks = ("bundle", "card.json", "recipe.yaml")
        return given if any((given / one).exists() for one in marks) else None
    if given.suffix.lower() == ".zip" and given.is_file():
        return given
    return default_bundle_path() if str(path) == NAME and not given.exists() else None


def photo_path() -> Path:
    """Give the path of the photo of a cat that the demo shows the model on."""
    return Path(__file__).parent / "cat.jpg"
