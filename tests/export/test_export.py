"""Exported models answer like their origin, in runtimes that know nothing of binseg."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from binseg.backends import open_backend
from binseg.bundle import NETWORK, read_bundle
from binseg.errors import BundleError, ExportError, UsageError
from binseg.export import LIMITS, Proof, RawPixels, core_onnx, prove
from binseg.export.core import to_onnx
from binseg.models.zoo import MODELS, build_model
from binseg.predictor import Predictor, load
from binseg.structures import Preprocessing
from binseg.workflows.export import export_model
from binseg.workflows.verify import verify

onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")

SIZES = ((1, 9), (31, 64), (32, 32), (64, 64), (77, 50), (200, 150))
NAMES = {"onnx": "m.onnx", "openvino": "m.openvino.zip", "torch": "m.pt2"}
SMALL = {
    "segformer-b0": {"width": 4, "decoder_width": 8},
    "resnet34-fpn": {"width": 4, "decoder_width": 8},
    "resnet34-psp": {"width": 4, "decoder_width": 8},
}


def pictures(seed: int = 0) -> list[np.ndarray]:
    """Smooth colour pictures of odd sizes."""
    random = np.random.default_rng(seed)
    made = []
    for height, width in SIZES:
        small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        made.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)))
    return made


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A network whose answer varies with the picture."""
    torch.manual_seed(0)
    return build_model("unet-compact", options={"width": 4}).eval()


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_preprocessing_is_inside_the_graph(network: torch.nn.Module, fit: str) -> None:
    """Raw pixels of any size give what binseg's own preprocessing and resizing give."""
    from binseg.backends.torch_backend import TorchBackend

    preprocessing = Preprocessing(height=32, width=32, fit=fit)  # type: ignore[arg-type]
    ours = Predictor(
        backend=TorchBackend(network),
        preprocessing=preprocessing,
        threshold=0.5,
        bundle_id="x",
        temperature=1.7,
    )
    raw = RawPixels(network, preprocessing, temperature=1.7).eval()
    data = to_onnx(
        raw,
        torch.zeros(37, 53, 3, dtype=torch.uint8),
        names=("pixels", "probability"),
        dynamic={name: {0: "height", 1: "width"} for name in ("pixels", "probability")},
    )
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for image in pictures():
        expected = ours.predict(image).probability_HW
        for found in (session.run(None, {"pixels": image})[0], compiled(image)[0]):
            assert found.shape == expected.shape
            # A level of 255 may be rounded otherwise where sums are in another order.
            assert np.abs(found - expected).max() < 0.01
            assert np.abs(found - expected).mean() < 0.001


@pytest.mark.parametrize("name", [name for name in MODELS if name != "keras-unet"])
def test_every_network_of_the_zoo_is_exported(name: str) -> None:
    """In batches of other numbers than the traced one, at an odd input size."""
    torch.manual_seed(0)
    model = build_model(name, options=SMALL.get(name, {"width": 4})).eval()
    preprocessing = Preprocessing(height=45, width=67)
    data = core_onnx(model, preprocessing)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    inputs = torch.randn(3, 3, 45, 67)
    with torch.inference_mode():
        expected = model(inputs).numpy()
    found = session.run(None, {"inputs": inputs.numpy()})[0]
    assert found.shape == expected.shape == (3, 1, 45, 67)
    assert np.abs(found - expected).max() < 1e-3 * max(1.0, float(np.abs(expected).max()))


