"""Splits: by group, seeded, independent of order."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binseg.config.recipe import SplitConfig
from binseg.data import Dataset, MaskRule, assign_splits, read_split, write_split
from binseg.errors import DataError
from binseg.types import Record, Split

RULE = MaskRule(kind="polygons")


def dataset(records: Iterable[Record]) -> Dataset:
    return Dataset(kind="folder", root=Path("pets"), records=tuple(records), rule=RULE)


def record(name: object, *, group: str | None = None, split: Split | None = None) -> Record:
    return Record(id=str(name), image_path=Path(f"{name}.png"), group=group, split=split)


def ratio(**options: object) -> SplitConfig:
    return SplitConfig.model_validate({"method": "ratio", **options})


def splits_of(data: Dataset) -> dict[str, Split | None]:
    return {r.id: r.split for r in data.records}


def test_ratio_gives_its_shares() -> None:
    """100 single images at 0.7 / 0.15 / 0.15 are 70, 15 and 15, and the note says so."""
    done = assign_splits(dataset(record(i) for i in range(100)), SplitConfig())
    assert Counter(r.split for r in done.records) == {"train": 70, "val": 15, "test": 15}
    assert done.notes[-1].endswith("seed 0: 70 train, 15 val, 15 test")


@given(st.permutations(range(12)), st.integers(0, 3))
def test_order_changes_nothing(order: list[int], seed: int) -> None:
    """A split depends on ids and seed, not on the order in which files were found."""
    given_order = assign_splits(dataset(record(i) for i in order), ratio(seed=seed))
    sorted_order = assign_splits(dataset(record(i) for i in range(12)), ratio(seed=seed))
    assert splits_of(given_order) == splits_of(sorted_order)


def test_another_seed_gives_another_split() -> None:
    """The seed matters."""
    data = dataset(record(i) for i in range(30))
    assert splits_of(assign_splits(data, ratio(seed=0))) != splits_of(
        assign_splits(data, ratio(seed=1))
    )


@given(st.lists(st.integers(1, 40), min_size=3, max_size=12), st.integers(0, 5))
def test_groups_stay_whole_and_no_split_is_empty(sizes: list[int], seed: int) -> None:
    """Whatever the groups' sizes: none is torn, and with three groups every split has one."""
    records = [
        record(f"{g}-{i}", group=str(g)) for g, size in enumerate(sizes) for i in range(size)
    ]
    done = assign_splits(dataset(records), ratio(seed=seed))
    of_group = {(r.group, r.split) for r in done.records}
    assert len(of_group) == len(sizes)
    assert {split for _, split in of_group} == {"train", "val", "test"}


def test_few_groups() -> None:
    """Two groups make train and val; one is refused; a share of 0 gets nothing."""
    two = assign_splits(dataset([record("a"), record("b")]), ratio(ratios=(0.4, 0.2, 0.4)))
    assert {r.split for r in two.records} == {"train", "val"}
    with pytest.raises(DataError, match="1 group of images can't be split"):
        assign_splits(dataset([record("a", group="x"), record("b", group="x")]), ratio())
    none = assign_splits(dataset(record(i) for i in range(9)), ratio(ratios=(0.5, 0.5, 0)))
    assert {r.split for r in none.records} == {"train", "val"}


def test_auto_takes_the_official_split() -> None:
    """Where the data brings a split, auto keeps it; ratio replaces it and says so."""
    records = [record(1, split="train"), record(2, split="val"), record(3, split="test")]
    done = assign_splits(dataset(records), SplitConfig())
    assert splits_of(done) == {"1": "train", "2": "val", "3": "test"}
    assert "NOT used" in assign_splits(dataset(records), ratio()).notes[-1]


def test_train_and_test_alone_give_val_out_of_train() -> None:
    """The test split is never touched to choose a model: val comes out of train, and is said."""
    records = [record(i, split="train") for i in range(20)] + [record("t", split="test")]
    done = assign_splits(dataset(records), SplitConfig())
    sizes = Counter(r.split for r in done.records)
    assert sizes["test"] == 1
    assert sizes["val"] == pytest.approx(20 * 0.15 / 0.85, abs=1)
    assert "has no val" in done.notes[-1]


