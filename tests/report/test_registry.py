"""The registry: every score of every kind is in everything that shows scores."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from binseg.cli.screen import report_items
from binseg.evaluation.comparison import COMPARED, compare
from binseg.metrics import METRICS, image_rows, report_as_dict
from binseg.metrics.registry import CalibrationMetric, ObjectMetric, OutlineMetric, PixelMetric
from binseg.report.page import write_page
from binseg.types import Report


@pytest.fixture(scope="module")
def report(invent: Callable[[Sequence[str]], Any]) -> Report:
    """A report of ten made-up images."""
    found: Report = invent([f"image_{number}" for number in range(10)]).report
    return found


def test_names_are_unique_and_labels_too() -> None:
    """One name and one label stand for one score, whatever its kind."""
    assert all(name == metric.name for name, metric in METRICS.items())
    assert len({metric.label for metric in METRICS.values()}) == len(METRICS)


def test_every_score_is_in_the_report_and_its_files(report: Report) -> None:
    """Each row has its figure in report.json, and its column per image where images have one."""
    tree, line = report_as_dict(report), image_rows(report)[3]
    figures: Any = (
        tree["outline"]["scores"] | tree["objects"] | tree["calibration"] | tree["mean"]["original"]  # type: ignore[index]
    )
    meanings: Any = tree["meanings"]
    for name, metric in METRICS.items():
        assert name in figures, name
        assert meanings[name] == metric.meaning
        is_pooled = isinstance(metric, ObjectMetric | CalibrationMetric)
        assert (name in line) == (not is_pooled), name


def test_every_score_is_on_the_page(report: Report, tmp_path: Path) -> None:
    """The page names each score; the table of images has those main ones that images have."""
    write_page(tmp_path / "page.html", report=report)
    text = (tmp_path / "page.html").read_text("utf-8")
    for metric in METRICS.values():
        assert metric.label in text
    for metric in COMPARED:
        assert (f'<button type="button">{metric.label}<span' in text) == metric.is_main


def test_the_main_scores_are_on_the_screen(report: Report) -> None:
    """The terminal shows the main scores by their labels, and no others."""
    console = Console(width=250, record=True, file=io.StringIO())
    for item in report_items(report):
        console.print(item)
    table = console.export_text()
    for metric in METRICS.values():
        if not isinstance(metric, PixelMetric):
            assert (f"{metric.label} " in table or f"{metric.label}," in table) == metric.is_main


def test_models_are_compared_by_every_score_of_an_image(report: Report, tmp_path: Path) -> None:
    """Any score that images have can decide; the main ones are told beside it."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text = json.dumps(report_as_dict(report))
        (tmp_path / name / "report.json").write_text(text, "utf-8")
    for metric in COMPARED:
        found = compare(tmp_path / "a", tmp_path / "b", score=metric.name)
        assert found.decisive.name == metric.name
    names = [one.name for one in compare(tmp_path / "a", tmp_path / "b").differences]
    assert names == [metric.name for metric in COMPARED if metric.is_main]


def test_the_sweep_has_every_score_of_pixels(report: Report) -> None:
    """Each threshold has its pooled scores, which at the report's threshold are the report's."""
    assert report.sweep is not None
    at = int(np.argmin(np.abs(np.array(report.sweep.thresholds) - report.threshold)))
    for name, value in report.pooled["original"].items():
        assert report.sweep.curves[name][at] == pytest.approx(value)


def test_outlines_without_a_counterpart_get_the_worst_value(report: Report) -> None:
    """A missed object has distance = the diagonal, and 0 in every outline score that is a share."""
    missed = report.images[1].outline
    assert missed is not None
    for metric in METRICS.values():
        if isinstance(metric, OutlineMetric):
            assert missed[metric.name] == (np.hypot(24, 24) if metric.is_distance else 0)
