"""The answers of all shards of a verb become one, and what is missing gets its name."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binseg.config import DataConfig
from binseg.errors import UsageError
from binseg.evaluation.saved_masks import SavedMask
from binseg.imageio import is_whole
from binseg.inference import load
from binseg.inference.outputs import join_outputs
from binseg.parallel import map_ordered
from binseg.pipelines.check_data import CheckResult, check
from binseg.pipelines.evaluate_model import evaluate
from binseg.progress import SILENT, Progress, track
from binseg.report.rendering import Entry, write_predictions_page
from binseg.shards import Shard, read_shards
from binseg.storage import held
from binseg.types import Report


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The joined answer of all shards."""

    verb: str
    num_images: int
    written: tuple[Path, ...] = ()  # Files that join those of all shards
    failures: tuple[str, ...] = ()  # A line for each input that could not be answered
    missing_shards: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # Images of ended shards whose outputs are gone or cut off
    answer: Report | CheckResult | None = None  # Of `evaluate`, or of `check`

    @property
    def is_whole(self) -> bool:
        """True where nothing failed and nothing is missing."""
        return not (self.failures or self.missing_shards or self.missing)

    def as_dict(self) -> dict[str, Any]:
        """Give the facts as plain data."""
        facts = {name: one for name, one in vars(self).items() if name != "answer"}
        return {**facts, "written": [*map(str, self.written)], "is_whole": self.is_whole}


def gather(out: str | Path, *, progress: Progress = SILENT) -> Gathered:
    """Join what shards wrote into a folder; OutputError, and UsageError for absent ones."""
    out = Path(out)
    records, absent = read_shards(out)
    missing_shards = tuple(map(str, absent))
    with held(out):
        if records[0]["verb"] == "predict":
            return _predictions(out, records, missing_shards, progress)
        if absent:
            raise UsageError(
                f"{out}: shards {', '.join(missing_shards[:10])} of {absent[0].of} have not ended; "
                f"run them, then gather again: {records[0]['verb']} needs all images"
            )
        return _scored(out, records, progress)


def _predictions(
    out: Path, records: Sequence[dict[str, Any]], absent: tuple[str, ...], progress: Progress
) -> Gathered:
    """Look for every mask, and join the tables, COCO files and pages."""
    failures = {one["source"]: one["reason"] for record in records for one in record["failures"]}
    masks = [one for record in records for one in record["masks"] if one[0] not in failures]
    found = map_ordered(lambda one: is_whole(out / one[1]), masks, ahead=64)
    wholes = track(found, progress=progress, label="looking at masks", total=len(masks))
    missing = [name for (name, _), whole in zip(masks, wholes, strict=True) if not whole]
    written = join_outputs(out, {name for record in records for name in record["outputs"]})
    if entries := [Entry(**one) for record in records for one in record["entries"]]:
        written.append(write_predictions_page(out, entries, model=f"{len(records)} shards"))
    return Gathered(
        verb="predict",
        num_images=len(masks) + len(failures),
        written=tuple(written),
        failures=tuple(failures.values()),
        missing_shards=absent,
        missing=tuple(missing),
    )


def _scored(out: Path, records: Sequence[dict[str, Any]], progress: Progress) -> Gathered:
    """Run the verb once more, with what the shards found out of each image."""
    asked, verb = records[0]["asked"], records[0]["verb"]
    if any(one["asked"] != asked for one in records):
        raise UsageError(f"{out}: its shards were run with different options; run them alike")
    config = DataConfig(**asked.pop("data"))
    known = [one["found"] for one in records]
    if verb == "check":
        page = out / "check.html"
        checked = check(config, page=page, known=known, progress=progress)
        num = int(dict(checked.facts).get("images", 0))
        return Gathered(verb=verb, num_images=num, written=(page,), answer=checked)
    models, tta = asked.pop("models"), asked.pop("tta")
    masks = asked.pop("predicted")
    model = SavedMask(None, name=masks) if masks else load(models, tta=tta)
    report = evaluate(model, data=config, out=out, known=known, progress=progress, **asked)
    files = ("report.html", "report.json", "per_image.csv")
    written = tuple(out / name for name in files)
    return Gathered(verb=verb, num_images=len(report.images), written=written, answer=report)


def run_shard(
    verb: str,
    shard: Shard,
    out: Path,
    *,
    data: DataConfig,
    find: Callable[[Shard], Any],
    asked: Mapping[str, Any] | None = None,
) -> str:
    """Find out a shard's share, once, and say so in a line; raises UsageError and OutputError."""
    everything = {**(asked or {}), "data": data.model_dump(mode="json")}
    known = shard.read(out)
    if known is None:
        shard.write(out, {"verb": verb, "asked": everything, "found": find(shard)})
        return f"shard {shard} is in {out}; when all are: binseg gather {out}"
    if known.get("asked") != json.loads(json.dumps(everything)):
        raise UsageError(f"{out}: shard {shard} was run with other options; choose another folder")
    return f"shard {shard} is in {out} already"
