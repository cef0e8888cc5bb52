"""Random weights that show a wrong token."""

from __future__ import annotations

import torch
from torch import nn


def enliven(model: nn.Module) -> nn.Module:
    """Weights large enough to matter, norms and scales unlike 0 and 1; in eval mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.shape[0] > 1 else 1.0)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()
