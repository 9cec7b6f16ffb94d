"""Plant 20 defects in a copy of a data set and see which of them `binseg check` finds.

    python benchmarks/doctor.py --data nuclei/ --images 300
    python benchmarks/doctor.py

The clean copy is checked first: its findings are the false alarms (or the data's own faults). The
defects are 19 in a folder of train/ and val/, and a torn group in a manifest, as folders have none.
"""

import argparse
import csv
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from binseg.config import DataConfig
from binseg.data import Dataset, MaskRule, open_dataset, read_sample
from binseg.pipelines.check_data import CheckResult, check
from binseg.report import for_display
from binseg.types import Finding, Record

VAL_EVERY = 5
"""Every fifth image validates."""


@dataclass(kw_only=True)
class Copy:
    """A folder of train/ and val/, and the images in it that have not been touched yet."""

    root: Path
    free: list[tuple[str, str]] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def take(self, split: str = "train", *, plain: bool = True) -> tuple[Path, Path, str]:
        """Give image, mask and id of an untouched pair of a split, with some of both classes."""
        for place, (where, name) in enumerate(self.free):
            image, mask = self.paths(where, name)
            share = float((np.asarray(Image.open(mask)) > 0).mean())
            if where == split and (not plain or 0.05 < share < 0.6):
                del self.free[place]
                return image, mask, f"{where}/{name}"
        raise SystemExit("too few images for 20 defects")

    def paths(self, split: str, name: str) -> tuple[Path, Path]:
        """Where a pair lies, or is to lie."""
        return (
            self.root / split / "images" / f"{name}.png",
            self.root / split / "masks" / f"{name}.png",
        )

    def add(self, split: str, name: str, image: Image.Image, mask: Image.Image) -> str:
        """Write a new pair."""
        image_path, mask_path = self.paths(split, name)
        image.save(image_path)
        mask.save(mask_path)
        return f"{split}/{name}"


@dataclass(frozen=True, kw_only=True)
class Defect:
    """What was planted: any of these kinds of finding must name one of these ids or files."""

    name: str
    codes: frozenset[str]
    ids: frozenset[str]

    def found_in(self, findings: tuple[Finding, ...]) -> bool:
        """Tell whether a finding of the right kind names it."""
        return any(x.code in self.codes and self.ids & {*x.ids, *x.files} for x in findings)


Planter = Callable[[Copy], tuple[str, str]]
"""Changes the copy; gives the codes that may be found, parted by blanks, and the id."""


def _mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def no_mask(copy: Copy) -> tuple[str, str]:
    """An image whose mask is gone."""
    image, mask, _ = copy.take()
    mask.unlink()
    return "no-mask-file", image.relative_to(copy.root).as_posix()


def no_image(copy: Copy) -> tuple[str, str]:
    """A mask whose image is gone."""
    image, mask, _ = copy.take()
    image.unlink()
    return "no-image-file", mask.relative_to(copy.root).as_posix()


def other_size(copy: Copy) -> tuple[str, str]:
    """A mask a few pixels smaller than its image."""
    _, mask, id_ = copy.take()
    Image.fromarray(_mask(mask)[:-7, :-3]).save(mask)
    return "size", id_


def strange_value(copy: Copy) -> tuple[str, str]:
    """A mask with a third value."""
    _, mask, id_ = copy.take()
    labels = _mask(mask).copy()
    labels[:9, :9] = 77
    Image.fromarray(labels).save(mask)
    return "values", id_


def empty_mask(copy: Copy) -> tuple[str, str]:
    """A mask without foreground."""
    _, mask, id_ = copy.take()
    Image.fromarray(_mask(mask) * 0).save(mask)
    return "empty-mask", id_


def full_mask(copy: Copy) -> tuple[str, str]:
    """A mask without background."""
    _, mask, id_ = copy.take()
    Image.fromarray(_mask(mask) * 0 + 255).save(mask)
    return "full-mask", id_


def turned(copy: Copy) -> tuple[str, str]:
    """An image that asks to be turned upside down."""
    image, mask, id_ = copy.take()
    photo = Image.open(image).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3
    photo.transpose(Image.Transpose.ROTATE_180).save(image, exif=exif)
    del mask
    return "turned", id_


def truncated(copy: Copy) -> tuple[str, str]:
    """An image of which half is missing."""
    image, _, id_ = copy.take()
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    return "unreadable", id_


def no_bytes(copy: Copy) -> tuple[str, str]:
    """A mask file of no bytes."""
    _, mask, id_ = copy.take()
    mask.write_bytes(b"")
    return "unreadable", id_


