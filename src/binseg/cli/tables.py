"""Tables for people; the same facts leave as JSON with --json."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from binseg.metrics import report_rows

if TYPE_CHECKING:
    from binseg.workflows.catalogue import ModelLine, RecipeLine
    from binseg.workflows.check import CheckResult
    from binseg.workflows.demo import DemoResult
    from binseg.workflows.scoring import Evaluation

__all__ = ["check_tables", "demo_table", "models_table", "recipes_table", "report_items"]

SHOWN_SCORES = ("dice", "iou", "precision", "recall")
SHOWN_IDS = 5
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def _table(title: str | None, *heads: str) -> Table:
    table = Table(*heads, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.title_style = "bold"
    return table


def report_items(evaluation: "Evaluation") -> list[object]:
    """Draw a report: the averages with their 95% intervals, and the notes to read with them."""
    report = evaluation.report
    shape = f"{len(report.images)} images, threshold {report.threshold:.3f}"
    border = "" if report.border == "none" else f", border = {report.border}"
    table = _table(f"{report.title}: {shape}{border}", "average", "size", *SHOWN_SCORES)
    for row in report_rows(report, intervals=evaluation.intervals()):
        cells = [_with_interval(row, name) for name in SHOWN_SCORES]
        table.add_row(str(row["average"]), str(row["size"]), *cells)
    return [table, *(f"- {note}" for note in report.notes)]


def _with_interval(row: dict[str, str | float], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    text = f"{row[name]:.4f}"
    return text if low == "" else f"{text} [{low:.3f}, {high:.3f}]"


def demo_table(result: "DemoResult") -> Table:
    """Draw the model's test Dice beside that of Otsu's threshold."""
    table = _table("test Dice, mean over images", "method", "Dice")
    mean = result.evaluation.report.mean["original"]["dice"]
    table.add_row("this model", f"{mean:.4f}")
    table.add_row("Otsu's threshold, with the better side known", f"{result.otsu_dice:.4f}")
    return table


def check_tables(result: "CheckResult") -> list[object]:
    """Draw what is in a data set and what is wrong with it."""
    items: list[object] = []
    if result.facts:
        facts = _table(result.path, "", "")
        facts.show_header = False
        for label, text in result.facts:
            facts.add_row(label, text)
        items.append(facts)
    if not result.findings:
        return [*items, "nothing wrong found"]
    findings = _table("findings", "severity", "what", "where")
    for finding in result.findings:
        rest = len(finding.ids) - SHOWN_IDS
        where = ", ".join(finding.ids[:SHOWN_IDS]) + (f" and {rest} more" if rest > 0 else "")
        severity = Text(finding.severity, style=STYLES[finding.severity])
        findings.add_row(severity, finding.text, where)
    return [*items, findings]


def models_table(lines: "Sequence[ModelLine]") -> Table:
    """Draw the models."""
    table = _table(None, "model", "parameters", "what", "source")
    table.columns[1].justify = "right"
    for line in lines:
        table.add_row(line.name, f"{line.num_parameters:,}", line.summary, line.source)
    return table


def recipes_table(lines: "Sequence[RecipeLine]") -> Table:
    """Draw the recipes."""
    table = _table(None, "recipe", "model", "what", "source", "expected")
    for line in lines:
        table.add_row(line.name, line.model, line.summary, line.source, line.expected)
    return table
