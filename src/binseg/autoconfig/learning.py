"""Rules of how the network learns: pixels' values, random changes, loss, rates, epochs."""

import math

from binseg.autoconfig.fingerprint import Fingerprint
from binseg.autoconfig.resolution import num_views, patch_passes
from binseg.autoconfig.situation import Setting, Situation

__all__ = [
    "choose_augmentation",
    "choose_average",
    "choose_batch",
    "choose_channels",
    "choose_epochs",
    "choose_intensity",
    "choose_loss",
    "choose_optimizer",
    "choose_orientation",
    "choose_schedule",
]

NARROW = 1 / 3
"""A range that covers less of the pixel type's wastes what 8 bits can tell."""
RARE_AS_CLIPPED = 0.01
"""Share of foreground of which percentiles (the outer 0.5 % on either side) may cut off most."""
FEW_IMAGES = 60
MANY_LOOKS, SOME_LOOKS = 200, 12
"""Passes over the images above which, and below which, changes are made stronger or milder."""
LEAST_UNITS = 12
"""Independent images without which nothing can be said of an up."""
LOCAL = 0.15
"""Share of what images have in common with no mirror image, below which it is a matter of where
the light or the sky is, not of what a patch of it looks like (Oxford-IIIT Pet: 0.06)."""
NUM_EPOCHS = 30
"""Validations in a run with a budget: enough to choose from, at a few per cent of the time."""
LEAST_STEPS = 8
UNLIMITED_VIEWS = (20_000, 300_000)
"""Inputs seen at least and at most where time doesn't matter."""
UNLIMITED_PASSES = 150
MEMORY_SHARE = 0.5


def choose_channels(at: Situation) -> list[Setting]:
    """How many channels the network takes."""
    facts = at.fingerprint
    if facts.channels in {1, 3}:
        value = 1 if facts.is_grey else 3
        reason = {
            (1, True): "the images are grey",
            (3, True): "the images are colour files, but grey: three equal channels tell no more",
            (3, False): "the images are in colour",
            (1, False): "the images are grey",
        }[facts.channels, facts.is_grey]
        return [Setting(key="input.channels", value=value, reason=reason)]
    reason = f"the images have {facts.channels} channels"
    return [Setting(key="input.channels", value=facts.channels, reason=reason)]


def choose_intensity(at: Situation) -> list[Setting]:
    """What becomes 0 and 1, and the mean and spread that are normalised away."""
    facts = at.fingerprint
    low, middle, _ = facts.range_used
    if facts.dtype == "float32":
        value, reason = "percentile", "floats have no range of their own"
    elif facts.dtype == "uint16" and middle < 0.9:
        value = "percentile"
        reason = f"16 bits, of which half of the images use less than {middle:.0%}"
    elif low < NARROW and facts.mean_foreground < RARE_AS_CLIPPED:
        value, reason = "dtype", "things so rare may be the brightest pixels: none is clipped"
    elif low < NARROW:
        value = "percentile"
        reason = f"some images use only {low:.0%} of the range: each is stretched"
    else:
        value, reason = "dtype", f"the images use {middle:.0%} of their range"
    seen = facts.by_percentile if value == "percentile" else facts.by_dtype
    mean, std = seen.mean, seen.std
    channels = int(at.number("input.channels"))
    if len(mean) > channels:  # three equal channels of a grey image
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    measured = f"measured on the training images, {_counted(len(mean), 'channel')}"
    return [
        Setting(key="input.intensity", value=value, reason=reason),
        Setting(key="input.mean", value=tuple(round(x, 4) for x in mean), reason=measured),
        Setting(key="input.std", value=tuple(round(x, 4) for x in std), reason=measured),
    ]


