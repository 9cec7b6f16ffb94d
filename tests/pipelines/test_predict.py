"""Predicting files: names that never collide, structure that stays, nothing overwritten."""

import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from binseg.cli import app
from binseg.cli.predict import _model_and_inputs
from binseg.errors import ImageError, OutputError, UsageError
from binseg.imageio.cage import Cage
from binseg.inference import ModelPredictor, PredictOptions, sources
from binseg.inference.engine import predict_bytes, predict_files, run
from binseg.inference.large import predict_large
from binseg.inference.pretrained import default_bundle_path
from binseg.inference.sinks import FolderSink, PredictResult
from binseg.inference.sources import FileSource, WatchSource
from binseg.postprocess import PostProcessing
from binseg.storage import held
from binseg.types import Preprocessing

OVERLAY = PredictOptions(outputs=("overlay",))


class Brightness:
    """A backend that answers with the brightness of the input."""

    name = "brightness"
    precision = "fp32"

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """Give the mean over the channels."""
        mean: np.ndarray = inputs_NCHW.mean(axis=1)
        return mean


@pytest.fixture
def model() -> ModelPredictor:
    """A predictor of that backend."""
    preprocessing = Preprocessing(height=8, width=8)
    return ModelPredictor(
        backend=Brightness(), preprocessing=preprocessing, threshold=0.5, bundle_id="bright"
    )


