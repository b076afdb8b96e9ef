"""A dense conditional random field over the probability of one structure, solved by mean field.

Energy and updates are those of Kraehenbuehl and Koltun (NIPS 2011, "Efficient inference in fully connected CRFs with
Gaussian edge potentials"), with Potts compatibility and two kernels between any two voxels i and j,

    smoothness  exp(-|x_i - x_j|^2 / 2 s^2)
    appearance  exp(-|x_i - x_j|^2 / 2 a^2 - (hu_i - hu_j)^2 / 2 h^2),

positions x in mm, so that spacing counts. As in its authors' program, kernels are normalized symmetrically, k_ij /
sqrt(n_i n_j) with n_i = sum over j of k_ij, and contain the voxel itself. For two classes q(background) = 1 - q, and
the update is logit(q) = logit(p) + sum over kernels of weight * (2 f(q) - f(1)), f the filter with that kernel.

The smoothness filter is a separable convolution. The appearance filter runs on a bilateral grid (Paris and Durand,
ECCV 2006; Chen, Paris and Durand, SIGGRAPH 2007): voxels are spread linearly onto cells of position and HU, cells are
blurred, and voxels are read back, which takes time and memory in proportion to the voxels where a window of this
width would visit some 100,000 neighbors of each. Spreading and reading widen a kernel by 1/6 cell^2 each on average;
the blur is narrower by as much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from livprep.geometry import Triple

FloatArray = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Filter = Callable[[Tensor], Tensor]

_REACH = 3.0
"""Standard deviations beyond which a kernel counts as 0."""
_LEAST = 1e-4
"""Probabilities nearer to 0 or 1 are moved there: a network that is sure can still be wrong."""
_CHUNK_VOXELS = 1 << 20
_PLANAR_SLICES = 16
"""Slices of the planar field that are solved at once."""


@dataclass(frozen=True)
class CrfSettings:
    """Kernels and length of the mean field; the values of method.md, section 5, with mm for voxels.

    Parameters
    ----------
    smooth_mm, smooth_weight
        Standard deviation and weight of the smoothness kernel.
    appearance_mm, appearance_hu, appearance_weight
        Those of the appearance kernel.
    low_hu, high_hu
        HU are clipped to this range.
    iterations
        Updates; the paper sees no change after 10.
    planar
        Each slice by itself.
    cells
        Cells of the bilateral grid for one standard deviation.
    """

    smooth_mm: float = 1.0
    smooth_weight: float = 3.0
    appearance_mm: float = 10.0
    appearance_hu: float = 10.0
    appearance_weight: float = 10.0
    low_hu: float = -100.0
    high_hu: float = 250.0
    iterations: int = 10
    planar: bool = False
    cells: int = 2


def refine(
    probability_ZYX: Probabilities,
    hu_ZYX: npt.NDArray[np.int16],
    spacing_mm: Triple,
    settings: CrfSettings | None = None,
    device: torch.device | str = "cpu",
) -> FloatArray:
    """Probability of each voxel after the mean field.

    Parameters
    ----------
    probability_ZYX
        Of the structure, any float type; crop it to the structure's surroundings.
    hu_ZYX
        The scan on the same voxels.
    spacing_mm
        Voxel distances, zyx, mm.
    device
        Where it is computed; about 10 float32 for each voxel, and those of the grid.
    """
    settings = settings or CrfSettings()
    out = np.empty(probability_ZYX.shape, dtype=np.float32)
    step = _PLANAR_SLICES if settings.planar else max(len(out), 1)
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        p = torch.from_numpy(np.asarray(probability_ZYX[part], dtype=np.float32)).to(device)
        hu = torch.from_numpy(np.asarray(hu_ZYX[part], dtype=np.float32)).to(device)
        out[part] = _mean_field(p, hu, spacing_mm, settings).cpu().numpy()
    return out


@torch.inference_mode()
def _mean_field(p: Tensor, hu: Tensor, spacing_mm: Triple, settings: CrfSettings) -> Tensor:
    unary = torch.logit(p, eps=_LEAST)
    kernels = [
        (weight, _normalized(kernel, p))
        for weight, kernel in (
            (settings.smooth_weight, _smoothness(spacing_mm, settings)),
            (settings.appearance_weight, _Grid(hu, spacing_mm, settings)),
        )
        if weight > 0
    ]
    ones = torch.ones_like(p)
    constant = unary
    for weight, kernel in kernels:
        constant = constant - weight * kernel(ones)
    q = torch.sigmoid(unary)
    for _ in range(settings.iterations):
        energy = constant.clone()
        for weight, kernel in kernels:
            energy += 2 * weight * kernel(q)
        q = torch.sigmoid(energy)
    return q


def _normalized(kernel: Filter, like: Tensor) -> Filter:
    """The filter with k_ij / sqrt(n_i n_j)."""
    root = kernel(torch.ones_like(like)).clamp_min(1e-12).rsqrt()
    return lambda values: root * kernel(root * values)


def _smoothness(spacing_mm: Triple, settings: CrfSettings) -> Filter:
    """Separable Gaussian over positions; nothing lies beyond the borders."""

    def blur(values: Tensor) -> Tensor:
        result = values[None, None]
        for axis, step_mm in enumerate(spacing_mm):
            reach = math.floor(_REACH * settings.smooth_mm / step_mm)
            if reach == 0 or (settings.planar and axis == 0):
                continue
            offsets = torch.arange(-reach, reach + 1, device=values.device) * step_mm
            weights = torch.exp(-0.5 * (offsets / settings.smooth_mm) ** 2)
            shape, padding = [1] * 5, [0] * 3
            shape[axis + 2], padding[axis] = -1, reach
            result = functional.conv3d(result, weights.reshape(shape), padding=padding)
        return result[0, 0]

    return blur


class _Grid:
    """The appearance filter: a call spreads values over cells of position and HU, blurs them and reads them back."""

    def __init__(self, hu: Tensor, spacing_mm: Triple, settings: CrfSettings) -> None:
        self._device = hu.device
        cell_mm = settings.appearance_mm / settings.cells
        self._cell_hu = settings.appearance_hu / settings.cells
        self._hu = (hu.clamp(settings.low_hu, settings.high_hu) - settings.low_hu) / self._cell_hu
        planar = (True, False, False) if settings.planar else (False, False, False)
        self._axes = [
            torch.arange(n, device=self._device) * (1.0 if flat else step / cell_mm)
            for n, step, flat in zip(hu.shape, spacing_mm, planar, strict=True)
        ]
        span = [float(axis[-1]) for axis in self._axes] + [(settings.high_hu - settings.low_hu) / self._cell_hu]
        self._shape = [math.floor(length) + 2 for length in span]
        sigma = math.sqrt(settings.cells**2 - 1 / 3)
        self._blurs = [
            None if flat else _band(n, sigma, self._device)
            for n, flat in zip(self._shape, (*planar, False), strict=True)
        ]

    def __call__(self, values: Tensor) -> Tensor:
        grid = torch.zeros(math.prod(self._shape), device=self._device)
        for part, cells, share in self._corners(values.shape):
            grid.index_add_(0, cells.ravel(), (share * values[part]).ravel())
        grid = grid.reshape(self._shape)
        for axis, band in enumerate(self._blurs):
            if band is not None:
                grid = torch.tensordot(grid, band, dims=([axis], [0])).movedim(-1, axis)
        flat = grid.reshape(-1)
        out = torch.zeros_like(values)
        for part, cells, share in self._corners(values.shape):
            out[part] += share * flat[cells]
        return out

    def _corners(self, shape: torch.Size) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """For some slices and each of the 16 cells around a voxel: which cells, and the voxels' shares of them."""
        depth = max(_CHUNK_VOXELS // max(shape[1] * shape[2], 1), 1)
        for start in range(0, shape[0], depth):
            part = slice(start, start + depth)
            positions = [self._axes[0][part][:, None, None], self._axes[1][:, None], self._axes[2], self._hu[part]]
            lower = [position.floor() for position in positions]
            shares = [position - below for position, below in zip(positions, lower, strict=True)]
            for corner in itertools.product((0, 1), repeat=4):
                cells: Tensor = torch.zeros((), dtype=torch.int64, device=self._device)
                share: Tensor = torch.ones((), device=self._device)
                for below, fraction, up, size in zip(lower, shares, corner, self._shape, strict=True):
                    cells = cells * size + (below.long() + up)
                    share = share * (fraction if up else 1 - fraction)
                yield part, cells, share


def _band(size: int, sigma: float, device: torch.device) -> Tensor:
    """Matrix of a Gaussian blur over cells; symmetric."""
    index = torch.arange(size, device=device, dtype=torch.float32)
    distance = index[:, None] - index
    weights = torch.exp(-0.5 * (distance / sigma) ** 2)
    return torch.where(distance.abs() <= _REACH * sigma, weights, torch.zeros(()).to(device))
