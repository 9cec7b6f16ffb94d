"""Rules of what the network sees: whole images or patches, how large, how often."""

from binseg.autoconfig.fingerprint import SCALES, SIZES, Fingerprint
from binseg.autoconfig.situation import Setting, Situation

__all__ = [
    "LEAST_JUDGES",
    "choose_finish",
    "choose_fit",
    "choose_model",
    "choose_patches",
    "choose_progressive",
    "choose_size",
    "model_for",
    "needed_scale",
    "needed_size",
    "num_mirrors",
    "num_views",
    "patch_passes",
    "scoring_seconds",
    "smaller_sizes",
]

GOAL = 0.98
"""Dice that a perfect mask must keep at the chosen size: what is lost there no network finds."""
FINE_GOAL = 0.99
"""What is aimed at where there is time."""
SCALE_PASSES = 60
"""Passes over the images that a finer scale must leave."""
GOAL_AT_HALF = 0.93
"""Likewise at half that size, where unet-compact answers. Less is asked, since its soft answer is
learnt through the doubling, and so places an edge more finely than in whole pixels."""
LEAST_SIZE, MOST_SIZE = 128, 256
"""Of whole images. Below, deep maps have hardly a cell; above, patches cost less."""
PATCH = 256
PATCHES = (256, 192, 128)
"""Sides of patches, the best first; smaller ones where time is short."""
PASSES = 50
"""How often whole images should be seen in a run from scratch; see the results' page."""
LEAST_VIEWS = 12_000
"""Inputs that a run should see, however few images there are: 1,500 steps of 8."""
SHRINK = ((0.5, 0.35), (0.75, 0.30))
"""Sizes of the first epochs as a share of the last one, and the share of time for each."""
PATCH_SHRINK = ((0.5, 0.5),)
SMALLEST = 96
"""Below, the deepest maps have no more than 2x2 cells."""
ENLARGE = 1.34
"""Small images are enlarged by at most this."""
FITS = 1.25
"""Where nearly all images are at most this many times the largest input, the typical one less
than it, whole images did better than patches in which each is seen by chance."""
MOST_UNLIMITED = 320
STEP_SHARE = 0.88
"""Of the time for epochs, what is steps; the rest is validation and files."""
FINE_AT_HALF = 0.85
"""Where a perfect mask at half the size keeps less, a first map at half the size is too coarse."""
FINE_PASSES = 30
"""Passes that unet at full size must still reach to be worth its time."""
LEAST_JUDGES = 4
"""Validation images that can choose between epochs or thresholds."""
FINISH_SHARE = 0.12
"""Of the budget, what scoring may take for the sake of mirror images."""
LARGE_VIEWS, LARGE_TRAIN = 100_000, 300
"""Inputs and training images that resnet34-unet needs to be worth six times the time; and a GPU:
in hours of a processor the smaller networks did better (see the results' page)."""
THICK_OPTIONS: dict[str, int] = {"width": 16}
"""Of `unet`, whose first map is at full size, as narrow as the smaller networks' first maps."""


def needed_size(fingerprint: Fingerprint, goal: float = GOAL) -> int | None:
    """The least side of square inputs at which a perfect mask keeps the goal; None if none does."""
    return next((size for size in SIZES if fingerprint.kept_at_size[size] >= goal), None)


def needed_scale(fingerprint: Fingerprint, goal: float = GOAL) -> float:
    """The least factor of the images' own size at which a perfect mask keeps the goal."""
    kept = fingerprint.kept_at_scale
    return next((scale for scale in SCALES if kept[scale] >= goal), 1.0)


def model_for(kept_at_half: float) -> str:
    """The network for things of which half the size keeps so much."""
    return "unet-compact" if kept_at_half >= GOAL_AT_HALF else "unet-small"


