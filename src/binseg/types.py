"""The records that pass between the rooms: frozen and keyword-only. Pixels stay numpy arrays.

Shape letters used in names everywhere: H, W height and width; C channels; N, B batch.
`mask` is always bool, `probability` a float32 in [0, 1], `logits` neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Num

Mask = Bool[np.ndarray, "H W"]
Probability = Float32[np.ndarray, "H W"]
AnyImage = Num[np.ndarray, "H W C"]
IGNORE = 255
"""The target value of pixels that count neither for nor against; 0 is background, 1 foreground."""
Split = Literal["train", "val", "test"]
ResizeMode = Literal["stretch", "letterbox", "tile"]
TTA = Literal["none", "horizontal", "all"]
"""Test-time augmentation: the mirror images of an input that are predicted too and averaged: none,
left-right (twice the time), or left-right, upside-down and both (four times)."""
TTA_PASSES: Mapping[TTA, int] = MappingProxyType({"none": 1, "horizontal": 2, "all": 4})
"""The number of images that are predicted for one, and so how much longer a prediction takes."""
Intensity = Literal["dtype", "percentile"]
Size = Literal["original", "model"]
"""The size at which pixels were counted: the image's own, or the model's input."""
Severity = Literal["error", "warning", "note"]
"""error: scores or training are wrong; warning: probably a mistake; note: worth knowing."""
Ring = tuple[tuple[float, float], ...]
"""A closed line of (x, y) corners in pixels of the original image; the last joins the first."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One annotated object: the even-odd union of its rings, so that an inner ring is a hole."""

    rings: tuple[Ring, ...]
    label: str = ""
    closed: bool = False
    """Corners are whole pixels, as traced contours have: those under the outline belong to it."""
    ignored: bool = False
    """True if pixels inside count neither for nor against a prediction."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a dataset. Ids are unique; a group never spans two splits."""

    id: str
    image_path: Path
    mask_path: Path | None = None
    further_images: tuple[Path, ...] = ()
    """Further channels of the image, a file each, as nnU-Net has them."""
    further_masks: tuple[Path, ...] = ()
    """The rest of a mask in several files, one for each object: what any of them marks is
    foreground."""
    shapes: tuple[Shape, ...] | None = None
    """Polygons instead of a mask file; an empty tuple says that nothing is in the image."""
    page: int | None = None
    """The page of a multi-page file (image and mask alike), from 0."""
    nodata: float | None = None
    """Value of the image's pixels without data, as declared; files may declare another."""
    mask_as_stored: bool = False
    """The mask was made from the image's pixels before EXIF turned them, and is turned alike."""
    group: str | None = None
    split: Split | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Any further columns of a manifest (breed, source); reports slice by them."""

    @property
    def mask_paths(self) -> tuple[Path, ...]:
        """All files of the mask; none where there is no truth, or polygons are it."""
        return () if self.mask_path is None else (self.mask_path, *self.further_masks)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that the record is read from, the image first."""
        return (self.image_path, *self.further_images, *self.mask_paths)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about a dataset that is wrong, or worth knowing, with the images it concerns."""

    severity: Severity
    code: str
    """The kind of finding, a stable word for programs: leak, empty-mask."""
    text: str
    ids: tuple[str, ...] = ()
    """Records, or names of files that became no record."""
    files: tuple[str, ...] = ()
    """The files, relative to the dataset's folder."""
    advice: str = ""
    """The way to put it right."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Decoded pixels in their original size; `mask_HW` is None where there is no truth."""

    id: str
    image_HWC: Num[np.ndarray, "h w C"]
    mask_HW: Mask | None
    valid_HW: Mask
    """False where a pixel counts neither for nor against (ignore labels)."""
    is_reduced: bool = False
    """The image is smaller than its masks, as a JPEG's decoder reduced it for the model."""

    def __post_init__(self) -> None:
        assert self.is_reduced or self.image_HWC.shape[:2] == self.valid_HW.shape
        assert self.mask_HW is None or self.mask_HW.shape == self.valid_HW.shape


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The way any image becomes a model input; it travels in the bundle, and there is no other."""

    height: int = 256
    width: int = 256
    resize: ResizeMode = "stretch"
    """stretch: resize to height x width; letterbox: keep the aspect ratio; tile: cut tiles at
    `scale`."""
    scale: float = 1.0
    """Factor of height and width before tiles are cut (resize: tile only)."""
    overlap: float = 0.25
    """Share of a tile that overlaps its neighbour (resize: tile only)."""
    largest_tile: int = 0
    """resize: tile only; an image whose sides at `scale` are up to this long is one tile, from a
    larger one tiles of this size are cut. 0: all tiles are height x width."""
    channels: int = 3
    intensity: Intensity = "dtype"
    """dtype: divide by the largest value of the pixel type; percentile: stretch each image so
    that its 0.5 and 99.5 percentiles become 0 and 1."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    nodata: float | None = None
    """The value of pixels without data, where users declare one beyond what files say."""
    depth: Literal[8, 16] = 8
    """Bits of an input's values, 8 or 16: steps of grey between what becomes 0 and 1."""

    @property
    def top(self) -> int:
        """The value of an input that stands for 1: 255 or 65,535."""
        return (1 << self.depth) - 1

    @property
    def pixel_type(self) -> str:
        """The type of inputs: uint8 or uint16."""
        return f"uint{self.depth}"

    def as_trained(self) -> "Preprocessing":
        """The same with all tiles of the size that training sees."""
        return replace(self, largest_tile=0)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of whole pixels: rows top..top+height, columns left..left+width."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Place of a region (past the edge the image is mirrored) in an input, with padding around."""

    source: Box
    target: Box
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Pixels of one image (or of many, added up) by truth and prediction, ignored ones left out.

    >>> Counts(tp=1, fp=2, fn=3, tn=4) + Counts(tp=1, fp=0, fn=0, tn=9)
    Counts(tp=2, fp=2, fn=3, tn=13)
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: num + getattr(other, name) for name, num in vars(self).items()})

    @property
    def num_valid(self) -> int:
        """All pixels that were counted."""
        return self.tp + self.fp + self.fn + self.tn


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95% interval: where a figure would mostly lie with other images of the same kind."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number and its interval, which is None where one image or group tells nothing."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectCounts:
    """Objects of one image (or of many, added up): connected pixels, matched above IoU 0.5."""

    num_true: int
    num_predicted: int
    num_matched: int
    sum_iou: float
    """Sum of the IoU of the matched pairs."""

    def __add__(self, other: "ObjectCounts") -> "ObjectCounts":
        sums = {name: num + getattr(other, name) for name, num in vars(self).items()}
        return ObjectCounts(**sums)


