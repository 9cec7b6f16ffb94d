"""The device, number format and compiler that a run computes with, and the memory it takes."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.errors import TrainingError, UsageError
from binseg.inference import runtimes
from binseg.progress import Detail, Progress

if TYPE_CHECKING:
    from binseg.training.distributed import Ranks

COMPILE_ADVICE = "torch.compile can't translate this network here; set train.compile to false"
"""Advice to the user where the compiler fails, which shows at the first step."""
STATES = {"adam": 2, "adamw": 2, "sgd": 1}  # numbers that an optimiser keeps for each weight
WORKSPACE = 2.0
"""Backward passes hold gradients of maps and scratch space beside what forward passes keep; the
factor is from measured peaks of unet-compact, unet-small and resnet34-unet (1.3 to 2.2)."""

DOUBT = 1.6
"""The estimate may be so many times too high; only what is beyond doubt too much is refused."""
NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
"""Parts of torch's messages where the processor's memory is full."""


def resolve_device(asked: str) -> torch.device:
    """Give the device of a run; `auto` takes a GPU where torch sees one."""
    has_cuda = torch.cuda.is_available()
    is_there = {"cuda": has_cuda, "mps": torch.backends.mps.is_available()}
    if not is_there.get(asked, True):
        kind = "GPU" if asked == "cuda" else "Apple GPU"
        advice = f"torch sees no {kind} here; take cpu, or leave it out"
        raise UsageError(f"--device {asked} (train.device): {advice}")
    if asked == "mps":
        return torch.device("mps", 0)
    if asked == "cpu" or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def computes_bf16(device: torch.device) -> bool:
    """Tell whether the device multiplies bf16 in hardware; software bf16 is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":  # only newer ones do, and torch doesn't say which
        return False
    return runtimes.computes_bf16()


def resolve_precision(
    asked: Literal["auto", "bf16", "fp16", "fp32"], device: torch.device, progress: Progress
) -> Literal["bf16", "fp16", "fp32"]:
    """Give the number format of a run, and say where it was a poor choice."""
    fast = computes_bf16(device)
    if asked == "auto":
        return "bf16" if fast else "fp32"
    if (asked == "bf16" and not fast) or (asked == "fp16" and device.type == "cpu"):
        progress.say(
            f"precision {asked}: this {device.type} computes it in software, slower than fp32"
        )
    return asked


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
    model: nn.Module, *, asked: bool, device: torch.device, progress: Progress
) -> nn.Module:
    """Give what computes a training step's logits: the network itself, or its translation.

    On a processor with bf16 a translated `unet-compact` was 1.02 times as fast at 128x128, after
    half a minute of compiling. Where there is no compiler, that is said, and the network is used.
    """
    if asked and not has_compiler(device):
        missing = "there is no compiler here (g++, or Triton on a GPU)"
        progress.say(f"train.compile: {missing}; training without")
    if not (asked and has_compiler(device)):
        return model
    translated: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return translated


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a run's network; the pixel cache is mapped from disk and not counted."""

    fixed: int  # weights, gradients, the optimiser's numbers and the moving average
    per_input: int  # bytes that each input of a batch adds
    batch_size: int

    @property
    def total(self) -> int:
        """Bytes at the batch size."""
        return self.fixed + self.batch_size * self.per_input

    def largest_batch(self, available: int) -> int:
        """The largest batch that fits into so many bytes; 0 where not even one input does."""
        return max(0, (available - self.fixed) // max(1, self.per_input))


def estimate_memory(
    model: nn.Module, recipe: Recipe, *, size: int | None = None, bf16: bool = False
) -> MemoryEstimate:
    """Estimate from what autograd keeps of one and two inputs; `size` is their side."""
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    copies = 2 + STATES[recipe.optimizer.name] + (recipe.train.ema_decay > 0)
    side, channels = size or recipe.input.size, recipe.input.channels
    was_training = model.training
    model.eval()  # batch norm must neither learn from zeros nor refuse a single image
    try:
        one, two = (_kept(model, (num, channels, side, side), bf16=bf16) for num in (1, 2))
    finally:
        model.train(was_training)
    # What doesn't grow with the batch are weights cast to bf16.
    return MemoryEstimate(
        fixed=copies * weights + max(0, 2 * one - two),
        per_input=round(WORKSPACE * (two - one)),
        batch_size=recipe.train.batch_size,
    )


def _kept(model: nn.Module, shape: tuple[int, int, int, int], *, bf16: bool) -> int:
    """Bytes that autograd keeps of a forward pass, weights left out."""
    kept: dict[int, int] = {}
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(model.parameters()).device
    images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        torch.enable_grad(),
    ):
        logits = model(images)  # held, so that no storage is given to a later tensor
        del logits
    return sum(kept.values())


