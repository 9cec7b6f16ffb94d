"""Oxford-IIIT Pet: the official layout, its split, and the download."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from binseg.config.recipe import DataConfig, SplitConfig
from binseg.data import assign_splits, open_dataset, read_sample
from binseg.data.sources import standards
from binseg.data.sources.standards import download_oxford_pet
from binseg.errors import DataError

Save = Callable[..., Path]
TRIMAP = np.array([[1, 2, 3], [1, 2, 3]], np.uint8)


@pytest.fixture
def root(save: Save, tmp_path: Path) -> Path:
    """22 images for trainval, 2 for test."""
    place = tmp_path / "pets"
    names = [f"Abyssinian_{i}" for i in range(21)] + ["great_dane_7", "Bombay_1", "pug_2"]
    for name in names:
        save(place / "images" / f"{name}.jpg", np.zeros((2, 3, 3), np.uint8))
        save(place / "annotations" / "trimaps" / f"{name}.png", TRIMAP)
    lines = [f"{name} 1 {1 if name[0].isupper() else 2} 1\n" for name in names]
    (place / "annotations" / "trainval.txt").write_text("".join(lines[:22]))
    (place / "annotations" / "test.txt").write_text("# Image CLASS\n" + "".join(lines[22:]))
    return place


def test_the_split_of_the_reports(root: Path) -> None:
    """Every tenth image of trainval, from the first on, validates; the test list is the test."""
    data = assign_splits(open_dataset(DataConfig(path=str(root))), SplitConfig())
    assert data.kind == "oxford-pet"
    assert [r.id for r in data.of_split("val")] == [f"Abyssinian_{i}" for i in (0, 10, 20)]
    assert len(data.of_split("train")) == 19
    assert [r.id for r in data.of_split("test")] == ["Bombay_1", "pug_2"]


def test_the_folder_may_be_wrapped(root: Path) -> None:
    """As torchvision unpacks it, into a folder of its own."""
    inner = root.parent / "outer" / "oxford-iiit-pet"
    inner.parent.mkdir()
    root.rename(inner)
    data = open_dataset(DataConfig(path=str(inner.parent)))
    assert data.kind == "oxford-pet"
    assert len(data.records) == 24
    assert data.records[0].image_path.is_file()


def test_breed_and_species_are_columns(root: Path) -> None:
    """Reports can be sliced by breed and species."""
    records = open_dataset(DataConfig(path=str(root))).records
    assert records[0].columns == {"breed": "Abyssinian", "species": "cat"}
    assert records[21].columns == {"breed": "great_dane", "species": "dog"}


@pytest.mark.parametrize(("gone", "splits"), [("test", {"train", "val"}), ("trainval", {"test"})])
def test_one_list_is_enough_for_its_splits(root: Path, gone: str, splits: set[str]) -> None:
    """With one of the two lists its splits work, and the notes say which are missing."""
    (root / "annotations" / f"{gone}.txt").unlink()
    data = assign_splits(open_dataset(DataConfig(path=str(root))), SplitConfig())
    assert {r.split for r in data.records} == splits
    assert any(note.startswith("only ") for note in data.notes)


def test_no_list_and_missing_files_are_named(root: Path) -> None:
    """Listed files that aren't there are named; without any list nothing can be split."""
    (root / "images" / "pug_2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 files .* missing \(images/pug_2\.jpg\)"):
        open_dataset(DataConfig(path=str(root)))
    for name in ("trainval", "test"):
        (root / "annotations" / f"{name}.txt").unlink()
    with pytest.raises(DataError, match=r"neither trainval\.txt nor test\.txt"):
        open_dataset(DataConfig(path=str(root)))


