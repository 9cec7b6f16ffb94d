"""Exports of annotation tools: one scene in each tool's form gives the same pixels."""

import base64
import io
import json
import shutil
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from binseg.config.recipe import DataConfig
from binseg.data import Dataset, open_dataset, read_sample
from binseg.data.sources.tools import runs_of_brush
from binseg.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # pycocotools
SIZE = (48, 64)
CONTOUR = [(20, 8), (31, 10), (40, 19), (37, 30), (22, 35), (12, 27), (11, 15)]
"""Whole pixels, as a traced contour has."""
DRAWN = [(20.4, 8.7), (31.2, 10.1), (40.9, 19.6), (37.3, 30.2), (22.8, 35.5), (12.1, 27.9)]
"""Fractions of pixels, as a mouse draws."""


def filled(points: list[tuple[int, int]]) -> np.ndarray:
    """The contour's pixels, those under its outline too, as OpenCV and labelme fill it."""
    image = Image.new("1", SIZE[::-1])
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=1, outline=1)
    return np.asarray(image)


def drawn() -> np.ndarray:
    """What pycocotools makes of the outline that was drawn."""
    flat = [value for point in DRAWN for value in point]
    return np.asarray(coco_mask.decode(coco_mask.frPyObjects([flat], *SIZE))[:, :, 0] > 0)


def opened(root: Path, **options: object) -> Dataset:
    return open_dataset(DataConfig.model_validate({"path": str(root), **options}))


def mask(data: Dataset, index: int = 0) -> np.ndarray:
    mask_HW = read_sample(data.records[index], data.rule).mask_HW
    assert mask_HW is not None
    return mask_HW


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "a.jpg") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
        return path

    return make


Photo = Callable[..., Path]


def png(mask_HW: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, format="PNG")
    return buffer.getvalue()


def cvat(points: list[Any], *, label: str = "cell") -> str:
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return f'<polygon label="{label}" points="{text}"/>'


def write_cvat(root: Path, *shapes: str, subset: str = "") -> None:
    mark = f' subset="{subset}"' if subset else ""
    (root / "annotations.xml").write_text(
        '<?xml version="1.0"?><annotations><version>1.1</version>'
        f'<image id="0" name="a.jpg" width="64" height="48"{mark}>{"".join(shapes)}</image>'
        "</annotations>"
    )


def test_cvat_polygons_boxes_and_masks(photo: Photo, tmp_path: Path) -> None:
    """A traced contour is filled with its outline, a drawn one as pycocotools does."""
    photo("images/a.jpg")
    write_cvat(tmp_path, cvat(CONTOUR))
    data = opened(tmp_path)
    assert data.kind == "cvat"
    np.testing.assert_array_equal(mask(data), filled(CONTOUR))
    write_cvat(tmp_path, cvat(DRAWN))
    assert (mask(opened(tmp_path)) ^ drawn()).sum() < 0.04 * drawn().sum()
    write_cvat(tmp_path, '<box label="a" xtl="3" ytl="4" xbr="13" ybr="9"/>')
    assert mask(opened(tmp_path)).sum() == 50
    runs = '<mask label="a" rle="2, 3, 3, 2" left="5" top="6" height="2" width="5"/>'
    write_cvat(tmp_path, runs)
    expected = np.zeros(SIZE, bool)
    expected[6, 7:10] = expected[7, 8:10] = True
    np.testing.assert_array_equal(mask(opened(tmp_path)), expected)


def test_cvats_broken_runs_and_foreign_files_are_one_line(photo: Photo, tmp_path: Path) -> None:
    """Runs that don't fit, entities and cut files name the file."""
    photo()
    write_cvat(tmp_path, '<mask label="a" rle="2, 3" left="5" top="6" height="2" width="5"/>')
    with pytest.raises(DataError, match=r"annotations\.xml: has run lengths that don't add up"):
        opened(tmp_path)
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"annotations\.xml: is no XML"):
        opened(tmp_path)


def percent(points: list[Any]) -> list[list[float]]:
    return [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in points]


