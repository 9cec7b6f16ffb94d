"""Is there an up? The test is as often wrong as it says, and sees a sky."""

import numpy as np

from binseg.autoconfig.fingerprint import measure_symmetry


def noise(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (num, 16, 16))


def test_images_with_a_sky_have_an_up_and_no_left() -> None:
    """A brighter top half in every image is found; left and right stay alike."""
    images = noise(40, 0)
    images[:, :8] += 0.5
    assert measure_symmetry(images, axis=1).is_broken
    assert not measure_symmetry(images, axis=2).is_broken
    assert measure_symmetry(images, axis=1).share > 0.02


def test_without_an_up_its_mistakes_are_as_rare_as_it_says() -> None:
    """Of a hundred data sets of noise, hardly any is found to have an up."""
    found = [measure_symmetry(noise(20, seed), axis=1).is_broken for seed in range(100)]
    assert sum(found) <= 5


def test_one_image_tells_nothing() -> None:
    """A stack is one witness, however many pages it has."""
    assert measure_symmetry(noise(1, 0), axis=1).p == 1.0


def test_one_image_of_high_contrast_does_not_decide() -> None:
    """Every image weighs the same."""
    images = noise(20, 1)
    images[0, :8] += 1000
    assert not measure_symmetry(images, axis=1).is_broken
