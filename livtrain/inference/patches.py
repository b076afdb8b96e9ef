"""Where the patches of a sliding window lie, and how much each of their voxels counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

SIGMA_SCALE = 0.125
"""Standard deviation of a patch's weight as a fraction of its size (nnU-Net's and MONAI's value)."""


def gaussian_profile(size: int, sigma_scale: float = SIGMA_SCALE) -> npt.NDArray[np.float32]:
    """Weight along one axis of a patch: a Gaussian about the center, sigma = size * scale, below 1, never 0."""
    offsets = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return np.exp(-0.5 * (offsets / (size * sigma_scale)) ** 2).astype(np.float32)


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """Starts of patches along an axis, `length` >= `size`: evenly spread from the first voxel to the last."""
    step = max(int(size * (1 - overlap)), 1)
    gaps = -(-(length - size) // step)
    return [round(k * (length - size) / gaps) for k in range(gaps + 1)] if gaps else [0]


def pad_to_patch(image: Tensor, patch_zyx: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad `(c, z, y, x)` to at least the patch, centered as in training; and where the image lies inside."""
    lacking = [max(p - n, 0) for p, n in zip(patch_zyx, image.shape[1:], strict=True)]
    before = [(lack + 1) // 2 for lack in lacking]
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    if not any(lacking):
        return image, inside
    amounts = [v for b, lack in zip(before[::-1], lacking[::-1], strict=True) for v in (b, lack - b)]
    return functional.pad(image, amounts), inside


def summed_profiles(length: int, starts: Sequence[int], profile: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sum of the weights at each voxel of an axis."""
    sums = np.zeros(length, dtype=np.float64)
    for start in starts:
        sums[start : start + len(profile)] += profile
    return sums.astype(np.float32)
