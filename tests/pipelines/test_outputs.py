"""Files that other programs read, and that say what made them."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from matplotlib import path as contour
from PIL import Image, ImageCms

from binseg.config.recipe import DataConfig
from binseg.data import read_sample
from binseg.data.sources import open_dataset
from binseg.errors import ImageError, UsageError
from binseg.imageio import (
    Georeference,
    PixelSize,
    decode_image,
    read_georeference,
    read_pixel_size,
)
from binseg.inference import Prediction, PredictOptions
from binseg.inference.predict_options import EXTRA_OUTPUTS
from binseg.inference.quality import Quality
from binseg.inference.sinks import FolderSink, PredictResult
from binseg.inference.sources import InputImage
from binseg.postprocess import NOTHING, PostProcessing, trace_polygons

EVERYTHING = PredictOptions(mask_format="tif", outputs=EXTRA_OUTPUTS)
PLACE = Georeference(transform=(0.5, 0.0, 600000.0, 0.0, -0.5, 5200000.0), crs="EPSG:32632")


def answer(*, postprocessing: PostProcessing = NOTHING, **changes: object) -> Prediction:
    """Two squares, one of them small, with probability 0.9 on 0.1."""
    probability = np.full((20, 30), 0.1, np.float32)
    probability[2:10, 3:13] = 0.9
    probability[15:17, 20:22] = 0.7
    image = np.zeros((20, 30, 3), np.uint8)
    settings: dict[str, object] = {"name": "a.jpg", **changes}
    return Prediction(
        probability_HW=probability,
        threshold=0.5,
        bundle_id="abc",
        postprocessing=postprocessing,
        image_HWC=image,
        **settings,  # type: ignore[arg-type]
    )


def write_outputs(
    made: Prediction, *, stem: Path, options: PredictOptions | None = None
) -> list[Path]:
    """Write a prediction's files as a folder of masks gets them."""
    image = InputImage(path=Path("a.jpg"), relative=Path("a.jpg"))
    chosen = options or PredictOptions()
    written = FolderSink(stem.parent).write(image, made, stem, chosen)
    return [written.mask, *written.others]