def label_studio(kind: str, **value: object) -> list[dict[str, Any]]:
    result = {
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "from_name": "label",
        "to_name": "image",
        "type": kind,
        "value": {**value, kind: ["cell"]},
    }
    return [
        {
            "id": 1,
            "annotations": [{"result": [result]}],
            "file_upload": "5f3c0007-a.jpg",
            "data": {"image": "/data/upload/1/5f3c0007-a.jpg"},
        }
    ]


def pack(values: np.ndarray) -> list[int]:
    """Label Studio's packing, written anew from its description: 8-bit words, runs of up to 16."""
    bits = f"{len(values):032b}{7:05b}" + f"{3:04b}" * 4
    for start in range(0, len(values), 16):
        part = values[start : start + 16]
        if (part == part[0]).all():
            bits += "1" + "00" + f"{len(part) - 1:04b}" + f"{part[0]:08b}"
        else:
            bits += "0" + "00" + f"{len(part) - 1:04b}" + "".join(f"{v:08b}" for v in part)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def test_label_studio_polygons_and_brushes(photo: Photo, tmp_path: Path) -> None:
    """Percent become pixels; a brush gives the very pixels that were painted."""
    photo("images/a.jpg")
    path = tmp_path / "project.json"
    path.write_text(json.dumps(label_studio("polygonlabels", points=percent(CONTOUR))))
    data = opened(tmp_path)
    assert data.kind == "label-studio"
    np.testing.assert_array_equal(mask(data), filled(CONTOUR))
    painted = np.zeros((*SIZE, 4), np.uint8)
    painted[drawn()] = (9, 8, 7, 255)
    rle = pack(painted.ravel())
    np.testing.assert_array_equal(runs_of_brush(rle), painted.ravel())
    path.write_text(json.dumps(label_studio("brushlabels", format="rle", rle=rle)))
    np.testing.assert_array_equal(mask(opened(tmp_path)), drawn())
    path.write_text(json.dumps(label_studio("brushlabels", format="rle", rle=rle[:50])))
    with pytest.raises(DataError, match="a brush that ends too early"):
        opened(tmp_path)


def test_via_regions(photo: Photo, tmp_path: Path) -> None:
    """A project of the VGG annotator: polygons and rectangles, and labels chosen by name."""
    photo()
    xs, ys = zip(*CONTOUR, strict=True)
    regions = [
        {
            "shape_attributes": {"name": "polygon", "all_points_x": xs, "all_points_y": ys},
            "region_attributes": {"type": "cell"},
        },
        {
            "shape_attributes": {"name": "rect", "x": 50, "y": 40, "width": 5, "height": 4},
            "region_attributes": {"type": "dirt"},
        },
    ]
    entry = {"a.jpg99": {"filename": "a.jpg", "size": 99, "regions": regions}}
    for content in (entry, {"_via_settings": {}, "_via_img_metadata": entry}):
        (tmp_path / "via.json").write_text(json.dumps(content))
        assert mask(opened(tmp_path)).sum() == filled(CONTOUR).sum() + 20
        chosen = opened(tmp_path, labels=["dirt"])
        assert chosen.kind == "via"
        assert mask(chosen).sum() == 20
    with pytest.raises(DataError, match=r"data\.labels names dust, .*there are cell, dirt"):
        opened(tmp_path, labels=["dust"])


def test_supervisely_polygons_and_bitmaps(photo: Photo, tmp_path: Path) -> None:
    """Objects of a project; dataset folders called train and val are the split."""
    for split in ("train", "val"):
        photo(f"{split}/img/{split}.jpg")
        origin = [10, 8]
        inner = drawn()[8:40, 10:45]
        bitmap = {"data": base64.b64encode(zlib.compress(png(inner))).decode(), "origin": origin}
        objects = {
            "train": {"geometryType": "polygon", "points": {"exterior": CONTOUR, "interior": []}},
            "val": {"geometryType": "bitmap", "bitmap": bitmap},
        }
        ann = tmp_path / split / "ann" / f"{split}.jpg.json"
        ann.parent.mkdir(parents=True)
        ann.write_text(
            json.dumps(
                {
                    "size": {"height": SIZE[0], "width": SIZE[1]},
                    "objects": [{"classTitle": "cell", **objects[split]}],
                }
            )
        )
    (tmp_path / "meta.json").write_text('{"classes": []}')
    data = opened(tmp_path)
    assert data.kind == "supervisely"
    assert [record.split for record in data.records] == ["train", "val"]
    np.testing.assert_array_equal(mask(data, 0), filled(CONTOUR))
    np.testing.assert_array_equal(mask(data, 1), drawn())


