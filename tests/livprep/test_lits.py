"""LiTS: pairing by number, repaired headers, labels by index."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from building import lits_pair, nifti_bytes, scan, zip_folder
from conftest import PHANTOM_SEED, PHANTOM_SIZE

from livprep.catalog import Catalog, load_catalog
from livprep.errors import SourceError
from livprep.geometry import Geometry
from livprep.prepare import Preparation, prepare, restore
from livprep.sources import Discovery, SourceCase, discover, read_case, source_digest
from livprep.synthesis import lits_phantom, write_decathlon
from livprep.synthesis.lits import stored_in

CATALOG = load_catalog()
IDENTITY = np.eye(4)


def read_one(root: Path, catalog: Catalog = CATALOG) -> SourceCase:
    (case,) = discover([root], catalog).cases
    return read_case(case, catalog)


def counting(number: int, slices: int) -> Catalog:
    """The product's catalogue with another slice count of one LiTS volume."""
    repairs = tuple(
        repair.model_copy(update={"slices": slices}) if repair.number == number else repair
        for repair in CATALOG.lits.repairs
    )
    return CATALOG.model_copy(update={"lits": CATALOG.lits.model_copy(update={"repairs": repairs})})


def codes(source: SourceCase) -> list[str]:
    return [note.code for note in source.notes]


def rejections(found: Discovery) -> list[tuple[str, str]]:
    assert found.cases == ()
    return [(entry.case_id, entry.code) for entry in found.rejected]


# --- phantoms ---------------------------------------------------------------------------------------------------


def test_phantoms_of_every_header_become_the_same_lps_arrays(phantom_lits: Path) -> None:
    own = load_catalog(phantom_lits / "catalog.yaml")
    for case in discover([phantom_lits], own).cases:
        source = read_case(case, own)
        phantom = lits_phantom(case.number, seed=PHANTOM_SEED, size=PHANTOM_SIZE, catalog=CATALOG)
        prepared = prepare(source.volume, Preparation())
        np.testing.assert_array_equal(prepared.image.hu, phantom.hu)
        np.testing.assert_array_equal(prepared.label_map.labels, phantom.labels())
        np.testing.assert_allclose(prepared.geometry.spacing_mm, phantom.geometry.spacing_mm, atol=1e-3)
        assert source.volume.geometry.orientation == own.lits.header_of(case.number).truth


def test_both_forms_of_a_patient_are_one(phantom_lits: Path, phantom_ircadb: Path) -> None:
    own = load_catalog(phantom_lits / "catalog.yaml")
    (first,) = (case for case in discover([phantom_ircadb], own).cases if case.number == 1)
    (second,) = (case for case in discover([phantom_lits], own).cases if case.number == 28)
    ircadb, lits = (prepare(read_case(case, own).volume, Preparation()) for case in (first, second))
    assert ircadb.geometry == lits.geometry
    np.testing.assert_array_equal(ircadb.image.hu, lits.image.hu)
    np.testing.assert_array_equal(ircadb.label_map.labels, lits.label_map.labels)
    assert read_case(second, own).patient == "ircadb-01"


# --- discovery --------------------------------------------------------------------------------------------------


def test_files_pair_by_number_wherever_they_lie(tmp_path: Path) -> None:
    volume, label = lits_pair(tmp_path, 3)
    for path, folder in ((volume, "volume_pt1"), (label, "segmentations")):
        (tmp_path / folder).mkdir()
        path.rename(tmp_path / folder / path.name)
    lits_pair(tmp_path / "deep" / "er", 30, suffix=".nii.gz")
    found = discover([tmp_path], CATALOG)
    assert [case.case_id for case in found.cases] == ["lits-003", "lits-030"]
    assert found.rejected == ()


def test_packing_changes_nothing_but_the_digest(tmp_path: Path) -> None:
    lits_pair(tmp_path / "plain")
    lits_pair(tmp_path / "packed", suffix=".nii.gz")
    lits_pair(tmp_path / "zipped" / "volumes")
    zip_folder(tmp_path / "zipped" / "volumes")
    plain, packed, zipped = (read_one(tmp_path / name) for name in ("plain", "packed", "zipped"))
    for other in (packed, zipped):
        np.testing.assert_array_equal(plain.volume.image.hu, other.volume.image.hu)
        np.testing.assert_array_equal(plain.volume.label_map.labels, other.volume.label_map.labels)
        assert plain.volume.geometry == other.volume.geometry
    assert plain.digest == zipped.digest