@pytest.fixture
def paint(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an image under a name."""

    def write(name: str, level: int = 200) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (level, level, level)).save(path)
        return path

    return write


def names(folder: Path) -> set[str]:
    """List the files under a folder."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_folders_keep_their_structure(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Images in folders of a folder go to folders of the same names."""
    paint("in/a.png")
    paint("in/deep/a.png")
    paint("in/.hidden/b.png")
    predict_files(model, [tmp_path / "in"], out=tmp_path / "out")
    assert names(tmp_path / "out") == {"a.png", "deep/a.png"}


def test_equal_names_get_masks_of_their_own(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """a.png, a.jpg and another folder's a.png: three images, three masks."""
    first, second, third = paint("in/a.jpg", 200), paint("in/a.png", 10), paint("other/a.png", 200)
    result = predict_files(model, [first, second, third], out=tmp_path / "out")
    assert names(tmp_path / "out") == {"a.png", "a.png.png", "a-2.png"}
    assert [one.foreground for one in result.written] == [1.0, 0.0, 1.0]


def test_answers_of_other_images_dont_collide(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """The mask of a_overlay.jpg doesn't hide the overlay of a.jpg."""
    images = [paint("in/a.jpg"), paint("in/a_overlay.jpg")]
    result = predict_files(model, images, out=tmp_path / "out", options=OVERLAY)
    files = [path for one in result.written for path in (one.mask, *one.others)]
    assert len(set(files)) == 4


def test_same_image_given_twice_is_predicted_once(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """A file, its folder, a glob that finds it and links to both are one image."""
    image = paint("in/a.png")
    (tmp_path / "link.png").symlink_to(image)
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    inputs: list[str | Path] = [image, tmp_path / "in", str(tmp_path / "in" / "*.png")]
    inputs += [tmp_path / "link.png", tmp_path / "linked", tmp_path / "in" / ".." / "in" / "a.png"]
    assert len(predict_files(model, inputs, out=tmp_path / "out").written) == 1


def test_second_run_in_one_folder_skips_its_answers(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Masks of an earlier run inside the input folder are no images."""
    paint("in/a.png")
    for _ in range(2):
        result = predict_files(
            model, [tmp_path / "in"], out=tmp_path / "in" / "masks", overwrite=True
        )
        assert [one.source.name for one in result.written] == ["a.png"]


def test_inputs_are_never_overwritten(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Not even with `overwrite`, and not by way of another image's name."""
    image = paint("in/a.png")
    with pytest.raises(UsageError, match="one of the inputs"):
        predict_files(model, [image], out=tmp_path / "in", overwrite=True)
    with pytest.raises(UsageError, match="one of the inputs"):
        predict_files(model, [paint("b/a.jpg"), image], out=tmp_path / "in", overwrite=True)
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    with pytest.raises(UsageError, match="one of the inputs"):
        predict_files(model, [image], out=tmp_path / "linked", overwrite=True)


def test_files_that_are_there_stay(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """A mask that somebody drew is not replaced unless that is asked for."""
    image, drawn = paint("in/a.png"), paint("masks/a.png")
    before = drawn.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        predict_files(model, [image], out=tmp_path / "masks")
    assert drawn.read_bytes() == before
    predict_files(model, [image], out=tmp_path / "masks", overwrite=True)
    assert drawn.read_bytes() != before


def test_stacks_give_stacks_of_masks(model: ModelPredictor, tmp_path: Path) -> None:
    """A mask has the pages of its stack; answers of other kinds come page by page."""
    pages = np.stack([np.full((9, 11), level, np.uint8) for level in (0, 255)])
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    result = predict_files(model, [tmp_path / "stack.tif"], out=tmp_path / "out")
    assert names(tmp_path / "out") == {"stack.tif"}
    assert result.written[0].foreground == 0.5
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "stack.tif"), pages)
    options = OVERLAY
    result = predict_files(model, [tmp_path / "stack.tif"], out=tmp_path / "pages", options=options)
    assert [one.mask.name for one in result.written] == ["stack-page0000.png", "stack-page0001.png"]
    assert [one.foreground for one in result.written] == [0.0, 1.0]


def test_failures_are_named_once(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """A broken image, an absent one and an empty folder fail; the others are written."""
    broken = paint("in/broken.png")
    broken.write_bytes(broken.read_bytes()[:45])
    (tmp_path / "empty").mkdir()
    inputs = [broken, paint("in/good.png"), tmp_path / "gone.png", tmp_path / "empty"]
    result = predict_files(model, inputs, out=tmp_path / "out")
    assert names(tmp_path / "out") == {"good.png"}
    assert {Path(failure.source).name for failure in result.failures} == {
        "broken.png",
        "gone.png",
        "empty",
    }
    assert all(failure.source in failure.reason for failure in result.failures)
    assert result.num_inputs == 4


def test_threshold_replaces_the_models(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """A threshold of 1 finds nothing, and the model keeps its own."""
    result = predict_files(
        model, [paint("a.png")], out=tmp_path / "out", options=PredictOptions(threshold=1.0)
    )
    assert result.written[0].foreground == 0.0
    assert model.threshold == 0.5


class Counting(Brightness):
    """Notes how many inputs each batch has."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """Give the mean over the channels."""
        self.sizes.append(len(inputs_NCHW))
        return super().logits(inputs_NCHW)


def test_images_of_many_sizes_share_batches(tmp_path: Path) -> None:
    """Answers are those of one image at a time, in the order of the images."""
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(23):
        size = (int(random.integers(5, 40)), int(random.integers(5, 40)), 3)
        pixels = random.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number:02}.png")
    (tmp_path / "in" / "07.png").write_bytes(b"no image")
    backend = Counting()
    model = ModelPredictor(
        backend=backend,
        preprocessing=Preprocessing(height=8, width=8),
        threshold=0.6,
        bundle_id="b",
        batch_size=4,
    )
    result = predict_files(model, [tmp_path / "in"], out=tmp_path / "out")
    assert [one.source.name for one in result.written] == [
        f"{number:02}.png" for number in range(23) if number != 7
    ]
    assert [Path(one.source).name for one in result.failures] == ["07.png"]
    assert max(backend.sizes) == 4
    assert len(backend.sizes) <= 7
    for one in result.written:
        with Image.open(one.mask) as mask:
            assert np.array_equal(np.asarray(mask) == 255, model.predict(one.source).mask)


def test_a_stopped_run_goes_on(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Only images without all their answers are predicted."""
    first, second = paint("in/a.png"), paint("in/b.png")
    options = OVERLAY
    predict_files(model, [first], out=tmp_path / "out", options=options)
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    predict_files(model, [second], out=tmp_path / "out")
    result = predict_files(
        model, [tmp_path / "in"], out=tmp_path / "out", options=options, resume=True
    )
    assert [one.source.name for one in result.written] == ["b.png"]
    assert (result.num_skipped, result.num_inputs) == (1, 2)
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before


def test_resuming_keeps_no_other_images_answers(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Of another folder's namesake, another model or another threshold: refused, and kept."""
    out = tmp_path / "out"
    predict_files(model, [paint("day1/a.png")], out=out)
    before = (out / "a.png").read_bytes()
    with pytest.raises(UsageError, match=r"a\.png is of another image; choose another folder"):
        predict_files(model, [paint("day2/a.png", 10)], out=out, resume=True)
    first = tmp_path / "day1" / "a.png"
    with pytest.raises(UsageError, match="is of another threshold"):
        predict_files(model, [first], out=out, resume=True, options=PredictOptions(threshold=0.7))
    model.bundle_id = "other"
    with pytest.raises(UsageError, match="is of another model"):
        predict_files(model, [first], out=out, resume=True)
    assert (out / "a.png").read_bytes() == before
    model.bundle_id, model.tta = "bright", "horizontal"
    with pytest.raises(UsageError, match=r"is of another setting \(test-time augmentation"):
        predict_files(model, [first], out=out, resume=True)
    model.tta = "none"
    assert predict_files(model, [first], out=out, resume=True).num_skipped == 1
    shutil.copytree(tmp_path / "day1", tmp_path / "moved")  # the same content elsewhere
    copied = predict_files(model, [tmp_path / "moved" / "a.png"], out=out, resume=True)
    assert copied.num_skipped == 1
    Image.new("L", (12, 10)).save(out / "a.png")  # which says nothing of its making
    foreign = (out / "a.png").read_bytes()
    with pytest.raises(UsageError, match="is of another program"):
        predict_files(model, [first], out=out, resume=True)
    assert (out / "a.png").read_bytes() == foreign


@pytest.mark.parametrize("mask_format", ["png", "tif"])
@pytest.mark.parametrize("damage", ["empty", "cut", "overlay", "image"])
def test_what_is_no_whole_result_is_made_again(
    model: ModelPredictor,
    paint: Callable[..., Path],
    tmp_path: Path,
    mask_format: Literal["png", "tif"],
    damage: str,
) -> None:
    """An empty or cut mask, another overlay, and a result of what the image was before."""
    image, out = paint("in/a.png"), tmp_path / "out"
    options = PredictOptions(outputs=("overlay",), mask_format=mask_format)
    mask = predict_files(model, [image], out=out, options=options).written[0].mask
    before = mask.read_bytes()
    if damage == "overlay":
        (out / "a_overlay.png").write_bytes((out / "a_overlay.png").read_bytes()[:-20])
    elif damage == "image":
        dated = image.stat().st_mtime
        paint("in/a.png", 10)
        os.utime(image, (dated - 9999, dated - 9999))
    else:
        mask.write_bytes(b"" if damage == "empty" else before[: len(before) * 2 // 3])
    again = predict_files(model, [image], out=out, options=options, resume=True)
    assert len(again.written) == 1
    assert (mask.read_bytes() == before) == (damage != "image")
    assert predict_files(model, [image], out=out, options=options, resume=True).num_skipped == 1


def test_a_watcher_sees_an_older_replacement_after_a_restart(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """The content decides, not the dates."""

    def follow() -> list[str]:
        looks = iter(range(100))
        rounds: list[str] = []
        run(
            WatchSource(folder=tmp_path / "in", seconds=0.0, stop=lambda: next(looks) == 2),
            model,
            FolderSink(tmp_path / "masks", overwrite=True, resume=True),
            told=lambda result: rounds.extend(one.source.name for one in result.written),
        )
        return rounds

    image = paint("in/a.png", 10)
    paint("in/b.png", 10)
    assert follow() == ["a.png", "b.png"]
    assert follow() == []
    paint("in/a.png", 250)
    os.utime(image, (1e9, 1e9))
    assert follow() == ["a.png"]
    with Image.open(tmp_path / "masks" / "a.png") as mask:
        assert np.asarray(mask).min() == 255


def test_zarr_images_in_folders_are_found(tmp_path: Path, paint: Callable[..., Path]) -> None:
    """Beside images, and inside a group that names none, where the group's child is given."""
    paint("in/a.png")
    zarr = pytest.importorskip("zarr")
    pixels = np.zeros((16, 20), np.uint8)
    for name in ("in/slide.zarr", "plate.zarr/A/1/0"):
        zarr.create_array(str(tmp_path / name), data=pixels)
    source = FileSource([tmp_path / "in", tmp_path / "plate.zarr/A/1/0"])
    (found,) = source.rounds(FolderSink(tmp_path / "m"), PredictOptions())
    assert not found.failures
    assert [one.path.name for one in found.images] == ["a.png", "slide.zarr", "0"]


def test_large_folders_are_begun_with_before_the_rest_is_looked_at(
    model: ModelPredictor,
    paint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In rounds, whose outputs are named as in one; where files could be in the way, in one."""
    monkeypatch.setattr(sources, "AT_ONCE", 2)
    for name in ("a.jpg", "a.png", "b.png", "deep/a.png", "deep/b.jpg", "z.png"):
        paint(f"in/{name}")
    (tmp_path / "in/note.txt").write_text("no image")
    source = FileSource([tmp_path / "in"])

    def rounds(out: Path) -> list[int]:
        return [len(one.images) for one in source.rounds(FolderSink(out), PredictOptions())]

    out = tmp_path / "out"
    assert rounds(out) == [2, 2, 2]
    assert rounds(tmp_path) == rounds(tmp_path / "in") == [6]
    result = predict_files(model, [tmp_path / "in"], out=out)
    assert len(result.written) == 6
    assert [one.name for one in result.left_out] == ["note.txt"]
    names = sorted(one.relative_to(out).as_posix() for one in out.rglob("*.png"))
    assert names == ["a.png", "a.png.png", "b.png", "deep/a.png", "deep/b.png", "z.png"]
    assert predict_files(model, [tmp_path / "in"], out=out, resume=True).num_skipped == 6
    (out / "a.png").unlink()
    assert rounds(out) == [6]
    with pytest.raises(UsageError, match="exists"):
        predict_files(model, [tmp_path / "in"], out=out)
    assert not (out / "a.png").exists()


def test_a_watched_folder_is_followed(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """New and changed images are predicted once they rest; names stay apart between rounds."""
    paint("in/a.png")
    rounds: list[list[str]] = []
    looks = iter(range(100))

    def stop() -> bool:
        look = next(looks)
        if look == 2:
            paint("in/deep/b.png")
            paint("in/a.jpg", 10)
        if look == 5:
            paint("in/a.png", 10)
        return look == 8

    def follow(folder: Path, stop: Callable[[], bool], out: Path) -> None:
        run(
            WatchSource(folder=folder, seconds=0.0, stop=stop),
            model,
            FolderSink(out, overwrite=True, resume=True),
            told=lambda result: rounds.append(sorted(one.source.name for one in result.written)),
        )

    masks = tmp_path / "in" / "masks"
    follow(tmp_path / "in", stop, masks)
    assert rounds == [["a.png"], ["a.jpg", "b.png"], ["a.png"]]
    assert names(masks) == {"a.png", "a.jpg.png", "deep/b.png"}
    rounds.clear()
    looks = iter(range(6, 100))
    follow(tmp_path / "in", lambda: next(looks) > 10, masks)
    assert ["a.png"] not in rounds
    with pytest.raises(UsageError, match="no folder"):
        follow(tmp_path / "gone", lambda: True, tmp_path / "m")
    with pytest.raises(UsageError, match="would be taken for images"):
        follow(tmp_path / "in", lambda: True, tmp_path / "in")


def test_masks_may_go_to_the_folder_around_the_images(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """`--out .` for images in ./in: they aren't answers, though they lie below it."""
    paint("in/a.jpg")
    result = predict_files(model, [tmp_path / "in"], out=tmp_path)
    assert [one.mask for one in result.written] == [tmp_path / "a.png"]


def test_a_huge_image_that_was_interrupted_late_goes_on(
    model: ModelPredictor, tmp_path: Path
) -> None:
    """Its probabilities are there and its mask isn't; asked for later, they are made."""
    path = tmp_path / "stack.tif"
    pages = np.random.default_rng(0).integers(0, 255, (2, 40, 50), dtype=np.uint8)
    tifffile.imwrite(path, pages, photometric="minisblack")
    out = tmp_path / "out"
    both = PredictOptions(outputs=("probability",))
    predict_files(model, [path], out=out)
    again = predict_files(model, [path], out=out, options=both, resume=True)
    assert again.written[0].others == (out / "stack_probability.tif",)
    assert predict_files(model, [path], out=out, options=both, resume=True).num_skipped == 1
    with pytest.raises(UsageError, match=r"stack.*\.tif exists"):
        predict_files(model, [path], out=out, options=both)
    (out / "stack.tif").unlink()
    (out / "stack.tif.part").mkdir()
    (out / "stack.tif.part" / "job.json").write_text("{}")
    assert predict_large(model, path, out=out / "stack.tif", probability="float32").mask.exists()


def test_bytes_in_bytes_out(model: ModelPredictor, paint: Callable[..., Path]) -> None:
    """A pipe's answer is the file's."""
    image = paint("a.png")
    with Image.open(io.BytesIO(predict_bytes(model, image.read_bytes()))) as mask:
        assert np.array_equal(np.asarray(mask) == 255, model.predict(image).mask)
    with pytest.raises(ImageError, match="the image on stdin"):
        predict_bytes(model, b"text")
    facts = json.loads(
        predict_bytes(
            model, image.read_bytes(), output="json", options=PredictOptions(threshold=1.0)
        )
    )
    assert facts["num_objects"] == 0


def write_video(path: Path, levels: list[int]) -> list[np.ndarray]:
    """Write a video of grey frames without loss; give the frames."""
    import av

    path.parent.mkdir(exist_ok=True)
    frames = [np.full((18, 22, 3), level, np.uint8) for level in levels]
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 22, 18, "bgr0"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return frames


def test_frames_keep_their_times(model: ModelPredictor, tmp_path: Path) -> None:
    """Phones film at a rate that varies; masks and overlay show at the moments of their frames."""
    av = pytest.importorskip("av")
    times = [0, 40, 80, 200, 233, 1000]
    video, out = tmp_path / "f.mkv", tmp_path / "out"
    with av.open(str(video), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 22, 18, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.zeros((18, 22, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (made,) = predict_files(model, [video], out=out, options=OVERLAY).written
    for path in (made.mask, *made.others):
        with av.open(str(path)) as container:
            found = [round(1000 * float(one.time)) for one in container.decode(video=0)]
        assert found == times, path.name
    assert predict_files(model, [video], out=out, options=OVERLAY, resume=True).num_skipped == 1
    made.mask.write_bytes(made.mask.read_bytes()[:-9])
    assert predict_files(model, [video], out=out, options=OVERLAY, resume=True).written


def test_a_video_becomes_a_video_of_masks(model: ModelPredictor, tmp_path: Path) -> None:
    """Frame by frame the masks of the frames, without loss; the overlay plays too."""
    av = pytest.importorskip("av")
    frames = write_video(tmp_path / "f.mkv", [0, 250, 0, 250, 250])
    (made,) = predict_files(
        model, [tmp_path / "f.mkv"], out=tmp_path / "out", options=OVERLAY
    ).written
    assert made.foreground == 0.6
    with av.open(str(made.mask)) as container:
        masks = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    expected = [model.predict(pixels).mask for pixels in frames]
    assert all(np.array_equal(a == 255, b) for a, b in zip(masks, expected, strict=True))
    with av.open(str(made.others[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mkv\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mkv\n#EXT-X-ENDLIST\n",
        "[playlist]\nFile1=secret.mkv\n",
        "v=0\nm=video 1 RTP/AVP 96\n",
    ],
)
def test_a_playlist_is_no_video(model: ModelPredictor, tmp_path: Path, text: str) -> None:
    """A text that names another file is refused, whatever its own name is; nothing is opened."""
    pytest.importorskip("av")
    write_video(tmp_path / "secret.mkv", [0, 250])
    (tmp_path / "clip.mp4").write_text(text)
    found = predict_files(model, [tmp_path / "clip.mp4"], out=tmp_path / "out", options=OVERLAY)
    assert not found.written
    assert "can't be read as a video" in str(found.failures[0])


def test_videos_stop_nobody_and_replace_nothing(model: ModelPredictor, tmp_path: Path) -> None:
    """A bad video is named; an input, an earlier answer and another video's are never replaced."""
    pytest.importorskip("av")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    out = tmp_path / "out"
    (failure,) = predict_files(model, [bad], out=out).failures
    assert "can't be read as a video" in failure.reason
    assert not out.exists()
    video = tmp_path / "f.mkv"
    video.write_bytes(b"precious")
    with pytest.raises(UsageError, match="is one of the inputs"):
        predict_files(model, [video], out=tmp_path, overwrite=True)
    out.mkdir()
    (out / "f.mkv").write_bytes(b"earlier")
    with pytest.raises(UsageError, match="exists; choose another folder"):
        predict_files(model, [video], out=out)
    with pytest.raises(UsageError, match="is of another program"):
        predict_files(model, [video], out=out, resume=True)
    with pytest.raises(UsageError, match=r"videos give masks and --overlay"):
        predict_files(model, [video], out=out, options=PredictOptions(outputs=("table",)))
    assert (video.read_bytes(), (out / "f.mkv").read_bytes()) == (b"precious", b"earlier")


def test_videos_of_one_name_get_masks_of_their_own(model: ModelPredictor, tmp_path: Path) -> None:
    """Names are given as to images: the second video's masks don't replace the first one's."""
    pytest.importorskip("av")
    videos = [tmp_path / "f.mp4", tmp_path / "more" / "f.mp4"]
    for video in videos:
        write_video(video, [0, 250])
    result = predict_files(model, videos, out=tmp_path / "out")
    assert [one.mask.name for one in result.written] == ["f.mkv", "f.mp4.mkv"]
    assert names(tmp_path / "out") == {"f.mkv", "f.mp4.mkv"}


def test_a_link_to_itself_is_one_failed_input(trained: Path, discs: Path, tmp_path: Path) -> None:
    """It is named, and the other images are predicted."""
    shutil.copy(discs / "images" / "disc003.png", tmp_path / "a.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    result = CliRunner().invoke(
        app, ["predict", str(trained), str(tmp_path), "--out", str(tmp_path / "masks")]
    )
    assert result.exit_code == 1
    assert "self.png" in result.stderr
    assert "1 of 2 inputs failed" in result.stderr
    assert [one.name for one in (tmp_path / "masks").iterdir()] == ["a.png"]


def test_where_there_is_no_data_there_is_no_foreground(
    model: ModelPredictor, tmp_path: Path
) -> None:
    """GDAL's tag, NaN and a declared value, whole and by windows, in files, memory and pipes."""
    bright_HW = np.full((90, 70), 0.9, np.float32)
    missing_HW = np.zeros((90, 70), np.bool_)
    missing_HW[40:60, 30:50] = True  # a hole that post-processing would fill
    missing_HW[:10] = True
    model.postprocessing = PostProcessing(fill_holes=1000)
    expected_HW = np.where(missing_HW, 0, 255)
    for name, value, tags in (
        ("tag", -9999.0, [(42113, 2, 0, "-9999", True)]),
        ("nan", np.nan, []),
        ("declared", -9999.0, []),
    ):
        is_declared = name == "declared"
        if is_declared:
            model.preprocessing = replace(model.preprocessing, nodata=value)
        path = tmp_path / f"{name}.tif"
        pixels = np.where(missing_HW, np.float32(value), bright_HW)
        tifffile.imwrite(path, pixels, extratags=tags, metadata=None)
        out = tmp_path / name
        options = PredictOptions(outputs=("probability",), mask_format="tif")
        predict_files(model, [path], out=out, options=options)
        predict_files(model, [path], out=tmp_path / f"{name}-png")
        predict_large(model, path, out=out / "large.tif", probability="float32", whole_pixels=0)
        for mask in (out / f"{name}.tif", out / "large.tif"):
            assert np.array_equal(tifffile.imread(mask), expected_HW)
            probability = mask.with_name(f"{mask.stem}_probability.tif")
            with tifffile.TiffFile(probability) as file:
                assert np.array_equal(np.isnan(file.asarray()), missing_HW)
                assert file.pages.first.tags[42113].value == "nan"
        with Image.open(tmp_path / f"{name}-png" / f"{name}.png") as png:
            assert np.array_equal(np.asarray(png), expected_HW)
            assert json.loads(png.info["binseg"])["no_data"] == missing_HW.mean()
        found = model.predict(path)
        assert np.array_equal(found.mask * 255, expected_HW)
        assert found.probability[missing_HW].max() == 0
        assert found.objects()[0].area == (~missing_HW).sum()
        with Image.open(io.BytesIO(predict_bytes(model, path.read_bytes()))) as png:
            assert np.array_equal(np.asarray(png), expected_HW)
        if is_declared:
            for image in (pixels, Image.fromarray(pixels)):
                assert np.array_equal(model.predict(image).mask * 255, expected_HW)
            continue
        cage = Cage(1)
        try:
            with cage.open(path.read_bytes(), name="p") as opened:
                valid_HW = opened.valid()
                assert valid_HW is not None
                assert np.array_equal(valid_HW, ~missing_HW)
        finally:
            cage.close()


def test_folders_leave_nothing_out_in_silence(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """Content decides what is an image; text is counted, and what can't be read has failed."""
    jpeg = paint("in/a.jpg")
    for name in ("b.jfif", "c.jpe", "d", "e.photo"):
        shutil.copy(jpeg, tmp_path / "in" / name)
    pages = np.stack([np.full((9, 11), level, np.uint8) for level in (0, 255)])
    for name in ("f.lsm", "g.btf"):
        tifffile.imwrite(tmp_path / "in" / name, pages, photometric="minisblack")
    (tmp_path / "in" / "notes.txt").write_text("to do")
    (tmp_path / "in" / "h.psd").write_bytes(b"8BPS\0\1")
    shutil.copy(tmp_path / "in" / "f.lsm", tmp_path / "in" / "i.dng")
    result = predict_files(model, [tmp_path / "in"], out=tmp_path / "out")
    assert [one.source.name for one in result.written] == [
        "a.jpg", "b.jfif", "c.jpe", "d", "e.photo", "f.lsm", "g.btf",
    ]  # fmt: skip
    assert sorted(Path(one.source).name for one in result.failures) == ["h.psd", "i.dng"]
    assert [one.name for one in result.left_out] == ["notes.txt"]
    assert result.as_dict()["left_out"] == [str(tmp_path / "in" / "notes.txt")]
    assert {"f.tif", "g.tif"} <= names(tmp_path / "out")


@pytest.mark.parametrize("given", [["photo.jpg"], ["photos/"], ["photo.jpg", "*.png"], ["-"]])
def test_no_model_is_taken_unasked(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paint: Callable[..., Path]
) -> None:
    """One line says what to give, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    paint("photo.jpg")
    paint("photos/a.jpg")
    result = CliRunner().invoke(app, ["predict", *given])
    assert result.exit_code == 2
    assert "name a run or bundle too, or the built-in model of cats and dogs with --model pets" in (
        result.stderr
    )
    assert not (tmp_path / "masks").exists()


def test_a_model_is_known_wherever_it_stands(tmp_path: Path, paint: Callable[..., Path]) -> None:
    """The built-in one by its name, others by what they hold; two are one too many."""
    photo, run_ = str(paint("photo.jpg")), tmp_path / "run"
    (run_ / "bundle").mkdir(parents=True)
    built_in = default_bundle_path()
    assert _model_and_inputs("pets", [photo]) == (built_in, [photo])
    assert _model_and_inputs(None, [photo, "pets"]) == (built_in, [photo])
    assert _model_and_inputs(None, [photo, str(run_)]) == (run_, [photo])
    assert _model_and_inputs(None, [str(built_in), "-"]) == (built_in, ["-"])
    with pytest.raises(UsageError, match=r"which images\?"):
        _model_and_inputs(None, ["pets"])
    with pytest.raises(UsageError, match="two models"):
        _model_and_inputs(None, [str(run_), str(built_in), photo])


def test_one_command_at_a_time_writes_to_a_folder(
    model: ModelPredictor, paint: Callable[..., Path], tmp_path: Path
) -> None:
    """The second is told so in one line, and writes nothing; afterwards it may."""
    image, out = paint("a.png"), tmp_path / "out"

    def other() -> PredictResult:
        return predict_files(model, [image], out=tmp_path / "x" / ".." / "out")

    with held(out), ThreadPoolExecutor(1) as pool:
        with pytest.raises(OutputError, match="another command works there"):
            pool.submit(other).result()
        assert not out.exists()
        predict_files(model, [image], out=out)  # the one that holds it
    assert predict_files(model, [image], out=out, overwrite=True).written
