"""Bad input of every kind: one line that names it, an exit code that isn't 0, nothing lost."""

import errno
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from binseg.cli import app

Argv = list[object]
Write = Callable[[Path, Sequence[int]], Path]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What a case may use: a data folder of its own, a trained run, a place for output."""

    data: Path
    run: Path
    out: Path
    here: Path

    def train(self, *more: object) -> Argv:
        """A training of the data folder."""
        # By a recipe: the plan that is made without one takes seconds to look at the machine.
        has_recipe = any(str(one).endswith(".yaml") or one == "--recipe" for one in more)
        recipe = [] if has_recipe else ["--recipe", "demo"]
        return ["train", *recipe, "--data", self.data, "--out", self.out, *more]

    def image(self, name: str = "disc000") -> Path:
        """An image of the data folder."""
        return self.data / "images" / f"{name}.png"

    def mask(self, name: str = "disc000") -> Path:
        """A mask of the data folder."""
        return self.data / "masks" / f"{name}.png"

    def bundle(self) -> Path:
        """A copy of the run's bundle, to be damaged."""
        return Path(shutil.copytree(self.run / "bundle", self.here / "bundle"))

    def write(self, name: str, text: str) -> Path:
        """A text file."""
        path = self.here / name
        path.write_text(text, "utf-8")
        return path

    def repaint(self, values: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change the values of every mask."""
        for path in sorted((self.data / "masks").iterdir()):
            with Image.open(path) as image:
                mask_HW = np.asarray(image)
            Image.fromarray(values(mask_HW).astype(np.uint8)).save(path)


def missing_mask(desk: Desk) -> Argv:
    desk.mask().unlink()
    return desk.train("--set", "data.missing=refuse")


def missing_image(desk: Desk) -> Argv:
    desk.image().unlink()
    return desk.train()


def sizes_differ(desk: Desk) -> Argv:
    Image.new("L", (9, 7), 255).save(desk.mask())
    return desk.train()


def truncated_jpeg(desk: Desk) -> Argv:
    path = desk.image().with_suffix(".jpg")
    with Image.open(desk.image()) as image:
        image.save(path)
    desk.image().unlink()
    path.write_bytes(path.read_bytes()[:400])
    return desk.train()


def zero_bytes(desk: Desk) -> Argv:
    desk.image().write_bytes(b"")
    return desk.train()


def text_named_png(desk: Desk) -> Argv:
    desk.mask("disc003").write_text("this is no image", "utf-8")
    return desk.train()


def twenty_classes(desk: Desk) -> Argv:
    desk.repaint(lambda mask: np.arange(mask.size).reshape(mask.shape) % 20)
    return desk.train()


def empty_masks(desk: Desk) -> Argv:
    desk.repaint(np.zeros_like)
    return desk.train()


def soft_masks(desk: Desk) -> Argv:
    for path in sorted((desk.data / "masks").iterdir()):
        with Image.open(path) as image:
            image.filter(ImageFilter.GaussianBlur(2)).save(path)
    return desk.train()


def absent_foreground(desk: Desk) -> Argv:
    return desk.train("--set", "data.foreground=[7]")


def one_image(desk: Desk) -> Argv:
    for path in sorted(desk.data.rglob("*.png")):
        if path.stem != "disc000":
            path.unlink()
    return desk.train()


def no_such_folder(desk: Desk) -> Argv:
    return ["train", "--data", desk.here / "nowhere", "--out", desk.out]


def empty_folder(desk: Desk) -> Argv:
    (desk.here / "empty").mkdir()
    return ["train", "--data", desk.here / "empty", "--out", desk.out]


def path_through_a_file(desk: Desk) -> Argv:
    return ["train", "--data", desk.image() / "inside", "--out", desk.out]


def not_a_dataset(desk: Desk) -> Argv:
    return ["train", "--data", desk.write("notes.txt", "hello"), "--out", desk.out]


def manifest_without_columns(desk: Desk) -> Argv:
    return ["train", "--data", desk.write("list.csv", "a,b\n1,2\n"), "--out", desk.out]


def manifest_of_missing_files(desk: Desk) -> Argv:
    text = "image,mask\ngone.png,gone_mask.png\n"
    return ["train", "--data", desk.write("list.csv", text), "--out", desk.out]


def torn_group(desk: Desk) -> Argv:
    rows = "".join(
        f"{desk.image(f'disc{n:03d}')},{desk.mask(f'disc{n:03d}')},one,{split}\n"
        for n, split in enumerate(("train", "val", "test"))
    )
    path = desk.data / "list.csv"
    path.write_text("image,mask,group,split\n" + rows.replace(f"{desk.data}/", ""), "utf-8")
    return ["train", "--data", path, "--out", desk.out]


def broken_coco(desk: Desk) -> Argv:
    return ["train", "--data", desk.write("coco.json", '{"images": ['), "--out", desk.out]


def unknown_key(desk: Desk) -> Argv:
    return desk.train(desk.write("mine.yaml", "train: {epochz: 3}\n"))


def broken_yaml(desk: Desk) -> Argv:
    return desk.train(desk.write("mine.yaml", "train: {epochs: 3\nmodel: ["))


def missing_recipe_file(desk: Desk) -> Argv:
    return desk.train(desk.here / "mine.yaml")


def unknown_recipe(desk: Desk) -> Argv:
    return desk.train("--recipe", "dmo")


def unknown_model(desk: Desk) -> Argv:
    return desk.train("--model", "resnet35-unet")


def unknown_model_option(desk: Desk) -> Argv:
    return desk.train("--model", "unet", "--set", "model.options={widht: 4}")


def unknown_loss(desk: Desk) -> Argv:
    return desk.train("--set", "loss.name=bce-dise")


def malformed_set(desk: Desk) -> Argv:
    return desk.train("--set", "train.epochs")


def no_epochs(desk: Desk) -> Argv:
    return desk.train("--epochs", 0)


def epochs_in_words(desk: Desk) -> Argv:
    return desk.train("--epochs", "three")


def unknown_device(desk: Desk) -> Argv:
    return desk.train("--device", "tpu")


def unknown_option(desk: Desk) -> Argv:
    return desk.train("--learning-rate", "1")


def unknown_border(desk: Desk) -> Argv:
    return desk.train("--border", "forground")


def missing_encoder_weights(desk: Desk) -> Argv:
    return desk.train(
        "--model", "resnet34-unet", "--encoder-weights", desk.here / "gone.safetensors"
    )


def out_is_a_file(desk: Desk) -> Argv:
    return ["train", "--data", desk.data, "--out", desk.write("taken", "mine")]


def out_is_in_use(desk: Desk) -> Argv:
    return ["train", "--data", desk.data, "--out", desk.data]


def resume_nothing(desk: Desk) -> Argv:
    return ["train", "--out", desk.here / "nowhere", "--resume"]


def resume_with_settings(desk: Desk) -> Argv:
    return ["train", "--out", desk.run, "--resume", "--epochs", 9]


def resume_finished(desk: Desk) -> Argv:
    return ["train", "--out", desk.run, "--resume"]


def wrong_split(desk: Desk) -> Argv:
    return ["evaluate", desk.run, "--split", "tset"]


def no_such_model(desk: Desk) -> Argv:
    return ["evaluate", desk.here / "nowhere"]


def bundle_cut_in_half(desk: Desk) -> Argv:
    path = desk.bundle() / "weights.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return ["predict", path.parent, desk.image(), "--out", desk.out]


def bundle_edited(desk: Desk) -> Argv:
    path = desk.bundle() / "card.json"
    path.write_text(path.read_text("utf-8").replace('"value"', '"valve"'), "utf-8")
    return ["predict", path.parent, desk.image(), "--out", desk.out]


def pickled_model(desk: Desk) -> Argv:
    path = desk.here / "model.pt"
    path.write_bytes(pickle.dumps({"weights": [1, 2]}))
    return ["predict", path, desk.image(), "--out", desk.out]


def foreign_zip(desk: Desk) -> Argv:
    path = desk.here / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return ["predict", path, desk.image(), "--out", desk.out]


def nothing_to_predict(desk: Desk) -> Argv:
    return ["predict", desk.run, desk.here / "*.webp", "--out", desk.out]


def threshold_of_two(desk: Desk) -> Argv:
    return ["predict", desk.run, desk.image(), "--out", desk.out, "--threshold", 2]


def answer_over_input(desk: Desk) -> Argv:
    return ["predict", desk.run, desk.image(), "--out", desk.image().parent, "--overwrite"]


def answer_over_file(desk: Desk) -> Argv:
    return ["predict", desk.run, desk.image(), "--out", desk.data / "masks"]


def out_through_a_file(desk: Desk) -> Argv:
    return ["predict", desk.run, desk.image(), "--out", desk.image("disc001") / "masks"]


def animation(desk: Desk) -> Argv:
    path = desk.here / "moving.webp"
    frames = [Image.new("RGB", (20, 20), (n, 0, 0)) for n in (0, 100)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return ["predict", desk.run, path, "--out", desk.out]


def check_nothing(desk: Desk) -> Argv:
    return ["check"]


def check_of_no_folder(desk: Desk) -> Argv:
    return ["check", "--data", desk.here / "nowhere"]


def data_named_twice(desk: Desk) -> Argv:
    return ["check", desk.data, "--data", desk.data]


def swapped(desk: Desk) -> Argv:
    for path in (desk.data / "images").iterdir():  # photos, not the two shades of the discs
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path)
        disc = np.zeros((40, 40), np.uint8)
        disc[9:20, 9:20] = 255
        Image.fromarray(disc).save(desk.mask(path.stem))
    (desk.data / "images").rename(desk.data / "kept")
    (desk.data / "masks").rename(desk.data / "images")
    (desk.data / "kept").rename(desk.data / "masks")
    return desk.train()


def one_level_too_deep(desk: Desk) -> Argv:
    return ["check", desk.data / "images"]


def one_level_too_high(desk: Desk) -> Argv:
    home = desk.here / "everything"
    shutil.copytree(desk.data, home / "other")
    shutil.move(desk.data, home / "data")
    return ["check", home]


def out_without_permission(desk: Desk) -> Argv:
    del desk
    return ["train", "synthetic", "--out", "/sys/runs/first"]  # read-only for root, too


def strange_budget(desk: Desk) -> Argv:
    return ["train", desk.data, "--budget", "soon", "--out", desk.out]


def absent_gpu(desk: Desk) -> Argv:
    return desk.train("--device", "cuda")


def pack_to_a_folder(desk: Desk) -> Argv:
    return ["pack", desk.run, "--out", desk.out]


def pack_over_a_file(desk: Desk) -> Argv:
    return ["pack", desk.run, "--out", desk.write("taken.zip", "mine")]


def sheet_of_nothing(desk: Desk) -> Argv:
    return ["augment", "--data", desk.here / "nowhere", "--out", desk.out / "sheet.png"]


CASES: list[tuple[Callable[[Desk], Argv], int, str]] = [
    (missing_mask, 1, "disc000"),
    (missing_image, 1, "disc000"),
    (sizes_differ, 1, "disc000"),
    (truncated_jpeg, 1, "disc000.jpg"),
    (zero_bytes, 1, "disc000.png"),
    (text_named_png, 1, "disc003.png"),
    (twenty_classes, 1, "foreground"),
    (empty_masks, 1, "empty"),
    (soft_masks, 1, "threshold"),
    (absent_foreground, 1, "foreground"),
    (one_image, 1, "split"),
    (no_such_folder, 1, "nowhere"),
    (empty_folder, 1, "empty"),
    (path_through_a_file, 1, "inside"),
    (not_a_dataset, 1, "notes.txt"),
    (manifest_without_columns, 1, "image"),
    (manifest_of_missing_files, 1, "gone.png"),
    (torn_group, 1, "one"),
    (broken_coco, 1, "coco.json"),
    (unknown_key, 2, "epochs"),
    (broken_yaml, 2, "YAML"),
    (missing_recipe_file, 2, "mine.yaml"),
    (unknown_recipe, 2, "demo"),
    (unknown_model, 2, "resnet34-unet"),
    (unknown_model_option, 2, "width"),
    (unknown_loss, 2, "bce-dice"),
    (malformed_set, 2, "train.epochs"),
    (no_epochs, 2, "epochs"),
    (epochs_in_words, 2, "--epochs"),
    (unknown_device, 2, "cpu"),
    (unknown_option, 2, "--learning-rate"),
    (unknown_border, 2, "foreground"),
    (missing_encoder_weights, 1, "gone.safetensors"),
    (out_is_a_file, 2, "taken"),
    (out_is_in_use, 2, "not empty"),
    (resume_nothing, 1, "nowhere"),
    (resume_with_settings, 2, "recipe.yaml"),
    (resume_finished, 2, "finished"),
    (wrong_split, 2, "test"),
    (no_such_model, 1, "nowhere"),
    (bundle_cut_in_half, 1, "weights.safetensors"),
    (bundle_edited, 1, "card.json"),
    (pickled_model, 2, "model.pt"),
    (foreign_zip, 1, "model.zip"),
    (nothing_to_predict, 1, "*.webp"),
    (threshold_of_two, 2, "threshold"),
    (answer_over_input, 2, "disc000.png"),
    (answer_over_file, 2, "--overwrite"),
    (out_through_a_file, 1, "disc001.png"),
    (animation, 1, "moving.webp"),
    (check_nothing, 2, "binseg check my_folder/"),
    (data_named_twice, 2, "give one of them"),
    (swapped, 1, "are images and masks swapped?"),
    (one_level_too_deep, 1, "did you mean"),
    (one_level_too_high, 1, "data or "),
    (out_without_permission, 2, "--out"),
    (strange_budget, 2, "2m30s"),
    (absent_gpu, 2, "--device cuda"),
    (check_of_no_folder, 1, "nowhere"),
    (pack_to_a_folder, 2, ".zip"),
    (pack_over_a_file, 2, "taken.zip exists"),
    (sheet_of_nothing, 1, "nowhere"),
]


@pytest.fixture
def desk(trained: Path, write_discs: Write, tmp_path: Path) -> Desk:
    """A desk with a fresh data folder of eight images."""
    data = write_discs(tmp_path / "data", range(8))
    return Desk(data=data, run=trained, out=tmp_path / "out", here=tmp_path)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return all files under a folder with their content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("prepare", "code", "named"), CASES, ids=lambda x: getattr(x, "__name__", "")
)
def test_bad_input_is_one_line(
    desk: Desk, prepare: Callable[[Desk], Argv], code: int, named: str
) -> None:
    """Each gives one line that names the trouble and an exit code, and changes no file."""
    argv = prepare(desk)
    before = files_of(desk.here)
    result = CliRunner().invoke(app, ["--quiet", *map(str, argv)])
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("binseg: ")
    assert named in result.stderr
    assert files_of(desk.here) == before


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_odd_sizes_are_predicted(desk: Desk, size: tuple[int, int]) -> None:
    """An image of 1x1, or long as a string, gets a mask of its size."""
    path = desk.here / "odd.png"
    Image.new("RGB", size, (90, 20, 30)).save(path)
    argv = ["-q", "predict", str(desk.run), str(path), "--out", str(desk.out)]
    assert CliRunner().invoke(app, argv).exit_code == 0
    with Image.open(desk.out / "odd.png") as mask:
        assert mask.size == size


def test_full_disk_is_one_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while masks are written: one line, and no half file is left."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("binseg.storage.os.replace", full)
    argv = ["-q", "predict", str(desk.run), str(desk.image()), "--out", str(desk.out)]
    result = CliRunner().invoke(app, argv)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "No space left" in result.stderr
    assert not list(desk.out.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_one_line(desk: Desk) -> None:
    """A folder without permission is named, on one line."""
    (desk.data / "images").chmod(0)
    result = CliRunner().invoke(app, ["-q", *map(str, desk.train())])
    (desk.data / "images").chmod(0o755)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
