"""Evaluation: which images may be scored, and that one loop gives all numbers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import binseg
from binseg.config import DataConfig, load_recipe
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.errors import DataError, UsageError
from binseg.evaluation.origin import Origin, check_split_name, choose_data, data_config
from binseg.evaluation.scoring import predict_at_both_sizes, read_ahead, score_dataset
from binseg.inference import ModelPredictor
from binseg.metrics import count, report_as_dict
from binseg.pipelines.evaluate_model import report_folder
from binseg.training.run_folder import RunFolder
from binseg.transforms.geometry import plan
from binseg.types import Preprocessing, Record

Write = Callable[[Path, Sequence[int]], Path]


class Brightness:
    """A backend that answers with the brightness of the input."""

    name = "brightness"
    precision = "fp32"

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """Give the mean over the channels."""
        mean: np.ndarray = inputs_NCHW.mean(axis=1)
        return mean


def predictor(preprocessing: Preprocessing) -> ModelPredictor:
    """Make a predictor of that backend."""
    return ModelPredictor(
        backend=Brightness(), preprocessing=preprocessing, threshold=0.5, bundle_id="bright"
    )


@pytest.fixture(scope="module")
def origin(trained: Path) -> Origin:
    """What is known of the trained run."""
    return Origin.of(binseg.load(trained))


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("shape", [(20, 30, 3), (7, 40, 3), (16, 16, 3)])
def test_both_sizes_agree_with_predict(mode: str, shape: tuple[int, int, int]) -> None:
    """The answer at original size is the predictor's own, to the bit."""
    model = predictor(Preprocessing(height=16, width=16, resize=mode))  # type: ignore[arg-type]
    image_HWC = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    probability_HW, probability_hw, placement = predict_at_both_sizes(model, image_HWC)
    assert np.array_equal(probability_HW, model.predict(image_HWC).probability)
    assert probability_hw.shape == (16, 16)
    assert (placement,) == plan(shape[0], shape[1], model.preprocessing)


def test_scores_are_the_counts_of_predict(discs: Path) -> None:
    """Each image's counts are those of `predict(...).mask` against its truth."""
    dataset = open_dataset(DataConfig(path=str(discs)))
    model = predictor(Preprocessing(height=16, width=16))
    report = score_dataset(model, dataset, split="all", title="t")
    assert len(report.images) == len(dataset.records)
    for record, image in zip(dataset.records, report.images, strict=True):
        sample = read_sample(record, dataset.rule)
        assert sample.mask_HW is not None
        mask_HW = model.predict(sample.image_HWC).mask
        assert image.counts["original"] == count(mask_HW, sample.mask_HW, sample.valid_HW)
        assert image.counts["model"].num_valid == 16 * 16


def test_tiles_are_scored_once(discs: Path) -> None:
    """Tiles are cut at the image's own scale, so both sizes are one."""
    dataset = open_dataset(DataConfig(path=str(discs)))
    model = predictor(Preprocessing(height=16, width=16, resize="tile"))
    image = score_dataset(model, dataset, split="all", title="t").images[0]
    assert image.counts["model"] == image.counts["original"]


def test_intervals_draw_whole_groups(discs: Path) -> None:
    """Where images have groups, the report's intervals are drawn by group."""
    dataset = open_dataset(DataConfig(path=str(discs)))
    grouped = tuple(replace(r, group=f"g{n // 4}") for n, r in enumerate(dataset.records))
    dataset = replace(dataset, records=grouped)
    model = predictor(Preprocessing(height=16, width=16))
    answer = report_as_dict(score_dataset(model, dataset, split="all", title="t"))
    assert "by group" in str(answer["intervals"])


def test_reading_ahead_keeps_the_order(discs: Path) -> None:
    """Samples come in the order of the records, however they are read."""
    dataset = open_dataset(DataConfig(path=str(discs)))
    ids = [sample.id for sample in read_ahead(dataset.records, dataset.rule)]
    assert ids == [record.id for record in dataset.records]


