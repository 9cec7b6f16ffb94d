"""The engine that answers from the first stroke on: extremely randomised trees on ready features.

The project's own strokes choose the features: those that tell strokes that were left out have more
say.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

from binseg.labeling.label_log import Labels
from binseg.labeling.open_image import RGB, WorkingImage
from binseg.types import IGNORE

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesClassifier

Features = Float[np.ndarray, "h w F"]
Maker = Callable[[RGB], Features]  # describes each pixel of an image by numbers
NUM_TREES, FIRST_TREES, TRIAL_TREES = 40, 20, 30
"""Trees on each choice of features, of the quick answer before, and of a trial of features."""
MOST_PIXELS_AT_ONCE = 65_536
"""Pixels of a first answer; a larger image is answered on a coarser grid first."""
_OWN_SAMPLES, _OTHER_SAMPLES, _TRIAL_SAMPLES = 4_000, 4_000, 3_000
"""Labelled pixels of the image itself, of the others together, and of a trial of features."""
_FIRST_SHARE = 0.25  # of all these pixels a quick answer learns from so many
_AT_ONCE = 2_048  # pixels that trees are asked about together: they stay in the processor's cache
_DISAGREEMENT = 0.15
"""Difference of the trees' answers to neighbours above which what is between them is asked, too."""
_OTHERS_WEIGHT = 0.3  # weight of all other images' pixels beside the image's own
_FOLDS = 5
_CAUTION = 0.2
"""Difference of log loss on left-out strokes by which a choice of features has e times the say: a
dozen strokes are few to go by, and to choose one alone was far worse (IoU 0.58 against 0.77)."""
_CACHE_BYTES = 1_500_000_000
_TRUST = 0.02  # weight of the trees' answer against agreement with a neighbour


def filter_features(rgb_HW3: RGB) -> Features:
    """Describe pixels by brightness, edges and texture at six scales (scikit-image)."""
    from skimage.feature import multiscale_basic_features

    is_grey = bool((rgb_HW3 == rgb_HW3[..., :1]).all())
    values = (rgb_HW3[..., :1] if is_grey else rgb_HW3).astype(np.float32) / 255
    found: Features = multiscale_basic_features(  # type: ignore[no-untyped-call]
        values, sigma_min=0.5, sigma_max=16.0, channel_axis=-1
    )
    if is_grey:  # as many numbers as for a colour image, so that both can be in one project
        found = np.repeat(found, 3, axis=-1)
    return np.asarray(found, np.float16)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """Labelled pixels of one image."""

    parts: Mapping[str, Float32[np.ndarray, "N F"]]
    truth_N: Int[np.ndarray, " N"]
    group_N: Int[np.ndarray, " N"]
    """The stroke that each comes from, by a number that no other image's has."""

    def joined(self, kinds: Sequence[str]) -> Float32[np.ndarray, "N F"]:
        """Give all these kinds of features side by side."""
        return np.concatenate([self.parts[kind] for kind in kinds], axis=1)


