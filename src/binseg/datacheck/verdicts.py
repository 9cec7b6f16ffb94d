"""What single masks and the mix of images say: empty, full, odd, shifted, unlike the others."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from binseg.datacheck.alignment import Shift, constant_shift, now, shift_of
from binseg.datacheck.looks import Look, files_of
from binseg.datacheck.outlines import MIN_MASKS, unlike_others
from binseg.types import Finding, Severity

__all__ = [
    "finding_on",
    "foreground_share",
    "on_alignment",
    "on_images",
    "on_masks",
    "on_outlines",
]

TINY_SIDE = 16
"""Images with a shorter side than this hold next to nothing to learn from."""
LONG_ASPECT = 8.0
"""Stretching an image that is longer than this many times its width loses its shape."""
RARE_SHARE = 0.001
"""Foreground below this share of all pixels: plain losses tend to learn that there is none."""
GOOD_FIT = 6.0
"""Where nearly all masks fit their images' edges so well (robust standard deviations) ..."""
NO_FIT = 0.4
"""... one that fits by less than this share of what they reach belongs to another image."""
ODD_SHARE = 0.02
"""Images of a kind that is rarer than this among the others are named one by one."""


def finding_on(
    looks: Iterable[Look],
    root: Path,
    *,
    severity: Severity,
    code: str,
    text: str,
    advice: str = "",
) -> Finding:
    """Make a finding that names these looks' records and files."""
    known = tuple(looks)
    return Finding(
        severity=severity,
        code=code,
        text=text,
        ids=tuple(look.record.id for look in known),
        files=tuple(name for look in known for name in files_of(look.record, root)),
        advice=advice,
    )


_MASK_KINDS: tuple[tuple[Severity, str, str, str, str, Callable[[Look], bool]], ...] = (
    (
        "warning",
        "no-mask",
        "image has no mask: it can neither train nor test",
        "images have no mask: they can neither train nor test",
        "Add their masks, or leave the images out.",
        lambda look: look.foreground is None and look.problem is None,
    ),
    (
        "warning",
        "all-ignored",
        "mask holds only ignored pixels: it teaches nothing",
        "masks hold only ignored pixels: they teach nothing",
        "Look at data.ignore, or leave these images out.",
        lambda look: look.foreground is not None and look.num_valid == 0,
    ),
    (
        "note",
        "empty-mask",
        "mask is empty: right where the object is absent; a forgotten mask otherwise",
        "masks are empty: right where the object is absent; forgotten masks otherwise",
        "Look at each of these images: is the object in it?",
        lambda look: look.foreground == 0 and look.num_valid > 0,
    ),
    (
        "warning",
        "full-mask",
        "mask is full: are foreground and background exchanged?",
        "masks are full: are foreground and background exchanged?",
        "Draw these masks anew, or leave the images out.",
        lambda look: look.foreground == 1,
    ),
)
"""Severity, code, text for one and for several, advice, and which masks it is about."""


def on_masks(looks: Sequence[Look], root: Path) -> Iterator[Finding]:
    """Masks that are absent, unusable, empty, full, or nothing but ignored pixels."""
    yield from (look.problem for look in looks if look.problem is not None)
    for severity, code, one, several, advice, holds in _MASK_KINDS:
        held = [look for look in looks if holds(look)]
        if held:
            told = f"{len(held)} {one if len(held) == 1 else several}"
            yield finding_on(held, root, severity=severity, code=code, text=told, advice=advice)
    share = foreground_share(looks)
    if 0 < share < RARE_SHARE:
        yield Finding(
            severity="warning",
            code="rare-foreground",
            text=f"foreground is {share:.3%} of the pixels",
            advice="Take `resize: tile` or a larger size to keep it, and a loss with Dice.",
        )


def foreground_share(looks: Sequence[Look]) -> float:
    """How much of all pixels that count is foreground; 0 where none counts."""
    judged = [(look.foreground, look.num_valid) for look in looks if look.foreground is not None]
    num_valid = sum(num for _, num in judged)
    return sum(share * num for share, num in judged) / num_valid if num_valid else 0.0