def text_file(copy: Copy) -> tuple[str, str]:
    """An error page saved as an image."""
    image, _, id_ = copy.take()
    image.write_text("<html>404 not found</html>", encoding="utf-8")
    return "unreadable", id_


def copy_within(copy: Copy) -> tuple[str, str]:
    """The same image under two names in one split."""
    image, mask, _ = copy.take()
    return "duplicate", copy.add("train", "planted-copy", Image.open(image), Image.open(mask))


def copy_across(copy: Copy) -> tuple[str, str]:
    """The same image in two splits."""
    image, mask, _ = copy.take()
    return "leak", copy.add("val", "planted-leak", Image.open(image), Image.open(mask))


def encoded_anew(copy: Copy) -> tuple[str, str]:
    """An image that comes back in val as a poor JPEG."""
    image, mask, _ = copy.take()
    id_ = copy.add("val", "planted-jpeg", Image.open(image), Image.open(mask))
    path = copy.paths("val", "planted-jpeg")[0]
    Image.open(image).convert("RGB").save(path.with_suffix(".jpg"), quality=40)
    path.unlink()
    return "near-leak", id_


def resized(copy: Copy) -> tuple[str, str]:
    """An image that comes back in val at 60% of its size."""
    image, mask, _ = copy.take()
    photo, labels = Image.open(image), Image.open(mask)
    size = (round(photo.width * 0.6), round(photo.height * 0.6))
    nearest = Image.Resampling.NEAREST
    return "near-leak", copy.add(
        "val", "planted-small", photo.resize(size), labels.resize(size, nearest)
    )


def flipped(copy: Copy) -> tuple[str, str]:
    """An image that comes back in val as in a mirror."""
    image, mask, _ = copy.take()
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return "near-leak", copy.add(
        "val",
        "planted-mirror",
        Image.open(image).transpose(mirror),
        Image.open(mask).transpose(mirror),
    )


def patches(copy: Copy) -> tuple[str, str]:
    """Two halves of one image, one in each split."""
    image, mask, _ = copy.take(plain=False)
    photo, labels = Image.open(image), Image.open(mask)
    half = photo.width // 2
    id_ = ""
    for split, left in (("train", 0), ("val", half)):
        box = (left, 0, left + half, photo.height)
        id_ = copy.add(split, f"planted_x{left}_y0", photo.crop(box), labels.crop(box))
    return "patch-seam", id_


def shifted(copy: Copy) -> tuple[str, str]:
    """A mask that lies 6% of the image's side beside its object."""
    _, mask, id_ = copy.take()
    _shift(mask)
    return "shifted", id_


def _shift(mask: Path) -> None:
    labels = _mask(mask)
    step = round(0.06 * max(labels.shape))
    moved = np.zeros_like(labels)
    moved[step:, step:] = labels[:-step, :-step]
    Image.fromarray(moved).save(mask)


def _rate_of_shifts(copy: Copy, num: int) -> str:
    """Shift as many masks more, and count those that are found."""
    pairs = [(mask, id_) for _, mask, id_ in (copy.take() for _ in range(num))]
    for mask, _ in pairs:
        _shift(mask)
    result = check(str(copy.root))
    named = {id_ for x in result.findings if x.code in {"shifted", "all-shifted"} for id_ in x.ids}
    return f"of {num} masks shifted alike, {len(named & {id_ for _, id_ in pairs})} are found"


def sixteen_bits(copy: Copy) -> tuple[str, str]:
    """One 16-bit grey image among 8-bit ones."""
    image, _, id_ = copy.take()
    grey = np.asarray(Image.open(image).convert("L")).astype(np.uint16) * 257
    tifffile.imwrite(image.with_suffix(".tif"), grey, photometric="minisblack", metadata=None)
    image.unlink()
    return "mixed-types", id_


def scribble(copy: Copy) -> tuple[str, str]:
    """A mask of a hundred specks."""
    _, mask, id_ = copy.take()
    labels = _mask(mask) * 0
    height, width = labels.shape
    for row in np.linspace(3, height - 9, 12).astype(int):
        for column in np.linspace(3, width - 9, 12).astype(int):
            labels[row : row + 6, column : column + 6] = 255
    Image.fromarray(labels).save(mask)
    return "outlier misfit", id_


PLANTERS: tuple[Planter, ...] = (
    no_mask,
    no_image,
    other_size,
    strange_value,
    empty_mask,
    full_mask,
    turned,
    truncated,
    no_bytes,
    text_file,
    copy_within,
    copy_across,
    encoded_anew,
    resized,
    flipped,
    patches,
    shifted,
    sixteen_bits,
    scribble,
)