@pytest.mark.parametrize("version", [1, 2])
def test_v7_polygons_with_holes(photo: Photo, tmp_path: Path, version: int) -> None:
    """Darwin's JSON in both versions; a further path is a hole."""
    photo("images/a.jpg")
    hole = [(20.5, 15.5), (26.5, 15.5), (26.5, 20.5), (20.5, 20.5)]
    paths = [[{"x": x, "y": y} for x, y in ring] for ring in (CONTOUR, hole)]
    size = {"width": SIZE[1], "height": SIZE[0]}
    content: dict[str, Any]
    if version == 2:
        content = {
            "item": {"name": "a.jpg", "slots": [{"slot_name": "0", **size}]},
            "annotations": [{"name": "cell", "polygon": {"paths": paths}}],
        }
    else:
        content = {
            "dataset": "x",
            "image": {"filename": "a.jpg", **size},
            "annotations": [
                {"name": "cell", "polygon": {"path": paths[0], "additional_paths": paths[1:]}}
            ],
        }
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = opened(tmp_path)
    assert data.kind == "v7"
    expected = filled(CONTOUR).copy()
    expected[15:20, 20:26] = False
    assert (mask(data) ^ expected).sum() <= 11, "but for half pixels at the hole's rim"


def test_qupath_polygons(photo: Photo, tmp_path: Path) -> None:
    """GeoJSON beside its image; a ring within a polygon is a hole, and parts are united."""
    photo("slide.png")
    outer = [[4, 4], [24, 4], [24, 24], [4, 24], [4, 4]]
    inner = [[10, 10], [14, 10], [14, 14], [10, 14], [10, 10]]
    other = [[30, 30], [35, 30], [35, 36], [30, 36], [30, 30]]
    geometry = {"type": "MultiPolygon", "coordinates": [[outer, inner], [other]]}
    feature = {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"classification": {"names": ["Tumor", "deep"]}},
    }
    (tmp_path / "slide.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": [feature]})
    )
    assert mask(opened(tmp_path)).sum() == 400 - 16 + 30
    (tmp_path / "slide.geojson").write_text(json.dumps(feature))
    data = opened(tmp_path)
    assert data.kind == "qupath"
    assert mask(data).sum() == 400 - 16 + 30
    assert any("all labels (Tumor: deep)" in note for note in data.notes)


def test_scaled_coordinates_are_refused(photo: Photo, tmp_path: Path) -> None:
    """Outlines from 0 to 1 would all lie in one pixel: the line says what is wanted."""
    photo()
    write_cvat(tmp_path, cvat([(0.2, 0.3), (0.8, 0.3), (0.5, 0.9)]))
    with pytest.raises(DataError, match=r"a\.jpg: its outlines go from 0 to 0\.9; give .* pixels"):
        opened(tmp_path)


