"""The verbs on a tiny data set, from end to end, as a user types them."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import binseg
from binseg.cli import app
from binseg.errors import DataError
from binseg.packaging import read_bundle, write_bundle

Write = Callable[[Path, Sequence[int]], Path]


def run(*argv: object, code: int = 0) -> str:
    """Run a command line quietly and return its stdout; the exit code must be `code`."""
    result = CliRunner().invoke(app, ["--quiet", *map(str, argv)])
    assert result.exit_code == code, result.output
    return result.stdout


def pixels(path: str | Path) -> np.ndarray:
    """Read an image as it is stored."""
    with Image.open(path) as image:
        return np.asarray(image)


def test_train_leaves_a_whole_run(trained: Path) -> None:
    """A run folder holds settings, environment, split, curves, bundle and validation scores."""
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*")}
    assert names >= {
        "recipe.yaml",
        "environment.json",
        "split.csv",
        "metrics.csv",
        "curves.png",
        "bundle/card.json",
        "val/report.json",
        "val/per_image.csv",
        "val/gallery.png",
        "val/histogram.png",
    }
    assert not names & {"last.ckpt", "best.safetensors"}, "the bundle has all that is needed"


def test_train_answers_in_pure_json(train_output: tuple[Path, str, str]) -> None:
    """Stdout is one JSON document; what was said on the way is on stderr."""
    folder, stdout, stderr = train_output
    answer = json.loads(stdout)
    assert answer["folder"] == str(folder)
    assert "(layout: folder)" in stderr
    assert answer["validation"] == json.loads((folder / "val" / "report.json").read_text("utf-8"))


def test_card_tells_the_run(trained: Path, discs: Path) -> None:
    """The bundle knows its data, its tuned threshold and its validation scores."""
    card = read_bundle(trained).card
    report = json.loads((trained / "val" / "report.json").read_text("utf-8"))
    assert card.scores["val, original size"] == report["mean"]["original"]
    assert card.threshold.value == report["threshold"]
    assert card.threshold.method.startswith("tuned on validation")
    assert card.id == report["bundle"]
    num = card.data.num_train + card.data.num_val + card.data.num_test
    assert num == len(list((discs / "images").iterdir()))
    assert card.recipe["train"] == binseg.load_recipe(trained / "recipe.yaml").train.model_dump()


def test_validation_and_evaluate_give_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    """What training said of its validation split, `evaluate` finds again, image by image."""
    found = json.loads(
        run("evaluate", trained, "--split", "val", "--out", tmp_path / "val", "--json")
    )
    told = json.loads((trained / "val" / "report.json").read_text("utf-8"))
    assert found["images"] == told["images"]
    assert found["mean"] == told["mean"]
    assert found["intervals"] == told["intervals"]


def test_shell_and_python_give_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    """`binseg evaluate`, `binseg.evaluate` and a loaded predictor agree."""
    told = json.loads(run("evaluate", trained, "--out", tmp_path / "test", "--json"))
    by_path = binseg.evaluate(trained)
    by_predictor = binseg.evaluate(binseg.load(trained))
    assert by_path.mean["original"] == by_predictor.mean["original"] == told["mean"]["original"]
    table = (tmp_path / "test" / "per_image.csv").read_text("utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert [float(row["dice"]) for row in rows] == [
        image.scores["original"]["dice"] for image in by_path.images
    ]


def test_evaluate_shows_a_table(trained: Path, tmp_path: Path) -> None:
    """With --verbose people get both averages at both sizes, and the rules; else the headline."""
    short = run("evaluate", trained, "--out", tmp_path / "short")
    assert short.startswith("Dice 0.")
    assert str(tmp_path / "short" / "report.html") in short
    assert len(short.splitlines()) <= 5
    shown = run("evaluate", trained, "--out", tmp_path / "test", "--verbose")
    for text in ("mean over images", "pooled pixels", "original", "model", "Empty masks", "Dice"):
        assert text in shown
    assert max(map(len, shown.splitlines())) < 200, "rules are a short line each"
    assert shown.index("Calibration") < shown.index("mean over images"), "what counts comes last"
    assert "slices" not in shown


def test_pack_gives_one_file_that_is_the_model(trained: Path, tmp_path: Path) -> None:
    """The zip has the id of the run's bundle, and its size is told."""
    path = tmp_path / "model.zip"
    told = json.loads(run("pack", trained, "--out", path, "--json"))
    id_ = read_bundle(trained).card.id
    assert told == {
        "path": str(path),
        "id": id_,
        "name": "unet",
        "left_out": [],
        "bytes": path.stat().st_size,
        "largest_difference": None,
    }
    assert read_bundle(path).card.id == id_
    assert id_ in run("pack", trained, "--out", tmp_path / "again.zip")


