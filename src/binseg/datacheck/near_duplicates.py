"""Find images that are nearly the same, through resizing, re-encoding, flips and quarter turns.

Each image is reduced to a small grey square and transformed by a DCT. The signs of the lowest
frequencies make 63 bits (a perceptual hash); flips and turns only change signs and swap axes, so
that all eight poses of an image cost one transform. Pairs whose bits nearly agree then face a
stricter test: the higher frequencies, which carry the details, must correlate. Images that merely
have the same layout fail there.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8, UInt64
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from binseg.progress import SILENT, Progress

THUMB_SIDE = 32
"""Pixels; height and width of the grey squares that are compared."""
MAX_BITS = 14
"""Bits of 63 that candidates may differ in; two random images differ in about 32."""
MIN_DETAIL = 0.9
"""Correlation of the details from which on two images count as one."""
FAINT = 0.25
"""Grey levels of detail below which there is nothing to compare: black and blank images."""

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
    bits_8N: UInt64[np.ndarray, "8 N"] = ((low_8NB > 0) * weights_B).sum(axis=2, dtype=np.uint64)
    return bits_8N


def alike(
    thumbs_NSS: UInt8[np.ndarray, "N S S"], *, progress: Progress = SILENT
) -> list[tuple[int, int]]:
    """Find pairs of images that are nearly the same by their grey squares of THUMB_SIDE pixels.

    Pairs are (earlier, later), enough to tell which belong together: two images that are linked
    through others may lack a pair.
    """
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
    labels: Int[np.ndarray, N] = connected_components(links, directed=False)[1]
    return labels


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
