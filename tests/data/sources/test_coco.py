"""COCO annotations; the packed run lengths below were made by pycocotools 2.0."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from binseg.config.recipe import DataConfig
from binseg.data import Dataset, open_dataset, read_sample
from binseg.data.samples import rasterise
from binseg.data.sources.annotations import rings_of_runs
from binseg.data.sources.coco import runs_of_text
from binseg.errors import DataError
from binseg.imageio.decoding import turn
from binseg.types import Shape

Save = Callable[..., Path]

HOLED = (
    "m8i0?00000000000000\\OK55KK55KK55KK55KK55KK55KK55KK55K"
    "K55KK55KK55KK55KK55KK55KK55?00000000000000000000S;o2VM"
)
QUAD = "e<2V1`0A7H001O00010O001O000010O0001O0010O0001O0010O0N2O1N2O2M2N2O1N2O2M2O1N2N2O1N3NT<"


def holed() -> np.ndarray:
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[5:30, 7:41] = True
    mask_HW[10:20, 15:30] = False
    mask_HW[:, 50:53] = True
    return mask_HW


@pytest.fixture
def write(save: Save, tmp_path: Path) -> Callable[..., Path]:
    """Write these annotations for images/a.png and b.png, both 40 x 60."""

    def writing(annotations: list[dict[str, Any]], **changes: Any) -> Path:
        for name in ("a", "b"):
            save(tmp_path / "images" / f"{name}.png", np.zeros((40, 60), np.uint8))
        base = {"image_id": 1, "category_id": 1}
        content = {
            "images": [
                {"id": 1, "file_name": "a.png", "height": 40, "width": 60},
                {"id": 2, "file_name": "b.png"},
            ],
            "annotations": [{"id": i, **base, **a} for i, a in enumerate(annotations)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            **changes,
        }
        path = tmp_path / "coco.json"
        path.write_text(json.dumps(content))
        return path

    return writing


Write = Callable[..., Path]


def opened(path: Path, **options: object) -> Dataset:
    return open_dataset(DataConfig.model_validate({"path": str(path), **options}))


def mask(data: Dataset, index: int = 0) -> np.ndarray:
    mask_HW = read_sample(data.records[index], data.rule).mask_HW
    assert mask_HW is not None
    return mask_HW


def square(low: float, high: float) -> list[float]:
    return [low, low, high, low, high, high, low, high]


def test_polygons_and_holes(write: Write) -> None:
    """A ring inside another is a hole; objects are united; an image without any is empty."""
    data = opened(
        write(
            [
                {"segmentation": [square(0, 20), square(5, 10)]},
                {"segmentation": [square(6, 8)], "category_id": 2},
            ]
        )
    )
    assert mask(data).sum() == 400 - 25 + 4
    assert not mask(data, 1).any()
    assert data.rule.kind == "polygons"
    assert "1 image has no outline: all background" in data.notes


def test_categories_are_chosen_by_id(write: Write) -> None:
    """`foreground` names category ids; the notes say which are foreground."""
    path = write(
        [{"segmentation": [square(0, 20)]}, {"segmentation": [square(30, 32)], "category_id": 2}]
    )
    data = opened(path, foreground=[2])
    assert mask(data).sum() == 4
    assert any("foreground: categories 2 dog; all others" in note for note in data.notes)
    with pytest.raises(DataError, match=r"names the categories 7, .* there are 1 cat, 2 dog"):
        opened(path, foreground=[7])


def test_packed_run_lengths_agree_with_pycocotools(write: Write) -> None:
    """Compressed run lengths give the very mask that pycocotools packed."""
    data = opened(write([{"segmentation": {"size": [40, 60], "counts": HOLED}, "iscrowd": 1}]))
    assert np.array_equal(mask(data), holed())
    assert any(note.startswith("1 crowd region (iscrowd) counts") for note in data.notes)


def test_plain_run_lengths(write: Write) -> None:
    """A list of run lengths, column by column, gives its mask."""
    flat = np.concatenate([[0], holed().T.ravel().astype(int), [0]])
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff([0, *edges, 2400]).tolist()
    data = opened(write([{"segmentation": {"size": [40, 60], "counts": runs}}]))
    assert np.array_equal(mask(data), holed())


def test_a_polygon_comes_close_to_pycocotools() -> None:
    """The same quadrilateral filled by pycocotools differs by its rounding at the edge alone."""
    ring = ((10.3, 5.2), (50.1, 12.7), (33.3, 38.9), (12.0, 30.5))
    ours = rasterise([Shape(rings=(ring,))], 40, 60)
    theirs = rasterise(
        [Shape(rings=rings_of_runs(runs_of_text(QUAD), height=40, width=60))], 40, 60
    )
    assert theirs.sum() == 849
    assert (ours & theirs).sum() * 2 / (ours.sum() + theirs.sum()) > 0.97


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "is missing"),
        (None, "is missing"),
        ([[1, 2, 3, 4]], "fewer than 3 corners"),
        ([[1, 2, 3]], "an x without a y"),
        ([[1, 2, 3, 4, "a", 6]], "no number"),
        ([5], "not a list of points"),
        ([[1, 2, 3, 4, float("nan"), 6]], "no number"),
        ({"size": [40, 60], "counts": [1, 2]}, "don't add up"),
        ({"size": [40, 60], "counts": "\x01"}, "unreadable"),
        ({"size": [40, 60], "counts": [-5, 2405]}, "unreadable"),
        ({"size": 3, "counts": [1]}, "without a size"),
        ({"size": [1 << 40, 1 << 40], "counts": [1 << 80]}, "don't add up"),
    ],
)
def test_unreadable_outlines_are_named(write: Write, segmentation: object, message: str) -> None:
    """An outline that can't be read names its annotation."""
    with pytest.raises(DataError, match=f"annotation 0: its segmentation .*{message}"):
        opened(write([{"segmentation": segmentation}]))


