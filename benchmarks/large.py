"""Images beyond memory: peak memory, kill -9 and resume, and seams, measured for real.

    python benchmarks/large.py --side 20000 --json large.json
    python benchmarks/large.py --side 40000 --run runs/tiles
    python benchmarks/large.py --side 40000 --width 4 --only cluster
    python benchmarks/large.py --quick

An image is written tile by tile (RGB, JPEG tiles of 512 x 512 in a BigTIFF; a texture of
synthetic images that repeats after 4,096 pixels), a small U-Net is trained on such images
unless --run names a bundle that takes tiles, and then

memory   `predict_large` in a process of its own: its largest resident set, against what it told
resume   the same in a process that is killed (SIGKILL) in the middle, and called again: SHA-256
seams    a 3,000 x 3,000 crop as one input, against the same crop in tiles: largest difference of
         the probability by the margin that tiles keep, away from the crop's outer edge
cluster  the image on two Dask workers (--only cluster): SHA-256 beside that of one process, and the
         largest resident set of a worker
"""

import argparse
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from binseg.cli.console import PlainProgress
from binseg.config import load_recipe
from binseg.data.sources.synthetic import draw_synthetic
from binseg.imageio import probe
from binseg.inference import ModelPredictor, PredictOptions, load, sigmoid
from binseg.inference.large import predict_large
from binseg.inference.sinks import FolderSink
from binseg.inference.sources import FileSource
from binseg.pipelines.cluster import ModelFiles, cluster, predict_on
from binseg.pipelines.train_model import train
from binseg.storage import write_json
from binseg.transforms.geometry import tiles_for
from binseg.transforms.preprocess import normalise

TILE = 512
PERIOD = 4096
CROP = 3000
SETTINGS = (
    "input.size=128",
    "input.resize=tile",
    "train.epochs=2",
    "train.device=cpu",
)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000, help="height and width in pixels")
    parser.add_argument("--run", type=Path, help="a run or bundle that takes tiles")
    parser.add_argument("--tile", type=int, help="tiles instead of the bundle's")
    parser.add_argument("--overlap", type=float, help="overlap instead of the bundle's")
    parser.add_argument("--quick", action="store_true", help="a side of 4,096, a crop of 1,024")
    parser.add_argument("--width", type=int, default=16, help="channels of the trained U-Net")
    parts = ("memory", "resume", "seams", "cluster")
    parser.add_argument("--only", choices=parts, action="append")
    parser.add_argument("--folder", type=Path, help="where files go, instead of a temporary folder")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        work(given.worker, given)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder, given)
    if given.json is not None:
        write_json(given.json, figures)


def measure(folder: Path, given: argparse.Namespace) -> dict[str, object]:
    """Take all figures that are asked for."""
    if given.run is None:
        given.run = folder / "run"
        if not given.run.exists():
            recipe = load_recipe(
                "demo", overrides=[*SETTINGS, f"model.options={{width: {given.width}}}"]
            )
            train(recipe, out=given.run, progress=PlainProgress())
    parts = given.only or ["memory", "resume", "seams"]
    side = 4096 if given.quick else given.side
    texture_HW3 = draw_texture()
    figures: dict[str, object] = {"side": side, "cores": len(os.sched_getaffinity(0))}
    if set(parts) != {"seams"}:
        image = folder / f"image-{side}.tif"
        if not image.exists():
            write_image(image, texture_HW3, side)
        print(f"{image.name}: {side:,} x {side:,} RGB, {image.stat().st_size / 1e9:.2f} GB")
    if "memory" in parts or "resume" in parts:
        figures["memory"] = tell_memory(folder, image, given)
    if "cluster" in parts:
        figures["cluster"] = tell_cluster(folder, image, given)
    if "resume" in parts:
        figures["resume"] = tell_resume(folder, image, given)
    if "seams" in parts:
        crop = 1024 if given.quick else CROP
        figures["seams"] = tell_seams(folder, texture_HW3[:crop, :crop], given)
    return figures


