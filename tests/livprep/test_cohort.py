"""Whole-cohort runs: plan, ingest, windows; what is refused before anything is written."""

from __future__ import annotations

import json
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
    tree_hash,
    write_series,
)

from livprep import cohort, convert, plan
from livprep.cases import Receipt
from livprep.cohort import (
    IngestRequest,
    plan_ingest,
    plan_windows,
    remove_windows,
    run_ingest,
    run_windows,
)
from livprep.errors import LivError, SourceError, StoreError, UsageError
from livprep.pipeline import Crew
from livprep.prepare import Preparation
from livprep.splits import make_split
from livprep.store import is_store, open_store, staging_entries
from livprep.windows import Window


def ingest(*sources: Path, store: Path, **options: object) -> dict[str, Receipt]:
    options.setdefault("workers", 1)
    receipts = list(run_ingest(plan_ingest(IngestRequest(sources, store, **options))))
    return {receipt.case: receipt for receipt in receipts}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Four good cases and one without its masks."""
    root = tmp_path / "in"
    ircadb_case(root, 2)
    ircadb_case(root, 5, {"liver": mask_array(1)})
    shutil.rmtree(ircadb_case(root, 4) / "MASKS_DICOM")
    lits_pair(root, 3)
    lits_pair(root, 28, seed=4)
    return root


def test_both_data_sets_are_found_and_bad_cases_stop_nothing(sources: Path, tmp_path: Path) -> None:
    receipts = ingest(sources, store=tmp_path / "s")
    assert {name: (receipt.status, receipt.code) for name, receipt in receipts.items()} == {
        "ircadb-02": ("published", ""),
        "ircadb-04": ("rejected", "MASK_MISSING"),
        "ircadb-05": ("published", ""),
        "lits-003": ("published", ""),
        "lits-028": ("published", ""),
    }
    store = open_store(tmp_path / "s")
    assert list(store) == ["ircadb-02", "ircadb-05", "lits-003", "lits-028"]
    assert staging_entries(tmp_path / "s") == []
    assert {receipt.status for receipt in ingest(sources, store=tmp_path / "s").values()} == {"unchanged", "rejected"}


@pytest.mark.parametrize(
    ("dataset", "names"), [("ircadb", {"ircadb-02", "ircadb-04", "ircadb-05"}), ("lits", {"lits-003", "lits-028"})]
)
def test_one_data_set_can_be_chosen(sources: Path, tmp_path: Path, dataset: str, names: set[str]) -> None:
    assert set(ingest(sources, store=tmp_path / "s", dataset=dataset)) == names


def test_cases_are_chosen_by_pattern(sources: Path, tmp_path: Path) -> None:
    assert set(ingest(sources, store=tmp_path / "s", pattern="ircadb-0[25]")) == {"ircadb-02", "ircadb-05"}
    with pytest.raises(SourceError, match=r"--cases x\*: no case found fits") as caught:
        plan_ingest(IngestRequest((sources,), tmp_path / "s", pattern="x*"))
    assert caught.value.code == "NOTHING_FOUND"


def test_parts_share_the_cases_out(sources: Path, tmp_path: Path) -> None:
    parts = [set(ingest(sources, store=tmp_path / "s", part=(k, 3))) for k in (1, 2, 3)]
    assert parts == [{"ircadb-02", "ircadb-04", "lits-028"}, {"ircadb-05"}, {"lits-003"}]
    assert len(open_store(tmp_path / "s")) == 4
    with pytest.raises(UsageError, match="expected I/N with 1 <= I <= N"):
        plan_ingest(IngestRequest((sources,), tmp_path / "s", part=(4, 3)))


def test_nothing_found_creates_no_store(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_series(tmp_path / "in" / "somebody", [plain_slice(k) for k in range(3)])
    with pytest.raises(SourceError, match="found no 3DIRCADb or LiTS case") as caught:
        plan_ingest(IngestRequest((tmp_path / "in",), tmp_path / "s"))
    assert caught.value.code == "NOTHING_FOUND"
    assert not (tmp_path / "s").exists()


def test_planning_writes_nothing(sources: Path, tmp_path: Path) -> None:
    planned = plan_ingest(IngestRequest((sources,), tmp_path / "s"))
    assert planned.total == 5
    assert planned.workers >= 1
    assert {need.case_id for need in planned.plan.needs} == {"ircadb-02", "ircadb-05", "lits-003", "lits-028"}
    assert not (tmp_path / "s").exists()


def test_a_catalogue_beside_the_cases_is_used(phantom_ircadb: Path, tmp_path: Path) -> None:
    planned = plan_ingest(IngestRequest((phantom_ircadb,), tmp_path / "s"))
    assert planned.catalog_path == phantom_ircadb / "catalog.yaml"
    list(run_ingest(planned))
    assert open_store(tmp_path / "s").meta.catalog_digest == planned.catalog.digest
    warnings = [warning for case in open_store(tmp_path / "s").values() for warning in case.meta.warnings]
    assert not any("CATALOG_MISMATCH" in warning for warning in warnings)


def test_the_journal_tells_each_run(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    (path,) = (tmp_path / "s" / "journal").iterdir()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", *["receipt"] * 5, "end"]
    assert {event["case"] for event in events if event["event"] == "receipt"} == {
        "ircadb-02", "ircadb-04", "ircadb-05", "lits-003", "lits-028",
    }  # fmt: skip


def test_two_workers_give_the_same_bytes_as_one(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "one", workers=1)
    receipts = ingest(sources, store=tmp_path / "two", workers=2)
    assert sum(receipt.status == "published" for receipt in receipts.values()) == 4
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")


# --- preparation and disk ---------------------------------------------------------------------------------------


def test_another_preparation_is_refused_and_nothing_is_touched(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    before = tree_hash(tmp_path / "s")
    for options in ({"preparation": Preparation((3.0, 3.0, 3.0))}, {"profile": "small"}):
        with pytest.raises(StoreError) as caught:
            ingest(sources, store=tmp_path / "s", **options)
        assert (caught.value.code, caught.value.exit_code) == ("STORE_PREPARATION", 2)
    assert tree_hash(tmp_path / "s") == before


def test_replacing_all_cases_changes_the_preparation(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    store = open_store(tmp_path / "s")
    store.write_split(make_split({name: case.patient for name, case in store.items()}))
    wanted = Preparation((4.0, 1.0, 1.0))
    receipts = ingest(sources, store=tmp_path / "s", preparation=wanted, replace=True)
    assert sum(receipt.status == "published" for receipt in receipts.values()) == 4
    again = open_store(tmp_path / "s")
    assert again.preparation == wanted
    assert {case.geometry.spacing_mm for case in again.values()} == {(4.0, 1.0, 1.0)}
    assert again.split_names() == ["default"]
    assert {receipt.status for receipt in ingest(sources, store=tmp_path / "s", preparation=wanted).values()} == {
        "unchanged",
        "rejected",
    }


def test_another_preparation_keeps_the_channels(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    store = open_store(tmp_path / "s")
    list(run_windows(store, plan_windows(store, [Window(60, 140), Window(40, 220)]), workers=1))
    list(run_windows(store, plan_windows(store, [Window(0, 400)], "lits-003"), workers=1))
    wanted = Preparation((4.0, 1.0, 1.0))
    for _ in range(2):  # again changes nothing
        ingest(sources, store=tmp_path / "s", preparation=wanted, replace=True)
        again = open_store(tmp_path / "s")
        names = ["wl60_ww140", "wl40_ww220"]
        assert {name: case.window_names for name, case in again.items()} == {
            "ircadb-02": names, "ircadb-05": names, "lits-003": [*names, "wl0_ww400"], "lits-028": names,
        }  # fmt: skip
        for case in again.values():
            np.testing.assert_array_equal(case.read_window("wl40_ww220"), Window(40, 220).apply(case.read_hu()))
    list(run_windows(again, jobs := plan_windows(again, [Window(60, 140), Window(40, 220)]), workers=1))
    assert len(jobs) == 8


def test_a_store_of_two_preparations_cannot_be_made(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    before = tree_hash(tmp_path / "s")
    with pytest.raises(StoreError, match=r"--replace would leave \['lits-003', 'lits-028'\] prepared otherwise"):
        ingest(sources, store=tmp_path / "s", dataset="ircadb", preparation=Preparation((4.0, 1.0, 1.0)), replace=True)
    assert tree_hash(tmp_path / "s") == before


def test_replacing_rebuilds_the_same_bytes(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    before = tree_hash(tmp_path / "s")
    receipts = ingest(sources, store=tmp_path / "s", replace=True)
    assert sum(receipt.status == "published" for receipt in receipts.values()) == 4
    assert tree_hash(tmp_path / "s") == before
    assert staging_entries(tmp_path / "s") == []


def test_a_disk_that_is_too_small_is_refused_beforehand(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 500})()
    monkeypatch.setattr(cohort.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LivError, match=r"needs about \d+ bytes, with a reserve \d+, 500 are free") as caught:
        ingest(sources, store=tmp_path / "s")
    assert (caught.value.code, caught.value.exit_code) == ("DISK_FULL", 74)
    assert list(open_store(tmp_path / "s")) == []
    monkeypatch.undo()
    ingest(sources, store=tmp_path / "s")
    monkeypatch.setattr(cohort.shutil, "disk_usage", lambda path: usage)
    ingest(sources, store=tmp_path / "s")  # nothing is left to write
    with pytest.raises(LivError, match="500 are free"):
        ingest(sources, store=tmp_path / "s", replace=True)
    assert len(open_store(tmp_path / "s")) == 4


def test_a_case_too_large_for_the_memory_is_rejected_alone_before_any_work(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Preparation((0.1, 0.1, 0.1))
    (sources / "volume-3.nii").write_bytes(nifti_bytes(scan((4, 60, 50)).image.hu))
    (sources / "segmentation-3.nii").write_bytes(nifti_bytes(scan((4, 60, 50)).label_map.labels))
    monkeypatch.setattr(cohort, "total_memory_bytes", lambda: 700 << 20)
    planned = plan_ingest(IngestRequest((sources,), tmp_path / "s", preparation=wanted))
    assert "lits-003" not in {need.case_id for need in planned.plan.needs}
    assert planned.total == 5
    receipts = ingest(sources, store=tmp_path / "s", preparation=wanted)
    assert {name: (receipt.status, receipt.code) for name, receipt in receipts.items()} == {
        "ircadb-02": ("published", ""),
        "ircadb-04": ("rejected", "MASK_MISSING"),
        "ircadb-05": ("published", ""),
        "lits-003": ("rejected", "CASE_TOO_LARGE"),
        "lits-028": ("published", ""),
    }
    assert receipts["lits-003"].detail == (
        "lits-003: needs about 0.8 GB of memory as 80 x 480 x 350 voxels (zyx) at 0.1 x 0.1 x 0.1 mm, this machine or "
        "its container gives 0.7 GB; choose a coarser --spacing or a larger machine"
    )


def test_a_case_that_no_header_announced_is_refused_by_its_worker(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "stated_extent", lambda refs: None)
    monkeypatch.setattr(convert, "total_memory_bytes", lambda: 502 << 20)
    receipts = ingest(sources, store=tmp_path / "s", preparation=Preparation((0.1, 0.1, 0.1)), dataset="lits")
    assert {(receipt.status, receipt.code) for receipt in receipts.values()} == {("rejected", "CASE_TOO_LARGE")}


@pytest.mark.parametrize("options", [{}, {"preparation": Preparation((0.1, 0.1, 0.1))}])
def test_space_is_needed_with_a_reserve_at_the_planned_spacing(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    planned = plan_ingest(IngestRequest((sources,), tmp_path / "s", workers=1, **options))
    assert planned.plan.disk_bytes > (1_000_000 if options else 240_000)
    usage = type("Usage", (), {"free": int(1.19 * planned.plan.disk_bytes)})
    monkeypatch.setattr(cohort.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LivError, match=r"needs about \d+ bytes, with a reserve \d+, \d+ are free") as caught:
        list(run_ingest(planned))
    assert caught.value.code == "DISK_FULL"
    usage.free = int(1.21 * planned.plan.disk_bytes)
    assert [receipt.status for receipt in run_ingest(planned)].count("published") == 4
    store, usage.free = open_store(tmp_path / "s"), 1000
    jobs = plan_windows(store, [Window(40, 220)])
    with pytest.raises(LivError, match="are free"):  # the channels have to fit too
        list(run_windows(store, jobs, workers=1))
    usage.free = 1 << 40
    list(run_windows(store, jobs, workers=1))
    usage.free = int(1.21 * planned.plan.disk_bytes)
    again = plan_ingest(IngestRequest((sources,), tmp_path / "s", workers=1, replace=True, **options))
    with pytest.raises(LivError, match="are free"):  # replaced with their channels
        list(run_ingest(again))


def test_a_changed_source_is_rejected_alone(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    path = sources / "3Dircadb1.2" / "PATIENT_DICOM" / "image_1"
    path.write_bytes(edited(plain_slice(1), SliceThickness="2.5"))
    receipts = ingest(sources, store=tmp_path / "s")
    assert (receipts["ircadb-02"].status, receipts["ircadb-02"].code) == ("rejected", "SOURCE_CHANGED")
    assert receipts["ircadb-05"].status == "unchanged"


def test_stopping_early_leaves_what_is_done(sources: Path, tmp_path: Path) -> None:
    receipts = run_ingest(plan_ingest(IngestRequest((sources,), tmp_path / "s", workers=1)))
    assert next(receipts).status == "rejected"
    assert next(receipts).status == "published"
    receipts.close()
    assert len(open_store(tmp_path / "s")) == 1
    assert staging_entries(tmp_path / "s") == []


# --- windows ----------------------------------------------------------------------------------------------------


def test_windows_are_added_to_every_case_in_one_order(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    store = open_store(tmp_path / "s")
    jobs = plan_windows(store, [Window(60, 140), Window(40, 220)])
    assert {receipt.status for receipt in run_windows(store, jobs, workers=1)} == {"published"}
    for case in store.values():
        assert case.window_names == ["wl60_ww140", "wl40_ww220"]
        np.testing.assert_array_equal(case.read_window("wl40_ww220"), Window(40, 220).evaluate(case.read_hu()))


def test_late_cases_get_the_channel_numbers_of_the_others(sources: Path, tmp_path: Path) -> None:
    windows = [Window(60, 140), Window(40, 220), Window(0, 400)]
    ingest(sources, store=tmp_path / "s", pattern="ircadb-02")
    store = open_store(tmp_path / "s")
    for window in windows:
        list(run_windows(store, plan_windows(store, [window]), workers=1))
    ingest(sources, store=tmp_path / "s")
    list(run_windows(store, plan_windows(store, windows[::-1]), workers=1))
    assert {tuple(case.window_names) for case in store.values()} == {tuple(window.name for window in windows)}


def test_windows_of_some_cases(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    store = open_store(tmp_path / "s")
    list(run_windows(store, plan_windows(store, [Window(40, 220)], "ircadb-*"), workers=1))
    assert {name: len(case.windows) for name, case in store.items()} == {
        "ircadb-02": 1, "ircadb-05": 1, "lits-003": 0, "lits-028": 0,
    }  # fmt: skip
    receipts = list(remove_windows(store, "wl40_ww220"))
    assert [(receipt.case, receipt.status) for receipt in receipts] == [
        ("ircadb-02", "published"), ("ircadb-05", "published"), ("lits-003", "unchanged"), ("lits-028", "unchanged"),
    ]  # fmt: skip
    assert all(case.window_names == [] for case in store.values())
    assert list(remove_windows(store, "x", "none*")) == []


def test_a_taken_name_is_refused_before_any_work(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s")
    store = open_store(tmp_path / "s")
    list(run_windows(store, plan_windows(store, [Window(40, 220, "liver")], "lits-028"), workers=1))
    with pytest.raises(UsageError, match="window liver is stored with WL 40 WW 220 HU") as caught:
        plan_windows(store, [Window(0, 1), Window(60, 140, "liver")], "ircadb-*")
    assert caught.value.code == "STORE_WINDOW_EXISTS"


def test_an_empty_store_has_nothing_to_window(sources: Path, tmp_path: Path) -> None:
    ingest(sources, store=tmp_path / "s", pattern="ircadb-04")  # the one that is rejected
    with pytest.raises(StoreError, match=r"holds no case that fits '\*'") as caught:
        plan_windows(open_store(tmp_path / "s"), [Window(40, 220)])
    assert caught.value.code == "STORE_EMPTY"
    assert is_store(tmp_path / "s")


def test_no_more_workers_than_fit_are_started(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def spy(jobs: object, *, crew: Crew, mark: str) -> list[Receipt]:
        counts.append(crew.workers)
        return []

    monkeypatch.setattr(cohort, "run_jobs", spy)
    store = open_store(small_store)
    jobs = plan_windows(store, [Window(40, 220)])
    for free, cores in ((10 << 30, 4), (1 << 30, 4), (0, 4)):
        monkeypatch.setattr(cohort, "free_memory_bytes", lambda free=free: free)
        monkeypatch.setattr(cohort, "cores", lambda cores=cores: cores)
        list(run_windows(store, jobs))
    assert counts == [4, 1, 1]
