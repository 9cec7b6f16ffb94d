"""A recipe: everything that decides what a training run gives, as typed, frozen data.

Each field is documented under it; `binseg recipes schema` prints the same as JSON schema.
"""

import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from binseg.config.named_models import Option, expand_name, find_weights, model_label
from binseg.types import TTA, Intensity, Preprocessing, ResizeMode

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Border = Literal["foreground", "background", "ignore"]


class Section(BaseModel):
    """The base of all sections: frozen, without unknown keys or infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class About(Section):
    """The purpose of a recipe, for people to read."""

    summary: str = ""
    """One sentence."""
    source: str = ""
    """The report, tutorial or paper that it comes from."""
    expected: str = ""
    """The score that the source states, or that we measured, with its protocol."""
    cost: str = ""
    """The time or memory that it takes, and on which machine."""


class SplitConfig(Section):
    """The images that train, those that choose the model, and those that test it."""

    method: Literal["auto", "official", "file", "ratio", "block", "kfold"] = "auto"
    """auto takes the data's official split, else the manifest's, else ratio. ratio assigns groups
    at random; block takes them by name and page, first train, then val, then test (for stacks)."""
    ratios: tuple[Share, Share, Share] = (0.7, 0.15, 0.15)
    """Shares of train, val and test for `ratio` and `block`; they must add up to 1."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds for `kfold`."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that validates, counted from 0."""
    file: str | None = None
    """A CSV file with the columns id, split for `file` (a run's split.csv has them)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of ratio and kfold splits."""
    gap: Annotated[int, Field(ge=0)] = 0
    """Pages of a stack left out between two splits: neighbours are nearly the same image."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(self.ratios) - 1.0) > 1e-6:
            raise ValueError(f"ratios add up to {sum(self.ratios):g}; they must add up to 1")
        if self.ratios[0] == 0 or self.ratios[1] == 0:
            raise ValueError("ratios for train and val must be above 0")
        if self.fold >= (num := self.folds):
            raise ValueError(f"fold {self.fold} does not exist: the last of {num} is {num - 1}")
        if self.method == "file" and self.file is None:
            raise ValueError("method: file needs file: PATH.csv")
        return self


class DataConfig(Section):
    """The place of the images, and the meaning of the values in their masks."""

    path: str | None = None
    """Folder, manifest or annotation file; `synthetic` for the built-in generator."""
    kind: str = "auto"
    """auto looks and says what it took; else a kind of dataset, such as folder, coco or labelme."""
    border: Border = "foreground"
    """The class that the border of a trimap (value 3) counts as."""
    foreground: list[int] | None = None
    """Mask values that are foreground; needed where the masks' values are ambiguous."""
    labels: list[str] | None = None
    """Names of the classes that are foreground, where annotations have names; all if not given."""
    missing: Literal["refuse", "skip", "empty"] = "skip"
    """Images without a mask: refuse the data, leave them out, or take them for empty."""
    images: str | None = None
    """Pattern of the images' paths in the folder: `**/*_raw.png`, or a regular expression with a
    group `(?P<key>...)` that images and their masks share."""
    masks: str | None = None
    """Pattern of the masks' paths; what `*` stands for, or the group `key`, equals the image's."""
    ignore: list[int] | None = None
    """Mask values that count neither as foreground nor as background."""
    threshold: int | None = None
    """Values above this are foreground: for soft or JPEG-compressed masks."""
    nodata: float | None = None
    """Value of pixels without data, where files don't say it; it travels in the model."""
    page_group: Annotated[int, Field(gt=0)] = 10
    """Multi-page stacks: this many consecutive pages form one group, kept in one split."""
    group: Literal["auto", "folder", "none"] = "auto"
    """auto: images of one source by their names (patches of a slide, slices of a volume) stay in
    one split, unless the data has splits of its own; folder: the images of each folder do."""
    download: bool = False
    """Download the data set to `path` if it is absent (oxford-pet only)."""
    allow_leaks: bool = False
    """Train although images of one split are also in another; the scores will flatter."""
    allow_shifts: bool = False
    """Train although all masks look shifted, or as if each were its neighbour's."""
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.images is None) != (self.masks is None):
            raise ValueError("give both images and masks as patterns, or neither")
        if self.threshold is not None and self.foreground is not None:
            raise ValueError("give either foreground or threshold, not both")
        if both := set(self.foreground or []) & set(self.ignore or []):
            raise ValueError(f"mask values {sorted(both)} are in both foreground and ignore")
        return self


