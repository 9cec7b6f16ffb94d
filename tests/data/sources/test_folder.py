"""Folders of images and masks, in every layout that is understood."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from binseg.config.recipe import DataConfig, SplitConfig
from binseg.data import Dataset, assign_splits, open_dataset, read_sample
from binseg.data.sources.layouts import wrapped
from binseg.errors import DataError

Save = Callable[..., Path]
Fill = Callable[..., Path]

MASK = np.array([[0, 255]] * 3, np.uint8)


def opened(root: Path, **options: object) -> Dataset:
    return open_dataset(DataConfig.model_validate({"path": str(root), **options}))


def ids(dataset: Dataset) -> list[str]:
    return [record.id for record in dataset.records]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        *(("images", "masks"), ("img", "labels"), ("Imgs", "GT"), ("image", "annotations")),
        *(("Original", "Ground Truth"), ("sat", "map"), ("images", "1st_manual")),
    ],
)
def test_two_folders(fill: Fill, tmp_path: Path, images: str, masks: str) -> None:
    """Folders under the names that people use pair by stem; the notes say which were taken."""
    data = opened(fill(tmp_path, "b", "a", images=images, masks=masks))
    assert ids(data) == ["a", "b"]
    assert data.kind == "folder"
    assert any(f"{images}/ + {masks}/" in note for note in data.notes)


@pytest.mark.parametrize("ending", ["_mask", "-mask", "_label", "_gt", "_segmentation", "_MASK"])
def test_endings_of_masks(save: Save, tmp_path: Path, ending: str) -> None:
    """A mask may add its ending to its image's name, in a folder of its own or beside it."""
    for place in ("apart/images", "beside"):
        save(tmp_path / place / "x_1.jpg", np.zeros((3, 2, 3), np.uint8))
    for place in ("apart/masks", "beside"):
        save(tmp_path / place / f"x_1{ending}.png", MASK)
    for layout in ("apart", "beside"):
        data = opened(tmp_path / layout)
        assert ids(data) == ["x_1"]
        mask_path = data.records[0].mask_path
        assert mask_path is not None
        assert mask_path.stem == f"x_1{ending}"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        *(("{}_sat", "{}_mask"), ("2{}_training", "2{}_manual1"), ("img_{}", "mask_{}")),
        ("00{}_image", "00{}_annotation"),
    ],
)
@pytest.mark.parametrize("layout", ["apart", "beside"])
def test_names_may_differ_by_what_all_share(
    save: Save, tmp_path: Path, image: str, mask: str, layout: str
) -> None:
    """Without the common beginnings and endings they are alike; the notes give an example."""
    for index in range(3):
        apart = layout == "apart"
        folder = tmp_path / "images" if apart else tmp_path
        save(folder / f"{image.format(index)}.png", np.zeros((3, 2, 3), np.uint8))
        folder = tmp_path / "masks" if apart else tmp_path
        save(folder / f"{mask.format(index)}.png", MASK)
    data = opened(tmp_path)
    assert ids(data) == [image.format(index) for index in range(3)]
    for index, record in enumerate(data.records):
        assert record.mask_path is not None
        assert record.mask_path.stem == mask.format(index)
    said = [note for note in data.notes if note.startswith("names pair by what they don't all")]
    assert len(said) == (0 if mask == image + "_mask" else 1)


