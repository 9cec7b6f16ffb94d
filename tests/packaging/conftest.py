"""A workbench that makes small bundles, damages them and sees them refused."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binseg.errors import BundleError
from binseg.packaging import (
    Architecture,
    Bundle,
    Card,
    DataFacts,
    Reference,
    Threshold,
    read_bundle,
    write_bundle,
)
from binseg.types import Preprocessing


class Bench:
    def card(self, **changes: Any) -> Card:
        facts: dict[str, Any] = {
            "name": "cats",
            "created": datetime(2026, 1, 2, tzinfo=UTC),
            "architecture": Architecture(
                decoder="unet", encoder="unet", options={"width": 4, "up": "transpose"}
            ),
            "preprocessing": Preprocessing(height=4, width=6),
            "threshold": Threshold(value=0.4, method="tuned on validation"),
            "data": DataFacts(kind="folder", num_train=7),
            "scores": {"val, original size": {"dice": 0.9}},
            "licence": "CC0-1.0",
            "recipe": {"train": {"epochs": 3}},
        }
        return Card(**(facts | changes))

    def weights(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {
            "b.weight": rng.normal(size=(2, 3, 3)).astype(np.float32),
            "a.bias": np.array([1, 2], np.float32),
            "n": np.asarray(5, np.int64),
        }

    def reference(self) -> Reference:
        rng = np.random.default_rng(1)
        return Reference(
            input_NHWC=rng.integers(0, 256, (2, 4, 6, 3), np.uint8),
            probability_NHW=rng.random((2, 4, 6), np.float32),
        )

    def write(self, folder: Path, **changes: Any) -> Bundle:
        return write_bundle(
            folder, card=self.card(**changes), weights=self.weights(), reference=self.reference()
        )

    def refused(self, path: Path, match: str = ".") -> str:
        """Read a bundle that must be refused with one line, and give the line."""
        with pytest.raises(BundleError, match=match) as caught:
            read_bundle(path)
        text = str(caught.value)
        assert text.isprintable(), text
        assert str(path) in text
        return text

    def forge(self, folder: Path, name: str, data: bytes) -> None:
        """Change a file and its hash alike, as an attacker would."""
        (folder / name).write_bytes(data)
        lines = [
            f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
            for name in sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
        ]
        (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def bench() -> Bench:
    return Bench()
