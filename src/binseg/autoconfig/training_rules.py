"""The rules for how the network learns: batches, augmentation, rates, epochs, validation.

Like those of `input_rules`, each is a row of `planning.RULES`.
"""

import math

from binseg.autoconfig import cost
from binseg.autoconfig.input_rules import SMALL_OPTIONS, is_coarse
from binseg.data.dataset import counted

MIN_VAL = 4  # validation images that can choose between epochs or thresholds
TTA_SHARE = 0.12  # share of the budget that scoring mirror images may take
FEW_IMAGES = 60
MANY_PASSES, SOME_PASSES = 200, 12
"""Passes over the images above which augmentation is strengthened, and below which it is mild."""
INVERT = 0.5
"""Share of images that are inverted: for nuclei, mean Dice of 80 unseen images rose from 0.740 to
0.836 with 14 training images, by the 18 that are stained dark; the others lost 0.02."""
MIXED_INVERT, MIXED_GREY, FEW_MIXED = 0.25, 0.3, 200
"""The same, and the share whose colours go, where coloured images are few among grey ones, and all
are fewer than the last number: with 70 training images of nuclei, 6 of them stained, mean Dice of
80 unseen ones rose from 0.853 to 0.867 (from 0.678 to 0.786 for stained ones, and from 0.915 to
0.899 for the others)."""
MIN_UNITS = 12  # independent images that can tell whether there is an up
LOCAL = 0.15
"""Share of what images have in common, and not with their mirror images, below which only the
light or the sky differs, and not what patches look like (Oxford-IIIT Pet: 0.06)."""
NUM_EPOCHS = 30
"""Validations in a run with a budget: enough to choose from, at a few per cent of the time."""
LEAST_STEPS = 8
SMALL_PEAK = 5e-3  # rate of the small network at full size, which has few weights and little time
ENCODER_FACTOR = 0.3
"""Rate of a pretrained encoder as a share of the decoder's (3e-4 and 1e-3 on Oxford-IIIT Pet)."""
SMALL_BATCH, VERY_FEW = 4, 10
"""Inputs of a step, and training images, up to which batch norm's statistics would be noise."""
MEMORY_SHARE = 0.5