class InputConfig(Section):
    """The network's input: size, resize mode, channels, normalisation; stored in the bundle."""

    size: Annotated[int, Field(ge=8, le=4096)] = 256
    """Height and width of the model's input in pixels."""
    resize: ResizeMode = "stretch"
    """stretch: to size x size; letterbox: keep the aspect and pad; tile: patches of that size."""
    scale: Annotated[float, Field(ge=0.05, le=8.0)] = 1.0
    """resize: tile: images are enlarged (above 1) or shrunk by this factor before they are cut."""
    overlap: Annotated[float, Field(ge=0.0, lt=0.9)] = 0.25
    """Share of a tile that overlaps its neighbour (resize: tile)."""
    largest_tile: Annotated[int, Field(ge=0, le=8192, multiple_of=32)] = 1024
    """resize: tile: images up to this size are predicted as one tile, larger ones in such tiles, so
    that fewer pixels lie near a rim; 0 predicts tiles of size x size, as in training."""
    channels: Annotated[int, Field(ge=1, le=64)] = 3
    """Channels of the input; grey images are repeated, colour ones averaged to fit 1 or 3."""
    intensity: Intensity = "dtype"
    """dtype: divide by the pixel type's maximum; percentile: stretch each image."""
    depth: Literal[8, 16] = 8
    """Bits that the network's input keeps of each value; 16 where 8 would hide faint objects."""
    mean: list[float] = [0.485, 0.456, 0.406]
    """Subtracted from values in [0, 1]; one number per channel, or one for all. Named
    encoder_weights bring their own mean and std unless the recipe states some."""
    std: list[float] = [0.229, 0.224, 0.225]
    """Divides after the mean; one number per channel, or one for all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("mean", "std"):
            given = len(getattr(self, name))
            if given not in (1, 3, self.channels):
                raise ValueError(f"{name} has {given} numbers; give 1 or {self.channels}")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        if self.scale != 1.0 and self.resize != "tile":
            what = f"{self.resize} resizes to size anyway"
            raise ValueError(f"scale {self.scale:g} needs resize: tile; {what}")
        return self

    def preprocessing(self, *, nodata: float | None = None) -> Preprocessing:
        """Return the same facts in the form that the bundle stores."""
        num = self.channels
        mean, std = (
            tuple(given) if len(given) == num else (sum(given) / len(given),) * num
            for given in (self.mean, self.std)
        )
        alike = self.model_dump(
            include={"resize", "scale", "overlap", "channels", "intensity", "depth"}
        )
        alike |= {"height": self.size, "width": self.size, "mean": mean, "std": std}
        largest = self.largest_tile if self.resize == "tile" else 0
        return Preprocessing(**alike, largest_tile=largest, nodata=nodata)


class ModelConfig(Section):
    """The network: any encoder with any decoder; `binseg encoders` and the reference list them.

    `name` stands for a decoder, an encoder and options; a recipe that is written out has these.
    """

    name: str = Field(default="", exclude=True)
    """A network of `binseg models`, instead of decoder and encoder; other keys still change it."""
    decoder: str = "unet"
    """A name of the decoders."""
    encoder: str = "resnet34"
    """A name of `binseg encoders`."""
    encoder_weights: str | None = None
    """Weights to start the encoder from: `imagenet` (`binseg encoders` says for which), a file
    (published names, safetensors or a plain state dict), or an https address with its hash,
    `https://...#sha256=HEX`; none means from scratch."""
    start_from: str | None = None
    """A run, bundle or built-in model (`pets`) to continue: network, weights and preprocessing."""
    options: dict[str, Option] = {}
    """Changes to the pair's own defaults (width, dropout, norm, ...)."""
    out_channels: Literal[1] = 1
    """Channels of the logits: one, foreground against background."""

    def arguments(self) -> dict[str, Any]:
        """Return what `create_model` takes for this network, weights and input channels apart."""
        return self.model_dump(include={"decoder", "encoder", "out_channels"}) | self.options

    @field_validator("encoder_weights")
    @classmethod
    def _read_none(cls, source: str | None) -> str | None:
        return None if source == "none" else source

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: object) -> object:
        return expand_name(given) if isinstance(given, Mapping) and given.get("name") else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        # The label of what is there, whatever name it was made from.
        object.__setattr__(self, "name", model_label(self.decoder, self.encoder))
        source = self.encoder_weights or ""
        if "://" in source and not re.fullmatch(r"[^#]+#sha256=[0-9a-fA-F]{64}", source):
            raise ValueError("encoder_weights from an address end in #sha256= and the file's hash")
        find_weights(self.encoder, self.encoder_weights)
        return self


