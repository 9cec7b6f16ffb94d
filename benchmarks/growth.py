"""How seconds and memory grow with the number of images, and with the pixels of one.

    python benchmarks/growth.py [--images 100 1000 10000] [--megapixels 1 4 16 64] [--names 100000]
                                [--only images|pixels|names] [--json FILE]

images  `check`, the training cache, `evaluate` and `predict` of small images, a process each
pixels  `predict` of one TIFF
names   the start of `predict FOLDER`: from the folder to the names of the first outputs

Exponents are fitted to log(seconds) over log(size), without a process's start; 1 is linear.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

VERBS = ("check", "cache", "evaluate", "predict")
STEP = """
import sys, time, resource
from pathlib import Path
verb, folder = sys.argv[1:]
from binseg.config import DataConfig
from binseg.data.cache import open_cache
from binseg.data.sources import open_dataset
from binseg.inference import PredictOptions, load
from binseg.inference.engine import predict_files
from binseg.inference.pretrained import default_bundle_path
from binseg.inference.sinks import FolderSink
from binseg.inference.sources import FileSource
from binseg.pipelines.check_data import check
from binseg.pipelines.evaluate_model import evaluate
from binseg.progress import SILENT
from binseg.types import Preprocessing
config = DataConfig(path=folder)
model = load(default_bundle_path(), backend="torch") if verb in ("evaluate", "predict") else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, used = time.perf_counter(), time.process_time()
if verb == "check":
    check(config)
elif verb == "cache":
    data = open_dataset(config)
    shape = Preprocessing(height=64, width=64)
    open_cache(data.records, data.rule, shape, folder=Path(folder) / "cache")
elif verb == "evaluate":
    evaluate(model, data=config, split="all")
elif verb == "predict":
    predict_files(model, [Path(folder) / "images"], out=Path(folder) / "out")
else:
    sink = FolderSink(Path(folder) / "out")
    found = next(FileSource([folder]).rounds(sink, PredictOptions()))
    sink.stems(found.images, None, PredictOptions(), SILENT)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - start, time.process_time() - used, (peak - before) / 1e3)
"""


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--megapixels", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--names", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--verbs", nargs="+", default=list(VERBS))
    parser.add_argument("--only", choices=["images", "pixels", "names"], action="append")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    parts = asked.only or ["images", "pixels", "names"]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        if "images" in parts:
            for verb in asked.verbs:
                rows += grown(verb, asked.images, [pairs(home, num) for num in asked.images])
        if "pixels" in parts:
            sizes = [10**6 * one for one in asked.megapixels]
            rows += grown("predict", sizes, [tiff(home, num) for num in sizes], unit="pixels")
        if "names" in parts:
            rows += grown("names", asked.names, [names(home, num) for num in asked.names])
    print(json.dumps({"load": os.getloadavg(), "rows": rows}, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


def grown(
    verb: str, sizes: Sequence[int], folders: Sequence[Path], *, unit: str = "images"
) -> list[dict[str, object]]:
    """Measure a verb at all sizes, and fit the exponents of processor seconds and memory."""
    rows: list[dict[str, object]] = []
    for size, folder in zip(sizes, folders, strict=True):
        command = [sys.executable, "-c", STEP, verb, str(folder)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        wall, used, megabytes = (float(one) for one in text.split()[-3:])
        row = {"verb": verb, unit: size, "seconds": wall, "processor seconds": used}
        rows.append({**row, "megabytes": megabytes})
        print(rows[-1], flush=True)
    measured = list(rows)
    if len(sizes) > 1:
        for what in ("processor seconds", "megabytes"):
            values = [max(1e-3, float(str(row[what]))) for row in measured]
            exponent = np.polyfit(np.log(sizes), np.log(values), 1)[0]
            rows.append({"verb": verb, f"exponent of {what}": round(float(exponent), 2)})
            print(rows[-1], flush=True)
    return rows


def pairs(home: Path, num: int) -> Path:
    """Write images with masks of 64 x 64 pixels."""
    folder = home / f"pairs{num}"
    if folder.exists():
        return folder
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    random = np.random.default_rng(0)
    grid = np.add.outer((np.arange(64) - 32) ** 2, (np.arange(64) - 32) ** 2)
    for number in range(num):
        mask_HW = grid < random.integers(50, 700)
        pixels = random.integers(0, 120, (64, 64, 3)) + 120 * mask_HW[:, :, None]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number:06d}.png")
        Image.fromarray(mask_HW).save(folder / "masks" / f"{number:06d}.png")
    return folder


def tiff(home: Path, num_pixels: int) -> Path:
    """Write one image of so many pixels, in a folder."""
    side = round(num_pixels**0.5)
    folder = home / f"pixels{num_pixels}"
    (folder / "images").mkdir(parents=True)
    line_W3 = np.random.default_rng(0).integers(0, 255, (side, 3), dtype=np.uint8)
    image_HW3 = np.broadcast_to(line_W3, (side, side, 3))
    tifffile.imwrite(folder / "images" / "a.tif", image_HW3, tile=(512, 512), compression="zlib")
    return folder


def names(home: Path, num: int) -> Path:
    """Write empty files that are named like images, a thousand a folder."""
    folder = home / f"names{num}"
    for first in range(0, num, 1000):
        part = folder / f"{first:07d}"
        part.mkdir(parents=True)
        for number in range(first, min(num, first + 1000)):
            (part / f"image_{number:07d}.jpg").touch()
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
