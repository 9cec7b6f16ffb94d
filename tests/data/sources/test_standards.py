"""Layouts of training tools and contests: YOLO, VOC, nnU-Net, run lengths, COCO with splits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from binseg.config.recipe import DataConfig
from binseg.data import Dataset, open_dataset, read_sample
from binseg.data.masks import _voc_colour
from binseg.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # pycocotools
SIZE = (48, 64)
DISC = np.hypot(*(np.mgrid[: SIZE[0], : SIZE[1]] - np.array([[[20]], [[30]]]))) < 11
CONTOUR = [(20, 8), (31, 10), (40, 19), (37, 30), (22, 35), (12, 27), (11, 15)]


def save(path: Path, pixels: np.ndarray | Image.Image | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((*SIZE, 3), np.uint8) if pixels is None else pixels
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def opened(root: Path, **options: object) -> Dataset:
    return open_dataset(DataConfig.model_validate({"path": str(root), **options}))


def mask(data: Dataset, index: int = 0) -> np.ndarray:
    mask_HW = read_sample(data.records[index], data.rule).mask_HW
    assert mask_HW is not None
    return mask_HW


@pytest.mark.parametrize("layout", ["images/{}", "../{}/images"])
def test_yolo_segments(tmp_path: Path, layout: str) -> None:
    """Fractions become pixels, filled as OpenCV does; splits and names are the .yaml's."""
    line = " ".join(f"{x / SIZE[1]:.6f} {y / SIZE[0]:.6f}" for x, y in CONTOUR)
    lines = [f"{split}: {layout.format(split)}" for split in ("train", "val")]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, "nc: 2", "names: [cell, dirt]"]))
    for split, text in (("train", f"0 {line}\n"), ("val", f"1 {line}\n")):
        image = tmp_path / layout.format(split).removeprefix("../") / f"{split}.jpg"
        save(image)
        inner = image.relative_to(tmp_path).as_posix().replace("images", "labels")
        label = (tmp_path / inner).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)
    save(image.parent / "empty.jpg")
    data = opened(tmp_path)
    assert data.kind == "yolo"
    assert {r.id.rpartition("/")[2]: r.split for r in data.records} == {
        "train": "train",
        "val": "val",
        "empty": "val",
    }
    canvas = Image.new("1", SIZE[::-1])
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in CONTOUR], fill=1, outline=1)
    by_name = {record.id.rpartition("/")[2]: index for index, record in enumerate(data.records)}
    np.testing.assert_array_equal(mask(data, by_name["train"]), np.asarray(canvas))
    assert not mask(data, by_name["empty"]).any()
    assert not mask(opened(tmp_path, labels=["cell"]), by_name["val"]).any()
    label.write_text("0 12 14 30 14 20 33\n")
    with pytest.raises(DataError, match=r"val\.jpg: line 1 is in pixels; YOLO's .* shares, 0 to 1"):
        opened(tmp_path)
    label.write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"val\.jpg: line 1 is a box; export segments"):
        opened(tmp_path)


def voc_mask(labels_HW: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels_HW.astype(np.uint8), mode="P")
    image.putpalette([part for one in range(256) for part in _voc_colour(one).to_bytes(3)])
    return image


