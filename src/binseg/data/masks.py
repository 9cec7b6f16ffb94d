"""Meaning of the numbers in mask files: detected, said, and from then on held to strictly."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Integer

from binseg.config.recipe import Border, DataConfig
from binseg.errors import DataError, ImageError
from binseg.imageio import ImageInfo, probe, read_cover, read_labels, read_palette
from binseg.imageio.decoding import ReadAs
from binseg.progress import SILENT, Progress, track
from binseg.types import Mask, Record

RuleKind = Literal["values", "threshold", "trimap", "polygons"]
_READ_AS: Mapping[ReadAs, str] = {
    "indices": " (indices of the palette, as in Pascal VOC)",
    "alpha": " (values of the transparency: what is opaque is the object)",
}
Labels = Integer[np.ndarray, "H W"] | Integer[np.ndarray, "H W 3"]

NUM_SCANNED = 64
"""Masks looked at to find out what the values mean; all, where these show no foreground."""
NEAR, MOST_BETWEEN = 40, 0.03
"""JPEG moves 0 and 255 by less than the first, except at edges, which have this share of pixels."""
GREY = 0x010101  # a grey level times this is the same grey as a colour 0xRRGGBB
MOST_CLASSES = 32  # more colours in a palette are the soft edges of an adaptive one
LOSSY = {"JPEG", "WEBP", "AVIF", "HEIF", "JPEG2000"}  # Formats that may blur
NEAR_GREY = 24  # Most by which the channels of a grey differ then
MOST_TOUCHING = 0.2
"""Edges between 1 and 2 for each one at a 3, up to which 3 is a border that lies between them."""
TRIMAP = frozenset({1, 2, 3})  # Oxford-IIIT Pet: 1 object, 2 background, 3 border between them


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """Rule by which a mask's values become foreground, background, and pixels that don't count."""

    kind: RuleKind
    foreground: frozenset[int] | None = None
    background: frozenset[int] | None = None  # Every other value where it is None
    ignore: frozenset[int] = frozenset()
    threshold: int | None = None  # Values above it are foreground
    colour: bool = False  # True for values that are colours 0xRRGGBB
    border: Border | None = None  # Class that the border of a trimap counts as
    read_as: ReadAs = "colours"
    white_is_zero: bool = False  # For people: some masks are TIFFs that say so
    between: float | None = None  # For people: share of a JPEG's pixels not near 0 or 255

    def apply(self, labels: Labels) -> tuple[Mask, Mask]:
        """Read a mask's values or colours as mask_HW and valid_HW; ImageError for a strange one."""
        is_soft = self.threshold is not None
        values_HW = _coloured(labels) if self.colour else _grey(labels, is_soft=is_soft)
        valid_HW = ~np.isin(values_HW, [*self.ignore])
        if self.threshold is not None:
            return (values_HW > self.threshold) & valid_HW, valid_HW
        assert self.foreground is not None, "polygons have no values"
        mask_HW = np.isin(values_HW, [*self.foreground])
        if self.background is not None:
            known_HW = mask_HW | ~valid_HW | np.isin(values_HW, [*self.background])
            if not known_HW.all():
                strange = sorted(_values_of(values_HW[~known_HW]))
                raise ImageError(
                    f"the mask holds {self._name(strange)}, but the dataset's masks were read as "
                    f"{self.describe()}; fix the file or set data.foreground, data.ignore"
                )
        return mask_HW, valid_HW

    def describe(self) -> str:
        """Say the rule in one phrase, for the user and for reports."""
        if self.kind == "polygons":
            return "outlines, filled (a ring inside a ring is a hole)"
        ignored = f", {self._name(self.ignore)} ignored" if self.ignore else ""
        read_as = _READ_AS.get(self.read_as, "")
        if self.threshold is not None:
            blurred = ""
            if self.between is not None:
                left = f"{self.between:.2%} of the pixels in between"
                blurred = f" (JPEG or the like, whose blur leaves {left})"
            return f"values above {self.threshold} are foreground{blurred}{ignored}{read_as}"
        assert self.foreground is not None
        if self.border is not None:
            return f"trimap: 1 foreground, 2 background, 3 (border) counts as {self.border}"
        background = "all else" if self.background is None else self._name(self.background)
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
        return _named(values, colour=self.colour)


