import itertools
import json

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from skimage import measure

from binseg.data.sources.coco import runs_of_text
from binseg.errors import UsageError
from binseg.postprocess import (
    Polygon,
    coco,
    encode_rle,
    find_objects,
    geojson,
    label_objects,
    trace_polygons,
)

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def filled(polygons: list[Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Draw polygons by the even-odd rule at pixel centres, on their own."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, bool)
    for polygon in polygons:
        odd = np.zeros(shape, bool)
        for ring in (polygon.exterior, *polygon.holes):
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if x0 == x1:  # pixel edges are upright or level
                    low, high = min(y0, y1), max(y0, y1)
                    odd ^= (rows + 0.5 > low) & (rows + 0.5 < high) & (columns + 0.5 < x0)
        inside |= odd
    return inside


def is_simple(ring: np.ndarray) -> bool:
    """No vertex comes twice; pixel edges can't cross elsewhere once all vertices are listed."""
    points = []
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        num = int(max(abs(x1 - x0), abs(y1 - y0)))
        points += [(x0 + (x1 - x0) * t / num, y0 + (y1 - y0) * t / num) for t in range(num)]
    return len(points) == len(set(points))


@given(MASKS)
@settings(max_examples=300)
def test_drawing_the_outlines_gives_the_mask(mask: np.ndarray) -> None:
    """At tolerance 0 nothing is lost, rings are simple, and areas add up."""
    polygons = trace_polygons(mask)
    assert np.array_equal(filled(polygons, mask.shape), mask)
    assert sum(polygon.area for polygon in polygons) == mask.sum()
    labels, num = label_objects(mask)
    assert {polygon.label for polygon in polygons} == set(range(1, num + 1))
    for polygon in polygons:
        assert all(is_simple(ring) for ring in (polygon.exterior, *polygon.holes))
        assert np.array_equal(
            filled([polygon], mask.shape) & (labels != polygon.label), np.zeros_like(mask)
        )


def test_a_ring_that_closes_at_a_corner_has_a_hole() -> None:
    """A walk that comes back to a vertex is cut into an outline and a hole."""
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    (polygon,) = trace_polygons(mask)
    assert len(polygon.holes) == 1
    assert polygon.area == 7


def test_pillow_draws_a_rectangle_alike() -> None:
    """Corners are those of pixels: x to the right, y down, from the upper left corner."""
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:9] = True
    (polygon,) = trace_polygons(mask)
    assert polygon.exterior.tolist() == [[9, 2], [9, 5], [3, 5], [3, 2]] or set(
        map(tuple, polygon.exterior.tolist())
    ) == {(3, 2), (9, 2), (9, 5), (3, 5)}
    image = Image.new("1", (10, 8))
    ImageDraw.Draw(image).rectangle((3, 2, 8, 4), fill=1)
    assert np.array_equal(np.asarray(image), mask)


@given(MASKS)
def test_objects_agree_with_scikit_image(mask: np.ndarray) -> None:
    """Areas, centres, boxes and means are those of regionprops."""
    probability = np.linspace(0, 1, mask.size, dtype=np.float32).reshape(mask.shape)
    expected = measure.regionprops(  # type: ignore[no-untyped-call]
        measure.label(mask, connectivity=2),  # type: ignore[no-untyped-call]
        probability,
    )
    found = find_objects(mask, probability)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.area == other.area
        assert (one.top, one.left) == other.bbox[:2]
        assert (one.top + one.height, one.left + one.width) == other.bbox[2:]
        centre = (one.centroid_y - 0.5, one.centroid_x - 0.5)
        assert centre == pytest.approx(other.centroid)
        assert one.mean_probability == pytest.approx(other.intensity_mean, abs=1e-5)


def test_objects_in_physical_units() -> None:
    """A pixel of 0.5 x 0.25 um has an eighth of a square micrometre."""
    (one,) = find_objects(np.ones((2, 4), bool), pixel_size=(0.5, 0.25))
    row = one.as_row()
    assert row["area_um2"] == 1.0
    assert (row["centroid_y_um"], row["centroid_x_um"]) == (0.5, 0.5)
    assert "mean_probability" not in row


@given(MASKS)
def test_run_lengths_come_back(mask: np.ndarray) -> None:
    """Our own reader, which pycocotools' files test, reads what is written."""
    encoded = json.loads(json.dumps(encode_rle(mask)))
    assert encoded["size"] == list(mask.shape)
    runs = runs_of_text(encoded["counts"])
    values = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
    assert np.array_equal(values.reshape(mask.shape, order="F"), mask)


@given(MASKS)
def test_run_lengths_are_those_of_pycocotools(mask: np.ndarray) -> None:
    """The very string that pycocotools writes."""
    expected = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask)["counts"] == expected["counts"].decode()


def test_simplified_outlines_stay_near() -> None:
    """No corner that is left out lies farther than the tolerance; a disc loses most corners."""
    rows, columns = np.mgrid[:80, :80]
    disc = (rows - 40) ** 2 + (columns - 40) ** 2 < 30**2
    (exact,), (rough,) = trace_polygons(disc), trace_polygons(disc, tolerance=1.0)
    assert len(rough.exterior) < len(exact.exterior) / 3
    assert rough.area == pytest.approx(disc.sum(), rel=0.03)
    with pytest.raises(UsageError, match="tolerance -1"):
        trace_polygons(disc, tolerance=-1)


def test_geojson_has_one_feature_an_object() -> None:
    """Parts that touch at a corner are one MultiPolygon; rings are closed and turn as asked."""
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1]], bool)
    whole = geojson(trace_polygons(mask), find_objects(mask), properties={"model": "m"})
    json.dumps(whole)
    kinds = [feature["geometry"]["type"] for feature in whole["features"]]
    assert kinds == ["MultiPolygon", "Polygon"]
    assert whole["features"][0]["properties"]["area_px"] == 2
    assert whole["binseg"] == {"coordinates": "pixels, y downwards", "model": "m"}
    (ring,) = whole["features"][1]["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    assert shoelace(ring) == 1.0


def test_geojson_in_map_coordinates() -> None:
    """North-up maps have falling y: outlines still run anticlockwise on the map."""
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    transform = (0.5, 0.0, 100.0, 0.0, -0.5, 200.0)
    whole = geojson(trace_polygons(mask), transform=transform)
    (ring,) = whole["features"][0]["geometry"]["coordinates"]
    assert {tuple(point) for point in ring} == {
        (100.5, 199.5), (101.5, 199.5), (101.5, 198.5), (100.5, 198.5),
    }  # fmt: skip
    assert shoelace(ring) == 1.0


def shoelace(ring: list[list[float]]) -> float:
    """Signed area, positive anticlockwise with y upwards."""
    pairs = itertools.pairwise(ring)
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) / 2


def test_coco_keeps_holes_as_run_lengths() -> None:
    """An object with a hole is run lengths of that object alone; others are polygons."""
    mask = np.zeros((9, 12), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    mask[2:4, 8:11] = True
    objects, polygons = find_objects(mask), trace_polygons(mask)
    whole = coco([("a.png", mask, polygons, objects)], info={"model": "m"})
    json.dumps(whole)
    ring, plain = whole["annotations"]
    alone = mask.copy()
    alone[:, 7:] = False
    assert ring["segmentation"] == encode_rle(alone)
    assert (ring["area"], ring["bbox"]) == (24, [1, 1, 5, 5])
    assert sorted(plain["segmentation"][0]) == sorted([8, 2, 11, 2, 11, 4, 8, 4])
    assert whole["images"] == [{"id": 1, "file_name": "a.png", "height": 9, "width": 12}]
