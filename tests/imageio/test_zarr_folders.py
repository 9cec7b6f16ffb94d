"""OME-Zarr folders: read by windows, and written so that others read them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binseg.errors import ImageError, MissingExtraError
from binseg.imageio import needs_windows
from binseg.imageio.windows import open_windows
from binseg.imageio.zarr_folders import ZarrAxes, write_zarr_metadata

zarr = pytest.importorskip("zarr")


def make_image(folder: Path, pixels: np.ndarray, axes: str, *, zarr_format: int = 2) -> Path:
    """Write an OME-Zarr image with the zarr package alone, as other programs would."""
    group = zarr.open_group(str(folder), mode="w", zarr_format=zarr_format)
    chunks = tuple(
        min(side, 32) if name in "yx" else 1 for name, side in zip(axes, pixels.shape, strict=True)
    )
    for level, step in (("0", 1), ("1", 2)):
        part = pixels[..., ::step, ::step]
        group.create_array(level, shape=part.shape, chunks=chunks, dtype=part.dtype)[:] = part
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": one, "type": kinds.get(one, "space")} for one in axes]
    for one in described:
        if one["name"] in "yx":
            one["unit"] = "micrometer"
    scale = {"type": "scale", "scale": [0.5 if one in "yx" else 1.0 for one in axes]}
    levels: dict[str, Any] = {
        "axes": described,
        "datasets": [
            {"path": "0", "coordinateTransformations": [scale]},
            {"path": "1", "coordinateTransformations": [scale]},
        ],
    }
    if zarr_format == 2:
        group.attrs["multiscales"] = [{"version": "0.4", **levels}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [levels]}
    return folder


def noise(*shape: int, dtype: type[np.integer[Any]] = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("axes", "shape"), [("yx", (70, 90)), ("cyx", (3, 70, 90)), ("tczyx", (2, 3, 4, 70, 90))]
)
def test_windows_of_an_image(
    axes: str, shape: tuple[int, ...], zarr_format: int, tmp_path: Path
) -> None:
    """Time points and layers are pages, in order; channels come last."""
    pixels = noise(*shape, dtype=np.uint16)
    folder = make_image(tmp_path / "a.zarr", pixels, axes, zarr_format=zarr_format)
    assert needs_windows(folder)
    channels = 3 if "c" in axes else 1
    channels_last = np.moveaxis(pixels, axes.index("c"), -1) if "c" in axes else pixels
    pages = channels_last.reshape(-1, 70, 90, channels)
    with open_windows(folder) as windows:
        assert windows.num_pages == len(pages)
        info = windows.info(0)
        assert (info.height, info.width, info.channels, info.dtype) == (70, 90, channels, "uint16")
        assert windows.pixel_size is not None
        assert windows.pixel_size.height == 0.5
        for page, page_HWC in enumerate(pages):
            for top, left, height, width in ((0, 0, 70, 90), (31, 30, 3, 60), (69, 89, 1, 1)):
                part_HWC = windows.read(page, top, left, height, width)
                wanted_HWC = page_HWC[top : top + height, left : left + width]
                np.testing.assert_array_equal(part_HWC, wanted_HWC)
        with pytest.raises(ImageError, match="no page"):
            windows.info(len(pages))


@pytest.mark.parametrize(
    ("shape", "num_pages", "channels"), [((40, 50), 1, 1), ((40, 50, 3), 1, 3), ((5, 40, 50), 5, 1)]
)
def test_plain_arrays(
    shape: tuple[int, ...], num_pages: int, channels: int, tmp_path: Path
) -> None:
    """An array without OME's names is y x, y x c, or pages of y x."""
    pixels = noise(*shape)
    zarr.create_array(str(tmp_path / "a.zarr"), data=pixels)
    with open_windows(tmp_path / "a.zarr") as windows:
        assert (windows.num_pages, windows.info(0).channels) == (num_pages, channels)
        part_HWC = windows.read(num_pages - 1, 7, 8, 30, 40)
    page = pixels[-1] if num_pages > 1 else pixels
    np.testing.assert_array_equal(part_HWC, page.reshape(40, 50, channels)[7:37, 8:48])


def test_what_is_no_image_gives_one_line(tmp_path: Path) -> None:
    """Plates, bare groups and odd axes are refused by name."""
    group = zarr.open_group(str(tmp_path / "plate.zarr"), mode="w", zarr_format=2)
    group.attrs["plate"] = {"wells": []}
    zarr.open_group(str(tmp_path / "bare.zarr"), mode="w", zarr_format=3)
    make_image(tmp_path / "odd.zarr", noise(40, 50), "xy")
    (tmp_path / "torn.zarr").mkdir()
    (tmp_path / "torn.zarr" / "zarr.json").write_text("{")
    for name, reason in (
        ("plate", "many images"), ("bare", "no OME-Zarr"), ("odd", "must come last"),
        ("torn", "damaged"),
    ):  # fmt: skip
        with (
            pytest.raises(ImageError, match=reason) as error,
            open_windows(tmp_path / f"{name}.zarr"),
        ):
            pass
        assert f"{name}.zarr" in str(error.value)
        assert "\n" not in str(error.value)


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package zarr the error names the extra that brings it."""
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with (
        pytest.raises(MissingExtraError, match=r"binseg\[zarr\]"),
        open_windows(tmp_path / "a.zarr"),
    ):
        pass


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_written_images_are_read_again(zarr_format: int, tmp_path: Path) -> None:
    """What is written has the axes, units and scales that were asked for, and the facts."""
    axes = ZarrAxes(
        names=("z", "y", "x"),
        lengths=(2, 50, 70),
        units=(None, "micrometer", "micrometer"),
        scales=(1.0, 0.5, 0.25),
        zarr_format=zarr_format,
    )
    array = write_zarr_metadata(
        tmp_path / "a.zarr", axes, chunk=32, dtype="uint8", name="a", facts={"threshold": 0.5}
    )
    pixels = noise(2, 50, 70)
    array[:] = pixels
    with open_windows(tmp_path / "a.zarr") as windows:
        assert windows.axes == axes
        np.testing.assert_array_equal(windows.read(1, 3, 4, 40, 60)[:, :, 0], pixels[1, 3:43, 4:64])
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    assert group.attrs["binseg"] == {"threshold": 0.5}
