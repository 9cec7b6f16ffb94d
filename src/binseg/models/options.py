"""The options of models: each has one meaning, one type and one range, whatever model takes it."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from binseg.config.recipe import Option
from binseg.errors import UsageError

__all__ = ["OPTIONS", "OptionRule", "check_option", "nearest"]


@dataclass(frozen=True, kw_only=True)
class OptionRule:
    """What values an option takes, and what it does."""

    kind: type[bool] | type[int] | type[float] | type[str]
    help: str
    choices: tuple[str, ...] | tuple[int, ...] = ()
    """Accepted words (kind str) or numbers (kind int), where not a range."""
    low: float = 0
    high: float = float("inf")
    """Smallest and largest number accepted (kinds int and float)."""

    def accepted(self) -> str:
        """The accepted values in words.

        >>> OptionRule(kind=float, help="", high=0.9).accepted()
        'a number from 0 to 0.9'
        """
        if self.kind is bool:
            return "true or false"
        if self.choices:
            return " or ".join(str(choice) for choice in self.choices)
        noun = "a whole number" if self.kind is int else "a number"
        if self.high == float("inf"):
            return f"{noun} of at least {self.low:g}"
        return f"{noun} from {self.low:g} to {self.high:g}"


OPTIONS: dict[str, OptionRule] = {
    "width": OptionRule(
        kind=int, low=1, high=1024, help="channels of the finest level; the others follow from it"
    ),
    "depth": OptionRule(
        kind=int, low=1, high=7, help="how many times the U-Net halves the size on its way down"
    ),
    "norm": OptionRule(
        kind=str,
        choices=("batch", "group", "none"),
        help="what follows each convolution (behind a named encoder: in the decoder only)",
    ),
    "encoder_norm": OptionRule(
        kind=str,
        choices=("batch", "group"),
        help="what follows the encoder's convolutions; published weights need batch",
    ),
    "bias": OptionRule(
        kind=bool, help="biases in 3x3 convolutions (behind a named encoder: in the decoder only)"
    ),
    "dropout": OptionRule(
        kind=float, high=0.9, help="share of values dropped in training inside the blocks"
    ),
    "up": OptionRule(
        kind=str,
        choices=("transpose", "bilinear", "nearest"),
        help="how maps double in size: a transposed convolution, or interpolation",
    ),
    "decoder_width": OptionRule(kind=int, low=1, high=1024, help="channels inside the decoder"),
    "output_stride": OptionRule(
        kind=int,
        choices=(8, 16, 32),
        help="input pixels per pixel of the coarsest map; finer is slower (by dilation)",
    ),
    "drop_path": OptionRule(
        kind=float, high=0.9, help="chance of skipping the last transformer block in training"
    ),
}
"""All options by name; `binseg models --json` prints what each model takes."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what was meant, ready to be put into a message; empty if nothing is like it.

    >>> nearest("unte", ["unet", "resnet34-fpn"])
    ' (did you mean unet?)'
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def check_option(model: str, name: str, value: object) -> Option:
    """Check one value against the option's rule; whole numbers become floats where those are meant.

    Raises:
        UsageError: the value is of another type or out of range.
    """
    rule = OPTIONS[name]
    match value:
        # A bool is an int to Python, but `width: true` is a mistake.
        case bool():
            if rule.kind is bool:
                return value
        case str():
            if rule.kind is str and value in rule.choices:
                return value
        case int() | float() if rule.kind is float and _within(rule, value):
            return float(value)
        case int() if rule.kind is int and _within(rule, value):
            return value
    raise UsageError(f"option {name} of model {model} is {value!r}; it takes {rule.accepted()}")


def _within(rule: OptionRule, value: float) -> bool:
    """Whether a number is among the rule's choices or in its range (nan is not)."""
    if rule.choices:
        return value in rule.choices
    return rule.low <= value <= rule.high


def resolve(
    model: str, defaults: Mapping[str, Option], options: Mapping[str, Option]
) -> dict[str, Option]:
    """The model's defaults, changed by the given options.

    Raises:
        UsageError: an option that the model doesn't have, or a value that it doesn't take.
    """
    resolved = dict(defaults)
    for name, value in options.items():
        if name not in defaults:
            raise UsageError(
                f"model {model} has no option {name}{nearest(name, defaults)}; "
                f"it has {', '.join(sorted(defaults)) or 'none'}"
            )
        resolved[name] = check_option(model, name, value)
    return resolved