@pytest.mark.parametrize("layout", ["apart", "beside"])
def test_numbered_masks_are_pieces_of_one(save: Save, tmp_path: Path, layout: str) -> None:
    """One file an object, as ultrasound sets have them: together they are the mask, and it's said.

    An image whose own name ends like a piece of a mask stays an image.
    """
    apart = layout == "apart"
    images, masks = (tmp_path / "images", tmp_path / "masks") if apart else (tmp_path, tmp_path)
    left, right = np.zeros((2, 3, 4), np.uint8)
    left[:, 0], right[:, 3] = 255, 255
    for name in ("benign (1)", "benign (2)", "odd_mask_1"):
        save(images / f"{name}.png", np.zeros((3, 4, 3), np.uint8))
        save(masks / f"{name}_mask.png", left)
    save(masks / "benign (2)_mask_1.png", right)
    data = opened(tmp_path)
    assert ids(data) == ["benign (1)", "benign (2)", "odd_mask_1"]
    drawn = [read_sample(record, data.rule).mask_HW for record in data.records]
    assert np.array_equal(
        [mask[0] for mask in drawn if mask is not None], [[1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]]
    )
    pieces = "benign (2)_mask.png, benign (2)_mask_1.png"
    said = f"1 image has several mask files ({pieces}): what any of them marks is foreground"
    assert said in data.notes
    save(masks / "benign (1)_gt.png", left)
    with pytest.raises(DataError, match="1 name stands for two masks"):
        opened(tmp_path)


@pytest.mark.parametrize("layout", ["apart", "beside"])
@pytest.mark.parametrize("names", [("gt", "gt_1"), ("gt_1", "gt_2"), ("mask_1", "mask_2")])
def test_numbered_masks_that_may_be_opinions_are_refused(
    save: Save, tmp_path: Path, layout: str, names: tuple[str, str]
) -> None:
    """Two readers, or planes of classes: only a mask with `_mask` beside it has pieces."""
    apart = layout == "apart"
    images, masks = (tmp_path / "images", tmp_path / "masks") if apart else (tmp_path, tmp_path)
    for image in "ab":
        save(images / f"{image}.png", np.zeros((3, 2, 3), np.uint8))
        for name in names:
            save(masks / f"{image}_{name}.png", MASK)
    with pytest.raises(DataError, match=r"no mask|no image|two masks|no images with masks"):
        opened(tmp_path)


def test_pieces_of_a_mask_are_for_single_images(save: Save, tmp_path: Path) -> None:
    """Stacks with several masks are refused."""
    for name in ("a", "a_mask", "a_mask_1"):
        save(tmp_path / f"{name}.tif", np.full((5, 4, 6), 255, np.uint8))
    with pytest.raises(DataError, match=r"a\.tif has 2 masks .*not for stacks of pages"):
        opened(tmp_path)


@pytest.mark.parametrize("split", ["", "train"])
def test_a_folder_for_each_image(save: Save, tmp_path: Path, split: str) -> None:
    """The Data Science Bowl of 2018 as it comes: one mask for each nucleus, any names."""
    for case, num in (("a1", 3), ("b2", 1), ("c3", 2)):
        folder = tmp_path / split / case
        save(folder / "images" / f"{case}.png", np.zeros((3, 4, 3), np.uint8))
        for column in range(num):
            mask = np.zeros((3, 4), np.uint8)
            mask[:, column] = 255
            save(folder / "masks" / f"{num}f{column}.png", mask)
    if split:
        save(tmp_path / "test" / "d4" / "images" / "d4.png", np.zeros((3, 4, 3), np.uint8))
    data = opened(tmp_path)
    assert ids(data) == [f"{split}/{case}".strip("/") for case in ("a1", "b2", "c3")]
    assert {record.split for record in data.records} == {split or None}
    areas = [read_sample(record, data.rule).mask_HW for record in data.records]
    assert [int(mask.sum()) for mask in areas if mask is not None] == [9, 3, 6]
    assert data.notes[1].endswith("*/images/ + " + (f"{split}/" if split else "") + "*/masks/")
    assert any("test/" in note for note in data.notes) == bool(split)


def test_a_folder_for_each_patient(fill: Fill, tmp_path: Path) -> None:
    """Several images in each: they pair by name in their own folder."""
    for patient in ("p1", "p2", "p3"):
        fill(tmp_path / patient, "scan1", "scan2")
    data = opened(tmp_path)
    assert ids(data)[:3] == ["p1/scan1", "p1/scan2", "p2/scan1"]
    assert all(record.further_masks == () for record in data.records)


