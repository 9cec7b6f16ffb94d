"""binseg: binary semantic segmentation, from a folder of images and masks to a model that ships.

>>> import binseg
>>> run = binseg.train("my_folder", out="runs/first", budget="20m")  # doctest: +SKIP
>>> run.model.predict("photo.jpg").mask  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from binseg.api import Ensemble as Ensemble
    from binseg.api import Model as Model
    from binseg.api import Run as Run
    from binseg.api import load as load
    from binseg.api import open_dataset as open_dataset
    from binseg.api import plan as plan
    from binseg.api import predict_files as predict_files
    from binseg.api import train as train
    from binseg.config import Recipe as Recipe
    from binseg.config import load_recipe as load_recipe
    from binseg.errors import BinsegError as BinsegError
    from binseg.inference import Prediction as Prediction
    from binseg.inference import PredictOptions as PredictOptions
    from binseg.packaging import Bundle as Bundle
    from binseg.pipelines.check_data import check as check
    from binseg.pipelines.compare_models import compare as compare
    from binseg.pipelines.evaluate_model import evaluate as evaluate
    from binseg.types import Counts as Counts
    from binseg.types import Report as Report

_HOMES = {
    "BinsegError": "binseg.errors",
    "Bundle": "binseg.packaging",
    "Counts": "binseg.types",
    "Ensemble": "binseg.api",
    "Model": "binseg.api",
    "PredictOptions": "binseg.inference",
    "Prediction": "binseg.inference",
    "Recipe": "binseg.config",
    "Report": "binseg.types",
    "Run": "binseg.api",
    "check": "binseg.pipelines.check_data",
    "compare": "binseg.pipelines.compare_models",
    "evaluate": "binseg.pipelines.evaluate_model",
    "load": "binseg.api",
    "load_recipe": "binseg.config",
    "open_dataset": "binseg.api",
    "plan": "binseg.api",
    "predict_files": "binseg.api",
    "train": "binseg.api",
}

__all__ = list(_HOMES)


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
