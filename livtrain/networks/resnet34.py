"""A 2-D U-Net on a ResNet34 encoder, with ImageNet weights where they can be had (liver-seg-unet's network).

The encoder is torchvision's graph under torchvision's names, so its published weights load as they are; neither
torchvision nor MONAI is needed for it. The decoder is that of segmentation_models_pytorch: nearest x 2, the skip
beside it, two convolutions with batch norm; 256-128-64-32-16 channels.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS_URL = "https://download.pytorch.org/models/resnet34-b627a593.pth"
"""torchvision's `ResNet34_Weights.IMAGENET1K_V1`; the name carries the start of its sha256, which is checked."""
IMAGENET_MEAN, IMAGENET_STD = 0.449, 0.226
"""Means over the three colors of ImageNet's (.485, .456, .406) and (.229, .224, .225): CT has no colors."""
_TIMEOUT_S = 20.0
_BLOCKS = (3, 4, 6, 3)
_DECODER = (256, 128, 64, 32, 16)


class _Basic(nn.Module):
    """ResNet's basic block (He et al. 2016), under torchvision's names."""

    def __init__(self, source: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(source, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or source != out:
            self.downsample = nn.Sequential(nn.Conv2d(source, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(inner)) + self.downsample(x), inplace=True)


class ResNet34(nn.Module):
    """The convolutional part of ResNet34; 21,284,672 parameters for three channels and width 64."""

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        below = width
        for level, count in enumerate(_BLOCKS):
            out = width * 2**level
            blocks = [_Basic(below if k == 0 else out, out, 2 if k == 0 and level else 1) for k in range(count)]
            setattr(self, f"layer{level + 1}", nn.Sequential(*blocks))
            below = out
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCYX: Tensor) -> list[Tensor]:
        """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
        x = functional.relu(self.bn1(self.conv1((x_NCYX - IMAGENET_MEAN) / IMAGENET_STD)), inplace=True)
        features = [x]
        x = self.maxpool(x)
        for level in range(len(_BLOCKS)):
            x = getattr(self, f"layer{level + 1}")(x)
            features.append(x)
        return features


class _Join(nn.Sequential):
    """Two convolutions with batch norm and ReLU."""

    def __init__(self, source: int, out: int) -> None:
        layers: list[nn.Module] = []
        for size in (source, out):
            layers += [nn.Conv2d(size, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class ResNet34UNet2D(nn.Module):
    """U-Net on ResNet34; 24,436,369 parameters for three channels in and one out.

    Parameters
    ----------
    in_channels, out_channels
        Windowed channels in, logit maps out.
    width
        Channels of the encoder's first level; 64 is ResNet34's, and the only one with published weights.
    pretrained
        Start the encoder from ImageNet's weights. Where they cannot be had, warn and start at random.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 64, pretrained: bool = False) -> None:
        super().__init__()
        self.encoder = ResNet34(in_channels, width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        below = sizes.pop()
        self.join = nn.ModuleList()
        for full in _DECODER:
            out = max(full * width // 64, 1)
            self.join.append(_Join(below + (sizes.pop() if sizes else 0), out))
            below = out
        self.map = nn.Conv2d(below, out_channels, 3, padding=1)
        if pretrained:
            _load_imagenet(self.encoder, in_channels, width)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Compute logits `(N, K, Y, X)`; Y and X multiples of 32."""
        features = self.encoder(x_NCYX)
        x = features.pop()
        for join in self.join:
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = join(torch.cat([x, features.pop()], dim=1) if features else x)
        logits: Tensor = self.map(x)
        return logits


def _load_imagenet(encoder: ResNet34, in_channels: int, width: int) -> None:
    """Fill the encoder from ImageNet; the color filters are averaged, so that C equal channels act as one gray."""
    if width != 64:
        warnings.warn(
            f"no ImageNet weights for a ResNet34 of width {width} (only 64): it starts at random",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    try:
        weights = dict(fetch_imagenet())
    except (URLError, OSError, RuntimeError) as error:
        warnings.warn(
            f"ImageNet weights of ResNet34 could not be had ({' '.join(str(error).split())}): it starts at random",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    weights = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    color = weights["conv1.weight"]
    weights["conv1.weight"] = color.sum(dim=1, keepdim=True).expand(-1, in_channels, -1, -1) / in_channels
    encoder.load_state_dict(weights)


def fetch_imagenet() -> Mapping[str, Tensor]:
    """Read torchvision's weights from torch's cache, or from the network once.

    Raises
    ------
    URLError, OSError, RuntimeError
        Not reachable, not writable, or not what its name says.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # torch.hub sets none: where packets are dropped it would hang
    try:
        weights: Mapping[str, Tensor] = torch.hub.load_state_dict_from_url(
            WEIGHTS_URL, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    finally:
        socket.setdefaulttimeout(before)
    return weights
