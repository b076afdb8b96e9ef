"""Synthetic data sets: layout, header quirks, catalogue, and what the readers make of them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from livprep import synthesis
from livprep.catalog import FILE_NAME, load_catalog
from livprep.errors import UsageError
from livprep.formats.dicom_write import SeriesHeader, encode_element, uid_from
from livprep.formats.nifti_write import write_nifti
from livprep.geometry import Geometry, shortest_decimal
from livprep.prepare import Preparation, prepare
from livprep.sources import discover, read_case
from livprep.synthesis import ircadb_phantom, lits_phantom, phantom_catalog, write_ircadb, write_lits, write_phantoms
from livprep.synthesis.lits import numbers_in_order, stored_in

CATALOG = load_catalog()
SIZE = 48
IRCADB = (1, 2, 3, 4, 7, 8, 12, 14)
LITS = (0, 28, 31, 32, 48, 53, 68, 120)


@pytest.fixture(scope="module")
def ircadb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("data") / "ircadb"
    assert write_ircadb(dest, IRCADB, size=SIZE) == [f"ircadb-{n:02d}" for n in IRCADB]
    return dest


@pytest.fixture(scope="module")
def lits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("data") / "lits"
    assert write_lits(dest, LITS, size=SIZE) == [f"lits-{n:03d}" for n in LITS]
    return dest


def _slices(root: Path, name: str) -> list[pydicom.Dataset]:
    """Slices of a folder in order, wherever the case keeps it."""
    top = name.split("/")[0]
    archive, nested = root / f"{top}.zip", root / top / name
    if archive.exists():
        with zipfile.ZipFile(archive) as opened:
            files = [BytesIO(opened.read(n)) for n in opened.namelist() if n.startswith(f"{name}/image_")]
        read = [pydicom.dcmread(file) for file in files]
    else:
        folder = nested if nested.exists() else root / name
        read = [pydicom.dcmread(path) for path in folder.glob("image_*")]
    return sorted(read, key=lambda dataset: int(dataset.InstanceNumber))


def _array(root: Path, name: str) -> np.ndarray:
    return np.stack([dataset.pixel_array for dataset in _slices(root, name)])


def test_every_nesting_occurs(ircadb: Path) -> None:
    zipped, loose, nested, mixed = (ircadb / f"3Dircadb1.{n}" for n in (1, 2, 3, 4))
    assert sorted(p.name for p in zipped.iterdir()) == ["MASKS_DICOM.zip", "PATIENT_DICOM.zip"]
    assert (loose / "PATIENT_DICOM" / "image_0").is_file()
    assert (nested / "PATIENT_DICOM" / "PATIENT_DICOM" / "image_0").is_file()
    assert (nested / "MASKS_DICOM" / ".DS_Store").is_file()
    assert sorted(p.name for p in mixed.iterdir()) == ["MASKS_DICOM.zip", "PATIENT_DICOM"]
    with zipfile.ZipFile(zipped / "MASKS_DICOM.zip") as archive:
        names = archive.namelist()
        assert names[0] == "MASKS_DICOM/"
        assert "MASKS_DICOM/livertumor07/" in names
        assert {info.date_time for info in archive.infolist()} == {(2009, 5, 27, 12, 0, 0)}
        assert archive.testzip() is None


@pytest.mark.parametrize("number", IRCADB)
def test_mask_folders_are_the_catalogues(ircadb: Path, number: int) -> None:
    case = CATALOG.ircadb.case(number)
    assert case is not None
    root = ircadb / f"3Dircadb1.{number}"
    if (root / "MASKS_DICOM.zip").exists():
        with zipfile.ZipFile(root / "MASKS_DICOM.zip") as archive:
            found = {name.split("/")[1] for name in archive.namelist() if name.count("/") == 2}
    else:
        folder = root / "MASKS_DICOM"
        folder = folder / "MASKS_DICOM" if (folder / "MASKS_DICOM").exists() else folder
        found = {path.name for path in folder.iterdir() if path.is_dir()}
    assert found == set(case.masks)


def test_scan_headers_repeat_the_quirks(ircadb: Path) -> None:
    scan = _slices(ircadb / "3Dircadb1.1", "PATIENT_DICOM")
    mask = _slices(ircadb / "3Dircadb1.1", "MASKS_DICOM/livertumor03")
    spacing = load_catalog(ircadb / FILE_NAME).ircadb.cases[0].spacing_mm
    assert [int(s.InstanceNumber) for s in scan] == list(range(len(scan))) == [int(s.InstanceNumber) for s in mask]
    for k, dataset in enumerate(scan):
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert [float(v) for v in dataset.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        assert (x, y) == (0, 0)
        assert z == pytest.approx(k * spacing[0], rel=1e-6)
    first, other = scan[0], mask[0]
    assert str(first.PatientName) == "liver_01^patient"
    assert str(other.PatientName) == "liver_01^livertumor03"
    assert first.Modality == other.Modality == "CT"
    assert first.SOPClassUID == other.SOPClassUID == pydicom.uid.CTImageStorage
    assert first.StudyInstanceUID != other.StudyInstanceUID
    assert first.SeriesInstanceUID != other.SeriesInstanceUID
    assert len({s.SOPInstanceUID for s in (*scan, *mask)}) == 2 * len(scan)
    assert (first.BitsAllocated, first.PixelRepresentation, other.BitsAllocated, other.PixelRepresentation) == (
        16,
        1,
        8,
        0,
    )
    assert (first.RescaleIntercept, first.RescaleSlope, first.WindowCenter, first.WindowWidth) == (0, 1, 0, 0)
    assert "FrameOfReferenceUID" not in first
    assert "PatientPosition" not in first
    assert first.PatientID == ""
    assert all(len(uid) <= 64 for s in scan for uid in (s.SOPInstanceUID, s.SeriesInstanceUID))
    assert first.PixelSpacing[0] == first.PixelSpacing[1]
    assert float(first.PixelSpacing[0]) != spacing[1]  # the tail of a float32
    assert shortest_decimal(float(first.PixelSpacing[0])) == spacing[1]
    assert shortest_decimal(float(first.SliceThickness)) == spacing[0]


@pytest.mark.parametrize(
    ("number", "mask", "values"),
    [
        (1, "liver", [0, 255]),
        (2, "liver", [0, 1]),
        (2, "livertumor", [0, 1]),
        (2, "portalvein", [0, 255]),
        (3, "spleen", [0, 1]),
        (7, "skin", [0, 1]),
        (7, "tumor", [0, 255]),
        (8, "livertumor01", [0, 1, 255]),
        (12, "liver", [0, 1, 255]),
        (14, "portalvein", [0, 1, 255]),
        (14, "metastasectomie", [0, 255]),
    ],
)
def test_mask_values_are_mixed_as_measured(ircadb: Path, number: int, mask: str, values: list[int]) -> None:
    array = _array(ircadb / f"3Dircadb1.{number}", f"MASKS_DICOM/{mask}")
    assert np.unique(array).tolist() == values


def test_scan_and_masks_are_the_phantoms(ircadb: Path) -> None:
    root = ircadb / "3Dircadb1.4"
    phantom = ircadb_phantom(4, seed=0, size=SIZE, catalog=CATALOG)
    assert np.array_equal(_array(root, "PATIENT_DICOM"), phantom.hu)
    liver, tumor = (_array(root, f"MASKS_DICOM/{name}") > 0 for name in ("liver", "livertumor"))
    assert np.array_equal(liver | tumor, phantom.liver())
    assert np.array_equal(tumor, phantom.tumors())
    outside = load_catalog(ircadb / FILE_NAME).ircadb.cases[3].tumor_outside_liver
    assert 0 < (tumor & ~liver).sum() == outside <= 5


@pytest.mark.parametrize(
    ("number", "letters"),
    [(0, "LAS"), (28, "RAS"), (32, "RAS"), (48, "LAS"), (53, "LPS"), (68, "RAS"), (120, "LPS")],
)
def test_headers_have_the_orientation_of_their_number(lits: Path, number: int, letters: str) -> None:
    scan, label = (nib.load(lits / f"{kind}-{number}.nii.gz") for kind in ("volume", "segmentation"))
    assert "".join(nib.aff2axcodes(scan.affine)) == letters
    assert (int(scan.header["qform_code"]), int(scan.header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(scan.get_qform(), scan.affine, atol=1e-4)
    assert (scan.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
    assert np.array_equal(scan.affine, np.eye(4)) == (28 <= number <= 47)
    assert np.array_equal(label.affine, scan.affine) == (number != 48)
    phantom = lits_phantom(number, seed=0, size=SIZE, catalog=CATALOG)
    truth = "LAS" if 28 <= number <= 47 else letters
    flips = tuple(slice(None, None, 1 if a == b else -1) for a, b in zip(truth, "LPS", strict=True))
    assert np.array_equal(np.asarray(scan.dataobj)[flips].T, phantom.hu)
    assert np.array_equal(np.asarray(label.dataobj)[flips].T, phantom.labels())


def test_tumor_free_numbers_have_no_tumor(lits: Path) -> None:
    for number in LITS:
        labels = np.asarray(nib.load(lits / f"segmentation-{number}.nii.gz").dataobj)
        assert (labels == 1).any()
        assert (labels == 2).any() == (number not in CATALOG.lits.tumor_free)


def test_lits_28_is_3dircadb_1_with_its_rows_reversed(ircadb: Path, lits: Path) -> None:
    scan = np.asarray(nib.load(lits / "volume-28.nii.gz").dataobj).T
    label = np.asarray(nib.load(lits / "segmentation-28.nii.gz").dataobj).T
    root = ircadb / "3Dircadb1.1"
    assert np.array_equal(scan[:, ::-1], _array(root, "PATIENT_DICOM"))
    assert np.array_equal(label[:, ::-1] > 0, _array(root, "MASKS_DICOM/liver") > 0)


def test_readers_take_every_case_and_find_what_the_catalogue_says(ircadb: Path, lits: Path) -> None:
    catalog = load_catalog(ircadb / FILE_NAME)
    found = discover([ircadb, lits], catalog)
    assert len(found.cases) == len(IRCADB) + len(LITS)
    assert not found.rejected
    prepared = {}
    for case in found.cases:
        volume = prepare(read_case(case, catalog).volume, Preparation())
        prepared[case.case_id] = volume
        assert volume.geometry.orientation == "LPS"
        labels = volume.label_map.labels if volume.label_map else None
        assert labels is not None
        listed = catalog.ircadb.case(int(case.case_id[-2:])) if case.case_id.startswith("ircadb") else None
        if listed is not None:
            assert volume.geometry.shape_zyx[0] == listed.slices
            assert volume.geometry.spacing_mm == listed.spacing_mm
            assert (labels == 2).sum() == listed.tumor_voxels
            assert (labels > 0).sum() == (listed.liver_voxels or 0) + listed.tumor_outside_liver
    for number in (1, 4):
        a, b = prepared[f"ircadb-{number:02d}"], prepared[f"lits-{27 + number:03d}"]
        assert a.geometry.same_grid(b.geometry)
        assert np.array_equal(a.image.hu, b.image.hu)
        assert a.label_map is not None
        assert b.label_map is not None
        assert np.array_equal(a.label_map.labels, b.label_map.labels)


def test_the_catalogue_of_phantoms_states_the_phantoms() -> None:
    catalog = phantom_catalog(CATALOG, seed=3, size=96)
    assert catalog.digest != CATALOG.digest
    for case in catalog.ircadb.cases:
        width_mm = 96 * case.spacing_mm[2]
        height_mm = case.slices * case.spacing_mm[0]
        assert 355 < width_mm < 430
        assert 185 < height_mm < 230
        assert 2.5 < case.spacing_mm[0] < 6
        assert (case.liver_voxels, case.tumor_voxels) == (None, None)
        repair = catalog.lits.repair(case.lits)
        assert repair is not None
        assert repair.spacing_mm == case.spacing_mm


def _digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


def test_both_data_sets_follow_from_the_seed_to_the_byte(tmp_path: Path) -> None:
    seen: list[str] = []
    ids = write_phantoms(tmp_path / "a", "both", 2, seed=5, size=32, on_case=seen.append)
    assert ids == ["ircadb-01", "ircadb-02", "lits-000", "lits-028"] == seen
    write_phantoms(tmp_path / "b", "both", 2, seed=5, size=32)
    write_phantoms(tmp_path / "c", "both", 2, seed=6, size=32)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b") != _digest(tmp_path / "c")
    one, other = ((tmp_path / "a" / name / FILE_NAME).read_bytes() for name in ("ircadb", "lits"))
    assert one == other
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [FILE_NAME, "ircadb", "lits"]


def test_an_empty_folder_is_used_as_it_is(tmp_path: Path) -> None:
    dest = tmp_path / "empty"
    dest.mkdir()
    inode = dest.stat().st_ino
    assert write_phantoms(dest, "lits", 1, size=24) == ["lits-000"]
    assert dest.stat().st_ino == inode
    assert sorted(p.name for p in dest.iterdir()) == [FILE_NAME, "segmentation-0.nii.gz", "volume-0.nii.gz"]


def test_plain_nifti(tmp_path: Path) -> None:
    write_lits(tmp_path / "plain", [28], size=24, gz=False)
    scan = nib.load(tmp_path / "plain" / "volume-28.nii")
    assert scan.shape[:2] == (24, 24)


def test_lits_order_shows_the_quirks_early() -> None:
    order = numbers_in_order(CATALOG)
    assert sorted(order) == list(range(131))
    assert order[:9] == [0, 28, 53, 68, 32, 48, 87, 1, 29]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: write_phantoms(d, "ircadb", 21), "21 phantom cases of ircadb: expected 1 to 20"),
        (lambda d: write_phantoms(d, "both", 21), "expected 1 to 20"),
        (lambda d: write_phantoms(d, "lits", 132), "expected 1 to 131"),
        (lambda d: write_phantoms(d, "lits", 0), "expected 1 to 131"),
        (lambda d: write_phantoms(d, "lits", 1, size=8), "phantom size 8 pixels: expected 24 to 1024"),
        (lambda d: write_ircadb(d, [21], size=24), "patient 21: the catalogue has no such number"),
        (lambda d: write_lits(d, [131], size=24), "volume 131: the catalogue has no such training volume"),
    ],
)
def test_impossible_requests_are_refused_and_leave_nothing(tmp_path: Path, call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(UsageError) as caught:
        call(tmp_path / "dest")
    assert caught.value.code == "USAGE"
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        write_phantoms(tmp_path, "ircadb", 1, size=24)
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        write_phantoms(tmp_path / "mine.txt", "ircadb", 1, size=24)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(synthesis.lits, "write_case", fail)
    dest = tmp_path / "dest"
    if exists:
        dest.mkdir()
    with pytest.raises(OSError, match="disk full"):
        write_phantoms(dest, "both", 1, size=24)
    assert list(tmp_path.rglob("*")) == ([dest] if exists else [])


def test_stored_grid_is_the_same_place() -> None:
    geometry = Geometry((4, 5, 6), (3.0, 2.0, 1.0), (10.0, 20.0, 30.0))
    for letters in ("LPS", "LAS", "RAS", "RPI"):
        axes, stored = stored_in(geometry, letters)
        assert stored.orientation == letters
        marked = np.zeros(geometry.shape_zyx, np.uint8)
        marked[1, 2, 3] = 1
        z, y, x = np.argwhere(axes.apply(marked))[0]
        np.testing.assert_allclose(stored.affine_lps @ [x, y, z, 1], geometry.affine_lps @ [3, 2, 1, 1])


def test_dicom_elements_are_padded_and_pixels_checked() -> None:
    assert encode_element((8, 8), "CS", b"ABC") == b"\x08\x00\x08\x00CS\x04\x00ABC "
    assert encode_element((8, 8), "UI", b"1.2") == b"\x08\x00\x08\x00UI\x04\x001.2\0"
    assert encode_element((0x7FE0, 0x10), "OW", b"ab") == b"\xe0\x7f\x10\x00OW\0\0\x02\0\0\0ab"
    assert uid_from("a", 1) == uid_from("a", 1) != uid_from("a", 2)
    with pytest.raises(TypeError, match="expected 2-D int16 or uint8"):
        SeriesHeader().slice_bytes("1.2", {}, np.zeros((2, 2), np.float32))


def _affines() -> Iterator[np.ndarray]:
    for letters in ("LPS", "LAS", "RAS"):
        yield stored_in(Geometry((3, 4, 5), (2.5, 0.7, 0.7), (-3.0, 4.0, 5.5)), letters)[1].affine_ras


@pytest.mark.parametrize("affine", list(_affines()))
def test_nifti_reads_back(tmp_path: Path, affine: np.ndarray) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)[:, ::-1]
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, array, affine)
        image = nib.load(tmp_path / name)
        assert np.array_equal(np.asarray(image.dataobj).T, array)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        np.testing.assert_allclose(image.get_qform(), affine, atol=1e-5)
        assert image.header.get_xyzt_units()[0] == "mm"


def test_phantoms_of_both_data_sets_can_be_ingested_from_their_common_folder(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", "both", cases=2, seed=0, size=32)
    folders = [tmp_path / "data", tmp_path / "data" / "ircadb", tmp_path / "data" / "lits"]
    assert len({(folder / FILE_NAME).read_bytes() for folder in folders}) == 1
