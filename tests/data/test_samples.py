"""Records become samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.data import MaskRule, read_sample
from binseg.data.samples import notes_on_images
from binseg.errors import ImageError
from binseg.types import Record, Shape

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
    assert any(
        "1 image is turned by EXIF and the mask isn't" in n for n in notes_on_images([record])
    )


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
