"""A proof is figures that can be done by hand, and files carry it with them."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from binseg.errors import BundleError
from binseg.packaging.networks import LIMITS, Facts, Proof, open_file, prove

FACTS = Facts(
    card={"name": "cracks"},
    threshold=0.4,
    input={"how": "stretch"},
    proof={"precision": "fp32"},
    reference_HWC=np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    reference_HW=np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4),
)


def answer(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def proof_of(ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray | None = None) -> Proof:
    return prove(
        lambda _: ours,
        lambda _: theirs,
        [np.zeros((1, 4, 3), np.uint8)],
        threshold=0.5,
        runtime="r",
        precision="fp32",
        beside="torch",
        limits=LIMITS["fp32"],
        truths=[truth],
    )


def test_figures_are_those_done_by_hand() -> None:
    """Differences, agreement and Dice of a shifted answer."""
    truth = np.array([[True, True, False, False]])
    proof = proof_of(answer(0.9, 0.9, 0.1, 0.1), answer(0.9, 0.4, 0.1, 0.1), truth)
    assert proof.largest_difference == pytest.approx(0.5)
    assert proof.mean_difference == pytest.approx(0.125)
    assert proof.agreement == 0.5
    assert proof.dice_change == pytest.approx(2 / 3 - 1)
    assert not proof.passed
    assert proof.as_dict()["passed"] is False


def test_equal_answers_pass_and_empty_masks_agree() -> None:
    """Nothing found on both sides is agreement; without truth there is no Dice."""
    proof = proof_of(answer(0.1, 0.1, 0.1, 0.1), answer(0.1, 0.1, 0.1, 0.1))
    assert proof.passed
    assert proof.agreement == 1.0
    assert proof.dice_change is None


def test_without_truth_masks_must_agree_more() -> None:
    """Dice tells how much a changed mask matters; where it is unknown, less may change."""
    limits = replace(LIMITS["int8"], agreement=0.4, agreement_alone=0.6)
    ours, theirs = answer(0.9, 0.9, 0.1, 0.1), answer(0.9, 0.4, 0.1, 0.1)
    alone = replace(proof_of(ours, theirs), limits=limits)
    assert alone.agreement == 0.5
    assert not alone.passed
    assert replace(alone, dice_change=0.001).passed


@pytest.mark.parametrize(
    "broken", [{"largest_difference": 0.02}, {"agreement": 0.998}, {"dice_change": -0.001}]
)
def test_each_limit_counts(broken: dict[str, float]) -> None:
    """One figure beyond its limit fails the proof, better or worse."""
    good = proof_of(answer(0.9, 0.1, 0.1, 0.1), answer(0.9, 0.1, 0.1, 0.1))
    assert good.passed
    assert not replace(good, **broken).passed  # type: ignore[arg-type]


def test_facts_come_back_from_text() -> None:
    """Card, threshold, reference sample: the same bytes after the way through metadata."""
    found = Facts.of_text(FACTS.as_text())
    assert (found.card, found.threshold, found.input) == (FACTS.card, 0.4, FACTS.input)
    np.testing.assert_array_equal(found.reference_HWC, FACTS.reference_HWC)
    np.testing.assert_array_equal(found.reference_HW, FACTS.reference_HW)


def zipped(parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return buffer.getvalue()


TEXT = json.dumps(FACTS.as_text()).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"PK\x03\x04 cut off",
        zipped({"a": b"b"}),
        zipped({"model.xml": b"", "model.bin": b""}),
        zipped({"model.xml": b"<net/>", "model.bin": b"", "metadata.json": b"[]"}),
        zipped({"model.xml": b"<net/>", "model.bin": b"", "metadata.json": b'{"binseg.card": 1}'}),
        zipped({"model.xml": b"<net/>", "model.bin": b"", "metadata.json": TEXT}),
        zipped({"model.xml": b"0" * 10**6, "metadata.json": TEXT}, zipfile.ZIP_DEFLATED),
    ],
)
@pytest.mark.parametrize("target", ["onnx", "openvino", "torch"])
def test_foreign_and_damaged_files_are_one_line(data: bytes, target: str) -> None:
    """Whatever is in a file, it is refused with its name, without a traceback."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    with pytest.raises(BundleError, match=r"some\.file: not exported by binseg, or damaged"):
        open_file(data, target, name="some.file")
