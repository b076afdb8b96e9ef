"""Tumors and other findings: where they lie, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from livprep.geometry import Triple
from livprep.phantom.anatomy import Anatomy, BoolArray, Trunk
from livprep.phantom.drawing import Codes, gallbladder_center, paint
from livprep.phantom.field import Axes, Slab
from livprep.phantom.organs import LIVER_SET, Findings, Organ
from livprep.phantom.shapes import Rotation, ellipsoid, rotation, tube

COARSE_MM = 7.0
"""Spacing of the coarse grid on which lesions are placed; fixed, so that places do not depend on the voxels."""
_TUMOR_RADIUS_MIN_MM = 5.5
_GAP_MM = 4.0


@dataclass(frozen=True, eq=False)
class Lesion:
    """One lesion of the liver: an ellipsoid with a rough surface, in deformed body coordinates (mm).

    `place` is where the center lies in undeformed coordinates.
    """

    organ: int
    place: Triple
    center: Triple
    radii: Triple
    turn: Rotation
    radius: float


@dataclass(frozen=True, eq=False)
class CoarseLiver:
    """Voxels of the liver on the coarse grid, in mm.

    `positions` are deformed and `places` undeformed coordinates, `(n, 3)` xyz; `depths` lie below the surface.
    """

    positions: npt.NDArray[np.float64]
    places: npt.NDArray[np.float64]
    depths: npt.NDArray[np.float64]

    @classmethod
    def of(cls, slab: Slab, codes: Codes) -> CoarseLiver:
        """Collect the liver of a coarse slab."""
        liver = np.isin(codes, LIVER_SET)
        depths = np.asarray(ndimage.distance_transform_edt(liver))[liver] * COARSE_MM
        positions = np.stack([slab.x[liver], slab.y[liver], slab.z[liver]], axis=1).astype(np.float64)
        z, y, x = np.nonzero(liver)
        places = np.stack([slab.axes.x_mm[x], slab.axes.y_mm[y], slab.axes.z_mm[z]], axis=1)
        return cls(positions, places, depths)

    @property
    def volume_mm3(self) -> float:
        """Volume of the liver that the scan shows."""
        return len(self.depths) * COARSE_MM**3


def plan_lesions(liver: CoarseLiver, findings: Findings, rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Choose places and sizes of tumors, cysts and scar; none where the scan shows no liver."""
    if len(liver.depths) == 0:
        return ()
    weights = np.exp(rng.normal(0, 0.6, findings.tumors))
    volumes = findings.tumor_fraction * liver.volume_mm3 * weights / max(float(weights.sum()), 1e-9)
    radii = np.maximum((volumes * 3 / (4 * np.pi)) ** (1 / 3), _TUMOR_RADIUS_MIN_MM)
    wanted = [(Organ.TUMOR + k, float(radius)) for k, radius in enumerate(radii)]
    wanted += [(int(Organ.CYST), float(rng.uniform(6, 11))) for _ in range(findings.cysts)]
    wanted += [(int(Organ.SCAR), 20.0)] * findings.scar
    placed: list[Lesion] = []
    for organ, radius in sorted(wanted, key=lambda item: -item[1]):  # the largest needs the choice most
        placed.append(_place(liver, organ, radius, placed, rng))
    return tuple(sorted(placed, key=lambda lesion: lesion.organ))


def _place(liver: CoarseLiver, organ: int, radius: float, placed: Sequence[Lesion], rng: np.random.Generator) -> Lesion:
    slack = liver.depths - 0.85 * radius
    for other in placed:
        distances = np.sqrt(((liver.positions - np.array(other.center)) ** 2).sum(axis=1))
        slack = np.minimum(slack, distances - other.radius - radius - _GAP_MM)
    good = np.flatnonzero(slack > 0)
    index = int(rng.choice(good)) if len(good) else int(np.argmax(slack))
    aspect = np.exp(rng.normal(0, 0.12 if organ != Organ.SCAR else 0.35, 3))
    aspect /= float(np.prod(aspect)) ** (1 / 3)
    x, y, z = (float(value) for value in liver.positions[index])
    px, py, pz = (float(value) for value in liver.places[index])
    rx, ry, rz = (float(radius * value) for value in aspect)
    turn = rotation(*(float(angle) for angle in rng.uniform(-45, 45, 3)))
    return Lesion(organ, (px, py, pz), (x, y, z), (rx, ry, rz), turn, radius)


def draw_lesions(codes: Codes, slab: Slab, lesions: Sequence[Lesion]) -> None:
    """Draw lesions inside the liver; where two meet, the first keeps its voxels."""
    free: BoolArray = np.isin(codes, (Organ.LIVER, Organ.PORTAL_IN_LIVER, Organ.HEPATIC_VEIN))
    for lesion in lesions:
        part = ellipsoid(slab, lesion.center, lesion.radii, lesion.turn, margin_mm=4.0)
        if part is None:
            continue
        box, values = part
        rough = np.float32(min(3.0, 0.14 * lesion.radius)) * slab.rough[box]
        paint(codes, (box, values + rough), lesion.organ, free)
        free[box] &= codes[box] != lesion.organ


def fill_missing(organs: Codes, axes: Axes, lesions: Sequence[Lesion]) -> None:
    """Give a lesion that fell between voxels the liver voxel nearest to its place.

    However large the voxels, a lesion must not vanish: its mask is announced by the catalogue.
    """
    for lesion in lesions:
        if (organs == lesion.organ).any():
            continue
        liver = np.argwhere(organs == Organ.LIVER)
        if len(liver):
            x, y, z = lesion.place
            center = [np.abs(axis - c).argmin() for axis, c in ((axes.z_mm, z), (axes.y_mm, y), (axes.x_mm, x))]
            organs[tuple(liver[((liver - np.array(center)) ** 2).sum(axis=1).argmin()])] = lesion.organ


def draw_findings_outside(codes: Codes, slab: Slab, trunk: Trunk, anatomy: Anatomy, findings: Findings) -> None:
    """Adrenal tumors, gallstones and a metal clip."""
    kept = (*LIVER_SET, Organ.CORTEX, Organ.MARROW, Organ.DISC, Organ.CANAL, Organ.ARTERY, Organ.VENA_CAVA)
    free = (trunk.cavity > 2) & (slab.z < trunk.diaphragm) & ~np.isin(codes, kept)
    y = anatomy.spine_y - 6
    for side, radius, organ in (
        (-1.0, findings.adrenal_right_mm, Organ.ADRENAL_TUMOR_RIGHT),
        (1.0, findings.adrenal_left_mm, Organ.ADRENAL_TUMOR_LEFT),
    ):
        if radius > 0:
            center = (side * (40 + 0.45 * radius), y - 0.5 * radius, -4.0 if side > 0 else -12.0)
            part = ellipsoid(slab, center, (radius, 0.9 * radius, 1.05 * radius), margin_mm=4.0)
            if part is not None:
                box, values = part
                paint(codes, (box, values + np.float32(0.08 * radius) * slab.rough[box]), organ, free)
    if findings.stones:
        bile = codes == Organ.GALLBLADDER
        x, y, z = gallbladder_center(anatomy)
        for low, size in ((-8.0, 7.0), (2.0, 5.0)):
            paint(codes, ellipsoid(slab, (x, y + 2, z + low), (size, size, size)), Organ.STONE, bile)
    if findings.metal:
        elsewhere = (trunk.cavity > 0) & ~np.isin(codes, LIVER_SET)
        for part in tube(slab, [(30.0, -34.0, -52.0), (44.0, -32.0, -56.0)], 4.0):
            paint(codes, part, Organ.METAL, elsewhere)