Scores = Mapping[str, float]
"""Values by the names of `metrics.METRICS`."""


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One image's line in a report: what was counted, and the scores that follow from it."""

    id: str
    counts: Mapping[Size, Counts]
    scores: Mapping[Size, Scores]
    columns: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    outline: Scores | None = None
    """At original size, as are `objects` and `probability`; None where it wasn't measured."""
    objects: ObjectCounts | None = None
    probability: Scores | None = None
    """Errors of the probability itself, before any threshold."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The scores of each threshold at original size: to look at, never to choose from."""

    thresholds: tuple[float, ...]
    curves: Mapping[str, tuple[float, ...]]
    """`mean_dice` is a mean over images; the scores of counted pixels, by name, are pooled."""
    average_precision: float
    """Area below precision over recall of the pooled pixels."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The pixels whose probability is in (low, high], and the share of them that is foreground."""

    low: float
    high: float
    num_pixels: int
    mean_probability: float
    """0 where there is no pixel, as is `share`."""
    share: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The truth of probabilities, over all valid pixels at original size."""

    scores: Mapping[str, Figure]
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The images that share something, and how well they are segmented."""

    by: str
    """"object size", "foreground share", or a column of the data set."""
    value: str
    num_images: int
    num_groups: int | None = None
    """Groups among these images; None where they have none."""
    dice: Figure
    """Mean over these images, original size."""

    @property
    def is_small(self) -> bool:
        """Fewer than ten images or six groups: the mean says little, its interval is too narrow."""
        return self.num_images < 10 or (self.num_groups is not None and self.num_groups < 6)


