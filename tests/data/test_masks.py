"""What mask values mean: detected, said, and held to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from binseg.config.recipe import DataConfig
from binseg.data import MaskRule, detect_rule
from binseg.data.masks import _voc_colour
from binseg.data.samples import looks_inverted, read_mask
from binseg.errors import DataError, ImageError
from binseg.types import Record, Shape

Save = Callable[..., Path]


@pytest.fixture
def of_masks(save: Save, tmp_path: Path) -> Callable[..., list[Record]]:
    """Records whose masks hold these arrays."""

    def make(*arrays: np.ndarray, suffix: str = ".png") -> list[Record]:
        return [
            Record(id=str(i), image_path=tmp_path, mask_path=save(tmp_path / f"{i}{suffix}", a))
            for i, a in enumerate(arrays)
        ]

    return make


def values(*numbers: int) -> np.ndarray:
    return np.array([numbers, numbers], np.uint8)


@pytest.mark.parametrize("high", [1, 255, 7])
def test_two_values_are_understood_and_said(
    of_masks: Callable[..., list[Record]], high: int
) -> None:
    """Where masks hold 0 and one other value, that value is foreground, whatever it is."""
    rule = detect_rule(of_masks(values(0, 0), values(0, high)), DataConfig())
    mask_HW, valid_HW = rule.apply(values(0, high))
    assert mask_HW.tolist() == [[False, True]] * 2
    assert valid_HW.all()
    assert rule.describe() == f"{high} foreground, 0 background"


def test_one_bit_masks_are_understood(of_masks: Callable[..., list[Record]]) -> None:
    """A 1-bit PNG's set pixels are foreground."""
    one_bit = np.array([[True, False]])
    assert detect_rule(of_masks(one_bit), DataConfig()).foreground == frozenset({1})


@pytest.mark.parametrize(
    ("border", "mask", "valid"),
    [("foreground", 1, 1), ("background", 0, 1), ("ignore", 0, 0)],
)
def test_border_of_trimaps(
    of_masks: Callable[..., list[Record]], border: str, mask: int, valid: int
) -> None:
    """The border class 3 counts as the option says, and the rule says so."""
    config = DataConfig.model_validate({"border": border})
    rule = detect_rule(of_masks(values(1, 3, 2), values(2, 3)), config)
    mask_HW, valid_HW = rule.apply(values(1, 2, 3))
    assert mask_HW[0].astype(int).tolist() == [1, 0, mask]
    assert valid_HW[0].astype(int).tolist() == [1, 1, valid]
    assert border in rule.describe()


def test_values_of_1_and_2_are_a_trimap_only_for_the_pet_set(
    of_masks: Callable[..., list[Record]],
) -> None:
    """Without a 3 nobody knows which of 1 and 2 is the object, except in Oxford's own layout."""
    records = of_masks(values(1, 2))
    assert detect_rule(records, DataConfig(), is_trimap=True).kind == "trimap"
    with pytest.raises(DataError, match=r"hold the values 1, 2.*data\.foreground=\[2\]"):
        detect_rule(records, DataConfig())
    with pytest.raises(DataError) as caught:
        detect_rule(records, DataConfig())
    assert "threshold" not in str(caught.value), "above 0 is everything"


def test_a_stray_value_is_named_with_its_file(of_masks: Callable[..., list[Record]]) -> None:
    """A lone 7 among masks of 0 and 255 is a slip: 255 stays the object, and the file is named."""
    records = of_masks(values(0, 255), values(0, 7, 255), values(0, 255))
    with pytest.raises(
        DataError, match=r"7 is in one mask only \(1\.png.*data\.foreground=\[255\]'"
    ) as caught:
        detect_rule(records, DataConfig())
    assert "ignore" not in str(caught.value)


