"""A project that is open: what each image's mask is just now, and the engines that work on it.

A stroke waits for the disk alone. One thread behind answers with the cold engine, the image that
was drawn on last first; whatever takes longer (features of the next image, the choice of features,
scores on the check images) waits for a pause. Networks train in a process of their own.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from binseg.errors import BinsegError, UsageError
from binseg.labeling.cold_engine import ColdEngine, first_step, settle, snap
from binseg.labeling.next_image import Outlook, outlook_of, rank
from binseg.labeling.project import ChangedError, Project, active
from binseg.labeling.running_score import Standing, dice_of, standings
from binseg.labeling.strokes import Labels, Stroke, draw, pack, unpack
from binseg.labeling.working_image import WorkingImage, open_working_image
from binseg.types import IGNORE

_LOG = logging.getLogger("binseg.label")
WARM_IMAGES, WARM_STROKES = 3, 50
"""Accepted images or strokes from which on a network trains."""
LEAST_TRAINED = 4
"""Accepted images without which nothing can be trained and validated."""
_NUM_OPEN = 6
_LEARNT_AT_START = 12
_LOCAL = 0.06
"""Distance from a stroke, as a share of the image's diagonal, at which a correction fades."""
_PAUSE_S = 0.35
_NUM_SCORED = 12
"""Check images on which the cold engine is scored."""


class Network(Protocol):
    """What trains and predicts in another process."""

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


