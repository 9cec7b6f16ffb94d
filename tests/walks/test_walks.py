"""The walks of four new users: every command of a page, in its order, in one folder.

Only the time is shortened: each training ends in seconds, on images that binseg draws. With
WALKS=full in the environment each takes the time that the page gives it.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from binseg.config import DataConfig
from binseg.data.dataset import Dataset
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.imageio import read_image, write_image, write_mask

ROOT = Path(__file__).parents[2]
WALKS = {
    "README.md": 60,
    "README.zh-TW.md": 60,
    "docs/getting-started.md": 60,
    "docs/how-to/tiffs-from-fiji.md": 12,
    "docs/how-to/cut-outs.md": 30,
    "docs/how-to/few-masks.md": 60,
    "docs/how-to/train-on-oxford-pet.md": 40,
}
"""Pages that begin with data alone, and how many images with masks their user has."""
GUIDES = (
    "docs/plan.md",
    "docs/from-the-reports.md",
    "docs/from-the-reports.zh-TW.md",
    "docs/how-to/big-images.md",
    "docs/how-to/export.md",
    "docs/how-to/label.md",
    "docs/how-to/masks.md",
    "docs/how-to/outputs.md",
    "docs/how-to/predict.md",
    "docs/how-to/prepare-your-data.md",
    "docs/how-to/spread-the-work.md",
    "docs/how-to/train-on-patches.md",
    "docs/how-to/train-on-several-devices.md",
    "docs/how-to/trust-a-prediction.md",
)
"""Pages whose reader has models already. Those of experiments take hours: their benchmarks have
tests of their own."""
PLACES = ("my_folder", "cells", "shop", "parts", "my_images")
NEW = ("more", "more_photos", "new_images", "photos")
NEEDS = {
    "serve": "waits for Ctrl-C",
    "label my_images/": "waits for Ctrl-C",
    "s3://": "a bucket",
    "https://": "a network",
    "--scheduler": "a cluster",
    "--shard auto": "a cluster",
    "runs/eight": "eight GPUs",
    "--guarantee": "63 images for validation",
}
"""Commands that are left out, and what they need; they have tests of their own."""
BUDGET = "20s"


def commands_of(page: Path) -> list[str]:
    """List the binseg commands in the page's blocks for the shell, as printed."""
    fence = r"^```([^\n]*)\n(.*?)^```"
    found = re.findall(fence, page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    blocks = [block.replace("\\\n", " ") for info, block in found if info in {"", "sh"}]
    lines = [line for block in blocks for line in block.splitlines()]
    return [
        line
        for line in lines
        if line.startswith("binseg ")
        and not any(re.match(rf"binseg .*{need}(?! .*--export)", line) for need in NEEDS)
    ]


def in_seconds(line: str) -> str:
    """Shorten a training; all else stays as printed."""
    words = shlex.split(line)
    is_as_printed = os.environ.get("WALKS") == "full" or words[1] != "train"
    if is_as_printed or {"--epochs", "train.epochs=1"} & {*words}:
        return line
    if "--budget" in words:
        place = words.index("--budget") + 1
        return shlex.join([*words[:place], BUDGET, *words[place + 1 :]])
    return shlex.join([*words, "--budget", BUDGET])


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


def lay_out_masks(here: Path) -> None:
    """Write the masks of docs/how-to/masks.md: those that need an option."""
    soft, values = np.arange(32, dtype=np.uint8) * 8, np.arange(32) % 8
    of_kind = {
        "soft": soft,
        "instances": np.minimum(values * 30, 200),
        "classes": values,
        "zero-one-255": np.choose(values % 3, [0, 1, 255]),
        "one-two": 1 + values % 2,
        "three-colours": np.eye(3)[values % 3] * [255, 0, 255],
    }
    random = np.random.default_rng(0)
    for kind, row in of_kind.items():
        for number in range(6):
            mask = np.repeat(np.roll(row, number, axis=0)[None], 32, axis=0).astype(np.uint8)
            for name, pixels in (("masks", mask), ("images", random.integers(0, 256, (32, 32, 3)))):
                path = here / "cases" / kind / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)


def lay_out_layouts(here: Path) -> None:
    """Write the layouts of docs/how-to/prepare-your-data.md that need an option."""
    names = sorted(path.stem for path in (here / PLACES[0] / "images").iterdir())[:12]
    for folder in ("other_layout/scans", "other_layout/truth", "short_stack", "leaves/images"):
        (here / folder).mkdir(parents=True)
    pages: dict[str, list[np.ndarray]] = {"images": [], "masks": []}
    for number, name in enumerate(names):
        for kind, found in pages.items():
            found.append(read_image(here / PLACES[0] / kind / f"{name}.png").squeeze())
        write_image(here / f"other_layout/scans/{number}_raw.png", pages["images"][-1])
        tifffile.imwrite(here / f"other_layout/truth/{number}.tif", pages["masks"][-1])
        write_image(here / f"leaves/images/{name}.png", pages["images"][-1])
    for name, kind in (("volume", "images"), ("volume_mask", "masks")):
        tifffile.imwrite(here / "short_stack" / f"{name}.tif", np.stack(pages[kind]))
    images = [
        {"id": n, "file_name": f"{one}.png", "height": 64, "width": 64}
        for n, one in enumerate(names)
    ]
    corners = [[8, 8, 8, 40, 40, 40, 40, 8]]
    outlines = [
        {"id": n, "image_id": n, "category_id": 1, "segmentation": corners, "bbox": [8, 8, 32, 32]}
        for n, _ in enumerate(names)
    ]
    coco = {"images": images, "annotations": outlines, "categories": [{"id": 1, "name": "leaf"}]}
    (here / "leaves" / "annotations.json").write_text(json.dumps(coco), "utf-8")


def run(line: str) -> None:
    """Run a command line here, as a shell does; it must end with 0."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    facts = {**os.environ, "PATH": os.pathsep.join(places), "COLUMNS": "80"}
    started = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env=facts
    )
    print(f"{time.perf_counter() - started:5.0f} s  {line}", flush=True)  # noqa: T201
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def run_all(page: str) -> None:
    """Run the commands of a page here, in order."""
    commands = commands_of(ROOT / page)
    assert commands
    for line in commands:
        run(in_seconds(line))


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKS)
def test_every_command_of_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, from a fresh folder, each ends with 0."""
    lay_out(tmp_path, WALKS[page])
    monkeypatch.chdir(tmp_path)
    run_all(page)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The desk of someone who has trained: data, photos and models."""
    here = tmp_path_factory.mktemp("desk")
    lay_out(here, 60)
    lay_out_masks(here)
    lay_out_layouts(here)
    (here / "oxford-iiit-pet").rename(here / "pets")
    photo = read_image(here / "photo.jpg")
    tifffile.imwrite(here / "slide.svs", np.tile(photo, (9, 9, 1)), tile=(128, 128))
    before = Path.cwd()
    os.chdir(here)
    for options in ("--out runs/first", "--seed 1 --out runs/second", "--folds 3 --out runs/cv"):
        run(f"binseg train my_folder/ --recipe demo --epochs 1 {options}")
    os.chdir(before)
    return here


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_every_command_of_the_guide_runs(
    page: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, at a desk with models, each ends with 0."""
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run_all(page)


def test_every_page_with_commands_is_walked() -> None:
    """A new page joins one of the lists, unless all its commands are left out with a reason."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    strange = ("reference", "experiments", "_build")
    found = {
        page.relative_to(ROOT).as_posix()
        for page in pages
        if not {*strange} & {*page.parts} and commands_of(page)
    }
    assert found <= {*WALKS, *GUIDES}
