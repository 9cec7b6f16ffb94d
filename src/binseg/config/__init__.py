"""Typed recipes: read, checked whole, changed from the command line, written back."""

from binseg.config.loading import (
    dump_recipe,
    load_recipe,
    recipe_names,
    recipe_schema,
    recipe_text,
)
from binseg.config.recipe import (
    About,
    AugmentConfig,
    DataConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PatchConfig,
    Recipe,
    ScheduleConfig,
    SplitConfig,
    TrainConfig,
)

__all__ = [
    "About",
    "AugmentConfig",
    "DataConfig",
    "InputConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PatchConfig",
    "Recipe",
    "ScheduleConfig",
    "SplitConfig",
    "TrainConfig",
    "dump_recipe",
    "load_recipe",
    "recipe_names",
    "recipe_schema",
    "recipe_text",
]