def test_all_kinds_are_written_under_the_names_that_are_told(tmp_path: Path) -> None:
    """The mask comes first, and there is no other file."""
    paths = write_outputs(answer(), stem=tmp_path / "a", options=EVERYTHING)
    assert [path.name for path in paths] == [
        "a.tif", "a_overlay.png", "a_cutout.png", "a_probability.tif", "a.geojson", "a_coco.json",
        "a_objects.csv", "a_labels.tif", "a_rois.zip", "a_kaggle.csv",
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_every_output_says_what_made_it(tmp_path: Path) -> None:
    """Model, threshold and post-processing travel in the files."""
    made = answer(postprocessing=PostProcessing(min_area=5))
    expected = {**made.facts}
    nothing = {"fill_holes": 0, "largest_only": False, "separate": False}
    assert expected["postprocess"] == {"min_area": 5, **nothing}
    write_outputs(made, stem=tmp_path / "t", options=EVERYTHING)
    write_outputs(made, stem=tmp_path / "p", options=PredictOptions())
    with Image.open(tmp_path / "p.png") as png:
        assert json.loads(png.info["binseg"]) == expected
    for name in ("t.tif", "t_probability.tif"):
        with tifffile.TiffFile(tmp_path / name) as tiff:
            assert json.loads(tiff.pages.first.description) == expected
    features = json.loads((tmp_path / "t.geojson").read_text())
    assert features["binseg"] == {
        **expected,
        "coordinates": "pixels, y downwards",
        "image": "a.jpg",
    }
    assert json.loads((tmp_path / "t_coco.json").read_text())["info"] == expected


def test_the_clean_up_is_in_all_outputs(tmp_path: Path) -> None:
    """The small square is nowhere."""
    made = answer(postprocessing=PostProcessing(min_area=5))
    write_outputs(made, stem=tmp_path / "a", options=EVERYTHING)
    mask = tifffile.imread(tmp_path / "a.tif")
    assert set(np.unique(mask)) == {0, 255}
    assert (mask == 255).sum() == 80
    assert (np.asarray(Image.open(tmp_path / "a_cutout.png"))[..., 3] > 127).sum() == 80
    assert (tifffile.imread(tmp_path / "a_labels.tif") == 1).sum() == 80
    assert (tmp_path / "a_kaggle.csv").read_text().splitlines()[1].startswith("a,63 8 83 8")
    with (tmp_path / "a_objects.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["image"], row["area_px"], row["model"]) == ("a.jpg", "80", "abc")
    assert float(row["mean_probability"]) == pytest.approx(0.9)
    assert len(json.loads((tmp_path / "a_coco.json").read_text())["annotations"]) == 1


def test_an_empty_mask_gives_empty_tables(tmp_path: Path) -> None:
    """No objects: a table with its head alone, and no features."""
    made = answer(postprocessing=PostProcessing(min_area=1000))
    write_outputs(made, stem=tmp_path / "a", options=EVERYTHING)
    head, *rows = (tmp_path / "a_objects.csv").read_text().splitlines()
    assert head.startswith("image,label,area_px")
    assert not rows
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []


def test_maps_keep_their_place(tmp_path: Path) -> None:
    """Mask and probability have the image's georeference; outlines are in degrees."""
    made = answer(georeference=PLACE, pixel_size=PixelSize(height=2.0, width=0.5))
    write_outputs(made, stem=tmp_path / "a", options=EVERYTHING)
    for name in ("a.tif", "a_probability.tif", "a_labels.tif"):
        found = read_pixel_size(tmp_path / name)
        assert found is not None
        assert (found.height, found.width) == pytest.approx((2.0, 0.5), rel=1e-6)
        assert read_georeference(tmp_path / name) == PLACE
    features = json.loads((tmp_path / "a.geojson").read_text())
    assert "crs" not in features, "RFC 7946 knows degrees alone"
    (ring,) = features["features"][0]["geometry"]["coordinates"]
    pyproj = pytest.importorskip("pyproj")
    back = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32632", always_xy=True)
    corners = [back.transform(*one) for one in ring]
    assert min(np.hypot(x - 600001.5, y - 5199999.0) for x, y in corners) < 1e-3
    with (tmp_path / "a_objects.csv").open() as file:
        assert float(next(csv.DictReader(file))["area_um2"]) == 80.0


def test_places_and_pixel_sizes_of_others_are_read(tmp_path: Path) -> None:
    """GeoTIFF scale and tie point, world files, ImageJ, OME and centimetres; not inches."""
    pixels = np.zeros((4, 6), np.uint8)

    def placed(*keys: int, tie: tuple[float, float]) -> Georeference | None:
        """What is read from a GeoTIFF with these keys, four numbers each."""
        directory = (1, 1, 0, len(keys) // 4, *keys)
        tags = [
            (33550, 12, 3, (2.0, 2.0, 0.0), True),
            (33922, 12, 6, (0.0, 0.0, 0.0, *tie, 0.0), True),
            (34735, 3, len(directory), directory, True),
        ]
        tifffile.imwrite(tmp_path / "geo.tif", pixels, extratags=tags)
        return read_georeference(tmp_path / "geo.tif")

    projected, corner = (1024, 0, 1, 1, 3072, 0, 1, 25832), (100.0, 900.0)
    found = placed(*projected, tie=corner)
    assert found == Georeference(transform=(2.0, 0.0, 100.0, 0.0, -2.0, 900.0), crs="EPSG:25832")
    of_centres = placed(1025, 0, 1, 2, *projected, tie=(101.0, 899.0))
    assert of_centres == found, "the tie point is a pixel's middle"
    of_datum = placed(1024, 0, 1, 1, 2048, 0, 1, 4326, 3072, 0, 1, 32767, tie=corner)
    assert of_datum is not None
    assert (of_datum.crs, of_datum.is_geographic) == (None, False), "metres aren't degrees"
    in_degrees = placed(1024, 0, 1, 2, 2048, 0, 1, 4326, tie=corner)
    assert in_degrees is not None
    assert (in_degrees.crs, in_degrees.is_geographic) == ("EPSG:4326", True)
    Image.fromarray(pixels).save(tmp_path / "w.png")
    assert read_georeference(tmp_path / "w.png") is None
    (tmp_path / "w.pgw").write_text("2\n0\n0\n-2\n101\n899\n")
    found = read_georeference(tmp_path / "w.png")
    assert found is not None
    assert (found.transform, found.crs) == ((2.0, 0.0, 100.0, 0.0, -2.0, 900.0), None)
    tifffile.imwrite(
        tmp_path / "ij.tif", pixels, imagej=True, resolution=(4.0, 2.0), metadata={"unit": "um"}
    )
    assert read_pixel_size(tmp_path / "ij.tif") == PixelSize(height=0.5, width=0.25)
    # As Fiji writes it: the letter as an escape of six signs.
    fiji = {"unit": r"\u00B5m"}
    tifffile.imwrite(tmp_path / "f.tif", pixels, imagej=True, resolution=(4.0, 2.0), metadata=fiji)
    assert read_pixel_size(tmp_path / "f.tif") == PixelSize(height=0.5, width=0.25)
    tifffile.imwrite(
        tmp_path / "o.ome.tif",
        pixels,
        metadata={
            "axes": "YX", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "\u00b5m",
        },
    )  # fmt: skip
    assert read_pixel_size(tmp_path / "o.ome.tif") == PixelSize(height=0.5, width=0.25)
    for unit, expected in (("CENTIMETER", PixelSize(height=1.0, width=0.5)), ("INCH", None)):
        tifffile.imwrite(tmp_path / "r.tif", pixels, resolution=(20000, 10000), resolutionunit=unit)
        assert read_pixel_size(tmp_path / "r.tif") == expected
    for name in ("ij.tif", "o.ome.tif"):
        whole = read_pixel_size(tmp_path / name)
        assert read_pixel_size((tmp_path / name).read_bytes()) == whole
    assert read_pixel_size(tmp_path / "gone.tif") is None


def test_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    """What a client gets is what the disk would get."""
    made = answer()
    write_outputs(made, stem=tmp_path / "a", options=PredictOptions(outputs=("overlay", "cutout")))
    for kind, name in (("mask", "a.png"), ("overlay", "a_overlay.png"), ("cutout", "a_cutout.png")):
        data, media = made.encode(kind)
        assert media == "image/png"
        assert data == (tmp_path / name).read_bytes()
    data, _ = made.encode("probability")
    grey = decode_image(data, name="p")[..., 0]
    assert np.array_equal(grey, np.rint(made.probability * 255))
    facts = json.loads(made.encode("json")[0])
    assert (facts["num_objects"], facts["width"], facts["height"]) == (2, 30, 20)
    assert facts["foreground_share"] == pytest.approx(84 / 600)
    with pytest.raises(UsageError, match="no output 'jpg'"):
        made.encode("jpg")


def test_a_system_without_a_code_keeps_its_keys(tmp_path: Path) -> None:
    """Albers as GDAL writes it: all three tags are copied; outlines have no place, and say so."""
    keys = (1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 2, 1026, 34737, 6, 0, 3072, 0, 1, 32767)
    tags = [
        (33550, 12, 3, (30.0, 30.0, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 1000.0, 2000.0, 0.0), True),
        (34735, 3, len(keys), keys, True),
        (34736, 12, 2, (29.5, 45.5), True),
        (34737, 2, 0, "Albers|", True),
    ]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6), np.uint8), extratags=tags, metadata=None)
    place = read_georeference(tmp_path / "a.tif")
    assert place is not None
    made = answer(georeference=place)
    made.save(tmp_path / "m.tif")
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        found = file.pages.first.tags
        corners = (*keys[:11], 1, *keys[12:])  # the transform is that of pixels' corners
        assert (found[34735].value, found[34736].value) == (corners, (29.5, 45.5))
        assert found[34737].value == "Albers|"
    assert read_georeference(tmp_path / "m.tif") == replace(place, keys=place.keys)
    with pytest.raises(ImageError, match="its coordinate system has no EPSG code"):
        made.save(tmp_path / "m.geojson")


