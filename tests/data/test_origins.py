"""Groups that names tell."""

from pathlib import Path

import pytest

from binseg.config.recipe import DataConfig
from binseg.data.origins import with_groups
from binseg.types import Record, Split


def records(*names: str, split: Split | None = None) -> list[Record]:
    return [Record(id=name, image_path=Path(f"{name}.png"), split=split) for name in names]


def configured(**options: object) -> DataConfig:
    return DataConfig.model_validate(options)


def groups(given: list[Record], **options: object) -> list[str | None]:
    return [record.group for record in with_groups(given, configured(**options))[0]]


def test_slices_of_patients_stay_together() -> None:
    """Of many sources each is a group, and it is said."""
    given = records(*(f"case{case:02}_slice_{page:03}" for case in range(6) for page in range(4)))
    grouped, note = with_groups(given, configured())
    assert [record.group for record in grouped] == [r.id[:6] for r in given]
    assert note is not None
    assert note.startswith("24 images come from 6 sources or parts of one by their names (case00")


@pytest.mark.parametrize(
    "name", ["BraTS_{c:03}_{n:03}", "p{c:02}_{n:03}", "patient{c}-{n}", "case{c:02}_img{n:02}",
             "video{c}_{n:05}", "case {c}_image_{n}"],
)  # fmt: skip
def test_a_case_and_a_number_in_it_are_told_by_names(name: str) -> None:
    """Their cases stay in one split; breeds, years and single images are none."""
    given = records(*(name.format(c=case, n=n) for case in range(6) for n in range(1, 5)))
    first = [groups(given)[4 * case : 4 * case + 4] for case in range(6)]
    assert all(len(set(one)) == 1 and None not in one for one in first)
    assert len({one[0] for one in first}) == 6
    assert not any(groups(records(*(f"{b}_{n}" for b in "abcdef" for n in range(5)))))
    assert not any(groups(records(*(f"20{y}_{n:06}" for y in range(10, 16) for n in range(5)))))
    assert not any(groups(records(*(f"im{n}_{n}" for n in range(30)))))


def test_one_volume_falls_into_blocks() -> None:
    """As the pages of a stack do: else it couldn't be split at all."""
    given = records(*(f"volume_slice_{page:03}" for page in range(25)))
    assert groups(given) == [f"volume block{page // 10:04d}" for page in range(25)]


@pytest.mark.parametrize("word", ["slice_", "frame", "z", "Z-"])
def test_slices_and_frames_of_one_folder_are_in_order(word: str) -> None:
    """The folder is their source, or all there is; tiles and patches may be of any source."""
    lone = records(*(f"{word}{page:03}" for page in range(25)))
    name = word.strip("_-")
    assert groups(lone) == [f"{name} block{page // 10:04d}" for page in range(25)]
    cases = records(*(f"case{case}/{word}{page:03}" for case in range(6) for page in range(70)))
    assert groups(cases) == [record.id.split("/")[0] for record in cases]
    assert not any(groups(records(*(f"class{c}/tile_{n}" for c in range(6) for n in range(9)))))
    assert not any(groups(records(*(f"patch_{n}" for n in range(30)))))


def test_slices_in_the_folders_of_two_splits_are_two_sources() -> None:
    """train/slice_1 and val/slice_1 may each have been numbered anew."""
    both = [
        *records(*(f"train/slice_{page}" for page in range(20)), split="train"),
        *records(*(f"val/slice_{page}" for page in range(20)), split="val"),
    ]
    dealt = groups(both, split={"method": "kfold"})
    assert set(dealt) == {f"{s} block000{n}" for s in ("train", "val") for n in (0, 1)}


def test_one_slide_falls_into_squares() -> None:
    """Four patches a side; what is across a seam is only warned of."""
    given = records(*(f"slide_x{x * 256}_y{y * 256}" for x in range(8) for y in range(4)))
    assert groups(given) == [f"slide part{x // 4}-0" for x in range(8) for _ in range(4)]


def test_bare_numbers_are_coordinates_only_on_a_grid() -> None:
    """Multiples of 256 are, dates and counters are not."""
    grid = records(
        *(f"tile{n}_{x * 256}_{y * 256}" for n in range(5) for x in (0, 1) for y in (0, 1))
    )
    assert groups(grid) == [record.id.split("_")[0] for record in grid]
    assert not any(groups(records(*(f"a_2024_{n}" for n in range(20)))))


def test_coordinates_may_begin_anywhere() -> None:
    """Crops of Crack500 begin at 1; few of a source show together what none shows alone."""
    names = [f"2016022{n}_081011_{x}_{y}" for n in range(6) for x in (1, 641) for y in (1, 361)]
    assert groups(records(*names)) == [name[:15] for name in names]
    pairs = [f"2016022{n}_081011_{x}_361" for n in range(6) for x in (1, 641)]
    assert groups(records(*pairs)) == [name[:15] for name in pairs]
    visits = [f"p{n}_{n}_{visit}" for n in range(6) for visit in (1, 2)]
    assert groups(records(*visits)) == [name[:4] for name in visits], "cases, no coordinates"


