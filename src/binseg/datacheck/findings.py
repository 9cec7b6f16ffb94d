"""Judge data by what was seen: the same content in two places, odd masks, the mix of images.

Each finder takes the `Evidence` and yields hits: the records concerned, and one sentence.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.spatial import cKDTree

from binseg.data.dataset import counted, name_some
from binseg.data.origins import Place, by_case, by_copy, is_grid, place_of
from binseg.datacheck.alignment import Shift, constant_shift, fit_now, neighbour_that_fits, shift_of
from binseg.datacheck.looks import Evidence, Look, Outline
from binseg.datacheck.near_duplicates import alike, clusters_of, pairs_of
from binseg.errors import DataError
from binseg.imageio import read_image
from binseg.parallel import map_ordered
from binseg.storage import read_bytes
from binseg.types import Record

Hit = tuple[Sequence[Record], str]  # the records that a finding names, and what is wrong with them
Finder = Callable[[Evidence], Iterable[Hit]]
T = TypeVar("T")
RARE_SHARE = 0.001  # share of foreground below which plain losses tend to learn that there is none
GOOD_FIT, NO_FIT = 6.0, 0.4
"""If nearly all masks fit their images' edges this well (in robust standard deviations), one that
reaches less than this share of their fit belongs to another image."""
MIN_MASKS = 20  # with fewer masks there is no telling what is usual
FAR = 4.0  # robust standard deviations from the median at which a mask is unlike the others
NARROW = 0.3  # share of the 16-bit range below which 8 bits of it lose what the image shows
ODD_SHARE = 0.02  # images of a kind that is rarer than this are named one by one


def problems(code: str) -> Finder:
    """Make a finder of the images and masks that can't be used for this reason."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        for problem in (*evidence.unread, *(look.problem for look in evidence.looks)):
            if problem is not None and problem.code == code:
                yield [problem.record], problem.text

    return find


def where(holds: Callable[[Look], bool], noun: str, rest: str) -> Finder:
    """Make a finder of all looks for which something holds; `rest` ends the line `3 images ...`."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        if held := [look.record for look in evidence.looks if holds(look)]:
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


def copies(code: str) -> Finder:
    """Make a finder of images with equal pixels: `leak`, `contradiction` or `duplicate`."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        for twins in _grouped(evidence.looks, lambda look: look.image_hash):
            # Tiles of one colour (no data, blank glass) are alike without being copies.
            if len(twins) < 2 or (_is_blank(twins[0].thumb_SS) and _shows_nothing(twins[0].record)):
                continue
            records = [look.record for look in twins]
            splits = _splits(records)
            often = "twice" if len(twins) == 2 else f"{len(twins)} times"
            kind, text = "duplicate", f"one image is there {often}"
            if len(splits) > 1:
                kind, text = "leak", _leak_text(splits)
            elif len({look.mask_hash for look in twins}) > 1:
                kind, text = "contradiction", "one image has different masks under different names"
            if kind == code:
                yield records, text

    return find


def near_copies(*, across: bool) -> Finder:
    """Make a finder of images that differ in size, encoding, flip or turn alone, in a split."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        for members in evidence.near_copies:
            records = [look.record for look in members]
            splits = _splits(records)
            if (len(splits) > 1) == across:
                where = f" in {' and '.join(splits)}: scores on them flatter" if across else ""
                yield records, f"{len(records)} images are nearly the same{where}"

    return find


def near_leaks(evidence: Evidence) -> Iterator[Hit]:
    """Find images that are the same or nearly so in two splits, at a glance at every image."""
    records = [one for one in evidence.dataset.records if one.split is not None]
    pairs = pairs_of(records, progress=evidence.progress)
    apart = [(a, b) for a, b in pairs if records[a].split != records[b].split]
    for cluster in clusters_of(len(records), apart):
        members = [records[row] for row in cluster]
        where = f"in {' and '.join(_splits(members))}: scores on them flatter"
        yield members, f"{len(members)} images are nearly the same {where}"


def torn_names(evidence: Evidence) -> Iterator[Hit]:
    """Find cases (patients, videos) and copies, told by names alone, that are in two splits."""
    records = evidence.dataset.records
    rows = [row for row, one in enumerate(records) if one.group is None and one.page is None]
    for noun, name_of in (("copies", by_copy(records, rows)), ("cases", by_case(records, rows))):
        members = [[records[row] for row in some] for some in _grouped(rows, name_of.get)]
        if torn := [some for some in members if len(_splits(some)) > 1]:
            names = name_some([some[0].id for some in torn], limit=3)
            text = f"{len(torn)} {noun} are in more than one split, by their names ({names})"
            yield [one for some in torn for one in some], text


def empty_splits(evidence: Evidence) -> Iterator[Hit]:
    """Find splits without a single object: no score on them says how well objects are found."""
    known = [one for one in evidence.looks if one.foreground is not None]
    for split in _splits(one.record for one in known):
        if not any(one.foreground for one in known if one.record.split == split):
            yield [], f"none of the {split} masks holds foreground: {split} scores will say nothing"


def narrow_range(evidence: Evidence) -> Iterator[Hit]:
    """Find 16-bit images that use so few of their values that few grey levels would be left."""
    used = max((look.brightest for look in evidence.looks), default=0.0)
    if 0 < used < NARROW:
        levels = f"{max(1, round(used * 255)) + 1} grey levels"
        yield [], f"the 16-bit images use {used:.1%} of their range: intensity dtype keeps {levels}"


def hidden_steps(evidence: Evidence) -> Iterator[Hit]:
    """Find images of more than 8 bits whose objects differ from their surroundings by less."""
    outlined = [look for look in evidence.looks if look.outline is not None]
    hidden = [look.hidden for look in outlined if look.hidden is not None]
    if 2 * len(hidden) > len(outlined):
        told = f"by {np.median(hidden):.2g} of the 255 levels that the network sees"
        yield [], f"objects differ from what is around them {told}, which hides them"


def off_by_one(evidence: Evidence) -> Iterator[Hit]:
    """Find data sets whose masks fit the next or the previous image, by their numbers."""
    if way := neighbour_that_fits(evidence.dataset.records, evidence.dataset.rule):
        text = f"by their outlines they fit the image {way} theirs"
        yield [], f"the masks are off by one: {text}"


def torn_groups(evidence: Evidence) -> Iterator[Hit]:
    """Find groups, which must stay whole, that are in more than one split."""
    for torn in _grouped(evidence.dataset.records, lambda record: record.group):
        splits = _splits(torn)
        if len(splits) > 1:
            yield torn, f"group {torn[0].group} is in {' and '.join(splits)}"


def at_seams(kind: str) -> Finder:
    """Make a finder of `pages`, `patches` or `grouped` ones that touch across splits."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        records = evidence.dataset.records
        found = [seam for seam in seams(records) if seam.kind == kind]
        at_seam = [records[index] for seam in found for index in seam.indices]
        num, sources = len(at_seam), name_some((seam.source for seam in found), limit=3)
        text = f"{num} patches of {sources} touch a patch of the same source in another split"
        if kind == "pages":
            text = f"{num} pages lie next to a page in another split, which looks the same"
        if at_seam:
            yield at_seam, text

    return find


