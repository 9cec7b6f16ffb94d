"""Labels written for other tools are read back, by the readers that know those tools' files."""

from pathlib import Path

import numpy as np
import pytest
from labeling.conftest import SIZE, disc
from PIL import Image

from binseg.config import DataConfig
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.errors import UsageError
from binseg.labeling.label_files import KINDS, write_labels


@pytest.mark.parametrize("kind", list(KINDS))
def test_masks_come_back_to_the_pixel(kind: str, tmp_path: Path) -> None:
    """Each format holds the very mask, a hole included where it has such (YOLO has none)."""
    out = tmp_path / "labels"
    images = out / "images" if kind == "yolo" else out
    images.mkdir(parents=True)
    labelled = []
    for number in range(3):
        truth = disc(number)[1].copy()
        rows, columns = np.nonzero(truth)
        if number == 0 and kind != "yolo":
            truth[int(rows.mean()), int(columns.mean())] = False  # a hole of one pixel
        truth[2:5, 3:9] = True  # and a second thing
        path = images / f"disc{number}.png"
        Image.fromarray(disc(number)[0]).save(path)
        labelled.append((f"disc{number}", path, truth))
    told = write_labels(kind, labelled, out)
    assert told.startswith("3 images in")
    where = {"coco": out / "annotations.json"}.get(kind, out)
    dataset = open_dataset(DataConfig(path=str(where)))
    assert dataset.kind == kind
    masks = {r.image_path.stem: read_sample(r, dataset.rule).mask_HW for r in dataset.records}
    for name, _, truth in labelled:
        found = masks[name]
        assert found is not None
        assert found.shape == SIZE
        assert np.array_equal(found, truth), f"{int((found != truth).sum())} pixels differ"


def test_what_a_format_cannot_say_is_told(tmp_path: Path) -> None:
    """Holes that YOLO's outlines lose are counted."""
    truth = disc(0)[1].copy()
    rows, columns = np.nonzero(truth)
    truth[int(rows.mean()), int(columns.mean())] = False
    told = write_labels("yolo", [("a", Path("a.png"), truth)], tmp_path)
    assert "1 holes are filled" in told


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    """A typo gets a hint."""
    with pytest.raises(UsageError, match="did you mean labelme"):
        write_labels("labelm", [], tmp_path)
