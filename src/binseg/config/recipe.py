"""A recipe: everything that decides what a training run gives, as typed, frozen data.

Each field is documented under it; `binseg recipes schema` prints the same as JSON schema.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from binseg.types import TTA, Intensity, Preprocessing, ResizeMode

__all__ = [
    "About",
    "AugmentConfig",
    "DataConfig",
    "InputConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PatchConfig",
    "Recipe",
    "ScheduleConfig",
    "SplitConfig",
    "TrainConfig",
]

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Option = bool | int | float | str | list[int] | list[float] | None
Border = Literal["foreground", "background", "ignore"]


class Section(BaseModel):
    """What all parts of a recipe share: frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class About(Section):
    """What a recipe is for; read by people, used by nothing."""

    summary: str = ""
    """One sentence."""
    source: str = ""
    """Where it comes from: the report, tutorial or paper."""
    expected: str = ""
    """The figure that the source states, or that we measured, with its protocol."""
    cost: str = ""
    """Time or memory that it takes, with the machine."""


class SplitConfig(Section):
    """Which images train, which choose the model, which test it."""

    method: Literal["auto", "official", "file", "ratio", "block", "kfold"] = "auto"
    """auto takes the official split where the data set has one, else the manifest's, else ratio.
    ratio deals groups at random; block takes the first ones to train, the next to val, the last to
    test, by name and page: right for stacks and videos."""
    ratios: tuple[Share, Share, Share] = (0.7, 0.15, 0.15)
    """Shares of train, val and test for `ratio` and `block`; they must add up to 1."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds for `kfold`."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which fold validates, from 0."""
    file: str | None = None
    """A CSV file with the columns id, split for `file` (a run's split.csv has them)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of ratio and k-fold splits."""
    gap: Annotated[int, Field(ge=0)] = 0
    """Pages of a stack left out between two splits: neighbours are nearly the same image."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(self.ratios) - 1.0) > 1e-6:
            raise ValueError(f"ratios add up to {sum(self.ratios):g}; they must add up to 1")
        if self.ratios[0] == 0 or self.ratios[1] == 0:
            raise ValueError("ratios for train and val must be above 0")
        if self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} does not exist: the last of {self.folds} is {self.folds - 1}"
            )
        if self.method == "file" and self.file is None:
            raise ValueError("method: file needs file: PATH.csv")
        return self


class DataConfig(Section):
    """Where the images are, and how the numbers in their masks are to be read."""

    path: str | None = None
    """Folder, manifest or annotation file; `synthetic` for the built-in generator."""
    kind: str = "auto"
    """auto looks at what is there and says what it took; else a kind of dataset, such as folder,
    manifest, coco or labelme."""
    border: Border = "foreground"
    """What the border class of a trimap (value 3) counts as."""
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
    """Pattern of the masks' paths; the part that `*` stands for, or the group `key`, must equal
    the image's."""
    ignore: list[int] | None = None
    """Mask values that count neither for nor against."""
    threshold: int | None = None
    """Values above this are foreground: for soft or JPEG-compressed masks."""
    page_group: Annotated[int, Field(gt=0)] = 10
    """Multi-page stacks: this many consecutive pages form one group, kept in one split."""
    group: Literal["auto", "folder", "none"] = "auto"
    """auto: images that come from one source by their names (patches of a slide, slices of a
    volume, a folder for each patient) stay in one split, unless the data says it otherwise; folder:
    the images of each folder do, whatever they are called."""
    download: bool = False
    """Fetch the data set to `path` where it is absent (oxford-pet only)."""
    allow_leaks: bool = False
    """Train although images of one split come back in another; the scores will flatter."""
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.images is None) != (self.masks is None):
            raise ValueError("give both images and masks as patterns, or neither")
        if self.threshold is not None and self.foreground is not None:
            raise ValueError("give either foreground or threshold, not both")
        both = set(self.foreground or []) & set(self.ignore or [])
        if both:
            raise ValueError(f"mask values {sorted(both)} are in both foreground and ignore")
        return self


