"""`binseg label` put together: a project, its engines, and the processes that train beside it."""

import hashlib
import json
import multiprocessing
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from binseg.config import DataConfig
from binseg.data.sources.labelled import LOG, images_of_project
from binseg.data.sources.listing import list_folder
from binseg.errors import BinsegError, UsageError
from binseg.imageio import encode_probability
from binseg.inference import ModelPredictor, load
from binseg.labeling import warm_engine
from binseg.labeling.cold_engine import ColdEngine, filter_features
from binseg.labeling.guidance import rank
from binseg.labeling.label_log import MASKS, connect, image_files, image_rows, labels_in
from binseg.labeling.open_image import WorkingImage, open_working_image, reduced
from binseg.labeling.project import Project
from binseg.labeling.session import Session
from binseg.metrics import dice_of
from binseg.progress import SILENT, Progress
from binseg.storage import cache_dir, write_bytes, write_json
from binseg.types import IGNORE

ROUND_SECONDS = 75.0
_MOST_EXAMPLES, _MOST_PREDICTED = 300, 1_000


def open_session(
    images: Path,
    *,
    model: str | Path | None = None,
    home: Path | None = None,
    masks: DataConfig | None = None,
    trains: bool = True,
    progress: Progress = SILENT,
) -> Session:
    """Open a folder of images for labelling; DataError, UsageError (in use) and BundleError."""
    predictor = None if model is None else load(model)
    project = Project(images, config=masks, home=home, progress=progress)
    try:
        makers = {"filters": filter_features, "lite0": warm_engine.lite0_features()}
        network = Beside(project, predictor, trains=trains)
        return Session(project, engine=ColdEngine(makers), network=network)
    except BaseException:
        project.close()
        raise


def suggest(
    data: str | Path, *, model: str | Path, seed: int = 0, progress: Progress = SILENT
) -> list[tuple[str, float]]:
    """Rank images without a mask, the one to label next first, with their predicted foreground.

    Raises UsageError where all have one.
    """
    images, home = images_of_project(Path(data))
    masks = home / MASKS
    found = list_folder(masks).images if masks.is_dir() else ()
    labelled = {path.relative_to(masks).with_suffix("").as_posix() for path in found}
    paths = dict(image_files(images, home))
    left = {name: path for name, path in paths.items() if name not in labelled}
    if not left:
        raise UsageError(f"{images}: all {len(paths)} images have a mask; nothing is left to label")
    predictor, shares = load(model), {}
    with progress.task("look at images", total=len(left)) as task:
        for name, path in left.items():
            shares[name] = float((predictor.predict(path).probability > 0.5).mean())
            task.advance()
    return [(name, shares[name]) for name in rank(shares, seed=seed)]


class Beside:
    """The networks that train beside a session, in processes; `predictor` answers until then."""

    def __init__(self, project: Project, predictor: ModelPredictor | None, *, trains: bool) -> None:
        self._project, self._predictor, self._trains = project, predictor, trains
        key = hashlib.sha256(str(project.home).encode()).hexdigest()[:16]
        self._folder = cache_dir() / "label" / key
        self._guard = threading.Lock()
        self._context = multiprocessing.get_context("spawn")
        self._orders: Any = self._context.Queue()
        self._events: Any = self._context.Queue()
        self._warm: Any = None
        self._training: Any = None
        self._told: dict[str, object] = {}
        self._scores: list[tuple[str, list[float]]] = []
        if predictor is not None:
            self._answer = lru_cache(8)(lambda path: predictor.predict(path).probability)
        self._version = _read_version(self._folder)
        self._ends = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def version(self) -> str | None:
        """Name the network that answers; None while there is none."""
        if self._version:
            return f"warm {self._version}"
        return None if self._predictor is None else f"model {self._predictor.name}"

    def predicted(self, name: str) -> np.ndarray | None:
        """Give the probability for an image, where there is one."""
        if self._version:
            found = _read_probability(self._folder / f"{name}.png")
            if found is not None or self._predictor is None:
                return found
        if self._predictor is None:
            return None
        return self._answer(self._project.row(name).path)

    def wake(self, *, first: Sequence[str]) -> None:
        """Have a round trained and images predicted, these first."""
        if not self._trains or self._ends or self._is_training():
            return
        if self._warm is None or not self._warm.is_alive():
            facts = (self._project.home, self._project.images, self._folder)
            queues = (self._orders, self._events)
            self._warm = self._context.Process(target=_rounds, args=facts + queues, daemon=True)
            self._warm.start()
        self._orders.put(list(first))

    def scores(self) -> list[tuple[str, list[float]]]:
        """Take the scores that have come."""
        with self._guard:
            taken, self._scores = self._scores, []
            return taken

    def train(self, minutes: float) -> None:
        """Begin to train for real: the plan with this budget, then `evaluate`."""
        if self._is_training():
            raise UsageError("a training is running already")
        if self._warm is not None:  # the machine is the training's now
            self._warm.terminate()
            self._warm = None
        self._told = {"state": "running", "label": "start"}
        facts = (self._project.home, self._project.images, minutes, self._events)
        self._training = self._context.Process(target=_train_for_real, args=facts)
        self._training.start()

    def training(self) -> Mapping[str, object]:
        """Tell how far the training is."""
        with self._guard:
            if self._told.get("state") == "running" and not self._is_training():
                self._told |= {"state": "failed", "error": "the training ended without a word"}
            return dict(self._told)

    def close(self) -> None:
        """End all processes; a training that runs ends, too, and can be resumed."""
        self._ends = True
        self._events.put(("end", None))
        self._listener.join(5)
        for process in (self._warm, self._training):
            if process is not None and process.is_alive():
                process.terminate()
                process.join(10)

    def _is_training(self) -> bool:
        return self._training is not None and bool(self._training.is_alive())

    def _listen(self) -> None:
        while True:
            kind, value = self._events.get()
            with self._guard:
                if kind == "end":
                    return
                if kind == "scores":
                    self._scores.append(("warm", value))
                elif kind == "version":
                    self._version = value
                elif kind == "training":
                    self._told = {**self._told, **value}