def test_folders_are_groups_where_the_user_says_so() -> None:
    """Few folders, or full ones, may be classes or patients: it is asked, and then done."""
    videos = records(*(f"video{video}/{n}" for video in range(3) for n in range(80)))
    untouched, note = with_groups(videos, configured())
    assert untouched == tuple(videos)
    assert note is not None
    assert note.startswith(
        "3 folders of about 80 images are split one by one; if each is a patient"
    )
    assert "--set data.group=folder" in note
    grouped, note = with_groups(videos, configured(group="folder"))
    assert [record.group for record in grouped] == [r.id.split("/")[0] for r in videos]
    assert note == "each of 3 folders (video0, video1, video2) stays in one split"
    assert with_groups(videos, configured(group="none")) == (tuple(videos), None)
    assert with_groups(records(*(f"one{n}/a" for n in range(30))), configured())[1] is None


@pytest.mark.parametrize(
    ("names", "split", "why"),
    [
        (("a", "b"), {}, "the images don't lie in several folders"),
        (("p/a", "q/b"), {"method": "file", "file": "split.csv"}, "their split is given"),
    ],
)
def test_folders_that_cannot_be_groups_are_said(
    names: tuple[str, ...], split: dict[str, str], why: str
) -> None:
    """An option that changes nothing doesn't pass in silence."""
    given = records(*names)
    untouched, note = with_groups(given, configured(group="folder", split=split))
    assert untouched == tuple(given)
    assert note == f"data.group: folder changes nothing: {why}"


def test_a_few_telling_names_do_not_hide_the_folders() -> None:
    """One image that is called like a slice says nothing on the others."""
    given = records("odd/z1", *(f"p{patient}/{n}" for patient in range(12) for n in range(20)))
    assert groups(given)[1:] == [record.id.split("/")[0] for record in given[1:]]


@pytest.mark.parametrize(
    ("method", "dealt"),
    [
        *(("auto", set[str]()), ("official", set[str]()), ("file", set[str]())),
        *(("ratio", {"train", "val", "test"}), ("block", {"train", "val", "test"})),
        ("kfold", {"train", "val"}),
    ],
)
def test_what_is_dealt_anew_is_grouped(method: str, dealt: set[str]) -> None:
    """Whatever split the data brings: folds pool train and val, ratio and block take all."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    given = [
        record
        for split in splits
        for record in records(
            *(f"{split}/{split}{case}_slice_{page}" for case in range(6) for page in range(4)),
            split=split,
        )
    ]
    split = {"method": method, "file": "split.csv"}
    grouped, _ = with_groups(given, configured(split=split))
    assert {str(record.split) for record in grouped if record.group} == dealt
    assert len({record.group for record in grouped if record.group}) == 6 * len(dealt)


def test_folders_of_patients_are_groups_and_folders_of_classes_are_not() -> None:
    """Many folders with few images, against few with many."""
    patients = records(*(f"p{patient}/{n}" for patient in range(12) for n in range(20)))
    assert groups(patients) == [record.id.split("/")[0] for record in patients]
    assert not any(groups(records(*(f"class{c}/{n}" for c in range(9) for n in range(9)))))
    assert not any(groups(records(*(f"class{c}/{n}" for c in range(12) for n in range(90)))))
    assert not any(groups(records(*(f"one{n}/image" for n in range(30)))))


def test_names_of_instruments_and_mixed_names_are_no_trouble() -> None:
    """DICOM's identifiers are no coordinates, and one source may use two ways of naming."""
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1002252872223656636786668368"
    assert not any(groups(records(*(f"{uid}{n:02}" for n in range(30)))))
    mixed = records(
        *(f"scan_x{n * 64}_y0" for n in range(8)), *(f"scan_patch_{n}" for n in range(20))
    )
    assert all(groups(mixed))


def test_who_has_decided_keeps_the_word() -> None:
    """Groups, pages and a validation split of the data's own are left alone."""
    given = records(*(f"case{case}_slice_{page}" for case in range(6) for page in range(4)))
    own = [*given[1:], Record(id="x", image_path=Path("x.png"), group="mine")]
    assert groups(own) == [None] * 23 + ["mine"]
    val = [*given[1:], *records("y", split="val")]
    assert not any(groups(val))
    test = [*given, *records("case1_slice_9", split="test")]
    assert groups(test)[-1] is None
    assert groups(test)[0] == "case0"


def test_copies_of_a_photo_stay_together() -> None:
    """Roboflow's copies and those of augmentation scripts are grouped with the photo itself."""
    given = records(
        *(f"p0_jpg.rf.{'ab' * 8}{copy}" for copy in range(3)),
        *("p1", "p1_aug1", "p1_aug2", "p2_jpg.rf.0123456789abcdef", "p3"),
        *("aug_0_p3_0_1234", "p1_hflip", "p1_rot90", "p1 (copy)", "p1_aug_1_22"),
    )
    grouped, note = with_groups(given, configured())
    names = ["p0"] * 3 + ["p1"] * 3 + [None] + ["p3"] * 2 + ["p1"] * 4
    assert [one.group for one in grouped] == names
    assert note is not None
    assert note.startswith("12 images are copies of 3 photos by their names (p0, p1, p3)")
