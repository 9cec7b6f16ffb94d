"""The finished bands of an unfinished image, on disk: interrupted work goes on from them.

    NAME.tif.part/job.json               what decides the result: image, model, settings
    NAME.tif.part/00003-000012.band      page 3, band 12: its packed tiles, and a checksum

Bands are written whole or not at all, from the top down, so that whatever ends the program leaves
at most one band to compute again.
"""

import io
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Num

from binseg.errors import OutputError
from binseg.imageio import Layout, Windows, decode_tiles, encode_tiles
from binseg.postprocess import PostProcessing, clean_bands
from binseg.progress import Progress
from binseg.storage import atomic_path, remove_scraps, write_json

MASK, PROBABILITY = 0, 1  # layers of a band
_JOB = "job.json"
_OURS, _SCRAPS = {_JOB, "whole.tif", "whole.zarr"}, (".tmp-", ".old-")


@dataclass(frozen=True, kw_only=True)
class Band:
    """The packed prediction for some full rows of a page."""

    height: int
    foreground: int  # pixels of the mask, before any post-processing
    layers: tuple[Sequence[bytes], ...]  # Tiles of the mask, and of the probability


class Journal:
    """The finished bands of a `job` beside an output; those of another are thrown away."""

    def __init__(
        self, folder: Path, job: Mapping[str, object], *, progress: Progress, resume: bool = True
    ) -> None:
        self.folder = folder
        job = json.loads(json.dumps(job))  # as it is read back: lists for tuples
        before = _read_job(folder / _JOB)
        if folder.exists() and (not resume or before != job):
            for name in (path.name for path in folder.iterdir()):
                if name not in _OURS and not name.endswith(".band") and name[:5] not in _SCRAPS:
                    raise OutputError(
                        f"{folder}: unfinished bands are kept there, but it holds {name}; move it "
                        "away"
                    )
            if resume and before is not None:
                differ = [name for name in job if before.get(name) != job[name]]
                progress.say(
                    f"{folder}: was begun with another {' and '.join(differ) or 'version'}; "
                    "starting again"
                )
            shutil.rmtree(folder)
        if not (folder / _JOB).exists():
            write_json(folder / _JOB, job)
        self.look()

    def num_done(self, page: int) -> int:
        """Count the finished bands of a page, from its top on."""
        return self._done.get(page, 0)

    def write(self, page: int, index: int, band: Band) -> None:
        """Keep a finished band; OutputError if the disk refused."""
        write_band(self.folder, page, index, band)
        self._done[page] = index + 1

    def missing(self, page: int, num_bands: int) -> list[int]:
        """List the bands of a page that aren't there, or damaged."""
        paths = [band_path(self.folder, page, one) for one in range(num_bands)]
        return [index for index, path in enumerate(paths) if _read_band(path) is None]

    def read(self, page: int, index: int) -> Band:
        """Read a finished band; OutputError if it is gone or was changed."""
        path = band_path(self.folder, page, index)
        if (band := _read_band(path)) is None:
            raise OutputError(f"{path}: damaged meanwhile; run again to go on")
        return band

    def num_bytes(self) -> int:
        """Count what all bands take on disk."""
        return sum(one.stat().st_size for one in self.folder.glob("*.band"))

    def remove(self) -> None:
        """Throw the folder away; its bands are in the output."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def look(self) -> None:
        """Count each page's bands that are there and intact; the first damaged one ends the row."""
        self._done: dict[int, int] = {}
        broken: set[int] = set()
        remove_scraps([self.folder])
        for path in sorted(self.folder.iterdir()):
            if path.suffix != ".band" or path.name.startswith("."):
                continue
            page, index = (int(part) for part in path.stem.split("-"))
            if page in broken or index != self.num_done(page) or _read_band(path) is None:
                broken.add(page)
                continue
            self._done[page] = index + 1


def band_path(folder: Path, page: int, index: int) -> Path:
    """Name a band's file."""
    return folder / f"{page:05d}-{index:06d}.band"


def write_band(folder: Path, page: int, index: int, band: Band) -> None:
    """Keep a finished band in a journal's folder, whole or not at all; raises OutputError."""
    body = b"".join(one for layer in band.layers for one in layer)
    head = {
        "height": band.height,
        "foreground": band.foreground,
        "lengths": [[len(one) for one in layer] for layer in band.layers],
        "crc": zlib.crc32(body),
    }
    with atomic_path(band_path(folder, page, index)) as temporary, temporary.open("wb") as handle:
        handle.write(json.dumps(head).encode() + b"\n")
        handle.write(body)


@dataclass(kw_only=True)
class Layer:
    """The masks or the probabilities of all bands, on their way into the output."""

    journal: Journal
    which: int
    dtype: str
    postprocessing: PostProcessing
    windows: Windows  # the image, which tells where there is no data
    num_foreground: int = 0  # pixels of the mask above 0 so far

    def rows(self, page: int, layout: Layout) -> Iterator[Num[np.ndarray, "h W"]]:
        """Unpack the rows of a page, and correct them."""

        def stored() -> Iterator[Num[np.ndarray, "h W"]]:
            for index in range(layout.num_bands):
                band = self.journal.read(page, index)
                size = {"height": band.height, "width": layout.width}
                yield decode_tiles(band.layers[self.which], layout.tile, dtype=self.dtype, **size)

        def cleaned() -> Iterator[Num[np.ndarray, "h W"]]:
            again = clean_bands(lambda: (rows_HW > 0 for rows_HW in stored()), self.postprocessing)
            for index, mask_HW in enumerate(again()):
                # Nothing is filled where there is no data.
                valid_HW = self.windows.valid(page, index * layout.tile, 0, *mask_HW.shape)
                kept_HW = mask_HW if valid_HW is None else mask_HW & valid_HW
                yield kept_HW.astype(np.uint8) * np.uint8(255)

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
        rest, facts = io.BytesIO(body), {name: int(head[name]) for name in ("height", "foreground")}
        layers = [[rest.read(int(length)) for length in lengths] for lengths in head["lengths"]]
        return Band(**facts, layers=tuple(layers))
    except (OSError, ValueError, KeyError, TypeError):
        return None
