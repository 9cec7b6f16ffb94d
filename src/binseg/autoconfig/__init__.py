"""From a data set's facts to the settings of a training recipe, each with its reason.

fingerprint.py   what the images and masks are like
shapes.py        thickness, objects, and what survives a resize
orientation.py   whether there is an up
situation.py     what a rule knows, and what it gives
resolution.py    rules: whole images or patches, size, network
learning.py      rules: intensities, augmentation, loss, rates, epochs
plan.py          all rules in order; the plan as a recipe
"""

from binseg.autoconfig.fingerprint import Fingerprint, take_fingerprint
from binseg.autoconfig.plan import Plan, draw_up, few_ratios, few_split_settings, split_settings
from binseg.autoconfig.situation import Machine, Setting, Situation

__all__ = [
    "Fingerprint",
    "Machine",
    "Plan",
    "Setting",
    "Situation",
    "draw_up",
    "few_ratios",
    "few_split_settings",
    "split_settings",
    "take_fingerprint",
]
