"""`create_model` puts any encoder and any decoder together, by the options that they share."""

from collections.abc import Mapping

import torch
from torch import nn

from binseg.config.named_models import Option, OptionRule
from binseg.config.recipe import Recipe
from binseg.errors import UsageError, suggest
from binseg.models.decoders import DECODERS
from binseg.models.encoders import ENCODERS, TIMM, TIMM_WEIGHTS, encoder_entry
from binseg.models.keras_unet import KerasUNet
from binseg.models.skeleton import EncoderDecoder, he_initialise, initialise_head
from binseg.models.weights import load_encoder_weights
from binseg.progress import SILENT, Progress

OPTIONS: dict[str, OptionRule] = {
    "width": OptionRule(
        int, "channels of the encoder's finest level; its others follow from it", low=1, high=1024
    ),
    "depth": OptionRule(int, "how many times the U-Net's encoder halves the size", low=1, high=7),
    "encoder_norm": OptionRule(
        str, "what follows the encoder's convolutions; published weights need batch",
        choices=("batch", "group"),
    ),
    "encoder_bias": OptionRule(
        bool, "biases in the encoder's convolutions; published weights have none"
    ),
    "stem_feature": OptionRule(
        str, "the first skip: the stem's map at half the size, or pooled to a quarter",
        choices=("before-pool", "after-pool"),
    ),
    "output_stride": OptionRule(
        int, "input pixels per pixel of the coarsest map; finer is slower (by dilation)",
        choices=(8, 16, 32),
    ),
    "drop_path": OptionRule(
        float, "chance of skipping the last transformer block in training", high=0.9
    ),
    "decoder_width": OptionRule(
        int, "channels inside the decoder (in U-Nets at a quarter of the size and above, doubled "
        "with each halving below); 0 takes what suits the encoder", high=1024,
    ),
    "norm": OptionRule(
        str, "what follows each convolution of the decoder, and of an encoder of binseg's own",
        choices=("batch", "group", "none"),
    ),
    "bias": OptionRule(
        bool, "biases in 3x3 convolutions of the decoder, and of the U-Net's encoder; without a "
        "norm they always have some",
    ),
    "dropout": OptionRule(
        float, "share of values dropped in training: between a block's convolutions, or before the "
        "head", high=0.9,
    ),
    "up": OptionRule(
        str, "how maps double in size: a transposed convolution, or interpolation",
        choices=("transpose", "bilinear", "nearest"),
    ),
    "join": OptionRule(
        str, "where a map and its skip differ in size: pad or resize the map, or resize the skip",
        choices=("pad", "resize-up", "resize-skip"),
    ),
    "skip_first": OptionRule(bool, "whether the skip's channels come before the upsampled map's"),
    "decoder_convs": OptionRule(int, "3x3 convolutions of each block with a skip", low=1, high=4),
    "final_convs": OptionRule(
        int, "3x3 convolutions of each block without a skip, which bring maps to full size; 0 "
        "resizes the logits instead", high=4,
    ),
}  # fmt: skip
"""All options by name, each of one meaning whoever takes it."""
KERAS = "keras_unet"
"""The one network that is not made of two parts: Keras builds it whole (tutorial C)."""
_KERAS_OPTIONS: Mapping[str, Option] = {"width": 64, "depth": 4, "dropout": 0.0, "up": "transpose"}


def create_model(
    decoder: str = "unet",
    *,
    encoder: str = "resnet34",
    encoder_weights: str | None = None,
    in_channels: int = 3,
    out_channels: int = 1,
    progress: Progress = SILENT,
    **options: Option,
) -> nn.Module:
    """Build a network that gives logits (B, out_channels, H, W) for images (B, in_channels, H, W).

    Any encoder goes with any decoder, and images may have any size from 1 x 1 up.

    Args:
        decoder: a name of `DECODERS`, or `keras_unet` (with the encoder `unet`).
        encoder: a name of `ENCODERS`, or `timm:NAME`.
        encoder_weights: weights to start the encoder from (`load_encoder_weights`); None samples
            them.
        in_channels: channels of the images.
        out_channels: channels of the logits.
        progress: hears what loading the weights left out or changed.
        options: changes to the pair's defaults (`resolve_options`).

    Raises:
        UsageError: an unknown name or option, or a value that the option doesn't take.

    >>> create_model("fpn", encoder="resnet18", in_channels=4, width=8).encoder.channels
    (8, 8, 16, 32, 64)
    """
    resolved = resolve_options(decoder, encoder, options)
    for name, num in (("in_channels", in_channels), ("out_channels", out_channels)):
        if num < 1:
            raise UsageError(f"{name} is {num}; a network has 1 or more")
    if decoder == KERAS:
        if encoder_weights is not None:
            raise UsageError(f"{KERAS} has no encoder of its own to load encoder_weights into")
        return KerasUNet(in_channels, out_channels=out_channels, **resolved)  # type: ignore[arg-type]
    ours, theirs = encoder_entry(encoder, encoder_weights), DECODERS[decoder]
    maps = ours.build(in_channels, **{name: resolved[name] for name in ours.defaults})
    taken = {name: value for name, value in resolved.items() if name in theirs.defaults}
    # Blocks of several convolutions drop between them; the others leave it to the head.
    inside = decoder == "unetplusplus" or resolved.get("decoder_convs", 1) != 1
    dropout = 0.0 if inside else float(taken.pop("dropout"))  # type: ignore[arg-type]
    parts = theirs.build(maps, **taken)
    final = nn.Conv2d(parts.out_channels, out_channels, 1)
    if not ours.has_own_start:
        he_initialise(maps)
    he_initialise(parts)
    initialise_head(final)
    head = nn.Sequential(nn.Dropout(dropout), final) if dropout else final
    model = EncoderDecoder(encoder=maps, decoder=parts, head=head)
    if encoder_weights is not None and not (ours.has_own_start and encoder_weights == TIMM_WEIGHTS):
        load_encoder_weights(model, encoder_weights, encoder=encoder, progress=progress)
    return model


