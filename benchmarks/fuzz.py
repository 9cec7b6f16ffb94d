"""Damage what strangers send at random: each file or request is taken, or refused in one line.

    python benchmarks/fuzz.py --inputs 100000 --minutes 9 --log fuzz.json --keep kept/

Inputs come in blocks of 1,000 of all kinds (`SHARES`), each block from a seed of its own. With
--log the next call goes on after the blocks that are done, and adds to their figures.

A third of the images are not damaged but made up: true chunks, tags and scans that claim what isn't
there. Datasets are annotations (COCO, labelme, CVAT, VIA and more) beside two images; labels are
logs of `binseg label`; requests go to a server in a process of its own. Bundles and networks are of
a small model that is made here, unless --bundle names another one. Each case is opened in a warm
child process with a time limit. What may happen: an answer, or a `BinsegError` of one line. What
may not: any other exception, a crash, a hang, or more memory than --megabytes above the child's
start, its own decoders' too. A case that fails is kept under --keep, with its seed.

Of the images that binseg decodes in a cage, nine of ten are given to the same decoders without it,
in a child with the cage's limits of memory, which is many times faster. There a decoder may end the
child or run out of memory, as in the cage, whose user then reads one line.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from serve import Server

from binseg.config import load_recipe, recipe_names
from binseg.config.loading import recipe_text
from binseg.config.recipe import DataConfig
from binseg.data import open_dataset, read_sample
from binseg.errors import BinsegError, ImageError
from binseg.imageio import caged_windows, probe, read_image, read_labels
from binseg.imageio.caged import _PEAK, _SPARE_BYTES, _address_space, _allow
from binseg.imageio.decoding import broken_files
from binseg.imageio.formats import decoder_of
from binseg.inference.pretrained import default_bundle_path
from binseg.labeling.label_log import Stroke
from binseg.labeling.project import Project
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
from binseg.packaging.networks import SUFFIXES, Facts
from binseg.packaging.raw_pixels import RawPixels, core_onnx, describe_input, make_file
from binseg.pipelines.pack_verify import verify
from binseg.storage import write_json
from binseg.types import Preprocessing

SECONDS = 20
"""A case that takes longer hangs."""
MAX_LINE = 2000
"""Characters; a longer message is not one line to anybody."""
BLOCK = 1000
SHARES = {
    "image": 700, "recipe": 120, "dataset": 80, "bundle": 40, "zarr": 20, "label": 20,
    "network": 10, "request": 10,
}  # fmt: skip
"""Inputs of each kind in a block."""
CAGED = 0.1
"""Share of the images for the cage that really go through it."""


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
        change = _made_up if random_source.random() < 1 / 3 else _damaged
        data = change(seeds[name], random_source)
        suffix = Path(name).suffix
        if random_source.random() < 0.05:
            suffix = random_source.choice([Path(other).suffix for other in seeds])
        is_here = data[:4] == b"\x89PNG" or data[:2] == b"\xff\xd8"
        kind = "image" if is_here or random_source.random() < CAGED else "decoder"
        yield Case(kind=kind, name=f"{Path(name).stem}{suffix}", data=data)


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


def _made_up(data: bytes, random_source: random.Random) -> bytes:
    """Change a file where its format has a number, a chunk or a text, and keep it well-formed."""
    if data[:4] == b"\x89PNG":
        return _png_of_chunks(data, random_source)
    if data[:2] == b"\xff\xd8":
        return _jpeg_of_segments(data, random_source)
    if data[:4] == b"II*\0":
        return _tiff_of_tags(data, random_source)
    at = random_source.choice(
        {b"GI": (6, 8, 10), b"BM": (14, 18, 22, 28, 30)}.get(data[:2], (24, 27))
    )
    number = random_source.choice(EXTREMES) & 0xFFFF
    return data[:at] + number.to_bytes(2, "little") + data[at + 2 :]


def _png_of_chunks(data: bytes, random_source: random.Random) -> bytes:
    """Give the header other numbers, or add chunks, some of which unpack to much."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if random_source.random() < 0.5:
        numbers = [*struct.unpack(">IIBBBBB", chunks[0][1])]
        which = random_source.randrange(7)
        numbers[which] = random_source.choice(EXTREMES) & (0xFFFFFFFF if which < 2 else 0xFF)
        chunks[0] = (chunks[0][0], struct.pack(">IIBBBBB", *numbers))
    packed = zlib.compress(bytes(10 ** random_source.randrange(8)), 9)
    kind = random_source.choice(
        (b"zTXt", b"iTXt", b"iCCP", b"tEXt", b"eXIf", b"acTL", b"PLTE", b"tRNS")
    )
    text = {
        b"zTXt": b"a\0\0" + packed,
        b"iTXt": b"a\0\1\0\0\0" + packed,
        b"iCCP": b"a\0\0" + packed,
    }
    added = (kind, text.get(kind, random_source.randbytes(random_source.choice((0, 8, 768)))))
    chunks[1:1] = [added] * random_source.choice((0, 1, 1, 500))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _jpeg_of_segments(data: bytes, random_source: random.Random) -> bytes:
    """Repeat a scan, add blocks, or claim another size."""
    scan = data.rindex(b"\xff\xda")
    if (kind := random_source.randrange(3)) == 0:
        return data[:scan] + data[scan:-2] * random_source.choice((2, 90, 3000)) + data[-2:]
    if kind == 1:
        block = random_source.choice(
            (b"\xff\xe1\0\x08Exif\0\0", b"\xff\xe2\0\x0eICC_PROFILE\0", b"\xff\xfe\0\2")
        )
        return data[:2] + block * random_source.choice((1, 1000, 100_000)) + data[2:]
    size = next(data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data) + 5
    sides = (random_source.choice(EXTREMES) & 0xFFFF for _ in range(2))
    return data[:size] + struct.pack(">HH", *sides) + data[size + 4 :]


