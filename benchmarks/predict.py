"""How fast a trained model predicts in each runtime, and how far its answers move.

    python benchmarks/predict.py --run runs/pet [--only PART] [--quick] [--json FILE]
    python benchmarks/predict.py --quick

Without --run the built-in model is measured, on generated images.

All runtimes compute the same inputs in turn, in one process, so that a busy machine slows them
alike; figures are ratios to plain torch (fp32, NCHW, eager) as the reports predict. The masks are
compared with those of plain torch at the images' own sizes, Dice with the data's truth.

runtimes  the table of the runtimes
cold      `binseg predict` on one image, a new process each time, with an exported bundle
folder    a folder of 2,000 images of the run's data (200 with --quick), files to files, in turns
          with the model alone on as many prepared inputs: the share of its speed that is left, the
          processor's time around the model, and how the memory grows
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from binseg.config import DataConfig
from binseg.data.sources import open_dataset
from binseg.imageio import IMAGE_SUFFIXES, read_image
from binseg.inference import ModelPredictor, load
from binseg.inference.engine import predict_files
from binseg.inference.pretrained import default_bundle_path
from binseg.inference.runtimes import Backend, computes_bf16, onnx_backend, openvino_backend
from binseg.inference.runtimes.torch import TorchBackend, load_network
from binseg.packaging import read_bundle
from binseg.packaging.networks import LIMITS, prove
from binseg.packaging.raw_pixels import core_onnx, quantise
from binseg.pipelines.export_model import ProofImages, export_model, find_images
from binseg.progress import SILENT
from binseg.training.run_folder import RunFolder
from binseg.transforms.preprocess import normalise, prepare
from binseg.types import Preprocessing

PLAIN = "torch fp32 NCHW"
TARGETS = {"openvino bf16": 12.0, "openvino int8": 20.0, "torch bf16": 4.0}
"""Ratios to plain torch that are asked for on processors with AMX."""
COLD_TARGET = 1.5
"""Seconds."""
FOLDER_TARGET = 0.85
"""Share of the model's own speed that is asked for, files to files."""
TURNS = 10
PARTS = ("runtimes", "cold", "folder")


class PlainTorch:
    """The network as the reports run it: float32, NCHW, eager."""

    name = "torch cpu"
    precision = "fp32"

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """The logits of a batch of normalised inputs."""
        with torch.inference_mode():
            found: np.ndarray = self._network(torch.from_numpy(inputs_NCHW))[:, 0].numpy()
        return found


@dataclass(frozen=True, kw_only=True)
class Row:
    """One runtime."""

    runtime: str
    milliseconds: float
    """Median of one image."""
    ratio: float
    """Times as fast as plain torch."""
    agreement: float
    """IoU of the masks with those of plain torch."""
    dice_change: float | None
    target: float | None


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run or a bundle instead of the built-in model")
    parser.add_argument("--size", type=int, default=256, help="height and width of the inputs")
    parser.add_argument("--images", type=Path, help="images for `folder`, not the run's data")
    parser.add_argument("--only", choices=PARTS, action="append", help="instead of all parts")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and images")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    asked.run = asked.run or default_bundle_path()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    parts = asked.only or PARTS
    facts: dict[str, object] = {"machine": machine(), "size": asked.size, "run": str(asked.run)}
    print(told_machine())
    if "runtimes" in parts:
        repeats = 5 if asked.quick else 30
        rows = model_rows(asked.run, asked.size, repeats=repeats, quick=asked.quick)
        facts["model"] = [asdict(row) for row in rows]
        print(told_rows(rows, asked.size))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "cold" in parts or "folder" in parts:
            export_model(asked.run, target="bundle", out=folder / "bundle")
        if "cold" in parts:
            cold = cold_start(folder, repeats=3 if asked.quick else 9)
            facts["cold_start"] = cold
            print(told_cold(cold))
        if "folder" in parts:
            images = asked.images or data_of(asked.run)
            whole = whole_folder(folder, images, 200 if asked.quick else 2000)
            facts["folder"] = whole
            print(told_folder(whole))
    if asked.json:
        asked.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 0


