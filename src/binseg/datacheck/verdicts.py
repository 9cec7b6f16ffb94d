"""Judge single masks and the mix of images: full, odd, shifted, unlike the others.

Each finder takes the `Evidence` and yields hits: the records concerned, and one sentence.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from binseg.data.dataset import counted
from binseg.datacheck.alignment import Shift, constant_shift, fit_now, shift_of
from binseg.datacheck.leaks import Finder, Hit
from binseg.datacheck.looks import Evidence, Look, Outline

RARE_SHARE = 0.001
"""Share of foreground below which plain losses tend to learn that there is none."""
GOOD_FIT, NO_FIT = 6.0, 0.4
"""If nearly all masks fit their images' edges this well (in robust standard deviations), one that
reaches less than this share of their fit belongs to another image."""
MIN_MASKS = 20
"""With fewer masks there is no telling what is usual."""
FAR = 4.0
"""Robust standard deviations from the median at which a mask is unlike the others."""
ODD_SHARE = 0.02
"""Images of a kind that is rarer than this are named one by one."""


def problems(code: str) -> Finder:
    """Make a finder of the images and masks that can't be used for this reason."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        of_masks = [look.problem for look in evidence.looks if look.problem is not None]
        for problem in (*evidence.unread, *of_masks):
            if problem.code == code:
                yield [problem.record], problem.text

    return find


def where(holds: Callable[[Look], bool], noun: str, rest: str) -> Finder:
    """Make a finder of all looks for which something holds.

    Args:
        holds: tells whether a look is meant.
        noun: image or mask.
        rest: what follows in the sentence `3 images ...`.
    """

    def find(evidence: Evidence) -> Iterator[Hit]:
        held = [look.record for look in evidence.looks if holds(look)]
        if held:
            yield held, f"{counted(len(held), noun, noun + 's')} {rest}"

    return find


def mixed(kind_of: Callable[[Look], str], what: str) -> Finder:
    """Make a finder of images that differ in something; rare kinds are named one by one."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        kinds = Counter(map(kind_of, evidence.looks))
        if len(kinds) > 1:
            least = ODD_SHARE * len(evidence.looks)
            odd = [look.record for look in evidence.looks if kinds[kind_of(look)] < least]
            named = ", ".join(f"{kind} ({num})" for kind, num in kinds.most_common())
            yield odd, f"images differ in {what}: {named}"

    return find


def turned_images(evidence: Evidence) -> Iterator[Hit]:
    """Find images that an EXIF note turns, and say whether their masks are turned, too."""
    turned = [look for look in evidence.looks if look.turned]
    apart = sum(not one.mask_turned for one in turned if one.record.mask_path is not None)
    drawn = (
        f", {apart} without such a note in the mask, which must have been drawn on the turned image"
    )
    if turned:
        text = f"{counted(len(turned), 'image', 'images')} turned by an EXIF note"
        yield [look.record for look in turned], text + (drawn if apart else "")


def rare_foreground(evidence: Evidence) -> Iterator[Hit]:
    """Find data sets with hardly any foreground."""
    share = foreground_share(evidence.looks)
    if 0 < share < RARE_SHARE:
        yield [], f"foreground is {share:.3%} of the pixels"


def foreground_share(looks: Sequence[Look]) -> float:
    """Return the share of foreground in all pixels that count; 0 where none counts."""
    judged = [(look.foreground, look.num_valid) for look in looks if look.foreground is not None]
    num_valid = sum(num for _, num in judged)
    return sum(share * num for share, num in judged) / num_valid if num_valid else 0.0


def all_shifted(evidence: Evidence) -> Iterator[Hit]:
    """Find data sets whose masks would all fit better a few pixels away."""
    way = _common_way(evidence)
    if way:
        yield [], f"all masks look shifted: they would fit better {way}"


def shifted(evidence: Evidence) -> Iterator[Hit]:
    """Find single masks that would fit their image better a few pixels away."""
    if not _common_way(evidence):
        for look in evidence.looks:
            shift = None if look.surface_RR is None else shift_of(look.surface_RR)
            if shift is not None:
                way = _way(shift, look.scale)
                yield [look.record], f"the mask would fit its image better {way}"


def misfits(evidence: Evidence) -> Iterator[Hit]:
    """Find masks that fit their image nowhere, where those of the others do."""
    fits = [(x, x.surface_RR) for x in evidence.looks if x.surface_RR is not None]
    if len(fits) < MIN_MASKS or _common_way(evidence):
        return
    usual = float(np.percentile([fit_now(surface_RR) for _, surface_RR in fits], 5))
    for look, surface_RR in fits:
        fit = fit_now(surface_RR)
        if usual >= GOOD_FIT and fit < NO_FIT * usual and shift_of(surface_RR) is None:
            yield (
                [look.record],
                ("the mask's outline follows no edges of its image, as those of the others do"),
            )


def _common_way(evidence: Evidence) -> str:
    """Say where all masks of the most frequent size would fit better; "" if nowhere."""
    known = [(x, x.surface_RR) for x in evidence.looks if x.surface_RR is not None]
    sizes = Counter((look.height, look.width) for look, _ in known)
    usual = max(sizes, key=sizes.__getitem__, default=(0, 0))
    alike = [(look, surf) for look, surf in known if (look.height, look.width) == usual]
    common = constant_shift([surface_RR for _, surface_RR in alike])
    return "" if common is None else _way(common, alike[0][0].scale)


def _way(shift: Shift, scale: float) -> str:
    down, right = (round(step / scale) for step in (shift.down, shift.right))
    parts = [
        f"{abs(step)} pixels {positive if step > 0 else negative}"
        for step, positive, negative in ((down, "down", "up"), (right, "right", "left"))
        if step
    ]
    return " and ".join(parts)


def outliers(evidence: Evidence) -> Iterator[Hit]:
    """Find masks unlike all others: scribbles, exchanged classes, another annotator."""
    looks = evidence.looks
    for index, how in unlike_others([look.outline for look in looks]).items():
        yield [looks[index].record], f"the mask is unlike the others: {how}"


def unlike_others(outlines: Sequence[Outline | None]) -> Mapping[int, str]:
    """Find masks that are far from the usual in one of their measures.

    Returns:
        The index of each such mask, with the words that say in what it differs.
    """
    known = [(index, outline) for index, outline in enumerate(outlines) if outline is not None]
    if len(known) < MIN_MASKS:
        return {}
    found: dict[int, str] = {}
    for name, measure, text, least in _MEASURES:
        values_N = np.array([measure(outline) for _, outline in known])
        distance_N = np.abs(values_N - np.median(values_N))
        # The floor: where most masks are exactly alike, the spread says nothing.
        spread = max(1.4826 * float(np.median(distance_N)), least)
        usual = text(known[int(distance_N.argmin())][1])
        for at in np.flatnonzero(distance_N > FAR * spread):
            index, outline = known[at]
            found.setdefault(index, f"{name} {text(outline)}, usually {usual}")
    return found


_MEASURES: tuple[tuple[str, Callable[[Outline], float], Callable[[Outline], str], float], ...] = (
    (
        "foreground share",
        lambda x: np.log(x.share / (1 - x.share)),
        lambda x: f"{x.share:.1%}",
        0.5,
    ),
    ("number of objects", lambda x: np.log(x.num_objects), lambda x: str(x.num_objects), 0.35),
    ("solidity", lambda x: x.solidity, lambda x: f"{x.solidity:.2f}", 0.06),
    ("foreground along the rim", lambda x: x.rim, lambda x: f"{x.rim:.0%}", 0.1),
)
"""Name of a measure, its value, the value as text, and the least spread that it is judged by."""
