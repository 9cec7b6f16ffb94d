"""What every network of the zoo promises, and the numbers that its sources state."""

import inspect
from functools import cache

import pytest
import torch
from torch import nn

from binseg.config.recipe import Option
from binseg.errors import MissingExtraError, UsageError
from binseg.models import MODELS, build_model, num_parameters, resolve_options
from binseg.models.options import OPTIONS
from binseg.models.skeleton import EncoderDecoder

SMALL: dict[str, dict[str, Option]] = {
    "unet": {"width": 4},
    "unet-a": {"width": 4},
    "unet-b": {"width": 4},
    "resnet34-unet": {"width": 4},
    "resnet34-unet-a": {"width": 4},
    "resnet34-unet-b": {"width": 4},
    "unet-small": {"width": 4},
    "unet-compact": {"width": 4},
    "unetplusplus": {"width": 4},
    "attention-unet": {"width": 4},
    "resnet34-fpn": {"width": 4, "decoder_width": 8},
    "resnet34-psp": {"width": 4, "decoder_width": 8},
    "densenet121-unet": {"width": 4},
    "segformer-b0": {"width": 4, "decoder_width": 8},
    "keras-unet": {"width": 4},
}
OF_TORCH = [name for name in SMALL if name != "keras-unet"]


@cache
def small(name: str) -> nn.Module:
    """A small network of this name in eval mode; shared, so tests must not change it."""
    return fresh(name).eval()


def fresh(name: str, *, in_channels: int = 3) -> nn.Module:
    """A new small network; the test is skipped where the optional part it needs is absent."""
    torch.manual_seed(0)
    try:
        return build_model(name, in_channels=in_channels, options=SMALL[name])
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_every_model_is_tested_here() -> None:
    """A model that is added to the zoo must be added to these tests."""
    assert list(SMALL) == list(MODELS)
    assert all(entry.name == name for name, entry in MODELS.items())


@pytest.mark.parametrize("name", SMALL)
def test_logits_have_the_size_of_the_input(name: str) -> None:
    """Any size from one pixel works in eval mode, divisible by nothing or larger one way."""
    model = small(name)
    with torch.inference_mode():
        for height, width in ((1, 1), (1, 70), (17, 33), (64, 48)):
            logits_B1HW = model(torch.rand(2, 3, height, width))
            assert logits_B1HW.shape == (2, 1, height, width)
            assert logits_B1HW.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_any_number_of_channels(name: str) -> None:
    """Grey and five-channel images are as good as RGB."""
    for in_channels in (1, 5):
        model = fresh(name, in_channels=in_channels).eval()
        with torch.inference_mode():
            assert model(torch.rand(1, in_channels, 16, 16)).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("name", SMALL)
