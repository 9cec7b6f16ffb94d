"""binseg: binary semantic segmentation, from a folder of images and masks to a model that ships.

>>> import binseg
>>> run = binseg.train("my_folder", out="runs/first", budget="20m")  # doctest: +SKIP
>>> run.model.predict("photo.jpg").mask  # doctest: +SKIP
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# torch's threads wait for each other by spinning, which beside any other busy program makes a
# training step two to seven times as long (`benchmarks/train.py --only load`). Asleep they cost a
# quiet machine up to a tenth. Heard only if torch is imported later; the numbers stay the same.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from binseg.api import Ensemble, Model, Run, load, open_dataset, plan, predict_files, train
    from binseg.config import Recipe, load_recipe
    from binseg.errors import BinsegError
    from binseg.evaluation.comparison import compare
    from binseg.inference import Prediction, PredictOptions
    from binseg.models.create import create_model
    from binseg.packaging import Bundle
    from binseg.pipelines.check_data import check
    from binseg.pipelines.evaluate_model import evaluate
    from binseg.types import Counts, Report

__all__ = [
    "BinsegError", "Bundle", "Counts", "Ensemble", "Model", "PredictOptions", "Prediction",
    "Recipe", "Report", "Run", "check", "compare", "create_model", "evaluate", "load",
    "load_recipe", "open_dataset", "plan", "predict_files", "train",
]  # fmt: skip
_HOMES = {
    "BinsegError": "errors",
    "Bundle": "packaging",
    "Counts": "types",
    "PredictOptions": "inference",
    "Prediction": "inference",
    "Recipe": "config",
    "Report": "types",
    "check": "pipelines.check_data",
    "compare": "evaluation.comparison",
    "create_model": "models.create",
    "evaluate": "pipelines.evaluate_model",
    "load_recipe": "config",
}
"""Rooms of the names that aren't in `api`."""


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `import binseg` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'binseg' has no attribute {name!r}")
    try:
        return getattr(import_module(f"binseg.{_HOMES.get(name, 'api')}"), name)
    except ModuleNotFoundError as error:
        from binseg.errors import training_extra_missing

        raise training_extra_missing(error, purpose=f"binseg.{name}") or error from None


def __dir__() -> list[str]:
    return __all__
