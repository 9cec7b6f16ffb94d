from typing import Any

import pytest
import torch

from binseg.errors import UsageError
from binseg.training import devices
from binseg.training.devices import resolve_device, resolve_precision

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


def test_slow_bf16_is_given_and_told(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for bf16 gets it, and hears where it is slow."""
    monkeypatch.setattr(devices, "computes_bf16", lambda device: False)
    listener = listen()
    assert resolve_precision("bf16", CPU, listener) == "bf16"
    assert "slower than fp32" in listener.lines[0]


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent GPU is an error when asked for, and no matter when not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(UsageError, match="sees no GPU"):
        resolve_device("cuda")