def test_images_are_checked(write: Write) -> None:
    """Missing images, other sizes, paths that lead out and strays are told at once."""
    images = [
        {"id": 1, "file_name": "a.png", "height": 60, "width": 40},
        {"id": 2, "file_name": "gone.png"},
        {"id": 3, "file_name": "../../../a.png"},
    ]
    path = write([{"segmentation": [square(0, 9)], "image_id": 77}], images=images)
    with pytest.raises(DataError) as caught:
        opened(path)
    text = str(caught.value)
    assert "a.png is 40x60, its outlines are for 60x40" in text
    assert "image gone.png is not there" in text
    assert "image ../../../a.png is not there" in text
    assert "not listed: 77" in text


def test_run_lengths_of_another_size_are_refused(write: Write) -> None:
    """They would be drawn in the wrong place, whether the file lists the image's size or not."""
    turned = {"segmentation": {"size": [60, 40], "counts": [2400]}}
    path = write([turned, {**turned, "image_id": 2}])
    with pytest.raises(DataError) as caught:
        opened(path)
    for name in ("a.png", "b.png"):
        assert f"{name} is 40x60, its outlines are for 60x40" in str(caught.value)


@pytest.mark.parametrize("place", ["livecell/A172", "../val2017"])
def test_images_are_found_by_name(write: Write, save: Save, tmp_path: Path, place: str) -> None:
    """As LIVECell and COCO lay them: anywhere below, if one image alone has the name."""
    (path := write([{"segmentation": [square(0, 20)]}])).rename(tmp_path / "all.json")
    folder = tmp_path / "annotations" if place.startswith("..") else tmp_path
    folder.mkdir(exist_ok=True)
    path = (tmp_path / "all.json").rename(folder / "all.json")
    goal = folder / place
    goal.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).rename(goal / name)
    given = [path] if folder == tmp_path else [path, tmp_path]
    for each in given:
        assert [r.id for r in opened(each, kind="coco").records] == ["a", "b"]
    save(folder.parent / path.parent.name / "x" / "a.png", np.zeros((40, 60), np.uint8))
    with pytest.raises(DataError, match=r"image a\.png could be .*a\.png or .*a\.png: write"):
        opened(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"images": 3, "annotations": []}', "`images` must be a list"),
        ('{"images": [], "annotations": [3]}', "`annotations` must be a list"),
        ("[" * 100_000, "is nested too deeply|is not JSON"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_files_that_are_not_coco(tmp_path: Path, text: str, message: str) -> None:
    """Broken or foreign JSON is one line."""
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        opened(path, kind="coco")


@pytest.mark.parametrize(("noun", "key"), [("image", "images"), ("annotation", "annotations")])
def test_ids_used_twice_are_refused(write: Callable[..., Path], noun: str, key: str) -> None:
    """Outlines would go to either of two images."""
    box = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]
    path = write([{"id": n, "image_id": 1, "category_id": 1, "segmentation": box} for n in (1, 2)])
    content = json.loads(path.read_text("utf-8"))
    for one in content[key]:
        one["id"] = 1
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match=f"{noun} ids are used more than once: 1"):
        open_dataset(DataConfig(path=str(path)))


