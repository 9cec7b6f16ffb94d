"""Runs: their folders, going on after a stop, and what a check and a demo give."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import binseg
from binseg.cli import app
from binseg.config import Recipe, load_recipe
from binseg.data.dataset import Dataset
from binseg.data.sources import open_dataset
from binseg.errors import BundleError, DataError, OutputError, TrainingError, UsageError
from binseg.pipelines.check_data import plot_augmentation
from binseg.pipelines.evaluate_model import demo
from binseg.pipelines.train_model import resume_training, train
from binseg.training.run_folder import RunFolder, environment, next_run_path

Write = Callable[[Path, Sequence[int]], Path]


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Recipe, Path], None]:
    """A function that trains until a step of the workflow, named by its function, and stops."""

    def train_until(step: str, recipe: Recipe, out: Path) -> None:
        def stop(*_: object, **__: object) -> None:
            raise TrainingError("stopped here")

        with monkeypatch.context() as broken:
            broken.setattr(f"binseg.pipelines.train_model.{step}", stop)
            with pytest.raises(TrainingError, match="stopped here"):
                train(recipe, out=out)

    return train_until


Stop = Callable[[str, Recipe, Path], None]


def test_a_run_is_found_by_folder_and_bundle(trained: Path, tmp_path: Path) -> None:
    """Its folder and the bundle in it lead to the run; a file beside them doesn't."""
    assert RunFolder.find(trained) == RunFolder(path=trained)
    assert RunFolder.find(trained / "bundle") == RunFolder(path=trained)
    assert RunFolder.find(trained / "val") is None
    assert RunFolder.find(tmp_path) is None
    with pytest.raises(BundleError, match="not the folder of a run"):
        RunFolder.open(tmp_path)


def test_recipe_is_read_back_equal(trained: Path, discs: Path, tiny: tuple[str, ...]) -> None:
    """The recipe in a run is the one that it was trained by."""
    given = load_recipe(overrides=tiny, sections={"data": {"path": str(discs)}})
    assert RunFolder.open(trained).recipe() == given


def test_numbers_of_runs_go_on(tmp_path: Path) -> None:
    """The next number is above the highest, whatever gaps there are."""
    assert next_run_path("unet", root=tmp_path / "none") == tmp_path / "none" / "001-unet"
    for name in ("001-a", "007-b", "notes"):
        (tmp_path / name).mkdir()
    assert next_run_path("unet", root=tmp_path).name == "008-unet"


def test_environment_is_plain_data() -> None:
    """What is recorded of the machine can be written as JSON and names torch's version."""
    facts = json.loads(json.dumps(environment()))
    assert facts["packages"]["torch"]
    assert facts["cpu"]


