"""The folder of one training run: what is in it, under which names, and who may write there.

recipe.yaml       every setting, resolved
plan.yaml         the settings that were chosen for this data, each with its reason; absent where
                  a recipe was given
environment.json  python, packages, processor, threads, data fingerprint
split.csv         which image trained, which validated, which is left to test
earlier.json      the same of the models that this one continues, by the images' contents
before/           the scores of the model that this one continues, on the validation split
metrics.csv       one line an epoch
curves.png        the same, drawn
bundle/           the model that ships
val/              the shipped model's scores on the validation split

While it trains, best.safetensors, last.ckpt, previous.ckpt and training.lock are there too.
"""

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from binseg.config import Recipe, dump_recipe, load_recipe
from binseg.data.splits import read_contents, read_split
from binseg.errors import BundleError, UsageError
from binseg.parallel import processor_facts
from binseg.storage import locked, write_json, write_text
from binseg.types import Split

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.safetensors"
TEMPORARY = ".tmp-"  # prefix of the names of half-written files
LOCK_SECONDS = 30.0  # loader processes outlive a killed run by some seconds, and hold its lock

PACKAGES = (
    *("binseg", "imagecodecs", "lightning-fabric", "numpy", "pillow", "pydantic"),
    *("safetensors", "scipy", "tifffile", "torch"),
)


class _Name:
    """The path of a file in the folder, whose name is the argument."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "RunFolder", kind: type) -> Path:
        return run.path / self._name


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run's folder; the names of what it holds are here and nowhere else."""

    path: Path
    recipe_path = _Name("recipe.yaml")
    plan_path = _Name("plan.yaml")
    environment_path = _Name("environment.json")
    split_path = _Name("split.csv")
    earlier_path = _Name("earlier.json")
    metrics_path = _Name("metrics.csv")
    curves_path = _Name("curves.png")
    bundle_path = _Name("bundle")

    @property
    def is_finished(self) -> bool:
        """Return True if the run is done: the bundle is there, and what training needs is gone."""
        return self.bundle_path.exists() and not (self.path / LAST).exists()

    @property
    def is_saved(self) -> bool:
        """Return True if there is a checkpoint to resume from."""
        return any((self.path / name).is_file() for name in (LAST, PREVIOUS))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the run for this process (else OutputError), and clear what a killed one left."""
        with locked(self.path / "training", timeout=LOCK_SECONDS, tidy=True):
            for scrap in self.path.glob(f"{TEMPORARY}*"):
                if scrap.is_dir():
                    shutil.rmtree(scrap, ignore_errors=True)
                else:
                    scrap.unlink(missing_ok=True)
            yield

    def remove_training_files(self) -> None:
        """Remove what only training needs; it weighs several times as much as the bundle."""
        # In this order a run that is killed between two of them can still go on, or is finished.
        for name in (PREVIOUS, LAST, BEST):
            (self.path / name).unlink(missing_ok=True)

    @classmethod
    def create(cls, path: str | Path) -> "RunFolder":
        """Take a folder for a new run; UsageError if it holds anything but a run's barest start."""
        run, folder = cls(path=Path(path)), Path(path)
        check_writable(folder)
        if folder.is_dir() and any(folder.iterdir()) and not run._is_false_start():
            way_on = f", or go on with the run in it: binseg train --resume {folder}"
            raise UsageError(
                f"{folder} is not empty; choose another folder with --out"
                f"{way_on if run.recipe_path.is_file() and not run.is_finished else ''}"
            )
        return run

    def _is_false_start(self) -> bool:
        """Return True if a run was killed here while it wrote its files, before training."""
        ours = {self.environment_path.name, self.recipe_path.name, self.plan_path.name}
        ours.add(self.earlier_path.name)
        names = {entry.name for entry in self.path.iterdir()}
        names = {name for name in names if not name.startswith(TEMPORARY)} - {"training.lock"}
        return self.data_fingerprint() is not None and names <= ours

    @classmethod
    def find(cls, path: str | Path) -> "RunFolder | None":
        """Return the run that a path belongs to (itself, or its bundle), or None."""
        given, run = Path(path), cls(path=Path(path))
        if run._is_run():
            return run
        above = cls(path=given.parent)
        is_its_bundle = given.resolve() == above.bundle_path.resolve()
        return above if is_its_bundle and above._is_run() else None

    def _is_run(self) -> bool:
        return self.recipe_path.is_file() and self.split_path.is_file()

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Return the run at a path; BundleError if there is none."""
        run = cls.find(path)
        if run is None:
            raise BundleError(
                f"{path} is not the folder of a run (no recipe.yaml and split.csv in it); "
                "give the folder that `binseg train --out` wrote"
            )
        return run

    def recipe(self) -> Recipe:
        """Read back every setting of the run."""
        return load_recipe(self.recipe_path)

    def data_fingerprint(self) -> str | None:
        """Return the fingerprint of the data that the run took, if it was recorded."""
        try:
            recorded = json.loads(self.environment_path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        value = recorded.get("data_fingerprint") if isinstance(recorded, dict) else None
        return value if isinstance(value, str) else None

    def splits(self) -> dict[str, Split | None]:
        """Return which split each image of the run is in, by id; None where it was left out."""
        return read_split(self.split_path)

    def contents(self) -> dict[str, str]:
        """Return the content of each image of the run, by id; empty for runs without it."""
        return read_contents(self.split_path)

    def known(self) -> dict[str, Split | None]:
        """Return each image's split, by content, in this run and those it continues."""
        earlier: dict[str, Split | None] = {}
        if self.earlier_path.is_file():
            earlier = json.loads(self.earlier_path.read_text("utf-8"))
        splits = self.splits()
        pairs = [(one, splits[id_]) for id_, one in self.contents().items()] + [*earlier.items()]
        rank: dict[Split | None, int] = {"train": 2, "val": 1}
        return dict(sorted(pairs, key=lambda pair: rank.get(pair[1], 0)))

    def write_start(
        self,
        recipe: Recipe,
        facts: Mapping[str, object],
        *,
        earlier: Mapping[str, Split | None] = MappingProxyType({}),
    ) -> None:
        """Write what is known before the first epoch; the split, written later, makes it a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        # First, since it is the file that nobody else would have put there.
        write_json(self.environment_path, {**environment(), **facts})
        if earlier:
            write_json(self.earlier_path, dict(earlier))
        write_text(self.recipe_path, dump_recipe(recipe))


def check_writable(folder: Path) -> None:
    """Refuse a folder that can't be made or written into, with UsageError, before hours of work."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not place.is_dir():
        raise UsageError(f"{place} is a file; choose another folder with --out")
    try:
        with TemporaryDirectory(prefix=TEMPORARY, dir=place):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(
            f"{place}: can't write there ({reason}); choose another folder with --out"
        ) from None


def environment() -> dict[str, object]:
    """Return where a run took place: python, packages, processor, threads."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": processor_facts().get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def next_run_path(model: str, *, root: str | Path = "runs") -> Path:
    """Return the folder for the next unnamed run: runs/001-unet, runs/002-unet, ..."""
    names = [one.name for one in Path(root).iterdir()] if Path(root).is_dir() else []
    taken = [int(match[0]) for name in names if (match := re.match(r"\d+", name))]
    return Path(root) / f"{max(taken, default=0) + 1:03d}-{model}"
