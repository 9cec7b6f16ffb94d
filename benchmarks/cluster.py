"""Many small images on a Dask cluster whose workers and scheduler are killed, against shares alone.

    python benchmarks/cluster.py [--images 100000] [--workers 4] [--kills 20] [--schedulers 2]
                                 [--namespaces] [--json FILE]

The same images are predicted four times by a tiny model: by one process; by as many shares at once
as there are workers (`--shard`); on a cluster; and on one whose workers and scheduler are killed
(SIGKILL) at random times, and started again by a supervisor, as SLURM or Kubernetes would. Every
mask must be that of the one process, byte for byte. With --namespaces (root, Linux) the workers
live in a network namespace of their own, as on a second host.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from binseg.data.sources.synthetic import draw_synthetic
from binseg.storage import write_json

_KINDS = 500  # Different images; the others are copies under names of their own
_HOST = "10.99.0.1"
_TRAIN = (
    *("train", "synthetic:num=60", "--model", "unet", "--epochs", "6", "--device", "cpu"),
    *("--set", "input.size=32", "--set", "model.options={width: 4}"),
)


def main() -> None:
    """Print the seconds and ratios; an AssertionError names the first mask that differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20, help="of workers")
    parser.add_argument("--schedulers", type=int, default=2, help="kills of the scheduler")
    parser.add_argument("--namespaces", action="store_true", help="workers on a second host")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as held:
        home = Path(name)
        timed([[*_TRAIN, "--out", str(home / "run")]])
        model = str(home / "run")
        write_images(home / "in", asked.images)
        command = ["predict", "--model", model, str(home / "in"), "--table", "--device", "cpu"]
        found: dict[str, float] = {"images": asked.images, "workers": asked.workers}
        found["one_s"] = timed([[*command, "--out", str(home / "one")]])
        shares = [f"{one}/{asked.workers}" for one in range(1, asked.workers + 1)]
        found["shares_s"] = timed(
            [[*command, "--out", str(home / "shares"), "--shard", one] for one in shares]
        )
        assert_equal(home / "shares", home / "one")
        prefix = held.enter_context(second_host()) if asked.namespaces else ()
        host = _HOST if asked.namespaces else "127.0.0.1"
        rounds = (("dask", 0, 0), ("killed", asked.kills, asked.schedulers))
        for out, kills, schedulers in rounds:
            with Cluster(asked.workers, host=host, prefix=prefix) as cluster:
                on = ["--out", str(home / out), "--scheduler", cluster.address]
                chance = random.Random(asked.seed)
                span = found.get("dask_s", 0.0)
                times = [(chance.random() * span, "worker") for _ in range(kills)]
                times += [(chance.random() * span, "scheduler") for _ in range(schedulers)]
                killing = threading.Thread(target=cluster.kill, args=(sorted(times),), daemon=True)
                killing.start()
                found[f"{out}_s"] = timed([[*command, *on]])
                found[f"{out}_kills"] = cluster.num_killed
            assert_equal(home / out, home / "one")
        found["overhead"] = found["dask_s"] / found["shares_s"] - 1
    print(
        f"{asked.images:,} images on {asked.workers} workers: one process {found['one_s']:.1f} s, "
        f"shares {found['shares_s']:.1f} s, Dask {found['dask_s']:.1f} s "
        f"({found['overhead']:+.1%}), with {found['killed_kills']} kills "
        f"{found['killed_s']:.1f} s; all masks equal"
    )
    if asked.json:
        write_json(asked.json, found)


def write_images(folder: Path, num: int) -> None:
    """Write small images, a thousand to a folder."""
    first: list[Path] = []
    for number in range(num):
        path = folder / f"{number // 1000:04d}" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < _KINDS:
            Image.fromarray(draw_synthetic(number, size=32, seed=0)[0]).save(path)
            first.append(path)
        else:
            os.link(first[number % _KINDS], path)


def timed(commands: Sequence[Sequence[str]]) -> float:
    """Run commands at once and take the seconds until all have ended well."""
    start = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "binseg", *one],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for one in commands
    ]
    for process in running:
        told = process.communicate()[1]
        assert process.returncode == 0, told[-2000:]
    return time.monotonic() - start


def assert_equal(found: Path, wanted: Path) -> None:
    """Compare all masks of two folders."""
    theirs = {path.relative_to(wanted) for path in wanted.rglob("*.png")}
    ours = {path.relative_to(found) for path in found.rglob("*.png")}
    assert ours == theirs, f"{len(ours)} masks, {len(theirs)} wanted"
    for one in ours:
        assert (found / one).read_bytes() == (wanted / one).read_bytes(), one


class Cluster:
    """A scheduler and workers as processes of their own; whoever ends is started again."""

    def __init__(self, workers: int, *, host: str, prefix: Sequence[str]) -> None:
        port = random.randint(20_000, 50_000)
        self.address = f"tcp://{host}:{port}"
        self.num_killed = 0
        dask = [sys.executable, "-m"]
        self._commands = {"scheduler": [*dask, "distributed.cli.dask_scheduler", "--host", host,
                                        "--port", str(port), "--no-dashboard"]}  # fmt: skip
        for number in range(workers):
            self._commands[f"worker{number}"] = [
                *prefix, *dask, "distributed.cli.dask_worker", self.address, "--no-nanny",
                "--nthreads", "1", "--no-dashboard", "--death-timeout", "60",
            ]  # fmt: skip
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ends = threading.Event()

    def __enter__(self) -> "Cluster":
        self._tend()
        threading.Thread(target=self._supervise, daemon=True).start()
        time.sleep(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for process in self._running.values():
            process.kill()
            process.wait()

    def kill(self, times: Sequence[tuple[float, str]]) -> None:
        """Kill workers and schedulers so many seconds from now."""
        start = time.monotonic()
        for when, kind in times:
            if self._ends.wait(max(0.0, start + when - time.monotonic())):
                return
            names = [name for name in self._running if name.startswith(kind)]
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._running[random.choice(names)].pid, signal.SIGKILL)
                self.num_killed += 1

    def _supervise(self) -> None:
        while not self._ends.wait(0.3):
            self._tend()

    def _tend(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        for name, command in self._commands.items():
            process = self._running.get(name)
            if process is None or process.poll() is not None:
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                self._running[name] = subprocess.Popen(command, env=env, **quiet)  # type: ignore[call-overload]


@contextlib.contextmanager
def second_host() -> Iterator[tuple[str, ...]]:
    """Make a network namespace, joined to this one by a cable; gives the prefix of its commands."""
    name, ours, theirs = "binseg-second", "binseg-a", "binseg-b"
    inside = ("ip", "netns", "exec", name)
    for command in (
        ("ip", "netns", "add", name),
        ("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name),
        ("ip", "addr", "add", f"{_HOST}/24", "dev", ours),
        ("ip", "link", "set", ours, "up"),
        (*inside, "ip", "addr", "add", "10.99.0.2/24", "dev", theirs),
        (*inside, "ip", "link", "set", theirs, "up"),
        (*inside, "ip", "link", "set", "lo", "up"),
    ):
        subprocess.run(command, check=True)
    try:
        yield inside
    finally:
        subprocess.run(("ip", "netns", "del", name), check=True)


if __name__ == "__main__":
    main()