def test_two_folders_with_pairs_may_be_two_data_sets(fill: Fill, tmp_path: Path) -> None:
    """Original and augmented, say: nobody wants them mixed unasked."""
    for version in ("original", "augmented"):
        fill(tmp_path / version, "a", "b")
    with pytest.raises(DataError, match="no images with masks found"):
        opened(tmp_path)


def test_names_that_do_not_work_out_for_every_file_pair_none(save: Save, tmp_path: Path) -> None:
    """One image too many, and a slip in one name: both are refused, naming the files."""
    for index in range(3):
        save(tmp_path / "images" / f"{index}_sat.png", np.zeros((3, 2, 3), np.uint8))
        save(tmp_path / "masks" / f"{index if index else 7}_mask.png", MASK)
    with pytest.raises(DataError, match="3 images have no mask"):
        opened(tmp_path)


@pytest.mark.parametrize("layout", ["apart", "beside"])
def test_a_lost_file_is_named_where_names_differ(save: Save, tmp_path: Path, layout: str) -> None:
    """One of many: the message isn't about all the others, which pair."""
    apart = layout == "apart"
    images, masks = (tmp_path / "images", tmp_path / "masks") if apart else (tmp_path, tmp_path)
    for index in range(30):
        save(images / f"{index}_sat.png", np.zeros((3, 2, 3), np.uint8))
        save(masks / f"{index}_mask.png", MASK)
    (masks / "7_mask.png").unlink()
    with pytest.raises(DataError, match=r": 1 image has no mask \(7_sat\.png\); images and"):
        opened(tmp_path, missing="refuse")
    data = opened(tmp_path)
    assert len(data.records) == 29
    assert any("1 image without mask left out" in note for note in data.notes)
    (images / "7_sat.png").unlink()
    (images / "8_sat.png").unlink()
    with pytest.raises(DataError, match=r": 1 mask has no image \(8_mask\.png\); images and"):
        opened(tmp_path)


def test_partnerless_files_are_named_with_their_folders(
    fill: Fill, save: Save, tmp_path: Path
) -> None:
    """Else nobody finds the one of a hundred folders."""
    fill(tmp_path, "day1/a", "day2/a")
    save(tmp_path / "images" / "day2" / "b.png")
    save(tmp_path / "masks" / "day3" / "c_mask.png")
    with pytest.raises(DataError, match=r"\(day2/b\.png\); .* \(day3/c_mask\.png\)"):
        opened(tmp_path)


def test_an_image_that_is_called_mask_pairs_with_its_namesake(fill: Fill, tmp_path: Path) -> None:
    """An equal name goes before a stripped one."""
    assert ids(opened(fill(tmp_path, "gas_mask", "gas"))) == ["gas", "gas_mask"]


def test_deeper_folders_pair_by_their_path(fill: Fill, tmp_path: Path) -> None:
    """Images in folders of images/ pair with those in the same folders of masks/."""
    assert ids(opened(fill(tmp_path, "day1/a", "day2/a"))) == ["day1/a", "day2/a"]


@pytest.mark.parametrize("inside", [True, False])
def test_ready_made_splits(fill: Fill, tmp_path: Path, inside: bool) -> None:
    """train/, valid/, test/ (around or inside images/ and masks/) are the official split."""
    for split in ("train", "valid", "test"):
        if inside:
            fill(tmp_path, f"{split}/1", f"{split}/2")
        else:
            fill(tmp_path, "1", "2", images=f"{split}/images", masks=f"{split}/masks")
    data = assign_splits(opened(tmp_path), SplitConfig(method="official"))
    assert [r.id for r in data.of_split("val")] == ["valid/1", "valid/2"]
    assert [r.id for r in data.of_split("test")] == ["test/1", "test/2"]