def test_official_refuses_what_is_missing() -> None:
    """No split at all, or for some images only, is an error that names them."""
    with pytest.raises(DataError, match="has no split of its own"):
        assign_splits(dataset([record(1)]), SplitConfig(method="official"))
    with pytest.raises(DataError, match=r"1 image has no split .*\(2\)"):
        assign_splits(dataset([record(1, split="train"), record(2)]), SplitConfig())


def test_a_torn_group_is_refused() -> None:
    """Two images of one group in two splits are an error that names the group."""
    records = [record(1, group="cat 7", split="train"), record(2, group="cat 7", split="val")]
    with pytest.raises(DataError, match=r"more than one split \(cat 7\)"):
        assign_splits(dataset(records), SplitConfig())


def test_folds_take_turns() -> None:
    """Over all folds every image validates exactly once, and there is no test."""
    data = dataset(record(i) for i in range(13))
    seen: Counter[str] = Counter()
    for fold in range(4):
        done = assign_splits(data, SplitConfig(method="kfold", folds=4, fold=fold))
        seen.update(r.id for r in done.of_split("val"))
        with pytest.raises(DataError):
            done.of_split("test")
    assert set(seen.values()) == {1}
    assert len(seen) == 13


def test_folds_keep_the_official_test() -> None:
    """Folds are made of what isn't the data's own test."""
    records = [record(i, split="train") for i in range(6)] + [record("t", split="test")]
    done = assign_splits(dataset(records), SplitConfig(method="kfold", folds=3))
    assert [r.id for r in done.of_split("test")] == ["t"]
    with pytest.raises(DataError, match="6 groups of images can't make 7 folds"):
        assign_splits(dataset(records), SplitConfig(method="kfold", folds=7))


def test_a_written_split_comes_back(tmp_path: Path) -> None:
    """What a run writes is what `file` reads, names with commas included."""
    data = dataset(record(f"a,{i}", group=f"g{i}") for i in range(10))
    done = assign_splits(data, ratio(seed=4))
    write_split(tmp_path / "split.csv", done)
    again = assign_splits(data, SplitConfig(method="file", file=str(tmp_path / "split.csv")))
    assert splits_of(again) == splits_of(done) == read_split(tmp_path / "split.csv")


def test_a_split_of_other_data_is_refused(tmp_path: Path) -> None:
    """An image without a line is an error; a line without an image is said."""
    path = tmp_path / "split.csv"
    path.write_text("id,split\n1,train\n9,validation\n")
    config = SplitConfig(method="file", file=str(path))
    with pytest.raises(DataError, match=r"no line for 1 of 2 images of pets \(2\)"):
        assign_splits(dataset([record(1), record(2)]), config)
    assert (
        "(1 of its ids are not in the data: 9)"
        in assign_splits(dataset([record(1)]), config).notes[-1]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,split\na,trian\n", "line 2: 'trian' is not train, val or test"),
        ("id,split\na,train\na,val\n", "line 3: a is also in train"),
        ("name,part\n", "needs the columns id, split; it has name, part"),
        ("", "needs the columns"),
    ],
)
def test_bad_split_files(tmp_path: Path, text: str, message: str) -> None:
    """Each problem of a split file is named with its line."""
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_split(path)


