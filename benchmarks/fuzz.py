"""Damage images, bundles, networks and recipes at random: each is read, or refused in one line.

    python benchmarks/fuzz.py --images 10000 --recipes 1000 --bundles 1000 --networks 1000

Bundles and networks are of a small model that is made here, unless --bundle names another one.
Each case is opened in a child process with a time limit. What may happen: an answer, or a
`BinsegError` of one line. What may not: any other exception, a crash, a hang, or more memory than
--megabytes above the child's start. A case that fails is kept under --keep, with its seed.
"""

import argparse
import io
import json
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from binseg.cli.console import PlainProgress
from binseg.config import load_recipe, recipe_names
from binseg.config.loading import recipe_text
from binseg.errors import BinsegError
from binseg.imageio import probe, read_image, read_labels
from binseg.models.create import create_model, resolve_options
from binseg.packaging import (
    NETWORK,
    Architecture,
    Card,
    Reference,
    pack_zip,
    read_bundle,
    write_bundle,
)
from binseg.packaging.exporting import core_onnx, describe_input, make_file
from binseg.packaging.networks import SUFFIXES, Facts
from binseg.packaging.raw_pixels import RawPixels
from binseg.pipelines.pack_verify import verify
from binseg.progress import track
from binseg.storage import write_json
from binseg.types import Preprocessing

SECONDS = 20
"""A case that takes longer hangs."""
MAX_LINE = 2000
"""Characters; a longer message is not one line to anybody."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One damaged file."""

    kind: str
    name: str
    data: bytes


def images(random_source: random.Random) -> Iterator[Case]:
    """Damaged images of every format that binseg reads, for ever."""
    seeds = _image_seeds()
    while True:
        name = random_source.choice(list(seeds))
        data = _damaged(seeds[name], random_source)
        suffix = Path(name).suffix
        if random_source.random() < 0.05:
            suffix = random_source.choice([Path(other).suffix for other in seeds])
        yield Case(kind="image", name=f"{Path(name).stem}{suffix}", data=data)


