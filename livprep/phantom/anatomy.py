"""One patient's anatomy in mm: sizes and places, and how it is drawn onto a slab of voxels.

Body coordinates: x to the patient's left, y to posterior, z to head, in mm from the middle of the trunk at the
height of the liver's hilum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livprep.geometry import Triple
from livprep.phantom.field import BOUND, Axes, Field, FloatArray, PlanarField, Slab, stream

BoolArray = npt.NDArray[np.bool_]

_WARP_SCALE_MM = 75.0
_WARP_MM = 6.0
_ROUGH_SCALE_MM = 24.0


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Sizes and places of one patient, in mm."""

    body_x: float  # half axes of the trunk
    body_y: float
    fat: float  # thickness of the subcutaneous fat
    wall: float  # thickness of the muscle and rib wall
    dome_right: float  # height of the diaphragm's domes
    dome_left: float
    spine_y: float
    liver_low: float  # lowest edge of the right lobe
    liver_left: float  # left end of the left lobe
    liver_posterior: float
    organ_scale: float
    rib_phase: float
    shift: Triple  # common offset of the abdominal organs

    @property
    def vessel_y(self) -> float:
        """Depth of the large vessels, in front of the spine."""
        return self.spine_y - 29.0


def draw_anatomy(patient: str, seed: int) -> Anatomy:
    """Draw one patient's sizes and places."""
    rng = stream(seed, patient, "anatomy")
    body_x = float(rng.uniform(152, 178))
    body_y = body_x * float(rng.uniform(0.66, 0.75))
    fat = float(rng.uniform(8, 24))
    return Anatomy(
        body_x=body_x,
        body_y=body_y,
        fat=fat,
        wall=float(rng.uniform(14, 18)),
        dome_right=float(rng.uniform(70, 88)),
        dome_left=float(rng.uniform(58, 74)),
        spine_y=body_y - 0.5 * fat - float(rng.uniform(50, 56)),
        liver_low=float(rng.uniform(-92, -60)),
        liver_left=float(rng.uniform(38, 88)),
        liver_posterior=float(rng.uniform(38, 54)),
        organ_scale=float(rng.uniform(0.9, 1.1)),
        rib_phase=float(rng.uniform(0, 30)),
        shift=(float(rng.normal(0, 4)), float(rng.normal(0, 3)), float(rng.normal(0, 6))),
    )


@dataclass(frozen=True, eq=False)
class Deformation:
    """A patient's smooth deformation and surface roughness on the rows and columns of one grid."""

    warp: tuple[PlanarField, PlanarField, PlanarField]
    rough: PlanarField

    @classmethod
    def on(cls, axes: Axes, patient: str, seed: int) -> Deformation:
        """Expand a patient's fields to the rows and columns of a grid."""
        rng = stream(seed, patient, "deformation")
        fields = [Field(rng, _WARP_SCALE_MM).on(axes.y_mm, axes.x_mm) for _ in range(3)]
        return cls((fields[0], fields[1], fields[2]), Field(rng, _ROUGH_SCALE_MM).on(axes.y_mm, axes.x_mm))

    def slab(self, axes: Axes, slices: slice) -> Slab:
        """Deformed coordinates of some slices."""
        z_mm = axes.z_mm[slices]
        plain = (axes.x_mm[None, None, :], axes.y_mm[None, :, None], z_mm[:, None, None])
        x, y, z = (
            field.at(z_mm) * np.float32(_WARP_MM) + positions.astype(np.float32)
            for field, positions in zip(self.warp, plain, strict=True)
        )
        reach_mm = BOUND * _WARP_MM
        return Slab(x, y, z, self.rough.at(z_mm), Axes(z_mm, axes.y_mm, axes.x_mm), reach_mm)


@dataclass(frozen=True, eq=False)
class Trunk:
    """What most organs are bounded by, on one slab: `(z, y, x)` float32 in mm."""

    depth: FloatArray  # below the skin; negative outside the body
    cavity: FloatArray  # below the inner face of the wall; positive inside the cavity
    diaphragm: FloatArray  # height of the diaphragm at this column


def trunk_of(slab: Slab, anatomy: Anatomy) -> Trunk:
    """Body surface, body cavity and diaphragm on a slab."""
    qx = np.minimum((slab.x * np.float32(1 / anatomy.body_x)) ** 2, np.float32(1.6))
    qy = np.minimum((slab.y * np.float32(1 / anatomy.body_y)) ** 2, np.float32(1.6))
    # Between an ellipse and a rounded rectangle; the bound above keeps the product term from turning around.
    radius = np.sqrt(qx + qy - np.float32(0.42) * qx * qy)
    depth = (np.float32(1) - radius) * np.float32(0.5 * (anatomy.body_x + anatomy.body_y))
    cavity = depth - np.float32(anatomy.fat + anatomy.wall)
    return Trunk(depth, cavity, _diaphragm(slab, anatomy))


def _diaphragm(slab: Slab, anatomy: Anatomy) -> FloatArray:
    domes = []
    for x0, width, top in ((-70.0, 96.0, anatomy.dome_right), (72.0, 84.0, anatomy.dome_left)):
        u = (slab.x - np.float32(x0)) * np.float32(1 / width)
        v = (slab.y - np.float32(-4)) * np.float32(1 / 104)
        domes.append(np.float32(top) - np.float32(78) * (u * u + v * v))
    height: FloatArray = np.maximum(domes[0], domes[1]) + np.float32(1.5) * slab.rough
    return height