def choose_fit(at: Situation) -> list[Setting]:
    """Whole images, or patches of them; and the patches' scale."""
    facts = at.fingerprint
    need = needed_size(facts)
    if at.decided.get("input.resize") == "tile" and need is not None and need <= MOST_SIZE:
        scale, why = _scale(at)
        return [
            Setting(key="input.resize", value="tile", reason="patches"),
            Setting(key="input.scale", value=scale, reason=why),
        ]
    middle, most = (max(facts.height[row], facts.width[row]) for row in (1, 2))
    is_small = middle <= MOST_SIZE and most <= FITS * MOST_SIZE
    is_thin = facts.kept_at_scale[0.5] < FINE_AT_HALF
    if is_small and is_thin and "input.resize" not in at.decided:
        reason = (
            f"at half the size a perfect mask keeps only Dice {facts.kept_at_scale[0.5]:.3f}: thin "
            "things need the images' own pixels, and a network that answers in them"
        )
        why = "small images need no reduction"
        return [
            Setting(key="input.resize", value="tile", reason=reason),
            Setting(key="input.scale", value=1.0, reason=why),
        ]
    kept = f"a perfect mask made at {MOST_SIZE}x{MOST_SIZE} keeps Dice "
    kept += f"{facts.kept_at_size[MOST_SIZE]:.3f}"
    if need is not None and need <= MOST_SIZE:
        wide = facts.aspect[2] / max(facts.aspect[0], 1e-9)
        if wide > 1.8:
            reason = f"{kept}; shapes of images differ {wide:.1f} times, so the aspect is kept"
            return [Setting(key="input.resize", value="letterbox", reason=reason)]
        reason = f"{kept}, so whole images lose nothing that matters"
        return [Setting(key="input.resize", value="stretch", reason=reason)]
    if is_small and "input.resize" not in at.decided:
        reason = f"the typical image has {middle:.0f} pixels a side: it is seen whole"
        return [Setting(key="input.resize", value="stretch", reason=reason)]
    if at.decided.get("input.resize") in {"stretch", "letterbox"}:
        return [Setting(key="input.resize", value="stretch", reason=kept)]
    scale, why = _scale(at)
    return [
        Setting(
            key="input.resize",
            value="tile",
            reason=f"{kept}: the things are too small or thin for whole images",
        ),
        Setting(key="input.scale", value=scale, reason=why),
    ]


def _scale(at: Situation) -> tuple[float, str]:
    """The least scale that keeps the goal, or a finer one that the budget affords."""
    facts = at.fingerprint
    least, fine = needed_scale(facts), needed_scale(facts, FINE_GOAL)
    fitting = [
        one
        for one in SCALES
        if least <= one <= fine and (at.budget is None or _passes_at(at, one) >= SCALE_PASSES)
    ]
    scale = max(fitting, default=least)
    if scale < 1.0:
        return scale, (
            f"{scale:g} of the own size keeps Dice {facts.kept_at_scale[scale]:.3f}, costs "
            f"{scale**2:.0%} of the pixels and shows more surroundings"
        )
    return 1.0, f"at half the size only Dice {facts.kept_at_scale[0.5]:.3f} could be kept"


def _passes_at(at: Situation, scale: float) -> float:
    """How often all images would be seen at a scale, by the network that it would get."""
    name = model_for(_between(at.fingerprint.kept_at_scale, scale / 2))
    if name not in at.machine.seconds_per_megapixel:  # the user chose another
        name = next(iter(at.machine.seconds_per_megapixel))
    return patch_passes(at.after([Setting(key="input.scale", value=scale, reason="")]), name)


def choose_model(at: Situation) -> list[Setting]:
    """The network, by the finest thing that it must answer."""
    facts = at.fingerprint
    if at.text("input.resize") == "tile":
        half = at.number("input.scale") / 2
        kept = _between(facts.kept_at_scale, half)
    else:
        half = (needed_size(facts) or MOST_SIZE) / 2
        # Whole images may become larger than needed, never smaller.
        kept = _between({float(k): v for k, v in facts.kept_at_size.items()}, max(half, 64.0))
    name = model_for(kept)
    if name == "unet-small" and at.text("input.resize") == "tile" and kept < FINE_AT_HALF:
        fine = _fine_model(at, kept)
        if fine:
            return fine
    if name == "unet-compact" and _affords_large(at):
        reason = f"{facts.num_train} training images and time for {LARGE_VIEWS} of them at least"
        return [Setting(key="model.name", value="resnet34-unet", reason=reason)]
    what = f"at half the inputs' size a perfect mask keeps Dice {kept:.3f}"
    reason = {
        "unet-compact": f"{what}, so that a network that answers there will do, and is twice as "
        "fast",
        "unet-small": f"{what}: too little for a network that answers there",
    }[name]
    return [Setting(key="model.name", value=name, reason=reason)]


