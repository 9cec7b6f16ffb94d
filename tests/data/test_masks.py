"""What mask values mean: detected, said, and held to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from binseg.config.recipe import DataConfig
from binseg.data import MaskRule, detect_rule
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
    rule = detect_rule(of_masks(values(1, 2), values(2, 3)), config)
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
    assert "values above 127 are foreground (JPEG files, whose blur leaves 0." in rule.describe()


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
    with pytest.raises(DataError, match="hold only 0, 255, read as 1 foreground"):
        detect_rule(of_masks(values(0, 255)), DataConfig(foreground=[1]))


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
