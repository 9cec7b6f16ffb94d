"""Reading and writing a bundle.

Nothing is believed before its hash is checked, nothing is ever unpickled; a bundle is written whole
or not at all, and never over something that isn't one.
"""

import hashlib
import re
import secrets
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, UInt
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from binseg.errors import BundleError, OutputError, UsageError, one_line
from binseg.packaging.card import (
    CARD,
    FILES,
    FORMAT_VERSION,
    NETWORK,
    NETWORK_INT8,
    PROOFS,
    REFERENCE,
    SUMS,
    WEIGHTS,
    Card,
    describe_problems,
)
from binseg.packaging.network_check import Port, check_onnx
from binseg.storage import alike, atomic_path, parse_json, publish

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


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference sample: inputs, and the probability that fp32 torch gave when it was made."""

    input_NHWC: UInt[np.ndarray, "N H W C"]
    probability_NHW: Float32[np.ndarray, "N H W"]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A checked bundle at `path`; its files are checked again when read, or BundleError."""

    path: Path
    card: Card
    sha256: Mapping[str, str]

    def weights(self) -> dict[str, np.ndarray]:
        """Read the state dict: arrays by name."""
        return from_bytes(self.read_bytes(WEIGHTS), name=f"{self.path}: {WEIGHTS}")

    def reference(self) -> Reference:
        """Read the reference sample."""
        name = f"{self.path}: {REFERENCE}"
        tensors = from_bytes(self.read_bytes(REFERENCE), name=name)
        if set(tensors) != {"input_NHWC", "probability_NHW"}:
            raise BundleError(f"{name} holds other tensors than a reference sample")
        reference = Reference(**tensors)
        if problem := _misfit(reference, self.card):
            raise BundleError(f"{name}: {problem}")
        return reference

    def network(self, name: str) -> bytes:
        """Read an exported network, `NETWORK` or `NETWORK_INT8`, as only binseg exports them."""
        data = self.read_bytes(name)
        given, made = check_onnx(data, name=f"{self.path}: {name}")
        shape = self.card.preprocessing
        sides = (None, None) if shape.resize == "tile" else (shape.height, shape.width)
        wanted = Port(name="inputs", type="float32", shape=(None, shape.channels, *sides))
        if given != wanted or (made.name, made.type, len(made.shape)) != ("logits", "float32", 4):
            raise BundleError(
                f"{self.path}: {name} takes {given.shape} {given.type} and gives "
                f"{one_line(made.name, limit=40)}, which isn't what the card says; export the "
                "model again"
            )
        return data

    def read_bytes(self, name: str) -> bytes:
        """Read one listed file; the bytes returned are the bytes that were hashed."""
        data = find_files(self.path).read(name)
        if _sha256(data) != self.sha256[name]:
            raise BundleError(f"{self.path}: {name} changed while the bundle was in use")
        return data


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle: its folder, its zip, or a run's folder. Raises BundleError."""
    files = find_files(Path(path))
    sums = _parse_sums(files)
    card = _parse_card(_checked(files, CARD, sums), files)
    for name in (WEIGHTS, REFERENCE):
        if name not in sums:
            raise BundleError(f"{files.path}: {SUMS} doesn't list {name}")
    if unknown := sorted(set(sums) - FILES):
        raise BundleError(f"{files.path}: {SUMS} lists {unknown[0]}, which is no bundle's file")
    shape = card.preprocessing
    if files.size(REFERENCE) < shape.height * shape.width * (shape.channels + 4):
        # So nobody claims inputs larger than those that the bundle brings.
        claimed = f"{shape.height}x{shape.width}x{shape.channels}"
        told = f"the card claims inputs of {claimed}"
        raise BundleError(f"{files.path}: {told}; {REFERENCE} is cut off, or too small to hold one")
    for name in sorted(set(sums) - {CARD}):
        _checked(files, name, sums)
    if card.id != card.identity(sums):
        told = f"the id {card.id or '(none)'} on the card doesn't belong to these weights, networks"
        raise BundleError(
            f"{files.path}: {told} and preprocessing; files of two bundles were mixed"
        )
    return Bundle(path=files.path, card=card, sha256=sums)


def write_bundle(
    folder: Path,
    *,
    card: Card,
    weights: Mapping[str, np.ndarray],
    reference: Reference,
    extra: Mapping[str, bytes] = MappingProxyType({}),
) -> Bundle:
    """Write a bundle into a folder, atomically, in place of an older one; give it, with its id.

    `extra` are further files by name. Raises BundleError (weights that aren't finite, a sample that
    doesn't fit the card) and OutputError (the folder holds something else, or the disk).
    """
    folder = Path(folder)
    contents = _contents(card, weights, reference, extra)
    # A link stays a link: the folder that it names is the one to replace.
    target = folder.resolve() if folder.is_symlink() or not folder.name else folder
    _check_replaceable(target)
    temporary = target.parent / f".tmp-{secrets.token_hex(6)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, data in contents.items():
            (temporary / name).write_bytes(data)
        bundle = read_bundle(temporary)
        publish(temporary, target)
    except OSError as error:
        raise OutputError(f"{folder}: can't write the bundle ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return replace(bundle, path=folder)


def revise_card(bundle: Bundle, facts: Mapping[str, object]) -> Bundle:
    """Write a bundle again with other facts on the card; its id stays. BundleError, OutputError."""
    card = bundle.card.model_copy(update=dict(facts))
    if bundle.path.is_dir():
        return rewritten(bundle, bundle.path, card)
    with tempfile.TemporaryDirectory() as scratch:
        return read_bundle(pack_zip(rewritten(bundle, Path(scratch) / "bundle", card), bundle.path))


def rewritten(bundle: Bundle, folder: Path, card: Card) -> Bundle:
    """Write a bundle's weights, reference sample and networks into a folder with another card."""
    further = {NETWORK, NETWORK_INT8, PROOFS} & set(bundle.sha256)
    extra = {name: bundle.read_bytes(name) for name in further}
    weights, reference = bundle.weights(), bundle.reference()
    return write_bundle(folder, card=card, weights=weights, reference=reference, extra=extra)


def pack_zip(bundle: Bundle, path: Path) -> Path:
    """Write a bundle as one zip file, atomically; equal ones give equal bytes. OutputError."""
    contents = {name: bundle.read_bytes(name) for name in bundle.sha256}
    contents[SUMS] = _sums(bundle.sha256)
    path = Path(path)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(contents):
            # Fixed time, system and rights: nothing but the bundle decides the bytes. Weights
            # hardly compress, and a stored file can't be a bomb.
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, contents[name], compress_type=zipfile.ZIP_STORED)
    return path