def test_splits_in_a_wrapping_folder_are_seen(save: Save, tmp_path: Path) -> None:
    """DS/train/a.jpg beside a_mask.png is more than images beside masks in any folder."""
    for split in ("train", "test"):
        save(tmp_path / "DS" / split / "a.jpg", np.zeros((3, 2, 3), np.uint8))
        save(tmp_path / "DS" / split / "a_mask.png", MASK)
    assert [(r.id, r.split) for r in opened(tmp_path).records] == [
        ("test/a", "test"),
        ("train/a", "train"),
    ]


@pytest.mark.parametrize("odd", ["testA/c", "loose"])
def test_splits_that_do_not_count_are_said(fill: Fill, tmp_path: Path, odd: str) -> None:
    """A folder that is no split, or an image in none, leaves open what is meant."""
    data = opened(fill(tmp_path, "train/a", "val/b", odd))
    assert ids(data) == sorted([odd, "train/a", "val/b"])
    assert not any(record.split for record in data.records)
    told = "testA/" if "/" in odd else "loose.png"
    note = f"not taken for splits: train/, val/ in images/, because of {told} there; "
    assert any(one.startswith(note) for one in data.notes)


def test_two_names_of_one_split_are_both_taken(fill: Fill, tmp_path: Path) -> None:
    """val/ and dev/: neither is lost."""
    data = opened(fill(tmp_path, "train/a", "val/b", "dev/c"))
    assert [(r.id, r.split) for r in data.records] == [
        ("dev/c", "val"),
        ("train/a", "train"),
        ("val/b", "val"),
    ]


def test_a_split_without_masks_is_left_out_and_said(fill: Fill, save: Save, tmp_path: Path) -> None:
    """A test folder of images alone, as competitions give, is left out and said."""
    fill(tmp_path, "1", images="train/images", masks="train/masks")
    save(tmp_path / "test" / "images" / "9.png")
    data = opened(tmp_path)
    assert ids(data) == ["train/1"]
    assert "test/ holds no images with masks: left out" in data.notes


def test_lists_beside_the_folders_are_the_split(fill: Fill, tmp_path: Path) -> None:
    """train.txt, val.txt and test.txt with a name a line, ending or not, are the split."""
    fill(tmp_path, "a", "b", "c")
    for split, name in (("train", "a.png"), ("val", "b"), ("test", "c")):
        (tmp_path / f"{split}.txt").write_text(f"{name}\n")
    assert [r.split for r in opened(tmp_path).records] == ["train", "val", "test"]
    (tmp_path / "val.txt").write_text("b\nd\n")
    with pytest.raises(DataError, match=r"1 images that aren't there \(d\)"):
        opened(tmp_path)
    (tmp_path / "val.txt").write_text("b\na\n")
    with pytest.raises(DataError, match="a is also listed for train"):
        opened(tmp_path)


def test_whatever_has_no_partner_is_named(fill: Fill, save: Save, tmp_path: Path) -> None:
    """Both ways: images without mask and masks without image, five names and the count."""
    fill(tmp_path, "a")
    for number in range(7):
        save(tmp_path / "images" / f"lone{number}.png")
    save(tmp_path / "masks" / "ghost_mask.png")
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    text = str(caught.value)
    assert "7 images have no mask (lone0.png, lone1.png, lone2.png, lone3.png, lone4.png" in text
    assert "and 2 more" in text
    assert "1 mask has no image (ghost_mask.png)" in text
    assert "\n" not in text


def test_one_name_for_two_images_is_refused(fill: Fill, save: Save, tmp_path: Path) -> None:
    """a.jpg beside a.png could both be the mask's image."""
    fill(tmp_path, "a")
    save(tmp_path / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"two images \(a\.jpg and a\.png\)"):
        opened(tmp_path)


