"""binseg: binary semantic segmentation, from a folder of images and masks to a model that ships.

>>> import binseg
>>> model = binseg.load("runs/first")  # doctest: +SKIP
>>> model.predict("photo.jpg").mask  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from binseg.config import Recipe as Recipe
    from binseg.config import load_recipe as load_recipe
    from binseg.errors import BinsegError as BinsegError
    from binseg.inference import Prediction as Prediction
    from binseg.inference import Predictor as Predictor
    from binseg.inference import load as load
    from binseg.packaging import Bundle as Bundle
    from binseg.pipelines.check_data import check as check
    from binseg.pipelines.evaluate_model import evaluate as evaluate
    from binseg.pipelines.plan_recipe import plan as plan
    from binseg.pipelines.train_model import train as train
    from binseg.types import Counts as Counts
    from binseg.types import Report as Report

_HOMES = {
    "BinsegError": "binseg.errors",
    "Bundle": "binseg.packaging",
    "Counts": "binseg.types",
    "Prediction": "binseg.inference",
    "Predictor": "binseg.inference",
    "Recipe": "binseg.config",
    "Report": "binseg.types",
    "check": "binseg.pipelines.check_data",
    "evaluate": "binseg.pipelines.evaluate_model",
    "load": "binseg.inference",
    "load_recipe": "binseg.config",
    "plan": "binseg.pipelines.plan_recipe",
    "train": "binseg.pipelines.train_model",
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
