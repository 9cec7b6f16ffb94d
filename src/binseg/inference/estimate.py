"""What a huge image will take in memory, disk and time, told before it starts."""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from binseg.imageio import ImageInfo, Windows
from binseg.inference import Predictor
from binseg.inference.band_assembly import Layout
from binseg.inference.bands import batch_of, live_bytes, num_inputs
from binseg.transforms.geometry import tiles_for

__all__ = ["Need", "estimate_need"]

_CACHE = 192_000_000
"""Unpacked pieces of the image that the reader keeps."""
_MASK_SHARE = 0.2
"""Most bytes for each pixel of a packed mask: noise of 0 and 255 packs to a sixth."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What the work takes."""

    num_inputs: int
    """Model inputs that are still to be computed."""
    memory: int
    """Bytes of memory at most, the program and the model included; 0 where it isn't known."""
    disk: int
    """Bytes at most, while finished bands and the output are both there."""
    free_disk: int
    seconds: float

    def describe(self) -> str:
        """Say it in one line."""
        memory = f"about {self.memory / 1e9:.1f} GB of memory, " if self.memory else ""
        inputs = "1 model input" if self.num_inputs == 1 else f"{self.num_inputs:,} model inputs"
        return (
            f"{inputs}; {memory}at most {self.disk / 1e9:.2g} GB of disk "
            f"({self.free_disk / 1e9:.0f} GB free), about {duration(self.seconds)}"
        )


def estimate_need(
    predictor: Predictor,
    windows: Windows,
    infos: Sequence[ImageInfo],
    layouts: Sequence[Layout],
    *,
    done: Sequence[int],
    layer_bytes: int,
    folder: Path,
) -> Need:
    """Measure one batch, and reckon the rest from it.

    Args:
        predictor: computes two batches of zeros.
        windows: one region is read, to see how long that takes.
        infos: the pages.
        layouts: how they are cut up on disk.
        done: finished bands of each page.
        layer_bytes: bytes of each pixel that are written besides the mask.
        folder: where the output goes.
    """
    shares = [1 - min(1.0, num / one.num_bands) for num, one in zip(done, layouts, strict=True)]
    inputs = [num_inputs(predictor, one) for one in infos]
    num = sum(round(share * count) for share, count in zip(shares, inputs, strict=True))
    pixels = sum(one.height * one.width for one in layouts)
    widest = max(range(len(infos)), key=lambda page: infos[page].height * infos[page].width)
    seconds = num * (
        _seconds_per_input(predictor, infos[widest]) + _seconds_per_read(predictor, windows, widest)
    )
    live = max(
        live_bytes(predictor, info, band=one.tile) + 12 * one.tile * one.width
        for info, one in zip(infos, layouts, strict=True)
    )
    peak = _peak_memory()
    cached = min(_CACHE, max(_page_bytes(one) for one in infos))
    return Need(
        num_inputs=num,
        memory=peak + live + cached if peak else 0,
        disk=round(2 * pixels * (_MASK_SHARE + layer_bytes)),
        free_disk=shutil.disk_usage(folder).free,
        seconds=seconds,
    )


def _page_bytes(info: ImageInfo) -> int:
    return info.height * info.width * info.channels * np.dtype(info.dtype).itemsize


def _seconds_per_input(predictor: Predictor, info: ImageInfo) -> float:
    """The mean over the members; the first batch of each warms up and isn't counted."""
    taken = []
    for member in predictor.members:
        shape = tiles_for(info.height, info.width, member.preprocessing)
        num = batch_of(member, info.height, info.width)
        zeros_NHWC = np.zeros((num, shape.height, shape.width, shape.channels), np.uint8)
        member.probability_of_inputs(zeros_NHWC)
        start = time.perf_counter()
        member.probability_of_inputs(zeros_NHWC)
        taken.append((time.perf_counter() - start) / num)
    return sum(taken) / len(taken)


def _seconds_per_read(predictor: Predictor, windows: Windows, page: int) -> float:
    """To read the region of one input from the middle of a page."""
    info = windows.info(page)
    shape = tiles_for(info.height, info.width, predictor.preprocessing)
    if shape.resize != "tile":
        return 0.0
    height, width = (min(side, 2 * shape.height) for side in (info.height, info.width))
    top, left = (info.height - height) // 2, (info.width - width) // 2
    start = time.perf_counter()
    windows.read(page, top, left, height, width)
    return (time.perf_counter() - start) * (shape.height * shape.width) / (height * width)


def _peak_memory() -> int:
    """Most bytes that this process has held so far; 0 where the system doesn't tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(3), duration(125), duration(9000), duration(3600)
    ('3 s', '2 min', '2 h 30 min', '1 h')
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
