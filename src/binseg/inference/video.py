"""A video in, a video of masks or overlays out, in batches of frames."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from binseg.errors import ImageError, MissingExtraError, OutputError
from binseg.inference.predictor import Predictor
from binseg.progress import SILENT, Progress
from binseg.storage import atomic_path

if TYPE_CHECKING:
    import av

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_DEFAULT_RATE = Fraction(25)
_CONTAINERS = {".mkv": "matroska", ".mp4": "mp4"}
_ONLY_VIDEOS = {"format_whitelist": "avi,matroska,mov", "protocol_whitelist": "file"}
"""FFmpeg knows a file by its bytes: a playlist with a video's name would open other files."""


def is_video(path: Path) -> bool:
    """Tell a video by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def predict_video(
    predictor: Predictor, path: Path, *, files: Sequence[Path], progress: Progress = SILENT
) -> float:
    """Write a video's masks, of its size and pace; frames are predicted each alone, without sound.

    `files` are NAME.mkv for the masks (FFV1, without loss: 0 and 255), and perhaps NAME.mp4 for the
    video with the masks drawn over it (H.264); what is there is replaced.

    Returns:
        Share of the pixels that are foreground, all frames together.

    Raises:
        ImageError: it can't be read as a video.
        MissingExtraError: PyAV isn't installed.
        OutputError: the disk refused.
    """
    require_av()
    mask_path, *others = files
    num, foreground = 0, 0.0
    with (
        _opened(path) as (frames, total, rate),
        _written(mask_path, rate, codec="ffv1", pixels="gray") as add_grey,
        _written(others[0] if others else None, rate, codec="libx264", pixels="yuv420p") as add_rgb,
        progress.task(f"predicting frames of {path.name}", total=total) as task,
    ):
        while some := list(islice(frames, predictor.batch_size)):
            for prediction in predictor.predict(some):
                add_grey(prediction.mask.astype(np.uint8) * np.uint8(255), "gray")
                if others:
                    add_rgb(prediction.overlay(), "rgb24")
                num += 1
                foreground += float(prediction.mask.mean())
            task.advance(len(some))
        if num == 0:
            raise ImageError(f"{path}: there is no frame in it; get it anew or leave it out")
    return foreground / num


def require_av() -> None:
    """Raise MissingExtraError where PyAV isn't installed."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as problem:
        if problem.name != "av":
            raise
        raise MissingExtraError("av", extra="video", purpose="reading and writing videos") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Iterator[np.ndarray], int | None, Fraction]]:
    """Open a video: its frames as RGB, their number (where it tells), and its pace."""
    import av

    try:
        container = av.open(str(path), options=_ONLY_VIDEOS)
    except (av.FFmpegError, OSError) as problem:
        raise ImageError(f"{path}: can't be read as a video ({_reason(problem)})") from None
    with container:
        if not container.streams.video:
            raise ImageError(f"{path}: there are no images in it, only other streams")
        stream = container.streams.video[0]
        yield _frames(container, path), stream.frames or None, stream.average_rate or _DEFAULT_RATE


def _frames(container: "av.container.InputContainer", path: Path) -> Iterator[np.ndarray]:
    import av

    try:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            # Phones write portrait videos lying down, with a note; players turn them, and so do we.
            turns = round(frame.rotation / 90) % 4
            yield np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
    except av.FFmpegError as problem:
        raise ImageError(f"{path}: the video is damaged or cut off ({_reason(problem)})") from None


def _reason(problem: Exception) -> str:
    return " ".join(str(problem).split())


@contextmanager
def _written(
    path: Path | None, rate: Fraction, *, codec: str, pixels: str
) -> Iterator[Callable[[np.ndarray, str], None]]:
    """Write a video under its final name when it is whole; gives what adds a frame to it.

    Without a path nothing is written.
    """
    if path is None:
        yield lambda *_: None
        return
    import av

    stream: Any = None
    with (
        atomic_path(path) as temporary,
        _refused(path),
        av.open(str(temporary), "w", format=_CONTAINERS[path.suffix]) as container,
    ):

        def add(frame: np.ndarray, layout: str) -> None:
            nonlocal stream
            if stream is None:
                # H.264 halves the colours' size: odd sides lose their last line there.
                step = 2 if pixels == "yuv420p" else 1
                stream = container.add_stream(codec, rate=rate)
                stream.height, stream.width = (side - side % step for side in frame.shape[:2])
                stream.pix_fmt = pixels
            cut = np.ascontiguousarray(frame[: stream.height, : stream.width])
            with _refused(path):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format=layout)))

        yield add
        if stream is not None:
            container.mux(stream.encode())


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Say which file can't be written, most likely on a full disk."""
    import av

    try:
        yield
    except av.FFmpegError as problem:
        raise OutputError(f"can't write {path}: {problem}") from None
