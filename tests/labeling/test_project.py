"""The project on disk: nothing that was acknowledged is ever lost, and nothing overwrites truth."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from binseg.config import DataConfig
from binseg.data.sources import open_dataset
from binseg.errors import DataError, OutputError, UsageError
from binseg.labeling.label_log import ChangedError, Stroke, pack
from binseg.labeling.project import Project
from binseg.types import IGNORE

from .conftest import SIZE, disc

DOT = Stroke(tool="brush", value=1, points=((20.0, 20.0), (40.0, 30.0)), radius=4.0)
BESIDE = Stroke(tool="polygon", value=0, points=((60.0, 5.0), (78.0, 5.0), (78.0, 50.0)))


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_strokes_come_back_as_they_were_drawn(photos: Path) -> None:
    """Opened again, a project replays to the very same labels."""
    project = Project(photos)
    project.add_stroke("disc00", DOT, model="cold")
    project.add_stroke("disc00", BESIDE)
    before = project.labels("disc00")
    project.close()
    again = Project(photos)
    assert np.array_equal(again.labels("disc00"), before)
    assert {*np.unique(before)} == {0, 1, IGNORE}
    line = again.lines("disc00")[0]
    assert (line.stroke, line.model, line.kind) == (DOT, "cold", "stroke")
    again.close()


def test_labels_lie_beside_the_images_which_stay_untouched(photos: Path) -> None:
    """The folder of images is the same before and after; masks/ and the log lie beside it."""
    before = {path: path.read_bytes() for path in photos.iterdir()}
    project = Project(photos)
    project.accept("disc03", disc(3)[1].astype(np.uint8))
    project.close()
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    mask = read(photos.parent / "masks" / "disc03.png")
    assert np.array_equal(mask, disc(3)[1] * np.uint8(255))
    assert (photos.parent / "labels.sqlite").exists()


def test_undo_has_no_end(photos: Path) -> None:
    """Every stroke can be taken back and brought back, also after a restart."""
    project = Project(photos)
    states = [project.labels("disc01")]
    for number in range(30):
        y = 2.0 * number
        project.add_stroke(
            "disc01", Stroke(tool="brush", value=number % 2, points=((y, y),), radius=3)
        )
        states.append(project.labels("disc01"))
    project.close()
    project = Project(photos)
    for state in states[-2::-1]:
        assert project.undo("disc01") is not None
        assert np.array_equal(project.labels("disc01"), state)
    assert project.undo("disc01") is None
    for state in states[1:]:
        assert project.undo("disc01", redo=True) is not None
        assert np.array_equal(project.labels("disc01"), state)
    assert project.undo("disc01", redo=True) is None
    project.close()


def test_an_accepted_image_can_be_taken_back(photos: Path) -> None:
    """Undoing a decision takes its mask away again, or brings back the one before."""
    project = Project(photos)
    mask = photos.parent / "masks" / "disc02.png"
    project.accept("disc02", np.zeros(SIZE, np.uint8))
    project.accept("disc02", np.ones(SIZE, np.uint8))
    assert read(mask).min() == 255
    project.undo("disc02")
    assert read(mask).max() == 0
    assert project.row("disc02").state == "done"
    project.undo("disc02")
    assert not mask.exists()
    assert project.row("disc02").state == "open"
    project.close()


def test_what_another_window_drew_is_not_accepted_unseen(photos: Path) -> None:
    """An accept names the last line that was seen; a later one refuses it, and keeps both."""
    project = Project(photos)
    seen = project.add_stroke("disc00", DOT)
    project.add_stroke("disc00", BESIDE)
    with pytest.raises(ChangedError, match="another window"):
        project.accept("disc00", np.zeros(SIZE, np.uint8), seen=seen)
    assert (project.labels("disc00") == 0).any()
    project.close()


def test_a_request_that_is_sent_twice_counts_once(photos: Path) -> None:
    """The page sends again what it had no answer to; the log holds it once."""
    project = Project(photos)
    first = project.add_stroke("disc00", DOT, client="abc")
    assert project.add_stroke("disc00", DOT, client="abc") == first
    assert len(project.lines("disc00")) == 1
    project.close()


def test_a_second_process_is_refused(photos: Path) -> None:
    """Two programs on one project would not see each other's strokes."""
    project = Project(photos)
    with pytest.raises(UsageError, match="open in another"):
        Project(photos)
    project.close()
    Project(photos).close()


