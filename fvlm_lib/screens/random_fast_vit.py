"""FastViTs of random weights whose tokens depend on the frame.

Every convolution is scaled to unit variance on a random frame, one after the other (Mishkin and Matas, *All you need is
a good init*, ICLR 2016), since how much of a tower a gated update computes depends on how a change goes on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def initialise_fast_vit(model: Any) -> None:
    """Weights for timm's FastViT, from torch's generator. As it is made, layers are scaled with 1e-5, norms do nothing,
    and little of the frame is left behind some random convolutions."""
    for key, value in model.state_dict().items():
        if "running_mean" in key:
            value.normal_(0, 0.5)
        elif "running_var" in key:
            value.uniform_(0.5, 2)
        elif "gamma" in key:
            value.uniform_(0.2, 0.6)
        elif "token_mixer.reparam_conv.weight" in key:
            value[:, 0, 1, 1] += 1  # the input itself, as merged branches have it
    hooks = [m.register_forward_hook(_standardise) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model.forward_features(torch.rand(1, 3, 256, 256))
    for hook in hooks:
        hook.remove()


def _standardise(convolution: nn.Conv2d, _: object, output: Tensor) -> Tensor | None:
    """Scale and shift a convolution such that each of its channels has mean 0 and deviation 1, as trained norms do."""
    if output.shape[-1] == 1:  # of squeeze-excitation
        return None
    deviation, mean = torch.std_mean(output, dim=(0, 2, 3))
    if convolution.bias is None:
        mean = torch.zeros_like(mean)
    else:
        convolution.bias.copy_((convolution.bias - mean) / deviation)
    convolution.weight /= deviation[:, None, None, None]
    return (output - mean[:, None, None]) / deviation[:, None, None]
