"""What photographs of 12 megapixels cost, files to files, and whether the short cuts cost Dice.

    python benchmarks/photos.py [DATA] [--images 40] [--photos 12] [--only cost|dice] [--json FILE]

DATA is a folder of images with masks, such as Oxford-IIIT Pet at 256 pixels, else images that
binseg draws (of no use for the Dice of a model of pets); they are
enlarged to 4,000 x 3,000 with a little noise and saved as JPEG, for the built-in model.

cost  processor seconds a photograph, files to files, beside those of the network, of decoding
      (reduced) and of encoding alone, on as many threads as OMP_NUM_THREADS
dice  mean Dice at the photographs' size, averaged by the decoder and with all pixels at once
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from families import folder_of
from PIL import Image

from binseg.config import DataConfig
from binseg.data.dataset import Dataset, spread
from binseg.data.samples import read_mask
from binseg.data.sources import open_dataset
from binseg.imageio import encode_mask, read_image, read_reduced
from binseg.inference import Predictor, load
from binseg.inference.engine import predict_files
from binseg.inference.pretrained import default_bundle_path
from binseg.metrics import count, dice
from binseg.transforms.geometry import resize_image, resize_mask
from binseg.transforms.preprocess import prepare, reduction
from binseg.types import Record

SIZE = (3000, 4000)
DRAWN = "huge,num=40,size=256"
TARGET_S, TARGET_DICE, TARGET_SHARE = 0.20, 0.001, 0.85


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default=DRAWN)
    parser.add_argument("--images", type=int, default=40, help="for the Dice")
    parser.add_argument("--photos", type=int, default=12, help="for the cost")
    parser.add_argument("--only", choices=["cost", "dice"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dataset = open_dataset(DataConfig(path=folder_of(asked.data))).with_truth()
    predictor = load(default_bundle_path())
    facts: dict[str, object] = {
        "load": os.getloadavg(),
        "runtime": predictor.members[0].backend.name,
    }
    with tempfile.TemporaryDirectory() as scratch:
        if asked.only != "dice":
            facts["cost"] = cost(predictor, dataset, Path(scratch), asked.photos)
        if asked.only != "cost":
            facts["dice"] = dice_of(predictor, dataset, Path(scratch), asked.images)
    print(json.dumps(facts, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(facts, indent=2), encoding="utf-8")
    return 0


def enlarged(record: Record, folder: Path) -> Path:
    """Write a record's image as a photograph."""
    path = folder / f"{record.image_path.stem}.jpg"
    image = Image.fromarray(read_image(record.image_path)).convert("RGB")
    pixels = np.asarray(image.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 4, (*SIZE, 1)).round().astype(np.int16)
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def cost(predictor: Predictor, dataset: Dataset, folder: Path, num: int) -> dict[str, float]:
    """Measure processor seconds of a photograph, and those of its parts alone."""
    shape = predictor.preprocessing
    assert shape is not None
    paths = [enlarged(record, folder) for record in spread(dataset.records, num)]
    predict_files(predictor, paths[:2], out=folder / "warm")
    start = time.perf_counter()
    whole = seconds(lambda: predict_files(predictor, paths, out=folder / "masks"))
    wall = time.perf_counter() - start
    way = partial(reduction, preprocessing=shape)
    read = [read_reduced(path, way) for path in paths[:1]]
    inputs, _ = prepare(read[0][0], shape, size=read[0][2])
    mask_HW = predictor.predict(paths[0]).mask
    start = time.perf_counter()
    decode = seconds(lambda: [read_reduced(path, way) for path in paths])
    encode = seconds(lambda: [encode_mask(mask_HW) for _ in paths])
    bound = time.perf_counter() - start
    network = seconds(lambda: [predictor.probability_of_inputs(inputs) for _ in paths])
    return {
        "processor seconds a photograph": whole / len(paths),
        "target": TARGET_S,
        "of these the network": network / len(paths),
        "decoding": decode / len(paths),
        "encoding": encode / len(paths),
        "share of the decoder-plus-encoder bound on one thread": bound / wall,
        "share target": TARGET_SHARE,
    }


def seconds(work: Callable[[], object]) -> float:
    """Count the processor seconds of all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def dice_of(predictor: Predictor, dataset: Dataset, folder: Path, num: int) -> dict[str, float]:
    """Compare masks with the truth, by the two ways from photograph to input."""
    shape = predictor.preprocessing
    assert shape is not None
    found: dict[str, list[float]] = {"averaged": [], "at once": []}
    val = [one for one in dataset.records if one.split == "val"] or list(dataset.records)
    for record in spread(val, num):
        path = enlarged(record, folder)
        masks = [resize_mask(one, *SIZE) for one in read_mask(record, dataset.rule)]
        whole_HWC = read_image(path)
        inputs = resize_image(whole_HWC, shape.height, shape.width)[None]
        at_once = predictor.prediction_of(whole_HWC, predictor.probability_of_inputs(inputs))
        for name, one in {"averaged": predictor.predict(path), "at once": at_once}.items():
            found[name].append(dice(count(one.mask, *masks)))
        path.unlink()
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {**means, "difference": means["averaged"] - means["at once"], "target": TARGET_DICE}


if __name__ == "__main__":
    raise SystemExit(main())