def test_masks_keep_the_size_of_a_pixel(tmp_path: Path) -> None:
    """Read back from the TIFF as it was."""
    answer(pixel_size=PixelSize(height=0.5, width=0.25)).save(tmp_path / "m.tif")
    found = read_pixel_size(tmp_path / "m.tif")
    assert found is not None
    assert (found.height, found.width) == pytest.approx((0.5, 0.25), rel=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools
def test_a_folder_has_one_file_of_all(tmp_path: Path) -> None:
    """COCO with ids of its own, as pycocotools reads it; a table, and a line an image."""
    options = PredictOptions(outputs=("coco", "table"))
    size = PixelSize(height=2.0, width=0.5)
    for name in ("a", "deep/b"):
        made = answer(name="=x.jpg", pixel_size=size)
        write_outputs(made, stem=tmp_path / name, options=options)
    FolderSink(tmp_path).finish(options, PredictResult())
    coco = pytest.importorskip("pycocotools.coco").COCO(str(tmp_path / "coco.json"))
    assert [one["file_name"] for one in coco.loadImgs(coco.getImgIds())] == [
        "=x.jpg",
        "deep/=x.jpg",
    ]
    for id_ in coco.getImgIds():
        things = coco.loadAnns(coco.getAnnIds(imgIds=[id_]))
        assert np.array_equal(sum(map(coco.annToMask, things)), answer().mask)
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["outputs"] for row in rows] == ["a", "deep/b"]
    assert {
        (row["image"], row["num_objects"], row["area_px"], row["area_um2"]) for row in rows
    } == {("'=x.jpg", "2", "84", "84")}
    with (tmp_path / "objects.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def rings(*, seed: int) -> np.ndarray:
    """Objects with holes, islands in holes, and pixels that touch at corners only."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :64]
    far = np.hypot(y - 24, x - 30)
    mask: np.ndarray = ((far > 6) & (far < 14)) | (far < 3)
    mask[2:6, 50:60] |= random.random((4, 10)) > 0.5
    return mask


@pytest.mark.parametrize("seed", range(3))
def test_imagej_reads_the_objects_again(tmp_path: Path, seed: int) -> None:
    """Regions of roifile, filled by the even-odd rule as ImageJ does, are the mask's objects."""
    roifile = pytest.importorskip("roifile")
    mask = rings(seed=seed)
    made = Prediction(probability_HW=mask.astype(np.float32), threshold=0.5, bundle_id="a")
    for _ in range(2):
        path = made.save(tmp_path / "a.zip", kind="rois")
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)
    regions = roifile.roiread(path)
    assert len(regions) == len(made.objects())
    for number, region in enumerate(regions, start=1):
        filled = np.zeros(mask.size, bool)
        for ring in region.coordinates(multi=True):
            filled ^= contour.Path(ring).contains_points(centres)
        assert np.array_equal(filled.reshape(mask.shape), made.labels() == number)


