"""The contract of every encoder with every decoder, and the numbers that the sources state."""

from functools import cache, partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from binseg.config import ModelConfig, Recipe, load_recipe
from binseg.config.named_models import MODELS, Option
from binseg.errors import MissingExtraError, UsageError
from binseg.models import (
    DECODERS,
    ENCODERS,
    OPTIONS,
    build_model,
    create_model,
    num_parameters,
    resolve_options,
)
from binseg.models.skeleton import EncoderDecoder

GRID = [*product(ENCODERS, DECODERS)]
KERAS = ("unet", "keras_unet")


def options_of(encoder: str, decoder: str) -> dict[str, Any]:
    """Make a pair small: 4 channels at the finest level, 8 in the decoder's pyramid."""
    return {"width": 4} | ({"decoder_width": 8} if decoder in ("fpn", "psp", "mlp") else {})


def fresh(encoder: str, decoder: str, **changes: Any) -> nn.Module:
    """Build a new small network; the test is skipped where the optional part it needs is absent."""
    torch.manual_seed(0)
    try:
        return create_model(decoder, encoder=encoder, **(options_of(encoder, decoder) | changes))
    except MissingExtraError as error:
        pytest.skip(str(error))


@cache
def small(encoder: str, decoder: str) -> nn.Module:
    """Give a small network in eval mode; it is shared, so tests must not change it."""
    return fresh(encoder, decoder).eval()


def named(name: str, **options: Any) -> nn.Module:
    """Build a network of `MODELS`."""
    return create_model(**ModelConfig(name=name, options=options).arguments())


def reported(name: str, **options: Any) -> nn.Module:
    """Build the network of a source's recipe for three channels."""
    model = load_recipe(name).model
    return create_model(**(model.arguments() | options))


@pytest.mark.parametrize(("encoder", "decoder"), [*GRID, KERAS])
def test_any_encoder_goes_with_any_decoder(encoder: str, decoder: str) -> None:
    """A pair takes any size and number of channels, learns with all weights, and is reproducible.

    In eval mode an image's logits are the same alone and in company. Biases may have no gradient:
    before a norm, and in attention's keys, theirs is zero.
    """
    model = small(encoder, decoder)
    with torch.inference_mode():
        for height, width in ((1, 1), (1, 70), (17, 33), (64, 48)):
            images_BCHW = torch.rand(2, 3, height, width)
            given = images_BCHW.clone()
            logits_B1HW = model(images_BCHW)
            assert logits_B1HW.shape == (2, 1, height, width)
            assert logits_B1HW.isfinite().all()
            assert torch.equal(images_BCHW, given)
        torch.testing.assert_close(logits_B1HW[1:], model(images_BCHW[1:]), rtol=1e-3, atol=1e-4)
        other = fresh(encoder, decoder, in_channels=5, out_channels=2).eval()
        assert other(torch.rand(1, 5, 16, 16)).shape == (1, 2, 16, 16)

    again = fresh(encoder, decoder).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())
    torch.manual_seed(1)
    other = create_model(decoder, encoder=encoder, **options_of(encoder, decoder))
    assert any(not torch.equal(value, again[key]) for key, value in other.state_dict().items())
    other.eval().load_state_dict(again)
    with torch.inference_mode():
        assert torch.equal(other(images_BCHW), logits_B1HW)

    other.train()
    logits = other(torch.randn(3, 3, 64, 96))
    target_B1HW = (torch.rand(3, 1, 64, 96) > 0.5).float()
    loss = nn.functional.binary_cross_entropy_with_logits(logits, target_B1HW)
    loss.backward()  # type: ignore[no-untyped-call]
    for key, parameter in other.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.ndim < 2 or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        pair
        if pair[1] == "unet" or pair[0] == "resnet18"
        else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in GRID
    ],
)
def test_any_pair_exports(encoder: str, decoder: str) -> None:
    """`torch.export` takes a network whole and the result computes the same."""
    model, images_BCHW = small(encoder, decoder), torch.rand(1, 3, 32, 48)
    program = torch.export.export(model, (images_BCHW,))
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images_BCHW), model(images_BCHW))