def test_two_colours_are_understood(of_masks: Callable[..., list[Record]]) -> None:
    """Black and one colour in an RGB mask: the colour is foreground, and grey zeros are black."""
    red = np.zeros((2, 3, 3), np.uint8)
    red[0, 0] = (255, 0, 0)
    rule = detect_rule(of_masks(red, np.zeros((2, 3, 3), np.uint8)), DataConfig())
    assert rule.describe() == "0xFF0000 foreground, 0x000000 background"
    assert rule.apply(red)[0].sum() == 1
    assert rule.apply(values(0, 0))[0].sum() == 0


def test_grey_saved_as_rgb_is_grey(of_masks: Callable[..., list[Record]]) -> None:
    """An RGB file of black and white only is read as 0 and 255."""
    white = np.zeros((2, 2, 3), np.uint8)
    white[0] = 255
    assert detect_rule(of_masks(white), DataConfig()).foreground == frozenset({255})


@pytest.mark.parametrize(
    ("arrays", "option"),
    [
        ([values(*range(21))], r"--set 'data\.foreground=\[1\]'"),
        ([values(0, 1, 255)], r"--set 'data\.foreground=\[1\]' --set 'data\.ignore=\[255\]'"),
        ([values(*range(200))], r"--set 'data\.threshold=127'"),
        ([np.eye(3, dtype=np.uint8)[None] * 255], r"data\.foreground=\[0xFF0000\]"),
    ],
    ids=["classes 0-20", "0, 1, 255", "200 greys", "three colours"],
)
def test_ambiguous_values_are_refused(
    of_masks: Callable[..., list[Record]], arrays: list[np.ndarray], option: str
) -> None:
    """What could be read in two ways is refused, naming the option that settles it."""
    with pytest.raises(DataError, match=option) as caught:
        detect_rule(of_masks(*arrays), DataConfig())
    assert "\n" not in str(caught.value)


def test_jpeg_masks_of_black_and_white_are_cut_in_the_middle(
    of_masks: Callable[..., list[Record]],
) -> None:
    """JPEG blurs 0 and 255 at the edges alone: what was meant is plain, and it is said."""
    disc = np.hypot(*np.mgrid[-64:64, -64:64]) < 36
    rule = detect_rule(of_masks(disc.astype(np.uint8) * 255, suffix=".jpg"), DataConfig())
    assert (rule.kind, rule.threshold) == ("threshold", 127)
    assert (
        "values above 127 are foreground (JPEG or the like, whose blur leaves 0." in rule.describe()
    )


def test_other_jpeg_masks_are_refused_until_a_threshold_settles_them(
    of_masks: Callable[..., list[Record]],
) -> None:
    """Where many pixels lie in between, or white is missing, it could be read in two ways."""
    disc = np.hypot(*np.mgrid[-64:64, -64:64])
    for grey in (np.clip(255 - 3 * disc, 0, 255), np.where(disc < 36, 120, 0)):
        records = of_masks(grey.astype(np.uint8), suffix=".jpg")
        with pytest.raises(DataError, match=r"blurred by JPEG.*data\.threshold=127"):
            detect_rule(records, DataConfig())
        rule = detect_rule(records, DataConfig(threshold=127))
        assert rule.apply(values(127, 128))[0][0].tolist() == [False, True]


@pytest.mark.parametrize("dark", [range(1), range(8)])
def test_png_masks_that_jpeg_blurred_once_are_to_be_cut(
    of_masks: Callable[..., list[Record]], dark: range
) -> None:
    """Kvasir's hold 0 to 7 and 248 to 255; classes and a mark of 255 are something else."""
    blurred = values(*dark, *range(248, 256))
    with pytest.raises(DataError, match=r"all near 0 or 255.*'data\.threshold=127'") as caught:
        detect_rule(of_masks(blurred), DataConfig())
    assert "foreground" not in str(caught.value)
    with pytest.raises(DataError, match=r"foreground=\[1\]' --set 'data\.ignore=\[255\]'"):
        detect_rule(of_masks(values(*range(21), 255)), DataConfig())


