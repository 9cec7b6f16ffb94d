"""The likeliest mistakes: each is answered in one line, which docs/mistakes.md shows.

`python tests/cli/test_mistakes.py` writes that page anew.
"""

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from binseg.cli import app
from binseg.errors import one_line
from binseg.inference.pretrained import default_bundle_path

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
HEAD = """# Mistakes, and what binseg answers

Each of these is one line, an exit code that isn't 0, and no file changed. The table is
written by the test that makes every mistake, `tests/cli/test_mistakes.py`; long answers are cut.

| the mistake | the command | the answer |
| --- | --- | --- |
"""
MOST = 260
MISTAKES = (
    ("No data named", "check"),
    ("A misspelt folder", "check my_foldr"),
    ("Data named twice", "check my_folder --data my_folder"),
    ("Images and masks swapped", "train swapped --recipe demo --out runs/new"),
    ("A folder one level too deep", "check my_folder/images"),
    ("A folder one level too high", "check two_sets"),
    ("No masks", "check only_images"),
    ("Masks of other names", "check unpaired"),
    ("Grey masks", "train grey --recipe demo --out runs/new"),
    ("Masks of several classes", "train classes --recipe demo --out runs/new"),
    ("Masks that are all black", "train black --recipe demo --out runs/new"),
    ("Not a number in a mask", "train nan --recipe demo --out runs/new"),
    ("Masks with palettes that differ", "train voc --recipe demo --out runs/new"),
    ("A file that is no data set", "check notes.txt"),
    ("An empty folder", "check nothing"),
    ("A single image", "train single --recipe demo --out runs/new"),
    ("A mask of another size", "train unequal --recipe demo --out runs/new"),
    ("A budget in words", "train my_folder --budget soon"),
    ("A number in words", "train my_folder --epochs ten"),
    ("An unknown option", "train my_folder --learning-rate 0.1"),
    ("An unknown recipe", "train my_folder --recipe pets"),
    ("An unknown network", "train my_folder --recipe demo --model resnet34unet"),
    ("An unknown setting", "train my_folder --recipe demo --set train.epoch=3"),
    ("A GPU that isn't there", "train my_folder --recipe demo --device cuda"),
    ("A folder in use", "train my_folder --out my_folder"),
    ("A file as --out", "train my_folder --out notes.txt"),
    ("No permission to write", "train my_folder --out /sys/runs/new"),
    ("Going on with nothing", "train --resume runs/none"),
    ("An unknown split", "evaluate runs/first my_folder --split tset"),
    ("A misspelt run", "evaluate runs/frist my_folder"),
    ("Data that have moved", "evaluate runs/moved"),
    ("No images to predict", "predict runs/first"),
    ("A threshold above 1", "predict runs/first photo.png --threshold 2"),
    ("A mask that is there already", "predict runs/first photo.png --out done"),
    ("An image that is none", "predict runs/first broken.png --out new"),
    ("A map without an EPSG code", "predict runs/first map.tif --geojson --out new"),
    ("A bundle of another ending", "pack runs/first --out model.tar"),
    ("A misspelt verb", "trian my_folder"),
)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _folder(home: Path, num: int = 6) -> Path:
    """Write noise as images, and a square as the mask of each."""
    random = np.random.default_rng(0)
    for index in range(num):
        mask_HW = np.zeros((40, 48))
        mask_HW[5 + index : 25, 8:30] = 255
        _save(home / "images" / f"{index}.png", random.integers(0, 256, (40, 48, 3)))
        _save(home / "masks" / f"{index}.png", mask_HW)
    return home


def _repaint(home: Path, values: np.ndarray) -> None:
    for path in (home / "masks").iterdir():
        _save(path, values)