@pytest.mark.parametrize("by", ["voc", "labelme2voc"])
def test_voc_layouts(tmp_path: Path, by: str) -> None:
    """The lists are the split, 255 doesn't count, classes have names, the rest is left out."""
    home = tmp_path / "VOCdevkit" / "VOC2012" if by == "voc" else tmp_path
    labels_HW = np.where(DISC, 15 if by == "voc" else 2, 0)
    labels_HW[0] = 255
    labels_HW[40:44, 3:9] = 1
    for name in ("a", "b", "c", "d"):
        save(home / "JPEGImages" / f"{name}.jpg")
    folder = "SegmentationClass" if by == "voc" else "SegmentationClassPNG"
    for name in ("a", "b", "c"):
        save(home / folder / f"{name}.png", voc_mask(labels_HW))
    if by == "voc":
        lists = home / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a\nb\n")
        (lists / "val.txt").write_text("c\nd\n")
        (lists / "trainval.txt").write_text("a\nb\nc\nd\n")
    else:
        (home / "class_names.txt").write_text("_background_\ndirt\nperson\n")
        (home / "SegmentationClass").mkdir()
        np.save(home / "SegmentationClass" / "a.npy", labels_HW)
    data = opened(tmp_path)
    assert data.kind == "voc"
    splits = ["train", "train", "val"] if by == "voc" else [None] * 3
    assert [record.split for record in data.records] == splits
    assert any("1 image without mask left out" in note for note in data.notes)
    assert mask(data).sum() == DISC.sum() + 24, "all classes are foreground"
    one = opened(tmp_path, labels=["person"])
    np.testing.assert_array_equal(mask(one), DISC)
    assert not read_sample(one.records[0], one.rule).valid_HW[0].any()


def test_nnunets_channel_files(tmp_path: Path) -> None:
    """A file for each channel: they are joined in order; labels go by their names in the JSON."""
    home = tmp_path / "Dataset001_cell"
    for case in ("cell_000", "cell_001"):
        for channel in range(2):
            level = np.full(SIZE, 10 * channel + 5, np.uint8)
            save(home / "imagesTr" / f"{case}_{channel:04d}.png", level)
        save(home / "labelsTr" / f"{case}.png", DISC.astype(np.uint8) * 2)
    labels = {"background": 0, "rim": 1, "cell": 2}
    (home / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".png"}))
    data = opened(tmp_path, labels=["cell"])
    assert data.kind == "nnunet"
    sample = read_sample(data.records[0], data.rule)
    assert sample.image_HWC[0, 0].tolist() == [5, 15]
    np.testing.assert_array_equal(mask(data), DISC)
    (home / "imagesTr" / "cell_001_0001.png").unlink()
    with pytest.raises(DataError, match="lack a channel: cell_001"):
        opened(tmp_path)
    for path in (home / "labelsTr").iterdir():
        path.rename(path.with_suffix(".mha"))
    with pytest.raises(DataError, match=r"labelsTr/ holds no images \(\.mha\)"):
        opened(tmp_path)


def test_mmsegs_folders_are_splits(tmp_path: Path) -> None:
    """`img_dir/train` beside `ann_dir/train`: pairs by name, splits by folder."""
    for split in ("train", "val"):
        save(tmp_path / "img_dir" / split / f"{split}.jpg")
        save(tmp_path / "ann_dir" / split / f"{split}.png", DISC.astype(np.uint8))
    data = opened(tmp_path)
    assert sorted(str(record.split) for record in data.records) == ["train", "val"]
    np.testing.assert_array_equal(mask(data), DISC)


def runs_of(mask_HW: np.ndarray) -> str:
    """Kaggle's starts and lengths, from pycocotools' run lengths of the same order."""
    packed = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    plain = coco_mask.decode(packed).T.ravel()
    edges = np.flatnonzero(np.diff(plain.astype(int), prepend=0, append=0))
    return " ".join(f"{a + 1} {b - a}" for a, b in zip(edges[::2], edges[1::2], strict=True))


def test_kaggles_run_lengths(tmp_path: Path) -> None:
    """Several rows of an image are united, an empty one says that there is nothing."""
    left, right = DISC.copy(), DISC.copy()
    left[:, 30:] = right[:, :30] = False
    for name in ("a", "b"):
        save(tmp_path / "train" / f"{name}.jpg")
    rows = [f"a.jpg,{runs_of(left)}", f"a.jpg,{runs_of(right)}", "b,"]
    path = tmp_path / "train.csv"
    path.write_text("\n".join(["ImageId,EncodedPixels", *rows]))
    for given in (tmp_path, path):
        data = opened(given)
        assert data.kind == "kaggle"
        np.testing.assert_array_equal(mask(data, 0), DISC)
        assert not mask(data, 1).any()
    path.write_text("ImageId,EncodedPixels\na,3000 100\nb,5 3 6 2\n")
    with pytest.raises(DataError, match=r"leave its 48x64 pixels.*b has run lengths that over"):
        opened(tmp_path)
    for odd in ("7", "1 50 200", "1 x"):
        path.write_text(f"ImageId,EncodedPixels\na,{odd}\nb,\n")
        with pytest.raises(DataError, match="unreadable run lengths, which are pairs"):
            opened(tmp_path)


