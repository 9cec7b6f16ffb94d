"""The torch runtime: a live `nn.Module`, in training or from a bundle, as a backend."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from binseg.errors import BundleError, UsageError, one_line
from binseg.models import create_model
from binseg.packaging import Bundle

MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}  # By autocast; weights stay float32


class TorchBackend:
    """A torch module as a backend: logits (N, 1, H, W) for inputs (N, C, H, W).

    The module, on `device` already, may be in the middle of its training: each call switches it to
    evaluation and back. `precision` is fp32, or one of `MIXED` for autocast.
    """

    def __init__(self, model: nn.Module, *, device: str = "cpu", precision: str = "fp32") -> None:
        assert precision == "fp32" or precision in MIXED, precision
        self.precision, self._model, self._device = precision, model, torch.device(device)

    @property
    def name(self) -> str:
        """The runtime and where it runs."""
        return f"torch {self._device}"

    def logits(self, inputs_NCHW: Float32[np.ndarray, "N C H W"]) -> Float32[np.ndarray, "N H W"]:
        """Compute the logits of a batch of normalised inputs."""
        inputs = torch.from_numpy(inputs_NCHW).to(self._device, memory_format=torch.channels_last)
        # An outer autocast may be on: this one overrules it either way,
        # and caches no casts, which would be inference tensors that training can't use.
        mixed, kind = MIXED.get(self.precision), self._device.type
        autocast = torch.autocast(kind, mixed, enabled=mixed is not None, cache_enabled=False)
        is_exact = kind == "cuda" and mixed is None
        with _evaluating(self._model, exactly=is_exact), torch.inference_mode(), autocast:
            try:
                logits_N1HW = self._model(inputs)
            except torch.OutOfMemoryError as problem:
                raise MemoryError(str(problem)) from None
        num, _, height, width = inputs_NCHW.shape
        assert logits_N1HW.shape == (num, 1, height, width), tuple(logits_N1HW.shape)
        result: np.ndarray = logits_N1HW[:, 0].float().cpu().numpy()
        return result


def open_torch(bundle: Bundle, *, device: str, precision: str) -> TorchBackend:
    """Build a bundle's network with its weights; raises UsageError and BundleError."""
    place = _choose_device(device)
    # This model is ours alone, so its weights may lie channels last as well: measured three times
    # faster in fp32 than channels-last inputs alone, with equal bits.
    model = folded(load_network(bundle))
    model.to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if place.startswith("cuda") and precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # for all threads; see `_evaluating`
    return TorchBackend(model, device=place, precision=precision)


def folded(model: nn.Module) -> nn.Module:
    """Fold batch norms into the convolutions right before them, in place, for evaluation alone."""
    model.eval()
    for parent in model.modules():
        if isinstance(parent, nn.Sequential):
            for (name, conv), (after, norm) in pairwise(list(parent.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                    setattr(parent, after, nn.Identity())
    return model


@contextmanager
def _evaluating(model: nn.Module, *, exactly: bool) -> Iterator[None]:
    """Switch every layer to evaluation and back; `exactly` keeps TF32 out of convolutions."""
    training = [module for module in model.modules() if module.training]
    before = torch.backends.cudnn.allow_tf32
    model.eval()
    if exactly:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
        for module in training:
            module.training = True


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: torch sees no CUDA GPU here; take cpu, or install a CUDA build of torch"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch sees no Apple GPU here; take cpu")
    return device


def load_network(bundle: Bundle) -> nn.Module:
    """Build the card's network with the bundle's weights in float32, once its size is believed."""
    weights = {
        name: one.astype(np.float32) if one.dtype == np.float16 else one
        for name, one in bundle.weights().items()
    }
    _check_claim(bundle, weights)
    with torch.device("meta"):  # costs nothing: a claim of terabytes is refused before it is made
        model = _build(bundle)
    expected = model.state_dict()
    _check_fit(bundle, expected, weights)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    if any(True for name, _ in model.named_buffers() if name not in expected):
        # Buffers that the state dict leaves out must be computed for real.
        model = _build(bundle)
        model.load_state_dict(tensors)
    else:
        model.load_state_dict(tensors, assign=True)
    return model


def _check_claim(bundle: Bundle, weights: Mapping[str, np.ndarray]) -> None:
    """Refuse a Keras network larger than its weights: Keras takes memory as it builds."""
    architecture = bundle.card.architecture
    width, depth = (architecture.options.get(name) for name in ("width", "depth"))
    if "keras" not in architecture.decoder or not (type(width) is int and type(depth) is int):
        return
    deepest = 9 * (width * 2 ** min(max(depth, 0), 16)) ** 2  # numbers of one convolution there
    if deepest > sum(one.size for one in weights.values()):
        raise BundleError(
            f"{bundle.path}: the card claims a network of width {width} and depth {depth}, which "
            "is larger than the weights"
        )


def _build(bundle: Bundle) -> nn.Module:
    try:
        return create_model(**bundle.card.architecture.arguments())
    except UsageError as error:
        raise BundleError(f"{bundle.path}: the card's architecture is unknown: {error}") from None


def _check_fit(
    bundle: Bundle, expected: Mapping[str, torch.Tensor], weights: Mapping[str, np.ndarray]
) -> None:
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is not in the network" for name in weights if name not in expected]
    for name in expected.keys() & weights.keys():
        want = (tuple(expected[name].shape), str(expected[name].dtype).removeprefix("torch."))
        got = (weights[name].shape, weights[name].dtype.name)
        if want != got:
            problems.append(f"{name} is {got[1]} {got[0]}, the network has {want[1]} {want[0]}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BundleError(
            f"{bundle.path}: the weights don't fit the card's architecture "
            f"{bundle.card.architecture.name}: {one_line(problems[0])}{more}"
        )
