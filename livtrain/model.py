"""The network that settings describe, and what it takes: windowed channels, or HU where its windows are learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from livprep.windows import Window, WindowBank
from livtrain.config import Settings
from livtrain.networks import LearnedWindows, WindowedNetwork, build_network
from livtrain.unpack import PACKED_HIGH_HU, PACKED_LOW_HU


def build_model(
    settings: Settings,
    out_channels: int,
    *,
    dropout: float | None = None,
    recompute: bool = False,
    pretrained: bool = False,
) -> nn.Module:
    """Build a freshly initialized network; see `build_network`. With learned windows it takes HU + 1024."""
    network = build_network(
        settings.network,
        len(settings.bank),
        out_channels,
        settings.width,
        dropout=dropout,
        recompute=recompute,
        pretrained=pretrained,
    )
    if not settings.learn_windows:
        return network
    return WindowedNetwork(LearnedWindows(settings.bank, settings.window_softness), network)


def model_input(settings: Settings, hu_ZYX: npt.NDArray[np.int16]) -> npt.NDArray[Any]:
    """What the network takes of a volume: uint8 channels `(C, z, y, x)`, or int16 HU + 1024 `(1, z, y, x)`.

    Both are 0 where a volume is padded: the windows' low end, and -1024 HU, which is what lies outside of a patch in
    training too.
    """
    if not settings.learn_windows:
        return settings.bank.apply(hu_ZYX)
    clipped: npt.NDArray[np.int16] = np.clip(hu_ZYX, PACKED_LOW_HU, PACKED_HIGH_HU) - np.int16(PACKED_LOW_HU)
    return clipped[None]


def hull(bank: WindowBank) -> Window:
    """The window from the lowest to the highest end of all."""
    low, high = min(window.low_hu for window in bank), max(window.high_hu for window in bank)
    return Window((low + high) / 2, high - low)


def learned_bank(network: nn.Module) -> WindowBank | None:
    """Where the windows of a network have got to; None where they are not learned."""
    if not isinstance(network, WindowedNetwork):
        return None
    centers, widths = network.windows.center_hu.tolist(), network.windows.width_hu.tolist()
    return WindowBank(
        tuple(
            Window(round(center, 3), round(width, 3), f"learned{k}")
            for k, (center, width) in enumerate(zip(centers, widths, strict=True))
        )
    )