def _tiff_of_tags(data: bytes, random_source: random.Random) -> bytes:
    """Claim planes or images in the description, or give tags other values, types and counts."""
    if random_source.random() < 0.3:
        number = 10 ** random_source.randrange(1, 18)
        planes = f'SizeX="8" SizeY="8" SizeC="1" SizeT="1" SizeZ="{number}" Type="uint8"'
        ome = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            f'<Image ID="I:0"><Pixels ID="P:0" DimensionOrder="XYZCT" {planes}><TiffData/></Pixels>'
            "</Image></OME>"
        )
        imagej = f"ImageJ=1.54\nimages={number}\nslices={number}\nhyperstack=true\n"
        shaped = f'{{"shape": [{number}, 8, 8]}}'
        out = io.BytesIO()
        pages = np.zeros((random_source.choice((1, 2)), 8, 8), np.uint8)
        text = random_source.choice((ome, imagej, shaped))
        tifffile.imwrite(out, pages, photometric="minisblack", description=text, metadata=None)
        data = out.getvalue()
    changed = bytearray(data)
    (start,) = struct.unpack_from("<I", changed, 4)
    (num,) = struct.unpack_from("<H", changed, start)
    for _ in range(random_source.choice((0, 1, 1, 3))):
        at = start + 2 + 12 * random_source.randrange(num)
        layout, place = random_source.choice(
            (("<H", 0), ("<H", 2), ("<I", 4), ("<I", 8), ("<I", 8))
        )
        number = random_source.choice((*EXTREMES, 7, 8, 34712, 34887, 50001, len(data)))
        struct.pack_into(
            layout, changed, at + place, number & (0xFFFF if layout == "<H" else 0xFFFFFFFF)
        )
    return bytes(changed)


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


def tiny_bundle(scratch: Path) -> tuple[Path, torch.nn.Module, Preprocessing]:
    """Make the bundle of a small untrained model; its network and input, too."""
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
    return bundle.path, network, shape


def sound_model(scratch: Path) -> Sound:
    """Make the model whose files are damaged."""
    path, network, shape = tiny_bundle(scratch)
    bundle, card = read_bundle(path), read_bundle(path).card
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


