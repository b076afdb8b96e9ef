"""Channels from packed voxels where the table of `livtrain.unpack` does not serve.

A patch that is neither resampled nor jittered gets the bytes of the stored channels / 255, through that table.
Otherwise HU may lie between integers, or the window between the stored ones, and a channel is
clip((HU - (WL - WW/2)) / WW, 0, 1) in float32, not rounded to 255 steps; on whole HU both differ by at most half a
step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from livprep.windows import Window
from livtrain.unpack import HU_BITS, HU_MASK, PACKED_LOW_HU


def hu_bits(packed: Tensor) -> Tensor:
    """HU + 1024 as int16; torch has few operations on uint16."""
    return packed.view(torch.int16) & HU_MASK


def label_bits(packed: Tensor) -> Tensor:
    """Labels as uint8; 15 where a case has none. The mask takes the copied sign bits away."""
    return ((packed.view(torch.int16) >> HU_BITS) & 0xF).to(torch.uint8)


def apply_windows(values_ZYX: Tensor, windows: Sequence[Window], out_CZYX: Tensor, *, clamp: bool = True) -> None:
    """Fill `out` (float32, 0...1; also beyond without `clamp`) from HU + 1024 (float32, whole numbers or not)."""
    for window, channel in zip(windows, out_CZYX, strict=True):
        (_, first), *others = window.parts
        torch.sub(values_ZYX, first.low_hu - PACKED_LOW_HU, out=channel)
        channel.mul_(1 / first.width_hu)
        if clamp:
            channel.clamp_(0, 1)
        if others:  # a weighted mean
            channel.mul_(window.parts[0][0])
            for share, part in others:
                channel.add_(((values_ZYX - (part.low_hu - PACKED_LOW_HU)) / part.width_hu).clamp_(0, 1), alpha=share)
