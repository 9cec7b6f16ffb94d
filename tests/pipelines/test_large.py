"""Huge images and stacks, from disk to disk: right, whole, and to be interrupted at any time."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from binseg.errors import BinsegError, ImageError, OutputError, UsageError
from binseg.imageio import Layout, needs_windows
from binseg.imageio.windows import open_windows
from binseg.inference import ModelPredictor, PredictOptions, journal, tiling
from binseg.inference.engine import by_parts
from binseg.inference.large import predict_large
from binseg.inference.quality import Judge
from binseg.inference.sinks import FolderSink, Written
from binseg.inference.sources import Failure, InputImage
from binseg.inference.tiling import Bands, page_layout
from binseg.packaging import Knowledge
from binseg.pipelines.cluster import ModelFiles, _compute
from binseg.postprocess import PostProcessing, clean
from binseg.progress import Silent
from binseg.types import Preprocessing

HEIGHT, WIDTH = 700, 600
LOWER, HALF = PredictOptions(threshold=0.3), PredictOptions(scale=0.5)


class Blur:
    """A network of a kind, which can be told to stop after some batches."""

    name = "blur cpu"
    precision = "fp32"

    def __init__(self, stop_after: int | None = None, wait: float = 0.0) -> None:
        self.left = stop_after
        self.wait = wait
        self.num = 0

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """Bright surroundings are foreground."""
        self.num += 1
        time.sleep(self.wait)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        blurred_NHW = ndimage.uniform_filter(inputs_NCHW.mean(axis=1), (0, 9, 9))
        return np.asarray(blurred_NHW * np.float32(4))


def model(backend: Blur | None = None, **settings: Any) -> ModelPredictor:
    """A predictor that takes tiles of 128, unless told otherwise."""
    shape = Preprocessing(height=128, width=128, resize="tile", mean=(0.5,) * 3, std=(0.25,) * 3)
    return ModelPredictor(
        backend=backend or Blur(),
        preprocessing=replace(shape, **settings),
        threshold=0.6,
        bundle_id="blur",
    )


def low_bands(height: int, width: int) -> Layout:
    """Bands of 128 rows."""
    return replace(page_layout(height, width), tile=128)


class Heard(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def pages() -> np.ndarray:
    """Three pages of smooth noise with specks, grey."""
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.normal(size=(3, HEIGHT, WIDTH)), (0, 6, 6))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.asarray(smooth * 255, np.uint8)


@pytest.fixture
def path(pages: np.ndarray, tmp_path: Path) -> Path:
    """One page as a tiled file."""
    tifffile.imwrite(
        tmp_path / "in.tif", pages[0], tile=(64, 64), compression="zlib", photometric="minisblack"
    )
    return tmp_path / "in.tif"


@pytest.fixture
def stack(pages: np.ndarray, tmp_path: Path) -> Path:
    """All pages in one file."""
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    return tmp_path / "stack.tif"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_mask_is_that_of_predict(path: Path, tmp_path: Path) -> None:
    """An image read by windows has the mask and the probability of `Predictor.predict`."""
    predictor = model()
    wanted = predictor.predict(path)
    result = predict_large(
        predictor, path, out=tmp_path / "out.tif", probability="float32", whole_pixels=0
    )
    mask_HW = tifffile.imread(tmp_path / "out.tif")
    np.testing.assert_array_equal(mask_HW, wanted.mask * np.uint8(255))
    found_HW = tifffile.imread(tmp_path / "out_probability.tif")
    np.testing.assert_allclose(found_HW, wanted.probability, rtol=0, atol=1e-6)
    assert result.foreground == wanted.mask.mean()
    assert mask_HW.shape == (HEIGHT, WIDTH)
    assert result.mask == tmp_path / "out.tif"
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "in.tif", "out.tif", "out_probability.tif",
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "step"), [("uint8", 0.5 / 255), ("float16", 5e-4)])
def test_probabilities_in_few_bits(kind: str, step: float, path: Path, tmp_path: Path) -> None:
    """Stored in 8 or 16 bits, a probability is off by rounding alone."""
    predictor = model()
    predict_large(predictor, path, out=tmp_path / "out.tif", probability=kind, whole_pixels=0)  # type: ignore[arg-type]
    found_HW = tifffile.imread(tmp_path / "out_probability.tif")
    assert found_HW.dtype == kind
    scaled_HW = found_HW / np.float32(255 if kind == "uint8" else 1)
    wanted_HW = predictor.predict(path).probability
    assert np.abs(scaled_HW.astype(np.float32) - wanted_HW).max() <= step + 1e-6


@pytest.mark.parametrize("small", [False, True])
def test_a_stack_gives_a_stack(*, small: bool, stack: Path, tmp_path: Path) -> None:
    """Every page has its mask, on the page of the same number."""
    assert needs_windows(stack)
    predictor = model()
    limit = 10**9 if small else 0  # read whole, or by windows
    predict_large(predictor, stack, out=tmp_path / "out.tif", whole_pixels=limit)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert len(file.pages) == 3
        for page in range(3):
            wanted_HW = predictor.predict(stack, page=page).mask
            np.testing.assert_array_equal(file.pages[page].asarray(), wanted_HW * np.uint8(255))


def test_pages_of_several_sizes(pages: np.ndarray, tmp_path: Path) -> None:
    """Pages keep their own sizes, down to a single pixel; a Zarr array can't hold them."""
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        for page_HW in (pages[0], pages[1, :50, :30], pages[2, :1, :1]):
            writer.write(page_HW, photometric="minisblack", metadata=None)
    predict_large(model(), tmp_path / "in.tif", out=tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert [page.shape for page in file.pages] == [(HEIGHT, WIDTH), (50, 30), (1, 1)]
    pytest.importorskip("zarr")
    with pytest.raises(UsageError, match="several sizes"):
        predict_large(model(), tmp_path / "in.tif", out=tmp_path / "out.zarr")


@pytest.mark.parametrize("mode", ["tile", "stretch"])
def test_interrupted_work_goes_on_to_the_same_bytes(mode: str, stack: Path, tmp_path: Path) -> None:
    """Whenever it stops, nothing is under the final name, and the next call ends as if unbroken."""
    settings: dict[str, Any] = {"resize": mode, "height": 128}
    predict_large(
        model(**settings), stack, out=tmp_path / "whole.tif", probability="uint8", whole_pixels=0
    )
    out = tmp_path / "out.tif"
    heard = Heard()
    for stop_after in (3, 3) if mode == "stretch" else (6, 12):
        with pytest.raises(KeyboardInterrupt):
            predict_large(
                model(Blur(stop_after), **settings), stack, out=out, probability="uint8",
                progress=heard, whole_pixels=0,
            )  # fmt: skip
        assert not out.exists()
    last = model(**settings)
    result = predict_large(
        last, stack, out=out, probability="uint8", progress=heard, whole_pixels=0
    )
    assert 0 < result.num_resumed < result.num_bands
    assert any("going on after" in line for line in heard.lines)
    assert sha256(out) == sha256(tmp_path / "whole.tif")
    probability = tmp_path / "out_probability.tif"
    assert sha256(probability) == sha256(tmp_path / "whole_probability.tif")
    assert not list(tmp_path.glob("*.part*"))


CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from typing import Any
from test_large import Blur, low_bands, model
from binseg.inference import large as predicting
from binseg.inference.large import predict_large
predicting.tiling.page_layout = low_bands
predict_large(model(Blur(wait=0.02)), sys.argv[2], out=Path(sys.argv[3]), whole_pixels=0)
"""


def test_kill_9_loses_one_band_at_most(stack: Path, tmp_path: Path) -> None:
    """A process that is killed leaves finished bands; the next one gives the same file."""
    out = tmp_path / "out.tif"
    part = tmp_path / "out.tif.part"
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(Path(__file__).parent), str(stack), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and len(list(part.glob("0*.band"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    (part / ".tmp-torn.band").write_bytes(b"half a ba")
    result = predict_large(model(), stack, out=out, whole_pixels=0)
    assert result.num_resumed >= 3
    predict_large(model(), stack, out=tmp_path / "whole.tif", whole_pixels=0)
    assert sha256(out) == sha256(tmp_path / "whole.tif")


def begin(path: Path, out: Path) -> Path:
    """Leave work half done; give the folder of its bands."""
    with pytest.raises(KeyboardInterrupt):
        predict_large(model(Blur(6)), path, out=out, whole_pixels=0)
    part = out.with_name(out.name + ".part")
    assert list(part.glob("0*.band"))
    return part


def test_other_settings_start_again(path: Path, tmp_path: Path) -> None:
    """Bands of another threshold, image or model are thrown away, and it is said."""
    out = tmp_path / "out.tif"
    begin(path, out)
    heard = Heard()
    result = predict_large(model(), path, out=out, options=LOWER, progress=heard, whole_pixels=0)
    assert result.num_resumed == 0
    assert any("another threshold; starting again" in line for line in heard.lines)
    np.testing.assert_array_equal(
        tifffile.imread(out) > 0, model().predict(path, options=LOWER).mask
    )
    begin(path, tmp_path / "two.tif")
    begin(path, tmp_path / "three.tif")
    pixels = 255 - tifffile.imread(path)
    os.utime(path, (2, 2))  # a date says nothing of the content
    result = predict_large(model(), path, out=tmp_path / "two.tif", whole_pixels=0)
    assert result.num_resumed > 0
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="minisblack")
    heard = Heard()
    predict_large(model(), path, out=tmp_path / "three.tif", progress=heard, whole_pixels=0)
    assert any("another image; starting again" in line for line in heard.lines)


def test_resuming_can_be_refused(path: Path, tmp_path: Path) -> None:
    """Without `resume` the work starts from nothing, silently."""
    begin(path, tmp_path / "out.tif")
    heard = Heard()
    result = predict_large(
        model(), path, out=tmp_path / "out.tif", resume=False, progress=heard, whole_pixels=0
    )
    assert result.num_resumed == 0
    assert not any("again" in line for line in heard.lines)


def test_damaged_bands_are_computed_again(path: Path, tmp_path: Path) -> None:
    """A band that lost a byte isn't believed, and neither are those below it."""
    part = begin(path, tmp_path / "out.tif")
    first = min(part.glob("0*.band"))
    first.write_bytes(first.read_bytes()[:-1])
    result = predict_large(model(), path, out=tmp_path / "out.tif", whole_pixels=0)
    assert result.num_resumed == 0
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "out.tif") > 0, model().predict(path).mask
    )


