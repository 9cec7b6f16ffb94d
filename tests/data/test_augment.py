import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kornia.augmentation import ColorJitter
from kornia.geometry.transform import get_affine_matrix2d, warp_affine

from binseg.config.recipe import AugmentConfig
from binseg.errors import MissingExtraError, UsageError, needing
from binseg.transforms.augmentation import PipelineAugment, PresetAugment, build_augment
from binseg.transforms.batch_transforms import PRESETS, BatchRandom, Preset
from binseg.types import IGNORE

SIZE = 24
CHANGING = sorted(set(PRESETS) - {"none", "em"})
NOW = {"seed": 0, "epoch": 1, "step": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def blobs(num: int = 8, *, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    """Targets in smooth shapes, so that one pixel more or less doesn't matter."""
    rows, columns = np.mgrid[:height, :width]
    targets = np.zeros((num, height, width), np.uint8)
    for index in range(num):
        targets[index][(rows - 8 - index / 2) ** 2 + (columns - 14) ** 2 < 40] = 1
        targets[index][(rows > height - 6) & (columns < 8)] = IGNORE
    return torch.from_numpy(targets)


def levels(targets: torch.Tensor) -> torch.Tensor:
    """A grey level for each target: black, mid-grey, and white where it is ignored."""
    return torch.where(targets == IGNORE, 1.0, targets / 2)


def photos(num: int = 8, *, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    bytes_BCHW = torch.randint(0, 256, (num, channels, SIZE, SIZE), generator=generator)
    return bytes_BCHW.float() / 255


def geometry(name: str) -> PresetAugment:
    """A preset without its changes of colour."""
    plain = dataclasses.replace(PRESETS[name], jitter=0.0, blur=0.0, noise=0.0)
    return PresetAugment(preset=plain)


@pytest.mark.parametrize("name", CHANGING)
def test_image_and_mask_move_alike(name: str) -> None:
    """An image that shows its own mask still shows it, but for interpolated edges."""
    targets = blobs()
    images = levels(targets)[:, None].repeat(1, 3, 1, 1)
    moved, labels = geometry(name)(images, targets, **NOW)
    assert not torch.equal(labels, targets), "something moved"
    shown = labels[:, None].float()
    largest = torch.nn.functional.max_pool2d(shown, 5, 1)
    inner = largest == -torch.nn.functional.max_pool2d(-shown, 5, 1)
    difference = (moved[:, :1] - levels(labels)[:, None]).abs()[:, :, 2:-2, 2:-2]
    assert inner.float().mean() > 0.3
    assert difference[inner].max() < 1e-4


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_types_ranges_and_arguments_are_kept(name: str) -> None:
    """Images stay float in [0, 1], targets 0, 1 or `IGNORE` without new values; arguments stay."""
    images, targets = photos(), blobs()
    before = images.clone(), targets.clone()
    moved, labels = build_augment(AugmentConfig(preset=name))(images, targets, **NOW)  # type: ignore[arg-type]
    assert moved.shape == images.shape
    assert moved.dtype == torch.float32
    assert labels.shape == targets.shape
    assert labels.dtype == torch.uint8
    assert 0 <= moved.min() <= moved.max() <= 1
    assert set(np.unique(labels.numpy())) <= {0, 1, IGNORE}
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize("name", CHANGING)
def test_seed_epoch_and_step_decide(name: str) -> None:
    """Three numbers decide the batch, each of them counts, and torch's generator has no say."""
    apply = build_augment(AugmentConfig(preset=name))  # type: ignore[arg-type]

    def images(**numbers: int) -> torch.Tensor:
        return apply(photos(), blobs(), **(NOW | numbers))[0]

    torch.manual_seed(0)
    first = images()
    torch.manual_seed(1)
    assert torch.equal(first, images())
    for other in ({"seed": 5}, {"epoch": 5}, {"step": 5}):
        assert not torch.equal(first, images(**other))


@pytest.mark.parametrize("name", ["none", "em"])
def test_no_augmentation_is_none(name: str) -> None:
    """The tutorial's recipe only scales to [0, 1], which the batch already is."""
    images, targets = photos(), blobs()
    moved, labels = build_augment(AugmentConfig(preset=name))(images, targets, **NOW)  # type: ignore[arg-type]
    assert torch.equal(moved, images)
    assert torch.equal(labels, targets)


def always(**changes: Any) -> PresetAugment:
    return PresetAugment(preset=Preset(source="test", **changes))


def test_flips_are_exact() -> None:
    """A flip of all images is a flip, to the bit, and happens as often as asked for."""
    images, targets = photos(), blobs()
    moved, labels = always(flip=1.0)(images, targets, **NOW)
    assert torch.equal(moved, images.flip(-1))
    assert torch.equal(labels, targets.flip(-1))
    moved, _ = always(flip_vertical=1.0)(images, targets, **NOW)
    assert torch.equal(moved, images.flip(-2))
    many = photos(400)
    moved, _ = always(flip=0.25)(many, blobs(400), **NOW)
    changed = (moved != many).flatten(1).any(dim=1).float().mean()
    assert 0.2 < changed < 0.3


def test_quarter_turns_are_exact() -> None:
    """Each image is one of its four turns, its mask likewise; all four come."""
    images, targets = photos(40), blobs(40)
    moved, labels = always(quarter_turn=1.0)(images, targets, **NOW)
    seen = set()
    for index in range(40):
        turns = [torch.rot90(images[index], k, (-2, -1)) for k in range(4)]
        (turn,) = [k for k, turned in enumerate(turns) if torch.equal(turned, moved[index])]
        assert torch.equal(torch.rot90(targets[index], turn, (-2, -1)), labels[index])
        seen.add(turn)
    assert seen == {0, 1, 2, 3}


def test_oblong_images_turn_by_halves() -> None:
    """A quarter turn would change the shape of a batch that isn't square."""
    images, targets = torch.rand(16, 3, 8, 12), torch.zeros(16, 8, 12, dtype=torch.uint8)
    moved, _ = always(quarter_turn=1.0)(images, targets, **NOW)
    for before, after in zip(images, moved, strict=True):
        assert torch.equal(after, before) or torch.equal(after, torch.rot90(before, 2, (-2, -1)))


def test_the_affine_map_is_kornias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation, scale and shift agree with Kornia's warp about the image's centre."""
    preset = Preset(source="", affine=1.0, rotate=20.0, scale=(0.8, 1.2), shift=0.1)
    height, width = SIZE, SIZE + 8
    images = torch.rand(4, 3, height, width)
    drawn: list[torch.Tensor] = []
    uniform = BatchRandom.uniform

    def listen(self: Any, low: float, high: float) -> torch.Tensor:
        drawn.append(uniform(self, low, high))
        return drawn[-1]

    monkeypatch.setattr(BatchRandom, "uniform", listen)
    targets = torch.zeros(4, height, width, dtype=torch.uint8)
    moved, _ = PresetAugment(preset=preset)(images, targets, **NOW)
    angle, zoom, shift_x, shift_y = drawn[1:5]  # after whether to warp
    # Kornia maps input to output, turns the other way, and measures from the first pixel's centre.
    centre = torch.tensor([[(width - 1) / 2, (height - 1) / 2]]).expand(4, 2)
    turn = get_affine_matrix2d(torch.zeros(4, 2), centre, zoom[:, None].expand(4, 2), -angle)
    back = torch.eye(3).repeat(4, 1, 1)
    back[:, 0, 2], back[:, 1, 2] = -shift_x * width / 2, -shift_y * height / 2
    expected = warp_affine(
        images,
        (turn @ back)[:, :2],
        (height, width),
        padding_mode="reflection",
        align_corners=True,  # the same pixels, named by their centres
    )
    inside = (slice(None), slice(None), slice(9, -9), slice(9, -9))
    assert (moved - expected)[inside].abs().max() < 1e-5


def test_jitter_is_kornias() -> None:
    """Brightness, contrast and saturation are what Kornia's ColorJitter computes."""
    images, targets = photos(1), blobs(1)
    for name, index in (("brightness", 0), ("contrast", 1), ("saturation", 2)):
        apply = always(jitter=1.0, **{name: 0.4})
        moved, _ = apply(images, targets, **NOW)
        amounts: list[Any] = [0.0, 0.0, 0.0]
        found = []
        for factor in np.linspace(0.6, 1.4, 81):
            amounts[index] = (float(factor), float(factor))
            expected = ColorJitter(*amounts, p=1.0)(images)
            found.append(float((moved - expected).abs().max()))
        assert min(found) < 0.01, name


def test_grey_images_can_be_changed() -> None:
    """One channel has no saturation; brightness, contrast and blur work."""
    for name in CHANGING:
        images = photos(channels=1)
        moved, _ = build_augment(AugmentConfig(preset=name))(images, blobs(), **NOW)  # type: ignore[arg-type]
        assert moved.shape == images.shape


def test_crops_enlarge() -> None:
    """A crop of a share of the area shows that share: masks grow by its inverse."""
    rows, columns = np.mgrid[:96, :96]
    disc = ((rows - 48) ** 2 + (columns - 48) ** 2 < 15**2).astype(np.uint8)
    targets = torch.from_numpy(np.repeat(disc[None], 64, axis=0))
    _, labels = always(crop_area=(0.64, 0.64))(torch.zeros(64, 3, 96, 96), targets, **NOW)
    grown = labels.float().sum(dim=(1, 2)) / disc.sum()
    assert grown.mean().item() == pytest.approx(1 / 0.64, rel=0.02)


def test_reports_have_their_numbers() -> None:
    """The presets of the reports hold the numbers of the reports."""
    a, b, d = (PRESETS[f"pet-{name}"] for name in ("plain", "augmented", "cosine"))
    assert (a.flip, a.rotate, a.crop_area, a.shift, a.jitter) == (0.5, 20.0, (0.8, 1.0), 0.1, 1.0)
    assert (b.flip, b.flip_vertical, b.quarter_turn, b.affine) == (0.5, 0.2, 0.3, 0.5)
    assert (b.shift, b.scale, b.rotate, b.jitter, b.blur) == (0.1, (0.8, 1.2), 15.0, 0.2, 0.3)
    assert (d.flip, d.rotate, d.affine, d.jitter) == (0.5, 15.0, 0.3, 0.5)


class Pipeline:
    """Stands for an Albumentations pipeline: adds a random number, flips both."""

    def __init__(self, *, give: Any = None) -> None:
        self._give = give

    def set_random_seed(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def __call__(self, *, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        assert image.dtype == np.uint8
        if self._give is not None:
            return {"image": self._give(image), "mask": mask}
        change = self._random.integers(0, 9)
        return {"image": image[:, ::-1] // 2 + np.uint8(change), "mask": mask[:, ::-1]}


def test_a_users_pipeline_sees_bytes_and_is_seeded() -> None:
    """It gets the stored bytes back, moves image and mask, and repeats by (seed, epoch, step)."""
    apply = PipelineAugment(Pipeline())
    images, targets = photos(), blobs()
    moved, labels = apply(images, targets, **NOW)
    assert torch.equal(labels, targets.flip(-1))
    stored = (images * 255).round() // 2
    change = (moved * 255).round() - stored.flip(-1)
    assert (change.flatten(1).std(dim=1) == 0).all(), "one number per image"
    assert torch.equal(moved, apply(images, targets, **NOW)[0])
    assert not torch.equal(moved, apply(images, targets, **(NOW | {"step": 9}))[0])


def test_a_pipeline_that_preprocesses_is_refused() -> None:
    """Normalising and resizing are preprocessing's, and the message says so."""
    for give, word in (
        (lambda image: image / 255, "remove Normalize"),
        (lambda image: image[:8, :8], "keep the size"),
    ):
        with pytest.raises(UsageError, match=word):
            PipelineAugment(Pipeline(give=give))(photos(1), blobs(1), **NOW)


def test_a_missing_albumentations_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra to install is in the line."""
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(MissingExtraError, match=r"binseg\[albumentations\]"):
        build_augment(AugmentConfig(albumentations="mine.json"))


def test_what_an_installed_package_lacks_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A package that is there isn't called missing because of one that it needs itself."""
    (tmp_path / "pyproj.py").write_text("import nobody_has_this")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pyproj", raising=False)
    with (
        pytest.raises(ModuleNotFoundError, match="nobody_has_this"),
        needing("pyproj", extra="geo", purpose="GeoJSON"),
    ):
        importlib.import_module("pyproj")


def test_a_saved_albumentations_pipeline_works(tmp_path: Path) -> None:
    """JSON and YAML written by albumentations.save are taken; rubbish and absence are told."""
    albumentations = pytest.importorskip("albumentations")
    pipeline = albumentations.Compose([albumentations.HorizontalFlip(p=1.0)])
    for suffix in ("json", "yaml"):
        path = tmp_path / f"mine.{suffix}"
        albumentations.save(pipeline, path, data_format=suffix)
        moved, labels = build_augment(AugmentConfig(albumentations=str(path)))(
            photos(), blobs(), **NOW
        )
        assert torch.equal(labels, blobs().flip(-1))
        assert torch.allclose(moved, photos().flip(-1))
    with pytest.raises(UsageError, match="can't read"):
        build_augment(AugmentConfig(albumentations=str(tmp_path / "none.json")))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match="no Albumentations pipeline"):
        build_augment(AugmentConfig(albumentations=str(tmp_path / "bad.json")))


def test_a_saved_pipeline_of_report_b_moves_image_and_mask_alike(tmp_path: Path) -> None:
    """Report B's own changes, through Albumentations: aligned, labels unmixed, seeded."""
    a = pytest.importorskip("albumentations")
    shift = {"translate_percent": (-0.1, 0.1), "scale": (0.8, 1.2), "rotate": (-15, 15)}
    pipeline = a.Compose(
        [a.HorizontalFlip(p=0.5), a.VerticalFlip(p=0.2), a.RandomRotate90(p=0.3), a.Affine(**shift)]
    )
    a.save(pipeline, tmp_path / "b.yaml", data_format="yaml")
    apply = build_augment(AugmentConfig(albumentations=str(tmp_path / "b.yaml")))
    targets = blobs()
    moved, labels = apply(levels(targets)[:, None].repeat(1, 3, 1, 1), targets, **NOW)
    assert not torch.equal(labels, targets)
    assert set(np.unique(labels.numpy())) <= {0, 1, IGNORE}
    agree = ((moved[:, 0] - levels(labels)).abs() < 0.3).float().mean()
    assert agree > 0.97
    again, _ = apply(levels(targets)[:, None].repeat(1, 3, 1, 1), targets, **NOW)
    assert torch.equal(moved, again)