def resolve_options(
    decoder: str, encoder: str, options: Mapping[str, Option] | None = None
) -> dict[str, Option]:
    """Return all options of a pair: both parts' defaults, changed by those given; UsageError.

    An option that both parts have is one option, and the decoder's default counts.

    >>> resolve_options("mlp", "mit_b0", {"width": 16})
    {'width': 16, 'drop_path': 0.1, 'decoder_width': 256, 'dropout': 0.1}
    """
    for what, name, known in (
        ("encoder", encoder, [*ENCODERS]),
        ("decoder", decoder, [*DECODERS, KERAS]),
    ):
        if name not in known and not (what == "encoder" and name.startswith(TIMM)):
            raise UsageError(f"there is no {what} {name}; {suggest(name, known)}")
    if decoder == KERAS:
        if encoder != "unet":
            raise UsageError(f"{KERAS} is a whole U-Net: its encoder is unet, not {encoder}")
        return _resolved(KERAS, _KERAS_OPTIONS, options or {})
    entry = encoder_entry(encoder)
    defaults = {**entry.defaults, **DECODERS[decoder].defaults}
    if entry.full_size:
        defaults.pop("final_convs", None)
    return _resolved(f"{decoder} on {encoder}", defaults, options or {})


def _resolved(
    network: str, defaults: Mapping[str, Option], options: Mapping[str, Option]
) -> dict[str, Option]:
    """Change a network's defaults; whole numbers become floats where those are meant."""
    resolved = dict(defaults)
    for name, value in options.items():
        if name not in defaults:
            raise UsageError(f"{network} has no option {name}; {suggest(name, defaults)}")
        rule = OPTIONS[name]
        if not rule.takes(value):
            told = f"option {name} of {network} is {value!r}; it takes {rule.accepted()}"
            raise UsageError(told)
        resolved[name] = float(value) if rule.kind is float else value  # type: ignore[arg-type]
    return resolved


def build_model(recipe: Recipe, *, progress: Progress = SILENT) -> nn.Module:
    """Build a recipe's network; its first weights follow from `train.seed` alone.

    A line names weights that were trained with another mean or deviation than the recipe's.
    Raises UsageError (unknown names, options, values) and DataError (encoder weights that can't be
    had).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = create_model(
            encoder_weights=recipe.model.encoder_weights,
            in_channels=recipe.input.channels,
            progress=progress,
            **recipe.model.arguments(),
        )
    if isinstance(model, EncoderDecoder) and model.encoder.trained_with is not None:
        _compare_preprocessing(recipe, *model.encoder.trained_with, progress)
    return model


def _compare_preprocessing(
    recipe: Recipe, mean: tuple[float, ...], std: tuple[float, ...], progress: Progress
) -> None:
    """Refuse a mean and deviation that nobody chose and timm's weights don't fit: UsageError."""
    fitting = recipe.input.model_copy(update={"mean": [*mean], "std": [*std]})
    given, wanted = recipe.input.preprocessing(), fitting.preprocessing()
    if (given.mean, given.std) == (wanted.mean, wanted.std):
        return
    told = (
        f"the weights of {recipe.model.encoder} were trained with input.mean={[*mean]} and "
        f"input.std={[*std]}"
    )
    if not {"mean", "std"} & recipe.input.model_fields_set:
        raise UsageError(f"{told}; set them")
    progress.say(f"{told}; the recipe states its own")


def num_parameters(model: nn.Module) -> int:
    """Count the numbers that training may change."""
    return sum(parameter.numel() for parameter in model.parameters())