def test_all_weights_learn(name: str) -> None:
    """One backward pass brings a finite gradient to every parameter, and a non-zero one to weights.

    Biases are left out of the second half: before a norm, and in attention's keys, theirs is zero.
    """
    model = fresh(name).train()
    logits_B1HW = model(torch.randn(3, 3, 64, 48))
    target_B1HW = (torch.rand(3, 1, 64, 48) > 0.5).float()
    loss = nn.functional.binary_cross_entropy_with_logits(logits_B1HW, target_B1HW)
    loss.backward()  # type: ignore[no-untyped-call]
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.ndim < 2 or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", SMALL)
def test_first_weights_follow_the_seed(name: str) -> None:
    """The same seed gives the same network to the bit; another seed gives another."""
    first, again = fresh(name).state_dict(), fresh(name).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    torch.manual_seed(1)
    other = build_model(name, options=SMALL[name]).state_dict()
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", SMALL)
def test_images_of_a_batch_do_not_know_each_other(name: str) -> None:
    """In eval mode an image's logits are the same alone and in company; inputs stay as given."""
    model, images_BCHW = small(name), torch.rand(3, 3, 40, 33)
    before = images_BCHW.clone()
    with torch.inference_mode():
        together = model(images_BCHW)
        alone = model(images_BCHW[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)
    assert torch.equal(images_BCHW, before)


@pytest.mark.parametrize("name", SMALL)
def test_weights_carry_everything(name: str) -> None:
    """A network of other first weights gives the same logits once it has the state dict."""
    torch.manual_seed(7)
    copy = build_model(name, options=SMALL[name]).eval() if name in OF_TORCH else fresh(name).eval()
    copy.load_state_dict(small(name).state_dict())
    images_BCHW = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(copy(images_BCHW), small(name)(images_BCHW))


@pytest.mark.parametrize("name", ["unet", "resnet34-unet", "unet-small", "segformer-b0"])
def test_bf16_and_channels_last_give_the_same_within_their_precision(name: str) -> None:
    """Half precision and the other memory layout change the logits by rounding only."""
    model, images_BCHW = small(name), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        exact = model(images_BCHW)
        last = model(images_BCHW.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images_BCHW)
    torch.testing.assert_close(last, exact, rtol=1e-3, atol=1e-4)
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.std() + 0.02


@pytest.mark.parametrize("name", ["unet", "resnet34-psp", "segformer-b0"])
def test_networks_export(name: str) -> None:
    """`torch.export` takes a network whole and the result computes the same."""
    model, images_BCHW = small(name), torch.rand(1, 3, 32, 48)
    program = torch.export.export(model, (images_BCHW,))
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images_BCHW), model(images_BCHW))


@pytest.mark.parametrize("name", OF_TORCH)
def test_stated_parameter_counts(name: str) -> None:
    """The count that `binseg models` lists is that of the built network."""
    with torch.device("meta"):
        assert num_parameters(build_model(name)) == MODELS[name].num_parameters


def test_keras_counts_as_the_torch_network() -> None:
    """The Keras U-Net has as many parameters as report A's, which is the same network."""
    ours = build_model("unet-a", options=SMALL["unet-a"])
    assert num_parameters(small("keras-unet")) == num_parameters(ours)
    assert MODELS["keras-unet"].num_parameters == MODELS["unet-a"].num_parameters


def test_counts_of_the_sources() -> None:
    """The figures that reports and papers print are those of the zoo."""
    counts = {name: entry.num_parameters for name, entry in MODELS.items()}
    assert counts["unet"] == 31_037_633  # report D
    assert counts["unet-a"] == 31_031_745  # report A
    assert counts["unet-b"] == 31_043_521  # report B
    assert counts["resnet34-unet-a"] == 24_432_321  # report A
    assert round(counts["unetplusplus"] / 1e6, 1) == 9.0  # arXiv 1807.10165, table 3: 9.04 M
    assert all(2_000_000 < counts[f"unet-{name}"] < 4_000_000 for name in ("small", "compact"))
    # arXiv 2105.15203, table 1: 3.8 M with a head of 150 classes on 256 channels.
    assert round((counts["segformer-b0"] + 149 * 257) / 1e6, 1) == 3.8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet", [(64, 572), (128, 286), (256, 143), (512, 71), (1024, 35)]),
        ("resnet34-unet", [(64, 286), (64, 143), (128, 72), (256, 36), (512, 18)]),
        ("resnet34-unet-a", [(64, 143), (64, 143), (128, 72), (256, 36), (512, 18)]),
        ("densenet121-unet", [(64, 286), (256, 143), (512, 71), (1024, 35), (1024, 17)]),
        ("resnet34-psp", [(64, 286), (64, 143), (128, 72), (256, 72), (512, 72)]),
        ("segformer-b0", [(32, 143), (64, 72), (160, 36), (256, 18)]),
    ],
)
def test_feature_sizes_at_572(name: str, expected: list[tuple[int, int]]) -> None:
    """Level by level, 572 x 572 pixels become the maps that report D lists, and come back."""
    with torch.device("meta"):
        model, images_BCHW = build_model(name), torch.empty(1, 3, 572, 572)
    assert isinstance(model, EncoderDecoder)
    features = model.encoder(images_BCHW)
    assert [tuple(maps.shape[1:]) for maps in features] == [(c, s, s) for c, s in expected]
    assert model.encoder.channels == tuple(channels for channels, _ in expected)
    assert model(images_BCHW).shape == (1, 1, 572, 572)