def test_a_foreign_folder_is_left_alone(path: Path, tmp_path: Path) -> None:
    """A folder of somebody else under the name of ours isn't emptied."""
    foreign = tmp_path / "out.tif.part"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds thesis\.doc"):
        predict_large(model(), path, out=tmp_path / "out.tif", whole_pixels=0)
    assert (foreign / "thesis.doc").exists()


def test_objects_are_listed_across_bands(path: Path, tmp_path: Path) -> None:
    """The table is that of the whole mask, but for mean probabilities, which bands don't keep."""
    table = tmp_path / "objects.csv"
    predict_large(model(), path, out=tmp_path / "out.tif", table=table, whole_pixels=0)
    found = list(csv.DictReader(io.StringIO(table.read_text("utf-8"))))
    wanted = list(csv.DictReader(io.StringIO(model().predict(path).table())))
    assert len(found) == len(wanted) > 3
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == {name: theirs[name] for name in ours}
        assert set(theirs) - set(ours) <= {"mean_probability", "expected_dice", "quality"}


@pytest.mark.parametrize(
    "postprocessing",
    [PostProcessing(min_area=400), PostProcessing(fill_holes=300, min_area=200, largest_only=True)],
)
@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_clean_up_is_that_of_the_whole_mask(
    postprocessing: PostProcessing, suffix: str, path: Path, tmp_path: Path
) -> None:
    """Objects that cross bands are judged by their whole area, and the output says so."""
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    out = tmp_path / f"out{suffix}"
    asked = PredictOptions(**postprocessing.as_dict())  # type: ignore[arg-type]
    corrected = model().with_options(asked)
    result = predict_large(corrected, path, out=out, whole_pixels=0)
    wanted_HW = clean(model().predict(path).mask, postprocessing)
    assert np.array_equal(corrected.predict(path).mask, wanted_HW)
    assert wanted_HW.any()
    with open_windows(out) as windows:
        found_HW = windows.read(0, 0, 0, HEIGHT, WIDTH)[:, :, 0]
    np.testing.assert_array_equal(found_HW > 0, wanted_HW)
    assert result.foreground == wanted_HW.mean()
    if suffix == ".tif":
        with tifffile.TiffFile(out) as file:
            facts = json.loads(file.pages.first.description)
        assert facts["postprocess"] == postprocessing.as_dict()
        assert facts["threshold"] == 0.6