def test_doubtful_names_count_only_where_no_better_one_is_there(
    fill: Fill, save: Save, tmp_path: Path
) -> None:
    """A folder of somebody's output is no rival of masks/."""
    fill(tmp_path, "a")
    save(tmp_path / "output" / "b.png", MASK)
    save(tmp_path / "raw" / "c.png", MASK)
    assert ids(opened(tmp_path)) == ["a"]


def test_two_folders_for_one_thing_are_refused(fill: Fill, tmp_path: Path) -> None:
    """images/ and img/ side by side: nobody knows which is meant."""
    fill(tmp_path, "a")
    fill(tmp_path, "a", images="img")
    with pytest.raises(DataError, match=r"images/ and img/ could each be the folder of images"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("train_images", "train_masks"),
        ("train", "train_labels"),
        ("train_img", "train_lab"),
        ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
        ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
        ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    ],
)
def test_folders_may_name_their_split(
    fill: Fill, save: Save, tmp_path: Path, images: str, masks: str
) -> None:
    """A pair for each split; images of a test without masks are left out, which is said."""
    fill(tmp_path, "a", "b", images=images, masks=masks)
    save(tmp_path / "test_images" / "c.png", np.zeros((3, 2, 3), np.uint8))
    data = opened(tmp_path)
    assert ids(data) == ["train/a", "train/b"]
    assert {record.split for record in data.records} == {"train"}
    assert any("test_images/ has no folder of masks" in note for note in data.notes)


def test_a_field_of_view_is_no_truth(fill: Fill, save: Save, tmp_path: Path) -> None:
    """Retinas come with mask/ beside what a hand drew; a split that has mask/ alone is left out."""
    fill(tmp_path / "training", "a", "b", images="images", masks="1st_manual")
    fill(tmp_path / "test", "c", images="images", masks="mask")
    for name in "ab":
        save(tmp_path / "training" / "mask" / f"{name}_training_mask.png", MASK)
    data = opened(tmp_path)
    assert ids(data) == ["training/a", "training/b"]
    assert all("1st_manual" in str(record.mask_path) for record in data.records)
    assert any("test/ is left out: its mask/ is something else" in note for note in data.notes)
    assert any("not used: test/ (2), training/mask/ (2)" in note for note in data.notes)


def test_folders_that_are_not_used_are_said(fill: Fill, save: Save, tmp_path: Path) -> None:
    """Nobody wonders where the other annotator's masks went."""
    fill(tmp_path, "a", images="images", masks="masks")
    save(tmp_path / "other_reader" / "a.png", MASK)
    assert any("not used: other_reader/ (1)" in note for note in opened(tmp_path).notes)


def test_folders_around_the_data_are_opened(fill: Fill, tmp_path: Path) -> None:
    """As archives are unpacked: data/data/images."""
    fill(tmp_path / "data" / "v2", "a", "b", images="images", masks="masks")
    assert ids(opened(tmp_path)) == ["a", "b"]
    for split, name in (("train", "a"), ("test", "b")):
        (tmp_path / "data" / "v2" / f"{split}.txt").write_text(name)
    assert [record.split for record in opened(tmp_path).records] == ["train", "test"]


def test_linked_folders_are_followed_and_loops_are_not(fill: Fill, tmp_path: Path) -> None:
    """Images on another disk count; a link to what is listed already, or around it, doesn't."""
    elsewhere, root = fill(tmp_path / "disk", "a", "b"), tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        (root / kind / "day1").symlink_to(elsewhere / kind)
        (root / kind / "again").symlink_to(root / kind / "day1")
        (root / kind / "round").symlink_to(root / kind)
        (root / kind / "up").symlink_to(root)
        (root / kind / "itself").symlink_to(root / kind / "itself")
    data = opened(root)
    assert len(ids(data)) == 2
    assert all(id_.endswith(("/a", "/b")) for id_ in ids(data))


