"""Which exported networks have answered their reference sample rightly on this machine."""

import hashlib
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from binseg.errors import OutputError
from binseg.packaging import NETWORK, NETWORK_INT8, Bundle
from binseg.storage import cache_dir, write_bytes

__all__ = ["is_verified", "remember_verified"]


def is_verified(bundle: Bundle, runtime: str, precision: str) -> bool:
    """Whether this very network passed in this runtime's version on this processor."""
    return _mark(bundle, runtime, precision).is_file()


def remember_verified(bundle: Bundle, runtime: str, precision: str) -> None:
    """Note that it passed; where the cache can't be written, it is verified again next time."""
    mark = _mark(bundle, runtime, precision)
    with suppress(OutputError):
        write_bytes(mark, b"")


def _mark(bundle: Bundle, runtime: str, precision: str) -> Path:
    network = bundle.sha256[NETWORK_INT8 if precision == "int8" else NETWORK]
    try:
        release = version(runtime)
    except PackageNotFoundError:  # built from source, or of another distribution's name
        release = "unknown"
    facts = (network, bundle.card.id, runtime, release, precision, _processor())
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    return cache_dir() / "verified" / name


def _processor() -> str:
    """Name of the processor with its flags, which decide how a runtime computes."""
    lines = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = text.partition("\n\n")[0]
    wanted = ("model name", "flags", "features", "cpu part")
    kept = [line for line in lines.splitlines() if line.lower().startswith(wanted)]
    return "\n".join(kept) or f"{platform.machine()} {platform.processor()}"