def test_test_volumes_have_no_labels(tmp_path: Path) -> None:
    volume, label = lits_pair(tmp_path, 3)
    volume.rename(tmp_path / "test-volume-3.nii")
    label.rename(tmp_path / "test-segmentation-3.nii")  # a submission, not part of the data set
    source = read_one(tmp_path)
    assert (source.case.case_id, source.volume.label_map, source.patient) == ("litstest-003", None, "litstest-003")


def test_a_volume_without_label_and_a_label_without_volume(tmp_path: Path) -> None:
    lits_pair(tmp_path, 3)[1].unlink()
    lits_pair(tmp_path, 4)[0].unlink()
    assert rejections(discover([tmp_path], CATALOG)) == [("lits-003", "MASK_MISSING"), ("lits-004", "SOURCE_MISSING")]


@pytest.mark.parametrize(("name", "case"), [("volume-131.nii", "lits-131"), ("test-volume-70.nii", "litstest-070")])
def test_numbers_outside_the_data_set(tmp_path: Path, name: str, case: str) -> None:
    lits_pair(tmp_path, 3)[0].rename(tmp_path / name)
    (tmp_path / "segmentation-3.nii").unlink()
    assert rejections(discover([tmp_path], CATALOG)) == [(case, "CASE_UNKNOWN")]


def test_a_volume_packed_and_plain_is_read_once_and_noted(tmp_path: Path) -> None:
    volume, _ = lits_pair(tmp_path, 3)
    volume.with_suffix(".nii.gz").write_bytes(gzip.compress(volume.read_bytes()))
    source = read_one(tmp_path)
    assert codes(source) == ["SOURCE_TWICE"]
    assert str(tmp_path) not in source.notes[0].detail  # it is stored with the case


def test_overlapping_sources_are_one_source(tmp_path: Path) -> None:
    volume, label = lits_pair(tmp_path, 3)
    found = discover([tmp_path, volume, label], CATALOG)
    assert (len(found.cases), found.cases[0].notes) == (1, ())


def test_single_files_are_sources_too(tmp_path: Path) -> None:
    volume, label = lits_pair(tmp_path, 3)
    assert [case.case_id for case in discover([volume, label], CATALOG).cases] == ["lits-003"]


def test_a_damaged_zip_rejects_its_case_alone(tmp_path: Path) -> None:
    lits_pair(tmp_path, 3)
    (tmp_path / "volume-4.nii.zip").write_bytes(b"PK")
    (tmp_path / "other.zip").write_bytes(b"PK")
    found = discover([tmp_path], CATALOG)
    assert [case.case_id for case in found.cases] == ["lits-003"]
    assert [(entry.case_id, entry.code) for entry in found.rejected] == [
        ("lits-004", "ARCHIVE_BAD"),
        ("other", "ARCHIVE_BAD"),
    ]


def test_files_of_other_names_are_nothing(tmp_path: Path) -> None:
    for name in ("volume-3.mha", "volume.nii", "myvolume-3.nii", "volume-3b.nii", "Volume-x.nii"):
        (tmp_path / name).write_bytes(b"")
    found = discover([tmp_path], CATALOG)
    assert (found.cases, found.rejected) == ((), ())


# --- MSD Task03 Liver -------------------------------------------------------------------------------------------


def decathlon_pair(root: Path, number: int, *, seed: int = 0) -> tuple[Path, Path]:
    """imagesTr/liver_N and labelsTr/liver_N of 4 x 6 x 5 voxels with a plain affine."""
    paths = []
    for path, folder in zip(lits_pair(root, number, seed=seed), ("imagesTr", "labelsTr"), strict=True):
        (root / folder).mkdir(exist_ok=True)
        paths.append(path.rename(root / folder / f"liver_{number}.nii"))
    return paths[0], paths[1]


def test_phantoms_of_the_decathlon_become_the_same_lps_arrays(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "in", (28, 68), seed=PHANTOM_SEED, size=PHANTOM_SIZE)
    own = load_catalog(tmp_path / "in" / "catalog.yaml")
    found = discover([tmp_path / "in"], own)
    assert ([case.case_id for case in found.cases], found.rejected) == (["lits-028", "lits-068"], ())
    for case in found.cases:
        source = read_case(case, own)
        phantom = lits_phantom(case.number, seed=PHANTOM_SEED, size=PHANTOM_SIZE, catalog=CATALOG)
        prepared = prepare(source.volume, Preparation())
        np.testing.assert_array_equal(prepared.image.hu, phantom.hu)
        np.testing.assert_array_equal(prepared.label_map.labels, phantom.labels())
        np.testing.assert_allclose(prepared.geometry.spacing_mm, phantom.geometry.spacing_mm, atol=1e-3)
        assert (source.repairs, codes(source)) == ((), [])
    assert source.patient == "lits-068"
    assert read_case(found.cases[0], own).patient == "ircadb-01"


