"""Decoding in children: the same pixels and words, and an end to memory and time."""

import io
import os
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.errors import ImageError
from binseg.imageio import decode_image, needs_windows, probe_bytes
from binseg.imageio.cage import Cage

from ..bombs import jpeg_in_tiff, jpeg_of_scans  # noqa: TID252 - tests are no package of their own


@pytest.fixture(scope="module")
def cage() -> Iterator[Cage]:
    opened = Cage(2, seconds=2.0)
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
    out = io.BytesIO()
    np.save(out, image_HWC)
    files["NPY"] = out.getvalue()
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


@pytest.mark.parametrize(("kind", "data"), _files().items())
def test_the_pixels_are_those_of_a_decoder_here(cage: Cage, kind: str, data: bytes) -> None:
    """Header and pixels of every format are what they are without a cage, from bytes and files."""
    with cage.open(data, name=kind) as opened:
        assert opened.info == probe_bytes(data, name=kind)
        image_HWC, _ = opened.read()
    expected = decode_image(data, name=kind)
    assert image_HWC.dtype == expected.dtype
    assert np.array_equal(image_HWC, expected)
    image_HWC[0, 0] = 0  # nobody else has it


def test_errors_are_those_of_a_decoder_here(cage: Cage) -> None:
    """A damaged file, and one that is none, are refused in the same words; the child goes on."""
    good = _files()["PNG"]
    for data in (good[:60], b"nonsense", b""):
        with pytest.raises(ImageError) as expected:
            decode_image(data, name="p")
        with pytest.raises(ImageError) as found, cage.open(data, name="p") as opened:
            opened.read()
        assert str(found.value) == str(expected.value)


def test_memory_has_an_end(cage: Cage) -> None:
    """456 bytes that would unpack to 4.3 GB fail within the space that their header claims."""
    with cage.open(jpeg_in_tiff(), name="p") as opened:
        assert (opened.info.height, opened.info.width) == (16, 16)
        with pytest.raises(ImageError, match="memory"):
            opened.read()


def test_time_has_an_end(cage: Cage) -> None:
    """A JPEG of thousands of scans is given up after seconds, and the next image is decoded."""
    start = time.monotonic()
    with (
        pytest.raises(ImageError, match="too long"),
        cage.open(jpeg_of_scans(num_scans=20_000), name="p") as opened,
    ):
        opened.read()
    assert time.monotonic() - start < 10
    with cage.open(_files()["PNG"], name="p") as opened:
        assert opened.read()[0].shape == (40, 50, 3)


def test_what_never_answers_is_killed(tmp_path: Path) -> None:
    """A pipe named like an image holds a child for a moment only, and no process stays."""
    os.mkfifo(tmp_path / "image.png")
    cage = Cage(1, seconds=0.3)
    try:
        with (
            pytest.raises(ImageError, match="too long"),
            cage.open(tmp_path / "image.png", name="p"),
        ):
            pass
        with cage.open(_files()["PNG"], name="p") as opened:
            opened.read()
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
        assert started.wait(10)
        time.sleep(0.2)
        cage.stop(thread)
        said.append(time.monotonic())

    other = threading.Thread(target=stop)
    other.start()
    with cage.open(jpeg_of_scans(num_scans=20_000), name="p") as opened:
        started.set()
        with pytest.raises(ImageError, match="ends the decoder"):
            opened.read()
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
                if not (opened.read()[0] == shade).all():
                    wrong.append(shade)

    threads = [threading.Thread(target=ask, args=(shade,)) for shade in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


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