def test_masks_of_1_and_masks_of_255_are_both_foreground(
    of_masks: Callable[..., list[Record]],
) -> None:
    """Some were saved as 1 bit; where one mask holds both, 255 marks what is not to count."""
    one_bit = np.array([[True, False]])
    with pytest.raises(DataError, match=r"none holds both.*'data\.foreground=\[1,255\]'"):
        detect_rule(of_masks(one_bit, values(0, 255)), DataConfig())
    with pytest.raises(DataError, match=r"'data\.ignore=\[255\]'"):
        detect_rule(of_masks(one_bit, values(0, 255), values(0, 1, 255)), DataConfig())


def test_jpeg_blurs_colours(of_masks: Callable[..., list[Record]]) -> None:
    """No list of colours could settle that; the message says what would."""
    red = np.zeros((32, 32, 3), np.uint8)
    red[8:20, 8:20] = (255, 0, 0)
    with pytest.raises(DataError, match=r"colours \(0x.*JPEG blurs them: save the masks as PNG"):
        detect_rule(of_masks(red, suffix=".jpg"), DataConfig())


def test_options_settle_classes(of_masks: Callable[..., list[Record]]) -> None:
    """`foreground` and `ignore` choose among classes; all else is background."""
    config = DataConfig(foreground=[2, 5], ignore=[255])
    rule = detect_rule(of_masks(values(0, 2, 5, 9, 255)), config)
    mask_HW, valid_HW = rule.apply(values(0, 2, 5, 9, 255))
    assert mask_HW[0].astype(int).tolist() == [0, 1, 1, 0, 0]
    assert valid_HW[0].astype(int).tolist() == [1, 1, 1, 1, 0]
    assert rule.describe() == "2, 5 foreground, all else background, 255 ignored"


def test_ignore_alone_leaves_two_values(of_masks: Callable[..., list[Record]]) -> None:
    """With 255 ignored, 0 and 1 need no further option."""
    rule = detect_rule(of_masks(values(0, 1, 255)), DataConfig(ignore=[255]))
    assert rule.foreground == frozenset({1})


def test_all_empty_masks_are_refused(of_masks: Callable[..., list[Record]]) -> None:
    """A data set without any foreground can't be learnt, and wrong options show alike."""
    with pytest.raises(DataError, match="all 2 masks are empty: they hold only 0;"):
        detect_rule(of_masks(values(0), values(0)), DataConfig())
    with pytest.raises(DataError, match="it holds only 0, 255, read as 1 foreground"):
        detect_rule(of_masks(values(0, 255)), DataConfig(foreground=[1]))


def test_palettes_that_differ_are_named(tmp_path: Path) -> None:
    """Indices that the layout names need no palette like VOC's; colours say which file is odd."""
    records = []
    for number, red in enumerate((90, 90, 91)):
        image = Image.fromarray(values(0, 1))
        image.putpalette([0, 0, 0, red, 10, 20])
        image.save(path := tmp_path / f"{number}.png")
        records.append(Record(id=str(number), image_path=path, mask_path=path))
    assert detect_rule(records[:2], DataConfig(foreground=[1, 2, 3])).read_as == "indices"
    with pytest.raises(DataError, match=r"palettes have .*\(0x5B0A14 is in 2.png\)"):
        detect_rule(records, DataConfig(foreground=[1, 2, 3]))


def test_rare_foreground_is_found(of_masks: Callable[..., list[Record]]) -> None:
    """Where the masks looked at first are all empty, all are looked at."""
    arrays = [values(0)] * 130
    arrays[1] = values(255)
    assert detect_rule(of_masks(*arrays), DataConfig()).foreground == frozenset({255})


def test_a_broken_mask_does_not_hide_the_others(
    of_masks: Callable[..., list[Record]], tmp_path: Path
) -> None:
    """A file that can't be read is named when it is read; one alone is named at once."""
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    lone = Record(id="b", image_path=tmp_path, mask_path=broken)
    assert detect_rule([*of_masks(values(0, 1)), lone], DataConfig()).foreground == frozenset({1})
    with pytest.raises(ImageError, match=r"broken\.png"):
        detect_rule([lone], DataConfig())


