"""Metadata of image files about the world: the size of a pixel, the place on a map."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree as ET

import tifffile

_SCALE, _TIEPOINT, _TRANSFORMATION, _KEYS = 33550, 33922, 34264, 34735
_DOUBLES, _TEXTS = 34736, 34737
_ASCII, _SHORT, _DOUBLE = 2, 3, 12
_PROJECTED, _GEOGRAPHIC, _USER_DEFINED = 3072, 2048, 32767
_MODEL_TYPE, _RASTER_TYPE, _POINT = 1024, 1025, 2
_WORLD_SUFFIXES = {".tif": ".tfw", ".tiff": ".tfw", ".jpg": ".jgw", ".jpeg": ".jgw", ".png": ".pgw"}
"""Usual ending of world files; also with a w behind the image's own, or .wld."""
MICROMETRES = {
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer"), 1.0),
    "nm": 1e-3,
    "nanometer": 1e-3,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
}
"""Lengths of units by their names in ImageJ, OME and OME-Zarr."""
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, tifffile.TiffFileError)
_Transform = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class PixelSize:
    """Height and width of a pixel in micrometres."""

    height: float
    width: float

    def per_centimetre(self) -> tuple[float, float]:
        """Count the pixels in a centimetre, across and down, as TIFF wants it."""
        return 1e4 / self.width, 1e4 / self.height


@dataclass(frozen=True, kw_only=True)
class Georeference:
    """Place of an image on a map."""

    transform: _Transform  # a to f of X = a x + b y + c and Y = d x + e y + f, for pixel corners
    crs: str | None  # Name of the coordinate system ("EPSG:32632"), where the file tells
    is_geographic: bool = False  # True for a system of degrees instead of lengths
    keys: tuple[tuple[int, int, int, Any, bool], ...] = ()  # GeoTIFF keys of a system without code

    def tags(self) -> list[tuple[int, int, int, Any, bool]]:
        """The GeoTIFF tags that say the same, as tifffile's `extratags`."""
        a, b, c, d, e, f = self.transform
        matrix = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        place = (_TRANSFORMATION, _DOUBLE, 16, matrix, True)
        if self.crs is None:
            return [place, *self.keys]
        kind, key = (2, _GEOGRAPHIC) if self.is_geographic else (1, _PROJECTED)
        code = int(self.crs.removeprefix("EPSG:"))
        keys = (1, 1, 0, 3, 1024, 0, 1, kind, 1025, 0, 1, 1, key, 0, 1, code)
        return [place, (_KEYS, _SHORT, len(keys), keys, True)]


def pixel_size_of(source: Path | BinaryIO) -> PixelSize | None:
    """Read a pixel's size from OME, Aperio, ImageJ or a TIFF in cm; inches are those of print."""
    try:
        with tifffile.TiffFile(source) as file:
            return _of_ome(file.ome_metadata) or _of_aperio(file) or _of_resolution(file)
    except _UNREADABLE:
        return None


def _of_ome(xml: str | None) -> PixelSize | None:
    if not xml or len(xml) > 10_000_000 or "<!ENTITY" in xml:
        return None
    try:
        pixels = next(one for one in ET.fromstring(xml).iter() if one.tag.endswith("}Pixels"))
        sizes = [float(pixels.attrib[f"PhysicalSize{axis}"]) for axis in "YX"]
        units = [pixels.attrib.get(f"PhysicalSize{axis}Unit", "um") for axis in "YX"]
        height, width = (s * MICROMETRES[u] for s, u in zip(sizes, units, strict=True))
    except (StopIteration, KeyError, ValueError, ET.ParseError):
        return None
    return PixelSize(height=height, width=width) if min(height, width) > 0 else None


def _of_aperio(file: tifffile.TiffFile) -> PixelSize | None:
    """An SVS slide's micrometres per pixel: `|MPP = 0.2520|` in its description."""
    page: Any = file.pages[0]
    found = re.search(r"\|MPP = (\d+(?:\.\d+)?)", page.description) if file.is_svs else None
    size = float(found[1]) if found else 0.0
    return PixelSize(height=size, width=size) if size > 0 else None


