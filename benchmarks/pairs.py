"""Random pairs of two commands on one --out: each ends whole or with one line, nothing is mixed.

    python benchmarks/pairs.py [--pairs 200] [--trainings 0.1] [--seed 0]

Each `predict` has a threshold of its own, so that a mask tells who wrote it; some of the commands
are trainings of a second. After a pair, every mask in the folder must be of one command, a run must
be whole, and each command must have succeeded, or have said in one line that another one works
there or that files exist. Commands are forked from this process, which has imported binseg, so that
they begin at once and meet in the middle of each other.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from binseg.cli import main as binseg
from binseg.imageio import is_whole, read_facts
from binseg.packaging import read_bundle

_SAYS = ("another command works there", "exists; choose another", "is of another", "not empty")
_HEAVY = ("torch", "lightning_fabric", "scipy.ndimage", "tifffile", "onnxruntime", "openvino")
_TRAIN = (
    *("train", "synthetic", "--model", "unet", "--epochs", "1", "--device", "cpu"),
    *("--set", "input.size=32", "--set", "model.options={width: 2}"),
)


def main() -> None:
    """Run the pairs, and end with an AssertionError at the first that mixed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--trainings", type=float, default=0.1, help="share of the commands")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for module in _HEAVY:
        import_module(module)
    chance = random.Random(asked.seed)
    refused = trained = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "in").mkdir()
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "in" / f"{number}.png")
        predict = ("predict", "--model", "pets", str(home / "in"))
        for pair in range(asked.pairs):
            out, running = home / f"out{pair}", []
            for threshold in ("0.3", "0.6"):
                more = chance.choice([[], ["--overwrite"], ["--resume"], ["--overlay"]])
                command = [*predict, "--threshold", threshold, *more]
                if chance.random() < asked.trainings:
                    command, trained = [*_TRAIN], trained + 1
                running.append(_start([*command, "--out", str(out)], home / f"told{len(running)}"))
                time.sleep(chance.random() * chance.choice((0.1, 2)))
            refused += _judge(out, running)
    print(
        f"{asked.pairs} pairs ({trained} commands of them trainings): none mixed; {refused} "
        "commands refused in one line"
    )


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
    masks = sorted(one for one in out.glob("*.png") if not one.name.endswith("_overlay.png"))
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
