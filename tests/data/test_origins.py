"""Groups that names tell."""

from pathlib import Path

from binseg.data.origins import with_groups
from binseg.structures import Record, Split


def records(*names: str, split: Split | None = None) -> list[Record]:
    return [Record(id=name, image_path=Path(f"{name}.png"), split=split) for name in names]


def groups(given: list[Record], *, in_block: int = 10) -> list[str | None]:
    return [record.group for record in with_groups(given, in_block=in_block)[0]]


def test_slices_of_patients_stay_together() -> None:
    """Of many sources each is a group, and it is said."""
    given = records(*(f"case{case:02}_slice_{page:03}" for case in range(6) for page in range(4)))
    grouped, note = with_groups(given, in_block=10)
    assert [record.group for record in grouped] == [r.id[:6] for r in given]
    assert note is not None
    assert note.startswith("24 pictures come from 6 sources or parts of one by their names (case00")


def test_one_volume_falls_into_blocks() -> None:
    """As the pages of a stack do: else it couldn't be split at all."""
    given = records(*(f"volume_slice_{page:03}" for page in range(25)))
    assert groups(given) == [f"volume block{page // 10:04d}" for page in range(25)]


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


def test_folders_of_patients_are_groups_and_folders_of_classes_are_not() -> None:
    """Many folders with few pictures, against few with many."""
    patients = records(*(f"p{patient}/{n}" for patient in range(12) for n in range(20)))
    assert groups(patients) == [record.id.split("/")[0] for record in patients]
    assert not any(groups(records(*(f"class{c}/{n}" for c in range(9) for n in range(9)))))
    assert not any(groups(records(*(f"class{c}/{n}" for c in range(12) for n in range(90)))))
    assert not any(groups(records(*(f"one{n}/picture" for n in range(30)))))


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