class InputConfig(Section):
    """What the model sees: size, fit, channels and normalisation; travels in the bundle."""

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
    mean: list[float] = [0.485, 0.456, 0.406]
    """Subtracted from values in [0, 1]; one number per channel, or one for all."""
    std: list[float] = [0.229, 0.224, 0.225]
    """Divides after the mean; one number per channel, or one for all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("mean", "std"):
            # The default three numbers stand for the RGB means of ImageNet; any other channel
            # count takes their average, so that `channels: 1` alone is a complete setting.
            given = len(getattr(self, name))
            if given not in (1, 3, self.channels):
                raise ValueError(f"{name} has {given} numbers; give 1 or {self.channels}")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        if self.scale != 1.0 and self.resize != "tile":
            raise ValueError(
                f"scale {self.scale:g} needs resize: tile; {self.resize} resizes to size anyway"
            )
        return self

    def preprocessing(self) -> Preprocessing:
        """The same facts in the form that travels in the bundle."""
        return Preprocessing(
            height=self.size,
            width=self.size,
            resize=self.resize,
            scale=self.scale,
            overlap=self.overlap,
            largest_tile=self.largest_tile if self.resize == "tile" else 0,
            channels=self.channels,
            intensity=self.intensity,
            mean=_per_channel(self.mean, self.channels),
            std=_per_channel(self.std, self.channels),
        )


def _per_channel(values: list[float], channels: int) -> tuple[float, ...]:
    """One value a channel: as given, or the average of what was given, repeated."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels


class ModelConfig(Section):
    """Which network; `binseg models` lists the names, the reference their options."""

    name: str = "resnet34-unet"
    """A name of the zoo."""
    options: dict[str, Option] = {}
    """Changes to the named model's own defaults (dropout, norm, ...)."""
    encoder_weights: str | None = None
    """File or https address of published encoder weights (torchvision names, safetensors or a
    plain state dict); none means from scratch."""
    encoder_sha256: str | None = None
    """The file's SHA-256; needed for an address."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.encoder_weights and "://" in self.encoder_weights and not self.encoder_sha256:
            raise ValueError("encoder_weights from an address needs encoder_sha256")
        return self


class LossConfig(Section):
    """What training minimises."""

    name: str = "bce-dice"
    """A name of the losses; the reference lists them with their options."""
    options: dict[str, float] = {}
    """Changes to the loss's own defaults (smooth, gamma, weights)."""
    deep_supervision: bool = False
    """Whether the maps on a U-Net's way up learn too, each with half the weight of the next."""


class OptimizerConfig(Section):
    """How the weights move."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """adamw: weight decay apart from the gradient; adam: within it; sgd: with momentum."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate; the peak where a schedule warms up."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """How strongly weights are pulled towards 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD only."""


class ScheduleConfig(Section):
    """How the learning rate changes over the run."""

    name: Literal["none", "cosine", "onecycle", "step", "multistep", "plateau"] = "cosine"
    """step and multistep move once an epoch, cosine too unless per_step; onecycle each step."""
    per_step: bool = True
    """cosine: move each step (smooth) instead of each epoch (as report D)."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Linear rise from 1 % of the rate over this many epochs, before any schedule."""
    step_epochs: Positive = 10
    """step: epochs between drops."""
    milestones: list[int] = [20, 40]
    """multistep: epochs at which the rate drops."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step, multistep, plateau: what the rate is multiplied with."""
    patience: Annotated[int, Field(ge=0)] = 2
    """plateau: epochs of the validation loss without improvement before a drop."""
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """onecycle: share of the run in which the rate rises."""


