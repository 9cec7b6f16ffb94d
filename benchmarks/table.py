"""The plan on every data set at hand, by one protocol: a table that others can add their sets to.

    python benchmarks/table.py oxford-iiit-pet/ nuclei/ my_folder/ --out bench/
    python benchmarks/table.py --quick

Protocol: `binseg train --data SET --budget 6m --seed S` for three seeds, which is at most 20
minutes a set, on however many cores the machine has (two, in what we publish). The split is the
same for all seeds: the data's own, else the plan's. The score is that of the test split where there
is one, which nothing looked at before, else that of validation, which chose epoch and threshold
and so flatters; the column says which. Dice and IoU are means over images at their original size.
The interval (95 %) is a bootstrap over images, or their groups, of each image's mean over the
seeds; the spread tells the lowest and highest seed. Generated families follow the folders, unless
`--families` names others (or none). Finished runs are rows of runs.json and are not run again.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from families import SETS, folder_of

from binseg.cli.console import PlainProgress
from binseg.errors import BinsegError
from binseg.metrics.scores import interval_of, resampled_sums
from binseg.pipelines.evaluate_model import evaluate
from binseg.pipelines.plan_recipe import parse_budget, plan
from binseg.pipelines.train_model import train
from binseg.storage import write_json, write_text
from binseg.training.run_folder import environment

QUICK = "huge,num=20,size=160"
HEADS = ("data", "split", "images", "Dice [95 %]", "seeds", "IoU", "network", "s a run", "command")


def main() -> int:
    """Run what isn't done yet, and print the table; 1 where a run failed."""
    options = _arguments()
    progress, rows_path, failed = PlainProgress(), options.out / "runs.json", False
    rows: list[dict[str, Any]] = json.loads(rows_path.read_text()) if rows_path.exists() else []
    for data in [*options.data, *options.families]:
        for seed in range(options.seeds):
            key = f"{data}, seed {seed}, {options.budget}"
            if key in {row["key"] for row in rows}:
                continue
            progress.say(key)
            try:
                row = _row(data, seed, options.budget, options.out / "runs", progress)
            except BinsegError as problem:
                progress.say(f"{key}: {problem}")
                failed = True
                continue
            rows.append({"key": key, **row})
            write_json(rows_path, rows)
    table = _table(rows)
    write_text(options.out / "table.md", table)
    print(table)
    if options.json:
        write_json(options.json, {"environment": environment(), "runs": rows})
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help="folders, manifests or annotation files")
    parser.add_argument("--families", nargs="*", default=SETS, help="generated data")
    parser.add_argument("--budget", default="6m", help="for each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one small family, 2 seeds, 20 s")
    parser.add_argument("--json", type=Path, help="write all runs there")
    parser.add_argument("--out", type=Path, default=Path("bench-table"), help="rows and runs")
    options = parser.parse_args()
    if options.quick:
        options.data, options.families, options.budget, options.seeds = [], [QUICK], "20s", 2
    return options


def _row(data: str, seed: int, budget: str, out: Path, progress: PlainProgress) -> dict[str, Any]:
    start = time.perf_counter()
    sections = {"data": {"path": folder_of(data)}, "train": {"seed": seed}}
    planned = plan(sections=sections, budget=parse_budget(budget), progress=progress)
    folder = out / "".join(c if c.isalnum() else "-" for c in f"{data}-{seed}-{budget}")[-120:]
    if folder.exists():
        shutil.rmtree(folder)
    spent = time.perf_counter() - start
    result = train(
        planned.recipe, out=folder, spent=spent, plan=planned.as_yaml(), progress=progress
    )
    seconds = time.perf_counter() - start
    split = "test" if result.has_test else "val"
    report = result.report
    if result.has_test:
        report = evaluate(folder, split=split, out=folder / split, progress=progress)
    scored = [one for one in report.images if one.counts["original"].num_valid]
    return {
        "data": data,
        "seed": seed,
        "budget": budget,
        "split": split,
        "seconds": round(seconds, 1),
        "network": planned.recipe.model.name,
        "images": {one.id: dict(one.scores["original"]) for one in scored},
        "groups": {one.id: one.group for one in scored if one.group is not None},
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw one line a set and budget, over its seeds, as Markdown."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    for data, budget in dict.fromkeys((row["data"], row["budget"]) for row in rows):
        runs = [row for row in rows if (row["data"], row["budget"]) == (data, budget)]
        ids = [*runs[0]["images"]]
        dice_SN, iou_SN = (
            np.array([[run["images"][id_][name] for id_ in ids] for run in runs])
            for name in ("dice", "iou")
        )
        table_N2 = np.stack([dice_SN.mean(axis=0), np.ones(len(ids))], axis=1)
        groups = [runs[0]["groups"].get(id_, f"id {id_}") for id_ in ids]
        sums_R2 = resampled_sums(table_N2, groups=groups, num_resamples=10_000, seed=0)
        found = None if sums_R2 is None else interval_of(sums_R2[:, 0] / sums_R2[:, 1])
        span = "" if found is None else f" [{found.low:.3f}, {found.high:.3f}]"
        of_seed = dice_SN.mean(axis=1)
        seconds = max(run["seconds"] for run in runs)
        name = Path(data).name if Path(data).exists() else data
        cells = (
            *(name, runs[0]["split"], f"{len(ids)}", f"{dice_SN.mean():.4f}{span}"),
            f"{len(runs)}: {of_seed.min():.4f} to {of_seed.max():.4f}",
            f"{iou_SN.mean():.4f}",
            ", ".join(dict.fromkeys(run["network"] for run in runs)),
            f"{seconds:.0f}",
            f"`binseg train --data {name} --budget {budget} --seed S`",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
