"""Decoding in children: the same pixels and words, and an end to memory and time."""

import contextlib
import io
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.errors import ImageError
from binseg.imageio import (
    decode_image,
    needs_windows,
    probe,
    read_georeference,
    read_image,
    read_labels,
    read_pixel_size,
)
from binseg.imageio.cage import Cage
from binseg.imageio.decoding import Decoder
from binseg.imageio.formats import FORMATS, decoder_of
from binseg.imageio.metadata import georeference_of, pixel_size_of
from binseg.imageio.windows import open_windows
from binseg.parallel import give_way

from ..bombs import jpeg_in_tiff, jpeg_of_scans  # noqa: TID252 - tests are no package of their own


@pytest.fixture(scope="module")
def cage() -> Iterator[Cage]:
    opened = Cage(2, seconds=10.0)
    yield opened
    opened.close()


def _files() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    image_HWC = random.integers(0, 255, (40, 50, 3)).astype(np.uint8)
    files = {}
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"):
        out = io.BytesIO()
        Image.fromarray(image_HWC).save(out, kind)
        files[kind] = out.getvalue()
    for name, array in (("NPY", image_HWC), ("NPY, big-endian", image_HWC[..., 0].astype(">i4"))):
        out = io.BytesIO()
        np.save(out, array)
        files[name] = out.getvalue()
    for colours in (16, 2):
        out = io.BytesIO()
        Image.fromarray(image_HWC).quantize(colours).save(out, "GIF")
        files[f"GIF of {colours}"] = out.getvalue()
    for dtype in (np.uint16, np.float32):
        out = io.BytesIO()
        tifffile.imwrite(out, image_HWC.astype(dtype), photometric="rgb", compression="zlib")
        files[f"TIFF {dtype.__name__}"] = out.getvalue()
    if find_spec("pillow_heif"):
        from pillow_heif import from_pillow

        out = io.BytesIO()
        from_pillow(Image.fromarray(image_HWC)).save(out)
        files["HEIF"] = out.getvalue()
    return files


def _all_of(image: Decoder) -> tuple[Any, ...]:
    return image.info(), image.image(), image.labels(indices=True), image.palette()


@pytest.mark.parametrize(("kind", "data"), _files().items())
def test_the_pixels_are_those_of_a_decoder_here(cage: Cage, kind: str, data: bytes) -> None:
    """Header and pixels of every format are what they are without a cage, from bytes and files."""
    with cage.open(data, name=kind) as opened:
        found, image_HWC, labels, colours = _all_of(opened)
    with decoder_of(data, name=kind) as here:
        info, expected, expected_labels, expected_colours = _all_of(here)
    assert found == info
    assert labels.dtype == expected_labels.dtype.newbyteorder("=")
    assert np.array_equal(labels, expected_labels)
    assert (colours is None) == (expected_colours is None)
    assert colours is None or np.array_equal(colours, expected_colours)
    assert image_HWC.dtype == expected.dtype
    assert np.array_equal(image_HWC, expected)
    image_HWC[0, 0] = 0  # nobody else has it


