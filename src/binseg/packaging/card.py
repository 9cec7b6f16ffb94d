"""The card: every fact about a model that isn't a weight, as frozen data that checks itself."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import AfterValidator, AwareDatetime, Field, JsonValue, model_validator

from binseg.config.named_models import Option, model_label
from binseg.config.recipe import Section
from binseg.errors import one_line
from binseg.postprocess.mask_cleaning import PostProcessing
from binseg.transforms.preprocess import LEAST_LEFT
from binseg.types import TTA, Preprocessing

CARD = "card.json"
WEIGHTS = "weights.safetensors"
REFERENCE = "reference.safetensors"
SUMS = "SHA256SUMS"
NETWORK, NETWORK_INT8, PROOFS = "network.onnx", "network-int8.onnx", "proofs.json"
"""Files that `binseg export --to bundle` adds: the network for other runtimes, and the proof."""
FILES = frozenset({CARD, WEIGHTS, REFERENCE, SUMS, NETWORK, NETWORK_INT8, PROOFS})
FORMAT_VERSION = 1

# Cards are printed on terminals and pages: control characters would let a card forge output.
Line = Annotated[str, Field(max_length=1000, pattern=r"^[^\p{Cc}]*$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\p{Cc}]+$")]
Count = Annotated[int, Field(ge=0)]


def _check_preprocessing(value: Preprocessing) -> Preprocessing:
    """Refuse values that no recipe could have given; a hostile card could ask for terabytes."""
    if not (1 <= value.height <= 4096 and 1 <= value.width <= 4096):
        raise ValueError(f"input size {value.height}x{value.width} is outside 1..4096")
    if not 1 <= value.channels <= 64:
        raise ValueError(f"{value.channels} channels are outside 1..64")
    if len(value.mean) != value.channels or len(value.std) != value.channels:
        raise ValueError(f"mean and std need {value.channels} numbers each, one a channel")
    if min(value.std) <= 0:
        raise ValueError("std must be above 0")
    if not 0 <= value.overlap < 1:
        raise ValueError(f"overlap {value.overlap:g} is outside 0 <= overlap < 1")
    if not 0 <= value.largest_tile <= 8192:
        raise ValueError(f"largest_tile {value.largest_tile} is outside 0..8192")
    if not 0.05 <= value.scale <= 8:
        raise ValueError(f"scale {value.scale:g} is outside 0.05 to 8")
    if value.scale != 1.0 and value.resize != "tile":
        raise ValueError(f"scale {value.scale:g} needs resize tile; this is {value.resize}")
    return value


def _check_postprocess(value: PostProcessing) -> PostProcessing:
    if max(value.min_area, value.fill_holes) > 10**9:
        raise ValueError("areas reach up to 1000000000 pixels")
    return value


class Part(pydantic.BaseModel):
    """A part of a card: frozen, no unknown keys, no infinities, as in a recipe."""

    model_config = Section.model_config


class Architecture(Part):
    """The network that the weights belong to; it is built from this alone."""

    decoder: Name
    encoder: Name
    options: dict[Name, Option] = {}  # all options of the network, defaults filled in
    in_channels: Annotated[int, Field(ge=1)] = 3
    out_channels: Literal[1] = 1  # channels of the logits: one, foreground against background

    @model_validator(mode="after")
    def _check(self) -> Self:
        # As an option, encoder_weights would make `create_model` read a file or fetch an address.
        kept = {"encoder_weights", "progress", *type(self).model_fields}
        if reserved := sorted(kept & set(self.options)):
            raise ValueError(f"{reserved[0]} is no option of a network")
        return self

    def arguments(self) -> dict[str, Any]:
        """Return what `create_model` takes for this network."""
        return {**self.model_dump(exclude={"options"}), **self.options}

    @property
    def name(self) -> str:
        """A short name for people."""
        return model_label(self.decoder, self.encoder)


class Threshold(Part):
    """The probability above which a pixel is foreground."""

    value: Annotated[float, Field(ge=0, le=1)] = 0.5
    method: Line = "fixed"  # the way it was chosen, for people: "tuned on validation", "fixed"


class DataFacts(Part):
    """The training data in figures, without the images."""

    kind: Line = ""
    fingerprint: Line = ""
    """Hash over the ids and files of the data set, so that two runs can be told to share it."""
    num_train: Count = 0
    num_val: Count = 0
    num_test: Count = 0
    note: Line = ""


class Guarantee(Part):
    """A promise about new images like those of validation, kept by its threshold."""

    score: Literal["recall", "fpr", "dice"]
    wanted: Annotated[float, Field(ge=0, le=1)]
    """The least mean recall or Dice, or the highest mean false-positive rate."""
    threshold: Annotated[float, Field(ge=0, le=1)]
    num_images: Count  # images, or groups of them, that it was calibrated on


class Knowledge(Part):
    """Figures, in the order of `names`, of usual images and expected Dice (`inference/quality`)."""

    names: tuple[Name, ...]
    centre: tuple[float, ...]
    spread: tuple[Annotated[float, Field(gt=0)], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: Annotated[float, Field(gt=0)]
    """Distance from which on an image is unlike the training data."""
    references: Annotated[tuple[tuple[float, ...], ...], Field(max_length=1000)] = ()
    """Figures of usual images, to the nearest of which an image is compared; bundles made before
    have none, and don't judge."""
    scales: Annotated[tuple[tuple[float, ...], ...], Field(max_length=10)] = ()
    """Lines that tell larger, and smaller, pixels from the usual ones: constant, then slopes."""
    num_images: Count = 0  # validation images that taught what Dice to expect
    coefficients: Annotated[tuple[float, ...], Field(max_length=100)] = ()
    residuals: tuple[float, float] = (-1.0, 1.0)
    """Bounds of 90 % of the errors of the expected Dice, in units of their scale."""
    pixel_um: Annotated[float, Field(gt=0)] | None = None
    """Side of a pixel in micrometres, where the images' files tell one for all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        num = len(self.names)
        rows = (self.centre, self.spread, self.low, self.high, self.precision)
        inner = (*self.precision, *self.references)
        if not 1 <= num <= 100 or any(len(row) != num for row in (*rows, *inner)):
            raise ValueError(f"knowledge needs {num} figures of each kind, one a name")
        return self


class Card(Part):
    """All that a bundle says about itself; `card.json` is exactly this."""

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    id: Annotated[str, Field(pattern=r"^([0-9a-f]{12})?$")] = ""
    """First 12 hex digits of a hash of weights, networks, architecture, preprocessing, temperature
    and tta; `write_bundle` fills it in. Two bundles with one id give the same probabilities."""
    name: Name
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    """When it was written, ISO 8601 with time zone."""
    architecture: Architecture
    preprocessing: Annotated[Preprocessing, AfterValidator(_check_preprocessing)]
    temperature: Annotated[float, Field(ge=0.05, le=20)] = 1.0
    """Divides the logits before they become probabilities, fitted on validation; 1 changes
    nothing."""
    threshold: Threshold = Threshold()
    tta: TTA = "none"
    """Test-time augmentation that belongs to the model; threshold and scores are taken with it."""
    postprocess: Annotated[PostProcessing, AfterValidator(_check_postprocess)] = PostProcessing()
    """Post-processing that belongs to the model; the scores are those of its masks. Only what
    raised the score on validation is set, so that most models have none."""
    border: Literal["foreground", "background", "ignore", "none"] = "none"
    """The side that the border class of trimaps was given in training; none without a border."""
    data: DataFacts = DataFacts()
    knowledge: Knowledge | None = None
    """Figures that judge images and predictions; None in bundles that learnt none."""
    guarantees: Annotated[tuple[Guarantee, ...], Field(max_length=20)] = ()
    scores: dict[Name, dict[Name, float]] = {}
    """Scores by split and size ("val, original size"), then by name."""
    versions: dict[Name, Line] = {}
    """Versions of the software that made it: binseg, torch, python, ..."""
    licence: Line = ""  # licence of the weights, as the trainer states it
    recipe: dict[str, JsonValue] = {}  # the whole recipe of the run

    @model_validator(mode="after")
    def _check(self) -> Self:
        takes, gives = self.architecture.in_channels, self.preprocessing.channels
        if takes != gives:
            raise ValueError(f"architecture takes {takes} channels, preprocessing gives {gives}")
        return self

    def identity(self, sha256: Mapping[str, str]) -> str:
        """Compute the id of a bundle of this card and of files with these hashes, by name."""
        deciding = {"architecture", "preprocessing", "temperature", "tta"}
        facts = self.model_dump(mode="json", include=deciding, exclude_none=True)
        if facts["preprocessing"]["depth"] == 8:  # ids of bundles from before there was a choice
            del facts["preprocessing"]["depth"]
        files = {name: sha256.get(name) for name in (WEIGHTS, NETWORK, NETWORK_INT8)}
        text = json.dumps({"files": files, **facts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> bytes:
        """Write the text of `card.json`."""
        data = self.model_dump(mode="json")
        return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def rows(self) -> list[tuple[str, str]]:
        """Tell the facts to people, as label and text; the recipe is left out."""
        shape, data, net = self.preprocessing, self.data, self.architecture
        options = "".join(f", {key} {value}" for key, value in net.options.items())
        steps = self.postprocess.as_dict().items()
        postprocess = ", ".join(f"{name} {value}" for name, value in steps if value)
        rows = [
            ("name", self.name),
            ("id", self.id or "not written yet"),
            ("architecture", f"{net.decoder} on {net.encoder}{options}"),
            ("input", f"{shape.height}x{shape.width}, {shape.channels} channels, {shape.resize}"
                      + (f" at scale {shape.scale:g}" if shape.scale != 1 else "")),
            ("much larger images", "of 8 bits are averaged over 2 x 2, 4 x 4 or more pixels while "
             f"they stay {LEAST_LEFT} times larger than the input"
             if shape.resize != "tile" and shape.intensity == "dtype" and shape.depth == 8 else ""),
            ("intensity", shape.intensity + (f", {shape.depth} bits" if shape.depth > 8 else "")),
            ("threshold", f"{self.threshold.value:g} ({self.threshold.method})"),
            ("temperature", f"{self.temperature:g}"),
            ("tta", self.tta if self.tta != "none" else ""),
            ("post-processing", postprocess),
            ("border", self.border),
            ("pixel size", f"{self.knowledge.pixel_um:g} um"
             if self.knowledge and self.knowledge.pixel_um else ""),
            ("quality", f"judged by {self.knowledge.num_images} validation images"
             if self.knowledge else ""),
            *((f"guarantee {one.score}", f"{one.wanted:g} at threshold {one.threshold:.4f} "
               f"({one.num_images} validation images or groups)") for one in self.guarantees),
            ("data", f"{data.kind or 'not stated'}: {data.num_train} train, {data.num_val} val, "
                     f"{data.num_test} test" + (f"; {data.note}" if data.note else "")),
        ]  # fmt: skip
        for where, scores in self.scores.items():
            figures = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            rows.append((f"scores {where}", figures))
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rows += [
            ("licence", self.licence or "not stated"),
            ("created", self.created.isoformat()),
            ("made with", versions or "not stated"),
        ]
        return [(label, text) for label, text in rows if text]


def describe_problems(error: pydantic.ValidationError) -> str:
    """Put all that pydantic found on one line."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{('.'.join(map(str, one['loc'])) or 'card')[:80]}: "
        f"{one['msg'].removeprefix('Value error, ')[:200]}"
        for one in problems[:4]
    ]
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    return one_line("; ".join(lines) + more, limit=1000)
