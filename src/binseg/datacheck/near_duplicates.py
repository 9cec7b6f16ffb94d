"""Find images that are nearly the same, through resizing, re-encoding, flips and quarter turns.

Each image is reduced to a small grey square and transformed by a DCT. The signs of the lowest
frequencies make 63 bits (a perceptual hash); flips and turns only change signs and swap axes, so
that all eight poses of an image cost one transform. Pairs whose bits nearly agree then face a
stricter test: the higher frequencies, which carry the details, must correlate.

Copies that were turned by a few degrees, cropped or shifted are found by the square in their middle
(`moved`): its bits are compared with those of parts of every other image, as each such change would
cut them, and what remains is laid one over the other.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8, UInt64
from scipy.fft import dct, dctn, idctn, irfft2, rfft2
from scipy.ndimage import map_coordinates
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from binseg.config.recipe import DataConfig
from binseg.data.dataset import SPLITS, Dataset, counted, name_some
from binseg.data.origins import dealt_anew
from binseg.errors import ImageError
from binseg.imageio import read_image
from binseg.parallel import map_ordered
from binseg.progress import SILENT, Progress, track
from binseg.transforms.geometry import resize_image
from binseg.types import AnyImage, Record

THUMB_SIDE = 32  # pixels; height and width of the grey squares that are compared
MAX_BITS = 14  # bits of 63 that candidates may differ in; two random images differ in about 32
MIN_DETAIL = 0.9  # correlation of the details from which on two images count as one
FAINT = 0.25
"""Grey levels of detail below which there is nothing to compare: black and blank images."""

CORE_SIDE = 64  # pixels; height and width of an image's middle, by which moved copies are found
REDUCED_SIDE = 192  # pixels; images are reduced to this longer side before anything is measured
MOVED_BITS = 8  # as MAX_BITS, for the parts that moved copies share
MIN_MOVED = 0.96
"""As MIN_DETAIL, for these parts laid one over the other; two discs on cloth reach 0.95."""
MOST_MOVED = 20_000
"""Images of which moved copies are looked for; the time grows with the square of their number."""

_KEPT = 24  # frequencies a side that are compared; the highest hold resampling and JPEG noise
_COARSE = 4  # frequencies a side that only tell the layout
_PORTION = 4096  # pairs whose details are compared at once
_BLOCK = 512  # rows of the table of distances that are in memory at once
_POSES = tuple((swap, up, left) for swap in (False, True) for up in (1, -1) for left in (1, -1))


def fingerprints(waves_NSS: Float32[np.ndarray, "N S S"]) -> UInt64[np.ndarray, "8 N"]:
    """Return the 63 bits of each image in its eight poses; the first is the image as it stands."""
    weights_B = np.uint64(1) << np.arange(63, dtype=np.uint64)
    low_8NSS = np.stack([_posed(waves_NSS[:, :8, :8], pose) for pose in range(len(_POSES))])
    low_8NB = low_8NSS.reshape(*low_8NSS.shape[:2], 64)[:, :, 1:]
    return np.asarray(((low_8NB > 0) * weights_B).sum(axis=2, dtype=np.uint64))


def alike(
    thumbs_NSS: UInt8[np.ndarray, "N S S"], *, progress: Progress = SILENT
) -> list[tuple[int, int]]:
    """Find pairs (earlier, later) that are nearly the same by grey squares, or linked by others."""
    num = len(thumbs_NSS)
    if num < 2:
        return []
    waves_NSS = dctn(thumbs_NSS.astype(np.float32), axes=(1, 2), norm="ortho")
    details_NSS, clear_N = _details(waves_NSS)
    bits_8N = fingerprints(waves_NSS)
    pairs: list[tuple[int, int]] = []
    label_N = np.arange(num)
    starts = range(0, num, _BLOCK)
    with progress.task("comparing images", total=len(starts)) as task:
        for start in starts:
            for pose in range(len(_POSES)):
                first_P, second_P = _candidates(bits_8N, start, pose, clear_N)
                # Images that are linked already need no further proof: a video of 10,000 frames
                # that all look alike would otherwise ask for 50 million of them.
                for start_P in range(0, len(first_P), _PORTION):
                    part = slice(start_P, start_P + _PORTION)
                    two_P2 = np.stack([first_P[part], second_P[part]], axis=1)
                    two_Q2 = two_P2[label_N[two_P2[:, 0]] != label_N[two_P2[:, 1]]]
                    one_QSS, posed_QSS = details_NSS[two_Q2[:, 0]], details_NSS[two_Q2[:, 1]]
                    posed_QSS = _posed(posed_QSS, pose)
                    correlation_Q = np.einsum("qij,qij->q", one_QSS, posed_QSS)
                    found = two_Q2[correlation_Q >= MIN_DETAIL].tolist()
                    if found:
                        pairs += [(first, second) for first, second in found]
                        label_N = _labels(num, pairs)
            task.advance()
    return sorted(set(pairs))


def clusters_of(num: int, pairs: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Join pairs into clusters of two and more.

    >>> clusters_of(5, [(0, 3), (3, 4)])
    [(0, 3, 4)]
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(_labels(num, pairs).tolist()):
        members.setdefault(label, []).append(index)
    return [tuple(indices) for indices in members.values() if len(indices) > 1]


def _labels(num: int, pairs: list[tuple[int, int]]) -> Int[np.ndarray, "N"]:
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    links = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(num, num))
    return np.asarray(connected_components(links, directed=False)[1])


def _posed(waves_NSS: Float32[np.ndarray, "N s s"], pose: int) -> Float32[np.ndarray, "N s s"]:
    """Flip or turn images by their frequencies: a flip negates the odd ones of its axis."""
    swap, up, left = _POSES[pose]
    side = waves_NSS.shape[1]
    odd = np.arange(side) % 2 == 1
    sign_S1 = np.where(odd, up, 1).astype(np.float32)[:, None]
    sign_S = np.where(odd, left, 1).astype(np.float32)
    return (waves_NSS.swapaxes(1, 2) if swap else waves_NSS) * sign_S1 * sign_S


def _details(
    waves_NSS: Float32[np.ndarray, "N S S"],
) -> tuple[Float32[np.ndarray, "N s s"], Bool[np.ndarray, "N"]]:
    """Return the higher frequencies at unit strength, and for which images there are any."""
    fine_NSS = waves_NSS[:, :_KEPT, :_KEPT].copy()
    fine_NSS[:, :_COARSE, :_COARSE] = 0
    strength_N = np.sqrt((fine_NSS**2).sum(axis=(1, 2)))
    clear_N: Bool[np.ndarray, N] = strength_N / THUMB_SIDE > FAINT
    return fine_NSS / np.maximum(strength_N, 1e-6)[:, None, None], clear_N


def _candidates(
    bits_8N: UInt64[np.ndarray, "8 N"], start: int, pose: int, clear_N: Bool[np.ndarray, "N"]
) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
    """List pairs with nearly equal bits: rows of one block, columns after them."""
    rows_B = bits_8N[0, start : start + _BLOCK]
    differ_BN = np.bitwise_count(rows_B[:, None] ^ bits_8N[pose, None, start:])
    first_P, second_P = np.nonzero(differ_BN <= MAX_BITS)
    keep_P = (second_P > first_P) & clear_N[first_P + start] & clear_N[second_P + start]
    return first_P[keep_P] + start, second_P[keep_P] + start


def squares_of(
    small_HWC: Float32[np.ndarray, "H W C"],
) -> tuple[UInt8[np.ndarray, "S S"], UInt8[np.ndarray, "T T"]]:
    """Give a reduced image's two grey squares that are compared: the whole, and its middle."""
    grey_HW1 = small_HWC.mean(axis=2, keepdims=True)
    height, width, _ = grey_HW1.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    core_HW1 = grey_HW1[top : top + side, left : left + side]
    thumb_SS1 = resize_image(grey_HW1, THUMB_SIDE, THUMB_SIDE)
    core_TT1 = resize_image(core_HW1, CORE_SIDE, CORE_SIDE)
    return thumb_SS1[:, :, 0].round().astype(np.uint8), core_TT1[:, :, 0].round().astype(np.uint8)


