"""The doctor as a whole: sound folders pass, each planted fault is named."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.config import DataConfig
from binseg.data import assign_splits, open_dataset
from binseg.datacheck import CHECKS, Look, examine, foreground_share, take_in, training_checks
from binseg.types import Finding, Record

Draw = Callable[..., tuple[np.ndarray, np.ndarray]]


def findings_of(path: Path) -> dict[str, Finding]:
    intake = take_in(DataConfig(path=str(path)))
    assert intake.dataset is not None
    return {x.code: x for x in (*intake.findings, *examine(intake.dataset).findings)}


def paths(root: Path, id_: str) -> tuple[Path, Path]:
    split, name = id_.split("/")
    return root / split / "images" / f"{name}.png", root / split / "masks" / f"{name}.png"


def test_a_sound_folder_has_no_findings(sound: Path) -> None:
    """24 sound pairs, nothing to say."""
    assert findings_of(sound) == {}


def test_one_wound_does_not_hide_the_others(sound: Path) -> None:
    """A missing mask, a strange value, a cut file and a wrong size are all found at once."""
    paths(sound, "train/t00")[1].unlink()
    labels = np.asarray(Image.open(paths(sound, "train/t01")[1])).copy()
    labels[0, 0] = 9
    Image.fromarray(labels).save(paths(sound, "train/t01")[1])
    cut = paths(sound, "train/t02")[0]
    cut.write_bytes(cut.read_bytes()[:300])
    Image.fromarray(labels[:50] * 0).save(paths(sound, "val/v0")[1])
    found = findings_of(sound)
    assert found["no-mask-file"].files == ("train/images/t00.png",)
    assert found["values"].ids == ("train/t01",)
    assert found["unreadable"].ids == ("train/t02",)
    assert found["size"].ids == ("val/v0",)
    assert found["size"].files == ("val/images/v0.png", "val/masks/v0.png")


def test_leaks(sound: Path) -> None:
    """The same image, and its mirror image, in two splits are errors that name both."""
    for name, source, turn in (("same", "t03", False), ("mirror", "t04", True)):
        for old, new in zip(
            paths(sound, f"train/{source}"), paths(sound, f"val/{name}"), strict=True
        ):
            pixels = np.asarray(Image.open(old))
            Image.fromarray(pixels[:, ::-1] if turn else pixels).save(new)
    found = findings_of(sound)
    assert found["leak"].ids == ("train/t03", "val/same")
    assert found["near-leak"].ids == ("train/t04", "val/mirror")
    assert {found[code].severity for code in ("leak", "near-leak")} == {"error"}


def test_a_mask_under_two_images(sound: Path) -> None:
    """A mask that was copied to another image is told; it fits that image nowhere."""
    source, target = paths(sound, "train/t05")[1], paths(sound, "train/t06")[1]
    target.write_bytes(source.read_bytes())
    assert findings_of(sound)["shared-mask"].ids == ("train/t05", "train/t06")


def test_torn_groups_are_named(sound: Path) -> None:
    """Training refuses a group in two splits; the doctor goes on and names its images."""
    rows = ["image,mask,group,split"]
    for id_, group, split in (
        ("train/t00", "a", "train"),
        ("train/t01", "b", "train"),
        ("val/v0", "a", "val"),
    ):
        image, mask = (path.relative_to(sound).as_posix() for path in paths(sound, id_))
        rows.append(f"{image},{mask},{group},{split}")
    manifest = sound / "list.csv"
    manifest.write_text("\n".join(rows), encoding="utf-8")
    found = findings_of(manifest)
    assert set(found) == {"torn-group"}
    assert found["torn-group"].ids == ("train/images/t00", "val/images/v0")


def test_blank_pages_are_no_leak(tmp_path: Path) -> None:
    """Pages of a stack that show nothing are alike without being copies."""
    pages = np.random.default_rng(0).integers(0, 255, (8, 40, 48), np.uint8)
    pages[[1, 6]] = 7
    masks = np.zeros_like(pages)
    masks[:, 8:20, 9:30] = 255
    for name, stack in (("a", pages), ("b", masks)):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack")
    rows = ["image,mask,page,split"]
    rows += [f"a.tif,b.tif,{page},{'train' if page < 4 else 'val'}" for page in range(8)]
    (tmp_path / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    assert "leak" not in findings_of(tmp_path)


def test_a_lost_file_does_not_part_names_that_differ(sound: Path) -> None:
    """Images and masks with endings of their own: one mask is missing, the rest is taken."""
    for path in sorted(sound.glob("*/*/*.png")):
        ending = "sat" if path.parent.name == "images" else "mask"
        path.rename(path.with_stem(f"{path.stem}_{ending}"))
    paths(sound, "train/t07_mask")[1].unlink()
    intake = take_in(DataConfig(path=str(sound)))
    assert intake.dataset is not None
    assert len(intake.dataset.records) == 23
    assert [x.files for x in intake.findings] == [("train/images/t07_sat.png",)]


def test_all_files_of_a_mask_tell_its_values(tmp_path: Path) -> None:
    """Masks with a further piece of another value are the unusual ones, and are named."""
    line = np.eye(20, dtype=np.uint8)
    for name in "abcde":
        Image.fromarray(line).save(tmp_path / f"{name}.png")
        Image.fromarray(line * 255).save(tmp_path / f"{name}_mask.png")
    for name in "ab":
        Image.fromarray(line * 9).save(tmp_path / f"{name}_mask_1.png")
    assert findings_of(tmp_path)["values"].ids == ("b",)


def test_a_training_hears_of_equal_files_once(sound: Path) -> None:
    """Equal files across splits are one leak, not a near one, too; a sound folder passes."""
    config = DataConfig(path=str(sound))
    assert training_checks(assign_splits(open_dataset(config), config.split)) == ()
    for old, new in zip(paths(sound, "train/t03"), paths(sound, "val/v9"), strict=True):
        new.write_bytes(old.read_bytes())
    (finding,) = training_checks(assign_splits(open_dataset(config), config.split))
    assert (finding.code, finding.ids) == ("leak", ("train/t03", "val/v9"))


def test_what_cannot_be_opened_is_one_finding(tmp_path: Path) -> None:
    """A folder that isn't there is an answer, not an exception."""
    intake = take_in(DataConfig(path=str(tmp_path / "nowhere")))
    assert intake.dataset is None
    assert [x.code for x in intake.findings] == ["unusable"]