@dataclass(kw_only=True)
class _Opened:
    """An image in work; all but `image` is guarded by the session's lock."""

    image: WorkingImage
    labels_HW: Labels
    small_hw: Labels
    """The labels at the engines' size, drawn by the same strokes made smaller."""
    owner_hw: np.ndarray
    """The line of the log that each labelled pixel of `small_hw` is of."""
    line: int
    """Last line of the log that is drawn."""
    is_check: bool
    accepted: bool
    probability: Float[np.ndarray, "h w"] | None = None
    engine: str = "none"
    answered: int = -1
    """Last line of the log that `probability` knows of."""
    version: int = 0
    """Counts the predictions of this image."""
    is_fine: bool = True
    seconds: float = 0.0
    touched: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The state of an image that a person sees."""

    codes: np.ndarray
    """0 background and 1 foreground as predicted, 2 and 3 as labelled."""
    engine: str
    line: int
    version: int
    is_fine: bool
    seconds: float
    share: float


class Session:
    """An open project with its engines.

    Args:
        project: what is on disk.
        engine: the cold engine.
        network: what trains beside; None for none.
        seed: decides the order of images.
    """

    def __init__(
        self, project: Project, *, engine: ColdEngine, network: Network | None = None, seed: int = 0
    ) -> None:
        self.project, self.engine, self.network = project, engine, network
        self._seed = seed
        self._state = threading.Condition()
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._dirty: OrderedDict[str, None] = OrderedDict()
        self._chores: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._outlooks: dict[str, Outlook] = {}
        self._offered: list[str] = []
        self._network_version: str | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="binseg-label", daemon=True)
        for row in [row for row in project.rows() if row.num_strokes or row.state == "done"][
            -_LEARNT_AT_START:
        ]:
            self._later(f"learn {row.name}", self._learner(row.name))
        self._thread.start()
        self._wake_network()

    def close(self) -> None:
        """End all work and close the project."""
        with self._state:
            self._ending = True
            self._state.notify_all()
        self._thread.join(30)
        if self.network is not None:
            self.network.close()
        self.project.close()

    # An image

    def open(self, name: str) -> _Opened:
        """Read an image and replay its labels, unless it is open.

        Raises:
            UsageError: there is no such image.
            ImageError: it can't be read.
        """
        with self._state:
            if name in self._opened:
                self._opened.move_to_end(name)
                self._opened[name].touched = time.monotonic()
                return self._opened[name]
        row = self.project.row(name)
        image = open_working_image(name, row.path)
        with self._state:
            if name not in self._opened:
                self._opened[name] = self._replayed(image, is_check=row.is_check)
                while len(self._opened) > _NUM_OPEN:
                    self._opened.popitem(last=False)
            opened = self._opened[name]
            self._ask(name)
        self._outlooks.setdefault(name, outlook_of(image.small_hw3, None))
        return opened

    def _replayed(self, image: WorkingImage, *, is_check: bool) -> _Opened:
        lines = self.project.lines(image.name)
        opened = _Opened(
            image=image,
            labels_HW=np.full(image.size, IGNORE, np.uint8),
            small_hw=np.full(image.small_size, IGNORE, np.uint8),
            owner_hw=np.zeros(image.small_size, np.int64),
            line=lines[-1].id if lines else 0,
            is_check=is_check,
            accepted=False,
        )
        for line in active(lines)[0]:
            if line.stroke is not None:
                _draw_on(opened, line.stroke, line.id)
                opened.accepted |= line.kind in {"accept", "import"}
        return opened

    def _replay_again(self, name: str) -> None:
        with self._state:
            before = self._opened.get(name)
            if before is None:
                return
            fresh = self._replayed(before.image, is_check=before.is_check)
            fresh.probability, fresh.engine = before.probability, before.engine
            fresh.version = before.version
            self._opened[name] = fresh
            self._ask(name)

    def add_stroke(
        self, name: str, stroke: Stroke, *, client: str | None = None, model: str | None = None
    ) -> int:
        """Keep a stroke, and have the engines answer to it; returns once it is on the disk."""
        opened = self.open(name)
        canvas = opened.labels_HW
        if stroke.tool in {"region", "labels"}:
            draw(
                np.full_like(canvas, IGNORE), stroke
            )  # refuses what doesn't fit, before it is kept
        with self._state:  # one order of strokes on the disk and on the image
            line = self.project.add_stroke(name, stroke, client=client, model=model)
            if line > opened.line:
                _draw_on(opened, stroke, line)
                opened.line = line
            self._ask(name)
        if self.project.last(name) % 10 == 0:
            self._later("choose", self._choose)
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
        height, width = opened.image.size
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"the point {x}, {y} is outside of the image")
        with self._state:
            mask_HW = self._mask(opened)
        area_HW, _ = ndimage.label(mask_HW == mask_HW[y, x])
        return self._add_region(name, area_HW == area_HW[y, x], value, client)

    def box(
        self,
        name: str,
        rectangle: tuple[int, int, int, int],
        value: int,
        *,
        client: str | None = None,
    ) -> int:
        """Give a value to the thing in a box (top, left, bottom, right)."""
        opened = self.open(name)
        (height, width), small = opened.image.size, opened.image.small_size
        scale = small[0] / height, small[1] / width
        limits = (small[0], small[1]) * 2
        inside = [
            int(np.clip(round(side * scale[place % 2]), 0, limits[place]))
            for place, side in enumerate(rectangle)
        ]
        if inside[2] - inside[0] < 3 or inside[3] - inside[1] < 3:
            raise UsageError("that box is too small: draw it around the thing")
        parts = self.engine.describe(opened.image)
        found = snap(opened.image.small_hw3, (inside[0], inside[1], inside[2], inside[3]), parts)
        return self._add_region(
            name, opened.image.enlarge(found.astype(np.float32)) > 0.5, value, client
        )

    def _add_region(self, name: str, mask_HW: np.ndarray, value: int, client: str | None) -> int:
        rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        if not len(rows):
            raise UsageError("nothing was found there")
        part = mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        stroke = Stroke(
            tool="region",
            value=value,
            points=((float(columns[0]), float(rows[0])),),
            region=pack(part),
        )
        return self.add_stroke(name, stroke, client=client)

    def accept(
        self,
        name: str,
        *,
        seen: int,
        version: int | None = None,
        empty: bool = False,
        client: str | None = None,
    ) -> int:
        """Keep what is shown as the image's mask.

        Args:
            name: of the image.
            seen: last line of the log that the person saw.
            version: of the prediction that the person saw.
            empty: nothing is in the image, whatever is shown.
            client: as for strokes.

        Raises:
            ChangedError: something else is shown by now.
        """
        opened = self.open(name)
        with self._state:
            if not empty and version is not None and version != opened.version:
                raise ChangedError(
                    f"{name}: a newer prediction has come; look at it, and accept it"
                )
            labels_HW = np.zeros(opened.image.size, np.uint8)
            if not empty:
                labels_HW = self._mask(opened).astype(np.uint8)
            line = self.project.accept(
                name, labels_HW, seen=seen, client=client, model=opened.engine
            )
        self._replay_again(name)
        self._later(f"learn {name}", self._learner(name))
        self._later("score", self._score)
        self._wake_network()
        return line

    def skip(self, name: str, *, client: str | None = None) -> None:
        """Leave an image out."""
        self.project.skip(name, client=client)
        self._replay_again(name)

    def shown(
        self,
        name: str,
        box: tuple[int, int, int, int],
        *,
        level: int = 0,
        after: int = 0,
        fine: bool = False,
        wait: float = 0.0,
    ) -> Shown:
        """Give a part of an image's state, one pixel in 2^level x 2^level.

        Args:
            name: of the image.
            box: top, left, bottom, right in the image's pixels.
            level: 0 for all pixels.
            after: a line of the log that the prediction should know of.
            fine: whether it should be as fine as it gets.
            wait: seconds for which this is waited for; then what is there is given.
        """
        opened = self.open(name)
        until = time.monotonic() + wait
        with self._state:
            while (
                (opened.answered < after or (fine and not opened.is_fine))
                and not self._ending
                and time.monotonic() < until
            ):
                self._state.wait(max(0.001, until - time.monotonic()))
                opened = self._opened.get(name, opened)
            top, left, bottom, right = box
            step = 1 << level
            labels = opened.labels_HW[top:bottom:step, left:right:step]
            codes = labels + np.uint8(2)
            unknown = labels == IGNORE
            codes[unknown] = self._part(opened, box, labels.shape)[unknown]
            return Shown(
                codes=codes,
                engine="without help" if opened.is_check and not opened.accepted else opened.engine,
                line=opened.line,
                version=opened.version,
                is_fine=opened.is_fine,
                seconds=opened.seconds,
                share=float((codes & 1).mean()) if codes.size else 0.0,
            )

    def _part(
        self, opened: _Opened, box: tuple[int, int, int, int], shape: tuple[int, ...]
    ) -> np.ndarray:
        """What is predicted in a box: a mask of `shape`; nothing where help isn't wanted."""
        if opened.probability is None or opened.is_check or opened.accepted:
            return np.zeros(shape, np.uint8)
        p = opened.probability
        if p.shape == opened.image.size and shape == (box[2] - box[0], box[3] - box[1]):
            return (p[box[0] : box[2], box[1] : box[3]] > 0.5).astype(np.uint8)
        scale = p.shape[0] / opened.image.size[0], p.shape[1] / opened.image.size[1]
        area = (box[1] * scale[1], box[0] * scale[0], box[3] * scale[1], box[2] * scale[0])
        part = Image.fromarray(p).resize(shape[::-1], Image.Resampling.BILINEAR, box=area)
        return (np.asarray(part) > 0.5).astype(np.uint8)

    def _mask(self, opened: _Opened) -> np.ndarray:
        """The whole mask that is shown: what is labelled, and what is predicted elsewhere."""
        height, width = opened.image.size
        predicted = self._part(opened, (0, 0, height, width), (height, width)) == 1
        return np.where(opened.labels_HW == IGNORE, predicted, opened.labels_HW == 1)

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
            unknown = Outlook(foreground=1.0, doubt=1.0, look=np.zeros(1, np.float32))
            outlooks = {name: self._outlooks.get(name, unknown) for name in names}
            seed = self._seed + len(self.project.rows()) - len(rows)
            self._offered = rank(outlooks, rule="random", seed=seed)
        chosen = next((name for name in self._offered if name in names), names[0])
        later = [name for name in self._offered if name in names and name != chosen]
        if later:
            self._later(f"describe {later[0]}", self._describer(later[0]))
        return chosen

    def _num_done(self) -> int:
        return sum(row.state == "done" and not row.is_check for row in self.project.rows())

    # State of the whole

    def train(self, minutes: float) -> None:
        """Begin to train for real.

        Raises:
            UsageError: nothing to train on, no network beside, or a training runs already.
        """
        if self.network is None:
            raise UsageError("this session trains no networks")
        done = sum(row.state == "done" for row in self.project.rows())
        if done < LEAST_TRAINED:
            raise UsageError(f"{done} images are done: a training needs {LEAST_TRAINED} or more")
        self.network.train(minutes)

    def status(self) -> dict[str, object]:
        """How far the project is, which engine answers, and how good it is."""
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
            "features": list(self.engine.chosen),
            "trials": {" + ".join(kinds): score for kinds, score in self.engine.trials.items()},
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

    # Behind: one thread, what a person waits for first

    def _ask(self, name: str) -> None:
        self._dirty[name] = None
        self._dirty.move_to_end(name)
        self._state.notify_all()

    def _later(self, key: str, chore: Callable[[], None]) -> None:
        with self._state:
            self._chores[key] = chore
            self._state.notify_all()

    def _wake_network(self) -> None:
        if self.network is None:
            return
        rows = self.project.rows()
        done = self._num_done()
        strokes = sum(row.num_strokes for row in rows if not row.is_check)
        if done >= WARM_IMAGES or strokes >= WARM_STROKES:
            with self._state:
                first = [*reversed(self._opened), *self._offered]
            self.network.wake(first=first)

    def _work(self) -> None:
        while True:
            with self._state:
                while not (self._dirty or self._chores or self._ending):
                    self._state.wait(2.0)
                    self._look_for_network()
                if self._ending:
                    return
                name = next(reversed(self._dirty), None)
                if name is not None:
                    del self._dirty[name]
                elif (pause := self._until_pause()) > 0:
                    self._state.wait(pause)
                    continue
                else:
                    _, chore = self._chores.popitem(last=False)
            with self._told():
                if name is not None:
                    self._answer(name)
                else:
                    chore()

    def _until_pause(self) -> float:
        last = max((one.touched for one in self._opened.values()), default=0.0)
        return last + _PAUSE_S - time.monotonic()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Log what fails behind, and go on: the strokes are safe whatever it is."""
        try:
            yield
        except BinsegError as error:
            _LOG.warning("binseg label: %s", error)
        except Exception:  # noqa: BLE001 - logged whole; the next stroke must be answered
            _LOG.exception("binseg label: a bug; labels are safe, predictions may be missing")

    def _look_for_network(self) -> None:
        """Show what a network has predicted anew."""
        version = self.network.version() if self.network is not None else None
        if version != self._network_version:
            self._network_version = version
            for name in self._opened:
                self._dirty[name] = None

    def _answer(self, name: str, *, fine: bool = False) -> None:
        """Predict an open image anew from all that is known about it."""
        with self._state:
            opened = self._opened.get(name)
            if opened is None:
                return
            line, small_hw, owner_hw = opened.line, opened.small_hw.copy(), opened.owner_hw.copy()
            opened.touched = time.monotonic()
            accepted, is_check = opened.accepted, opened.is_check
        start = time.perf_counter()
        found, engine = None, "none"
        if not accepted and not is_check:
            self.engine.learn(opened.image, small_hw, owner_hw)
            found, engine, fine = self._predict(opened.image, small_hw, fine=fine)
        with self._state:
            now = self._opened.get(name)
            if now is None:
                return
            before, now.probability, now.engine = now.probability, found, engine
            now.answered, now.is_fine = line, fine or found is None
            now.version += found is not None or before is not None
            now.seconds = time.perf_counter() - start
            self._state.notify_all()
        self._outlooks[name] = outlook_of(opened.image.small_hw3, found)
        if not fine and found is not None:
            self._later(f"fine {name}", lambda: self._refine(name, line))

    def _refine(self, name: str, line: int) -> None:
        with self._state:
            opened = self._opened.get(name)
            if opened is None or opened.line != line or opened.is_fine:
                return
        self._answer(name, fine=True)

    def _predict(
        self, image: WorkingImage, small_hw: Labels, *, fine: bool
    ) -> tuple[np.ndarray | None, str, bool]:
        """Give probability, engine, and whether it is as fine as it gets."""
        network = self.network.predicted(image.name) if self.network is not None else None
        has_strokes = bool((small_hw != IGNORE).any())
        if self._best_engine(standings(self.project.scores())) == "cold":
            network = None
        if network is not None and not has_strokes:
            assert self.network is not None
            return network, self.network.version() or "warm", True
        forest = self.engine.fit(image.name)
        if forest is None:
            return network, "none" if network is None else "warm", True
        parts = self.engine.describe(image)
        height, width = image.small_size
        step = 1 if fine else first_step(height, width)
        cold = forest.probability(parts, step=step)
        cold = settle(cold, image.small_hw3[::step, ::step], small_hw[::step, ::step])
        if network is None:
            return cold, "cold", step == 1
        return corrected(network, cold, small_hw), "correct", step == 1

    # Chores

    def _choose(self) -> None:
        if self.engine.choose():
            with self._state:
                for name in self._opened:
                    self._ask(name)

    def _describer(self, name: str) -> Callable[[], None]:
        def describe() -> None:
            self.engine.describe(open_working_image(name, self.project.row(name).path))

        return describe

    def _learner(self, name: str) -> Callable[[], None]:
        def learn() -> None:
            row = self.project.row(name)
            if row.is_check:
                return
            image = open_working_image(name, row.path)
            replayed = self._replayed(image, is_check=False)
            self.engine.learn(image, replayed.small_hw, replayed.owner_hw)

        return learn

    def _score(self) -> None:
        """Score the cold engine on check images, of which it has learnt nothing."""
        checks = [row for row in self.project.rows() if row.is_check and row.state == "done"]
        if (
            not checks
            or (forest := self.engine.fit("", without=[row.name for row in checks])) is None
        ):
            return
        scores = []
        for row in checks[:_NUM_SCORED]:
            if self._dirty or self._ending:  # a person waits: another time
                self._later("score", self._score)
                return
            image = open_working_image(row.name, row.path)
            truth = self._replayed(image, is_check=True).small_hw == 1
            step = first_step(*image.small_size)
            cold = forest.probability(self.engine.describe(image), step=step)
            nothing = np.full(cold.shape, IGNORE, np.uint8)
            cold = settle(cold, image.small_hw3[::step, ::step], nothing)
            scores.append(dice_of(cold > 0.5, truth[::step, ::step]))
        self.project.add_score("cold", scores)


def _draw_on(opened: _Opened, stroke: Stroke, line: int) -> None:
    """Draw a stroke on an image's labels, at both sizes."""
    draw(opened.labels_HW, stroke)
    height, width = opened.image.small_size
    small = _scaled(stroke, opened.image)
    mark_hw = np.full((height, width), 7, np.uint8)  # no value of labels
    box = draw(mark_hw, small)
    if box is not None:
        area = np.s_[box[0] : box[2], box[1] : box[3]]
        hit = mark_hw[area] != 7
        opened.small_hw[area][hit] = mark_hw[area][hit]
        opened.owner_hw[area][hit] = line


