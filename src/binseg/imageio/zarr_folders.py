"""OME-Zarr folders (versions 0.4 and 0.5), and plain Zarr arrays, read by windows and written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from binseg.errors import ImageError, needing
from binseg.imageio import decoding
from binseg.imageio.metadata import MICROMETRES, PixelSize

_MARKS = (".zarray", ".zgroup", ".zattrs", "zarr.json")
_MOST_CHANNELS = 16  # a plain array's last axis of up to so many is its channels
_LARGEST_CHUNK = 256_000_000

_SHARD = 16  # Chunks of a file


@dataclass(frozen=True, kw_only=True)
class ZarrAxes:
    """Axes of an array of pages x height x width; enough to write another like it."""

    names: tuple[str, ...]  # without channels, ending in y and x
    lengths: tuple[int, ...]
    units: tuple[str | None, ...]
    scales: tuple[float, ...]
    zarr_format: int


def is_zarr(path: Path) -> bool:
    """Tell whether it is a folder with Zarr's metadata in it."""
    path = Path(path)
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


class ZarrWindows:
    """The full resolution of an OME-Zarr image, or a plain array; time and layers are pages."""

    format = "ZARR"

    def __init__(self, path: Path) -> None:
        with needing("zarr", extra="zarr", purpose="reading Zarr folders"):
            import zarr
        self.name = decoding.one_line(path)
        scales: dict[str, float] = {}
        units: dict[str, str | None] = {}
        with decoding.broken_files(self.name):
            array: Any = zarr.open(str(path), mode="r")
            if isinstance(array, zarr.Array):
                axes = _plain_axes(array.shape, self.name)
            else:
                array, axes, scales, units = _image_of(array, self.name)
            self._array, self._names = array, axes
            if sorted(set(axes) - set("tczyx")) or not {"y", "x"} <= set(axes):
                raise ImageError(f"{self.name}: axes {''.join(axes)}; give some of t, c, z, y, x")
            if array.dtype.kind not in "buif":
                raise ImageError(f"{self.name}: pixels of type {array.dtype}; give numbers")
        length = dict(zip(axes, array.shape, strict=True))
        kept = tuple(name for name in axes if name != "c")
        if kept[-2:] != ("y", "x"):
            raise ImageError(f"{self.name}: axes {''.join(axes)}; y and x must come last")
        lengths, known = tuple(length[name] for name in kept), tuple(map(units.get, kept))
        steps = tuple(scales.get(name, 1.0) for name in kept)
        self._axes = ZarrAxes(
            names=kept,
            lengths=lengths,
            units=known,
            scales=steps,
            zarr_format=int(array.metadata.zarr_format),
        )
        self.axes: ZarrAxes | None = self._axes
        self.num_pages = math.prod(self._axes.lengths[:-2])
        self._channels = length.get("c", 1)
        if min(self.num_pages, self._channels, length["y"], length["x"]) < 1:
            raise ImageError(f"{self.name}: an array without pixels; leave it out")
        self._chunk = dict(zip(axes, array.chunks, strict=True))
        # All axes count: a chunk is unpacked whole, whatever part of it is asked for.
        whole = self._chunk | {"c": max(self._channels, self._chunk.get("c", 1))}
        chunk = math.prod(whole.values()) * array.dtype.itemsize
        if chunk > _LARGEST_CHUNK:
            told = f"chunks of {chunk / 1e9:,.1f} GB, which can't be read by windows"
            raise ImageError(f"{self.name}: {told}; save it in chunks of 256 x 256 to 1024 x 1024")
        self._cache = decoding.Cache()
        sizes = [MICROMETRES.get(units.get(x) or "", 0.0) * scales.get(x, 0.0) for x in "yx"]
        self.pixel_size = PixelSize(height=sizes[0], width=sizes[1]) if min(sizes) > 0 else None

    def info(self, page: int) -> decoding.ImageInfo:
        """Give size, channels and type of one page, from the metadata."""
        if not 0 <= page < self.num_pages:
            raise ImageError(f"{self.name}: there is no page {page}; it has {self.num_pages}")
        height, width = self._axes.lengths[-2:]
        return decoding.ImageInfo(
            height=height,
            width=width,
            channels=self._channels,
            dtype=decoding.given_dtype(self._array.dtype),
            mode=str(self._array.dtype),
            format=self.format,
            num_pages=self.num_pages,
        )

    def read(self, page: int, top: int, left: int, height: int, width: int) -> decoding.Pixels:
        """Read a window that lies inside the page: whole chunks, which are kept for the next."""
        out_HWC = np.empty((height, width, self._channels), decoding.given_dtype(self._array.dtype))
        with decoding.broken_files(self.name):
            grid = (self._chunk["y"], self._chunk["x"])
            decoding.fill_window(out_HWC, (top, left), grid, partial(self._part, page))
        return out_HWC

    def valid(self, page: int, top: int, left: int, height: int, width: int) -> None:
        """Tell that all pixels are data: NaN is refused."""

    def _part(self, page: int, row: int, column: int) -> decoding.Pixels:
        return self._cache.get((page, row, column), partial(self._unpack, page, row, column))

    def _unpack(self, page: int, row: int, column: int) -> decoding.Pixels:
        at: dict[str, Any] = {"c": slice(None)}
        if self._axes.names[:-2]:
            pages = np.unravel_index(page, self._axes.lengths[:-2])
            at |= {one: int(index) for one, index in zip(self._axes.names, pages, strict=False)}
        for name, index in (("y", row), ("x", column)):
            at[name] = slice(index * self._chunk[name], (index + 1) * self._chunk[name])
        part = np.asarray(self._array[tuple(at[name] for name in self._names)])
        left = [name for name in self._names if name in "cyx"]
        if "c" not in left:
            part, left = part[..., None], [*left, "c"]
        part_HWC = part.transpose([left.index(name) for name in "yxc"])
        return np.ascontiguousarray(decoding.as_given(part_HWC, name=self.name))