class LossConfig(Section):
    """The loss that training minimises."""

    name: str = "bce-dice"
    """A name of the losses; the reference lists them with their options."""
    options: dict[str, float] = {}
    """Changes to the loss's own defaults (smooth, gamma, weights)."""


class OptimizerConfig(Section):
    """The optimizer."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """adamw: weight decay apart from the gradient; adam: within it; sgd: with momentum."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate; the peak where a schedule warms up."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Strength with which weights are pulled towards 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD only."""
    encoder_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    """The encoder's learning rate as a share of `lr`: below 1 where its weights are good."""


class ScheduleConfig(Section):
    """The course of the learning rate over the run."""

    name: Literal["none", "cosine", "onecycle", "step", "multistep", "plateau"] = "cosine"
    """step and multistep act once per epoch, cosine too unless per_step; onecycle each step."""
    per_step: bool = True
    """cosine: act each step (smooth) instead of each epoch (as in report D)."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Linear rise from 1 % of the rate over this many epochs, before any schedule."""
    step_epochs: Positive = 10
    """step: epochs between drops."""
    milestones: list[int] = [20, 40]
    """multistep: epochs at which the rate drops."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step, multistep, plateau: factor that the rate is multiplied by."""
    patience: Annotated[int, Field(ge=0)] = 2
    """plateau: epochs of the validation loss without improvement before a drop."""
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """onecycle: share of the run in which the rate rises."""


class AugmentConfig(Section):
    """Random changes of training images, and of their masks alike."""

    preset: Literal[
        "none", "mild", "medium", "strong", "pet-plain", "pet-augmented", "em", "pet-cosine"
    ] = "mild"
    """A named set of random changes; `binseg augment` shows what it does."""
    orientation: Literal["preset", "fixed", "upright", "any"] = "preset"
    """preset: as the preset says; fixed: nothing is mirrored (text, organs); upright: left and
    right may swap (photos); any: there is no up, so both flips, quarter turns and every angle are
    right (microscopy, aerial images)."""
    rotate: Annotated[float, Field(ge=0, le=180)] | None = None
    """Largest angle in degrees, either way, instead of the preset's."""
    zoom: tuple[Annotated[float, Field(ge=0.25)], Annotated[float, Field(le=4.0)]] | None = None
    """Smallest and largest random factor of size, instead of the preset's: [0.8, 1.25]."""
    elastic: Annotated[float, Field(ge=0, le=0.1)] | None = None
    """Largest smooth deformation as a share of the side, instead of the preset's: 0.02 is
    visible; for tissue and cells."""
    gamma: Annotated[float, Field(ge=0, le=2)] | None = None
    """Exponents from 1 / (1 + this) to 1 + this, instead of the preset's; where exposure varies."""
    invert: Share | None = None
    """Probability that light and dark change places, where new images may be lit the other way."""
    grey: Share | None = None
    """Probability that an image loses its colours, where stains or lamps differ."""
    noise: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Largest standard deviation of Gaussian noise, white being 1, instead of the preset's."""
    blur: Share | None = None
    """Probability of a slight blur, instead of the preset's."""
    intensity: Annotated[float, Field(ge=0, le=3)] = 1.0
    """Factor on the changes of brightness, contrast, colour, gamma and noise; 0 turns them off."""
    albumentations: str | None = None
    """A saved Albumentations pipeline of your own (JSON or YAML), used instead of all of these."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.zoom is not None and self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom {list(self.zoom)}: the smallest factor comes first")
        return self


class PatchConfig(Section):
    """The parts of the images that an epoch shows, with resize: tile."""

    method: Literal["random", "grid"] = "random"
    """random: each epoch cuts new patches at random places, with enough surroundings to turn and
    scale them; grid: always the tiles that prediction would take."""
    per_epoch: Positive | Literal["auto"] = "auto"
    """random: patches in an epoch; auto: as many as cover the images once, at least 20 batches."""
    foreground: Share = 0.33
    """random: share of patches laid around a pixel of the rarer class; the others lie anywhere."""


class TrainConfig(Section):
    """The run itself."""

    epochs: Positive = 40
    """Passes over the training images."""
    budget_minutes: Annotated[float, Field(gt=0)] | None = None
    """Time for the whole run, from reading the data to the scores of the shipped model. Schedule
    and sizes then follow the clock instead of `epochs`, which only says what to expect: a slower
    machine takes fewer epochs, and the run is repeated exactly only where it took as long."""
    per_epoch: Positive | Literal["all"] = "all"
    """Inputs in an epoch: all of them, or a number, taken in turn, so that few images make an epoch
    worth validating and many don't make it endless (random patches: patches.per_epoch)."""
    batch_size: Positive = 16
    """Inputs in one step; lower it if memory runs out."""
    accumulate: Positive = 1
    """Batches whose gradients are added up before a step."""
    progressive: dict[Annotated[int, Field(ge=8)], Share] = {}
    """Smaller sizes to start with, and each one's share of the epochs: {128: 0.4, 192: 0.3} trains
    the last 0.3 at input.size, which none of them passes; validation is always at input.size.
    Random patches are cut smaller, other inputs shrunk."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto takes bf16 where the hardware computes in it, else fp32; fp16 is for GPUs without it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes the GPU where there is one, but Apple's (mps, untested) only if asked for."""
    devices: Positive | Literal["auto"] = 1
    """Processes here that share each batch: one for each GPU, or so many on the processor; auto
    takes all GPUs. torchrun and SLURM decide it themselves."""
    num_nodes: Positive = 1
    """Machines that share each batch, each with so many devices."""
    compile: bool = False
    """Compile the network with torch.compile, if there is a compiler; no gain on processors."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    freeze_encoder_epochs: Annotated[int, Field(ge=0)] = 0
    """First epochs in which the encoder keeps its weights and statistics; the decoder learns."""
    freeze_batch_norm: bool = False
    """Keep the encoder's batch norm statistics throughout: pretrained, with small batches."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights that is validated and shipped; 0 is off."""
    early_stopping: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better validation score before stopping; 0 is off."""
    monitor: Literal["dice", "loss"] = "dice"
    """Validation figure that chooses the best epoch."""
    threshold: Literal["tune"] | Share = "tune"
    """Decision threshold: tuned on the validation split, or a fixed probability."""
    postprocess: Literal["none", "tune"] = "none"
    """tune: small objects, holes or all but the largest object are taken out of masks where that
    raises the validation score beyond chance; whatever uses the model then does so by default."""
    tta: TTA | Literal["tune"] = "none"
    """Test-time augmentation: flips that are predicted, too, and averaged wherever the model is
    used: none, horizontal (twice the time) or all (four times). tune: those that the augmentation
    makes, if that raises the validation score beyond chance."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the first weights, the order and augmentation; the split has its own."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches; 0 is fastest, and any number gives the same run."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    """Most minutes of work that a crash can cost: the run is saved so often within an epoch, and
    after each one. `--resume` goes on from there, to the same weights."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Loggers beside metrics.csv, which is always written."""


