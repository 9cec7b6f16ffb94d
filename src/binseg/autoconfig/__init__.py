"""From the facts about a data set to the settings of a training recipe, each with its reason.

fingerprint.py  the facts: sizes, intensities, foreground, symmetry, objects
cost.py         the machine, the budget, and what a run can see in its time
input_rules.py  rules: pixel values, whole images or patches, size, network
planning.py     rules: batches, augmentation, rates, epochs; the table of all; the plan as a recipe
"""

from binseg.autoconfig.cost import Machine, Situation
from binseg.autoconfig.fingerprint import Fingerprint, take_fingerprint
from binseg.autoconfig.input_rules import (
    PRETRAINED,
    PRETRAINED_OPTIONS,
    THICK_OPTIONS,
    prefers_scratch,
)
from binseg.autoconfig.planning import Plan, Setting, few_ratios, make_plan, stack_settings
