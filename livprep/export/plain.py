"""Plain NIfTI: `images/CASE.nii.gz`, `labels/CASE.nii.gz` and `cases.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from livprep.export.cohort import Cohort, ExportedCase, write_pair

TABLE = "cases.csv"
COLUMNS = (
    "case", "dataset", "patient", "split", "image", "label", "slices", "rows", "columns", "spacing_z_mm",
    "spacing_y_mm", "spacing_x_mm", "liver_voxels", "tumor_voxels",
)  # fmt: skip
"""`liver_voxels` counts label 1 alone; both counts are empty without labels."""


def write(cohort: Cohort, folder: Path, name: str) -> Iterator[ExportedCase]:
    """Write images, labels and the table."""
    written = []
    for case in cohort.cases:
        written.append(write_pair(cohort, case, folder, f"images/{case}.nii.gz", f"labels/{case}.nii.gz"))
        yield written[-1]
    write_table(cohort, written, folder / TABLE)


def write_table(cohort: Cohort, written: Sequence[ExportedCase], path: Path) -> None:
    """One line a case, with what the store knows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for entry in written:
            case = cohort.cases[entry.case]
            counts = case.label_counts or {}
            table.writerow(
                (
                    entry.case, case.dataset, case.patient, entry.split, entry.image, entry.label, *case.shape_zyx,
                    *case.geometry.spacing_mm, counts.get("liver", ""), counts.get("tumor", ""),
                )
            )  # fmt: skip
