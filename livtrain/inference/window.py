"""The sliding window: a volume patch by patch, averaged with Gaussian weights.

Why not MONAI's `sliding_window_inference`: it needs the whole image as float32 and a second volume for the sums
of the weights, and lifts every weight to at least 1e-3, which lets patch borders speak. Here the image stays uint8
on the CPU, and as the weights separate by axes, their sums are three vectors. A patch in which every channel is 0
(air, below the windows) passes through the network once and its result is reused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from livprep.errors import UsageError
from livtrain.stages import probabilities

FloatVolume = npt.NDArray[np.float32]
Shape = tuple[int, int, int]

SIGMA_SCALE = 0.125
"""Standard deviation of a patch's weight as a fraction of its size (nnU-Net's and MONAI's value)."""


def sliding_window(
    network: nn.Module,
    image_CZYX: Tensor | npt.NDArray[Any],
    patch_zyx: Sequence[int],
    overlap: float = 0.5,
    device: torch.device | str = "cpu",
    batch: int = 1,
    amp: bool = False,
    tta: bool = False,
) -> FloatVolume:
    """Predict a volume.

    Probabilities (sigmoid of one logit map, softmax of several) are averaged with Gaussian weights, sigma =
    patch / 8. A volume shorter than the patch is padded on both sides with 0, the windows' low end. Sums are
    kept on the CPU; only patches go to the device.

    Parameters
    ----------
    network
        Maps `(B, C, Z, Y, X)` float32 in 0...1 to logits `(B, K, Z, Y, X)` in evaluation mode.
    image_CZYX
        Channels: uint8 0...255, or float already in 0...1.
    patch_zyx
        Patch in voxels.
    overlap
        Fraction of a patch that neighbors share, in [0, 1).
    device
        Where the network runs; it is moved there.
    batch
        Patches a forward pass.
    amp
        bfloat16 autocast.
    tta
        Mean over the 8 mirrorings of each patch.

    Returns
    -------
    float32 `(K, z, y, x)` probabilities.

    Raises
    ------
    UsageError
        Overlap, batch or the image's axes are unusable, or the network refuses the patch.
    """
    image = torch.as_tensor(image_CZYX)
    if not 0 <= overlap < 1 or batch < 1 or image.ndim != 4:
        raise UsageError(
            "USAGE",
            f"sliding window: image {tuple(image.shape)}, overlap {overlap:g}, batch {batch}; expected "
            "(channel, z, y, x), an overlap in [0, 1) and a batch of at least 1",
        )
    padded, inside = _pad(image, patch_zyx)
    starts = [window_starts(n, p, overlap) for n, p in zip(padded.shape[1:], patch_zyx, strict=True)]
    profiles = [gaussian_profile(p) for p in patch_zyx]
    weight = torch.from_numpy(np.einsum("i,j,k->ijk", *profiles)).to(device)
    boxes = [
        (slice(None), *(slice(o, o + p) for o, p in zip(origin, patch_zyx, strict=True)))
        for origin in itertools.product(*starts)
    ]
    was_training = network.training
    network.to(device).eval()
    try:
        with torch.inference_mode():
            total = _accumulate(network, padded, boxes, weight, batch, amp=amp, tta=tta)
    finally:
        network.train(was_training)
    for axis, (axis_starts, profile) in enumerate(zip(starts, profiles, strict=True)):
        sums = np.zeros(padded.shape[axis + 1], dtype=np.float64)
        for start in axis_starts:
            sums[start : start + len(profile)] += profile
        shape = [1, 1, 1, 1]
        shape[axis + 1] = -1
        total /= sums.astype(np.float32).reshape(shape)
    return np.clip(total[(slice(None), *inside)], 0, 1)


def gaussian_profile(size: int) -> npt.NDArray[np.float32]:
    """Weight along one axis of a patch: a Gaussian about the center, sigma = size / 8, below 1, never 0."""
    offsets = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return np.exp(-0.5 * (offsets / (size * SIGMA_SCALE)) ** 2).astype(np.float32)


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """Starts of patches along an axis, `length` >= `size`: evenly spread from the first voxel to the last."""
    step = max(int(size * (1 - overlap)), 1)
    gaps = -(-(length - size) // step)
    return [round(k * (length - size) / gaps) for k in range(gaps + 1)] if gaps else [0]


def _pad(image: Tensor, patch_zyx: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad `(c, z, y, x)` to at least the patch, centered as in training; and where the image lies inside."""
    lacking = [max(p - n, 0) for p, n in zip(patch_zyx, image.shape[1:], strict=True)]
    before = [(lack + 1) // 2 for lack in lacking]
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    if not any(lacking):
        return image, inside
    amounts = [v for b, lack in zip(before[::-1], lacking[::-1], strict=True) for v in (b, lack - b)]
    return functional.pad(image, amounts), inside


def _accumulate(
    network: nn.Module,
    image: Tensor,
    boxes: Sequence[tuple[slice, ...]],
    weight_ZYX: Tensor,
    batch: int,
    *,
    amp: bool,
    tta: bool,
) -> FloatVolume:
    """Weighted sum of the patches' probabilities, `(K, z, y, x)` float32 on the CPU."""
    total: FloatVolume | None = None
    empty = [box for box in boxes if not image[box].any()]
    filled = [box for box in boxes if image[box].any()]
    # All-air patches share one result, so a single one stands for them.
    for chunk in (*_chunks(filled, batch), *_chunks(empty[:1], batch)):
        patches = torch.stack([image[box] for box in chunk]).to(weight_ZYX.device)
        weighted = (_forward(network, _unit(patches), amp, tta) * weight_ZYX).cpu().numpy()
        if total is None:
            total = np.zeros((weighted.shape[1], *image.shape[1:]), dtype=np.float32)
        for box, values in zip(chunk, weighted, strict=True):
            for target in empty if box in empty[:1] else (box,):
                total[target] += values
    assert total is not None  # there is at least one patch
    return total


def _chunks(boxes: Sequence[tuple[slice, ...]], size: int) -> Iterator[Sequence[tuple[slice, ...]]]:
    for start in range(0, len(boxes), size):
        yield boxes[start : start + size]


def _unit(patches: Tensor) -> Tensor:
    """Network input: uint8 / 255 as float32; floats are taken as they are."""
    return patches.float() / 255 if patches.dtype == torch.uint8 else patches.float()


def _forward(network: nn.Module, x_BCZYX: Tensor, amp: bool, tta: bool) -> Tensor:
    """Probabilities of a batch of patches; the mean over the 8 mirrorings with `tta`."""
    flips = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)] if tta else [()]
    total: Tensor | None = None
    with torch.autocast(x_BCZYX.device.type, dtype=torch.bfloat16, enabled=amp):
        for axes in flips:
            logits = network(x_BCZYX.flip(axes))
            p = probabilities(logits).flip(axes)
            total = p if total is None else total + p
    assert total is not None
    return total / len(flips)
