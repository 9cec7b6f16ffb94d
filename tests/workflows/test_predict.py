"""Predicting files: names that never collide, structure that stays, nothing overwritten."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.errors import UsageError
from binseg.predictor import Predictor
from binseg.structures import Preprocessing
from binseg.workflows.predict import predict_files


class Brightness:
    """A backend that answers with the brightness of the input."""

    name = "brightness"
    precision = "fp32"

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """Give the mean over the channels."""
        mean: np.ndarray = inputs_NCHW.mean(axis=1)
        return mean


@pytest.fixture
def model() -> Predictor:
    """A predictor of that backend."""
    preprocessing = Preprocessing(height=8, width=8)
    return Predictor(
        backend=Brightness(), preprocessing=preprocessing, threshold=0.5, bundle_id="bright"
    )


@pytest.fixture
def paint(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a picture under a name."""

    def write(name: str, level: int = 200) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (level, level, level)).save(path)
        return path

    return write


def names(folder: Path) -> set[str]:
    """List the files under a folder."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_folders_keep_their_structure(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Pictures in folders of a folder go to folders of the same names."""
    paint("in/a.png")
    paint("in/deep/a.png")
    paint("in/.hidden/b.png")
    predict_files(model, [tmp_path / "in"], out=tmp_path / "out")
    assert names(tmp_path / "out") == {"a.png", "deep/a.png"}


def test_equal_names_get_masks_of_their_own(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """a.png, a.jpg and another folder's a.png: three pictures, three masks."""
    first, second, third = paint("in/a.jpg", 200), paint("in/a.png", 10), paint("other/a.png", 200)
    result = predict_files(model, [first, second, third], out=tmp_path / "out")
    assert names(tmp_path / "out") == {"a.png", "a.png.png", "a-2.png"}
    assert [one.foreground for one in result.written] == [1.0, 0.0, 1.0]


def test_answers_of_other_pictures_dont_collide(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """The mask of a_overlay.jpg doesn't hide the overlay of a.jpg."""
    pictures = [paint("in/a.jpg"), paint("in/a_overlay.jpg")]
    result = predict_files(model, pictures, out=tmp_path / "out", overlay=True)
    files = [path for one in result.written for path in (one.mask, *one.others)]
    assert len(set(files)) == 4


def test_same_picture_given_twice_is_predicted_once(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """A file, its folder and a glob that finds it are one picture."""
    picture = paint("in/a.png")
    inputs: list[str | Path] = [picture, tmp_path / "in", str(tmp_path / "in" / "*.png")]
    assert len(predict_files(model, inputs, out=tmp_path / "out").written) == 1


def test_second_run_in_one_folder_skips_its_answers(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Masks of an earlier run inside the input folder are no pictures."""
    paint("in/a.png")
    for _ in range(2):
        result = predict_files(
            model, [tmp_path / "in"], out=tmp_path / "in" / "masks", overwrite=True
        )
        assert [one.source.name for one in result.written] == ["a.png"]


def test_inputs_are_never_overwritten(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Not even with `overwrite`, and not by way of another picture's name."""
    picture = paint("in/a.png")
    with pytest.raises(UsageError, match="one of the inputs"):
        predict_files(model, [picture], out=tmp_path / "in", overwrite=True)
    with pytest.raises(UsageError, match="one of the inputs"):
        predict_files(model, [paint("b/a.jpg"), picture], out=tmp_path / "in", overwrite=True)


def test_files_that_are_there_stay(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """A mask that somebody drew is not replaced unless that is asked for."""
    picture, drawn = paint("in/a.png"), paint("masks/a.png")
    before = drawn.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        predict_files(model, [picture], out=tmp_path / "masks")
    assert drawn.read_bytes() == before
    predict_files(model, [picture], out=tmp_path / "masks", overwrite=True)
    assert drawn.read_bytes() != before


def test_stacks_give_a_mask_a_page(model: Predictor, tmp_path: Path) -> None:
    """Each page of a stack is a picture of its own."""
    pages = np.stack([np.full((9, 11), level, np.uint8) for level in (0, 255)])
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    result = predict_files(model, [tmp_path / "stack.tif"], out=tmp_path / "out")
    assert names(tmp_path / "out") == {"stack-page0000.png", "stack-page0001.png"}
    assert [one.foreground for one in result.written] == [0.0, 1.0]


def test_failures_are_named_once(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """A broken picture, an absent one and an empty folder fail; the others are written."""
    broken = paint("in/broken.png")
    broken.write_bytes(broken.read_bytes()[:45])
    (tmp_path / "empty").mkdir()
    inputs = [broken, paint("in/good.png"), tmp_path / "gone.png", tmp_path / "empty"]
    result = predict_files(model, inputs, out=tmp_path / "out")
    assert names(tmp_path / "out") == {"good.png"}
    assert {Path(failure.source).name for failure in result.failures} == {
        "broken.png",
        "gone.png",
        "empty",
    }
    assert all(failure.source in failure.reason for failure in result.failures)
    assert result.num_inputs == 4


def test_threshold_replaces_the_models(
    model: Predictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """A threshold of 1 finds nothing, and the model keeps its own."""
    result = predict_files(model, [paint("a.png")], out=tmp_path / "out", threshold=1.0)
    assert result.written[0].foreground == 0.0
    assert model.threshold == 0.5