class Seam(NamedTuple):
    """One source whose patches lie in more than one split; its kind is `at_seams`'s."""

    source: str
    indices: tuple[int, ...]  # the records that have a neighbour in another split
    kind: str


def seams(records: Sequence[Record]) -> Iterator[Seam]:
    """Find the sources that are in more than one split, with the patches that touch across."""
    members: dict[tuple[str, bool, int], list[tuple[int, Place]]] = defaultdict(list)
    for index, record in enumerate(records):
        place = place_of(record.id)
        if record.page is not None:
            place = Place(source=str(record.image_path), at=(record.page,))
        if place is not None and record.split is not None:
            members[place.source, place.bare, len(place.at)].append((index, place))
    for (source, bare, _), placed in members.items():
        at_NP = np.array([place.at for _, place in placed], dtype=np.float64)
        of_source = [records[index] for index, _ in placed]
        if len(_splits(of_source)) < 2 or (bare and not is_grid(at_NP)):
            continue
        # Patches one step or less from a patch in another split; a step is the least distance.
        steps = [np.diff(np.unique(values)).min(initial=np.inf) for values in at_NP.T]
        steps_P = np.where(np.isinf(steps), 1.0, steps)
        pairs = cKDTree(at_NP / steps_P).query_pairs(1.01, p=np.inf)
        apart = [pair for pair in pairs if len(_splits(of_source[n] for n in pair)) > 1]
        if indices := tuple(placed[n][0] for n in sorted({n for pair in apart for n in pair})):
            is_grouped = all(records[index].group is not None for index in indices)
            kind = "grouped" if is_grouped else "patches"
            yield Seam(source, indices, "pages" if of_source[0].page is not None else kind)


def shared_masks(evidence: Evidence) -> Iterator[Hit]:
    """Find one mask under several images: paired by mistake, or copied instead of drawn."""
    drawn = [look for look in evidence.looks if look.foreground not in (None, 0.0, 1.0)]
    for sharers in _grouped(drawn, lambda look: look.mask_hash):
        if len({look.image_hash for look in sharers}) < 2:
            continue
        # A re-encoded copy of an image rightly has the same mask.
        pairs = alike(np.stack([look.thumb_SS for look in sharers]))
        if clusters_of(len(sharers), pairs) != [tuple(range(len(sharers)))]:
            text = f"{len(sharers)} different images have exactly the same mask"
            yield [look.record for look in sharers], text


def identical_files(evidence: Evidence) -> Iterator[Hit]:
    """Find image files equal byte by byte in two splits; only files of one length are read."""
    known = [one for one in evidence.dataset.records if one.page is None and one.split is not None]
    single = [one for one in known if one.image_path.is_file()]
    of_size = _grouped(single, lambda record: record.image_path.stat().st_size)
    doubtful = [one for alike in of_size if len(_splits(alike)) > 1 for one in alike]
    hashes = map_ordered(_hash_file, [record.image_path for record in doubtful])
    hash_of = {id(one): digest for one, digest in zip(doubtful, hashes, strict=True)}
    for twins in _grouped(doubtful, lambda record: hash_of[id(record)]):
        splits = _splits(twins)
        if len(splits) > 1 and not _shows_nothing(twins[0]):
            yield twins, _leak_text(splits)