def test_run_lengths_come_back_as_kaggles(tmp_path: Path) -> None:
    """One CSV for a folder, which binseg reads as a dataset: the same pixels."""
    options = PredictOptions(outputs=("kaggle",))
    masks = {f"{seed}": rings(seed=seed) for seed in range(2)} | {"none": np.zeros((48, 64), bool)}
    masks["dots"] = np.indices((300, 400)).sum(axis=0) % 2 == 0  # a cell of 400,000 letters
    data = tmp_path / "data"
    data.mkdir()
    for name, mask in masks.items():
        made = Prediction(probability_HW=mask.astype(np.float32), threshold=0.5, bundle_id="a",
                          name=f"{name}.png")  # fmt: skip
        write_outputs(made, stem=tmp_path / "out" / name, options=options)
        Image.new("L", mask.shape[::-1]).save(data / f"{name}.png")
    FolderSink(tmp_path / "out").finish(options, PredictResult())
    (data / "train.csv").write_text((tmp_path / "out" / "kaggle.csv").read_text())
    dataset = open_dataset(DataConfig(path=str(data)))
    assert dataset.kind == "kaggle"
    for record in dataset.records:
        mask_HW = read_sample(record, dataset.rule).mask_HW
        assert mask_HW is not None
        assert np.array_equal(mask_HW, masks[record.id])


