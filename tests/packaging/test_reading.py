import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binseg.errors import BundleError
from binseg.packaging import read_bundle, write_bundle
from binseg.packaging.bundle import to_bytes

FILES = ("SHA256SUMS", "card.json", "reference.safetensors", "weights.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_any_cut_is_one_error(bench: Any, tmp_path: Path, name: str) -> None:
    """A file cut off anywhere is one line, whichever file it is."""
    file = bench.write(tmp_path / "b").path / name
    whole = file.read_bytes()
    for length in {0, 1, 7, 8, 9, 64, 66, len(whole) // 2, len(whole) - 1}:
        file.write_bytes(whole[:length])
        bench.refused(tmp_path / "b")
    file.unlink()
    bench.refused(tmp_path / "b", f"{name} is missing")


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_one_error(bench: Any, tmp_path: Path, name: str) -> None:
    """One flipped bit anywhere is one line, whichever file it is in."""
    file = bench.write(tmp_path / "b").path / name
    whole = file.read_bytes()
    for offset in range(0, len(whole), 1 + len(whole) // 60):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << offset % 8
        file.write_bytes(flipped)
        bench.refused(tmp_path / "b")


def test_an_edited_card_is_refused(bench: Any, tmp_path: Path) -> None:
    """A threshold changed by hand is told as an edit, not used."""
    file = bench.write(tmp_path / "b").path / "card.json"
    file.write_text(file.read_text().replace('"value": 0.4', '"value": 0.5'))
    assert "edited" in bench.refused(tmp_path / "b", "card.json")


def edit(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw.update(changes)


def edit_part(part: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw[part].update(changes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (edit(format_version=2), "newer binseg.*upgrade"),
        (edit(format_version="1"), "no format version"),
        (edit(format_version=0), "format_version"),
        (edit(colour="red"), "colour: Extra inputs"),
        (edit(**{"esc\x1b[2J\nkey": 1}), "not a valid card"),
        (edit(name="a\nb"), "name"),
        (edit(created="yesterday"), "created"),
        (edit(border="maybe"), "border"),
        (edit(scores={"val": {"dice": "good"}}), "scores.val.dice"),
        (edit(id="0123456789ab"), "mixed"),
        (edit(id="x"), "id"),
        (edit_part("threshold", value=1.5), "threshold.value"),
        (edit_part("preprocessing", height=10**9), "outside 1..4096"),
        (edit_part("preprocessing", height=5), "belong to these"),
        (edit_part("preprocessing", height=4096, width=4096), "too small to hold one"),
        (edit_part("preprocessing", colour=1), "preprocessing.colour"),
        (edit_part("preprocessing", std=[0.0, 1.0, 1.0]), "std must be above 0"),
        (edit_part("preprocessing", mean=[0.5]), "one a channel"),
        (edit_part("preprocessing", overlap=1.0), "overlap"),
        (edit_part("preprocessing", largest_tile=10**6), "largest_tile"),
        (edit_part("preprocessing", channels=1, mean=[0.5], std=[0.5]), "takes 3 channels"),
        (edit_part("postprocess", min_area=-1), "min_area -1: give a number"),
        (edit_part("postprocess", fill_holes=10**10), "postprocess: areas reach"),
        (edit_part("architecture", options={"encoder_weights": "/etc/passwd"}), "is no option"),
        (edit_part("architecture", options={"decoder": "keras_unet"}), "decoder is no option"),
        (lambda raw: raw.pop("architecture"), "architecture: Field required"),
    ],
)
def test_a_forged_card_is_refused(
    bench: Any, tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    """Even with hashes that fit, a card must say what we know, within bounds."""
    folder = bench.write(tmp_path / "b").path
    raw = json.loads((folder / "card.json").read_text())
    change(raw)
    bench.forge(folder, "card.json", json.dumps(raw).encode())
    bench.refused(folder, match)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" * 9,
        b"[" * 100_000,
        b'{"format_version": NaN}',
        b'{"format_version": 1, "format_version": 1}',
        b'{"format_version": 1, "data": {"a": 1, "a": 2}}',
        b'{"format_version": %s}' % (b"9" * 5000),
    ],
)
def test_a_card_that_is_no_card_is_refused(bench: Any, tmp_path: Path, data: bytes) -> None:
    """Other JSON, no JSON and JSON without end are one line each."""
    folder = bench.write(tmp_path / "b").path
    bench.forge(folder, "card.json", data)
    bench.refused(folder, "JSON|format version")


def header(entry: object, *, data: bytes = b"") -> bytes:
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        (2**63).to_bytes(8, "little") + b"{}",
        (10**6).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\x80\x04",
        header({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}, data=b"1234"),
        header({"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}, data=b"1234"),
        header({"dtype": "F32", "shape": [2**64], "data_offsets": [0, 0]}),
        header({"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 4]}, data=b"1234"),
        header({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, data=b"12345678"),
        header({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, data=b"12345678"),
        header({"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}, data=b"1234"),
        header({"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}, data=b"1234"),
        header({"dtype": "F32", "shape": [1]}, data=b"1234"),
        header(7),
    ],
)
def test_a_header_that_lies_is_refused(bench: Any, tmp_path: Path, data: bytes) -> None:
    """A header is believed only where it fills its file exactly; no memory is taken before."""
    folder = bench.write(tmp_path / "b").path
    bench.forge(folder, "weights.safetensors", data)
    bench.refused(folder, "weights.safetensors")


def test_a_reference_sample_of_another_shape_is_refused(bench: Any, tmp_path: Path) -> None:
    """The reference sample must be at the model's size, uint8, with probabilities in [0, 1]."""
    folder = bench.write(tmp_path / "b").path
    good = bench.reference()
    for tensors in (
        {"input_NHWC": good.input_NHWC},
        {"input_NHWC": good.input_NHWC[:, :2], "probability_NHW": good.probability_NHW},
        {"input_NHWC": good.input_NHWC, "probability_NHW": good.probability_NHW + 1},
        {"input_NHWC": good.input_NHWC, "probability_NHW": good.probability_NHW * np.nan},
        {"input_NHWC": good.input_NHWC + 0.5, "probability_NHW": good.probability_NHW},
        {"input_NHWC": good.input_NHWC[:0], "probability_NHW": good.probability_NHW[:0]},
    ):
        bench.forge(folder, "reference.safetensors", to_bytes(tensors))
        with pytest.raises(BundleError, match=r"reference\.safetensors"):
            read_bundle(folder).reference()


def test_foreign_paths_are_told_apart(bench: Any, tmp_path: Path) -> None:
    """Nothing, an empty folder, someone else's model, a text file: each is said for what it is."""
    bench.refused(tmp_path / "none", "no such bundle")
    bench.refused(tmp_path, "not a bundle")
    bench.refused(tmp_path / ("x" * 300), "can't be read|no such")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    bench.refused(tmp_path / "photo.jpg", "not a bundle")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").touch()
    bench.refused(run, "no bundle yet")
    bench.write(run / "bundle")
    assert read_bundle(run).path == run / "bundle"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.mark),))


def test_nothing_is_ever_unpickled(bench: Any, tmp_path: Path) -> None:
    """A pickle runs no code, neither alone, nor as a zipped checkpoint, nor in a weights file."""
    mark = tmp_path / "mark"
    poison = pickle.dumps(Bomb(mark))
    (tmp_path / "model.pt").write_bytes(poison)
    bench.refused(tmp_path / "model.pt", "never unpickles")
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", poison)
    bench.refused(tmp_path / "model.pth", "PyTorch checkpoint")
    folder = bench.write(tmp_path / "b").path
    bench.forge(folder, "weights.safetensors", poison)
    bench.refused(folder)
    assert not mark.exists()


def test_a_pipe_in_a_files_place_does_not_hang(bench: Any, tmp_path: Path) -> None:
    """Only ordinary files are opened."""
    folder = bench.write(tmp_path / "b").path
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    bench.refused(folder, "not an ordinary file")


def test_a_change_during_use_is_told(bench: Any, tmp_path: Path) -> None:
    """Tensors read later than the card are checked again."""
    bundle = bench.write(tmp_path / "b")
    write_bundle(
        bundle.path,
        card=bench.card(),
        weights={"a": np.zeros(1, np.float32)},
        reference=bench.reference(),
    )
    with pytest.raises(BundleError, match="changed while"):
        bundle.weights()
