"""A project that is open: what each image's mask is just now, and the engines that work on it.

A stroke waits for the disk alone. One thread behind answers with the cold engine, the image that
was drawn on last first; another does whatever takes longer. Networks train in a process of their
own.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from jaxtyping import Float

from binseg.errors import UsageError
from binseg.labeling.cold_engine import ColdEngine, first_step, snap
from binseg.labeling.guidance import Standing, rank, standings
from binseg.labeling.label_log import ChangedError, Stroke, draw
from binseg.labeling.open_image import (
    OpenImage,
    Shown,
    WorkingImage,
    corrected,
    open_working_image,
    region_of,
    replayed,
)
from binseg.labeling.project import Project
from binseg.labeling.worker import Worker
from binseg.metrics import dice_of
from binseg.types import IGNORE

WARM_IMAGES, WARM_STROKES = 3, 50  # accepted images or strokes from which on a network trains
LEAST_TRAINED = 4  # accepted images without which nothing can be trained and validated
_NUM_OPEN = 6
_LEARNT_AT_START = 12
_NUM_SCORED = 12  # check images on which the cold engine is scored
Box = tuple[int, int, int, int]  # top, left, bottom, right


class Network(Protocol):
    """A network that trains and predicts in another process."""

    def predicted(self, name: str) -> Float[np.ndarray, "h w"] | None:
        """Give the network's probability for an image, where there is one."""

    def version(self) -> str | None:
        """Name what `predicted` is of: `warm 3`, or a model's name; None while there is none."""

    def wake(self, *, first: Sequence[str]) -> None:
        """Have it train a round, if new labels are there, and predict; these images first."""

    def scores(self) -> list[tuple[str, list[float]]]:
        """Take the scores on the check images that have come since."""

    def train(self, minutes: float) -> None:
        """Begin to train for real."""

    def training(self) -> Mapping[str, object]:
        """Tell how far that is."""

    def close(self) -> None:
        """End it."""


