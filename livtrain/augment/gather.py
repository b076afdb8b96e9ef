"""Values at the positions of a changed patch: trilinear for the image, nearest for the labels.

What lies outside the region that was read is 0: the windows' low end, -1024 HU in packed voxels, background.
`sample` runs on any device; `sample_packed` does the same for packed voxels, by a compiled loop where they are on
the CPU (a test holds that both agree).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from livtrain.augment.channels import hu_bits, label_bits
from livtrain.augment.draws import Matrix
from livtrain.augment.kernels import resample
from livtrain.augment.moving import moved

_PLANES = 16
"""Fewest planes of the result that are worth a thread."""


def sample(
    image_CZYX: Tensor, labels_ZYX: Tensor, matrix: Matrix, shift: Tensor | None, out_CZYX: Tensor, marks_ZYX: Tensor
) -> None:
    """Fill `out` (float32 channels) and `marks` (uint8 labels) of the patch from a region around the same center.

    `align_corners=False` counts positions in half sizes, -1 and 1 being the outer faces of the outermost voxels, so
    that one matrix serves a region and a patch of different sizes without a term for their difference.

    Parameters
    ----------
    image_CZYX, labels_ZYX
        float32 channels and uint8 labels of the region.
    matrix
        Offset from the center in voxels of the patch -> of the region (zyx).
    shift
        `(3, z, y, x)` voxels to add, or None.
    """
    region, patch = np.array(labels_ZYX.shape), np.array(marks_ZYX.shape)
    theta = np.zeros((3, 4))
    theta[:, :3] = (matrix * patch[None, :] / region[:, None])[::-1, ::-1]  # grid_sample's order is x, y, z
    device = labels_ZYX.device
    grid = affine_grid(moved(theta.astype(np.float32), device)[None], [1, 1, *marks_ZYX.shape], align_corners=False)
    if shift is not None:
        halves = moved((2 / region[::-1]).astype(np.float32), device)
        grid += (shift.flip(0).movedim(0, -1) * halves)[None]
    out_CZYX.copy_(grid_sample(image_CZYX[None], grid, "bilinear", "zeros", align_corners=False)[0])
    nearest = grid_sample(labels_ZYX.to(image_CZYX)[None, None], grid, "nearest", "zeros", align_corners=False)
    marks_ZYX.copy_(nearest[0, 0])


def sample_packed(
    packed_ZYX: Tensor, matrix: Matrix, shift: Tensor | None, values_ZYX: Tensor, marks_ZYX: Tensor
) -> None:
    """Fill `values` (float32, HU + 1024) and `marks` from packed voxels of a region, as `sample` does."""
    if packed_ZYX.device.type != "cpu":
        values = hu_bits(packed_ZYX).float()[None]
        sample(values, label_bits(packed_ZYX), matrix, shift, values_ZYX[None], marks_ZYX)
        return
    center = (np.array(packed_ZYX.shape) - 1) / 2
    origin = center - matrix @ ((np.array(marks_ZYX.shape) - 1) / 2)
    arguments = (
        packed_ZYX.view(torch.int16).contiguous().numpy().reshape(-1).view(np.uint16),  # torch copies no uint16
        np.array(packed_ZYX.shape, dtype=np.int64),
        matrix.astype(np.float32, order="C"),
        origin.astype(np.float32),
        np.empty((0, 0, 0, 0), dtype=np.float32) if shift is None else shift.contiguous().numpy(),
        values_ZYX.numpy(),
        marks_ZYX.numpy(),
    )
    planes = marks_ZYX.shape[0]
    threads = max(1, min(torch.get_num_threads(), planes // _PLANES))
    edges = [planes * k // threads for k in range(threads + 1)]
    if threads == 1:
        resample(*arguments, 0, planes)
        return
    with ThreadPoolExecutor(threads) as pool:  # starting threads costs 0.1 ms, the work 10
        for done in [pool.submit(resample, *arguments, *ends) for ends in pairwise(edges)]:
            done.result()
