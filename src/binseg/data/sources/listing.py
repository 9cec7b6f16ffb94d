"""Contents of a folder, hidden files left out, and of JSON that someone else's tool wrote."""

import json
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NoReturn

from binseg.data.dataset import counted, name_some
from binseg.errors import DataError
from binseg.imageio import IMAGE_SUFFIXES
from binseg.storage import read_bytes, read_text
from binseg.types import Record, Ring

MAX_NAME = 255  # Bytes of a file's name on every system
_MADE_BY_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Result of a source: the records, sentences for the user, and what a layout tells of masks."""

    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # Values of each
    ignore: frozenset[int] = frozenset()
    is_trimap: bool = False


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files under one folder, sorted."""

    images: tuple[Path, ...]
    others: tuple[Path, ...]


def list_folder(folder: Path, *, deep: bool = True) -> Listing:
    """List a folder's files, if `deep` of those in it too; linked ones are followed, but once."""
    images: list[Path] = []
    others: list[Path] = []
    seen = {*real_path(folder).parents}
    # What a link leads to comes last, so that a folder is listed where it really is.
    waiting = [folder]
    for top in waiting:
        for parent, folders, names in os.walk(top, onerror=_refuse):
            folders[:] = [name for name in folders if deep and not _is_hidden(name)]
            if real_path(parent) in seen:
                folders.clear()
                continue
            seen.add(real_path(parent))
            waiting += [path for name in folders if (path := Path(parent, name)).is_symlink()]
            for name in names:
                if not _is_hidden(name):
                    path = Path(parent, name)
                    (images if _is_image(name) else others).append(path)
    return Listing(images=tuple(sorted(images)), others=tuple(sorted(others)))


def _is_image(name: str) -> bool:
    suffix = PurePath(name.lower()).suffix
    return suffix in IMAGE_SUFFIXES and (suffix != ".gz" or name.lower().endswith(".nii.gz"))


def stem_of(path: Path) -> str:
    """Give a file's name without its ending, which may be .nii.gz, as `composed`."""
    stem = path.stem.removesuffix(".nii") if path.suffix.lower() == ".gz" else path.stem
    return composed(stem)


def composed(name: str) -> str:
    """Write letters with accents as one sign, not as two, as they come from a Mac."""
    return unicodedata.normalize("NFC", name)


def real_path(folder: str | Path) -> Path:
    """Resolve a folder, links followed; unlike `resolve` it takes links to themselves."""
    return Path(os.path.realpath(folder))


def subfolders(folder: Path) -> list[Path]:
    """List the folders directly in a folder, without hidden ones."""
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))
    except OSError as error:
        _refuse(error)


def ignored_note(files: Iterable[Path], root: Path) -> tuple[str, ...]:
    """Say which files were ignored because they are no images; nothing where there are none."""
    names = [path.relative_to(root).as_posix() for path in files]
    if not names:
        return ()
    ignored = counted(len(names), "file that is not an image", "files that are not images")
    return (f"ignored {ignored}: {name_some(names)}",)


def inside(folder: Path, name: str) -> Path | None:
    """Give the path of a name that a file here holds; None where it leads out, as by `..`."""
    if max(map(len, os.fsencode(name.strip()).split(b"/"))) > MAX_NAME:
        raise DataError(f"a name of {len(name)} letters ({name[:40]}...) can't be a file's")
    path = Path(os.path.normpath(folder / posix(name.strip())))
    home = Path(os.path.abspath(folder))  # noqa: PTH100  (resolve would follow the links)
    return path if Path(os.path.abspath(path)).is_relative_to(home) else None  # noqa: PTH100


def posix(name: str) -> str:
    r"""Write a file's name as here, where a program on Windows wrote it.

    >>> posix(r"images\a.png")
    'images/a.png'
    """
    return PureWindowsPath(name).as_posix() if "\\" in name else name


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _MADE_BY_SYSTEMS


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: the folder can't be read: {error.strerror}") from None


def read_value(path: Path) -> Any:
    """Read whatever a JSON file holds."""
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON: {error.msg} in line {error.lineno}") from None
    except ValueError:  # a number of thousands of digits
        raise DataError(f"{path}: holds a number that is too long to be read") from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deeply to be annotations") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises as `read_value`, and for anything else."""
    content = read_value(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a list or a value, not annotations (an object)")
    return content


def read_lines(path: Path) -> list[str]:
    """Read a list: its lines, without those that are empty."""
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path}: the list can't be read as UTF-8 text") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def find_files(path: Path, *suffixes: str) -> list[Path]:
    """Find the files of these endings: the one named, those in a folder, or else in its folders."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in suffixes else []
    for deep in (False, True):
        others = list_folder(path, deep=deep).others
        if found := [one for one in others if one.suffix.lower() in suffixes]:
            return found
    return []


def holds(path: Path, *words: str) -> bool:
    """Tell whether a file of annotations has these words in it, without parsing it."""
    if path.suffix.lower() not in {".json", ".geojson", ".xml", ".ndjson"}:
        return False
    try:
        content = read_bytes(path)
    except OSError:
        # Reading it as what it was asked for will say why it can't be read.
        return False
    return all(word.encode() in content for word in words)


def ring_of(points: object) -> Ring:
    """Read [[x, y], ...] or [x, y, x, y, ...] as a ring; ValueError for anything else."""
    if not isinstance(points, list):
        raise ValueError("is not a list of points")  # noqa: TRY004  # the file's fault, not a type's
    is_nested = bool(points) and all(isinstance(p, list) and len(p) == 2 for p in points)
    flat = [v for point in points for v in point] if is_nested else points
    if len(flat) % 2:
        raise ValueError("has an x without a y")
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in flat):
        raise ValueError("holds something that is no number")
    return tuple(zip(map(float, flat[::2]), map(float, flat[1::2]), strict=True))
