"""Strokes, features, scores and order, each alone."""

import numpy as np
import pytest

from binseg.errors import UsageError
from binseg.labeling.cold_engine import filter_features, settle
from binseg.labeling.guidance import expected_gain, rank, standings
from binseg.labeling.label_log import Stroke, draw, pack, replay
from binseg.labeling.open_image import reduced, to_rgb
from binseg.labeling.warm_engine import Example, base_network, train_round
from binseg.types import IGNORE

from .conftest import disc


def test_a_brush_covers_what_is_within_its_radius() -> None:
    """Pixels count by their middles; the reference measures every one of them."""
    labels = np.full((40, 50), IGNORE, np.uint8)
    line = Stroke(
        tool="brush", value=1, points=((10.2, 8.0), (35.0, 30.5), (45.0, 5.0)), radius=3.3
    )
    draw(labels, line)
    y, x = np.mgrid[:40, :50] + 0.5
    wanted = np.zeros((40, 50), bool)
    for (x0, y0), (x1, y1) in zip(line.points[:-1], line.points[1:], strict=True):
        for share in np.linspace(0, 1, 2000):
            wanted |= np.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0)) <= 3.3
    assert ((labels == 1) != wanted).sum() <= 2, "but for rounding on the rim"


@pytest.mark.parametrize(
    "change",
    [
        {"tool": "spray"},
        {"value": 7},
        {"points": ()},
        {"points": ((float("nan"), 1.0),)},
        {"radius": 0.0},
        {"tool": "polygon"},
    ],
)
def test_what_is_no_stroke_is_refused(change: dict[str, object]) -> None:
    """Nothing half-drawn reaches the log."""
    fine = {"tool": "brush", "value": 1, "points": ((1.0, 2.0),), "radius": 3.0}
    with pytest.raises(UsageError):
        Stroke(**{**fine, **change})  # type: ignore[arg-type]


def test_an_eraser_takes_labels_away() -> None:
    """Erased pixels are unknown again, not background."""
    dot = Stroke(tool="brush", value=1, points=((10.0, 10.0),), radius=5)
    labels = replay([dot, Stroke(tool="brush", value=IGNORE, points=((10, 10),), radius=2)], 20, 20)
    assert labels[10, 10] == IGNORE
    assert labels[10, 14] == 1


def test_a_region_that_does_not_fit_is_refused() -> None:
    """A region beyond the image would be cut without a word."""
    region = Stroke(
        tool="region", value=1, points=((5.0, 5.0),), region=pack(np.ones((10, 10), bool))
    )
    with pytest.raises(UsageError, match="beyond"):
        replay([region], 12, 12)


def test_neighbours_of_one_colour_agree() -> None:
    """A walk between colours mends a noisy answer, and holds to strokes."""
    rgb, truth = disc(3)
    random = np.random.default_rng(0)
    noisy = np.clip(truth * 0.4 + 0.3 + random.normal(0, 0.25, truth.shape), 0, 1).astype(
        np.float32
    )
    labels = np.full(truth.shape, IGNORE, np.uint8)
    labels[2:4, 2:4] = 1  # against all appearance
    found = settle(noisy, rgb, labels)
    assert ((noisy > 0.5) != truth).mean() > 0.1
    assert ((found > 0.5) != truth)[6:].mean() < 0.03
    assert (found[2:4, 2:4] > 0.5).all()


def test_grey_and_colour_images_have_as_many_features() -> None:
    """A project may hold both."""
    rgb, _ = disc(1)
    grey = np.repeat(rgb[..., :1], 3, axis=2)
    assert filter_features(rgb).shape == filter_features(grey).shape


def test_deep_images_are_stretched() -> None:
    """16 bits of which a few are used are not shown black."""
    values = (np.arange(4000, dtype=np.uint16).reshape(50, 80, 1) % 300) + 1000
    rgb = to_rgb(values)
    assert rgb.dtype == np.uint8
    assert (rgb.min(), rgb.max()) == (0, 255)


def test_reduced_labels_say_what_most_of_a_cell_is() -> None:
    """Unlabelled pixels of a cell have no vote."""
    labels = np.full((4, 4), IGNORE, np.uint8)
    labels[0, 0], labels[2:, 2:] = 1, 0
    assert reduced(labels, (2, 2)).tolist() == [[1, IGNORE], [IGNORE, 0]]


def test_images_that_seem_empty_come_late() -> None:
    """Foreground-aware random: of 200 images the 100 with something come sooner on average."""
    shares = {f"{number:03d}": 0.1 * (number < 100) for number in range(200)}
    order = rank(shares, seed=1)
    assert sorted(order) == sorted(shares)
    places = [order.index(f"{number:03d}") for number in range(100)]
    assert np.mean(places) < 80
    assert order != rank(shares, seed=2)


def test_the_score_has_an_interval_and_a_way_to_stop() -> None:
    """Standings sum up the latest scores; the curve says what 20 more masks add."""
    scores = [
        ("warm", 5, [0.6, 0.7, 0.65]),
        ("warm", 40, [0.9, 0.92, 0.91]),
        ("warm", 80, [0.9, 0.92, 0.91]),
        ("cold", 5, [0.5, 0.6, 0.55]),
    ]
    first, second = standings(scores)
    assert (first.engine, second.engine) == ("warm", "cold")
    assert first.dice.interval is not None
    assert first.dice.interval.low <= first.dice.value <= first.dice.interval.high
    assert [num for num, _ in first.curve] == [5, 40, 80]
    assert [dice for _, dice in first.curve] == pytest.approx([0.65, 0.91, 0.91])
    assert expected_gain([(100, 0.9), (200, 0.901)]) == pytest.approx(0.0001, abs=1e-3)
    stops = standings([("warm", 100, [0.9] * 5), ("warm", 200, [0.901] * 5)])[0]
    assert stops.advice == "20 more masks would add about 0.00: you may stop"


def test_a_round_learns_from_labelled_pixels_only() -> None:
    """What stands where nobody has labelled has no part in the round: bit for bit the same."""
    torch = pytest.importorskip("torch")
    rgb, truth = disc(0, (96, 96))
    labels = np.full((96, 96), IGNORE, np.uint8)
    labels[40:60], labels[:10] = truth[40:60], 0
    answers = []
    for _ in range(2):
        network = base_network()
        found = train_round(
            network, [Example(rgb_hw3=rgb, labels_hw=labels)], seconds=1, most_steps=6
        )
        assert found is not None
        answers.append(found.probability(rgb))
    assert np.array_equal(answers[0], answers[1])
    assert torch.isfinite(torch.from_numpy(answers[0])).all()
    inside, outside = answers[0][truth].mean(), answers[0][~truth].mean()
    assert inside > outside + 0.2
