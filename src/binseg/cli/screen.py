"""Tables for people; the same facts leave as JSON with --json."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from binseg.metrics.registry import METRICS, Metric, PixelMetric, metrics_of
from binseg.metrics.summary import report_rows
from binseg.progress import duration

if TYPE_CHECKING:
    from binseg.evaluation.comparison import Comparison
    from binseg.pipelines.check_data import CheckResult
    from binseg.pipelines.cross_validate import CrossResult
    from binseg.pipelines.export_model import ExportResult
    from binseg.pipelines.plan_recipe import PlanResult
    from binseg.pipelines.train_model import TrainResult
    from binseg.types import Figure, Report

FEW_IMAGES, WIDE_INTERVAL = 10, 0.1  # Fewer images or a wider Dice: a rough guess
SPLIT_WORDS = {"val": "validation ", "train": "training ", "test": "test "}
SHOWN_SLICES = 8
SHOWN_IDS = 5
SHOWN_NOTES = 5
SHOWN_COLUMNS = 2  # Columns of further scores, beside their kind
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def plain_table(title: str | None, *heads: str, rows: Iterable[Sequence[str]] = ()) -> Table:
    """Start a table in the house style: title at the left, a line below the heads, no word cut."""
    plain = None if title is None else Text(title)  # paths may hold what looks like markup
    table = Table(*heads, title=plain, title_justify="left", box=box.SIMPLE_HEAD)
    table.title_style = "bold"
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    return table


def report_items(report: "Report", *, by: Sequence[str] = ()) -> list[object]:
    """List what the screen shows of a report and its slices; averages with intervals come last."""
    num, empty = len(report.images), report.num_empty_truth
    shape = f"{num} images, {f'{empty} of them without an object, ' if empty else ''}threshold "
    shape += f"{report.threshold:.3f}"
    border = "" if report.border == "none" else f", border = {report.border}"
    shown = [metric for metric in metrics_of(PixelMetric) if metric.is_main]
    averages = report_rows(report, intervals=report.intervals)
    heads = [f"{row['average']}\n{row['size']} size" for row in averages]
    table = plain_table(f"{report.title}: {shape}{border}", "score", *heads)
    table.pad_edge = False  # all intervals fit into 80 columns
    for metric in shown:
        cells = (_with_interval(row, metric.name, between="\n") for row in averages)
        table.add_row(metric.label, *cells)
    notes = [f"- {note}" for note in report.notes]
    if report.is_empty:
        return [
            *notes,
            f"{report.title}: none of the {num} images shows an object, so that no score says how "
            f"well objects are found. Something was found in {report.num_false_alarms} of them.",
        ]
    return [_further_scores(report), *_slices(report, by), *notes, table]


def _with_interval(row: Mapping[str, str | float], name: str, *, between: str = " ") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.4f}" + ("" if low == "" else f"{between}[{low:.3f}, {high:.3f}]")


def _figure(figure: "Figure", digits: int = 4) -> str:
    text, found, less = f"{figure.value:.{digits}f}", figure.interval, digits - 1
    return f"{text} [{found.low:.{less}f}, {found.high:.{less}f}]" if found else text


def _further_scores(report: "Report") -> Table:
    """Show the main scores of outlines, objects and probabilities, those of a kind together."""
    title = "outlines, objects, probabilities (original size)"
    table = plain_table(title, *[""] * (SHOWN_COLUMNS + 1))
    table.show_header = False
    figures = {**report.outline, **report.objects}
    if report.calibration is not None:
        figures |= report.calibration.scores
    cells_of: dict[str, list[str]] = {}
    for name, figure in figures.items():
        if METRICS[name].is_main:
            cell = _labelled(METRICS[name], figure, report)
            cells_of.setdefault(METRICS[name].kind, []).append(cell)
    if report.sweep is not None:
        average = f"average precision {report.sweep.average_precision:.4f}"
        cells_of.setdefault("probabilities", []).append(average)
    failures = f"missed {report.num_missed}, false alarms {report.num_false_alarms}"
    cells_of["images"] = [failures]
    for kind, cells in cells_of.items():
        for start in range(0, len(cells), SHOWN_COLUMNS):
            table.add_row("" if start else kind, *cells[start : start + SHOWN_COLUMNS])
    return table


def _labelled(metric: Metric, figure: "Figure", report: "Report") -> str:
    within = f", {report.tolerance:g} {report.unit}:" if metric.has_tolerance else ""
    if metric.is_distance:
        return f"{metric.label} {_figure(figure, 2)} {report.unit}"
    return f"{metric.label}{within} {_figure(figure)}"


def _slices(report: "Report", by: Sequence[str]) -> list[object]:
    """Show the parts of the data that were asked for, the worst of each kind first."""
    kinds = [kind for kind in dict.fromkeys(one.by for one in report.slices) if kind in by]
    if not kinds:
        return []
    table = plain_table("slices (mean Dice, original size)", "by", "part", "images", "dice")
    table.columns[2].justify = "right"
    for kind in kinds:
        parts = [one for one in report.slices if one.by == kind]
        for one in sorted(parts, key=lambda part: part.dice.value)[:SHOWN_SLICES]:
            few = ", too few to tell" if one.is_small else ""
            table.add_row(kind, one.value, str(one.num_images), _figure(one.dice) + few)
        if len(parts) > SHOWN_SLICES:
            table.add_row("", f"and {len(parts) - SHOWN_SLICES} better ones", "", "")
    return [table]


def compare_items(result: "Comparison") -> list[object]:
    """Show two models side by side, and say whether the difference is noise."""
    table = plain_table(
        f"{result.num_images} images of {result.split}",
        "score", "A", "B", "B - A", "95% interval", "p", "B better / worse",
    )  # fmt: skip
    for one in result.differences:
        means = [f"{one.mean_a:.4f}", f"{one.mean_b:.4f}", f"{one.difference:+.4f}"]
        ends = one.interval
        means.append("" if ends is None else f"[{ends.low:+.3f}, {ends.high:+.3f}]")
        better = f"{one.num_better} / {one.num_worse}"
        table.add_row(METRICS[one.name].label, *means, f"{one.p:.2g}", better)
    table.columns[4].no_wrap = True
    names = (f"A: {result.title_a}", f"B: {result.title_b}")
    return [*names, table, result.sentence, *(f"- {note}" for note in result.notes)]


def headline(report: "Report") -> str:
    """Give the figure to quote: its interval, and on how many images, in words.

    Where no truth holds an object there is none: finding nothing in all of them would be perfect.
    """
    num, dice = len(report.images), report.mean["original"]["dice"]
    found = report.intervals.get("mean", {}).get("original", {}).get("dice")
    between = "" if found is None else f" (95% interval {found.low:.3f} to {found.high:.3f})"
    rough = num < FEW_IMAGES or found is None or found.high - found.low > WIDE_INTERVAL
    images = f"{SPLIT_WORDS.get(report.split, '')}{'image' if num == 1 else 'images'}"
    if report.is_empty:
        found_in = f"something was found in {report.num_false_alarms}"
        return f"no Dice to quote: none of {num} {images} holds an object; {found_in}"
    if report.num_empty_truth:
        images += f", {report.num_empty_truth} of them without an object"
    told = f"Dice {dice:.3f}{between} on {num} {images}"
    return told + (": a rough guess" if rough else "")


def scores_in_short(report: "Report", *, by: Sequence[str] = ()) -> list[object]:
    """Show the headline, what the mean hides, and the slices that were asked for."""
    iou = report.mean["original"]["iou"]
    told = f"IoU {iou:.3f}; missed {report.num_missed}, false alarms {report.num_false_alarms}"
    return [*_slices(report, by), headline(report), *([] if report.is_empty else [told])]


def run_items(result: "TrainResult", *, everything: bool = False) -> list[object]:
    """Show the scores of a training, where its files are, and what comes next."""
    from binseg.evaluation.report_files import PAGE_NAME

    what = "--split test" if result.has_test else "OTHER_IMAGES/ --split all"
    following = (
        f"  binseg evaluate {result.folder} {what}",
        f"  binseg predict {result.folder} YOUR_IMAGES/ --out predicted/",
    )
    report = f"report: {result.folder / 'val' / PAGE_NAME}"
    lines: list[object] = [headline(result.report), report]
    if everything:
        beside = compare_items(result.beside) if result.beside is not None else []
        best = f"best epoch {result.best_epoch} of {result.num_epochs}"
        cut = f"threshold {result.report.threshold:.3f}, {result.seconds:.0f} s"
        lines = [*report_items(result.report), *beside, f"{best}, {cut}", *lines]
    elif result.beside is not None:
        lines.insert(1, f"the earlier model (A) and this one (B): {result.beside.sentence}")
    return [*lines, f"model: {result.folder}", "next:", *following]


def folds_items(result: "CrossResult", *, everything: bool = False) -> list[object]:
    """Show the scores of all images, each by a model that is new to it, and each fold's Dice."""
    from binseg.evaluation.report_files import PAGE_NAME

    table = plain_table("mean Dice, original size", "fold", "images", "threshold", "dice", "run")
    table.columns[1].justify = "right"
    for number, one in enumerate(result.folds):
        cells = (str(one.num_images), f"{one.threshold:.3f}", _figure(one.dice), str(one.folder))
        table.add_row(str(number), *cells)
    report = result.pooled
    row = report_rows(report, intervals=report.intervals)[0]
    table.add_row("all", str(len(report.images)), "", _with_interval(row, "dice"))
    members = " --with ".join(str(fold.folder) for fold in result.folds)
    return [
        *([*report_items(report), table] if everything else []),
        headline(report),
        f"report: {result.pooled_folder / PAGE_NAME}",
        "next: all folds together, as an ensemble",
        f"  binseg predict {members} YOUR_IMAGES/ --out predicted/",
    ]