def test_masks_nobody_can_read_leave_the_images(sound: Path) -> None:
    """Soft masks are an error; copies among the images are still found."""
    for number, mask in enumerate(sorted(sound.glob("*/masks/*.png"))):
        pixels = np.asarray(Image.open(mask)).copy()
        pixels[0, : 3 + number] = np.arange(1, 4 + number)
        Image.fromarray(pixels).save(mask)
    paths(sound, "val/v0")[0].write_bytes(paths(sound, "train/t00")[0].read_bytes())
    found = findings_of(sound)
    assert found["values"].severity == "error"
    assert found["leak"].ids == ("train/t00", "val/v0")


def test_the_share_of_foreground_counts_pixels(sound: Path) -> None:
    """Many small full crops and one large empty image: the pixels are what is told."""
    look = Look(
        record=Record(id="a", image_path=sound), height=1, width=1, channels=1, dtype="uint8",
        turned=False, mask_turned=False, image_hash="", scale=1.0,
        thumb_SS=np.zeros((1, 1), np.uint8), core_TT=np.zeros((1, 1), np.uint8),
    )  # fmt: skip
    crops = [replace(look, foreground=1.0, num_valid=100)] * 9
    empty = replace(look, foreground=0.0, num_valid=9100)
    ignored = replace(look, foreground=0.0, num_valid=0)
    assert foreground_share([*crops, empty, ignored, look]) == 0.09
    assert foreground_share([look, ignored]) == 0.0


def test_turned_images_blame_masks_only_where_they_are_not(sound: Path) -> None:
    """A mask that is turned like its image is nobody's fault."""
    note = Image.Exif()
    note[0x0112] = 3
    image, mask = paths(sound, "train/t00")
    for path in (image, mask):
        Image.open(path).save(path, exif=note)
    text = findings_of(sound)["turned"].text
    assert "turned by an EXIF note" in text
    assert "mask" not in text
    Image.open(mask).transpose(Image.Transpose.ROTATE_180).save(mask)
    assert "1 without such a note in the mask" in findings_of(sound)["turned"].text


