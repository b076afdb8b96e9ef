"""What each synthetic case is: grid, findings, and the catalogue that describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from livprep.catalog import Catalog, IrcadbCase, MaskRole
from livprep.errors import UsageError
from livprep.geometry import Shape, Triple
from livprep.phantom import Findings, Phantom, draw_findings, make_phantom
from livprep.phantom.field import stream

SIZE_MIN, SIZE_MAX = 24, 1024
_FIELD_OF_VIEW_MM = 400.0
_IN_PLANE_TYPICAL_MM = 0.73
"""In-plane spacing of 3DIRCADb whose phantom gets the field of view above."""


@dataclass(frozen=True)
class Grid:
    """Voxels of a synthetic scan: counts and distances in mm along z, y, x."""

    shape_zyx: Shape
    spacing_mm: Triple


@dataclass(frozen=True)
class Counts:
    """Voxels of one synthetic 3DIRCADb patient's masks, for its catalogue."""

    liver_voxels: int  # of the mask `liver`
    tumor_voxels: int
    tumor_outside_liver: int
    liver_slices: tuple[int, int] | None


def check_size(size: int) -> None:
    """Refuse a width that no phantom can have."""
    if not SIZE_MIN <= size <= SIZE_MAX:
        raise UsageError("USAGE", f"phantom size {size} pixels: expected {SIZE_MIN} to {SIZE_MAX}")


def _grid(patient: str, seed: int, size: int, original_mm: Triple) -> Grid:
    """Grid of `size` pixels: about 400 mm wide and 200 mm high, with the original's kind of slice distance.

    Slices grow thicker as pixels do, but less, so that few pixels still leave enough slices to train on.
    """
    height_mm = float(stream(seed, patient, "grid").uniform(192, 222))
    width_mm = _FIELD_OF_VIEW_MM * (original_mm[2] / _IN_PLANE_TYPICAL_MM) ** 0.3
    pixel_mm = round(width_mm / size, 4)
    slice_mm = round(2.6 * original_mm[0] ** 0.45 * (112 / size) ** 0.75, 2)
    slices = max(8, round(height_mm / slice_mm))
    return Grid((slices, size, size), (slice_mm, pixel_mm, pixel_mm))


def ircadb_grid(case: IrcadbCase, seed: int, size: int) -> Grid:
    """Grid of a synthetic 3DIRCADb patient."""
    return _grid(case.case_id, seed, size, case.spacing_mm)


def lits_grid(catalog: Catalog, number: int, seed: int, size: int) -> Grid:
    """Grid of a synthetic LiTS volume; that of its 3DIRCADb patient where it is one."""
    case = _ircadb_of(catalog, number)
    if case is not None:
        return ircadb_grid(case, seed, size)
    patient = lits_id(number)
    rng = stream(seed, patient, "original spacing")
    slice_mm, pixel_mm = float(rng.choice([0.8, 1.0, 1.25, 2.0, 2.5, 4.0])), float(rng.uniform(0.6, 0.9))
    return _grid(patient, seed, size, (slice_mm, pixel_mm, pixel_mm))


def lits_id(number: int) -> str:
    """Case id of a LiTS training volume."""
    return f"lits-{number:03d}"


def _ircadb_of(catalog: Catalog, lits_number: int) -> IrcadbCase | None:
    return next((case for case in catalog.ircadb.cases if case.lits == lits_number), None)


def ircadb_findings(case: IrcadbCase, catalog: Catalog, seed: int) -> Findings:
    """Findings as the catalogue tells of the patient: contrast, tumors, and what its look-alike masks need."""
    names = {name.casefold() for name in case.masks}
    masks = sum(catalog.ircadb.masks.listed[name] is MaskRole.TUMOR for name in names)
    drawn = draw_findings(case.case_id, seed, tumor_free=case.tumor_free)
    fraction = (case.tumor_voxels or 0) / (case.liver_voxels or 1)
    return Findings(
        liver_hu=case.liver_hu.mode if case.liver_hu else drawn.liver_hu,
        tumors=masks if masks != 1 else min(drawn.tumors, 3),  # one mask may hold several tumors
        tumor_fraction=fraction or drawn.tumor_fraction,
        cysts=int(any("kyst" in name or "cyst" in name for name in names)),
        scar="metastasectomie" in names,
        stones="stones" in names,
        metal="metal" in names,
        # Radii of the spheres that have the measured volumes of patients 7 (668 ml) and 5 (3.3 and 2.3 ml).
        adrenal_left_mm=54.0 if "tumor" in names else 9.2 if "leftsurretumor" in names else 0.0,
        adrenal_right_mm=8.2 if "rightsurretumor" in names else 0.0,
    )