def _counted(num: int, noun: str) -> str:
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def choose_orientation(at: Situation) -> list[Setting]:
    """Whether there is an up, judged from the images."""
    facts = at.fingerprint
    up, side = facts.up_down, facts.left_right
    key = "augment.orientation"
    if at.text("input.resize") == "tile" and max(up.share, side.share) < LOCAL:
        reason = "patches show small things, whose looks hardly know where up is"
        if not up.is_broken:
            reason = f"upside down, patches look like patches (chance {up.p:.2f})"
        return [Setting(key=key, value="any", reason=reason)]
    if up.is_broken and side.is_broken and side.share > 0.02:
        reason = f"left and right differ too (chance {side.p:.3f}): nothing is mirrored"
        return [Setting(key=key, value="fixed", reason=reason)]
    if up.is_broken:
        reason = (
            f"top and bottom differ in all of {up.num} images alike (chance {up.p:.3f}): there "
            "is an up"
        )
        return [Setting(key=key, value="upright", reason=reason)]
    if facts.is_stack:
        reason = "slices of a volume have no up"
        return [Setting(key=key, value="any", reason=reason)]
    if up.num < LEAST_UNITS:
        reason = f"{up.num} independent images can't tell; nothing speaks for an up"
        return [Setting(key=key, value="any", reason=reason)]
    reason = f"upside down, {up.num} images look like images (chance {up.p:.2f}): no up"
    return [Setting(key=key, value="any", reason=reason)]


