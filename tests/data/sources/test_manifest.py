"""CSV manifests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from binseg.config.recipe import DataConfig
from binseg.data import open_dataset
from binseg.errors import DataError
from binseg.types import Record

Fill = Callable[..., Path]


@pytest.fixture
def read(fill: Fill, tmp_path: Path) -> Callable[[str], tuple[Record, ...]]:
    """Read this text as a manifest beside the images i/a, i/b."""
    fill(tmp_path, "a", "b", images="i", masks="j")

    def reading(text: str) -> tuple[Record, ...]:
        path = tmp_path / "list.csv"
        path.write_bytes(text.encode())
        return open_dataset(DataConfig(path=str(path))).records

    return reading


Read = Callable[[str], tuple[Record, ...]]


def test_columns(read: Read, tmp_path: Path) -> None:
    """Group and split are understood, and any further column is kept for reports."""
    a, b = read(
        "Image,mask,group,split,Breed\ni/a.png,j/a.png,g1,train,pug\ni/b.png,j/b.png,,Valid,\n"
    )
    assert a.id == "i/a"
    assert a.image_path == tmp_path / "i" / "a.png"
    assert (a.group, a.split, a.columns) == ("g1", "train", {"Breed": "pug"})
    assert (b.group, b.split, b.columns) == (None, "val", {"Breed": ""})


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(read: Read, delimiter: str) -> None:
    """Spreadsheets of other countries write semicolons, and a mark at the file's start."""
    text = "\ufeffid,image,mask\r\none,i/a.png,j/a.png\r\n".replace(",", delimiter)
    assert [record.id for record in read(text)] == ["one"]


def test_all_problems_at_once_with_their_lines(read: Read) -> None:
    """Up to ten problems are told together, each with its line."""
    with pytest.raises(DataError) as caught:
        read(
            "image,mask,split\n"
            "i/none.png,j/a.png,train\n"
            "../a.png,j/a.png,train\n"
            ",j/a.png,train\n"
            "i/a.png,j/a.png,trian\n"
            "i/b.png\n"
            "i/b.png,j/b.png,test\n"
            "i/b.png,j/b.png,test\n"
            "/etc/passwd,j/b.png,test\n"
        )
    text = str(caught.value)
    for problem in (
        "line 2: image i/none.png does not exist",
        "line 3: image ../a.png lies outside the manifest's folder",
        "line 4: no image",
        "line 5: split 'trian' is not train, val or test",
        "line 6: has another number of columns",
        "line 8: i/b is also on line 7",
        "line 9: image /etc/passwd lies outside",
    ):
        assert problem in text
    assert "\n" not in text


def test_lines_without_a_mask_are_as_data_missing_says(read: Read, tmp_path: Path) -> None:
    """They are left out and counted, taken for empty, or refused."""
    (one,) = read("image,mask\ni/a.png,j/a.png\ni/b.png,\n")
    assert one.id == "i/a"
    path = str(tmp_path / "list.csv")
    data = open_dataset(DataConfig(path=path))
    assert any("1 image with mask used, 1 image without mask left out" in x for x in data.notes)
    _, other = open_dataset(DataConfig(path=path, missing="empty")).records
    assert (other.id, other.shapes, other.mask_path) == ("i/b", (), None)
    with pytest.raises(DataError, match=r"1 image without mask \(i/b\.png\)"):
        open_dataset(DataConfig(path=path, missing="refuse"))


def test_more_than_ten_problems_are_counted(read: Read) -> None:
    """After ten problems only their number is told."""
    with pytest.raises(DataError, match=r"line 11.* and 3 more$"):
        read("image,mask\n" + "".join(f"x{i}.png,j/a.png\n" for i in range(13)))


@pytest.mark.parametrize("text", ["picture,mask\n", "image,mask,mask\n", "", "image;Mask;IMAGE\n"])
def test_headers_that_cannot_be(read: Read, text: str) -> None:
    """Without exactly one image and one mask column the header is told back."""
    with pytest.raises(DataError, match="needs the columns image and mask"):
        read(text)


def test_no_lines_and_no_text(read: Read, tmp_path: Path) -> None:
    """A header alone is no data, and a binary file is no manifest."""
    with pytest.raises(DataError, match="no images found"):
        read("image,mask\n")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00i")
    with pytest.raises(DataError, match="not UTF-8"):
        open_dataset(DataConfig(path=str(tmp_path / "x.csv")))


def test_relative_manifest(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest in the working folder may not lead out of it either."""
    read("image,mask\ni/a.png,j/a.png\n")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset(DataConfig(path="list.csv")).records) == 1
    (tmp_path / "list.csv").write_text(f"image,mask\n../{tmp_path.name}2/a.png,j/a.png\n")
    with pytest.raises(DataError, match="outside"):
        open_dataset(DataConfig(path="list.csv"))


def test_pages(read: Read) -> None:
    """A page column points into stacks; ids say the page."""
    records = read("image,mask,page\ni/a.png,j/a.png,0\ni/b.png,j/b.png,\n")
    assert [(record.id, record.page) for record in records] == [("i/a-page0000", 0), ("i/b", None)]
    with pytest.raises(DataError, match="line 2: page '-1' is not a whole number"):
        read("image,mask,page\ni/a.png,j/a.png,-1\n")


def test_an_over_long_cell_is_one_line(tmp_path: Path) -> None:
    """A cell of more letters than any name has."""
    path = tmp_path / "manifest.csv"
    path.write_text(f"image,mask,note\na.png,b.png,{'x' * 200_000}\n", "utf-8")
    with pytest.raises(DataError, match=r"line 2 can't be read: field larger"):
        open_dataset(DataConfig(path=str(path)))
