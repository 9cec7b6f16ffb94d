"""A video in, a video of masks or overlays out, in batches of frames."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from binseg.errors import ImageError, OutputError, needing, one_line
from binseg.inference.predictor import Predictor
from binseg.progress import SILENT, Progress
from binseg.storage import atomic_path, open_file

if TYPE_CHECKING:
    import av

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_DEFAULT_RATE = Fraction(25)
_CONTAINERS = {".mkv": "matroska", ".mp4": "mp4"}
_Frame = tuple[np.ndarray, int]  # a frame's pixels, and its time in units of the video
_Pace = tuple[Fraction, Fraction]  # frames a second on average, and the seconds of a unit of time
_SAFELY: Any = {"options": {"format_whitelist": "avi,matroska,mov", "protocol_whitelist": "file"}}
"""FFmpeg knows a file by its bytes: a playlist with a video's name would open other files."""


def is_video(path: Path) -> bool:
    """Tell a video by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def predict_video(
    predictor: Predictor,
    path: Path,
    *,
    files: Sequence[Path],
    facts: Mapping[str, object] | None = None,
    progress: Progress = SILENT,
) -> float:
    """Write a video's masks, of its size; give the share of all pixels that is foreground.

    `files` are NAME.mkv for the masks (FFV1; `facts` are its tag BINSEG), and perhaps NAME.mp4 with
    the masks drawn over it (H.264), without sound. Raises ImageError and OutputError.
    """
    require_av()
    mask_path, *others = files
    num, foreground = 0, 0.0
    made = {
        "model": predictor.bundle_id,
        "threshold": predictor.threshold,
        "postprocess": predictor.postprocessing.as_dict(),
        **(facts or {}),
    }
    with (
        _opened(path) as (frames, total, pace),
        _written(mask_path, pace, codec="ffv1", pixels="gray", facts=made) as add_grey,
        _written(others[0] if others else None, pace, codec="libx264", pixels="yuv420p") as add_rgb,
        progress.task(f"predicting frames of {path.name}", total=total) as task,
    ):
        while some := list(islice(frames, predictor.batch_size)):
            predictions = predictor.predict([pixels for pixels, _ in some])
            for prediction, (_, pts) in zip(predictions, some, strict=True):
                add_grey(prediction.mask.astype(np.uint8) * np.uint8(255), "gray", pts)
                if others:
                    add_rgb(prediction.overlay(), "rgb24", pts)
                num += 1
                foreground += float(prediction.mask.mean())
            task.advance(len(some))
        if num == 0:
            raise ImageError(f"{path}: there is no frame in it; get it anew or leave it out")
    return foreground / num


def facts_of_video(path: Path) -> dict[str, object]:
    """Read what made a video of masks; empty where it doesn't say."""
    require_av()
    import av

    found = None
    with suppress(av.FFmpegError, OSError, ValueError), av.open(str(path), **_SAFELY) as video:
        found = json.loads(video.metadata.get("BINSEG", "{}"))
    return found if isinstance(found, dict) else {}


def require_av() -> None:
    """Raise MissingExtraError where PyAV isn't installed."""
    with needing("av", extra="video", purpose="reading and writing videos"):
        import av  # noqa: F401


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Iterator[_Frame], int | None, _Pace]]:
    """Open a video: its frames as RGB with their times, their number (where it tells), its pace."""
    import av

    try:
        open_file(path).close()  # FFmpeg would wait for a pipe
        container = av.open(str(path), **_SAFELY)
    except (av.FFmpegError, OSError) as problem:
        raise ImageError(f"{path}: can't be read as a video ({one_line(str(problem))})") from None
    with container:
        if not container.streams.video:
            raise ImageError(f"{path}: there are no images in it, only other streams")
        stream = container.streams.video[0]
        rate = stream.average_rate or _DEFAULT_RATE
        pace = rate, stream.time_base or 1 / rate
        yield _frames(container, path, pace), stream.frames or None, pace


def _frames(container: "av.container.InputContainer", path: Path, pace: _Pace) -> Iterator[_Frame]:
    """Give frames with their times, which need not be evenly spaced, but always grow."""
    import av

    rate, unit = pace
    step = max(1, round(1 / (rate * unit)))
    after = 0
    try:
        for frame in container.decode(video=0):
            pts = after if frame.pts is None else max(after, frame.pts)
            after = pts + (step if frame.pts is None else 1)
            pixels = frame.to_ndarray(format="rgb24")
            # Phones write portrait videos lying down, with a note; players turn them, and so do we.
            turns = round(frame.rotation / 90) % 4
            yield np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels, pts
    except av.FFmpegError as problem:
        reason = one_line(str(problem))
        raise ImageError(f"{path}: the video is damaged or cut off ({reason})") from None


@contextmanager
def _written(
    path: Path | None,
    pace: _Pace,
    *,
    codec: str,
    pixels: str,
    facts: Mapping[str, object] | None = None,
) -> Iterator[Callable[[np.ndarray, str, int], None]]:
    """Write a video (if it has a path) under its final name when it is whole, by adding frames."""
    if path is None:
        yield lambda *_: None
        return
    import av

    stream: Any = None
    rate, unit = pace
    with (
        atomic_path(path) as temporary,
        _refused(path),
        av.open(str(temporary), "w", format=_CONTAINERS[path.suffix]) as container,
    ):
        if facts:
            container.metadata["BINSEG"] = json.dumps(facts)

        def add(frame: np.ndarray, layout: str, pts: int) -> None:
            nonlocal stream
            if stream is None:
                # H.264 halves the colours' size: odd sides lose their last line there.
                step = 2 if pixels == "yuv420p" else 1
                stream = container.add_stream(codec, rate=rate)
                stream.height, stream.width = (side - side % step for side in frame.shape[:2])
                stream.pix_fmt = pixels
                stream.codec_context.time_base = unit
            cut = np.ascontiguousarray(frame[: stream.height, : stream.width])
            encoded = av.VideoFrame.from_ndarray(cut, format=layout)
            encoded.pts, encoded.time_base = pts, unit
            with _refused(path):
                container.mux(stream.encode(encoded))

        yield add
        if stream is not None:
            container.mux(stream.encode())


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    import av

    try:
        yield
    except av.FFmpegError as problem:
        raise OutputError(f"can't write {path}: {problem}") from None
