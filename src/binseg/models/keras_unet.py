"""The tutorial's U-Net (report C) made of Keras 3 layers, as a torch module like any other.

Keras builds the graph; the numbers are torch parameters of the wrapper, named after layers that we
name ourselves (`down1_conv1_kernel`, ...), and are handed to Keras call by call. So optimisers,
state dicts, copies and devices work as with any torch module.
"""

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from binseg.errors import UsageError, needing
from binseg.models.skeleton import crop_to, size_of

if TYPE_CHECKING:
    from types import ModuleType

KerasUp = Literal["transpose", "bilinear", "nearest"]


@dataclass(frozen=True)
class _Graph:
    """A Keras model without numbers of its own: copies of a module may share it."""

    model: Any

    def __deepcopy__(self, memo: dict[int, object]) -> "_Graph":
        return self


class KerasUNet(nn.Module):
    """Conv2D, MaxPooling2D, Conv2DTranspose (or UpSampling2D) and Concatenate; logits out.

    The input's edge is repeated to a multiple of 2**depth, and the logits are cropped back.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        width: int,
        depth: int,
        up: KerasUp,
        dropout: float,
        out_channels: int = 1,
    ) -> None:
        super().__init__()
        keras = _import_keras()
        self.multiple = 2**depth
        # Channels first saves turning every map around twice: torch computes that way.
        first = {"data_format": "channels_first"}
        with keras.device("cpu:0"):
            images = keras.Input((in_channels, None, None), name="images")
            levels = partial(_levels, width=width, depth=depth, up=up, dropout=dropout)
            maps = levels(keras, images, first=first)
            # The sigmoid of the tutorial is left to the loss and the predictor, as everywhere here.
            logits = keras.layers.Conv2D(out_channels, 1, name="head", **first)(maps)
            model = keras.Model(images, logits, name="keras_unet")
        self.graph = _Graph(model)
        self.names: list[str] = []
        # Keras's random start follows torch's seed, as that of all other networks does.
        for variable in model.trainable_variables:
            # `down1_conv1/kernel` is no name for a parameter.
            self.names.append(str(variable.path).replace("/", "_"))
            value = torch.zeros(tuple(variable.shape))
            if self.names[-1].endswith("kernel"):
                _he_normal(value)
            self.register_parameter(self.names[-1], nn.Parameter(value))
        assert not model.non_trainable_variables, "the wrapper would not hand them over"

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits, one per input pixel and channel."""
        keras = _import_keras()
        height, width = size_of(images_BCHW)
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = images_BCHW
        if any(padding):
            padded = functional.pad(images_BCHW, padding, mode="replicate")
        # Keras moves inputs to its own idea of a device, unless one is given.
        kind = "gpu" if images_BCHW.is_cuda else "cpu"
        with keras.device(f"{kind}:{images_BCHW.device.index or 0}"):
            values = [self.get_parameter(name) for name in self.names]
            logits, _ = self.graph.model.stateless_call(values, [], padded, training=self.training)
        out: Tensor = crop_to(logits, (height, width))
        return out


def _import_keras() -> "ModuleType":
    """Import Keras on torch; MissingExtraError, or UsageError where it runs on another backend."""
    backend = os.environ.setdefault("KERAS_BACKEND", "torch")
    if backend == "torch":
        with needing("keras", extra="keras", purpose="the decoder keras_unet"):
            import keras
        backend = keras.backend.backend()
    if backend != "torch":
        raise UsageError(
            f"Keras is set to run on {backend}, and keras_unet needs it on torch: "
            "set the environment variable KERAS_BACKEND=torch before Python starts"
        )
    return keras  # type: ignore[no-any-return]


def _he_normal(kernel: Tensor) -> None:
    """Keras's `he_normal`: normal, cut off at two deviations; Keras kernels are (h, w, in, out)."""
    fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    # The cut leaves 0.8796 of the deviation.
    std = (2 / fan_in) ** 0.5 / 0.87962566103423978
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)


def _levels(
    keras: Any,
    maps: Any,
    *,
    width: int,
    depth: int,
    up: KerasUp,
    dropout: float,
    first: dict[str, str],
) -> Any:
    layers = keras.layers

    class Drop(keras.Layer):  # type: ignore[misc]
        """Keras's Dropout by torch's random numbers, so that one seed governs the run."""

        def call(self, maps: Any, *, training: bool = False) -> Any:
            return functional.dropout(maps, dropout, training=training)

    def block(maps: Any, channels: int, name: str) -> Any:
        conv = {"padding": "same", "activation": "relu", "kernel_initializer": "zeros", **first}
        maps = layers.Conv2D(channels, 3, name=f"{name}_conv1", **conv)(maps)
        if dropout > 0:
            maps = Drop(name=f"{name}_dropout")(maps)
        return layers.Conv2D(channels, 3, name=f"{name}_conv2", **conv)(maps)

    def double(maps: Any, channels: int, name: str) -> Any:
        if up == "transpose":
            return layers.Conv2DTranspose(channels, 2, strides=2, name=name, **first)(maps)
        maps = layers.Conv2D(channels, 1, name=name, **first)(maps)
        return layers.UpSampling2D(2, interpolation=up, name=f"{name}_resize", **first)(maps)

    skips = []
    for level in range(depth):
        maps = block(maps, width * 2**level, f"down{level + 1}")
        skips.append(maps)
        maps = layers.MaxPooling2D(2, name=f"down{level + 1}_pool", **first)(maps)
    maps = block(maps, width * 2**depth, "bottom")
    for level in reversed(range(depth)):
        channels = width * 2**level
        maps = double(maps, channels, f"up{level + 1}_double")
        maps = layers.Concatenate(axis=1, name=f"up{level + 1}_join")([skips[level], maps])
        maps = block(maps, channels, f"up{level + 1}")
    return maps
