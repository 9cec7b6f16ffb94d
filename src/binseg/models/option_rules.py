"""The options of networks: each has one meaning, one type and one range, whoever takes it."""

from collections.abc import Mapping
from dataclasses import dataclass

from binseg.config.named_models import Option
from binseg.errors import UsageError, suggest


@dataclass(frozen=True, kw_only=True)
class OptionRule:
    """The values that an option takes, and what it does."""

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
        kind=int,
        low=1,
        high=1024,
        help="channels of the encoder's finest level; its others follow from it",
    ),
    "depth": OptionRule(
        kind=int, low=1, high=7, help="how many times the U-Net's encoder halves the size"
    ),
    "encoder_norm": OptionRule(
        kind=str,
        choices=("batch", "group"),
        help="what follows the encoder's convolutions; published weights need batch",
    ),
    "encoder_bias": OptionRule(
        kind=bool, help="biases in the encoder's convolutions; published weights have none"
    ),
    "stem_feature": OptionRule(
        kind=str,
        choices=("before-pool", "after-pool"),
        help="the first skip: the stem's map at half the size, or pooled to a quarter",
    ),
    "output_stride": OptionRule(
        kind=int,
        choices=(8, 16, 32),
        help="input pixels per pixel of the coarsest map; finer is slower (by dilation)",
    ),
    "drop_path": OptionRule(
        kind=float, high=0.9, help="chance of skipping the last transformer block in training"
    ),
    "decoder_width": OptionRule(
        kind=int,
        high=1024,
        help="channels inside the decoder (in U-Nets at a quarter of the size and above, doubled "
        "with each halving below); 0 takes what suits the encoder",
    ),
    "norm": OptionRule(
        kind=str,
        choices=("batch", "group", "none"),
        help="what follows each convolution of the decoder, and of an encoder of binseg's own",
    ),
    "bias": OptionRule(
        kind=bool,
        help="biases in 3x3 convolutions of the decoder, and of the U-Net's encoder; without a "
        "norm they always have some",
    ),
    "dropout": OptionRule(
        kind=float,
        high=0.9,
        help="share of values dropped in training: between a block's convolutions, or before the "
        "head",
    ),
    "up": OptionRule(
        kind=str,
        choices=("transpose", "bilinear", "nearest"),
        help="how maps double in size: a transposed convolution, or interpolation",
    ),
    "join": OptionRule(
        kind=str,
        choices=("pad", "resize-up", "resize-skip"),
        help="where a map and its skip differ in size: pad or resize the map, or resize the skip",
    ),
    "skip_first": OptionRule(
        kind=bool, help="whether the skip's channels come before the upsampled map's"
    ),
    "decoder_convs": OptionRule(
        kind=int, low=1, high=4, help="3x3 convolutions of each block with a skip"
    ),
    "final_convs": OptionRule(
        kind=int,
        high=4,
        help="3x3 convolutions of each block without a skip, which bring maps to full size; 0 "
        "resizes the logits instead",
    ),
}
"""All options by name; `binseg encoders --json` lists what each part takes."""


def _check(network: str, name: str, value: object) -> Option:
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
    raise UsageError(f"option {name} of {network} is {value!r}; it takes {rule.accepted()}")


def _within(rule: OptionRule, value: float) -> bool:
    """Tell whether a number is among the rule's choices or in its range (nan is not)."""
    if rule.choices:
        return value in rule.choices
    return rule.low <= value <= rule.high


def resolve(
    network: str, defaults: Mapping[str, Option], options: Mapping[str, Option]
) -> dict[str, Option]:
    """Return a network's defaults, changed by the given options.

    Args:
        network: its name in messages.
        defaults: all options that it has.
        options: the changes.

    Raises:
        UsageError: an option that the network doesn't have, or a value that it doesn't take.
    """
    resolved = dict(defaults)
    for name, value in options.items():
        if name not in defaults:
            raise UsageError(f"{network} has no option {name}; {suggest(name, defaults)}")
        resolved[name] = _check(network, name, value)
    return resolved
