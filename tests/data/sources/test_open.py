"""The one door: which kind is taken, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from binseg.config.recipe import DataConfig
from binseg.data import open_dataset
from binseg.data.sources import SOURCES
from binseg.errors import BinsegError, DataError, UsageError
from binseg.progress import Progress

Save = Callable[..., Path]
Fill = Callable[..., Path]


def test_what_was_taken_is_said(fill: Fill, tmp_path: Path, listener: Progress) -> None:
    """The user hears the kind, the number of images and how masks are read."""
    data = open_dataset(DataConfig(path=str(fill(tmp_path, "a"))), progress=listener)
    lines: list[str] = getattr(listener, "lines", [])
    assert lines == list(data.notes)
    assert "1 image (layout: folder)" in lines[0]
    assert lines[-1] == "masks: 255 foreground, 0 background"


def test_a_border_option_without_a_border_is_said(fill: Fill, tmp_path: Path) -> None:
    """An option that changes nothing doesn't pass in silence."""
    data = open_dataset(DataConfig(path=str(fill(tmp_path, "a")), border="ignore"))
    assert "data.border: ignore changes nothing" in data.notes[-1]


@pytest.mark.parametrize(
    ("made", "options", "error", "message"),
    [
        ([], {"path": None}, UsageError, "which images"),
        ([], {"path": "none"}, DataError, "there is no such file or folder"),
        ([], {"path": "a\0b"}, DataError, "can't be read"),
        ([], {"path": "."}, DataError, "it holds nothing. Accepted: images/"),
        (["x/a.png", "b.png"], {"path": "."}, DataError, r"it holds x/, b\.png"),
        (["a.png"], {"path": "a.png"}, DataError, "give their folder"),
        (["a.png"], {"path": "a.png", "kind": "folder"}, DataError, "needs a folder"),
        (["a.png"], {"path": ".", "kind": "oxford-pet"}, DataError, "annotations/trimaps/"),
        (["a.png"], {"path": ".", "kind": "coco"}, DataError, "exactly one .json"),
        (["a.png"], {"path": ".", "kind": "labelme"}, DataError, "no images"),
        (["a.png"], {"path": ".", "kind": "manifest"}, DataError, "manifest can't be read"),
        ([], {"path": "x", "kind": "synthetic"}, UsageError, "needs data.path: synthetic"),
        ([], {"path": "x", "kind": "coco", "download": True}, UsageError, "only oxford-pet"),
    ],
)
def test_what_cannot_be_opened(
    *,
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: list[str],
    options: dict[str, object],
    error: type[BinsegError],
    message: str,
) -> None:
    """Each is one line that says what was found and what is accepted."""
    monkeypatch.chdir(tmp_path)
    for name in made:
        save(Path(name))
    with pytest.raises(error, match=message) as caught:
        open_dataset(DataConfig.model_validate(options))
    assert "\n" not in str(caught.value)


def test_an_unreadable_folder_is_one_line(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without permission is named, with the system's own reason."""
    fill(tmp_path, "a")

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="the folder can't be read: Permission denied"):
        open_dataset(DataConfig(path=str(tmp_path)))


def test_folds_keep_the_images_of_one_source_together(fill: Fill, tmp_path: Path) -> None:
    """They pool train and val, so that the data's own split no longer does."""
    for split in ("train", "val"):
        names = [f"{split}{case}_slice_{page}" for case in range(3) for page in range(4)]
        fill(tmp_path, *names, images=f"{split}/images", masks=f"{split}/masks")
    config = {"path": str(tmp_path), "split": {"method": "kfold", "folds": 3}}
    data = open_dataset(DataConfig.model_validate(config))
    assert len({record.group for record in data.records}) == 6
    assert any("24 images come from 6 sources" in note for note in data.notes)
    own = open_dataset(DataConfig(path=str(tmp_path)))
    assert not any(record.group for record in own.records)


def test_folders_are_said_that_may_have_to_stay_whole(fill: Fill, tmp_path: Path) -> None:
    """Three videos, dealt singly unless told otherwise."""
    fill(tmp_path, *(f"video{video}/{n}" for video in range(3) for n in range(4)))
    data = open_dataset(DataConfig(path=str(tmp_path)))
    assert any("3 folders of about 4 images are split one by one" in note for note in data.notes)
    data = open_dataset(DataConfig(path=str(tmp_path), group="folder"))
    assert {record.group for record in data.records} == {"video0", "video1", "video2"}


def test_all_empty_masks_name_the_folder(fill: Fill, save: Save, tmp_path: Path) -> None:
    """What is wrong with all masks is said with the place."""
    fill(tmp_path, "a")
    save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=rf"{tmp_path.name}: the only mask is empty"):
        open_dataset(DataConfig(path=str(tmp_path)))


def test_kinds_are_told_apart(fill: Fill, save: Save, tmp_path: Path) -> None:
    """A manifest, COCO and labelme are known by what they hold."""
    fill(tmp_path / "m", "a", images="i", masks="j")
    (tmp_path / "m" / "manifest.csv").write_text("image,mask\ni/a.png,j/a.png\n")
    ring = [[0, 0], [5, 0], [5, 3]]
    save(tmp_path / "c" / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": [[v for point in ring for v in point]],
            }
        ],
        "categories": [],
    }
    (tmp_path / "c" / "all.json").write_text(json.dumps(coco))
    save(tmp_path / "l" / "a.png")
    labelme = {"shapes": [{"label": "x", "points": ring}], "imagePath": "a.png"}
    (tmp_path / "l" / "a.json").write_text(json.dumps(labelme))
    taken = {
        name: open_dataset(DataConfig(path=str(tmp_path / name))).kind
        for name in ("m", "m/manifest.csv", "c", "c/all.json", "l")
    }
    assert taken == {
        "m": "manifest",
        "m/manifest.csv": "manifest",
        "c": "coco",
        "c/all.json": "coco",
        "l": "labelme",
    }


def test_an_unknown_kind_is_told_the_kinds(tmp_path: Path) -> None:
    """Kinds are the rows of `SOURCES`; the refusal lists them all."""
    with pytest.raises(UsageError, match=f"give auto, {', '.join(SOURCES)}"):
        open_dataset(DataConfig(path=str(tmp_path), kind="foldre"))
