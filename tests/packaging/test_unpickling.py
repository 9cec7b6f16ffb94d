"""Only `binseg verify FILE.pt2 --trust-code` ever unpickles: a search, and files that try."""

import ast
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import binseg
from binseg.cli import app
from binseg.errors import BinsegError, UsageError
from binseg.inference import load
from binseg.models import create_model
from binseg.models.create import load_encoder_weights
from binseg.packaging import read_bundle
from binseg.pipelines.pack_verify import verify

SOURCE = Path(binseg.__file__).parent
READERS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads",
    "shelve.open", "dill.load", "dill.loads", "joblib.load", "cloudpickle.load",
    "cloudpickle.loads", "torch.export.load", "torch.jit.load", "torch.hub.load",
    "torch.package.PackageImporter", "pandas.read_pickle", "yaml.unsafe_load", "yaml.full_load",
    "yaml.load_all", "eval", "exec",
}  # fmt: skip
"""Calls that run what is in a file."""
GUARDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""Calls that run what is in a file unless they are told not to."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_source_unpickles_at_one_place() -> None:
    """In all of binseg, one call reads pickles: that of `open_file` for torch."""
    found = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for name, call in calls(tree):
            if name in READERS:
                found.append((path.relative_to(SOURCE).as_posix(), name))
            if name == "yaml.load":
                (loader,) = [one.value for one in call.keywords if one.arg == "Loader"]
                assert ast.unparse(loader) == "_PlainLoader", path
            if name in GUARDED:
                told = {one.arg: ast.literal_eval(one.value) for one in call.keywords
                        if isinstance(one.value, ast.Constant)}  # fmt: skip
                argument, value = GUARDED[name]
                assert told.get(argument) is value, f"{path}:{call.lineno}"
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in {"pickle", "marshal", "shelve", "dill", "joblib"}, path
    assert found == [("packaging/networks.py", "torch.export.load")]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.mark),))


NAMES = (
    "data.pkl", "archive/data.pkl", "m/data.pkl", "model/data.pkl", "archive/data/weights/a",
    "data/sample_inputs/model.pt", "models/model.json", "version", "archive/version",
    "serialized_example_inputs.pt", "serialized_state_dict.pt", "card.json", "SHA256SUMS",
    "weights.safetensors", "reference.safetensors", "network.onnx", "model.xml", "model.bin",
    "metadata.json", "constants.pkl", "byteorder", "archive_format",
)  # fmt: skip
SUFFIXES = (
    ".zip", ".onnx", ".openvino.zip", ".pt2", ".pt", ".pth", ".ckpt", ".safetensors", ".npz", "",
)  # fmt: skip


def poisoned(source: random.Random, poison: bytes) -> bytes:
    """A file that holds a pickle: bare, as torch saves it, or in a zip among other files."""
    kind = source.choice(("bare", "torch", "zip", "zip", "zip"))
    if kind == "bare":
        return source.choice((b"", b"PK\x03\x04", b"\x08\x08")) + poison
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        names = ["archive/data.pkl", "archive/version"] if kind == "torch" else []
        for name in dict.fromkeys(names + source.sample(NAMES, source.randrange(1, 8))):
            archive.writestr(name, source.choice((poison, poison, b"3\n", b"{}", b"pt2")))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_file_gets_its_pickle_read(tmp_path: Path) -> None:
    """300 files under every name, at every door: each is refused in one line, none runs."""
    mark = tmp_path / "mark"
    poison = pickle.dumps(Bomb(mark))
    source = random.Random(0)
    model = create_model("unet", encoder="resnet_small", width=4)
    doors: tuple[Callable[[Path], object], ...] = (
        verify, load, read_bundle, lambda path: load_encoder_weights(model, str(path)),
    )  # fmt: skip
    for number in range(300):
        path = tmp_path / f"model-{number}{source.choice(SUFFIXES)}"
        path.write_bytes(poisoned(source, poison))
        for door in doors:
            with pytest.raises(BinsegError) as caught:
                door(path)
            assert str(caught.value).isprintable()
            assert not mark.exists(), (path.name, door)
        path.unlink()


def program(path: Path) -> None:
    """A sound file of torch.export, under another name."""
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("name", ["x.onnx", "x.openvino.zip", "x.zip", "x.bin", "x"])
def test_the_suffix_decides_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file for torch that is named like another never reaches torch."""
    program(tmp_path / name)
    monkeypatch.setattr(torch.export, "load", None)
    with pytest.raises(BinsegError) as caught:
        verify(tmp_path / name, trust_code=True)
    assert name in str(caught.value)


def test_code_must_be_trusted_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .pt2 file is opened with --trust-code alone; the line says why."""
    program(tmp_path / "x.pt2")
    with monkeypatch.context() as patched:
        patched.setattr(torch.export, "load", None)
        with pytest.raises(UsageError, match=r"may run code.*--trust-code"):
            verify(tmp_path / "x.pt2")
        assert app(["verify", str(tmp_path / "x.pt2")], standalone_mode=False) == 2
    # With the option torch opens it, and finds that it isn't one of ours.
    with pytest.raises(BinsegError, match="not exported by binseg"):
        verify(tmp_path / "x.pt2", trust_code=True)


def test_arrays_of_objects_are_no_tensors(tmp_path: Path) -> None:
    """A numpy file with a pickle in it is no bundle's weights."""
    np.save(tmp_path / "weights.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "card.json").write_text(json.dumps({"format_version": 1}))
    (tmp_path / "weights.npy").rename(tmp_path / "weights.safetensors")
    with pytest.raises(BinsegError):
        read_bundle(tmp_path)
