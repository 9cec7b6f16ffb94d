"""A video in, a video of masks or overlays out, frame by frame."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from binseg.errors import ImageError, MissingExtraError, OutputError, UsageError
from binseg.inference import Predictor
from binseg.inference.files import PredictResult, Written
from binseg.inference.inputs import failure_of, refuse_overwriting
from binseg.progress import SILENT, Progress
from binseg.report import overlay as draw_over
from binseg.storage import atomic_path

if TYPE_CHECKING:
    import av

__all__ = ["VIDEO_SUFFIXES", "is_video", "predict_videos"]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
DEFAULT_RATE = Fraction(25)
_ONLY_VIDEOS = {"format_whitelist": "avi,matroska,mov", "protocol_whitelist": "file"}
"""FFmpeg knows a file by its bytes: a playlist with a video's name would open other files."""


def is_video(path: Path) -> bool:
    """Tell a video by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def predict_videos(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    out: Path,
    overlay: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = SILENT,
) -> PredictResult:
    """Write each video's masks as NAME.mkv (FFV1, without loss: 0 and 255), of its size and pace.

    Each frame is predicted by itself. Sound is left out.

    Args:
        predictor: the model.
        paths: of the videos.
        out: folder for the answers.
        overlay: also NAME_overlay.mp4 (H.264), the video with the masks drawn over it.
        overwrite: replace videos of an earlier run; inputs are never replaced.
        resume: leave out videos whose answers are there already; each is there when it is whole.
        progress: told of every frame.

    Returns:
        What was written; videos that can't be read are in it too, and stop nothing.

    Raises:
        MissingExtraError: PyAV isn't installed.
        UsageError: an answer would replace a file that is there, or another video's.
        OutputError: the answers can't be written.
    """
    _require_av()
    answers = {path: _answers(path, out, overlay=overlay) for path in paths}
    files = [file for each in answers.values() for file in each]
    refuse_overwriting(paths, files, allowed=overwrite or resume)
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise UsageError(f"two videos would become {twice}; give each a folder of its own by --out")
    if resume:
        answers = {
            path: each for path, each in answers.items() if not all(one.exists() for one in each)
        }
    written, failures = [], []
    for path, each in answers.items():
        try:
            written.append(_predict_video(predictor, path, answers=each, progress=progress))
        except ImageError as problem:
            failures.append(failure_of(path, problem))
    return PredictResult(
        written=tuple(written),
        failures=tuple(failures),
        num_skipped=len(paths) - len(answers),
    )


def _answers(path: Path, out: Path, *, overlay: bool) -> tuple[Path, ...]:
    mask = out / f"{path.stem}.mkv"
    return (mask, out / f"{path.stem}_overlay.mp4") if overlay else (mask,)


def _predict_video(
    predictor: Predictor, path: Path, *, answers: tuple[Path, ...], progress: Progress
) -> Written:
    mask_path, *others = answers
    overlay_path = others[0] if others else None
    num, foreground = 0, 0.0
    with (
        _opened(path) as (frames, total, rate),
        _Video(mask_path, rate, codec="ffv1", pixels="gray") as masks,
        _Video(overlay_path, rate, codec="libx264", pixels="yuv420p") as overlays,
        progress.task(f"predicting frames of {path.name}", total=total) as task,
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
            raise ImageError(f"{path}: there is no frame in it; get it anew or leave it out")
    return Written(
        source=path, page=None, mask=mask_path, others=tuple(others), foreground=foreground / num
    )


def _require_av() -> None:
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as problem:
        if problem.name != "av":
            raise
        raise MissingExtraError("av", extra="video", purpose="reading and writing videos") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Iterator[np.ndarray], int | None, Fraction]]:
    """Open a video: its frames as RGB, how many there are (where it tells), and its pace."""
    import av

    try:
        container = av.open(str(path), options=_ONLY_VIDEOS)
    except (av.FFmpegError, OSError) as problem:
        reason = " ".join(str(problem).split())
        raise ImageError(f"{path}: can't be read as a video ({reason})") from None
    with container:
        if not container.streams.video:
            raise ImageError(f"{path}: there are no images in it, only other streams")
        stream = container.streams.video[0]
        yield _frames(container, path), stream.frames or None, stream.average_rate or DEFAULT_RATE


def _frames(container: "av.container.InputContainer", path: Path) -> Iterator[np.ndarray]:
    import av

    try:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            # Phones write portrait videos lying down, with a note; players turn them, and so do we.
            turns = round(frame.rotation / 90) % 4
            yield np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
    except av.FFmpegError as problem:
        reason = " ".join(str(problem).split())
        raise ImageError(f"{path}: the video is damaged or cut off ({reason})") from None


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
        import av

        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
        except av.FFmpegError as problem:  # a full disk, most likely
            self._file.__exit__(type(problem), problem, problem.__traceback__)
            raise OutputError(f"can't write {self._path}: {problem}") from None
        self._file.__exit__(kind, error, trace)


def _container(path: Path) -> str:
    return {".mkv": "matroska", ".mp4": "mp4"}[path.suffix]