def test_the_rule_is_strict_afterwards(rule: MaskRule) -> None:
    """A value that wasn't there when the rule was made is an error, not background."""
    with pytest.raises(ImageError, match=r"holds 1, but .* 255 foreground, 0 background"):
        rule.apply(values(0, 1, 255))
    colour = np.zeros((1, 1, 3), np.uint8)
    colour[0, 0, 0] = 9
    with pytest.raises(ImageError, match="in colour"):
        rule.apply(colour)


def test_16_bit_instances_need_a_threshold(of_masks: Callable[..., list[Record]]) -> None:
    """Instance masks are refused with the advice that makes every instance foreground."""
    instances = np.arange(300, dtype=np.uint16).reshape(15, 20)
    records = of_masks(instances)
    with pytest.raises(DataError, match=r"300 grey levels .*data\.threshold=0"):
        detect_rule(records, DataConfig())
    rule = detect_rule(records, DataConfig(threshold=0))
    assert rule.apply(instances)[0].sum() == 299


def test_outlines_need_no_values(tmp_path: Path) -> None:
    """Data with polygons has the rule `polygons`; options for values are refused there."""
    shape = Shape(rings=(((0, 0), (1, 0), (1, 1)),))
    records = [Record(id="a", image_path=tmp_path, shapes=(shape,))]
    assert detect_rule(records, DataConfig()).kind == "polygons"
    with pytest.raises(DataError, match=r"data\.threshold"):
        detect_rule(records, DataConfig(threshold=1))
    with pytest.raises(DataError, match="no image has a mask"):
        detect_rule([Record(id="a", image_path=tmp_path)], DataConfig())
    with pytest.raises(DataError, match="none of the 1 images has an outline"):
        detect_rule([Record(id="a", image_path=tmp_path, shapes=())], DataConfig())


def test_three_classes_side_by_side_are_no_trimap(of_masks: Callable[..., list[Record]]) -> None:
    """1, 2 and 3 are a trimap only where 3 lies between the others; classes that touch aren't."""
    with pytest.raises(DataError, match=r"hold the values 1, 2, 3.*data\.foreground"):
        detect_rule(of_masks(values(1, 2, 3), values(2, 1, 3)), DataConfig())


DISC = np.hypot(*(np.mgrid[:40, :48] - np.array([[[20]], [[22]]]))) < 11
RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)


def painted(colour: tuple[int, ...], mask_HW: np.ndarray = DISC) -> Image.Image:
    return Image.fromarray(np.where(mask_HW[..., None], colour, 0).astype(np.uint8))


def swapped(image: Image.Image) -> Image.Image:
    """The same picture with the palette's first two entries the other way round."""
    colours = np.asarray(image.getpalette()).reshape(-1, 3)[:2]
    turned = Image.fromarray(1 - np.asarray(image), mode="P")
    turned.putpalette(colours[::-1].ravel().tolist())
    return turned


@pytest.mark.parametrize("colour", [RED, WHITE, GREY])
@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif"])
def test_two_colour_palettes_mean_their_colours(
    tmp_path: Path, colour: tuple[int, ...], suffix: str
) -> None:
    """One mask in 24 bits and with its palette both ways round: foreground is the disc in all."""
    plain = painted(colour)
    records = []
    for number, image in enumerate([plain, plain.quantize(2), swapped(plain.quantize(2))]):
        path = tmp_path / f"{number}{suffix if number else '.png'}"
        image.save(path)
        records.append(Record(id=str(number), image_path=path, mask_path=path))
    rule = detect_rule(records, DataConfig())
    for record in records:
        np.testing.assert_array_equal(read_mask(record, rule)[0], DISC)


