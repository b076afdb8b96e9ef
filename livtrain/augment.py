"""Random changes of a batch, on the device that holds it.

The changes of a patch are a pure function of (seed, counter), so they do not depend on workers, batch size or
resuming. Turning and zooming happen in mm, so a patch of thick slices is not sheared. At strength 0 the batch
comes back as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from livprep.geometry import Triple

_AUGMENT = 0xA063  # keeps this stream apart from other uses of (seed, counter)


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the changes.

    Parameters
    ----------
    probability
        Of each kind (intensity, affine) for one patch.
    intensity
        Largest relative change of contrast, and largest shift, as fractions of the window.
    gamma
        Largest change of the exponent.
    noise
        Largest standard deviation of Gaussian noise, as a fraction of the window.
    rotation_deg, scale
        Largest turn about each axis in degrees, and largest relative zoom.
    flip_z, flip_y, flip_x
        Mirror with odds 1/2. Left-right (x) is information in an abdomen: the liver lies on the right.
    """

    probability: float = 0.5
    intensity: float = 0.1
    gamma: float = 0.2
    noise: float = 0.05
    rotation_deg: float = 15.0
    scale: float = 0.15
    flip_z: bool = False
    flip_y: bool = False
    flip_x: bool = False

    @property
    def _flips(self) -> tuple[bool, bool, bool]:
        return (self.flip_z, self.flip_y, self.flip_x)


@dataclass(frozen=True, eq=False)
class _Draw:
    """The changes of one patch."""

    contrast: float
    shift: float
    gamma: float
    noise: float
    noise_seed: int
    matrix_zyx: npt.NDArray[np.float64] | None
    flips: tuple[int, ...]


def augment(
    image_BCZYX: Tensor,
    labels_BZYX: Tensor,
    *,
    counters: Sequence[int],
    spacing_mm: Sequence[Triple],
    seed: int,
    strength: Augmentation,
) -> tuple[Tensor, Tensor]:
    """Change each patch of a batch at random.

    Parameters
    ----------
    image_BCZYX
        float32 channels in 0...1; not changed themselves.
    labels_BZYX
        uint8 labels, resampled by nearest neighbor.
    counters
        Counter of each patch.
    spacing_mm
        Voxel distances (zyx, mm) of each patch.
    seed
        Seed of the run.

    Returns
    -------
    Channels, clipped to 0...1 where changed, and labels; outside of the turned patch both are 0.
    """
    images, labels = [], []
    for image, label, counter, spacing in zip(image_BCZYX, labels_BZYX, counters, spacing_mm, strict=True):
        draw = _draw(strength, spacing, np.random.default_rng(np.random.SeedSequence([seed, counter, _AUGMENT])))
        if draw.matrix_zyx is not None:
            image, label = _affine(image, label, draw.matrix_zyx)
        if draw.flips:
            image, label = image.flip([axis + 1 for axis in draw.flips]), label.flip(draw.flips)
        images.append(_intensity(image, draw))
        labels.append(label)
    return torch.stack(images), torch.stack(labels)


def _draw(strength: Augmentation, spacing_mm: Triple, rng: np.random.Generator) -> _Draw:
    """Draw the changes of one patch; every number is drawn always, so that switches do not shift the others."""
    use_intensity, use_affine = rng.random(2) < strength.probability
    contrast, shift, gamma = rng.uniform(-1, 1, 3)
    noise, angles, zoom = rng.random(), rng.uniform(-1, 1, 3), rng.uniform(-1, 1)
    heads = rng.random(3) < 0.5
    noise_seed = int(rng.integers(2**62))
    moves = use_affine and (strength.rotation_deg > 0 or strength.scale > 0)
    matrix = None
    if moves:
        turn_mm = _rotation(np.deg2rad(strength.rotation_deg) * angles) / (1 + strength.scale * zoom)
        steps = np.array(spacing_mm)
        matrix = turn_mm * steps[None, :] / steps[:, None]  # voxel -> mm -> turned mm -> voxel
    on = float(use_intensity)
    return _Draw(
        contrast=1 + on * strength.intensity * float(contrast),
        shift=on * strength.intensity * float(shift),
        gamma=1 + on * strength.gamma * float(gamma),
        noise=on * strength.noise * float(noise),
        noise_seed=noise_seed,
        matrix_zyx=matrix,
        flips=tuple(axis for axis in range(3) if strength._flips[axis] and heads[axis]),
    )


def _rotation(radians: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotation about the z, then y, then x axis, acting on vectors in zyx order."""
    turned = np.eye(3)
    for axis, angle in enumerate(radians):
        first, second = (k for k in range(3) if k != axis)
        step = np.eye(3)
        step[first, first] = step[second, second] = math.cos(angle)
        step[first, second], step[second, first] = -math.sin(angle), math.sin(angle)
        turned = step @ turned
    return turned


def _affine(image: Tensor, label: Tensor, matrix_zyx: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Resample about the center: linear for `(C, Z, Y, X)` channels, nearest for `(Z, Y, X)` labels."""
    sizes = np.array(label.shape, dtype=np.float64)
    # grid_sample counts in half sizes and in x, y, z order (align_corners=False)
    unit = matrix_zyx * sizes[None, :] / sizes[:, None]
    theta = torch.zeros((1, 3, 4), device=image.device)
    theta[0, :, :3] = torch.from_numpy(np.ascontiguousarray(unit[::-1, ::-1])).to(image)
    grid = affine_grid(theta, [1, 1, *label.shape], align_corners=False)
    turned = grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    nearest = grid_sample(label[None, None].to(image), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned[0], nearest[0, 0].to(label.dtype)


def _intensity(image: Tensor, draw: _Draw) -> Tensor:
    """Contrast about the middle of the window, shift, gamma and noise; the ends of the window stay its ends."""
    if draw.contrast == 1 and draw.shift == 0 and draw.gamma == 1 and draw.noise == 0:
        return image
    image = ((image - 0.5) * draw.contrast + (0.5 + draw.shift)).clamp_(0, 1)
    if draw.gamma != 1:
        image = image.pow_(draw.gamma)
    if draw.noise > 0:
        generator = torch.Generator(image.device).manual_seed(draw.noise_seed)
        image = image + draw.noise * torch.randn(image.shape, generator=generator, device=image.device)
    return image.clamp_(0, 1)
