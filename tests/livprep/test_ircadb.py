"""3DIRCADb: layouts, masks by exact name, and what rejects a case."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from building import edited, ircadb_case, mask_array, plain_slice, write_series, zip_folder
from conftest import IRCADB_NUMBERS, PHANTOM_SEED, PHANTOM_SIZE

from livprep.catalog import Catalog, load_catalog
from livprep.errors import SourceError
from livprep.labels import Label
from livprep.sources import Discovery, SourceCase, discover, read_case, source_digest
from livprep.synthesis import ircadb_phantom

CATALOG = load_catalog()


def read_one(root: Path, catalog: Catalog = CATALOG) -> SourceCase:
    (case,) = discover([root], catalog).cases
    return read_case(case, catalog)


def codes(source: SourceCase) -> list[str]:
    """Codes of the findings, without the remarks on the tiny test scans."""
    return [note.code for note in source.notes if note.code != "CATALOG_MISMATCH"]


def rejection(found: Discovery) -> tuple[str, str, str]:
    assert found.cases == ()
    (entry,) = found.rejected
    return entry.case_id, entry.code, entry.detail


# --- phantoms in the exact layout -------------------------------------------------------------------------------


def test_phantoms_are_read_voxel_for_voxel(phantom_ircadb: Path) -> None:
    own = load_catalog(phantom_ircadb / "catalog.yaml")
    found = discover([phantom_ircadb], own)
    assert [case.case_id for case in found.cases] == [f"ircadb-{n:02d}" for n in IRCADB_NUMBERS]
    assert found.rejected == ()
    for case, number in zip(found.cases, IRCADB_NUMBERS, strict=True):
        source = read_case(case, own)
        phantom = ircadb_phantom(number, seed=PHANTOM_SEED, size=PHANTOM_SIZE, catalog=CATALOG)
        np.testing.assert_array_equal(source.volume.image.hu, phantom.hu)
        np.testing.assert_array_equal(source.volume.label_map.labels, phantom.labels())
        assert source.volume.geometry.orientation == "LPS"
        listed = own.ircadb.case(number)
        assert source.volume.geometry.spacing_mm == listed.spacing_mm
        tumor = np.count_nonzero(source.volume.label_map.labels == Label.TUMOR)
        assert tumor == listed.tumor_voxels
        assert np.count_nonzero(source.volume.label_map.labels) == listed.liver_voxels
        assert source.patient == case.case_id
        assert "CATALOG_MISMATCH" not in codes(source)


def test_the_look_alike_of_patient_7_is_no_tumor_and_is_named(phantom_ircadb: Path) -> None:
    own = load_catalog(phantom_ircadb / "catalog.yaml")
    source = read_one(phantom_ircadb / "3Dircadb1.7", own)
    assert not (source.volume.label_map.labels == Label.TUMOR).any()
    (note,) = (note for note in source.notes if note.code == "MASK_DISPUTED")
    assert "mask tumor is not counted" in note.detail


# --- layouts ----------------------------------------------------------------------------------------------------


def test_zipping_and_nesting_change_nothing(tmp_path: Path) -> None:
    ircadb_case(tmp_path / "loose")
    expected = read_one(tmp_path / "loose")

    def check(root: Path) -> None:
        source = read_one(root)
        np.testing.assert_array_equal(source.volume.image.hu, expected.volume.image.hu)
        np.testing.assert_array_equal(source.volume.label_map.labels, expected.volume.label_map.labels)
        assert (source.digest, source.notes, source.bytes_in) == (expected.digest, expected.notes, expected.bytes_in)

    zipped = ircadb_case(tmp_path / "zipped")
    for name in ("PATIENT_DICOM", "MASKS_DICOM"):
        zip_folder(zipped / name)
    check(tmp_path / "zipped")
    nested = ircadb_case(tmp_path / "nested")
    for name in ("PATIENT_DICOM", "MASKS_DICOM"):  # "extract to a folder of that name"
        (nested / name).rename(nested / "inner")
        (nested / name).mkdir()
        (nested / "inner").rename(nested / name / name)
        (nested / name / name / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    check(tmp_path / "nested")
    shutil.copytree(tmp_path / "zipped", tmp_path / "whole" / "3Dircadb1")
    zip_folder(tmp_path / "whole" / "3Dircadb1")
    check(tmp_path / "whole")
    check(tmp_path / "whole" / "3Dircadb1.zip")
    lower = ircadb_case(tmp_path / "lower")
    for name in ("PATIENT_DICOM", "MASKS_DICOM"):
        (lower / name).rename(lower / name.lower())
    check(tmp_path / "lower")
    check(tmp_path / "loose" / "3Dircadb1.2")


def test_scan_and_masks_may_be_given_as_separate_zips(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    archives = [zip_folder(case / name) for name in ("PATIENT_DICOM", "MASKS_DICOM")]
    assert [entry.case_id for entry in discover(archives, CATALOG).cases] == ["ircadb-02"]


def test_suffixed_slices_are_read(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    for path in sorted((case / "PATIENT_DICOM").iterdir()):
        path.rename(path.with_name(path.name + ".dcm"))
    assert read_one(tmp_path).volume.image.hu[:, 0, 0].tolist() == [-1024, -924, -824, -724]


def test_overlapping_sources_are_one_source(tmp_path: Path) -> None:
    ircadb_case(tmp_path)
    found = discover([tmp_path, tmp_path / "3Dircadb1.2", tmp_path], CATALOG)
    assert (len(found.cases), found.rejected, found.cases[0].notes) == (1, (), ())
    assert len(found.cases[0].image) == 4


def test_files_both_zipped_and_loose_are_read_once_and_noted(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    shutil.copytree(case / "PATIENT_DICOM", tmp_path / "copy")
    zip_folder(case / "PATIENT_DICOM")
    (tmp_path / "copy").rename(case / "PATIENT_DICOM")
    source = read_one(tmp_path)
    assert codes(source) == ["SOURCE_TWICE"]
    assert all(not ref.members for ref in source.case.image)


def test_the_scans_header_tells_the_number_where_folders_do_not(tmp_path: Path) -> None:
    case = ircadb_case(
        tmp_path, masks={"liver": mask_array(1), **{f"livertumor0{k}": mask_array(k) for k in range(1, 8)}}
    )
    case.rename(tmp_path / "patient")  # the header says liver_01^patient
    assert [entry.case_id for entry in discover([tmp_path], CATALOG).cases] == ["ircadb-01"]


def test_reading_one_source_twice_gives_one_digest(tmp_path: Path) -> None:
    ircadb_case(tmp_path)
    (case,) = discover([tmp_path], CATALOG).cases
    assert read_case(case, CATALOG).digest == source_digest(case)


# --- masks ------------------------------------------------------------------------------------------------------


def test_labels_are_liver_then_tumor(tmp_path: Path) -> None:
    liver, tumor = mask_array(1), mask_array(2)
    ircadb_case(tmp_path, masks={"liver": liver, "livertumor": tumor})
    source = read_one(tmp_path)
    expected = np.where(tumor > 0, Label.TUMOR, np.where(liver > 0, Label.LIVER, Label.BACKGROUND))
    np.testing.assert_array_equal(source.volume.label_map.labels, expected)
    outside = np.count_nonzero((tumor > 0) & (liver == 0))
    assert f"{outside} tumor voxels lie outside the liver mask" in " ".join(map(str, source.notes))
    assert codes(source) == ["MASK_OUTSIDE_LIVER"]


def test_masks_of_1_of_255_and_of_both_mean_the_same(tmp_path: Path) -> None:
    liver = mask_array(1)
    mixed = liver.copy()
    mixed[0] = np.minimum(mixed[0], 1)
    for name, mask in (("ones", np.minimum(liver, 1)), ("mixed", mixed), ("plain", liver)):
        ircadb_case(tmp_path / name, 5, {"liver": mask})
        np.testing.assert_array_equal(read_one(tmp_path / name).volume.label_map.labels, liver > 0)


def test_names_match_exactly_but_for_case(tmp_path: Path) -> None:
    masks = {"Liver": mask_array(1), "LIVERTUMOR": np.zeros((4, 6, 5), np.uint8), "tumour": mask_array(3)}
    ircadb_case(tmp_path, masks=masks | {"livertumor99": mask_array(4), "Stones": mask_array(5)})
    source = read_one(tmp_path)
    assert not (source.volume.label_map.labels == Label.TUMOR).any()
    np.testing.assert_array_equal(source.volume.label_map.labels > 0, masks["Liver"] > 0)
    assert codes(source) == ["MASK_UNLISTED", "MASK_UNLISTED"]
    assert {note.private for note in source.notes if note.code == "MASK_UNLISTED"} == {
        "tumour",
        "livertumor99",
    }


def test_a_catalogue_may_count_a_look_alike(tmp_path: Path) -> None:
    facts = CATALOG.as_dict()
    facts["ircadb"]["masks"]["disputed_as_tumor"] = ["tumor"]
    chosen = Catalog.model_validate(facts)
    liver, tumor = mask_array(1), mask_array(2)
    ircadb_case(tmp_path, 7, {"liver": liver, "tumor": tumor})
    source = read_one(tmp_path, chosen)
    np.testing.assert_array_equal(source.volume.label_map.labels == Label.TUMOR, tumor > 0)
    assert "MASK_DISPUTED" not in codes(source)
    assert codes(read_one(tmp_path)) == ["MASK_DISPUTED"]
    shutil.rmtree(tmp_path / "3Dircadb1.7" / "MASKS_DICOM" / "tumor")
    assert rejection(discover([tmp_path], chosen))[1] == "MASK_MISSING"  # now it belongs to the case


def test_stored_findings_name_no_folder_of_the_user(tmp_path: Path) -> None:
    masks = {
        "liver": mask_array(1),
        "livertumor": mask_array(2),
        "liverkyst": mask_array(3),
        "odd\n\x1bname": mask_array(4),
    }
    (tmp_path / "Doe^Jane").mkdir()
    case = ircadb_case(tmp_path / "Doe^Jane", masks=masks)
    shutil.copytree(case / "PATIENT_DICOM", tmp_path / "copy")
    zip_folder(case / "PATIENT_DICOM")
    (tmp_path / "copy").rename(case / "PATIENT_DICOM")
    for note in read_one(tmp_path).notes:
        assert "Doe" not in note.detail
        assert note.detail.isprintable()


# --- rejected at discovery --------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["livertumor", "liver"])
def test_a_missing_mask_folder(tmp_path: Path, missing: str) -> None:
    case = ircadb_case(tmp_path)
    shutil.rmtree(case / "MASKS_DICOM" / missing)
    assert rejection(discover([tmp_path], CATALOG)) == (
        "ircadb-02",
        "MASK_MISSING",
        f"3Dircadb1.2: mask folder {missing} is missing; expected in MASKS_DICOM",
    )


def test_missing_masks_altogether(tmp_path: Path) -> None:
    shutil.rmtree(ircadb_case(tmp_path) / "MASKS_DICOM")
    name, code, detail = rejection(discover([tmp_path], CATALOG))
    assert (name, code) == ("ircadb-02", "MASK_MISSING")
    assert "liver, livertumor" in detail


def test_an_empty_mask_folder_is_missing(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    shutil.rmtree(case / "MASKS_DICOM" / "livertumor")
    (case / "MASKS_DICOM" / "livertumor").mkdir()
    assert rejection(discover([tmp_path], CATALOG))[1] == "MASK_MISSING"


def test_a_missing_scan(tmp_path: Path) -> None:
    shutil.rmtree(ircadb_case(tmp_path) / "PATIENT_DICOM")
    assert rejection(discover([tmp_path], CATALOG)) == (
        "ircadb-02",
        "SOURCE_MISSING",
        "3Dircadb1.2: has no PATIENT_DICOM",
    )


def test_a_number_that_the_catalogue_does_not_list(tmp_path: Path) -> None:
    ircadb_case(tmp_path, 21)
    assert rejection(discover([tmp_path], CATALOG))[:2] == ("ircadb-21", "CASE_UNKNOWN")


def test_no_number_at_all(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    shutil.rmtree(case / "PATIENT_DICOM")
    write_series(case / "PATIENT_DICOM", [edited(plain_slice(), PatientName="Doe^Jane")])
    case.rename(tmp_path / "somebody")
    assert rejection(discover([tmp_path], CATALOG))[:2] == ("somebody", "CASE_UNKNOWN")
    shutil.rmtree(tmp_path / "somebody" / "PATIENT_DICOM")
    assert rejection(discover([tmp_path], CATALOG))[:2] == ("somebody", "CASE_UNKNOWN")


def test_the_same_patient_in_two_places(tmp_path: Path) -> None:
    for name in "ab":
        ircadb_case(tmp_path / name)
    found = discover([tmp_path], CATALOG)
    assert [case.case_id for case in found.cases] == ["ircadb-02"]
    ((name, code, detail),) = ((entry.case_id, entry.code, entry.detail) for entry in found.rejected)
    assert (name, code) == ("ircadb-02", "CASE_DUPLICATE")
    assert "/a/3Dircadb1.2" in detail
    assert "/b/3Dircadb1.2" in detail


@pytest.mark.parametrize("name", ["PATIENT_DICOM", "MASKS_DICOM"])
def test_a_damaged_zip_rejects_its_case_alone(tmp_path: Path, name: str) -> None:
    ircadb_case(tmp_path, 5, {"liver": mask_array(1)})
    case = ircadb_case(tmp_path, 2)
    archive = zip_folder(case / name)
    archive.write_bytes(archive.read_bytes()[:-100])
    found = discover([tmp_path], CATALOG)
    assert [entry.case_id for entry in found.cases] == ["ircadb-05"]
    ((case_id, code),) = ((entry.case_id, entry.code) for entry in found.rejected)
    assert (case_id, code) == ("ircadb-02", "ARCHIVE_BAD")


def test_a_damaged_zip_that_is_not_needed_does_not_matter(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    for name in ("MESHES_VTK.zip", "LABELLED_DICOM.zip"):
        (case / name).write_bytes(b"PK")
    found = discover([tmp_path], CATALOG)
    assert (len(found.cases), found.rejected) == (1, ())


def test_a_damaged_scan_without_a_number_rejects_its_folder_alone(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    archive = zip_folder(case / "PATIENT_DICOM")
    data = bytearray(archive.read_bytes())
    data[data.index(b"DICM")] ^= 1
    archive.write_bytes(data)
    case.rename(tmp_path / "somebody")
    ircadb_case(tmp_path, 5, {"liver": mask_array(1)})
    found = discover([tmp_path], CATALOG)
    assert [entry.case_id for entry in found.cases] == ["ircadb-05"]
    assert [(entry.case_id, entry.code) for entry in found.rejected] == [("somebody", "ARCHIVE_BAD")]


# --- rejected when read -----------------------------------------------------------------------------------------


def refused(root: Path, code: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read_one(root)
    assert caught.value.code == code


def test_a_mask_of_fewer_slices(tmp_path: Path) -> None:
    ircadb_case(tmp_path, masks={"liver": mask_array(1), "livertumor": mask_array(2)[:3]})
    refused(tmp_path, "MASK_SHAPE", r"ircadb-02: mask livertumor has \(3, 6, 5\) voxels \(zyx\), the scan \(4, 6, 5\)")


def test_a_mask_of_other_rows(tmp_path: Path) -> None:
    ircadb_case(tmp_path, masks={"liver": mask_array(1), "livertumor": mask_array(2, (4, 7, 5))})
    refused(tmp_path, "MASK_SHAPE", r"mask livertumor has \(4, 7, 5\) voxels")


@pytest.mark.parametrize("changes", [{"ImagePositionPatient": [0, 0.5, 2]}, {"PixelSpacing": [0.8, 0.9]}])
def test_a_mask_elsewhere(tmp_path: Path, changes: dict) -> None:
    case = ircadb_case(tmp_path)
    slices = []
    for k in range(4):
        own = {**changes, "ImagePositionPatient": [0, 0.5, 2 * k]} if "ImagePositionPatient" in changes else changes
        slices.append(edited(plain_slice(k, mask_array(2)[k]), **own))
    write_series(case / "MASKS_DICOM" / "livertumor", slices)
    refused(tmp_path, "MASK_GEOMETRY", "ircadb-02: mask livertumor lies elsewhere than the scan")


def test_a_mask_of_other_values(tmp_path: Path) -> None:
    mask = mask_array(2)
    mask[2, 3, 4] = 7
    ircadb_case(tmp_path, masks={"liver": mask_array(1), "livertumor": mask})
    refused(tmp_path, "MASK_VALUE", r"mask livertumor: .*image_2 holds \[7\], expected 0, 1 and 255")


def test_a_truncated_slice_of_the_scan(tmp_path: Path) -> None:
    path = ircadb_case(tmp_path) / "PATIENT_DICOM" / "image_2"
    path.write_bytes(path.read_bytes()[:-10])
    refused(tmp_path, "PIXELDATA_SHORT", "image_2: holds 50 pixel bytes, expected 60")


def test_a_truncated_slice_of_a_mask(tmp_path: Path) -> None:
    path = ircadb_case(tmp_path) / "MASKS_DICOM" / "liver" / "image_1"
    path.write_bytes(path.read_bytes()[:-10])
    refused(tmp_path, "PIXELDATA_SHORT", "MASKS_DICOM/liver/image_1: holds 20 pixel bytes, expected 30")


def test_a_lost_inner_slice(tmp_path: Path) -> None:
    (ircadb_case(tmp_path) / "PATIENT_DICOM" / "image_1").unlink()
    refused(tmp_path, "SERIES_GAP", "image: ")


def test_a_lost_last_slice_shows_in_the_masks(tmp_path: Path) -> None:
    (ircadb_case(tmp_path) / "PATIENT_DICOM" / "image_3").unlink()
    refused(tmp_path, "MASK_SHAPE", r"the scan \(3, 6, 5\)")


def test_a_file_that_is_no_slice(tmp_path: Path) -> None:
    (ircadb_case(tmp_path) / "PATIENT_DICOM" / "notes.txt").write_text("read me")
    refused(tmp_path, "DICOM_UNREADABLE", "notes.txt: no DICOM file")


def test_a_damaged_entry_of_a_zip(tmp_path: Path) -> None:
    archive = zip_folder(ircadb_case(tmp_path) / "PATIENT_DICOM")
    data = bytearray(archive.read_bytes())
    data[data.index(b"DICM") + 200] ^= 1
    archive.write_bytes(data)
    refused(tmp_path, "ARCHIVE_BAD", "PATIENT_DICOM/image_0: the zip entry is damaged")


def test_a_file_that_vanished_after_discovery(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    (found,) = discover([tmp_path], CATALOG).cases
    (case / "PATIENT_DICOM" / "image_0").unlink()
    with pytest.raises(SourceError, match="No such file") as caught:
        read_case(found, CATALOG)
    assert caught.value.code == "SOURCE_MISSING"


def test_too_little_memory_is_a_fault_of_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from livprep.sources import ircadb

    def starve(*arguments: object) -> None:
        raise MemoryError

    ircadb_case(tmp_path)
    monkeypatch.setattr(ircadb, "read_series", starve)
    refused(tmp_path, "CASE_TOO_LARGE", "ircadb-02: does not fit into the worker's memory")


# --- findings ---------------------------------------------------------------------------------------------------


def test_another_scan_than_the_catalogue_knows_is_noted(tmp_path: Path) -> None:
    ircadb_case(tmp_path)
    details = [note.detail for note in read_one(tmp_path).notes if note.code == "CATALOG_MISMATCH"]
    assert details == [
        "ircadb-02: 4 slices, the catalogue says 172",
        "ircadb-02: spacing (2.0, 0.8, 0.7) mm (zyx), the catalogue says (1.6, 0.782, 0.782)",
    ]


def test_a_scan_without_air_is_noted(tmp_path: Path) -> None:
    case = ircadb_case(tmp_path)
    write_series(case / "PATIENT_DICOM", [plain_slice(k, np.full((6, 5), k, np.int16)) for k in range(4)])
    source = read_one(tmp_path)
    assert "HU_NO_AIR" in codes(source)
    assert "lowest value 0, expected air near -1000 HU" in " ".join(map(str, source.notes))
