"""Typed recipes: read, checked whole, changed from the command line, written back."""

from binseg.config.loading import dump_recipe, load_recipe, recipe_names, recipe_schema, recipe_text
from binseg.config.recipe import DataConfig, ModelConfig, Recipe, SplitConfig