def test_the_decathlons_names_count_in_its_folders_alone(tmp_path: Path) -> None:
    volume, label = decathlon_pair(tmp_path / "in", 3)
    (tmp_path / "in" / "dataset.json").write_text("{}")
    (volume.parent / "._liver_3.nii").write_bytes(b"")
    for other in ("elsewhere/liver_4.nii", "imagesTr/deeper/liver_5.nii", "imagesTr/liver_x.nii", "labelsTr/notes.txt"):
        (tmp_path / "in" / other).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / other).write_bytes(b"")
    found = discover([tmp_path / "in"], CATALOG)
    assert [(case.case_id, case.notes) for case in found.cases] == [("lits-003", ())]
    assert (found.rejected, found.ignored) == ((), ())
    assert [case.case_id for case in discover([volume, label], CATALOG).cases] == ["lits-003"]
    zip_folder(tmp_path / "in" / "imagesTr")
    assert [case.case_id for case in discover([tmp_path / "in"], CATALOG).cases] == ["lits-003"]


def test_the_decathlons_repair_needs_an_identity_header_too(tmp_path: Path) -> None:
    volume, label = decathlon_pair(tmp_path, 28)
    assert read_one(tmp_path).repairs == ()
    for path, values in ((volume, scan().image.hu), (label, scan().label_map.labels)):
        path.write_bytes(nifti_bytes(values, IDENTITY))
    assert codes(read_one(tmp_path, counting(28, 4))) == ["REPAIRED"]


def test_halves_and_unknown_numbers_of_the_decathlon(tmp_path: Path) -> None:
    decathlon_pair(tmp_path, 3)[1].unlink()
    decathlon_pair(tmp_path, 4)[0].unlink()
    decathlon_pair(tmp_path, 131)
    found = discover([tmp_path], CATALOG)
    assert rejections(found) == [
        ("lits-003", "MASK_MISSING"),
        ("lits-004", "SOURCE_MISSING"),
        ("lits-131", "CASE_UNKNOWN"),
    ]
    assert "there is no labelsTr/liver_3" in found.rejected[0].detail
    assert "there is no imagesTr/liver_4" in found.rejected[1].detail


def test_the_decathlons_test_set_is_named_and_left_out(tmp_path: Path) -> None:
    volume, _ = decathlon_pair(tmp_path, 3)
    (tmp_path / "imagesTs").mkdir()
    for number in (141, 142):
        (tmp_path / "imagesTs" / f"liver_{number}.nii").write_bytes(volume.read_bytes())
    found = discover([tmp_path], CATALOG)
    assert [case.case_id for case in found.cases] == ["lits-003"]
    assert found.rejected == ()
    ((name, detail),) = [(entry.case_id, entry.detail) for entry in found.ignored]
    assert (name, detail[:41]) == ("imagesTs", "2 unlabelled volumes are left out: which ")
    alone = discover([tmp_path / "imagesTs"], CATALOG, "any")
    assert [case.case_id for case in alone.cases] == ["liver_141", "liver_142"]


def test_both_forms_of_a_number_are_one_case_too_many(tmp_path: Path) -> None:
    decathlon_pair(tmp_path / "msd", 3)
    lits_pair(tmp_path / "lits", 3)
    found = discover([tmp_path], CATALOG)
    assert [entry.code for entry in found.rejected] == ["CASE_DUPLICATE"]
    assert "volume-3.nii and again at" in found.rejected[0].detail


def test_links_to_the_same_files_are_no_second_case(tmp_path: Path) -> None:
    volume, label = decathlon_pair(tmp_path, 3)
    (tmp_path / "volume-3.nii").symlink_to(volume)
    (tmp_path / "segmentation-3.nii").hardlink_to(label)
    found = discover([tmp_path], CATALOG)
    assert ([case.case_id for case in found.cases], found.rejected) == (["lits-003"], ())


# --- geometry ---------------------------------------------------------------------------------------------------


