"""Kill binseg at random moments, go on, and see that nothing is lost and nothing is half-written.

    python benchmarks/faults.py --kills 200 --writing 100 --json faults.json
    python benchmarks/faults.py --quick

`--kills`: trainings that are killed (SIGKILL) one to three times each, at random moments, with a
checkpoint after every step, and resumed until they are done. Each must end in the state of a run
that was never stopped, bit for bit: weights, moving average, optimiser, schedule and history;
clocks alone may differ.

`--writing`: whole `binseg train`, `evaluate` and `predict` commands that are killed once, at a
random moment, so that caches, checkpoints, bundles, reports and predictions are cut off while they
are written. After each kill every file that has its final name is opened and must be whole; the
command is then given again, and must end with the same weights and masks.

All trials are forked from one process that has imported everything: a trial costs what it computes.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import yaml
from PIL import Image

from binseg.cli import app
from binseg.cli.console import PlainProgress
from binseg.config import Recipe
from binseg.data.cache import PixelCache
from binseg.errors import BinsegError
from binseg.models import build_model
from binseg.packaging import read_bundle
from binseg.progress import SILENT, track
from binseg.storage import sha256_of, write_json
from binseg.training.checkpoint import newest_whole, parse_checkpoint
from binseg.training.loop import fit
from binseg.training.run_folder import BEST, LAST, PREVIOUS

SIZE = 32
NUM_TRAIN, NUM_VAL = 20, 4
NETWORK: dict[str, Any] = {"width": 4, "depth": 2, "dropout": 0.1}
"""Few tensors: a trial is mostly the writing of checkpoints, and that costs by the tensor."""
MOST_KILLS = 3
"""Of one training; the last attempt is left alone."""
CLOCKS = {"seconds", "data_share"}
"""Columns of the history that time decides."""
DECIDING = {"binseg", "model", "average", "optimizer", "schedule", "guard", "step", "epochs"}
"""Parts of a checkpoint that decide the result, which must be equal to the bit: position and
recipe, weights, their average, optimiser, schedule, the guard's record, the epoch's figures, and
the history with the best epoch."""
TIMED = {"clock", "timer"}
"""Parts that say how long it took."""


@dataclass
class Found:
    """What the trials came to."""

    trials: int = 0
    same: int = 0
    kills: int = 0
    late: int = 0
    """Kills that came after the work was done."""
    files: int = 0
    """Files with a final name that were opened after a kill."""
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {**self.__dict__, "kinds": dict(self.kinds)}


def attempt(work: Callable[[], None], log: Path, *, kill_after: float | None = None) -> bool:
    """Do some work in a process of its own, which may be killed; whether it got to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()  # its own group: loader processes die with it
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:  # noqa: BLE001  # a process of its own: nobody else would hear of it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"it failed: {log.read_text()[-2000:]}")
    return True


