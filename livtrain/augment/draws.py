"""What happens to one patch: all random numbers, drawn on the host from (seed, counter).

Each transform has its own stream of a counter-based generator (Philox; Salmon et al. 2011, SC11), so turning one
off, or another number of channels, leaves the others' numbers as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from livprep.windows import Window
from livtrain.augment.intensity import (
    BlurStep,
    BrightnessStep,
    ContrastStep,
    GammaStep,
    LowResolutionStep,
    NoiseStep,
    Step,
)
from livtrain.augment_config import AugmentSettings, Chance, Gamma

_AUGMENT = 0xA063  # keeps these streams apart from other uses of (seed, counter)
Matrix = npt.NDArray[np.float64]


class Stream(IntEnum):
    """Streams of one patch; their numbers are part of what a seed means, so they never change."""

    FLIP = 0
    ROTATION = 1
    SCALING = 2
    SHEAR = 3
    ELASTIC = 4
    WINDOW = 5
    NOISE = 6
    BLUR = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    LOW_RESOLUTION = 10
    GAMMA_INVERTED = 11
    GAMMA = 12
    LATTICE = 13


@lru_cache(maxsize=16)
def _key(seed: int) -> npt.NDArray[np.uint64]:
    return np.random.SeedSequence([seed, _AUGMENT]).generate_state(2, np.uint64).astype(np.uint64)


def stream(seed: int, counter: int, which: Stream) -> np.random.Generator:
    """Random numbers of one transform of one patch; Philox counts in the lowest of the four words."""
    start = np.array([0, which, counter, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=start, key=_key(seed)))


@dataclass(frozen=True, eq=False)
class ElasticDraw:
    """A displacement: distance of the lattice points, largest shift an axis (zyx), and where its numbers are."""

    step_mm: float
    shift_mm: tuple[float, float, float]
    seed: int
    counter: int

    def points(self, shape_zyx: tuple[int, int, int]) -> npt.NDArray[np.float32]:
        """Displacement `(3, z, y, x)` in mm of a lattice of that shape."""
        rng = stream(self.seed, self.counter, Stream.LATTICE)
        largest = np.array(self.shift_mm, dtype=np.float32)[:, None, None, None]
        return largest * rng.uniform(-1, 1, (3, *shape_zyx)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class GeometryDraw:
    """Where a patch is sampled.

    Parameters
    ----------
    flips
        Axes (0 is z) to mirror.
    matrix_mm
        Offset from the center in the result -> offset in the source, both zyx in mm; None where nothing turns.
    elastic
        Displacement added to the source position.
    """

    flips: tuple[int, ...] = ()
    matrix_mm: Matrix | None = None
    elastic: ElasticDraw | None = None

    @property
    def resamples(self) -> bool:
        """Whether values must be interpolated; mirroring alone only reorders voxels."""
        return self.matrix_mm is not None or self.elastic is not None


def draw_geometry(settings: AugmentSettings, flat: bool, seed: int, counter: int) -> GeometryDraw:
    """Mirroring, rotation, scaling, shear and displacement of one patch; `flat` keeps them in the plane."""
    heads = stream(seed, counter, Stream.FLIP).random(3) < 0.5
    asked = (settings.flip_z, settings.flip_y, settings.flip_x)
    flips = tuple(axis for axis in range(3) if asked[axis] and heads[axis])
    if not settings.moves:
        return GeometryDraw(flips)
    matrix = (
        _rotation(settings, flat, seed, counter)
        @ _shear(settings, flat, seed, counter)
        @ _scaling(settings, flat, seed, counter)
    )
    elastic = _elastic(settings, flat, seed, counter)
    return GeometryDraw(flips, None if np.array_equal(matrix, np.eye(3)) else matrix, elastic)


def _rotation(settings: AugmentSettings, flat: bool, seed: int, counter: int) -> Matrix:
    """Rotation about the z, then y, then x axis, acting on offsets in zyx order."""
    turned = np.eye(3)
    if (rng := _chosen(settings.rotation, seed, counter, Stream.ROTATION)) is None:
        return turned
    angles = rng.uniform(-1, 1, 3) * math.radians(settings.rotation.in_plane_deg if flat else settings.rotation.max_deg)
    for axis, angle in enumerate(angles[:1] if flat else angles):
        first, second = (k for k in range(3) if k != axis)
        step = np.eye(3)
        step[first, first] = step[second, second] = math.cos(angle)
        step[first, second], step[second, first] = -math.sin(angle), math.sin(angle)
        turned = step @ turned
    return turned


def _scaling(settings: AugmentSettings, flat: bool, seed: int, counter: int) -> Matrix:
    if (rng := _chosen(settings.scaling, seed, counter, Stream.SCALING)) is None:
        return np.eye(3)
    factors = rng.uniform(*settings.scaling.field, 3)
    if settings.scaling.isotropic:
        factors[:] = factors[0]
    if flat:
        factors[0] = 1
    return np.diag(factors)


def _shear(settings: AugmentSettings, flat: bool, seed: int, counter: int) -> Matrix:
    """A unit triangular matrix: it keeps the volume, and with a rotation it can shear in any direction."""
    matrix = np.eye(3)
    if (rng := _chosen(settings.shear, seed, counter, Stream.SHEAR)) is not None:
        matrix[1, 2], matrix[0, 1], matrix[0, 2] = rng.uniform(-1, 1, 3) * settings.shear.max
        if flat:
            matrix[0, 1:] = 0
    return matrix


def _elastic(settings: AugmentSettings, flat: bool, seed: int, counter: int) -> ElasticDraw | None:
    if (rng := _chosen(settings.elastic, seed, counter, Stream.ELASTIC)) is None:
        return None
    step, shift = rng.uniform(*settings.elastic.step_mm), rng.uniform(*settings.elastic.shift_mm)
    return ElasticDraw(float(step), (0.0 if flat else float(shift), float(shift), float(shift)), seed, counter)


def draw_windows(
    settings: AugmentSettings, windows: tuple[Window, ...], seed: int, counter: int
) -> tuple[Window, ...] | None:
    """The windows of one patch, level and width drawn around their values; None where they stay as they are."""
    if (rng := _chosen(settings.window, seed, counter, Stream.WINDOW)) is None:
        return None
    level, width = settings.window.level, settings.window.width
    return tuple(w.moved(rng.uniform(-level, level), rng.uniform(*width)) for w in windows)


def draw_intensity(settings: AugmentSettings, flat: bool, channels: int, seed: int, counter: int) -> tuple[Step, ...]:
    """Changes of the values of one patch's channels, in nnU-Net's order."""
    every = range(channels)
    steps: list[Step] = []
    if rng := _chosen(settings.noise, seed, counter, Stream.NOISE):
        sd = float(rng.uniform(*settings.noise.sd))
        steps += [NoiseStep(c, sd, int(rng.integers(2**62))) for c in every]
    if rng := _chosen(settings.blur, seed, counter, Stream.BLUR):
        low, high = settings.blur.sigma
        blurs = [(rng.random() < settings.blur.p_channel, rng.uniform(low, high, 3)) for _ in every]
        steps += [BlurStep(c, (float(s[0]), float(s[1]), float(s[2]))) for c, (on, s) in enumerate(blurs) if on]
    if rng := _chosen(settings.brightness, seed, counter, Stream.BRIGHTNESS):
        steps += [BrightnessStep(c, _split(rng, settings.brightness.factor)) for c in every]
    if rng := _chosen(settings.contrast, seed, counter, Stream.CONTRAST):
        steps += [ContrastStep(c, _split(rng, settings.contrast.factor)) for c in every]
    if rng := _chosen(settings.low_resolution, seed, counter, Stream.LOW_RESOLUTION):
        low, high = settings.low_resolution.zoom
        zooms = [(rng.random() < settings.low_resolution.p_channel, float(rng.uniform(low, high))) for _ in every]
        steps += [LowResolutionStep(c, (1.0 if flat else z, z, z)) for c, (on, z) in enumerate(zooms) if on]
    steps += _gammas(settings.gamma_inverted, True, channels, seed, counter)
    steps += _gammas(settings.gamma, False, channels, seed, counter)
    return tuple(steps)


def _gammas(gamma: Gamma, invert: bool, channels: int, seed: int, counter: int) -> list[Step]:
    rng = _chosen(gamma, seed, counter, Stream.GAMMA_INVERTED if invert else Stream.GAMMA)
    if rng is None:
        return []
    return [GammaStep(c, _split(rng, gamma.exponent), invert, gamma.retain) for c in range(channels)]


def _chosen(chance: Chance, seed: int, counter: int, which: Stream) -> np.random.Generator | None:
    """The transform's stream if it is to happen."""
    if chance.p == 0:
        return None
    rng = stream(seed, counter, which)
    return rng if rng.random() < chance.p else None


def _split(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Below and above 1 with equal odds, uniform in each part (batchgeneratorsv2, BGContrast)."""
    low, high = bounds
    if low < 1 < high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return float(rng.uniform(low, high))