def test_no_split_file(tmp_path: Path) -> None:
    """A missing or binary file is one line."""
    with pytest.raises(DataError, match="can't be read: No such file"):
        read_split(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_split(tmp_path / "x.csv")


def stack(num: int, *, name: str = "stack", page_group: int = 10) -> list[Record]:
    """One record a page, in blocks as `folder` makes them."""
    return [
        Record(
            id=f"{name}-page{page:04d}",
            image_path=Path(f"{name}.tif"),
            page=page,
            group=f"{name}-block{page // page_group:04d}",
        )
        for page in range(num)
    ]


def block(**options: object) -> SplitConfig:
    return SplitConfig.model_validate({"method": "block", "ratios": (0.8, 0.2, 0.0), **options})


def pages_of(data: Dataset, split: str | None) -> list[int]:
    return sorted(r.page for r in data.records if r.split == split and r.page is not None)


def test_block_takes_the_first_pages_to_train_with_a_gap() -> None:
    """100 pages at 80/20 with a gap of 5: 0-74 train, 80-99 validate, 75-79 are left out."""
    done = assign_splits(dataset(reversed(stack(100))), block(gap=5))
    assert pages_of(done, "train") == list(range(75))
    assert pages_of(done, None) == list(range(75, 80))
    assert pages_of(done, "val") == list(range(80, 100))
    assert done.notes[-1].endswith("75 train, 20 val, 5 left out (gap of 5 pages)")


def test_block_with_a_test_has_two_gaps() -> None:
    """Val loses its pages near to test, train those near to val; test keeps all."""
    done = assign_splits(dataset(stack(100)), block(ratios=(0.6, 0.2, 0.2), gap=3))
    assert pages_of(done, "train") == list(range(57))
    assert pages_of(done, "val") == list(range(60, 77))
    assert pages_of(done, "test") == list(range(80, 100))


def test_block_cuts_several_stacks_in_their_order() -> None:
    """Of five stacks the last validates; the first page of one is no neighbour of another's."""
    records = [r for name in "abcde" for r in stack(20, name=name)]
    done = assign_splits(dataset(records), block(gap=5))
    assert {r.image_path.stem for r in done.of_split("val")} == {"e"}
    assert len(done.of_split("train")) == 80


@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 4), st.booleans())
def test_a_gap_lies_between_any_two_splits(
    num: int, page_group: int, gap: int, by_ratio: bool
) -> None:
    """However a stack is split, pages of two splits are more than the gap apart."""
    config = ratio(gap=gap) if by_ratio else block(gap=gap)
    try:
        done = assign_splits(dataset(stack(num, page_group=page_group)), config)
    except DataError as error:
        assert "can't be split" in str(error) or "leaves nothing of" in str(error)  # noqa: PT017
        return
    of_page = {r.page: r.split for r in done.records if r.page is not None}
    for page, split in of_page.items():
        near = {of_page.get(page + step) for step in range(-gap, gap + 1)} - {None}
        assert split is None or near == {split}


def test_block_never_leaves_a_split_empty() -> None:
    """Three groups make three splits, whatever the shares; two groups can't."""
    done = assign_splits(dataset(stack(30)), block(ratios=(0.98, 0.01, 0.01)))
    assert Counter(r.split for r in done.records) == {"train": 10, "val": 10, "test": 10}
    with pytest.raises(DataError, match=r"2 groups .* lower data\.page_group"):
        assign_splits(dataset(stack(20)), block(ratios=(0.98, 0.01, 0.01)))


def test_a_gap_that_cannot_be_is_refused() -> None:
    """Without stacks a gap means nothing; one as wide as the training pages leaves none."""
    with pytest.raises(DataError, match="no multi-page stack"):
        assign_splits(dataset(record(i) for i in range(9)), block(gap=1))
    with pytest.raises(DataError, match="leaves nothing of train") as caught:
        assign_splits(dataset(stack(20)), block(gap=10))
    assert "method: block" not in str(caught.value), "it is that already"
    with pytest.raises(DataError, match=r"leaves nothing.*method: block"):
        assign_splits(dataset(stack(20)), ratio(gap=10))


def test_a_test_split_that_cannot_be_is_told() -> None:
    """A stack of two groups of pages has no test split, and the note says why."""
    note = assign_splits(dataset(stack(15)), ratio()).notes[-1]
    assert "no test (2 groups are too few; a lower data.page_group makes more)" in note
    assert "no test" not in assign_splits(dataset(stack(30)), ratio()).notes[-1]
    assert "no test" not in assign_splits(dataset(stack(15)), ratio(ratios=(0.8, 0.2, 0))).notes[-1]


def test_left_out_pages_come_back_from_the_file(tmp_path: Path) -> None:
    """A split file says `none` of the pages in the gap, and reading it gives the same split."""
    done = assign_splits(dataset(stack(30)), block(gap=2))
    write_split(tmp_path / "split.csv", done)
    again = assign_splits(
        dataset(stack(30)), SplitConfig(method="file", file=str(tmp_path / "split.csv"))
    )
    assert splits_of(again) == splits_of(done)
    assert list(splits_of(done).values()).count(None) == 2
    assert again.notes[-1].endswith("18 train, 10 val, 2 left out")