def _misfit(reference: Reference, card: Card) -> str | None:
    """Say how a reference sample doesn't fit the card; None where it does."""
    shape = card.preprocessing
    inputs, probability = reference.input_NHWC, reference.probability_NHW
    if inputs.dtype != shape.pixel_type or probability.dtype != np.float32:
        return (
            f"types are {inputs.dtype} and {probability.dtype}, not {shape.pixel_type} and float32"
        )
    num = len(inputs) if inputs.ndim == 4 else 0
    size = (num, shape.height, shape.width)
    if num == 0 or inputs.shape != (*size, shape.channels) or probability.shape != size:
        wanted = f"{shape.height}x{shape.width}x{shape.channels}"
        return f"shapes {inputs.shape} and {probability.shape} don't fit an input of {wanted}"
    if not ((probability >= 0) & (probability <= 1)).all():
        return "probabilities lie outside [0, 1]"
    return None


def _parse_sums(files: BundleFiles) -> dict[str, str]:
    """Read hashes by file name; only lines that `write_bundle` writes are taken."""
    text = files.read(SUMS).decode("ascii", errors="replace")
    line = re.compile(rf"([0-9a-f]{{64}})  ({PLAIN_NAME.pattern})")
    matches = [*map(line.fullmatch, text.removesuffix("\n").split("\n"))]
    sums = {match[2]: match[1] for match in matches if match}
    if len(sums) != len(matches) or not text.endswith("\n") or CARD not in sums or SUMS in sums:
        raise BundleError(f"{files.path}: {SUMS} is damaged or was not written by binseg")
    return sums


def _parse_card(data: bytes, files: BundleFiles) -> Card:
    try:
        raw = parse_json(data)
    except ValueError as error:
        raise BundleError(f"{files.path}: {CARD} is not JSON ({one_line(str(error))})") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if type(version) is not int:
        raise BundleError(f"{files.path}: {CARD} states no format version; not a binseg card")
    if version > FORMAT_VERSION:
        told = f"made by a newer binseg (format {version}, this one knows up to {FORMAT_VERSION})"
        raise BundleError(f"{files.path}: {told}; upgrade with: pip install --upgrade binseg")
    try:
        return Card.model_validate_json(data)
    except (ValidationError, UsageError) as error:
        told = describe_problems(error) if isinstance(error, ValidationError) else str(error)
        raise BundleError(f"{files.path}: {CARD} is not a valid card: {told}") from None


def _checked(files: BundleFiles, name: str, sums: Mapping[str, str]) -> bytes:
    """Read a file whose hash must be right; tensors first, which tell a file that is cut off."""
    data = files.read(name)
    if name.endswith(".safetensors"):
        from_bytes(data, name=f"{files.path}: {name}")
    if _sha256(data) != sums[name]:
        told = f"{name} doesn't match its hash in {SUMS}: it was edited, cut off or damaged"
        raise BundleError(f"{files.path}: {told}; copy or download the bundle again")
    return data


def _contents(
    card: Card, weights: Mapping[str, np.ndarray], reference: Reference, extra: Mapping[str, bytes]
) -> dict[str, bytes]:
    for name, tensor in weights.items():
        if not np.isfinite(tensor).all():
            told = "hold NaN or infinity: training diverged; lower the learning rate"
            raise BundleError(f"weights {name} {told}")
    if problem := _misfit(reference, card):
        raise BundleError(f"the reference sample doesn't fit the card: {problem}")
    assert set(extra) <= {NETWORK, NETWORK_INT8, PROOFS}, "a file of no known purpose"
    contents = {WEIGHTS: to_bytes(weights), REFERENCE: to_bytes(vars(reference)), **extra}
    sha256 = {name: _sha256(data) for name, data in contents.items()}
    contents[CARD] = card.model_copy(update={"id": card.identity(sha256)}).to_json()
    sha256[CARD] = _sha256(contents[CARD])
    return {**contents, SUMS: _sums(sha256)}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sums(sha256: Mapping[str, str]) -> bytes:
    return "".join(f"{sha256[name]}  {name}\n" for name in sorted(sha256)).encode()


def _check_replaceable(folder: Path) -> None:
    try:
        if not folder.exists() and not folder.is_symlink():
            return
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise OutputError(f"{folder}: can't write a bundle there ({error.strerror})") from None
    foreign = sorted(names - FILES)
    if foreign or (names and SUMS not in names):
        told = f"holds {[*foreign, *sorted(names)][0]}, so it isn't just an older bundle"
        raise OutputError(f"{folder}: {told}; nothing was overwritten: give another folder")