def on_images(looks: Sequence[Look], root: Path) -> Iterator[Finding]:
    """Images too small or too long, turned by EXIF, or of another kind than the others."""
    tiny = [look for look in looks if min(look.height, look.width) < TINY_SIDE]
    if tiny:
        yield finding_on(
            tiny,
            root,
            severity="warning",
            code="tiny",
            text=f"{_images(tiny)} smaller than {TINY_SIDE} pixels on a side",
            advice="Leave them out: thumbnails and icons teach nothing.",
        )
    long = [x for x in looks if max(x.height, x.width) > LONG_ASPECT * min(x.height, x.width)]
    if long:
        yield finding_on(
            long,
            root,
            severity="warning",
            code="long",
            text=f"{_images(long)} more than {LONG_ASPECT:g} times as long as wide",
            advice="Take `resize: letterbox` or `resize: tile`: stretching loses their shape.",
        )
    turned = [look for look in looks if look.turned]
    if turned:
        apart = sum(not x.mask_turned for x in turned if x.record.mask_path is not None)
        drawn = (
            f", {apart} without such a note in the mask, which must have been drawn on the turned "
            "image"
        )
        yield finding_on(
            turned,
            root,
            severity="note",
            code="turned",
            text=f"{_images(turned)} turned by an EXIF note" + (drawn if apart else ""),
            advice="binseg turns them; other tools may not. Save them turned to be safe.",
        )
    yield from _mix(looks, root, "mixed-channels", lambda look: f"{look.channels} channels")
    yield from _mix(looks, root, "mixed-types", lambda look: look.dtype)


def _images(looks: Sequence[Look]) -> str:
    return "1 image is" if len(looks) == 1 else f"{len(looks)} images are"


def _mix(
    looks: Sequence[Look], root: Path, code: str, kind_of: Callable[[Look], str]
) -> Iterator[Finding]:
    kinds = Counter(kind_of(look) for look in looks)
    if len(kinds) < 2:
        return
    odd = [look for look in looks if kinds[kind_of(look)] < ODD_SHARE * len(looks)]
    named = ", ".join(f"{kind} ({num})" for kind, num in kinds.most_common())
    text = f"images differ in {code.removeprefix('mixed-')}: {named}"
    advice = "One model sees them all alike; make sure that this is meant."
    yield finding_on(odd, root, severity="note", code=code, text=text, advice=advice)


def on_alignment(looks: Sequence[Look], root: Path) -> Iterator[Finding]:
    """Masks that would fit their image better a few pixels away, all of them or single ones."""
    advice = "Look at them: was the image cropped, or registered, after the mask was drawn?"
    sizes = Counter((x.height, x.width) for x in looks if x.surface_RR is not None)
    if sizes:
        usual = sizes.most_common(1)[0][0]
        alike = [x for x in looks if x.surface_RR is not None and (x.height, x.width) == usual]
        common = constant_shift([x.surface_RR for x in alike if x.surface_RR is not None])
        if common is not None:
            text = f"all masks look shifted: they would fit better {_way(common, alike[0].scale)}"
            yield Finding(severity="error", code="all-shifted", text=text, advice=advice)
            return
    fits = [now(x.surface_RR) for x in looks if x.surface_RR is not None]
    usual_fit = float(np.percentile(fits, 5)) if len(fits) >= MIN_MASKS else 0.0
    for look in looks:
        if look.surface_RR is None:
            continue
        shift = shift_of(look.surface_RR)
        if shift is None and usual_fit >= GOOD_FIT and now(look.surface_RR) < NO_FIT * usual_fit:
            text = "the mask's outline follows no edges of its image, those of the others do"
            yield finding_on(
                [look],
                root,
                severity="warning",
                code="misfit",
                text=text,
                advice="Look at it: is it another image's mask, or a scribble?",
            )
        if shift is not None:
            text = f"the mask would fit its image better {_way(shift, look.scale)}"
            yield finding_on(
                [look], root, severity="warning", code="shifted", text=text, advice=advice
            )


def _way(shift: Shift, scale: float) -> str:
    down, right = (round(step / scale) for step in (shift.down, shift.right))
    parts = [
        f"{abs(step)} pixels {positive if step > 0 else negative}"
        for step, positive, negative in ((down, "down", "up"), (right, "right", "left"))
        if step
    ]
    return " and ".join(parts)


def on_outlines(looks: Sequence[Look], root: Path) -> Iterator[Finding]:
    """Masks unlike all others: scribbles, exchanged classes, another annotator."""
    for index, how in unlike_others([look.outline for look in looks]).items():
        yield finding_on(
            [looks[index]],
            root,
            severity="note",
            code="outlier",
            text=f"the mask is unlike the others: {how}",
            advice="Look at it: exchanged classes, a scribble, or just a rare case?",
        )