def detect_rule(
    records: Sequence[Record],
    config: DataConfig,
    progress: Progress = SILENT,
    *,
    is_trimap: bool = False,
) -> MaskRule:
    """Find what mask values mean, by options and up to 64 masks; DataError if ambiguous."""
    masked = [record for record in records if record.mask_path is not None]
    if not masked and any(record.shapes is not None for record in records):
        if config.threshold is not None or config.ignore is not None:
            told = "data.threshold and data.ignore are for mask files"
            raise DataError(f"{told}; this data has outlines")
        if not any(record.shapes for record in records):
            raise DataError(f"none of the {len(records)} images has an outline: nothing to learn")
        return MaskRule(kind="polygons")
    if not masked:
        raise DataError("no image has a mask; binseg needs masks to learn from or to score with")
    some = masked[:: max(1, -(-len(masked) // NUM_SCANNED))]
    read_as: ReadAs = "alpha" if _means_alpha(some) else "colours"
    if is_trimap or _means_indices(some, config):
        read_as = "indices"
    for looked_at in (some, masked):
        found = _scan(looked_at, progress, read_as)
        rule = _rule_for(found, config, looked_at, is_trimap=is_trimap)
        if rule is not None and all(shown := _shows(found, rule)):
            if read_as == "indices" and not found.has_palette:
                read_as = "colours"
            return replace(rule, read_as=read_as, white_is_zero=found.white_is_zero)
    if found.has_palette and found.colour and config.foreground:
        odd = min(found.values - {0}, key=lambda value: (found.holders[value][0], value))
        raise DataError(
            f"no mask holds a foreground colour: their palettes have {found.name(found.values)} "
            f"({found.name([odd])} is in {found.holders[odd][1].name}); save all masks with one "
            f"palette whose first colour is black, or say {_flag('foreground', '[0x...]')}"
        )
    kind = "full" if rule is not None and shown[0] else "empty"
    num = len(masked)
    told = (
        f"all {num} masks are {kind}: they hold"
        if num > 1
        else f"the only mask is {kind}: it holds"
    )
    raise DataError(
        f"{told} only {found.name(found.values)}"
        + (f", read as {rule.describe()}" if rule and config.foreground else "")
        + "; are these the right files, or does data.foreground need another value?"
    )


def _rule_for(
    found: "Scan", config: DataConfig, records: Sequence[Record], *, is_trimap: bool
) -> MaskRule | None:
    """Give the rule for the values found; None where they show background only."""
    ignore = frozenset(config.ignore or found.no_data - frozenset(config.foreground or ()))
    if config.threshold is not None:
        if found.colour:
            raise DataError("data.threshold can't be used: the masks hold colours, not grey levels")
        return MaskRule(kind="threshold", threshold=config.threshold, ignore=ignore)
    if config.foreground is not None:
        chosen = frozenset(config.foreground)
        return MaskRule(kind="values", foreground=chosen, ignore=ignore, colour=found.colour)
    values = found.values - ignore
    if is_trimap or (values == TRIMAP and not found.colour and _lies_between(records)):
        sides = {"foreground": frozenset({1}), "background": frozenset({2}), "ignore": ignore}
        sides[config.border] |= {3}
        foreground, background, ignored = sides.values()
        return MaskRule(
            kind="trimap",
            foreground=foreground,
            background=background,
            ignore=ignored,
            border=config.border,
        )
    # Black and white, whose edges JPEG blurred.
    is_dark_to_bright = min(values, default=255) <= NEAR and max(values, default=0) >= 255 - NEAR
    is_blurred = found.lossy and found.between < MOST_BETWEEN and not found.colour
    if is_blurred and len(values) > 2 and is_dark_to_bright:
        return MaskRule(kind="threshold", threshold=127, ignore=ignore, between=found.between)
    # Without 0 and with one value only, as in masks that are full, that value is foreground.
    others = values - {0}
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


def _shows(found: "Scan", rule: MaskRule) -> tuple[bool, bool]:
    values = found.values - rule.ignore
    chosen = rule.foreground or {one for one in values if one > (rule.threshold or 0)}
    return not values.isdisjoint(chosen), not values <= chosen


def _ambiguous(found: "Scan", values: frozenset[int]) -> str:
    names = found.name(values)
    if found.colour and found.lossy:
        return (
            f"the masks hold {len(values)} colours ({names}), since JPEG blurs them: save the "
            "masks as PNG, anew from the tool that made them"
        )
    # A 255 alone above few small numbers may as well mark what is not to count.
    num_dark = sum(0 <= value <= NEAR for value in values)
    num_bright = sum(255 - NEAR <= value <= 255 for value in values)
    is_two = num_dark + num_bright == len(values) > 3 and num_dark > 0 and num_bright > 1
    if not found.colour and is_two:
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
    where = all_above = ""
    if odd is not None:
        num, path = found.holders[odd]
        few = f"{num} masks" if num > 1 else "one mask"
        where = f"; {found.name([odd])} is in {few} only ({path.name}: a slip?)"
    chosen = _flag("foreground", f"[{found.name([usual])}]")
    if not found.colour and 255 in values and usual != 255:
        chosen += f" {_flag('ignore', '[255]')}"
    elif not found.colour and min(values) == 0 and 255 not in values:
        all_above = ", or data.threshold=0 if all above 0 are"
    return (
        f"the masks hold {noun}{where}: which are foreground? Say it, for example {chosen}"
        f"{all_above} (in a recipe under data)"
    )


def _usual_and_odd(found: "Scan", values: frozenset[int]) -> tuple[int, int | None]:
    """Give the likeliest foreground, and a value in so few masks that it may be a slip."""
    num_of = {value: found.holders[value][0] for value in values}
    most = max(num_of[value] for value in values - {0})
    frequent = {value for value in values - {0} if 2 * num_of[value] > most}
    rare = sorted(values - {0} - frequent, key=lambda value: (num_of[value], value))
    likely = frequent - {255} if {1, 255} <= frequent and not found.colour else frequent
    usual = max(likely) if 0 not in values else min(likely)
    if found.colour:  # white is the paper, and red on it the object
        usual = max(likely, key=lambda one: (np.ptp([*one.to_bytes(3, "big")]), one))
    return usual, rare[0] if rare and rare[0] != 255 else None


def _flag(name: str, value: str) -> str:
    return f"--set 'data.{name}={value}'"


def _named(values: Iterable[int], *, colour: bool) -> str:
    names = [f"0x{value:06X}" if colour else str(value) for value in sorted(values)]
    if len(names) > 8:
        return f"{', '.join(names[:4])}, ... {names[-1]}"
    return ", ".join(names) or "nothing"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Values in the scanned masks: how many hold each, the first, and what else decides."""

    holders: Mapping[int, tuple[int, Path]]
    colour: bool
    lossy: bool
    is_mixed: bool
    has_palette: bool
    white_is_zero: bool
    between: float
    no_data: frozenset[int]  # Declared so by the files, where others are left

    @property
    def values(self) -> frozenset[int]:
        """All of them."""
        return frozenset(self.holders)

    def name(self, values: Iterable[int]) -> str:
        """Write values, or colours, for a message."""
        return _named(values, colour=self.colour)


def _means_indices(records: Sequence[Record], config: DataConfig) -> bool:
    """Tell whether palettes mean indices: 0 black, one colour each, several or VOC's own."""
    asked = {*(config.foreground or ()), *(config.ignore or ())}
    colour_of = None if max(asked, default=0) > 255 else _colour_of_index(records)
    if colour_of is None or colour_of.get(0, 0) != 0:
        return False
    colours = set(colour_of.values())
    is_plain = all(colour % GREY == 0 for colour in colours)
    if is_plain or len(colours) < len(colour_of) or len(colours) > MOST_CLASSES:
        return False
    is_voc = all(colour == _voc_colour(one) for one, colour in colour_of.items() if one != 255)
    is_asked = asked <= colour_of.keys() or colour_of.keys() - {0} <= asked != set()
    return is_voc or len(colours) > 2 or is_asked


def _colour_of_index(records: Sequence[Record]) -> dict[int, int] | None:
    """Give the colour of each index that palette files use; None where files differ."""
    colour_of: dict[int, int] = {}
    for path, page in [(path, one.page) for one in records for path in one.mask_paths]:
        with contextlib.suppress(ImageError):  # the scan names it
            palette_N3 = read_palette(path, page=page)
            if palette_N3 is not None:
                packed_N = _coloured(palette_N3[None])[0].tolist()
                used = _values_of(read_labels(path, page=page, read_as="indices"))
                if any(colour_of.setdefault(one, packed_N[one]) != packed_N[one] for one in used):
                    return None
    return colour_of


def _means_alpha(records: Sequence[Record]) -> bool:
    """Tell whether masks are drawn in transparency: over one colour, or as cut-outs of photos."""
    colours, is_drawn = set[int](), False
    for record in records[:: max(1, len(records) // 8)]:
        with contextlib.suppress(ImageError):  # the scan names it
            opacity_HW, _ = read_cover(record.mask_paths[0], page=record.page)
            if opacity_HW is None:
                return False
            is_drawn |= bool(opacity_HW.min() < opacity_HW.max())
            colours |= _values_of(_coloured(read_labels(record.mask_paths[0], page=record.page)))
    return is_drawn and not 1 < len(colours) <= MOST_CLASSES


def _voc_colour(index: int) -> int:
    """Give a class's colour in Pascal VOC's palette, as 0xRRGGBB.

    >>> [f"{_voc_colour(index):06X}" for index in (0, 1, 2, 15)]
    ['000000', '800000', '008000', 'C08080']
    """
    bits = ((bit, channel) for bit in range(8) for channel in range(3))
    return sum((index >> (3 * bit + at) & 1) << (7 - bit) << (16 - 8 * at) for bit, at in bits)


def _scan(records: Sequence[Record], progress: Progress, read_as: ReadAs) -> Scan:
    greys: dict[int, tuple[int, Path]] = {}
    colours: dict[int, tuple[int, Path]] = {}
    infos: list[ImageInfo] = []
    is_mixed, num_between, num_pixels = True, 0, 0
    broken: list[ImageError] = []
    files = [(path, record.page) for record in records for path in record.mask_paths]
    watched = track(files, progress=progress, label="looking at masks", total=len(files))
    for path, page in watched:
        try:
            info, labels = probe(path), read_labels(path, page=page, read_as=read_as)
        except ImageError as error:
            # One broken file doesn't hide what the others mean; reading the samples will name it.
            broken.append(error)
            continue
        infos.append(info)
        is_soft = info.format in LOSSY
        is_colour = _is_colour(labels, is_soft=is_soft)
        holders = colours if is_colour else greys
        values = _coloured(labels) if is_colour else _grey(labels, is_soft=is_soft)
        num_pixels += values.size
        num_between += int(((values > NEAR) & (values < 255 - NEAR)).sum())
        held = _values_of(values)
        is_mixed &= not held >= {1, 255}
        for value in held:
            num, first = holders.get(value, (0, path))
            holders[value] = (num + 1, first)
    if not infos:
        raise broken[0]
    declared = {int(one.nodata) for one in infos if one.nodata and one.nodata.is_integer()}
    if colours:
        colours = {value * GREY: held for value, held in greys.items()} | colours
    modes = {one.mode for one in infos}
    return Scan(
        holders=colours or greys,
        colour=bool(colours),
        lossy=any(one.format in LOSSY for one in infos) and len(colours or greys) > 3,
        is_mixed=is_mixed,
        has_palette=not modes.isdisjoint({"P", "PA", "PALETTE"}),
        white_is_zero="MINISWHITE" in modes,
        between=num_between / max(1, num_pixels),
        no_data=frozenset(declared if not colours and len(greys.keys() - declared) > 1 else ()),
    )


def _lies_between(records: Sequence[Record]) -> bool:
    """Tell whether 3 parts 1 from 2, as the border of a trimap does."""
    parted = touching = 0
    for record in records[:: max(1, len(records) // 8)]:
        with contextlib.suppress(ImageError):  # the scan named it
            labels = read_labels(record.mask_paths[0], page=record.page, read_as="indices")
            labels_HW = _grey(labels)
            for lines in (labels_HW, labels_HW.T):
                low, high = np.minimum(lines[1:], lines[:-1]), np.maximum(lines[1:], lines[:-1])
                touching += int(((low == 1) & (high == 2)).sum())
                parted += int(((high == 3) & (low < 3)).sum())
    return touching < MOST_TOUCHING * parted


def _is_colour(labels: Labels, *, is_soft: bool = False) -> bool:
    return labels.ndim == 3 and int(np.ptp(labels, axis=2).max()) > is_soft * NEAR_GREY


def _grey(labels: Labels, *, is_soft: bool = False) -> Integer[np.ndarray, "H W"]:
    """Give the numbers of a grey mask; an `ImageError` says that it has colours."""
    if _is_colour(labels, is_soft=is_soft):
        told = "the mask is in colour, but the dataset's masks were read as grey"
        raise ImageError(f"{told}; save it like the others")
    return labels if labels.ndim == 2 else labels[..., 0]


def _coloured(labels: Labels) -> Integer[np.ndarray, "H W"]:
    """Pack colours into 0xRRGGBB, so that one number stands for one colour."""
    wide = labels.astype(np.int64)
    return wide * GREY if wide.ndim == 2 else np.asarray(wide @ (1 << 16, 1 << 8, 1))


def _values_of(values: Integer[np.ndarray, "..."]) -> set[int]:
    if values.dtype == np.uint8:  # counting is ten times faster than sorting
        return set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())
    return set(np.unique(values).tolist())
