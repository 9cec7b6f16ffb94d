"""Recipes from files, names and `--set`: every problem in one message, with the nearest name."""

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from binseg.config.recipe import Recipe
from binseg.errors import UsageError, one_line, suggest

MAX_RECIPE_BYTES, MAX_DIGITS = 1_000_000, 100
MOST_SHOWN = 8  # problems that one message names
_DEPENDENT: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "loss": {"name": ("options",)},
    "model": {
        "name": ("decoder", "encoder", "options", "encoder_weights"),
        "decoder": ("options",),
        "encoder": ("options", "encoder_weights"),
    },
}
"""Keys that a recipe set for another key of its section, and that are void where that changes."""


def load_recipe(
    source: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    sections: Mapping[str, Mapping[str, object]] | None = None,
) -> Recipe:
    """Read a recipe by file or name, then apply changes, then check everything at once.

    A change of the network or the loss leaves the recipe's own options of the former one out.

    Args:
        source: a path ending in .yaml or .yml, the name of a shipped recipe, or None for defaults.
        overrides: changes as `section.key=value`, the value read as YAML; they win over all.
        sections: changes as nested mappings, `{"train": {"epochs": 3}}`; they win over the file.

    Raises:
        UsageError: one line with every problem: unknown keys with the nearest name, wrong values.

    >>> load_recipe(overrides=["train.epochs=3", "model.name=unet"]).train.epochs
    3
    """
    label = "the command line" if source is None else str(source)
    tree: dict[str, Any] = {} if source is None else _parse(recipe_text(source), label)
    own = {name: deepcopy(tree[name]) for name in _DEPENDENT if isinstance(tree.get(name), dict)}
    _merge(tree, sections or {})
    for override in overrides:
        _set(tree, *_parse_override(override))
    for name, before in own.items():
        _drop_dependent(name, before, tree[name])
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
        problems = "; ".join(_describe(detail) for detail in found[:MOST_SHOWN])
        if len(found) > MOST_SHOWN:
            problems += f"; and {len(found) - MOST_SHOWN} more"
        raise UsageError(f"recipe ({label}): {problems}") from None


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with binseg."""
    return sorted(_shipped())


def recipe_text(source: str | Path) -> str:
    """Return the YAML text of a recipe, given its file or its name; UsageError if it can't be."""
    name = str(source)
    if not name.endswith((".yaml", ".yml")):
        shipped = _shipped()
        if name not in shipped:
            hint = suggest(name, recipe_names())
            raise UsageError(f"unknown recipe {name!r}: {hint} (or a path ending in .yaml)")
        return shipped[name].read_text("utf-8")
    path = Path(name)
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: larger than 1 MB; that is not a recipe")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path}: a pipe, socket or device, not a recipe; name a file")
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file in UTF-8; a recipe is YAML text") from None
    except OSError as error:
        raise UsageError(f"{path}: can't read the recipe ({error.strerror})") from None


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_schema() -> str:
    """Return the JSON schema of recipes, for editors that complete and check YAML."""
    return json.dumps(Recipe.model_json_schema(), indent=2)


def _shipped() -> dict[str, Traversable]:
    """Find the recipes of the package by name; those of the source reports have their folder."""
    folder = resources.files("binseg.config") / "recipes"
    files = [*folder.iterdir(), *(folder / "reports").iterdir()]
    return {one.name.removesuffix(".yaml"): one for one in files if one.name.endswith(".yaml")}


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without anchors: nobody needs them here, and nested ones exhaust memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            told = "YAML aliases (*name) are not accepted in recipes"
            raise UsageError(f"{told}; write the value out")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _mapping(loader: _PlainLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value]
    if twice := [key for row, key in enumerate(keys) if key in keys[:row]]:
        line = node.start_mark.line + 1
        raise UsageError(f"the key {twice[0]} stands twice in the section of line {line}")
    return loader.construct_mapping(node, deep=True)


def _whole(loader: _PlainLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MAX_DIGITS:
        raise UsageError(f"a number of {len(node.value)} digits is none of a recipe")
    return loader.construct_yaml_int(node)


def _strange(_: _PlainLoader, node: yaml.Node) -> object:
    kind = node.tag.rpartition(":")[2]
    line = node.start_mark.line + 1
    raise UsageError(f"line {line} holds a {kind}; a recipe takes numbers, texts, lists, mappings")


_PlainLoader.add_constructor("tag:yaml.org,2002:map", _mapping)
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _whole)
for _tag in ("timestamp", "set", "omap", "pairs", "binary"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _strange)


# YAML 1.1 reads 1e-3 as text; recipes are full of such numbers, so read them as YAML 1.2 does.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str, label: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, Loader=_PlainLoader)
    except UsageError as error:
        raise UsageError(f"{label}: {error}") from None
    except RecursionError:
        raise UsageError(f"{label}: not valid YAML: too deep") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{label}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{label}: a recipe is a mapping of sections, got {type(tree).__name__}")
    return tree


def _parse_override(override: str) -> tuple[list[str], Any]:
    path, equals, value = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        told = "write it as section.key=value, for example train.epochs=20"
        raise UsageError(f"--set {override!r}: {told}")
    try:
        leaf = yaml.load(value, Loader=_PlainLoader)
    except UsageError as error:
        raise UsageError(f"--set {path}: {error}") from None
    except yaml.YAMLError:
        raise UsageError(f"--set {override!r}: {value!r} is not a YAML value") from None
    return keys, leaf


def _set(tree: dict[str, Any], keys: Sequence[str], value: object) -> None:
    """Put a value at its place; mappings replace what is there, but for whole sections."""
    if len(keys) == 1 and isinstance(value, Mapping):
        _merge(tree, {keys[0]: value})
        return
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = value


def _drop_dependent(section: str, before: Mapping[str, Any], now: object) -> None:
    """Take away what a recipe set for a network or loss that was changed."""
    if not isinstance(now, dict):
        return
    for key, dependent in _DEPENDENT[section].items():
        if now.get(key) != before.get(key):
            for other in before.keys() & set(dependent):
                if now.get(other) == before[other]:
                    now.pop(other, None)


def _merge(tree: dict[str, Any], changes: Mapping[str, object]) -> None:
    """Lay nested changes over a tree that we own; leaves replace leaves."""
    for key, value in changes.items():
        if not isinstance(value, Mapping):
            tree[key] = value
            continue
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        _merge(tree[key], value)


def _describe(detail: ErrorDetails) -> str:
    where = one_line(".".join(str(part) for part in detail["loc"]), limit=120) or "recipe"
    given = one_line(repr(detail["input"]), limit=120)
    if detail["type"] == "extra_forbidden":
        accepted = _fields_at(detail["loc"][:-1])
        return f"{where}: unknown key; {suggest(str(detail['loc'][-1]), accepted)}"
    if detail["type"] == "value_error":
        return f"{where}: {detail['msg'].removeprefix('Value error, ')}"
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    if detail["type"] == "literal_error":
        choices = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{where}: got {given}; {suggest(str(detail['input']), choices)}"
    return f"{where}: {message} (got {given})"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in location:
        kind = section.model_fields[str(part)].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        section = kind
    return list(section.model_fields)