@pytest.mark.parametrize(
    "pair",
    [("unet", "unet"), ("resnet34", "unet"), ("efficientnet_lite0", "fpn"), ("mit_b0", "mlp")],
)
def test_bf16_and_channels_last_give_the_same_within_their_precision(pair: tuple[str, str]) -> None:
    """Half precision and the other memory layout change the logits by rounding only."""
    model, images_BCHW = small(*pair), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        exact = model(images_BCHW)
        last = model(images_BCHW.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images_BCHW)
    torch.testing.assert_close(last, exact, rtol=1e-3, atol=1e-4)
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.std() + 0.02


@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_state_the_truth(encoder: str) -> None:
    """Stated parameters, channels and strides are those of the built encoder."""
    entry = ENCODERS[encoder]
    with torch.device("meta"):
        built = entry.build(3, **entry.defaults)
        features = built(torch.empty(1, 3, 64, 64))
    assert num_parameters(built) == entry.num_parameters
    assert tuple(maps.shape[1] for maps in features) == built.channels
    assert tuple(64 // maps.shape[-1] for maps in features) == built.strides
    assert entry.full_size == (built.strides[0] == 1)


@pytest.mark.parametrize("name", MODELS)
def test_named_models_state_their_parameters(name: str) -> None:
    """The count that `binseg models` lists is that of the built network."""
    with torch.device("meta"):
        assert num_parameters(named(name)) == MODELS[name].num_parameters


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pet-unet-plain", 31_031_745),
        ("pet-unet-augmented", 31_043_521),
        ("pet-unet-cosine", 31_037_633),
        ("pet-resnet34-unet-plain", 24_432_321),
        ("pet-resnet34-unet-augmented", 24_452_673),
        ("pet-resnet34-unet-cosine", 24_442_305),
        ("em-unet", 31_031_745),
    ],
)
def test_counts_of_the_sources(name: str, count: int) -> None:
    """The networks of the reports' recipes have as many parameters as the reports print."""
    with torch.device("meta"):
        assert num_parameters(reported(name)) == count


def test_counts_of_the_papers() -> None:
    """U-Net++ and SegFormer B0 have the sizes that their papers state."""
    assert round(MODELS["unetplusplus"].num_parameters / 1e6, 1) == 9.0  # arXiv 1807.10165, table 3
    # arXiv 2105.15203, table 1: 3.8 M with a head of 150 classes on 256 channels.
    assert round((MODELS["segformer-b0"].num_parameters + 149 * 257) / 1e6, 1) == 3.8
    assert all(2e6 < MODELS[f"unet-{name}"].num_parameters < 4e6 for name in ("small", "compact"))
    assert MODELS["lite0-unet"].num_parameters < 4e6


def test_keras_counts_as_the_torch_network() -> None:
    """The Keras U-Net has as many parameters as its torch twin, which is the same network."""
    assert num_parameters(small(*KERAS)) == num_parameters(reported("em-unet", width=4))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            partial(reported, "pet-unet-cosine"),
            [(64, 572), (128, 286), (256, 143), (512, 71), (1024, 35)],
        ),
        (
            partial(reported, "pet-resnet34-unet-cosine"),
            [(64, 286), (64, 143), (128, 72), (256, 36), (512, 18)],
        ),
        (
            partial(reported, "pet-resnet34-unet-plain"),
            [(64, 143), (64, 143), (128, 72), (256, 36), (512, 18)],
        ),
        (
            partial(named, "densenet121-unet"),
            [(64, 286), (256, 143), (512, 71), (1024, 35), (1024, 17)],
        ),
        (partial(named, "resnet34-psp"), [(64, 286), (64, 143), (128, 72), (256, 72), (512, 72)]),
        (partial(named, "segformer-b0"), [(32, 143), (64, 72), (160, 36), (256, 18)]),
        (
            partial(named, "lite0-unet"),
            [(16, 286), (24, 143), (40, 72), (112, 36), (320, 18)],
        ),
    ],
)
def test_feature_sizes_at_572(build: Any, expected: list[tuple[int, int]]) -> None:
    """Level by level, 572 x 572 pixels become the maps that report D lists, and come back."""
    with torch.device("meta"):
        model, images_BCHW = build(), torch.empty(1, 3, 572, 572)
    assert isinstance(model, EncoderDecoder)
    features = model.encoder(images_BCHW)
    assert [tuple(maps.shape[1:]) for maps in features] == [(c, s, s) for c, s in expected]
    assert model.encoder.channels == tuple(channels for channels, _ in expected)
    assert model(images_BCHW).shape == (1, 1, 572, 572)


