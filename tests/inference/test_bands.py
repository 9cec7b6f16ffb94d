"""Images beyond memory, band by band: what `Predictor.predict` says of the whole."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from binseg.errors import ImageError, UsageError
from binseg.imageio import ImageInfo
from binseg.imageio.windows import open_windows
from binseg.inference import EnsemblePredictor, ModelPredictor, PredictOptions, Predictor
from binseg.inference.tiling import live_bytes, probability_bands
from binseg.transforms.geometry import plan, tiles_for
from binseg.types import Preprocessing

HEIGHT, WIDTH = 301, 217


class Blur:
    """A network of a kind: it looks at 9 x 9 pixels, and sees zeros past its input's edges."""

    name = "blur cpu"
    precision = "fp32"

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """Bright surroundings are foreground."""
        mean_NHW = inputs_NCHW.mean(axis=1)
        blurred_NHW = ndimage.uniform_filter(mean_NHW, (0, 9, 9), mode="constant")
        return np.asarray(blurred_NHW * np.float32(3))


def model(identity: str = "blur", **settings: Any) -> ModelPredictor:
    """A predictor that takes tiles of 64, unless told otherwise."""
    shape = Preprocessing(height=64, width=64, resize="tile")
    return ModelPredictor(
        backend=Blur(),
        preprocessing=replace(shape, **settings),
        threshold=0.5,
        bundle_id=identity,
        batch_size=3,
    )


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth noise in colours."""
    noise = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3))
    smooth = ndimage.gaussian_filter(noise, (5, 5, 0))
    scaled = (smooth - smooth.min()) / np.ptp(smooth)
    return np.asarray(scaled * 60000, np.uint16)


@pytest.fixture(scope="module")
def paths(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The image as TIFF files: 8 bits, 16 bits and floats."""
    folder = tmp_path_factory.mktemp("images")
    kinds = {
        "uint8": (image >> 8).astype(np.uint8),
        "uint16": image,
        "float32": image.astype(np.float32) / np.float32(60000),
    }
    for name, pixels in kinds.items():
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb", tile=(48, 32))
    return {name: folder / f"{name}.tif" for name in kinds}


def by_bands(predictor: Predictor, path: Path, *, band: int = 48, first: int = 0) -> np.ndarray:
    """All bands of the only page, one below the other."""
    told: list[int] = []
    with open_windows(path) as windows:
        bands = probability_bands(
            predictor, windows, 0, band=band, first=first, tell=told.append, whole_pixels=0
        )
        parts = list(bands)
    assert sum(told) == HEIGHT - first * band
    assert all(num > 0 for num in told)
    assert [len(part) for part in parts[:-1]] == [band] * (len(parts) - 1)
    return np.concatenate(parts)


SETTINGS: dict[str, dict[str, Any]] = {
    "tiles": {},
    "much overlap": {"overlap": 0.7},
    "wide tiles": {"width": 96, "overlap": 0.5},
    "shrunk tiles": {"scale": 0.5},
    "enlarged tiles": {"scale": 1.7},
    "tiles larger than the image": {"height": 320, "width": 256},
    "stretch": {"resize": "stretch"},
    "letterbox": {"resize": "letterbox"},
    "enlarging stretch": {"resize": "stretch", "height": 512, "width": 512},
    "percentiles": {"intensity": "percentile"},
    "percentiles, stretch": {"resize": "stretch", "intensity": "percentile"},
    "grey": {"channels": 1, "mean": (0.4,), "std": (0.2,)},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "uint8") for name in SETTINGS), ("tiles", "uint16"), ("tiles", "float32"),
     ("stretch", "uint16"), ("percentiles", "float32"), ("percentiles, stretch", "uint16")],
)  # fmt: skip
def test_bands_are_what_the_whole_gives(name: str, kind: str, paths: dict[str, Path]) -> None:
    """However a model takes images, reading them by windows changes no probability."""
    predictor = model(**SETTINGS[name])
    whole_HW = predictor.predict(paths[kind]).probability
    np.testing.assert_allclose(by_bands(predictor, paths[kind]), whole_HW, rtol=0, atol=1e-6)


@pytest.mark.parametrize("first", [1, 6])
@pytest.mark.parametrize("mode", ["tile", "stretch"])
def test_bands_do_not_depend_on_where_the_work_began(
    mode: str, first: int, paths: dict[str, Path]
) -> None:
    """Starting at a later band gives that band and the following ones to the bit."""
    predictor = model(resize=mode)
    all_HW = by_bands(predictor, paths["uint8"])
    np.testing.assert_array_equal(
        by_bands(predictor, paths["uint8"], first=first), all_HW[first * 48 :]
    )


@pytest.mark.parametrize("band", [16, 64, 1000])
def test_any_height_of_band(band: int, paths: dict[str, Path]) -> None:
    """The bands' height only cuts the same rows elsewhere."""
    predictor = model()
    whole_HW = predictor.predict(paths["uint8"]).probability
    np.testing.assert_allclose(
        by_bands(predictor, paths["uint8"], band=band), whole_HW, rtol=0, atol=1e-6
    )


def test_small_pages_are_predicted_whole(paths: dict[str, Path]) -> None:
    """Below the limit the answer is that of `predict` to the bit."""
    predictor = model()
    with open_windows(paths["uint16"]) as windows:
        parts = list(probability_bands(predictor, windows, 0, band=100))
    np.testing.assert_array_equal(
        np.concatenate(parts), predictor.predict(paths["uint16"]).probability
    )