def check_tables(result: "CheckResult", *, everything: bool = False) -> list[object]:
    """Show what is in a data set and what is wrong with it, the verdict at the end."""
    items: list[object] = []
    if result.facts:
        facts = plain_table(result.path, "", "", rows=result.facts)
        facts.show_header = False
        items.append(facts)
    look = [] if result.sheet is None else ["samples with their masks:", f"  {result.sheet}"]
    if not result.findings:
        return [*items, *look, "verdict: nothing wrong found"]
    findings = plain_table("findings", "severity", "what", "where")
    notes = [finding for finding in result.findings if finding.severity == "note"]
    shown = result.findings if everything else [x for x in result.findings if x not in notes]
    hidden = 0 if everything else len(notes[SHOWN_NOTES:])
    for finding in [*shown, *([] if everything else notes[:SHOWN_NOTES])]:
        rest = len(finding.ids) - SHOWN_IDS
        where = ", ".join(finding.ids[:SHOWN_IDS]) + (f" and {rest} more" if rest > 0 else "")
        severity = Text(finding.severity, style=STYLES[finding.severity])
        findings.add_row(severity, finding.text, where)
    nums: Counter[str] = Counter(finding.severity for finding in result.findings)
    told = ", ".join(f"{nums[one]} {one}{'s' * (nums[one] > 1)}" for one in STYLES if nums[one])
    more = [f"and {hidden} more notes: --verbose or --html FILE shows them"] if hidden else []
    meaning = "fix what is wrong before training" if nums["error"] else "ready to train"
    return [*items, findings, *more, *look, f"verdict: {told}; {meaning}"]