_OUTLINE = [[2.0, 2.0], [30.0, 4.0], [20.0, 30.0]]
_FLAT = [2.0, 2.0, 30.0, 4.0, 20.0, 30.0]
ANNOTATIONS: dict[str, Any] = {
    "coco.json": {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [_FLAT], "iscrowd": 0},
            {
                "id": 2, "image_id": 1, "category_id": 1, "iscrowd": 1,
                "segmentation": {"counts": [100, 50, 2250], "size": [40, 60]},
            },
        ],
        "categories": [{"id": 1, "name": "cat"}],
    },
    "a.json": {
        "version": "5", "imagePath": "a.png", "imageHeight": 40, "imageWidth": 60,
        "imageData": None,
        "shapes": [{"label": "cat", "shape_type": "polygon", "points": _OUTLINE}],
    },
    "via.json": {
        "a.png1": {
            "filename": "a.png", "size": 1,
            "regions": [
                {
                    "shape_attributes": {
                        "name": "polygon", "all_points_x": [2, 30, 20], "all_points_y": [2, 4, 30],
                    },
                    "region_attributes": {"kind": "cat"},
                },
            ],
        },
    },
    "annotations.xml": '<annotations><version>1.1</version><image id="0" name="a.png" width="60" '
    'height="40"><polygon label="cat" points="2,2;30,4;20,30"/></image></annotations>',
    "manifest.csv": "image,mask\na.png,a_mask.png\nb.png,b_mask.png\n",
    "train.csv": "ImageId,EncodedPixels\na.png,1 50 200 20\nb.png,\n",
    "data.yaml": "path: .\ntrain: images\nval: images\nnames: {0: cat}\n",
}  # fmt: skip
"""Sound annotations by file name, beside a.png and b.png of 40 x 60."""


def datasets(random_source: random.Random) -> Iterator[Case]:
    """Damaged annotations, of every kind that has a file of them."""
    texts = ("=1+1", "../../etc/passwd", "a" * 200_000, "\x1b[31m", "1" * 5000, "<!ENTITY x 'y'>")
    while True:
        name = random_source.choice(list(ANNOTATIONS))
        sound = ANNOTATIONS[name]
        data = sound.encode() if isinstance(sound, str) else json.dumps(sound).encode()
        if not isinstance(sound, str) and random_source.random() < 0.7:
            data = _damaged_json(data, random_source)
        elif random_source.random() < 0.3:
            data = data.replace(b"a.png", random_source.choice(texts).encode())
        else:
            data = _damaged(data, random_source)
        yield Case(kind="dataset", name=name, data=data)


def zarrs(random_source: random.Random) -> Iterator[Case]:
    """Damaged Zarr folders, as zips: metadata that claims other things, or chunks."""
    import zarr

    seeds = []
    for layout in (2, 3):
        with tempfile.TemporaryDirectory() as folder:
            array = zarr.create_array(
                folder, shape=(3, 64, 64), chunks=(1, 32, 32), dtype="u1", zarr_format=layout
            )
            array[:] = 7
            files = [one for one in Path(folder).rglob("*") if one.is_file()]
            seeds.append({one.relative_to(folder).as_posix(): one.read_bytes() for one in files})
    while True:
        members = dict(random_source.choice(seeds))
        about = [name for name in members if name.endswith((".json", ".zarray"))]
        name = random_source.choice((*about, *about, *members))
        is_json = name in about and random_source.random() < 0.7
        members[name] = (_damaged_json if is_json else _damaged)(members[name], random_source)
        yield Case(kind="zarr", name="a.zarr", data=_zipped(members))