def _image_seeds() -> dict[str, bytes]:
    """One small sound image of each kind, by file name."""
    numbers = np.random.default_rng(0)
    rgb = numbers.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    grey, deep = rgb[..., 0], rgb[..., 0].astype(np.uint16) * 257
    seeds: dict[str, bytes] = {}

    def save(name: str, image: Image.Image, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, **options)
        seeds[name] = buffer.getvalue()

    colour = Image.fromarray(rgb)
    save("rgb.png", colour, format="PNG")
    save("grey.png", Image.fromarray(grey), format="PNG")
    save("deep.png", Image.fromarray(deep), format="PNG")
    save("one-bit.png", Image.fromarray(grey > 128), format="PNG")
    save("alpha.png", colour.convert("RGBA"), format="PNG")
    save("palette.png", colour.quantize(16), format="PNG")
    save("rgb.jpg", colour, format="JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    save("progressive.jpg", colour, format="JPEG", progressive=True)
    save("cmyk.jpg", colour.convert("CMYK"), format="JPEG")
    save("moving.gif", colour.quantize(8), format="GIF", save_all=True, append_images=[colour])
    save("rgb.webp", colour, format="WEBP")
    save("rgb.bmp", colour, format="BMP")
    save("rgb.ppm", colour, format="PPM")
    tiffs: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "striped.tif": (rgb, {"photometric": "rgb"}),
        "tiled.tif": (rgb, {"photometric": "rgb", "tile": (16, 16), "compression": "deflate"}),
        "lzw.tif": (deep, {"compression": "lzw", "predictor": True}),
        "jpeg.tif": (rgb, {"photometric": "rgb", "tile": (32, 32), "compression": "jpeg"}),
        "float.tif": (grey.astype(np.float32) / 255, {"compression": "zlib"}),
        "pages.tif": (np.stack([grey] * 3), {"photometric": "minisblack"}),
        "five.tif": (np.dstack([rgb, rgb[..., :2]]), {"planarconfig": "contig"}),
        "planar.tif": (np.moveaxis(rgb, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        "ome.ome.tif": (np.stack([grey] * 2), {"metadata": {"axes": "ZYX"}}),
    }
    for name, (array, options) in tiffs.items():
        buffer = io.BytesIO()
        big = name == "tiled.tif"
        with tifffile.TiffWriter(buffer, bigtiff=big, ome=name.startswith("ome")) as writer:
            writer.write(array, **options)
        seeds[name] = buffer.getvalue()
    return seeds


EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def _damaged(data: bytes, random_source: random.Random) -> bytes:
    """Change a file in one to four random ways."""
    damage: list[Callable[[bytearray, random.Random], bytearray]] = [
        _flip_bits,
        _overwrite,
        _extreme_number,
        _cut,
        _repeat,
        _cut_out,
        _insert,
    ]
    changed = bytearray(data)
    for _ in range(random_source.choice((1, 1, 2, 4))):
        if changed:
            changed = random_source.choice(damage)(changed, random_source)
    return bytes(changed)


def _place(data: bytearray, random_source: random.Random) -> int:
    """A position; half of them in the first 200 bytes, where headers are."""
    end = min(len(data), 200) if random_source.random() < 0.5 else len(data)
    return random_source.randrange(end)


def _flip_bits(data: bytearray, random_source: random.Random) -> bytearray:
    for _ in range(random_source.choice((1, 3, 20))):
        data[_place(data, random_source)] ^= 1 << random_source.randrange(8)
    return data


def _overwrite(data: bytearray, random_source: random.Random) -> bytearray:
    at, num = _place(data, random_source), random_source.choice((1, 4, 16, 64))
    data[at : at + num] = random_source.randbytes(num)
    return data


def _extreme_number(data: bytearray, random_source: random.Random) -> bytearray:
    layout = random_source.choice(("<I", ">I", "<H", ">H", "<Q"))
    size = struct.calcsize(layout)
    at = _place(data, random_source)
    number = random_source.choice(EXTREMES) & ((1 << (8 * min(size, 4))) - 1)
    data[at : at + size] = struct.pack(layout, number)
    return data


def _cut(data: bytearray, random_source: random.Random) -> bytearray:
    return data[: _place(data, random_source)]


def _repeat(data: bytearray, random_source: random.Random) -> bytearray:
    at, num = _place(data, random_source), random_source.choice((8, 64, 256))
    return data[: at + num] + data[at : at + num] * random_source.choice((1, 50)) + data[at + num :]


def _cut_out(data: bytearray, random_source: random.Random) -> bytearray:
    at = _place(data, random_source)
    return data[:at] + data[at + random_source.choice((1, 4, 32)) :]


def _insert(data: bytearray, random_source: random.Random) -> bytearray:
    at = _place(data, random_source)
    return data[:at] + random_source.randbytes(random_source.choice((1, 8, 100))) + data[at:]


def bundles(random_source: random.Random, whole: bytes) -> Iterator[Case]:
    """Damaged bundles: bytes of the zip, or members that lie, with hashes that agree or not."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    while True:
        if random_source.random() < 0.4:
            yield Case(kind="bundle", name="b.zip", data=_damaged(whole, random_source))
            continue
        changed = dict(members)
        name = random_source.choice(list(changed))
        if name.endswith(".json") and random_source.random() < 0.7:
            changed[name] = _damaged_json(changed[name], random_source)
        else:
            changed[name] = _damaged(changed[name], random_source)
        if random_source.random() < 0.3:
            evil = random_source.choice(
                ("../evil", "/etc/evil", "C:\\evil", "a/../../b", "a//b", "n" * 300)
            )
            changed[evil] = b"x" * random_source.choice((1, 10_000_000))
        if random_source.random() < 0.6:
            changed = _rehashed(changed)
        yield Case(kind="bundle", name="b.zip", data=_zipped(changed))


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A small model, untrained: its bundle, and its files for other runtimes."""

    bundle: bytes
    networks: dict[str, bytes]
    """By file name."""


def sound_model(scratch: Path) -> Sound:
    """Make the model whose files are damaged."""
    network = create_model("unet", encoder="resnet_small", width=4).eval()
    shape = Preprocessing(height=32, width=32)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    architecture = Architecture(
        decoder="unet",
        encoder="resnet_small",
        options=resolve_options("unet", "resnet_small", {"width": 4}),
    )
    card = Card(name="tiny", architecture=architecture, preprocessing=shape)
    reference = Reference(
        input_NHWC=np.zeros((1, 32, 32, 3), np.uint8),
        probability_NHW=np.full((1, 32, 32), 0.5, np.float32),
    )
    extra = {NETWORK: core_onnx(network, shape)}
    bundle = write_bundle(
        scratch / "tiny", card=card, weights=weights, reference=reference, extra=extra
    )
    raw = RawPixels(network, shape, temperature=1.0)
    pixels_HWC = np.zeros((20, 30, 3), np.uint8)
    files = {}
    for target in ("onnx", "openvino"):
        made = make_file(target, raw)
        facts = Facts(
            card=json.loads(card.to_json()),
            threshold=0.5,
            input=describe_input(raw),
            proof={"precision": "fp32", "rows": []},
            reference_HWC=pixels_HWC,
            reference_HW=made.compute(pixels_HWC),
        )
        files[f"n{SUFFIXES[target]}"] = made.finish(facts.as_text())
    return Sound(bundle=pack_zip(bundle, scratch / "tiny.zip").read_bytes(), networks=files)


def networks(random_source: random.Random, sound: Sound) -> Iterator[Case]:
    """Damaged exports: bytes of the file, of a part of its zip, or of the graph's first half."""
    while True:
        name = random_source.choice(list(sound.networks))
        data = sound.networks[name]
        if name.endswith(".zip") and random_source.random() < 0.8:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                parts = {one: archive.read(one) for one in archive.namelist()}
            part = random_source.choice(list(parts))
            parts[part] = _damaged(parts[part], random_source)
            yield Case(kind="network", name=name, data=_zipped(parts, zipfile.ZIP_STORED))
        else:
            yield Case(kind="network", name=name, data=_damaged(data, random_source))


def _damaged_json(data: bytes, random_source: random.Random) -> bytes:
    """Put extreme values at random places of a JSON document."""
    document = json.loads(data)
    values: tuple[Any, ...] = (
        None,
        -1,
        0,
        10**9,
        10**40,
        1e308,
        "",
        "x" * 5000,
        "\x1b[31m",
        [],
        {},
        [[]] * 50,
        "..",
    )
    for _ in range(random_source.choice((1, 2, 5))):
        at = document
        while isinstance(at, dict) and at:
            key = random_source.choice(list(at))
            if not isinstance(at[key], dict) or random_source.random() < 0.2:
                at[key] = random_source.choice(values)
                break
            at = at[key]
    return json.dumps(document).encode()


def _rehashed(members: dict[str, bytes]) -> dict[str, bytes]:
    """Write the list of hashes anew, as someone who wants to be believed would."""
    import hashlib

    sums = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        for name, data in members.items()
        if name != "SHA256SUMS"
    )
    return {**members, "SHA256SUMS": sums.encode()}


def _zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def recipes(random_source: random.Random) -> Iterator[Case]:
    """Damaged recipe files, with bombs and tags among them."""
    texts = [recipe_text(name) for name in recipe_names()]
    tricks = (
        "!!python/object/apply:os.system ['true']",
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b]",
        "&x {k: *x}",
        "- " * 5000,
        "{" * 5000,
        "[" * 20000,
        "? " * 3000,
        "train: {epochs: 1e400}",
        "train: {epochs: 99999999999999999999999999}",
        "input: {size: .nan}",
        "<<: {a: 1}",
        "data: {path: '../../../../etc/passwd'}",
        "\0",
        "%YAML 9.9\n---\n",
        "train: !!binary aGVsbG8=",
        "2001-13-45",
        "model: {options: {width: -1}}",
    )
    while True:
        text = random_source.choice(texts).encode()
        if random_source.random() < 0.3:
            lines = text.splitlines()
            lines.insert(
                random_source.randrange(len(lines) + 1), random_source.choice(tricks).encode()
            )
            text = b"\n".join(lines)
        if random_source.random() < 0.8:
            text = _damaged(text, random_source)
        yield Case(kind="recipe", name="r.yaml", data=text)