def reduced(image_HWC: AnyImage) -> Float32[np.ndarray, "h w c"]:
    """Reduce an image to three channels at most, from 0 to 255; other types are stretched."""
    scale = min(1.0, REDUCED_SIDE / max(image_HWC.shape[:2]))
    size = [max(1, round(side * scale)) for side in image_HWC.shape[:2]]
    small_HWC = resize_image(image_HWC[:, :, :3], *size).astype(np.float32)
    if image_HWC.dtype != np.uint8:
        low, high = np.percentile(small_HWC, [0.5, 99.5])
        small_HWC = ((small_HWC - low) / max(high - low, 1e-12)).clip(0, 1) * 255
    return small_HWC.astype(np.float32)


def near_pairs(
    thumbs_NSS: UInt8[np.ndarray, "N S S"],
    cores_NTT: UInt8[np.ndarray, "N T T"],
    *,
    progress: Progress = SILENT,
) -> list[tuple[int, int]]:
    """Find pairs of images that are nearly the same, moved copies among them (see `alike`)."""
    pairs = alike(thumbs_NSS, progress=progress)
    if len(cores_NTT) > MOST_MOVED:
        progress.say(f"over {MOST_MOVED:,} images: not compared for turned or cropped copies")
        return pairs
    return sorted({*pairs, *moved(cores_NTT, known=pairs, progress=progress)})


