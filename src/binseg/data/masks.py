"""Meaning of the numbers in mask files: detected, said, and from then on held to strictly."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer

from binseg.config.recipe import Border, DataConfig
from binseg.data.mask_scan import (
    NEAR,
    Labels,
    Scan,
    coloured,
    grey,
    lies_between,
    means_indices,
    scan,
    values_of,
)
from binseg.errors import DataError, ImageError
from binseg.progress import SILENT, Progress
from binseg.types import Record

RuleKind = Literal["values", "threshold", "trimap", "polygons"]

_NUM_SCANNED = 64
"""Masks looked at to find out what the values mean; all, where these show no foreground."""
_MOST_BETWEEN = 0.03
"""Share of the pixels that may lie at edges, where JPEG moves 0 and 255 further than `NEAR`."""
_TRIMAP = frozenset({1, 2, 3})
"""Oxford-IIIT Pet: 1 object, 2 background, 3 border between them."""


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """Rule by which a mask's values become foreground, background, and pixels that don't count."""

    kind: RuleKind
    foreground: frozenset[int] | None = None
    """Values that are foreground; None for `threshold` and `polygons`."""
    background: frozenset[int] | None = None
    """Values that are background; None: every value that is nothing else."""
    ignore: frozenset[int] = frozenset()
    """Values that count neither for nor against."""
    threshold: int | None = None
    """Values above this are foreground (kind `threshold`)."""
    colour: bool = False
    """Values are colours 0xRRGGBB; grey masks count as grey colours."""
    border: Border | None = None
    """Part that the border class of a trimap counts for; None where there is no such class."""
    indices: bool = False
    """Values of palette files are their indices, not the colours that these stand for."""
    white_is_zero: bool = False
    """Some masks are TIFFs that say so, whose values are turned round: for the user to read."""
    between: float | None = None
    """Share of a JPEG mask's pixels that aren't near 0 or 255 (kind `threshold`)."""

    def apply(self, labels: Labels) -> tuple[Bool[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
        """Read one mask's values.

        Args:
            labels: raw values (H, W), or colours (H, W, 3).

        Returns:
            mask_HW, True where foreground, and valid_HW, False where the pixel doesn't count.

        Raises:
            ImageError: a value that the rule doesn't know; the text doesn't name the file.
        """
        assert self.kind != "polygons", "polygons have no values"
        values_HW = coloured(labels) if self.colour else grey(labels)
        valid_HW = ~_is_in(values_HW, self.ignore)
        if self.threshold is not None:
            return (values_HW > self.threshold) & valid_HW, valid_HW
        assert self.foreground is not None
        mask_HW = _is_in(values_HW, self.foreground)
        if self.background is not None:
            known_HW = mask_HW | ~valid_HW | _is_in(values_HW, self.background)
            if not known_HW.all():
                strange = sorted(values_of(values_HW[~known_HW]))
                raise ImageError(
                    f"the mask holds {self._name(strange)}, but the dataset's masks were read as "
                    f"{self.describe()}; fix the file or set data.foreground, data.ignore"
                )
        return mask_HW, valid_HW

    def describe(self) -> str:
        """Say the rule in one phrase, as it is told to the user and written into reports."""
        if self.kind == "polygons":
            return "outlines, filled (a ring inside a ring is a hole)"
        ignored = f", {self._name(self.ignore)} ignored" if self.ignore else ""
        if self.threshold is not None:
            blurred = (
                f" (JPEG files, whose blur leaves {self.between:.2%} of the pixels in between)"
                if self.between is not None
                else ""
            )
            return f"values above {self.threshold} are foreground{blurred}{ignored}"
        assert self.foreground is not None
        if self.border is not None:
            return f"trimap: 1 foreground, 2 background, 3 (border) counts as {self.border}"
        background = "all else" if self.background is None else self._name(self.background)
        read_as = " (indices of the palette, as in Pascal VOC)" if self.indices else ""
        if self.white_is_zero:
            read_as += " (TIFFs whose tag says that white is zero were turned round)"
        named = f"{self._name(self.foreground)} foreground, {background} background"
        return f"{named}{ignored}{read_as}"

    @property
    def turned_by(self) -> str | None:
        """The option that swaps foreground and background, where there is one."""
        if self.background is None or self.border is not None:
            return None
        return _flag("foreground", f"[{self._name(self.background)}]")

    def _name(self, values: Iterable[int]) -> str:
        return _name_values(values, colour=self.colour)


def detect_rule(
    records: Sequence[Record],
    config: DataConfig,
    progress: Progress = SILENT,
    *,
    is_trimap: bool = False,
) -> MaskRule:
    """Find out what mask values mean, from the options and from up to 64 masks.

    Args:
        records: the whole dataset; those with a mask file are looked at, evenly spaced.
        config: `foreground`, `ignore`, `threshold`, which settle what is ambiguous, and `border`.
        progress: told when many files have to be read.
        is_trimap: whether the source knows that masks are trimaps.

    Raises:
        DataError: ambiguous values, naming the option that settles them; or masks that are all
            empty.
    """
    masked = [record for record in records if record.mask_path is not None]
    if not masked and any(record.shapes is not None for record in records):
        return _rule_of_outlines(records, config)
    if not masked:
        raise DataError("no image has a mask; binseg needs masks to learn from or to score with")
    step = max(1, -(-len(masked) // _NUM_SCANNED))
    indices = is_trimap or means_indices(masked[::step], config)
    found = scan(masked[::step], progress, indices=indices)
    rule = _rule_for(found, config, masked[::step], is_trimap=is_trimap)
    if rule is None or not _shows_foreground(found, rule):
        found = scan(masked, progress, indices=indices)
        rule = _rule_for(found, config, masked, is_trimap=is_trimap)
    if rule is None or not _shows_foreground(found, rule):
        there = _name_values(found.values, colour=found.colour)
        raise DataError(
            f"all {len(masked)} masks are empty: they hold only {there}"
            + (f", read as {rule.describe()}" if rule and config.foreground else "")
            + "; are these the right files, or does data.foreground need another value?"
        )
    return replace(rule, indices=indices and found.has_palette, white_is_zero=found.white_is_zero)


def _rule_for(
    found: Scan, config: DataConfig, records: Sequence[Record], *, is_trimap: bool
) -> MaskRule | None:
    """Give the rule for the values found; None where they show background only."""
    ignore = frozenset(config.ignore or ())
    if config.threshold is not None:
        if found.colour:
            raise DataError("data.threshold can't be used: the masks hold colours, not grey levels")
        return MaskRule(kind="threshold", threshold=config.threshold, ignore=ignore)
    if config.foreground is not None:
        chosen = frozenset(config.foreground)
        return MaskRule(kind="values", foreground=chosen, ignore=ignore, colour=found.colour)
    values = found.values - ignore
    if is_trimap or (values == _TRIMAP and not found.colour and lies_between(records)):
        return _trimap(config.border, ignore)
    # Without 0 and with one value only, as in masks that are full, that value is foreground.
    others = values - {0}
    if _is_blurred_binary(found, values):
        middle = 127
        return MaskRule(kind="threshold", threshold=middle, ignore=ignore, between=found.between)
    if len(others) > 1 or min(values, default=0) < 0:
        raise DataError(_ambiguous(found, values))
    if not others:
        return None
    return MaskRule(
        kind="values",
        foreground=others,
        background=frozenset({0}),
        ignore=ignore,
        colour=found.colour,
    )


def _is_blurred_binary(found: Scan, values: frozenset[int]) -> bool:
    """Tell whether the masks were 0 and 255 before JPEG blurred their edges."""
    is_dark_to_bright = min(values, default=255) <= NEAR and max(values, default=0) >= 255 - NEAR
    few = found.between < _MOST_BETWEEN
    return found.lossy and not found.colour and len(values) > 2 and is_dark_to_bright and few


def _trimap(border: Border, ignore: frozenset[int]) -> MaskRule:
    foreground, background = {1}, {2}
    if border == "foreground":
        foreground.add(3)
    elif border == "background":
        background.add(3)
    else:
        ignore |= {3}
    return MaskRule(
        kind="trimap",
        foreground=frozenset(foreground),
        background=frozenset(background),
        ignore=ignore,
        border=border,
    )


def _rule_of_outlines(records: Sequence[Record], config: DataConfig) -> MaskRule:
    if config.threshold is not None or config.ignore is not None:
        raise DataError("data.threshold and data.ignore are for mask files; this data has outlines")
    if not any(record.shapes for record in records):
        raise DataError(f"none of the {len(records)} images has an outline: nothing to learn")
    return MaskRule(kind="polygons")


def _shows_foreground(found: Scan, rule: MaskRule) -> bool:
    if rule.threshold is not None:
        threshold = rule.threshold
        return any(value > threshold and value not in rule.ignore for value in found.values)
    assert rule.foreground is not None
    return not rule.foreground.isdisjoint(found.values)


def _ambiguous(found: Scan, values: frozenset[int]) -> str:
    """Say what was found and the option that settles it, with an example that fits."""
    names = _name_values(values, colour=found.colour)
    if found.colour and found.lossy:
        return (
            f"the masks hold {len(values)} colours ({names}), since JPEG blurs them: save the "
            "masks as PNG, anew from the tool that made them"
        )
    if not found.colour and _is_nearly_binary(values):
        return (
            f"the masks hold {len(values)} grey levels ({names}), all near 0 or 255, as JPEG "
            f"leaves black and white: cut them in the middle with {_flag('threshold', '127')} "
            "(in a recipe under data)"
        )
    if not found.colour and values == {0, 1, 255} and found.is_mixed:
        return (
            f"the masks hold the values {names}, but none holds both 1 and 255, as where some were "
            f"saved as 1 bit: if both are foreground, say {_flag('foreground', '[1,255]')} (in a "
            "recipe under data)"
        )
    if not found.colour and (found.lossy or len(values) > 32):
        why = ", blurred by JPEG" if found.lossy else ""
        return (
            f"the masks hold {len(values)} grey levels ({names}){why}: where does foreground "
            f"begin? Say it: {_flag('threshold', '127')}, or data.threshold=0 if every value above "
            "0 is an object (in a recipe under data)"
        )
    noun = f"{len(values)} colours ({names})" if found.colour else f"the values {names}"
    usual, odd = _usual_and_odd(found, values)
    where = ""
    if odd is not None:
        num, path = found.holders[odd]
        few = f"{num} masks" if num > 1 else "one mask"
        name = _name_values([odd], colour=found.colour)
        where = f"; {name} is in {few} only ({path.name}: a slip?)"
    chosen = _flag("foreground", f"[{_name_values([usual], colour=found.colour)}]")
    if not found.colour and 255 in values and usual != 255:
        chosen += f" {_flag('ignore', '[255]')}"
    all_above = (
        ", or data.threshold=0 if all above 0 are"
        if not found.colour and min(values) == 0 and 255 not in values
        else ""
    )
    return (
        f"the masks hold {noun}{where}: which are foreground? Say it, for example {chosen}"
        f"{all_above} (in a recipe under data)"
    )


def _is_nearly_binary(values: frozenset[int]) -> bool:
    """Tell whether grey levels look like 0 and 255 that JPEG blurred once.

    A 255 alone above few small numbers may as well mark what is not to count.
    """
    num_dark = sum(0 <= value <= NEAR for value in values)
    num_bright = sum(255 - NEAR <= value <= 255 for value in values)
    return num_dark + num_bright == len(values) > 3 and num_dark > 0 and num_bright > 1


def _usual_and_odd(found: Scan, values: frozenset[int]) -> tuple[int, int | None]:
    """Give the likeliest foreground, and a value in so few masks that it may be a slip.

    Of 0, 1 and 255 the last is mostly the mark of pixels that don't count. Of two values without
    0 the greater is likelier.
    """
    num_of = {value: found.holders[value][0] for value in values}
    most = max(num_of[value] for value in values - {0})
    frequent = {value for value in values - {0} if 2 * num_of[value] > most}
    rare = sorted(values - {0} - frequent, key=lambda value: (num_of[value], value))
    likely = frequent - {255} if {1, 255} <= frequent and not found.colour else frequent
    usual = max(likely) if found.colour or 0 not in values else min(likely)
    return usual, rare[0] if rare and rare[0] != 255 else None


def _flag(name: str, value: str) -> str:
    """Spell an option of the data as the shell takes it."""
    return f"--set 'data.{name}={value}'"


def _name_values(values: Iterable[int], *, colour: bool) -> str:
    known = sorted(values)
    names = [f"0x{value:06X}" if colour else str(value) for value in known]
    if len(names) > 8:
        return f"{', '.join(names[:4])}, ... {names[-1]}"
    return ", ".join(names) or "nothing"


def _is_in(
    values_HW: Integer[np.ndarray, "H W"], chosen: frozenset[int]
) -> Bool[np.ndarray, "H W"]:
    if not chosen:
        return np.zeros(values_HW.shape, dtype=bool)
    return np.isin(values_HW, sorted(chosen))