def _read_version(folder: Path) -> int:
    try:
        return int(json.loads((folder / "version.json").read_text("utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        return 0


def _rounds(home: Path, images: Path, folder: Path, orders: Any, events: Any) -> None:
    """Train a round whenever there are new labels, until the parent ends."""
    import torch

    with suppress(OSError):
        os.nice(10)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    parent = multiprocessing.parent_process()
    learnt = 0
    db = connect(home / LOG)
    while True:
        try:
            first = orders.get(timeout=5)
        except queue.Empty:
            if parent is not None and not parent.is_alive():
                return
            continue
        with suppress(queue.Empty):  # the latest order holds all that matters
            while True:
                first = orders.get_nowait()
        (last,) = db.execute("select coalesce(max(id), 0) from log").fetchone()
        if last == learnt:
            continue
        rows = image_rows(db, dict(image_files(images, home)))
        network = _round(db, rows)
        if network is None:
            continue
        learnt = last
        checks = [row for row in rows if row.is_check and row.state == "done"]
        if checks:
            events.put(("scores", [_score(db, network, row) for row in checks]))
        version = _read_version(folder) + 1
        open_names = [row.name for row in rows if row.state == "open"]
        paths = {row.name: row.path for row in rows}
        ahead = [name for name in dict.fromkeys([*first, *open_names]) if name in paths]
        ahead = ahead[:_MOST_PREDICTED]
        for some in (ahead[:4], ahead[4:]):
            for name in some:
                with suppress(BinsegError):  # whoever opens an unreadable image sees why
                    image = open_working_image(name, paths[name])
                    data = encode_probability(network.probability(image.small_hw3))
                    write_bytes(folder / f"{name}.png", data)
            write_json(folder / "version.json", {"version": version})
            events.put(("version", version))


def _round(db: Any, rows: Sequence[Any]) -> warm_engine.WarmNetwork | None:
    """Train on the labels that are there now; None where they show one kind only."""
    examples, seen = [], set()
    taught = [row for row in rows if not row.is_check and (row.num_strokes or row.state == "done")]
    for row in taught[-_MOST_EXAMPLES:]:
        image = open_working_image(row.name, row.path)
        labels_hw = reduced(labels_in(db, row.name, *image.size), image.small_size)
        if (labels_hw != IGNORE).any():
            examples.append(warm_engine.Example(rgb_hw3=image.small_hw3, labels_hw=labels_hw))
            seen |= {*np.unique(labels_hw).tolist()}
    if not {0, 1} <= seen:
        return None
    return warm_engine.train_round(warm_engine.base_network(), examples, seconds=ROUND_SECONDS)


def _score(db: Any, network: warm_engine.WarmNetwork, row: Any) -> float:
    image: WorkingImage = open_working_image(row.name, row.path)
    truth = reduced(labels_in(db, row.name, *image.size), image.small_size) == 1
    return dice_of(network.probability(image.small_hw3) > 0.5, truth)


class _Telling:
    """Progress that another process shows."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._label, self._done, self._total = "", 0, 0

    def say(self, line: str) -> None:
        self._events.put(("training", {"said": line}))

    @contextmanager
    def task(self, label: str, *, total: int | None) -> Iterator["_Telling"]:
        self._label, self._done, self._total = label, 0, total or 0
        self.advance(0)
        yield self

    def advance(self, num: int = 1, /, **figures: float) -> None:
        self._done += num
        facts = {"label": self._label, "done": self._done, "total": self._total}
        shown = {name: round(float(value), 4) for name, value in figures.items()}
        self._events.put(("training", {**facts, "figures": shown}))


def _train_for_real(home: Path, images: Path, minutes: float, events: Any) -> None:
    from binseg.pipelines.evaluate_model import evaluate
    from binseg.pipelines.plan_recipe import plan
    from binseg.pipelines.train_model import train
    from binseg.training.run_folder import next_run_path

    progress = _Telling(events)
    try:
        data = str(home if (home / LOG).is_file() else images)
        planned = plan(sections={"data": {"path": data}}, budget=60 * minutes, progress=progress)
        out = next_run_path(planned.recipe.model.name, root=home / "runs")
        told, spent = planned.as_yaml(), planned.seconds
        result = train(planned.recipe, out=out, progress=progress, spent=spent, plan=told)
        split = "test" if result.has_test else "val"
        report = evaluate(out, split=split, out=out / split, progress=progress)
    except (BinsegError, KeyboardInterrupt) as error:
        events.put(("training", {"state": "failed", "error": str(error) or "stopped"}))
        return
    interval = report.intervals.get("mean", {}).get("original", {}).get("dice")
    facts = {"state": "done", "folder": str(out), "split": split, "num_images": len(report.images)}
    scores = {"dice": report.mean["original"]["dice"], "low": None, "high": None}
    if interval:
        scores |= {"low": interval.low, "high": interval.high}
    events.put(("training", facts | scores))


def _read_probability(path: Path) -> np.ndarray | None:
    """Read what a network predicted, from a grey PNG; None where it isn't there."""
    try:
        with Image.open(path) as image:
            return np.asarray(image, np.float32) / 255
    except FileNotFoundError:
        return None
