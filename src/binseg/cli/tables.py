"""Tables for people; the same facts leave as JSON with --json."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from binseg.metrics import report_rows

if TYPE_CHECKING:
    from binseg.evaluation.scoring import Evaluation
    from binseg.pipelines.catalogue import EncoderLine, ModelLine, RecipeLine
    from binseg.pipelines.check import CheckResult
    from binseg.pipelines.compare import CompareResult
    from binseg.pipelines.crossval import CrossResult
    from binseg.pipelines.demo import DemoResult
    from binseg.types import Figure, Report

__all__ = [
    "check_tables",
    "compare_items",
    "demo_table",
    "encoders_table",
    "folds_table",
    "models_table",
    "plain_table",
    "recipes_table",
    "report_items",
]

SHOWN_SCORES = ("dice", "iou", "mean_iou", "precision", "recall")
SHOWN_SLICES = 8
SHOWN_IDS = 5
IN_SHORT = {
    "Empty masks: ": "Empty masks: both empty scores 1, one of the two empty scores 0.",
    "Outlines: ": "Outlines: where one mask is empty, the distance is the image's diagonal.",
    "Objects: ": "Objects: connected pixels; one is found where its IoU is above 0.5.",
    "Calibration: ": "Calibration: over all pixels, most of which are easy.",
    "The border rule ": "Border: compare only figures of one border rule.",
}
"""What the screen shows of the rules that reports state in full, by how these begin."""
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def plain_table(title: str | None, *heads: str) -> Table:
    """Start a table in the house style: a title at the left, a line below the heads."""
    plain = None if title is None else Text(title)  # paths may hold what looks like markup
    table = Table(*heads, title=plain, title_justify="left", box=box.SIMPLE_HEAD)
    table.title_style = "bold"
    return table


def report_items(evaluation: "Evaluation", *, by: "Sequence[str]" = ()) -> list[object]:
    """Draw a report for the screen; the averages with their 95% intervals come last.

    Args:
        evaluation: what is in the files of the report whole.
        by: the columns whose slices are drawn.
    """
    report = evaluation.report
    shape = f"{len(report.images)} images, threshold {report.threshold:.3f}"
    border = "" if report.border == "none" else f", border = {report.border}"
    head = f"boundary F1, {report.tolerance:g} {report.unit}"
    names = [name.replace("_", " ") for name in SHOWN_SCORES]
    table = plain_table(f"{report.title}: {shape}{border}", "average", "size", *names, head)
    for row in report_rows(report, intervals=report.intervals):
        cells = [_with_interval(row, name) for name in SHOWN_SCORES]
        is_measured = (row["average"], row["size"]) == ("mean over images", "original")
        boundary = _figure(report.outline["boundary_f1"]) if is_measured else ""
        table.add_row(str(row["average"]), str(row["size"]), *cells, boundary)
    notes = [f"- {_in_short(note)}" for note in report.notes]
    return [_further_scores(report), *_slices(report, by), *notes, table]


def _in_short(note: str) -> str:
    """Give the short line of a rule that every report states; other notes stay as they are."""
    return next((line for start, line in IN_SHORT.items() if note.startswith(start)), note)


def _with_interval(row: dict[str, str | float], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    text = f"{row[name]:.4f}"
    return text if low == "" else f"{text} [{low:.3f}, {high:.3f}]"


def _figure(figure: "Figure", digits: int = 4) -> str:
    found = figure.interval
    text = f"{figure.value:.{digits}f}"
    if found is None:
        return text
    return f"{text} [{found.low:.{digits - 1}f}, {found.high:.{digits - 1}f}]"


def _further_scores(report: "Report") -> Table:
    """Draw outlines, objects and calibration in one row each."""
    table = plain_table("outlines, objects, probabilities (original size)", "", "", "", "", "")
    table.show_header = False
    outline, objects = report.outline, report.objects
    table.add_row(
        "outline",
        f"boundary IoU {_figure(outline['boundary_iou'])}",
        f"HD95 {_figure(outline['hd95'], 2)} {report.unit}",
        f"mean distance {_figure(outline['assd'], 2)} {report.unit}",
        f"missed {report.num_missed}, false alarms {report.num_false_alarms}",
    )
    table.add_row(
        "objects",
        f"panoptic quality {_figure(objects['pq'])}",
        f"precision {_figure(objects['precision'])}",
        f"recall {_figure(objects['recall'])}",
        f"F1 {_figure(objects['f1'])}",
    )
    if report.calibration is not None and report.sweep is not None:
        table.add_row(
            "probability",
            f"Brier {_figure(report.calibration.brier)}",
            f"calibration error {_figure(report.calibration.ece)}",
            f"average precision {report.sweep.average_precision:.4f}",
            "",
        )
    return table


def _slices(report: "Report", by: "Sequence[str]") -> list[object]:
    """Draw the parts of the data that were asked for, the worst of each kind first."""
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


def compare_items(result: "CompareResult") -> list[object]:
    """Draw two models side by side, and say whether the difference is noise."""
    table = plain_table(
        f"{result.num_images} images of {result.split}",
        "score", "A", "B", "B - A", "95% interval", "p", "B better / worse",
    )  # fmt: skip
    for one in result.differences:
        interval = (
            "" if one.interval is None else f"[{one.interval.low:+.4f}, {one.interval.high:+.4f}]"
        )
        table.add_row(
            one.name.replace("_", " "),
            f"{one.mean_a:.4f}",
            f"{one.mean_b:.4f}",
            f"{one.difference:+.4f}",
            interval,
            f"{one.p:.2g}",
            f"{one.num_better} / {one.num_worse}",
        )
    names = (f"A: {result.title_a}", f"B: {result.title_b}")
    return [*names, table, result.sentence, *(f"- {note}" for note in result.notes)]


def folds_table(result: "CrossResult") -> Table:
    """Draw each fold's Dice, and that of all images, each judged by a model that is new to it."""
    table = plain_table("mean Dice, original size", "fold", "images", "threshold", "dice", "run")
    table.columns[1].justify = "right"
    for number, one in enumerate(result.folds):
        cells = (str(one.num_images), f"{one.threshold:.3f}", _figure(one.dice), str(one.folder))
        table.add_row(str(number), *cells)
    report = result.pooled.report
    row = report_rows(report, intervals=report.intervals)[0]
    table.add_row("all", str(len(report.images)), "", _with_interval(row, "dice"))
    return table


