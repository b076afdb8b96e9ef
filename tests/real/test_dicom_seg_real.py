"""A real series as a DICOM segmentation, read back by another program to the same voxels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from livprep.catalog import load_catalog
from livprep.formats.dicom_seg import write_dicom_seg
from livprep.sources import discover, read_case

DATA = Path(os.environ.get("LIVPREP_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
PATIENT = DATA / "ircadb" / "3Dircadb1.1"


@pytest.mark.real
@pytest.mark.skipif(not PATIENT.is_dir(), reason="LIVPREP_REAL_DATA holds no 3Dircadb1.1")
def test_the_labels_of_patient_1_come_back_from_a_dicom_segmentation(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    catalog = load_catalog()
    case = discover([PATIENT], catalog).cases[0]
    volume = read_case(case, catalog).volume
    assert volume.label_map is not None
    labels, geometry = volume.label_map.labels, volume.geometry
    write_dicom_seg(tmp_path / "seg.dcm", labels, geometry, case.image)
    found = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    index = np.argwhere(found.array > 0)
    xyz = np.c_[index, np.ones(len(index))] @ found.affine.T @ np.linalg.inv(geometry.affine_lps).T
    again = np.zeros_like(labels)
    again[tuple(np.rint(xyz[:, 2::-1]).astype(int).T)] = found.array[tuple(index.T)]
    np.testing.assert_allclose(xyz[:, :3], np.rint(xyz[:, :3]), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(again, labels)
