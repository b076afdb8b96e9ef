"""The main job on the real patients: exact facts of `ingest`, `inspect` and of the overlap of the data sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.inspection import inspect_sources
from livprep.labels import Label
from livprep.store import Store, open_store, pack
from livprep.windows import Window

DATA = Path(os.environ.get("LIVPREP_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (DATA / "ircadb").is_dir(), reason=f"no real patients at {DATA} (LIVPREP_REAL_DATA)"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """3DIRCADb 1 and 7 and LiTS 28, windowed at WL 40 WW 220."""
    path = tmp_path_factory.mktemp("real") / "liver.zarr"
    request = IngestRequest((DATA / "ircadb", DATA / "lits"), path, workers=1)
    receipts = list(run_ingest(plan_ingest(request)))
    assert {receipt.case: receipt.status for receipt in receipts} == {
        "ircadb-01": "published",
        "ircadb-07": "published",
        "lits-028": "published",
    }
    opened = open_store(path)
    list(run_windows(opened, plan_windows(opened, [Window(40, 220)]), workers=1))
    return opened


def test_patient_1(store: Store) -> None:
    case = store["ircadb-01"]
    assert (case.shape_zyx, case.geometry.spacing_mm) == ((129, 512, 512), (1.6, 0.57, 0.57))
    assert (case.geometry.orientation, case.hu_min, case.hu_max) == ("LPS", -1024, 1023)
    assert case.label_counts == {
        "background": 129 * 512 * 512 - 2650863 - 214268,
        "liver": 2650863,
        "tumor": 214268,
    }
    assert 2650863 + 214268 == 2865131  # the mask `liver` contains the tumors
    assert (case.patient, case.meta.repairs) == ("ircadb-01", [])
    assert [warning.split(":")[0] for warning in case.meta.warnings] == ["MASK_DISPUTED"]
    assert "liverkyst" in case.meta.warnings[0]


def test_patient_7_has_no_hepatic_tumor(store: Store) -> None:
    case = store["ircadb-07"]
    assert (case.shape_zyx, case.geometry.spacing_mm) == ((151, 512, 512), (1.6, 0.782, 0.782))
    assert (case.hu_min, case.hu_max) == (-1023, 1024)
    assert case.label_counts is not None
    assert (case.label_counts["liver"], case.label_counts["tumor"]) == (1461944, 0)
    assert any("mask tumor " in warning for warning in case.meta.warnings)


def test_both_forms_of_patient_1_are_equal_voxel_for_voxel(store: Store) -> None:
    ircadb, lits = store["ircadb-01"], store["lits-028"]
    assert lits.geometry == ircadb.geometry
    assert lits.patient == "ircadb-01"
    assert lits.meta.fingerprint == ircadb.meta.fingerprint
    np.testing.assert_array_equal(lits.read_hu(), ircadb.read_hu())
    np.testing.assert_array_equal(lits.read_labels(), ircadb.read_labels())
    assert (lits.source_geometry.orientation, lits.source_geometry.spacing_mm) == ("LAS", (1.6, 0.57, 0.57))
    np.testing.assert_array_equal(lits.meta.source_affine_ras, np.eye(4))
    assert len(lits.meta.repairs) == 1
    assert store["ircadb-07"].meta.fingerprint != ircadb.meta.fingerprint


def test_stored_arrays_agree_with_each_other(store: Store) -> None:
    for case in store.values():
        hu, labels = case.read_hu(), case.read_labels()
        np.testing.assert_array_equal(case.read_window("wl40_ww220"), Window(40, 220).evaluate(hu))
        np.testing.assert_array_equal(case.read_packed(), pack(hu, labels))
        for label in Label:
            points = case.class_points(label)
            assert len(points) == min(4096, case.class_count(label))
            assert (labels[tuple(points.T)] == label).all()


def test_liver_lies_on_the_patients_right_below_the_lungs(store: Store) -> None:
    """Anatomy, without the catalogue: in LPS the liver's centroid is at lower x than the body's, bone at higher y."""
    for case in store.values():
        hu, labels = (
            case.read_hu((slice(None, None, 4), slice(None, None, 4), slice(None, None, 4))),
            case.read_labels(),
        )
        body, liver = np.argwhere(hu > -300).mean(axis=0) * 4, np.argwhere(labels > 0).mean(axis=0)
        assert liver[2] < body[2]
        assert (np.argwhere(hu > 250).mean(axis=0) * 4)[1] > body[1]
        lung = ((hu < -700) & (hu > -950)).mean(axis=(1, 2))
        assert lung[-3:].mean() > 2 * lung[:3].mean()  # the head's end is the last slice


def test_rest_of_a_series_is_read_as_one_with_warnings() -> None:
    (record,) = inspect_sources([DATA / "other" / "example_ct_dicom"])
    assert (record["kind"], record["status"], record["shape_zyx"][0]) == ("dicom", "ok", 20)
    assert set(record["warnings"]) == {"SERIES_UID_MISSING", "SERIES_SOP_CLASS", "SERIES_THICKNESS"}
    assert record["spacing_mm"][0] == 2.0


def test_example_nifti() -> None:
    (record,) = inspect_sources([DATA / "other" / "example_ct.nii.gz"])
    assert (record["kind"], record["status"], record["orientation"]) == ("nifti", "ok", "RAS")
    assert (record["hu_min"], record["hu_max"]) == (-1207, 3382)
    np.testing.assert_allclose(record["spacing_mm"], 3.0, atol=1e-3)


def test_both_forms_of_patient_1_have_one_hash() -> None:
    (dicom,) = inspect_sources([DATA / "ircadb" / "3Dircadb1.1" / "PATIENT_DICOM.zip"])
    (nifti,) = inspect_sources([DATA / "lits" / "volume-28.nii.gz"])
    assert dicom["orientation"] == "LPS"
    assert (dicom["shape_zyx"], dicom["hu_min"], dicom["hu_max"]) == ([129, 512, 512], -1024, 1023)
    # The header of volume-28 is wrong and `inspect` repairs nothing: the same voxels, turned about x.
    assert (nifti["orientation"], nifti["spacing_mm"]) == ("RAS", [1.0, 1.0, 1.0])
    assert nifti["hu_sha256"] != dicom["hu_sha256"]