def test_one_seed_gives_identical_bundles(
    trained: Path, discs: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Two runs with one seed have the same weights, and so the same id."""
    recipe = load_recipe(overrides=tiny, sections={"data": {"path": str(discs)}})
    result = train(recipe, out=tmp_path / "again")
    assert result.report.bundle_id == binseg.load(trained).bundle_id
    first, second = (p / "bundle" / "weights.safetensors" for p in (trained, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_stopped_run_goes_on(
    discs: Path, tiny: tuple[str, ...], tmp_path: Path, stop_at: Stop
) -> None:
    """A run that stopped after its first epoch ends as if it hadn't."""
    overrides = [*tiny, "train.epochs=2"]
    recipe = load_recipe(overrides=overrides, sections={"data": {"path": str(discs)}})
    whole = train(recipe, out=tmp_path / "whole")
    stop_at("plot_curves", recipe, tmp_path / "stopped")
    resumed = resume_training(tmp_path / "stopped")
    assert resumed.report.mean == whole.report.mean
    assert resumed.best_epoch == whole.best_epoch
    with pytest.raises(UsageError, match="finished"):
        resume_training(tmp_path / "stopped")


def test_a_run_stopped_before_its_first_epoch_starts_anew(
    discs: Path, tiny: tuple[str, ...], tmp_path: Path, stop_at: Stop
) -> None:
    """Nothing was learnt, so nothing is lost: --resume just starts."""
    recipe = load_recipe(overrides=tiny, sections={"data": {"path": str(discs)}})
    stop_at("fit", recipe, tmp_path / "run")
    assert resume_training(tmp_path / "run").best_epoch == 1


def test_resume_refuses_changed_data(
    write_discs: Write, tiny: tuple[str, ...], tmp_path: Path, stop_at: Stop
) -> None:
    """Half a run on one data set and half on another is no run."""
    data = write_discs(tmp_path / "data", range(8))
    recipe = load_recipe(overrides=tiny, sections={"data": {"path": str(data)}})
    stop_at("fit", recipe, tmp_path / "run")
    write_discs(data, [8])
    with pytest.raises(DataError, match="has changed"):
        resume_training(tmp_path / "run")


def test_resume_goes_on_where_images_have_no_mask(
    discs: Path,
    tiny: tuple[str, ...],
    tmp_path: Path,
    stop_at: Stop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images without a mask are left out before the data is compared with what it was."""

    def without_one_mask(*args: Any, **options: Any) -> Dataset:
        whole = open_dataset(*args, **options)
        first, *others = whole.records
        return replace(whole, records=(replace(first, mask_path=None), *others))

    monkeypatch.setattr("binseg.pipelines.train_model.open_dataset", without_one_mask)
    recipe = load_recipe(overrides=tiny, sections={"data": {"path": str(discs)}})
    stop_at("fit", recipe, tmp_path / "run")
    resume_training(tmp_path / "run")
    assert "disc000" not in (tmp_path / "run" / "split.csv").read_text("utf-8")


def test_a_split_without_foreground_is_refused(
    write_discs: Write, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Empty masks in all of val: scores would be empty talk, and no folder is made."""
    data = write_discs(tmp_path / "data", range(6))
    (data / "train.txt").write_text("".join(f"disc{n:03d}\n" for n in range(4)), "utf-8")
    (data / "val.txt").write_text("disc004\ndisc005\n", "utf-8")
    for name in ("disc004.png", "disc005.png"):
        Image.fromarray(np.zeros((36, 44), np.uint8)).save(data / "masks" / name)
    recipe = load_recipe(overrides=tiny, sections={"data": {"path": str(data)}})
    with pytest.raises(DataError, match="val inputs has a foreground"):
        train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_fixed_threshold_is_kept(discs: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A recipe's own threshold is shipped, and the card says that nobody tuned it."""
    recipe = load_recipe(
        overrides=[*tiny, "train.threshold=0.3"], sections={"data": {"path": str(discs)}}
    )
    train(recipe, out=tmp_path / "run")
    card = binseg.load(tmp_path / "run").card
    assert card is not None
    assert card.threshold.value == 0.3
    assert card.threshold.method == "fixed by the recipe"


def test_tiles_train_and_score(discs: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Patches of native size make a whole run, whose two sizes are one."""
    overrides = [*tiny, "input.resize=tile", "input.size=24", "input.channels=1"]
    recipe = load_recipe(overrides=overrides, sections={"data": {"path": str(discs)}})
    report = train(recipe, out=tmp_path / "run").report
    assert report.mean["original"] == report.mean["model"]
    assert binseg.evaluate(tmp_path / "run", split="val").mean == report.mean


def test_python_check(discs: Path) -> None:
    """A sound folder has facts and no findings."""
    result = binseg.check(str(discs))
    assert not result.findings
    assert not result.failed(strict=True)
    assert dict(result.facts)["sizes"] == "36x44 (16)"


def test_check_of_nothing_is_a_finding(tmp_path: Path) -> None:
    """A data set that can't be opened is one finding, with the reason."""
    result = binseg.check(str(tmp_path / "nowhere"))
    assert result.failed()
    assert "nowhere" in result.findings[0].text


def test_demo_end_to_end(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The demo trains, scores its test split, says what Otsu scores, and leaves images."""
    recipe = load_recipe(overrides=tiny, sections={"data": {"path": "synthetic:num=12,size=32"}})
    result = demo(tmp_path / "demo", recipe=recipe)
    assert 0 < result.otsu_dice < 1
    assert result.gallery_path.is_file()
    assert result.mask_path.is_file()
    assert result.report.split == "test"
    assert json.loads(json.dumps(result.as_dict()))["otsu_dice"] == result.otsu_dice


def test_sheet_shows_the_unchanged_first(discs: Path, tmp_path: Path) -> None:
    """With preset none every column is the same."""
    recipe = load_recipe(
        overrides=["augment.preset=none", "input.size=16"], sections={"data": {"path": str(discs)}}
    )
    plot_augmentation(recipe, out=tmp_path / "sheet.png", num_samples=2, num_variants=1)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert np.array_equal(sheet[4:20, 4:20], sheet[4:20, 28:44])


def test_catalogue_knows_models_and_recipes() -> None:
    """Every named model's encoder, and every recipe's, is in the list of encoders."""
    models, encoders, recipes = (
        json.loads(CliRunner().invoke(app, [*verb.split(), "--json"]).stdout)
        for verb in ("models", "encoders", "recipes list")
    )
    names = {line["name"] for line in encoders}
    assert {line["encoder"] for line in models} <= names
    assert {load_recipe(line["name"]).model.encoder for line in recipes} <= names
    assert os.sep not in "".join(line["name"] for line in models)


def test_what_a_run_left_before_it_began_is_nothing(
    discs: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Killed between its first file and its split, a run may be started again in its folder."""
    recipe = load_recipe(overrides=tiny, sections={"data": {"path": str(discs)}})
    run = RunFolder(path=tmp_path / "run")
    run.write_start(recipe, {"data_fingerprint": "1234"})
    (run.path / ".tmp-0123456789ab.csv").write_text("id,sp")
    assert RunFolder.find(run.path) is None
    assert RunFolder.create(run.path) == run
    (run.path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        RunFolder.create(run.path)
    (run.path / "notes.txt").unlink()
    run.environment_path.unlink()  # a recipe alone is somebody's own
    with pytest.raises(UsageError, match="not empty"):
        RunFolder.create(run.path)


def test_one_process_at_a_time_trains_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is told so; scraps of a killed one are cleared away, and the lock at the end."""
    monkeypatch.setattr("binseg.training.run_folder.LOCK_SECONDS", 0.1)
    run = RunFolder(path=tmp_path)
    (tmp_path / ".tmp-0123456789ab.ckpt").write_bytes(b"half")
    (tmp_path / ".tmp-0123456789ab" / "bundle").mkdir(parents=True)
    with run.in_use():
        assert [path.name for path in tmp_path.iterdir()] == ["training.lock"]
        with pytest.raises(OutputError, match="another process has held"), run.in_use():
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_finished_when_nothing_is_left_to_do(tmp_path: Path) -> None:
    """Killed between its bundle and the end of its report, it can be resumed."""
    run = RunFolder(path=tmp_path)
    for name in ("previous.ckpt", "last.ckpt", "best.safetensors"):
        (tmp_path / name).write_bytes(b"")
    run.bundle_path.mkdir()
    assert run.is_saved
    assert not run.is_finished
    run.remove_training_files()
    assert RunFolder(path=tmp_path).is_finished
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("input.resize=tile", "train.per_epoch=9"), "set patches.per_epoch instead"),
        (("patches.foreground=0.5",), "patches.. needs input.resize: tile, and this recipe has"),
        (("schedule.name=onecycle", "optimizer.momentum=0.5"), "onecycle moves the momentum"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    settings: tuple[str, ...], told: str, discs: Path, tmp_path: Path
) -> None:
    """Before an image is read; a user would think that they hold."""
    recipe = load_recipe(overrides=(f"data.path={discs}", *settings))
    with pytest.raises(UsageError, match=told):
        train(recipe, out=tmp_path / "run")
