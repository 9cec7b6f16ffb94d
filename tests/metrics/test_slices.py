"""Parts of the data: what is in which, what they score, what may be asked for."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binseg.errors import UsageError
from binseg.metrics import score_image
from binseg.metrics.scores import bootstrap_interval
from binseg.metrics.summary import slice_images
from binseg.types import Counts, ImageScores


def image(
    number: int, *, area: int, dice: float = 0.5, num: int = 1000, **columns: str
) -> ImageScores:
    """An image of `num` pixels with an object of `area`, of which a share is found."""
    tp = round(area * dice / (2 - dice))
    counts = Counts(tp=tp, fp=0, fn=area - tp, tn=num - area)
    return score_image(f"{number}", {"original": counts, "model": counts}, columns)


def test_thirds_by_size() -> None:
    """Nine sizes make three parts of three, from small to large; empty truths are their own."""
    images = [image(n, area=10 * (n + 1)) for n in range(9)] + [image(9, area=0)]
    parts = [one for one in slice_images(images) if one.by == "object size"]
    assert [one.num_images for one in parts] == [1, 3, 3, 3]
    assert [one.value for one in parts] == [
        "no object",
        "small: up to 30 px",
        "medium: up to 60 px",
        "large: above 60 px",
    ]


def test_shares_differ_from_sizes_in_images_of_other_sizes() -> None:
    """A small object in a small image is a large share; with images of one size both agree."""
    same = [image(n, area=10 * (n + 1)) for n in range(9)]
    assert {one.by for one in slice_images(same)} == {"object size"}
    assert {one.by for one in slice_images(same, by=["foreground share"])} == {
        "object size",
        "foreground share",
    }
    mixed = [image(n, area=10 * (n + 1), num=100 * (1 + 20 * n)) for n in range(9)]
    shares = [one.value for one in slice_images(mixed) if one.by == "foreground share"]
    assert shares[0].startswith("small: up to ")
    assert shares[0].endswith("%")


def test_scores_are_means_with_intervals() -> None:
    """A part has the mean Dice of its images, and the bootstrap's interval; few images are told."""
    random = np.random.default_rng(0)
    images = [
        image(n, area=500, dice=float(random.uniform(0.2, 1)), breed="cat" if n < 12 else "dog")
        for n in range(16)
    ]
    cats, dogs = (one for one in slice_images(images) if one.by == "breed")
    dice = [one.scores["original"]["dice"] for one in images]
    assert cats.value == "cat"
    assert cats.dice.value == pytest.approx(np.mean(dice[:12]))
    assert cats.dice.interval == bootstrap_interval(dice[:12])
    assert (cats.is_small, dogs.is_small) == (False, True)
    few = [replace(one, group=f"g{n % 2}") for n, one in enumerate(images)]
    assert next(one for one in slice_images(few) if one.value == "cat").is_small


def test_columns_of_many_values_must_be_asked_for() -> None:
    """A column that differs everywhere is no part unasked; one with a single value says nothing."""
    images = [image(n, area=500, name=f"n{n}", site="one") for n in range(25)]
    assert {one.by for one in slice_images(images)} == {"object size"}
    asked = slice_images(images, by=["name", "site"])
    assert sum(one.by == "name" for one in asked) == 25
    assert [one.num_images for one in asked if one.by == "site"] == [25]


def test_images_without_a_value_are_a_part() -> None:
    """Nobody falls through: images that a column says nothing of are the part without a name."""
    images = [image(0, area=5, breed="cat"), image(1, area=5), image(2, area=5, breed="dog")]
    parts = [one for one in slice_images(images) if one.by == "breed"]
    assert [(one.value, one.num_images) for one in parts] == [("", 1), ("cat", 1), ("dog", 1)]


def test_unknown_columns_are_refused() -> None:
    """A typo names the nearest column."""
    with pytest.raises(UsageError, match="did you mean breed"):
        slice_images([image(0, area=5, breed="cat")], by=["bred"])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_every_image_is_in_one_part_whatever_the_order(seed: int) -> None:
    """Of each kind, the parts make up all images, and their order changes nothing."""
    random = np.random.default_rng(seed)
    images = [
        image(n, area=int(random.integers(0, 6)), source=str(random.integers(3))) for n in range(12)
    ]
    parts = slice_images(images, num_resamples=0)
    for by in {one.by for one in parts}:
        assert sum(one.num_images for one in parts if one.by == by) == 12
    again = slice_images([images[i] for i in random.permutation(12)], num_resamples=0)
    assert [(one.by, one.value, one.num_images) for one in again] == [
        (one.by, one.value, one.num_images) for one in parts
    ]
    assert [one.dice.value for one in again] == pytest.approx([one.dice.value for one in parts])
