"""Writing a bundle: whole or not at all, and never over something that isn't one."""

import hashlib
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from binseg.errors import BundleError, OutputError
from binseg.packaging.bundle import Bundle, Reference, check_reference, read_bundle
from binseg.packaging.bundle_files import (
    CARD,
    FILES,
    NETWORK,
    NETWORK_INT8,
    PROOFS,
    REFERENCE,
    SUMS,
    WEIGHTS,
)
from binseg.packaging.card import Card
from binseg.packaging.tensors import to_bytes
from binseg.storage import atomic_path, publish


def write_bundle(
    folder: Path,
    *,
    card: Card,
    weights: Mapping[str, np.ndarray],
    reference: Reference,
    extra: Mapping[str, bytes] = MappingProxyType({}),
) -> Bundle:
    """Write a bundle into a folder, atomically; an older bundle there is replaced.

    The files are written to a hidden folder beside it, read back, forced to disk, and only then
    renamed: whatever stops this, the final name holds a whole bundle or what it held before.

    Args:
        folder: where to; absent, empty, or an older bundle.
        card: facts of the model; its id is filled in.
        weights: the state dict, finite.
        reference: a sample at the model's input size and its fp32 probability.
        extra: further files by name: the network for other runtimes, and its proof.

    Raises:
        BundleError: weights that aren't finite, or a reference sample that doesn't fit the card.
        OutputError: the folder holds something else, or can't be written.
    """
    folder = Path(folder)
    contents = _contents(card, weights, reference, extra)
    # A link stays a link: the folder that it names is the one to replace.
    target = folder.resolve() if folder.is_symlink() or not folder.name else folder
    _check_replaceable(target)
    temporary = target.parent / f"{_scrap_prefix(target)}{secrets.token_hex(6)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        with _in_use(temporary):
            for name, data in contents.items():
                (temporary / name).write_bytes(data)
            bundle = read_bundle(temporary)
            publish(temporary, target)
        _remove_scraps(target)
    except OSError as error:
        raise OutputError(f"{folder}: can't write the bundle ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return replace(bundle, path=folder)


def pack_zip(bundle: Bundle, path: Path) -> Path:
    """Write a bundle as one zip file, atomically; equal bundles give equal bytes.

    Args:
        bundle: what to pack.
        path: the zip to write; replaced where it exists.

    Raises:
        BundleError: the bundle was changed since it was read.
        OutputError: the zip can't be written.
    """
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


def _contents(
    card: Card, weights: Mapping[str, np.ndarray], reference: Reference, extra: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Make the bytes of every file of the bundle, by name."""
    for name, tensor in weights.items():
        if not np.isfinite(tensor).all():
            raise BundleError(
                f"weights {name} hold NaN or infinity: training diverged; lower the learning rate"
            )
    if problem := check_reference(reference, card):
        raise BundleError(f"the reference sample doesn't fit the card: {problem}")
    assert set(extra) <= {NETWORK, NETWORK_INT8, PROOFS}, "a file of no known purpose"
    contents = {
        WEIGHTS: to_bytes(weights),
        REFERENCE: to_bytes(
            {"input_NHWC": reference.input_NHWC, "probability_NHW": reference.probability_NHW}
        ),
        **extra,
    }
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    contents[CARD] = card.model_copy(update={"id": card.identity(sha256)}).to_json()
    sha256[CARD] = hashlib.sha256(contents[CARD]).hexdigest()
    return {**contents, SUMS: _sums(sha256)}


def _sums(sha256: Mapping[str, str]) -> bytes:
    """Write the text of SHA256SUMS, as `sha256sum -c` reads it."""
    return "".join(f"{sha256[name]}  {name}\n" for name in sorted(sha256)).encode()


def _check_replaceable(folder: Path) -> None:
    """Refuse a target that holds anything but an older bundle.

    An older bundle may be damaged: it has our two files, and nothing that isn't a bundle's.
    """
    try:
        if not folder.exists() and not folder.is_symlink():
            return
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise OutputError(f"{folder}: can't write a bundle there ({error.strerror})") from None
    foreign = sorted(names - FILES)
    if foreign or (names and SUMS not in names):
        found = foreign[0] if foreign else sorted(names)[0]
        raise OutputError(
            f"{folder}: holds {found}, so it isn't just an older bundle; nothing was overwritten: "
            "give another folder"
        )


def _scrap_prefix(target: Path) -> str:
    return f".tmp-{target.name[:100]}-"


@contextmanager
def _in_use(folder: Path) -> Iterator[bool]:
    """Hold a lock on a temporary folder that ends with its process; yield whether we have it."""
    handle, held = None, False
    # Where there are no such locks, scraps of killed writers stay, and nothing else is different.
    with suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    try:
        yield held
    finally:
        if handle is not None:
            os.close(handle)


def _remove_scraps(target: Path) -> None:
    """Remove what writers of this bundle left that were killed in the middle."""
    for scrap in target.parent.iterdir():
        if scrap.name.startswith(_scrap_prefix(target)):
            with _in_use(scrap) as ours:
                if ours:
                    shutil.rmtree(scrap, ignore_errors=True)