@pytest.mark.parametrize(("encoder", "decoder"), GRID)
def test_every_option_does_something(encoder: str, decoder: str) -> None:
    """Each option of each pair changes its weights' shapes, its layers or its settings."""
    plain = _described(encoder, decoder, {})
    for option, old in resolve_options(decoder, encoder).items():
        rule = OPTIONS[option]
        other: Option
        if rule.choices:
            other = next(choice for choice in rule.choices if choice != old)
        else:
            other = {bool: not old, int: 3, float: 0.5}[rule.kind]
        assert _described(encoder, decoder, {option: other}) != plain, option


def _described(encoder: str, decoder: str, options: dict[str, Option]) -> list[str]:
    """List all layers of a network with what they were made of."""
    with torch.device("meta"):
        model = create_model(decoder, encoder=encoder, **(options_of(encoder, decoder) | options))
    return [
        f"{key} {part!r} {vars(part).get('drop_path')} {vars(part).get('style')} "
        f"{vars(part).get('stem_after_pool')}"
        for key, part in model.named_modules()
        if not isinstance(part, nn.Sequential | nn.ModuleList | EncoderDecoder)
    ]


@pytest.mark.parametrize("decoder", DECODERS)
def test_defaults_are_legal(decoder: str) -> None:
    """The defaults pass the rules that given options must pass."""
    for encoder in ENCODERS:
        defaults = resolve_options(decoder, encoder)
        assert resolve_options(decoder, encoder, defaults) == defaults


def test_every_option_is_somebodys() -> None:
    """The table of options holds no option that no part has."""
    defaults = [row.defaults for row in ENCODERS.values()]
    defaults += [row.defaults for row in DECODERS.values()]
    assert {name for one in defaults for name in one} == OPTIONS.keys()


@pytest.mark.parametrize("join", ["pad", "resize-up", "resize-skip"])
@pytest.mark.parametrize("output_stride", [8, 32])
@pytest.mark.parametrize("stem_feature", ["before-pool", "after-pool"])
def test_a_decoder_keeps_things_in_their_place(
    join: str, output_stride: int, stem_feature: str
) -> None:
    """However an encoder strides, what it finds in the last corner comes out in the last corner."""
    model = create_model(
        encoder="resnet18", width=4, join=join, output_stride=output_stride,
        stem_feature=stem_feature, norm="none", final_convs=2,
    )  # fmt: skip
    assert isinstance(model, EncoderDecoder)
    assert model.decoder.reaches[-1] == 1  # type: ignore[index]
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.abs_() if parameter.ndim > 1 else parameter.zero_()
        features = model.encoder(torch.zeros(1, 3, 256, 256))
        for maps in features:
            maps.zero_()[..., -1, -1] = 1.0
        seen_HW = model.decoder(features, (256, 256))[0].sum(dim=0)
    rows, columns = torch.nonzero(seen_HW, as_tuple=True)
    assert seen_HW.shape == (256, 256)
    assert min(rows.min(), columns.min()) > 96
    assert max(rows.max(), columns.max()) == 255