def test_pack_in_half_the_size(trained: Path, tmp_path: Path) -> None:
    """Weights in 16 bits answer nearly alike; the card has what was asked, and no folders."""
    path = tmp_path / "half.zip"
    asked = ("--half", "--name", "discs", "--licence", "CC0", "--note", "drawn", "--json")
    told = json.loads(run("pack", trained, "--out", path, *asked))
    files = [one for one in (trained / "bundle").rglob("*") if one.is_file()]
    assert told["bytes"] < 0.7 * sum(one.stat().st_size for one in files)
    assert 0 <= told["largest_difference"] < 0.02
    card = read_bundle(path).card
    assert (card.name, card.licence, card.data.note) == ("discs", "CC0", "drawn")
    assert "/" not in str(card.recipe["data"]["path"])  # type: ignore[index, call-overload]
    image = np.zeros((20, 30, 3), np.uint8)
    ours, half = (binseg.load(one).predict(image).probability for one in (trained, path))
    assert np.abs(ours - half).max() < 0.02


def test_a_packed_model_with_flips_still_verifies(trained: Path, tmp_path: Path) -> None:
    """The reference sample is the network's own answer, whatever is averaged around it."""
    bundle = read_bundle(trained)
    mirrored = write_bundle(
        tmp_path / "mirrored",
        card=bundle.card.model_copy(update={"tta": "all"}),
        weights=bundle.weights(),
        reference=bundle.reference(),
    )
    assert mirrored.card.tta == "all"
    run("pack", tmp_path / "mirrored", "--out", tmp_path / "half.zip", "--half")
    assert "PASS" in run("verify", tmp_path / "half.zip")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("predict", "pets", "in", "--watch", "--json"), "--json has no meaning with --watch"),
        (("predict", "pets", "-", "--tiff"), "--tiff is for files"),
        (("export", "RUN", "--to", "bundle", "--pixels", "float32"), "pixels is for files"),
        (("export", "RUN", "--to", "onnx", "--max-dice-change", "0.1"), "add --int8"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    words: tuple[str, ...], told: str, trained: Path, tmp_path: Path
) -> None:
    """In one line, and nothing is written."""
    (tmp_path / "in").mkdir()
    given = [str({"RUN": trained, "in": tmp_path / "in"}.get(word, word)) for word in words]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


