"""The two 2-D U-Nets without normalization: of Unet_Window, and of Multiclass-U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _double(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Two 3 x 3 ReLU convolutions, dropout between them."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet2D(nn.Module):
    """Two ReLU convolutions a level, 2 x 2 max pooling down, transposed 2 x 2 convolutions up, logits by 1 x 1.

    Parameters
    ----------
    in_channels, out_channels
        Windowed channels in, logit maps out.
    channels
        Channels of the levels, fine to coarse.
    up_channels
        Channels of the transposed convolutions, coarse to fine; one fewer than `channels`.
    dropouts
        Probability of zeroing one activation, per level as `channels`; a decoder level has its encoder's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        up_channels: Sequence[int],
        dropouts: Sequence[float],
    ) -> None:
        super().__init__()
        sources = (in_channels, *channels[:-1])
        self.down = nn.ModuleList(map(_double, sources, channels, dropouts))
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        below = channels[-1]
        for size, up, dropout in zip(channels[-2::-1], up_channels, dropouts[-2::-1], strict=True):
            self.up.append(nn.ConvTranspose2d(below, up, 2, stride=2))
            self.join.append(_double(up + size, size, dropout))
            below = size
        self.map = nn.Conv2d(below, out_channels, 1)
        self.pool = nn.MaxPool2d(2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Compute logits `(N, K, Y, X)`; Y and X multiples of 16 with five levels."""
        skips: list[Tensor] = []
        x = x_NCYX
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), skips.pop()], dim=1))
        logits: Tensor = self.map(x)
        return logits
