"""An open project: help follows each stroke, never overrules one, and is measured honestly."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from binseg.errors import UsageError
from binseg.labeling.label_log import ChangedError, Stroke
from binseg.labeling.session import Session
from binseg.metrics import dice_of

from .conftest import SIZE, Known, Opened, disc

WHOLE = (0, 0, *SIZE)


def on_disc(number: int, size: tuple[int, int] = SIZE) -> Stroke:
    """A stroke across the disc."""
    rows, columns = np.nonzero(disc(number, size)[1])
    y, x = rows.mean(), columns.mean()
    return Stroke(tool="brush", value=1, points=((x - 5, y), (x + 5, y)), radius=2)


ABOVE = Stroke(tool="brush", value=0, points=((4, 3), (76, 3)), radius=2)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def taught(session: Session, name: str, number: int) -> int:
    session.add_stroke(name, on_disc(number))
    return session.add_stroke(name, ABOVE)


def names(session: Session, *, check: bool = False) -> list[str]:
    return [row.name for row in session.project.rows() if row.is_check == check]


def number_of(name: str) -> int:
    return int(name.removeprefix("disc"))


def test_two_strokes_find_the_thing(open_session: Opened) -> None:
    """A stroke on the thing and one beside it are enough for a thing of another brightness."""
    session = open_session()
    name = names(session)[0]
    line = taught(session, name, number_of(name))
    shown = session.shown(name, WHOLE, after=line, wait=30)
    assert shown.engine == "cold"
    assert dice_of((shown.codes & 1) == 1, disc(number_of(name))[1]) > 0.9


def test_strokes_win_over_every_prediction(open_session: Opened) -> None:
    """A pixel that was drawn is shown as drawn, and accepted as drawn."""
    session = open_session()
    name = names(session)[0]
    wrong = Stroke(tool="brush", value=1, points=((70, 55),), radius=3)
    taught(session, name, number_of(name))
    line = session.add_stroke(name, wrong)
    shown = session.shown(name, WHOLE, after=line, fine=True, wait=30)
    assert shown.codes[55, 70] == 3
    session.accept(name, seen=shown.line, version=shown.version)
    mask = np.asarray(Image.open(session.project.home / "masks" / f"{name}.png"))
    assert mask[55, 70] == 255
    assert np.array_equal(mask > 0, (shown.codes & 1) == 1), "what was seen is what is kept"


def test_what_was_not_seen_is_not_accepted(open_session: Opened) -> None:
    """A prediction that came after the look refuses the accept; nothing is written."""
    session = open_session()
    name = names(session)[0]
    line = taught(session, name, number_of(name))
    shown = session.shown(name, WHOLE, after=line, fine=True, wait=30)
    with pytest.raises(ChangedError, match="newer prediction"):
        session.accept(name, seen=shown.line, version=shown.version - 1)
    session.add_stroke(name, ABOVE)  # from another window
    with pytest.raises(ChangedError):
        session.accept(name, seen=shown.line, version=shown.version)
    assert not (session.project.home / "masks" / f"{name}.png").exists()


def test_an_accepted_mask_is_shown_as_it_is(open_session: Opened) -> None:
    """Once accepted, no prediction changes what is shown; a stroke does, and is kept on top."""
    session = open_session()
    name = names(session)[0]
    session.accept(name, seen=0, empty=True)
    until(lambda: session.shown(name, WHOLE, after=1, wait=1).codes.min() == 2)
    line = session.add_stroke(name, on_disc(number_of(name)))
    codes = session.shown(name, WHOLE, after=line, wait=30).codes
    assert {*np.unique(codes).tolist()} == {2, 3}


def test_check_images_get_no_help(open_session: Opened) -> None:
    """An image to check with shows nothing but strokes, and teaches no engine."""
    session = open_session()
    name, check = names(session)[0], names(session, check=True)[0]
    taught(session, name, number_of(name))
    line = taught(session, check, number_of(check))
    shown = session.shown(check, WHOLE, after=line, wait=30)
    assert shown.engine == "without help"
    assert 1 not in shown.codes
    before = session.engine.num_pixels
    truth = disc(number_of(check))[1]
    session.accept(check, seen=shown.line)
    until(session.project.scores)
    assert session.engine.num_pixels == before
    assert truth.any()
    status = session.status()
    standings: Any = status["standings"]
    assert standings[0]["engine"] == "cold"


def test_the_features_are_chosen_by_leaving_strokes_out(open_session: Opened) -> None:
    """Of noise and colours, colours have the say, by the strokes alone."""
    session = open_session()
    name = names(session)[0]
    middle = on_disc(number_of(name)).points[0]
    for number in range(6):
        spot = (middle[0] + 5 * (number % 2), middle[1] + 4 * (number // 2 - 1))
        session.add_stroke(name, Stroke(tool="brush", value=1, points=(spot,), radius=1.5))
        session.add_stroke(
            name,
            Stroke(tool="brush", value=0, points=((3 + 10 * number, 3), (3, 55)), radius=1.5),
        )
    line = session.add_stroke(name, ABOVE)
    session.shown(name, WHOLE, after=line, wait=30)
    session.engine.choose()
    say = session.engine.say
    assert "colours" in max(say, key=say.__getitem__)
    assert say[("colours",)] > say[("noise",)] + 0.2
    assert sum(say.values()) == pytest.approx(1)


def test_a_network_answers_and_strokes_correct_it_nearby(open_session: Opened) -> None:
    """An image opens with the network's mask; a stroke changes it around itself, not far away."""
    truth = disc(0)[1]
    wrong = np.zeros(SIZE, np.float32)
    wrong[truth] = 0.95
    wrong[50:58, 2:12] = 0.95  # a false alarm in a corner
    session = open_session(Known({"disc00": wrong}))
    session.open("disc00")
    until(lambda: session.shown("disc00", WHOLE).engine == "warm 1")
    before = session.shown("disc00", WHOLE).codes == 1
    assert np.array_equal(before, wrong > 0.5)
    session.add_stroke("disc00", on_disc(0))
    line = session.add_stroke(
        "disc00", Stroke(tool="brush", value=0, points=((3, 54), (11, 54)), radius=3)
    )
    shown = session.shown("disc00", WHOLE, after=line, fine=True, wait=30)
    assert shown.engine == "correct"
    after = (shown.codes & 1) == 1
    assert not after[50:58, 2:12].any(), "the false alarm is gone"
    assert dice_of(after, truth) > 0.93