_PART = 0.7  # share of a core's side that is compared: what turning and shifting leave of it
_PATCH = 32  # pixels a side of the part
_HOPELESS = 0.7  # agreement below which no finer look helps
_REACH = 4  # pixels that two parts are slid over each other
_Cut = tuple[float, float, float, float]
"""A part of a core: degrees, size, and the middle's distance down and right in shares of a side."""
_STEPS = (-0.1, -0.05, 0.0, 0.05, 0.1)
_AS_IT_IS: _Cut = (0.0, 1.0, 0.0, 0.0)
_CUTS: tuple[_Cut, ...] = (
    _AS_IT_IS,
    *((degrees, 1.0, 0.0, 0.0) for degrees in (-15.0, -10.0, -5.0, 5.0, 10.0, 15.0)),
    *((0.0, 0.8, y, x) for y, x in product(_STEPS, repeat=2)),
    *((0.0, 0.9, y, x) for y, x in product(_STEPS[1:4], repeat=2)),
    *((0.0, 1.0, y, x) for y, x in product((-0.15, *_STEPS, 0.15), repeat=2) if y or x),
)


def moved(
    cores_NTT: UInt8[np.ndarray, "N T T"],
    *,
    known: list[tuple[int, int]] | None = None,
    progress: Progress = SILENT,
) -> list[tuple[int, int]]:
    """Find copies turned by 15 degrees, cropped to 80 % or shifted by 15 %, but `known` ones."""
    num = len(cores_NTT)
    flat_NP = cores_NTT.reshape(num, -1).astype(np.float32)
    as_is_N = _bits(flat_NP, _AS_IT_IS)
    pairs, found = list(known or ()), list[tuple[int, int]]()
    label_N = _labels(num, pairs)
    with progress.task("comparing moved copies", total=len(_CUTS)) as task:
        for cut in _CUTS:
            bits_N = _bits(flat_NP, cut)
            for start in range(0, num, 64):  # small blocks stay in the processor's cache
                differ_BN = np.bitwise_count(bits_N[start : start + 64, None] ^ as_is_N)
                for row, other in np.argwhere(differ_BN <= MOVED_BITS).tolist():
                    first = start + row
                    if label_N[first] == label_N[other]:
                        continue
                    if _agreement(cores_NTT[first], cores_NTT[other], cut) >= MIN_MOVED:
                        found.append((min(first, other), max(first, other)))
                        label_N = _labels(num, pairs + found)
            task.advance()
    return found