def available_memory(device: torch.device) -> int | None:
    """Free bytes of the GPU, or of the machine; None where the system doesn't tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return _physical_memory()
    told = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if told is None else min(int(told) * 1024, _container_limit())


def _container_limit() -> int:
    """Return the bytes that a container's control group leaves; a huge number outside of one."""
    home = Path("/sys/fs/cgroup")
    try:
        limit = (home / "memory.max").read_text(encoding="ascii").strip()
        used = int((home / "memory.current").read_text(encoding="ascii"))
        # Files that were read count as used, until someone needs the room.
        rows = (home / "memory.stat").read_text(encoding="ascii").splitlines()
        stat = dict(row.split() for row in rows)
        used -= int(stat["inactive_file"]) + int(stat["active_file"])
        return max(0, int(limit) - used) if limit != "max" else 2**62
    except (OSError, ValueError, KeyError):
        return 2**62


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_memory(
    model: nn.Module,
    recipe: Recipe,
    *,
    bf16: bool,
    ranks: "Ranks",
    progress: Progress,
) -> MemoryEstimate:
    """Say what a rank's share will take of what there is; TrainingError if it can't fit."""
    device = next(model.parameters()).device
    free = available_memory(device)
    if free is not None and device.type == "cpu":
        free //= ranks.local_world_size  # which all live in it
    try:
        estimate = estimate_memory(model, recipe, bf16=bf16)
    except (torch.OutOfMemoryError, MemoryError):
        raise TrainingError(lacking_memory(recipe, device)) from None
    world_size = ranks.world_size
    share = replace(estimate, batch_size=-(-estimate.batch_size // world_size))
    where = "of the GPU's memory" if device.type == "cuda" else "of memory"
    each = " in each process" if world_size > 1 else ""
    there = where if free is None else f"of {_gib(free)} {where} that are free"
    progress.say(Detail(f"needs about {_gib(share.total)}{each} {there}"))
    if free is not None and share.fixed + share.batch_size * share.per_input / DOUBT > free:
        fits = world_size * share.largest_batch(free)
        raise TrainingError(lacking_memory(recipe, device, fits=fits))
    return share


def lacking_memory(recipe: Recipe, device: torch.device, *, fits: int | None = None) -> str:
    """Say that a batch doesn't fit, and which smaller one gives nearly the same run."""
    config = recipe.train
    whose = "the GPU's memory" if device.type == "cuda" else "the memory"
    if fits == 0:
        return (
            f"{whose} is too small for even one input of {recipe.input.size}x{recipe.input.size}; "
            "lower input.size or take a smaller model"
        )
    parts = 2
    while fits is not None and parts < config.batch_size and config.batch_size // parts > fits:
        parts *= 2
    smaller = config.batch_size // parts
    advice = (
        f"set train.batch_size to {smaller} and train.accumulate to {config.accumulate * parts}"
        if smaller
        else f"set input.size below {recipe.input.size}"
    )
    return f"{whose} is too small for batches of {config.batch_size}; {advice}"


def _gib(num_bytes: int) -> str:
    if num_bytes < 2**30:
        return f"{-(-num_bytes >> 20)} MiB"
    return f"{num_bytes / 2**30:.1f} GiB"
