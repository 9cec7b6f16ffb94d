import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binseg.packaging import pack_zip, read_bundle

FILES = ("SHA256SUMS", "card.json", "reference.safetensors", "weights.safetensors")


def test_a_zip_is_the_same_bundle(bench: Any, tmp_path: Path) -> None:
    """Packed, and packed again inside a folder as people do, it holds the same; also from a zip."""
    bundle = bench.write(tmp_path / "b")
    packed = read_bundle(pack_zip(bundle, tmp_path / "b.zip"))
    assert packed.card == bundle.card
    again = pack_zip(packed, tmp_path / "again.zip")
    assert again.read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "deep.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._card", b"")
        for file in sorted(bundle.path.iterdir()):
            archive.write(file, f"run/bundle/{file.name}")
    deep = read_bundle(tmp_path / "deep.zip")
    np.testing.assert_array_equal(deep.weights()["b.weight"], bench.weights()["b.weight"])


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:/evil", "..\\evil"])
def test_zip_slip_is_refused(bench: Any, tmp_path: Path, name: str) -> None:
    """A zip with a name that leaves its folder is refused whole, though we unpack nothing."""
    path = pack_zip(bench.write(tmp_path / "b"), tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    bench.refused(path, "unsafe name")


def test_odd_zips_are_refused(bench: Any, tmp_path: Path) -> None:
    """Links, encryption, two cards, two files of one name, bombs, foreign zips: one line each."""

    def variant(info: zipfile.ZipInfo | str, data: bytes, how: int = 0) -> Path:
        path = pack_zip(bench.write(tmp_path / "b"), tmp_path / "b.zip")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, data, compress_type=how)
        return path

    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    bench.refused(variant(link, b"/etc/passwd"), "links are refused")
    bench.refused(variant("other/card.json", b"{}"), "holds 2 card.json")
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = variant("card.json", b"{}")
    bench.refused(path, "two files of one name")
    secret = bytearray(pack_zip(bench.write(tmp_path / "b"), tmp_path / "s.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        secret[secret.index(mark) + offset] |= 1
    (tmp_path / "s.zip").write_bytes(secret)
    bench.refused(tmp_path / "s.zip", "encrypted")
    strange = bytearray(pack_zip(bench.write(tmp_path / "b"), tmp_path / "u.zip").read_bytes())
    strange[7], strange[30] = 8, 0xDA  # the first file's own header: UTF-8, which it isn't
    (tmp_path / "u.zip").write_bytes(strange)
    bench.refused(tmp_path / "u.zip", "can't")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            data = (tmp_path / "b" / name).read_bytes()
            archive.writestr(name, data if name != "weights.safetensors" else bytes(2**21))
    bench.refused(tmp_path / "bomb.zip", "100 times")
    with zipfile.ZipFile(tmp_path / "docs.zip", "w") as archive:
        archive.writestr("readme.txt", b"hello")
    bench.refused(tmp_path / "docs.zip", "holds no card.json")


def test_a_damaged_zip_is_one_error(bench: Any, tmp_path: Path) -> None:
    """Cut anywhere, or with a flipped byte in the packed weights, a zip is refused."""
    path = pack_zip(bench.write(tmp_path / "b"), tmp_path / "b.zip")
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        bench.refused(path)
    flipped = bytearray(whole)
    flipped[whole.index(bench.weights()["b.weight"].tobytes())] ^= 1
    path.write_bytes(flipped)
    bench.refused(path, "weights.safetensors")
