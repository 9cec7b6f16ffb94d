"""Which device and number format a run computes in, and why."""

from pathlib import Path
from typing import Literal

import torch

from binseg.errors import UsageError
from binseg.progress import Progress

__all__ = ["computes_bf16", "resolve_device", "resolve_precision"]

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Processor flags (x86, ARM) that say bf16 products run in hardware."""


def resolve_device(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Give the device of a run; `auto` takes a GPU where torch sees one."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device: cuda was asked for, but torch sees no GPU here; use device: cpu or auto"
        )
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def computes_bf16(device: torch.device) -> bool:
    """Tell whether the device multiplies bf16 in hardware; software bf16 is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            return bool(BF16_FLAGS & set(flags.split()))
    return False


def resolve_precision(
    asked: Literal["auto", "bf16", "fp32"], device: torch.device, progress: Progress
) -> Literal["bf16", "fp32"]:
    """Give the number format of a run, and say where it was a poor choice."""
    fast = computes_bf16(device)
    if asked == "auto":
        return "bf16" if fast else "fp32"
    if asked == "bf16" and not fast:
        progress.say(
            f"precision bf16: this {device.type} computes it in software, slower than fp32"
        )
    return asked
