"""Was each object found? Connected pixels of prediction and truth, matched one to one.

Panoptic quality is that of Kirillov et al. (CVPR 2019), for one class: PQ = SQ x RQ.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num
from scipy import ndimage

from binseg.types import ObjectCounts

__all__ = [
    "OBJECT_MEANINGS",
    "OBJECT_RULE",
    "count_objects",
    "object_table",
    "score_objects",
]

OBJECT_RULE = (
    "Objects: connected pixels (8 neighbours); a predicted one is found where its IoU with a true "
    "one is above 0.5, which no two can be for the same. Ignored pixels belong to no object. "
    "Objects of all images are pooled; where none is there and none is predicted, all scores are 1."
)
"""The sentences that go with every table of object scores."""

OBJECT_MEANINGS = {
    "precision": "share of the predicted objects that are there",
    "recall": "share of the true objects that were found",
    "f1": "harmonic mean of both, the recognition quality",
    "sq": "mean IoU of the matched objects, the segmentation quality",
    "rq": "recognition quality: the same as f1",
    "pq": "panoptic quality: sq times rq",
}

_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def count_objects(
    mask_HW: Bool[np.ndarray, "H W"],
    truth_HW: Bool[np.ndarray, "H W"],
    valid_HW: Bool[np.ndarray, "H W"] | None = None,
) -> ObjectCounts:
    """Count and match the objects of one image, by OBJECT_RULE.

    Args:
        mask_HW: the answer.
        truth_HW: what is there.
        valid_HW: False where pixels are ignored; None ignores none.

    >>> truth = np.array([[1, 1, 0, 0, 1]], dtype=bool)
    >>> count_objects(np.array([[1, 1, 0, 0, 0]], dtype=bool), truth)
    ObjectCounts(num_true=2, num_predicted=1, num_matched=1, sum_iou=1.0)
    """
    assert mask_HW.dtype == truth_HW.dtype == np.bool_, "masks are bool"
    assert mask_HW.shape == truth_HW.shape, "masks are of one size"
    if valid_HW is not None:
        mask_HW, truth_HW = mask_HW & valid_HW, truth_HW & valid_HW
    predicted_HW, num_predicted = ndimage.label(mask_HW, structure=_NEIGHBOURS)
    true_HW, num_true = ndimage.label(truth_HW, structure=_NEIGHBOURS)
    both_HW = mask_HW & truth_HW
    # Only pairs that overlap are listed: noise makes many objects, and their table would be huge.
    codes_N = predicted_HW[both_HW].astype(np.int64) * (num_true + 1) + true_HW[both_HW]
    pairs_P, overlap_P = _count_values(codes_N, (num_predicted + 1) * (num_true + 1))
    area_of_predicted = np.bincount(predicted_HW.ravel())[pairs_P // (num_true + 1)]
    area_of_true = np.bincount(true_HW.ravel())[pairs_P % (num_true + 1)]
    iou_P = overlap_P / (area_of_predicted + area_of_true - overlap_P)
    matched_P = iou_P > 0.5
    return ObjectCounts(
        num_true=int(num_true),
        num_predicted=int(num_predicted),
        num_matched=int(matched_P.sum()),
        sum_iou=float(iou_P[matched_P].sum()),
    )


def _count_values(
    codes_N: Int64[np.ndarray, " N"], num_codes: int
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """The values that occur, and how often: sorting is slow, and a long table takes memory."""
    if num_codes > codes_N.size + 1_000_000:
        pairs_P, overlap_P = np.unique(codes_N, return_counts=True)
        return pairs_P, overlap_P
    times = np.bincount(codes_N)
    pairs_P = np.flatnonzero(times)
    return pairs_P, times[pairs_P]


def object_table(counts_N4: Num[np.ndarray, "N 4"]) -> dict[str, Float64[np.ndarray, " N"]]:
    """Score rows of num_true, num_predicted, num_matched, sum_iou by the names of OBJECT_MEANINGS.

    A share of nothing is 1 if there is neither a true nor a predicted object, else 0.
    """
    true_N, predicted_N, matched_N, iou_N = np.asarray(counts_N4, dtype=np.float64).T
    nothing_N = (true_N + predicted_N == 0).astype(np.float64)

    def share(
        upper_N: Float64[np.ndarray, " N"], lower_N: Float64[np.ndarray, " N"]
    ) -> Float64[np.ndarray, " N"]:
        result: Float64[np.ndarray, " N"] = np.where(
            lower_N == 0, nothing_N, upper_N / np.where(lower_N == 0, 1, lower_N)
        )
        return result

    f1_N = share(2 * matched_N, true_N + predicted_N)
    sq_N = share(iou_N, matched_N)
    return {
        "precision": share(matched_N, predicted_N),
        "recall": share(matched_N, true_N),
        "f1": f1_N,
        "sq": sq_N,
        "rq": f1_N,
        "pq": sq_N * f1_N,
    }


def score_objects(counts: ObjectCounts) -> dict[str, float]:
    """Score one image's objects, or pooled ones.

    >>> score_objects(ObjectCounts(num_true=2, num_predicted=1, num_matched=1, sum_iou=0.9))["pq"]
    0.6
    """
    row = (counts.num_true, counts.num_predicted, counts.num_matched, counts.sum_iou)
    return {name: float(values[0]) for name, values in object_table(np.array([row])).items()}
