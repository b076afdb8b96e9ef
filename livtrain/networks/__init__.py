"""The networks that the trainer can build, by name, and what each asks of a patch.

Contract: in training a network returns its supervised logit maps `(B, K, Z, Y, X)` at the input's size, coarse to
fine (or one tensor, where it has one), in evaluation the finest alone. 2-D networks run on the slices of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from livprep.errors import UsageError
from livtrain.networks.resenc import FEATURES, MAP_WEIGHTS, ResEncUNet
from livtrain.networks.resnet34 import ResNet34UNet2D
from livtrain.networks.resunet import ResUNet
from livtrain.networks.slices import Slices, multiple_text
from livtrain.networks.unet2d import UNet2D
from livtrain.networks.windowing import LearnedWindows, WindowedNetwork

PUBLISHED_WIDTH = 16
"""Width at which each network has its published size; every channel count is in proportion to it."""


@dataclass(frozen=True)
class Parts:
    """What a network is built from; see `build_network`."""

    in_channels: int
    out_channels: int
    width: int
    dropout: float | None
    recompute: bool
    pretrained: bool

    def scaled(self, channels: int) -> int:
        """Published channels, in proportion to the width."""
        return max(channels * self.width // PUBLISHED_WIDTH, 1)


@dataclass(frozen=True)
class Network:
    """One entry of the registry.

    Parameters
    ----------
    build
        Makes the network.
    dims
        2 for networks of slices.
    multiple_zyx
        Patches must be multiples of this.
    map_weights
        Weight of each supervised map in the loss, coarse to fine; the coarse ones are also weighted by the
        schedule of `Settings.supervision`.
    preset
        Preset that holds its published loss, windows, patch and optimization.
    options
        Which of `dropout`, `recompute`, `pretrained` it has.
    """

    build: Callable[[Parts], nn.Module]
    dims: Literal[2, 3]
    multiple_zyx: tuple[int, int, int]
    map_weights: tuple[float, ...]
    preset: str
    options: frozenset[str] = frozenset()


def _resunet(parts: Parts) -> nn.Module:
    return _residual(parts, dilated=True)


def _resunet_plain(parts: Parts) -> nn.Module:
    return _residual(parts, dilated=False)


def _residual(parts: Parts, *, dilated: bool) -> nn.Module:
    dropout = 0.3 if parts.dropout is None else parts.dropout
    return ResUNet(parts.in_channels, parts.out_channels, parts.width, dilated, dropout, parts.recompute)


def _resenc(parts: Parts) -> nn.Module:
    features = [parts.scaled(n) for n in FEATURES]
    return ResEncUNet(parts.in_channels, parts.out_channels, features, recompute=parts.recompute)


def _unet2d(parts: Parts) -> nn.Module:
    # method.md: the last transposed convolution has 64 channels too, where half of 64 would be usual
    up = [parts.scaled(n) for n in (256, 128, 64, 64)]
    return _slices(parts, [parts.scaled(n) for n in (32, 64, 128, 256, 512)], up, (0.0,) * 5)


def _multiclass_unet2d(parts: Parts) -> nn.Module:
    channels = [parts.scaled(n) for n in (16, 32, 64, 128, 256)]
    dropouts = (0.1, 0.1, 0.2, 0.2, 0.3) if parts.dropout is None else (parts.dropout,) * 5
    return _slices(parts, channels, channels[-2::-1], dropouts)


def _slices(parts: Parts, channels: list[int], up: list[int], dropouts: tuple[float, ...]) -> nn.Module:
    network = UNet2D(parts.in_channels, parts.out_channels, channels, up, dropouts)
    return Slices(network, parts.in_channels, 16)


def _resnet34_unet2d(parts: Parts) -> nn.Module:
    network = ResNet34UNet2D(parts.in_channels, parts.out_channels, parts.scaled(64), parts.pretrained)
    return Slices(network, parts.in_channels, 32)


_EIGHT, _FOUR_MAPS, _RESUNET = (8, 8, 8), (1.0,) * 4, frozenset({"dropout", "recompute"})
NETWORKS: dict[str, Network] = {
    "resunet": Network(_resunet, 3, _EIGHT, _FOUR_MAPS, "lits2017", _RESUNET),
    "resunet_plain": Network(_resunet_plain, 3, _EIGHT, _FOUR_MAPS, "residual-unet3d", _RESUNET),
    "resenc": Network(_resenc, 3, (32, 32, 32), MAP_WEIGHTS, "resenc-m", frozenset({"recompute"})),
    "unet2d": Network(_unet2d, 2, (1, 16, 16), (1.0,), "paper-ircadb"),
    "resnet34_unet2d": Network(_resnet34_unet2d, 2, (1, 32, 32), (1.0,), "resnet34-unet2d", frozenset({"pretrained"})),
    "multiclass_unet2d": Network(
        _multiclass_unet2d, 2, (1, 16, 16), (1.0,), "multiclass-unet2d", frozenset({"dropout"})
    ),
}
"""`resunet` is MICCAI-LITS2017's dilated graph, `resunet_plain` the same without dilations."""


def get_network(name: str) -> Network:
    """Return the entry of that name.

    Raises
    ------
    UsageError
        No network has that name.
    """
    if name not in NETWORKS:
        raise UsageError("CONFIG_INVALID", f"network {name!r}: expected one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]


def build_network(
    name: str,
    in_channels: int,
    out_channels: int,
    width: int,
    *,
    dropout: float | None = None,
    recompute: bool = False,
    pretrained: bool = False,
) -> nn.Module:
    """Build a freshly initialized network.

    Parameters
    ----------
    name
        A key of `NETWORKS`.
    in_channels, out_channels
        Windows in, logit maps out.
    width
        Size; 16 is the published one of every network, other channel counts are in proportion.
    dropout
        Probability of every dropout; None is the network's own. Every network can have 0.
    recompute
        Activation checkpointing.
    pretrained
        Start from published weights of other data.

    Raises
    ------
    UsageError
        No network has that name, it lacks an option that was asked for, or a count is not positive.
    """
    entry = get_network(name)
    asked = {"dropout": bool(dropout), "recompute": recompute, "pretrained": pretrained}
    if lacking := [option for option, given in asked.items() if given and option not in entry.options]:
        raise UsageError("CONFIG_INVALID", f"network {name} has no {' or '.join(lacking)} to set")
    if min(in_channels, out_channels, width) < 1:
        raise UsageError(
            "CONFIG_INVALID",
            f"network {name}: found in_channels {in_channels}, out_channels {out_channels}, width {width}; "
            "expected positive counts",
        )
    return entry.build(Parts(in_channels, out_channels, width, dropout, recompute, pretrained))


__all__ = [
    "NETWORKS",
    "LearnedWindows",
    "Network",
    "ResUNet",
    "WindowedNetwork",
    "build_network",
    "get_network",
    "multiple_text",
]
