"""Masks that a model contradicts: planted mistakes of five kinds come first, rightly named."""

import numpy as np
import pytest
from scipy import ndimage

from binseg.datacheck.contradictions import Contradiction, compare_mask, rank_masks

SIDE, NUM = 96, 60
KINDS = {
    "missed": "an object is missed",
    "extra": "an object is too many",
    "shifted": "the mask is shifted",
    "swapped": "the mask fits another image better",
    "inverted": "background and foreground are exchanged",
}


def cells(seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw a mask of six discs, and the discs."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    discs = []
    for place in random.permutation(9)[:6]:
        y, x = 16 + 32 * (place // 3), 16 + 32 * (place % 3)
        y, x = y + random.uniform(-3, 3), x + random.uniform(-3, 3)
        discs.append((rows - y) ** 2 + (columns - x) ** 2 < random.uniform(7, 11) ** 2)
    return np.logical_or.reduce(discs), discs


def probability_of(mask_HW: np.ndarray, seed: int) -> np.ndarray:
    """Play a good model: soft edges, a little noise."""
    random = np.random.default_rng(seed)
    rough_HW = ndimage.gaussian_filter(random.normal(0, 1, mask_HW.shape), 4) * 1.5
    soft_HW = ndimage.gaussian_filter(mask_HW.astype(float), 1.2) + rough_HW * 0.1
    probability_HW: np.ndarray = np.clip(soft_HW, 0.01, 0.99).astype(np.float32)
    return probability_HW


def planted(kind: str) -> list[Contradiction]:
    """Rank 60 images, three of which carry a mistake."""
    found = []
    for seed in range(NUM):
        truth_HW, discs = cells(seed)
        probability_HW = probability_of(truth_HW, seed + 1000)
        image_HWC = 40 + 150 * np.repeat(truth_HW[:, :, None], 3, axis=2).astype(np.uint8)
        mask_HW = truth_HW
        if seed < 3:
            mask_HW = {
                "missed": truth_HW & ~ndimage.binary_dilation(discs[0], iterations=3),
                "extra": truth_HW | np.roll(cells(seed)[1][0], 32, axis=0) | _square(truth_HW),
                "shifted": np.roll(truth_HW, (5, 4), axis=(0, 1)),
                "swapped": cells((seed + 1) % 3)[0],
                "inverted": ~truth_HW,
            }[kind]
        found.append(
            compare_mask(
                str(seed),
                image_HWC=image_HWC,
                probability_HW=probability_HW,
                model_HW=probability_HW > 0.5,
                mask_HW=mask_HW,
                valid_HW=np.ones_like(mask_HW),
                expected_dice=0.93,
            )
        )
    return rank_masks(found)


def _square(truth_HW: np.ndarray) -> np.ndarray:
    """Draw a square where nothing is."""
    far_HW = ndimage.distance_transform_edt(~truth_HW)
    y, x = np.unravel_index(int(far_HW[8:-8, 8:-8].argmax()), (SIDE - 16, SIDE - 16))
    square_HW = np.zeros_like(truth_HW)
    square_HW[y : y + 16, x : x + 16] = True
    return square_HW


@pytest.mark.parametrize("kind", KINDS)
def test_planted_mistakes_come_first(kind: str) -> None:
    """The three images with a mistake are the first three, and the mistake is named."""
    ranked = planted(kind)
    assert {one.id for one in ranked[:3]} == {"0", "1", "2"}
    assert [one.kind for one in ranked[:3]] == [KINDS[kind]] * 3
    assert ranked[2].score >= 0.5 > ranked[3].score


def test_cleanlab_finds_the_same() -> None:
    """Cleanlab's score of segmentation labels puts the exchanged and swapped masks last, too."""
    rank = pytest.importorskip("cleanlab.segmentation.rank")
    labels, chances = [], []
    for seed in range(NUM):
        truth_HW, _ = cells(seed)
        one_HW = probability_of(truth_HW, seed + 1000)
        labels.append((~truth_HW if seed < 3 else truth_HW).astype(int))
        chances.append(np.stack([1 - one_HW, one_HW]))
    scores, _ = rank.get_label_quality_scores(np.stack(labels), np.stack(chances), verbose=False)
    ours = {one.id for one in planted("inverted")[:3]}
    assert ours == {str(index) for index in np.argsort(scores)[:3]}
