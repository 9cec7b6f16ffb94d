"""The plan against one fixed recipe at equal wall time, and its learning curve.

    python benchmarks/plan.py --data oxford-iiit-pet/ nuclei/ --budget 15m --out bench/
    python benchmarks/plan.py --quick --json plan.json
    python benchmarks/plan.py --curve nuclei/ --images 5 20 100 --budget 10m --out bench/
    python benchmarks/plan.py --curve nuclei/ --sides plan scratch --budget 5m --out bench/

The fixed recipe is what the reports agree on: images stretched to 256x256, resnet34-unet from
scratch, report D's augmentation and optimiser, BCE. Both sides get the same command-line budget,
which everything counts towards (looking at the data, measuring the machine, caching, scoring), the
same split and the same machine. Each finished run is a row in rows.json and is not run again.

Scores are of the validation split (or, for the curve, of images that no run has seen), mean over
images at their original size, with the threshold that each side tuned itself.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from families import SETS, folder_of

from binseg.autoconfig import few_ratios
from binseg.cli.console import PlainProgress
from binseg.config import Recipe, load_recipe
from binseg.config.recipe import DataConfig
from binseg.data.sources import open_dataset
from binseg.errors import BinsegError
from binseg.pipelines.evaluate_model import evaluate
from binseg.pipelines.plan_recipe import PlanResult, parse_budget, plan
from binseg.pipelines.train_model import TrainResult, train
from binseg.storage import write_json, write_text
from binseg.training.run_folder import environment

QUICK = ("cracks,num=20,size=160", "huge,num=20,size=160")
FIXED = (
    "model.name=resnet34-unet",
    "input.size=256",
    "input.resize=stretch",
    "augment.preset=pet-cosine",
)
SCRATCH = ("model.encoder_weights=none",)
SIDES = ("plan", "fixed", "scratch")
"""scratch is the plan without pretrained weights; only where it is asked for."""
NUM_HELD = 80
"""Images that judge the learning curve."""


def main() -> int:
    """Run what is asked for, and print the table; 1 where a run failed."""
    options = _arguments()
    progress = PlainProgress()
    budget = parse_budget("30s" if options.quick else options.budget)
    assert budget is not None, "a comparison needs a budget"
    rows_path = options.out / "rows.json"
    failed = False
    for data, folder, held in _asked(options):
        for side in options.sides:
            key = f"{data}, {side}, {budget:g} s"
            if key in {row["key"] for row in _read(rows_path)}:
                progress.say(f"{key}: done before")
                continue
            progress.say(key)
            try:
                row = _row(
                    side,
                    folder,
                    budget,
                    held=held,
                    runs=options.out / "runs",
                    progress=progress,
                )
            except BinsegError as problem:
                progress.say(f"{key}: {problem}")
                failed = True
                continue
            row = {"key": key, "data": data, "side": side, "budget": budget, **row}
            write_json(rows_path, [*_read(rows_path), row])
            write_text(rows_path.with_suffix(".md"), _table(_read(rows_path)))
    rows = _read(rows_path)
    print(_table(rows))
    if options.json:
        write_json(options.json, {"environment": environment(), "rows": rows})
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="*", default=[], help="data sets beside the families")
    parser.add_argument("--budget", default="15m", help="for each run")
    parser.add_argument("--families", nargs="*", default=SETS, help="generated data")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES[:2])
    parser.add_argument("--curve", help="a folder with images/ and masks/ for a learning curve")
    parser.add_argument("--images", nargs="+", type=int, default=[5, 20, 100], help="its points")
    parser.add_argument("--quick", action="store_true", help="two small families, 30 s a run")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--out", type=Path, default=Path("bench-plan"), help="rows and runs")
    return parser.parse_args()


def _asked(options: argparse.Namespace) -> list[tuple[str, str, str | None]]:
    """List name, data and (for the curve) the images that judge."""
    if options.quick:
        return [(path, folder_of(path), None) for path in QUICK]
    if options.curve:
        return _curve(Path(options.curve), options.images, options.out / "data")
    chosen = [*options.data, *options.families]
    return [(Path(p).name if Path(p).exists() else p, folder_of(p), None) for p in chosen]


def _curve(root: Path, numbers: Sequence[int], out: Path) -> list[tuple[str, str, str | None]]:
    """Make folders of so many images, nested, and one of images that none of them has."""
    records = open_dataset(DataConfig(path=str(root))).records
    # Evenly over the list, so that the few are of all kinds.
    order = [records[(7919 * index) % len(records)] for index in range(len(records))]
    held, rest = order[:NUM_HELD], order[NUM_HELD:]
    judge = _links(held, out / f"{root.name}-held")
    return [
        (f"{root.name}, {num} images", str(_links(rest[:num], out / f"{root.name}-{num}")), judge)
        for num in numbers
    ]


def _links(records: Sequence, folder: Path) -> str:  # type: ignore[type-arg]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for record in records:
        for name, path in (("images", record.image_path), ("masks", record.mask_path)):
            link = folder / name / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
    return str(folder)


def _row(
    side: str,
    data: str,
    budget: float,
    *,
    held: str | None,
    runs: Path,
    progress: PlainProgress,
) -> dict[str, object]:
    start = time.perf_counter()
    planned = _recipe(side, data, budget, progress)
    recipe = planned.recipe if isinstance(planned, PlanResult) else planned
    folder = runs / "".join(c if c.isalnum() else "-" for c in f"{data}-{side}-{budget:g}")[-120:]
    if folder.exists():
        shutil.rmtree(folder)
    result = train(
        recipe,
        out=folder,
        progress=progress,
        spent=time.perf_counter() - start,
        plan=planned.as_yaml() if isinstance(planned, PlanResult) else None,
    )
    seconds = time.perf_counter() - start
    scores = _scores(result, held, progress)
    return {
        **scores,
        "seconds": round(seconds, 1),
        "epochs": result.num_epochs,
        "model": recipe.model.name,
        "input": f"{recipe.input.size} {recipe.input.resize}"
        + (f" x{recipe.input.scale:g}" if recipe.input.resize == "tile" else ""),
        "command": _command(side, data, budget, recipe),
    }


def _recipe(side: str, data: str, budget: float, progress: PlainProgress) -> PlanResult | Recipe:
    if side != "fixed":
        return plan(
            sections={"data": {"path": data}},
            overrides=SCRATCH if side == "scratch" else (),
            budget=budget,
            progress=progress,
        )
    split = _split_of(data)
    overrides = (*FIXED, f"data.path={data}", f"train.budget_minutes={budget / 60}", *split)
    return load_recipe("pet-resnet34-unet-cosine", overrides=(*overrides, "train.threshold=tune"))


def _split_of(data: str) -> tuple[str, ...]:
    """The same split for both: what the plan says of stacks, else the data's own or by ratio."""
    records = open_dataset(DataConfig(path=data)).records
    if all(record.split is None for record in records):
        if any(record.page is not None for record in records):
            return ("data.split.method=block", "data.split.gap=5")
        few = few_ratios(len(records))
        ratios = [f"{one.key}={list(one.value)}" for one in few]  # type: ignore[call-overload]
        return ("data.split.method=ratio", *ratios)
    return ("data.split.method=official",)