def test_a_runs_split_rules(trained: Path, origin: Origin) -> None:
    """The three splits of a run are disjoint, are its split.csv, and make up `all`."""
    run = RunFolder.open(trained)
    ids = {
        split: {r.id for r in choose_data(data_config(origin), split=split, origin=origin).records}
        for split in ("train", "val", "test", "all")
    }
    assert ids["train"] | ids["val"] | ids["test"] == ids["all"] == set(run.splits())
    assert sum(map(len, ids.values())) == 2 * len(ids["all"])
    assert all(run.splits()[id_] == split for split in ("train", "val") for id_ in ids[split])


def test_training_images_never_test(trained: Path, origin: Origin, tmp_path: Path) -> None:
    """Moved, with another official split and new images beside them, they are still `train`."""
    data = tmp_path / "moved"
    recipe = RunFolder.open(trained).recipe()
    assert recipe.data.path is not None
    for path in sorted(Path(recipe.data.path).rglob("*.png")):
        copy = data / path.relative_to(recipe.data.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for folder in ("images", "masks"):
        (data / folder / "new.png").write_bytes((data / folder / "disc000.png").read_bytes())
    names = sorted(path.stem for path in (data / "images").iterdir())
    (data / "test.txt").write_text("\n".join(names), "utf-8")
    chosen = choose_data(data_config(origin, data), split="test", origin=origin)
    splits = RunFolder.open(trained).splits()
    tested = {id_ for id_, split in splits.items() if split == "test"}
    # A copy under another name is known by its content.
    assert {r.id for r in chosen.records} == tested | ({"new"} if "disc000" in tested else set())
    chosen = choose_data(data_config(origin, data), split=splits["disc000"] or "all", origin=origin)
    assert "new" in {r.id for r in chosen.records}


def test_a_runs_images_are_found_from_anywhere(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path counts from the folder in which training began; lost data is asked for."""
    run = RunFolder(path=tmp_path / "runs" / "first")
    run.path.mkdir(parents=True)
    recipe = load_recipe(sections={"data": {"path": "cells"}})
    monkeypatch.setattr(Origin, "recipe", lambda _: recipe)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="trained on cells, which isn't here; say where"):
        data_config(replace(origin, run=run))
    (tmp_path / "cells").mkdir()
    assert data_config(replace(origin, run=run)).path == str(tmp_path / "cells")


def test_strange_data_tests(origin: Origin, write_discs: Write, tmp_path: Path) -> None:
    """Images that the run doesn't know all test it; a few of them beside known ones don't."""
    data = write_discs(tmp_path, range(50, 54))
    chosen = choose_data(data_config(origin, data), split="test", origin=origin)
    assert len(chosen.records) == 4
    assert chosen.notes == ("The run knows none of the images (4): all of them test it.",)
    with pytest.raises(DataError, match="--split all"):
        choose_data(data_config(origin, data), split="val", origin=origin)
    mixed = write_discs(tmp_path / "mixed", [*range(16), 50])
    chosen = choose_data(data_config(origin, mixed), split="all", origin=origin)
    assert "1 image is unknown to the run: in no split." in chosen.notes


def test_names_alone_tell_nothing(origin: Origin, write_discs: Write, tmp_path: Path) -> None:
    """Another data set calls its images alike: they aren't those that trained the model."""
    other = write_discs(tmp_path / "other", range(60, 64))
    for folder in ("images", "masks"):
        for row, path in enumerate(sorted((other / folder).iterdir())):
            path.rename(path.with_stem(f"disc{row:03}"))
    chosen = choose_data(data_config(origin, other), split="test", origin=origin)
    assert len(chosen.records) == 4
    assert chosen.notes[-1] == "4 have the names of the run's images, but other contents."


def test_strange_data_keeps_its_own_split(
    origin: Origin, write_discs: Write, tmp_path: Path
) -> None:
    """Other images that come with a test split are tested on it."""
    data = write_discs(tmp_path, range(50, 54))
    (data / "train.txt").write_text("disc050\ndisc051\n", "utf-8")
    (data / "test.txt").write_text("disc052\ndisc053\n", "utf-8")
    chosen = choose_data(data_config(origin, data), split="test", origin=origin)
    assert [record.id for record in chosen.records] == ["disc052", "disc053"]


def test_an_empty_split_names_what_there_is(write_discs: Write, tmp_path: Path) -> None:
    """The images that validate, if any; all of them only with a word on those that train."""
    data = write_discs(tmp_path, range(50, 53))
    (data / "train.txt").write_text("disc050\ndisc051\n", "utf-8")
    (data / "val.txt").write_text("disc052\n", "utf-8")
    nobody = Origin(run=None, card=None)
    with pytest.raises(DataError) as caught:
        choose_data(DataConfig(path=str(data)), split="test", origin=nobody)
    said = "(2 train, 1 val); --split val scores 1 of them, --split all those that train, too"
    assert str(caught.value).endswith(said)


def test_a_bundle_alone_finds_its_split(trained: Path, discs: Path, tmp_path: Path) -> None:
    """Without its run's folder, a model still tests on the images that it left for that."""
    lone = tmp_path / "lone"
    lone.mkdir()
    for path in (trained / "bundle").iterdir():
        (lone / path.name).write_bytes(path.read_bytes())
    with_run = binseg.evaluate(trained, split="test")
    without = binseg.evaluate(lone, data=str(discs), split="test")
    assert [i.id for i in without.images] == [i.id for i in with_run.images]


def test_changed_files_are_told(origin: Origin, write_discs: Write, tmp_path: Path) -> None:
    """The same names with other pixels: the split holds, and the report says so."""
    data = write_discs(tmp_path, range(16))
    (data / "images" / "disc000.png").write_bytes((data / "images" / "disc001.png").read_bytes())
    chosen = choose_data(data_config(origin, data), split="test", origin=origin)
    assert any("files differ" in note for note in chosen.notes)


def test_masks_are_read_as_in_training(origin: Origin, trained: Path) -> None:
    """Other data inherits what decides the reading of masks, and nothing else."""
    own = RunFolder.open(trained).recipe().data
    other = data_config(origin, "elsewhere", overrides=["data.border=ignore"])
    assert other.path == "elsewhere"
    assert other.border == "ignore"
    assert other.foreground == own.foreground
    with pytest.raises(UsageError, match=r"only data\.\*"):
        data_config(origin, overrides=["train.epochs=3"])
    with pytest.raises(UsageError, match="the run has decided the splits"):
        data_config(origin, "elsewhere", overrides=["data.split.method=ratio"])
    with pytest.raises(UsageError, match="--data"):
        data_config(Origin(run=None, card=None))


def test_split_names() -> None:
    """A wrong split names the nearest and all."""
    with pytest.raises(UsageError, match=r"test.*train"):
        check_split_name("tset")


def test_report_folders_have_plain_names(trained: Path, tmp_path: Path) -> None:
    """A report goes into its run, named by split and data."""
    assert report_folder(trained, split="test") == trained / "test"
    named = report_folder(trained / "bundle", split="all", data="synthetic:num=4,size=32")
    assert named == trained / "all-synthetic-num-4-size-32"
    lone = report_folder(tmp_path / "甲.zip", split="all", data="站/images")
    assert lone == Path("evaluation/甲.zip/all-站-images")
    named = report_folder(trained, split="test", changes=["border-ignore", "data.threshold=127"])
    assert named == trained / "test-border-ignore-data.threshold-127"
    others = [report_folder(trained, split="val", others=[tmp_path / n / "bundle"]) for n in "ab"]
    assert others == [trained / "val-with-a", trained / "val-with-b"]


def test_images_without_truth_are_left_out(origin: Origin, discs: Path) -> None:
    """What has no mask can't be scored, and is counted in a note."""
    dataset = open_dataset(DataConfig(path=str(discs)))
    assert isinstance(dataset.records[0], Record)
    one = replace(dataset.records[0], mask_path=None)
    model = predictor(Preprocessing(height=16, width=16))
    with pytest.raises(AssertionError):
        score_dataset(model, replace(dataset, records=(one,)), split="all", title="t")
    assert origin.card is not None