def test_touching_objects_are_cut_apart_on_request(tmp_path: Path) -> None:
    """Discs that overlap by a neck become objects of their own, lone ones stay whole."""
    y, x = np.mgrid[:60, :120]
    mask = np.zeros((60, 120), bool)
    for across, radius in ((25, 16), (52, 14), (95, 18)):
        mask |= np.hypot(y - 30, x - across) < radius
    mask[2:4, 2] = True
    for separate, num in ((False, 3), (True, 4)):
        made = Prediction(probability_HW=mask.astype(np.float32), threshold=0.5, bundle_id="a",
                          postprocessing=PostProcessing(separate=separate))  # fmt: skip
        made.save(tmp_path / "l.tif", kind="labels")
        labels = tifffile.imread(tmp_path / "l.tif")
        assert labels.dtype == np.uint16
        assert len(np.unique(labels)) - 1 == len(made.objects()) == num
        assert 0 <= mask.sum() - made.mask.sum() <= 30
        assert not (made.mask & ~mask).any()


@pytest.mark.parametrize("kind", ["RGBA", "P", "turned", "tif", "PIL"])
def test_cutouts_keep_what_was_transparent_and_the_profile(tmp_path: Path, kind: str) -> None:
    """The file's alpha multiplies the mask's, and the ICC profile of its colours stays."""
    pixels = np.full((20, 30, 4), 90, np.uint8)
    pixels[:, :8, 3], pixels[:, 8:, 3] = 0, 255
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path, image, exif = tmp_path / "a.png", Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 3 if kind == "turned" else 1
    if kind == "P":
        image = image.quantize(4)
    if kind == "tif":
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=("unassalpha",),
                         iccprofile=profile)  # fmt: skip
    else:
        image.save(path, icc_profile=profile, exif=exif)
    source = Image.open(path) if kind == "PIL" else path
    made = answer(source=source)
    alpha = made.cutout()[:, :, 3]
    kept = pixels[::-1, ::-1, 3] if kind == "turned" else pixels[:, :, 3]
    assert np.array_equal(alpha > 127, made.mask & (kept > 0))
    with Image.open(made.save(tmp_path / "c.png", kind="cutout")) as cut:
        assert cut.info["icc_profile"] == profile
    with Image.open(
        made.save(tmp_path / "w.png", kind="cutout", crop=1, background="white")
    ) as cut:
        assert (cut.mode, cut.size) == ("RGB", (21, 17))
    with pytest.raises(UsageError, match="background 'wite'"):
        made.save(tmp_path / "w.png", kind="cutout", background="wite")


@pytest.mark.parametrize("tolerance", [0.7, 1.5, 4.0])
def test_simplified_outlines_are_valid(tolerance: float) -> None:
    """Noise of pixels, with holes and corners that touch, gives valid polygons at any tolerance."""
    shapely = pytest.importorskip("shapely")
    for seed in range(6):
        mask = np.random.default_rng(seed).random((30, 30)) > 0.45
        for one in trace_polygons(mask, tolerance=tolerance):
            shape = shapely.Polygon(one.exterior, one.holes)
            assert shape.is_valid, (seed, shapely.is_valid_reason(shape))
            assert shape.area > 0


def test_the_summary_says_which_masks_to_doubt(tmp_path: Path) -> None:
    """The table of a whole folder has each image's expected Dice and its flag."""
    quality = Quality(
        expected_dice=0.35, low=0.1, high=0.6, flag="look", reason="darker", distance=0.2
    )
    options = PredictOptions(outputs=("table",))
    made = answer(judge=SimpleNamespace(quality=lambda *_: quality))
    write_outputs(made, stem=tmp_path / "a", options=options)
    FolderSink(tmp_path).finish(options, PredictResult())
    with (tmp_path / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["expected_dice"], row["quality"]) == ("0.35", "look")


def test_images_of_one_name_keep_their_own_lines(tmp_path: Path) -> None:
    """Pages of a stack and files of two folders are told apart in the tables of the whole."""
    options = PredictOptions(outputs=("kaggle", "coco"))
    for page, stem in ((0, "a-page0000"), (1, "a-page0001"), (None, "sub/a")):
        made = Prediction(probability_HW=rings(seed=1).astype(np.float32), threshold=0.5,
                          bundle_id="a", name="a.tif", page=page)  # fmt: skip
        write_outputs(made, stem=tmp_path / stem, options=options)
    FolderSink(tmp_path).finish(options, PredictResult())
    lines = (tmp_path / "kaggle.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["a-page0000", "a-page0001", "sub/a"]
    images = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert [(one["file_name"], one.get("page")) for one in images] == [
        ("a.tif", 0), ("a.tif", 1), ("sub/a.tif", None)
    ]  # fmt: skip
