"""The residual 3-D U-Net of MICCAI-LITS2017: V-Net-like, dilated in the middle, deeply supervised.

Every convolution is 3 x 3 x 3, stride 1, with bias, followed by a PReLU with one parameter a channel; there
is no normalization. Each level adds its own input to its output. Levels change by 2 x 2 x 2 convolutions of
stride 2, plain and transposed. Four 1 x 1 x 1 maps give logits at 1/8, 1/4, 1/2 and full size; the first
three are brought to full size by trilinear interpolation.

Sigmoid and softmax are not here: losses and inference apply them to the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from livprep.errors import UsageError
from livtrain.networks.recompute import apply_block
from livtrain.networks.slices import check_input

STRIDE = 8
"""Each dimension of the input must be a multiple of this: three levels halve it."""
_PRELU_INIT = 0.25  # PReLU's own start value; He's gain accounts for it (He et al. 2015, eq. 15)

Maps = tuple[Tensor, Tensor, Tensor, Tensor]


def _block(in_channels: int, out_channels: int, dilations: Sequence[int]) -> nn.Sequential:
    """Convolutions with PReLU, one for each dilation; the padding keeps the size."""
    layers: list[nn.Module] = []
    for k, dilation in enumerate(dilations):
        source = in_channels if k == 0 else out_channels
        layers += [
            nn.Conv3d(source, out_channels, 3, padding=dilation, dilation=dilation),
            nn.PReLU(out_channels, init=_PRELU_INIT),
        ]
    return nn.Sequential(*layers)


def _down(channels: int) -> nn.Sequential:
    double = 2 * channels
    return nn.Sequential(nn.Conv3d(channels, double, 2, stride=2), nn.PReLU(double, init=_PRELU_INIT))


def _up(channels: int) -> nn.Sequential:
    half = channels // 2
    return nn.Sequential(nn.ConvTranspose3d(channels, half, 2, stride=2), nn.PReLU(half, init=_PRELU_INIT))


class ResUNet(nn.Module):
    """Residual 3-D U-Net; 9,498,260 parameters for one channel in, one out and width 16.

    Parameters
    ----------
    in_channels
        Windowed channels. With more than one, the first residual passes a 1 x 1 x 1 projection (with bias) to
        `width` channels, because a broadcast addition exists for a single channel only.
    out_channels
        Logit maps: 1 for a sigmoid, the number of classes for a softmax.
    width
        Channels of the first level; every other count follows in proportion. 16 is the published network.
    dilated
        False gives the same graph without dilations.
    dropout
        Probability of zeroing a single activation (not a channel), after every level but the first and last.
    recompute
        Keep no activations inside of blocks, but compute them again for the gradient.

    Raises
    ------
    UsageError
        A count is not positive or the dropout is outside [0, 1).
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 16,
        dilated: bool = True,
        dropout: float = 0.3,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, width) < 1 or not 0.0 <= dropout < 1.0:
            raise UsageError(
                "CONFIG_INVALID",
                f"ResUNet: found in_channels {in_channels}, out_channels {out_channels}, width {width}, "
                f"dropout {dropout:g}; expected positive counts and a dropout in [0, 1)",
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.width, self.dropout, self.recompute = width, dropout, recompute
        w = width
        plain = (1, 1, 1)
        self.project: nn.Module = nn.Identity() if in_channels == 1 else nn.Conv3d(in_channels, w, 1)
        self.enc1, self.down1 = _block(in_channels, w, (1, 1)), _down(w)
        self.enc2, self.down2 = _block(2 * w, 2 * w, plain), _down(2 * w)
        self.enc3, self.down3 = _block(4 * w, 4 * w, (1, 2, 4) if dilated else plain), _down(4 * w)
        self.enc4 = _block(8 * w, 8 * w, (3, 4, 5) if dilated else plain)
        self.widen = _block(8 * w, 16 * w, (1,))
        self.dec1, self.up2 = _block(8 * w, 16 * w, plain), _up(16 * w)
        self.dec2, self.up3 = _block(12 * w, 8 * w, plain), _up(8 * w)
        self.dec3, self.up4 = _block(6 * w, 4 * w, plain), _up(4 * w)
        self.dec4 = _block(3 * w, 2 * w, (1, 1))
        self.map1 = nn.Conv3d(16 * w, out_channels, 1)
        self.map2 = nn.Conv3d(8 * w, out_channels, 1)
        self.map3 = nn.Conv3d(4 * w, out_channels, 1)
        self.map4 = nn.Conv3d(2 * w, out_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He-normal weights for PReLU slope 0.25 and zero biases, for plain and transposed convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=_PRELU_INIT)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x_BCZYX: Tensor) -> Tensor | Maps:
        """Compute logits.

        Parameters
        ----------
        x_BCZYX
            Windowed channels in 0...1; every size a multiple of 8.

        Returns
        -------
        In training `(map1, map2, map3, map4)`, coarse to fine, else `map4`; each
        `(B, out_channels, Z, Y, X)`.

        Raises
        ------
        UsageError
            The input has another channel count or a size that is no multiple of 8.
        """
        check_input(x_BCZYX, self.in_channels, (STRIDE, STRIDE, STRIDE))
        l1 = self._run(self.enc1, x_BCZYX)
        # under autocast a float32 input would make this level, the largest, float32 all the way to the last map
        l1 = l1 + self.project(x_BCZYX).to(l1.dtype)
        s1 = self.down1(l1)
        l2 = self._drop(self._run(self.enc2, s1) + s1)
        s2 = self.down2(l2)
        l3 = self._drop(self._run(self.enc3, s2) + s2)
        s3 = self.down3(l3)
        l4 = self._drop(self._run(self.enc4, s3) + s3)
        d1 = self._drop(self._run(self.dec1, l4) + self.widen(l4))
        u2 = self.up2(d1)
        d2 = self._drop(self._run(self.dec2, torch.cat([u2, l3], dim=1)) + u2)
        u3 = self.up3(d2)
        d3 = self._drop(self._run(self.dec3, torch.cat([u3, l2], dim=1)) + u3)
        u4 = self.up4(d3)
        map4: Tensor = self.map4(self._run(self.dec4, torch.cat([u4, l1], dim=1)) + u4)
        if not self.training:
            return map4
        return self._full(self.map1(d1), 8), self._full(self.map2(d2), 4), self._full(self.map3(d3), 2), map4

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return apply_block(block, x, self.recompute)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)

    @staticmethod
    def _full(logits: Tensor, factor: int) -> Tensor:
        return functional.interpolate(logits, scale_factor=factor, mode="trilinear", align_corners=False)
