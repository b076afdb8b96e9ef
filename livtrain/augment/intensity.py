"""Changes of one channel's values, in place, on its device; each equals batchgeneratorsv2's transform of its name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

TRUNCATE = 3.0
"""Standard deviations at which the blur's kernel ends."""
_TINY = 1e-7


class Step(Protocol):
    """One change of one channel."""

    @property
    def channel(self) -> int: ...

    def apply(self, x_ZYX: Tensor, scratch_ZYX: Tensor) -> None:
        """Change `x` (float32, contiguous) in place; `scratch` is of the same shape and may be overwritten."""


@dataclass(frozen=True)
class NoiseStep:
    """Adds Gaussian noise of a standard deviation.

    The field is a function of `seed` and shape alone, on one kind of device and version of torch; torch's CPU and
    CUDA generators are different ones.
    """

    channel: int
    sd: float
    seed: int

    def apply(self, x_ZYX: Tensor, scratch_ZYX: Tensor) -> None:
        generator = torch.Generator(x_ZYX.device).manual_seed(self.seed)
        x_ZYX.add_(scratch_ZYX.normal_(generator=generator), alpha=self.sd)


@dataclass(frozen=True)
class BlurStep:
    """Gaussian blur with a standard deviation (voxels) for each axis, mirrored about the border voxels' centers."""

    channel: int
    sigma_zyx: tuple[float, float, float]

    def apply(self, x_ZYX: Tensor, scratch_ZYX: Tensor) -> None:
        here, there = x_ZYX, scratch_ZYX
        for axis, sigma in enumerate(self.sigma_zyx):
            _blur(here, there, axis, gaussian(sigma, here.shape[axis]))
            here, there = there, here
        x_ZYX.copy_(here)  # three passes end in the scratch


def gaussian(sigma: float, size: int) -> list[float]:
    """Weights of the center and of the voxels at distance 1, 2, ...; the kernel is these on both sides, sum 1.

    The kernel's length is the odd number nearest to 2 `TRUNCATE` sigma + 0.5 (batchgeneratorsv2, blur_dimension), and
    at most what mirroring about the ends of `size` voxels can fill.
    """
    radius = min(int(TRUNCATE * sigma + 0.25), size - 1)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    return [weight / total for weight in weights]


def _blur(x: Tensor, out: Tensor, axis: int, weights: list[float]) -> None:
    """One axis by shifted sums: on a CPU 3-8 times the speed of a convolution with the same kernel."""
    size = x.shape[axis]
    torch.mul(x, weights[0], out=out)
    for k, weight in enumerate(weights[1:], start=1):
        out.narrow(axis, k, size - k).add_(x.narrow(axis, 0, size - k), alpha=weight)
        out.narrow(axis, 0, size - k).add_(x.narrow(axis, k, size - k), alpha=weight)
        for j in range(k):  # what lies k before voxel j is mirrored at voxel 0: |j - k|, and so at the end
            out.select(axis, j).add_(x.select(axis, k - j), alpha=weight)
            out.select(axis, size - 1 - j).add_(x.select(axis, size - 1 - k + j), alpha=weight)


@dataclass(frozen=True)
class BrightnessStep:
    """Multiplies by a factor."""

    channel: int
    factor: float

    def apply(self, x_ZYX: Tensor, scratch_ZYX: Tensor) -> None:
        x_ZYX.mul_(self.factor)


@dataclass(frozen=True)
class ContrastStep:
    """Multiplies the distance to the mean, and keeps within the values' former range."""

    channel: int
    factor: float

    def apply(self, x_ZYX: Tensor, scratch_ZYX: Tensor) -> None:
        mean, (low, high) = x_ZYX.mean(), torch.aminmax(x_ZYX)
        x_ZYX.mul_(self.factor).add_(mean * (1 - self.factor)).clamp_(low, high)


@dataclass(frozen=True)
class LowResolutionStep:
    """Samples at a part of the voxels along each axis (nearest), and interpolates back linearly."""

    channel: int
    zoom_zyx: tuple[float, float, float]

    def apply(self, x_ZYX: Tensor, scratch_ZYX: Tensor) -> None:
        shape = tuple(x_ZYX.shape)
        coarse = [max(1, round(n * zoom)) for n, zoom in zip(shape, self.zoom_zyx, strict=True)]
        small = interpolate(x_ZYX[None, None], coarse, mode="nearest-exact")
        x_ZYX.copy_(interpolate(small, shape, mode="trilinear", align_corners=False)[0, 0])


@dataclass(frozen=True)
class GammaStep:
    """Raises the values, scaled to their own range, to an exponent.

    `invert` does it to the negated values; `retain` then gives the values their former mean and standard
    deviation.
    """

    channel: int
    exponent: float
    invert: bool
    retain: bool

    def apply(self, x_ZYX: Tensor, scratch_ZYX: Tensor) -> None:
        if self.invert:
            x_ZYX.neg_()
        before = (x_ZYX.mean(), x_ZYX.std()) if self.retain else None
        low, high = torch.aminmax(x_ZYX)
        spread = high - low
        x_ZYX.sub_(low).div_(spread.clamp(min=_TINY)).pow_(self.exponent)
        if before is None:
            x_ZYX.mul_(spread).add_(low)
        else:  # scale and shift of the power drop out where mean and standard deviation are set
            factor = before[1] / (x_ZYX.std() * spread).clamp(min=_TINY) * spread
            x_ZYX.sub_(x_ZYX.mean()).mul_(factor).add_(before[0])
        if self.invert:
            x_ZYX.neg_()
