"""Which runtime `auto` takes: the fastest that is there, was proven, and holds on this machine."""

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binseg.errors import BundleError, UsageError
from binseg.inference import opening, runtimes
from binseg.inference.opening import is_verified, remember_verified
from binseg.inference.runtimes import candidates, num_threads, open_backend, proofs_of
from binseg.packaging import NETWORK, NETWORK_INT8, PROOFS, Bundle, Card

Choosing = Callable[..., list[tuple[str, str]]]


def bundle_with(**agreements: float) -> Bundle:
    """A bundle that holds proofs, and nothing else; a negative figure is a failed proof."""
    proofs = {
        name.replace("_", " "): {"agreement": abs(value), "passed": value > 0}
        for name, value in agreements.items()
    }
    return held(json.dumps(proofs).encode())


class Held(Bundle):
    """A bundle whose proofs are in its card's name."""

    def read_bytes(self, name: str) -> bytes:
        assert name == PROOFS
        return self.card.name.encode()


def held(proofs: bytes) -> Bundle:
    """A bundle with such a list of proofs."""
    card = Card.model_construct(name=proofs.decode(), id="x")
    return Held(path=Path("b"), card=card, sha256={PROOFS: "", NETWORK: "n", NETWORK_INT8: "i"})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend what is installed, and what the processor can."""

    def pretend(*installed: str, bf16: bool = True, gpu: bool = False) -> None:
        real = importlib.util.find_spec
        ours = {"torch", "onnxruntime", "openvino"}
        monkeypatch.setattr(
            runtimes,
            "find_spec",
            lambda name: (object() if name in installed else None) if name in ours else real(name),
        )
        monkeypatch.setattr(runtimes, "computes_bf16", lambda: bf16)
        monkeypatch.setattr(runtimes, "_has_gpu", lambda: gpu)

    return pretend


ALL = ("torch", "onnxruntime", "openvino")
PROVEN = {"onnxruntime_fp32": 1.0, "openvino_fp32": 1.0, "openvino_bf16": 0.9995}


def test_the_fastest_that_is_installed_and_proven(here: Callable[..., None]) -> None:
    """bf16 where it was proven, then fp32, then torch; what isn't installed is passed over."""
    bundle = bundle_with(**PROVEN, openvino_int8=0.9999)
    here(*ALL)
    assert candidates(bundle) == [
        ("openvino", "bf16"),
        ("openvino", "fp32"),
        ("onnxruntime", "fp32"),
        ("torch", "fp32"),
    ]
    here("onnxruntime")
    assert candidates(bundle) == [("onnxruntime", "fp32")]
    here("torch")
    assert candidates(bundle) == [("torch", "fp32")]
    here()
    assert candidates(bundle) == [("torch", "fp32")], "whose absence is then told"


def test_precision_is_never_lowered_unproven(here: Callable[..., None]) -> None:
    """Below 0.999, failed, or on a processor without bf16: float32. int8 only when asked."""
    here(*ALL)
    low = bundle_with(openvino_fp32=1.0, openvino_bf16=0.9985)
    failed = bundle_with(openvino_fp32=1.0, openvino_bf16=-0.9995)
    for bundle in (low, failed):
        assert candidates(bundle)[0] == ("openvino", "fp32")
    here(*ALL, bf16=False)
    assert candidates(bundle_with(**PROVEN))[0] == ("openvino", "fp32")
    here(*ALL)
    bundle = bundle_with(**PROVEN, openvino_int8=0.98)
    assert candidates(bundle, precision="int8")[0] == ("openvino", "int8")
    assert candidates(bundle, precision="fp32")[0] == ("openvino", "fp32")
    assert candidates(bundle_with(), precision="bf16") == [("torch", "bf16")]


def test_what_is_named_is_taken(here: Callable[..., None]) -> None:
    """A named runtime computes in float32 unless a precision is named too; a GPU means torch."""
    here(*ALL)
    bundle = bundle_with(**PROVEN)
    assert candidates(bundle, name="openvino") == [("openvino", "fp32")]
    assert candidates(bundle, name="torch", precision="bf16") == [("torch", "bf16")]
    assert candidates(bundle, device="cuda") == [("torch", "fp32")]
    here(*ALL, gpu=True)
    assert candidates(bundle) == [("torch", "fp32")]
    assert candidates(bundle, device="cpu")[0] == ("openvino", "bf16")
    with pytest.raises(UsageError, match="did you mean openvino"):
        candidates(bundle, name="openvin")


def test_damaged_proofs_are_told() -> None:
    """A list that isn't one is the bundle's fault."""
    bundle = bundle_with()
    for text in (b"[1]", b"{", b'{"a": {}}', b'{"a": 3}'):
        with pytest.raises(BundleError, match="damaged; export"):
            proofs_of(held(text))
    assert proofs_of(bundle) == {}


def test_a_machine_remembers_what_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By network, runtime and precision; a cache that can't be written only costs time."""
    monkeypatch.setenv("BINSEG_CACHE", str(tmp_path / "cache"))
    bundle = bundle_with(**PROVEN)
    assert not is_verified(bundle, "onnxruntime", "fp32")
    remember_verified(bundle, "onnxruntime", "fp32")
    assert is_verified(bundle, "onnxruntime", "fp32")
    assert not is_verified(bundle, "onnxruntime", "int8")
    (tmp_path / "file").touch()
    monkeypatch.setenv("BINSEG_CACHE", str(tmp_path / "file"))
    remember_verified(bundle, "onnxruntime", "fp32")
    assert not is_verified(bundle, "onnxruntime", "fp32")


def test_a_runtime_that_fails_here_is_passed_over_and_said(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was proven elsewhere and answers otherwise here gives way to the next."""

    class Wrong:
        name, precision = "openvino cpu", "fp32"

        def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
            return np.full((len(inputs_NCHW), *inputs_NCHW.shape[2:]), 9.0, np.float32)

    real = open_backend

    def opened(bundle: Bundle, *, name: str, **settings: Any) -> Any:
        return Wrong() if name == "openvino" else real(bundle, name=name, **settings)

    monkeypatch.setattr(opening, "open_backend", opened)
    monkeypatch.setattr(opening, "is_verified", lambda *_: False)
    chosen = [("openvino", "fp32"), ("torch", "fp32")]
    monkeypatch.setattr(opening, "candidates", lambda *_, **__: chosen)
    with caplog.at_level(logging.WARNING, "binseg"):
        assert opening.load(trained).backend.name == "torch cpu"
    assert "answers the reference sample otherwise" in caplog.text
    chosen.pop()
    with pytest.raises(BundleError, match="no installed runtime"):
        opening.load(trained)


def test_threads_are_those_that_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS where it is set, else the cores of this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert num_threads() >= 1
