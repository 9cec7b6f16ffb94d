"""Splits: images that train, that choose the model, that test it; groups are never torn apart.

A record without a split is left out on purpose: a page of a stack in the gap between two splits.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from binseg.config.recipe import SplitConfig
from binseg.data.dataset import SPLITS, Dataset, counted, name_some
from binseg.data.masks import MaskRule
from binseg.data.samples import read_sample
from binseg.errors import DataError
from binseg.storage import read_bytes, write_text
from binseg.types import Record, Split

_OTHER_NAMES: Mapping[str, Split] = {
    "training": "train",
    "testing": "test",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
_LEFT_OUT = "none"  # word in a split file for an image in no split


def parse_split(name: str) -> Split | None:
    """Read a split's name as people write it; None where it is none.

    >>> parse_split("Validation"), parse_split("trian")
    ('val', None)
    """
    lower = name.strip().lower()
    return lower if lower in SPLITS else _OTHER_NAMES.get(lower)


def assign_splits(dataset: Dataset, config: SplitConfig) -> Dataset:
    """Give every record a split (none in a gap), whatever their order, and say how; DataError."""
    has_own = any(record.split is not None for record in dataset.records)
    method = config.method
    if method == "auto":
        method = "official" if has_own else "ratio"
    split_of: Mapping[str, Split | None]
    told = " / ".join(f"{share:g}" for share in config.ratios)
    ignored = "; the data's own split is NOT used" if has_own else ""
    if method == "official":
        split_of, note = _official(dataset, config)
    elif method == "file":
        split_of, note = _from_file(dataset, Path(config.file or ""))
    elif method == "kfold":
        split_of, note = _by_fold(dataset, config)
    elif method == "ratio":
        split_of = _by_ratio(dataset.records, config.ratios, seed=config.seed)
        note = f"split by ratio {told}, seed {config.seed}{ignored}"
    else:
        split_of = _by_block(dataset.records, config.ratios)
        note = f"split by block {told}, in the order of names and pages{ignored}"
    records = tuple(replace(record, split=split_of[record.id]) for record in dataset.records)
    _refuse_torn_groups(records, dataset.root)
    if config.gap:
        records = _with_gap(records, config.gap, root=dataset.root, method=method)
    sizes = Counter(record.split for record in records)
    counts = ", ".join(f"{sizes[name]} {name}" for name in SPLITS if sizes[name])
    if method == "ratio" and config.ratios[2] and not sizes["test"]:
        is_stack = any(record.page is not None for record in records)
        advice = "; a lower data.page_group makes more" if is_stack else ""
        counts += f", no test ({len({*map(_group, records)})} groups are too few{advice})"
    if sizes[None]:
        counts += f", {sizes[None]} left out"
        counts += f" (gap of {config.gap} pages)" if config.gap else ""
    return replace(dataset, records=records, notes=(*dataset.notes, f"{note}: {counts}"))


def write_split(
    path: Path, dataset: Dataset, *, content_of: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write id, split, group and (by id, where it is given) content of every record as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "split", "group", "content"])
    for one in sorted(dataset.records, key=lambda r: r.id):
        content = content_of.get(one.id, "")
        writer.writerow([one.id, one.split or _LEFT_OUT, one.group or "", content])
    write_text(path, text.getvalue())


def read_contents(path: Path) -> dict[str, str]:
    """Read from a split file the content of each id, where it tells."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return {row["id"]: row["content"] for row in csv.DictReader(file) if row.get("content")}