def batch_size(at: cost.Situation) -> cost.Choice:
    """Choose the inputs of one step."""
    num, size = at.fingerprint.num_train, at.number("input.size")
    whole = at.is_pretrained and not at.is_tiled
    value = 16 if size <= 192 or whole else 8
    reason = f"larger batches of {size:.0f}x{size:.0f} inputs would mean too few steps"
    if whole:
        reason = "a pretrained network needs fewer steps, and steadier ones"
    if not at.is_tiled and num < 8 * value:
        value = max(4, min(8, num // 2))
        reason = f"with {num} training images, small batches leave enough steps an epoch"
    each = at.machine.bytes_per_megapixel.get(at.text("model.name"))
    if each is not None and at.machine.free_bytes is not None:
        fits = int(MEMORY_SHARE * at.machine.free_bytes / (each * size**2 / 1e6))
        if fits < value:
            return max(2, fits), f"only {at.machine.free_bytes / 1e9:.1f} GB of memory are free"
    return value, reason


def orientation(at: cost.Situation) -> cost.Choice:
    """Choose what augmentation may turn or mirror, judged from the images."""
    facts = at.fingerprint
    up, side = facts.up_down, facts.left_right
    if at.is_tiled and max(up.share, side.share) < LOCAL:
        if not up.is_broken:
            return "any", f"patches look alike upside down (p = {up.p:.2f})"
        return "any", "patches show small objects, which hardly tell where up is"
    if up.is_broken and side.is_broken and side.share > 0.02:
        return "fixed", f"left and right differ, too (p = {side.p:.3f}), so nothing is mirrored"
    if up.is_broken:
        return "upright", f"top and bottom differ in {up.num} images alike (p = {up.p:.3f})"
    if facts.is_stack:
        return "any", "slices of a volume have no up"
    if up.num < MIN_UNITS:
        return "any", f"{up.num} independent images can't tell, and nothing suggests an up"
    return "any", f"{up.num} images look alike upside down (p = {up.p:.2f})"


def _is_repetitive(at: cost.Situation) -> bool:
    """Tell whether images come back so often that augmentation must vary them more."""
    often = cost.num_passes(at)
    few = at.fingerprint.num_train < FEW_IMAGES
    return often > MANY_PASSES or (few and often >= SOME_PASSES)


def preset(at: cost.Situation) -> cost.Choice:
    """Choose how strongly the images are augmented."""
    images = counted(at.fingerprint.num_train, "training image", "training images")
    seen = f"{images}, each seen {cost.times(cost.num_passes(at))}"
    if _is_repetitive(at):
        if is_coarse(at):
            return "strong", f"{seen}: repeats must vary"
        return "medium", f"{seen}; blur and noise would erase thin or small objects"
    if cost.num_passes(at) < SOME_PASSES and at.fingerprint.num_train >= FEW_IMAGES:
        return "mild", f"{seen}: hardly any repeats"
    return "medium", seen


def invert(at: cost.Situation) -> cost.Choice:
    """Let light and dark change places where few images show one of the two ways, or one rarely."""
    facts = at.fingerprint
    if _is_mixed(at):
        reason = f"{facts.grey_share:.0%} of the images are grey: inverting helps them all"
        return MIXED_INVERT, reason
    # Slices of one volume are stained and lit alike, and so will be those to come.
    if not facts.is_grey or facts.is_stack or facts.num_train >= FEW_IMAGES:
        return None
    if 0 < facts.brighter_share < 1:
        return None
    side = "brighter" if facts.brighter_share else "darker"
    return INVERT, f"the foreground is {side} in all {facts.num_train}; new images may differ"


def grey(at: cost.Situation) -> cost.Choice:
    """Take colours away where coloured images are few among grey ones."""
    reason = "coloured images are few among grey ones, and stains and lamps differ"
    return (MIXED_GREY, reason) if _is_mixed(at) else None


def _is_mixed(at: cost.Situation) -> bool:
    return 0.5 <= at.fingerprint.grey_share < 1 and at.fingerprint.num_train < FEW_MIXED


def only_for_thin(value: float, reason: str) -> cost.Rule:
    """Make a rule for what replaces blur and noise where these would erase thin objects."""

    def rule(at: cost.Situation) -> cost.Choice:
        return (value, reason) if not is_coarse(at) and _is_repetitive(at) else None

    return rule


def always(value: cost.Value, reason: str) -> cost.Rule:
    """Make a rule that always gives the same value."""
    return lambda _: (value, reason)


def loss(at: cost.Situation) -> cost.Choice:
    """Choose the loss."""
    share = at.fingerprint.mean_foreground
    return "bce-dice", f"{share:.1%} foreground; the Dice term looks after the rarer class"


def lr(at: cost.Situation) -> cost.Choice:
    """Choose the peak of the learning rate."""
    batch = at.number("train.batch_size")
    peak = 1e-3 if at.is_pretrained else 1.5e-3
    if at.decided.get("model.options") == SMALL_OPTIONS:
        peak = SMALL_PEAK
    lr = round(peak * math.sqrt(min(1.0, batch / 16)), 5)
    fewer = f", less for batches of {batch:.0f}" if batch < 16 else ""
    return lr, f"{peak:g} is for batches of 16{fewer}"


def encoder_lr_factor(at: cost.Situation) -> cost.Choice:
    """Choose the share of the rate at which a pretrained encoder learns."""
    if not at.is_pretrained:
        return None
    return ENCODER_FACTOR, "its weights are good already, and large steps would lose them"


def freeze_batch_norm(at: cost.Situation) -> cost.Choice:
    """Keep a pretrained encoder's batch statistics where few images would blur them."""
    batch, num = at.number("train.batch_size"), at.fingerprint.num_train
    if not at.is_pretrained or (batch > SMALL_BATCH and num >= VERY_FEW):
        return None
    return True, f"statistics of {batch:.0f} of {num} images would be noise beside ImageNet's"


def per_epoch(at: cost.Situation) -> cost.Choice:
    """Choose the patches or images of an epoch."""
    if "train.epochs" in at.given and at.budget is None:
        return "auto" if at.is_tiled else "all", "each epoch is one pass over the images"
    num, batch = at.fingerprint.num_train, int(at.number("train.batch_size"))
    each = max(LEAST_STEPS, round(cost.num_inputs(at) / NUM_EPOCHS / batch)) * batch
    if not at.is_tiled and num / 1.5 <= each <= num * 1.5:
        return "all", f"all {num} images"
    validations = counted(max(1, round(cost.num_inputs(at) / each)), "validation", "validations")
    return each, f"about {validations}, which take a few per cent of the time"


def epochs(at: cost.Situation) -> cost.Choice:
    """Choose the number of epochs."""
    views = cost.num_inputs(at)
    each = at.decided["patches.per_epoch" if at.is_tiled else "train.per_epoch"]
    inputs = each if isinstance(each, int) else at.fingerprint.num_train
    reason = f"{views:,.0f} inputs in all" if at.budget is None else "expected within the budget"
    return max(1, round(views / inputs)), reason


def budget_minutes(at: cost.Situation) -> cost.Choice:
    """Pass the budget on to the run."""
    if at.budget is None:
        return None
    return round(at.budget / 60, 3), "the schedule follows the clock, so that the run ends in time"


def ema_decay(at: cost.Situation) -> cost.Choice:
    """Choose the decay of the moving average of the weights."""
    steps = cost.num_inputs(at) / at.number("train.batch_size")
    decay = round(min(0.998, max(0.9, 1 - 12 / max(steps, 1))), 4)
    span = 1 / (1 - decay)
    if span >= steps:
        return decay, "the run is so short that the average covers all of it"
    return decay, f"averages about {span:.0f} of {steps:,.0f} steps: steadier than the last one"


def postprocess(at: cost.Situation) -> cost.Choice:
    """Choose whether post-processing is tried in validation."""
    num = at.fingerprint.num_val
    if num < MIN_VAL:
        judges = counted(num, "validation image", "validation images")
        return "none", f"{judges} can't tell what helps"
    if at.decided.get("train.threshold", "tune") != "tune":
        return "none", "a fixed threshold is meant for the network's own prediction"
    return "tune", "specks, holes or smaller objects are removed where that helps on validation"


def tta(at: cost.Situation) -> cost.Choice:
    """Choose whether test-time augmentation is tried in validation."""
    num, views = at.fingerprint.num_val, cost.num_mirrored(at)
    if views == 1:
        return "none", "mirrored images would be another kind of image"
    if at.budget is not None and views * cost.scoring_seconds(at) > TTA_SHARE * at.budget:
        return "none", f"predicting {num} validation images {views} times would take too long"
    return "tune", f"averages {views} mirrored views where that helps on validation"


def threshold(at: cost.Situation) -> cost.Choice:
    """Fix the threshold where too few images could tune it."""
    num = at.fingerprint.num_val
    if num >= MIN_VAL:
        return None
    return 0.5, f"a threshold tuned on {counted(num, 'image', 'images')} would be worse on others"
