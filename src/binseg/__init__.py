"""binseg: binary semantic segmentation, from a folder of pictures and masks to a model that ships.

>>> import binseg
>>> model = binseg.load("runs/first")  # doctest: +SKIP
>>> model.predict("photo.jpg").mask  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from binseg.bundle import Bundle as Bundle
    from binseg.config import Recipe as Recipe
    from binseg.config import load_recipe as load_recipe
    from binseg.errors import BinsegError as BinsegError
    from binseg.predictor import Prediction as Prediction
    from binseg.predictor import Predictor as Predictor
    from binseg.predictor import load as load
    from binseg.structures import Counts as Counts
    from binseg.structures import Report as Report
    from binseg.workflows.check import check as check
    from binseg.workflows.evaluate import evaluate as evaluate
    from binseg.workflows.plan import plan as plan
    from binseg.workflows.train import train as train

_HOMES = {
    "BinsegError": "binseg.errors",
    "Bundle": "binseg.bundle",
    "Counts": "binseg.structures",
    "Prediction": "binseg.predictor",
    "Predictor": "binseg.predictor",
    "Recipe": "binseg.config",
    "Report": "binseg.structures",
    "check": "binseg.workflows.check",
    "evaluate": "binseg.workflows.evaluate",
    "load": "binseg.predictor",
    "load_recipe": "binseg.config",
    "plan": "binseg.workflows.plan",
    "train": "binseg.workflows.train",
}

__all__ = [
    "BinsegError",
    "Bundle",
    "Counts",
    "Prediction",
    "Predictor",
    "Recipe",
    "Report",
    "check",
    "evaluate",
    "load",
    "load_recipe",
    "plan",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `import binseg` costs nothing."""
    if name in _HOMES:
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            from binseg.errors import training_extra_missing

            raise training_extra_missing(error, purpose=f"binseg.{name}") or error from None
    raise AttributeError(f"module 'binseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
