"""`create_model` puts any encoder and any decoder together."""

from collections.abc import Mapping

import torch
from torch import nn

from binseg.config.named_models import Option
from binseg.config.recipe import Recipe
from binseg.errors import UsageError, suggest
from binseg.models.blocks import he_initialise, initialise_head
from binseg.models.decoders import DECODERS
from binseg.models.encoders import ENCODERS, TIMM, TIMM_WEIGHTS, encoder_entry
from binseg.models.keras_unet import KerasUNet
from binseg.models.option_rules import resolve
from binseg.models.skeleton import Decoder, Encoder, EncoderDecoder
from binseg.models.weights import load_encoder_weights
from binseg.progress import SILENT, Progress

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
        progress: is told what loading the weights left out or changed.
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
    model = _assembled(
        maps,
        theirs.build(maps, **taken),
        out_channels,
        dropout=_head_dropout(decoder, taken),
        has_own_start=ours.has_own_start,
    )
    if encoder_weights is not None and not (ours.has_own_start and encoder_weights == TIMM_WEIGHTS):
        load_encoder_weights(model, encoder_weights, encoder=encoder, progress=progress)
    return model


def _head_dropout(decoder: str, options: Mapping[str, Option]) -> float:
    """Return the share dropped before the head, where the decoder's blocks drop nothing."""
    inside = decoder == "unetplusplus" or options.get("decoder_convs", 1) != 1
    share = options["dropout"]
    assert isinstance(share, float)
    return 0.0 if inside else share


def _assembled(
    encoder: Encoder,
    decoder: Decoder,
    out_channels: int,
    *,
    dropout: float,
    has_own_start: bool,
) -> EncoderDecoder:
    """Put a 1x1 convolution on the decoder and sample first weights."""
    head = nn.Conv2d(decoder.out_channels, out_channels, 1)
    if not has_own_start:
        he_initialise(encoder)
    he_initialise(decoder)
    initialise_head(head)
    whole = nn.Sequential(nn.Dropout(dropout), head) if dropout > 0 else head
    return EncoderDecoder(encoder=encoder, decoder=decoder, head=whole)


def resolve_options(
    decoder: str, encoder: str, options: Mapping[str, Option] | None = None
) -> dict[str, Option]:
    """Return all options of a pair: both parts' defaults, changed by those given.

    An option that both parts have is one option, and the decoder's default counts.

    Raises:
        UsageError: an unknown name or option, or a value that the option doesn't take.

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
        return resolve(KERAS, _KERAS_OPTIONS, options or {})
    entry = encoder_entry(encoder)
    defaults = {**entry.defaults, **DECODERS[decoder].defaults}
    if entry.full_size:
        defaults.pop("final_convs", None)
    return resolve(f"{decoder} on {encoder}", defaults, options or {})


def build_model(recipe: Recipe, *, progress: Progress = SILENT) -> nn.Module:
    """Build a recipe's network; its first weights follow from `train.seed` alone.

    Weights that were trained on images with another mean or deviation than the recipe's are told.

    Raises:
        UsageError: an unknown name or option, or a value that the option doesn't take.
        DataError: encoder weights that can't be had, or don't fit.
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
        _compare_preprocessing(recipe, model.encoder.trained_with, progress)
    return model


def _compare_preprocessing(
    recipe: Recipe, trained_with: tuple[tuple[float, ...], tuple[float, ...]], progress: Progress
) -> None:
    """Refuse a mean and deviation that nobody chose and the encoder's weights don't fit.

    Raises:
        UsageError: the recipe leaves them to defaults that differ (timm's weights only: others
            set them in the recipe).
    """
    given = recipe.input.preprocessing()
    wanted = recipe.input.model_copy(
        update={"mean": [*trained_with[0]], "std": [*trained_with[1]]}
    ).preprocessing()
    if (given.mean, given.std) == (wanted.mean, wanted.std):
        return
    told = f"input.mean={[*trained_with[0]]} and input.std={[*trained_with[1]]}"
    if not {"mean", "std"} & recipe.input.model_fields_set:
        raise UsageError(
            f"the weights of {recipe.model.encoder} were trained with {told}; set them"
        )
    progress.say(
        f"the weights of {recipe.model.encoder} were trained with {told}; the recipe states its own"
    )


def num_parameters(model: nn.Module) -> int:
    """Count the numbers that training may change."""
    return sum(parameter.numel() for parameter in model.parameters())
