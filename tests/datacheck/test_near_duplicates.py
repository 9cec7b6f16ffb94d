"""Near copies: found in every disguise that is promised, and strangers left in peace."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from binseg.datacheck.near_duplicates import (
    THUMB_SIDE,
    alike,
    clusters_of,
    moved,
    near_pairs,
    reduced,
    squares_of,
)

Draw = Callable[..., tuple[np.ndarray, np.ndarray]]


def thumb(image_HW3: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image_HW3).convert("L").resize((THUMB_SIDE, THUMB_SIDE), 2)
    return np.asarray(small)


def jpeg(image_HW3: np.ndarray) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(image_HW3).save(out, format="JPEG", quality=30)
    return np.asarray(Image.open(out))


DISGUISES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG of quality 30": jpeg,
    "60% of the size": lambda x: np.asarray(Image.fromarray(x).resize((67, 58))),
    "mirrored": lambda x: x[:, ::-1],
    "upside down": lambda x: x[::-1],
    "turned by 90 degrees": np.rot90,
    "turned by 270 degrees": lambda x: np.rot90(x, 3),
    "transposed": lambda x: x.swapaxes(0, 1),
    "brighter": lambda x: (x.astype(int) + 25).clip(0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_disguised_copy_is_found(photo: Draw, name: str) -> None:
    """Of 40 images, exactly the one that was disguised is paired with its disguise."""
    images = [photo(seed)[0] for seed in range(40)]
    images.append(np.ascontiguousarray(DISGUISES[name](images[7])))
    assert alike(np.stack([thumb(image) for image in images])) == [(7, 40)]


def test_strangers_are_left_in_peace(photo: Draw) -> None:
    """150 different images of one kind give no pair."""
    assert alike(np.stack([thumb(photo(seed)[0]) for seed in range(150)])) == []


def test_blank_images_are_not_compared() -> None:
    """Images of one grey level have nothing to compare; their noise must not pair them."""
    assert alike(np.full((5, THUMB_SIDE, THUMB_SIDE), 17, np.uint8)) == []


def test_a_video_is_one_cluster(photo: Draw) -> None:
    """Many images that all look alike are linked without asking for every pair."""
    first = thumb(photo(3)[0])
    frames = np.stack([first] * 1200)
    pairs = alike(frames)
    assert clusters_of(len(frames), pairs) == [tuple(range(1200))]


def test_clusters_are_unions_of_pairs() -> None:
    """Pairs that share an image belong together; the rest stay apart."""
    assert clusters_of(6, [(0, 1), (4, 5), (1, 3)]) == [(0, 1, 3), (4, 5)]
    assert clusters_of(3, []) == []


def _turned(degrees: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.asarray(Image.fromarray(x).rotate(degrees, Image.Resampling.BILINEAR))


def _cropped(top: int, left: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x[top : top + 77, left : left + 90]


MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned by 5 degrees": _turned(5),
    "turned by 15 degrees": _turned(-15),
    "cropped to 80 % in the middle": _cropped(9, 11),
    "cropped to 80 % in a corner": _cropped(19, 0),
    "shifted": lambda x: np.roll(x, (9, -11), (0, 1)),
    "turned and brightened": lambda x: (_turned(7)(x) * 1.2).clip(0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_moved_copy_is_found(photo: Draw, name: str) -> None:
    """Of 40 images, exactly the one that was moved is paired with its copy."""
    images = [photo(seed)[0] for seed in range(40)]
    images.append(np.ascontiguousarray(MOVES[name](images[7])))
    squares = [squares_of(reduced(image)) for image in images]
    thumbs_NSS, cores_NTT = (np.stack(some) for some in zip(*squares, strict=True))
    assert near_pairs(thumbs_NSS, cores_NTT) == [(7, 40)]
    assert moved(cores_NTT[:40]) == []
