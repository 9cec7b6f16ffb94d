"""What tests of several rooms share: a tiny data set, and one run trained on it."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType

import hypothesis
import numpy as np
import pytest
from PIL import Image

from binseg.autoconfig import Fingerprint, Machine
from binseg.autoconfig.fingerprint import SCALES, SIZES, Intensities, Symmetry
from binseg.inference import ModelPredictor
from binseg.types import Preprocessing

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

NUM_IMAGES = 16
TINY = (
    "model.name=unet",
    "model.options={width: 4, depth: 2}",
    "input.size=32",
    "train.epochs=1",
    "train.batch_size=6",
    "train.device=cpu",
    "train.precision=fp32",
    "optimizer.lr=0.02",
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    before = os.environ.get("BINSEG_CACHE")
    os.environ["BINSEG_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["BINSEG_CACHE"]
    else:
        os.environ["BINSEG_CACHE"] = before


def draw_disc(seed: int, *, height: int = 36, width: int = 44) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bright disc on dark noise: an image (H, W, 3) and its mask (H, W)."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    top, left = random.uniform(10, height - 10), random.uniform(10, width - 10)
    mask_HW = (rows - top) ** 2 + (columns - left) ** 2 < random.uniform(6, 10) ** 2
    noise = random.integers(0, 80, (height, width, 3))
    image_HW3 = np.where(mask_HW[:, :, None], noise + 150, noise).astype(np.uint8)
    return image_HW3, mask_HW


def write_pairs(folder: Path, seeds: Sequence[int]) -> Path:
    """Write images and 0/255 masks as a folder pair; names tell the seeds."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        image_HW3, mask_HW = draw_disc(seed)
        Image.fromarray(image_HW3).save(folder / "images" / f"disc{seed:03d}.png")
        Image.fromarray(mask_HW.astype(np.uint8) * 255).save(
            folder / "masks" / f"disc{seed:03d}.png"
        )
    return folder


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with masks; read only."""
    return write_pairs(tmp_path_factory.mktemp("discs"), range(NUM_IMAGES))


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Settings of a network that trains in a second, as values of --set."""
    return TINY


@pytest.fixture(scope="session")
def write_discs() -> Callable[[Path, Sequence[int]], Path]:
    """A function that writes a folder of images with masks, one for each seed."""
    return write_pairs


@pytest.fixture(scope="session")
def train_output(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Folder, stdout and stderr of `binseg train --json`; read only."""
    import torch
    from typer.testing import CliRunner

    from binseg.cli import app

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "tiny"
    # A recipe of nothing but defaults: without any, a plan would be made first.
    recipe = out.with_name("defaults.yaml")
    recipe.write_text("{}\n", encoding="utf-8")
    settings = [part for setting in TINY for part in ("--set", setting)]
    result = CliRunner().invoke(
        app, ["train", str(recipe), "--data", str(discs), "--out", str(out), "--json", *settings]
    )
    assert result.exit_code == 0, result.stderr
    return out, result.stdout, result.stderr


@pytest.fixture(scope="session")
def trained(train_output: tuple[Path, str, str]) -> Path:
    """The folder of a run trained on `discs` by the command line; read only."""
    return train_output[0]


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, fetched by npm; skipped where that can't be."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine")
    folder = tmp_path_factory.mktemp("axe")
    try:
        packed = subprocess.run(
            [npm, "pack", "--silent", "--prefer-offline", "axe-core@4"],
            cwd=folder, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"npm can't fetch axe-core: {error}")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture
def photos() -> Fingerprint:
    """What large things in photos are like."""
    no_up = Symmetry(share=0.0, p=0.5, num=100)
    return Fingerprint(
        num_train=700,
        num_val=150,
        num_test=150,
        num_units=700,
        is_stack=False,
        height=(480.0, 480.0, 480.0),
        width=(640.0, 640.0, 640.0),
        aspect=(1.33, 1.33, 1.33),
        channels=3,
        dtype="uint8",
        grey_share=0.0,
        range_used=(0.7, 0.9, 1.0),
        by_dtype=Intensities(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
        by_percentile=Intensities(mean=(0.6, 0.5, 0.4), std=(0.3, 0.3, 0.3)),
        foreground=(0.1, 0.3, 0.5),
        mean_foreground=0.3,
        empty_share=0.0,
        brighter_share=0.5,
        num_objects=1.0,
        diameter=(100.0, 200.0, 300.0),
        thin=30.0,
        thick=100.0,
        kept_at_size=dict.fromkeys(SIZES, 0.995),
        kept_at_scale=dict.fromkeys(SCALES, 0.99),
        up_down=no_up,
        left_right=no_up,
    )


@pytest.fixture
def machine() -> Machine:
    """Two cores: seconds for a million pixels of training inputs."""
    return Machine(
        device="cpu",
        cores=2,
        seconds_per_megapixel=MappingProxyType(
            {"unet-compact": 0.4, "unet-small": 0.75, "unet": 1.2}
        ),
        free_bytes=16 * 10**9,
        bytes_per_megapixel=MappingProxyType({"unet-compact": 5e8}),
    )


class Brightness:
    """A backend that answers with the brightness of the input."""

    name = "brightness"
    precision = "fp32"

    def logits(self, inputs_NCHW: np.ndarray) -> np.ndarray:
        """Give the mean over the channels."""
        mean: np.ndarray = inputs_NCHW.mean(axis=1)
        return mean


@pytest.fixture
def bright() -> Callable[[Preprocessing], ModelPredictor]:
    """A function that makes a predictor of that backend."""

    def make(preprocessing: Preprocessing) -> ModelPredictor:
        return ModelPredictor(
            backend=Brightness(), preprocessing=preprocessing, threshold=0.5, bundle_id="bright"
        )

    return make
