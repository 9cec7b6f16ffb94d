"""From an image on disk to a mask on disk, band by band, whatever the image's size."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32

from binseg.errors import MissingExtraError, OutputError, UsageError
from binseg.imageio import (
    ImageInfo,
    Windows,
    encode_tiles,
    open_windows,
    read_georeference,
)
from binseg.imageio.zarr_folders import ZarrAxes, ZarrWindows
from binseg.inference import Predictor
from binseg.inference.band_assembly import (
    MASK,
    PROBABILITY,
    Layout,
    Whole,
    assemble,
    page_layout,
)
from binseg.inference.bands import WHOLE_PIXELS, batch_of, probability_bands
from binseg.inference.estimate import estimate_need
from binseg.inference.journal import Band, Journal, fingerprint
from binseg.postprocess.steps import NOTHING
from binseg.progress import SILENT, Progress, Task
from binseg.storage import locked

__all__ = ["LargeResult", "ProbabilityType", "predict_large"]

ProbabilityType = Literal["uint8", "float16", "float32"]
"""uint8 stands for the probability times 255, rounded."""
_SUFFIXES = (".tif", ".tiff", ".zarr")
_SHRUNK = 4
"""An image that is shrunk more than this loses what a user who has so many pixels looks for."""
_HUGE = 1 << 20
"""A side that is cut into tiles whatever their size."""


@dataclass(frozen=True, kw_only=True)
class LargeResult:
    """What was written."""

    source: Path
    mask: Path
    probability: Path | None
    num_pages: int
    height: int
    """Of the first page, as is the width."""
    width: int
    num_pixels: int
    """Of all pages."""
    foreground: float
    """Share of the pixels that are foreground, after the post-processing."""
    num_bands: int
    num_resumed: int
    """Bands that an earlier, interrupted call had finished."""
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return {
            "source": str(self.source),
            "mask": str(self.mask),
            "probability": None if self.probability is None else str(self.probability),
            "num_pages": self.num_pages,
            "height": self.height,
            "width": self.width,
            "foreground": self.foreground,
            "num_bands": self.num_bands,
            "num_resumed": self.num_resumed,
            "seconds": round(self.seconds, 3),
        }


def predict_large(
    predictor: Predictor,
    path: str | Path,
    *,
    out: str | Path,
    threshold: float | None = None,
    probability: ProbabilityType | None = None,
    scale: float | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: Progress = SILENT,
    whole_pixels: int = WHOLE_PIXELS,
) -> LargeResult:
    """Predict an image of any size, or all pages of a stack, into one file.

    What a mask says is what `Predictor.predict` would say if the image fitted into memory, its
    corrections too. The
    work may be interrupted at any time, by kill -9 too: finished bands are kept in `out`.part, the
    same call goes on from them, and the file is the same byte for byte. Under its final name the
    output is always whole.

    Args:
        predictor: the model. One that takes tiles sees every pixel; one that takes whole images
            gets the huge image shrunk to its input, and its answer is spread to the full size.
        path: a TIFF file, an OME-Zarr folder, or another image.
        out: the mask, 0 and 255: .tif (tiled, packed, BigTIFF beyond 4 GB, a page for each page)
            or .zarr (OME-Zarr).
        threshold: instead of the model's own.
        probability: also OUT_probability, in this type.
        scale: what the image is resized by for a model that takes tiles, 0.5 for pixels of
            0.25 um where the model learnt from 0.5 um.
        tile: height and width of the tiles instead of the model's input; larger ones see more of
            their surroundings.
        overlap: share of a tile that overlaps its neighbour, instead of the model's.
        resume: go on from what an interrupted call has finished.
        overwrite: replace outputs that are there.
        progress: told what is needed before it starts, and of every row.
        whole_pixels: pages of up to so many pixels are predicted whole.

    Raises:
        UsageError: an output is there already, or of another suffix; a scale or tiles for a model
            that takes whole images.
        ImageError: the image can't be read, or doesn't fit the model.
        OutputError: the disk refused (what is finished is kept), or another process writes `out`.
        MissingExtraError: a Zarr folder, and the package isn't installed.
    """
    start = time.monotonic()
    path, out = Path(path), Path(out)
    probability_out = _outputs(path, out, probability, overwrite=overwrite)
    if threshold is not None:
        predictor = predictor.with_threshold(threshold)
    if scale is not None or tile is not None or overlap is not None:
        predictor = predictor.with_tiles(scale=scale or 1.0, size=tile, overlap=overlap)
    part = out.with_name(out.name + ".part")
    with open_windows(path) as windows, locked(part, timeout=1.0, tidy=True):
        infos = [windows.info(page) for page in range(windows.num_pages)]
        layouts = [page_layout(one.height, one.width) for one in infos]
        whole = _whole(predictor, windows, infos, path=path, out=out)
        job = _job(predictor, path, layouts, probability, whole_pixels)
        journal = Journal(part, job, progress=progress, resume=resume)
        done = [journal.num_done(page) for page in range(len(infos))]
        work = _Work(predictor, windows, infos, layouts, journal, probability, whole_pixels)
        try:
            work.tell_need(done, progress)
            work.run(done, progress)
            if probability_out is not None:
                assert probability is not None
                assemble(
                    journal,
                    layouts,
                    out=probability_out,
                    which=PROBABILITY,
                    dtype=probability,
                    postprocessing=NOTHING,
                    whole=whole,
                )
            # The mask comes last: where it is, the work is done.
            foreground = assemble(
                journal,
                layouts,
                out=out,
                which=MASK,
                dtype="uint8",
                postprocessing=predictor.postprocessing,
                whole=whole,
            )
        except (OSError, OutputError) as error:
            reason = error if isinstance(error, OutputError) else f"can't write {out}: {error}"
            raise OutputError(
                f"{reason}; what is finished is in {part}, run again to go on"
            ) from error
        journal.remove()
    pixels = sum(one.height * one.width for one in infos)
    return LargeResult(
        source=path,
        mask=out,
        probability=probability_out,
        num_pages=len(infos),
        height=infos[0].height,
        width=infos[0].width,
        num_pixels=pixels,
        foreground=foreground / pixels,
        num_bands=sum(one.num_bands for one in layouts),
        num_resumed=sum(done),
        seconds=time.monotonic() - start,
    )


def _outputs(
    path: Path, out: Path, probability: ProbabilityType | None, *, overwrite: bool
) -> Path | None:
    """Check the names of the outputs; give that of the probability."""
    if out.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"can't write {out}: huge masks end in one of {', '.join(_SUFFIXES)}")
    if probability not in (None, *get_args(ProbabilityType)):
        choices = ", ".join(get_args(ProbabilityType))
        raise UsageError(f"probability {probability!r}: give one of {choices}")
    probability_out = out.with_name(f"{out.stem}_probability{out.suffix}") if probability else None
    # The mask comes last: probabilities without it are those of a call that was interrupted.
    is_unfinished = not out.exists() and out.with_name(out.name + ".part").exists()
    for one in (out, probability_out):
        if one is None or not one.exists():
            continue
        if one.resolve() == path.resolve():
            raise UsageError(f"{one} is the input; choose another name with --out")
        if not overwrite and not is_unfinished:
            raise UsageError(f"{one} exists; choose another name, or replace it with --overwrite")
    return probability_out


def _job(
    predictor: Predictor,
    path: Path,
    layouts: Sequence[Layout],
    probability: ProbabilityType | None,
    whole_pixels: int,
) -> dict[str, object]:
    """All that decides the bands, under names that a user understands when one differs."""
    return {
        "version": version("binseg"),
        "image": {"name": path.name, **fingerprint(path)},
        "model": predictor.bundle_id,
        "settings": {
            "inputs": [repr(one.preprocessing) for one in predictor.members],
            "tta": [one.tta for one in predictor.members],
            "batch": [batch_of(one, _HUGE, _HUGE) for one in predictor.members],
            "probability": probability,
            "tiles": sorted({one.tile for one in layouts}),
            "whole pixels": whole_pixels,
        },
        "threshold": predictor.threshold,
        "runtime": [f"{one.backend.name} {one.backend.precision}" for one in predictor.members],
    }


def _whole(
    predictor: Predictor,
    windows: Windows,
    infos: Sequence[ImageInfo],
    *,
    path: Path,
    out: Path,
) -> Whole:
    """What the output says beside its pixels."""
    facts = {
        "binseg": version("binseg"),
        "model": predictor.bundle_id,
        "threshold": predictor.threshold,
        "postprocess": predictor.postprocessing.as_dict(),
        "source": path.name,
    }
    is_tiff = windows.format == "TIFF" and not infos[0].turned
    return Whole(
        facts=facts,
        georeference=read_georeference(path) if is_tiff else None,
        pixel_size=windows.pixel_size,
        axes=_axes(windows, infos) if out.suffix.lower() == ".zarr" else None,
    )


def _axes(windows: Windows, infos: Sequence[ImageInfo]) -> ZarrAxes:
    """The axes of a Zarr output: those of a Zarr input, else pages (z) by y by x."""
    try:
        import zarr  # noqa: F401 - asked for now, and not after hours
    except ModuleNotFoundError:
        raise MissingExtraError("zarr", extra="zarr", purpose="writing Zarr folders") from None
    if isinstance(windows, ZarrWindows):
        return windows.axes
    if len({(one.height, one.width) for one in infos}) > 1:
        raise UsageError(
            f"{windows.name}: pages of several sizes don't fit into one Zarr; write a .tif"
        )
    size = windows.pixel_size
    stack = len(infos) > 1
    unit = None if size is None else "micrometer"
    return ZarrAxes(
        names=("z", "y", "x") if stack else ("y", "x"),
        lengths=(*((len(infos),) if stack else ()), infos[0].height, infos[0].width),
        units=(*((None,) if stack else ()), unit, unit),
        scales=(*((1.0,) if stack else ()), *((size.height, size.width) if size else (1.0, 1.0))),
        zarr_format=2,
    )


@dataclass(frozen=True)
class _Work:
    """The bands of all pages, and who computes and keeps them."""

    predictor: Predictor
    windows: Windows
    infos: Sequence[ImageInfo]
    layouts: Sequence[Layout]
    journal: Journal
    probability: ProbabilityType | None
    whole_pixels: int

    def tell_need(self, done: Sequence[int], progress: Progress) -> None:
        """Say what the work takes before it starts."""
        if all(num == one.num_bands for num, one in zip(done, self.layouts, strict=True)):
            return
        need = estimate_need(
            self.predictor,
            self.windows,
            self.infos,
            self.layouts,
            done=done,
            layer_bytes=np.dtype(self.probability).itemsize if self.probability else 0,
            folder=self.journal.folder,
        )
        first, num = self.infos[0], len(self.infos)
        pages = "" if num == 1 else f", {num:,} pages"
        on = f"going on after {sum(done)} finished bands: " if any(done) else ""
        progress.say(
            f"{self.windows.name}: {first.width:,} x {first.height:,} pixels{pages}: {on}"
            f"{need.describe()}"
        )
        if need.disk > need.free_disk:
            progress.say(f"{self.journal.folder.parent}: may not have room for all of it")
        shape = self.predictor.preprocessing
        shrunk = max(first.height / shape.height, first.width / shape.width)
        if shape.resize != "tile" and shrunk > _SHRUNK:
            progress.say(
                f"{self.windows.name}: this model looks at the whole image shrunk to "
                f"{shape.width} x {shape.height}, so that details are lost; one trained with "
                "input.resize: tile sees every pixel"
            )

    def run(self, done: Sequence[int], progress: Progress) -> None:
        """Compute what isn't done yet."""
        label = f"predicting {Path(self.windows.name).name}"
        total = sum(one.height for one in self.infos)
        with progress.task(label, total=total) as task:
            for page, (layout, num) in enumerate(zip(self.layouts, done, strict=True)):
                task.advance(min(layout.height, num * layout.tile))
                if num < layout.num_bands:
                    self._run_page(page, layout, num, task)

    def _run_page(self, page: int, layout: Layout, first: int, task: Task) -> None:
        bands = probability_bands(
            self.predictor,
            self.windows,
            page,
            band=layout.tile,
            first=first,
            tell=task.advance,
            whole_pixels=self.whole_pixels,
        )
        for index, probability_HW in enumerate(bands, start=first):
            self.journal.write(page, index, self._packed(probability_HW, layout.tile))

    def _packed(self, probability_HW: Float32[np.ndarray, "h W"], tile: int) -> Band:
        mask_HW = probability_HW > self.predictor.threshold
        layers = [encode_tiles(mask_HW.astype(np.uint8) * np.uint8(255), tile)]
        if self.probability == "uint8":
            bytes_HW = np.rint(probability_HW * np.float32(255)).astype(np.uint8)
            layers.append(encode_tiles(bytes_HW, tile))
        elif self.probability is not None:
            layers.append(encode_tiles(probability_HW.astype(self.probability), tile))
        return Band(
            height=len(mask_HW), foreground=int(np.count_nonzero(mask_HW)), layers=tuple(layers)
        )
