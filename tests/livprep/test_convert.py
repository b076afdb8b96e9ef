"""One task is one case: receipts, unchanged and changed sources, byte-identical rebuilds."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import ircadb_case, lits_pair, mask_array, nifti_bytes, scan, tree_hash, zip_folder

from livprep import convert
from livprep.catalog import Catalog, load_catalog
from livprep.convert import IngestJob, WindowJob, ingest_case, is_disk_full
from livprep.errors import GeometryError, SourceError, StoreError
from livprep.prepare import Preparation, prepare
from livprep.sources import discover, read_case
from livprep.store import create_store, open_store, staging_entries
from livprep.windows import Window

CATALOG = load_catalog()


def job(root: Path, store: Path, preparation: Preparation | None = None, catalog: Catalog = CATALOG) -> IngestJob:
    (case,) = discover([root], catalog).cases
    preparation = preparation or Preparation()
    create_store(store, preparation, "balanced", "digest")
    return IngestJob(case, str(store), catalog, preparation, "balanced")


@pytest.fixture
def ircadb(tmp_path: Path) -> IngestJob:
    ircadb_case(tmp_path / "in")
    return job(tmp_path / "in", tmp_path / "store")


def test_a_case_is_read_prepared_and_published(ircadb: IngestJob) -> None:
    receipt = ircadb.run()
    assert (receipt.case, receipt.status, receipt.code, receipt.detail) == ("ircadb-02", "published", "", "")
    assert receipt.bytes_in > 0
    assert receipt.bytes_out > 0
    case = open_store(ircadb.store)["ircadb-02"]
    prepared = prepare(read_case(ircadb.case, CATALOG).volume, Preparation())
    np.testing.assert_array_equal(case.read_hu(), prepared.image.hu)
    np.testing.assert_array_equal(case.read_labels(), prepared.label_map.labels)
    meta = case.meta
    assert (meta.source.kind, meta.source.files, meta.source.bytes) == ("dicom", 12, receipt.bytes_in)
    assert meta.warnings == list(receipt.warnings)
    assert meta.source_orientation == "LPS"


def test_running_twice_is_running_once(ircadb: IngestJob) -> None:
    ingest_case(ircadb)
    before = tree_hash(Path(ircadb.store))
    receipt = ingest_case(ircadb)
    assert (receipt.status, receipt.code) == ("unchanged", "")
    assert tree_hash(Path(ircadb.store)) == before


def test_zipping_or_moving_the_source_is_no_change(ircadb: IngestJob, tmp_path: Path) -> None:
    ingest_case(ircadb)
    (tmp_path / "in").rename(tmp_path / "moved")
    zip_folder(tmp_path / "moved" / "3Dircadb1.2" / "PATIENT_DICOM")
    assert ingest_case(job(tmp_path / "moved", tmp_path / "store")).status == "unchanged"


def test_other_source_bytes_are_refused_unless_replacing(ircadb: IngestJob, tmp_path: Path) -> None:
    ingest_case(ircadb)
    path = tmp_path / "in" / "3Dircadb1.2" / "PATIENT_DICOM" / "image_0"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    receipt = ingest_case(ircadb)
    assert (receipt.status, receipt.code) == ("rejected", "SOURCE_CHANGED")
    assert "other source bytes or settings" in receipt.detail
    assert ingest_case(replace(ircadb, replace=True)).status == "published"
    assert ingest_case(ircadb).status == "unchanged"


def test_another_decision_about_masks_is_another_setting(tmp_path: Path) -> None:
    ircadb_case(tmp_path / "in", 7, {"liver": mask_array(1), "tumor": mask_array(2)})
    first = job(tmp_path / "in", tmp_path / "store")
    ingest_case(first)
    facts = CATALOG.as_dict()
    facts["ircadb"]["masks"]["disputed_as_tumor"] = ["tumor"]
    other = job(tmp_path / "in", tmp_path / "store", catalog=Catalog.model_validate(facts))
    assert ingest_case(other).code == "SOURCE_CHANGED"


def test_a_comment_in_the_catalogue_is_no_setting(ircadb: IngestJob) -> None:
    ingest_case(ircadb)
    facts = CATALOG.as_dict()
    facts["ircadb"]["title"] = "another title"
    assert ingest_case(replace(ircadb, catalog=Catalog.model_validate(facts))).status == "unchanged"


def test_a_fault_of_the_case_is_a_receipt(ircadb: IngestJob, tmp_path: Path) -> None:
    path = tmp_path / "in" / "3Dircadb1.2" / "PATIENT_DICOM" / "image_0"
    path.write_bytes(path.read_bytes()[:-2])
    receipt = ingest_case(ircadb)
    assert (receipt.status, receipt.code) == ("rejected", "PIXELDATA_SHORT")
    assert list(open_store(ircadb.store)) == []
    assert staging_entries(Path(ircadb.store)) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceError("HU_RANGE", "x"), "HU_RANGE"),
        (GeometryError("no order"), "GEOMETRY"),
        (MemoryError(), "CASE_TOO_LARGE"),
        (ZeroDivisionError(), "INTERNAL"),
    ],
)
def test_whatever_a_case_raises_stops_no_batch(
    ircadb: IngestJob, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(convert, "prepare", fail)
    receipt = ingest_case(ircadb)
    assert (receipt.case, receipt.status, receipt.code) == ("ircadb-02", "rejected", code)
    assert receipt.detail


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), StoreError("STORE_UNREADABLE", "x")])
def test_a_fault_of_disk_or_store_is_raised(
    ircadb: IngestJob, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(convert, "publish_case", fail)
    with pytest.raises(type(error)):
        ingest_case(ircadb)


def test_another_run_that_is_first_is_no_fault(ircadb: IngestJob, monkeypatch: pytest.MonkeyPatch) -> None:
    read = convert.read_case

    def slow(*arguments: object) -> object:
        source = read(*arguments)
        monkeypatch.setattr(convert, "read_case", read)
        assert ingest_case(ircadb).status == "published"
        return source

    monkeypatch.setattr(convert, "read_case", slow)
    receipt = ingest_case(ircadb)
    assert (receipt.status, receipt.detail) == ("unchanged", "another run published it first")


def test_rebuilds_are_byte_identical_wherever_the_sources_lie(tmp_path: Path) -> None:
    for name in ("a", "another/place"):
        root = tmp_path / name
        ircadb_case(
            root / "in", masks={"liver": mask_array(1), "livertumor": mask_array(2), "liverkyst": mask_array(3)}
        )
        lits_pair(root / "lits", 28)
        for kind in ("volume", "segmentation"):
            values = scan().image.hu if kind == "volume" else scan().label_map.labels
            header = {"sform_code": 0, "qform_code": 0}
            (root / "lits" / f"{kind}-28.nii").write_bytes(nifti_bytes(values, fields=header))
        for source in ("in", "lits"):
            assert ingest_case(job(root / source, root / "store")).status == "published"
            assert WindowJob("ircadb-02", str(root / "store"), Window(40, 220), 0).run().status in (
                "published",
                "unchanged",
            )
    assert tree_hash(tmp_path / "a" / "store") == tree_hash(tmp_path / "another" / "place" / "store")


def test_resampled_cases_know_their_source_grid(tmp_path: Path) -> None:
    lits_pair(tmp_path / "in", 3)
    first = job(tmp_path / "in", tmp_path / "store", Preparation((4.0, 1.0, 1.0)))
    assert ingest_case(first).status == "published"
    case = open_store(tmp_path / "store")["lits-003"]
    assert case.geometry.spacing_mm == (4.0, 1.0, 1.0)
    assert case.source_geometry.spacing_mm == (2.0, 0.8, 0.7)
    assert case.source_geometry.orientation == "RAS"
    assert case.meta.source.kind == "nifti"


def test_windowing_is_a_task_too(ircadb: IngestJob) -> None:
    ingest_case(ircadb)
    task = WindowJob("ircadb-02", ircadb.store, Window(40, 220), 0)
    assert (task.name, ircadb.name) == ("ircadb-02", "ircadb-02")
    receipt = task.run()
    assert (receipt.status, receipt.detail) == ("published", "wl40_ww220")
    assert receipt.bytes_out > 0
    assert task.run().status == "unchanged"


def test_full_disks_and_quotas_are_recognised() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, ""))
    assert is_disk_full(OSError(errno.EDQUOT, ""))
    assert not is_disk_full(OSError(errno.EIO, ""))


def test_replacing_a_case_makes_its_channels_anew(ircadb: IngestJob) -> None:
    ingest_case(ircadb)
    windows = [Window(60.0, 140.0), Window(40.0, 220.0)]
    for order, window in enumerate(windows):
        WindowJob(ircadb.name, ircadb.store, window, order).run()
    assert ingest_case(replace(ircadb, replace=True)).status == "published"
    case = open_store(ircadb.store)[ircadb.name]
    assert list(case.windows) == windows
    assert (case.read_window("wl40_ww220") == windows[1].apply(case.read_hu())).all()


def test_a_case_too_damaged_to_name_its_channels_is_replaced_all_the_same(ircadb: IngestJob) -> None:
    ingest_case(ircadb)
    WindowJob(ircadb.name, ircadb.store, Window(40.0, 220.0), 0).run()
    case = open_store(ircadb.store)[ircadb.name]
    (case.path / "windows" / "wl40_ww220" / "zarr.json").write_text("{")
    assert ingest_case(replace(ircadb, replace=True)).status == "published"
    assert open_store(ircadb.store)[ircadb.name].window_names == []
