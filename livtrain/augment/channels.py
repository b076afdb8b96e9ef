"""Channels from packed voxels: HU = (packed & 0xFFF) - 1024, label = packed >> 12 (streaming.md).

A patch that is neither resampled nor jittered gets the bytes of the stored channels / 255, through one table a
window. Otherwise HU may lie between integers, or the window between the stored ones, and a channel is
clip((HU - (WL - WW/2)) / WW, 0, 1) in float32, not rounded to 255 steps; on the integers both differ by at most
half a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from livprep.errors import UsageError
from livprep.windows import Window, WindowBank

LOW_HU, HIGH_HU = -1024, 3071
"""HU that 12 bits hold."""
_MASK, _BITS = 0xFFF, 12


def hu_bits(packed: Tensor) -> Tensor:
    """HU + 1024 as int16; torch has few operations on uint16."""
    return packed.view(torch.int16) & _MASK


def label_bits(packed: Tensor) -> Tensor:
    """Labels as uint8; 15 where a case has none."""
    return ((packed.view(torch.int16) >> _BITS) & 0xF).to(torch.uint8)


class Channels:
    """Windows as channels of packed patches.

    Parameters
    ----------
    windows
        Channels in order.

    Raises
    ------
    UsageError
        CONFIG_INVALID: a window reaches beyond the HU that packed voxels hold.
    """

    def __init__(self, windows: WindowBank) -> None:
        for window in windows:
            if window.low_hu < LOW_HU or window.high_hu > HIGH_HU:
                raise UsageError(
                    "CONFIG_INVALID",
                    f"window {window.name}: {window.low_hu:g} to {window.high_hu:g} HU; packed voxels hold {LOW_HU} to "
                    f"{HIGH_HU} HU: narrow it, or train with --set window_source=stored",
                )
        self.windows = tuple(windows)
        hu = np.arange(LOW_HU, HIGH_HU + 1, dtype=np.int16)
        self._tables = tuple(torch.from_numpy(w.apply(hu).astype(np.float32)).div_(255) for w in windows)
        self._on: dict[torch.device, tuple[Tensor, ...]] = {}

    def look_up(self, packed_ZYX: Tensor, out_CZYX: Tensor) -> None:
        """Fill `out` (float32) with the stored channels' values."""
        index = hu_bits(packed_ZYX)
        if packed_ZYX.device.type == "cpu":  # numpy gathers with 16-bit indices, torch only with 32 bits and more
            places = index.numpy()
            for table, channel in zip(self._tables, out_CZYX, strict=True):
                np.take(table.numpy(), places, out=channel.numpy(), mode="clip")
            return
        wide = index.int()
        for table, channel in zip(self._tables_on(packed_ZYX.device), out_CZYX, strict=True):
            channel.copy_(table[wide])

    def _tables_on(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._on:
            self._on[device] = tuple(table.to(device) for table in self._tables)
        return self._on[device]


def apply_windows(values_ZYX: Tensor, windows: Sequence[Window], out_CZYX: Tensor) -> None:
    """Fill `out` (float32, 0...1) from HU + 1024 (float32, integers or not)."""
    for window, channel in zip(windows, out_CZYX, strict=True):
        torch.sub(values_ZYX, window.low_hu - LOW_HU, out=channel)
        channel.mul_(1 / window.width_hu).clamp_(0, 1)
