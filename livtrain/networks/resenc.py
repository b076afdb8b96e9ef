"""A residual-encoder 3-D U-Net with instance norm: nnU-Net's ResEnc M plan for the liver (Isensee et al. 2024).

Six levels; the encoder has residual blocks as of ResNet-D (the skip pools, then projects), the decoder one
convolution a level. Supervised logits come from every decoder level but the coarsest, whose map nnU-Net weighs
with 0: its layer is part of the weights, so that both count the same, but is never trained or returned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from livprep.errors import UsageError
from livtrain.networks.recompute import apply_block
from livtrain.networks.slices import check_input

FEATURES = (32, 64, 128, 256, 320, 320)
ENCODER_BLOCKS = (1, 3, 4, 6, 6, 6)
MAP_WEIGHTS = (1 / 15, 2 / 15, 4 / 15, 8 / 15)
"""Weights of the four maps, coarse to fine: halved from level to level, sum 1 (nnU-Net)."""
_SLOPE = 0.01  # of every LeakyReLU, and of He's gain
_EPS = 1e-5


def _unit(source: int, out: int, kernel: int, stride: int = 1, *, bias: bool = True, act: bool = True) -> nn.Sequential:
    """Convolution, instance norm and, with `act`, LeakyReLU."""
    layers: list[nn.Module] = [
        nn.Conv3d(source, out, kernel, stride=stride, padding=kernel // 2, bias=bias),
        nn.InstanceNorm3d(out, eps=_EPS, affine=True),
    ]
    return nn.Sequential(*layers, nn.LeakyReLU(_SLOPE, inplace=True)) if act else nn.Sequential(*layers)


class _Halved(nn.AvgPool3d):
    """Means of 2 x 2 x 2 voxels; the backward pass of torch's own refuses to be deterministic on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        batch, channels, *sizes = x.shape
        pairs = [part for size in sizes for part in (size // 2, 2)]
        return x.reshape(batch, channels, *pairs).mean(dim=(3, 5, 7))


class _Residual(nn.Module):
    """Two convolutions and a skip; starts as the skip alone, because the last norm's scale starts at 0."""

    def __init__(self, source: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = _unit(source, out, 3, stride)
        self.second = _unit(out, out, 3, act=False)
        skip: list[nn.Module] = [_Halved(stride, stride)] if stride > 1 else []
        if source != out:
            skip.append(_unit(source, out, 1, bias=False, act=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.second(self.first(x)) + self.skip(x), _SLOPE)


class ResEncUNet(nn.Module):
    """Residual-encoder U-Net; the same graph as dynamic_network_architectures' `ResidualEncoderUNet`.

    Parameters
    ----------
    in_channels, out_channels
        Windowed channels in, logit maps out.
    features
        Channels of the levels, fine to coarse; each level halves every axis.
    blocks
        Residual blocks of each level of the encoder.
    recompute
        Keep no activations inside of levels, but compute them again for the gradient.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = FEATURES,
        blocks: Sequence[int] = ENCODER_BLOCKS,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.stride, self.recompute = in_channels, 2 ** (len(features) - 1), recompute
        self.stem = _unit(in_channels, features[0], 3)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        below = features[0]
        for level, (out, count) in enumerate(zip(features, blocks, strict=True)):
            first = _Residual(below, out, 2 if level else 1)
            self.encoder.append(nn.Sequential(first, *(_Residual(out, out, 1) for _ in range(count - 1))))
            below = out
        self.up, self.maps = nn.ModuleList(), nn.ModuleList()
        for out in features[-2::-1]:
            self.up.append(nn.ConvTranspose3d(below, out, 2, stride=2))
            self.decoder.append(_unit(2 * out, out, 3))
            self.maps.append(nn.Conv3d(out, out_channels, 1))
            below = out
        self.maps[0].requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He-normal weights for slope 0.01 and zero biases; the last norm of each residual block starts at 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _Residual):
                nn.init.zeros_(module.second[1].weight)  # type: ignore[arg-type]

    def forward(self, x_BCZYX: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute logits.

        Returns
        -------
        In training the maps of all decoder levels but the coarsest, coarse to fine, brought to the input's size by
        trilinear interpolation; else the finest. Each `(B, out_channels, Z, Y, X)`.

        Raises
        ------
        UsageError
            The input has another channel count, a size that is no multiple of 32, or only 32 voxels on every
            axis, where one voxel is left to normalize.
        """
        check_input(x_BCZYX, self.in_channels, (self.stride,) * 3)
        if max(x_BCZYX.shape[2:]) == self.stride:
            raise UsageError(
                "CONFIG_INVALID",
                f"network input of {tuple(x_BCZYX.shape[2:])} voxels (zyx): expected more than {self.stride} along "
                "one axis, because instance norm needs two voxels at the coarsest level",
            )
        skips = [apply_block(self.encoder[0], self.stem(x_BCZYX), self.recompute)]
        for level in self.encoder[1:]:
            skips.append(apply_block(level, skips[-1], self.recompute))
        x, levels = skips.pop(), []
        for up, join in zip(self.up, self.decoder, strict=True):
            x = apply_block(join, torch.cat([up(x), skips.pop()], dim=1), self.recompute)
            levels.append(x)
        fine: Tensor = self.maps[-1](x)
        if not self.training:
            return fine
        size = x_BCZYX.shape[2:]
        coarse = [to_map(level) for to_map, level in zip(self.maps[1:-1], levels[1:-1], strict=True)]
        return (*(functional.interpolate(m, size=size, mode="trilinear", align_corners=False) for m in coarse), fine)