@pytest.mark.parametrize("way", ["far", "above", "scaled and a little more"])
def test_outlines_that_miss_their_image_are_refused(photo: Photo, tmp_path: Path, way: str) -> None:
    """Of another image's size or scale nothing would be left, without a word."""
    photo()
    ways: dict[str, list[Any]] = {
        "far": [(900, 900), (950, 900), (920, 960)],
        "above": [(-30, -9), (-20, -9), (-25, -2)],
        "scaled and a little more": [(0.2, 0.3), (1.2, 0.3), (0.5, 0.9)],
    }
    write_cvat(tmp_path, cvat(ways[way]))
    told = "from 0 to 1.2" if "scaled" in way else "no corner of its outlines lies in it"
    with pytest.raises(DataError, match=told):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.xml", "<annotation><object><bndbox>", "Pascal VOC's boxes.*export masks"),
        ("a.xml", "<annotations><track id='0'>", "CVAT's tracks.*CVAT for images 1.1"),
        ("a.json", '{"annotations": [{"segments_info": []}]}', "panoptic.*export instances"),
        ("a.ndjson", '{"data_row": {}}', "Labelbox's rows.*COCO"),
        ("a.json", '[{"label": [{"polygonlabels": ["a"]}]}]', "JSON-MIN: export JSON"),
        ("a.csv", "filename,region_shape_attributes", "VIA's table.*as JSON"),
        ("a.txt", "0 .1 .1 .2 .2 .3 .3 .4 .4", "YOLO's segments.*data.yaml"),
        ("a.roi", "Iout", "ImageJ's regions: save masks"),
        ("a.npz", "PK", r"NumPy's archives.*\.npy"),
    ],
)
def test_annotations_that_are_not_read_are_named(
    photo: Photo, tmp_path: Path, name: str, text: str, told: str
) -> None:
    """The line says what it is, and which export works."""
    photo()
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told):
        opened(tmp_path)


def test_images_without_an_annotation(photo: Photo, tmp_path: Path) -> None:
    """They are left out and said, or taken for empty, or refused, as `data.missing` asks."""
    photo()
    photo("b.jpg")
    write_cvat(tmp_path, cvat(CONTOUR))
    data = opened(tmp_path)
    assert [record.id for record in data.records] == ["a"]
    assert any("1 image without annotation left out (b.jpg)" in note for note in data.notes)
    both = opened(tmp_path, missing="empty")
    assert [int(mask(both, index).sum() > 0) for index in (0, 1)] == [1, 0]
    with pytest.raises(DataError, match=r"1 image without annotation \(b\.jpg\)"):
        opened(tmp_path, missing="refuse")


def test_turned_boxes_and_ellipses(photo: Photo, tmp_path: Path) -> None:
    """CVAT turns around the middle, Label Studio a box around its corner, both clockwise."""
    photo()
    write_cvat(tmp_path, '<box label="a" xtl="20" ytl="22" xbr="40" ybr="26" rotation="90"/>')
    upright = np.zeros(SIZE, bool)
    upright[14:34, 28:32] = True
    np.testing.assert_array_equal(mask(opened(tmp_path)), upright)
    write_cvat(tmp_path, '<ellipse label="a" cx="30" cy="24" rx="15" ry="4" rotation="90"/>')
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    ellipse = ((x - 30) / 4) ** 2 + ((y - 24) / 15) ** 2 < 1
    assert (mask(opened(tmp_path)) ^ ellipse).sum() < 0.03 * ellipse.sum()
    (tmp_path / "annotations.xml").unlink()
    value = {"x": 50, "y": 25, "width": 25, "height": 12.5, "rotation": 90}
    size = {"original_height": SIZE[0], "original_width": SIZE[1]}
    result = {"type": "rectanglelabels", "value": value, "from_name": "a", "to_name": "b", **size}
    (tmp_path / "a.json").write_text(
        json.dumps([{"data": {"image": "a.jpg"}, "annotations": [{"result": [result]}] * 2}])
    )
    data = opened(tmp_path)
    box = np.zeros(SIZE, bool)
    box[12:28, 26:32] = True
    np.testing.assert_array_equal(mask(data), box)
    assert any("1 earlier annotation of the same image" in note for note in data.notes)


def test_what_is_left_out_of_an_export_is_said(photo: Photo, tmp_path: Path) -> None:
    """Lines, points and cuboids are counted, whatever tool they come from."""
    photo()
    other = '<polyline label="a" points="1,1;2,2"/><cuboid label="a"/><cuboid label="a"/>'
    write_cvat(tmp_path, cvat(CONTOUR) + other)
    assert any("left out: 2 cuboid, 1 polyline" in note for note in opened(tmp_path).notes)
    write_cvat(tmp_path, other)
    with pytest.raises(DataError, match="no areas, but 2 cuboid, 1 polyline; export polygons"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"choose outlines by data\.labels"):
        opened(tmp_path, foreground=[1])