def test_the_better_engine_answers(open_session: Opened) -> None:
    """Where trees do better on the check images than the network, trees answer."""
    network = Known({"disc00": np.zeros(SIZE, np.float32)})
    session = open_session(network)
    network.new_scores = [("warm", [0.5, 0.6])]
    session.project.add_score("cold", [0.8, 0.9])
    assert session.status()["engine"] == "cold"
    network.new_scores = [("warm", [0.9, 0.95])]
    assert session.status()["engine"] == "warm"


def test_the_network_is_woken_by_enough_labels(open_session: Opened) -> None:
    """Three accepted images begin a round; fewer don't; check images don't count."""
    network = Known({})
    session = open_session(network)
    for number, name in enumerate(names(session)[:3]):
        assert (network.woken != []) == (number >= 3)
        session.accept(name, seen=0, empty=True)
    assert network.woken


def test_fill_and_box_are_kept_as_pixels(open_session: Opened) -> None:
    """A filled hole and a snapped box replay to the same pixels, whatever engines say later."""
    session = open_session()
    name = names(session)[0]
    ring = Stroke(
        tool="brush",
        value=1,
        points=tuple((40 + 15 * np.cos(a), 30 + 15 * np.sin(a)) for a in np.linspace(0, 6.3, 40)),
        radius=2,
    )
    session.add_stroke(name, ring)
    session.fill(name, 40, 30, 1)
    labels = session.open(name).labels_HW.copy()
    assert labels[30, 40] == 1
    assert labels[2, 2] == 255
    number = number_of(name)
    rows, columns = np.nonzero(disc(number)[1])
    other = names(session)[1]
    rows, columns = np.nonzero(disc(number_of(other))[1])
    top, left = int(rows.min()) - 3, int(columns.min()) - 3
    session.box(other, (top, left, int(rows.max()) + 4, int(columns.max()) + 4), 1)
    found = session.open(other).labels_HW == 1
    assert dice_of(found, disc(number_of(other))[1]) > 0.9
    session.project.labels(name)
    assert np.array_equal(session.project.labels(name), labels)
    assert np.array_equal(session.project.labels(other) == 1, found)
    with pytest.raises(UsageError, match="too small"):
        session.box(name, (5, 5, 6, 6), 1)


def test_undo_is_shown(open_session: Opened) -> None:
    """After an undo, what is shown is what was shown before the stroke."""
    session = open_session()
    name = names(session)[0]
    line = taught(session, name, number_of(name))
    before = session.shown(name, WHOLE, after=line, fine=True, wait=30).codes
    session.add_stroke(name, Stroke(tool="brush", value=1, points=((70, 50),), radius=6))
    undone = session.undo(name)
    assert undone is not None
    after = session.shown(name, WHOLE, after=undone, fine=True, wait=30)
    assert np.array_equal(after.codes >= 2, before >= 2)
    assert (after.codes == before).mean() > 0.99


def test_images_come_at_random_and_none_twice(open_session: Opened) -> None:
    """Every image is offered until it is done; the first three are none to check with."""
    session = open_session()
    seen: list[str] = []
    while (name := session.next()) is not None:
        seen.append(name)
        session.accept(name, seen=0, empty=True)
    assert sorted(seen) == sorted(row.name for row in session.project.rows())
    assert not {*seen[:3]} & {*names(session, check=True)}


def test_training_needs_masks(open_session: Opened) -> None:
    """A training without masks is refused in words; with some it begins."""
    network = Known({})
    session = open_session(network)
    with pytest.raises(UsageError, match="0 images are done"):
        session.train(5)
    for name in names(session)[:4]:
        session.accept(name, seen=0, empty=True)
    session.train(5)
    assert network.trained == [5]


def test_a_large_image_is_drawn_at_full_size(photos: Path, open_session: Opened) -> None:
    """Engines see large images smaller; strokes and masks keep every pixel."""
    size = (900, 1200)
    Image.fromarray(disc(99, size)[0]).save(photos / "large.png")
    session = open_session()
    opened = session.open("large")
    assert opened.image.small_size < size
    session.add_stroke("large", on_disc(99, size))
    session.add_stroke("large", Stroke(tool="brush", value=0, points=((9, 9), (1190, 9)), radius=7))
    line = session.add_stroke(
        "large", Stroke(tool="brush", value=1, points=((800, 850),), radius=1)
    )
    shown = session.shown("large", (0, 0, *size), after=line, fine=True, wait=60)
    assert (shown.codes[845:856, 795:806] == 3).sum() == 4, "a dot of radius 1 is four pixels"
    assert dice_of((shown.codes & 1) == 1, disc(99, size)[1]) > 0.9
    coarse = session.shown("large", (0, 0, *size), level=2)
    assert coarse.codes.shape == (225, 300)
