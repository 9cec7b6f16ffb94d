"""Load a server on loopback with many clients, good ones and bad ones, and see whether it holds.

    python benchmarks/serve.py
    python benchmarks/serve.py runs/pet/bundle --clients 64 --seconds 60 --json serve.json
    python benchmarks/serve.py --attack --seconds 20

With --attack four clients send each bomb in a loop, to all routes that take images, while an honest
one sends its images: its p99 beside that of the same client in quiet, the server's memory (its
decoders' too) before and after, each bomb having been sent for 3 s before, and the seconds that
SIGTERM takes in the middle of it. Without, three rounds against one server process: 64 clients; the
same with clients that dribble bytes, hang up and send garbage; and 64 clients against a short
queue, for the 429s. Figures: predictions a second, p50 and p99, other statuses than 200, memory of
the server in the first and last tenth. "Backend alone" is the same model on the same images,
prepared beforehand, in full batches, in this process: what is lost against it is what HTTP,
decoding, encoding and Python cost. As all of it may share the processor with the clients and with
others, the share is also given by processor time, which neither changes.
"""

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from binseg.imageio.decoding import MOST_SCANS
from binseg.inference.pretrained import default_bundle_path

BATCH = 8
NUM_BAD = 8
"""Of each kind of bad client."""


@dataclass(kw_only=True)
class Tally:
    """What the good clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    broken: int = 0
    """Connections that ended without a response."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """The figures of one round."""

    name: str
    predictions: int
    refused_429: int
    others: int
    broken: int
    per_second: float
    per_processor_second: float
    p50_ms: float
    p99_ms: float
    memory_first_mb: float
    memory_last_mb: float


def main() -> None:
    """Run all rounds and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="left out: the built-in model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--side", type=int, default=256, help="height and width of the images")
    parser.add_argument("--attack", action="store_true", help="bombs beside one honest client")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.bundle = given.bundle or default_bundle_path()
    if given.attack:
        attack(given.bundle, given.seconds, given.side, given.json)
        return
    images = [make_image(number, given.side) for number in range(16)]
    alone = backend_alone(given.bundle, images)
    print(
        f"backend alone, batches of {BATCH}: {alone['per_second']:.1f} images/s, "
        f"{alone['per_processor_second']:.1f} per second of processor"
    )
    rounds = []
    with Server(given.bundle, queue=2 * given.clients) as server:
        asyncio.run(load(server, images, given.clients, 3.0, bad=False, name="warm-up"))
        for bad in (False, True):
            name = f"{given.clients} clients" + (f" and {3 * NUM_BAD} bad ones" if bad else "")
            rounds.append(
                asyncio.run(load(server, images, given.clients, given.seconds, bad=bad, name=name))
            )
            show(rounds[-1], alone)
    with Server(given.bundle, queue=given.clients // 4) as server:
        name = f"{given.clients} clients, queue {given.clients // 4}"
        rounds.append(
            asyncio.run(
                load(server, images, given.clients, given.seconds / 4, bad=False, name=name)
            )
        )
        show(rounds[-1], alone)
    if given.json:
        lines = [asdict(one) for one in rounds]
        given.json.write_text(json.dumps({"alone": alone, "rounds": lines}, indent=2), "utf-8")


def bombs() -> dict[str, bytes]:
    """Small files that cost a decoder gigabytes or minutes, by what they are."""
    planes = 'SizeX="8" SizeY="8" SizeC="1" SizeT="1" SizeZ="1000000000" Type="uint8"'
    ome = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="I:0"><Pixels ID="P:0" DimensionOrder="XYZCT" {planes}><TiffData/></Pixels>'
        "</Image></OME>"
    )
    texts = {"OME": ome, "ImageJ": "ImageJ=1.54\nimages=1000000000\nslices=1000000000\n"}
    made = {}
    for name, text in texts.items():
        out = io.BytesIO()
        tifffile.imwrite(out, np.zeros((8, 8), np.uint8), description=text, metadata=None)
        made[f"{name} of a billion"] = out.getvalue()
    out = io.BytesIO()
    Image.new("L", (16, 16), 90).save(out, "JPEG")
    inner = bytearray(out.getvalue())
    size = inner.index(b"\xff\xc0") + 5
    inner[size : size + 4] = struct.pack(">HH", 65_500, 65_500)
    made["JPEG in a TIFF"] = tiff_of(bytes(inner), side=16, compression=7, num_tiles=1)
    out = io.BytesIO()
    Image.new("L", (6000, 6000), 90).save(out, "JPEG", progressive=True)
    jpeg = out.getvalue()
    scan = jpeg.rindex(b"\xff\xda")
    for num in (MOST_SCANS - 6, 8000):
        made[f"{num} scans"] = jpeg[:scan] + jpeg[scan:-2] * num + jpeg[-2:]
    made["blocks"] = jpeg[:2] + b"\xff\xe5\0\2" * 2_500_000 + jpeg[2:]
    made["overlapping tiles"] = tiff_of(zlib.compress(bytes(1 << 20)), 1024, 8, num_tiles=49)
    return made