def _fine_model(at: Situation, kept: float) -> list[Setting]:
    """The network whose first map is at full size, where there is the time."""
    if "unet" not in at.machine.seconds_per_megapixel:
        return []
    often = "often enough"
    if at.budget is not None:
        passes = patch_passes(at, "unet")
        tried = at.after([Setting(key="model.name", value="unet", reason="")])
        if passes < FINE_PASSES or num_views(tried, PATCH) < LEAST_VIEWS:
            return []
        often = f"{passes:.0f} times"
    reason = (
        f"at half the size a perfect mask keeps only Dice {kept:.3f}: the first map is at full "
        f"size, and the budget still shows every part {often}"
    )
    return [
        Setting(key="model.name", value="unet", reason=reason),
        Setting(key="model.options", value=dict(THICK_OPTIONS), reason="narrow, for its speed"),
    ]


def _affords_large(at: Situation) -> bool:
    facts = at.fingerprint
    if at.machine.device != "cuda" or facts.num_train < LARGE_TRAIN:
        return False
    if "resnet34-unet" not in at.machine.seconds_per_megapixel:  # the user chose another
        return False
    views = LARGE_VIEWS * MOST_SIZE**2 / 1e6
    return at.budget is None or _megapixels(at, "resnet34-unet") >= views


def _between(kept: dict[float, float], at: float) -> float:
    """Read a table between its lines."""
    keys = sorted(kept)
    below = max((key for key in keys if key <= at), default=keys[0])
    above = min((key for key in keys if key >= at), default=keys[-1])
    if above == below:
        return kept[below]
    share = (at - below) / (above - below)
    return kept[below] * (1 - share) + kept[above] * share


def num_views(at: Situation, size: int) -> float:
    """How many inputs of this final size a run sees, its smaller first ones counted alike."""
    steps = smaller_sizes(size, is_tile=at.text("input.resize") == "tile")
    gain = 1 + sum(share * ((size / small) ** 2 - 1) for small, share in steps.items())
    return _megapixels(at, at.text("model.name")) / (size**2 / 1e6) * gain


def smaller_sizes(size: int, *, is_tile: bool) -> dict[int, float]:
    """The sizes before the last one, and each one's share of the run.

    >>> smaller_sizes(256, is_tile=False)
    {128: 0.35, 192: 0.3}
    """
    steps: dict[int, float] = {}
    for factor, share in PATCH_SHRINK if is_tile else SHRINK:
        smaller = round(size * factor / 32) * 32
        if SMALLEST <= smaller < size:
            steps[smaller] = steps.get(smaller, 0.0) + share
    return steps


def _megapixels(at: Situation, model: str) -> float:
    """How much a run of this network sees."""
    seconds = at.training_seconds
    assert seconds is not None
    return STEP_SHARE * seconds / at.machine.typical(model)


def patch_passes(at: Situation, model: str) -> float:
    """How often the area of all training images is seen in patches."""
    facts = at.fingerprint
    scale = at.number("input.scale")
    area = facts.num_train * facts.height[1] * facts.width[1] * scale**2 / 1e6
    return _megapixels(at, model) / area


