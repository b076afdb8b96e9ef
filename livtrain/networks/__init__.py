"""The networks that the trainer can build, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from livprep.errors import UsageError
from livtrain.networks.resunet import ResUNet

Builder = Callable[[int, int, int], nn.Module]
"""(in_channels, out_channels, width) -> network with the forward contract of `ResUNet`."""


def _resunet(in_channels: int, out_channels: int, width: int) -> nn.Module:
    return ResUNet(in_channels, out_channels, width, dilated=True)


def _resunet_plain(in_channels: int, out_channels: int, width: int) -> nn.Module:
    return ResUNet(in_channels, out_channels, width, dilated=False)


NETWORKS: dict[str, Builder] = {"resunet": _resunet, "resunet_plain": _resunet_plain}
"""`resunet` is MICCAI-LITS2017's dilated graph, `resunet_plain` the same without dilations."""


def build_network(name: str, in_channels: int, out_channels: int, width: int) -> nn.Module:
    """Build a freshly initialized network.

    Parameters
    ----------
    name
        A key of `NETWORKS`.
    in_channels, out_channels
        Windows in, logit maps out.
    width
        Channels of the first level; 16 is the published size.

    Raises
    ------
    UsageError
        No network has that name.
    """
    if name not in NETWORKS:
        raise UsageError("CONFIG_INVALID", f"network {name!r}: expected one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name](in_channels, out_channels, width)


__all__ = ["NETWORKS", "Builder", "ResUNet", "build_network"]
