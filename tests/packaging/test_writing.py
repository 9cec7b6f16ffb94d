import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from binseg.errors import BundleError, OutputError
from binseg.packaging import (
    NETWORK,
    NETWORK_INT8,
    Architecture,
    pack_zip,
    read_bundle,
    write_bundle,
)
from binseg.packaging.bundle import from_bytes, to_bytes
from binseg.types import Preprocessing

FILES = ("SHA256SUMS", "card.json", "reference.safetensors", "weights.safetensors")


def test_what_is_written_is_what_is_read(bench: Any, tmp_path: Path) -> None:
    """Card, weights and reference sample come back equal, numbers and 0-d arrays included."""
    bench.write(tmp_path / "b")
    bundle = read_bundle(tmp_path / "b")
    assert bundle.card.model_copy(update={"id": ""}) == bench.card()
    read = bundle.weights()
    assert read.keys() == bench.weights().keys()
    for name, tensor in bench.weights().items():
        assert read[name].dtype == tensor.dtype
        assert read[name].flags.writeable
        np.testing.assert_array_equal(read[name], tensor)
    np.testing.assert_array_equal(bundle.reference().input_NHWC, bench.reference().input_NHWC)
    np.testing.assert_array_equal(
        bundle.reference().probability_NHW, bench.reference().probability_NHW
    )


def test_others_read_our_files(bench: Any, tmp_path: Path) -> None:
    """The safetensors library reads the weights, and `sha256sum -c` agrees with the hashes."""
    bench.write(tmp_path / "b")
    np.testing.assert_array_equal(
        load_file(tmp_path / "b" / "weights.safetensors")["b.weight"], bench.weights()["b.weight"]
    )
    program = shutil.which("sha256sum")
    if program:
        subprocess.run([program, "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / "b", check=True)


def test_strided_arrays_are_written_as_they_look() -> None:
    """A transposed array is stored by its values, not by the memory it shares."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(from_bytes(to_bytes({"a": array}), name="x")["a"], array)


def test_equal_contents_give_equal_bytes(bench: Any, tmp_path: Path) -> None:
    """Two bundles of one model are equal to the byte, as folder and as zip."""
    one, other = bench.write(tmp_path / "one"), bench.write(tmp_path / "other")
    for name in FILES:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    zips = [pack_zip(bundle, tmp_path / f"{bundle.path.name}.zip") for bundle in (one, other)]
    assert zips[0].read_bytes() == zips[1].read_bytes()


def test_the_id_names_what_decides_the_probabilities(bench: Any, tmp_path: Path) -> None:
    """Weights, networks, architecture and preprocessing change it; name, scores, licence don't."""
    first = bench.write(tmp_path / "a").card.id
    assert len(first) == 12
    assert bench.write(tmp_path / "b", name="x", licence="", scores={}).card.id == first
    stretch = Preprocessing(height=4, width=6, mean=(0.5,) * 3)
    assert bench.write(tmp_path / "c", preprocessing=stretch).card.id != first
    assert (
        bench.write(
            tmp_path / "d", architecture=Architecture(decoder="unet", encoder="unet")
        ).card.id
        != first
    )
    moved = bench.weights() | {"a.bias": np.array([1, 3], np.float32)}
    other = write_bundle(
        tmp_path / "e", card=bench.card(), weights=moved, reference=bench.reference()
    )
    assert other.card.id != first
    for network in (NETWORK, NETWORK_INT8):
        exported = write_bundle(
            tmp_path / network,
            card=bench.card(),
            weights=bench.weights(),
            reference=bench.reference(),
            extra={network: b"onnx"},
        )
        assert exported.card.id != first


@pytest.mark.parametrize("exchange", [True, False])
def test_an_older_bundle_is_replaced(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """A newer bundle takes an older one's place, and nothing else is left beside it."""
    if not exchange:
        monkeypatch.setattr("binseg.storage._exchange", lambda *_: False)
    (tmp_path / "b").mkdir()
    bench.write(tmp_path / "b")
    bundle = bench.write(tmp_path / "b", name="dogs")
    assert bundle == read_bundle(tmp_path / "b")
    assert bundle.card.name == "dogs"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_link_to_a_bundle_stays_a_link(bench: Any, tmp_path: Path) -> None:
    """Writing through a link replaces the bundle that it names."""
    bench.write(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    bench.write(tmp_path / "link", name="dogs")
    assert (tmp_path / "link").is_symlink()
    assert read_bundle(tmp_path / "real").card.name == "dogs"


def test_other_things_are_never_overwritten(bench: Any, tmp_path: Path) -> None:
    """A folder with anything that isn't a bundle's, and a file, are refused and stay whole."""
    file = tmp_path / "thesis.txt"
    file.write_text("years")
    for target in (tmp_path, file):
        with pytest.raises(OutputError):
            bench.write(target)
    bench.write(tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt.*nothing was overwritten"):
        bench.write(tmp_path / "b")
    assert file.read_text() == "years"
    assert (tmp_path / "b" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fails_at", range(1, 7))
def test_a_full_disk_leaves_the_older_bundle(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """Whatever write fails, the old bundle is whole or the new one is, and no scraps are left."""
    bench.write(tmp_path / "b")
    calls = iter(range(1, 100))

    def fsync(_: int) -> None:
        if next(calls) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="No space left"):
        bench.write(tmp_path / "b", name="dogs")
    assert read_bundle(tmp_path / "b").card.name == ("cats" if fails_at < 6 else "dogs")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_diverged_model_is_not_written(bench: Any, tmp_path: Path) -> None:
    """NaN weights and a reference sample of another size never become a bundle."""
    with pytest.raises(BundleError, match=r"a\.bias hold NaN"):
        write_bundle(
            tmp_path / "b",
            card=bench.card(),
            weights=bench.weights() | {"a.bias": np.array([1, np.nan], np.float32)},
            reference=bench.reference(),
        )
    with pytest.raises(BundleError, match="reference sample"):
        bench.write(tmp_path / "b", preprocessing=Preprocessing(height=8, width=8))
    assert not (tmp_path / "b").exists()
