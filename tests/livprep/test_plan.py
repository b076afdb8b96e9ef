"""Estimates before work, and the journal of runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from building import ircadb_case, lits_pair, nifti_bytes, scan, zip_folder

from livprep.catalog import load_catalog
from livprep.journal import Journal
from livprep.plan import (
    METADATA_BYTES,
    RESAMPLED_FACTOR,
    STORED_BYTES,
    WORKER_BASE_BYTES,
    WORKER_FACTOR,
    Need,
    Plan,
    make_plan,
)
from livprep.prepare import Preparation
from livprep.provenance import digest_of, package_version
from livprep.sources import discover


def test_needs_follow_from_the_scans_size_whatever_its_packing(tmp_path: Path) -> None:
    zip_folder(ircadb_case(tmp_path) / "PATIENT_DICOM")
    lits_pair(tmp_path, 3, suffix=".nii.gz")
    plan = make_plan(discover([tmp_path], load_catalog()).cases, Preparation())
    sizes = {need.case_id: need.voxel_bytes for need in plan.needs}
    assert sizes["lits-003"] == 352 + 4 * 6 * 5 * 2
    assert sizes["ircadb-02"] > 4 * 6 * 5 * 2
    assert [need.case_id for need in plan.needs] == ["ircadb-02", "lits-003"]  # the largest first
    assert plan.peak_bytes == WORKER_BASE_BYTES + WORKER_FACTOR * sizes["ircadb-02"]
    assert plan.disk_bytes == sum(need.disk_bytes for need in plan.needs)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_finer_spacing_needs_more_by_the_header(tmp_path: Path, suffix: str, zipped: bool) -> None:
    lits_pair(tmp_path / "lits", 3, suffix=suffix)
    ircadb_case(tmp_path)
    if zipped:
        zip_folder(tmp_path / "lits")
        zip_folder(tmp_path / "3Dircadb1.2" / "PATIENT_DICOM")
    plan = make_plan(discover([tmp_path], load_catalog()).cases, Preparation((0.1, 0.1, 0.1)), catalog=load_catalog())
    for each in plan.needs:  # 4 x 6 x 5 voxels of 2 x 0.8 x 0.7 mm
        assert (each.shape_zyx, each.spacing_mm) == ((80, 48, 35), (0.1, 0.1, 0.1))
        assert each.peak_bytes == WORKER_BASE_BYTES + each.voxel_bytes + RESAMPLED_FACTOR * 2 * 80 * 48 * 35
        assert each.disk_bytes == int(80 * 48 * 35 * STORED_BYTES["balanced"]) + METADATA_BYTES


def test_the_catalogue_knows_the_spacing_of_wrong_headers(tmp_path: Path) -> None:
    (tmp_path / "volume-28.nii").write_bytes(nifti_bytes(scan((5, 70, 66)).image.hu, np.eye(4)))
    (tmp_path / "segmentation-28.nii").write_bytes(nifti_bytes(scan((5, 70, 66)).label_map.labels, np.eye(4)))
    cases = discover([tmp_path], load_catalog()).cases
    (known,) = make_plan(cases, Preparation((0.8, 0.57, 0.57)), catalog=load_catalog()).needs
    assert known.shape_zyx == (10, 70, 66)
    (blind,) = make_plan(cases, Preparation((0.8, 0.57, 0.57))).needs
    assert blind.shape_zyx == (6, 123, 116)


def test_a_header_that_cannot_be_read_leaves_the_estimate_to_the_size(tmp_path: Path) -> None:
    volume, _ = lits_pair(tmp_path, 3)
    volume.write_bytes(b"not an image" * 50)
    case = ircadb_case(tmp_path)
    for path in (case / "PATIENT_DICOM").iterdir():
        path.write_bytes(b"no slice")
    for each in make_plan(discover([tmp_path], load_catalog()).cases, Preparation((0.1, 0.1, 0.1))).needs:
        assert each.shape_zyx is None
        assert each.peak_bytes == WORKER_BASE_BYTES + WORKER_FACTOR * each.voxel_bytes


def test_uncompressed_chunks_are_whole(tmp_path: Path) -> None:
    lits_pair(tmp_path, 3)
    (each,) = make_plan(discover([tmp_path], load_catalog()).cases, Preparation(), "fast").needs
    assert each.disk_bytes == int(64**3 * STORED_BYTES["fast"]) + METADATA_BYTES
    assert each.channel_bytes("fast") > 64**3


def need(name: str, peak: int) -> Need:
    return Need(name, 1, peak, 1)


@pytest.mark.parametrize(
    ("cores", "free", "expected"), [(8, 1000, 3), (2, 1000, 2), (8, 250, 2), (8, 10, 1), (8, 0, 1)]
)
def test_workers_fit_cores_cases_and_memory(cores: int, free: int, expected: int) -> None:
    assert Plan((need("a", 100), need("b", 50), need("c", 100)), Preparation()).workers(cores, free) == expected


def test_an_empty_plan_needs_nothing() -> None:
    plan = Plan((), Preparation())
    assert (plan.peak_bytes, plan.disk_bytes, plan.workers(4, 100)) == (0, 0, 1)


def test_journal_has_one_json_object_a_line(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, "ingest"), Journal(tmp_path, "ingest")
    assert first.path != second.path
    assert first.path.parent == tmp_path / "journal"
    first.add("start", cases=["a"])
    first.add("end", note="line\nbreak \udcff")
    lines = [json.loads(line) for line in first.path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "end"]
    assert lines[1]["note"] == "line\nbreak \udcff"
    assert lines[0]["time"] <= lines[1]["time"]


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2, None]}) == digest_of({"b": [2, None], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"a": float("nan")})


def test_version_is_told_also_when_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from livprep import provenance

    assert package_version()

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "version", missing)
    assert package_version() == "0+unknown"


def test_the_package_offers_its_readers_lazily() -> None:
    import livprep
    from livprep.store import open_store

    assert livprep.open_store is open_store
    assert livprep.__version__ == package_version()
    with pytest.raises(AttributeError, match="nothing"):
        _ = livprep.nothing