def choose_size(at: Situation) -> list[Setting]:
    """The side of the inputs."""
    facts = at.fingerprint
    if at.text("input.resize") == "tile":
        return [_patch_size(at)]
    least = max(LEAST_SIZE, needed_size(facts) or MOST_SIZE)
    most = MOST_UNLIMITED if at.budget is None else MOST_SIZE
    longest = ENLARGE * max(facts.height[1], facts.width[1])
    most = max(least, min(most, -(-int(longest) // 32) * 32))
    sizes = [size for size in range(LEAST_SIZE, most + 1, 32) if size >= least] or [most]
    if at.budget is None:
        reason = "time doesn't matter; larger would tell little more"
        return [Setting(key="input.size", value=sizes[-1], reason=reason)]
    asked = max(PASSES * facts.num_train, LEAST_VIEWS)
    fitting = [size for size in sizes if num_views(at, size) >= asked]
    size = fitting[-1] if fitting else sizes[0]
    views = num_views(at, size) / facts.num_train
    reason = f"a perfect mask keeps Dice {_kept_at_size(facts, size):.3f} there"
    if size < sizes[-1]:
        reason += f"; of larger inputs the budget would show fewer than {asked:,}"
    reason += f"; each image is seen about {views:.0f} times"
    return [Setting(key="input.size", value=size, reason=reason)]


def _kept_at_size(facts: Fingerprint, size: int) -> float:
    return _between({float(k): v for k, v in facts.kept_at_size.items()}, float(size))


def _patch_size(at: Situation) -> Setting:
    facts = at.fingerprint
    scale = at.number("input.scale")
    largest = max(facts.height[2], facts.width[2]) * scale
    size = PATCH
    if largest <= PATCH:
        size = max(LEAST_SIZE, -(-int(largest) // 32) * 32)
        reason = f"covers whole images of up to {largest:.0f} pixels at this scale"
    else:
        if at.budget is not None:
            fitting = [one for one in PATCHES if num_views(at, one) >= LEAST_VIEWS]
            size = fitting[0] if fitting else PATCHES[-1]
        reason = f"{size / scale:.0f} pixels of the images, of which the typical one has "
        reason += f"{facts.width[1]:.0f}x{facts.height[1]:.0f}"
        if size < PATCH:
            reason += f"; of larger ones the budget would show fewer than {LEAST_VIEWS:,}"
    return Setting(key="input.size", value=size, reason=reason)


def choose_progressive(at: Situation) -> list[Setting]:
    """Smaller inputs first."""
    size = int(at.number("input.size"))
    is_tile = at.text("input.resize") == "tile"
    steps = smaller_sizes(size, is_tile=is_tile)
    what = "patches" if is_tile else "images"
    reason = f"smaller {what} first: several times as many in the same time"
    if not steps:
        reason = f"still smaller {what} would show too little"
    return [Setting(key="train.progressive", value=steps, reason=reason)]


def choose_patches(at: Situation) -> list[Setting]:
    """How patches are drawn and blended; nothing for whole images."""
    if at.text("input.resize") != "tile":
        return []
    facts = at.fingerprint
    rare = min(facts.mean_foreground, 1 - facts.mean_foreground)
    share = 0.5 if rare < 0.05 else 0.33
    reason = f"{facts.mean_foreground:.1%} of the pixels are foreground"
    if rare < 0.05:
        reason += ": half of the patches are laid around the rarer side"
    settings = [Setting(key="patches.foreground", value=share, reason=reason)]
    seconds = scoring_seconds(at)
    slow = at.budget is not None and seconds > 0.2 * at.budget
    reason = "tiles overlap so that no seam shows"
    if slow:
        reason = f"little, since scoring {facts.num_val} validation images takes long"
    overlap = 0.1 if slow else 0.25
    return [*settings, Setting(key="input.overlap", value=overlap, reason=reason)]


def choose_finish(at: Situation) -> list[Setting]:
    """What validation tries on the answers once the network has learnt."""
    num = at.fingerprint.num_val
    value = "tune"
    reason = "specks, holes or lesser objects are taken away where validation says that it helps"
    if num < LEAST_JUDGES:
        value, reason = "none", f"{num} validation images can't tell what helps"
    elif at.decided.get("train.threshold", "tune") != "tune":
        value, reason = "none", "a fixed threshold is for the network's own answer"
    settings = [Setting(key="train.postprocess", value=value, reason=reason)]
    times = num_mirrors(at)
    value = "tune"
    if times == 1:
        value, reason = "none", "mirror images would be other images"
    elif at.budget is not None and times * scoring_seconds(at) > FINISH_SHARE * at.budget:
        value, reason = "none", f"to score {num} validation images so often would take too long"
    else:
        reason = f"the mean over {times} mirror images is taken where validation says that it helps"
    settings.append(Setting(key="train.tta", value=value, reason=reason))
    if num < LEAST_JUDGES:
        reason = f"{num} validation images can't choose one: what fits them best is worse on others"
        settings.append(Setting(key="train.threshold", value=0.5, reason=reason))
    return settings


def num_mirrors(at: Situation) -> int:
    """How many mirror images of an image, itself included, could be of the same data."""
    return {"any": 4, "upright": 2}.get(at.text("augment.orientation"), 1)


def scoring_seconds(at: Situation) -> float:
    """Predicting the validation images twice in float32, by the time of training in bfloat16."""
    facts = at.fingerprint
    if at.text("input.resize") == "tile":
        pixels = facts.height[1] * facts.width[1] * at.number("input.scale") ** 2 * 1.2
    else:
        pixels = at.number("input.size") ** 2
    per_megapixel = 0.5 * at.machine.typical(at.text("model.name"))
    return 2 * facts.num_val * pixels / 1e6 * per_megapixel
