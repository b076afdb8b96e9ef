"""Activation checkpointing: trade a second forward pass of a block for the memory of its activations."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def apply_block(block: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """Run a block; with `recompute`, and where a gradient is wanted, it keeps its input alone and runs again for it.

    The gradients are those of the plain block: the state of the random generators is restored for the second pass.
    """
    if recompute and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))
    return cast(Tensor, block(x))