def read_split(path: Path) -> dict[str, Split | None]:
    """Read a split file: each id's split, None for `none`; DataError with up to 5 problems."""
    # Names of files may hold bytes that aren't UTF-8.
    reader = read_table(path, "split file", errors="surrogateescape")
    if not {"id", "split"} <= set(reader.fieldnames or ()):
        columns = name_some(reader.fieldnames or ["none"])
        raise DataError(f"{path}: needs the columns id, split; it has {columns}")
    split_of: dict[str, Split | None] = {}
    problems: list[str] = []
    for line, row in enumerate(rows_of(reader, path), 2):
        id_, name = row["id"] or "", row["split"] or ""
        split = parse_split(name)
        if split is None and name.strip().lower() != _LEFT_OUT:
            problems.append(f"line {line}: {name!r} is not train, val or test")
        elif split_of.setdefault(id_, split) != split:
            problems.append(f"line {line}: {id_} is also in {split_of[id_] or _LEFT_OUT}")
    if problems:
        raise DataError(f"{path}: {name_some(problems)}")
    return split_of


def read_table(path: Path, noun: str, *, errors: str = "strict") -> "csv.DictReader[str]":
    """Open a UTF-8 table, parted by comma, semicolon or tab; DataError if it can't be read."""
    try:
        data = read_bytes(path)
        first = data.partition(b"\n")[0].decode("utf-8-sig")  # other encodings show in it
        text = data.decode("utf-8-sig", errors=errors)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text; save it as CSV UTF-8"
        raise DataError(f"{path}: the {noun} can't be read: {why}") from None
    delimiter = max(",;\t", key=first.count)
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)


def rows_of(reader: "csv.DictReader[str]", path: Path) -> Iterator[dict[str, str]]:
    """Give a table's rows; a `DataError` tells of a cell that no table of names has."""
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num + 1} can't be read: {error}") from None


def _official(dataset: Dataset, config: SplitConfig) -> tuple[dict[str, Split], str]:
    records = dataset.records
    missing = [record.id for record in records if record.split is None]
    if len(missing) == len(records):
        told = "the data has no split of its own; use data.split.method: ratio, kfold or file"
        raise DataError(f"{dataset.root}: {told}")
    if missing:
        raise DataError(
            f"{dataset.root}: {counted(len(missing), 'image has', 'images have')} no split while "
            f"others have one ({name_some(missing)}); give each one, or use data.split.method: "
            "ratio"
        )
    split_of = {record.id: record.split for record in records if record.split is not None}
    note = "split as the data has it"
    train = [record for record in records if record.split == "train"]
    if "val" in split_of.values() or len({_group(record) for record in train}) < 2:
        return split_of, note
    # A dataset that comes as train and test needs something to choose the model by, and that
    # must not be its test split.
    shares = (config.ratios[0], config.ratios[1], 0.0)
    split_of |= _by_ratio(train, shares, seed=config.seed)
    share = shares[1] / sum(shares)
    return split_of, f"{note}; it has no val, so {share:.0%} of its train became val"


def _from_file(dataset: Dataset, path: Path) -> tuple[dict[str, Split | None], str]:
    split_of = read_split(path)
    ids = {record.id for record in dataset.records}
    if missing := sorted(ids - split_of.keys()):
        told = f"has no line for {len(missing)} of {len(ids)} images of {dataset.root}"
        raise DataError(f"{path}: {told} ({name_some(missing)}); is it the split of this data?")
    note = f"split from {path}"
    if strange := sorted(split_of.keys() - ids):
        note += f" ({len(strange)} of its ids are not in the data: {name_some(strange)})"
    return split_of, note


def _by_fold(dataset: Dataset, config: SplitConfig) -> tuple[dict[str, Split], str]:
    free = [record for record in dataset.records if record.split != "test"]
    members = _groups(free, seed=config.seed)
    if len(members) < config.folds:
        told = f"{len(members)} groups of images can't make {config.folds} folds"
        raise DataError(f"{dataset.root}: {told}; use a smaller data.split.folds")
    dealt = _deal(members, [len(free) / config.folds] * config.folds)
    split_of: dict[str, Split] = {record.id: "test" for record in dataset.records}
    for group, fold in zip(members, dealt, strict=True):
        split_of |= {record.id: "val" if fold == config.fold else "train" for record in group}
    note = f"split by fold {config.fold} of {config.folds}, seed {config.seed}"
    kept = "; the data's own test is kept" if len(free) < len(dataset.records) else ""
    return split_of, note + kept