def choose_batch(at: Situation) -> list[Setting]:
    """Inputs in a step."""
    facts, size = at.fingerprint, at.number("input.size")
    value = 16 if size <= 192 else 8
    reason = f"at {size:.0f}x{size:.0f} more inputs a step would mean too few steps"
    if at.text("input.resize") != "tile" and facts.num_train < 8 * value:
        value = max(4, min(8, facts.num_train // 2))
        reason = f"{facts.num_train} training images: small batches make more steps"
    each = at.machine.bytes_per_megapixel.get(at.text("model.name"))
    if each is not None and at.machine.free_bytes is not None:
        fits = int(MEMORY_SHARE * at.machine.free_bytes / (each * size**2 / 1e6))
        if fits < value:
            value, reason = max(2, fits), f"memory: {at.machine.free_bytes / 1e9:.1f} GB are free"
    return [Setting(key="train.batch_size", value=value, reason=reason)]


def passes(at: Situation) -> float:
    """How often the run sees each image; patches count by the area that they cover."""
    facts, size = at.fingerprint, int(at.number("input.size"))
    if at.text("input.resize") == "tile" and at.budget is not None:
        return patch_passes(at, at.text("model.name"))
    return _views(at) / (facts.num_train * _inputs_an_image(at, facts, size))


def _inputs_an_image(at: Situation, facts: Fingerprint, size: int) -> float:
    if at.text("input.resize") != "tile":
        return 1.0
    scale = at.number("input.scale")
    return max(1.0, facts.height[1] * scale / size) * max(1.0, facts.width[1] * scale / size)


def _views(at: Situation) -> float:
    size = int(at.number("input.size"))
    if at.budget is not None:
        return num_views(at, size)
    whole = at.fingerprint.num_train * _inputs_an_image(at, at.fingerprint, size)
    if "train.epochs" in at.decided:  # given by the user, or decided before
        each = at.decided.get("patches.per_epoch", at.decided.get("train.per_epoch"))
        return at.number("train.epochs") * (each if isinstance(each, int) else whole)
    low, high = UNLIMITED_VIEWS
    return min(max(UNLIMITED_PASSES * whole, low), high)


def choose_augmentation(at: Situation) -> list[Setting]:
    """How strongly images are changed."""
    facts = at.fingerprint
    often = passes(at)
    few = facts.num_train < FEW_IMAGES and often >= SOME_LOOKS
    is_thin = at.text("model.name") != "unet-compact"
    told = f"{_counted(facts.num_train, 'training image')}, each seen about {often:.0f} times"
    if often < SOME_LOOKS and facts.num_train >= FEW_IMAGES:
        return [Setting(key="augment.preset", value="mild", reason=f"{told}: little to repeat")]
    if (few or often > MANY_LOOKS) and is_thin:
        # Noise and blur would erase what is two pixels thick; shapes and light may change.
        why = f"{told}; thin or small things stand no blur"
        return [
            Setting(key="augment.preset", value="medium", reason=why),
            Setting(key="augment.elastic", value=0.015, reason="few images: shapes vary"),
            Setting(key="augment.gamma", value=0.3, reason="few images: exposures vary"),
        ]
    if few or often > MANY_LOOKS:
        return [Setting(key="augment.preset", value="strong", reason=f"{told}: repeats must vary")]
    return [Setting(key="augment.preset", value="medium", reason=told)]


def choose_loss(at: Situation) -> list[Setting]:
    """What is minimised."""
    share = at.fingerprint.mean_foreground
    reason = f"{share:.1%} foreground; the Dice part looks after what is rare"
    return [Setting(key="loss.name", value="bce-dice", reason=reason)]


def choose_optimizer(at: Situation) -> list[Setting]:
    """Rate and decay."""
    batch = at.number("train.batch_size")
    lr = round(1.5e-3 * math.sqrt(min(1.0, batch / 16)), 5)
    return [
        Setting(key="optimizer.name", value="adamw", reason="trains from scratch in few steps"),
        Setting(key="optimizer.lr", value=lr, reason=f"1.5e-3 for batches of 16; here {batch:.0f}"),
        Setting(key="optimizer.weight_decay", value=0.02, reason="with a high peak of the rate"),
    ]


def choose_schedule(at: Situation) -> list[Setting]:
    """How the rate moves."""
    del at
    reason = "rises, then falls to nothing just when the run ends"
    return [
        Setting(key="schedule.name", value="onecycle", reason=reason),
        Setting(key="schedule.rise", value=0.15, reason="a seventh of the run to warm up"),
    ]


def choose_epochs(at: Situation) -> list[Setting]:
    """How long an epoch is, and how many there are."""
    facts = at.fingerprint
    is_tile = at.text("input.resize") == "tile"
    batch = int(at.number("train.batch_size"))
    views = _views(at)
    each = max(LEAST_STEPS, round(views / NUM_EPOCHS / batch)) * batch
    key = "patches.per_epoch" if is_tile else "train.per_epoch"
    value: int | str = each
    reason = f"about {NUM_EPOCHS} validations, which then take a few per cent of the time"
    if "train.epochs" in at.decided and at.budget is None:
        value, reason = "auto" if is_tile else "all", "each epoch is a pass over the images"
        return [
            Setting(key=key, value=value, reason=reason),
            Setting(key="train.epochs", value=at.decided["train.epochs"], reason=""),
        ]
    if not is_tile and facts.num_train / 1.5 <= each <= facts.num_train * 1.5:
        value, each, reason = "all", facts.num_train, f"all {facts.num_train} images"
    epochs = max(1, round(views / each))
    how = "expected in the budget" if at.budget is not None else f"{views:.0f} inputs in all"
    settings = [
        Setting(key=key, value=value, reason=reason),
        Setting(key="train.epochs", value=epochs, reason=how),
    ]
    if at.budget is not None:
        minutes = round(at.budget / 60, 3)
        reason = "the schedule follows the clock, so that the run ends in time"
        settings.append(Setting(key="train.budget_minutes", value=minutes, reason=reason))
    return settings


def choose_average(at: Situation) -> list[Setting]:
    """The moving average of the weights."""
    steps = _views(at) / at.number("train.batch_size")
    decay = round(min(0.998, max(0.9, 1 - 12 / max(steps, 1))), 4)
    reason = f"over about {1 / (1 - decay):.0f} of {steps:.0f} steps: steadier than the last step"
    return [Setting(key="train.ema_decay", value=decay, reason=reason)]