def _command(side: str, data: str, budget: float, recipe: Recipe) -> str:
    if side != "fixed":
        start = f"binseg train --data {Path(data).name} --budget {budget / 60:g}m"
        return start + (" --encoder-weights none" if side == "scratch" else "")
    settings = " ".join(f"--set {one}" for one in FIXED)
    return (
        f"binseg train --recipe pet-resnet34-unet-cosine --data {Path(data).name} {settings} "
        f"--set data.split.method={recipe.data.split.method} "
        f"--set 'data.split.ratios={list(recipe.data.split.ratios)}' --set train.threshold=tune "
        f"--budget {budget / 60:g}m"
    )


def _scores(result: TrainResult, held: str | None, progress: PlainProgress) -> dict[str, object]:
    report = result.report
    if held is not None:
        report = evaluate(result.folder, data=held, split="all", progress=progress)
    found = report.intervals["mean"]["original"]["dice"]
    return {
        "dice": report.mean["original"]["dice"],
        "iou": report.mean["original"]["iou"],
        "pooled_iou": report.pooled["original"]["iou"],
        "interval": None if found is None else [found.low, found.high],
        "num_images": len(report.images),
    }


def _read(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    rows: list[dict[str, object]] = json.loads(path.read_text("utf-8"))
    return rows


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """Draw the rows as a Markdown table, the plan above what it is compared with."""
    heads = ["data", "side", "Dice [95 %]", "IoU", "pooled IoU", "images", "network", "input"]
    heads += ["s", "of budget", "command"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in sorted(rows, key=lambda one: (str(one["data"]), str(one["side"]) != "plan")):
        interval = row["interval"]
        span = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if isinstance(interval, list) else ""
        seconds, budget = row["seconds"], row["budget"]
        assert isinstance(seconds, float)
        assert isinstance(budget, float)
        cells = (
            f"{row['data']}",
            f"{row['side']}",
            f"{row['dice']:.4f}{span}",
            f"{row['iou']:.4f}",
            f"{row['pooled_iou']:.4f}",
            f"{row['num_images']}",
            f"{row['model']}",
            f"{row['input']}",
            f"{seconds:.0f}",
            f"{seconds / budget:.0%}",
            f"`{row['command']}`",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
