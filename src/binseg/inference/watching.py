"""Predict what comes into a folder, until told to stop."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from binseg.errors import UsageError
from binseg.inference import Predictor
from binseg.inference.files import PredictResult, predict_files
from binseg.inference.inputs import find_files
from binseg.inference.outputs import OutputKinds
from binseg.progress import SILENT, Progress

__all__ = ["watch"]

Stamp = tuple[int, int]
"""Size and time of change (ns) of a file."""


def watch(
    predictor: Predictor,
    folder: str | Path,
    *,
    out: str | Path,
    kinds: OutputKinds | None = None,
    tolerance: float = 0.0,
    threshold: float | None = None,
    seconds: float = 1.0,
    told: Callable[[PredictResult], None] = lambda result: None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> None:
    """Look into a folder again and again, and predict images that are new or changed.

    An image is taken when it looked the same twice, so that one that is still being copied is left
    alone. Images whose answers are there and newer are left out.

    Args:
        predictor: the model.
        folder: what is watched, with the folders in it.
        out: folder for the masks.
        kinds: which files each image gets.
        tolerance: by how many pixels outlines may be simplified.
        threshold: instead of the model's own.
        seconds: between two looks.
        told: hears of each round that found something.
        stop: asked after each look.
        progress: told of every image.

    Raises:
        UsageError: it is no folder, or that of the masks.
    """
    home, answers = Path(folder), Path(out)
    if not home.is_dir():
        raise UsageError(f"{home} is no folder; --watch takes the folder that images come into")
    if answers.resolve() == home.resolve():
        raise UsageError(
            f"{home} can't hold the masks of the images that come into it, which would be taken "
            "for images; choose another folder with --out"
        )
    chosen = kinds or OutputKinds()
    owners: dict[Path, Path] = {}
    before: dict[Path, Stamp] = {}
    done = {path: stamp for path, stamp in _files(home, answers) if _answered(path, home, answers)}
    for path in done:
        stem = (answers / path.relative_to(home)).with_suffix("")
        owners.update(dict.fromkeys(chosen.files(stem), path))
    while True:
        now = dict(_files(home, answers))
        ready = [
            path
            for path, stamp in now.items()
            if before.get(path) == stamp and done.get(path) != stamp
        ]
        for below, paths in _by_folder(ready, home).items():
            told(
                predict_files(
                    predictor,
                    paths,
                    out=answers / below,
                    kinds=chosen,
                    tolerance=tolerance,
                    threshold=threshold,
                    overwrite=True,
                    owners=owners,
                    progress=progress,
                )
            )
        done.update({path: now[path] for path in ready})
        before = now
        if stop():
            return
        time.sleep(seconds)


def _files(home: Path, out: Path) -> Iterator[tuple[Path, Stamp]]:
    """Give the images of the folder with their stamps."""
    for path in find_files(home, out):
        try:
            facts = path.stat()
        except OSError:  # gone between the listing and now
            continue
        yield path, (facts.st_size, facts.st_mtime_ns)


def _answered(path: Path, home: Path, out: Path) -> bool:
    """Whether a mask of the plain name is there, and not older than the image."""
    plain = out / path.relative_to(home)
    masks = (plain.with_suffix(".png"), plain.with_suffix(".tif"))
    changed = path.stat().st_mtime
    return any(mask.exists() and mask.stat().st_mtime >= changed for mask in masks)


def _by_folder(paths: Iterable[Path], home: Path) -> dict[Path, list[Path]]:
    """Sort files by the folder they are in, below the watched one."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent.relative_to(home), []).append(path)
    return folders