def _of_resolution(file: tifffile.TiffFile) -> PixelSize | None:
    page: Any = file.pages[0]
    across, down = (page.tags.get(name) for name in ("XResolution", "YResolution"))
    if across is None or down is None:
        return None
    per_unit = [value[0] / value[1] for value in (down.value, across.value) if value[1]]
    if len(per_unit) < 2 or min(per_unit) <= 0:
        return None
    metadata = file.imagej_metadata if file.is_imagej else None
    if metadata is not None:
        # Fiji writes the letter as an escape of six signs.
        unit = str(metadata.get("unit", "")).lower().replace(r"\u00b5", "u").replace(r"\u03bc", "u")
        factor = MICROMETRES.get(unit)
    else:
        tag = page.tags.get("ResolutionUnit")
        factor = 1e4 if tag is not None and int(tag.value) == 3 else None
    if factor is None:
        return None
    return PixelSize(height=factor / per_unit[0], width=factor / per_unit[1])


def georeference_of(path: Path) -> Georeference | None:
    """Read a GeoTIFF's tags, or the world file beside an image; None where there are none."""
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            tags = {code: page.tags[code].value for code in page.tags.keys()}  # noqa: SIM118
    except _UNREADABLE:
        tags = {}
    transform = (stated := _of_tags(tags)) or _of_world_file(path)
    if transform is None:
        return None
    keys = tags.get(_KEYS, ())  # groups of four numbers: key, place, count, value
    codes = {int(keys[at]): int(keys[at + 3]) for at in range(4, len(keys) - 3, 4)}
    if stated and codes.get(_RASTER_TYPE) == _POINT:
        transform = _of_corners(stated)
    # A projected system of its own kind also names the datum that it stands on, which isn't it.
    is_geographic = codes.get(_MODEL_TYPE, 0) == 2 or not {_MODEL_TYPE, _PROJECTED} & codes.keys()
    code = codes.get(_GEOGRAPHIC if is_geographic else _PROJECTED, 0)
    if not 0 < code < _USER_DEFINED:
        return Georeference(transform=transform, crs=None, keys=_copied(tags) if stated else ())
    return Georeference(transform=transform, crs=f"EPSG:{code}", is_geographic=is_geographic)


def _copied(tags: dict[int, Any]) -> tuple[tuple[int, int, int, Any, bool], ...]:
    keys = [int(one) for one in tags.get(_KEYS, ())]
    for at in range(4, len(keys) - 3, 4):
        if keys[at] == _RASTER_TYPE:
            keys[at + 3] = 1
    found: list[tuple[int, int, int, Any, bool]] = []
    if keys:
        found.append((_KEYS, _SHORT, len(keys), tuple(keys), True))
        if doubles := tags.get(_DOUBLES):
            numbers = doubles if isinstance(doubles, tuple) else (doubles,)
            found.append((_DOUBLES, _DOUBLE, len(numbers), numbers, True))
        if text := tags.get(_TEXTS):
            found.append((_TEXTS, _ASCII, 0, text, True))
    return tuple(found)


def _of_corners(transform: _Transform) -> _Transform:
    a, b, c, d, e, f = transform
    return a, b, c - a / 2 - b / 2, d, e, f - d / 2 - e / 2


def _of_tags(tags: dict[int, Any]) -> _Transform | None:
    matrix = tags.get(_TRANSFORMATION)
    if matrix is not None and len(matrix) == 16:
        a, b, _, c, d, e, _, f = map(float, matrix[:8])
        return a, b, c, d, e, f
    scale, tie = tags.get(_SCALE), tags.get(_TIEPOINT)
    if scale is None or tie is None or len(scale) < 2 or len(tie) < 6:
        return None
    wide, tall = float(scale[0]), float(scale[1])
    column, row, _, x, y, _ = map(float, tie[:6])
    return wide, 0.0, x - column * wide, 0.0, -tall, y + row * tall


def _of_world_file(path: Path) -> _Transform | None:
    own = path.suffix.lower()
    for suffix in (_WORLD_SUFFIXES[own], f"{own}w", ".wld") if own in _WORLD_SUFFIXES else ():
        try:
            text = path.with_suffix(suffix).read_text(encoding="ascii")
            a, d, b, e, x, y = map(float, text.split()[:6])
        except (OSError, ValueError):
            continue
        return _of_corners((a, b, x, d, e, y))  # it gives the middle of the first pixel
    return None