def test_what_no_graph_can_hold_is_refused(network: torch.nn.Module) -> None:
    """Tiles and percentiles: one sentence with the way out."""
    shape = Preprocessing(height=32, width=32)
    for changed in (replace(shape, fit="tile"), replace(shape, intensity="percentile")):
        with pytest.raises(UsageError, match="--to bundle"):
            RawPixels(network, changed, temperature=1.0)


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of our own, to which files may be added."""
    folder = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(trained, folder)
    return folder


def test_files_open_without_binseg(run: Path) -> None:
    """Three lines of plain onnxruntime and openvino; the card and the threshold are inside."""
    model = load(run, backend="torch")
    image = pictures()[4]
    expected = model.predict(image).probability_HW
    made = export_model(run, target="onnx")
    assert made.path == run / "run.onnx"
    assert not list(run.glob("*.data")), "weights are in the file"
    code = (
        "import sys, numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(made.path)!r})\n"
        f"pixels = numpy.load({str(run / 'pixels.npy')!r})\n"
        "probability = session.run(None, {'pixels': pixels})[0]\n"
        "facts = session.get_modelmeta().custom_metadata_map\n"
        "assert not any(name.startswith('binseg') for name in sys.modules)\n"
        f"numpy.save({str(run / 'onnx.npy')!r}, probability)\n"
        "print(facts['binseg.threshold'], facts['binseg.card'][:1])\n"
    )
    np.save(run / "pixels.npy", image)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [repr(model.threshold), "{"]
    assert np.abs(np.load(run / "onnx.npy") - expected).max() < 0.01
    made = export_model(run, target="openvino")
    with zipfile.ZipFile(made.path) as archive:
        core = openvino.Core()
        weights = openvino.Tensor(np.frombuffer(archive.read("model.bin"), np.uint8))
        compiled = core.compile_model(core.read_model(archive.read("model.xml"), weights), "CPU")
    assert np.abs(compiled(image)[0] - expected).max() < 0.05  # in the runtime's own precision


def test_verify_repeats_the_proof(run: Path, tmp_path: Path) -> None:
    """A file that was made passes; a foreign or damaged one is refused in one line."""
    for target in ("onnx", "openvino", "torch"):
        made = export_model(
            run,
            target=target,
            out=tmp_path / NAMES[target],
        )
        found, left_out = verify(made.path)
        assert [one.passed for one in found] == [True]
        assert not left_out
        assert made.proofs[0].agreement > 0.998
    for name, data in (("a.onnx", b"text"), ("b.pt2", b"PK\x03\x04 no zip")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises((BundleError, zipfile.BadZipFile)):
            verify(tmp_path / name)


def test_a_bundle_predicts_without_torch(run: Path, tmp_path: Path) -> None:
    """With its network inside, neither reading nor predicting imports torch."""
    folder = tmp_path / "bundle"
    made = export_model(run, target="bundle", out=folder)
    assert {"onnxruntime fp32", "openvino fp32"} <= set(
        json.loads((folder / "proofs.json").read_text())
    )
    assert made.proofs[0].largest_difference < 1e-3
    assert read_bundle(folder).card == read_bundle(run).card
    np.save(tmp_path / "p.npy", pictures()[4])
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, binseg\n"
        f"model = binseg.load({str(folder)!r})\n"
        f"found = model.predict(numpy.load({str(tmp_path / 'p.npy')!r}))\n"
        f"numpy.save({str(tmp_path / 'q.npy')!r}, found.probability_HW)\n"
        "print(model.backend.name, model.backend.precision)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino cpu fp32"
    expected = load(run, backend="torch").predict(pictures()[4]).probability_HW
    assert np.abs(np.load(tmp_path / "q.npy") - expected).max() < 1e-3
    found, _ = verify(folder)
    assert {one.runtime for one in found} >= {"torch cpu", "onnxruntime cpu", "openvino cpu"}
    assert all(one.passed for one in found)


def test_int8_is_measured_and_chosen_only_when_asked(run: Path, tmp_path: Path) -> None:
    """8-bit networks are in the bundle beside the float one, which stays the choice of auto."""
    folder = tmp_path / "bundle"
    made = export_model(run, target="bundle", out=folder, int8=True)
    found = {(one.runtime, one.precision): one for one in made.proofs}
    assert (
        found["openvino", "int8"].largest_difference > found["openvino", "fp32"].largest_difference
    )
    assert load(folder).backend.precision == "fp32"
    assert load(folder, backend="openvino", precision="int8").backend.precision == "int8"


def test_a_bundle_without_export_says_how_to_get_one(run: Path) -> None:
    """Asking for another runtime names the command; auto takes torch."""
    bundle = read_bundle(run)
    assert NETWORK not in bundle.sha256
    assert open_backend(bundle).name.startswith("torch")
    for name in ("openvino", "onnxruntime"):
        with pytest.raises(BundleError, match="--to bundle"):
            open_backend(bundle, name=name)


def test_nothing_is_written_without_proof(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that answers otherwise never gets its name."""
    from binseg.workflows import export as workflow

    def failing(*args: object, **settings: object) -> Proof:
        return replace(prove(*args, **settings), agreement=0.5)  # type: ignore[arg-type]

    monkeypatch.setattr(workflow, "prove", failing)
    for target in ("onnx", "bundle"):
        with pytest.raises(ExportError, match="not written"):
            export_model(run, target=target, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()
    with pytest.raises(UsageError, match="no export 'tflite'"):
        export_model(run, target="tflite")


def test_proofs_know_their_figures() -> None:
    """Differences, agreement and Dice of a shifted answer are those done by hand."""
    truth = np.array([[True, True, False, False]])

    def ours(image: np.ndarray) -> np.ndarray:
        return np.array([[0.9, 0.9, 0.1, 0.1]], np.float32)

    def theirs(image: np.ndarray) -> np.ndarray:
        return np.array([[0.9, 0.4, 0.1, 0.1]], np.float32)

    proof = prove(
        ours,
        theirs,
        [np.zeros((1, 4, 3), np.uint8)],
        threshold=0.5,
        runtime="r",
        precision="fp32",
        truths=[truth],
    )
    assert proof.largest_difference == pytest.approx(0.5)
    assert proof.agreement == 0.5
    assert proof.dice_change == pytest.approx(2 / 3 - 1)
    assert not proof.passed
    assert set(LIMITS) == {"fp32", "bf16", "int8"}