def test_masks_that_are_there_are_taken_in(photos: Path) -> None:
    """Masks of others are truth: they are accepted, can be corrected, and stay byte for byte."""
    masks = photos.parent / "masks"
    masks.mkdir()
    for number in range(3):
        Image.fromarray(disc(number)[1].astype(np.uint8) * 255).save(
            masks / f"disc{number:02d}.png"
        )
    before = (masks / "disc01.png").read_bytes()
    project = Project(photos)
    states = {row.name: row.state for row in project.rows()}
    assert [states[f"disc{number:02d}"] for number in (0, 1, 2, 3)] == ["done"] * 3 + ["open"]
    assert np.array_equal(project.labels("disc01") == 1, disc(1)[1])
    assert project.undo("disc01") is None, "what others made can't be undone, only drawn over"
    project.add_stroke("disc01", DOT)
    assert np.array_equal(read(masks / "disc01.png") > 0, disc(1)[1]), "not before it is accepted"
    project.close()
    assert before


def test_partial_masks_become_labels(photos: Path) -> None:
    """A mask with ignored pixels is labels to go on with; the file itself is kept."""
    masks = photos.parent / "masks"
    masks.mkdir()
    truth = disc(0)[1]
    values = np.where(truth, 1, 0).astype(np.uint8)
    values[:, :10] = 7
    Image.fromarray(values).save(masks / "disc00.png")
    project = Project(photos, config=DataConfig(foreground=[1], ignore=[7]))
    labels = project.labels("disc00")
    assert (labels[:, :10] == IGNORE).all()
    assert np.array_equal(labels[:, 10:] == 1, truth[:, 10:])
    assert project.row("disc00").state == "open"
    assert not (masks / "disc00.png").exists(), "masks/ holds only what is whole"
    assert np.array_equal(read(photos.parent / "masks-before" / "disc00.png"), values)
    project.close()


def test_ambiguous_masks_are_refused_and_left_alone(photos: Path) -> None:
    """Values that could mean two things are never guessed."""
    masks = photos.parent / "masks"
    masks.mkdir()
    values = np.arange(60 * 80, dtype=np.uint8).reshape(SIZE) % 3 * 50
    Image.fromarray(values).save(masks / "disc00.png")
    with pytest.raises(DataError, match="foreground"):
        Project(photos)
    assert np.array_equal(read(masks / "disc00.png"), values)


def test_a_mask_that_was_changed_elsewhere_is_taken_in_again(photos: Path) -> None:
    """Whoever mends a mask in another program finds it here at the next opening."""
    project = Project(photos)
    project.accept("disc00", np.zeros(SIZE, np.uint8))
    project.close()
    Image.fromarray(disc(0)[1].astype(np.uint8) * 255).save(photos.parent / "masks" / "disc00.png")
    project = Project(photos)
    assert np.array_equal(project.labels("disc00") == 1, disc(0)[1])
    project.close()


def test_a_crash_between_log_and_mask_is_mended(photos: Path) -> None:
    """The mask follows from the log: where it is missing it is written at the next opening."""
    project = Project(photos)
    project.accept("disc05", disc(5)[1].astype(np.uint8))
    project.close()
    (photos.parent / "masks" / "disc05.png").unlink()
    Project(photos).close()
    assert np.array_equal(read(photos.parent / "masks" / "disc05.png") > 0, disc(5)[1])


