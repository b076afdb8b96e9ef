"""Verification, overlaps and the anatomy check on real patients."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from livprep.anatomy import doubts
from livprep.audit import AuditRequest, plan_audit, run_audit
from livprep.catalog import load_catalog
from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.division import SplitRequest, divide, store_overlaps
from livprep.errors import UsageError
from livprep.geometry import Geometry
from livprep.prepare import Preparation, prepare
from livprep.sources import discover, read_case
from livprep.store import open_store
from livprep.volume import LabelledVolume, LabelMap, Volume

DATA = Path(os.environ.get("LIVPREP_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SOURCES = tuple(DATA / name for name in ("ircadb", "lits"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not all(path.is_dir() for path in SOURCES), reason="LIVPREP_REAL_DATA holds no ircadb and lits"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real patients, ingested."""
    path = tmp_path_factory.mktemp("real") / "liver.zarr"
    receipts = list(run_ingest(plan_ingest(IngestRequest(SOURCES, path, workers=1))))
    assert {receipt.status for receipt in receipts} == {"published"}
    return path


def test_the_store_is_whole_and_equals_its_sources(store: Path) -> None:
    audit = plan_audit(AuditRequest(store, SOURCES, deep=True, workers=1))
    assert [finding for verdict in run_audit(audit) for finding in verdict.findings] == []


def test_exactly_the_known_pair_is_found(store: Path) -> None:
    pairs = store_overlaps(open_store(store))
    assert [(pair.a, pair.b) for pair in pairs] == [("ircadb-01", "lits-028")]
    assert "equal HU histograms" in pairs[0].evidence
    assert "one patient, ircadb-01" in pairs[0].evidence


def test_the_pair_stays_together(store: Path) -> None:
    for seed in range(4):
        (split,) = divide(SplitRequest(store, val=0.5, seed=seed))
        assert {"ircadb-01", "lits-028"} in (set(split.train), set(split.val))
    with pytest.raises(UsageError, match="nothing is left for training"):
        divide(SplitRequest(store, test="ircadb"))


def test_no_real_patient_is_doubted_and_every_mirror_image_is(store: Path) -> None:
    names = ("ANATOMY_HEAD_FEET", "ANATOMY_FRONT_BACK", "ANATOMY_LEFT_RIGHT")
    for case in open_store(store).values():
        hu, labels = case.read_hu(), case.read_labels()
        for flips in itertools.product([False, True], repeat=3):
            part = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
            grid = Geometry(case.shape_zyx, case.geometry.spacing_mm)
            volume = LabelledVolume(Volume(hu[part], grid), LabelMap(labels[part], grid))
            found = {doubt.code for doubt in doubts(volume)}
            assert found == {name for name, flip in zip(names, flips, strict=True) if flip}, (case.case_id, flips)


def test_the_identity_header_of_lits_28_is_doubted_where_it_is_not_repaired() -> None:
    catalog = load_catalog()
    (case,) = discover(SOURCES[1:], catalog).cases
    read = read_case(case, catalog)
    image, labels = read.volume.image, read.volume.label_map
    stated = Geometry.from_affine_ras(read.header_affine_ras, image.geometry.shape_zyx)
    assert np.array_equal(read.header_affine_ras, np.eye(4))
    unrepaired = LabelledVolume(Volume(image.hu, stated), LabelMap(labels.labels, stated))
    assert {doubt.code for doubt in doubts(prepare(unrepaired, Preparation()))} == {"ANATOMY_LEFT_RIGHT"}
    assert doubts(prepare(read.volume, Preparation())) == ()


def test_real_values_are_not_suspected(store: Path) -> None:
    for case in open_store(store).values():
        assert not [line for line in case.meta.warnings if line.startswith("HU_")]
        found = case.meta.hu_sanity
        assert found is not None
        assert -1023 <= found.air_hu <= -1000
        assert (found.limit_share, found.high_share, found.step_hu) == (0, 0, 1)
        assert [entry.hu for entry in found.padding] == [case.hu_min]
        number = {"ircadb-07": 7}.get(case.case_id, 1)
        listed = load_catalog().ircadb.case(number)
        assert abs(found.liver_hu - listed.liver_hu.mode) <= 5
        assert found.liver_voxels == listed.liver_voxels


@pytest.mark.skipif(not (DATA / "other").is_dir(), reason="LIVPREP_REAL_DATA holds no other")
def test_other_scans_are_suspected_exactly_where_they_are_no_scans() -> None:
    catalog = load_catalog()
    for case in discover([DATA / "other"], catalog, "any").cases:
        codes = {note.code for note in read_case(case, catalog).notes if note.code.startswith("HU_")}
        assert codes == ({"HU_NO_AIR"} if "seg" in case.case_id else set()), case.case_id


@pytest.mark.skipif(not (DATA / "other").is_dir(), reason="LIVPREP_REAL_DATA holds no other")
def test_other_scans_raise_no_false_alarm() -> None:
    catalog = load_catalog()
    cases = discover([DATA / "other"], catalog, "any").cases
    assert len(cases) >= 3
    for case in cases:
        found = doubts(prepare(read_case(case, catalog).volume, Preparation()))
        assert found == (), case.case_id
