"""The walks of four new users: every command of a page, in its order, in one folder.

Only the time is shortened: each training ends in seconds, on images that binseg draws. With
WALKS=full in the environment each takes the time that the page gives it.
"""

import os
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from binseg.cli import app
from binseg.config import DataConfig
from binseg.data.dataset import Dataset
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.imageio import read_image, write_image, write_mask

ROOT = Path(__file__).parents[2]
WALKS = {
    "README.md": 60,
    "README.zh-TW.md": 60,
    "docs/how-to/tiffs-from-fiji.md": 12,
    "docs/how-to/cut-outs.md": 30,
    "docs/how-to/few-masks.md": 60,
    "docs/how-to/train-on-oxford-pet.md": 40,
}
"""Pages, and how many images with masks their user has."""
PLACES = ("my_folder", "cells", "shop", "parts")
NEW = ("more", "new_images", "photos")
WAITS = {"serve"}
"""Verbs that don't end by themselves; they have tests of their own."""
BUDGET = "20s"


def commands_of(page: Path) -> list[list[str]]:
    """List the words of each binseg command in the page's `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("binseg ")]


def in_seconds(words: list[str]) -> list[str]:
    """Shorten a training; all else stays as printed."""
    is_as_printed = os.environ.get("WALKS") == "full" or words[0] != "train"
    if is_as_printed or {"--epochs", "train.epochs=1"} & {*words}:
        return words
    if "--budget" in words:
        place = words.index("--budget") + 1
        return [*words[:place], BUDGET, *words[place + 1 :]]
    return [*words, "--budget", BUDGET]


def lay_out(here: Path, num: int) -> None:
    """Give the user images and masks in every folder that a page names."""
    dataset = open_dataset(DataConfig(path=f"synthetic:num={num},size=64"))
    for record in dataset.records:
        sample = read_sample(record, dataset.rule)
        for place in PLACES:
            for kind in ("images", "masks"):
                (here / place / kind).mkdir(parents=True, exist_ok=True)
            write_image(here / place / "images" / f"{record.id}.png", sample.image_HWC)
            assert sample.mask_HW is not None
            write_mask(here / place / "masks" / f"{record.id}.png", sample.mask_HW)
    lay_out_pets(here / "oxford-iiit-pet", dataset)
    first = sorted((here / PLACES[0] / "images").iterdir())[:2]
    for place in NEW:
        (here / place).mkdir()
        for path in first:
            shutil.copy(path, here / place)
    write_image(here / "photo.jpg", read_image(first[0]))


def lay_out_pets(home: Path, dataset: Dataset) -> None:
    """Give the student the official layout: trimaps, and both lists."""
    (home / "annotations" / "trimaps").mkdir(parents=True)
    (home / "images").mkdir()
    names = [f"pet_{number}" for number, _ in enumerate(dataset.records, start=1)]
    for name, record in zip(names, dataset.records, strict=True):
        sample = read_sample(record, dataset.rule)
        assert sample.mask_HW is not None
        edge_HW = ndimage.binary_dilation(sample.mask_HW) & ~sample.mask_HW
        trimap_HW = np.where(sample.mask_HW, 1, np.where(edge_HW, 3, 2)).astype(np.uint8)
        write_image(home / "images" / f"{name}.jpg", sample.image_HWC)
        Image.fromarray(trimap_HW).save(home / "annotations" / "trimaps" / f"{name}.png")
    for file, listed in (("trainval.txt", names[:-6]), ("test.txt", names[-6:])):
        text = "".join(f"{name} 1 1 1\n" for name in listed)
        (home / "annotations" / file).write_text(text, "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKS)
def test_every_command_of_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, from a fresh folder, each ends with 0."""
    lay_out(tmp_path, WALKS[page])
    monkeypatch.chdir(tmp_path)
    commands = [words for words in commands_of(ROOT / page) if words[0] not in WAITS]
    assert len(commands) >= 3
    for words in commands:
        is_redirected = len(words) > 2 and words[-2] == ">"
        started = time.perf_counter()
        result = CliRunner().invoke(app, in_seconds(words[:-2] if is_redirected else words))
        print(f"{time.perf_counter() - started:5.0f} s  binseg {shlex.join(words)}")  # noqa: T201
        if is_redirected:
            Path(words[-1]).write_text(result.stdout, "utf-8")
        assert result.exit_code == 0, f"binseg {shlex.join(words)}\n{result.output}"
