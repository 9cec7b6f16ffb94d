"""The tutorial's U-Net (report C) made of Keras 3 layers, as a torch module like any other.

Keras builds the graph; the numbers are torch parameters of the wrapper, named after layers that we
name ourselves (`down1_conv1_kernel`, ...), and are handed to Keras call by call. So optimisers,
state dicts, copies and devices work as with any torch module.
"""

import os
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from binseg.errors import MissingExtraError, UsageError
from binseg.models.skeleton import crop_to

if TYPE_CHECKING:
    from types import ModuleType

KerasUp = Literal["transpose", "bilinear", "nearest"]


class _Graph:
    """A Keras model without numbers of its own: copies of a module may share it."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, object]) -> "_Graph":
        return self


class KerasUNet(nn.Module):
    """Conv2D, MaxPooling2D, Conv2DTranspose (or UpSampling2D) and Concatenate; logits out.

    The size of the input is brought to a multiple of 2**depth by repeating the edge, and the
    logits are cropped back.

    Args:
        in_channels: channels of the images.
        width: channels of the finest level.
        depth: number of poolings.
        up: how maps double in size.
        dropout: share of values dropped between the two convolutions of a block.
        out_channels: channels of the logits.
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
        with keras.device("cpu:0"):
            model = _built_by_keras(
                keras,
                in_out=(in_channels, out_channels),
                width=width,
                depth=depth,
                up=up,
                dropout=dropout,
            )
        self.graph = _Graph(model)
        self.names = tuple(_name(variable) for variable in model.trainable_variables)
        # Keras's random start follows torch's seed, as that of all other networks does.
        for name, variable in zip(self.names, model.trainable_variables, strict=True):
            value = torch.zeros(tuple(variable.shape))
            if name.endswith("kernel"):
                _he_normal(value)
            self.register_parameter(name, nn.Parameter(value))
        assert not model.non_trainable_variables, "the wrapper would not hand them over"

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits, one per input pixel and channel."""
        keras = _import_keras()
        height, width = images_BCHW.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = (
            functional.pad(images_BCHW, padding, mode="replicate") if any(padding) else images_BCHW
        )
        # Keras moves inputs to its own idea of a device, unless it is told.
        kind = "gpu" if images_BCHW.is_cuda else "cpu"
        with keras.device(f"{kind}:{images_BCHW.device.index or 0}"):
            logits, _ = self.graph.model.stateless_call(
                [self.get_parameter(name) for name in self.names],
                [],
                padded,
                training=self.training,
            )
        out: Tensor = crop_to(logits, (height, width))
        return out


def _import_keras() -> "ModuleType":
    """Import Keras on torch.

    Raises:
        MissingExtraError: Keras isn't installed.
        UsageError: Keras is set to another backend, or was imported on one.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "torch")
    if backend == "torch":
        try:
            import keras
        except ImportError as error:
            raise MissingExtraError(
                "keras", extra="keras", purpose="the decoder keras_unet"
            ) from error
        backend = keras.backend.backend()
    if backend != "torch":
        raise UsageError(
            f"Keras is set to run on {backend}, and keras_unet needs it on torch: "
            "set the environment variable KERAS_BACKEND=torch before Python starts"
        )
    return keras  # type: ignore[no-any-return]


def _name(variable: Any) -> str:
    """Turn a layer's name into a parameter's: `down1_conv1/kernel` becomes `down1_conv1_kernel`."""
    return str(variable.path).replace("/", "_")


def _he_normal(kernel: Tensor) -> None:
    """Keras's `he_normal`: normal, cut off at two deviations; Keras kernels are (h, w, in, out)."""
    fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    # The cut leaves 0.8796 of the deviation.
    std = (2 / fan_in) ** 0.5 / 0.87962566103423978
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)


def _built_by_keras(
    keras: Any,
    *,
    in_out: tuple[int, int],
    width: int,
    depth: int,
    up: KerasUp,
    dropout: float,
) -> Any:
    """Return the tutorial's network, as one writes it in Keras."""
    layers = keras.layers
    # Channels first saves turning every map around twice: torch computes that way.
    first = {"data_format": "channels_first"}

    class Drop(keras.Layer):  # type: ignore[misc]
        """Keras's Dropout by torch's random numbers, so that one seed governs the run.

        Keras's own keeps an integer seed as a torch parameter, which torch 2.13 refuses.
        """

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

    images = keras.Input((in_out[0], None, None), name="images")
    maps, skips = images, []
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
    # The sigmoid of the tutorial is left to the loss and the predictor, as everywhere here.
    logits = layers.Conv2D(in_out[1], 1, name="head", **first)(maps)
    return keras.Model(images, logits, name="keras_unet")