def test_identity_headers_of_28_to_47_are_repaired(tmp_path: Path) -> None:
    volume = scan((4, 6, 5))
    (tmp_path / "volume-28.nii").write_bytes(nifti_bytes(volume.image.hu, IDENTITY))
    (tmp_path / "segmentation-28.nii").write_bytes(nifti_bytes(volume.label_map.labels, IDENTITY))
    source = read_one(tmp_path, counting(28, 4))
    geometry = source.volume.geometry
    assert (geometry.spacing_mm, geometry.orientation) == ((1.6, 0.57, 0.57), "LAS")
    assert codes(source) == ["REPAIRED"]
    assert len(source.repairs) == 1
    np.testing.assert_array_equal(source.header_affine_ras, IDENTITY)
    prepared = prepare(source.volume, Preparation())
    assert prepared.geometry.origin_mm == (0, 0, 0)
    np.testing.assert_array_equal(prepared.image.hu, volume.image.hu[:, ::-1])  # IRCAD[z, rows - 1 - y, x]


def test_a_repair_of_other_slices_is_said(tmp_path: Path) -> None:
    """A part of the scan has the patient's spacing; a resampled copy has not."""
    for kind, values in (("volume", scan().image.hu), ("segmentation", scan().label_map.labels)):
        (tmp_path / f"{kind}-28.nii").write_bytes(nifti_bytes(values, IDENTITY))
    source = read_one(tmp_path)
    assert sorted(codes(source)) == ["CATALOG_MISMATCH", "REPAIRED"]
    (note,) = [note for note in source.notes if note.code == "CATALOG_MISMATCH"]
    assert note.detail.startswith("lits-028: 4 slices, the catalogue says 129; the patient's spacing is used, which is")


@pytest.mark.parametrize("number", range(28, 48))
def test_a_true_header_of_28_to_47_is_left_alone_whatever_its_slices(tmp_path: Path, number: int) -> None:
    lits_pair(tmp_path, number)
    source = read_one(tmp_path, counting(number, 4))
    assert (codes(source), source.repairs) == ([], ())
    assert codes(read_one(tmp_path)) == ["CATALOG_MISMATCH"]


def swapped(letters: str, header: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LPS array of 9 slices of 6 x 6, the file's array with y and z exchanged, and its affine."""
    lps = scan((9, 6, 6)).image.hu
    turn, grid = stored_in(Geometry((9, 6, 6), (3.0, 0.7, 0.7), (5.0, 6.0, 7.0)), letters)
    affine = grid.affine_ras.copy()
    if header == "travels":  # the voxel distances went with their axes, the directions did not
        affine[:3, :3] = affine[:3, :3] / np.array([0.7, 0.7, 3.0]) * np.array([0.7, 3.0, 0.7])
    elif header == "true":
        affine[:3, [1, 2]] = affine[:3, [2, 1]]
    return lps, np.ascontiguousarray(turn.apply(lps).transpose(1, 0, 2)), affine


@pytest.mark.parametrize("letters", ["LPS", "LAS", "RAS"])
@pytest.mark.parametrize(("header", "repaired"), [("kept", True), ("travels", True), ("true", False)])
def test_exchanged_axes_of_test_volume_59(tmp_path: Path, letters: str, header: str, repaired: bool) -> None:
    lps, values, affine = swapped(letters, header)
    (tmp_path / "test-volume-59.nii").write_bytes(nifti_bytes(values, affine))
    source = read_one(tmp_path)
    assert codes(source) == (["REPAIRED"] if repaired else [])
    prepared = prepare(source.volume, Preparation())
    assert prepared.geometry.spacing_mm == (3.0, 0.7, 0.7)
    np.testing.assert_array_equal(prepared.image.hu, lps)
    # what is predicted returns to the file's own order
    back = restore(prepared.image.hu.astype(np.float32)[None], prepared.geometry, source.volume.geometry)
    np.testing.assert_array_equal(back[0], values)


def test_a_corrected_test_volume_59_and_other_numbers_are_left_alone(tmp_path: Path) -> None:
    lps, values, affine = swapped("LPS", "kept")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "test-volume-59.nii").write_bytes(nifti_bytes(lps, np.diag([-0.7, -0.7, 3.0, 1.0])))
    source = read_one(tmp_path / "a")
    assert (codes(source), source.repairs) == ([], ())
    np.testing.assert_array_equal(prepare(source.volume, Preparation()).image.hu, lps)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "test-volume-58.nii").write_bytes(nifti_bytes(values, affine))
    assert read_one(tmp_path / "b").repairs == ()