def _places(cut: _Cut) -> Float32[np.ndarray, "2 P P"]:
    degrees, size, down, right = cut
    at_P = (np.arange(_PATCH) + 0.5) / _PATCH * 2 - 1
    rows_PP, columns_PP = np.meshgrid(at_P, at_P, indexing="ij")
    cosine, sine = (turn(np.radians(degrees)) * _PART * size / 2 for turn in (np.cos, np.sin))
    rows = 0.5 + down + cosine * rows_PP + sine * columns_PP
    columns = 0.5 + right + cosine * columns_PP - sine * rows_PP
    return np.stack([rows, columns]).astype(np.float32) * CORE_SIDE - np.float32(0.5)


def _bits(flat_NP: Float32[np.ndarray, "N P"], cut: _Cut) -> UInt64[np.ndarray, "N"]:
    """Give the signs of the lowest frequencies of a part of each core."""
    at_2P = _places(cut).reshape(2, -1)
    first_2P = at_2P.astype(np.int64).clip(0, CORE_SIDE - 2)
    part_2P = at_2P - first_2P
    part_NP = np.zeros((len(flat_NP), at_2P.shape[1]), np.float32)
    for down, right in product((0, 1), repeat=2):
        share_P = np.abs(1 - down - part_2P[0]) * np.abs(1 - right - part_2P[1])
        index_P = (first_2P[0] + down) * CORE_SIDE + first_2P[1] + right
        part_NP += flat_NP[:, index_P] * share_P
    powers_W = np.uint64(1) << np.arange(63, dtype=np.uint64)
    return np.asarray(((part_NP @ _LOW_PW > 0) * powers_W).sum(axis=1, dtype=np.uint64))


_LOW_SP = dct(np.eye(_PATCH), axis=0, norm="ortho")[:8]
_LOW_PW = np.kron(_LOW_SP, _LOW_SP)[1:].T.astype(np.float32)
"""The lowest frequencies of a part as weights of its pixels."""
_WINDOW = np.outer(*[np.hanning(_PATCH + 2)[1:-1]] * 2)


def _agreement(
    first_TT: UInt8[np.ndarray, "T T"], second_TT: UInt8[np.ndarray, "T T"], cut: _Cut
) -> float:
    """Correlate the details of a part of the first with those of the second, laid over it."""
    there = rfft2(_detail(second_TT, _AS_IT_IS)).conj()
    best = 0.0
    for step in (1.0, 0.5):  # the second time around the best of the first
        middle = cut
        for turn, grow in product((-step, 0.0, step), repeat=2):
            tried = (middle[0] + 2.5 * turn, middle[1] * (1 + grow / 20), *middle[2:])
            here_PP = _detail(first_TT, tried)
            slid_PP = irfft2(rfft2(here_PP) * there, s=here_PP.shape)
            near_PP = np.roll(slid_PP, (_REACH, _REACH), (0, 1))[: 2 * _REACH + 1, : 2 * _REACH + 1]
            if near_PP.max() > best:
                best, cut = float(near_PP.max()), tried
        if best < _HOPELESS:
            break
    return best


def _detail(core_TT: UInt8[np.ndarray, "T T"], cut: _Cut) -> Float32[np.ndarray, "P P"]:
    """Cut a part, without the layout, at unit strength; nothing where it is all but blank."""
    part_PP = map_coordinates(core_TT.astype(np.float32), _places(cut), order=1, mode="nearest")
    waves_PP = dctn(part_PP, norm="ortho")
    waves_PP[:3, :3] = 0
    fine_PP = idctn(waves_PP, norm="ortho") * _WINDOW
    strength = float(np.sqrt((fine_PP**2).sum()))
    scale = 1 / strength if strength / _PATCH > FAINT else 0.0
    return np.asarray(fine_PP * scale, dtype=np.float32)


Pairs = list[tuple[int, int]]
MOST_ALIKE = 0.5
"""Share of the images above which one cluster of them is a video, which can't be dealt whole."""
_Version = tuple[Path, int | None, int, int]
_linked: dict[tuple[_Version, ...], Pairs] = {}
"""The pairs of the latest data set: planning, training and each of its folds ask for them."""


