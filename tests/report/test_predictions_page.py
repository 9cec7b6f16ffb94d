"""The page of a run of predictions: whole, offline, the doubtful first, no name is markup."""

import csv
from pathlib import Path

import numpy as np

from binseg.report.rendering import Entry, thumbnail, write_predictions_page


def test_the_page_and_the_table_tell_the_same(tmp_path: Path) -> None:
    """Unlike images come first; counts, areas with units and reasons stand in page and table."""
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[10:30, 10:30] = True
    thumb = thumbnail(np.full((40, 60, 1), 90, np.uint8), mask_HW)
    entries = [
        Entry(name="good.png", thumb=thumb, num_objects=1, foreground=0.17, flag="ok",
              expected_dice=0.93, low=0.9, high=0.95, area=100.0, unit="\u00b5m\u00b2"),
        Entry(name="<b>odd</b>.png", thumb=thumb, num_objects=2, foreground=0.5, low=0.1, high=0.9,
              flag="unlike the training data", expected_dice=0.96, reason="colour"),
        Entry(name="=huge.tif", foreground=0.25),
    ]  # fmt: skip
    page = write_predictions_page(tmp_path, entries, model="cells").read_text()
    assert page.index("&lt;b&gt;odd") < page.index("good.png") < page.index("huge.tif")
    assert "<b>odd" not in page
    assert "100.0 \u00b5m\u00b2" in page
    assert page.count("data:image/jpeg") == 2
    assert "http" not in page.replace("http-equiv", "")
    table = (tmp_path / "summary.csv").read_text("utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["name"] for row in rows] == ["good.png", "<b>odd</b>.png", "'=huge.tif"]
    assert rows[1]["reason"] == "colour"
    assert rows[2]["flag"] == "not judged"
    assert rows[2]["expected_dice"] == ""