@pytest.mark.parametrize(("shape", "spacing"), [((7, 9, 6), (0.7, 3.0, 0.7)), ((6, 9, 6), (1.0, 3.0, 0.7))])
def test_exchanged_axes_that_do_not_show_are_said(tmp_path: Path, shape: tuple, spacing: tuple) -> None:
    affine = np.diag([*spacing[::-1], 1.0])
    (tmp_path / "test-volume-59.nii").write_bytes(nifti_bytes(scan(shape).image.hu, affine))
    source = read_one(tmp_path)
    assert (codes(source), source.repairs) == (["CATALOG_MISMATCH"], ())
    assert source.volume.geometry.spacing_mm == spacing


def test_a_sane_header_of_28_is_left_alone(tmp_path: Path) -> None:
    lits_pair(tmp_path, 28)
    source = read_one(tmp_path)
    assert (source.repairs, source.volume.geometry.spacing_mm) == ((), (2.0, 0.8, 0.7))


def test_an_identity_header_of_another_number_is_left_alone(tmp_path: Path) -> None:
    for name in ("volume-5.nii", "segmentation-5.nii"):
        values = scan().image.hu if name.startswith("volume") else scan().label_map.labels
        (tmp_path / name).write_bytes(nifti_bytes(values, IDENTITY))
    assert read_one(tmp_path).repairs == ()
    (tmp_path / "volume-5.nii").rename(tmp_path / "test-volume-28.nii")
    (tmp_path / "segmentation-5.nii").unlink()
    assert read_one(tmp_path).repairs == ()


@pytest.mark.parametrize("number", [48, 49, 50, 51, 52])
def test_labels_of_another_affine_are_paired_by_index_and_noted(tmp_path: Path, number: int) -> None:
    _, label = lits_pair(tmp_path, number)
    labels = scan().label_map.labels
    label.write_bytes(nifti_bytes(labels, np.diag([-1.0, -1.0, 1.0, 1.0])))
    source = read_one(tmp_path)
    assert codes(source) == ["LABEL_AFFINE"]
    np.testing.assert_array_equal(source.volume.label_map.labels, labels)
    assert source.volume.geometry.spacing_mm == (2.0, 0.8, 0.7)


@pytest.mark.parametrize("number", [48, 49, 50, 51, 52])
def test_labels_of_another_affine_and_shape_are_refused(tmp_path: Path, number: int) -> None:
    _, label = lits_pair(tmp_path, number)
    label.write_bytes(nifti_bytes(np.zeros((4, 5, 6), np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0])))
    refused(tmp_path, "MASK_SHAPE", rf"lits-0{number}: labels of \(4, 5, 6\) voxels")


def test_digest_and_size_are_those_of_the_files(tmp_path: Path) -> None:
    paths = lits_pair(tmp_path, 3)
    (case,) = discover([tmp_path], CATALOG).cases
    source = read_case(case, CATALOG)
    assert source.digest == source_digest(case)
    assert source.bytes_in == sum(path.stat().st_size for path in paths)


# --- rejected when read -----------------------------------------------------------------------------------------


def refused(root: Path, code: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read_one(root)
    assert caught.value.code == code


def test_a_label_of_another_shape(tmp_path: Path) -> None:
    lits_pair(tmp_path, 3)[1].write_bytes(nifti_bytes(np.zeros((4, 6, 6), np.uint8)))
    refused(tmp_path, "MASK_SHAPE", r"lits-003: labels of \(4, 6, 6\) voxels \(zyx\), the scan has \(4, 6, 5\)")


def test_label_value_3(tmp_path: Path) -> None:
    labels = scan().label_map.labels.copy()
    labels[0, 0, 0] = 3
    lits_pair(tmp_path, 3)[1].write_bytes(nifti_bytes(labels))
    refused(tmp_path, "LABEL_UNKNOWN", r"segmentation-3.nii: label values \[3\] besides the expected \[0, 1, 2\]")


def test_a_truncated_volume(tmp_path: Path) -> None:
    volume, _ = lits_pair(tmp_path, 3)
    volume.write_bytes(volume.read_bytes()[:-1])
    refused(tmp_path, "NIFTI_SHORT", "volume-3.nii: holds")


def test_a_truncated_gzip(tmp_path: Path) -> None:
    _, label = lits_pair(tmp_path, 3, suffix=".nii.gz")
    label.write_bytes(label.read_bytes()[:-5])
    refused(tmp_path, "GZIP_CORRUPT", "segmentation-3.nii.gz: the gzip stream ends early")


def test_values_that_are_no_hu(tmp_path: Path) -> None:
    volume, _ = lits_pair(tmp_path, 3)
    volume.write_bytes(nifti_bytes(np.full((4, 6, 5), 40_000, np.int32)))
    refused(tmp_path, "HU_RANGE", "volume-3.nii: values 40000 to 40000")