def main() -> int:
    """Check the clean copy and the planted one, and print what was found; 1 if one is missed."""
    options = _arguments()
    dataset = open_dataset(DataConfig(path=options.data))
    step = max(1, len(dataset.records) // options.images)
    records = dataset.records[::step]
    dataset = Dataset(kind="folder", root=dataset.root, records=records, rule=dataset.rule)
    with tempfile.TemporaryDirectory() as temporary:
        clean = _copy(dataset, Path(temporary) / "clean", options.seed)
        wall, cpu = time.perf_counter(), time.process_time()
        result = check(str(clean.root))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{len(records)} images of {Path(options.data).name}")
        thousand = 1000 / len(records)
        print(f"seconds per 1,000: {wall * thousand:.1f} on the clock, {cpu * thousand:.1f} of CPU")
        _tell("clean copy", result)
        sick = Path(temporary) / "sick"
        shutil.copytree(clean.root, sick)
        clean.root = sick
        defects = [_planted(planter, clean) for planter in PLANTERS]
        result = check(str(sick), page=options.html)
        torn, of_manifest = _torn_group(Path(temporary))
        lines = [(defect, defect.found_in(result.findings)) for defect in defects]
        lines.append((torn, torn.found_in(of_manifest.findings)))
        for number, (defect, found) in enumerate(lines, start=1):
            print(f"{number:3} {'found ' if found else 'MISSED'} {defect.name}")
        num_found = sum(found for _, found in lines)
        print(f"found {num_found} of {len(lines)}")
        _tell("planted copy", result)
        if options.shifts:
            print(_rate_of_shifts(clean, options.shifts))
    if options.json:
        options.json.write_text(json.dumps(result.as_dict(), indent=2), encoding="utf-8")
    return 0 if num_found == len(lines) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="synthetic", help="any data set")
    parser.add_argument("--images", type=int, default=300, help="take so many, evenly spread")
    parser.add_argument("--seed", type=int, default=0, help="of which images are harmed")
    parser.add_argument("--shifts", type=int, default=0, help="then shift so many masks more")
    parser.add_argument("--html", type=Path, help="write the planted copy's page here")
    parser.add_argument("--json", type=Path, help="write the planted copy's findings here")
    return parser.parse_args()


def _copy(dataset: Dataset, root: Path, seed: int) -> Copy:
    copy = Copy(root=root, random=np.random.default_rng(seed))
    for split in ("train", "val"):
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
    for number, record in enumerate(dataset.records):
        split = "val" if number % VAL_EVERY == 0 else "train"
        _write(record, dataset.rule, copy, split)
    copy.random.shuffle(copy.free)
    return copy


def _write(record: Record, rule: MaskRule, copy: Copy, split: str) -> None:
    sample = read_sample(record, rule)
    assert sample.mask_HW is not None
    name = record.id.replace("/", "-")
    mask = Image.fromarray(sample.mask_HW.astype(np.uint8) * 255)
    copy.add(split, name, Image.fromarray(for_display(sample.image_HWC)), mask)
    copy.free.append((split, name))


def _planted(planter: Planter, copy: Copy) -> Defect:
    codes, id_ = planter(copy)
    name = (planter.__doc__ or "").strip()
    return Defect(name=name, codes=frozenset(codes.split()), ids=frozenset({id_}))


def _torn_group(folder: Path) -> tuple[Defect, CheckResult]:
    """A manifest of the clean copy with one group in two splits."""
    root = folder / "clean"
    path = root / "manifest.csv"
    rows = []
    for split in ("train", "val"):
        for image in sorted((root / split / "images").iterdir())[:20]:
            name = image.relative_to(root).as_posix()
            rows.append([name, name.replace("/images/", "/masks/"), image.stem, split])
    rows[0][2] = rows[-1][2] = "planted-group"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "mask", "group", "split"], *rows])
    ids = frozenset({rows[0][0].rpartition(".")[0]})
    defect = Defect(name="A group in two splits.", codes=frozenset({"torn-group"}), ids=ids)
    return defect, check(str(path))


def _tell(title: str, result: CheckResult) -> None:
    print(f"{title}:")
    for (severity, code), num in Counter((x.severity, x.code) for x in result.findings).items():
        first = next(x for x in result.findings if (x.severity, x.code) == (severity, code))
        print(f"    {severity} {code}: {num}, as {first.text[:100]} ({', '.join(first.ids[:3])})")


if __name__ == "__main__":
    raise SystemExit(main())
