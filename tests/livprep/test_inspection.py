"""What `inspect` says of series and volumes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from building import edited, nifti_bytes, plain_slice, scan, write_series, zip_folder

from livprep.cohort import IngestRequest, plan_ingest
from livprep.errors import SourceError
from livprep.inspection import inspect_sources

KEYS = {
    "path", "kind", "status", "code", "detail", "shape_zyx", "spacing_mm", "orientation", "hu_min", "hu_max",
    "hu_sha256", "warnings",
}  # fmt: skip


def sha256_of(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).astype("<i2").tobytes()).hexdigest()


def test_a_series_is_described(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", [edited(plain_slice(k), SliceThickness="3") for k in range(4)])
    (record,) = inspect_sources([tmp_path])
    expected = np.broadcast_to(np.array([-1024, -924, -824, -724])[:, None, None], (4, 6, 5))
    assert record == {
        "path": str(tmp_path / "scan"),
        "kind": "dicom",
        "status": "ok",
        "code": "",
        "detail": "",
        "shape_zyx": [4, 6, 5],
        "spacing_mm": [2.0, 0.8, 0.7],
        "orientation": "LPS",
        "hu_min": -1024,
        "hu_max": -724,
        "hu_sha256": sha256_of(expected),
        "warnings": ["SERIES_THICKNESS"],
    }


def test_the_hash_is_of_lps_order_whatever_the_file_has(tmp_path: Path) -> None:
    volume = scan()
    # Index x grows to the right and y to anterior in the second file: the same patient, stored otherwise.
    (tmp_path / "lps.nii").write_bytes(nifti_bytes(volume.image.hu, np.diag([-0.7, -0.8, 2.0, 1.0])))
    (tmp_path / "ras.nii").write_bytes(nifti_bytes(volume.image.hu[:, ::-1, ::-1], np.diag([0.7, 0.8, 2.0, 1.0])))
    first, second = inspect_sources([tmp_path])
    assert first["hu_sha256"] == second["hu_sha256"] == sha256_of(volume.image.hu)
    assert (first["orientation"], second["orientation"], first["kind"]) == ("LPS", "RAS", "nifti")


def test_faults_and_other_modalities_have_records_too(tmp_path: Path) -> None:
    series = [plain_slice(k) for k in range(5)]
    write_series(tmp_path / "gap", series[:2] + series[3:])
    write_series(tmp_path / "mr", [edited(data, Modality="MR") for data in series])
    write_series(tmp_path / "ok", series)
    (tmp_path / "short.nii").write_bytes(nifti_bytes(scan().image.hu)[:-3])
    (tmp_path / "bad.zip").write_bytes(b"PK")
    records = {Path(record["path"]).name: record for record in inspect_sources([tmp_path])}
    assert {name: (record["status"], record["code"]) for name, record in records.items()} == {
        "gap": ("rejected", "SERIES_GAP"),
        "mr": ("ignored", ""),
        "ok": ("ok", ""),
        "short.nii": ("rejected", "NIFTI_SHORT"),
        "bad": ("rejected", "ARCHIVE_BAD"),
    }
    assert all(set(record) == KEYS for record in records.values())
    assert records["gap"]["shape_zyx"] is None
    assert "expected 2 mm" in records["gap"]["detail"]


def test_a_grid_without_lps_order_is_rejected(tmp_path: Path) -> None:
    half = float(np.sqrt(0.5))
    affine = np.eye(4)
    affine[:3, :3] = [[half, half, 0.0], [0.5, -0.5, half], [0.5, -0.5, -half]]
    (tmp_path / "twisted.nii").write_bytes(nifti_bytes(scan().image.hu, affine))
    (record,) = inspect_sources([tmp_path])
    assert (record["status"], record["code"]) == ("rejected", "GEOMETRY")


def test_series_in_zips_name_the_zip(tmp_path: Path) -> None:
    archive = zip_folder(write_series(tmp_path / "scan", [plain_slice(k) for k in range(4)]))
    (record,) = inspect_sources([archive])
    assert record["path"] == f"{archive}!/scan"


def test_nothing_to_inspect(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(SourceError, match="no CT series and no NIfTI") as caught:
        list(inspect_sources([tmp_path]))
    assert caught.value.code == "NOTHING_FOUND"


def test_links_out_of_the_source_are_told(tmp_path: Path) -> None:
    """A data set of links to where the files really are would otherwise look empty."""
    real = write_series(tmp_path / "real", [plain_slice(k) for k in range(4)])
    (tmp_path / "in").mkdir()
    for path in real.iterdir():
        (tmp_path / "in" / path.name).symlink_to(path)
    (record,) = inspect_sources([tmp_path / "in"])
    assert (record["path"], record["status"]) == (str(tmp_path / "in"), "ignored")
    assert "not followed: 4" in record["detail"]
    with pytest.raises(SourceError, match=r"no 3DIRCADb or LiTS case.*not followed: 4"):
        plan_ingest(IngestRequest((tmp_path / "in",), tmp_path / "store"))


def test_each_warning_is_named_once(tmp_path: Path) -> None:
    values = np.full((4, 40, 40), -1000, np.int16)
    values[:, 8:32, 8:32] = 40
    values[:, 0, 0], values[:, -1, -1] = -2000, -3000
    (tmp_path / "scan.nii").write_bytes(nifti_bytes(values))
    (record,) = inspect_sources([tmp_path])
    assert record["warnings"].count("HU_PADDING") == 1
