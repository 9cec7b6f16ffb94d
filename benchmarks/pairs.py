"""Random pairs of two commands on one --out: each ends whole or with one line, nothing is mixed.

    python benchmarks/pairs.py [--pairs 200] [--seed 0]

Each command predicts images of one shade with a threshold of its own, so that a mask tells who
wrote it: after a pair, every file in the folder must be of one command, and each command must have
succeeded, or have said in one line that another one works there or that files exist.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from binseg.imageio import is_whole, read_facts

_SAYS = ("another command works there", "exists; choose another", "is of another")


def main() -> None:
    """Run the pairs, and end with 1 at the first that mixed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    refused = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "in").mkdir()
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "in" / f"{number}.png")
        for pair in range(asked.pairs):
            out = home / f"out{pair}"
            running = []
            for threshold in ("0.3", "0.6"):
                extra = chance.choice([[], ["--overwrite"], ["--resume"], ["--overlay"]])
                running.append(_start(home / "in", out, threshold, extra))
                time.sleep(chance.random() * 2)
            refused += _judge(out, running)
    print(f"{asked.pairs} pairs: none mixed; {refused} commands refused in one line")


def _start(images: Path, out: Path, threshold: str, extra: list[str]) -> subprocess.Popen[str]:
    command = ["predict", "--model", "pets", str(images), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "binseg", "-q", *command, "--threshold", threshold, *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _judge(out: Path, running: list[subprocess.Popen[str]]) -> int:
    refused = 0
    for one in running:
        _, told = one.communicate(timeout=600)
        if one.returncode:
            refused += 1
            assert any(text in told for text in _SAYS), told
            assert len(told.strip().splitlines()) == 1, told
    assert refused < len(running), "one of two succeeds"
    masks = sorted(one for one in out.glob("*.png") if not one.name.endswith("_overlay.png"))
    assert len(masks) == 8, masks
    assert all(map(is_whole, masks))
    made = {read_facts(one)["threshold"] for one in masks}
    assert len(made) == 1, f"{out}: mixed of {made}"
    assert not [*out.rglob(".tmp-*")]
    return refused


if __name__ == "__main__":
    main()
