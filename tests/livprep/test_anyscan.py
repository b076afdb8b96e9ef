"""Scans of no known data set: any CT series and any NIfTI."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from building import (
    edited,
    ircadb_case,
    lits_pair,
    mask_array,
    nifti_bytes,
    plain_slice,
    scan,
    write_series,
    zip_folder,
)

from livprep.catalog import load_catalog
from livprep.sources import Discovery, catalog_beside, discover, read_case

CATALOG = load_catalog()


def found(*paths: Path) -> Discovery:
    return discover(paths, CATALOG, "any")


def slices(**changes: object) -> list[bytes]:
    return [edited(plain_slice(k), **changes) for k in range(4)]


def test_every_series_and_every_nifti_is_a_case(tmp_path: Path) -> None:
    write_series(tmp_path / "thorax", slices())
    (tmp_path / "scan.nii").write_bytes(nifti_bytes(scan().image.hu))
    (tmp_path / "notes.txt").write_text("nothing")
    discovery = found(tmp_path)
    assert [case.case_id for case in discovery.cases] == ["scan", "thorax"]
    assert (discovery.rejected, discovery.ignored) == ((), ())
    for case in discovery.cases:
        source = read_case(case, CATALOG)
        assert source.volume.label_map is None
        assert source.patient == case.case_id
        assert source.volume.geometry.spacing_mm == (2.0, 0.8, 0.7)


def test_series_of_one_folder_are_told_apart_by_uid(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", [*slices(), *slices(SeriesInstanceUID="2.25.9")])
    discovery = found(tmp_path)
    assert [(case.case_id, len(case.image)) for case in discovery.cases] == [("scan-1", 4), ("scan-2", 4)]


def test_slices_without_a_uid_are_one_series_by_folder(tmp_path: Path) -> None:
    for name in "ab":
        write_series(tmp_path / name, slices(SeriesInstanceUID=""))
    discovery = found(tmp_path)
    assert [case.case_id for case in discovery.cases] == ["a", "b"]
    assert [note.code for note in read_case(discovery.cases[0], CATALOG).notes] == ["SERIES_UID_MISSING"]


def placed(start: int, count: int = 4, **changes: object) -> list[bytes]:
    """Slices from number `start` on, 2 mm apart."""
    return [edited(plain_slice(k), **changes) for k in range(start, start + count)]


def test_a_series_spread_over_folders_is_one_case(tmp_path: Path) -> None:
    for number in range(3):
        write_series(tmp_path / "disc" / f"DIR{number}", placed(4 * number))
    (case,) = found(tmp_path).cases
    assert (case.case_id, len(case.image), case.notes) == ("disc", 12, ())
    source = read_case(case, CATALOG)
    assert source.volume.image.hu[:, 0, 0].tolist() == [-1024 + 100 * k for k in range(12)]


def test_scans_that_share_a_uid_in_several_folders_stay_apart(tmp_path: Path) -> None:
    """Copies, and what a bad pseudonymization made of two scans."""
    write_series(tmp_path / "a", placed(0))
    write_series(tmp_path / "b", placed(6))
    discovery = found(tmp_path)
    assert [(case.case_id, len(case.image)) for case in discovery.cases] == [("a", 4), ("b", 4)]
    for case in discovery.cases:
        assert [note.code for note in read_case(case, CATALOG).notes] == ["SERIES_SPREAD"]


def test_phases_of_one_series_are_cases_of_their_own(tmp_path: Path) -> None:
    phases = [edited(data, AcquisitionNumber=n) for n in (10, 9) for data in placed(0, InstanceNumber=None)]
    write_series(tmp_path / "liver", phases)
    discovery = found(tmp_path)
    assert [case.case_id for case in discovery.cases] == ["liver-1", "liver-2"]
    assert [Path(case.image[0].path).name for case in discovery.cases] == ["image_4", "image_0"]  # 9 before 10
    assert [note.code for note in read_case(discovery.cases[0], CATALOG).notes] == ["SERIES_PHASES"]


def test_acquisitions_side_by_side_are_one_case(tmp_path: Path) -> None:
    write_series(
        tmp_path / "liver", [edited(data, AcquisitionNumber=1 + k // 4) for k, data in enumerate(placed(0, 8))]
    )
    assert [(case.case_id, len(case.image)) for case in found(tmp_path).cases] == [("liver", 8)]


def test_names_are_unique_and_safe(tmp_path: Path) -> None:
    for folder in ("a", "b", "c d"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scan.nii").write_bytes(nifti_bytes(scan().image.hu))
    (tmp_path / "my scan é.nii.gz").write_bytes(b"")
    (tmp_path / "..nii").write_bytes(b"")
    names = [case.case_id for case in found(tmp_path).cases]
    assert names == ["my_scan_", "scan", "scan-2", "scan-3", "scan-4"]


def test_zipped_series_are_found(tmp_path: Path) -> None:
    zip_folder(write_series(tmp_path / "thorax", slices()))
    ((case,), rejected) = found(tmp_path).cases, found(tmp_path).rejected
    assert (case.case_id, len(case.image), rejected) == ("thorax", 4, ())


def test_other_modalities_are_ignored_and_said_to_be(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", slices(Modality="MR"))
    write_series(tmp_path / "ct", slices())
    discovery = found(tmp_path)
    assert [case.case_id for case in discovery.cases] == ["ct"]
    ((name, detail),) = ((entry.case_id, entry.detail) for entry in discovery.ignored)
    assert (name, detail) == (str(tmp_path / "mr"), "the modality is not CT")


def test_folders_that_cannot_be_opened_are_rejected_once(tmp_path: Path) -> None:
    archive = zip_folder(write_series(tmp_path / "bad", slices()))
    data = archive.read_bytes()
    for k in range(4):
        data = data.replace(plain_slice(k)[-61:], plain_slice(k)[-60:] + b"!")
    archive.write_bytes(data.replace(b"DICM\2", b"DICM\3"))
    (tmp_path / "worse.zip").write_bytes(b"PK")
    write_series(tmp_path / "good", slices())
    discovery = found(tmp_path)
    assert [case.case_id for case in discovery.cases] == ["good"]
    assert [(entry.case_id, entry.code) for entry in discovery.rejected] == [
        (str(tmp_path / "bad" / "bad"), "ARCHIVE_BAD"),
        (str(tmp_path / "worse"), "ARCHIVE_BAD"),
    ]


def test_any_takes_the_data_sets_apart(tmp_path: Path) -> None:
    ircadb_case(tmp_path, 5, {"liver": mask_array(1)})
    lits_pair(tmp_path, 3)
    names = [case.case_id for case in found(tmp_path).cases]
    assert names == ["PATIENT_DICOM", "liver", "segmentation-3", "volume-3"]


def test_values_come_through_unchanged(tmp_path: Path) -> None:
    volume = scan()
    (tmp_path / "scan.nii").write_bytes(nifti_bytes(volume.image.hu))
    (case,) = found(tmp_path / "scan.nii").cases
    np.testing.assert_array_equal(read_case(case, CATALOG).volume.image.hu, volume.image.hu)


def test_a_catalogue_at_the_root_of_a_source_is_found(tmp_path: Path, phantom_lits: Path) -> None:
    assert catalog_beside([tmp_path]) is None
    assert catalog_beside([tmp_path, phantom_lits]) == phantom_lits / "catalog.yaml"
    shutil.copy(phantom_lits / "catalog.yaml", tmp_path / "catalog.yaml")
    assert catalog_beside([tmp_path, phantom_lits]) == tmp_path / "catalog.yaml"


def test_two_catalogues_that_differ_are_refused(tmp_path: Path) -> None:
    from livprep.errors import UsageError

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "catalog.yaml").write_text(name)
    with pytest.raises(UsageError, match="differ: ingest the folders one by one") as caught:
        catalog_beside([tmp_path / "a", tmp_path / "b"])
    assert caught.value.code == "USAGE"
