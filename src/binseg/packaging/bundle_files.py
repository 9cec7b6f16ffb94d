"""Files of a bundle, read from a folder or from a zip that is never unpacked to disk; tensors."""

import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from binseg.errors import BundleError, one_line
from binseg.storage import alike

CARD = "card.json"
WEIGHTS = "weights.safetensors"
REFERENCE = "reference.safetensors"
SUMS = "SHA256SUMS"
NETWORK, NETWORK_INT8, PROOFS = "network.onnx", "network-int8.onnx", "proofs.json"
"""Files that `binseg export --to bundle` adds: the network for other runtimes, and the proof."""
FILES = frozenset({CARD, WEIGHTS, REFERENCE, SUMS, NETWORK, NETWORK_INT8, PROOFS})
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Largest sizes that are read: far above what we write, far below what would hurt.
_LIMITS = {SUMS: 2**16, CARD: 2**22, REFERENCE: 2**30}
_LIMIT = 2**32
_MAX_MEMBERS = 10_000
_MAX_RATIO = 100
_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, UnicodeError)


@dataclass(frozen=True, kw_only=True)
class BundleFiles:
    """A bundle's files by name, in a folder or the `members` of a zip; raises BundleError."""

    path: Path
    members: Mapping[str, zipfile.ZipInfo] | None = None

    def size(self, name: str) -> int:
        """Return the length of a file in bytes, as the folder or the zip declares it."""
        missing = BundleError(f"{self.path}: {name} is missing; the bundle is incomplete")
        if self.members is None:
            try:
                found = (self.path / name).stat()
            except FileNotFoundError:
                raise missing from None
            except OSError as error:
                raise self._unreadable(name, error) from None
            # A pipe or device in a file's place would block for ever or never end.
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(f"{self.path}: {name} is not an ordinary file")
            size = found.st_size
        elif name not in self.members:
            raise missing
        else:
            size, packed = self.members[name].file_size, self.members[name].compress_size
            # Zip bombs declare gigabytes in a few kilobytes; weights hardly compress at all.
            if size > 2**20 and size > _MAX_RATIO * packed:
                told = f"unpacks to more than {_MAX_RATIO} times its packed size; no bundle does"
                raise BundleError(f"{self.path}: {name} {told}")
        limit = _LIMITS.get(name, _LIMIT)
        if size > limit:
            raise BundleError(f"{self.path}: {name} has {size} bytes; at most {limit} are read")
        return size

    def read(self, name: str) -> bytes:
        """Read a whole file, in one piece: joining pieces of a large one takes as long again."""
        size = self.size(name)
        try:
            if self.members is None:
                with (self.path / name).open("rb") as file:
                    data = file.read(size + 1)
            else:
                # zipfile itself stops at the declared size.
                with zipfile.ZipFile(self.path) as archive, archive.open(self.members[name]) as one:
                    data = one.read(size + 1)
        except _DAMAGE as error:
            raise self._unreadable(name, error) from None
        if len(data) > size:
            raise BundleError(f"{self.path}: {name} grew while it was read")
        return data

    def _unreadable(self, name: str, error: Exception) -> BundleError:
        return BundleError(f"{self.path}: can't read {name} ({_reason(error)})")


def find_files(path: Path) -> BundleFiles:
    """Find the bundle at a path: the folder itself, its `bundle/`, or a zip; or BundleError."""
    try:
        if path.is_dir():
            return _find_in_folder(path)
        if path.is_file():
            return _find_in_zip(path)
    except _DAMAGE as error:
        raise BundleError(f"{path}: can't be read ({_reason(error)})") from None
    raise BundleError(
        f"{path}: there is no such bundle{alike(path)}; give a bundle's folder, its .zip, or a "
        "run's folder"
    )


def _find_in_folder(path: Path) -> BundleFiles:
    for folder in (path, path / "bundle"):
        if (folder / CARD).exists() or (folder / SUMS).exists():
            return BundleFiles(path=folder)
    if (path / "recipe.yaml").exists():
        raise BundleError(f"{path}: this run has no bundle yet; training writes it when it ends")
    raise BundleError(
        f"{path}: not a bundle: neither it nor its folder bundle/ holds {CARD} and {SUMS}"
    )


def _find_in_zip(path: Path) -> BundleFiles:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"
        kind = "a PyTorch checkpoint or another program's file" if is_pickle else "no zip"
        told = "binseg reads a bundle's folder or .zip, and never unpickles"
        raise BundleError(f"{path}: not a bundle ({kind}, or one that is cut off); {told}")
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise BundleError(f"{path}: {len(infos)} files in one zip; a bundle has a handful")
    names = [info.filename for info in infos]
    for info in infos:
        _check_member(path, info)
    if len(set(names)) != len(names):
        raise BundleError(f"{path}: two files of one name in the zip; it is damaged or forged")
    cards = [name for name in names if f"/{name}".endswith(f"/{CARD}")]
    if len(cards) != 1:
        found = "no" if not cards else str(len(cards))
        hint = " (a PyTorch checkpoint?)" if any(n.endswith("data.pkl") for n in names) else ""
        raise BundleError(f"{path}: not a bundle{hint}: the zip holds {found} {CARD}")
    folder = cards[0].removesuffix(CARD)
    inside = [one for one in infos if one.filename.startswith(folder)]
    members = {one.filename.removeprefix(folder): one for one in inside}
    return BundleFiles(path=path, members=members)


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuse links, and names that would leave the folder where other programs unpack them."""
    # zipfile has already cut names at NUL and turned the system's separators; the rest is ours.
    name = info.filename
    parts = name.split("/")
    if "\\" in name or name.startswith("/") or ":" in parts[0] or ".." in parts:
        raise BundleError(f"{path}: the zip holds the unsafe name {name[:100]!r}; it is refused")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise BundleError(f"{path}: the zip holds the link {name[:100]!r}; links are refused")
    if info.flag_bits & 0x1:
        raise BundleError(f"{path}: the zip is encrypted; unpack it and give the folder")


def _reason(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) else None
    return one_line(told or str(error) or type(error).__name__)


def to_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Pack tensors into the bytes of one safetensors file; equal tensors give equal bytes."""
    # safetensors reads from the data pointer on, so strided views must be made dense first
    # (asarray, because ascontiguousarray would turn a number into a vector).
    return save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)})


def from_bytes(data: bytes, *, name: str) -> dict[str, np.ndarray]:
    """Unpack a safetensors file, `name` in the BundleError, into arrays that own their memory."""
    try:
        tensors = load(data).items()
        return {key: one if one.flags.writeable else one.copy() for key, one in tensors}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BundleError(
            f"{name}: cut off, damaged, or no safetensors file ({one_line(str(error))})"
        ) from None
