"""A simulated annotator, so that every claim about `binseg label` can be measured again.

    python benchmarks/label.py cold --set nuclei --num 20        strokes on 1 % of the pixels
    python benchmarks/label.py latency --num 40                  from a stroke to the new mask
    python benchmarks/label.py start --num 300                   from the command to a first mask
    python benchmarks/label.py paint                             frames while a brush moves
    python benchmarks/label.py loop --set pets --images 60       how many images are enough
    python benchmarks/label.py loop --set em --seeds 5 --shares 0.15
    python benchmarks/label.py correct --set pets --num 20       strokes with a model's help
    pytest tests/labeling -m slow                                200 times kill -9

The annotator looks at the largest error, as a person would: it draws there, along the middle of
what is wrong, with a brush that fits, and a little beside where its hand slips. The data is that of
../shared/data.
"""

import argparse
import io
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
from PIL import Image
from scipy import ndimage, stats

from binseg.imageio import read_image, read_labels
from binseg.labeling.cold_engine import ColdEngine, filter_features
from binseg.labeling.guidance import rank
from binseg.labeling.label_log import Stroke, draw
from binseg.labeling.open_image import WorkingImage, corrected, to_rgb
from binseg.labeling.project import Project
from binseg.labeling.session import Session
from binseg.labeling.warm_engine import (
    Example,
    WarmNetwork,
    base_network,
    lite0_features,
    train_round,
)
from binseg.metrics import dice_of
from binseg.metrics.scores import bootstrap_interval
from binseg.types import IGNORE

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SETS = ("nuclei", "em", "pets")
SIDE = 256
REACTION_S = 1.2
"""Seconds in which a person sees the largest error and begins to draw."""
SPEED = 90.0
"""Pixels a second along a stroke."""


class Pair(NamedTuple):
    """An image and its truth."""

    name: str
    rgb: np.ndarray
    truth: np.ndarray