def test_strides_are_true() -> None:
    """Each encoder's stated strides are those of its feature maps."""
    for name in OF_TORCH:
        model = small(name)
        assert isinstance(model, EncoderDecoder)
        with torch.inference_mode():
            features = model.encoder(torch.rand(1, 3, 64, 64))
        assert tuple(64 // maps.shape[-1] for maps in features) == model.encoder.strides, name


@pytest.mark.parametrize("name", OF_TORCH)
def test_every_option_does_something(name: str) -> None:
    """Each option of each model changes its weights' shapes, its layers or its settings."""
    plain = _described(name, {})
    for option, old in resolve_options(name, {}).items():
        rule = OPTIONS[option]
        other: Option
        if rule.choices:
            other = next(choice for choice in rule.choices if choice != old)
        else:
            other = {bool: not old, int: 3, float: 0.5}[rule.kind]
        assert _described(name, {option: other}) != plain, option


def _described(name: str, options: dict[str, Option]) -> list[str]:
    """All layers of a network with what they were made of."""
    with torch.device("meta"):
        model = build_model(name, options=SMALL[name] | options)
    return [
        f"{key} {part!r} {vars(part).get('drop_path')}"
        for key, part in model.named_modules()
        if not isinstance(part, nn.Sequential | nn.ModuleList | EncoderDecoder)
    ]


@pytest.mark.parametrize("name", SMALL)
def test_options_are_those_that_the_builder_takes(name: str) -> None:
    """The defaults are legal, and name exactly the keywords that the builder insists on."""
    taken = {
        parameter.name
        for parameter in inspect.signature(MODELS[name].build).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
    assert set(MODELS[name].defaults) == taken
    assert resolve_options(name, MODELS[name].defaults) == MODELS[name].defaults


def test_an_unknown_model_is_named_with_the_nearest() -> None:
    """A misspelt model is refused with what was meant and what there is, not replaced."""
    with pytest.raises(UsageError, match=r"no model resnet34-unte \(did you mean resnet34-unet"):
        build_model("resnet34-unte")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 8}, r"no option widht \(did you mean width\?\); it has bias, depth, dropout"),
        ({"width": "8"}, "width of model unet is '8'; it takes a whole number from 1 to 1024"),
        ({"width": True}, "width of model unet is True; it takes a whole number"),
        ({"width": 8.5}, r"width of model unet is 8\.5; it takes a whole number"),
        ({"width": 0}, "width of model unet is 0; it takes a whole number"),
        ({"norm": "btach"}, "norm of model unet is 'btach'; it takes batch or group or none"),
        ({"dropout": 1}, r"dropout of model unet is 1; it takes a number from 0 to 0\.9"),
        ({"dropout": float("nan")}, "dropout of model unet is nan; it takes a number"),
        ({"bias": 1}, "bias of model unet is 1; it takes true or false"),
        ({"up": None}, "up of model unet is None; it takes transpose or bilinear or nearest"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Option], message: str) -> None:
    """A wrong option is one line that says what was given and what is accepted."""
    with pytest.raises(UsageError, match=message):
        build_model("unet", options=options)


def test_a_stride_between_the_choices_is_refused() -> None:
    """Numbers with choices take no others."""
    with pytest.raises(UsageError, match="it takes 8 or 16 or 32"):
        build_model("resnet34-psp", options={"output_stride": 12})


def test_no_channels_is_refused() -> None:
    """Images have at least one channel."""
    with pytest.raises(UsageError, match="0 input channels"):
        build_model("unet", in_channels=0)


def test_whole_numbers_are_good_as_shares() -> None:
    """`dropout: 0` in YAML is a float's zero."""
    resolved = resolve_options("unet", {"dropout": 0})["dropout"]
    assert resolved == 0.0
    assert isinstance(resolved, float)
