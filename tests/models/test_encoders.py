"""Encoders: torchvision's names and counts, and parts against a plain computation."""

import torch

from binseg.models.encoders.convolutional import (
    MOBILENET_V2,
    DenseNetEncoder,
    MobileEncoder,
    ResNetEncoder,
)
from binseg.models.encoders.mix_transformer import Block, EfficientAttention


def test_resnet34_is_torchvisions_without_the_classifier() -> None:
    """Names and count are those of torchvision's resnet34 (21,797,672) less fc (513,000)."""
    with torch.device("meta"):
        encoder = ResNetEncoder(3)
    names = set(encoder.state_dict())
    assert len(names) == 216
    assert sum(p.numel() for p in encoder.parameters()) == 21_797_672 - 513_000
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv1.weight",
        "layer1.2.bn2.num_batches_tracked",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.bias",
        "layer3.5.conv2.weight",
        "layer4.2.bn2.weight",
    } <= names
    assert not any("conv" in name and name.endswith("bias") for name in names)


def test_densenet121_is_torchvisions_without_the_classifier() -> None:
    """Names and count are those of torchvision's densenet121 (7,978,856) less its classifier."""
    with torch.device("meta"):
        encoder = DenseNetEncoder(3)
    assert sum(p.numel() for p in encoder.parameters()) == 7_978_856 - 1_025_000
    assert {
        "features.conv0.weight",
        "features.norm0.weight",
        "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock3.denselayer24.conv2.weight",
        "features.transition3.norm.running_mean",
        "features.transition3.conv.weight",
        "features.norm5.bias",
    } <= set(encoder.state_dict())


def test_depthwise_convolutions_train_in_float32_on_processors() -> None:
    """Mixed precision is for the other convolutions; maps stay within bf16's rounding."""
    encoder = MobileEncoder(3, width=8, stages=MOBILENET_V2, tensorflow=False).train()
    kinds: dict[int, set[torch.dtype]] = {}

    def note(part: torch.nn.Module, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
        assert isinstance(part, torch.nn.Conv2d)
        kinds.setdefault(min(part.groups, 2), set()).add(made.dtype)

    for part in encoder.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(note)
    images = torch.rand(2, 3, 64, 64)
    exact = encoder(images)
    kinds.clear()
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(images)
    assert kinds == {1: {torch.bfloat16}, 2: {torch.float32}}
    # Batch norm over the few pixels of coarser maps multiplies what is rounded.
    for one, other in zip(exact[:3], rough[:3], strict=True):
        assert (one - other).abs().mean() < 0.1 * one.std()
    kinds.clear()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        encoder.eval()(images)
    assert kinds == {1: {torch.bfloat16}, 2: {torch.bfloat16}}


def test_dilation_keeps_the_weights_and_refines_the_maps() -> None:
    """Strides are traded for dilation; the parameters stay, so published weights still fit."""
    with torch.device("meta"):
        plain, fine = ResNetEncoder(3), ResNetEncoder(3, output_stride=8)
    assert fine.strides == (2, 4, 8, 8, 8)
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert shapes == {key: value.shape for key, value in fine.state_dict().items()}
    assert fine.get_submodule("layer4.1.conv1").dilation == (4, 4)


def test_attention_without_reduction_is_torchs() -> None:
    """With torch's multi-head attention given the same weights, the tokens are the same."""
    ours = EfficientAttention(8, num_heads=2, reduction=1)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    weights = torch.cat((ours.query.weight, ours.key_value.weight))
    biases = torch.cat((ours.query.bias, ours.key_value.bias))
    with torch.no_grad():
        theirs.in_proj_weight.copy_(weights)
        theirs.in_proj_bias.copy_(biases)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens = torch.rand(2, 12, 8)
    torch.testing.assert_close(ours(tokens, 3, 4), theirs(tokens, tokens, tokens)[0])


def test_drop_path_keeps_the_mean_and_whole_samples() -> None:
    """In training a branch is dropped for whole samples, and the rest is scaled up to make up."""
    torch.manual_seed(0)
    block = Block(4, num_heads=1, reduction=1, drop_path=0.25).train()
    dropped = block._drop(torch.ones(4000, 3, 4))
    kept = dropped.flatten(1).mean(dim=1)
    assert set(kept.tolist()) == {0.0, kept.max().item()}
    torch.testing.assert_close(kept.max(), torch.tensor(1 / 0.75))
    assert abs(kept.mean().item() - 1) < 0.03