def model_rows(run: Path, size: int, *, repeats: int, quick: bool) -> list[Row]:
    """Time every runtime on one input after the other, and compare their masks."""
    bundle = read_bundle(run)
    shape = replace(bundle.card.preprocessing, height=size, width=size)
    images = find_images(run, bundle, SILENT)
    if quick:
        images = ProofImages(images=images.images[:8], truths=images.truths[:8])
    inputs = [normalise(prepare(one, shape)[0][:1], shape) for one in images.images]
    backends = runtimes(run, shape, inputs)
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for name, backend in backends.items():
        print(f"warming {name}", file=sys.stderr)
        backend.logits(inputs[0])
    for turn in range(repeats):
        for name, backend in backends.items():
            start = time.perf_counter()
            backend.logits(inputs[turn % len(inputs)])
            seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds[PLAIN])
    card = bundle.card
    predictors = {
        name: ModelPredictor(
            backend=backend,
            preprocessing=shape,
            threshold=card.threshold.value,
            bundle_id=card.id,
            temperature=card.temperature,
        )
        for name, backend in backends.items()
    }
    rows = []
    for name, predictor in predictors.items():
        proof = prove(
            lambda image: predictors[PLAIN].predict(image).probability,
            lambda image, other=predictor: other.predict(image).probability,
            images.images,
            threshold=card.threshold.value,
            runtime=name,
            precision=predictor.backend.precision,
            beside=PLAIN,
            limits=LIMITS[predictor.backend.precision],
            truths=images.truths,
        )
        taken = statistics.median(seconds[name])
        rows.append(
            Row(
                runtime=name,
                milliseconds=1000 * taken,
                ratio=plain / taken,
                agreement=proof.agreement,
                dice_change=proof.dice_change,
                target=TARGETS.get(name),
            )
        )
    return rows


def runtimes(run: Path, shape: Preprocessing, inputs: list[np.ndarray]) -> dict[str, Backend]:
    """Everything that can compute the network here."""
    bundle = read_bundle(run)
    network = load_network(bundle).eval()
    data = core_onnx(network, shape)
    in_int8 = quantise(data, inputs[:16], name="inputs")
    last = torch.channels_last
    turned = load_network(bundle).eval().to(memory_format=last)  # type: ignore[call-overload]
    found: dict[str, Backend] = {
        PLAIN: PlainTorch(network),
        "torch fp32": TorchBackend(turned),
        "torch bf16": TorchBackend(turned, precision="bf16"),
        "onnxruntime fp32": onnx_backend(data, precision="fp32", name="network"),
        "onnxruntime int8": onnx_backend(in_int8, precision="int8", name="network"),
        "openvino fp32": openvino_backend(data, precision="fp32", name="network"),
        "openvino int8": openvino_backend(in_int8, precision="int8", name="network"),
    }
    if computes_bf16():
        found["openvino bf16"] = openvino_backend(data, precision="bf16", name="network")
    return found


def cold_start(scratch: Path, *, repeats: int) -> dict[str, float]:
    """Seconds of whole processes: `binseg predict` on one photo, and Python's import of binseg."""
    photo = scratch / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(photo)
    predict = [sys.executable, "-m", "binseg", "predict", str(scratch / "bundle"), str(photo)]
    predict += ["--out", f"{scratch}/masks", "--overwrite"]
    subprocess.run(predict, check=True, capture_output=True)  # verifies, once a machine
    return {
        "predict_seconds": median_of(predict, repeats),
        "predict_processor_seconds": statistics.median(processor_of(predict) for _ in range(3)),
        "torch_seconds": median_of([*predict, "--backend", "torch"], repeats),
        "import_seconds": median_of([sys.executable, "-c", "import binseg; binseg.load"], repeats),
    }


