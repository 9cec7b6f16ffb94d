"""Published encoder weights: from a file or an address, by torchvision's names, never unpickled."""

import pickle
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urldefrag, urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from binseg.errors import DataError, UsageError
from binseg.models.skeleton import EncoderDecoder
from binseg.progress import SILENT, Progress
from binseg.storage import cache_dir, download

__all__ = ["load_encoder_weights"]

_CLASSIFIER = ("fc.", "classifier.")
"""Prefixes of torchvision's classifiers: the layers that a segmentation network leaves out."""
_OLD_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""DenseNet files still bear the names of an early torchvision: `denselayer1.norm.1.weight`."""


def load_encoder_weights(model: nn.Module, source: str, *, progress: Progress = SILENT) -> int:
    """Fill a model's encoder with weights from elsewhere; all of them, or an error.

    What the file holds beside the encoder (a classifier; the decoder of another binseg model) is
    left out, and said. Where the model takes other than 3 channels, the first convolution's
    weights for red, green and blue are summed (1 channel) or repeated in turn and scaled (n
    channels), so that its outputs keep their scale; that is said, too.

    Args:
        model: a network of `create_model`.
        source: a file (safetensors, or a state dict as torch saves it), or an https address that
            ends in `#sha256=` and the file's hash.
        progress: is told what was left out and changed.

    Returns:
        The number of tensors loaded.

    Raises:
        UsageError: the model has no encoder, or an address is not https or without a hash.
        DataError: the file is missing, unreadable, not what the hash says, or doesn't fit.
    """
    if not isinstance(model, EncoderDecoder):
        raise UsageError(
            f"{type(model).__name__} has no encoder of its own to load weights into; "
            "leave encoder_weights out, or take an encoder such as resnet34"
        )
    path = _fetch(source, progress=progress)
    given = _encoder_part(_read(path), name=path.name, progress=progress)
    encoder = model.encoder
    wanted = encoder.state_dict()
    _adapt_first(given, wanted, name=path.name, progress=progress)
    _check(given, wanted, name=path.name)
    encoder.load_state_dict({key: given.get(key, value) for key, value in wanted.items()})
    progress.say(f"{path.name}: {len(given)} tensors loaded into the encoder")
    return len(given)


def _fetch(source: str, *, progress: Progress) -> Path:
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
    path = cache_dir() / "weights" / f"{sha256[:12]}-{PurePosixPath(address.path).name}"
    return download(urldefrag(source).url, path, sha256=sha256, progress=progress)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing in it is executed."""
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
    whole_model = any(key.startswith("encoder.") for key in tensors)
    kept: dict[str, Tensor] = {}
    left_out: list[str] = []
    for key, value in tensors.items():
        if whole_model and key.startswith("encoder."):
            kept[key.removeprefix("encoder.")] = value
        elif whole_model or key.startswith(_CLASSIFIER):
            left_out.append(key)
        else:
            kept[_OLD_DENSE_LAYER.sub(r"\1\2", key)] = value
    if left_out:
        progress.say(f"{name}: left out {_some(left_out)}, which are not the encoder's")
    return kept


def _adapt_first(
    given: dict[str, Tensor], wanted: dict[str, Tensor], *, name: str, progress: Progress
) -> None:
    """Turn a first convolution on 3 channels into one on as many as the model takes, in place."""
    first = next((key for key, value in wanted.items() if value.ndim == 4), None)
    if first is None or first not in given or given[first].ndim != 4:
        return
    have, need = given[first].shape[1], wanted[first].shape[1]
    if have != 3 or need == 3:
        return
    rgb = given[first]
    if need == 1:
        given[first] = rgb.sum(dim=1, keepdim=True)
        how = "summed into 1"
    else:
        turns = [channel % 3 for channel in range(need)]
        given[first] = rgb[:, turns] * (3 / need)
        how = f"repeated in turn to {need} and scaled by 3/{need}"
    progress.say(f"{name}: the weights of {first} for 3 channels were {how}")


def _check(given: dict[str, Tensor], wanted: dict[str, Tensor], *, name: str) -> None:
    """Refuse a file that lacks something, has too much, or has other shapes."""
    # Files older than this counter lack it, and it matters to nothing here.
    missing = [
        key for key in wanted if key not in given and not key.endswith("num_batches_tracked")
    ]
    if missing:
        hint = ""
        if all(key.endswith(".bias") for key in missing):
            hint = ": this encoder's convolutions have biases, published ones have none; take "
            hint += "encoder_bias: false"
        raise DataError(f"{name}: lacks {_some(missing)} of the model's encoder{hint}")
    unknown = [key for key in given if key not in wanted]
    if unknown:
        raise DataError(f"{name}: has {_some(unknown)}, which the model's encoder lacks")
    for key, value in given.items():
        if value.shape != wanted[key].shape:
            raise DataError(
                f"{name}: {key} is {_by(value)}, the model's encoder has {_by(wanted[key])}; "
                "check the model and its width"
            )


def _some(keys: list[str]) -> str:
    """The first few names, and how many more."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more


def _by(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "one number"
