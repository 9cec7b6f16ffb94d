"""Records become samples."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.data import MaskRule, read_sample
from binseg.data.samples import find_stored_poses, notes_on_images
from binseg.errors import ImageError
from binseg.imageio.decoding import turn
from binseg.transforms.preprocess import prepare
from binseg.types import Preprocessing, Record, Shape

Save = Callable[..., Path]


def test_image_and_mask_are_read_together(save: Save, tmp_path: Path, rule: MaskRule) -> None:
    """The sample has the image's pixels, and the mask is true where the file holds 255."""
    image_HWC = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    mask_HW = np.eye(4, 6, dtype=np.uint8) * 255
    record = Record(
        id="a",
        image_path=save(tmp_path / "a.png", image_HWC),
        mask_path=save(tmp_path / "m.png", mask_HW),
    )
    sample = read_sample(record, rule)
    assert np.array_equal(sample.image_HWC, image_HWC)
    assert sample.mask_HW is not None
    assert np.array_equal(sample.mask_HW, mask_HW > 0)
    assert sample.valid_HW.all()


def test_pages_are_read_by_number(save: Save, tmp_path: Path, rule: MaskRule) -> None:
    """Page n of an image goes with page n of its mask."""
    pages = np.zeros((3, 4, 6), np.uint8)
    pages[1] = 255
    record = Record(
        id="a",
        image_path=save(tmp_path / "a.tif", pages),
        mask_path=save(tmp_path / "m.tif", pages),
        page=1,
    )
    sample = read_sample(record, rule)
    assert sample.mask_HW is not None
    assert sample.mask_HW.all()
    assert sample.image_HWC.min() == 255


def test_another_size_names_both_sizes(save: Save, tmp_path: Path, rule: MaskRule) -> None:
    """A mask of another size is an error with both sizes."""
    record = Record(
        id="a",
        image_path=save(tmp_path / "a.png"),
        mask_path=save(tmp_path / "m.png", np.zeros((5, 5), np.uint8)),
    )
    with pytest.raises(ImageError, match=r"m\.png: the mask is 5x5 .* a\.png is 4x6"):
        read_sample(record, rule)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_raw_mask_follows_its_turned_image(
    tmp_path: Path, rule: MaskRule, orientation: int
) -> None:
    """A mask made from the pixels as stored lies on them after the turn, and that is said."""
    pixels = np.zeros((8, 12), np.uint8)
    pixels[1:3, 2:9], pixels[5:, 10] = 255, 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    record = Record(id="a", image_path=tmp_path / "a.png", mask_path=tmp_path / "m.png")
    sample = read_sample(record, rule)
    assert sample.mask_HW is not None
    np.testing.assert_array_equal(sample.mask_HW, sample.image_HWC[:, :, 0] == 255)
    (posed,), note = find_stored_poses([record], rule)
    assert "1 image is turned by EXIF and the mask isn't: by their sides" in str(note)
    np.testing.assert_array_equal(read_sample(posed, rule).mask_HW, sample.mask_HW)


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_poses_that_sides_do_not_tell_are_told_by_outlines(
    tmp_path: Path, rule: MaskRule, orientation: int, *, is_stored: bool
) -> None:
    """Of square and half-turned images the pose is the one in which outlines lie on edges."""
    random, records, truths = np.random.default_rng(orientation), [], {}
    for number in range(4):
        height, width = (40, 40) if orientation > 4 else (40, 56)
        y, x = np.mgrid[:height, :width]
        mask = np.hypot(y - 12 - number, x - 13 + number) < 8
        pixels = (90 + 60 * mask + random.normal(0, 9, mask.shape)).clip(0, 255).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image, path = tmp_path / f"{number}.png", tmp_path / f"{number}_m.png"
        Image.fromarray(pixels).save(image, exif=exif)
        truths[str(number)] = turn(mask, orientation)
        shown = mask if is_stored else truths[str(number)]
        Image.fromarray(shown.astype(np.uint8) * 255).save(path)
        records.append(Record(id=str(number), image_path=image, mask_path=path))
    posed, note = find_stored_poses(records, rule)
    way = "turned like their images" if is_stored else "lie on the images as they are seen"
    assert way in str(note)
    for record in posed:
        np.testing.assert_array_equal(read_sample(record, rule).mask_HW, truths[record.id])


def test_poses_that_nothing_tells_are_said(tmp_path: Path, rule: MaskRule) -> None:
    """A mask that fits both poses alike stays as it is, with a warning."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("L", (20, 20), 9).save(tmp_path / "a.png", exif=exif)
    Image.new("L", (20, 20), 255).save(tmp_path / "m.png")
    record = Record(id="a", image_path=tmp_path / "a.png", mask_path=tmp_path / "m.png")
    assert "don't tell in which pose" in str(find_stored_poses([record], rule)[1])


def test_swapped_sides_hint_at_exif(tmp_path: Path, rule: MaskRule) -> None:
    """A mask that is turned by EXIF while its image isn't gets the hint."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    Image.new("L", (6, 4)).save(tmp_path / "m.png", exif=exif)
    record = Record(id="a", image_path=tmp_path / "a.png", mask_path=tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"6x4 .* is 4x6; .*EXIF"):
        read_sample(record, rule)