def draw_texture() -> np.ndarray:
    """Synthetic images side by side, so large that every tile of the network differs."""
    num = PERIOD // 128
    drawn = [draw_synthetic(index, size=128, seed=0)[0] for index in range(64)]
    order = np.random.default_rng(0).integers(len(drawn), size=(num, num))
    return np.concatenate(
        [np.concatenate([drawn[index] for index in row], axis=1) for row in order]
    )


def write_image(path: Path, texture_HW3: np.ndarray, side: int) -> None:
    """Write the repeated texture, each of its tiles packed once."""
    num = PERIOD // TILE
    packed = {
        (row, column): imagecodecs.jpeg8_encode(
            texture_HW3[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE].copy(),
            level=90,
        )
        for row in range(num)
        for column in range(num)
    }

    def tiles() -> Iterator[bytes]:
        across = -(-side // TILE)
        for row in range(across):
            for column in range(across):
                yield bytes(packed[row % num, column % num])

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            tiles(),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(TILE, TILE),
            photometric="ycbcr",
            compression="jpeg",
            subsampling=(2, 2),
            metadata=None,
        )


def work(image: Path, given: argparse.Namespace) -> None:
    """Predict the image in this process, and tell its largest resident set."""
    out = given.folder / f"{image.stem}-mask.tif"
    started = time.monotonic()
    result = predict_large(
        load(given.run, device="cpu"),
        image,
        out=out,
        options=PredictOptions(tile=given.tile, overlap=given.overlap),
        progress=PlainProgress(),
        overwrite=True,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.monotonic() - started
    told = {**vars(result), "mask": str(result.mask)}
    print(json.dumps({"peak": peak, "seconds": seconds, **told}))


def start(folder: Path, image: Path, given: argparse.Namespace) -> subprocess.Popen[str]:
    """Start `work` in a process of its own."""
    command = [sys.executable, __file__, "--worker", str(image), "--run", str(given.run)]
    command += ["--folder", str(folder)]
    for name in ("tile", "overlap"):
        if getattr(given, name) is not None:
            command += [f"--{name}", str(getattr(given, name))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    """Wait for the process, and give what it told."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the worker ended with {process.returncode}")
    told: dict[str, object] = json.loads(out.splitlines()[-1])
    return told


def tell_memory(folder: Path, image: Path, given: argparse.Namespace) -> dict[str, object]:
    """Predict the image in one go."""
    told = finish(start(folder, image, given))
    mask = Path(str(told["mask"]))
    info = probe(image)
    pixels = info.height * info.width
    seconds = float(str(told["seconds"]))
    told |= {
        "sha256": sha256_of(mask),
        "mask_bytes": mask.stat().st_size,
        "megapixels_per_second": pixels / seconds / 1e6,
    }
    print(
        f"memory: largest resident set {int(str(told['peak'])) / 1e9:.2f} GB; {seconds:.0f} s, "
        f"{pixels / seconds / 1e6:.2f} megapixels a second; mask of "
        f"{mask.stat().st_size / 1e6:.1f} MB, foreground {float(str(told['foreground'])):.1%}"
    )
    return told


def tell_resume(folder: Path, image: Path, given: argparse.Namespace) -> dict[str, object]:
    """Kill the work when half of the bands are there, go on, and compare the files."""
    mask = folder / f"{image.stem}-mask.tif"
    if not mask.exists():
        finish(start(folder, image, given))
    wanted = sha256_of(mask)
    mask.unlink()
    part = mask.with_name(mask.name + ".part")
    with tifffile.TiffFile(image) as file:
        half = file.pages.first.imagelength // TILE // 2
    process = start(folder, image, given)
    while process.poll() is None and len(list(part.glob("0*.band"))) < half:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed_at = len(list(part.glob("0*.band")))
    assert not mask.exists(), "it was finished before it could be killed"
    told = finish(start(folder, image, given))
    found = sha256_of(mask)
    print(
        f"resume: killed after {killed_at} of {told['num_bands']} bands, {told['num_resumed']} "
        f"kept; SHA-256 {'equal' if found == wanted else 'NOT EQUAL'}: {found}"
    )
    return {"killed_at": killed_at, "equal": found == wanted, **told}


def tell_cluster(folder: Path, image: Path, given: argparse.Namespace) -> dict[str, object]:
    """Predict the image by one process and by two workers, and compare the files."""
    started = time.monotonic()
    command = [sys.executable, "-m", "binseg", "predict", str(given.run), str(image), "--resume"]
    subprocess.run([*command, "--out", str(folder / "one"), "--device", "cpu"], check=True)
    one_s = time.monotonic() - started
    files = ModelFiles(paths=(str(given.run),), settings=(("device", "cpu"),))
    out, options = folder / "two", PredictOptions()
    with cluster(workers=2) as client:
        started = time.monotonic()
        sink = FolderSink(out, overwrite=True)
        result = predict_on(client, FileSource([image]), files, sink, options)
        two_s = time.monotonic() - started
        peaks = client.run(_peak)
    mask = result.written[0].mask
    is_equal = sha256_of(mask) == sha256_of(folder / "one" / mask.name)
    print(
        f"cluster: one process {one_s:.0f} s, two workers {two_s:.0f} s; SHA-256 "
        f"{'equal' if is_equal else 'NOT EQUAL'}; largest resident set of a worker "
        f"{max(peaks.values()) / 1e9:.2f} GB"
    )
    return {"one_s": one_s, "two_s": two_s, "equal": is_equal, "peaks": [*peaks.values()]}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tell_seams(
    folder: Path, crop_HW3: np.ndarray, given: argparse.Namespace
) -> list[dict[str, object]]:
    """Compare the crop as one input with the crop in tiles."""
    predictor = load(given.run, device="cpu")
    inputs_1HWC = crop_HW3[None]
    logits_HW = predictor.backend.logits(normalise(inputs_1HWC, predictor.preprocessing))[0]
    whole_HW = sigmoid(logits_HW / np.float32(predictor.temperature))
    path = folder / "crop.tif"
    tifffile.imwrite(path, crop_HW3, photometric="rgb", tile=(256, 256), compression="zlib")
    asked = ((None, None), (128, 0.25), (256, 0.25), (512, 0.25), (512, 0.6))
    return [seam_of(predictor, path, whole_HW, tile=one, overlap=share) for one, share in asked]


def seam_of(
    predictor: ModelPredictor,
    path: Path,
    whole_HW: np.ndarray,
    *,
    tile: int | None,
    overlap: float | None,
) -> dict[str, object]:
    """The largest difference between tiles of one kind (or the model's own) and the whole."""
    out = path.with_name("crop-mask.tif")
    start = time.process_time()
    options = PredictOptions(tile=tile, overlap=overlap)
    predict_large(
        predictor, path, out=out, options=options, probability="float32", overwrite=True,
        whole_pixels=0,
    )  # fmt: skip
    seconds = time.process_time() - start
    if tile is None:
        own = tiles_for(*whole_HW.shape, predictor.preprocessing)
    else:
        own = predictor.with_options(options).preprocessing
    size, share = own.height, own.overlap
    tiled_HW = tifffile.imread(path.with_name("crop-mask_probability.tif"))
    shared = size - int(size * (1 - share)) // 32 * 32
    margin = (shared - min(32, shared // 2)) // 2
    difference_HW = np.abs(tiled_HW - whole_HW)
    # The crop's last rows and columns are mirrored in tiles and zero in the whole.
    edge = max(margin, 32)
    inner_HW = difference_HW[edge:-edge, edge:-edge]
    row: dict[str, object] = {
        "tile": size,
        "overlap": share,
        "margin": margin,
        "processor_seconds": seconds,
        "largest": float(inner_HW.max()),
        "above_1e-3": float((inner_HW > 1e-3).mean()),
    }
    print(
        f"seams: tiles of {size} overlapping {share:g}, margin {margin}, {seconds:.0f} s of "
        "processor: largest difference "
        f"{row['largest']:.2g} ({edge} pixels and more from the edge), above 0.001 in "
        f"{row['above_1e-3']:.4%} of the pixels"
    )
    return row


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


if __name__ == "__main__":
    main()
