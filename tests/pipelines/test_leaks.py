"""Training looks for leaks first."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from binseg.config import DataConfig, SplitConfig, load_recipe
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits
from binseg.datacheck import keep_together
from binseg.errors import DataError
from binseg.pipelines.train_model import train
from binseg.progress import Silent


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def say(self, message: str) -> None:
        """Keep a line."""
        self._lines.append(message)


def test_train_refuses_leaks_unless_told(
    write_discs: Callable[[Path, Sequence[int]], Path], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """An image in two splits stops the run and is named; data.allow_leaks lets it go on."""
    data = write_discs(tmp_path / "data", range(8))
    for name in ("images", "masks"):
        (data / name / "twin.png").write_bytes((data / name / "disc001.png").read_bytes())
    (data / "train.txt").write_text("".join(f"disc{n:03d}\n" for n in range(6)), "utf-8")
    (data / "val.txt").write_text("twin\ndisc006\ndisc007\n", "utf-8")
    sections = {"data": {"path": str(data)}}
    with pytest.raises(DataError, match=r"disc001, twin.*data\.allow_leaks"):
        train(load_recipe(overrides=tiny, sections=sections), out=tmp_path / "refused")
    allowed = load_recipe(overrides=(*tiny, "data.allow_leaks=true"), sections=sections)
    train(allowed, out=tmp_path / "run")
    assert (tmp_path / "run" / "bundle").is_dir()


def test_copies_are_kept_in_one_split_where_binseg_draws_it(
    write_discs: Callable[[Path, Sequence[int]], Path], tmp_path: Path
) -> None:
    """A copy under another name, and a moved one, join their image; it is said, not refused."""
    data = write_discs(tmp_path / "data", range(20))
    for name in ("images", "masks"):
        image = Image.open(data / name / "disc001.png")
        image.save(data / name / "twin.png")
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(
            data / name / "large.png"
        )
    config = DataConfig(path=str(data))
    dataset = keep_together(open_dataset(config), config)
    group = {one.id for one in dataset.records if one.group is not None}
    assert group == {"disc001", "large", "twin"}
    assert dataset.notes[-1].startswith("3 images are the same as others, or nearly so (disc001")
    for seed in range(8):
        dealt = assign_splits(dataset, SplitConfig(seed=seed))
        assert len({one.split for one in dealt.records if one.id in group}) == 1


def test_train_stops_where_all_masks_look_shifted(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The doctor's error is training's, too; data.allow_shifts lets it go on."""
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for seed in range(24):
        random = np.random.default_rng(seed)
        rows, columns = np.mgrid[:96, :96]
        top, left = random.uniform(35, 61, 2)
        disc_HW = (rows - top) ** 2 + (columns - left) ** 2 < random.uniform(12, 20) ** 2
        image_HW = 70 + 90 * disc_HW + random.normal(0, 4, (96, 96))
        mask_HW = np.roll(disc_HW, (8, 8), (0, 1))
        for kind, pixels in (("images", image_HW), ("masks", mask_HW * 255)):
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                tmp_path / "data" / kind / f"a{seed}.png"
            )
    recipe = load_recipe(overrides=tiny, sections={"data": {"path": str(tmp_path / "data")}})
    with pytest.raises(DataError, match=r"all masks look shifted.*data\.allow_shifts: true"):
        train(recipe, out=tmp_path / "refused")


def test_a_published_split_with_copies_is_said_and_trained(
    write_discs: Callable[[Path, Sequence[int]], Path], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Oxford-IIIT Pet has some photos twice; its split is everybody's, so that scores compare."""
    discs = write_discs(tmp_path / "discs", range(12))
    home = tmp_path / "pets"
    (home / "images").mkdir(parents=True)
    (home / "annotations" / "trimaps").mkdir(parents=True)
    names = [f"cat_{number}" for number in range(12)]
    for number, name in enumerate(names):
        # The list's first line validates; the second is its twin, which trains.
        source = f"disc{0 if number == 1 else number:03d}.png"
        with Image.open(discs / "images" / source) as image:
            image.convert("RGB").save(home / "images" / f"{name}.jpg", quality=100)
        with Image.open(discs / "masks" / source) as mask:
            trimap_HW = np.where(np.asarray(mask) > 0, 1, 2).astype(np.uint8)
        Image.fromarray(trimap_HW).save(home / "annotations" / "trimaps" / f"{name}.png")
    rows = "".join(f"{name} 1 1 1\n" for name in names)
    (home / "annotations" / "trainval.txt").write_text(rows, "utf-8")
    heard: list[str] = []
    data = {"path": str(home), "split": {"method": "official"}}
    recipe = load_recipe(overrides=tiny, sections={"data": data})
    train(recipe, out=tmp_path / "run", progress=Heard(heard))
    assert any("cat_0, cat_1" in line for line in heard)
