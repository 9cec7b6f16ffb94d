"""Whether a network is translated by torch.compile before it trains."""

import shutil
from collections.abc import Callable

import torch
from torch import nn

from binseg.progress import Progress

__all__ = ["COMPILE_ADVICE", "compiled", "has_compiler", "is_of_compiler"]

COMPILE_ADVICE = "torch.compile can't translate this network here; set train.compile to false"
"""What a user hears where the compiler fails, which shows at the first step."""


def has_compiler(device: torch.device) -> bool:
    """Tell whether torch.compile can work here: it writes C++, or Triton for GPUs."""
    if device.type == "cuda":  # Triton builds its launchers in C
        has_c = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
        return has_c and torch.utils._triton.has_triton()
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def is_of_compiler(problem: BaseException) -> bool:
    """Tell an error of torch's compiler, which comes at the first step, from one of the step."""
    return type(problem).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))


def compiled(
    model: nn.Module,
    *,
    asked: bool,
    device: torch.device,
    progress: Progress,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give what computes a training step's logits: the network itself, or its translation.

    On a processor with bf16 a translated `unet-compact` was 1.02 times as fast at 128x128, after
    half a minute and more of compiling; on GPUs it wasn't measured yet.
    Weights are shared, and validation, checkpoints and bundles know nothing of it.

    Args:
        model: whose weights learn.
        asked: as in the recipe.
        device: that trains.
        progress: hears where there is no compiler.
    """
    if not asked:
        return model
    if not has_compiler(device):
        progress.say(
            "train.compile: there is no compiler here (g++, or Triton on a GPU); training without"
        )
        return model
    translated: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model)
    return translated