def lay_out(here: Path) -> None:
    """Make the folders and files of all mistakes."""
    data = _folder(here / "my_folder")
    swapped = _folder(here / "swapped")
    (swapped / "images").rename(swapped / "kept")
    (swapped / "masks").rename(swapped / "images")
    (swapped / "kept").rename(swapped / "masks")
    for name in ("left", "right"):
        shutil.copytree(data, here / "two_sets" / name)
    shutil.copytree(data / "images", here / "only_images" / "images")
    unpaired = _folder(here / "unpaired")
    for path, name in zip(sorted((unpaired / "masks").iterdir()), "rtyuio", strict=True):
        path.rename(path.with_stem(name * 3))
    _folder(here / "single", 1)
    unequal = _folder(here / "unequal")
    _save(unequal / "masks" / "3.png", np.full((9, 9), 255))
    steps = np.arange(40 * 48).reshape(40, 48)
    _repaint(_folder(here / "grey"), steps % 256)
    _repaint(_folder(here / "classes"), steps % 4)
    _repaint(_folder(here / "black"), np.zeros((40, 48)))
    nan = _folder(here / "nan")
    for path in (nan / "masks").iterdir():
        np.save(
            path.with_suffix(".npy"), np.where(steps > 900, 1, np.nan if "3" in path.name else 0)
        )
        path.unlink()
    _voc(here / "voc")
    _map(here / "map.tif")
    (here / "nothing").mkdir()
    (here / "notes.txt").write_text("seen", "utf-8")
    (here / "broken.png").write_text("no image", "utf-8")
    shutil.copy(data / "images" / "0.png", here / "photo.png")
    _save(here / "done" / "photo.png", np.zeros((40, 48)))
    for name in ("first", "moved"):
        shutil.unpack_archive(default_bundle_path(), here / "runs" / name / "bundle")
    (here / "runs" / "moved" / "recipe.yaml").write_text("data: {path: cells}", "utf-8")
    (here / "runs" / "moved" / "split.csv").write_text("id,split\n", "utf-8")


def _voc(home: Path) -> None:
    """Write Pascal VOC's layout, with another palette in one of the masks."""
    data = _folder(home)
    (data / "images").rename(home / "JPEGImages")
    (data / "masks").rename(home / "SegmentationClass")
    for path in (home / "SegmentationClass").iterdir():
        with Image.open(path) as image:
            one = Image.fromarray(np.asarray(image) // 255)
        one.putpalette([0, 0, 0, 200, 10, 99 if path.stem == "3" else 30])
        one.save(path)


def _map(path: Path) -> None:
    """Write a GeoTIFF whose projection its author made up."""
    keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32767)
    tags = [(33550, 12, 3, (1.0, 1.0, 0.0), True), (33922, 12, 6, (0.0,) * 6, True)]
    pixels = np.zeros((64, 64, 3), np.uint8)
    tifffile.imwrite(path, pixels, extratags=[*tags, (34735, 3, len(keys), keys, True)])


def _files() -> dict[Path, object]:
    """Tell what is there, and when each file was written."""
    return {path: path.is_file() and path.stat().st_mtime_ns for path in Path().rglob("*")}


def answer_to(command: str) -> str:
    """Make the mistake here, and give the answer, which must be one line."""
    before = _files()
    result = CliRunner().invoke(app, ["--quiet", *shlex.split(command)])
    assert result.exit_code in {1, 2}, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("binseg: ")
    assert _files() == before
    return result.stderr.strip()


def row_of(mistake: str, command: str) -> str:
    """Make a row of the page."""
    here = str(Path.cwd()) + os.sep
    answer = answer_to(command).replace(here, "").replace("|", "\\|").replace("`", "'")
    answer = one_line(answer, limit=MOST).replace("<", "&lt;")
    return f"| {mistake} | `binseg {command}` | {answer} |\n"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A desk with everything, and work goes on there."""
    desk = tmp_path_factory.mktemp("mistakes").resolve()
    before = Path.cwd()
    lay_out(desk)
    os.chdir(desk)
    yield desk
    os.chdir(before)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("mistake", "command"), MISTAKES, ids=[one for one, _ in MISTAKES])
def test_each_mistake_is_answered_as_the_page_says(mistake: str, command: str) -> None:
    """One line, an exit code, no file changed; and the docs show that very line."""
    assert row_of(mistake, command) in PAGE.read_text("utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder).resolve()
        lay_out(desk)
        os.chdir(desk)
        rows = []
        for mistake, command in MISTAKES:
            try:
                rows.append(row_of(mistake, command))
            except AssertionError as problem:
                print(f"{mistake}: {problem}")  # noqa: T201
        PAGE.write_text(HEAD + "".join(rows), "utf-8")