def test_only_plain_jpeg_and_png_are_decoded_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Readers of all verbs leave other formats to a child, with the same pixels and facts."""
    files = {name: data for name, data in _files().items() if name not in ("PNG", "JPEG")}
    random = np.random.default_rng(0)
    stack = random.integers(0, 9, (3, 20, 30), np.uint8)
    place = (33922, 12, 6, (0.0, 0.0, 0.0, 7.1, 8.2, 0.0), True)
    tags = [(33550, 12, 3, (0.3, 0.4, 0.0), True), place]
    settings: dict[str, Any] = {"resolution": (5000, 4000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        tmp_path / "s.tif", stack, photometric="minisblack", extratags=tags, **settings
    )
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "s.tif"
    facts = pixel_size_of(path), georeference_of(path)
    assert None not in facts

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded here")

    probe(path)  # the children's mother has started
    for one in FORMATS.values():
        monkeypatch.setitem(vars(one), "open", refuse)
    assert (read_pixel_size(path), read_georeference(path)) == facts
    assert needs_windows(path)
    for page in (0, 2):
        assert np.array_equal(read_image(path, page=page)[..., 0], stack[page])
        assert np.array_equal(read_labels(path, page=page), stack[page])
    assert probe(path).num_pages == 3
    with pytest.raises(ImageError, match="a stack of 3 pages"):
        read_image(path)
    for name, data in files.items():
        assert np.array_equal(read_image(tmp_path / name), decode_image(data, name="p"))
    for name in ("PNG", "JPEG"):
        with pytest.raises(ImageError, match="decoded here"):
            decode_image(_files()[name], name="p")


def test_a_reply_that_nobody_waited_for_is_never_anothers(
    cage: Cage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between order and reply ends the child: it would be one reply behind for ever."""
    images = [np.full((8, 8, 3), shade, np.uint8) for shade in (10, 20)]
    files = [io.BytesIO() for _ in images]
    for out, image_HWC in zip(files, images, strict=True):
        Image.fromarray(image_HWC).save(out, "BMP")

    def interrupted(*_: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patched.setattr("binseg.imageio.child.Child._receive", interrupted)
        with cage.open(files[0].getvalue(), name="p"):
            pass
    for _ in range(3):
        with cage.open(files[1].getvalue(), name="p") as opened:
            assert (opened.image() == 20).all()


def test_errors_are_those_of_a_decoder_here(cage: Cage) -> None:
    """A damaged file, and one that is none, are refused in the same words; the child goes on."""
    good = _files()["PNG"]
    for data in (good[:60], b"nonsense", b""):
        with pytest.raises(ImageError) as expected, decoder_of(data, name="p") as here:
            here.image()
        with pytest.raises(ImageError) as found, cage.open(data, name="p") as opened:
            opened.image()
        assert str(found.value) == str(expected.value)


def test_claims_are_refused_in_children_too(cage: Cage) -> None:
    """456 bytes that would unpack to 4.3 GB are refused by their header; the child goes on."""
    with cage.open(jpeg_in_tiff(), name="p") as opened:
        assert (opened.info().height, opened.info().width) == (16, 16)
        with pytest.raises(ImageError, match="claims 65500 x 65500"):
            opened.image()


def test_time_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG of too many scans is given up in time, the next is decoded, and no process stays."""
    cage = Cage(1, seconds=10.0)
    try:
        with monkeypatch.context() as patched:
            patched.setattr("binseg.imageio.cage._VALUES_PER_S", 10**9)
            with cage.open(jpeg_of_scans(side=6000, num_scans=34), name="p") as found:
                opened = replace(found, seconds=0.2)
                start = time.monotonic()
                with pytest.raises(ImageError, match="too long"):
                    opened.image()
                assert time.monotonic() - start < 2
        with cage.open(_files()["PNG"], name="p") as opened:
            assert opened.image().shape == (40, 50, 3)
        mother = cage._process.pid
        children = Path(f"/proc/{mother}/task/{mother}/children").read_text("ascii").split()
        stats = [Path(f"/proc/{one}/stat").read_text("ascii") for one in children]
        assert len([one for one in stats if ") Z" not in one]) == 1
    finally:
        cage.close()


def test_work_can_be_stopped_from_outside(cage: Cage) -> None:
    """The child of another thread is killed at once, in the middle of a decoder of C."""
    thread, started, said = threading.get_ident(), threading.Event(), []

    def stop() -> None:
        assert started.wait(60)
        time.sleep(0.2)
        cage.stop(thread)
        said.append(time.monotonic())

    other = threading.Thread(target=stop)
    other.start()
    with cage.open(jpeg_of_scans(side=6000, num_scans=34), name="p") as opened:
        started.set()
        with pytest.raises(ImageError, match="ends the decoder"):
            opened.image()
    assert time.monotonic() - said[0] < 0.5
    other.join()


def test_many_threads_share_the_children(cage: Cage) -> None:
    """More callers than children: all get their own pixels."""
    files = {shade: io.BytesIO() for shade in range(20)}
    for shade, out in files.items():
        Image.new("L", (30, 20), shade).save(out, "PNG")
    wrong = []

    def ask(shade: int) -> None:
        for _ in range(20):
            with cage.open(files[shade].getvalue(), name="p") as opened:
                if not (opened.image() == shade).all():
                    wrong.append(shade)

    threads = [threading.Thread(target=ask, args=(shade,)) for shade in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_slow_image_keeps_no_other_one_waiting(cage: Cage) -> None:
    """While one child decodes for seconds, another one's pixels come."""
    bomb, told = jpeg_of_scans(side=6000, num_scans=34), []

    def decode() -> None:
        with contextlib.suppress(ImageError), cage.open(bomb, name="p") as opened:
            begun.set()
            opened.image()
        told.append("bomb")

    begun, slow = threading.Event(), threading.Thread(target=decode)
    slow.start()
    assert begun.wait(60)
    time.sleep(0.2)
    with cage.open(_files()["BMP"], name="p") as opened:
        assert opened.image().shape == (40, 50, 3)
        told.append("image")
    cage.stop(slow.ident or 0)
    slow.join()
    assert told == ["image", "bomb"]


def test_who_gave_way_has_decoders_that_do(cage: Cage) -> None:
    """A thread of low priority, as that of jobs, has children of low priority from their start."""

    def look() -> None:
        with cage.open(_files()["PNG"], name="p") as opened:
            told.append(os.getpriority(os.PRIO_PROCESS, opened.child.pid))
            assert opened.image().shape == (40, 50, 3)

    def look_meekly() -> None:
        give_way()
        look()

    told: list[int] = []
    for work in (look_meekly, look):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert told == [10, os.getpriority(os.PRIO_PROCESS, 0)]


def test_a_file_is_let_go(cage: Cage, tmp_path: Path) -> None:
    """What is removed after it was read takes no room on the disk any more."""
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.zeros((2, 20, 30), np.uint8), photometric="minisblack")
    with cage.open(path, name="p", page=1) as opened:
        assert opened.image().shape == (20, 30, 1)
    cage.fact("is_for_windows", path)
    mother = cage._process.pid
    children = Path(f"/proc/{mother}/task/{mother}/children").read_text("ascii").split()
    held = [one.readlink() for number in children for one in Path(f"/proc/{number}/fd").iterdir()]
    assert children
    assert path not in held