def coco(image: str, segmentation: object) -> str:
    return json.dumps(
        {
            "images": [{"id": 1, "file_name": image, "height": SIZE[0], "width": SIZE[1]}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 7, "segmentation": segmentation}
            ],
            "categories": [{"id": 7, "name": "cell"}, {"id": 0, "name": "things"}],
        }
    )


@pytest.mark.parametrize("layout", ["roboflow", "instances"])
def test_coco_with_splits(tmp_path: Path, layout: str) -> None:
    """A file for each split, as Roboflow and COCO itself have them; images may share a name."""
    points = [[float(value) for point in CONTOUR for value in point]]
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        if layout == "roboflow":
            home = tmp_path / {"train": "train", "val": "valid"}[split]
            save(home / "1.jpg")
            file = home / "_annotations.coco.json"
        else:
            save(tmp_path / folder / "1.jpg")
            file = tmp_path / "annotations" / f"instances_{folder}.json"
            file.parent.mkdir(exist_ok=True)
            (file.parent / f"captions_{folder}.json").write_text('{"images": []}')
        file.write_text(coco("1.jpg", points))
    data = opened(tmp_path)
    assert data.kind == "coco"
    assert [(record.id, record.split) for record in data.records] == [
        ("train/1", "train"),
        ("val/1", "val"),
    ]
    assert {record.image_path.parent.name[:3] for record in data.records} == {"tra", "val"}
    expected = coco_mask.decode(coco_mask.frPyObjects(points, *SIZE))[:, :, 0] > 0
    assert (mask(data) ^ expected).sum() < 0.02 * expected.sum()
    assert mask(opened(tmp_path, labels=["cell"])).any()


def test_overlapping_parts_are_united(tmp_path: Path) -> None:
    """Two parts of an object that overlap are their union, as pycocotools has it."""
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    parts = [
        np.stack([x + 14.3 * np.cos(turns), 22.2 + 12.1 * np.sin(turns)], axis=1).ravel().tolist()
        for x in (22.4, 36.4)
    ]
    save(tmp_path / "a.png")
    (tmp_path / "coco.json").write_text(coco("a.png", parts))
    ours = mask(opened(tmp_path))
    theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *SIZE))) > 0
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97
    assert ours[22, 29]


@pytest.mark.parametrize("size", [SIZE, (60, 60)])
@pytest.mark.parametrize("order", ["F", "C"])
def test_run_lengths_go_as_their_outlines_tell(
    tmp_path: Path, size: tuple[int, int], order: str
) -> None:
    """Some contests count along rows, others down columns: the objects' edges say which."""
    random, rows, truths = np.random.default_rng(0), ["ImageId,EncodedPixels"], []
    for number in range(4):
        y, x = np.mgrid[: size[0], : size[1]]
        truth = np.hypot(y - 14, x - 26 - 3 * number) < 8 + number
        pixels = (100 + 60 * truth + random.normal(0, 8, size)).clip(0, 255).astype(np.uint8)
        save(tmp_path / f"{number}.png", pixels)
        rows.append(f"{number}.png,{runs_of(truth if order == 'F' else truth.T)}")
        truths.append(truth)
    (tmp_path / "train.csv").write_text("\n".join(rows))
    data = opened(tmp_path)
    for index, truth in enumerate(truths):
        np.testing.assert_array_equal(mask(data, index), truth)
    way = "along the rows" if order == "C" else "down the columns"
    assert any(f"run lengths go {way}" in note for note in data.notes)


