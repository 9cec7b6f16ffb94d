"""What a recipe makes of a preset."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from binseg.config.recipe import AugmentConfig
from binseg.transforms.batch_transforms import PRESETS, resolve_preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_alone_is_itself(name: Any) -> None:
    """Nothing is changed that the recipe doesn't name."""
    assert resolve_preset(AugmentConfig(preset=name)) == PRESETS[name]


def test_orientation_decides_flips_and_angles() -> None:
    """Fixed mirrors nothing; upright swaps left and right; any turns to every direction."""
    fixed = resolve_preset(AugmentConfig(preset="strong", orientation="fixed"))
    assert fixed.flip == fixed.flip_vertical == fixed.quarter_turn == 0
    upright = resolve_preset(AugmentConfig(preset="pet-augmented", orientation="upright"))
    assert (upright.flip, upright.flip_vertical, upright.quarter_turn) == (0.5, 0, 0)
    assert upright.rotate <= 20
    free = resolve_preset(AugmentConfig(preset="mild", orientation="any"))
    assert (free.flip, free.flip_vertical, free.quarter_turn, free.rotate) == (0.5, 0.5, 1, 45)


def test_a_recipe_has_the_last_word() -> None:
    """Its own fields replace the preset's, and switch on what the preset leaves off."""
    own = resolve_preset(
        AugmentConfig(
            preset="none", rotate=7, zoom=(0.5, 2), elastic=0.03, gamma=0.2, noise=0.1, blur=0.4
        )
    )
    assert (own.rotate, own.scale, own.elastic, own.affine) == (7, (0.5, 2), 0.03, 0.5)
    assert (own.gamma, own.jitter, own.noise, own.noisy, own.blur) == (0.2, 0.5, 0.1, 0.5, 0.4)
    kept = resolve_preset(AugmentConfig(preset="strong", rotate=0))
    assert kept.affine == PRESETS["strong"].affine


def test_intensity_multiplies_what_changes_values() -> None:
    """At 0 no pixel changes its value; at 2 twice as much, and never more than all."""
    none = resolve_preset(AugmentConfig(preset="strong", intensity=0))
    assert none.brightness == none.contrast == none.saturation == none.gamma == none.noise == 0
    double = resolve_preset(AugmentConfig(preset="strong", intensity=2))
    assert double.brightness == pytest.approx(2 * PRESETS["strong"].brightness)
    assert resolve_preset(AugmentConfig(preset="strong", intensity=3, gamma=1)).contrast <= 1


def test_context_is_what_turning_needs() -> None:
    """None without motion; a square turned by 45 degrees reaches out by the root of two."""
    assert resolve_preset(AugmentConfig(preset="none", orientation="any")).context == 1.0
    turned = resolve_preset(AugmentConfig(preset="none", rotate=180))
    assert turned.context == pytest.approx(np.sqrt(2))
    zoomed = resolve_preset(AugmentConfig(preset="none", zoom=(0.8, 1.0)))
    assert zoomed.context == pytest.approx(1.25)
    assert resolve_preset(AugmentConfig(preset="none", zoom=(0.3, 1.0))).context == 1.5


@pytest.mark.parametrize(
    "wrong", [{"zoom": (1.2, 0.9)}, {"elastic": 0.5}, {"rotate": 200}, {"orientation": "up"}]
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    """Factors in the wrong order, folds, more than half a turn."""
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)
