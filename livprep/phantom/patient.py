"""One synthetic patient: drawing the organs on a grid, then the HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livprep.geometry import Geometry, Shape, Triple
from livprep.labels import Label, LabelArray
from livprep.phantom import drawing
from livprep.phantom.anatomy import Anatomy, BoolArray, Deformation, draw_anatomy, trunk_of
from livprep.phantom.drawing import Codes
from livprep.phantom.field import Axes, Slab, stream
from livprep.phantom.lesions import (
    COARSE_MM,
    CoarseLiver,
    Lesion,
    draw_findings_outside,
    draw_lesions,
    fill_missing,
    plan_lesions,
)
from livprep.phantom.organs import LIVER_SET, OUTSIDE_BODY, TUMORS_MAX, Findings, Organ, draw_findings
from livprep.phantom.render import Renderer

_COARSE_HALF_MM = 189.0


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic patient.

    Parameters
    ----------
    hu
        `(z, y, x)` int16 HU in LPS order.
    organs
        `(z, y, x)` uint8 values of `Organ`; tumor k has `Organ.TUMOR + k`.
    geometry
        The grid, LPS, origin (0, 0, 0).
    findings
        What the patient has.
    """

    hu: npt.NDArray[np.int16]
    organs: npt.NDArray[np.uint8]
    geometry: Geometry
    findings: Findings

    def mask(self, *organs: int) -> BoolArray:
        """Voxels `(z, y, x)` bool of any of the given organs."""
        table = np.zeros(256, dtype=np.bool_)
        table[list(organs)] = True
        return table[self.organs]

    def tumor(self, k: int) -> BoolArray:
        """Voxels of tumor k, counted from 0."""
        return self.mask(Organ.TUMOR + k)

    def tumors(self) -> BoolArray:
        """Voxels of all liver tumors."""
        return self.mask(*(Organ.TUMOR + k for k in range(TUMORS_MAX)))

    def liver(self) -> BoolArray:
        """Voxels of the liver including its tumors, cysts and inner vessels, as both data sets count it."""
        return self.mask(*LIVER_SET)

    def body(self) -> BoolArray:
        """Voxels inside the skin."""
        return ~self.mask(*OUTSIDE_BODY)

    def labels(self) -> LabelArray:
        """Labels `(z, y, x)` uint8: 0 background, 1 liver without tumor, 2 tumor."""
        table = np.zeros(256, dtype=np.uint8)
        table[list(LIVER_SET)] = Label.LIVER
        table[Organ.TUMOR : Organ.TUMOR + TUMORS_MAX] = Label.TUMOR
        return table[self.organs]


def make_phantom(
    shape_zyx: Shape, spacing_mm: Triple, *, patient: str, seed: int, findings: Findings | None = None
) -> Phantom:
    """Draw one synthetic patient.

    The anatomy follows from `patient`, `seed` and `findings` alone; shape and spacing say how it is sampled, so
    one patient can be drawn on several grids (noise is drawn per voxel). The same arguments give the same bytes.

    Parameters
    ----------
    shape_zyx
        Voxels along z, y, x. About 400 mm in plane and 200 mm along z show the whole liver.
    spacing_mm
        Voxel distances in mm along z, y, x.
    patient
        Name of the patient, e.g. `ircadb-01`.
    seed
        Seed of the whole data set.
    findings
        What the patient has; drawn from patient and seed by default.
    """
    found = draw_findings(patient, seed) if findings is None else findings
    anatomy = draw_anatomy(patient, seed)
    axes = Axes.centered(shape_zyx, spacing_mm, _center_mm(patient, seed))
    lesions = _lesions(axes, anatomy, found, patient, seed)
    deformation = Deformation.on(axes, patient, seed)
    organs = np.empty(shape_zyx, dtype=np.uint8)
    for slices in axes.slabs():
        slab = deformation.slab(axes, slices)
        organs[slices] = _draw_organs(slab, anatomy, found, patient, seed)
        draw_lesions(organs[slices], slab, lesions)
    fill_missing(organs, axes, lesions)
    hu = Renderer(axes, found, patient, seed).render(organs)
    return Phantom(hu, organs, Geometry(shape_zyx, spacing_mm), found)


def _center_mm(patient: str, seed: int) -> Triple:
    """Place (z, y, x) of the middle of the scan in the body: patients never lie exactly centered."""
    z, y, x = stream(seed, patient, "center").normal((2.0, 8.0, 0.0), (5.0, 4.0, 5.0))
    return float(z), float(y), float(x)


def _lesions(axes: Axes, anatomy: Anatomy, findings: Findings, patient: str, seed: int) -> tuple[Lesion, ...]:
    """Place the lesions on a coarse grid over the heights that the scan shows."""
    margin = min(15.0, (axes.z_mm[-1] - axes.z_mm[0]) / 4)
    plane = np.arange(-_COARSE_HALF_MM, _COARSE_HALF_MM + 1, COARSE_MM)
    heights = np.arange(axes.z_mm[0] + margin, axes.z_mm[-1] - margin + 0.1, COARSE_MM)
    coarse = Axes(heights, plane, plane)
    slab = Deformation.on(coarse, patient, seed).slab(coarse, slice(None))
    liver = CoarseLiver.of(slab, _draw_organs(slab, anatomy, findings, patient, seed))
    return plan_lesions(liver, findings, stream(seed, patient, "lesions"))


def _draw_organs(slab: Slab, anatomy: Anatomy, findings: Findings, patient: str, seed: int) -> Codes:
    """Draw all organs but the liver's lesions; later ones replace earlier ones."""
    codes = np.full(slab.x.shape, Organ.AIR, dtype=np.uint8)
    trunk = trunk_of(slab, anatomy)
    drawing.draw_trunk(codes, slab, trunk, anatomy)
    abdomen = (trunk.cavity > 3) & (slab.z < trunk.diaphragm)
    drawing.draw_bowel(codes, slab, abdomen, anatomy, stream(seed, patient, "bowel"))
    drawing.draw_left_side(codes, slab, trunk, anatomy)
    drawing.draw_liver(codes, slab, drawing.liver_shape(slab, trunk, anatomy), anatomy)
    drawing.draw_kidneys(codes, slab, abdomen, anatomy)
    drawing.draw_back(codes, slab, trunk, anatomy)
    draw_findings_outside(codes, slab, trunk, anatomy, findings)
    drawing.draw_table(codes, slab, anatomy.body_y + 4)
    return codes