def labels(random_source: random.Random, scratch: Path) -> Iterator[Case]:
    """Damaged logs of labels: bytes of the file, or values that nobody drew."""
    home = scratch / "sound-labels"
    _put_images(home / "photos")
    project = Project(home / "photos")
    dot = Stroke(tool="brush", value=1, points=((9.0, 9.0), (20.0, 12.0)), radius=3.0)
    project.add_stroke("a", dot)
    project.accept("b", np.eye(40, 60, dtype=np.uint8))
    project.close()
    columns = ("image", "kind", "client", "target", "tool", "value", "points", "radius", "region")
    values = (
        None,
        "",
        "x",
        -1,
        10**18,
        1e308,
        b"\x89PNG",
        "[[1e999, 2]]",
        "[[]]",
        "../../x",
        "undo",
    )
    while True:
        path = scratch / "made.sqlite"
        shutil.copyfile(home / "labels.sqlite", path)
        if random_source.random() < 0.5:
            with contextlib.suppress(sqlite3.Error), sqlite3.connect(path) as base:
                column, value = random_source.choice(columns), random_source.choice(values)
                base.execute(f"update log set {column} = ?", (value,))
            base.close()
            data = path.read_bytes()
        else:
            data = _damaged(path.read_bytes(), random_source)
        yield Case(kind="label", name="labels.sqlite", data=data)


