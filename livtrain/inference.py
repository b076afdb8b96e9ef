"""From image to probabilities: the sliding window."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from livprep.errors import UsageError
from livtrain.stages import probabilities

FloatVolume = npt.NDArray[np.float32]
Shape = tuple[int, int, int]

SIGMA_SCALE = 0.125
"""Standard deviation of the window's weight as a fraction of the patch (nnU-Net's and MONAI's value)."""


def gaussian_profile(size: int) -> npt.NDArray[np.float32]:
    """Weight along one axis of a patch: a Gaussian at the center, sigma = size / 8, peak 1, never 0."""
    offsets = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return np.exp(-0.5 * (offsets / (size * SIGMA_SCALE)) ** 2).astype(np.float32)


def window_starts(length: int, size: int, overlap: float) -> list[int]:
    """Starts of patches along an axis, `length` >= `size`: evenly spread from the first voxel to the last."""
    step = max(int(size * (1 - overlap)), 1)
    count = -(-(length - size) // step) + 1
    if count == 1:
        return [0]
    return [round(k * (length - size) / (count - 1)) for k in range(count)]


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
    """Predict a volume patch by patch, with Gaussian weights.

    Probabilities (sigmoid of one logit map, softmax of several) are averaged with Gaussian weights, sigma =
    patch / 8. A volume shorter than the patch is padded at its far end with 0, the windows' low end.
    Sums are kept on the CPU and the image stays uint8 there; only patches go to the device. (MONAI's
    `sliding_window_inference` computes the same, but needs the whole image as float32 and a second volume of
    weight sums; the weights separate by axes, so three vectors suffice here. A test compares the two.)

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
    """
    if not 0 <= overlap < 1 or batch < 1:
        raise UsageError(
            "USAGE",
            f"sliding window: overlap {overlap:g}, batch {batch}; expected 0 <= overlap < 1 and batch >= 1",
        )
    image = torch.as_tensor(image_CZYX)
    if image.ndim != 4:
        raise UsageError("USAGE", f"sliding window: image {tuple(image.shape)}; expected (channel, z, y, x)")
    z, y, x = image.shape[1:]
    pad = [max(p - n, 0) for p, n in zip(patch_zyx, (z, y, x), strict=True)]
    image = torch.nn.functional.pad(image, (0, pad[2], 0, pad[1], 0, pad[0]))
    padded = image.shape[1:]
    starts = [window_starts(n, p, overlap) for n, p in zip(padded, patch_zyx, strict=True)]
    profiles = [gaussian_profile(p) for p in patch_zyx]
    weight_ZYX = torch.from_numpy(np.einsum("i,j,k->ijk", *profiles)).to(device)
    was_training = network.training
    network.to(device).eval()
    total: FloatVolume | None = None
    try:
        with torch.inference_mode():
            for origins in _batches(itertools.product(*starts), batch):
                boxes = [
                    (slice(None), *(slice(o, o + p) for o, p in zip(origin, patch_zyx, strict=True)))
                    for origin in origins
                ]
                patches = torch.stack([image[box] for box in boxes]).to(device)
                weighted = (_forward(network, _unit(patches), amp, tta) * weight_ZYX).cpu().numpy()
                if total is None:
                    total = np.zeros((weighted.shape[1], *padded), dtype=np.float32)
                for box, values in zip(boxes, weighted, strict=True):
                    total[box] += values
    finally:
        network.train(was_training)
    assert total is not None  # every axis has at least one start
    for axis, (axis_starts, profile) in enumerate(zip(starts, profiles, strict=True)):
        sums = np.zeros(padded[axis], dtype=np.float64)
        for start in axis_starts:
            sums[start : start + len(profile)] += profile
        shape = [1, 1, 1, 1]
        shape[axis + 1] = -1
        total /= sums.astype(np.float32).reshape(shape)
    return np.clip(total[:, :z, :y, :x], 0, 1)


def _batches(origins: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while chunk := list(itertools.islice(origins, size)):
        yield chunk


def _unit(patches: Tensor) -> Tensor:
    """Network input: uint8 / 255 as float32; floats are taken as they are."""
    return patches.float() / 255 if patches.dtype == torch.uint8 else patches.float()


def _forward(network: nn.Module, x_BCZYX: Tensor, amp: bool, tta: bool) -> Tensor:
    """Probabilities of a batch of patches, averaged over the 8 mirrorings with `tta`."""
    flips = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)] if tta else [()]
    total: Tensor | None = None
    with torch.autocast(x_BCZYX.device.type, dtype=torch.bfloat16, enabled=amp):
        for axes in flips:
            p = probabilities(network(x_BCZYX.flip(axes)).float()).flip(axes)
            total = p if total is None else total + p
    assert total is not None
    return total / len(flips)