def _plain_axes(shape: Sequence[int], name: str) -> tuple[str, ...]:
    if len(shape) == 2:
        return ("y", "x")
    if len(shape) == 3:
        return ("y", "x", "c") if shape[2] <= _MOST_CHANNELS else ("z", "y", "x")
    raise ImageError(f"{name}: an array of {len(shape)} axes without OME-Zarr's names for them")


def _image_of(
    group: Any, name: str
) -> tuple[Any, tuple[str, ...], dict[str, float], dict[str, str | None]]:
    attributes: Mapping[str, Any] = group.attrs.asdict()
    attributes = attributes.get("ome", attributes)
    if "plate" in attributes or "well" in attributes:
        raise ImageError(f"{name}: a plate or well of many images; name one image in it")
    levels = attributes.get("multiscales")
    if not levels:
        raise ImageError(f"{name}: a Zarr group that is no OME-Zarr image; name an image in it")
    described = [one if isinstance(one, dict) else {"name": one} for one in levels[0]["axes"]]
    axes = tuple(str(one["name"]) for one in described)
    first = levels[0]["datasets"][0]
    array = group[first["path"]]
    scales = dict.fromkeys(axes, 1.0)
    steps = [
        step for one in (first, levels[0]) for step in one.get("coordinateTransformations", [])
    ]
    for step in steps:
        if step.get("type") == "scale":
            for axis, factor in zip(axes, step["scale"], strict=True):
                scales[axis] *= float(factor)
    if len(array.shape) != len(axes):
        raise ImageError(f"{name}: {len(axes)} axes named, {len(array.shape)} there; get it anew")
    return array, axes, scales, {one["name"]: one.get("unit") for one in described}


def write_zarr_metadata(
    folder: Path, axes: ZarrAxes, *, chunk: int, dtype: str, name: str, facts: Mapping[str, object]
) -> Any:
    """Make an empty OME-Zarr image (0.4 in Zarr's format 2, 0.5 in format 3); give its zeros.

    In format 3 a file holds up to 16 chunks side by side: millions of small files choke a disk.
    """
    import zarr

    is_old = axes.zarr_format == 2
    group: Any = zarr.open_group(str(folder), mode="w", zarr_format=2 if is_old else 3)
    pages = [1] * (len(axes.lengths) - 2)
    num_side_by_side = min(_SHARD, -(-axes.lengths[-1] // chunk))
    array = group.create_array(
        "0",
        shape=axes.lengths,
        chunks=(*pages, chunk, chunk),
        shards=None if is_old else (*pages, chunk, num_side_by_side * chunk),
        dtype=dtype,
        fill_value=0,
        dimension_names=None if is_old else list(axes.names),
        chunk_key_encoding={"name": "v2", "separator": "/"} if is_old else None,
    )
    types = {"t": "time", "z": "space", "y": "space", "x": "space"}
    described = [
        {"name": one, "type": types[one], **({"unit": unit} if unit else {})}
        for one, unit in zip(axes.names, axes.units, strict=True)
    ]
    scale = {"type": "scale", "scale": list(axes.scales)}
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    multiscale = {"name": name, "axes": described, "datasets": datasets}
    attributes: dict[str, Any] = {"ome": {"version": "0.5", "multiscales": [multiscale]}}
    if is_old:
        attributes = {"multiscales": [{"version": "0.4", **multiscale}]}
    group.attrs.update({**attributes, "binseg": facts})
    return array
