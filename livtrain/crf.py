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
_MOST_VOXELS = 1 << 24
"""Solved at once, in about 2 GiB; larger structures are solved in blocks of slices."""
_MARGIN = 2.0
"""Standard deviations of the appearance kernel that a block sees beyond itself."""
_CHUNK_CELLS = 1 << 24
"""Cells of lines of voxels that are held at once: 64 MiB."""
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
        Where it is computed, in about 2 GiB at most.
    """
    settings = settings or CrfSettings()
    out = np.empty(probability_ZYX.shape, dtype=np.float32)
    step, margin = _blocks(out.shape, spacing_mm, settings)
    for start in range(0, len(out), step):
        seen = slice(max(start - margin, 0), start + step + margin)
        p = torch.from_numpy(np.asarray(probability_ZYX[seen], dtype=np.float32)).to(device)
        hu = torch.from_numpy(np.asarray(hu_ZYX[seen], dtype=np.float32)).to(device)
        refined = _mean_field(p, hu, spacing_mm, settings)[start - seen.start :][:step]
        out[start : start + step] = refined.cpu().numpy()
    return out


def _blocks(shape_zyx: tuple[int, ...], spacing_mm: Triple, settings: CrfSettings) -> tuple[int, int]:
    """Slices that are solved at once, and slices around them that are seen too: all, as long as they are not many."""
    depth, plane = shape_zyx[0], max(shape_zyx[1] * shape_zyx[2], 1)
    if settings.planar:
        return min(_PLANAR_SLICES, max(depth, 1)), 0
    if depth * plane <= _MOST_VOXELS:
        return max(depth, 1), 0
    margin = math.ceil(_MARGIN * settings.appearance_mm / spacing_mm[0])
    return max(_MOST_VOXELS // plane - 2 * margin, _PLANAR_SLICES), margin


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
    """The appearance filter: a call spreads values over cells of position and HU, blurs them and reads them back.

    Along z and y a voxel's place in the cells does not depend on the others: matrices do that part, for some slices
    at once; only cells along x and HU are addressed one by one.
    """

    def __init__(self, hu: Tensor, spacing_mm: Triple, settings: CrfSettings) -> None:
        cell_mm, cell_hu = settings.appearance_mm / settings.cells, settings.appearance_hu / settings.cells
        sigma = math.sqrt(settings.cells**2 - 1 / 3)
        self._values = (hu.clamp(settings.low_hu, settings.high_hu) - settings.low_hu) / cell_hu
        steps = [1.0 if settings.planar else spacing_mm[0] / cell_mm, spacing_mm[1] / cell_mm, spacing_mm[2] / cell_mm]
        places = [torch.arange(n, device=hu.device) * step for n, step in zip(hu.shape, steps, strict=True)]
        counts = [math.floor(float(axis[-1])) + 2 for axis in places]
        levels = math.floor((settings.high_hu - settings.low_hu) / cell_hu) + 2
        self._shape = (*counts, levels)
        self._z, self._y = (_shares(axis, n) for axis, n in zip(places[:2], counts[:2], strict=True))
        self._x = places[2]
        self._blurs = [_band(n, sigma, hu.device) for n in self._shape]
        if settings.planar:
            self._blurs[0] = torch.eye(counts[0], device=hu.device)
        self._depth = max(_CHUNK_CELLS // max(hu.shape[1] * counts[2] * levels, 1), 1)

    def __call__(self, values: Tensor) -> Tensor:
        rows, plane = values.shape[1], self._shape[2] * self._shape[3]
        grid = torch.zeros(self._shape[0], self._shape[1] * plane, device=values.device)
        for part in self._parts(values):
            lines = torch.zeros(values[part].shape[0] * rows * plane, device=values.device)
            for cells, share in self._corners(part, rows):
                lines.index_add_(0, cells.ravel(), (share * values[part]).ravel())
            columns = torch.matmul(self._y, lines.reshape(-1, rows, plane))
            grid += self._z[:, part] @ columns.reshape(len(columns), -1)
        grid = grid.reshape(self._shape)
        for axis, band in enumerate(self._blurs):
            grid = torch.tensordot(grid, band, dims=([axis], [0])).movedim(-1, axis)
        flat = grid.reshape(self._shape[0], -1)
        out = torch.zeros_like(values)
        for part in self._parts(values):
            columns = (self._z[:, part].T @ flat).reshape(-1, self._shape[1], plane)
            lines = torch.matmul(self._y.T, columns).reshape(-1)
            for cells, share in self._corners(part, rows):
                out[part] += share * lines[cells]
        return out

    def _parts(self, values: Tensor) -> Iterator[slice]:
        """Some slices after the other."""
        for start in range(0, len(values), self._depth):
            yield slice(start, start + self._depth)

    def _corners(self, part: slice, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the 4 cells along x and HU around the voxels of some slices: which, and the voxels' shares."""
        hu = self._values[part]
        lower_x, lower_hu = self._x.floor(), hu.floor()
        line = torch.arange(len(hu) * rows, device=hu.device).reshape(-1, rows, 1)
        first = ((line * self._shape[2] + lower_x.long()) * self._shape[3]) + lower_hu.long()
        share_x, share_hu = self._x - lower_x, hu - lower_hu
        for up_x, up_hu in itertools.product((0, 1), repeat=2):
            share = (share_x if up_x else 1 - share_x) * (share_hu if up_hu else 1 - share_hu)
            yield first + (up_x * self._shape[3] + up_hu), share


def _shares(places: Tensor, cells: int) -> Tensor:
    """Matrix `(cells, places)` of the linear share of each place in each cell."""
    index = torch.arange(cells, device=places.device)[:, None]
    return (1 - (places - index).abs()).clamp_min(0)


def _band(size: int, sigma: float, device: torch.device) -> Tensor:
    """Matrix of a Gaussian blur over cells; symmetric."""
    index = torch.arange(size, device=device, dtype=torch.float32)
    distance = (index[:, None] - index).abs()
    return torch.exp(-0.5 * (distance / sigma) ** 2) * (distance <= _REACH * sigma)
