"""A film in, a film of masks or overlays out, frame by frame."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from binseg.errors import MissingExtraError, OutputError, PictureError
from binseg.predictor import Predictor
from binseg.progress import SILENT, Progress
from binseg.report import overlay as draw_over
from binseg.storage import atomic_path

if TYPE_CHECKING:
    import av

__all__ = ["VIDEO_SUFFIXES", "VideoResult", "is_video", "predict_video"]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
DEFAULT_RATE = Fraction(25)


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """What was made of a film."""

    source: Path
    mask: Path
    overlay: Path | None
    num_frames: int
    foreground: float
    """Mean share of the frames' pixels that are foreground."""


def is_video(path: Path) -> bool:
    """Tell a film by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def predict_video(
    predictor: Predictor,
    path: Path,
    *,
    out: Path,
    overlay: bool = False,
    threshold: float | None = None,
    progress: Progress = SILENT,
) -> VideoResult:
    """Write a film's masks as NAME.mkv (FFV1, without loss: 0 and 255), of its size and pace.

    Each frame is predicted by itself. Sound is left out.

    Args:
        predictor: the model.
        path: of the film.
        out: folder for the answers.
        overlay: also NAME_overlay.mp4 (H.264), the film with the masks drawn over it.
        threshold: instead of the model's own.
        progress: told of every frame.

    Raises:
        MissingExtraError: PyAV isn't installed.
        PictureError: a file that is no film, or a damaged one.
        OutputError: the answers can't be written.
    """
    _require_av()
    if threshold is not None:
        predictor = predictor.with_threshold(threshold)
    mask_path = out / f"{path.stem}.mkv"
    overlay_path = out / f"{path.stem}_overlay.mp4" if overlay else None
    num, foreground = 0, 0.0
    with (
        _opened(path) as (frames, total, rate),
        _Film(mask_path, rate, codec="ffv1", pixels="gray") as masks,
        _Film(overlay_path, rate, codec="libx264", pixels="yuv420p") as overlays,
        progress.task("predicting frames", total=total) as task,
    ):
        for image_HW3 in frames:
            mask_HW = predictor.predict(image_HW3).mask
            masks.add(mask_HW.astype(np.uint8) * np.uint8(255), "gray")
            if overlay_path is not None:
                overlays.add(draw_over(image_HW3, mask_HW), "rgb24")
            num += 1
            foreground += float(mask_HW.mean())
            task.advance(1)
        if num == 0:
            raise PictureError(f"{path}: there is no frame in it; get it anew or leave it out")
    return VideoResult(
        source=path,
        mask=mask_path,
        overlay=overlay_path,
        num_frames=num,
        foreground=foreground / num,
    )


def _require_av() -> None:
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as problem:
        if problem.name != "av":
            raise
        raise MissingExtraError("av", extra="video", purpose="reading and writing films") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Iterator[np.ndarray], int | None, Fraction]]:
    """Open a film: its frames as RGB, how many there are (where it tells), and its pace."""
    import av

    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as problem:
        reason = " ".join(str(problem).split())
        raise PictureError(f"{path}: can't be read as a film ({reason})") from None
    with container:
        if not container.streams.video:
            raise PictureError(f"{path}: there are no pictures in it, only other streams")
        stream = container.streams.video[0]
        yield _frames(container, path), stream.frames or None, stream.average_rate or DEFAULT_RATE


def _frames(container: "av.container.InputContainer", path: Path) -> Iterator[np.ndarray]:
    import av

    try:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as problem:
        reason = " ".join(str(problem).split())
        raise PictureError(f"{path}: the film is damaged or cut off ({reason})") from None


class _Film:
    """A film that is written under its final name when it is whole; without a path, nothing."""

    def __init__(self, path: Path | None, rate: Fraction, *, codec: str, pixels: str) -> None:
        self._path = path
        self._rate = rate
        self._codec = codec
        self._pixels = pixels
        self._container: Any = None
        self._stream: Any = None
        self._file: Any = None

    def __enter__(self) -> "_Film":
        if self._path is not None:
            import av

            self._file = atomic_path(self._path)
            temporary = self._file.__enter__()
            self._container = av.open(str(temporary), "w", format=_container(self._path))
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
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
        self._file.__exit__(kind, error, trace)


def _container(path: Path) -> str:
    return {".mkv": "matroska", ".mp4": "mp4"}[path.suffix]