def test_named_models_are_what_a_recipe_spells_out() -> None:
    """A name stands for its pair and options; keys beside it change it, another part voids them."""
    assert ModelConfig(name="unet-compact", options={"width": 8}) == ModelConfig(
        decoder="unet",
        encoder="resnet_compact",
        options={"decoder_convs": 1, "skip_first": True, "up": "bilinear", "final_convs": 0,
                 "width": 8},
    )  # fmt: skip
    changed = ModelConfig(name="unet-compact", encoder="resnet18")
    assert (changed.encoder, changed.decoder, changed.options) == ("resnet18", "unet", {})
    assert changed.name == "resnet18-unet"
    assert ModelConfig.model_validate(changed.model_dump()) == changed
    with pytest.raises(ValueError, match="no model unett; did you mean unet"):
        ModelConfig(name="unett")


def test_a_recipes_network_follows_from_its_seed() -> None:
    """`build_model` gives equal weights whatever was sampled before, and moves no generator."""
    recipe = Recipe.model_validate(
        {"model": {"name": "unet", "options": {"width": 2}}, "input": {"channels": 2}}
    )
    first = build_model(recipe).state_dict()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    second = build_model(recipe).state_dict()
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert build_model(recipe).eval()(torch.rand(1, 2, 8, 8)).shape == (1, 1, 8, 8)


def test_misspelt_names_are_refused_with_the_nearest() -> None:
    """A misspelt part is refused with what was meant and what there is, not replaced."""
    with pytest.raises(UsageError, match=r"no encoder resnet43; did you mean resnet\d+"):
        create_model("unet", encoder="resnet43")
    with pytest.raises(UsageError, match=r"no decoder fnp; did you mean fpn\? accepted: "):
        create_model("fnp")
    with pytest.raises(UsageError, match="its encoder is unet, not resnet34"):
        create_model("keras_unet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 8}, r"no option widht; did you mean width\? accepted: bias, decoder_convs"),
        ({"final_convs": 1}, "unet on unet has no option final_convs"),
        ({"width": "8"}, "width of unet on unet is '8'; it takes a whole number from 1 to 1024"),
        ({"width": True}, "width of unet on unet is True; it takes a whole number"),
        ({"width": 8.5}, r"width of unet on unet is 8\.5; it takes a whole number"),
        ({"width": 0}, "width of unet on unet is 0; it takes a whole number"),
        ({"norm": "btach"}, "norm of unet on unet is 'btach'; it takes batch or group or none"),
        ({"dropout": 1}, r"dropout of unet on unet is 1; it takes a number from 0 to 0\.9"),
        ({"dropout": float("nan")}, "dropout of unet on unet is nan; it takes a number"),
        ({"bias": 1}, "bias of unet on unet is 1; it takes true or false"),
        ({"up": None}, "up of unet on unet is None; it takes transpose or bilinear or nearest"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Option], message: str) -> None:
    """A wrong option is one line that says what was given and what is accepted."""
    with pytest.raises(UsageError, match=message):
        create_model("unet", encoder="unet", **options)  # type: ignore[arg-type]


def test_a_stride_between_the_choices_is_refused() -> None:
    """Numbers with choices take no others."""
    with pytest.raises(UsageError, match="it takes 8 or 16 or 32"):
        create_model("psp", output_stride=12)


@pytest.mark.parametrize("name", ["in_channels", "out_channels"])
def test_no_channels_is_refused(name: str) -> None:
    """Images and logits have at least one channel."""
    with pytest.raises(UsageError, match=f"{name} is 0"):
        create_model(**{name: 0})  # type: ignore[arg-type]


def test_whole_numbers_are_good_as_shares() -> None:
    """`dropout: 0` in YAML is a float's zero."""
    resolved = resolve_options("unet", "unet", {"dropout": 0})["dropout"]
    assert resolved == 0.0
    assert isinstance(resolved, float)