def open_case(path: Path, kind: str) -> None:
    """Do with a file what binseg does with it before anything else."""
    if kind == "recipe":
        load_recipe(path)
    elif kind == "bundle":
        bundle = read_bundle(path)
        bundle.weights()
        bundle.reference()
        if NETWORK in bundle.sha256:
            bundle.network(NETWORK)
    elif kind == "network":
        verify(path)
    else:
        probe(path)
        read_image(path)
        read_labels(path)


def _serve(pipe: Connection, folder: Path) -> None:
    """Open the cases that come through the pipe, in a process that may die of them."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        case = pipe.recv()
        if case is None:
            return
        path = folder / case.name
        path.write_bytes(case.data)
        try:
            open_case(path, case.kind)
            verdict = "read"
        except BinsegError as problem:
            text = str(problem)
            verdict = "refused" if "\n" not in text and len(text) <= MAX_LINE else "not one line"
        except BaseException as problem:  # noqa: BLE001  # this is what we look for
            verdict = f"traceback: {type(problem).__name__}: {str(problem)[:200]}"
        finally:
            path.unlink(missing_ok=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        pipe.send((verdict, peak))


class Child:
    """The process that opens the cases; a new one after a crash or a hang."""

    def __init__(self, folder: Path, warm: Case) -> None:
        self._folder = folder
        self._warm = warm
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection
        self.base = 0

    def open(self, case: Case) -> tuple[str, int]:
        """Open a case; give what happened and the megabytes above the start."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._process is not None
        self._pipe.send(case)
        if not self._pipe.poll(SECONDS):
            self._kill()
            return "hang", 0
        try:
            verdict, peak = self._pipe.recv()
        except EOFError:
            self._kill()
            return "crash", 0
        if peak - self.base > 100:
            # The peak of a process never falls: only a new one can tell of the next case.
            self._kill()
        return verdict, peak - self.base

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_serve, args=(theirs, self._folder), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.send(self._warm)
        _, self.base = self._pipe.recv()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = None


