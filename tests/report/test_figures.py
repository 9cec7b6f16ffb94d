"""Curves, histograms and galleries: whole PNG files, no global state, nothing cut off."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from binseg.errors import MissingExtraError, OutputError
from binseg.report import GalleryItem, plot_curves, plot_gallery, plot_histogram, plots
from binseg.report.plots import best_epoch

Row = dict[str, float | str | None]


def rows(num: int) -> list[Row]:
    return [
        {
            "epoch": epoch,
            "lr": 1e-3 / epoch,
            "train_loss": 1 / epoch,
            "train_dice": 1 - 0.5 / epoch,
            "val_loss": 1.2 / epoch + 0.01 * epoch,
            "val_dice": 0.95 - 0.5 / epoch - 0.01 * abs(epoch - 7),
        }
        for epoch in range(1, num + 1)
    ]


def item(name: str = "cat", *, height: int = 24, width: int = 24, **changes: Any) -> GalleryItem:
    random = np.random.default_rng(0)
    truth = np.zeros((height, width), dtype=bool)
    truth[: height // 2] = True
    given: dict[str, Any] = {
        "id": name,
        "image_HWC": random.integers(0, 255, size=(height, width, 3), dtype=np.uint8),
        "truth_HW": truth,
        "valid_HW": np.ones_like(truth),
        "prediction_HW": truth.T if height == width else ~truth,
        "dice": 0.5,
    }
    return GalleryItem(**(given | changes))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, kept for a look inside."""
    kept: list[Figure] = []
    original = plots.save_figure

    def keep(drawn_figure: Figure, path: Path) -> None:
        kept.append(drawn_figure)
        original(drawn_figure, path)

    for module in ("plots", "overlay"):
        # By the module itself: in the package, `overlay` is the function.
        monkeypatch.setattr(sys.modules[f"binseg.report.{module}"], "save_figure", keep)
    return kept


def assert_nothing_clipped(drawn_figure: Figure) -> None:
    """All that is drawn lies inside the page."""
    drawn_figure.draw_without_rendering()
    box = drawn_figure.get_tightbbox()
    width, height = drawn_figure.get_size_inches()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.size


@pytest.mark.parametrize("num", [1, 2, 13, 300])
def test_curves_of_any_length(tmp_path: Path, drawn: list[Figure], num: int) -> None:
    """One epoch or three hundred: ticks at whole epochs of the run only, nothing cut off."""
    plot_curves(rows(num), tmp_path / "curves.png", title="a $title$ with_100%")
    assert size_of(tmp_path / "curves.png")[0] > 1000
    assert_nothing_clipped(drawn[0])
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == int(tick) and 1 <= tick <= num for tick in ticks)


def test_curves_show_their_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    """The lines hold the rows' figures, and the best validation epoch is marked in each panel."""
    plot_curves(rows(13), tmp_path / "curves.png")
    loss, dice, rate = drawn[0].axes
    assert loss.lines[1].get_ydata() == pytest.approx([row["val_loss"] for row in rows(13)])
    assert dice.lines[0].get_ydata() == pytest.approx([row["train_dice"] for row in rows(13)])
    assert rate.lines[0].get_ydata() == pytest.approx([row["lr"] for row in rows(13)])
    best = max(rows(13), key=lambda row: float(row["val_dice"] or 0))
    for axes in (loss, dice, rate):
        assert best["epoch"] in [line.get_xdata()[0] for line in axes.lines[1:]]  # type: ignore[index]
    assert f"{best['val_dice']:.4f}" in dice.get_title(loc="left")


def test_curves_from_a_csv_with_gaps(tmp_path: Path, drawn: list[Figure]) -> None:
    """Text from a CSV is read as numbers; an empty or absent figure is a gap, not a zero."""
    texts = [{name: str(value) for name, value in row.items()} for row in rows(3)]
    texts[1]["val_dice"] = ""
    del texts[2]["train_dice"]
    plot_curves(texts, tmp_path / "curves.png")
    dice = drawn[0].axes[1]
    assert np.isnan(np.asarray(dice.lines[1].get_ydata())).tolist() == [False, True, False]
    assert np.isnan(np.asarray(dice.lines[0].get_ydata())).tolist() == [False, False, True]