def test_numbers_and_names_no_file_has_are_one_line(write: Callable[..., Path]) -> None:
    """5,000 digits, or 300 letters."""
    path = write([])
    whole = path.read_text("utf-8")
    path.write_text(whole.replace('"images"', f'"x": {"9" * 5000}, "images"', 1), "utf-8")
    with pytest.raises(DataError, match="too long to be read"):
        open_dataset(DataConfig(path=str(path), kind="coco"))
    path.write_text(whole.replace("a.png", "a" * 300 + ".png", 1), "utf-8")
    with pytest.raises(DataError, match="a name of 304 letters"):
        open_dataset(DataConfig(path=str(path), kind="coco"))


def blob(number: int) -> tuple[np.ndarray, list[float]]:
    """A disc that is not in the middle, and its outline."""
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y, radius = 18 + 2 * number, 14 + number, 9
    ring = np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], axis=1)
    rows, columns = np.mgrid[:40, :60] + 0.5
    return np.hypot(columns - x, rows - y) < radius, ring.ravel().tolist()


def blobs(root: Path, *, names: str = "{}.png", sizes: bool = True) -> list[np.ndarray]:
    """Write annotations of five such images."""
    size = {"height": 40, "width": 60} if sizes else {}
    numbers = range(5)
    content = {
        "images": [{"id": n, "file_name": names.format(n), **size} for n in numbers],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": [blob(n)[1]]}
            for n in numbers
        ],
        "categories": [{"id": 1, "name": "disc"}],
    }
    (root / "coco.json").write_text(json.dumps(content))
    return [blob(n)[0] for n in numbers]


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_outlines_follow_their_turned_images(
    tmp_path: Path, orientation: int, *, is_stored: bool
) -> None:
    """The stated size, or edges, tell whether outlines were drawn before EXIF turned the image."""
    random, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = orientation
    truths = blobs(tmp_path)
    back = {3: 3, 6: 8, 8: 6}[orientation]
    for number, truth in enumerate(truths):
        pixels = (90 + 60 * truth + random.normal(0, 5, truth.shape)).clip(0, 255)
        stored = pixels.astype(np.uint8) if is_stored else turn(pixels.astype(np.uint8), back)
        Image.fromarray(stored).save(tmp_path / f"{number}.png", exif=exif)
    data = open_dataset(DataConfig(path=str(tmp_path)))
    way = "turned like their images" if is_stored else "lie on the images as they are seen"
    assert any(way in note for note in data.notes)
    for record, truth in zip(data.records, truths, strict=True):
        expected = turn(truth, orientation) if is_stored else truth
        mask = read_sample(record, data.rule).mask_HW
        assert mask is not None
        assert (mask != expected).sum() < 0.04 * truth.sum()


@pytest.mark.parametrize(("factor", "told"), [(0.5, "reach to"), (2, "in the upper left")])
def test_images_resized_since_they_were_drawn_are_told(
    save: Save, tmp_path: Path, factor: float, told: str
) -> None:
    """Without stated sizes smaller images are refused, and larger ones said."""
    blobs(tmp_path, sizes=False)
    for number in range(5):
        save(tmp_path / f"{number}.png", np.zeros((int(40 * factor), int(60 * factor)), np.uint8))
    if factor < 1:
        with pytest.raises(DataError, match=told):
            open_dataset(DataConfig(path=str(tmp_path)))
    else:
        notes = open_dataset(DataConfig(path=str(tmp_path))).notes
        assert any(told in note for note in notes)


def test_names_as_windows_writes_them(save: Save, tmp_path: Path) -> None:
    """Backslashes part folders."""
    blobs(tmp_path, names="images\\{}.png")
    for number in range(5):
        save(tmp_path / "images" / f"{number}.png", np.zeros((40, 60), np.uint8))
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert [one.id for one in data.records] == [f"images/{number}" for number in range(5)]