@pytest.mark.parametrize("verb", ["check", "train"])
def test_download_is_a_switch(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--download fetches Oxford-IIIT Pet into the folder that --data names."""
    asked: list[Path] = []

    def fetch(root: Path, **_: object) -> None:
        asked.append(root)
        raise DataError("no network here")

    monkeypatch.setattr("binseg.data.sources.download_oxford_pet", fetch)
    goal = tmp_path / "pet"
    more = ["--out", tmp_path / "run"] if verb == "train" else []
    run(verb, "--data", goal, "--download", *more, code=1)
    assert asked[:1] == [goal]


@pytest.mark.parametrize("has_test", [True, False])
def test_train_suggests_what_works(
    write_discs: Write, tiny: tuple[str, ...], tmp_path: Path, *, has_test: bool
) -> None:
    """`evaluate --split test` is suggested only where there is a test split."""
    data = write_discs(tmp_path / "data", range(6))
    shares = "[0.5, 0.25, 0.25]" if has_test else "[0.5, 0.5, 0.0]"
    settings = [p for s in (*tiny, f"data.split.ratios={shares}") for p in ("--set", s)]
    shown = run("train", "--data", data, "--out", tmp_path / "run", *settings)
    assert ("--split test" in shown) is has_test
    assert ("--split all" in shown) is not has_test


def test_predict_equals_python(trained: Path, discs: Path, tmp_path: Path) -> None:
    """The masks on disk are those of `binseg.load(...).predict(...)`, 0/255, at original size."""
    out = tmp_path / "masks"
    answer = json.loads(run("predict", trained, discs / "images", "--out", out, "--json"))
    model = binseg.load(trained)
    assert len(answer["written"]) == len(list((discs / "images").iterdir()))
    for line in answer["written"]:
        mask_HW = pixels(line["mask"])
        assert set(np.unique(mask_HW)) <= {0, 255}
        assert np.array_equal(mask_HW == 255, model.predict(line["source"]).mask)


def test_predict_writes_all_it_was_asked_for(trained: Path, discs: Path, tmp_path: Path) -> None:
    """Overlay is RGB, cut-out has alpha, probability is float; --threshold 1 finds nothing."""
    image = discs / "images" / "disc000.png"
    flags = ("--overlay", "--cutout", "--probability", "--threshold", "1")
    run("predict", trained, image, "--out", tmp_path, *flags)
    height, width = pixels(image).shape[:2]
    shapes = {path.name: pixels(path).shape for path in tmp_path.iterdir()}
    assert shapes == {
        "disc000.png": (height, width),
        "disc000_overlay.png": (height, width, 3),
        "disc000_cutout.png": (height, width, 4),
        "disc000_probability.tif": (height, width),
    }
    assert pixels(tmp_path / "disc000_probability.tif").dtype == np.float32
    assert pixels(tmp_path / "disc000.png").max() == 0


def test_one_bad_image_stops_nobody(trained: Path, discs: Path, tmp_path: Path) -> None:
    """The rest is predicted, the bad ones are named at the end, and the exit code is 1."""
    bad = tmp_path / "bad.png"
    bad.write_text("no image", "utf-8")
    argv = ["predict", trained, bad, discs / "images" / "disc00[01].png", tmp_path / "gone.jpg"]
    result = CliRunner().invoke(app, ["-q", *map(str, argv), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert len(list((tmp_path / "out").iterdir())) == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert any("look at these masks" in line for line in lines), "a model of two epochs"
    assert any("bad.png" in line for line in lines)
    assert any("gone.jpg" in line for line in lines)


def test_unnamed_runs_are_numbered(
    discs: Path, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --out, runs go to runs/001-MODEL and on."""
    monkeypatch.chdir(tmp_path)
    settings = [part for setting in tiny for part in ("--set", setting)]
    run("train", "--data", discs, *settings)
    assert (tmp_path / "runs" / "001-unet" / "bundle").is_dir()


def test_train_refuses_a_folder_in_use(trained: Path, discs: Path) -> None:
    """A finished run is neither overwritten nor resumed."""
    before = (trained / "recipe.yaml").read_bytes()
    run("train", "--data", discs, "--out", trained, code=2)
    run("train", "--out", trained, "--resume", code=2)
    assert (trained / "recipe.yaml").read_bytes() == before


def test_check_finds_the_planted_faults(write_discs: Write, tmp_path: Path) -> None:
    """A leak, a copy, an empty mask and a broken file are found and named; the exit code is 1."""
    data = write_discs(tmp_path / "data", range(12))
    images, masks = data / "images", data / "masks"
    empty_HW = np.zeros_like(pixels(masks / "disc003.png"))
    Image.fromarray(empty_HW).save(masks / "disc003.png")
    (images / "disc004.png").write_bytes((images / "disc004.png").read_bytes()[:200])
    for name in ("images", "masks"):
        (data / name / "twin.png").write_bytes((data / name / "disc005.png").read_bytes())
    (data / "train.txt").write_text("".join(f"disc{n:03d}\n" for n in range(10)), "utf-8")
    (data / "val.txt").write_text("twin\ndisc010\ndisc011\n", "utf-8")
    found = json.loads(run("check", "--data", data, "--json", code=1))
    named = {finding["code"]: finding["ids"] for finding in found["findings"]}
    assert named["empty-mask"] == ["disc003"]
    assert named["unreadable"] == ["disc004"]
    assert named["leak"] == ["disc005", "twin"]


def test_check_is_strict_on_demand(write_discs: Write, tmp_path: Path) -> None:
    """A warning fails only with --strict; a sound folder passes both ways."""
    data = write_discs(tmp_path / "data", range(8))
    run("check", "--data", data, "--strict")
    full_HW = np.full_like(pixels(data / "masks" / "disc000.png"), 255)
    Image.fromarray(full_HW).save(data / "masks" / "disc000.png")
    assert "1 mask without any" in " ".join(run("check", "--data", data).split())
    run("check", "--data", data, "--strict", code=1)


def test_augment_draws_a_sheet(discs: Path, tmp_path: Path) -> None:
    """The sheet has a row a sample and a column a variant, the unchanged one first."""
    out = tmp_path / "sheet.png"
    run("augment", "--data", discs, "--size", 32, "--out", out)
    height, width, _ = pixels(out).shape
    assert 4 * 32 < height < 5 * 32
    assert 6 * 32 < width < 8 * 32


def test_evaluate_other_data(trained: Path, write_discs: Write, tmp_path: Path) -> None:
    """Images that the run doesn't know all test it; --split all scores them likewise."""
    data = write_discs(tmp_path / "others", range(100, 104))
    run("evaluate", trained, "--data", data, "--split", "val", "--out", tmp_path / "a", code=1)
    tested = run("evaluate", trained, "--data", data, "--out", tmp_path / "c", "--json")
    assert json.loads(tested)["num_images"] == 4
    told = json.loads(
        run(
            "evaluate", trained, "--data", data, "--split", "all", "--out", tmp_path / "b", "--json"
        )
    )
    assert told["num_images"] == 4