Averages = Mapping[str, Mapping[Size, Mapping[str, Interval | None]]]
"""Intervals by "mean" or "pooled", then by size, then by score."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """The scores of a model on one split: per image and pooled, with the rules that were used."""

    title: str
    bundle_id: str
    split: str
    threshold: float
    border: str
    """The rule for the border class of trimaps, or "none"."""
    images: tuple[ImageScores, ...]
    mean: Mapping[Size, Scores]
    """Average over images of each score: every image weighs the same."""
    pooled: Mapping[Size, Scores]
    """Scores of the added-up counts: every pixel weighs the same."""
    num_empty_truth: int
    """Images whose truth holds no foreground; the empty-mask rule decided their scores."""
    notes: tuple[str, ...] = ()
    """Sentences that must be read with the numbers: the empty-mask rule, what was ignored."""
    intervals: Averages = field(default_factory=dict)
    """95% intervals of `mean` and `pooled`; empty where none were asked for."""
    resampled: Literal["image", "group"] = "image"
    """The unit of the bootstrap behind all intervals: images, or whole groups of them."""
    num_missed: int = 0
    """Images with an object of which nothing was found."""
    num_false_alarms: int = 0
    """Images without an object in which something was found."""
    outline: Mapping[str, Figure] = field(default_factory=dict)
    """Means over images of the outline scores, original size."""
    tolerance: float = 2.0
    """The tolerance of boundary F1 and surface Dice, in `unit`."""
    unit: Literal["px", "mm"] = "px"
    spacing: tuple[float, float] | None = None
    """Height and width of a pixel in mm, where it was given."""
    objects: Mapping[str, Figure] = field(default_factory=dict)
    """Scores of the pooled objects, original size."""
    calibration: Calibration | None = None
    sweep: Sweep | None = None
    slices: tuple[Slice, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if no truth holds an object, so that no score says how well objects are found."""
        counts = [one.counts["original"] for one in self.images]
        return bool(counts) and not any(one.tp + one.fn for one in counts)

    @property
    def _shape(self) -> str:
        empty = f" ({self.num_empty_truth} without an object)" if self.num_empty_truth else ""
        return f"{len(self.images)}{empty}"

    @property
    def _headline(self) -> str:
        names = [name for name in ("dice", "iou") if name in self.mean["original"]]
        found = self.intervals.get("mean", {}).get("original", {})
        told = ", ".join(
            f"mean {name} {self.mean['original'][name]:.4f} {found.get(name) or ''}".rstrip()
            for name in names
        )
        return f"{told} at original size, images: {self._shape}, threshold {self.threshold:.3f}"

    def __repr__(self) -> str:
        """Show the headline: a report of a thousand images has megabytes of figures."""
        if self.is_empty:
            return f"<Report {self.title!r}: images: {self._shape}: nothing to score>"
        return f"<Report {self.title!r}: {self._headline}>"

    def _repr_html_(self) -> str:
        """Show the averages as a table in notebooks, with the rules folded below it."""
        if self.is_empty:
            return f"<p>{escape(repr(self))}</p>"
        names = list(self.mean["original"])
        head, rows = "".join(f"<th>{escape(name)}</th>" for name in names), ""
        for label, table in (("mean over images", self.mean), ("pooled pixels", self.pooled)):
            for size in table:
                cells = "".join(f"<td>{table[size][name]:.4f}</td>" for name in names)
                rows += f"<tr><th>{label}, {size} size</th>{cells}</tr>"
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            f"<p><b>{escape(self.title)}</b>: {self._headline}, border: {escape(self.border)}</p>"
            f"<table><tr><th></th>{head}</tr>{rows}</table>"
            f"<details><summary>Rules</summary><ul>{notes}</ul></details>"
        )