def ircadb_phantom(number: int, *, seed: int, size: int, catalog: Catalog) -> Phantom:
    """Draw the synthetic patient N of 3DIRCADb.

    Raises
    ------
    UsageError
        The catalogue has no such patient.
    """
    case = catalog.ircadb.case(number)
    if case is None:
        raise UsageError("USAGE", f"3DIRCADb patient {number}: the catalogue has no such number")
    grid = ircadb_grid(case, seed, size)
    findings = ircadb_findings(case, catalog, seed)
    return make_phantom(grid.shape_zyx, grid.spacing_mm, patient=case.case_id, seed=seed, findings=findings)


def lits_phantom(number: int, *, seed: int, size: int, catalog: Catalog) -> Phantom:
    """Draw the synthetic LiTS patient of a training volume: the 3DIRCADb patient itself for 28...47.

    Raises
    ------
    UsageError
        LiTS has no training volume of that number.
    """
    if not catalog.lits.is_train(number):
        raise UsageError("USAGE", f"LiTS volume {number}: the catalogue has no such training volume")
    case = _ircadb_of(catalog, number)
    if case is not None:
        return ircadb_phantom(case.number, seed=seed, size=size, catalog=catalog)
    patient = lits_id(number)
    grid = lits_grid(catalog, number, seed, size)
    findings = draw_findings(patient, seed, tumor_free=number in catalog.lits.tumor_free)
    return make_phantom(grid.shape_zyx, grid.spacing_mm, patient=patient, seed=seed, findings=findings)


def counts_of(phantom: Phantom, outside_liver: int) -> Counts:
    """Count the masks of a patient of which `outside_liver` tumor voxels are left out of the liver mask."""
    liver = phantom.liver()
    planes = np.flatnonzero(liver.any(axis=(1, 2)))
    return Counts(
        liver_voxels=int(liver.sum()) - outside_liver,
        tumor_voxels=int(phantom.tumors().sum()),
        tumor_outside_liver=outside_liver,
        liver_slices=(int(planes[0]), int(planes[-1])) if len(planes) else None,
    )


def phantom_catalog(catalog: Catalog, *, seed: int, size: int, counts: Mapping[int, Counts] | None = None) -> Catalog:
    """Return the catalogue of the phantoms of one seed and size.

    All 3DIRCADb patients get their phantoms' slices and spacing, and so do the LiTS repairs; voxel counts follow
    where given (by patient number) and are left open elsewhere.
    """
    data = catalog.as_dict()
    note = f"(phantoms, seed {seed}, size {size})"
    for key in ("ircadb", "lits"):
        data[key]["title"] = f"{catalog.ircadb.title if key == 'ircadb' else catalog.lits.title} {note}"
        data[key]["license"] = "synthetic, no patient's data"
    grids = {case.number: ircadb_grid(case, seed, size) for case in catalog.ircadb.cases}
    for case in data["ircadb"]["cases"]:
        grid, count = grids[case["number"]], (counts or {}).get(case["number"])
        case.update(slices=grid.shape_zyx[0], spacing_mm=list(grid.spacing_mm))
        case.update(
            liver_voxels=count.liver_voxels if count else None,
            tumor_voxels=count.tumor_voxels if count else None,
            tumor_outside_liver=count.tumor_outside_liver if count else 0,
            liver_slices=list(count.liver_slices) if count and count.liver_slices else None,
            liver_hu=None,
        )
    for repair in data["lits"]["repairs"]:
        grid = grids[repair["ircadb"]]
        repair.update(slices=grid.shape_zyx[0], spacing_mm=list(grid.spacing_mm))
    return Catalog.model_validate(data)
