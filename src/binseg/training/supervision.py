"""Deep supervision: while a network trains, the maps on its decoder's way answer too.

Each of these side maps gets a head of its own, a 1x1 convolution, and a share of the loss. The
heads belong to training: the network that is validated, kept and shipped knows nothing of them.
"""

import torch
from torch import nn

from binseg.config.recipe import Recipe
from binseg.errors import UsageError
from binseg.losses import Loss
from binseg.models import create_model
from binseg.models.skeleton import EncoderDecoder

__all__ = ["check_supervision", "supervised"]


class DeeplySupervised(nn.Module):
    """A network that gives one channel of logits for each level of its decoder, the answer first.

    Args:
        model: a network whose decoder has side maps; its weights are shared.
    """

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(
            nn.Conv2d(channels, 1, 1) for channels in model.decoder.side_channels
        )
        for parameter in self.heads.parameters():  # with one output there is no symmetry to break
            nn.init.zeros_(parameter)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Give the logits of all levels at the images' size, the answer first (B L H W)."""
        return torch.cat(self.model.forward_levels(images_BCHW, tuple(self.heads)), dim=1)


class _LevelLoss(nn.Module):
    """The weighted mean of a loss over all levels; each weighs half as much as the one before.

    Args:
        loss: of one level.
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self._loss = loss

    def forward(
        self, logits_BLHW: torch.Tensor, target_B1HW: torch.Tensor, valid_B1HW: torch.Tensor
    ) -> torch.Tensor:
        weights = [2.0**-level for level in range(logits_BLHW.shape[1])]
        losses = [
            weight * self._loss(logits_B1HW, target_B1HW, valid_B1HW)
            for weight, logits_B1HW in zip(weights, torch.split(logits_BLHW, 1, dim=1), strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)


def check_supervision(recipe: Recipe) -> None:
    """Refuse deep supervision of a network whose decoder has no side maps.

    Raises:
        UsageError: that, or an unknown name or option of a model.
    """
    if recipe.loss.deep_supervision:
        with torch.device("meta"):
            _teachable(create_model(**recipe.model.arguments()), recipe)


def supervised(model: nn.Module, loss: Loss, recipe: Recipe) -> tuple[nn.Module, Loss]:
    """Give what a training step runs and minimises.

    Both come back as they are unless the recipe asks for deep supervision (arXiv 1409.5185), with
    the weights of nnU-Net: each further level counts half (doi 10.1038/s41592-020-01008-z). Coarse
    logits are enlarged to the masks' size, not masks shrunk, so that no thin thing vanishes.

    Args:
        model: the network that learns.
        loss: of one answer.
        recipe: says whether side maps are taught.

    Raises:
        UsageError: the network has none.
    """
    if not recipe.loss.deep_supervision:
        return model, loss
    return DeeplySupervised(_teachable(model, recipe)), _LevelLoss(loss)


def _teachable(model: nn.Module, recipe: Recipe) -> EncoderDecoder:
    if isinstance(model, EncoderDecoder) and model.decoder.side_channels:
        return model
    raise UsageError(
        f"loss.deep_supervision: the decoder of {recipe.model.name} has no maps on its way to "
        "teach; take a U-Net, or leave it out"
    )