def test_zarr_in_zarr_out(pages: np.ndarray, tmp_path: Path) -> None:
    """An OME-Zarr image of layers gives an OME-Zarr mask with its axes and scales."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "in.zarr"), mode="w", zarr_format=2)
    group.create_array("0", shape=pages.shape, chunks=(1, 100, 100), dtype="uint8")[:] = pages
    axes = [{"name": one, "type": "space", "unit": "micrometer"} for one in "zyx"]
    scale = {"type": "scale", "scale": [2.0, 0.5, 0.5]}
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": axes,
            "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        }
    ]
    assert needs_windows(tmp_path / "in.zarr")
    predict_large(
        model(),
        tmp_path / "in.zarr",
        out=tmp_path / "out.zarr",
        probability="uint8",
        whole_pixels=0,
    )
    predict_large(model(), tmp_path / "in.zarr", out=tmp_path / "out.tif", whole_pixels=0)
    written = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    (levels,) = written.attrs["multiscales"]
    assert levels["axes"] == axes
    assert levels["datasets"][0]["coordinateTransformations"] == [scale]
    wanted = np.stack([model().predict(one).mask for one in pages]) * np.uint8(255)
    np.testing.assert_array_equal(written["0"][:], wanted)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), wanted)
    assert (tmp_path / "out_probability.zarr").is_dir()


def test_the_place_on_the_map_and_pixel_sizes_stay(pages: np.ndarray, tmp_path: Path) -> None:
    """A georeferenced image gives a georeferenced mask."""
    tags = [(33550, "d", 3, (0.5, 0.5, 0.0), True), (33922, "d", 6, (0, 0, 0, 100, 200, 0), True)]
    tifffile.imwrite(
        tmp_path / "in.tif", pages[0], photometric="minisblack", extratags=tags,
        resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    predict_large(model(), tmp_path / "in.tif", out=tmp_path / "out.tif")
    from binseg.imageio import read_georeference, read_pixel_size

    assert read_georeference(tmp_path / "out.tif") == read_georeference(tmp_path / "in.tif")
    size = read_pixel_size(tmp_path / "out.tif")
    assert size is not None
    assert size.width == pytest.approx(0.5)


def test_what_it_takes_is_told_before_it_starts(path: Path, tmp_path: Path) -> None:
    """Memory, disk and time come first; a shrinking model says that details are lost."""
    heard = Heard()
    predict_large(model(), path, out=tmp_path / "out.tif", progress=heard, whole_pixels=0)
    assert len(heard.lines) == 1
    assert "600 x 700 pixels" in heard.lines[0]
    for word in ("GB of memory", "GB of disk", "about", "model inputs"):
        assert word in heard.lines[0]
    heard = Heard()
    predict_large(
        model(resize="stretch", height=64, width=64), path, out=tmp_path / "two.tif", progress=heard
    )
    assert "details are lost" in heard.lines[1]


def test_names_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    """The input, files that are there, and other suffixes are refused before the work."""
    backend = Blur()
    (tmp_path / "there.tif").write_bytes(b"old")
    for out, reason in (("in.tif", "is the input"), ("there.tif", "exists"), ("out.png", ".tif")):
        with pytest.raises(UsageError, match=reason):
            predict_large(model(backend), path, out=tmp_path / out, whole_pixels=0)
    assert backend.num == 0
    predict_large(model(), path, out=tmp_path / "there.tif", overwrite=True)
    assert tifffile.imread(tmp_path / "there.tif").shape == (HEIGHT, WIDTH)


def test_a_full_disk_keeps_what_is_finished(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fills up, one line says where the finished bands are, and they are used."""
    real = journal.Journal.write

    def full(self: journal.Journal, page: int, index: int, band: journal.Band) -> None:
        if index == 1:
            raise OutputError("can't write it: No space left on device; free some space")
        real(self, page, index, band)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "write", full)
        with pytest.raises(OutputError, match=r"No space left.*finished is in.*run again"):
            predict_large(model(), path, out=tmp_path / "out.tif", whole_pixels=0)
    assert not (tmp_path / "out.tif").exists()
    result = predict_large(model(), path, out=tmp_path / "out.tif", whole_pixels=0)
    assert result.num_resumed == 1


