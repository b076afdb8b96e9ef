"""Label files as people have them: other types, other headers, zips, folders without every scan, names with spaces."""

from __future__ import annotations

import gzip
import logging
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from livprep.errors import LivError
from livprep.formats import nifti
from livprep.formats.nifti import write_nifti
from livprep.geometry import Geometry
from livtrain.evaluate import evaluate_folder
from livtrain.evaluate.references import read_label_file

SPACING = (2.5, 0.8, 0.7)
LPS = Geometry((6, 10, 12), SPACING)
RAS = Geometry((6, 10, 12), SPACING, direction=((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)))


def _labels() -> np.ndarray:
    labels = np.zeros((6, 10, 12), dtype=np.uint8)
    labels[1:5, 2:8, 2:10] = 1
    labels[2:4, 3:6, 4:7] = 2
    return labels


def _write(path: Path, geometry: Geometry = LPS, values: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, _labels() if values is None else values, geometry)
    return path


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "int64", "uint64", "float32", "float64"])
def test_labels_of_any_type_are_read(tmp_path: Path, dtype: str) -> None:
    labels, _, _ = read_label_file(_write(tmp_path / "a.nii.gz", values=_labels().astype(dtype)))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, _labels())


@pytest.mark.parametrize("odd", [-1.0, 0.5, 3.0, 256.0, 1e12, np.nan, np.inf])
def test_values_that_are_no_labels_are_refused_in_any_type(tmp_path: Path, odd: float) -> None:
    values = _labels().astype(np.float64)
    values[0, 0, 0] = odd
    with pytest.raises(LivError) as caught:
        read_label_file(_write(tmp_path / "a.nii.gz", values=values))
    assert caught.value.code == "LABEL_UNKNOWN"


def test_labels_may_shrink_further_than_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 slices of labels as float64 take 1 GB and shrink 1000-fold: no scan does that, a prediction does."""
    path = _write(tmp_path / "a.nii.gz", Geometry((64, 128, 128), SPACING), np.zeros((64, 128, 128)))
    monkeypatch.setattr(nifti, "is_amplified", lambda needed, stored: needed > max(1 << 20, 50 * stored))
    monkeypatch.setattr(nifti.read_nifti, "__defaults__", (1 << 20,))
    assert read_label_file(path)[0].shape == (64, 128, 128)
    monkeypatch.setattr("livtrain.evaluate.references.LABEL_BYTES", 1 << 20)
    with pytest.raises(LivError, match="would take"):
        read_label_file(path)
    assert nifti.LABEL_BYTES >= 512 * 512 * 1000 * (8 + 2)


def test_the_spacing_is_pixdim_to_the_last_bit(tmp_path: Path) -> None:
    """An oblique affine gives it back with a rounding, which the challenge's nine digits show."""
    tilt = 0.3
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 0.8203125, 2.5])
    image = nib.Nifti1Image(_labels().T, affine)
    nib.save(image, tmp_path / "a.nii")
    x, y, z = image.header.get_zooms()
    assert read_label_file(tmp_path / "a.nii")[2] == (float(z), float(y), float(x))


def test_zips_of_label_files_are_taken_on_both_sides(tmp_path: Path) -> None:
    _write(tmp_path / "test-segmentation-3.nii.gz")
    plain = gzip.decompress((tmp_path / "test-segmentation-3.nii.gz").read_bytes())
    for name, entry in (("submission", "test-segmentation-3.nii"), ("truth", "truth/test-segmentation-3.nii")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as target:
            target.writestr(entry, plain)
            target.writestr("__MACOSX/._test-segmentation-3.nii", b"\0")
    found = evaluate_folder(tmp_path / "submission.zip", [tmp_path / "truth.zip"])
    assert [(case.case, case.liver.dice) for case in found.cases] == [("litstest-003", 1.0)]


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.nrrd").write_bytes(b"NRRD")
    reference = _write(tmp_path / "a.nii")
    with pytest.raises(LivError, match=r"labels.nrrd: expected a NIfTI") as caught:
        evaluate_folder(tmp_path / "labels.nrrd", [reference])
    assert caught.value.code == "NOTHING_FOUND"


def test_labels_beside_scans_count_where_their_own_scan_is_not_there(tmp_path: Path) -> None:
    _write(tmp_path / "r" / "volume-3.nii.gz", values=np.full((6, 10, 12), -1000, dtype=np.int16))
    for number in (3, 4):
        _write(tmp_path / "r" / f"segmentation-{number}.nii.gz")
        _write(tmp_path / "p" / f"lits-{number:03d}.nii.gz")
    found = evaluate_folder(tmp_path / "p", [tmp_path / "r"])
    assert [(case.case, case.liver.dice) for case in found.cases] == [("lits-003", 1.0), ("lits-004", 1.0)]


def test_references_pair_with_the_names_that_predict_gives(tmp_path: Path) -> None:
    for name in ("patient 1", "ü (2)", "b c", "b_c"):
        _write(tmp_path / "r" / f"{name}.nii.gz")
    for name in ("patient_1", "_2_", "b c", "b_c"):
        _write(tmp_path / "p" / f"{name}.nii.gz")
    found = evaluate_folder(tmp_path / "p", [tmp_path / "r"])
    assert [case.case for case in found.cases] == ["_2_", "b c", "b_c", "patient_1"]


def test_other_axes_by_the_headers_are_remarked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = _write(tmp_path / "r" / "a.nii.gz", LPS)
    with caplog.at_level(logging.WARNING):
        evaluate_folder(_write(tmp_path / "p" / "a.nii.gz", LPS), [reference])
        moved = Geometry((6, 10, 12), SPACING, (5.0, 6.0, 7.0))
        evaluate_folder(_write(tmp_path / "p" / "a.nii.gz", moved), [reference])
        nothing = Geometry((6, 10, 12), (1.0, 1.0, 1.0), direction=RAS.direction)
        evaluate_folder(_write(tmp_path / "p" / "a.nii.gz", nothing), [reference])
        assert not caplog.records
        found = evaluate_folder(_write(tmp_path / "p" / "a.nii.gz", RAS), [reference])
    assert found.cases[0].liver.dice == 1
    assert "the axes run to RAS in the prediction and to LPS in the reference" in caplog.text