def test_a_folder_that_wraps_itself_ends(tmp_path: Path) -> None:
    """A link round and round is followed once."""
    (tmp_path / "round").symlink_to(tmp_path)
    with pytest.raises(DataError, match="it holds round/"):
        opened(tmp_path)
    assert wrapped(tmp_path) == [tmp_path]


@pytest.mark.parametrize("place", ["", "DS/", "train/"])
def test_folders_of_other_files_are_said(save: Save, tmp_path: Path, place: str) -> None:
    """YOLO's boxes and MATLAB's files are no masks; who has them should hear it."""
    save(tmp_path / place / "images" / "a.png")
    (tmp_path / place / "labels").mkdir()
    for name in ("a.txt", "b.txt", "c.mat"):
        (tmp_path / place / "labels" / name).write_text("0 0.5 0.5 1 1")
    told = rf"it holds .*; {place}labels/ holds no images \(2 \.txt, 1 \.mat\)\. Accepted"
    with pytest.raises(DataError, match=told):
        opened(tmp_path)


def test_microscopes_own_files_are_named_with_the_export_that_works(tmp_path: Path) -> None:
    """A folder of CZI files says so; Zeiss's LSM is TIFF, and is read."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.czi").write_bytes(b"ZISRAWFILE" + bytes(600))
    with pytest.raises(DataError, match=r"1 \.czi: a Zeiss CZI file.*export it as OME-TIFF"):
        opened(tmp_path)
    for name, value in (("images", 9), ("masks", 255)):
        (tmp_path / name / "a.czi").unlink()
        pixels = np.zeros((8, 12), np.uint8)
        pixels[:3] = value
        tifffile.imwrite(tmp_path / name / "a.lsm", pixels)
    data = opened(tmp_path)
    mask_HW = read_sample(data.records[0], data.rule).mask_HW
    assert mask_HW is not None
    assert mask_HW.sum() == 36


def test_a_split_without_a_folder_of_masks_is_left_out(
    fill: Fill, save: Save, tmp_path: Path
) -> None:
    """images/test without masks/test, as challenges keep theirs back."""
    fill(tmp_path, "train/a", "val/b", images="images", masks="masks")
    save(tmp_path / "images" / "test" / "c.png", np.zeros((3, 2, 3), np.uint8))
    data = opened(tmp_path)
    assert ids(data) == ["train/a", "val/b"]
    assert any("there are no masks: left out" in note for note in data.notes)


def test_other_files_are_ignored_and_said(fill: Fill, tmp_path: Path) -> None:
    """Files that are no images are named in a note; hidden ones silently left."""
    fill(tmp_path, "a")
    (tmp_path / "images" / "notes.txt").write_text("x")
    (tmp_path / "images" / ".DS_Store").write_text("x")
    (tmp_path / "masks" / "Thumbs.db").write_text("x")
    data = opened(tmp_path)
    assert "ignored 1 file that is not an image: images/notes.txt" in data.notes


def test_stacks_become_pages_in_blocks(save: Save, tmp_path: Path) -> None:
    """Two loose stacks pair by ending; each page is a record, blocks of pages are groups."""
    pages = np.zeros((7, 4, 6), np.uint8)
    masks = pages.copy()
    masks[:, 0] = 255
    save(tmp_path / "training.tif", pages)
    save(tmp_path / "training_groundtruth.tif", masks)
    data = opened(tmp_path, page_group=3)
    assert [r.page for r in data.records] == list(range(7))
    assert [r.group for r in data.records] == [f"training-block{i // 3:04d}" for i in range(7)]
    assert any("blocks of 3" in note for note in data.notes)
    sample = read_sample(data.records[6], data.rule)
    assert sample.mask_HW is not None
    assert sample.mask_HW.sum() == 6


def test_stacks_of_other_lengths_are_refused(save: Save, tmp_path: Path) -> None:
    """A stack whose mask has fewer pages can't be paired."""
    save(tmp_path / "a.tif", np.zeros((5, 4, 6), np.uint8))
    save(tmp_path / "a_mask.tif", np.zeros((4, 4, 6), np.uint8))
    with pytest.raises(DataError, match=r"a\.tif has 5 pages, but its mask a_mask\.tif has 4"):
        opened(tmp_path)