class AugmentConfig(Section):
    """What is done to training images (and, moved alike, to their masks)."""

    preset: Literal[
        "none", "mild", "medium", "strong", "report-a", "report-b", "report-c", "report-d"
    ] = "mild"
    """A named set of random changes; `binseg augment` shows what it does."""
    orientation: Literal["preset", "fixed", "upright", "any"] = "preset"
    """What may be turned round. preset: as the preset says; fixed: nothing is mirrored (text,
    organs); upright: left and right may swap (photos); any: there is no up, so both tta, quarter
    turns and every angle (microscopy, aerial images)."""
    rotate: Annotated[float, Field(ge=0, le=180)] | None = None
    """Largest angle in degrees, either way, instead of the preset's."""
    zoom: tuple[Annotated[float, Field(ge=0.25)], Annotated[float, Field(le=4.0)]] | None = None
    """Smallest and largest random factor of size, instead of the preset's: [0.8, 1.25]."""
    elastic: Annotated[float, Field(ge=0, le=0.1)] | None = None
    """Largest smooth deformation as a share of the side, instead of the preset's: 0.02 is
    visible; for tissue and cells."""
    gamma: Annotated[float, Field(ge=0, le=2)] | None = None
    """Exponents from 1 / (1 + this) to 1 + this, instead of the preset's; for instruments whose
    exposure varies."""
    noise: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Largest standard deviation of Gaussian noise, white being 1, instead of the preset's."""
    blur: Share | None = None
    """Probability of a slight blur, instead of the preset's."""
    intensity: Annotated[float, Field(ge=0, le=3)] = 1.0
    """Multiplies how strongly brightness, contrast, colour, gamma and noise change; 0 is not at
    all."""
    albumentations: str | None = None
    """Your own saved Albumentations pipeline (JSON or YAML), used instead of all of these."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.zoom is not None and self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom {list(self.zoom)}: the smallest factor comes first")
        return self


class PatchConfig(Section):
    """Which parts of the images an epoch shows; for resize: tile."""

    method: Literal["random", "grid"] = "random"
    """random: each epoch cuts new patches at random places, with enough surroundings to turn and
    scale them; grid: always the tiles that prediction would take."""
    per_epoch: Positive | Literal["auto"] = "auto"
    """random: patches in an epoch; auto: as many as cover the images once, but at least 20
    batches, so that few or small images give an epoch worth validating."""
    foreground: Share = 0.33
    """random: share of patches laid around a pixel of the foreground (or of the background where
    that is the rarer one); the others lie anywhere in their images."""


class TrainConfig(Section):
    """The run itself."""

    epochs: Positive = 40
    """Passes over the training images."""
    budget_minutes: Annotated[float, Field(gt=0)] | None = None
    """Time for the whole run, from reading the data to the scores of the shipped model. Schedule
    and sizes then follow the clock instead of `epochs`, which only says what to expect: a slower
    machine takes fewer epochs, and the run is repeated exactly only where it took as long."""
    per_epoch: Positive | Literal["all"] = "all"
    """Inputs in an epoch: all of them, or a number, dealt in turn, so that few images give an
    epoch worth validating and many don't make it endless (random patches: patches.per_epoch)."""
    batch_size: Positive = 16
    """Inputs in one step; lower it where memory runs out."""
    accumulate: Positive = 1
    """Batches whose gradients are added up before a step."""
    progressive: dict[Annotated[int, Field(ge=8)], Share] = {}
    """Smaller sizes to start with, and each one's share of the epochs: {128: 0.4, 192: 0.3} trains
    the last 0.3 at input.size, which none of them passes. Early epochs cost less; validation is
    always at input.size. With random patches these are smaller patches; otherwise the inputs are
    shrunk."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto takes bf16 where the processor or GPU computes in it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    devices: Positive | Literal["auto"] = 1
    """Processes on this machine that share each batch, one for each GPU, or so many on the
    processor; auto takes all GPUs. torchrun and SLURM decide it themselves."""
    num_nodes: Positive = 1
    """Machines that share each batch, each with so many devices."""
    compile: bool = False
    """Whether torch.compile translates the network first, where there is a compiler. It wasn't seen
    to pay on processors (docs/results.md)."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 switches clipping off."""
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
    """Mirror images that are predicted too and averaged wherever the model is used: none,
    horizontal (twice the time) or all (four times). tune: those that the augmentation
    draws, where that raises the validation score beyond chance."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides first weights, order and augmentation; the split has its own seed."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches; 0 is fastest, and any number gives the same run."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    """Most minutes of work that a crash can cost: the run is saved so often within an epoch, and
    after each one. `--resume` goes on from there, to the same weights."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Beside metrics.csv, which is always written."""


class Recipe(Section):
    """One training run, whole: `binseg train RECIPE.yaml`."""

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
        sizes = [*self.train.progressive]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"train.progressive has the sizes {sizes}; they must rise")
        if sum(self.train.progressive.values()) >= 1:
            raise ValueError("the shares of train.progressive must add up to less than 1")
        return self

    @property
    def draws_patches(self) -> bool:
        """Whether training cuts random patches of whole images."""
        return self.input.resize == "tile" and self.patches.method == "random"

    def training_size(self, epoch: int) -> int:
        """Height and width of training inputs in an epoch, from 0.

        >>> Recipe(train=TrainConfig(epochs=10, progressive={128: 0.5})).training_size(4)
        128
        """
        reached = 0.0
        for size, share in self.train.progressive.items():
            reached += share
            if epoch < round(reached * self.train.epochs):
                return min(size, self.input.size)
        return self.input.size

    def size_at(self, progress: float) -> int:
        """Height and width of training inputs where this share of the run is over."""
        reached = 0.0
        for size, share in self.train.progressive.items():
            reached += share
            if progress < reached - 1e-9:
                return min(size, self.input.size)
        return self.input.size