def test_ensembles_answer_together(paths: dict[str, Path]) -> None:
    """Members that prepare images in their own ways are averaged band by band."""
    alike = EnsemblePredictor([model("a"), model("b")])
    unlike = EnsemblePredictor([model("a"), model("b", resize="stretch"), model("c", scale=0.5)])
    for predictor in (alike, unlike):
        whole_HW = predictor.predict(paths["uint8"]).probability
        np.testing.assert_allclose(by_bands(predictor, paths["uint8"]), whole_HW, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "overlap"), [(64, 0.5), (96, 0.5), (128, 0.25)])
def test_tiles_leave_no_seam(size: int, overlap: float, paths: dict[str, Path]) -> None:
    """Where tiles overlap by twice the network's reach and their fade, they say what it says.

    Half of what tiles share, less half the fade, must reach 4 pixels here: the network looks at
    9 x 9. The image's last pixels are mirrored in tiles, and end in zeros in the whole.
    """
    predictor = model().with_options(PredictOptions(tile=size, overlap=overlap))
    whole = model(height=HEIGHT, width=WIDTH, resize="stretch").predict(paths["uint8"])
    difference_HW = np.abs(by_bands(predictor, paths["uint8"]) - whole.probability)
    assert difference_HW[:-4, :-4].max() < 1e-5


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("largest", [96, 320])
def test_images_that_fit_are_one_tile(largest: int, scale: float, paths: dict[str, Path]) -> None:
    """Sides up to the largest tile are one tile; the answer by bands is the whole one's."""
    predictor = model(largest_tile=largest, scale=scale)
    height, width = math.ceil(HEIGHT * scale), math.ceil(WIDTH * scale)
    placements = plan(HEIGHT, WIDTH, predictor.preprocessing)
    inputs = {(one.height, one.width) for one in placements}
    assert len(inputs) == 1
    ((tall, wide),) = inputs
    assert tall == max(64, min(largest, -(-height // 32) * 32))
    assert wide == max(64, min(largest, -(-width // 32) * 32))
    assert len({one.source.top for one in placements}) == 1 or height > largest
    assert len({one.source.left for one in placements}) == 1 or width > largest
    whole_HW = predictor.predict(paths["uint8"]).probability
    np.testing.assert_allclose(by_bands(predictor, paths["uint8"]), whole_HW, rtol=0, atol=1e-6)
    if scale == 1:
        fixed_HW = model(height=HEIGHT, width=WIDTH, resize="stretch").predict(paths["uint8"])
        assert np.abs(whole_HW - fixed_HW.probability)[4:-4, 4:-4].max() < 1e-5


def test_other_tiles_are_asked_for(paths: dict[str, Path]) -> None:
    """A scale multiplies the model's own, for all members; whole images have none."""
    shape = (
        model(scale=0.5).with_options(PredictOptions(scale=0.5, tile=96, overlap=0.5)).preprocessing
    )
    assert (shape.scale, shape.height, shape.width, shape.overlap) == (0.25, 96, 96, 0.5)
    large = model()
    large.preprocessing = replace(large.preprocessing, largest_tile=1024)
    more = large.with_options(PredictOptions(overlap=0.6))
    shape = tiles_for(900, 5000, more.preprocessing)
    assert (shape.height, shape.width, shape.overlap) == (928, 1024, 0.6)
    assert large.with_options(PredictOptions(tile=512)).batch_for(5000, 5000) == 1, (
        "as much memory as before"
    )
    half = PredictOptions(scale=0.5)
    both = EnsemblePredictor([model("a"), model("b", scale=2.0)]).with_options(half)
    assert [one.preprocessing.scale for one in both.members] == [0.5, 1.0]
    half_HW = model().with_options(half).predict(paths["uint8"]).probability
    assert half_HW.shape == (HEIGHT, WIDTH)
    with pytest.raises(UsageError, match="no tiles and no scale"):
        model(resize="stretch").with_options(half)
    for wrong in ({"scale": 0.0}, {"tile": 8}, {"overlap": 0.95}):
        with pytest.raises(UsageError, match="give"):
            PredictOptions(**wrong)


def test_odd_pixels_are_refused_where_they_are(tmp_path: Path) -> None:
    """Channels that don't fit, and floats beyond [0, 1], give the line that `predict` gives."""
    five, wild = tmp_path / "five.tif", tmp_path / "wild.tif"
    tifffile.imwrite(
        five, np.zeros((200, 200, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    tifffile.imwrite(wild, np.full((200, 200), 3.0, np.float32), photometric="minisblack")
    for path, reason in ((five, "channels"), (wild, "float pixels")):
        with (
            open_windows(path) as windows,
            pytest.raises(ImageError, match=reason) as error,
        ):
            list(probability_bands(model(), windows, 0, band=64, whole_pixels=0))
        assert path.name in str(error.value)


def test_work_and_memory_are_known_beforehand() -> None:
    """The number of inputs is that of the plan; memory follows the width, not the height."""
    info = ImageInfo(
        height=40_000, width=30_000, channels=3, dtype="uint8", mode="RGB", format="TIFF",
        num_pages=1,
    )  # fmt: skip
    predictor = model(height=512, width=512)
    assert predictor.num_inputs(info.height, info.width) == len(
        plan(40_000, 30_000, predictor.preprocessing)
    )
    assert live_bytes(predictor, info, band=512) < 200e6
    taller = replace(info, height=400_000)
    assert live_bytes(predictor, taller, band=512) == live_bytes(predictor, info, band=512)