def tiff_of(tile: bytes, side: int, compression: int, *, num_tiles: int) -> bytes:
    """A grey TIFF all of whose tiles are one and the same."""
    across = round(num_tiles**0.5)
    arrays = struct.pack(f"<{2 * num_tiles}I", *[8] * num_tiles, *[len(tile)] * num_tiles)
    start = 8 + len(tile)
    offsets = (8, len(tile)) if num_tiles == 1 else (start, start + 4 * num_tiles)
    tags = [(256, 1, across * side), (257, 1, across * side), (258, 1, 8), (259, 1, compression)]
    tags += [(262, 1, 1), (277, 1, 1), (322, 1, side), (323, 1, side)]
    tags += [(324, num_tiles, offsets[0]), (325, num_tiles, offsets[1])]
    entries = b"".join(struct.pack("<HHII", tag, 4, num, value) for tag, num, value in tags)
    head = b"II" + struct.pack("<HI", 42, start + len(arrays))
    return head + tile + arrays + struct.pack("<H", len(tags)) + entries + bytes(4)


def attack(bundle: Path, seconds: float, side: int, json_file: Path | None) -> None:
    """Send each bomb in a loop beside an honest client, and end the server in the middle."""
    images, found = [make_image(number, side) for number in range(16)], bombs()
    with Server(bundle, queue=16) as server:
        asyncio.run(load(server, images, 1, 3.0, bad=False, name="warm-up"))
        quiet = asyncio.run(load(server, images, 1, seconds, bad=False, name="quiet"))
        for data in found.values():  # as many decoders as will be, and all that is kept for later
            with under(server, data):
                time.sleep(3)
        server.settle()
        rows, before = [], server.memory(whole=True)
        for name, data in found.items():
            with under(server, data):
                one = asyncio.run(load(server, images, 1, seconds, bad=False, name=name))
            server.settle()
            rows.append({"bomb": name, "p99_ms": one.p99_ms, "answered": one.predictions,
                         "refused_429": one.refused_429, "others": one.others,
                         "memory_mb": server.memory(whole=True)})  # fmt: skip
            print(
                f"{name}: p99 {one.p99_ms:.0f} ms ({one.p99_ms / quiet.p99_ms:.1f} x quiet), "
                f"{one.predictions} answered, {one.refused_429} times 429, {one.others} others; "
                f"memory after it {rows[-1]['memory_mb']:.0f} MB, {server.memory():.0f} of it "
                "the server's without its decoders"
            )
        after = server.memory(whole=True)
        with under(server, found[f"{MOST_SCANS - 6} scans"]):
            start = time.monotonic()
            server.stop()
            took = time.monotonic() - start
    worst = max(row["p99_ms"] for row in rows) / quiet.p99_ms
    print(
        f"attacked: quiet p99 {quiet.p99_ms:.0f} ms, worst {worst:.1f} x; memory "
        f"{before:.0f} to {after:.0f} MB ({after / before - 1:+.1%}); SIGTERM took {took:.1f} s"
    )
    if json_file:
        facts = {"quiet": asdict(quiet), "rows": rows, "memory": [before, after], "end": took}
        json_file.write_text(json.dumps(facts, indent=2), "utf-8")


