"""Every benchmark that README and docs quote runs in its short form, on what the package brings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = {
    "averages": ("", r"mean over images +0\.\d+[\s\S]*mean over batches, 64 +0\.\d+"),
    "cluster": (
        "--images 300 --workers 2 --kills 2 --schedulers 1",
        r"300 images on 2 workers: [\s\S]* all masks equal",
    ),
    "doctor": ("--images 120", r"found 20 of 20"),
    "families": (
        "dots,num=3,size=48 --out made",
        r"made/dots-num3-size48-seed0",
    ),
    "faults": (
        "--kills 3 --writing 2",
        r'"trials": 3,\s+"same": 3,[\s\S]*"trials": 2,\s+"same": 2,',
    ),
    "fuzz": ("--inputs 200", r'"image: [\s\S]*"request: [\s\S]*"failures": \[\]'),
    "growth": ("--only names --names 100 300", r"exponent of megabytes"),
    "label": ("latency --num 3", r"new mask: median \d+ ms"),
    "large": ("--quick", r"memory: [\s\S]*SHA-256 equal:[\s\S]*seams: "),
    "pairs": ("--pairs 2", r"2 pairs .*: none mixed"),
    "photos": ("--images 2 --photos 2", r'"difference": '),
    "plan": ("--quick --families cracks", r"\| .*cracks.* \|"),
    "predict": ("--quick", r"torch fp32 NCHW[\s\S]*openvino int8"),
    "quality": ("--quick", r"expected Dice [\s\S]*AURC [\s\S]*planted errors in the worst tenth"),
    "recipes": (
        "--size 32 --images-seen 40 --only pet-resnet34-unet-cosine",
        r"pet-resnet34-unet-cosine",
    ),
    "search": ("--images 16 --val-images 8 --epochs 1 --only base", r"\| base \| 0\.\d+"),
    "serve": ("--clients 4 --seconds 2", r"4 clients, queue 1"),
    "table": ("--quick", r"\| .*huge.* \| test \| 3 \| 0\.\d+"),
    "train": ("--quick --only speed dice time-to-dice", r"resnet34-unet"),
}
"""Options of the short form by benchmark, and the shape of what it prints in the end."""
FURTHER = {
    "serve": ("--attack --seconds 1", r"attacked: quiet p99 \d+ ms, [\s\S]* SIGTERM took \d")
}
"""Other short forms of the same benchmarks."""
QUOTED = re.compile(r"benchmarks/(\w+)\.py")


def test_every_quoted_benchmark_has_a_short_form() -> None:
    """README, docs and the benchmarks' folder know the same ones."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    quoted = {name for page in pages for name in QUOTED.findall(page.read_text("utf-8"))}
    assert quoted <= SHORT.keys()
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == SHORT.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [*SHORT.items(), *FURTHER.items()])
def test_the_short_form_runs(name: str, form: tuple[str, str], tmp_path: Path) -> None:
    """With nothing but the package at hand it ends well, and prints its figures."""
    options, printed = form
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", *options.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(printed, done.stdout), done.stdout[-2000:]
