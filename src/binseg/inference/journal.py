"""The finished bands of an unfinished image, on disk: interrupted work goes on from them.

    NAME.tif.part/job.json               what decides the result: image, model, settings
    NAME.tif.part/00003-000012.band      page 3, band 12: its packed tiles, and a checksum

Bands are written whole or not at all, from the top down, so that whatever ends the program leaves
at most one band to compute again. At the end `assemble` makes one file of them.
"""

import contextlib
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Num

from binseg.errors import ImageError, OutputError, UsageError
from binseg.imageio import TiledPage, decode_tiles, encode_tiles, write_tiled
from binseg.imageio.metadata import Georeference, PixelSize
from binseg.imageio.zarr_folders import ZarrAxes, write_zarr_metadata
from binseg.postprocess import PostProcessing, clean_bands
from binseg.progress import Progress
from binseg.storage import atomic_path, publish, write_json

MASK, PROBABILITY = 0, 1
"""Layers of a band."""
_JOB = "job.json"
_OURS = {_JOB, "whole.tif", "whole.zarr"}
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tiles that one page is cut into on disk."""

    height: int
    width: int
    tile: int
    """Height and width of the tiles, and rows of a band."""

    @property
    def num_bands(self) -> int:
        """Bands of the page."""
        return -(-self.height // self.tile)


@dataclass(frozen=True, kw_only=True)
class Band:
    """The packed prediction for some full rows of a page."""

    height: int
    foreground: int
    """Pixels of the mask, before any post-processing."""
    layers: tuple[Sequence[bytes], ...]
    """The tiles of the mask, and those of the probability where it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The facts that the output states beside its pixels."""

    facts: Mapping[str, object]
    georeference: Georeference | None
    pixel_size: PixelSize | None
    axes: ZarrAxes | None
    """Axes of a Zarr output; None for a TIFF."""


def fingerprint(path: Path) -> dict[str, object]:
    """Tell an image from a changed one: sizes, times, and the first bytes.

    Raises:
        ImageError: it can't be read.
    """
    digest = hashlib.sha256()
    size = 0
    try:
        if path.is_dir():
            for file in sorted(one for one in path.rglob("*") if one.is_file()):
                state = file.stat()
                size += state.st_size
                name = file.relative_to(path).as_posix()
                digest.update(f"{name}\n{state.st_size}\n{state.st_mtime_ns}\n".encode())
        else:
            state = path.stat()
            size = state.st_size
            with path.open("rb") as handle:
                digest.update(f"{state.st_mtime_ns}\n".encode() + handle.read(_HEAD_BYTES))
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror or error})") from error
    return {"bytes": size, "digest": digest.hexdigest()}


class Journal:
    """The folder of finished bands beside an output.

    Args:
        folder: `NAME.part`; made if it isn't there.
        job: what decides the result, as plain data.
        progress: told when what is there can't be used.
        resume: False throws away what is there.

    Raises:
        OutputError: the disk refused, or the folder holds other things.
    """

    def __init__(
        self, folder: Path, job: Mapping[str, object], *, progress: Progress, resume: bool = True
    ) -> None:
        self.folder = folder
        job = json.loads(json.dumps(job))  # as it is read back: lists for tuples
        before = _read_job(folder / _JOB)
        if folder.exists() and (not resume or before != job):
            _refuse_foreign(folder)
            if resume and before is not None:
                differ = [name for name in job if before.get(name) != job[name]]
                progress.say(
                    f"{folder}: was begun with another {' and '.join(differ) or 'version'}; "
                    "starting again"
                )
            shutil.rmtree(folder)
        if not (folder / _JOB).exists():
            write_json(folder / _JOB, job)
        self._done = self._sound_bands()

    def num_done(self, page: int) -> int:
        """Count the finished bands of a page, from its top on."""
        return self._done.get(page, 0)

    def write(self, page: int, index: int, band: Band) -> None:
        """Keep a finished band.

        Raises:
            OutputError: the disk refused.
        """
        body = b"".join(one for layer in band.layers for one in layer)
        head = {
            "height": band.height,
            "foreground": band.foreground,
            "lengths": [[len(one) for one in layer] for layer in band.layers],
            "crc": zlib.crc32(body),
        }
        with atomic_path(self._path(page, index)) as temporary, temporary.open("wb") as handle:
            handle.write(json.dumps(head).encode() + b"\n")
            handle.write(body)
        self._done[page] = index + 1

    def read(self, page: int, index: int) -> Band:
        """Read a finished band.

        Raises:
            OutputError: it is gone or was changed.
        """
        band = _read_band(self._path(page, index))
        if band is None:
            raise OutputError(f"{self._path(page, index)}: damaged meanwhile; run again to go on")
        return band

    def layer(
        self, page: int, layout: Layout, which: int, dtype: str
    ) -> Iterator[Num[np.ndarray, "h W"]]:
        """Unpack one layer of a page, band by band.

        Raises:
            OutputError: as `read`.
        """
        for index in range(layout.num_bands):
            band = self.read(page, index)
            yield decode_tiles(
                band.layers[which], layout.tile, height=band.height, width=layout.width, dtype=dtype
            )

    def num_bytes(self) -> int:
        """Count what all bands take on the disk."""
        return sum(one.stat().st_size for one in self.folder.glob("*.band"))

    def remove(self) -> None:
        """Throw the folder away; its bands are in the output."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, page: int, index: int) -> Path:
        return self.folder / f"{page:05d}-{index:06d}.band"

    def _sound_bands(self) -> dict[int, int]:
        """Count each page's bands that are there and intact; the first damaged one ends the row."""
        done: dict[int, int] = {}
        broken: set[int] = set()
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(".tmp-"):  # of a program that was killed
                with contextlib.suppress(OSError):
                    path.unlink()
            if path.suffix != ".band" or path.name.startswith("."):
                continue
            page, index = (int(part) for part in path.stem.split("-"))
            if page in broken or index != done.get(page, 0) or _read_band(path) is None:
                broken.add(page)
                continue
            done[page] = index + 1
        return done