def test_cvats_segmentation_masks_name_their_colours(tmp_path: Path) -> None:
    """`labelmap.txt` says which colour is which class, so that one can be chosen by name."""
    colours_HW3 = np.where(DISC[..., None], (250, 50, 83), 0).astype(np.uint8)
    colours_HW3[:3] = (10, 200, 30)
    for name in ("a", "b"):
        save(tmp_path / "JPEGImages" / f"{name}.jpg")
        save(tmp_path / "SegmentationClass" / f"{name}.png", colours_HW3)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "disc:250,50,83::"]
    (tmp_path / "labelmap.txt").write_text("\n".join([*lines, "rim:10,200,30::"]))
    np.testing.assert_array_equal(mask(opened(tmp_path, labels=["disc"])), DISC)
    assert mask(opened(tmp_path)).sum() == (colours_HW3.max(axis=2) > 0).sum()
    with pytest.raises(DataError, match=r"names dust; there are disc, rim"):
        opened(tmp_path, labels=["dust"])


def test_boxes_among_yolos_segments_are_said(tmp_path: Path) -> None:
    """Oriented boxes are written like segments of four corners."""
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cell]")
    save(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .1 .1 .5 .1 .5 .9 .1 .9\n")
    assert any("four corners" in note for note in opened(tmp_path).notes)


def test_yolos_lists_name_images_that_are_there(tmp_path: Path) -> None:
    """An image of a list that isn't there is an error: it would be missing without a word."""
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cell]")
    for name in ("train", "val"):
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"{name}.png\n")
    (tmp_path / "val.txt").write_text("val.png\n/home/other/c.png\n")
    with pytest.raises(DataError, match=r"val\.txt: 1 of its images are not there: /home/other/c"):
        opened(tmp_path)


@pytest.mark.parametrize("colour", [(255, 255, 255), (128, 0, 0)])
def test_masks_in_vocs_folders_need_not_be_vocs(tmp_path: Path, colour: tuple[int, ...]) -> None:
    """Without a palette or names the values mean what they mean in any folder."""
    save(tmp_path / "JPEGImages" / "a.jpg")
    pixels = np.where(DISC[..., None], colour, 0).astype(np.uint8)
    save(tmp_path / "SegmentationClass" / "a.png", pixels)
    np.testing.assert_array_equal(mask(opened(tmp_path)), DISC)


def test_nnunets_regions_are_several_values(tmp_path: Path) -> None:
    """A region is chosen by name, and stands for all its values."""
    save(tmp_path / "imagesTr" / "a_0000.png", np.zeros(SIZE, np.uint8))
    labels_HW = DISC * np.where(np.arange(SIZE[1]) < 30, 1, 2)
    save(tmp_path / "labelsTr" / "a.png", labels_HW.astype(np.uint8))
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    np.testing.assert_array_equal(mask(opened(tmp_path, labels=["whole"])), DISC)
    np.testing.assert_array_equal(mask(opened(tmp_path, labels=["core"])), labels_HW == 2)


def test_names_in_vocs_lists_may_have_spaces(tmp_path: Path) -> None:
    """The lists of a class say 1 or -1 behind each name; a name with a space isn't one of these."""
    for name in ("a b", "c", "a"):
        save(tmp_path / "JPEGImages" / f"{name}.jpg")
        save(tmp_path / "SegmentationClass" / f"{name}.png", voc_mask(DISC * 15))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a b\n")
    (lists / "val.txt").write_text("c  1\n")
    splits = {record.id: record.split for record in opened(tmp_path).records}
    assert splits == {"a b": "train", "c": "val"}


def test_a_place_of_yolo_that_no_file_can_have_is_one_short_line(tmp_path: Path) -> None:
    """The system refuses a name of thousands of letters before it looks for it."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    long = "images " * 60
    (tmp_path / "data.yaml").write_text(f"train: {long}\nval: {long}\nnames: [x]\n", "utf-8")
    with pytest.raises(DataError, match="too long") as caught:
        open_dataset(DataConfig(path=str(tmp_path)))
    assert len(str(caught.value)) < 200
