"""The same thing in two places: copies, torn groups, neighbouring patches, shared masks."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from binseg.datacheck.looks import Look, files_of
from binseg.datacheck.near_duplicates import alike, clusters_of
from binseg.datacheck.neighbours import seams
from binseg.datacheck.verdicts import finding_on
from binseg.errors import DataError
from binseg.imageio import read_image
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress
from binseg.types import Finding, Record, Severity

__all__ = [
    "identical_files",
    "on_copies",
    "on_near_copies",
    "on_seams",
    "on_shared_masks",
    "on_torn_groups",
]

_LEAK_ADVICE = "Keep one of them, or give them one group in a manifest, so that they stay together."
_SEAM_ADVICE = (
    "Give each source one group (manifest column `group`), so that it stays in one split."
)


def on_copies(looks: Sequence[Look], root: Path) -> Iterator[Finding]:
    """The same pixels twice, and above all in two splits."""
    same: dict[str, list[Look]] = defaultdict(list)
    for look in looks:
        same[look.image_hash].append(look)
    for twins in same.values():
        # Tiles of one colour (no data, blank glass) are alike without being copies.
        if len(twins) < 2:
            continue
        if _is_blank(twins[0].thumb_SS) and _shows_nothing(twins[0].record):
            continue
        splits = _splits(look.record for look in twins)
        severity: Severity = "warning"
        if len(splits) > 1:
            severity, code = "error", "leak"
            text = f"one image is in {' and '.join(splits)}: scores on it mean nothing"
        elif len({look.mask_hash for look in twins}) > 1:
            code = "contradiction"
            text = "one image has different masks under different names"
        else:
            code = "duplicate"
            text = f"one image is there {'twice' if len(twins) == 2 else f'{len(twins)} times'}"
        advice = _LEAK_ADVICE if code != "contradiction" else "Keep the better mask."
        yield finding_on(twins, root, severity=severity, code=code, text=text, advice=advice)


def on_near_copies(
    looks: Sequence[Look], root: Path, *, progress: Progress = SILENT
) -> Iterator[Finding]:
    """Images that differ in size, encoding or a flip alone."""
    if not looks:
        return
    pairs = alike(np.stack([look.thumb_SS for look in looks]), progress=progress)
    told = [(a, b) for a, b in pairs if not _expected(looks[a].record, looks[b].record)]
    for cluster in clusters_of(len(looks), told):
        members = [looks[index] for index in cluster]
        if len({look.image_hash for look in members}) == 1:
            continue  # equal to the bit: told as copies
        splits = _splits(look.record for look in members)
        severity: Severity = "error" if len(splits) > 1 else "note"
        code = "near-leak" if len(splits) > 1 else "near-duplicate"
        where = f" in {' and '.join(splits)}: scores on them flatter" if len(splits) > 1 else ""
        text = f"{len(members)} images are nearly the same{where}"
        yield finding_on(
            members, root, severity=severity, code=code, text=text, advice=_LEAK_ADVICE
        )


def _expected(first: Record, second: Record) -> bool:
    """Pages of a stack resemble each other, and so do images that a group keeps together."""
    if first.page is not None and first.image_path == second.image_path:
        return True
    return first.group is not None and first.group == second.group and first.split == second.split


def on_torn_groups(records: Sequence[Record], root: Path) -> Iterator[Finding]:
    """Groups, which must stay whole, in more than one split."""
    members: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.group is not None:
            members[record.group].append(record)
    for group, torn in members.items():
        splits = _splits(torn)
        if len(splits) > 1:
            text = f"group {group} is in {' and '.join(splits)}"
            yield _on_records(
                torn,
                root,
                severity="error",
                code="torn-group",
                text=text,
                advice="Put it into one split.",
            )


def on_seams(records: Sequence[Record], root: Path) -> Iterator[Finding]:
    """Patches of one source next to each other in two splits."""
    found = list(seams(records))
    pages = [seam for seam in found if seam.pages]
    patches = [seam for seam in found if not seam.pages]
    if pages:
        at_seam = [records[index] for seam in pages for index in seam.indices]
        text = f"{len(at_seam)} pages lie next to a page in another split, which looks the same"
        advice = "Leave out some pages between the splits, or split by stack."
        yield _on_records(
            at_seam, root, severity="warning", code="page-seam", text=text, advice=advice
        )
    if patches:
        at_seam = [records[index] for seam in patches for index in seam.indices]
        sources = ", ".join(seam.source for seam in patches[:3])
        more = f" and {len(patches) - 3} more" if len(patches) > 3 else ""
        text = (
            f"{len(at_seam)} patches of {sources}{more} touch a patch of the same source in "
            "another split"
        )
        # Who gave the patches groups has decided which belong together: we only tell.
        severity: Severity = "warning" if all(seam.grouped for seam in patches) else "error"
        yield _on_records(
            at_seam, root, severity=severity, code="patch-seam", text=text, advice=_SEAM_ADVICE
        )


def on_shared_masks(looks: Sequence[Look], root: Path) -> Iterator[Finding]:
    """One mask under several images: paired by mistake, or copied in place of drawing."""
    same: dict[str, list[Look]] = defaultdict(list)
    for look in looks:
        if look.mask_hash is not None and look.foreground not in (None, 0.0, 1.0):
            same[look.mask_hash].append(look)
    for sharers in same.values():
        if len({look.image_hash for look in sharers}) > 1 and not _look_alike(sharers):
            text = f"{len(sharers)} different images have exactly the same mask"
            advice = "Find the image that it was drawn for."
            yield finding_on(
                sharers, root, severity="warning", code="shared-mask", text=text, advice=advice
            )


def _look_alike(looks: Sequence[Look]) -> bool:
    """Whether these are one image, told already: a re-encoded copy shares its mask rightly."""
    pairs = alike(np.stack([look.thumb_SS for look in looks]))
    return clusters_of(len(looks), pairs) == [tuple(range(len(looks)))]


def identical_files(records: Sequence[Record], root: Path) -> Iterator[Finding]:
    """Image files equal byte by byte in two splits; only files of one length are read."""
    by_size: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.page is None and record.split is not None and record.image_path.is_file():
            by_size[record.image_path.stat().st_size].append(record)
    doubtful = [
        record for fellows in by_size.values() if len(_splits(fellows)) > 1 for record in fellows
    ]
    same: dict[str, list[Record]] = defaultdict(list)
    hashes = map_ordered(_hash_file, [record.image_path for record in doubtful])
    for record, digest in zip(doubtful, hashes, strict=True):
        same[digest].append(record)
    for twins in same.values():
        splits = _splits(twins)
        if len(splits) > 1 and not _shows_nothing(twins[0]):
            text = f"one image is in {' and '.join(splits)}: scores on it mean nothing"
            yield _on_records(
                twins, root, severity="error", code="leak", text=text, advice=_LEAK_ADVICE
            )


def _is_blank(pixels: np.ndarray) -> bool:
    return bool(pixels.min() == pixels.max())


def _shows_nothing(record: Record) -> bool:
    """Whether an image has one colour alone."""
    try:
        image_HWC = read_image(record.image_path, page=record.page)
    except DataError:
        return False  # reading the samples will say what is wrong with it
    return all(_is_blank(channel) for channel in np.moveaxis(image_HWC, 2, 0))


def _hash_file(path: Path) -> str:
    try:
        return blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        # Reading the samples will say what is wrong with it; it is equal to nothing.
        return str(path)


def _splits(records: "Iterator[Record] | Sequence[Record]") -> list[str]:
    return sorted({record.split for record in records if record.split is not None})


def _on_records(
    records: Sequence[Record],
    root: Path,
    *,
    severity: Severity,
    code: str,
    text: str,
    advice: str,
) -> Finding:
    return Finding(
        severity=severity,
        code=code,
        text=text,
        ids=tuple(record.id for record in records),
        files=tuple(name for record in records for name in files_of(record, root)),
        advice=advice,
    )