def drawn(num: int, seed: int) -> PixelCache:
    """Bright rectangles on noise."""
    numbers = np.random.default_rng(seed)
    inputs = numbers.integers(0, 120, (num, SIZE, SIZE, 3), dtype=np.uint8)
    targets = np.zeros((num, SIZE, SIZE), np.uint8)
    for row in range(num):
        top, left = numbers.integers(1, SIZE // 2, 2)
        targets[row, top : top + SIZE // 2, left : left + SIZE // 2] = 1
    inputs[targets == 1] += 100
    return PixelCache(inputs_NHWC=inputs, targets_NHW=targets, record_of_N=np.arange(num))


def small_training(folder: Path, *, workers: int) -> None:
    """Train, or go on where there is a checkpoint; everything that has a state takes part."""
    recipe = Recipe.model_validate(
        {
            "input": {"size": SIZE},
            "model": {"name": "unet", "options": NETWORK},
            "augment": {"preset": "pet-augmented"},
            "optimizer": {"lr": 3e-3},
            "schedule": {"name": "plateau", "patience": 0, "warmup_epochs": 0.5},
            "train": {
                "epochs": 4,
                "batch_size": 2,
                "accumulate": 2,
                "ema_decay": 0.9,
                "early_stopping": 3,
                "precision": "fp32",
                "device": "cpu",
                "workers": workers,
                "checkpoint_minutes": 1e-6,
            },
        }
    )
    torch.manual_seed(0)
    fit(
        build_model(recipe),
        recipe=recipe,
        train=drawn(NUM_TRAIN, 0),
        val=drawn(NUM_VAL, 1),
        folder=folder,
        progress=SILENT,
        resume=any((folder / name).exists() for name in (LAST, PREVIOUS)),
    )


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two states differ in a single bit; clocks apart."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) and one.dtype == other.dtype else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys"]
        parts = [(k, one[k], other[k]) for k in one if k not in CLOCKS]
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: length"]
        parts = [(n, a, b) for n, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return [] if one == other else [f"{where}: {one!r}, {other!r}"]
    return [text for key, a, b in parts for text in differences(a, b, f"{where}/{key}")]


def whole_state(folder: Path) -> dict[str, Any]:
    """All that decides a training's result; every state is looked at but the two of time."""
    path, data = newest_whole(folder, SILENT)
    state = parse_checkpoint(data, path)
    assert state.keys() == DECIDING | TIMED, f"a checkpoint has {sorted(state)}"
    best = safetensors.numpy.load_file(folder / BEST)
    return {
        **{name: state[name] for name in DECIDING},
        "best": {name: torch.from_numpy(value) for name, value in best.items()},
    }


def until(end: float, num: int, label: str) -> Iterator[int]:
    """Count the trials, as long as there is time."""
    for index in track(range(num), progress=PlainProgress(), label=label, total=num):
        if time.monotonic() > end:
            return
        yield index


def training_kills(
    num: int, chance: random.Random, scratch: Path, *, workers: int, end: float
) -> Found:
    """Kill and resume trainings, and compare what they end with."""
    found = Found()
    reference, log = scratch / "reference", scratch / "log"
    attempt(partial(small_training, scratch / "warm", workers=0), log)
    start = time.monotonic()
    attempt(partial(small_training, reference, workers=0), log)
    seconds = time.monotonic() - start
    expected = whole_state(reference)
    for index in until(end, num, "trainings"):
        folder = scratch / f"training-{index}"
        found.trials += 1
        work = partial(small_training, folder, workers=workers)
        try:
            left = seconds
            while attempt(work, log, kill_after=chance.uniform(0, left)):
                found.late += 1  # it was done before the kill: once more
                shutil.rmtree(folder)
            found.kills += 1
            found.files += check_files(folder, found)
            for _ in range(chance.randint(0, MOST_KILLS - 1)):
                left *= 0.6
                if attempt(work, log, kill_after=chance.uniform(0, left)):
                    found.late += 1
                    break
                found.kills += 1
                found.files += check_files(folder, found)
            attempt(work, log)
            different = differences(expected, whole_state(folder))
        except (BinsegError, RuntimeError) as problem:
            different = [str(problem)]
        if different:
            found.failures.append(f"training {index}: {different[:3]}")
            print(found.failures[-1], flush=True)
        else:
            found.same += 1
            shutil.rmtree(folder)
    return found


def write_images(folder: Path) -> None:
    """Write a data set of PNG pairs."""
    pixels = drawn(NUM_TRAIN + NUM_VAL, 2)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for row, (input_HWC, target_HW) in enumerate(
        zip(pixels.inputs_NHWC, pixels.targets_NHW, strict=True)
    ):
        Image.fromarray(input_HWC).save(folder / "images" / f"p{row:02d}.png")
        Image.fromarray(target_HW * np.uint8(255)).save(folder / "masks" / f"p{row:02d}.png")


def command(*words: str | Path) -> None:
    """Give a command of the shell."""
    app([str(word) for word in words])


class Commands:
    """The three commands that write most, each with what it must end in.

    Args:
        scratch: holds the images, and a trained run that judges and predicts.
    """

    def __init__(self, scratch: Path) -> None:
        self.images = scratch / "images"
        self.model = scratch / "model"

    def train(self, folder: Path) -> None:
        """Train one epoch with a cache of its own, or go on."""
        os.environ["BINSEG_CACHE"] = str(folder / "cache")
        run = folder / "run"
        if (run / "split.csv").exists():
            if not (run / "bundle").exists() or (run / LAST).exists():
                command("-q", "train", "--out", run, "--resume")
            return
        sets = [f"--set={x}" for x in ("model.name=unet-small", "train.precision=fp32")]
        sizes = ("--size", str(SIZE), "--epochs", "1", "--batch-size", "4", "--device", "cpu")
        data = ("--data", self.images, "--checkpoint-every", "0.01")
        command("-q", "train", *data, *sizes, *sets, "--out", run)

    def evaluate(self, folder: Path) -> None:
        """Score a model."""
        what = ("--data", self.images, "--split", "all")
        command("-q", "evaluate", self.model, *what, "--out", folder / "report")

    def predict(self, folder: Path) -> None:
        """Predict all images, or those that are missing."""
        go_on = ("--resume",) if any(folder.glob("masks/*.png")) else ()
        images, out = self.images / "images", folder / "masks"
        command("-q", "predict", self.model, images, "--out", out, *go_on)


def check_files(folder: Path, found: Found) -> int:
    """Open every file that has a final name; the number of them."""
    num = 0
    for path in sorted(folder.rglob("*")):
        unfinished = any(part.startswith((".tmp-", ".old-")) for part in path.parts)
        building = any(part.endswith(".building") for part in path.parts)
        if not path.is_file() or unfinished or building or path.suffix == ".lock":
            continue
        num += 1
        found.kinds[path.suffix or path.name] += 1
        try:
            _open_whole(path)
        except Exception as problem:  # noqa: BLE001  # whatever a half file provokes
            found.failures.append(f"{path.relative_to(folder.parent)} is half: {problem}")
    return num


def _open_whole(path: Path) -> None:
    """Read a file to its end, and raise whatever where it has none."""
    match path.suffix:
        case ".png" | ".jpg" | ".tif" | ".tiff":
            with Image.open(path) as image:
                image.load()
        case ".json":
            json.loads(path.read_text())
        case ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict), "no mapping"
        case ".html":
            assert path.read_text().rstrip().endswith("</html>"), "no end"
        case ".csv":
            with path.open(newline="") as file:
                rows = list(csv.reader(file))
            assert rows, "empty"
            assert len({len(row) for row in rows}) == 1, "a short line"
            assert path.read_bytes().endswith(b"\n"), "no last line end"
        case ".safetensors":
            safetensors.numpy.load_file(path)
        case ".npy":
            np.load(path)
        case ".ckpt":
            parse_checkpoint(path.read_bytes(), path)
        case _:
            assert path.stat().st_size, "empty"
    if path.name == "SHA256SUMS":
        read_bundle(path.parent)


def results_of(folder: Path) -> dict[str, str]:
    """Hashes of what a command must end with: weights, masks."""
    wanted = [*folder.rglob("weights.safetensors"), *(folder / "masks").rglob("*.png")]
    final = [path for path in wanted if not path.name.startswith(".tmp-")]
    return {str(path.relative_to(folder)): sha256_of(path) for path in final}


def writing_kills(num: int, chance: random.Random, scratch: Path, *, end: float) -> Found:
    """Kill commands while they write, and look at what they left."""
    found = Found()
    commands, log = Commands(scratch), scratch / "log"
    write_images(commands.images)
    attempt(partial(commands.train, scratch / "first"), log)
    shutil.copytree(scratch / "first" / "run", commands.model)
    works = (commands.train, commands.evaluate, commands.train, commands.predict)
    seconds: dict[str, float] = {}
    expected: dict[str, dict[str, str]] = {}
    for work in dict.fromkeys(works):
        folder = scratch / f"expected-{work.__name__}"
        start = time.monotonic()
        attempt(partial(work, folder), log)
        seconds[work.__name__] = time.monotonic() - start
        expected[work.__name__] = results_of(folder)
    for index in until(end, num, "commands"):
        work = works[index % len(works)]
        folder = scratch / f"{work.__name__}-{index}"
        found.trials += 1
        before = len(found.failures)
        try:
            after = chance.uniform(0, seconds[work.__name__])
            done = attempt(partial(work, folder), log, kill_after=after)
            found.late += done
            found.kills += not done
            found.files += check_files(folder, found)
            if not done:
                attempt(partial(work, folder), log)
            found.files += check_files(folder, found)
            if results_of(folder) != expected[work.__name__]:
                found.failures.append(f"{folder.name}: it ended otherwise")
        except (BinsegError, RuntimeError) as problem:
            found.failures.append(f"{folder.name}: {problem}")
        if len(found.failures) == before:
            found.same += 1
            shutil.rmtree(folder)
        else:
            print(found.failures[before:], flush=True)
    return found


def main() -> int:
    """Run all trials; 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="trainings to kill and resume")
    parser.add_argument("--writing", type=int, default=100, help="commands to kill while writing")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of a training")
    parser.add_argument("--minutes", type=float, default=600, help="for each of the two parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="10 trainings and 4 commands")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.writing = 10, 4
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp())
    os.environ["BINSEG_CACHE"] = str(scratch / "cache")
    chance = random.Random(options.seed)
    start = time.monotonic()
    try:
        found = {
            "training": training_kills(
                options.kills,
                chance,
                scratch,
                workers=options.workers,
                end=time.monotonic() + 60 * options.minutes,
            )
            if options.kills
            else Found(),
            "writing": writing_kills(
                options.writing,
                chance,
                scratch,
                end=time.monotonic() + 60 * options.minutes,
            )
            if options.writing
            else Found(),
        }
    finally:
        if not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)
    answer: dict[str, Any] = {name: part.as_dict() for name, part in found.items()}
    answer["seconds"] = round(time.monotonic() - start)
    print(json.dumps(answer, indent=2))
    if options.json:
        write_json(options.json, answer)
    return 1 if any(part.failures for part in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