def whole_folder(scratch: Path, images: Path, num: int) -> dict[str, object]:
    """Predict a folder in parts, each in turn with the model alone on as many inputs."""
    predictor = load(scratch / "bundle")
    each = num // TURNS
    sources = some_images(images, min(num, 500))
    for index in range(num):
        source = sources[index % len(sources)]
        to = scratch / "images" / f"{index // each}" / f"{index:05d}{source.suffix}"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
    shape, size = predictor.preprocessing, predictor.batch_size
    inputs = [prepare(read_image(one), shape)[0] for one in sources[: 2 * size]]
    batches = [
        normalise(np.concatenate(inputs[start : start + size]), shape) for start in (0, size)
    ]

    def model_alone() -> None:
        for start in range(0, each, size):
            predictor.backend.logits(batches[start // size % 2][: min(size, each - start)])

    def files_to_files(turn: int) -> None:
        done = predict_files(
            predictor, [scratch / "images" / str(turn)], out=scratch / "folder" / str(turn)
        )
        assert len(done.written) == each, done.failures

    model_alone()
    alone, whole, resident = [], [], []
    for turn in range(TURNS):
        alone.append(times_of(model_alone))
        whole.append(times_of(lambda turn=turn: files_to_files(turn)))  # type: ignore[misc]
        resident.append(resident_bytes())
    seconds, processor = (
        [sum(one[kind] for one in taken) / num for taken in (alone, whole)] for kind in (0, 1)
    )
    return {
        "num_images": num,
        "cores": len(os.sched_getaffinity(0)),
        "runtime": f"{predictor.backend.name} {predictor.backend.precision}",
        "model_seconds": seconds[0],
        "folder_seconds": seconds[1],
        "share": seconds[0] / seconds[1],
        "model_processor_seconds": processor[0],
        "folder_processor_seconds": processor[1],
        "resident_first": resident[0],
        "resident_last": resident[-1],
    }


def data_of(run: Path) -> Path:
    """The folder of a run's images; generated ones for a bundle without a run."""
    folder = RunFolder.find(run)
    config = folder.recipe().data if folder else DataConfig(path="synthetic:num=60,size=256")
    return open_dataset(config).root


def some_images(folder: Path, num: int) -> list[Path]:
    """Evenly chosen images, masks left out."""
    found = [
        one
        for one in sorted(folder.rglob("*"))
        if one.suffix.lower() in IMAGE_SUFFIXES and "mask" not in str(one.relative_to(folder))
    ]
    if not found:
        raise SystemExit(f"{folder}: no images; name a folder of them with --images")
    return found[:: -(-len(found) // num)]


def times_of(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock and of the processor, all threads together."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - processor


def resident_bytes() -> int:
    """Memory that this process holds now."""
    text = Path("/proc/self/statm").read_text(encoding="ascii")
    return int(text.split()[1]) * resource.getpagesize()


def median_of(command: list[str], repeats: int) -> float:
    """Median of the wall time."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def processor_of(command: list[str]) -> float:
    """Processor time of a process, which other programs on the machine hardly change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def machine() -> dict[str, object]:
    """What the figures belong to."""
    flags, model = set[str](), platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            flags = set(value.split())
        elif name.strip() == "model name":
            model = value.strip()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "processor": model,
        "flags": [one for one in wanted if one in flags],
        "threads": torch.get_num_threads(),
    }


def told_machine() -> str:
    """The machine in a line."""
    here = machine()
    flags = here["flags"]
    assert isinstance(flags, list)
    lines = [f"{here['processor']}, {', '.join(flags)}, {here['threads']} thread(s)"]
    if "amx_bf16" not in flags:
        lines += ["", "This processor has no AMX: the ratios asked for can't be shown on it."]
    return "\n".join(lines)


def told_rows(rows: list[Row], size: int) -> str:
    """The runtimes as Markdown."""
    lines = [
        "",
        f"One {size}x{size} image at a time:",
        "",
        "| runtime | ms | times plain torch | asked on AMX | masks agree (IoU) | Dice change |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        asked = "" if row.target is None else f"{row.target:g}"
        change = "" if row.dice_change is None else f"{row.dice_change:+.5f}"
        lines.append(
            f"| {row.runtime} | {row.milliseconds:.1f} | {row.ratio:.2f} | {asked} | "
            f"{row.agreement:.5f} | {change} |"
        )
    return "\n".join(lines)


def told_cold(cold: dict[str, float]) -> str:
    """The start of a process in a line."""
    return (
        f"\nbinseg predict on one photo, whole process: {cold['predict_seconds']:.2f} s "
        f"({cold['predict_processor_seconds']:.2f} s of processor; asked: {COLD_TARGET} s; with "
        f"torch {cold['torch_seconds']:.2f} s); import binseg: {cold['import_seconds']:.2f} s"
    )


def told_folder(whole: dict[str, object]) -> str:
    """The folder in a line."""
    number = {name: float(str(value)) for name, value in whole.items() if name != "runtime"}
    around = number["folder_processor_seconds"] - number["model_processor_seconds"]
    return (
        f"\n{number['num_images']:.0f} images, files to files, {whole['runtime']}, "
        f"{number['cores']:.0f} core(s): {1000 * number['folder_seconds']:.1f} ms an image, the "
        f"model alone {1000 * number['model_seconds']:.1f} ms: {number['share']:.1%} of its speed "
        f"(asked: {FOLDER_TARGET:.0%}). Processor: {1000 * around:.1f} ms around the model's "
        f"{1000 * number['model_processor_seconds']:.1f} ms. Memory after the first tenth "
        f"{number['resident_first'] / 1e6:.0f} MB, at the end "
        f"{number['resident_last'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