def _by_ratio(
    records: Sequence[Record], shares: tuple[float, float, float], *, seed: int
) -> dict[str, Split]:
    members = _groups(records, seed=seed)
    if len(members) < 2:
        raise DataError(
            "1 group of images can't be split into train and val: give at least 2 images, or 3 "
            "for a test; slices of a stack and copies of an image are one group"
        )
    if len(members) == 2:
        shares = (shares[0], shares[1], 0.0)
    goals = [share / sum(shares) * len(records) for share in shares]
    # A split that was not asked for gets nothing.
    asked = [place for place, goal in enumerate(goals) if goal > 0]
    dealt = _deal(members, [goals[place] for place in asked])
    places = zip(members, dealt, strict=True)
    return {record.id: SPLITS[asked[place]] for group, place in places for record in group}


def _by_block(records: Sequence[Record], shares: tuple[float, float, float]) -> dict[str, Split]:
    """Cut the groups, in the order of names and pages, where the shares say."""

    def place_of(record: Record) -> tuple[str, int, str]:
        stack = record.id if record.page is None else str(record.image_path)
        return stack, record.page or 0, record.id

    members: dict[str, list[Record]] = {}
    for record in sorted(records, key=place_of):
        members.setdefault(_group(record), []).append(record)
    names = [name for name, share in zip(SPLITS, shares, strict=True) if share > 0]
    if len(members) < len(names):
        told = f"{len(members)} groups of images can't be split into {', '.join(names)}"
        raise DataError(f"{told}; groups stay whole: lower data.page_group")
    ends = np.cumsum([share for share in shares if share > 0]) * len(records)
    split_of: dict[str, Split] = {}
    place = num_here = num_before = 0
    for number, group in enumerate(members.values()):
        # A group belongs to where its middle lies, but no split stays empty.
        must_go_on = len(members) - number < len(names) - place
        is_past = num_before + len(group) / 2 > ends[place] or must_go_on
        if num_here and place + 1 < len(names) and is_past:
            place, num_here = place + 1, 0
        split_of |= {record.id: names[place] for record in group}
        num_here, num_before = num_here + 1, num_before + len(group)
    return split_of


def _with_gap(
    records: Sequence[Record], gap: int, *, root: Path, method: str
) -> tuple[Record, ...]:
    """Leave out the pages of train that are near to val or test, and those of val near to test."""
    pages: dict[tuple[Path, Split | None], set[int]] = defaultdict(set)
    for record in records:
        if record.page is not None:
            pages[record.image_path, record.split].add(record.page)
    if not pages:
        told = f"data.split.gap is {gap}, but there is no multi-page stack in this data"
        raise DataError(f"{root}: {told}; set it to 0")
    near_to: Mapping[Split | None, tuple[Split, ...]] = {"train": ("val", "test"), "val": ("test",)}

    def is_near(record: Record) -> bool:
        if record.page is None:
            return False
        around = {*range(record.page - gap, record.page + gap + 1)}
        others = near_to.get(record.split, ())
        return any(around & pages[record.image_path, split] for split in others)

    kept = tuple(replace(r, split=None) if is_near(r) else r for r in records)
    for split in ("train", "val"):
        if not any(record.split == split for record in kept):
            way_on = "use data.split.method: block, which has fewer seams"
            if method == "block":
                way_on = "give that split a larger share in data.split.ratios"
            told = f"a gap of {gap} pages leaves nothing of {split}"
            raise DataError(f"{root}: {told}; lower data.split.gap, or {way_on}")
    return kept


def _deal(members: Sequence[Sequence[Record]], goals: Sequence[float]) -> list[int]:
    """Deal groups to where most is missing; where there are enough groups, no place stays empty."""
    missing, places = list(goals), list[int]()
    for num_dealt, group in enumerate(members):
        empty = [place for place in range(len(goals)) if place not in places]
        must_fill = len(members) - num_dealt <= len(empty)
        places.append(max(empty if must_fill else range(len(goals)), key=missing.__getitem__))
        missing[places[-1]] -= len(group)
    return places


