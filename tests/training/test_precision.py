import math
from pathlib import Path
from typing import Any

import pytest
import torch

from binseg.errors import UsageError
from binseg.training import devices
from binseg.training.devices import resolve_device, resolve_precision
from binseg.training.step import CALM_STEPS, FIRST_SCALE, TrainingStep

CPU = torch.device("cpu")


def test_auto_takes_bf16_only_where_it_is_fast(
    listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` follows the processor, silently."""
    listener = listen()
    for fast, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(devices, "computes_bf16", lambda device, fast=fast: fast)
        assert resolve_precision("auto", CPU, listener) == expected
        assert resolve_precision("fp32", CPU, listener) == "fp32"
    assert listener.lines == []


def test_an_apple_gpu_is_taken_where_it_is_and_asked_for(
    listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as another machine can tell: `mps` is never taken unasked, and computes in float32."""
    for is_there in (False, True):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda is_there=is_there: is_there)
        assert resolve_device("auto").type != "mps"
        if is_there:
            assert resolve_device("mps") == torch.device("mps", 0)
            assert resolve_precision("auto", torch.device("mps", 0), listen()) == "fp32"
        else:
            with pytest.raises(UsageError, match=r"--device mps .*no Apple GPU"):
                resolve_device("mps")


def test_slow_bf16_is_given_and_told(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for bf16 gets it, and hears where it is slow."""
    monkeypatch.setattr(devices, "computes_bf16", lambda device: False)
    listener = listen()
    assert resolve_precision("bf16", CPU, listener) == "bf16"
    assert "slower than fp32" in listener.lines[0]
    assert resolve_precision("fp16", CPU, listener) == "fp16"
    assert "fp16" in listener.lines[1]


def test_fp16_learns_what_float32_learns(run: Any, tmp_path: Path) -> None:
    """Gradients too small for fp16 survive in a scaled loss: both runs have nearly equal losses."""
    settings = {"train__epochs": 2, "schedule__name": "none", "augment__preset": "none"}
    half, full = (
        run(folder=tmp_path / kind, train__precision=kind, **settings) for kind in ("fp16", "fp32")
    )
    assert half.precision == "fp16"
    losses = [[row["train_loss"] for row in one.history] for one in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_a_loss_that_overflows_fp16_is_scaled_less(recipe: Any, network: Any) -> None:
    """The factor halves at each step whose gradient is infinite, and grows back after calm ones."""
    step = TrainingStep(network(), recipe(), device=CPU, precision="fp16")
    weight = next(step.model.parameters())
    weight.grad = torch.full_like(weight, float("inf"))
    assert not math.isfinite(step.clip())
    weight.grad = torch.full_like(weight, FIRST_SCALE / 2)
    assert step.clip() == pytest.approx(weight.numel() ** 0.5)
    for _ in range(CALM_STEPS - 1):
        step.clip()
    weight.grad = torch.full_like(weight, FIRST_SCALE)
    assert step.clip() == pytest.approx(weight.numel() ** 0.5)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent GPU is an error when asked for, and no matter when not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(UsageError, match="sees no GPU"):
        resolve_device("cuda")