def _keep_whole(table: Table, names: Iterable[str]) -> None:
    """Give the first column the width of its names, which somebody will type."""
    table.columns[0].no_wrap, table.columns[0].min_width = True, max(map(len, names))


def rows_table(rows: Sequence[Mapping[str, object]], titles: Mapping[str, str]) -> Table:
    """List rows, a column for each key of `titles`, numbers at the right, the first never cut."""
    table = plain_table(None, *titles.values())
    _keep_whole(table, (str(row[next(iter(titles))]) for row in rows))
    for key, column in zip(titles, table.columns, strict=True):
        if any(isinstance(row[key], int) for row in rows):
            column.justify = "right"
    for row in rows:
        cells = (row[key] for key in titles)
        table.add_row(*(f"{one:,}" if isinstance(one, int) else str(one) for one in cells))
    return table


def plan_line(result: "PlanResult") -> str:
    """Say in one line what a plan trains on, and how long that takes."""
    facts, machine, seconds = result.plan.fingerprint, result.plan.machine, result.expected_seconds
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    return (
        f"plan: {facts.num_train} training, {facts.num_val} validation, {facts.num_test} test "
        f"images; about {duration(seconds)} on {cores}"
        + (" and a GPU" if machine.device == "cuda" else "")
    )


def plan_items(result: "PlanResult") -> list[object]:
    """Lay out a plan: each setting with its value and reason."""
    title = plan_line(result)
    # The data's path was just typed, and may be wider than the table.
    chosen = [one for one in result.plan.settings if one.key != "data.path"]
    rows = ((one.key, _shown(one.value), one.reason) for one in chosen)
    table = plain_table(title, "setting", "value", "reason", rows=rows)
    table.columns[2].ratio = 1
    _keep_whole(table, (one.key for one in chosen))
    return [*(f"note: {warning}" for warning in result.plan.warnings), table]


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(f"{each:.3g}" if isinstance(each, float) else str(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {each}" for key, each in value.items()) or "none"
    plain = "none" if value is None else str(value)
    return f"{value:g}" if isinstance(value, float) else plain


def proof_items(result: "ExportResult") -> list[object]:
    """Show how an exported model computes beside the original."""
    table = plain_table(
        "the proof",
        "runtime", "precision", "beside", "images", "largest difference", "masks agree (IoU)",
        "Dice change", "",
    )  # fmt: skip
    for one in result.proofs:
        change = "" if one.dice_change is None else f"{one.dice_change:+.5f}"
        figures = (f"{one.largest_difference:.2g}", f"{one.agreement:.5f}", change)
        names = (one.runtime, one.precision, one.beside, str(one.num_images))
        table.add_row(*names, *figures, "passed" if one.passed else "failed")
    return [table, f"{result.path}: {result.num_bytes / 1e6:.1f} MB"]