def test_soft_grey_palettes_are_cut_where_the_advice_says(tmp_path: Path) -> None:
    """Grey levels of a palette are those it shows: the threshold that is advised finds the disc."""
    soft_HW = (ndimage.gaussian_filter(DISC.astype(float), 1) * 255).round().astype(np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(soft_HW).convert("RGB").quantize(64).save(path)
    records = [Record(id="a", image_path=path, mask_path=path)]
    with pytest.raises(DataError, match=r"data\.threshold=127"):
        detect_rule(records, DataConfig())
    mask_HW, _ = read_mask(records[0], detect_rule(records, DataConfig(threshold=127)))
    assert (mask_HW != DISC).mean() < 0.01


def test_voc_palettes_are_read_by_index_and_said(tmp_path: Path) -> None:
    """VOC's colours stand for class numbers: 15 is chosen by its number, 255 is left out."""
    labels_HW = np.zeros((20, 30), np.uint8)
    labels_HW[4:9, 5:12], labels_HW[4:9, 12:20], labels_HW[9, 5:20] = 15, 2, 255
    image = Image.fromarray(labels_HW, mode="P")
    image.putpalette([part for one in range(256) for part in _voc_colour(one).to_bytes(3)])
    image.save(tmp_path / "a.png")
    records = [Record(id="a", image_path=tmp_path / "a.png", mask_path=tmp_path / "a.png")]
    rule = detect_rule(records, DataConfig(foreground=[15], ignore=[255]))
    mask_HW, valid_HW = read_mask(records[0], rule)
    np.testing.assert_array_equal(mask_HW, labels_HW == 15)
    np.testing.assert_array_equal(valid_HW, labels_HW != 255)
    assert "indices of the palette" in rule.describe()


def miniswhite(path: Path, pixels: np.ndarray, description: str) -> Record:
    tifffile.imwrite(
        path,
        pixels,
        photometric="miniswhite",
        description=description,
        metadata=None,
        software="",
    )
    return Record(id=path.stem, image_path=path, mask_path=path)


def test_imagejs_inverting_table_changes_nothing(tmp_path: Path) -> None:
    """ImageJ's masks are 255 where the object is, as tifffile reads them, whatever is displayed."""
    record = miniswhite(tmp_path / "a.tif", DISC.astype(np.uint8) * 255, "ImageJ=1.53t\n")
    rule = detect_rule([record], DataConfig())
    np.testing.assert_array_equal(read_mask(record, rule)[0], DISC)
    assert "white is zero" not in rule.describe()


def test_other_files_whose_white_is_zero_are_turned_and_said(tmp_path: Path) -> None:
    """A scanner's white-is-zero is meant: 0 is white, and the user reads that it was turned."""
    record = miniswhite(tmp_path / "a.tif", (~DISC).astype(np.uint8) * 255, "scan")
    rule = detect_rule([record], DataConfig())
    np.testing.assert_array_equal(read_mask(record, rule)[0], DISC)
    assert "white is zero" in rule.describe()


def test_masks_that_look_inverted_are_told_the_option_that_turns_them(tmp_path: Path) -> None:
    """All masks inverted: the option makes them right; a few: they are named; none: silence."""
    records = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        painted(WHITE, ~DISC).convert("L").save(path)
        records.append(Record(id=str(number), image_path=path, mask_path=path))
    rule = detect_rule(records, DataConfig())
    told = looks_inverted(records, rule)
    assert told is not None
    assert "--set 'data.foreground=[0]'" in told
    right = detect_rule(records, DataConfig(foreground=[0]))
    np.testing.assert_array_equal(read_mask(records[0], right)[0], DISC)
    assert looks_inverted(records, right) is None
    painted(WHITE).convert("L").save(tmp_path / "3.png")
    odd = looks_inverted(records, right)
    assert odd is not None
    assert "1 mask looks inverted beside the others" in odd
    assert "3.png" in odd


@pytest.mark.parametrize("under", ["white", "black", "photo"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_masks_that_are_drawn_in_transparency_are_read_so(
    tmp_path: Path, under: str, suffix: str
) -> None:
    """Over one colour, or as a cut-out, what is opaque is the object: an empty mask stays empty."""
    random = np.random.default_rng(0)
    photo_HW3 = random.integers(0, 256, (*DISC.shape, 3), dtype=np.uint8)
    colours_HW3 = {"photo": photo_HW3, "white": np.full_like(photo_HW3, 255)}
    records = []
    for number, mask_HW in enumerate((DISC, DISC[::-1], np.zeros_like(DISC))):
        colour_HW3 = colours_HW3.get(under, np.zeros_like(photo_HW3))
        image = Image.fromarray(np.dstack([colour_HW3, mask_HW.astype(np.uint8) * 255]))
        path = tmp_path / f"{number}{suffix}"
        image.save(path, **(dict[str, Any](lossless=True, exact=True) if suffix == ".webp" else {}))
        records.append(Record(id=str(number), image_path=path, mask_path=path))
    rule = detect_rule(records, DataConfig())
    assert "transparency" in rule.describe()
    for record, mask_HW in zip(records, (DISC, DISC[::-1], np.zeros_like(DISC)), strict=True):
        np.testing.assert_array_equal(read_mask(record, rule)[0], mask_HW)


def test_opaque_masks_with_transparency_mean_their_colours(tmp_path: Path) -> None:
    """Where colours hold a mask, opacity says nothing."""
    opaque = painted(WHITE).convert("RGBA")
    opaque.save(tmp_path / "a.png")
    record = Record(id="a", image_path=tmp_path / "a.png", mask_path=tmp_path / "a.png")
    rule = detect_rule([record], DataConfig())
    assert rule.read_as == "colours"
    np.testing.assert_array_equal(read_mask(record, rule)[0], DISC)


def test_masks_that_are_all_full_are_refused(of_masks: Callable[..., list[Record]]) -> None:
    """Without any background there is nothing to learn, as without any foreground."""
    with pytest.raises(DataError, match="all 2 masks are full: they hold only 255"):
        detect_rule(of_masks(values(255, 255), values(255, 255)), DataConfig())


@pytest.mark.parametrize("suffix", [".webp", ".jp2", ".avif"])
def test_lossy_masks_of_black_and_white_are_cut_in_the_middle(tmp_path: Path, suffix: str) -> None:
    """Compression tints greys a little: they are greys all the same."""
    path = tmp_path / f"a{suffix}"
    of_jp2: dict[str, Any] = {"irreversible": True, "quality_layers": [4]}
    options = of_jp2 if suffix == ".jp2" else {"quality": 60}
    painted(WHITE).save(path, **options)
    record = Record(id="a", image_path=path, mask_path=path)
    rule = detect_rule([record], DataConfig())
    assert (read_mask(record, rule)[0] != DISC).mean() < 0.01


def test_a_value_that_a_mask_declares_to_be_no_data_is_ignored(tmp_path: Path) -> None:
    """GDAL's tag in a mask of 0, 1 and 255: 255 counts neither way."""
    labels_HW = DISC.astype(np.uint8)
    labels_HW[:3] = 255
    tag = [(42113, 2, 4, "255", True)]
    tifffile.imwrite(tmp_path / "a.tif", labels_HW, extratags=tag)
    record = Record(id="a", image_path=tmp_path / "a.tif", mask_path=tmp_path / "a.tif")
    rule = detect_rule([record], DataConfig())
    mask_HW, valid_HW = read_mask(record, rule)
    np.testing.assert_array_equal(mask_HW, DISC)
    np.testing.assert_array_equal(valid_HW, labels_HW != 255)
    assert "255 ignored" in rule.describe()


def test_half_of_the_masks_inverted_are_named(tmp_path: Path) -> None:
    """Two people, two habits: masks whose border is whole beside masks whose border is bare."""
    records = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        painted(WHITE, DISC ^ bool(number % 2)).convert("L").save(path)
        records.append(Record(id=str(number), image_path=path, mask_path=path))
    told = looks_inverted(records, detect_rule(records, DataConfig()))
    assert "3 masks look inverted beside the others" in str(told)
    assert "1.png, 3.png, 5.png" in str(told)
