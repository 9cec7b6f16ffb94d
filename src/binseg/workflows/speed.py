"""How fast this machine trains: a few real steps, in seconds rather than minutes.

The network that the others are compared with is measured each time, since a machine may be busier
or throttled today. How much slower the others are hardly changes, so that it is measured once and
remembered in the cache folder, by machine, precision, network and options.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from binseg.config import Recipe, load_recipe
from binseg.config.recipe import Option
from binseg.data.cache import PixelCache
from binseg.errors import OutputError
from binseg.models.zoo import build_model
from binseg.planning import Machine
from binseg.planning.resolution import THICK_OPTIONS
from binseg.progress import SILENT, Progress
from binseg.storage import cache_dir, write_json
from binseg.training.measuring import WARM_UP, profile_steps
from binseg.training.memory import available_memory, estimate_memory
from binseg.training.precision import resolve_device, resolve_precision

__all__ = ["measure_machine"]

LONG = 4 * 3600.0
"""Seconds from which the large network may be worth its time on a processor."""
REFERENCE = "unet-compact"
CANDIDATES: Mapping[str, Mapping[str, Option]] = MappingProxyType(
    {REFERENCE: {}, "unet-small": {}, "unet": dict(THICK_OPTIONS)}
)
"""Networks that the rules choose from, with their options."""
LARGE = "resnet34-unet"
TRIAL_SIZE, QUICK_TRIAL_SIZE, TRIAL_BATCH, TRIAL_STEPS = 192, 96, 4, 3
MEMORY_SIZE = 96
"""Of the inputs that tell the memory: what a network keeps grows with the pixels."""
LIMIT = 10.0
"""Seconds that measuring may take; a network that doesn't fit any more is told from the first."""
TRIAL_SHARE = 0.03
"""Likewise of the budget."""
RELATIVE: Mapping[str, float] = MappingProxyType(
    {REFERENCE: 1.0, "unet-small": 1.85, "unet": 2.9, LARGE: 5.9}
)
"""Seconds a pixel of the candidates, as measured on one core that computes in bf16."""
QUICK = 180.0
"""Seconds of a budget below which the machine is measured in haste."""


def measure_machine(
    asked: Recipe, given: Mapping[str, object], budget: float | None, progress: Progress
) -> Machine:
    """Time a few steps of the networks in question; pictures needn't be real for that.

    Args:
        asked: device, precision, loss and network, where the user chose them.
        given: what the user chose, by dotted keys.
        budget: seconds for the whole run; None where time doesn't matter.
        progress: told of every network.
    """
    started = time.perf_counter()
    device = resolve_device(asked.train.device)
    bf16 = resolve_precision(asked.train.precision, device, SILENT) == "bf16"
    candidates = dict(CANDIDATES)
    if device.type == "cuda" or budget is None or budget >= LONG:
        candidates[LARGE] = {}
    if "model.name" in given:
        candidates = {asked.model.name: asked.model.options}
    size = TRIAL_SIZE if budget is None or budget > QUICK else QUICK_TRIAL_SIZE
    limit = LIMIT if budget is None else min(LIMIT, TRIAL_SHARE * budget)
    seconds: dict[str, float] = {}
    memory: dict[str, float] = {}
    with progress.task("measuring the machine", total=len(candidates)) as task:
        for name, options in candidates.items():
            recipe = _trial_recipe(asked, name, options, size)
            model = _build(recipe)
            memory[name] = _bytes_per_megapixel(model, recipe, bf16=bf16)
            known = seconds.get(REFERENCE)
            remembered = _remembered(device, recipe, bf16=bf16)
            if known is not None and remembered is not None:
                seconds[name] = known * remembered
            elif known is not None and (
                time.perf_counter() - started + _expected(known * RELATIVE[name], size) > limit
            ):
                seconds[name] = known * RELATIVE[name]
            else:
                seconds[name] = _time_steps(model, recipe, device, bf16=bf16)
                if known is not None:
                    _remember(device, recipe, seconds[name] / known, bf16=bf16)
            task.advance()
    return Machine(
        device=device.type,
        cores=torch.get_num_threads() if device.type == "cpu" else os.cpu_count() or 1,
        seconds_per_megapixel=seconds,
        free_bytes=available_memory(device),
        bytes_per_megapixel=memory,
    )


def _expected(seconds_per_megapixel: float, size: int) -> float:
    """What a measurement takes, the steps that warm up included."""
    return (WARM_UP + TRIAL_STEPS) * TRIAL_BATCH * size**2 / 1e6 * seconds_per_megapixel


def _time_steps(
    model: torch.nn.Module, recipe: Recipe, device: torch.device, *, bf16: bool
) -> float:
    profile = profile_steps(
        model, recipe, _trial_cache(recipe), device=device, bf16=bf16, num_steps=TRIAL_STEPS
    )
    return profile.step_seconds / profile.num_inputs / (recipe.input.size**2 / 1e6)


def _bytes_per_megapixel(model: torch.nn.Module, recipe: Recipe, *, bf16: bool) -> float:
    estimate = estimate_memory(model, recipe, size=MEMORY_SIZE, bf16=bf16)
    return estimate.per_input / (MEMORY_SIZE**2 / 1e6)


def _note_path(device: torch.device, recipe: Recipe, *, bf16: bool) -> Path:
    """Where a ratio is kept; whatever could change it is in the name."""
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    facts = [
        *(platform.node(), chip, threads, bf16, torch.__version__),
        *(recipe.input.size, recipe.model.name, dict(recipe.model.options)),
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / "speed" / f"{key}.json"


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def _remembered(device: torch.device, recipe: Recipe, *, bf16: bool) -> float | None:
    """How many times the reference's seconds this network takes, if that was measured before."""
    path = _note_path(device, recipe, bf16=bf16)
    try:
        ratio = json.loads(path.read_text("utf-8"))["ratio"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: it is measured again
    return float(ratio) if isinstance(ratio, int | float) and 0.1 < ratio < 100 else None


def _remember(device: torch.device, recipe: Recipe, ratio: float, *, bf16: bool) -> None:
    path = _note_path(device, recipe, bf16=bf16)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"network": recipe.model.name, "ratio": round(ratio, 3)})
    except (OSError, OutputError):
        return  # a cache that can't be written costs seconds next time, nothing else


def _trial_recipe(asked: Recipe, name: str, options: Mapping[str, Option], size: int) -> Recipe:
    """Steps as the plan's will be: its usual augmentation."""
    return load_recipe(
        sections={
            "input": {"size": size, "channels": 3},
            "model": {"name": name, "options": dict(options)},
            "augment": {"preset": "medium", "orientation": "any"},
            "loss": {"name": asked.loss.name, "options": dict(asked.loss.options)},
            "train": {"batch_size": TRIAL_BATCH},
        }
    )


def _build(recipe: Recipe) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(recipe.model.name, in_channels=3, options=recipe.model.options)


def _trial_cache(recipe: Recipe) -> PixelCache:
    size = recipe.input.size
    random = np.random.default_rng(0)
    shape = (2 * TRIAL_BATCH, size, size)
    return PixelCache(
        inputs_NHWC=random.integers(0, 256, (*shape, 3), dtype=np.uint8),
        targets_NHW=random.integers(0, 2, shape, dtype=np.uint8),
        record_of_N=np.arange(shape[0]),
    )