def test_relative_paths_are_those_of_now(
    cage: Cage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program, or a notebook, may change its folder while the children live on."""
    for name, level in (("one", 10), ("two", 20)):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), level).save(tmp_path / name / "a.tif")
    for name, level in (("one", 10), ("two", 20)):
        monkeypatch.chdir(tmp_path / name)
        with cage.open(Path("a.tif"), name="a.tif") as image:
            assert image.image().max() == level
        assert cage.survey(Path("a.tif"), name="a.tif").num_pages == 1
        with cage.windows(Path("a.tif")) as windows:
            assert windows.read(0, 0, 0, 4, 4).max() == level


def test_a_survey_counts_all_pages(cage: Cage, tmp_path: Path) -> None:
    """Stacks are counted page by page, as `needs_windows` and the windows have them."""
    stack, single = tmp_path / "stack.tif", tmp_path / "one.png"
    tifffile.imwrite(stack, np.zeros((5, 20, 30), np.uint8), photometric="minisblack")
    Image.new("L", (30, 20)).save(single)
    survey = cage.survey(stack, name="s")
    assert (survey.needs_windows, survey.num_pages, survey.num_pixels) == (True, 5, 5 * 600)
    survey = cage.survey(single, name="s")
    assert (survey.needs_windows, survey.num_pages, survey.num_pixels) == (False, 1, 600)
    assert needs_windows(stack)


def test_nothing_is_left_at_the_end() -> None:
    """`close` ends mother and children, also one in the middle of an image."""
    cage = Cage(2)
    with cage.open(_files()["PNG"], name="p"):
        mother = cage._process.pid
        children = Path(f"/proc/{mother}/task/{mother}/children").read_text("ascii").split()
        cage.close()
    assert children
    for number in (mother, *map(int, children)):
        assert not Path(f"/proc/{number}").exists()


def test_windows_are_those_of_a_reader_here(cage: Cage, tmp_path: Path) -> None:
    """Facts, pixels and missing data of a stack of floats come through the wall as they are."""
    random = np.random.default_rng(0)
    pages = random.random((3, 70, 90), np.float32)
    pages[1, 5, 6] = np.nan
    path = tmp_path / "stack.tif"
    settings: dict[str, Any] = {
        "photometric": "minisblack",
        "tile": (32, 32),
        "compression": "zlib",
    }
    tifffile.imwrite(path, pages, resolution=(5000, 4000), resolutionunit="CENTIMETER", **settings)
    with cage.windows(path) as caged, open_windows(path) as here:
        assert (caged.format, caged.num_pages, caged.name) == (here.format, 3, here.name)
        assert here.pixel_size is not None
        assert caged.pixel_size == here.pixel_size
        assert caged.axes is None
        for page in range(3):
            assert caged.info(page) == here.info(page)
            window = page, 3, 4, 60, 50
            np.testing.assert_array_equal(caged.read(*window), here.read(*window))
            np.testing.assert_array_equal(caged.valid(*window), here.valid(*window))


def test_windows_keep_no_image_waiting(tmp_path: Path) -> None:
    """While a huge image is read for hours, a cage of one place decodes others; both can stop."""
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.zeros((5, 20, 30), np.uint8), photometric="minisblack")
    cage = Cage(1, seconds=10.0)
    try:
        with cage.windows(path) as windows:
            with cage.open(_files()["PNG"], name="p") as opened:
                assert opened.image().shape == (40, 50, 3)
            assert windows.read(4, 0, 0, 20, 30).shape == (20, 30, 1)
            cage.stop(threading.get_ident())
            with pytest.raises(ImageError, match="ends the decoder"):
                windows.read(4, 0, 0, 20, 30)
    finally:
        cage.close()


@pytest.mark.skipif(not find_spec("zarr"), reason="needs zarr")
def test_a_chunk_that_unpacks_to_gigabytes_ends_its_child(cage: Cage, tmp_path: Path) -> None:
    """A chunk's own header may say more than the array's: 4 GB of zeros in some 100 KB."""
    import numcodecs  # type: ignore[import-untyped]
    import zarr

    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(64, 64), chunks=(64, 64), dtype="u1", zarr_format=2,
        compressors=numcodecs.Zstd(),
    )  # fmt: skip
    array[:] = 7
    with cage.windows(tmp_path / "a.zarr") as windows:
        assert (windows.read(0, 0, 0, 64, 64) == 7).all()
        assert windows.axes is not None
        assert windows.axes.lengths == (64, 64)
    bomb = numcodecs.Zstd().encode(np.zeros(4_000_000_000 // 8))
    assert len(bomb) < 1_000_000
    (tmp_path / "a.zarr" / "0.0").write_bytes(bomb)
    with cage.windows(tmp_path / "a.zarr") as windows, pytest.raises(ImageError):
        windows.read(0, 0, 0, 64, 64)