def test_the_table_holds_every_finding(sound: Path) -> None:
    """Severity, advice and title of a finding are those of its row; codes are never reused."""
    paths(sound, "val/v0")[0].write_bytes(paths(sound, "train/t00")[0].read_bytes())
    finding = findings_of(sound)["leak"]
    row = CHECKS["leak"]
    assert (finding.severity, finding.advice) == (row.severity, row.advice)
    assert all(check.title for check in CHECKS.values())


def test_inverted_masks_are_a_warning(sound: Path) -> None:
    """One inverted mask among right ones is named, as it is when the data is opened."""
    assert "inverted" not in findings_of(sound)
    _, mask = paths(sound, "train/t00")
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    found = findings_of(sound)["inverted"]
    assert found.severity == "warning"
    assert "1 mask looks inverted beside the others" in found.text
    assert mask.name in found.text


def _numbered(root: Path, draw: Draw, num: int, *, off: int) -> Path:
    """Write images with one disc each, and masks `off` numbers away from theirs."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(num):
        image_HW3, _ = draw(number + 100)
        mask_HW = draw(number + off + 100)[1]
        Image.fromarray(image_HW3).save(root / "images" / f"im{number}.png")
        Image.fromarray(mask_HW).save(root / "masks" / f"im{number}.png")
    return root


@pytest.mark.parametrize(("off", "way"), [(1, "after"), (-1, "before")])
def test_masks_off_by_one_in_numbering_are_an_error(
    photo: Draw, tmp_path: Path, off: int, way: str
) -> None:
    """Numbers count as numbers: im9 comes before im10."""
    data = _numbered(tmp_path / "data", photo, 24, off=off)
    found = findings_of(data)["off-by-one"].text
    assert found == f"the masks are off by one: by their outlines they fit the image {way} theirs"
    assert "off-by-one" not in findings_of(_numbered(tmp_path / "right", photo, 24, off=0))


def test_a_split_without_foreground_is_a_warning(sound: Path) -> None:
    """Its scores say nothing."""
    for path in (sound / "val" / "masks").iterdir():
        Image.fromarray(np.zeros((96, 112), np.uint8)).save(path)
    found = findings_of(sound)["empty-split"]
    assert found.text == "none of the val masks holds foreground: val scores will say nothing"
    assert found.severity == "warning"


def test_cases_in_two_splits_are_told_by_their_names(
    folder_of: Callable[[Path, dict[str, int]], Path], tmp_path: Path
) -> None:
    """Where the split is given, nothing is regrouped, but said."""
    seeds = {f"{split}/p{case}_{n}": 10 * case + n + 5 * (split == "val")
             for case in range(6) for split in ("train", "val") for n in range(2)}  # fmt: skip
    found = findings_of(folder_of(tmp_path / "data", seeds))["torn-names"]
    assert found.text.startswith("6 cases are in more than one split, by their names (train/p0_0")


def test_twelve_bits_of_sixteen_are_a_note(sound: Path) -> None:
    """A recipe that divides by 65535 would leave the network 16 grey levels."""
    for path in sorted(sound.rglob("images/*.png")):
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L")).astype(np.uint16) * 16
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), grey)
    found = findings_of(sound)["narrow-range"]
    assert re.search(r"intensity dtype keeps 1\d grey levels", found.text)
    assert "percentile" in found.advice


@pytest.mark.parametrize(("step", "is_hidden"), [(100, True), (2000, False)])
def test_objects_that_eight_bits_hide_are_a_warning(
    tmp_path: Path, step: int, *, is_hidden: bool
) -> None:
    """A step of 100 on a slope of 54,000 (less its ends) is 0.47 of 255 levels: it is lost."""
    random = np.random.default_rng(0)
    for number in range(6):
        y, x = np.mgrid[:80, :90]
        mask_HW = np.hypot(y - 40, x - 35 - 3 * number) < 15
        image_HW = 2000 + 60000 * (x + y) / 170 + step * mask_HW + random.normal(0, 20, x.shape)
        for folder, pixels in (("images", image_HW.astype(np.uint16)), ("masks", mask_HW)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    dataset = take_in(DataConfig(path=str(tmp_path))).dataset
    assert dataset is not None
    found = [one.text for one in examine(dataset).findings if one.code == "hidden-steps"]
    assert bool(found) == is_hidden
    assert bool(found) == any(one.code == "hidden-steps" for one in training_checks(dataset))
    if found:
        assert "by 0.47 of the 255 levels" in found[0]