def _grouped(things: Iterable[T], key: Callable[[T], object]) -> Iterable[list[T]]:
    """Group what has an equal key; what has none (None) is left out."""
    groups: dict[object, list[T]] = defaultdict(list)
    for thing in things:
        groups[key(thing)].append(thing)
    groups.pop(None, None)
    return groups.values()


def _leak_text(splits: Sequence[str]) -> str:
    return f"one image is in {' and '.join(splits)}: scores on it mean nothing"


def _splits(records: Iterable[Record]) -> list[str]:
    return sorted({record.split for record in records if record.split is not None})


def _is_blank(pixels: np.ndarray) -> bool:
    return bool(pixels.min() == pixels.max())


def _shows_nothing(record: Record) -> bool:
    try:
        image_HWC = read_image(record.image_path, page=record.page)
    except DataError:
        return False  # reading the samples will say what is wrong with it
    return all(_is_blank(channel) for channel in np.moveaxis(image_HWC, 2, 0))


def _hash_file(path: Path) -> str:
    try:
        return blake2b(read_bytes(path), digest_size=16).hexdigest()
    except OSError:
        return str(path)  # equal to nothing; reading the samples will say what is wrong with it


def turned_images(evidence: Evidence) -> Iterator[Hit]:
    """Find images that an EXIF note turns, and say whether their masks are turned, too."""
    turned = [look for look in evidence.looks if look.turned]
    apart = sum(not one.mask_turned for one in turned if one.record.mask_path is not None)
    text = f"{counted(len(turned), 'image', 'images')} turned by an EXIF note"
    if apart:
        told = "in the mask, which must have been drawn on the turned image"
        text += f", {apart} without such a note {told}"
    if turned:
        yield [look.record for look in turned], text


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
    if way := _common_way(evidence):
        yield [], f"all masks look shifted: they would fit better {way}"


def shifted(evidence: Evidence) -> Iterator[Hit]:
    """Find single masks that would fit their image better a few pixels away."""
    if not _common_way(evidence):
        slid = _slid(evidence)
        for look, surface_RR in slid:
            if (shift := shift_of(surface_RR, num_masks=len(slid))) is not None:
                way = _way(shift, look.scale)
                yield [look.record], f"the mask would fit its image better {way}"


def misfits(evidence: Evidence) -> Iterator[Hit]:
    """Find masks that fit their image nowhere, where those of the others do."""
    slid = _slid(evidence)
    if len(slid) < MIN_MASKS or _common_way(evidence):
        return
    fits = [fit_now(surface_RR) for _, surface_RR in slid]
    usual = float(np.percentile(fits, 5))
    text = "the mask's outline follows no edges of its image, as those of the others do"
    for (look, surface_RR), fit in zip(slid, fits, strict=True):
        if usual >= GOOD_FIT and fit < NO_FIT * usual and shift_of(surface_RR) is None:
            yield [look.record], text


def _slid(evidence: Evidence) -> list[tuple[Look, np.ndarray]]:
    return [(look, look.surface_RR) for look in evidence.looks if look.surface_RR is not None]


def _common_way(evidence: Evidence) -> str:
    """Say where all masks of the most frequent size would fit better; "" if nowhere."""
    slid = _slid(evidence)
    sizes = Counter((look.height, look.width) for look, _ in slid)
    usual = max(sizes, key=sizes.__getitem__, default=(0, 0))
    alike = [(look, surf) for look, surf in slid if (look.height, look.width) == usual]
    common = constant_shift([surface_RR for _, surface_RR in alike])
    return "" if common is None else _way(common, alike[0][0].scale)


def _way(shift: Shift, scale: float) -> str:
    ways = zip(
        (round(step / scale) for step in shift), (("up", "down"), ("left", "right")), strict=True
    )
    return " and ".join(f"{abs(step)} pixels {names[step > 0]}" for step, names in ways if step)


def outliers(evidence: Evidence) -> Iterator[Hit]:
    """Find masks unlike all others: scribbles, exchanged classes, another annotator."""
    looks = evidence.looks
    for index, how in unlike_others([look.outline for look in looks]).items():
        yield [looks[index].record], f"the mask is unlike the others: {how}"


def unlike_others(outlines: Sequence[Outline | None]) -> Mapping[int, str]:
    """Find masks far from the usual in a measure, by index, with words that say in which."""
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
        lambda x: float(np.log(x.share / (1 - x.share))),
        lambda x: f"{x.share:.1%}",
        0.5,
    ),
    ("number of objects", lambda x: np.log(x.num_objects), lambda x: str(x.num_objects), 0.35),
    ("solidity", lambda x: x.solidity, lambda x: f"{x.solidity:.2f}", 0.06),
    ("foreground along the rim", lambda x: x.rim, lambda x: f"{x.rim:.0%}", 0.1),
)
"""Name of a measure, its value, the value as text, and the least spread that it is judged by."""
