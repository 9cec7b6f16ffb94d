"""Shares of the work of many processes that know nothing of each other."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from binseg.errors import UsageError
from binseg.storage import parse_json, read_bytes, write_json

_RECORDS = ".shards"  # Folder in an output's place, with a file of what each shard answered


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `of` shares of the images, by number from 1; an image's path alone tells its share.

    >>> two = [Shard(number=number, of=2) for number in (1, 2)]
    >>> [one.holds("a/b.jpg") for one in two]
    [True, False]
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "3/100"; "auto" takes SLURM's or Kubernetes' number; raises UsageError."""
        first, _, of = text.partition("/")
        if first == "auto":
            first, of = _of_job(of)
        if not (first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of)):
            raise UsageError(f"shard {text!r}: give a number and how many there are, such as 3/100")
        return cls(number=int(first), of=int(of))

    def place(self, out: Path, suffix: str = "") -> Path:
        """Name the part of an output's place that the shard holds alone (`storage.held`)."""
        return out / _RECORDS / f"{self.number}-of-{self.of}{suffix}"

    def holds(self, name: str) -> bool:
        """Tell whether an image of this name, its path below the folder asked for, is in it."""
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest) % self.of == self.number - 1

    def write(self, out: Path, facts: Mapping[str, object]) -> None:
        """Note what the shard answered, whole or not at all; raises as `storage.write_json`."""
        write_json(self.place(out, ".json"), {**asdict(self), **facts})

    def read(self, out: Path) -> dict[str, Any] | None:
        """Give what an earlier run of this shard noted, or None."""
        path = self.place(out, ".json")
        return parse_json(read_bytes(path)) if path.is_file() else None


def read_shards(out: Path) -> tuple[list[dict[str, Any]], list[Shard]]:
    """Give all shards' notes in order, and the shards without any; UsageError if none or mixed."""
    records = [parse_json(read_bytes(path)) for path in (out / _RECORDS).glob("*-of-*.json")]
    if not records:
        raise UsageError(f"{out}: no shard has ended here; run the verb with --shard 1/4 and so on")
    if len({(one["verb"], one["of"]) for one in records}) > 1:
        told = sorted({f"{one['verb']} in {one['of']} shards" for one in records})
        raise UsageError(f"{out}: holds shares of {' and '.join(told)}; give each a folder")
    records.sort(key=lambda one: one["number"])
    ended = {one["number"] for one in records}
    of = records[0]["of"]
    return records, [Shard(number=i, of=of) for i in range(1, of + 1) if i not in ended]


def _of_job(of: str) -> tuple[str, str]:
    """Give the number of this process's job, from 1, and how many there are, as texts."""
    known = os.environ
    if "SLURM_ARRAY_TASK_ID" in known:
        first, step = (int(known.get(f"SLURM_ARRAY_TASK_{one}", 0)) for one in ("MIN", "STEP"))
        number = (int(known["SLURM_ARRAY_TASK_ID"]) - first) // max(1, step) + 1
        return str(number), of or known.get("SLURM_ARRAY_TASK_COUNT", "")
    if "JOB_COMPLETION_INDEX" not in known:
        told = "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"
        raise UsageError(f"shard auto: {told}; give 3/100")
    if not of:
        raise UsageError("Kubernetes doesn't say how many jobs there are: give auto/100")
    return str(int(known["JOB_COMPLETION_INDEX"]) + 1), of