def assemble(
    journal: Journal,
    layouts: Sequence[Layout],
    *,
    out: Path,
    which: int,
    dtype: str,
    postprocessing: PostProcessing,
    whole: Whole,
) -> int:
    """Write one layer of all finished bands under its final name.

    Args:
        journal: all bands of all pages, which are cut up as `layouts` say.
        layouts: one for each page.
        out: a .tif, .tiff or .zarr name; what is there is replaced.
        which: the layer, `MASK` or `PROBABILITY`, whose pixels have the type `dtype`.
        dtype: see `which`.
        postprocessing: corrects the mask; must be empty for the probability.
        whole: what else the output says.

    Returns:
        Pixels of the layer that aren't 0: for the mask, those that are foreground.

    Raises:
        OutputError: the disk refused; all bands are kept.
        DataError: more objects to clean up than fit into memory.
    """
    layer = _Layer(journal=journal, which=which, dtype=dtype, postprocessing=postprocessing)
    if whole.axes is None:
        finished = journal.folder / "whole.tif"
        pages = (
            TiledPage(
                height=one.height,
                width=one.width,
                dtype=dtype,
                tile=one.tile,
                tiles=layer.tiles(page, one),
            )
            for page, one in enumerate(layouts)
        )
        write_tiled(
            finished,
            pages,
            num_bytes=journal.num_bytes(),
            facts=whole.facts,
            georeference=whole.georeference,
            pixel_size=whole.pixel_size,
        )
    else:
        finished = journal.folder / "whole.zarr"
        rows = (layer.rows(page, one) for page, one in enumerate(layouts))
        _write_zarr(finished, layouts, rows, dtype=dtype, name=out.stem, whole=whole)
    publish(finished, out)
    return layer.num_foreground


@dataclass(kw_only=True)
class _Layer:
    """One layer of all bands, on its way into the output."""

    journal: Journal
    which: int
    dtype: str
    postprocessing: PostProcessing
    num_foreground: int = 0
    """Pixels above 0 so far."""

    def rows(self, page: int, layout: Layout) -> Iterator[Num[np.ndarray, "h W"]]:
        """Unpack the rows of a page, and correct them."""

        def stored() -> Iterator[Num[np.ndarray, "h W"]]:
            return self.journal.layer(page, layout, self.which, self.dtype)

        def cleaned() -> Iterator[Num[np.ndarray, "h W"]]:
            masks = clean_bands(lambda: (rows > 0 for rows in stored()), self.postprocessing)
            return (mask_HW.astype(np.uint8) * np.uint8(255) for mask_HW in masks())

        for rows_HW in stored() if self.postprocessing.is_empty else cleaned():
            self.num_foreground += int(np.count_nonzero(rows_HW))
            yield rows_HW

    def tiles(self, page: int, layout: Layout) -> Iterator[bytes]:
        """Give the packed tiles of a page: as they are where nothing is corrected."""
        if not self.postprocessing.is_empty:
            for rows_HW in self.rows(page, layout):
                yield from encode_tiles(rows_HW, layout.tile)
            return
        for index in range(layout.num_bands):
            band = self.journal.read(page, index)
            self.num_foreground += band.foreground
            yield from band.layers[self.which]


def _write_zarr(
    folder: Path,
    layouts: Sequence[Layout],
    rows_of_pages: Iterable[Iterable[Num[np.ndarray, "h W"]]],
    *,
    dtype: str,
    name: str,
    whole: Whole,
) -> None:
    assert whole.axes is not None
    if len({(one.height, one.width) for one in layouts}) > 1:
        raise UsageError(f"{name}: pages of several sizes don't fit into one Zarr; write a .tif")
    shutil.rmtree(folder, ignore_errors=True)  # of a program that was stopped here
    tile, shape = layouts[0].tile, whole.axes.lengths[:-2]
    array = write_zarr_metadata(
        folder, whole.axes, chunk=tile, dtype=dtype, name=name, facts=whole.facts
    )
    for page, bands in enumerate(rows_of_pages):
        at = [int(one) for one in np.unravel_index(page, shape)] if shape else []
        for index, rows_HW in enumerate(bands):
            rows = slice(index * tile, index * tile + len(rows_HW))
            array[(*at, rows, slice(None))] = rows_HW


def _refuse_foreign(folder: Path) -> None:
    """Throw away only what this module wrote."""
    for path in folder.iterdir():
        ours = (
            path.name in _OURS or path.suffix == ".band" or path.name.startswith((".tmp-", ".old-"))
        )
        if not ours:
            raise OutputError(
                f"{folder}: unfinished bands are kept there, but it holds {path.name}; move it away"
            )


def _read_job(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read_band(path: Path) -> Band | None:
    """Read the band of a file; None where the file is missing or damaged."""
    try:
        first, _, body = path.read_bytes().partition(b"\n")
        head = json.loads(first)
        if zlib.crc32(body) != head["crc"]:
            return None
        layers, place = [], 0
        for lengths in head["lengths"]:
            layer = []
            for length in lengths:
                layer.append(body[place : place + length])
                place += length
            layers.append(layer)
        return Band(
            height=int(head["height"]), foreground=int(head["foreground"]), layers=tuple(layers)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
