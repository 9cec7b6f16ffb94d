"""Photographs much larger than the model's input: every door sees them alike, and quickly."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from binseg.data.cache import open_cache
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.evaluation.scoring import predict_at_both_sizes
from binseg.imageio import encode_image, encode_mask, read_image, read_reduced
from binseg.imageio.cage import Cage
from binseg.inference import ModelPredictor, PredictOptions
from binseg.inference.engine import predict_bytes, predict_files
from binseg.inference.quality import describe, figures, signs
from binseg.report import overlay
from binseg.transforms.geometry import SmallMap, plan
from binseg.transforms.preprocess import prepare, reduction
from binseg.types import Preprocessing, Record

SHAPE = Preprocessing(height=24, width=32)
SIZE = (413, 530)
"""Neither side is a multiple of 8."""


@pytest.fixture
def model(bright: Callable[[Preprocessing], ModelPredictor]) -> ModelPredictor:
    """A predictor that answers with the brightness of the input."""
    return bright(SHAPE)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG, many times larger than the input."""
    coarse = np.random.default_rng(1).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    path = tmp_path / "photo.jpg"
    image = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    image.save(path, quality=90)
    return path


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_a_mask_cut_from_the_small_map_is_that_of_the_whole(mode: str) -> None:
    """Threshold before enlarging, and every few pixels, are the enlarged map's to the bit."""
    random = np.random.default_rng(0)
    num = 0
    for _ in range(20):
        height, width = (int(one) for one in random.integers(4, 40, 2))
        size = [int(one) for one in random.integers(4, 300, 2)]
        shape = Preprocessing(height=height, width=width, resize=mode)  # type: ignore[arg-type]
        (placement,) = plan(size[0], size[1], shape)
        map_HW = random.random((height, width), dtype=np.float32)
        small = SmallMap.of(map_HW, placement)
        if small is None:
            continue
        num += 1
        whole_HW = small.whole()
        for threshold in (0.0, 0.4, float(map_HW[0, 0]), 1.0):
            assert np.array_equal(small.above(threshold), whole_HW > threshold)
        for step in (1, 2, 8):
            assert np.array_equal(small.every(step), whole_HW[step // 2 :: step, step // 2 :: step])
    assert num > 5


def test_the_reduced_image_is_the_averaged_one(photo: Path) -> None:
    """JPEG's decoder averages as the rule says, up to its rounding; the inputs hardly differ."""
    image_HWC, valid_HW, size = read_reduced(photo, partial(reduction, preprocessing=SHAPE))
    assert (size, valid_HW) == (SIZE, None)
    assert image_HWC.shape[:2] == (-(-SIZE[0] // 8), -(-SIZE[1] // 8))
    by_decoder = prepare(image_HWC, SHAPE, size=size)[0].astype(int)
    by_pixels = prepare(read_image(photo), SHAPE)[0].astype(int)
    assert np.abs(by_decoder - by_pixels).mean() < 0.5
    assert np.abs(by_decoder - by_pixels).max() <= 4


def test_an_averaged_image_keeps_its_place() -> None:
    """Averaging moves no edge: a ramp of light lies where resizing at once puts it."""
    ramp_HW3 = np.repeat(np.linspace(0, 255, SIZE[1])[None, :, None], SIZE[0], axis=0)
    ramp_HWC = np.repeat(ramp_HW3, 3, axis=2).astype(np.uint8)
    assert reduction(SIZE, SHAPE) == 8
    found = prepare(ramp_HWC, SHAPE)[0][0]
    at_once = np.asarray(Image.fromarray(ramp_HWC).resize((32, 24), Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - at_once).max() <= 1


@pytest.mark.parametrize("by", [2, 8])
def test_a_cut_off_photo_is_refused_when_reduced_too(photo: Path, by: int) -> None:
    """What a decoder reduces it reads to the end."""
    photo.write_bytes(photo.read_bytes()[:-2000])
    with pytest.raises(Exception, match="damaged or cut off"):
        read_reduced(photo, lambda _: by)


def test_every_door_gives_one_mask(model: ModelPredictor, photo: Path, tmp_path: Path) -> None:
    """File, bytes, cage, training and scoring see the same input; a mask never asks for more."""
    mask_HW = model.predict(photo).mask
    assert mask_HW.shape == SIZE
    assert 0.1 < mask_HW.mean() < 0.9
    (written,) = predict_files(model, [photo], out=tmp_path / "one").written
    assert np.array_equal(read_image(written.mask)[:, :, 0] > 0, mask_HW)
    data = predict_bytes(model, photo.read_bytes())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))) > 0, mask_HW)
    other = photo.with_name("other.jpg")
    other.write_bytes(photo.read_bytes())
    options = PredictOptions(outputs=("overlay",))
    for one in predict_files(model, [photo, other], out=tmp_path / "two", options=options).written:
        assert np.array_equal(read_image(one.mask)[:, :, 0] > 0, mask_HW)
        assert np.array_equal(read_image(one.others[0]), overlay(read_image(photo), mask_HW))
    Image.fromarray(mask_HW).save(tmp_path / "mask.png")
    record = Record(id="a", image_path=photo, mask_path=tmp_path / "mask.png")
    rule = MaskRule(kind="threshold", threshold=127)
    sample = read_sample(record, rule, SHAPE)
    assert sample.is_reduced
    found = predict_at_both_sizes(model, sample.image_HWC, sample.valid_HW.shape)
    assert np.array_equal(found[0] > 0.5, mask_HW)
    cached = open_cache([record], rule, SHAPE, folder=tmp_path / "cache")
    inputs, _ = prepare(sample.image_HWC, SHAPE, size=SIZE)
    assert np.array_equal(cached.inputs_NHWC, inputs)
    cage = Cage(1)
    try:
        with cage.open(photo, name="photo") as opened:
            caged_HWC = opened.reduced(reduction(SIZE, SHAPE))
            assert np.array_equal(opened.image(), read_image(photo))
    finally:
        cage.close()
    assert np.array_equal(caged_HWC, sample.image_HWC)


def test_quality_by_some_pixels_is_that_by_all(model: ModelPredictor, photo: Path) -> None:
    """The figures of an enlarged map don't change when only some of its pixels are looked at."""
    found = model.predict(photo)
    assert isinstance(found.probability_HW, SmallMap)
    image_HWC = read_image(photo)
    some_D, some_K = figures(image_HWC, found.probability_HW, found.mask, SHAPE)
    same_D, same_K = figures(image_HWC, found.probability, found.mask, SHAPE)
    np.testing.assert_array_equal(some_D, same_D)
    np.testing.assert_array_equal(some_K, same_K)
    np.testing.assert_allclose(
        some_D, describe(image_HWC, found.probability, found.mask, SHAPE), atol=0.1
    )
    np.testing.assert_allclose(some_K[:6], signs(found.probability, found.mask), atol=0.15)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_reads_back_elsewhere(channels: int) -> None:
    """Pillow reads the pixels and the facts of the PNGs that are packed here."""
    random = np.random.default_rng(channels)
    pixels = random.integers(0, 256, (37, 53, channels), dtype=np.uint8)
    if channels == 1:
        pixels = np.where(pixels[:, :, 0] > 99, np.uint8(255), np.uint8(0))
        data = encode_mask(pixels > 0, facts={"model": "m\u00fc"})
    else:
        data = encode_image(pixels, facts={"model": "m\u00fc"})
    read = Image.open(io.BytesIO(data))
    assert read.info["binseg"] == '{"model": "m\\u00fc"}'
    assert np.array_equal(np.asarray(read), pixels)