def demo_table(result: "DemoResult") -> Table:
    """Draw the model's test Dice beside that of Otsu's threshold."""
    table = plain_table("test Dice, mean over images", "method", "Dice")
    mean = result.evaluation.report.mean["original"]["dice"]
    table.add_row("this model", f"{mean:.4f}")
    table.add_row("Otsu's threshold, with the better side known", f"{result.otsu_dice:.4f}")
    return table


def check_tables(result: "CheckResult") -> list[object]:
    """Draw what is in a data set and what is wrong with it."""
    items: list[object] = []
    if result.facts:
        facts = plain_table(result.path, "", "")
        facts.show_header = False
        for label, text in result.facts:
            facts.add_row(label, text)
        items.append(facts)
    if not result.findings:
        return [*items, "nothing wrong found"]
    findings = plain_table("findings", "severity", "what", "where")
    for finding in result.findings:
        rest = len(finding.ids) - SHOWN_IDS
        where = ", ".join(finding.ids[:SHOWN_IDS]) + (f" and {rest} more" if rest > 0 else "")
        severity = Text(finding.severity, style=STYLES[finding.severity])
        findings.add_row(severity, finding.text, where)
    return [*items, findings]


def models_table(lines: "Sequence[ModelLine]") -> Table:
    """Show the named networks."""
    table = plain_table(None, "model", "parameters", "decoder", "encoder", "what")
    table.columns[1].justify = "right"
    for line in lines:
        table.add_row(
            line.name, f"{line.num_parameters:,}", line.decoder, line.encoder, line.summary
        )
    return table


def encoders_table(lines: "Sequence[EncoderLine]") -> Table:
    """Show the encoders."""
    table = plain_table(None, "encoder", "parameters", "weights", "what")
    table.columns[1].justify = "right"
    for line in lines:
        weights = ", ".join(
            f"{one.name} ({one.licence}, {one.num_bytes / 1e6:.0f} MB"
            f"{', at hand' if one.at_hand else ''})"
            for one in line.weights
        )
        table.add_row(line.name, f"{line.num_parameters:,}", weights or "none", line.summary)
    return table


def recipes_table(lines: "Sequence[RecipeLine]") -> Table:
    """Draw the recipes."""
    table = plain_table(None, "recipe", "model", "what", "source", "expected")
    for line in lines:
        table.add_row(line.name, line.model, line.summary, line.source, line.expected)
    return table