def test_no_data_does_not_count(tmp_path: Path, rule: MaskRule) -> None:
    """Pixels without data are left out of the truth, and the tag's value is said."""
    pixels = np.full((8, 12), 400, np.float32)
    pixels[:2] = -9999
    path, mask = tmp_path / "a.tif", tmp_path / "m.png"
    tifffile.imwrite(path, pixels, extratags=[(42113, "s", 0, "-9999", True)])
    Image.fromarray(np.full((8, 12), 255, np.uint8)).save(mask)
    record = Record(id="a", image_path=path, mask_path=mask)
    np.testing.assert_array_equal(read_sample(record, rule).valid_HW, pixels > 0)
    assert any("value -9999 are no data" in note for note in notes_on_images([record]))


@pytest.mark.parametrize(
    ("pixels", "value"),
    [
        (np.full((8, 12), 400, np.float32), -9999.0),
        (np.full((8, 12), 400, np.uint16), 0.0),
        (np.full((8, 12, 3), 40, np.uint8), 0.0),
    ],
)
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_a_declared_value_is_no_data(
    tmp_path: Path, rule: MaskRule, pixels: np.ndarray, value: float, suffix: str
) -> None:
    """`data.nodata` holds where files say nothing: out of the image, the truth and the inputs."""
    pixels = pixels.copy()
    pixels[:2] = value
    if pixels.ndim == 3:
        pixels[4, 4] = (0, 9, 9)  # black in one channel is a colour
    image, mask = tmp_path / f"a{suffix}", tmp_path / "m.png"
    np.save(image, pixels) if suffix == ".npy" else tifffile.imwrite(image, pixels)
    Image.fromarray(np.full((8, 12), 255, np.uint8)).save(mask)
    record = Record(id="a", image_path=image, mask_path=mask, nodata=value)
    sample = read_sample(record, rule)
    expected = np.ones((8, 12), bool)
    expected[:2] = False
    np.testing.assert_array_equal(sample.valid_HW, expected)
    assert (sample.image_HWC[:2] == sample.image_HWC[5, 5]).all()
    channels = sample.image_HWC.shape[2]
    shape = Preprocessing(height=8, width=12, channels=channels, intensity="percentile",
                          mean=(0.5,) * channels, std=(0.5,) * channels, nodata=value)  # fmt: skip
    raw = pixels if pixels.ndim == 3 else pixels[:, :, None]
    np.testing.assert_array_equal(prepare(raw, shape)[0], prepare(sample.image_HWC, shape)[0])
    assert any(f"{value:g} is in 1 of 1" in note for note in notes_on_images([record]))
    other = replace(record, nodata=-1.0)
    assert any("is it right?" in note for note in notes_on_images([other]))


def test_an_unknown_value_names_the_file(save: Save, tmp_path: Path, rule: MaskRule) -> None:
    """The rule doesn't know the file; the sample's error does."""
    mask = save(tmp_path / "odd.png", np.full((4, 6), 7, np.uint8))
    record = Record(id="a", image_path=save(tmp_path / "a.png"), mask_path=mask)
    with pytest.raises(ImageError, match=r"odd\.png: the mask holds 7"):
        read_sample(record, rule)


def test_outlines_and_no_truth(save: Save, tmp_path: Path, rule: MaskRule) -> None:
    """Outlines are filled at the image's size; without truth the mask is None."""
    image = save(tmp_path / "a.png")
    ring = ((0.0, 0.0), (6.0, 0.0), (6.0, 2.0), (0.0, 2.0))
    drawn = Record(id="a", image_path=image, shapes=(Shape(rings=(ring,)),))
    sample = read_sample(drawn, rule)
    assert sample.mask_HW is not None
    assert sample.mask_HW.sum() == 12
    assert read_sample(Record(id="a", image_path=image), rule).mask_HW is None


@pytest.mark.parametrize("is_data", [True, False])
def test_transparency_of_images_is_said_to_be_ignored(tmp_path: Path, *, is_data: bool) -> None:
    """A PNG's fourth channel may be near infrared: the note says how to keep it."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    if not is_data:
        pixels[:, :, 3] = np.where(np.arange(30) < 9, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    notes = notes_on_images([Record(id="a", image_path=tmp_path / "a.png")])
    assert any("transparency is ignored (1 of 1 images" in note for note in notes)
    assert any("save those as TIFF" in note for note in notes) == is_data
