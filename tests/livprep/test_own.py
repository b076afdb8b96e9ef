"""A user's own labelled scans: listed in the catalogue, found by path, turned onto the scan's voxels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import lits_pair, nifti_bytes, plain_slice, scan, write_series, zip_folder

from livprep.catalog import Catalog, dump_catalog, fits, load_catalog
from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.convert import IngestJob, settings_digest
from livprep.errors import CatalogError, SourceError
from livprep.prepare import Preparation
from livprep.sources import Discovery, SourceCase, discover, read_case, source_digest
from livprep.store import open_store

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
SHAPE = (4, 6, 5)
RAS_OF_SLICES = np.diag([-0.7, -0.8, 2.0, 1.0])
"""Affine of `plain_slice` series: columns to the left by 0.7 mm, rows to posterior by 0.8 mm, 2 mm slices."""
ENTRY: dict[str, Any] = {
    "case": "site-a-001", "image": "001/ct", "label": "001/seg.nii", "label_map": {1: "liver", 2: "tumor"},
}  # fmt: skip


def catalog_of(tmp_path: Path, *entries: dict[str, Any]) -> Catalog:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"schema": 1, "own": entries}), encoding="utf-8")  # JSON is YAML
    return load_catalog(path)


def own_case(
    root: Path, labels: np.ndarray | None = None, affine_ras: np.ndarray = RAS_OF_SLICES, folder: str = "001"
) -> np.ndarray:
    """001/ct with four slices and 001/seg.nii; returns the labels."""
    write_series(root / folder / "ct", [plain_slice(k) for k in range(4)])
    values = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8) if labels is None else labels
    (root / folder / "seg.nii").write_bytes(nifti_bytes(values, affine_ras))
    return values


def read_own(root: Path, catalog: Catalog) -> SourceCase:
    (case,) = discover([root], catalog).cases
    return read_case(case, catalog)


def faults(found: Discovery) -> list[tuple[str, str]]:
    return [(entry.case_id, entry.code) for entry in found.rejected]


# --- the page's example -----------------------------------------------------------------------------------------


def test_the_example_of_the_page_is_ingested(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    root = tmp_path / "my-scans"
    first = own_case(root)
    (root / "001" / "seg.nii").rename(root / "001" / "liver.nii.gz")  # content decides whether it is packed
    second = scan(SHAPE)
    (root / "002").mkdir()
    (root / "002" / "scan_7.nii.gz").write_bytes(nifti_bytes(second.image.hu))
    values = np.array([0, 5, 6], np.int16)[second.label_map.labels]
    values[0, 0, 0] = 7
    (root / "002" / "labels.nii").write_bytes(nifti_bytes(values))
    request = IngestRequest((root,), tmp_path / "s", catalog=tmp_path / "mine.yaml", workers=1)
    assert {r.case: r.status for r in run_ingest(plan_ingest(request))} == {
        "site-a-001": "published",
        "site-a-002": "published",
    }
    store = open_store(tmp_path / "s")
    assert [(case.dataset, case.patient, case.meta.source.kind) for case in store.values()] == [
        ("own", "site-a-p1", "dicom"),
        ("own", "site-a-p1", "nifti"),
    ]
    np.testing.assert_array_equal(store["site-a-001"].read_labels(), first)
    expected = second.label_map.labels.copy()
    expected[0, 0, 0] = 0
    np.testing.assert_array_equal(store["site-a-002"].read_labels(), expected[:, ::-1, ::-1])  # RAS turned to LPS
    assert {r.status for r in run_ingest(plan_ingest(request))} == {"unchanged"}


# --- discovery --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "file", "folder"),
    [
        ("001/ct", "001/ct", True, True),
        ("001/ct", "001/ct/a.dcm", False, True),
        ("001/ct", "001/ct/deep/a.dcm", False, True),
        ("001/ct/*.dcm", "001/ct/a.dcm", True, True),
        ("*/ct_?.nii", "x/ct_1.nii", True, True),
        ("*/ct_?.nii", "x/y/ct_1.nii", False, False),
        ("ct", "001/ct", False, False),
        ("001/CT", "001/ct", False, False),
    ],
)
def test_patterns(pattern: str, path: str, file: bool, folder: bool) -> None:
    parts = path.split("/")
    assert (fits(pattern, parts), fits(pattern, parts, below=True)) == (file, folder)


def test_zips_count_as_folders(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, ENTRY)
    own_case(tmp_path / "in")
    before = read_own(tmp_path / "in", catalog)
    zip_folder(tmp_path / "in" / "001" / "ct")
    assert read_own(tmp_path / "in", catalog).digest == before.digest
    assert read_own(zip_folder(tmp_path / "in"), catalog).digest == before.digest
    (case,) = discover([tmp_path / "in.zip"], catalog).cases
    assert source_digest(case) == before.digest


def test_own_cases_lie_beside_those_of_the_data_sets(tmp_path: Path) -> None:
    lits_pair(tmp_path / "in" / "lits", 3)
    lits_pair(tmp_path / "in" / "mine", 4)
    entry = ENTRY | {"image": "mine/volume-4.nii", "label": "mine/segmentation-4.nii"}
    catalog = catalog_of(tmp_path, entry)
    found = discover([tmp_path / "in"], catalog)
    assert ([case.case_id for case in found.cases], found.rejected) == (["lits-003", "site-a-001"], ())
    assert [case.case_id for case in discover([tmp_path / "in"], catalog, "own").cases] == ["site-a-001"]
    assert [case.case_id for case in discover([tmp_path / "in"], catalog, "lits").cases] == ["lits-003", "lits-004"]
    # A source without any file of the list does not ask for it.
    assert faults(discover([tmp_path / "in" / "lits"], catalog)) == []


def test_what_is_missing_or_fits_twice_rejects_its_case(tmp_path: Path) -> None:
    root = tmp_path / "in"
    own_case(root)
    for folder in ("two-labels", "two-scans", "two-series"):
        own_case(root, folder=folder)
    (root / "two-labels" / "seg2.nii").write_bytes(b"")
    (root / "two-scans" / "ct" / "a.nii").write_bytes(b"")
    write_series(root / "two-series" / "ct" / "deep", [plain_slice(0)])
    entries = [ENTRY]
    for name, image, label in [
        ("no-image", "nowhere/ct", "001/seg.nii"),
        ("no-label", "001/ct", "001/nothing.nii"),
        ("two-labels", "two-labels/ct", "two-labels/seg*.nii"),
        ("two-scans", "two-scans/ct", "two-scans/seg.nii"),
        ("two-series", "two-series/ct", "two-series/seg.nii"),
    ]:
        entries.append(ENTRY | {"case": name, "image": image, "label": label})
    found = discover([root], catalog_of(tmp_path, *entries))
    assert [case.case_id for case in found.cases] == ["site-a-001"]
    assert faults(found) == [
        ("no-image", "SOURCE_MISSING"),
        ("no-label", "SOURCE_MISSING"),
        ("two-labels", "CASE_DUPLICATE"),
        ("two-scans", "CASE_DUPLICATE"),
        ("two-series", "SERIES_MIXED"),
    ]
    assert "no image at nowhere/ct below the sources" in found.rejected[0].detail
    assert "2 files fit the label two-labels/seg*.nii" in found.rejected[2].detail
    assert "holds files in 2 folders, expected one series" in found.rejected[4].detail


# --- geometry and labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_label_is_turned_onto_the_scan(tmp_path: Path, flips: tuple[int, ...], order: tuple[int, ...]) -> None:
    """The same voxels, written with other axes, become the same labels; `order` and `flips` are of x, y, z."""
    labels = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
    turned, affine = labels.transpose(2, 1, 0), RAS_OF_SLICES.copy()  # x, y, z
    for axis, flip in enumerate(flips):
        if flip < 0:
            affine[:3, 3] += affine[:3, axis] * (turned.shape[axis] - 1)
            affine[:3, axis] *= -1
            turned = np.flip(turned, axis)
    affine[:3, :3] = affine[:3, :3][:, order]
    turned = turned.transpose(order)
    own_case(tmp_path / "in", np.ascontiguousarray(turned.transpose(2, 1, 0)), affine)
    source = read_own(tmp_path / "in", catalog_of(tmp_path, ENTRY))
    np.testing.assert_array_equal(source.volume.label_map.labels, labels)
    assert source.volume.geometry.orientation == "LPS"


@pytest.mark.parametrize(
    ("labels", "affine", "code", "message"),
    [
        (np.zeros((4, 6, 6), np.uint8), RAS_OF_SLICES, "MASK_SHAPE", r"labels of \(4, 6, 6\) voxels"),
        (None, np.diag([-0.7, -0.8, 2.1, 1.0]), "MASK_GEOMETRY", "up to 0.3 mm from the scan's voxels"),
        (None, np.diag([0.7, 0.8, 2.0, 1.0]), "MASK_GEOMETRY", "expected at most 0.1 of 0.7 mm"),
        (np.full(SHAPE, 3, np.uint8), RAS_OF_SLICES, "LABEL_UNKNOWN", r"label values \[3\] besides"),
        (np.full(SHAPE, 1.5, np.float32), RAS_OF_SLICES, "LABEL_UNKNOWN", r"label values \[1.5\] besides"),
    ],
)
def test_labels_that_do_not_fit(
    tmp_path: Path, labels: np.ndarray | None, affine: np.ndarray, code: str, message: str
) -> None:
    own_case(tmp_path / "in", labels, affine)
    with pytest.raises(SourceError, match=message) as caught:
        read_own(tmp_path / "in", catalog_of(tmp_path, ENTRY))
    assert caught.value.code == code


def test_another_meaning_is_another_setting(tmp_path: Path) -> None:
    own_case(tmp_path / "in")
    digests = set()
    for meanings in ({1: "liver", 2: "tumor"}, {1: "liver", 2: "liver"}, {0: "background", 1: "liver", 2: "tumor"}):
        catalog = catalog_of(tmp_path, ENTRY | {"label_map": meanings})
        (case,) = discover([tmp_path / "in"], catalog).cases
        digests.add(settings_digest(IngestJob(case, "s", catalog, Preparation(), "balanced")))
    assert len(digests) == 2  # naming 0 as background changes nothing


# --- the catalogue's section ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case": "lits-003"}, "name of a 3DIRCADb or LiTS case"),
        ({"case": "../x"}, "own.0.case"),
        ({"case": ""}, "own.0.case"),
        ({"patient": "Doe^Jane"}, "own.0.patient"),
        ({"image": "/abs/ct"}, "relative to the source"),
        ({"label": "../seg.nii"}, "relative to the source"),
        ({"label_map": {1: "spleen"}}, "own.0.label_map"),
        ({"label_map": {1: "tumor"}}, "names no liver"),
        ({"label_map": {256: "liver"}}, "own.0.label_map"),
        ({"label_map": {True: "liver"}}, "expected whole numbers"),
        ({"label_map": {1: "liver", "01": "tumor"}}, "expected whole numbers"),
        ({"label_map": ["liver"]}, "own.0.label_map"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_faulty_entries_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        catalog_of(tmp_path, ENTRY | change)


def test_names_are_given_once_without_regard_to_capitals(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="own: site-a-001 stands there twice"):
        catalog_of(tmp_path, ENTRY, ENTRY | {"case": "Site-A-001"})


def test_the_other_sections_are_the_built_in_ones(tmp_path: Path) -> None:
    catalog, built_in = catalog_of(tmp_path, ENTRY), load_catalog()
    assert (catalog.lits, catalog.windows) == (built_in.lits, built_in.windows)
    assert (catalog.patient_of("site-a-001"), catalog.patient_of("lits-028")) == ("site-a-001", "ircadb-01")
    path = tmp_path / "again.yaml"
    path.write_text(dump_catalog(catalog), encoding="utf-8")
    assert load_catalog(path) == catalog
    path.write_text("schema: 1\n", encoding="utf-8")
    with pytest.raises(CatalogError, match="Field required"):
        load_catalog(path)


def test_a_case_that_the_catalogue_does_not_list(tmp_path: Path) -> None:
    own_case(tmp_path / "in")
    (case,) = discover([tmp_path / "in"], catalog_of(tmp_path, ENTRY)).cases
    with pytest.raises(SourceError, match="lists no such case"):
        read_case(case, load_catalog())
