"""Whole images in one file, and the patches cut from them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binseg.config.recipe import PatchConfig
from binseg.data import MaskRule
from binseg.data.patches import (
    ImageCache,
    WholeImages,
    open_images,
    patches_per_epoch,
    sample_places,
)
from binseg.errors import DataError
from binseg.transforms.preprocess import prepare, prepare_truth
from binseg.types import Preprocessing, Record

TILES = Preprocessing(height=8, width=8, resize="tile", overlap=0.0)
RANDOM = np.random.default_rng(0)


def draw(height: int, width: int, *, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Noise, with a large object at the top left and a pixel at the bottom right."""
    mask_HW = np.zeros((height, width), np.uint8)
    mask_HW[1 : height // 2, 1 : width // 2] = 255
    mask_HW[-2, -2] = 255
    shape = (height, width, channels) if channels > 1 else (height, width)
    return RANDOM.integers(0, 256, shape, dtype=np.uint8), mask_HW


@pytest.fixture
def open_drawn(
    save: Callable[..., Path], rule: MaskRule, tmp_path: Path
) -> Callable[..., tuple[ImageCache, list[Any]]]:
    """A function that saves images of these sizes and opens them; the arrays come with it."""

    def make(
        *sizes: tuple[int, int], preprocessing: Preprocessing = TILES, **changes: Any
    ) -> tuple[ImageCache, list[Any]]:
        drawn = [draw(*size) for size in sizes]
        records = []
        for number, (image, mask) in enumerate(drawn):
            paths = [tmp_path / kind / f"{number}.png" for kind in ("images", "masks")]
            save(paths[0], image)
            save(paths[1], mask)
            records.append(Record(id=str(number), image_path=paths[0], mask_path=paths[1]))
        return open_images(records, rule, preprocessing, folder=tmp_path, **changes), drawn

    return make


def test_patches_are_cut_from_the_images(open_drawn: Callable[..., Any]) -> None:
    """Whatever the size of the images, a patch is a slice of the one asked for."""
    cache, drawn = open_drawn((20, 30), (9, 12), (40, 8))
    assert len(cache) == 3
    assert cache.num_bytes == 4 * sum(mask.size for _, mask in drawn)
    for resident in (False, True):
        places = np.array([[0, 3, 5], [2, 30, 0], [1, 1, 4], [0, 12, 22]])
        inputs, targets = WholeImages(cache, resident=resident).patches(places, size=8)
        for row, (photo, top, left) in enumerate(places):
            image, mask = drawn[photo]
            part = (slice(top, top + 8), slice(left, left + 8))
            assert np.array_equal(inputs[row].transpose(1, 2, 0), image[part])
            assert np.array_equal(targets[row], mask[part] // 255)


def test_patches_past_the_edge_are_mirrored(open_drawn: Callable[..., Any]) -> None:
    """Image and mask alike, as numpy's symmetric padding."""
    cache, ((image, mask),) = open_drawn((9, 12))
    padded = np.pad(image, ((40, 40), (40, 40), (0, 0)), mode="symmetric")
    padded_mask = np.pad(mask, 40, mode="symmetric")
    starts = [(-6, -2), (5, 8), (-5, -5), (-1, 3), (2, 2), (0, 0), (-30, 20), (-13, -2), (8, 11)]
    places = np.array([[0, top, left] for top, left in starts])
    inputs, targets = WholeImages(cache).patches(places, size=10)
    for row, (_, top, left) in enumerate(places):
        part = (slice(top + 40, top + 50), slice(left + 40, left + 50))
        assert np.array_equal(inputs[row].transpose(1, 2, 0), padded[part])
        assert np.array_equal(targets[row], padded_mask[part] // 255)


def test_training_and_prediction_see_the_same_pixels(open_drawn: Callable[..., Any]) -> None:
    """A patch where prediction has a tile equals it to the bit, its target too."""
    cache, ((image, mask),) = open_drawn((24, 40))
    inputs_NHWC, placements = prepare(image, TILES)
    targets_NHW = prepare_truth(mask > 0, np.ones(mask.shape, bool), placements)
    places = np.array([[0, one.source.top, one.source.left] for one in placements])
    inputs, targets = WholeImages(cache).patches(places, size=8)
    assert np.array_equal(inputs.transpose(0, 2, 3, 1), inputs_NHWC)
    assert np.array_equal(targets, targets_NHW)


def test_images_are_kept_at_their_scale(open_drawn: Callable[..., Any]) -> None:
    """At scale 0.5 they have a quarter of the pixels, and seeds are places in the small image."""
    cache, _ = open_drawn((20, 30), preprocessing=replace(TILES, scale=0.5))
    assert cache.sizes_N2.tolist() == [[10, 15]]
    mask = cache.labels.reshape(10, 15)
    assert (mask.ravel()[cache.foreground.places_K] == 1).all()
    assert (mask.ravel()[cache.background.places_K] == 0).all()


def test_seeds_are_few_and_know_small_objects(open_drawn: Callable[..., Any]) -> None:
    """Of a large mask some pixels are kept, half drawn by object: the lone pixel comes often."""
    cache, ((_, mask),) = open_drawn((200, 210))
    seeds = cache.foreground.places_K
    assert len(seeds) == 1024 < (mask > 0).sum()
    assert (mask.ravel()[seeds] > 0).all()
    lone = 198 * 210 + 208
    assert 200 < (seeds == lone).sum() < 320
    assert cache.share == pytest.approx((mask > 0).mean())
    assert cache.rare is cache.foreground


def test_broken_files_are_built_again(
    open_drawn: Callable[..., Any], tmp_path: Path, listener: Any
) -> None:
    """Files that don't fit together cost one line and the decoding."""
    before = np.array(open_drawn((20, 30), (9, 12))[0].pixels)
    (place,) = [path for path in (tmp_path / "pixels").iterdir() if path.is_dir()]
    for name in ("inputs.npy", "targets.npy", "foreground.npy", "facts.json"):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[:-8])
        records = [
            Record(
                id=str(number),
                image_path=tmp_path / "images" / f"{number}.png",
                mask_path=tmp_path / "masks" / f"{number}.png",
            )
            for number in range(2)
        ]
        rule = MaskRule(kind="values", foreground=frozenset({255}), background=frozenset({0}))
        again = open_images(records, rule, TILES, folder=tmp_path, progress=listener)
        assert np.array_equal(again.pixels, before)
        assert "building it again" in listener.lines[-1]
        assert (place / name).read_bytes() == whole
    with pytest.raises(DataError, match="the split is empty"):
        open_images([], rule, TILES, folder=tmp_path)


def test_every_image_gets_its_patches(open_drawn: Callable[..., Any]) -> None:
    """By the root of its area, to within one; small ones count as whole patches; all lie inside."""
    cache, _ = open_drawn((32, 32), (16, 64), (4, 4), (8, 8))
    places = sample_places(cache, size=8, num=100, foreground=0.5, seed=0, epoch=0)
    counts = np.bincount(places[:, 0], minlength=4)
    assert np.abs(counts - np.array([40, 40, 10, 10])).max() <= 1
    for photo, top, left in places:
        height, width = cache.sizes_N2[photo]
        if photo == 2:
            assert (top, left) == (-2, -2)
        else:
            assert 0 <= top <= height - 8
            assert 0 <= left <= width - 8


def test_seed_and_epoch_decide_the_places(open_drawn: Callable[..., Any]) -> None:
    """The same seed and epoch give the same patches; another of either gives others."""
    cache, _ = open_drawn((40, 50))

    def places(seed: int, epoch: int) -> list[list[int]]:
        drawn = sample_places(cache, size=8, num=20, foreground=0.3, seed=seed, epoch=epoch)
        return drawn.tolist()  # type: ignore[no-any-return]

    assert places(0, 1) == places(0, 1)
    assert places(0, 1) != places(0, 2)
    assert places(0, 1) != places(1, 1)


def test_a_share_of_patches_holds_the_rare_class(open_drawn: Callable[..., Any]) -> None:
    """With 0.5, about half of the patches hold a pixel that few would meet by chance."""
    cache, _ = open_drawn((256, 256))

    def share(foreground: float) -> float:
        seeds = cache.foreground
        lone = seeds.places_K[seeds.places_K > 250 * 256]
        one = replace(seeds, places_K=lone, starts_N1=np.array([0, len(lone)]))
        only = replace(cache, foreground=one)
        places = sample_places(only, size=16, num=400, foreground=foreground, seed=0, epoch=0)
        near = [bool((top > 238) & (left > 238)) for _, top, left in places]
        return float(np.mean(near))

    assert share(0.0) < 0.05
    assert 0.4 < share(0.5) < 0.6
    assert share(1.0) == 1.0


def test_empty_images_take_no_share_of_the_rare(open_drawn: Callable[..., Any]) -> None:
    """One image of ten has a rare pixel: half of all patches lie around it, nonetheless."""
    cache, _ = open_drawn(*[(64, 64)] * 10)
    seeds = cache.foreground
    own = seeds.places_K[seeds.starts_N1[3] : seeds.starts_N1[4]]
    starts = np.array([0] * 4 + [len(own)] * 7)
    sparse = replace(cache, foreground=replace(seeds, places_K=own, starts_N1=starts))
    places = sample_places(sparse, size=16, num=1000, foreground=0.5, seed=0, epoch=0)
    assert 0.5 < (places[:, 0] == 3).mean() < 0.6
    assert np.bincount(places[:, 0], minlength=10).min() > 30


def test_edges_are_not_forgotten(open_drawn: Callable[..., Any]) -> None:
    """Outermost rows come half as often as the average, corners a quarter, and none too often."""
    cache, _ = open_drawn((64, 64))
    places = sample_places(cache, size=16, num=4000, foreground=0.0, seed=0, epoch=0)
    seen = np.zeros((64, 64))
    for _, top, left in places:
        seen[top : top + 16, left : left + 16] += 1
    assert seen.min() > 0.2 * seen.mean()
    rows = seen.mean(axis=1)
    assert rows.min() > 0.45 * rows.mean()
    assert rows.max() < 1.6 * rows.mean()


def test_an_epoch_covers_the_images_and_is_never_too_short() -> None:
    """As many patches as the area holds, at least 20 batches, or what the recipe says."""
    sizes = np.array([[100, 100]] * 50)
    auto = PatchConfig()
    assert patches_per_epoch(auto, sizes, size=20, batch_size=4) == 50 * 25
    assert patches_per_epoch(auto, sizes[:2], size=20, batch_size=4) == 80
    assert patches_per_epoch(auto, np.array([[10, 10]] * 100), size=20, batch_size=4) == 100
    assert patches_per_epoch(PatchConfig(per_epoch=7), sizes, size=20, batch_size=4) == 7