class Session:
    """An open project with its cold engine, and the network that trains beside (None for none)."""

    def __init__(
        self, project: Project, *, engine: ColdEngine, network: Network | None = None
    ) -> None:
        self.project, self.engine, self.network = project, engine, network
        self._state = threading.Condition()
        self._opened: OrderedDict[str, OpenImage] = OrderedDict()
        self._shares: dict[str, float] = {}  # of predicted foreground
        self._offered: list[str] = []
        self._network_version: str | None = None
        self._worker = Worker(self._answer, self._look_for_network, self._state)
        labelled = [one.name for one in project.rows() if one.num_strokes or one.state == "done"]
        for name in labelled[-_LEARNT_AT_START:]:
            self._worker.later(f"learn {name}", partial(self._learn, name))
        self._worker.start()
        self._wake_network()

    def close(self) -> None:
        """End all work and close the project."""
        self._worker.stop()
        if self.network is not None:
            self.network.close()
        self.project.close()

    # An image

    def open(self, name: str) -> OpenImage:
        """Read an image and replay its labels, unless it is open; UsageError, ImageError."""
        with self._state:
            if name in self._opened:
                self._opened.move_to_end(name)
                return self._opened[name]
        row = self.project.row(name)
        image = open_working_image(name, row.path)
        with self._state:
            if name not in self._opened:
                self._opened[name] = self._replay(image, is_check=row.is_check)
                while len(self._opened) > _NUM_OPEN:
                    self._opened.popitem(last=False)
            opened = self._opened[name]
            self._worker.ask(name)
        return opened

    def _replay(self, image: WorkingImage, *, is_check: bool) -> OpenImage:
        return replayed(image, self.project.lines(image.name), is_check=is_check)

    def _replay_again(self, name: str) -> None:
        with self._state:
            if before := self._opened.get(name):
                fresh = self._replay(before.image, is_check=before.is_check)
                fresh.probability, fresh.engine = before.probability, before.engine
                fresh.version = before.version
                self._opened[name] = fresh
                self._worker.ask(name)

    def add_stroke(
        self, name: str, stroke: Stroke, *, client: str | None = None, model: str | None = None
    ) -> int:
        """Keep a stroke, and have the engines answer to it; returns once it is on the disk."""
        opened = self.open(name)
        canvas = opened.labels_HW
        if stroke.tool in {"region", "labels"}:
            draw(np.full_like(canvas, IGNORE), stroke)  # a misfit is refused before it is kept
        with self._state:  # one order of strokes on the disk and on the image
            line = self.project.add_stroke(name, stroke, client=client, model=model)
            if line > opened.line:
                opened.draw(stroke, line)
                opened.line = line
            self._worker.ask(name)
        if self.project.last(name) % 10 == 0:
            self._worker.later("choose", self.engine.choose)
            self._wake_network()
        return line

    def undo(self, name: str, *, redo: bool = False, client: str | None = None) -> int | None:
        """Take back the last line of an image, or bring it back."""
        line = self.project.undo(name, redo=redo, client=client)
        self._replay_again(name)
        return line

    def fill(self, name: str, x: int, y: int, value: int, *, client: str | None = None) -> int:
        """Give a value to the area around a point that is shown alike."""
        opened = self.open(name)
        with self._state:
            area_HW = opened.area_at(x, y)
        return self.add_stroke(name, region_of(area_HW, value), client=client)

    def box(self, name: str, rectangle: Box, value: int, *, client: str | None = None) -> int:
        """Give a value to the thing in a box."""
        opened = self.open(name)
        parts = self.engine.describe(opened.image)
        found = snap(opened.image.small_hw3, opened.image.small_box(rectangle), parts)
        mask_HW = opened.image.enlarge(found.astype(np.float32)) > 0.5
        return self.add_stroke(name, region_of(mask_HW, value), client=client)

    def accept(
        self,
        name: str,
        *,
        seen: int,
        version: int | None = None,
        empty: bool = False,
        client: str | None = None,
    ) -> int:
        """Keep what is shown, or nothing (`empty`), as the mask; ChangedError if it changed."""
        opened = self.open(name)
        with self._state:
            is_ours = self.project.last(name) <= seen  # else another window has drawn
            if is_ours and not empty and version not in (None, opened.version):
                told = f"{name}: a newer prediction has come; look at it, and accept it"
                raise ChangedError(told)
            mask_HW = np.zeros(opened.image.size) if empty else opened.mask()
            labels_HW, engine = mask_HW.astype(np.uint8), opened.engine
            line = self.project.accept(name, labels_HW, seen=seen, client=client, model=engine)
        self._replay_again(name)
        self._worker.later(f"learn {name}", partial(self._learn, name))
        self._worker.later("score", self._score)
        self._wake_network()
        return line

    def skip(self, name: str, *, client: str | None = None) -> None:
        """Leave an image out."""
        self.project.skip(name, client=client)
        self._replay_again(name)

    def shown(
        self,
        name: str,
        box: Box,
        *,
        level: int = 0,
        after: int = 0,
        fine: bool = False,
        wait: float = 0.0,
    ) -> Shown:
        """Give a part of an image, one pixel in 2^level x 2^level; it waits for `after`, `fine`."""
        opened = self.open(name)
        height, width = opened.image.size
        box = (*box[:2], min(box[2], height), min(box[3], width))
        if box[0] >= box[2] or box[1] >= box[3]:
            raise UsageError("that part is outside of the image")

        def is_answered() -> bool:
            now = self._opened.get(name, opened)
            is_known = now.answered >= after and (now.is_fine or not fine)
            return is_known or self._worker.is_ending

        with self._state:
            self._state.wait_for(is_answered, wait)
            opened = self._opened.get(name, opened)
            codes = opened.codes(box, 1 << level)
            return Shown(
                codes=codes,
                engine="without help" if opened.is_check and not opened.accepted else opened.engine,
                line=opened.line,
                version=opened.version,
                is_fine=opened.is_fine and opened.answered >= opened.line,
                seconds=opened.seconds,
                share=float((codes & 1).mean()) if codes.size else 0.0,
            )

    # The order of images

    def next(self, after: str | None = None) -> str | None:
        """Choose the image to label next; None where all are labelled or skipped."""
        rows = [row for row in self.project.rows() if row.state == "open" and row.name != after]
        if not rows:
            return None
        if self._num_done() < WARM_IMAGES:  # to label without help is no beginning
            rows = [row for row in rows if not row.is_check] or rows
        names = [row.name for row in rows]
        if not any(name in self._offered for name in names):
            shares = {name: self._shares.get(name, 1.0) for name in names}
            self._offered = rank(shares, seed=len(self.project.rows()) - len(rows))
        chosen = next((name for name in self._offered if name in names), names[0])
        later = [name for name in self._offered if name in names and name != chosen]
        if later:
            self._worker.later(f"describe {later[0]}", partial(self._describe, later[0]))
        return chosen

    def _num_done(self) -> int:
        return sum(row.state == "done" and not row.is_check for row in self.project.rows())

    # State of the whole

    def train(self, minutes: float) -> None:
        """Begin to train for real; UsageError if nothing can be, or a training runs already."""
        if self.network is None:
            raise UsageError("no network is trained beside (--cold)")
        done = sum(row.state == "done" for row in self.project.rows())
        if done < LEAST_TRAINED:
            raise UsageError(f"{done} images are done: a training needs {LEAST_TRAINED} or more")
        self.network.train(minutes)

    def status(self) -> dict[str, object]:
        """Say how far the project is, which engine answers, and how good it is."""
        rows = self.project.rows()
        found = self.standings()
        best = self._best_engine(found)
        return {
            "images": len(rows),
            "done": sum(row.state == "done" for row in rows),
            "skipped": sum(row.state == "skipped" for row in rows),
            "strokes": sum(row.num_strokes for row in rows),
            "check_images": sum(row.is_check for row in rows),
            "checked": sum(row.is_check and row.state == "done" for row in rows),
            "engine": best,
            "network": self.network.version() if self.network is not None else None,
            "features": {" + ".join(kinds): share for kinds, share in self.engine.say.items()},
            "standings": [one.as_dict() for one in found],
            "training": dict(self.network.training()) if self.network is not None else {},
            "home": str(self.project.home),
        }

    def standings(self) -> list[Standing]:
        """Scores of the engines on the check images, the best first."""
        if self.network is not None:
            for engine, scores in self.network.scores():
                self.project.add_score(engine, scores)
        return standings(self.project.scores())

    def _best_engine(self, found: Sequence[Standing]) -> str:
        version = self.network.version() if self.network is not None else None
        if version is None:
            return "cold"
        value = {one.engine: one.dice.value for one in found}
        kind = version.partition(" ")[0]
        return "cold" if value.get("cold", 0.0) > value.get(kind, 1.0) else kind

    # Behind, on the worker's thread

    def _wake_network(self) -> None:
        if self.network is None:
            return
        strokes = sum(row.num_strokes for row in self.project.rows() if not row.is_check)
        if self._num_done() >= WARM_IMAGES or strokes >= WARM_STROKES:
            with self._state:
                first = [*reversed(self._opened), *self._offered]
            self.network.wake(first=first)

    def _look_for_network(self) -> None:
        """Show what a network has predicted anew."""
        version = self.network.version() if self.network is not None else None
        if version != self._network_version:
            self._network_version = version
            for name in self._opened:
                self._worker.ask(name)

    def _answer(self, name: str, *, fine: bool = False) -> None:
        """Predict an open image anew: at once and quickly, then `fine`, from all that is known."""
        with self._state:
            opened = self._opened.get(name)
            if opened is None or (fine and (opened.is_fine or opened.answered != opened.line)):
                return
            line, small_hw, owner_hw = opened.line, opened.small_hw.copy(), opened.owner_hw.copy()
            helps = not opened.accepted and not opened.is_check
        start, image = time.perf_counter(), opened.image
        found, engine, forest = None, "none", None
        if helps:
            if not fine:
                self.engine.learn(image, small_hw, owner_hw)
            found, engine = self._network_says(name)
            if found is None or (small_hw != IGNORE).any():
                forest = self.engine.fit(name, is_first=not fine)
        if forest is not None:
            step = 1 if fine else first_step(*image.small_size)
            cold = self.engine.answer(forest, image, small_hw, step=step)
            engine = "cold" if found is None else "correct"
            found = cold if found is None else corrected(found, cold, small_hw)
        with self._state:
            now = self._opened.get(name)
            if now is None or now.answered > line:  # something newer is there
                return
            now.version += found is not None or now.probability is not None
            now.probability, now.engine = found, engine
            now.answered, now.is_fine = line, fine or forest is None
            now.seconds = time.perf_counter() - start
            self._state.notify_all()
        self._shares[name] = 1.0 if found is None else float((found > 0.5).mean())
        if not now.is_fine:
            self._worker.later(f"fine {name}", partial(self._answer, name, fine=True))

    def _network_says(self, name: str) -> tuple[np.ndarray | None, str]:
        """Give the network's probability for an image and its name, where it is the better one."""
        version = self.network.version() if self.network is not None else None
        if version is None or self._best_engine(standings(self.project.scores())) == "cold":
            return None, "none"
        assert self.network is not None
        found = self.network.predicted(name)
        return found, "none" if found is None else version

    # Chores

    def _describe(self, name: str) -> None:
        self.engine.describe(open_working_image(name, self.project.row(name).path))

    def _learn(self, name: str) -> None:
        row = self.project.row(name)
        if not row.is_check:
            opened = self._replay(open_working_image(name, row.path), is_check=False)
            self.engine.learn(opened.image, opened.small_hw, opened.owner_hw)

    def _score(self) -> None:
        """Score the cold engine on check images, of which it has learnt nothing."""
        checks = [row for row in self.project.rows() if row.is_check and row.state == "done"]
        forest = self.engine.fit("", without=[row.name for row in checks]) if checks else None
        if forest is None:
            return
        scores = []
        for row in checks[:_NUM_SCORED]:
            image = open_working_image(row.name, row.path)
            truth = self._replay(image, is_check=True).small_hw == 1
            step = first_step(*image.small_size)
            unknown_hw = np.full(image.small_size, IGNORE, np.uint8)
            found = self.engine.answer(forest, image, unknown_hw, step=step) > 0.5
            scores.append(dice_of(found, truth[::step, ::step]))
        self.project.add_score("cold", scores)
