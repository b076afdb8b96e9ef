"""The cases as uncompressed NIfTI, the fastest form that MONAI and TorchIO read; both read it with nibabel."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.volumes import Volume


def write(volumes: Iterable[Volume], folder: Path) -> None:
    """Write `<case>.nii` (int16) and `<case>_label.nii` (uint8); what is there stays."""
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    if pairs(folder):
        return
    for volume in volumes:
        affine = np.diag([*volume.spacing_mm[::-1], 1.0])
        for values, name in ((volume.labels, f"{volume.case_id}_label"), (volume.hu, volume.case_id)):
            nibabel.save(nibabel.Nifti1Image(values.transpose(), affine), folder / f"{name}.nii")


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Image and label of each case."""
    images = sorted(path for path in folder.glob("*.nii") if not path.stem.endswith("_label"))
    return [(image, image.with_name(f"{image.stem}_label.nii")) for image in images]
