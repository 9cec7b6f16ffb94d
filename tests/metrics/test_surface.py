"""Outlines: brute force over all pixels, distance transforms, torchmetrics; and the empty rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torchmetrics.functional.segmentation import hausdorff_distance
from torchmetrics.functional.segmentation.utils import edge_surface_distance

from binseg.errors import UsageError
from binseg.metrics import OutlineRule, measure_outline
from binseg.metrics.surface import OUTLINE_RULE

Pair = tuple[np.ndarray, np.ndarray]
WORST = (0.0, 0.0, 0.0)
BEST = (1.0, 1.0, 1.0)


def outline_points(mask_HW: np.ndarray) -> list[tuple[int, int]]:
    """List, pixel by pixel, what has a neighbour of 4 outside the mask or the image."""
    height, width = mask_HW.shape

    def inside(row: int, column: int) -> bool:
        return 0 <= row < height and 0 <= column < width and bool(mask_HW[row, column])

    return [
        (r, c)
        for r in range(height)
        for c in range(width)
        if inside(r, c)
        and not all(inside(r + dr, c + dc) for dr, dc in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    ]


def by_brute_force(
    mask_HW: np.ndarray, truth_HW: np.ndarray, rule: OutlineRule
) -> dict[str, float]:
    """Measure every pixel of one outline against every pixel of the other."""
    a_N2 = np.array(outline_points(mask_HW)) * rule.steps
    b_M2 = np.array(outline_points(truth_HW)) * rule.steps
    table_NM = np.sqrt(((a_N2[:, None] - b_M2[None]) ** 2).sum(axis=-1))
    to_b, to_a = table_NM.min(axis=1), table_NM.min(axis=0)
    near_b, near_a = to_b <= rule.tolerance, to_a <= rule.tolerance
    both = near_b.mean() + near_a.mean()
    width = max(1, round(0.02 * np.hypot(*mask_HW.shape)))
    bands = [
        each & ~ndimage.binary_erosion(each, structure=np.ones((3, 3)), iterations=width)
        for each in (mask_HW, truth_HW)
    ]
    return {
        "boundary_iou": (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum(),
        "boundary_f1": 2 * near_b.mean() * near_a.mean() / both if both else 0.0,
        "surface_dice": (near_b.sum() + near_a.sum()) / (len(to_b) + len(to_a)),
        "hd95": max(np.percentile(to_b, 95), np.percentile(to_a, 95)),
        "assd": np.concatenate([to_b, to_a]).mean(),
    }


@pytest.mark.parametrize(
    "rule", [OutlineRule(), OutlineRule(tolerance=0), OutlineRule(tolerance=1.1, spacing=(0.5, 2))]
)
def test_scores_are_those_of_brute_force(filled_pairs: list[Pair], rule: OutlineRule) -> None:
    """All five scores equal those found by comparing every pixel with every other."""
    for mask, truth in filled_pairs:
        found = measure_outline(mask, truth, rule=rule)
        assert found == pytest.approx(by_brute_force(mask, truth, rule))


def test_boundary_iou_on_a_large_image() -> None:
    """Bands several pixels wide are what as many erosions leave (Cheng et al.'s own code)."""
    random = np.random.default_rng(0)
    for _ in range(3):
        noise = ndimage.gaussian_filter(random.normal(size=(2, 180, 200)), (0, 12, 12))
        mask, truth = noise[0] > 0, noise[0] + 0.3 * noise[1] > 0
        assert round(0.02 * np.hypot(180, 200)) == 5
        expected = by_brute_force(mask, truth, OutlineRule())["boundary_iou"]
        assert measure_outline(mask, truth)["boundary_iou"] == pytest.approx(expected)


def test_distances_are_those_of_a_distance_transform() -> None:
    """On a large image the tree of outline pixels gives scipy's Euclidean distances."""
    random = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(random.normal(size=(2, 150, 130)), (0, 8, 8))
    mask, truth = noise[0] > 0, noise[1] > 0
    edges = [each & ~ndimage.binary_erosion(each) for each in (mask, truth)]
    to_truth = ndimage.distance_transform_edt(~edges[1])[edges[0]]
    to_mask = ndimage.distance_transform_edt(~edges[0])[edges[1]]
    found = measure_outline(mask, truth)
    assert found["hd95"] == pytest.approx(
        max(np.percentile(to_truth, 95), np.percentile(to_mask, 95))
    )
    assert found["assd"] == pytest.approx(np.concatenate([to_truth, to_mask]).mean())


def test_both_empty_is_perfect(filled_pairs: list[Pair]) -> None:
    """Where nothing is there and nothing is predicted, nothing is wrong; so too for equal masks."""
    nothing = np.zeros((5, 6), dtype=bool)
    for mask in (nothing, *(truth for _, truth in filled_pairs)):
        assert tuple(measure_outline(mask, mask).values()) == (*BEST, 0.0, 0.0)


def test_one_empty_is_as_bad_as_can_be(empty_pairs: list[Pair]) -> None:
    """A missed object, or one made up, gets the diagonal: never nan, and never a better mean."""
    for mask, truth in empty_pairs:
        diagonal = np.hypot(17, 23)
        assert tuple(measure_outline(mask, truth).values()) == (*WORST, diagonal, diagonal)
        in_mm = measure_outline(mask, truth, rule=OutlineRule(spacing=(2, 3)))
        assert in_mm["hd95"] == pytest.approx(np.hypot(34, 69))
    assert "diagonal" in OUTLINE_RULE


def test_finding_nothing_is_never_nearer(filled_pairs: list[Pair]) -> None:
    """No prediction, however bad, is farther off than an empty one."""
    for mask, truth in filled_pairs:
        found = measure_outline(mask, truth)
        missed = measure_outline(np.zeros_like(mask), truth)
        assert found["hd95"] <= missed["hd95"]
        assert found["assd"] <= missed["assd"]
        assert found["boundary_iou"] >= missed["boundary_iou"]


def test_torchmetrics_agrees_on_squares(filled_pairs: list[Pair]) -> None:
    """The distances of torchmetrics, of square images, have our percentile and our mean."""
    for mask, truth in filled_pairs:
        square = [np.pad(each, ((0, 6), (0, 0))) for each in (mask, truth)]
        to_truth, to_mask = edge_surface_distance(
            torch.tensor(square[0]), torch.tensor(square[1]), symmetric=True
        )
        found = measure_outline(*square)
        hd95 = max(np.percentile(each.numpy(), 95) for each in (to_truth, to_mask))
        assert found["hd95"] == pytest.approx(hd95, rel=1e-5)
        assert found["assd"] == pytest.approx(
            float(torch.cat([to_truth, to_mask]).mean()), rel=1e-5
        )


def test_torchmetrics_is_wrong_on_oblong_images() -> None:
    """A referee that is wrong: torchmetrics 1.9 takes height for width where they differ.

    Two single pixels are as far apart as their rows and columns say.
    """
    mask, truth = np.zeros((2, 12, 20), dtype=bool)
    mask[2, 3] = truth[2 + 3, 3 + 4] = True
    assert measure_outline(mask, truth)["hd95"] == 5
    assert float(_hausdorff(mask, truth)) != pytest.approx(5)
    square = [np.pad(each, ((0, 8), (0, 0))) for each in (mask, truth)]
    assert float(_hausdorff(*square)) == pytest.approx(5)


def test_torchmetrics_has_no_finite_distance_to_a_missed_object(empty_pairs: list[Pair]) -> None:
    """A referee that is no help: one missed object makes the mean of all images infinite.

    MONAI 1.6 gives nan, which its mean then leaves out: missing more objects looks better.
    """
    for mask, truth in empty_pairs:
        assert np.isfinite(measure_outline(mask, truth)["hd95"])
    mask, truth = (np.pad(each, ((0, 6), (0, 0))) for each in empty_pairs[0])
    assert not np.isfinite(float(_hausdorff(mask, truth)))


def _hausdorff(mask: np.ndarray, truth: np.ndarray) -> torch.Tensor:
    one, other = (torch.tensor(each)[None, None].long() for each in (mask, truth))
    found: torch.Tensor = hausdorff_distance(one, other, num_classes=1, include_background=True)
    return found


def test_ignored_pixels_make_no_error() -> None:
    """What is predicted, or true, where pixels are ignored changes no score."""
    random = np.random.default_rng(2)
    mask, truth, valid = (random.random((12, 14)) < share for share in (0.5, 0.5, 0.8))
    noise = random.random((12, 14)) < 0.5
    found = measure_outline(mask, truth, valid)
    assert found == measure_outline(np.where(valid, mask, noise), truth, valid)
    assert found == measure_outline(mask, np.where(valid, truth, noise), valid)
    nothing_counts = measure_outline(mask, truth, np.zeros_like(valid))
    assert tuple(nothing_counts.values()) == (*BEST, 0.0, 0.0)


def test_a_border_that_is_ignored_forgives_the_outline() -> None:
    """A prediction that ends anywhere inside an ignored border has the true outline."""
    truth = np.zeros((20, 20), dtype=bool)
    truth[6:14, 6:14] = True
    ring = ndimage.binary_dilation(truth, iterations=2) & ~truth
    for grown in range(3):
        mask = ndimage.binary_dilation(truth, iterations=grown) if grown else truth
        assert measure_outline(mask, truth, ~ring)["hd95"] == 0


@given(seed=st.integers(0, 10_000), turns=st.integers(0, 3))
@settings(max_examples=30)
def test_turning_and_swapping_change_nothing(seed: int, turns: int) -> None:
    """Turned or mirrored masks have the same scores, and so have prediction and truth swapped."""
    random = np.random.default_rng(seed)
    mask, truth = (random.random((9, 9)) < 0.4 for _ in range(2))
    found = tuple(measure_outline(mask, truth).values())
    assert tuple(measure_outline(truth, mask).values()) == pytest.approx(found)
    turned = (np.rot90(mask, turns)[::-1], np.rot90(truth, turns)[::-1])
    assert tuple(measure_outline(*turned).values()) == pytest.approx(found)


def test_millimetres() -> None:
    """With a spacing, distances and tolerance are in mm: twice the pixels for 2 mm a pixel."""
    truth = np.zeros((30, 30), dtype=bool)
    truth[10:20, 10:20] = True
    mask = np.roll(truth, 3, axis=1)
    plain = measure_outline(mask, truth, rule=OutlineRule(tolerance=2))
    wide = measure_outline(mask, truth, rule=OutlineRule(tolerance=4, spacing=2.0))
    assert wide == plain | {"hd95": 2 * plain["hd95"], "assd": 2 * plain["assd"]}
    assert (plain["hd95"], wide["hd95"]) == (3, 6)


@pytest.mark.parametrize(
    ("tolerance", "spacing"), [(-1, None), (float("nan"), None), (2, 0), (2, -1)]
)
def test_impossible_rules_are_refused(tolerance: float, spacing: float | None) -> None:
    """A negative tolerance or a spacing of 0 is a user's mistake, told in one line."""
    with pytest.raises(UsageError, match="give"):
        OutlineRule(tolerance=tolerance, spacing=spacing)
