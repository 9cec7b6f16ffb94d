"""Masks of any program, scored without a model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from binseg.cli import app
from binseg.errors import DataError, ImageError
from binseg.evaluation.scoring import SavedMask
from binseg.pipelines.evaluate_model import evaluate


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images of one disc each, with their masks."""
    y, x = np.mgrid[:40, :50]
    for number in range(4):
        mask = (y - 20) ** 2 + (x - 20 - number) ** 2 < 100
        for folder, pixels in (("images", mask * 200), ("masks", mask * 255)):
            path = tmp_path / "data" / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "data"


def copy_masks(data: Path, folder: Path, name: str, *, shift: int = 0, on: int = 255) -> None:
    """Save the masks as another program would."""
    folder.mkdir(exist_ok=True)
    for path in (data / "masks").iterdir():
        with Image.open(path) as opened:
            mask = np.roll(np.asarray(opened) > 0, shift, axis=1)
        Image.fromarray(mask.astype(np.uint8) * np.uint8(on)).save(folder / name.format(path.stem))


@pytest.mark.parametrize(
    ("name", "on"), [("{}.png", 255), ("{}_mask.tif", 1), ("{}.png.png", 255), ("{}_pred.bmp", 7)]
)
def test_true_masks_score_one_whatever_wrote_them(
    data: Path, tmp_path: Path, name: str, on: int
) -> None:
    """Names are matched by the image's; 0 and one other value are a mask."""
    copy_masks(data, tmp_path / "theirs", name, on=on)
    predictor = SavedMask(None, name=str(tmp_path / "theirs"))
    report = evaluate(predictor, data=data, split="all", out=tmp_path / "scores")
    assert [one.scores["original"]["dice"] for one in report.images] == [1.0] * 4
    assert (tmp_path / "scores" / "report.html").exists()


def test_the_score_is_that_of_the_pixels(data: Path, tmp_path: Path) -> None:
    """Dice of shifted discs, computed here; the shell gives the same."""
    copy_masks(data, tmp_path / "theirs", "{}.png", shift=3)
    predicted, out = str(tmp_path / "theirs"), str(tmp_path / "scores")
    command = ["evaluate", "--predicted", predicted, "--data", str(data), "--out", out, "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    with Image.open(data / "masks" / "0.png") as opened:
        truth = np.asarray(opened) > 0
    expected = 2 * (truth & np.roll(truth, 3, axis=1)).sum() / (2 * truth.sum())
    dice = json.loads((tmp_path / "scores" / "report.json").read_text())["images"][0]
    assert f"{expected:.6f}"[:6] in json.dumps(dice)


def test_what_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    """A score of the rest alone would flatter; odd masks are refused too."""
    copy_masks(data, tmp_path / "theirs", "{}.png")
    predictor = SavedMask(None, name=str(tmp_path / "theirs"))
    (tmp_path / "theirs" / "2.png").rename(tmp_path / "theirs" / "9.png")
    with pytest.raises(DataError, match="no mask for 1 of 4 images: 2;"):
        evaluate(predictor, data=data, split="all")
    grey = np.arange(2000).reshape(40, 50).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "theirs" / "2.png")
    with pytest.raises(ImageError, match="give masks of 0 and one other value"):
        evaluate(predictor, data=data, split="all")
    Image.fromarray(grey[:9]).save(tmp_path / "theirs" / "2.png")
    with pytest.raises(ImageError, match="at the image's size"):
        evaluate(predictor, data=data, split="all")


def test_names_in_two_folders_keep_apart(tmp_path: Path) -> None:
    """A mask at its image's own path goes before a namesake's; one for two images is refused."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "deep/a"):
        truth = np.kron(rng.random((5, 6)) > 0.6, np.ones((8, 8))).astype(np.uint8) * 255
        for place in ("data/images", "data/masks", "theirs"):
            path = tmp_path / place / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(truth).save(path)
    predictor = SavedMask(None, name=str(tmp_path / "theirs"))
    report = evaluate(predictor, data=tmp_path / "data", split="all")
    assert [one.scores["original"]["dice"] for one in report.images] == [1.0] * 3
    (tmp_path / "theirs" / "a.png").unlink()
    with pytest.raises(DataError, match=r"deep/a\.png would be of several images; keep their"):
        evaluate(predictor, data=tmp_path / "data", split="all")