class Recipe(Section):
    """A whole training run: `binseg train RECIPE.yaml`."""

    about: About = About()
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    patches: PatchConfig = PatchConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (sizes := [*self.train.progressive]) != sorted(set(sizes)):
            raise ValueError(f"train.progressive has the sizes {sizes}; they must rise")
        if sum(self.train.progressive.values()) >= 1:
            raise ValueError("the shares of train.progressive must add up to less than 1")
        if weights := find_weights(self.model.encoder, self.model.encoder_weights):
            trained = {"mean": [*weights.mean], "std": [*weights.std]}
            own = self.input.model_dump(exclude_unset=True)
            object.__setattr__(self, "input", self.input.model_copy(update=trained | own))
        return self

    def preprocessing(self) -> Preprocessing:
        """Return the way from images to inputs."""
        return self.input.preprocessing(nodata=self.data.nodata)

    @property
    def draws_patches(self) -> bool:
        """True if training cuts random patches of whole images."""
        return self.input.resize == "tile" and self.patches.method == "random"

    def training_size(self, epoch: int) -> int:
        """Return height and width of training inputs in an epoch, counted from 0.

        >>> Recipe(train=TrainConfig(epochs=10, progressive={128: 0.5})).training_size(4)
        128
        """
        return self._size_until(lambda end: epoch < round(end * self.train.epochs))

    def size_at(self, progress: float) -> int:
        """Return height and width of training inputs after this share of the run."""
        return self._size_until(lambda end: progress < end - 1e-9)

    def _size_until(self, holds: Callable[[float], bool]) -> int:
        """Take the first progressive size whose end, as a share of the run, lies ahead."""
        ends = accumulate(self.train.progressive.values())
        sizes = (size for size, end in zip(self.train.progressive, ends, strict=True) if holds(end))
        return min(next(sizes, self.input.size), self.input.size)