def test_a_full_disk_is_one_sentence_and_loses_nothing(photos: Path) -> None:
    """A stroke that the disk refuses is refused whole; the next one, with room, is kept."""
    project = Project(photos)
    project.add_stroke("disc00", DOT)
    db: sqlite3.Connection = project._db
    (pages,) = db.execute("pragma page_count").fetchone()
    db.execute(f"pragma max_page_count = {pages}")
    noise = np.random.default_rng(0).integers(0, 2, SIZE).astype(bool)
    large = Stroke(tool="region", value=1, points=((0.0, 0.0),), region=pack(noise))

    def fill_up() -> None:
        for _ in range(50):
            project.add_stroke("disc00", large)

    with pytest.raises(OutputError, match=r"full.*make room"):
        fill_up()
    before = len(project.lines("disc00"))
    db.execute(f"pragma max_page_count = {pages + 1000}")
    project.add_stroke("disc00", DOT)
    assert len(project.lines("disc00")) == before + 1
    project.close()


def test_the_labels_of_other_images_are_refused(photos: Path, tmp_path: Path) -> None:
    """Two folders side by side would write into one masks/: the second needs a home of its own."""
    Project(photos).close()
    other = photos.parent / "rust"
    other.mkdir()
    Image.fromarray(disc(0)[0]).save(other / "one.png")
    with pytest.raises(UsageError, match="--home"):
        Project(other)
    Project(other, home=tmp_path / "rust-labels").close()


def test_training_takes_what_is_labelled_and_says_how_much_is_not(photos: Path) -> None:
    """`--data FOLDER` finds the masks beside it, keeps check images for the test, and counts."""
    project = Project(photos)
    checks = {row.name for row in project.rows() if row.is_check}
    assert len(checks) == 1, "a tenth of twelve"
    for number in range(10):
        project.accept(f"disc{number:02d}", disc(number)[1].astype(np.uint8))
    project.skip("disc11")
    project.close()
    for where in (photos, photos.parent):
        dataset = open_dataset(DataConfig(path=str(where)))
        assert dataset.kind == "labelled"
        assert len(dataset.records) == 10
        assert (
            "10 of 12 images; 2 are unlabelled and left out (1 of them were skipped)"
            in " ".join(dataset.notes)
        )
        splits = {record.id: record.split for record in dataset.records}
        assert all((splits[name] == "test") == (name in checks) for name in splits)


_CHILD = """
import sys
from pathlib import Path
from binseg.labeling.project import Project
from binseg.labeling.label_log import Stroke
import numpy as np
project = Project(Path(sys.argv[1]))
number = int(sys.argv[2])
sys.stdout.write("ready\\n"); sys.stdout.flush()
while True:
    name = f"disc{number % 12:02d}"
    stroke = Stroke(tool="brush", value=number % 2, points=((number % 80, number % 60),), radius=2)
    if number % 7 == 6:
        line = project.accept(name, np.full((60, 80), number % 2, np.uint8), client=f"c{number}")
    else:
        line = project.add_stroke(name, stroke, client=f"c{number}")
    sys.stdout.write(f"{number} {line}\\n"); sys.stdout.flush()
    number += 1
"""


def kill_and_check(photos: Path, num: int, seed: int = 0) -> int:
    """Kill a writer at random moments; return how many acknowledged lines were checked."""
    chance, known, number = random.Random(seed), {}, 0
    for _ in range(num):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(photos), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        with child.stdout:
            rest = child.stdout.read().splitlines(keepends=True)
        child.wait()
        for text in rest:
            if text.endswith("\n"):
                told, line = map(int, text.split())
                known[told] = line
                number = max(number, told + 1)
        number += 1  # one more may be on the disk without having been told
        project = Project(photos)  # which refuses a torn one
        kept = {line.id: line.image for row in project.rows() for line in project.lines(row.name)}
        for told, line in known.items():
            assert kept.get(line) == f"disc{told % 12:02d}", "an acknowledged line was lost"
        for row in project.rows():
            mask = photos.parent / "masks" / f"{row.name}.png"
            assert mask.exists() == (row.state == "done")
        project.close()
    return len(known)


