"""One file for a whole folder of predictions, joined from those of its images."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from binseg.inference.prediction import FILES
from binseg.storage import csv_text, write_json, write_text

COCO, OBJECTS, SUMMARY, KAGGLE = "coco.json", "objects.csv", "summary.csv", "kaggle.csv"
"""Names in the folder of the outputs; no image's own output has them."""


def join_outputs(out: Path, outputs: Iterable[str]) -> list[Path]:
    """Join the COCO files and the tables that lie in a folder, of earlier runs too.

    coco.json; kaggle.csv and summary.csv have a line an image (areas in um2 where known),
    objects.csv a line an object. Raises OutputError.
    """
    written = []
    if "coco" in outputs:
        write_json(out / COCO, _joined_coco(out, _parts(out, "coco")))
        written.append(out / COCO)
    if "table" in outputs:
        tables = {path: _rows(path) for path in _parts(out, "table")}
        write_text(out / OBJECTS, _csv([row for rows in tables.values() for row in rows]))
        write_text(out / SUMMARY, _csv([_sums(out, *one) for one in tables.items()]))
        written += [out / OBJECTS, out / SUMMARY]
    if "kaggle" in outputs:
        texts = [path.read_text("utf-8", "surrogateescape") for path in _parts(out, "kaggle")]
        head, *_ = texts[0].splitlines(keepends=True) if texts else [""]
        write_text(out / KAGGLE, head + "".join(text.removeprefix(head) for text in texts))
        written.append(out / KAGGLE)
    return written


def _parts(out: Path, kind: str) -> list[Path]:
    ending = FILES[kind].ending
    return sorted(one for one in out.rglob(f"*{ending}") if not one.name.startswith("."))


def _joined_coco(out: Path, paths: Iterable[Path]) -> dict[str, Any]:
    """Join data sets of one image each; images are named with their folder below `out`."""
    whole: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": []}
    for path in paths:
        one = json.loads(path.read_text(encoding="utf-8"))
        if "binseg" not in one.get("info", {}):  # another program's
            continue
        number = len(whole["images"]) + 1
        (image,) = one["images"]
        name = (path.parent.relative_to(out) / image["file_name"]).as_posix()
        whole["images"].append({**image, "id": number, "file_name": name})
        for thing in one["annotations"]:
            id_ = len(whole["annotations"]) + 1
            whole["annotations"].append({**thing, "id": id_, "image_id": number})
        whole |= {"info": one["info"], "categories": one["categories"]}
    return whole


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8", errors="surrogateescape"))))


def _sums(out: Path, path: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    name = path.relative_to(out).as_posix().removesuffix(FILES["table"].ending)
    found = {"outputs": name, "image": rows[0]["image"] if rows else ""}
    found["num_objects"] = str(len(rows))
    for column in ("area_px", "area_um2"):
        if rows and column in rows[0]:
            found[column] = f"{sum(float(row[column] or 0) for row in rows):g}"
    for column in ("expected_dice", "quality"):
        if rows and column in rows[0]:
            found[column] = rows[0][column]
    return found


def _csv(rows: list[dict[str, str]]) -> str:
    """Write rows that need not have the same columns."""
    return csv_text(rows, list(dict.fromkeys(name for row in rows for name in row)))