class ColdEngine:
    """Learns from strokes what to mark, by the features of `makers`; thread-safe."""

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        self._makers = dict(makers)
        self._guard = threading.Condition()
        self._making: set[str] = set()
        self._described: OrderedDict[str, dict[str, Features]] = OrderedDict()
        self._samples: OrderedDict[str, _Samples] = OrderedDict()
        self._numbers: dict[str, int] = {}
        choices = dict.fromkeys([*((kind,) for kind in makers), tuple(makers)])
        self.say: dict[tuple[str, ...], float] = dict.fromkeys(choices, 1 / len(choices))
        """Say in an answer of the trees on each choice of features; their sum is 1."""

    @property
    def num_pixels(self) -> int:
        """Labelled pixels that are learnt from."""
        return sum(len(one.truth_N) for one in self._samples.values())

    def describe(self, image: WorkingImage) -> dict[str, Features]:
        """Compute an image's features, unless they are at hand, or another thread is at it."""
        with self._guard:
            self._guard.wait_for(lambda: image.name not in self._making)
            if image.name in self._described:
                self._described.move_to_end(image.name)
                return self._described[image.name]
            self._making.add(image.name)
        try:
            parts = {kind: make(image.small_hw3) for kind, make in self._makers.items()}
            with self._guard:
                self._described[image.name] = parts
                num_bytes = sum(x.nbytes for one in self._described.values() for x in one.values())
                while len(self._described) > 2 and num_bytes > _CACHE_BYTES:
                    _, oldest = self._described.popitem(last=False)
                    num_bytes -= sum(part.nbytes for part in oldest.values())
            return parts
        finally:
            with self._guard:
                self._making.discard(image.name)
                self._guard.notify_all()

    def learn(
        self, image: WorkingImage, labels_hw: Labels, strokes_hw: Int[np.ndarray, "h w"] | None
    ) -> None:
        """Take an image's labels for what was known of it; strokes_hw: the stroke of each."""
        parts = self.describe(image)
        random = np.random.default_rng(0)
        each = _OWN_SAMPLES // 2
        places_N = np.concatenate(
            [_some(np.flatnonzero(labels_hw == value), each, random) for value in (0, 1)]
        )
        with self._guard:
            self._samples.pop(image.name, None)
            number = self._numbers.setdefault(image.name, len(self._numbers))
            if len(places_N) == 0:
                return
            strokes_hw = np.zeros(labels_hw.shape, int) if strokes_hw is None else strokes_hw
            flat = {kind: part.reshape(-1, part.shape[-1]) for kind, part in parts.items()}
            self._samples[image.name] = _Samples(
                parts={kind: part[places_N].astype(np.float32) for kind, part in flat.items()},
                truth_N=labels_hw.ravel()[places_N].astype(int),
                group_N=strokes_hw.ravel()[places_N] + 1_000_000 * number,
            )

    def fit(
        self, name: str, *, without: Sequence[str] = (), is_first: bool = False
    ) -> "Forest | None":
        """Grow trees for an image, quick ones if `is_first`; None where only one kind was shown."""
        with self._guard:
            samples = {n: one for n, one in self._samples.items() if n not in without}
            say = {tuple(self._makers): 1.0} if is_first else self.say
        random = np.random.default_rng(0)
        own = samples.pop(name, None)
        others = [*samples.values()][::-1]
        part = _FIRST_SHARE if is_first else 1.0
        each = max(50, int(part * _OTHER_SAMPLES) // max(1, len(others)))
        kept, truths, weights = [], [], []
        for one in ([own] if own else []) + others[: int(part * _OTHER_SAMPLES) // 50]:
            keep = np.arange(len(one.truth_N))
            keep = _some(keep, int(part * _OWN_SAMPLES) if one is own else each, random)
            kept.append((one, keep))
            truths.append(one.truth_N[keep])
            weights.append(np.full(len(keep), 1.0 if one is own else _OTHERS_WEIGHT))
        if not kept or len(np.unique(truth_N := np.concatenate(truths))) < 2:
            return None
        weight_N = np.concatenate(weights)
        for value in (0, 1):  # as much weight for either, however much of it was drawn
            weight_N[truth_N == value] /= weight_N[truth_N == value].sum()
        groups = []
        for kinds, share in say.items():
            trees = _trees(FIRST_TREES if is_first else NUM_TREES)
            rows = np.concatenate([one.joined(kinds)[keep] for one, keep in kept])
            trees.fit(rows, truth_N, sample_weight=weight_N * len(truth_N))
            groups.append((trees, kinds, share))
        return Forest(groups=groups)

    def answer(
        self, forest: "Forest", image: WorkingImage, labels_hw: Labels, *, step: int = 1
    ) -> Float32[np.ndarray, "h w"]:
        """Give an image's probability by trees and strokes, for one pixel in step x step."""
        found = forest.probability(self.describe(image), step=step)
        return settle(found, image.small_hw3[::step, ::step], labels_hw[::step, ::step])

    def choose(self) -> None:
        """Give more say to features that tell left-out strokes, from the next answer on."""
        with self._guard:
            samples = [*self._samples.values()]
        random = np.random.default_rng(0)
        each = max(40, _TRIAL_SAMPLES // max(1, len(samples)))
        kept = [(one, _some(np.arange(len(one.truth_N)), each, random)) for one in samples]
        truth_N = np.concatenate([[], *(one.truth_N[keep] for one, keep in kept)])
        group_N = np.concatenate([[], *(one.group_N[keep] for one, keep in kept)])
        folds = min(_FOLDS, *(len(np.unique(group_N[truth_N == value])) for value in (0, 1)))
        if folds < 2:
            return
        found = {}
        for kinds in self.say:
            rows = np.concatenate([one.joined(kinds)[keep] for one, keep in kept])
            loss = _left_out_loss(rows, truth_N, group_N, folds)
            found[kinds] = float(np.exp(-loss / _CAUTION))
        with self._guard:
            self.say = {kinds: value / sum(found.values()) for kinds, value in found.items()}


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Grown trees, the features that they ask for, and their say."""

    groups: "Sequence[tuple[ExtraTreesClassifier, tuple[str, ...], float]]"

    def probability(
        self, parts: Mapping[str, Features], *, step: int = 1
    ) -> Float32[np.ndarray, "h w"]:
        """Ask the trees about one pixel in step x step, first about every other of these."""
        wide = {kind: part[::step, ::step] for kind, part in parts.items()}
        coarse = {kind: part[::2, ::2] for kind, part in wide.items()}
        every = np.ones(next(iter(coarse.values())).shape[:2], bool)
        coarse_hw = self._ask(coarse, every).reshape(every.shape)
        spread_hw = ndimage.maximum_filter(coarse_hw, 3) - ndimage.minimum_filter(coarse_hw, 3)
        height, width, _ = next(iter(wide.values())).shape
        found_hw = coarse_hw.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        open_hw = (spread_hw > _DISAGREEMENT).repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        open_hw[::2, ::2] = False
        found_hw[open_hw] = self._ask(wide, open_hw)
        return found_hw

    def _ask(
        self, parts: Mapping[str, Features], wanted_hw: Bool[np.ndarray, "h w"]
    ) -> Float32[np.ndarray, " N"]:
        """Give the mean of all trees, by their say, for some pixels."""
        rows, columns = np.nonzero(wanted_hw)
        found_N = np.zeros(len(rows), np.float32)
        for start in range(0, len(rows), _AT_ONCE):
            some = np.s_[start : start + _AT_ONCE]
            picked = {
                kind: part[rows[some], columns[some]].astype(np.float32)
                for kind, part in parts.items()
            }
            for trees, kinds, share in self.groups:
                asked = np.concatenate([picked[kind] for kind in kinds], axis=1)
                # As predict_proba, which takes longer to check its input than to answer.
                each = [one.tree_.predict(asked)[:, 1] for one in trees.estimators_]
                found_N[some] += share * np.mean(each, axis=0)
        return found_N


def first_step(height: int, width: int) -> int:
    """The grid of a first answer: one pixel in step x step."""
    return max(1, int(np.ceil((height * width / MOST_PIXELS_AT_ONCE) ** 0.5)))


def settle(
    probability_hw: Float32[np.ndarray, "h w"], rgb_hw3: RGB, labels_hw: Labels
) -> Float32[np.ndarray, "h w"]:
    """Let neighbours of one colour agree: a random walk between strokes, near the trees' answer.

    Minimises the squared differences between neighbours, weighted by how alike they look, plus
    `_TRUST` times that to the given probability; strokes are held to: a sparse linear system.
    """
    height, width = probability_hw.shape
    soft = ndimage.gaussian_filter(rgb_hw3.astype(np.float32) / 255, (0.5, 0.5, 0))
    down_N = ((soft[1:] - soft[:-1]) ** 2).sum(axis=2).ravel()
    right_N = ((soft[:, 1:] - soft[:, :-1]) ** 2).sum(axis=2).ravel()
    scale = float(np.concatenate([down_N, right_N]).mean()) + 1e-9
    place = np.arange(height * width).reshape(height, width)
    weights = np.exp(-np.concatenate([down_N, right_N]) / scale) + 1e-3
    first = np.concatenate([place[1:].ravel(), place[:, 1:].ravel()])
    second = np.concatenate([place[:-1].ravel(), place[:, :-1].ravel()])
    links = sparse.coo_matrix((weights, (first, second)), shape=(place.size, place.size))
    links = (links + links.T).tocsr()
    known_N = labels_hw.ravel() != IGNORE
    pull_N = np.where(known_N, 100.0, _TRUST)
    aim_N = np.where(known_N, labels_hw.ravel() == 1, probability_hw.ravel())
    diagonal = np.asarray(links.sum(axis=1)).ravel() + pull_N
    system = sparse.diags(diagonal) - links
    inverse = sparse.diags(1 / diagonal)
    found, _ = cg(system.tocsr(), pull_N * aim_N, x0=aim_N, rtol=1e-3, maxiter=60, M=inverse)
    settled_hw: np.ndarray = np.clip(found, 0, 1).reshape(height, width).astype(np.float32)
    return settled_hw


def snap(rgb_hw3: RGB, box: tuple[int, int, int, int], parts: Mapping[str, Features]) -> np.ndarray:
    """Find the thing in a box: the outside is background, its middle foreground, trees decide.

    GrabCut's idea without its graph cut, repeated on what was found: trees, then a random walk.
    Box (top, left, bottom, right), features and the mask returned are at the engines' size.
    """
    height, width = rgb_hw3.shape[:2]
    top, left, bottom, right = box
    pad = max(6, round(0.3 * max(bottom - top, right - left)))
    area = np.s_[
        max(0, top - pad) : min(height, bottom + pad), max(0, left - pad) : min(width, right + pad)
    ]
    rows = np.concatenate([part[area] for part in parts.values()], axis=-1).astype(np.float32)
    y_h1, x_1w = np.mgrid[area]
    inside_hw = (y_h1 >= top) & (y_h1 < bottom) & (x_1w >= left) & (x_1w < right)
    off_hw = np.hypot(
        (y_h1 + 0.5 - (top + bottom) / 2) / max(1, bottom - top),
        (x_1w + 0.5 - (left + right) / 2) / max(1, right - left),
    )
    outside_hw = np.where(inside_hw, np.uint8(IGNORE), np.uint8(0))
    found_hw = inside_hw & (off_hw < 0.25)
    seeds_hw = np.where(found_hw, np.uint8(1), outside_hw)
    flat = rows.reshape(-1, rows.shape[-1])
    random = np.random.default_rng(0)
    for _ in range(3):
        picks = [_some(np.flatnonzero(seeds_hw == value), 1_500, random) for value in (0, 1)]
        if min(map(len, picks)) == 0:
            break
        trees = _trees(TRIAL_TREES)
        trees.fit(flat[np.concatenate(picks)], np.repeat([0, 1], [len(one) for one in picks]))
        answer = trees.predict_proba(flat)[:, 1].reshape(seeds_hw.shape).astype(np.float32)
        answer = settle(answer, rgb_hw3[area], outside_hw)
        found_hw = (answer > 0.5) & inside_hw
        seeds_hw = outside_hw.copy()
        seeds_hw[inside_hw & (answer > 0.7)] = 1
        seeds_hw[inside_hw & (answer < 0.3)] = 0
    number_hw, num = ndimage.label(found_hw)
    if num > 1:  # the thing is one; specks beside it aren't it
        sizes = ndimage.sum_labels(found_hw, number_hw, range(1, num + 1))
        found_hw = np.isin(number_hw, 1 + np.flatnonzero(sizes >= 0.2 * sizes.max()))
    whole = np.zeros((height, width), bool)
    whole[area] = ndimage.binary_fill_holes(found_hw)
    return whole


def _trees(num: int) -> "ExtraTreesClassifier":
    from sklearn.ensemble import ExtraTreesClassifier

    return ExtraTreesClassifier(num, max_features="sqrt", random_state=0, n_jobs=1)


def _some(places: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    return places if len(places) <= most else random.choice(places, most, replace=False)


def _left_out_loss(rows: np.ndarray, truth_N: np.ndarray, group_N: np.ndarray, folds: int) -> float:
    """Log loss, as much for foreground as for background, on whole strokes that were left out."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.utils.class_weight import compute_sample_weight

    trees = _trees(TRIAL_TREES).set_params(class_weight="balanced")
    cv = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    how = {"groups": group_N, "cv": cv, "method": "predict_proba"}
    found = np.clip(cross_val_predict(trees, rows, truth_N, **how)[:, 1], 0.02, 0.98)
    weights = compute_sample_weight("balanced", truth_N)
    return float(log_loss(truth_N, found, sample_weight=weights))
