"""labelme annotations."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from binseg.config.recipe import DataConfig
from binseg.data import Dataset, open_dataset, read_sample
from binseg.errors import DataError

Save = Callable[..., Path]
SQUARE = [[1, 1], [5, 1], [5, 5], [1, 5]]


@pytest.fixture
def write(save: Save, tmp_path: Path) -> Callable[..., Path]:
    """Write an image of 30 x 40 and its labelme file with these shapes."""

    def writing(*shapes: dict[str, Any], name: str = "a", **changes: Any) -> Path:
        save(tmp_path / f"{name}.png", np.zeros((30, 40), np.uint8))
        content = {
            "version": "5.0",
            "shapes": list(shapes),
            "imagePath": f"{name}.png",
            "imageHeight": 30,
            "imageWidth": 40,
            **changes,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return writing


Write = Callable[..., Path]


def opened(root: Path, **options: object) -> Dataset:
    return open_dataset(DataConfig.model_validate({"path": str(root), **options}))


def mask(data: Dataset) -> np.ndarray:
    mask_HW = read_sample(data.records[0], data.rule).mask_HW
    assert mask_HW is not None
    return mask_HW


def test_polygons_rectangles_and_circles(write: Write) -> None:
    """The three kinds with an area are filled."""
    data = opened(
        write(
            {"label": "a", "points": SQUARE, "shape_type": "polygon"},
            {"label": "b", "points": [[12, 9], [10, 6]], "shape_type": "rectangle"},
            {"label": "c", "points": [[25, 15], [25, 25]], "shape_type": "circle"},
        )
    )
    circle = np.pi * 10**2
    assert mask(data).sum() == pytest.approx(16 + 6 + circle, rel=0.02)
    assert any("all labels (a, b, c)" in note for note in data.notes)


def test_shapes_without_area_are_left_out_and_said(write: Write) -> None:
    """Points and lines can't be filled."""
    data = opened(
        write(
            {"label": "a", "points": SQUARE},
            {"label": "tip", "points": [[1, 1]], "shape_type": "point"},
            {"label": "way", "points": [[1, 1], [2, 2]], "shape_type": "line"},
        )
    )
    assert mask(data).sum() == 16
    assert "left out: 1 line, 1 point" in " ".join(data.notes)


def test_images_without_json_are_left_out_and_said(write: Write, save: Save) -> None:
    """Whether they are empty or unfinished nobody knows."""
    root = write({"label": "a", "points": SQUARE})
    save(root / "new.png")
    data = opened(root)
    assert len(data.records) == 1
    assert any("1 image without .json left out (new.png)" in note for note in data.notes)
    whole = opened(root, missing="empty")
    samples = [read_sample(record, whole.rule) for record in whole.records]
    assert [int((one.mask_HW > 0).sum()) for one in samples if one.mask_HW is not None] == [16, 0]
    with pytest.raises(DataError, match=r"1 image without \.json \(new\.png\)"):
        opened(root, missing="refuse")


@pytest.mark.parametrize(
    "path", ["..\\elsewhere\\a.png", "../../../a.png", "C:\\x\\a.png", "", None]
)
def test_foreign_paths_fall_back_to_the_image_beside(write: Write, path: str | None) -> None:
    """Files labelled on another machine name folders of that machine."""
    assert len(opened(write({"label": "a", "points": SQUARE}, imagePath=path)).records) == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"points": [[1, 1], [2, 2]]}, "a polygon with 2 points can't be filled"),
        ({"points": SQUARE, "shape_type": "mask"}, "a mask with 4 points can't be filled"),
        ({"points": [["x", 1]]}, "a polygon holds something that is no number"),
        ({"points": 7}, "a polygon is not a list of points"),
    ],
)
def test_unreadable_shapes_name_the_file(write: Write, shape: dict[str, Any], message: str) -> None:
    """An outline that can't be filled is an error, not a hole in the truth."""
    with pytest.raises(DataError, match=rf"a\.json: {message}"):
        opened(write({"label": "a", **shape}))


def test_files_are_checked(write: Write, tmp_path: Path) -> None:
    """Another size and a missing image are named."""
    write({"label": "a", "points": SQUARE}, imageHeight=31)
    with pytest.raises(DataError, match=r"a\.png is 30x40, its outlines are for 31x40"):
        opened(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.json: its image a\.png is not there"):
        opened(tmp_path)
    (tmp_path / "a.json").write_text('{"shapes": 3}')
    with pytest.raises(DataError, match="`shapes` must be a list"):
        opened(tmp_path)


def test_value_options_are_refused(write: Write) -> None:
    """Options for mask values have no meaning here."""
    root = write({"label": "a", "points": SQUARE})
    for option in ({"foreground": [1]}, {"ignore": [2]}, {"threshold": 3}):
        with pytest.raises(DataError, match="mask files"):
            opened(root, **option)


def test_masks_are_bitmaps_at_their_corner(write: Write) -> None:
    """Labelme 5 stores a drawn mask as a PNG beside the corners of its box."""
    inner = np.zeros((5, 7), bool)
    inner[1:4, 2:6] = True
    buffer = io.BytesIO()
    Image.fromarray(inner).save(buffer, format="PNG")
    shape = {
        "label": "a",
        "shape_type": "mask",
        "points": [[10, 6], [16, 10]],
        "mask": base64.b64encode(buffer.getvalue()).decode(),
    }
    expected = np.zeros((30, 40), bool)
    expected[6:11, 10:17] = inner
    np.testing.assert_array_equal(mask(opened(write(shape))), expected)
    with pytest.raises(DataError, match=r"a\.json: a mask has an unreadable bitmap"):
        opened(write({**shape, "mask": "AAAA"}))


def test_reserved_labels_are_no_objects(write: Write) -> None:
    """`_background_` is none, `__ignore__` doesn't count, and labels are chosen by name."""
    far = [[20, 20], [24, 20], [24, 24], [20, 24]]
    root = write(
        {"label": "cell", "points": SQUARE},
        {"label": "dirt", "points": far},
        {"label": "_background_", "points": [[0, 0], [40, 0], [40, 30], [0, 30]]},
        {"label": "__ignore__", "points": [[30, 0], [40, 0], [40, 10], [30, 10]]},
    )
    data = opened(root)
    assert mask(data).sum() == 32
    assert (~read_sample(data.records[0], data.rule).valid_HW).sum() == 100
    assert any("all labels (cell, dirt)" in note for note in data.notes)
    assert mask(opened(root, labels=["dirt"])).sum() == 16
    with pytest.raises(DataError, match=r"data\.labels names dust"):
        opened(root, labels=["dust"])
