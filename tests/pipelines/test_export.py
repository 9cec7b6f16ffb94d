"""Exported models answer like their origin, in runtimes that know nothing of binseg."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from binseg.cli import app
from binseg.errors import BundleError, ExportError, UsageError
from binseg.inference import load, verify_reference
from binseg.packaging import NETWORK, read_bundle
from binseg.packaging.networks import Proof, prove, require
from binseg.pipelines import export_model as workflow
from binseg.pipelines.export_model import export_model
from binseg.pipelines.pack_verify import verify

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

NAMES = {"onnx": "m.onnx", "openvino": "m.openvino.zip", "torch": "m.pt2"}


def image() -> np.ndarray:
    """A smooth colour image of an odd size."""
    random = np.random.default_rng(4)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.array(coarse.resize((51, 77), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of our own, to which files may be added."""
    folder = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(trained, folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle with the network inside, in floats and in 8-bit numbers."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export_model(run, target="bundle", out=folder, int8=True, max_dice_change=1.0)
    return folder


ONNX_PROGRAM = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
probability = session.run(None, {"pixels": numpy.load(sys.argv[2])[None]})[0][0]
facts = session.get_modelmeta().custom_metadata_map
assert not any(name.startswith(("binseg", "torch")) for name in sys.modules)
numpy.save(sys.argv[3], probability)
print(facts["binseg.threshold"])
"""
OPENVINO_PROGRAM = """
import sys, numpy
sys.modules["openvino_telemetry"] = None
import openvino, zipfile
parts = zipfile.ZipFile(sys.argv[1])
model = openvino.Core().read_model(parts.read("model.xml"), parts.read("model.bin"))
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
numpy.save(sys.argv[3], compiled(numpy.load(sys.argv[2])[None])[0][0])
assert not any(name.startswith(("binseg", "torch")) for name in sys.modules)
print(model.get_rt_info(["binseg", "threshold"]).astype(str))
"""
TORCH_PROGRAM = """
import sys, numpy, torch
program = torch.export.load(sys.argv[1]).module()
pixels = torch.from_numpy(numpy.load(sys.argv[2]))[None]
numpy.save(sys.argv[3], program(pixels)[0].detach().numpy())
assert not any(name.startswith("binseg") for name in sys.modules)
text = {"binseg.threshold": ""}
torch.export.load(sys.argv[1], extra_files=text)
print(text["binseg.threshold"])
"""


@pytest.mark.parametrize(
    ("target", "program"),
    [("onnx", ONNX_PROGRAM), ("openvino", OPENVINO_PROGRAM), ("torch", TORCH_PROGRAM)],
)
def test_files_open_without_binseg(run: Path, tmp_path: Path, target: str, program: str) -> None:
    """A few lines of the plain runtime; the card and the threshold are inside."""
    model = load(run, backend="torch")
    expected = model.predict(image()).probability
    made = export_model(run, target=target, out=tmp_path / NAMES[target])
    assert [one.name for one in tmp_path.iterdir()] == [NAMES[target]], "weights are in the file"
    assert made.num_bytes == made.path.stat().st_size
    assert [one.passed for one in made.proofs[:2]] == [True, True]
    pixels, answer = tmp_path / "pixels.npy", tmp_path / "answer.npy"
    np.save(pixels, image())
    done = subprocess.run(
        [sys.executable, "-c", program, made.path, pixels, answer],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == repr(model.threshold)
    assert np.abs(np.load(answer) - expected).max() < 0.02
    found, left_out = verify(made.path, trust_code=target == "torch")
    assert [one.passed for one in found] == [True]
    assert found[0].largest_difference < 1e-3
    assert not left_out


def test_an_altered_file_fails_its_proof(run: Path, tmp_path: Path) -> None:
    """A network whose last bias was changed is told by `binseg verify`, with exit code 1."""
    made = export_model(run, target="onnx", out=tmp_path / "m.onnx", pixels="float32")
    model = onnx.load(made.path)
    assert json.loads(model.metadata_props[2].value)["pixels"]["type"] == "float32"
    for weights in model.graph.initializer:
        if weights.name.endswith("bias"):
            changed = onnx.numpy_helper.to_array(weights) + 1
            weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(model, made.path)
    assert not verify(made.path)[0][0].passed
    assert app(["verify", str(made.path)], standalone_mode=False) == 1


def test_a_bundle_predicts_without_torch(run: Path, exported: Path, tmp_path: Path) -> None:
    """With its network inside, neither reading nor predicting imports torch."""
    proofs = json.loads((exported / "proofs.json").read_text())
    assert {"onnxruntime fp32", "openvino fp32", "openvino int8"} <= set(proofs)
    assert proofs["openvino fp32"]["largest_difference"] < 1e-3
    was, now = read_bundle(run).card, read_bundle(exported).card
    assert now.id != was.id, "its network is part of what a bundle is"
    assert now == was.model_copy(update={"id": now.id})
    np.save(tmp_path / "p.npy", image())
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, binseg\n"
        "model = binseg.load(sys.argv[1], precision='fp32')\n"
        "found = model.predict(numpy.load(sys.argv[2]))\n"
        "numpy.save(sys.argv[3], found.probability)\n"
        "print(model.backend.name, model.backend.precision)\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "assert not {'scipy', 'requests', 'pandas', 'jinja2'} & set(sys.modules)\n"
    )
    places = (exported, tmp_path / "p.npy", tmp_path / "q.npy")
    done = subprocess.run(
        [sys.executable, "-c", code, *places], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "openvino cpu fp32"
    expected = load(run, backend="torch").predict(image()).probability
    assert np.abs(np.load(tmp_path / "q.npy") - expected).max() < 1e-3


def test_every_runtime_of_a_bundle_is_verified(exported: Path, tmp_path: Path) -> None:
    """In a folder and in a zip; each within its tolerance of the reference sample."""
    packed = tmp_path / "model.zip"
    app(["pack", str(exported), "--out", str(packed)], standalone_mode=False)
    for place in (exported, packed):
        found, _ = verify(place)
        assert {one.runtime for one in found} >= {"torch cpu", "onnxruntime cpu", "openvino cpu"}
        assert all(one.passed for one in found)


def test_int8_is_chosen_only_when_asked(exported: Path) -> None:
    """8-bit networks are in the bundle beside the float one."""
    assert load(exported).backend.precision != "int8"
    for name in ("openvino", "onnxruntime"):
        opened = load(exported, backend=name, precision="int8")
        assert opened.backend.precision == "int8"
        assert verify_reference(opened, read_bundle(exported)).largest_difference > 0


def test_changed_dice_refuses_int8(run: Path, tmp_path: Path) -> None:
    """Not a bit of Dice to lose: refused with the way to allow it, and nothing is written."""
    with pytest.raises(ExportError, match="--max-dice-change"):
        export_model(run, target="onnx", out=tmp_path / "m.onnx", int8=True, max_dice_change=-1.0)
    assert not list(tmp_path.iterdir())


def test_a_bundle_without_export_says_how_to_get_one(run: Path) -> None:
    """Asking for another runtime names the command; auto takes torch."""
    assert NETWORK not in read_bundle(run).sha256
    assert load(run).backend.name.startswith("torch")
    for name in ("openvino", "onnxruntime"):
        with pytest.raises(BundleError, match="--to bundle"):
            load(run, backend=name)


def test_nothing_is_written_without_proof(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that answers otherwise never gets its name."""

    def failing(*args: object, **settings: object) -> Proof:
        return replace(prove(*args, **settings), agreement=0.5)  # type: ignore[arg-type]

    monkeypatch.setattr(workflow, "prove", failing)
    for target in ("onnx", "bundle"):
        with pytest.raises(ExportError, match="not written"):
            export_model(run, target=target, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()
    with pytest.raises(UsageError, match="no export 'tflite'"):
        export_model(run, target="tflite")


SIGNAL_PROGRAM = """
import gc, os, signal, sys
from binseg.inference.runtimes import open_backend
from binseg.packaging import read_bundle
from binseg.pipelines.pack_verify import verify
for _ in range(2):
    verify(sys.argv[1])
    opened = [open_backend(read_bundle(sys.argv[1]), name="openvino") for _ in range(2)]
    del opened[0]
    del opened
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_heard_after_openvino(exported: Path) -> None:
    """Closing models takes away no stack on which Ctrl-C is handled."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_PROGRAM, str(exported)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "heard"


def test_importing_openvino_is_nobodys_business() -> None:
    """Its telemetry, which tells Google Analytics of each import, is never found; ours only."""
    code = (
        "import sys, threading\n"
        "from binseg.packaging.networks import require\n"
        "require('openvino')\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert require("openvino").__name__ == "openvino"


def test_a_zip_bundle_needs_a_place(exported: Path, tmp_path: Path) -> None:
    """A zip isn't changed in place; the folder to write is asked for."""
    packed = tmp_path / "model.zip"
    app(["pack", str(exported), "--out", str(packed)], standalone_mode=False)
    assert zipfile.is_zipfile(packed)
    with pytest.raises(UsageError, match="--out"):
        export_model(packed, target="bundle")