class Annotator:
    """Someone who labels by the truth: with a brush, a reaction time, and a hand that slips.

    Args:
        seed: decides where the hand slips.
        radius: of the largest brush.
        length: of a stroke, in pixels.
        slip: standard deviation of the hand, in pixels.
    """

    def __init__(
        self, *, seed: int = 0, radius: float = 3.0, length: int = 24, slip: float = 0.3
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._radius, self._length, self._slip = radius, length, slip
        self.seconds = 0.0
        self.num_strokes = 0

    def stroke(self, shown: np.ndarray | None, truth: np.ndarray) -> Stroke | None:
        """Draw on the largest error; without anything shown, on the thing, then beside it.

        Returns:
            None where there is no error left that is worth a stroke.
        """
        wrong = truth if shown is None else shown != truth
        areas, num = ndimage.label(wrong)
        if num == 0:
            return None
        largest = 1 + int(np.argmax(ndimage.sum_labels(wrong, areas, range(1, num + 1))))
        area = areas == largest
        # An error joins pixels of both kinds where the mask is shifted: the kind of most of it.
        value = int(truth[area].mean() >= 0.5)
        return self._along(area & (truth == bool(value)), value)

    def beside(self, truth: np.ndarray) -> Stroke | None:
        """Draw on the background, somewhere not too near the thing."""
        away = ndimage.distance_transform_edt(~truth)
        near = (away > 4) & (away < 40)
        places = np.argwhere(near if near.any() else ~truth)
        if not len(places):
            return None
        y, x = places[self._random.integers(len(places))]
        spot = np.zeros(truth.shape, bool)
        spot[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13] = True
        return self._along(spot & ~truth, 0)

    def _along(self, area: np.ndarray, value: int) -> Stroke | None:
        """Follow the middle of an area from its deepest point, both ways."""
        depth = ndimage.distance_transform_edt(np.pad(area, 1))[1:-1, 1:-1]
        if depth.max() == 0:
            return None
        start = np.unravel_index(int(np.argmax(depth)), depth.shape)
        radius = float(np.clip(0.8 * depth.max() - 0.3, 0.5, self._radius))
        points = [(float(start[1]) + 0.5, float(start[0]) + 0.5)]
        for way in (1, -1):
            y, x = float(start[0]), float(start[1])
            angle = self._direction(depth, start) + (0 if way == 1 else np.pi)
            line = []
            for _ in range(self._length // 2):
                turns = angle + np.linspace(-0.7, 0.7, 7)
                ahead = [(y + 1.5 * np.sin(a), x + 1.5 * np.cos(a)) for a in turns]
                depths = [_at(depth, one) for one in ahead]
                best = int(np.argmax(depths))
                if depths[best] < max(0.5, radius * 0.8):
                    break
                (y, x), angle = ahead[best], turns[best]
                slip = self._random.normal(0, self._slip, 2)
                line.append((x + 0.5 + slip[0], y + 0.5 + slip[1]))
            points = [*points, *line] if way == 1 else [*reversed(line), *points]
        self.num_strokes += 1
        self.seconds += REACTION_S + 1.5 * len(points) / SPEED
        return Stroke(tool="brush", value=value, points=tuple(points), radius=radius)

    def _direction(self, depth: np.ndarray, start: tuple[np.intp, ...]) -> float:
        angles = self._random.uniform(0, 2 * np.pi) + np.linspace(0, np.pi, 9)[:-1]
        reach = [
            sum(_at(depth, (start[0] + way * r * np.sin(a), start[1] + way * r * np.cos(a)))
                for r in (3, 6, 12) for way in (1, -1))
            for a in angles
        ]  # fmt: skip
        return float(angles[int(np.argmax(reach))])


def _at(depth: np.ndarray, place: tuple[float, float]) -> float:
    y, x = round(float(place[0])), round(float(place[1]))
    inside = 0 <= y < depth.shape[0] and 0 <= x < depth.shape[1]
    return float(depth[y, x]) if inside else 0.0


def pairs(name: str, num: int, *, seed: int = 0) -> Iterator[Pair]:
    """Give images of 256 x 256 with something in them, in an order that the seed decides.

    Nuclei: windows of images that are larger. EM: windows of every second slice. Pets: as they
    are; the border counts as pet.
    """
    random = np.random.default_rng(seed)
    given = 0
    if name == "em":
        folder = DATA / "em-mitochondria"
        while given < num:
            page = int(random.integers(100))
            image = read_image(folder / "training.tif", page=page)
            truth = read_labels(folder / "training_groundtruth.tif", page=page) > 0
            for pair in _windows(f"{page}", to_rgb(image), truth, random):
                given += 1
                yield pair
        return
    folder = DATA / ("nuclei" if name == "nuclei" else "oxford-pet-256")
    files = sorted((folder / "images").iterdir())
    for place in random.permutation(len(files)):
        path = files[place]
        if name == "nuclei":
            truth = read_labels(folder / "masks" / path.name) > 0
        else:
            truth = read_labels(folder / "annotations" / "trimaps" / f"{path.stem}.png") != 2
        for pair in _windows(path.stem, to_rgb(read_image(path)), truth, random):
            given += 1
            yield pair
        if given >= num:
            return


def _windows(
    name: str, rgb: np.ndarray, truth: np.ndarray, random: np.random.Generator
) -> Iterator[Pair]:
    height, width = truth.shape
    if min(height, width) < SIDE:
        return
    top, left = random.integers(height - SIDE + 1), random.integers(width - SIDE + 1)
    area = np.s_[top : top + SIDE, left : left + SIDE]
    if truth[area].mean() > 0.02:
        yield Pair(name, np.ascontiguousarray(rgb[area]), truth[area])


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int((mask | truth).sum())
    return 1.0 if union == 0 else float((mask & truth).sum() / union)


class Blank(NamedTuple):
    """An image in work."""

    image: WorkingImage
    labels: np.ndarray
    owner: np.ndarray


def blank(pair: Pair) -> Blank:
    """An image of which nothing is known."""
    image = WorkingImage(name=pair.name, rgb_HW3=pair.rgb, small_hw3=pair.rgb)
    size = pair.truth.shape
    return Blank(image, np.full(size, IGNORE, np.uint8), np.zeros(size, np.int64))


def apply(work: Blank, stroke: Stroke, number: int) -> None:
    """Draw a stroke."""
    draw(work.labels, stroke)
    mark = np.full(work.labels.shape, 7, np.uint8)
    draw(mark, stroke)
    work.owner[mark != 7] = number


def answer(engine: ColdEngine, work: Blank, *, is_first: bool = False) -> np.ndarray | None:
    """The cold engine's mask, as the page shows it: the first one, or that of a pause."""
    engine.learn(work.image, work.labels, work.owner)
    forest = engine.fit(work.image.name, is_first=is_first)
    if forest is None:
        return None
    mask = engine.answer(forest, work.image, work.labels) > 0.5
    return np.where(work.labels == IGNORE, mask, work.labels == 1)


def cold(given: argparse.Namespace) -> None:
    """Strokes on 1 % of the pixels of each image, nothing learnt from the others."""
    makers = {"filters": filter_features, "lite0": lite0_features()}
    if given.features != "both":
        makers = {given.features: makers[given.features]}
    scores, times, strokes, chosen = [], [], [], []
    for number, pair in enumerate(pairs(given.set, given.num, seed=given.seed)):
        engine = ColdEngine(makers)
        hand = Annotator(seed=number, radius=1.0, length=20)
        work = blank(pair)
        shown: np.ndarray | None = None
        for step in range(200):
            if (work.labels != IGNORE).mean() >= given.share:
                break
            stroke = hand.beside(pair.truth) if step == 1 else hand.stroke(shown, pair.truth)
            if stroke is None:
                break
            apply(work, stroke, step)
            if step and step % 5 == 0:
                engine.choose()
            start = time.perf_counter()
            shown = answer(engine, work, is_first=True)
            times.append(time.perf_counter() - start)
        shown = answer(engine, work)
        rest = work.labels == IGNORE
        assert shown is not None
        scores.append(iou(shown[rest], pair.truth[rest]))
        strokes.append(hand.num_strokes)
        chosen.append(" + ".join(max(engine.say, key=engine.say.__getitem__)))
        print(f"  {pair.name[:20]} {scores[-1]:.3f} {strokes[-1]} strokes {chosen[-1]}", flush=True)
    print(
        f"{given.set}: mean IoU {np.mean(scores):.3f} {bootstrap_interval(scores)}, {len(scores)} "
        f"images, {np.mean(strokes):.1f} strokes each; answers {np.median(times):.2f} s; "
        + ", ".join(f"{one} {chosen.count(one)}" for one in sorted(set(chosen)))
    )


def latency(given: argparse.Namespace) -> None:
    """From a stroke to its line on the disk, and to the new mask, packed, at a megapixel."""
    random = np.random.default_rng(given.seed)
    side = 1000
    y, x = np.mgrid[:side, :side]
    truth = sum(np.hypot(y - b, x - a) < 60 for a, b in random.uniform(80, 920, (12, 2))) > 0
    grey = np.where(truth, 165, 80) + random.normal(0, 18, truth.shape)
    rgb = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        Image.fromarray(rgb).save(photos / "large.png")
        makers = {"filters": filter_features, "lite0": lite0_features()}
        session = Session(Project(photos), engine=ColdEngine(makers))
        hand, saved, answered, worked = Annotator(radius=8, length=60), [], [], []
        shown: np.ndarray | None = None
        whole = (0, 0, side, side)
        for number in range(given.num):
            stroke = hand.beside(truth) if number == 1 else hand.stroke(shown, truth)
            if stroke is None:
                break
            start, before = time.perf_counter(), time.process_time()
            line = session.add_stroke("large", stroke)
            saved.append(time.perf_counter() - start)
            state = session.shown("large", whole, after=line, wait=60)
            packed = io.BytesIO()
            Image.fromarray(state.codes).save(packed, format="PNG", compress_level=1)
            answered.append(time.perf_counter() - start)
            worked.append(time.process_time() - before)
            shown = (state.codes & 1) == 1
            time.sleep(given.pause)
        session.close()
    kinds = {"on the disk": saved, "new mask": answered, "processor time of it": worked}
    for name, times in kinds.items():
        middle, most = np.percentile(times[2:], [50, 95])
        print(
            f"{name}: median {1000 * middle:.0f} ms, p95 {1000 * most:.0f} ms, "
            f"{len(times) - 2} strokes"
        )


@contextmanager
def serving(photos: Path) -> Iterator[str]:
    """Run `binseg label` on a folder; give its address."""
    command = [sys.executable, "-m", "binseg", "label", str(photos), "--no-open", "--cold"]
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        yield next(line.split()[2] for line in child.stderr if "http://" in line)
        child.send_signal(signal.SIGINT)


def start(given: argparse.Namespace) -> None:
    """From the command to the first mask, by someone who draws as soon as there is an image."""
    with tempfile.TemporaryDirectory() as folder:
        photos, truths = Path(folder) / "photos", {}
        photos.mkdir()
        for number, pair in enumerate(pairs("pets", given.num, seed=given.seed)):
            truths[f"{number:03d}"] = pair.truth
            Image.fromarray(pair.rgb).save(photos / f"{number:03d}.png")
        begin, hand = time.perf_counter(), Annotator()
        with serving(photos) as url:
            name = requests.get(f"{url}v1/label/next", timeout=60).json()["name"]
            requests.get(f"{url}v1/label/open", params={"name": name}, timeout=60)
            opened, truth = time.perf_counter() - begin, truths[name]
            for stroke in (hand.stroke(None, truth), hand.beside(truth)):
                assert stroke is not None
                told = {key: getattr(stroke, key) for key in ("tool", "value", "points", "radius")}
                answer = requests.post(
                    f"{url}v1/label/stroke", json={"name": name, **told}, timeout=60
                )
            asked = {"name": name, "top": 0, "left": 0, "bottom": SIDE, "right": SIDE}
            engine = "none"
            while engine == "none":
                got = requests.get(
                    f"{url}v1/label/mask",
                    params={**asked, "after": answer.json()["line"]},
                    timeout=60,
                )
                engine = got.headers["X-Binseg-Engine"]
            took = time.perf_counter() - begin
        print(f"{given.num} images: opened after {opened:.1f} s, first mask after {took:.1f} s")


def paint(given: argparse.Namespace) -> None:
    """Frames in Chromium while a brush moves over an image of 8000 x 6000, as they are drawn."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        random = np.random.default_rng(given.seed)
        soft = random.integers(0, 255, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(soft).resize((8000, 6000)).save(photos / "large.jpg")
        with serving(photos) as url, sync_playwright() as tool:
            chromium = shutil.which("chromium")
            browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 800})
            tab.goto(url)
            while not tab.evaluate("document.getElementById('working').hidden"):
                tab.wait_for_timeout(200)
            tab.wait_for_timeout(3000)
            tab.evaluate(
                "() => { window.frames_ = []; const tick = (now) => { frames_.push(now);"
                " requestAnimationFrame(tick); }; requestAnimationFrame(tick); }"
            )
            tab.mouse.move(200, 300)
            tab.mouse.down()
            for step in range(300):
                tab.mouse.move(200 + step, 300 + 60 * np.sin(step / 20))
            frames = np.diff(tab.evaluate("frames_.splice(0)"))
            tab.mouse.up()
            browser.close()
    middle, most = np.percentile(frames, [50, 95])
    print(
        f"{len(frames)} frames: median {middle:.1f} ms, p95 {most:.1f} ms, "
        f"{(frames < 18).mean():.0%} within a sixtieth of a second"
    )


def order(
    left: Mapping[str, Pair],
    labelled: Sequence[Pair],
    network: WarmNetwork | None,
    *,
    rule: str,
    seed: int,
) -> list[str]:
    """Order images, the one to label next first: at random, or where the network doubts.

    `uncertainty` takes no two in a row that are alike, and none like those that are labelled.
    """
    found = {p.name: network.probability(p.rgb) if network else None for p in left.values()}
    if rule == "random" or network is None:
        shares = {n: 1.0 if p is None else float((p > 0.5).mean()) for n, p in found.items()}
        return rank(shares, seed=seed)

    def look(pair: Pair) -> np.ndarray:
        thumb = Image.fromarray(pair.rgb).resize((16, 16), Image.Resampling.BOX)
        return np.asarray(thumb, np.float32).ravel() / 255

    def doubt(probability: np.ndarray) -> float:
        doubt_hw = 1 - np.abs(2 * probability - 1)
        # Where nothing is near a border all is sure; the mean over what is in question ranks.
        in_question = (probability > 0.5) | (doubt_hw > 0.2)
        return float(doubt_hw[in_question].mean()) if in_question.any() else 0.0

    looks = {name: look(pair) for name, pair in left.items()}
    doubts = {name: doubt(p) for name, p in found.items() if p is not None}
    known = [look(pair) for pair in labelled]
    ordered: list[str] = []
    nearest = {
        name: min((float(np.linalg.norm(own - one)) for one in known), default=1.0)
        for name, own in looks.items()
    }
    while nearest:
        best = max(nearest, key=lambda name: doubts[name] * nearest[name])
        ordered.append(best)
        del nearest[best]
        nearest = {
            name: min(d, float(np.linalg.norm(looks[name] - looks[best])))
            for name, d in nearest.items()
        }
    return ordered


def loop(given: argparse.Namespace) -> None:
    """What shares of the images give, of the Dice of all labels, for several seeds."""
    reached: dict[float, list[float]] = {}
    for seed in range(given.seed, given.seed + given.seeds):
        for share, part in _loop(argparse.Namespace(**vars(given) | {"seed": seed})):
            reached.setdefault(share, []).append(part)
    for share, parts in reached.items():
        interval = ""
        if len(parts) > 1:
            half = stats.t.ppf(0.975, len(parts) - 1) * stats.sem(parts)
            interval = f" +- {half:.1%} (95 %, {len(parts)} seeds; least {min(parts):.1%})"
        print(f"{given.set}: {share:.0%} of the images reach {np.mean(parts):.1%}{interval}")


def _loop(given: argparse.Namespace) -> Iterator[tuple[float, float]]:
    """Train on shares chosen by a rule, until one reaches 95 % of the Dice of all labels."""
    everything = [*pairs(given.set, given.images + given.num, seed=given.seed)]
    pool, held = everything[: given.images], everything[given.images :]

    def learnt(chosen: Sequence[Pair]) -> tuple[WarmNetwork, float]:
        examples = [Example(rgb_hw3=p.rgb, labels_hw=p.truth.astype(np.uint8)) for p in chosen]
        network = train_round(
            base_network(), examples, seconds=1, most_steps=given.steps, seed=given.seed
        )
        assert network is not None
        scores = [dice_of(network.probability(p.rgb) > 0.5, p.truth) for p in held]
        return network, float(np.mean(scores))

    _, best = learnt(pool)
    print(f"{given.set}: all {len(pool)} images, Dice {best:.3f} on {len(held)} others", flush=True)
    left, labelled = {p.name: p for p in pool}, []
    network: WarmNetwork | None = None
    for share in given.shares:
        for name in order(left, labelled, network, rule=given.rule, seed=given.seed):
            if len(labelled) >= round(share * len(pool)):
                break
            labelled.append(left.pop(name))
        network, score = learnt(labelled)
        told = f"  {len(labelled)} images ({share:.0%}): Dice {score:.3f}, {score / best:.1%} of it"
        print(told, flush=True)
        yield share, score / best
        if score >= 0.95 * best and given.seeds == 1:
            return


def correct(given: argparse.Namespace) -> None:
    """Strokes until a mask is right to an IoU, from nothing and from a network's prediction."""
    everything = [*pairs(given.set, given.images + given.num, seed=given.seed)]
    taught, fresh = everything[: given.images], everything[given.images :]
    examples = [Example(rgb_hw3=p.rgb, labels_hw=p.truth.astype(np.uint8)) for p in taught]
    network = train_round(base_network(), examples, seconds=1, most_steps=given.steps)
    assert network is not None
    makers = {"filters": filter_features, "lite0": lite0_features()}
    counts: dict[bool, list[int]] = {False: [], True: []}
    for number, pair in enumerate(fresh):
        for helped, strokes in counts.items():
            engine, work = ColdEngine(makers), blank(pair)
            hand = Annotator(seed=number)
            prediction = network.probability(pair.rgb) if helped else None
            shown = None if prediction is None else prediction > 0.5
            while shown is None or iou(shown, pair.truth) < given.goal:
                empty = shown is None and hand.num_strokes == 1
                stroke = hand.beside(pair.truth) if empty else hand.stroke(shown, pair.truth)
                if stroke is None or hand.num_strokes >= given.most:
                    break
                apply(work, stroke, hand.num_strokes)
                engine.learn(work.image, work.labels, work.owner)
                forest = engine.fit(pair.name)
                found = prediction
                if forest is not None:
                    cold = engine.answer(forest, work.image, work.labels)
                    found = cold if prediction is None else corrected(prediction, cold, work.labels)
                if found is not None:
                    shown = np.where(work.labels == IGNORE, found > 0.5, work.labels == 1)
            strokes.append(hand.num_strokes)
        print(f"  {pair.name[:20]} {counts[False][-1]} and {counts[True][-1]}", flush=True)
    ratio = sum(counts[True]) / max(1, sum(counts[False]))
    print(f"{given.set}: strokes with help / from nothing {ratio:.2f}, {len(fresh)} images")


WHAT = {
    "cold": cold,
    "latency": latency,
    "start": start,
    "paint": paint,
    "loop": loop,
    "correct": correct,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*WHAT])
    parser.add_argument("--set", choices=SETS, default="nuclei")
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="runs of loop; one ends at 95 %%")
    steps = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
    parser.add_argument("--shares", type=float, nargs="+", default=steps, help="of loop's images")
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--images", type=int, default=60, help="to learn from")
    parser.add_argument("--steps", type=int, default=150, help="of a round")
    parser.add_argument("--rule", choices=("random", "uncertainty"), default="random")
    parser.add_argument("--goal", type=float, default=0.9, help="IoU at which a mask is right")
    parser.add_argument("--most", type=int, default=60, help="strokes on an image")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two strokes")
    parser.add_argument("--features", choices=["both", "filters", "lite0"], default="both")
    given = parser.parse_args(arguments)
    WHAT[given.what](given)


if __name__ == "__main__":
    main()
