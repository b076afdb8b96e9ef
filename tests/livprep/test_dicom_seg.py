"""DICOM segmentations: other programs read the same voxels back at the same places."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from building import edited, plain_slice

from livprep.cases import FileRef
from livprep.errors import LivError
from livprep.formats.dicom import read_series
from livprep.formats.dicom_seg import write_dicom_seg
from livprep.formats.hashing import HashingReader
from livprep.geometry import Geometry
from livprep.labels import LabelArray

highdicom = pytest.importorskip("highdicom")

TILTED = [0.6, 0.8, 0.0, -0.8, 0.6, 0.0]
UIDS = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.5"}


def _series(folder: Path, *, tilted: bool = False, **changes: Any) -> list[FileRef]:
    """Six slices of 6 x 5 pixels, named against their order."""
    folder.mkdir(parents=True, exist_ok=True)
    orientation = {"ImageOrientationPatient": TILTED} if tilted else {}
    refs = []
    for k in range(6):
        data = edited(plain_slice(k), SOPInstanceUID=f"1.2.6.{k}", PatientID="P1", **{**UIDS, **orientation, **changes})
        path = folder / f"image_{9 - k}"
        path.write_bytes(data)
        refs.append(FileRef(str(path)))
    return refs


def _labels() -> LabelArray:
    """Liver in slices 1 to 4, tumor in slice 2, nothing at both ends; not symmetric."""
    labels = np.zeros((6, 6, 5), dtype=np.uint8)
    labels[1:5, 1:5, 0:3] = 1
    labels[2, 2:4, 1] = 2
    labels[4, 5, 4] = 1
    return labels


def _geometry(refs: list[FileRef]) -> Geometry:
    return read_series(HashingReader(), "image", refs).geometry


def _write(tmp_path: Path, labels: LabelArray, **changes: Any) -> tuple[Path, list[FileRef], Geometry]:
    refs = _series(tmp_path / "scan", **changes)
    geometry = _geometry(refs)
    path = tmp_path / "seg.dcm"
    write_dicom_seg(path, labels, geometry, refs)
    return path, refs, geometry


def _placed(array: np.ndarray, affine: np.ndarray, geometry: Geometry) -> LabelArray:
    """Voxels of a volume (index order of its array) put on a grid by position in mm alone."""
    out = np.zeros(geometry.shape_zyx, dtype=np.uint8)
    index = np.argwhere(array > 0)
    mm = np.c_[index, np.ones(len(index))] @ affine.T
    xyz = mm @ np.linalg.inv(geometry.affine_lps).T
    rounded = np.rint(xyz[:, :3]).astype(int)
    np.testing.assert_allclose(xyz[:, :3], rounded, atol=1e-3)
    out[tuple(rounded[:, ::-1].T)] = array[tuple(index.T)]
    return out


@pytest.mark.parametrize("tilted", [False, True])
def test_highdicom_reads_the_same_voxels_at_the_same_places(tmp_path: Path, tilted: bool) -> None:
    path, _, geometry = _write(tmp_path, _labels(), tilted=tilted)
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    np.testing.assert_array_equal(_placed(volume.array, volume.affine, geometry), _labels())


@pytest.mark.parametrize("tilted", [False, True])
def test_dcmqi_reads_the_same_voxels_at_the_same_places(tmp_path: Path, tilted: bool) -> None:
    program = shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("dcmqi is not installed")
    import SimpleITK as sitk

    path, _, geometry = _write(tmp_path, _labels(), tilted=tilted)
    line = [program, "--inputDICOM", path, "--outputDirectory", tmp_path, "--mergeSegments", "-t", "nifti"]
    subprocess.run(line, check=True, capture_output=True, timeout=120)
    image = sitk.ReadImage(str(next(tmp_path.glob("*.nii.gz"))))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # ITK's index order x, y, z
    np.testing.assert_array_equal(_placed(array, affine, geometry), _labels())


def test_segments_are_coded_and_refer_to_the_slices(tmp_path: Path) -> None:
    path, _, _ = _write(tmp_path, _labels())
    seg = highdicom.seg.segread(path)
    liver, tumor = (seg.get_segment_description(number) for number in (1, 2))
    assert (liver.segmented_property_type.value, liver.segmented_property_type.scheme_designator) == ("10200004", "SCT")
    assert tumor.segmented_property_type.value == "108369006"
    assert tumor.anatomic_regions[0].value == "10200004"
    assert {str(uid[2]) for uid in seg.get_source_image_uids()} == {f"1.2.6.{k}" for k in range(6)}
    frames = seg.PerFrameFunctionalGroupsSequence
    tumor_frame = next(f for f in frames if f.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2)
    source = tumor_frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == "1.2.6.2"
    assert seg.get_segment_description(1).algorithm_type.value == "AUTOMATIC"


def test_an_empty_prediction_is_written_too(tmp_path: Path) -> None:
    path, _, _ = _write(tmp_path, np.zeros((6, 6, 5), dtype=np.uint8))
    seg = highdicom.seg.segread(path)
    assert seg.number_of_segments == 2
    assert not seg.pixel_array.any()


def test_the_same_labels_make_the_same_object_and_others_another(tmp_path: Path) -> None:
    path, refs, geometry = _write(tmp_path, _labels())
    first = pydicom.dcmread(path).SOPInstanceUID
    write_dicom_seg(path, _labels(), geometry, refs[::-1])
    assert pydicom.dcmread(path).SOPInstanceUID == first
    write_dicom_seg(path, np.zeros_like(_labels()), geometry, refs)
    assert pydicom.dcmread(path).SOPInstanceUID != first


def test_a_series_without_a_frame_of_reference_gets_one(tmp_path: Path) -> None:
    path, _, _ = _write(tmp_path, _labels(), FrameOfReferenceUID="")
    assert pydicom.dcmread(path).FrameOfReferenceUID.startswith("2.25.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"StudyInstanceUID": None}, "StudyInstanceUID is missing or empty"),
        ({"SOPInstanceUID": ""}, "SOPInstanceUID is missing or empty"),
    ],
)
def test_series_that_cannot_be_referred_to_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refs = _series(tmp_path / "scan")
    for ref in refs:
        Path(ref.path).write_bytes(edited(Path(ref.path).read_bytes(), **changes))
    with pytest.raises(LivError, match=message) as caught:
        write_dicom_seg(tmp_path / "seg.dcm", _labels(), _geometry(refs), refs)
    assert caught.value.code == "DICOM_SEG"
    assert not (tmp_path / "seg.dcm").exists()


def test_labels_of_another_grid_are_refused(tmp_path: Path) -> None:
    refs = _series(tmp_path / "scan")
    geometry = _geometry(refs)
    for grid in (
        Geometry((6, 6, 5), geometry.spacing_mm, (0.0, 0.0, 1.0)),
        Geometry((6, 5, 6), geometry.spacing_mm, geometry.origin_mm),
    ):
        with pytest.raises(LivError, match="do not form the labels' grid"):
            write_dicom_seg(tmp_path / "seg.dcm", np.zeros(grid.shape_zyx, np.uint8), grid, refs)
    with pytest.raises(LivError, match="5 slices that do not form the labels' grid of 6 slices"):
        write_dicom_seg(tmp_path / "seg.dcm", _labels(), geometry, refs[:5])
    assert [path.name for path in tmp_path.iterdir()] == ["scan"]