def test_curves_without_validation(tmp_path: Path) -> None:
    """A run that never got to a validation figure has curves, and no best epoch."""
    bare: list[Row] = [{"epoch": 1, "lr": 1e-3, "train_loss": 0.5}]
    plot_curves(bare, tmp_path / "curves.png")
    assert best_epoch(bare) is None


def test_best_epoch_by_loss() -> None:
    """Where the loss chooses, the lowest is best."""
    assert best_epoch([{"val_loss": 0.5}, {"val_loss": 0.2}, {}], monitor="loss") == 1


@pytest.mark.parametrize(
    "scores", [[0.31], [0.0, 1.0], [1.0] * 40, np.random.default_rng(0).random(2000).tolist()]
)
def test_histogram_counts_every_image(
    tmp_path: Path, drawn: list[Figure], scores: list[float]
) -> None:
    """The bars add up to the number of images; mean, median and the poor ones are told."""
    plot_histogram(scores, tmp_path / "histogram.png", title="Dice of each image")
    assert_nothing_clipped(drawn[0])
    axes = drawn[0].axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == len(scores)  # type: ignore[attr-defined]
    told = " ".join(text.get_text() for text in axes.get_legend().get_texts())  # type: ignore[union-attr]
    assert f"mean {np.mean(scores):.4f}" in told
    assert f"median {np.median(scores):.4f}" in told
    assert f"below 0.5: {sum(s < 0.5 for s in scores)} of {len(scores)}" in told


@pytest.mark.parametrize(("num", "blocks"), [(1, 1), (8, 1), (9, 2), (24, 2)])
def test_gallery_of_any_number(tmp_path: Path, drawn: list[Figure], num: int, blocks: int) -> None:
    """Each image has four panels and its Dice; from 9 on in two blocks."""
    plot_gallery([item(f"cat {i}") for i in range(num)], tmp_path / "g.png", title="Validation")
    assert_nothing_clipped(drawn[0])
    assert len(drawn[0].axes) == 4 * num
    texts = [text.get_text() for text in drawn[0].texts]
    assert sum("Dice 0.500" in text for text in texts) == num
    assert texts.count("error map") == blocks
    width, height = size_of(tmp_path / "g.png")
    assert max(width, height) < 4000


def test_gallery_of_strange_images(tmp_path: Path, drawn: list[Figure]) -> None:
    """Tiny, thin, large, 16-bit and 5-channel images, odd names and ignored pixels all fit in."""
    random = np.random.default_rng(0)
    invalid = np.zeros((24, 24), dtype=bool)
    odd = [
        item(height=1, width=1),
        item(height=2, width=3000),
        item(height=900, width=700),
        item(image_HWC=random.integers(0, 65535, (24, 24, 1)).astype(np.uint16)),
        item(image_HWC=random.random((24, 24, 5), dtype=np.float32)),
        item("a_very_long_name_" * 20 + "$x^2$.tif", valid_HW=invalid),
        item("\u8c93/0001.png"),
    ]
    plot_gallery(odd, tmp_path / "g.png", title="$odd$ \u8c93")
    assert_nothing_clipped(drawn[0])
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["found", "missed", "extra", "ignored"]


def test_drawing_leaves_no_trace(tmp_path: Path) -> None:
    """Neither importing the room nor drawing touches pyplot; importing needs no matplotlib."""
    script = (
        "import sys, binseg.report; from pathlib import Path\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"binseg.report.plot_histogram([0.5], Path({str(tmp_path / 'h.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_missing_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib, one line says what needs it and how to get it; no file is left."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"binseg\[train\]"):
        plot_histogram([0.5], tmp_path / "h.png")
    assert not list(tmp_path.iterdir())


def test_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    """A folder that can't be made is the user's to mend, and says which."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        plot_histogram([0.5], tmp_path / "file" / "h.png")
