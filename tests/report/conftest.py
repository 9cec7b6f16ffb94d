"""A report of made-up images, with everything that a page can show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from binseg.metrics import (
    ProbabilityTally,
    count,
    count_objects,
    measure_outline,
    measure_reliability,
    score_image,
    summarise,
)
from binseg.report import GalleryItem
from binseg.report.page import Background, write_page
from binseg.types import Report

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "<!--<script>",
    "a&lt;b\u202egnp.exe\u2028",
    "bytes\udcff\x1b[31m",
    "${alert(1)}$style",
)
THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """A report, and the pixels that it comes from."""

    report: Report
    items: tuple[GalleryItem, ...]
    probability_NHW: np.ndarray
    truth_NHW: np.ndarray


def make_up(names: Sequence[str], *, side: int = 24, num_resamples: int = 50) -> MadeUp:
    """Score noisy discs; the first has no object and a false alarm, the second is missed."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] / side
    images, items, reliabilities, tally = [], [], [], ProbabilityTally()
    probabilities, truths = [], []
    for number, name in enumerate(names):
        top, left, radius = *random.uniform(0.35, 0.65, 2), random.uniform(0.15, 0.3)
        away_HW = np.hypot(rows - top, columns - left) - radius
        truth_HW = (away_HW < 0) & (number != 0 or len(names) == 1)
        noise_HW = random.normal(0, 1.2, (side, side))
        shift = -9 if number == 1 else random.uniform(-1.5, 1.5)
        probability_HW = (1 / (1 + np.exp(25 * away_HW + noise_HW - shift))).astype(np.float32)
        valid_HW = np.ones((side, side), dtype=bool)
        mask_HW = probability_HW > THRESHOLD
        tally.add(probability_HW, truth_HW, valid_HW)
        reliabilities.append(measure_reliability(probability_HW, truth_HW, valid_HW))
        counts = count(mask_HW, truth_HW, valid_HW)
        scored = score_image(
            name,
            {"original": counts, "model": counts},
            {"breed": f"breed {number % 3}", "<b>column</b>": "<i>value</i>"},
        )
        images.append(
            replace(
                scored,
                outline=measure_outline(mask_HW, truth_HW, valid_HW),
                objects=count_objects(mask_HW, truth_HW, valid_HW),
                probability=reliabilities[-1].scores,
            )
        )
        items.append(
            GalleryItem(
                id=name,
                image_HWC=(probability_HW[:, :, None] * [200, 150, 100]).astype(np.uint8),
                truth_HW=truth_HW,
                prediction_HW=mask_HW,
                valid_HW=valid_HW,
                dice=scored.scores["original"]["dice"],
            )
        )
        probabilities.append(probability_HW)
        truths.append(truth_HW)
    report = summarise(
        images,
        title="A <model> & its data",
        bundle_id="abc",
        split="test",
        threshold=THRESHOLD,
        border="foreground",
        reliabilities=reliabilities,
        tally=tally,
        num_resamples=num_resamples,
    )
    return MadeUp(
        report=report,
        items=tuple(items),
        probability_NHW=np.stack(probabilities),
        truth_NHW=np.stack(truths),
    )


@pytest.fixture(scope="session")
def made_up() -> MadeUp:
    """Seventy images, more than one page of a table, the last ones with hostile names."""
    plain = [f"image_{number}" for number in range(70 - len(HOSTILE))]
    return make_up([*plain, *HOSTILE])


@pytest.fixture(scope="session")
def page(made_up: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that report, with all its parts; read only."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    ranked = sorted(made_up.items, key=lambda item: item.dice or 0)
    hostile = [item for item in ranked if item.id in HOSTILE]
    write_page(
        path,
        report=made_up.report,
        galleries=[("Worst", ranked[:3]), ("<Others>", hostile)],
        background=Background(
            model=[("name", HOSTILE[0]), ("id", "abc")],
            data=[("path", "somewhere")],
            recipe="model:\n  name: <unet>\n",
            training=[
                {"epoch": n, "train_loss": 1 / n, "val_loss": 1.1 / n,
                 "train_dice": 1 - 0.5 / n, "val_dice": "" if n == 3 else 1 - 0.6 / n}
                for n in range(1, 9)
            ],
            threshold_method="tuned on validation",
        ),
    )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def invent() -> Callable[[Sequence[str]], MadeUp]:
    """The function that makes up a report of images with these names."""
    return make_up
