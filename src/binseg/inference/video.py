"""A video in, a video of masks or overlays out, in batches of frames."""

from collections.abc import Iterator, Sequence
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

    Args:
        predictor: the model.
        path: the video.
        files: NAME.mkv for the masks (FFV1, without loss: 0 and 255), and perhaps NAME.mp4 for the
            video with the masks drawn over it (H.264); what is there is replaced.
        progress: told of every frame.

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
        _Video(mask_path, rate, codec="ffv1", pixels="gray") as masks,
        _Video(others[0] if others else None, rate, codec="libx264", pixels="yuv420p") as overlays,
        progress.task(f"predicting frames of {path.name}", total=total) as task,
    ):
        while some := list(islice(frames, predictor.batch_size)):
            for prediction in predictor.predict(some):
                masks.add(prediction.mask.astype(np.uint8) * np.uint8(255), "gray")
                if others:
                    overlays.add(prediction.overlay(), "rgb24")
                num += 1
                foreground += float(prediction.mask.mean())
            task.advance(len(some))
        if num == 0:
            raise ImageError(f"{path}: there is no frame in it; get it anew or leave it out")
    return foreground / num


def require_av() -> None:
    """Make sure that PyAV is there.

    Raises:
        MissingExtraError: it isn't installed.
    """
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


class _Video:
    """A video that is written under its final name when it is whole; without a path, nothing."""

    def __init__(self, path: Path | None, rate: Fraction, *, codec: str, pixels: str) -> None:
        self._path = path
        self._rate = rate
        self._codec = codec
        self._pixels = pixels
        self._container: Any = None
        self._stream: Any = None
        self._file: Any = None

    def __enter__(self) -> "_Video":
        if self._path is not None:
            import av

            self._file = atomic_path(self._path)
            temporary = self._file.__enter__()
            self._container = av.open(str(temporary), "w", format=_CONTAINERS[self._path.suffix])
        return self

    def add(self, pixels: np.ndarray, layout: str) -> None:
        """Add a frame."""
        import av

        height, width = pixels.shape[:2]
        if self._stream is None:
            self._stream = self._container.add_stream(self._codec, rate=self._rate)
            # H.264 halves the colours' size: odd sides lose their last line there.
            even = self._pixels == "yuv420p"
            self._stream.height = height - height % 2 if even else height
            self._stream.width = width - width % 2 if even else width
            self._stream.pix_fmt = self._pixels
        cut = np.ascontiguousarray(pixels[: self._stream.height, : self._stream.width])
        try:
            frame = av.VideoFrame.from_ndarray(cut, format=layout)
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as problem:
            raise OutputError(f"can't write {self._path}: {problem}") from None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._container is None:
            return
        import av

        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
        except av.FFmpegError as problem:  # a full disk, most likely
            self._file.__exit__(type(problem), problem, problem.__traceback__)
            raise OutputError(f"can't write {self._path}: {problem}") from None
        self._file.__exit__(kind, error, trace)
