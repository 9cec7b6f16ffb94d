"""Reading a bundle: nothing is believed before its hash is checked, nothing is ever unpickled."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import ValidationError

from binseg.errors import BundleError, UsageError, one_line
from binseg.packaging.bundle_files import (
    CARD,
    FILES,
    PLAIN_NAME,
    REFERENCE,
    SUMS,
    WEIGHTS,
    BundleFiles,
    find_files,
)
from binseg.packaging.card import FORMAT_VERSION, Card, describe_problems
from binseg.packaging.network_check import Port, check_onnx
from binseg.packaging.tensors import check_header, from_bytes
from binseg.storage import parse_json


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference sample: inputs, and the probability that fp32 torch gave when it was made."""

    input_NHWC: UInt8[np.ndarray, "N H W C"]
    probability_NHW: Float32[np.ndarray, "N H W"]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A checked bundle on disk; tensors are read when they are asked for, and checked again."""

    path: Path
    """The folder or the zip."""
    card: Card
    sha256: Mapping[str, str]
    """Hash of each file, by name."""

    def weights(self) -> dict[str, np.ndarray]:
        """Read the state dict: arrays by name.

        Raises:
            BundleError: the file was changed since the bundle was read.
        """
        return from_bytes(self.read_bytes(WEIGHTS), name=f"{self.path}: {WEIGHTS}")

    def reference(self) -> Reference:
        """Read the reference sample.

        Raises:
            BundleError: the file was changed, or doesn't fit the card.
        """
        name = f"{self.path}: {REFERENCE}"
        tensors = from_bytes(self.read_bytes(REFERENCE), name=name)
        if set(tensors) != {"input_NHWC", "probability_NHW"}:
            raise BundleError(f"{name} holds other tensors than a reference sample")
        reference = Reference(**tensors)
        if problem := check_reference(reference, self.card):
            raise BundleError(f"{name}: {problem}")
        return reference

    def network(self, name: str) -> bytes:
        """Read an exported network, which must be one of ours and fit the card.

        Args:
            name: `NETWORK` or `NETWORK_INT8`.

        Raises:
            BundleError: the file was changed, isn't a network that binseg exports
                (`check_onnx`), or takes and gives something else than the card says.
        """
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
        """Read one listed file; the bytes returned are the bytes that were hashed.

        Raises:
            BundleError: missing, or changed since the bundle was read.
        """
        data = find_files(self.path).read(name)
        if hashlib.sha256(data).hexdigest() != self.sha256[name]:
            raise BundleError(f"{self.path}: {name} changed while the bundle was in use")
        return data


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle.

    Every format version, newer ones included, keeps SHA256SUMS and a card.json with a
    `format_version`; so a bundle of the future is told from a damaged one.

    Args:
        path: the bundle's folder, its zip, or a run's folder that holds `bundle/`.

    Raises:
        BundleError: missing, cut off, edited, foreign, or of a newer format.
    """
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
        raise BundleError(
            f"{files.path}: the card claims inputs of {shape.height}x{shape.width}x"
            f"{shape.channels}; {REFERENCE} is cut off, or too small to hold one"
        )
    for name in sorted(set(sums) - {CARD}):
        _checked(files, name, sums)
    if card.id != card.identity(sums):
        raise BundleError(
            f"{files.path}: the id {card.id or '(none)'} on the card doesn't belong to these "
            "weights, networks and preprocessing; files of two bundles were mixed"
        )
    return Bundle(path=files.path, card=card, sha256=sums)


def check_reference(reference: Reference, card: Card) -> str | None:
    """Say what is wrong with a reference sample for this card, None where nothing is."""
    shape = card.preprocessing
    inputs, probability = reference.input_NHWC, reference.probability_NHW
    if inputs.dtype != np.uint8 or probability.dtype != np.float32:
        return f"types are {inputs.dtype} and {probability.dtype}, not uint8 and float32"
    num = len(inputs) if inputs.ndim == 4 else 0
    size = (num, shape.height, shape.width)
    if num == 0 or inputs.shape != (*size, shape.channels) or probability.shape != size:
        return (
            f"shapes {inputs.shape} and {probability.shape} don't fit an input of "
            f"{shape.height}x{shape.width}x{shape.channels}"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        return "probabilities lie outside [0, 1]"
    return None


def _parse_sums(files: BundleFiles) -> dict[str, str]:
    """Read hashes by file name; only lines that `write_bundle` writes are taken."""
    text = files.read(SUMS).decode("ascii", errors="replace")
    matches = [
        re.fullmatch(rf"([0-9a-f]{{64}})  ({PLAIN_NAME.pattern})", line)
        for line in text.removesuffix("\n").split("\n")
    ]
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
        raise BundleError(
            f"{files.path}: made by a newer binseg (format {version}, this one knows up to "
            f"{FORMAT_VERSION}); upgrade with: pip install --upgrade binseg"
        )
    try:
        return Card.model_validate_json(data)
    except (ValidationError, UsageError) as error:
        told = describe_problems(error) if isinstance(error, ValidationError) else str(error)
        raise BundleError(f"{files.path}: {CARD} is not a valid card: {told}") from None


def _checked(files: BundleFiles, name: str, sums: Mapping[str, str]) -> bytes:
    """Read a file whose hash, and whose header where it has one, must be right.

    The header comes first because it tells a file that is cut off from one that was changed.
    """
    data = files.read(name)
    if name.endswith(".safetensors"):
        check_header(data, name=f"{files.path}: {name}")
    if hashlib.sha256(data).hexdigest() != sums[name]:
        raise BundleError(
            f"{files.path}: {name} doesn't match its hash in {SUMS}: it was edited, cut off or "
            "damaged; copy or download the bundle again"
        )
    return data