def _groups(records: Iterable[Record], *, seed: int) -> list[list[Record]]:
    """Give the groups shuffled by the seed, then largest first, whatever the records' order."""
    members: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (_group(r), r.id)):
        members[_group(record)].append(record)
    ordered = [*members.values()]
    order = np.random.default_rng(seed).permutation(len(ordered))
    # Large groups first, while there is room everywhere; equal ones keep their shuffled order.
    return sorted((ordered[i] for i in order), key=len, reverse=True)


def _group(record: Record) -> str:
    # An image without a group is alone in its own; the mark keeps it apart from named groups.
    return f"group {record.group}" if record.group is not None else f"id {record.id}"


def _refuse_torn_groups(records: Iterable[Record], root: Path) -> None:
    splits_of: dict[str, set[Split]] = defaultdict(set)
    for record in records:
        if record.group is not None and record.split is not None:
            splits_of[record.group].add(record.split)
    if torn := sorted(group for group, splits in splits_of.items() if len(splits) > 1):
        told = f"{counted(len(torn), 'group is', 'groups are')} in more than one split"
        why = "a group holds images that resemble one another and must stay in one"
        raise DataError(f"{root}: {told} ({name_some(torn)}); {why}")


TRIES, FOLD_TRIES = 20, 100  # splits that are tried; folds need more luck
RESPLIT = ("method", "seed", "gap")  # fields of a split that `split_with_foreground` changes


def foreground_in(rule: MaskRule) -> Callable[[Record], bool]:
    """Make a function that tells whether an image holds foreground; it reads each mask once."""
    found: dict[str, bool] = {}

    def holds(record: Record) -> bool:
        if record.id not in found:
            mask_HW = read_sample(record, rule).mask_HW
            found[record.id] = mask_HW is not None and bool(mask_HW.any())
        return found[record.id]

    return holds


def lacking(dataset: Dataset, holds: Callable[[Record], bool]) -> list[str]:
    """Name the splits without an image that `holds` foreground: train, then val, then test."""
    splits = {record.split for record in dataset.records}
    return [one for one in SPLITS if one in splits and not any(map(holds, dataset.of_split(one)))]


def split_with_foreground(
    whole: Dataset, config: SplitConfig, *, without: Sequence[str], holds: Callable[[Record], bool]
) -> tuple[Dataset, SplitConfig]:
    """Find the split that lacks the least foreground; `config` itself where none is better."""
    best, chosen = _badness(without), config
    divided = assign_splits(whole, config)
    first = 0 if config.method == "block" else config.seed + 1
    for seed in range(first, first + TRIES):
        again = config.model_copy(update={"method": "ratio", "seed": seed, "gap": 0})
        tried = assign_splits(whole, again)
        badness = _badness(lacking(tried.with_truth(), holds))
        if badness < best:
            best, chosen, divided = badness, again, tried
        if not best:
            break
    return divided, chosen


def seed_for_folds(whole: Dataset, config: SplitConfig) -> int:
    """Find a seed with which every fold of `config` (kfold) has foreground; DataError without."""
    holds = foreground_in(whole.rule)
    for seed in range(config.seed, config.seed + FOLD_TRIES):
        changes = ({"fold": fold, "seed": seed} for fold in range(config.folds))
        folds = (assign_splits(whole, config.model_copy(update=change)) for change in changes)
        if not any({"train", "val"} & {*lacking(each.with_truth(), holds)} for each in folds):
            return seed
    told = f"none of {FOLD_TRIES} seeds gives each of {config.folds} folds an image"
    raise DataError(f"{whole.root}: {told} that holds foreground; ask for fewer folds")


def _badness(without: Sequence[str]) -> tuple[bool, ...]:
    return tuple(split in without for split in SPLITS) if without else ()
