"""Windows as parameters: center and width are learned with the network (from HU, differentiable)."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from livprep.errors import UsageError
from livprep.windows import WindowBank
from livtrain.unpack import PACKED_LOW_HU

MIN_WIDTH_HU = 1.0
"""Learned widths stay above this: DICOM forbids widths below 1 for LINEAR (PS3.3 C.11.2.1.2.1)."""
_SCALE_HU = 100.0  # optimizers step by about the learning rate; a step should be HU, not thousandths of HU


class LearnedWindows(nn.Module):
    """HU to window channels in 0...1: LINEAR_EXACT, clamp((x - (center - width/2)) / width), with learned windows.

    At the start the channels are those of the bank without its rounding to uint8. Inside of a window the gradients
    for center and width are those of the formula, and outside of it 0, as for any clamp; `softness` mixes in a
    sigmoid of the same slope at the center, which has a gradient everywhere.

    Parameters
    ----------
    bank
        Windows to start from, one a channel.
    softness
        0 is the clamp, 1 the sigmoid sigma(4 (x - center) / width), between them a mean of both.

    Raises
    ------
    UsageError
        CONFIG_INVALID: no windows, a width that is too small, or a softness outside of [0, 1].
    """

    def __init__(self, bank: WindowBank, softness: float = 0.0) -> None:
        super().__init__()
        widths = [window.width_hu for window in bank]
        if not widths or min(widths) <= MIN_WIDTH_HU or not 0 <= softness <= 1:
            raise UsageError(
                "CONFIG_INVALID",
                f"learned windows: widths {widths} HU, softness {softness:g}; expected at least one window, widths "
                f"above {MIN_WIDTH_HU:g} HU and a softness in [0, 1]",
            )
        self.softness = softness
        self.center = nn.Parameter(torch.tensor([window.center_hu / _SCALE_HU for window in bank]))
        # softplus keeps the width positive; this is its inverse
        above = [(width - MIN_WIDTH_HU) / _SCALE_HU for width in widths]
        self.width = nn.Parameter(torch.tensor([value + math.log(-math.expm1(-value)) for value in above]))

    @property
    def center_hu(self) -> Tensor:
        """Centers `(C,)` in HU."""
        return self.center * _SCALE_HU

    @property
    def width_hu(self) -> Tensor:
        """Widths `(C,)` in HU, above `MIN_WIDTH_HU`."""
        return MIN_WIDTH_HU + _SCALE_HU * functional.softplus(self.width, threshold=50)

    def forward(self, hu_B1ZYX: Tensor) -> Tensor:
        """Turn HU `(B, 1, Z, Y, X)`, of any float dtype or int16, into float channels `(B, C, Z, Y, X)`.

        Raises
        ------
        UsageError
            The input has another number of axes or channels.
        """
        if hu_B1ZYX.ndim != 5 or hu_B1ZYX.shape[1] != 1:
            raise UsageError(
                "CONFIG_INVALID", f"learned windows: input {tuple(hu_B1ZYX.shape)}, expected (B, 1, z, y, x)"
            )
        # not in half precision: bfloat16 resolves 8 HU at 1500 HU; the meta device, where memory is estimated, has none
        plain = nullcontext() if hu_B1ZYX.is_meta else torch.autocast(hu_B1ZYX.device.type, enabled=False)
        with plain:
            center, width = (v.reshape(1, -1, 1, 1, 1) for v in (self.center_hu, self.width_hu))
            offset = (hu_B1ZYX.to(center.dtype) - center) / width
            hard = (offset + 0.5).clamp(0, 1)
            return hard if self.softness == 0 else torch.lerp(hard, torch.sigmoid(4 * offset), self.softness)


class WindowedNetwork(nn.Module):
    """A network that sees HU through learned windows; its weights hold both.

    It takes HU + 1024, as packed voxels hold them, so that padding with 0 is padding with air.
    """

    def __init__(self, windows: LearnedWindows, network: nn.Module) -> None:
        super().__init__()
        self.windows, self.network = windows, network

    def forward(self, shifted_B1ZYX: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the network gives for the windowed channels of HU + 1024 `(B, 1, Z, Y, X)`."""
        logits: Tensor | tuple[Tensor, ...] = self.network(self.windows(shifted_B1ZYX + PACKED_LOW_HU))
        return logits
