"""The files that an image gets, and whether those that are there are as they would be made now."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b, file_digest
from itertools import chain, count
from pathlib import Path
from typing import Any

from binseg.errors import ImageError, UsageError
from binseg.imageio import is_whole, read_facts, read_pixel_size
from binseg.inference.predict_options import PredictOptions, facts_of_file
from binseg.inference.prediction import FILES
from binseg.inference.predictor import Predictor
from binseg.inference.sources import InputImage
from binseg.inference.video import facts_of_video
from binseg.storage import csv_text, write_json, write_text

_OF_FILES = ("tolerance", "pixel_size", "crop", "background")
"""Options that change files, beside those that the model and its post-processing tell."""
COCO, OBJECTS, SUMMARY, KAGGLE = "coco.json", "objects.csv", "summary.csv", "kaggle.csv"
"""Names in the folder of the outputs; no image's own output has them."""


def files_of(image: InputImage, stem: Path, options: PredictOptions) -> list[Path]:
    """List the files that an image gets, the mask's first."""
    outputs = options.outputs
    if image.kind == "video":
        endings = [".mkv", *(["_overlay.mp4"] if "overlay" in outputs else [])]
    elif image.kind == "large":
        endings = [".tif", *(["_probability.tif"] if "probability" in outputs else [])]
        endings += [FILES["table"].ending] if "table" in outputs else []
    else:
        endings = [f".{options.mask_format}", *(FILES[one].ending for one in outputs)]
    return [stem.with_name(stem.name + ending) for ending in endings]


def facts_of(image: InputImage, predictor: Predictor, options: PredictOptions) -> dict[str, Any]:
    """Read what outputs say of an image beside its pixels, as fields of a Prediction."""
    if image.data is not None:
        size = read_pixel_size(image.data)
        return {"name": image.name, "source": image.data, "pixel_size": size}
    asked = set(options.outputs)
    facts = facts_of_file(
        image.path,
        place=options.mask_format == "tif" or bool(asked & {"geojson", "probability", "labels"}),
    )
    name = image.title or image.path.name
    facts |= {"source": image.path, "page": image.page}
    return {**facts, "name": name, "origin": origin_of(image, predictor, options)}


def origin_of(
    image: InputImage, predictor: Predictor, options: PredictOptions
) -> dict[str, object]:
    """Tell the content and place of an image and all settings, without naming anybody's folders."""
    settings = [(repr(one.preprocessing), one.tta, one.temperature) for one in predictor.members]
    place = f"{os.path.realpath(image.path)}#{image.page}".encode("utf-8", "surrogateescape")
    return {
        "image": f"{hash_of(image.path)}#{image.page}",
        "place": blake2b(place, digest_size=8).hexdigest(),
        "settings": blake2b(
            repr((settings, *map(vars(options).get, _OF_FILES))).encode(), digest_size=8
        ).hexdigest(),
    }


def hash_of(path: Path) -> str:
    """Hash the content of a file, or of all files of a folder."""
    whole = blake2b(digest_size=16)
    try:
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as handle:
                digest = file_digest(handle, partial(blake2b, digest_size=16))
            whole.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape"))
            whole.update(digest.digest())
    except OSError as error:
        raise ImageError(f"{path}: can't be read ({error.strerror or error})") from error
    return whole.hexdigest()


def difference(
    predictor: Predictor, image: InputImage, stem: Path, options: PredictOptions
) -> str | None:
    """Say what tells the outputs at a stem from those of now; "" if nothing, None if not whole."""
    files = files_of(image, stem, options)
    if not is_whole(files[0]):
        return None
    made = facts_of_video(files[0]) if image.kind == "video" else read_facts(files[0])
    if "model" not in made:
        return "program"
    origin = origin_of(image, predictor, options)
    if made.get("image") != origin["image"]:
        return None if made.get("place") == origin["place"] else "image"
    settings = "setting (test-time augmentation, tiles, scale, tolerance, cut-outs)"
    for noun, key, value in (
        ("model", "model", predictor.bundle_id),
        ("threshold", "threshold", predictor.threshold),
        ("post-processing", "postprocess", predictor.postprocessing.as_dict()),
        (settings, "settings", origin["settings"]),
    ):
        if made.get(key) != value:
            return noun
    known = made.get("others")
    for file in files[1:]:
        is_other = isinstance(known, dict) and known.get(file.name) != hash_of(file)
        if is_other or not is_whole(file):
            return None
    return ""


def refuse_other(
    predictor: Predictor, image: InputImage, stem: Path, options: PredictOptions
) -> None:
    """Raise UsageError where what is there is of another image, model or setting."""
    try:
        noun = difference(predictor, image, stem, options)
    except ImageError:  # reading the image will say so
        return
    if noun:
        raise UsageError(
            f"{files_of(image, stem, options)[0]} is of another {noun}; choose another folder with "
            "--out, or replace what is there with --overwrite"
        )


def candidates(image: InputImage, out: Path) -> Iterator[Path]:
    """Give stems from the plainest on; the list has no end."""
    folder, name = out / image.relative.parent, image.relative
    if image.stem:
        yield folder / image.stem
    page = "" if image.page is None else f"-page{image.page:04d}"
    numbered = (f"{name.stem}{page}-{number}" for number in count(2))
    plain = (f"{name.stem}{page}", f"{name.name}{page}")
    yield from (folder / text for text in chain(plain, numbered))


def join_outputs(out: Path, outputs: Iterable[str]) -> list[Path]:
    """Join the COCO files and tables in a folder, of earlier runs too; OutputError."""
    written = []
    if "coco" in outputs:
        write_json(out / COCO, _joined_coco(out, _parts(out, "coco")))
        written.append(out / COCO)
    if "table" in outputs:
        texts = {path: _text(path) for path in _parts(out, "table")}
        tables = {path: [*csv.DictReader(io.StringIO(text))] for path, text in texts.items()}
        write_text(out / OBJECTS, _csv([row for rows in tables.values() for row in rows]))
        write_text(out / SUMMARY, _csv([_sums(out, *one) for one in tables.items()]))
        written += [out / OBJECTS, out / SUMMARY]
    if "kaggle" in outputs:
        # Pages of a stack, and images of two folders, may have one name; outputs have their own.
        runs_of = {_stem_in(out, one, "kaggle"): one for one in _parts(out, "kaggle")}
        rows = [
            {"ImageId": name, "EncodedPixels": _text(one).strip().rpartition(",")[2]}
            for name, one in runs_of.items()
        ]
        write_text(out / KAGGLE, csv_text(rows, ["ImageId", "EncodedPixels"]))
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


def _stem_in(out: Path, path: Path, kind: str) -> str:
    return path.relative_to(out).as_posix().removesuffix(FILES[kind].ending)


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="surrogateescape")


def _sums(out: Path, path: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    found = {"outputs": _stem_in(out, path, "table"), "image": rows[0]["image"] if rows else ""}
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
