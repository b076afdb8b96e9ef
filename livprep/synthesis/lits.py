"""Synthetic patients in the layout and with the quirks of LiTS (datasets.md, B)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from livprep.catalog import Catalog
from livprep.formats.nifti_write import write_nifti
from livprep.geometry import IDENTITY, AxisMap, Geometry, Triple
from livprep.phantom import Phantom
from livprep.phantom.field import stream

EARLY_NUMBERS: tuple[int, ...] = (0, 28, 53, 68, 32, 48, 87, 1, 29, 83, 112, 34, 49, 69, 2, 54, 31, 47)
"""Numbers whose quirks come first: each header orientation, identity headers, labels with another affine,
tumor-free cases, 3DIRCADb's patients. The remaining numbers follow in order."""

_UNSEEN_ORIENTATION = "LPS"
"""Of the numbers whose headers nobody looked at (112-130)."""


def numbers_in_order(catalog: Catalog) -> list[int]:
    """All training numbers, those with quirks first."""
    rest = [n for n in range(catalog.lits.train.first, catalog.lits.train.last + 1) if n not in EARLY_NUMBERS]
    return [n for n in EARLY_NUMBERS if catalog.lits.is_train(n)] + rest


def stored_in(geometry: Geometry, letters: str) -> tuple[AxisMap, Geometry]:
    """How an LPS grid is stored toward other sides, e.g. `LAS`: the map for its arrays and the stored grid."""
    flips = [letter != lps for letter, lps in zip(letters, "LPS", strict=True)]
    origin = list(geometry.origin_mm)
    direction = np.array(IDENTITY)
    for axis, flip in enumerate(flips):
        if flip:
            origin[axis] += (geometry.shape_zyx[2 - axis] - 1) * geometry.spacing_mm[2 - axis]
            direction[axis, axis] = -1.0
    rows: list[Triple] = [(float(r[0]), float(r[1]), float(r[2])) for r in direction]
    turned = Geometry(
        geometry.shape_zyx, geometry.spacing_mm, (origin[0], origin[1], origin[2]), (rows[0], rows[1], rows[2])
    )
    return AxisMap((0, 1, 2), (flips[2], flips[1], flips[0])), turned


def write_case(folder: Path, phantom: Phantom, number: int, catalog: Catalog, seed: int, *, gz: bool = True) -> None:
    """Write `volume-N` and `segmentation-N` with the header that the number has in LiTS."""
    layout = catalog.lits.layout
    header = catalog.lits.header_of(number)
    axis_map, geometry = stored_in(
        _placed(phantom.geometry, number, seed), header.truth if header else _UNSEEN_ORIENTATION
    )
    identity = np.eye(4)
    scan_affine = identity if catalog.lits.repair(number) else geometry.affine_ras
    label_affine = identity if number in catalog.lits.label_affine_differs else scan_affine
    suffix = ".nii.gz" if gz else ".nii"
    write_nifti(folder / (layout.volume.format(n=number) + suffix), axis_map.apply(phantom.hu), scan_affine)
    write_nifti(folder / (layout.label.format(n=number) + suffix), axis_map.apply(phantom.labels()), label_affine)


def write_decathlon_case(folder: Path, phantom: Phantom, number: int, catalog: Catalog, seed: int) -> None:
    """Write `imagesTr/liver_N` and `labelsTr/liver_N` with a true header, and what lies beside them in the archive."""
    layout, header = catalog.lits.layout.decathlon, catalog.lits.header_of(number)
    axis_map, geometry = stored_in(
        _placed(phantom.geometry, number, seed), header.truth if header else _UNSEEN_ORIENTATION
    )
    name = layout.file.format(n=number) + ".nii.gz"
    for place, values in ((layout.volumes, phantom.hu), (layout.labels, phantom.labels())):
        (folder / place).mkdir(exist_ok=True)
        write_nifti(folder / place / name, axis_map.apply(values), geometry.affine_ras)
        (folder / place / f"._{name}").write_bytes(bytes.fromhex("00051607"))  # AppleDouble, as the archive has them
    (folder / "dataset.json").write_text('{"name": "Liver", "labels": {"0": "background"}}\n', encoding="utf-8")


def _placed(geometry: Geometry, number: int, seed: int) -> Geometry:
    """The same grid at a scanner's kind of origin; 3DIRCADb's patients keep (0, 0, 0)."""
    x, y, z = stream(seed, f"lits-{number:03d}", "origin").uniform((-220, -380, -900), (-180, -120, 200))
    origin_mm = (round(float(x), 3), round(float(y), 3), round(float(z), 2))
    return Geometry(geometry.shape_zyx, geometry.spacing_mm, origin_mm)