@contextlib.contextmanager
def under(server: "Server", bomb: bytes) -> Iterator[None]:
    """Have four clients send a bomb, in a process that keeps the honest one from nothing."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_send_all, args=(server, bomb), daemon=True)
    process.start()
    time.sleep(1)
    try:
        yield
    finally:
        process.kill()
        process.join()


def _send_all(server: "Server", bomb: bytes) -> None:
    async def together() -> None:
        await asyncio.gather(*(send_bombs(server, bomb, place) for place in range(4)))

    asyncio.run(together())


async def send_bombs(server: "Server", bomb: bytes, place: int) -> None:
    """Send a bomb to one route in a loop, as fast as it is answered."""
    route = ("predict", "predict", "preview", "jobs")[place]
    while True:
        with contextlib.suppress(OSError, EOFError):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.closing(writer):
                writer.write(request(len(bomb), route) + bomb)
                await writer.drain()
                await reader.readuntil(b"\r\n\r\n")


def make_image(seed: int, side: int) -> bytes:
    """A JPEG of soft noise."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def backend_alone(bundle: Path, images: list[bytes], seconds: float = 10.0) -> dict[str, float]:
    """Images a second of the model itself, in full batches of prepared inputs."""
    import binseg
    from binseg.imageio import decode_image
    from binseg.transforms.preprocess import prepare

    predictor = binseg.load(bundle, batch_size=BATCH)
    one_each = [
        prepare(decode_image(one, name="p"), predictor.preprocessing)[0][:1] for one in images
    ]
    inputs = np.concatenate(one_each)[:BATCH]
    predictor.probability_of_inputs(inputs)
    num, start, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        predictor.probability_of_inputs(inputs)
        num += len(inputs)
    return {
        "per_second": num / (time.perf_counter() - start),
        "per_processor_second": num / (time.process_time() - processor),
    }