def test_parts_of_v7s_polygons_are_united(photo: Photo, tmp_path: Path) -> None:
    """Paths beside each other are two parts, also traced ones; overlapping ones leave no gap."""
    photo()
    boxes = [(8, 6, 23, 19), (40, 30, 49, 39), (18, 12, 30, 24)]
    paths = [
        [{"x": x, "y": y} for x, y in ((a, b), (c, b), (c, d), (a, d))] for a, b, c, d in boxes
    ]
    part = {"name": "cell", "polygon": {"paths": paths}}
    (tmp_path / "a.json").write_text(
        json.dumps({"item": {"name": "a.jpg", "slots": []}, "annotations": [part]})
    )
    expected = np.zeros(SIZE, bool)
    for left, top, right, bottom in boxes:
        expected[top : bottom + 1, left : right + 1] = True
    np.testing.assert_array_equal(mask(opened(tmp_path)), expected)


def test_an_area_is_chosen_by_any_of_its_labels(photo: Photo, tmp_path: Path) -> None:
    """Several labels of one area, boxes to tick, and labels that are results of their own."""
    photo()
    points = percent(CONTOUR)
    tasks = label_studio("polygonlabels", points=points)
    area = tasks[0]["annotations"][0]["result"][0]
    area["value"]["polygonlabels"] = ["dirt", "cell"]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    for label in ("cell", "dirt"):
        np.testing.assert_array_equal(mask(opened(tmp_path, labels=[label])), filled(CONTOUR))
    area |= {"type": "polygon", "id": "x", "value": {"points": points}}
    apart = {**area, "type": "labels", "value": {"points": points, "labels": ["cell"]}}
    tasks[0]["annotations"][0]["result"].append(apart)
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    np.testing.assert_array_equal(mask(opened(tmp_path, labels=["cell"])), filled(CONTOUR))
    xs, ys = zip(*CONTOUR, strict=True)
    shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    box = {"name": "rect", "x": 50, "y": 40, "width": 5, "height": 4}
    regions = [
        {"shape_attributes": shape, "region_attributes": {"sure": "no", "is": {"cell": True}}},
        {"shape_attributes": box, "region_attributes": {"sure": "yes", "is": {"background": True}}},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"a": {"filename": "a.jpg", "regions": regions}}))
    for options in ({}, {"labels": ["cell"]}):
        np.testing.assert_array_equal(mask(opened(tmp_path, **options)), filled(CONTOUR))


def test_supervisely_rectangles_go_either_way(photo: Photo, tmp_path: Path) -> None:
    """Two corners, of which any may come first; the pixels of both belong to it."""
    photo("img/a.jpg")
    (tmp_path / "ann").mkdir()
    expected = np.zeros(SIZE, bool)
    expected[6:20, 8:24] = True
    for corners in ([[8, 6], [23, 19]], [[23, 19], [8, 6]], [[8, 19], [23, 6]]):
        points = {"exterior": corners, "interior": []}
        thing = {"classTitle": "a", "geometryType": "rectangle", "points": points}
        (tmp_path / "ann" / "a.jpg.json").write_text(json.dumps({"objects": [thing]}))
        np.testing.assert_array_equal(mask(opened(tmp_path)), expected)


def test_names_with_accents_as_a_mac_writes_them(photo: Photo, tmp_path: Path) -> None:
    """One letter or a letter and its accent: a name is the same, in files and in annotations."""
    apart, whole = (unicodedata.normalize(form, "Fläche é") for form in ("NFD", "NFC"))
    photo(f"images/{apart}.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(filled(CONTOUR)).save(tmp_path / "masks" / f"{whole}.png")
    np.testing.assert_array_equal(mask(opened(tmp_path)), filled(CONTOUR))
    shutil.rmtree(tmp_path / "masks")
    write_cvat(tmp_path, cvat(CONTOUR))
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text().replace("a.jpg", f"{whole}.jpg"), encoding="utf-8")
    np.testing.assert_array_equal(mask(opened(tmp_path)), filled(CONTOUR))
