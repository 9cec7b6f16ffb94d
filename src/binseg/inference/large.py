"""From an image on disk to a mask on disk, band by band, whatever the image's size."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np

from binseg import imageio
from binseg.errors import ImageError, OutputError, UsageError, needing
from binseg.imageio.windows import declared
from binseg.imageio.zarr_folders import ZarrAxes, write_zarr_metadata
from binseg.inference import tiling
from binseg.inference.journal import MASK, PROBABILITY, Journal, Layer
from binseg.inference.outputs import hash_of
from binseg.inference.predict_options import PredictOptions
from binseg.inference.prediction import table_of
from binseg.inference.predictor import Predictor
from binseg.postprocess import NOTHING, find_objects_in_bands
from binseg.progress import SILENT, Progress, duration
from binseg.storage import locked, publish, write_text
from binseg.transforms.geometry import tiles_for

_SUFFIXES = (".tif", ".tiff", ".zarr")
_SHRUNK = 4  # Shrinking an image more loses what users of so many pixels look for
_HUGE = 1 << 20  # A side that is cut into tiles whatever their size
_CACHE = 192_000_000  # Unpacked pieces of the image that the reader keeps
_MASK_SHARE = 0.2  # Most bytes for each pixel of a packed mask: noise of 0 and 255 packs to a sixth


@dataclass(frozen=True, kw_only=True)
class LargeResult:
    """The mask that was written, and its figures."""

    mask: Path
    foreground: float  # Share of the pixels that are foreground, after the post-processing
    num_bands: int
    num_resumed: int  # Bands that an earlier, interrupted call had finished


def predict_large(
    predictor: Predictor,
    path: str | Path,
    *,
    out: str | Path,
    options: PredictOptions | None = None,
    probability: tiling.ProbabilityType | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: Progress = SILENT,
    whole_pixels: int = tiling.WHOLE_PIXELS,
    origin: Mapping[str, object] | None = None,
    opened: Callable[[Path], AbstractContextManager[imageio.Windows]] = imageio.caged_windows,
    elsewhere: tiling.Elsewhere | None = None,
    table: Path | None = None,
) -> LargeResult:
    """Predict an image of any size, or all pages of a stack, into one file.

    The mask is that of `Predictor.predict` if the image fitted into memory. Work may end at any
    time, by kill -9 too: finished bands are kept in `out`.part, the same call goes on from them to
    the same bytes, and the output under its final name is always whole.

    `out` is .tif (tiled, a page for each, BigTIFF beyond 4 GB) or .zarr; `probability` is the type
    of a second file; pages of up to `whole_pixels` are predicted whole; a predictor of whole images
    gets this one shrunk; the mask keeps `origin`; `opened` gives the image's windows; `elsewhere`
    has bands computed by other processes; `table` lists the objects, across bands, as CSV. Raises
    UsageError (an output is there, an odd suffix, an
    unfit scale or tile), ImageError and OutputError.
    """
    path, out = Path(path), Path(out)
    probability_out = _outputs(path, out, probability, overwrite=overwrite)
    predictor = predictor.with_options(options or PredictOptions())
    part = out.with_name(out.name + ".part")
    with opened(path) as windows, locked(part, timeout=1.0, tidy=True):
        windows = declared(windows, predictor.nodata)  # noqa: PLW2901
        infos = [windows.info(page) for page in range(windows.num_pages)]
        layouts = [tiling.page_layout(one.height, one.width) for one in infos]
        axes = _axes(windows, infos) if out.suffix.lower() == ".zarr" else None
        content = str((origin or {}).get("image", "")).partition("#")[0]
        job = _job(predictor, path, layouts, probability, whole_pixels, content=content)
        journal = Journal(part, job, progress=progress, resume=resume)
        done = [journal.num_done(page) for page in range(len(infos))]
        work = _Work(
            predictor=predictor,
            path=path,
            windows=windows,
            infos=infos,
            layouts=layouts,
            journal=journal,
            probability=probability,
            whole_pixels=whole_pixels,
            axes=axes,
            origin=origin or {},
        )
        try:
            if elsewhere is not None:
                done = work.run_elsewhere(elsewhere)
            work.tell_need(done, progress)
            work.run(done, progress)
            if probability_out is not None:
                work.assemble(probability_out, PROBABILITY)
            if table is not None:
                work.list_objects(table)
            # The mask comes last: where it is, the work is done.
            num_foreground = work.assemble(out, MASK)
        except (OSError, OutputError) as error:
            reason = error if isinstance(error, OutputError) else f"can't write {out}: {error}"
            hint = f"what is finished is in {part}, run again to go on"
            raise OutputError(f"{reason}; {hint}") from error
        journal.remove()
    return LargeResult(
        mask=out,
        foreground=num_foreground / sum(one.height * one.width for one in infos),
        num_bands=sum(one.num_bands for one in layouts),
        num_resumed=sum(done),
    )


def _outputs(
    path: Path, out: Path, probability: tiling.ProbabilityType | None, *, overwrite: bool
) -> Path | None:
    """Check the names of the outputs; give that of the probability."""
    if out.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"can't write {out}: huge masks end in one of {', '.join(_SUFFIXES)}")
    if probability not in (None, *get_args(tiling.ProbabilityType)):
        choices = ", ".join(get_args(tiling.ProbabilityType))
        raise UsageError(f"probability {probability!r}: give one of {choices}")
    probability_out = out.with_name(f"{out.stem}_probability{out.suffix}") if probability else None
    # The mask comes last: probabilities without it are those of a call that was interrupted.
    is_unfinished = not out.exists() and out.with_name(out.name + ".part").exists()
    for one in (each for each in (out, probability_out) if each is not None and each.exists()):
        if one.resolve() == path.resolve():
            raise UsageError(f"{one} is the input; choose another name with --out")
        if not overwrite and not is_unfinished:
            raise UsageError(f"{one} exists; choose another name, or replace it with --overwrite")
    return probability_out


def _job(
    predictor: Predictor,
    path: Path,
    layouts: Sequence[imageio.Layout],
    probability: tiling.ProbabilityType | None,
    whole_pixels: int,
    *,
    content: str,
) -> dict[str, object]:
    """List all that decides the bands, under names that a user understands when one differs."""
    if predictor.postprocessing.separate:
        raise ImageError(f"{path}: too large to cut touching objects apart; leave that out")
    return {
        "version": version("binseg"),
        "image": {"name": path.name, "content": content or hash_of(path)},
        "model": predictor.bundle_id,
        "settings": {
            "inputs": [repr(one.preprocessing) for one in predictor.members],
            "tta": [one.tta for one in predictor.members],
            "batch": [tiling.batch_of(one, _HUGE, _HUGE) for one in predictor.members],
            "probability": probability,
            "tiles": sorted({one.tile for one in layouts}),
            "whole pixels": whole_pixels,
        },
        "threshold": predictor.threshold,
        "runtime": [f"{one.backend.name} {one.backend.precision}" for one in predictor.members],
    }


def _axes(windows: imageio.Windows, infos: Sequence[imageio.ImageInfo]) -> ZarrAxes:
    """Give the axes of a Zarr output: those of a Zarr input, else pages (z) by y by x."""
    with needing("zarr", extra="zarr", purpose="writing Zarr folders"):
        import zarr  # noqa: F401 - asked for now, and not after hours
    if windows.axes is not None:
        return windows.axes
    if len({(one.height, one.width) for one in infos}) > 1:
        raise UsageError(
            f"{windows.name}: pages of several sizes don't fit into one Zarr; write a .tif"
        )
    size = windows.pixel_size
    first = 0 if len(infos) > 1 else 1  # a single image has no axis of pages
    unit = None if size is None else "micrometer"
    return ZarrAxes(
        names=("z", "y", "x")[first:],
        lengths=(len(infos), infos[0].height, infos[0].width)[first:],
        units=(None, unit, unit)[first:],
        scales=(1.0, *((size.height, size.width) if size else (1.0, 1.0)))[first:],
        zarr_format=3,
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The bands of all pages, and who computes and keeps them."""

    predictor: Predictor
    path: Path
    windows: imageio.Windows
    infos: Sequence[imageio.ImageInfo]
    layouts: Sequence[imageio.Layout]
    journal: Journal
    probability: tiling.ProbabilityType | None
    whole_pixels: int
    axes: ZarrAxes | None  # Axes of a Zarr output
    origin: Mapping[str, object]  # The facts that `predict --resume` needs; the mask keeps it

    def tell_need(self, done: Sequence[int], progress: Progress) -> None:
        """Say what the work takes before it starts: a batch is measured, the rest reckoned."""
        left = [1 - num / one.num_bands for num, one in zip(done, self.layouts, strict=True)]
        if not any(left):
            return
        widest = max(self.infos, key=lambda one: one.height * one.width)
        num_inputs = sum(
            round(share * self.predictor.num_inputs(one.height, one.width))
            for share, one in zip(left, self.infos, strict=True)
        )
        seconds = num_inputs * (self._seconds_per_input(widest) + self._seconds_per_read(widest))
        live = max(
            tiling.live_bytes(self.predictor, info, band=one.tile) + 12 * one.tile * one.width
            for info, one in zip(self.infos, self.layouts, strict=True)
        )
        size = np.dtype(widest.dtype).itemsize
        cached = min(_CACHE, widest.height * widest.width * widest.channels * size)
        peak = _peak_memory()
        memory = f"about {(peak + live + cached) / 1e9:.1f} GB of memory, " if peak else ""
        layer = np.dtype(self.probability).itemsize if self.probability else 0
        pixels = sum(one.height * one.width for one in self.layouts)
        disk = 2 * pixels * (_MASK_SHARE + layer)  # while bands and output are both there
        free = shutil.disk_usage(self.journal.folder).free
        first, num, name = self.infos[0], len(self.infos), self.windows.name
        pages = "" if num == 1 else f", {num:,} pages"
        on = f"going on after {sum(done)} finished bands: " if any(done) else ""
        inputs = "1 model input" if num_inputs == 1 else f"{num_inputs:,} model inputs"
        progress.say(
            f"{name}: {first.width:,} x {first.height:,} pixels{pages}: {on}{inputs}; {memory}"
            f"at most {disk / 1e9:.2g} GB of disk ({free / 1e9:.0f} GB free), about "
            f"{duration(seconds)}"
        )
        if disk > free:
            progress.say(f"{self.journal.folder.parent}: may not have room for all of it")
        for shape in {one.preprocessing for one in self.predictor.members}:
            shrunk = max(first.height / shape.height, first.width / shape.width)
            if shape.resize != "tile" and shrunk > _SHRUNK:
                progress.say(
                    f"{name}: this model looks at the whole image shrunk to {shape.width} x "
                    f"{shape.height}, so that details are lost; one trained with "
                    "input.resize: tile sees every pixel"
                )

    def _bands(self, page: int, numbers: Sequence[int]) -> tiling.Bands:
        return tiling.Bands(
            path=self.path,
            folder=self.journal.folder,
            page=page,
            numbers=numbers,
            tile=self.layouts[page].tile,
            probability=self.probability,
            whole_pixels=self.whole_pixels,
        )

    def run_elsewhere(self, elsewhere: tiling.Elsewhere) -> list[int]:
        """Have other processes compute what isn't done yet, and count what is then."""
        missing = [self.journal.missing(page, x.num_bands) for page, x in enumerate(self.layouts)]
        elsewhere([self._bands(page, some) for page, some in enumerate(missing) if some])
        self.journal.look()
        return [self.journal.num_done(page) for page in range(len(self.layouts))]

    def run(self, done: Sequence[int], progress: Progress) -> None:
        label = f"predicting {Path(self.windows.name).name}"
        with progress.task(label, total=sum(one.height for one in self.infos)) as task:
            for page, (layout, num) in enumerate(zip(self.layouts, done, strict=True)):
                task.advance(min(layout.height, num * layout.tile))
                if num == layout.num_bands:
                    continue
                asked = self._bands(page, range(num, layout.num_bands))
                found = tiling.packed_bands(self.predictor, self.windows, asked, tell=task.advance)
                with closing(found):
                    for index, band in zip(asked.numbers, found, strict=True):
                        self.journal.write(page, index, band)

    def layer(self, which: int) -> Layer:
        is_mask = which == MASK
        return Layer(
            which=which,
            dtype="uint8" if is_mask else str(self.probability),
            postprocessing=self.predictor.postprocessing if is_mask else NOTHING,
            journal=self.journal,
            windows=self.windows,
        )

    def list_objects(self, table: Path) -> None:
        size, name = self.windows.pixel_size, Path(self.windows.name).name
        pixel_size = (size.height, size.width) if size else None
        found = {}
        for page, layout in enumerate(self.layouts):
            bands = (rows_HW > 0 for rows_HW in self.layer(MASK).rows(page, layout))
            objects = find_objects_in_bands(bands, pixel_size=pixel_size)
            found[name if len(self.layouts) == 1 else f"{name}#{page}"] = objects
        made = {"model": self.predictor.bundle_id, "threshold": self.predictor.threshold}
        write_text(table, table_of(found, made))

    def assemble(self, out: Path, which: int) -> int:
        """Write a layer of all bands under its final name; count the mask's foreground."""
        predictor, is_mask, folder = self.predictor, which == MASK, self.journal.folder
        facts = {
            "binseg": version("binseg"),
            "model": predictor.bundle_id,
            "threshold": predictor.threshold,
            "postprocess": predictor.postprocessing.as_dict(),
            "source": self.path.name,
            **(self.origin if is_mask else {}),
        }
        layer = self.layer(which)
        dtype = layer.dtype
        if self.axes is None:
            finished = folder / "whole.tif"
            is_tiff = self.windows.format == "TIFF" and not self.infos[0].turned
            imageio.write_tiled(
                finished,
                ((one, layer.tiles(page, one)) for page, one in enumerate(self.layouts)),
                dtype=dtype,
                num_bytes=self.journal.num_bytes(),
                facts=facts,
                georeference=imageio.read_georeference(self.path) if is_tiff else None,
                pixel_size=self.windows.pixel_size,
                holds_nan=dtype.startswith("float"),
            )
        else:
            finished = folder / "whole.zarr"
            shutil.rmtree(finished, ignore_errors=True)  # of a program that was stopped here
            tile, shape = self.layouts[0].tile, self.axes.lengths[:-2]
            write = partial(write_zarr_metadata, chunk=tile, dtype=dtype)
            array = write(finished, self.axes, name=out.stem, facts=facts)
            for page, layout in enumerate(self.layouts):
                at = [int(one) for one in np.unravel_index(page, shape)] if shape else []
                for index, rows_HW in enumerate(layer.rows(page, layout)):
                    top = index * tile
                    array[(*at, slice(top, top + len(rows_HW)), slice(None))] = rows_HW
        publish(finished, out)
        return layer.num_foreground

    def _seconds_per_input(self, info: imageio.ImageInfo) -> float:
        """Take the mean over the members; the first batch of each warms up and isn't counted."""
        taken = []
        for member in self.predictor.members:
            shape = tiles_for(info.height, info.width, member.preprocessing)
            num = tiling.batch_of(member, info.height, info.width)
            size = (num, shape.height, shape.width, shape.channels)
            zeros_NHWC = np.zeros(size, shape.pixel_type)
            member.probability_of_inputs(zeros_NHWC)
            start = time.perf_counter()
            member.probability_of_inputs(zeros_NHWC)
            taken.append((time.perf_counter() - start) / num)
        times = 1 if self.predictor.preprocessing is None else len(taken)
        return times * sum(taken) / len(taken)

    def _seconds_per_read(self, info: imageio.ImageInfo) -> float:
        shape = tiles_for(info.height, info.width, self.predictor.members[0].preprocessing)
        if shape.resize != "tile":
            return 0.0
        height, width = (min(side, 2 * shape.height) for side in (info.height, info.width))
        top, left = (info.height - height) // 2, (info.width - width) // 2
        start = time.perf_counter()
        self.windows.read(self.infos.index(info), top, left, height, width)
        return (time.perf_counter() - start) * (shape.height * shape.width) / (height * width)


def _peak_memory() -> int:
    """Tell the most bytes that this process has held so far; 0 where the system doesn't."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