class Server:
    """`binseg serve` as a process of its own."""

    def __init__(self, bundle: Path, *, queue: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._state = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "binseg", "serve", str(bundle), "--port", str(self.port)]
        command += ["--queue", str(queue), "--batch-size", str(BATCH), "--state", self._state.name]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def __enter__(self) -> "Server":
        until = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise SystemExit("the server doesn't start") from None
                time.sleep(0.1)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._state.cleanup()

    def stop(self) -> None:
        """End it by SIGTERM, and wait for that."""
        self._process.terminate()
        self._process.wait(120)

    def memory(self, *, whole: bool = False) -> float:
        """Resident megabytes; `whole` takes its decoders in, shared pages by their parts."""
        waiting, total = [self._process.pid], 0.0
        while whole and waiting:
            number = waiting.pop()
            with contextlib.suppress(OSError, ProcessLookupError):
                tasks = Path(f"/proc/{number}/task").glob("*/children")
                waiting += [int(one) for task in tasks for one in task.read_text("ascii").split()]
                rollup = Path(f"/proc/{number}/smaps_rollup").read_text("ascii")
                total += int(rollup.split("Pss:")[1].split()[0]) / 1000
        if whole:
            return total
        statm = Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()
        return int(statm[1]) * resource.getpagesize() / 1e6

    def settle(self) -> None:
        """Wait until accepted jobs are done, a minute at most, and ten seconds more."""
        for _ in range(30):
            used = self.processor()
            time.sleep(2)
            if self.processor() - used < 0.1:
                break
        time.sleep(10)

    def processor(self) -> float:
        """Seconds of processor so far."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text("ascii")
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(
    server: Server, images: list[bytes], clients: int, seconds: float, *, bad: bool, name: str
) -> Round:
    """Let the clients go for some seconds."""
    tally, memory = Tally(), []
    start, processor = time.monotonic(), server.processor()
    until = start + seconds
    tasks = [asyncio.create_task(good(server, images, n, until, tally)) for n in range(clients)]
    kinds: tuple[Bad, ...] = (dribble, hang_up, garbage) if bad else ()
    others = [asyncio.create_task(kind(server, images[0])) for kind in kinds * NUM_BAD]
    while time.monotonic() < until:
        memory.append(server.memory())
        await asyncio.sleep(min(1.0, seconds / 20))
    await asyncio.gather(*tasks)
    for one in others:
        one.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    took, used = time.monotonic() - start, server.processor() - processor
    tenth = max(1, len(memory) // 10)
    num_done = tally.statuses[200]
    times = np.array(tally.seconds or [0.0]) * 1000
    return Round(
        name=name,
        predictions=num_done,
        refused_429=tally.statuses[429],
        others=sum(tally.statuses.values()) - num_done - tally.statuses[429],
        broken=tally.broken,
        per_second=num_done / took,
        per_processor_second=num_done / max(used, 1e-9),
        p50_ms=float(np.percentile(times, 50)),
        p99_ms=float(np.percentile(times, 99)),
        memory_first_mb=float(np.mean(memory[:tenth])),
        memory_last_mb=float(np.mean(memory[-tenth:])),
    )


async def good(
    server: Server, images: list[bytes], number: int, until: float, tally: Tally
) -> None:
    """A client that sends one image after the other over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    turn = number
    while time.monotonic() < until:
        start = time.monotonic()
        try:
            status, wait = await ask(reader, writer, images[turn % len(images)])
        except (OSError, EOFError):
            tally.broken += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            continue
        tally.statuses[status] += 1
        if status == 200:
            tally.seconds.append(time.monotonic() - start)
        elif wait:
            await asyncio.sleep(min(wait, max(0.0, until - time.monotonic())))
        turn += 1
    writer.close()


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, image: bytes
) -> tuple[int, float]:
    """Send an image; give the status, and after how long to come again."""
    writer.write(request(len(image)) + image)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    await reader.readexactly(int(lines["content-length"]))
    return int(head.split()[1]), float(lines.get("retry-after", 0))


def request(length: int, route: str = "predict") -> bytes:
    """The head of a request."""
    return (
        f"POST /v1/{route} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


Bad = Callable[[Server, bytes], Coroutine[None, None, None]]


async def dribble(server: Server, image: bytes) -> None:
    """Send an image byte by byte, again and again."""
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(request(len(image)))
            for byte in image:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.5)
        except OSError:
            continue
        finally:
            writer.close()


async def hang_up(server: Server, image: bytes) -> None:
    """Send an image, or half of one, and go away."""
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        part = random.choice((len(image) // 2, len(image)))
        writer.write(request(len(image)) + image[:part])
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.5)


async def garbage(server: Server, image: bytes) -> None:
    """Send what is no HTTP, and images that are none."""
    noise = bytes(reversed(image))
    while True:
        for data in (noise, request(len(noise)) + noise):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            try:
                writer.write(data)
                await reader.read(65536)
            except OSError:
                continue
            finally:
                writer.close()
            await asyncio.sleep(0.5)


def show(one: Round, alone: dict[str, float]) -> None:
    """Print a round."""
    share = one.per_second / alone["per_second"]
    by_processor = one.per_processor_second / alone["per_processor_second"]
    print(
        f"{one.name}: {one.predictions} predictions, {one.per_second:.1f}/s ({share:.0%} of the "
        f"backend alone; {by_processor:.0%} by processor time), p50 {one.p50_ms:.0f} ms, p99 "
        f"{one.p99_ms:.0f} ms; {one.refused_429} times 429, {one.others} other statuses, "
        f"{one.broken} broken; memory {one.memory_first_mb:.0f} to {one.memory_last_mb:.0f} MB "
        f"({one.memory_last_mb / one.memory_first_mb - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