class _Glance(NamedTuple):
    digest: str
    thumb_SS: np.ndarray
    core_TT: np.ndarray


def pairs_of(records: Sequence[Record], *, progress: Progress = SILENT) -> Pairs:
    """Find pairs of like images by index, but of pages or groups that belong together."""
    versions = tuple(map(_version, records))
    if versions not in _linked:
        looking, num = map_ordered(_glance_at, records), len(records)
        glances = enumerate(
            track(looking, progress=progress, label="looking for copies", total=num)
        )
        numbered = [(row, one) for row, one in glances if one is not None and np.ptp(one.thumb_SS)]
        rows, seen = [row for row, _ in numbered], [one for _, one in numbered]
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, one in enumerate(seen):
            rows_of[one.digest].append(row)
        found = [pair for same in rows_of.values() for pair in pairwise(same)]
        if seen:
            thumbs_NSS = np.stack([one.thumb_SS for one in seen])
            cores_NTT = np.stack([one.core_TT for one in seen])
            found += near_pairs(thumbs_NSS, cores_NTT, progress=progress)
        _linked.clear()
        _linked[versions] = [(rows[first], rows[second]) for first, second in sorted({*found})]
    return [(a, b) for a, b in _linked[versions] if not belong(records[a], records[b])]


def _version(record: Record) -> _Version:
    try:
        facts = record.image_path.stat()
    except OSError:
        return record.image_path, record.page, 0, 0
    return record.image_path, record.page, facts.st_mtime_ns, facts.st_size


def _glance_at(record: Record) -> _Glance | None:
    try:
        image_HWC = read_image(record.image_path, page=record.page)
    except ImageError:
        return None  # reading the samples will say what is wrong with it
    return _Glance(digest_of(image_HWC), *squares_of(reduced(image_HWC)))


def digest_of(pixels: np.ndarray) -> str:
    """Hash pixels with their shape and type."""
    digest = blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def belong(first: Record, second: Record, *, in_split: bool = False) -> bool:
    """Tell whether two may look alike: pages of a stack, or a group (that one split holds)."""
    if first.page is not None and first.image_path == second.image_path:
        return True
    is_apart = in_split and first.split != second.split
    return first.group is not None and first.group == second.group and not is_apart


def keep_together(dataset: Dataset, config: DataConfig, *, progress: Progress = SILENT) -> Dataset:
    """Group near duplicates where binseg draws the split, and say so; not most images."""
    rows = dealt_anew(dataset.records, config.split.method)
    if config.group == "none" or len(rows) < 2:
        return dataset
    records = [dataset.records[row] for row in rows]
    if not (pairs := pairs_of(records, progress=progress)):
        return dataset
    alike = clusters_of(len(rows), pairs)
    num, few = sum(map(len, alike)), name_some([records[one].id for one in alike[0]], limit=3)
    told = f"{num} images are the same as others, or nearly so ({few})"
    members = clusters_of(len(rows), [*pairs, *_chains(records)])
    num_apart = len(rows) - sum(map(len, members)) + len(members)
    if max(map(len, members)) > MOST_ALIKE * len(rows) or num_apart < len(SPLITS):
        note = f"{told}, too many for one split: is it a video? Then take data.split.method=block"
    else:
        note = f"{told}: {counted(len(alike), 'group', 'groups')}, each in one split"
        linked = {row for pair in pairs for row in pair}
        joined = [cluster for cluster in members if linked & {*cluster}]
        group_of = {rows[row]: f"like {records[x[0]].id}" for x in joined for row in x}
        numbered = enumerate(dataset.records)
        grouped = (replace(one, group=group_of.get(row, one.group)) for row, one in numbered)
        dataset = replace(dataset, records=tuple(grouped))
    progress.say(note)
    return replace(dataset, notes=(*dataset.notes, note))


def _chains(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """Link the members of each group, one to the next."""
    last: dict[str, int] = {}
    for row, record in enumerate(records):
        if record.group is not None:
            if record.group in last:
                yield last[record.group], row
            last[record.group] = row