def test_a_scale_is_for_tiles(path: Path, tmp_path: Path) -> None:
    """A scale resizes the image before it is cut into tiles; whole images have none."""
    predict_large(model(), path, out=tmp_path / "out.tif", options=HALF, whole_pixels=0)
    wanted_HW = model(scale=0.5).predict(path).mask
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif") > 0, wanted_HW)
    with pytest.raises(UsageError, match="no scale"):
        predict_large(model(resize="letterbox"), path, out=tmp_path / "two.tif", options=HALF)


def test_damaged_images_leave_no_output(path: Path, tmp_path: Path) -> None:
    """A file that is cut off gives one line and no mask."""
    data = path.read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError) as error:
        predict_large(model(), tmp_path / "cut.tif", out=tmp_path / "out.tif", whole_pixels=0)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, BinsegError)
    assert not (tmp_path / "out.tif").exists()


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has bands of few rows, so that small images have several."""
    with monkeypatch.context() as patch:
        patch.setattr(tiling, "page_layout", low_bands)
        yield


class Known(ModelPredictor):
    """A model that learnt from pixels of 1 um."""

    @property
    def judge(self) -> Judge:
        """Know nothing else."""
        known = Knowledge(
            names=("a",), centre=(0,), spread=(1,), low=(0,), high=(1,), precision=((1,),), limit=1,
            pixel_um=1.0,
        )  # fmt: skip
        return Judge(knowledge=known, preprocessing=self.preprocessing)


def test_other_processes_resize_to_the_model_s_pixels(
    pages: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands from elsewhere are those of one process, for pixels of another size, too."""
    known = Known(
        backend=Blur(),
        preprocessing=model().preprocessing,
        threshold=0.6,
        bundle_id="blur",
    )
    monkeypatch.setattr(ModelFiles, "load", lambda _: known)
    path = tmp_path / "in.tif"
    half: dict[str, Any] = {"resolution": (5000, 5000), "resolutionunit": "CENTIMETER"}  # 2 um
    tifffile.imwrite(path, pages[0], tile=(64, 64), photometric="minisblack", **half)
    options, files = PredictOptions(), ModelFiles(paths=("model",))
    masks: list[Path] = []

    def elsewhere(asked: Sequence[Bands]) -> None:
        heard.say(f"{sum(_compute(files, options, [one]) for one in asked)} bands")

    for there in (None, elsewhere):
        heard, out = Heard(), tmp_path / f"out{len(masks)}"
        image = InputImage(path=path, relative=Path("in.tif"), kind="large")
        how: Any = {"progress": heard, "elsewhere": there}
        found = by_parts(image, out / "in", known, FolderSink(out), options, **how)
        assert isinstance(found, Written)
        assert any("resized by 2" in line for line in heard.lines)
        masks.append(found.mask)
    assert "6 bands" in heard.lines
    assert masks[0].read_bytes() == masks[1].read_bytes()
    unscaled = predict_large(model(), path, out=tmp_path / "unscaled.tif").mask
    assert (tifffile.imread(unscaled) != tifffile.imread(masks[0])).any()
    path.write_bytes(path.read_bytes()[:3000])
    bad = by_parts(image, out / "bad", known, FolderSink(out), options, **how)
    assert isinstance(bad, Failure)
