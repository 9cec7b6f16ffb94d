"""Patches told by their names."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from binseg.data.origins import place_of
from binseg.datacheck.findings import seams
from binseg.types import Record, Split


def records(names: Sequence[tuple[str, Split]]) -> list[Record]:
    return [Record(id=name, image_path=Path(f"{name}.png"), split=split) for name, split in names]


@pytest.mark.parametrize(
    ("name", "source", "at"),
    [
        ("slide1_x0_y256", "slide1", (0, 256)),
        ("train/slide1_x0_y256", "slide1", (0, 256)),
        ("scan-r3-c4", "scan", (3, 4)),
        ("scan_row12_col7", "scan", (12, 7)),
        ("img_003_patch_12", "img_003", (12,)),
        ("volume_slice_0041", "volume", (41,)),
        ("case07/slice_012", "case07", (12,)),
        ("train/z3", "train", (3,)),
        ("frame_0001", "frame", (1,)),
    ],
)
def test_names_of_patches(name: str, source: str, at: tuple[int, ...]) -> None:
    """The usual ways of naming patches are understood."""
    place = place_of(name)
    assert place is not None
    assert (place.source, place.at) == (source, at)


@pytest.mark.parametrize("name", ["Abyssinian_12", "IMG0042", "max3_y2024", "patch_7", "dsc-0001"])
def test_names_that_are_no_patches(name: str) -> None:
    """Counters behind a word, and patches of no named source, are nobody's neighbours."""
    assert place_of(name) is None


def test_neighbours_in_two_splits() -> None:
    """Only the patches that touch across the splits are named, diagonals too."""
    found = list(
        seams(
            records(
                [
                    ("a_x0_y0", "train"),
                    ("a_x256_y0", "train"),
                    ("a_x512_y256", "val"),
                    ("b_x0_y0", "val"),
                    ("b_x256_y0", "val"),
                ]
            )
        )
    )
    assert [(seam.source, seam.indices) for seam in found] == [("a", (1, 2))]


def test_bare_numbers_must_be_a_grid() -> None:
    """Two numbers are coordinates where all are multiples of a step; dates are not."""
    grid = [(f"s_{x}_{y}", "train" if x else "val") for x in (0, 64) for y in (0, 64)]
    dates = [(f"s_{y}_{m}", "train" if m % 2 else "val") for y in (2023, 2024) for m in (1, 2)]
    assert len(list(seams(records([(n, "val" if s == "val" else "train") for n, s in grid])))) == 1
    assert not list(seams(records([(n, "val" if s == "val" else "train") for n, s in dates])))


def test_pages_at_a_seam() -> None:
    """Consecutive pages of a stack in two splits are neighbours; a gap parts them."""
    path = Path("stack.tif")
    splits: dict[int, Split] = {0: "train", 1: "train", 2: "val", 4: "test"}
    pages = [
        Record(id=f"p{n}", image_path=path, page=n, split=split, group=f"block{split}")
        for n, split in splits.items()
    ]
    (seam,) = seams(pages)
    assert seam.kind == "pages"
    assert seam.indices == (1, 2)
