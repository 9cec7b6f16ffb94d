"""Training that continues from an earlier model."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import binseg
from binseg.cli import app
from binseg.config import Recipe, load_recipe
from binseg.errors import BundleError, UsageError
from binseg.packaging import read_bundle
from binseg.pipelines.continuing import continued
from binseg.pipelines.plan_recipe import plan
from binseg.pipelines.train_model import TrainResult, train
from binseg.progress import Silent
from binseg.training.run_folder import RunFolder

Write = Callable[[Path, Sequence[int]], Path]
# Rates so small that the weights stay: what is seen is what was taken over.
STILL = ("train.epochs=1", "train.batch_size=6", "train.device=cpu", "optimizer.lr=1e-12")


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def recipe_from(source: object, data: Path, *overrides: str) -> Recipe:
    sections = {"data": {"path": str(data)}, "model": {"start_from": str(source)}}
    return load_recipe(overrides=[*STILL, *overrides], sections=sections)


@pytest.fixture(scope="module")
def second(
    trained: Path, write_discs: Write, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainResult, Heard]:
    """Data of 16 known and 8 new images, the run that continues `trained` on it, what it said."""
    data = write_discs(tmp_path_factory.mktemp("more"), range(24))
    heard = Heard()
    out = tmp_path_factory.mktemp("continued") / "second"
    return data, train(recipe_from(trained, data), out=out, progress=heard), heard


def test_it_begins_with_the_whole_earlier_model(
    trained: Path, second: tuple[Path, TrainResult, Heard]
) -> None:
    """Network, weights and preprocessing are the earlier one's, and its card says whose."""
    _, result, heard = second
    before, after = read_bundle(trained), read_bundle(result.folder)
    assert after.card.architecture == before.card.architecture
    assert after.card.preprocessing == before.card.preprocessing
    for name, array in before.weights().items():
        if "running" not in name and "num_batches" not in name:  # batch norm saw the new images
            assert np.allclose(after.weights()[name], array, atol=1e-6), name
    assert after.card.data.note == f"continues {trained.name}"
    assert any(before.card.id in line for line in heard.said)


def test_known_images_keep_their_split(
    trained: Path, second: tuple[Path, TrainResult, Heard]
) -> None:
    """None that trained the earlier model judges either of the two."""
    _, result, heard = second
    before, after = RunFolder.open(trained).splits(), RunFolder.open(result.folder).splits()
    assert before.items() <= after.items()
    assert len(after) == 24
    assert {after[id_] for id_ in after.keys() - before.keys()} > {"train"}
    assert any("16 images are known" in line and "8 new" in line for line in heard.said)


def test_both_models_are_compared_on_the_same_images(
    second: tuple[Path, TrainResult, Heard],
) -> None:
    """By the paired test of `compare`; A is the earlier one."""
    _, result, _ = second
    assert result.beside is not None
    assert result.beside.num_images == len(result.report.images)
    assert result.beside.decisive.mean_b == pytest.approx(result.report.mean["original"]["dice"])
    told = json.loads(json.dumps(result.as_dict()))["earlier"]
    assert told["verdict"] in {"a", "b", "noise", "same"}
    assert (result.folder / "before" / "report.json").is_file()


def test_images_of_the_earlier_training_are_remembered(
    trained: Path, write_discs: Write, tmp_path: Path
) -> None:
    """On other data: the new run knows which images taught its ancestor, under any name."""
    data = write_discs(tmp_path / "other", range(30, 46))
    result = train(recipe_from(trained, data), out=tmp_path / "run")
    known = RunFolder.open(trained).known()
    assert known.items() <= RunFolder.open(result.folder).known().items()
    old = write_discs(tmp_path / "old", range(16))
    for number, path in enumerate(sorted((old / "images").iterdir())):
        mask = old / "masks" / path.name
        path.rename(path.with_name(f"disc{30 + number:03d}.png"))
        mask.rename(mask.with_name(f"disc{30 + number:03d}.png"))
    num_test = sum(split == "test" for split in RunFolder.open(trained).splits().values())
    report = binseg.load(result.folder).evaluate(old, split="test")
    assert len(report.images) == num_test
    assert not any("trained the model" in note for note in report.notes)
    num_train = sum(split == "train" for split in RunFolder.open(trained).splits().values())
    whole = binseg.load(result.folder).evaluate(old, split="all")
    assert any(f"{num_train} of these images trained the model" in note for note in whole.notes)


def test_a_bundle_alone_never_guesses_the_split(
    second: tuple[Path, TrainResult, Heard], tmp_path: Path
) -> None:
    """Without its run nobody knows which of the same images trained it."""
    data, result, _ = second
    bundle = shutil.copytree(result.folder / "bundle", tmp_path / "alone")
    with pytest.raises(binseg.BinsegError, match="no image is in split 'test'"):
        binseg.load(bundle).evaluate(data, split="test")
    report = binseg.load(bundle).evaluate(data, split="all")
    assert any("continues another" in note for note in report.notes)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("model.encoder=resnet34",), "asks for encoder resnet34"),
        (("model.options={width: 8}",), "asks for width 8"),
        (("input.channels=1",), "takes 3 channels, and input.channels is 1"),
        (("model.encoder=resnet34", "model.encoder_weights=imagenet"), "brings all weights"),
    ],
)
def test_what_contradicts_the_earlier_model_is_refused(
    trained: Path, discs: Path, overrides: Sequence[str], told: str
) -> None:
    """In one line, before anything is read."""
    with pytest.raises(UsageError, match=told) as refused:
        continued(recipe_from(trained, discs, *overrides))
    assert "\n" not in str(refused.value)


def test_a_model_that_is_not_there_is_refused(discs: Path) -> None:
    """By its name."""
    with pytest.raises(BundleError, match="no/such/run"):
        continued(recipe_from("no/such/run", discs))


def test_a_plan_follows_the_built_in_model(discs: Path) -> None:
    """Its network and preprocessing are rows of the plan; what the user says wins."""
    sections: dict[str, dict[str, object]] = {
        "data": {"path": str(discs)},
        "model": {"start_from": "pets"},
        "input": {"size": 128},
        "train": {"device": "cpu"},
    }
    planned = plan(sections=sections, budget=20.0)
    card = read_bundle(binseg.inference.pretrained.default_bundle_path()).card
    assert planned.recipe.model.encoder == card.architecture.encoder
    assert planned.recipe.model.encoder_weights is None
    assert tuple(planned.recipe.input.mean) == pytest.approx(card.preprocessing.mean)
    assert planned.recipe.input.size == 128
    assert planned.plan.setting("input.mean").reason == "as in the model that this one continues"
    assert planned.plan.setting("input.size").reason == "you said so"
    again = continued(load_recipe(sections=planned.recipe.model_dump(exclude_unset=True)))
    assert again.model == planned.recipe.model


def test_the_command_line_shows_both(trained: Path, discs: Path, tmp_path: Path) -> None:
    """`--from RUN` with a recipe of nothing but defaults."""
    file = tmp_path / "defaults.yaml"
    file.write_text("{}\n", encoding="utf-8")
    settings = [part for one in (*STILL, "input.size=64") for part in ("--set", one)]
    words = ["train", str(file), "--data", str(discs), "--from", str(trained), *settings]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    assert "input.size is 64, and was 32" in done.stderr.replace("\n", " ")
    assert "B - A" in done.stdout
    assert RunFolder.open(tmp_path / "run").recipe().model.start_from == str(trained)