def test_no_acknowledged_stroke_is_lost_by_a_kill(photos: Path) -> None:
    """Killed with -9 at random moments, a project is whole and holds all that was answered."""
    assert kill_and_check(photos, 4) > 0


@pytest.mark.slow
def test_no_acknowledged_stroke_is_lost_by_200_kills(photos: Path) -> None:
    """The same, 200 times."""
    assert kill_and_check(photos, 200, seed=1) > 500


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("create trigger t after insert on log begin delete from log; end", "trigger t"),
        ("create view more as select * from log", "view more"),
        ("create table more (x)", "table more"),
        ("update log set points = '[[1, 2, 3]]'", "damaged line"),
        ("update log set points = '[[1e400, 2]]'", "damaged line"),
        ("update log set points = 'x'", "damaged line"),
        ("update log set radius = 'wide'", "damaged line"),
        ("update log set tool = 'region', region = x'89504e47'", "damaged line"),
        ("update log set tool = 'spray'", "damaged line"),
    ],
)
def test_a_log_that_others_made_is_data_alone(photos: Path, sql: str, told: str) -> None:
    """It runs nothing on its own, and a line that binseg never writes is one sentence."""
    project = Project(photos)
    project.add_stroke("disc00", DOT)
    project.close()
    with sqlite3.connect(photos.parent / "labels.sqlite") as base:
        base.execute(sql)
    base.close()
    with pytest.raises((DataError, OutputError), match=told) as caught:  # noqa: PT012
        again = Project(photos)
        try:
            again.labels("disc00")
        finally:
            again.close()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opened", ["label", "train"])
def test_a_damaged_schema_that_is_no_text_is_one_line(photos: Path, opened: str) -> None:
    """SQLite quotes the damaged bytes in its message, which are no UTF-8."""
    Project(photos).close()
    log = photos.parent / "labels.sqlite"
    data = log.read_bytes()
    assert b"references images" in data
    log.write_bytes(data.replace(b"references images", b"re\xff\xff\xff\xffnces images"))
    with pytest.raises((DataError, OutputError), match=r"labels\.sqlite") as caught:
        Project(photos) if opened == "label" else open_dataset(DataConfig(path=str(photos)))
    assert "\n" not in str(caught.value)


def test_a_log_names_no_files_elsewhere(photos: Path, tmp_path: Path) -> None:
    """Images are those that lie in the folder, of the size that they have, whatever a log says."""
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    mask = disc(0)[1]
    project = Project(photos)
    project.accept("disc00", mask.astype(np.uint8))
    project.close()
    with sqlite3.connect(photos.parent / "labels.sqlite") as base:
        base.execute("update images set file = ?, height = 1000000, width = 1000000",
                     (str(tmp_path / "secret.png"),))  # fmt: skip
        base.execute("insert into images (name, file) values ('../../evil', 'disc00.png')")
    base.close()
    again = Project(photos)
    assert {row.path.parent for row in again.rows()} == {photos}
    assert "../../evil" not in {row.name for row in again.rows()}
    assert np.array_equal(again.labels("disc00") == 1, mask)
    again.close()
    with pytest.raises(DataError, match="none of 1 image "):
        open_dataset(DataConfig(path=str(photos)))


def test_a_mask_is_never_written_through_a_link(photos: Path, tmp_path: Path) -> None:
    """A link in a mask's place, into nowhere or to a file, is replaced; its target stays."""
    project = Project(photos)
    masks = photos.parent / "masks"
    masks.mkdir(exist_ok=True)
    target = tmp_path / "target.png"
    (masks / "disc00.png").symlink_to(target)
    project.accept("disc00", disc(0)[1].astype(np.uint8))
    project.close()
    assert not target.exists()
    assert np.array_equal(read(masks / "disc00.png") > 0, disc(0)[1])