def test_the_sets_oddities_load(root: Path) -> None:
    """A palette GIF, an RGBA PNG and a CMYK JPEG, all called .jpg, and an empty trimap."""
    odd = Image.new("RGB", (3, 2), (200, 30, 30))
    for name, mode, format_ in (("0", "P", "GIF"), ("1", "RGBA", "PNG"), ("2", "CMYK", "JPEG")):
        odd.convert(mode).save(root / "images" / f"Abyssinian_{name}.jpg", format=format_)
    Image.new("L", (3, 2), 2).save(root / "annotations" / "trimaps" / "Abyssinian_3.png")
    data = open_dataset(DataConfig(path=str(root)))
    samples = [read_sample(record, data.rule) for record in data.records[:4]]
    assert [s.image_HWC.shape for s in samples] == [(2, 3, 3)] * 4
    assert samples[3].mask_HW is not None
    assert not samples[3].mask_HW.any()


def test_real_pets(pet: Path) -> None:
    """The real set gives 3,312 to train and 368 to validate, and the border counts as told."""
    data = open_dataset(DataConfig(path=str(pet), border="ignore"))
    sizes = {s: sum(r.split == s for r in data.records) for s in ("train", "val", "test")}
    assert sizes == {"train": 3312, "val": 368, "test": 0}
    sample = read_sample(data.records[0], data.rule)
    assert sample.image_HWC.shape == (256, 256, 3)
    assert 0 < (~sample.valid_HW).mean() < 0.3


class Quiet(SimpleHTTPRequestHandler):
    """A web server that writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server for the files of a folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}", folder
        web.shutdown()
        thread.join()


def packed(root: Path, folder: Path, *, evil: bool = False) -> dict[str, str]:
    """Pack images/ and annotations/ as the official archives are; give their checksums."""
    for name in ("images", "annotations"):
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as tar:
            tar.add(root / name, arcname=name)
            extra = tarfile.TarInfo("../escaped.txt" if evil else f"{name}/._Mac.png")
            extra.size = 1
            tar.addfile(extra, io.BytesIO(b"x"))
    return {
        path.name: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in sorted(folder.iterdir())
    }


def test_download(
    root: Path, tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absent and asked for: both archives are fetched, checked, unpacked and read; once only."""
    url, folder = server
    md5_of = packed(root, folder)
    fetch = partial(download_oxford_pet, base_url=url, md5_of=md5_of)
    monkeypatch.setattr("binseg.data.sources.download_oxford_pet", fetch)
    goal = tmp_path / "new" / "pets"
    config = DataConfig(path=str(goal), download=True)
    data = open_dataset(config)
    assert len(data.records) == 24
    assert not list(goal.glob("*.tar.gz"))
    assert not list(goal.rglob("._*"))
    for path in folder.iterdir():
        path.unlink()
    assert len(open_dataset(config).records) == 24


def test_no_download_unless_asked(tmp_path: Path) -> None:
    """Nothing is fetched by itself."""
    config = DataConfig(path=str(tmp_path / "pets"), kind="oxford-pet")
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(config)


def test_a_wrong_archive_leaves_nothing(
    root: Path, tmp_path: Path, server: tuple[str, Path]
) -> None:
    """A checksum that differs, or an archive that writes outside, leaves no data behind."""
    url, folder = server
    goal = tmp_path / "goal"
    wrong = dict.fromkeys(packed(root, folder), "0" * 32)
    with pytest.raises(DataError, match="md5"):
        download_oxford_pet(goal, base_url=url, md5_of=wrong)
    evil = packed(root, folder, evil=True)
    with pytest.raises(DataError, match="can't be unpacked"):
        download_oxford_pet(goal, base_url=url, md5_of=evil)
    assert not (tmp_path / "escaped.txt").exists()
    assert not [path for path in goal.iterdir() if path.is_dir()]


def test_the_official_address_and_checksums() -> None:
    """The published archives, as torchvision's own data set class names them."""
    assert standards.OXFORD_URL == "https://thor.robots.ox.ac.uk/datasets/pets"
    assert standards.MD5_OF == {
        "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
        "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
    }