def requests(random_source: random.Random) -> Iterator[Case]:
    """Damaged requests to the server, of all its routes."""
    seeds = _image_seeds()
    while True:
        image = seeds[random_source.choice(list(seeds))]
        if random_source.random() < 0.5:
            image = _damaged(image, random_source)
        route = random_source.choice(("predict", "jobs", "preview", "models", "batch", "nothing"))
        query = random_source.choice(
            ("", "?output=json", "?threshold=nan", "?min_area=9e99", "?a=%ff")
        )
        verb = random_source.choice(("POST", "POST", "POST", "GET", "DELETE", "PUT"))
        part = (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
            + image + b"\r\n--x--\r\n"
        )  # fmt: skip
        is_form = random_source.random() < 0.4
        body, kind = (part, "multipart/form-data; boundary=x") if is_form else (image, "image/png")
        head = (
            f"{verb} /v1/{route}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        if random_source.random() < 0.4:
            head = _damaged(head, random_source)
        yield Case(kind="request", name="request", data=head + body)


def _put_images(folder: Path) -> None:
    """Put two images and their masks into a folder, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shade in (("a.png", 90), ("b.png", 130), ("a_mask.png", 255), ("b_mask.png", 255)):
        if name.endswith("_mask.png") and folder.name == "photos":
            continue
        pixels = np.full((40, 60), shade, np.uint8)
        pixels[:20] = 0
        if not (folder / name).exists():
            Image.fromarray(pixels).save(folder / name)


def _send(data: bytes, port: int) -> None:
    """Send a request and read its response; its refusal is a `BinsegError`."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as line:
        reply = b""
        with contextlib.suppress(ConnectionError):
            line.sendall(data)
        with contextlib.suppress(ConnectionError):
            while part := line.recv(1 << 16):
                reply += part
    status = reply[9:12]
    if status[:1] == b"5" and status != b"503":
        raise AssertionError(reply[:300])
    if status[:1] != b"2":
        raise BinsegError(f"refused: {status!r}")


def _open_dataset(path: Path) -> None:
    folder = path.parent / f"data-{path.stem}"
    _put_images(folder)
    given = path.rename(folder / path.name)
    try:
        dataset = open_dataset(DataConfig(path=str(folder)))
        for record in dataset.records[:2]:
            read_sample(record, dataset.rule)
    finally:
        given.unlink()


def _open_zarr(path: Path) -> None:
    folder = path.with_name("opened.zarr")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    try:
        with caged_windows(folder) as windows:
            info = windows.info(0)
            windows.read(0, 0, 0, min(info.height, 64), min(info.width, 64))
    finally:
        shutil.rmtree(folder)


def _open_labels(path: Path) -> None:
    home = path.parent / "labelled"
    shutil.rmtree(home, ignore_errors=True)
    _put_images(home / "photos")
    path.rename(home / path.name)
    project = Project(home / "photos")
    try:
        for row in project.rows():
            project.labels(row.name)
    finally:
        project.close()


def _open_bundle(path: Path) -> None:
    bundle = read_bundle(path)
    bundle.weights()
    bundle.reference()
    if NETWORK in bundle.sha256:
        bundle.network(NETWORK)


def _open_image(path: Path) -> None:
    probe(path)
    read_image(path)
    read_labels(path)


def _decode(path: Path) -> None:
    """Do what a decoder of the cage does, with its limits, in this process."""
    data = path.read_bytes()
    _allow(START + _SPARE_BYTES + 4 * len(data))
    try:
        with decoder_of(data, name=path.name, any_page=True) as decoder:
            info = decoder.info()
            if info.num_pages > 1:
                raise ImageError("several pages")
            pixel = info.channels * np.dtype(info.dtype).itemsize + 1
            most = min(_PEAK * info.height * info.width * pixel, MOST_DECODED)
            _allow(START + _SPARE_BYTES + 4 * len(data) + most)
            with broken_files(path.name):
                decoder.image()
                decoder.labels()
    except MemoryError:
        raise ImageError("it ends the decoder") from None
    finally:
        _allow(resource.RLIM_INFINITY)


START = 0
"""Bytes of address space of a child that decodes itself, when it starts."""
MOST_DECODED = 400_000_000
"""Address space for pixels: larger images are refused here, though the cage would decode them."""
OPENERS: dict[str, Callable[[Path], object]] = {
    "image": _open_image,
    "decoder": _decode,
    "recipe": load_recipe,
    "bundle": _open_bundle,
    "network": verify,
    "dataset": _open_dataset,
    "zarr": _open_zarr,
    "label": _open_labels,
}
"""What binseg does with a file before anything else."""


def _peak_megabytes() -> int:
    """Tell the most memory that this process has held, or one of those that decode for it."""
    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    waiting = [os.getpid()]
    while waiting:
        number = waiting.pop()
        with contextlib.suppress(OSError, TypeError):  # it ended, or is a zombie
            found = Path(f"/proc/{number}/task/{number}/children").read_text("ascii").split()
            waiting += map(int, found)
            status = Path(f"/proc/{number}/status").read_text("ascii")
            peaks.append(int(re.search(r"VmHWM:\s+(\d+)", status)[1]))  # type: ignore[index]
    return max(peaks) // 1024


def _serve(pipe: Connection, folder: Path, port: int) -> None:
    """Open the cases that come through the pipe, in a process that may die of them."""
    global START  # noqa: PLW0603 - a child's own
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    START = _address_space()
    while True:
        case = pipe.recv()
        if case is None:
            return
        path = folder / case.name
        path.write_bytes(case.data)
        try:
            if case.kind == "request":
                _send(case.data, port)
            else:
                OPENERS[case.kind](path)
            verdict = "read"
        except BinsegError as problem:
            text = str(problem)
            verdict = "refused" if "\n" not in text and len(text) <= MAX_LINE else "not one line"
        except BaseException as problem:  # noqa: BLE001  # this is what we look for
            verdict = f"traceback: {type(problem).__name__}: {str(problem)[:200]}"
        finally:
            path.unlink(missing_ok=True)
        pipe.send((verdict, _peak_megabytes()))


class Child:
    """The process that opens the cases; a new one after a crash or a hang."""

    def __init__(self, folder: Path, warm: Case, port: int) -> None:
        self._folder, self._port = folder, port
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
            return ("ended" if case.kind == "decoder" else "crash"), 0
        if peak - self.base > 100:
            # The peak of a process never falls: only a new one can tell of the next case.
            self._kill()
        return verdict, peak - self.base

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(
            target=_serve, args=(theirs, self._folder, self._port), daemon=True
        )
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
    return 1 if found["failures"] else 0


def _run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Open blocks of cases until there are enough, or no time is left."""
    log: Path | None = options.log
    found: dict[str, Any] = {"inputs": 0, "verdicts": {}, "largest_megabytes": 0}
    found |= {"slowest_seconds": 0.0, "server_grew_megabytes": 0, "seconds": 0.0, "failures": []}
    if log is not None and log.exists():
        found = json.loads(log.read_text("utf-8"))
    until = time.monotonic() + 60 * options.minutes
    with contextlib.ExitStack() as held:
        sources = _sources(options, scratch, held)
        while found["inputs"] < options.inputs and time.monotonic() < until:
            block, start = found["inputs"] // BLOCK, time.monotonic()
            num = min(BLOCK, options.inputs - found["inputs"])
            for kind, source in sources.items():
                source.random.seed(f"{options.seed} {kind} {block}")
                for index in range(max(1, round(SHARES[kind] * num / BLOCK))):
                    source.open(next(source.cases), f"{block}-{index}", found, options)
            found["inputs"] += num
            found["seconds"] = round(found["seconds"] + time.monotonic() - start, 1)
            if log is not None:
                write_json(log, found)
    return found


class _Source:
    """The cases of one kind, and the child that opens them."""

    def __init__(self, random_source: random.Random, cases: Iterator[Case], child: Child) -> None:
        self.random, self.cases, self._child = random_source, cases, child
        self.server: Server | None = None

    def open(
        self, case: Case, place: str, found: dict[str, Any], options: argparse.Namespace
    ) -> None:
        """Open one, and note what happened."""
        start = time.perf_counter()
        verdict, megabytes = self._child.open(case)
        seconds = time.perf_counter() - start
        found["slowest_seconds"] = max(found["slowest_seconds"], round(seconds, 2))
        found["largest_megabytes"] = max(found["largest_megabytes"], megabytes)
        if megabytes > options.megabytes:
            verdict = f"memory: {megabytes} MB"
        key = f"{case.kind}: {verdict.split(':')[0]}"
        found["verdicts"][key] = found["verdicts"].get(key, 0) + 1
        if self.server is not None:
            grown = round(self.server.memory() - self.first)
            found["server_grew_megabytes"] = max(found["server_grew_megabytes"], grown)
        if verdict in {"read", "refused", "ended"}:
            return
        found["failures"].append(f"{case.kind} {place} {case.name}: {verdict}")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{case.kind}-{place}-{case.name}").write_bytes(case.data)

    def serve(self, server: Server) -> None:
        """Watch the memory of the server that the cases are for."""
        self.server, self.first = server, server.memory()


def _sources(
    options: argparse.Namespace, scratch: Path, held: contextlib.ExitStack
) -> dict[str, _Source]:
    """Make what each kind needs, once."""
    empty, sources = Case(kind="recipe", name="r.yaml", data=b"{}"), {}
    kinds = options.only or list(SHARES)
    sound, warm = None, empty
    if {"bundle", "network"} & set(kinds):
        # In a process of its own: threads of a runtime don't survive the forks below.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sound = pool.apply(sound_model, (scratch,))
        # The first one brings the runtimes into memory, which isn't the damaged ones' doing.
        warm = Case(kind="network", name="n.openvino.zip", data=sound.networks["n.openvino.zip"])
    for kind in kinds:
        source, port = random.Random(), 0
        if kind == "request":
            server = held.enter_context(Server(default_bundle_path(), queue=8))
            port = server.port
        cases: Iterator[Case]
        match kind:
            case "bundle":
                assert sound is not None
                whole = options.bundle.read_bytes() if options.bundle else sound.bundle
                cases = bundles(source, whole)
            case "network":
                assert sound is not None
                cases = networks(source, sound)
            case "label":
                cases = labels(source, scratch)
            case _:
                makers = {"image": images, "recipe": recipes, "dataset": datasets}
                cases = (makers | {"zarr": zarrs, "request": requests})[kind](source)
        child = Child(scratch, warm if kind == "network" else empty, port)
        sources[kind] = _Source(source, cases, child)
        if kind == "request":
            sources[kind].serve(server)
    return sources


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1000, help="in all, those of --log too")
    parser.add_argument("--minutes", type=float, default=60, help="no new block after these")
    parser.add_argument("--log", type=Path, help="the figures so far; it is gone on from there")
    parser.add_argument("--only", nargs="+", choices=list(SHARES), metavar="KIND")
    parser.add_argument("--bundle", type=Path, help="a sound bundle's zip instead of a small one")
    parser.add_argument("--megabytes", type=int, default=1000, help="a case may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the cases that fail")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