def main() -> int:
    """Open all cases; 1 where one of them was neither read nor refused in one line."""
    options = _arguments()
    scratch = Path(tempfile.mkdtemp())
    try:
        found = _run(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(found, indent=2))
    if options.json:
        write_json(options.json, found)
    return 1 if found["failures"] else 0


def _run(options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    verdicts: Counter[str] = Counter()
    failures: list[str] = []
    largest, slowest = 0, 0.0
    empty = Case(kind="recipe", name="r.yaml", data=b"{}")
    asked = [("image", options.images, images(random.Random(options.seed)), empty)]
    asked.append(("recipe", options.recipes, recipes(random.Random(options.seed)), empty))
    if options.bundles or options.networks:
        # In a process of its own: threads of a runtime don't survive the forks below.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sound = pool.apply(sound_model, (scratch,))
        whole = options.bundle.read_bytes() if options.bundle else sound.bundle
        asked.append(
            ("bundle", options.bundles, bundles(random.Random(options.seed), whole), empty)
        )
        # The first one brings the runtimes into memory, which isn't the damaged ones' doing.
        warm = Case(kind="network", name="n.openvino.zip", data=sound.networks["n.openvino.zip"])
        source = random.Random(options.seed)
        asked.append(("network", options.networks, networks(source, sound), warm))
    for kind, num, cases, warm in asked:
        child = Child(scratch, warm)
        for index in track(range(num), progress=PlainProgress(), label=f"{kind}s", total=num):
            case = next(cases)
            start = time.perf_counter()
            verdict, megabytes = child.open(case)
            slowest = max(slowest, time.perf_counter() - start)
            largest = max(largest, megabytes)
            if megabytes > options.megabytes:
                verdict = f"memory: {megabytes} MB"
            verdicts[f"{kind}: {verdict.split(':')[0]}"] += 1
            if verdict not in {"read", "refused"}:
                failures.append(f"{kind} {index} {case.name}: {verdict}")
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{kind}-{index}-{case.name}").write_bytes(case.data)
    return {
        "verdicts": dict(verdicts),
        "largest_megabytes": largest,
        "slowest_seconds": round(slowest, 2),
        "failures": failures,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--recipes", type=int, default=200)
    parser.add_argument("--bundles", type=int, default=200)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--bundle", type=Path, help="a sound bundle's zip instead of a small one")
    parser.add_argument("--megabytes", type=int, default=1000, help="a case may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the cases that fail")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
