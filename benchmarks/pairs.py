"""Random pairs of two commands on one --out: each ends whole or with one line, nothing is mixed.

    python benchmarks/pairs.py [--pairs 200] [--trainings 0.1] [--seed 0] [--log pairs.json]

With --log the next call goes on after the pairs that are done. Each `predict` has a threshold of
its own, so that a mask tells who wrote it; some of the commands are trainings of a second. After a
pair, every mask in the folder must be of one command, a run must be whole, and each command must
have succeeded, or have said in one line that another one works there or that files exist. Commands
are forked from this process, which has imported binseg, so that they begin at once and meet in the
middle of each other.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from fuzz import tiny_bundle
from PIL import Image

from binseg.cli import main as binseg
from binseg.imageio import is_whole, read_facts
from binseg.packaging import read_bundle
from binseg.storage import write_json

_SAYS = ("another command works there", "exists; choose another", "is of another", "not empty")
_HEAVY = ("torch", "lightning_fabric", "scipy.ndimage", "tifffile", "onnxruntime", "openvino")
_TRAIN = (
    *("train", "synthetic:num=12", "--model", "unet", "--epochs", "1", "--device", "cpu"),
    *("--set", "input.size=32", "--set", "model.options={width: 2}"),
)


def main() -> None:
    """Run the pairs, and end with an AssertionError at the first that mixed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200, help="in all, those of --log too")
    parser.add_argument("--minutes", type=float, default=60, help="no new pair after these")
    parser.add_argument("--trainings", type=float, default=0.1, help="share of the commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="the counts so far")
    asked = parser.parse_args()
    done = {"pairs": 0, "trainings": 0, "refused": 0}
    if asked.log is not None and asked.log.exists():
        done = json.loads(asked.log.read_text("utf-8"))
    until = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            bundle = pool.apply(_bundle, (home,))
        for module in _HEAVY:
            import_module(module)
        (home / "in").mkdir()
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "in" / f"{number}.png")
        predict = ("predict", "--model", str(bundle), str(home / "in"))
        while done["pairs"] < asked.pairs and time.monotonic() < until:
            chance = random.Random(f"{asked.seed} {done['pairs']}")
            out, running = home / f"out{done['pairs']}", []
            for threshold in ("0.3", "0.6"):
                more = chance.choice([[], ["--overwrite"], ["--resume"], ["--overlay"]])
                command = [*predict, "--threshold", threshold, *more]
                if chance.random() < asked.trainings:
                    command = [*_TRAIN]
                    done["trainings"] += 1
                running.append(_start([*command, "--out", str(out)], home / f"told{len(running)}"))
                time.sleep(chance.random() * chance.choice((0.1, 2)))
            done["refused"] += _judge(out, running)
            done["pairs"] += 1
            if asked.log is not None:
                write_json(asked.log, done)
    print(
        f"{done['pairs']} pairs ({done['trainings']} commands of them trainings): none mixed; "
        f"{done['refused']} commands refused in one line"
    )


def _bundle(home: Path) -> Path:
    """Make the model; torch is used in a process of its own, as the others are forked."""
    return tiny_bundle(home)[0]


_Running = tuple[multiprocessing.Process, Path]


def _start(command: list[str], told: Path) -> _Running:
    process = multiprocessing.get_context("fork").Process(target=_run, args=(command, told))
    process.start()
    return process, told  # type: ignore[return-value]


def _run(command: list[str], told: Path) -> None:
    with told.open("wb") as file:
        os.dup2(file.fileno(), 2)
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
    sys.argv = ["binseg", "-q", *command]
    binseg()


def _judge(out: Path, running: list[_Running]) -> int:
    refused = 0
    for process, told in running:
        process.join(600)
        if process.exitcode:
            refused += 1
            text = told.read_text("utf-8")
            assert any(one in text for one in _SAYS), (process.exitcode, text)
            assert len(text.strip().splitlines()) == 1, text
    assert refused < len(running), "one of two succeeds"
    masks = sorted(out.glob("[0-9].png"))  # a run has curves.png
    assert len(masks) in (0, 8), masks
    assert all(map(is_whole, masks))
    made = {read_facts(one)["threshold"] for one in masks}
    assert len(made) == (1 if masks else 0), f"{out}: mixed of {made}"
    is_run = (out / "recipe.yaml").exists()
    assert masks or is_run, "what succeeded is there"
    if is_run:
        read_bundle(out / "bundle").weights()
    assert not [*out.rglob(".tmp-*")]
    return refused


if __name__ == "__main__":
    main()