def _scaled(stroke: Stroke, image: WorkingImage) -> Stroke:
    """Make a stroke as small as the engines' image."""
    if image.size == image.small_size:
        return stroke
    y, x = (small / full for small, full in zip(image.small_size, image.size, strict=True))
    region, points = stroke.region, tuple((px * x, py * y) for px, py in stroke.points)
    if region:
        pixels = unpack(region)
        left, top = (int(value) for value in points[0])
        size = (
            max(1, min(round(pixels.shape[1] * x), image.small_size[1] - left)),
            max(1, min(round(pixels.shape[0] * y), image.small_size[0] - top)),
        )
        region = pack(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)))
        points = ((float(left), float(top)),)
    return Stroke(
        tool=stroke.tool,
        value=stroke.value,
        points=points,
        radius=max(0.5, stroke.radius * (x + y) / 2),
        region=region,
    )


def corrected(network: np.ndarray, cold: np.ndarray, small_hw: Labels) -> np.ndarray:
    """Let the trees answer near the strokes, and the network where nobody has drawn."""
    far_hw = ndimage.distance_transform_edt(small_hw == IGNORE)
    reach = _LOCAL * float(np.hypot(*small_hw.shape))
    near_hw = np.exp(-((far_hw / reach) ** 2)).astype(np.float32)
    size = network.shape[::-1]

    def fitted(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.asarray(values, np.float32))
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    near, local = fitted(near_hw), fitted(cold)
    return (1 - near) * network + near * local


def read_probability(path: Path) -> np.ndarray | None:
    """Read what a network predicted, from a grey PNG; None where it isn't there."""
    try:
        with Image.open(path) as image:
            return np.asarray(image, np.float32) / 255
    except FileNotFoundError:
        return None