def test_real_stack(mitochondria: Path) -> None:
    """The EPFL stack is 100 pages, in ten blocks that no split tears."""
    data = assign_splits(opened(mitochondria), SplitConfig())
    assert len(data.records) == 100
    assert len({(r.group, r.split) for r in data.records}) == 10
    assert data.rule.foreground == frozenset({255})


def test_real_nuclei(nuclei: Path) -> None:
    """Half of the Data Science Bowl pairs without a word too much."""
    data = opened(nuclei)
    assert len(data.records) == 332
    assert data.notes[1] == "images and masks from images/ + masks/"


def test_images_whose_masks_are_yet_to_be_made(fill: Fill, save: Save, tmp_path: Path) -> None:
    """They are left out and counted, taken for empty, or refused, as `data.missing` says."""
    root = fill(tmp_path, "a", "b")
    for number in range(7):
        save(root / "images" / f"new{number}.png", np.zeros((4, 6, 3), np.uint8))
    data = opened(root)
    assert ids(data) == ["a", "b"]
    assert any("7 images without mask left out" in note for note in data.notes)
    whole = opened(root, missing="empty")
    assert len(whole.records) == 9
    sample = read_sample(whole.records[-1], whole.rule)
    assert sample.mask_HW is not None
    assert not sample.mask_HW.any()
    with pytest.raises(DataError, match="7 images have no mask"):
        opened(root, missing="refuse")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("**/*_raw.png", "truth/*.tif"),
        (r".*/(?P<key>\d+)_raw\.png", r"truth/(?P<key>\d+)\.tif"),
    ],
)
def test_patterns_pair_across_folders(save: Save, tmp_path: Path, images: str, masks: str) -> None:
    """Any layout: what `*` or the group stands for joins images and masks."""
    for day in (1, 2):
        save(tmp_path / f"day {day}" / f"{day}_raw.png", np.zeros((3, 2, 3), np.uint8))
        save(tmp_path / f"day {day}" / f"{day}_seen.png", np.zeros((3, 2, 3), np.uint8))
        save(tmp_path / "truth" / f"{day}.tif", MASK)
    data = opened(tmp_path, images=images, masks=masks)
    assert data.kind == "patterns"
    assert ids(data) == ["1", "2"]
    assert [r.image_path.name for r in data.records] == ["1_raw.png", "2_raw.png"]
    (tmp_path / "day 2" / "2_raw.png").unlink()
    with pytest.raises(DataError, match=r"1 mask has no image of the same key \(2\)"):
        opened(tmp_path, images=images, masks=masks)
    with pytest.raises(DataError, match="fits none of 5 images"):
        opened(tmp_path, images="*.bmp", masks=masks)
    with pytest.raises(ValueError, match="both images and masks"):
        opened(tmp_path, images=images)


@pytest.mark.parametrize("patterns", [{}, {"images": "images/*.tif", "masks": "masks/*.tif"}])
def test_stacks_without_a_mask_may_be_empty_pages(
    save: Save, tmp_path: Path, patterns: dict[str, str]
) -> None:
    """Each page of a stack that has no mask is an image without an object."""
    for name in ("images/a", "images/b", "masks/a"):
        path = tmp_path / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, np.stack([MASK] * 5), photometric="minisblack")
    data = opened(tmp_path, missing="empty", **patterns)
    assert [(record.page, record.shapes) for record in data.records[5:]] == [
        (page, ()) for page in range(5)
    ]
    for record in data.records[5:]:
        mask_HW = read_sample(record, data.rule).mask_HW
        assert mask_HW is not None
        assert not mask_HW.any()
