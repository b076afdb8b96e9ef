"""`verify` names what is wrong with a store, and is silent on one that is whole; every code is tripped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from livprep.audit import AuditRequest, plan_audit, run_audit
from livprep.cases import Finding
from livprep.cohort import IngestRequest, plan_ingest, plan_windows, run_ingest, run_windows
from livprep.errors import CODES, SourceError, StoreError
from livprep.labels import Label
from livprep.prepare import Preparation
from livprep.splits import Split, make_split
from livprep.store import layout, open_store, remove_window
from livprep.windows import Window

CASE = "ircadb-01"
SHARD = "hu/scale0/image/c/0/0/0"


def verified(store: Path, *sources: Path, deep: bool = False, **options: object) -> list[Finding]:
    audit = plan_audit(AuditRequest(store, sources, deep=deep, **{"workers": 1, **options}))
    return [finding for verdict in run_audit(audit) for finding in verdict.findings]


def codes(found: list[Finding]) -> set[tuple[str, str, str]]:
    return {(finding.case, finding.code, finding.severity) for finding in found}


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def sealed(folder: Path) -> None:
    """Make a component's manifest, and the case's metadata, fit whatever its files are now."""
    facts = json.loads((folder / layout.MANIFEST).read_text())
    facts.pop("files")
    (folder / layout.MANIFEST).unlink()
    layout.write_manifest(folder, facts)
    case = next(parent for parent in folder.parents if parent.parent.name == "cases")
    layout.consolidate(case)


def set_attributes(group: Path, **changes: object) -> None:
    """Change our attributes of a group, with their digest: as a defect of ours would."""
    node = json.loads((group / "zarr.json").read_text())
    node["attributes"] = layout.own_attributes({**node["attributes"]["livprep"], **changes})
    layout.write_json(group / "zarr.json", node)


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_store_gives_nothing(small_store: Path, deep: bool) -> None:
    assert verified(small_store, deep=deep) == []


def test_nothing_is_written(store_copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store_copy.rglob("*")}
    verified(store_copy, deep=True)
    assert {path: path.stat().st_mtime_ns for path in store_copy.rglob("*")} == before


def test_workers_find_the_same(store_copy: Path) -> None:
    (store_copy / "cases" / CASE / "hu" / "zarr.json").unlink()
    (store_copy / "cases" / "lits-028" / "train" / "manifest.json").write_text("{")
    alone, shared = (verified(store_copy, deep=True, workers=n) for n in (1, 2))
    assert codes(shared) == codes(alone)
    assert {finding.case for finding in shared} == {CASE, "lits-028"}


def test_all_profiles_and_resampled_stores_are_whole(phantom_ircadb: Path, tmp_path: Path) -> None:
    for profile, spacing in (("fast", (3.0, None, None)), ("small", (None, None, None))):
        store = tmp_path / profile
        request = IngestRequest((phantom_ircadb,), store, preparation=Preparation(spacing), profile=profile, workers=1)
        list(run_ingest(plan_ingest(request)))
        assert verified(store, phantom_ircadb, deep=True) == []


# --- files


@pytest.mark.parametrize(
    ("deed", "code", "detail"),
    [
        (lambda case: (case / SHARD).unlink(), "STORE_FILE_MISSING", f"{SHARD} is missing"),
        (lambda case: (case / "hu/manifest.json").unlink(), "STORE_FILE_MISSING", "hu/manifest.json is missing"),
        (lambda case: (case / "train/packed/extra").write_bytes(b"1"), "STORE_FILE_EXTRA", "train/packed/extra is not"),
        (lambda case: (case / "note.txt").write_bytes(b"1"), "STORE_FILE_EXTRA", "note.txt belongs to no component"),
        (lambda case: os.truncate(case / "train/packed/c/0/0/0", 9), "STORE_SIZE", "has 9 bytes, expected "),
        (lambda case: (case / "index/manifest.json").write_text("[1"), "STORE_MANIFEST", "cannot be read (JSONDecodeE"),
        (lambda case: (case / "index/manifest.json").write_text("{}"), "STORE_MANIFEST", "cannot be read (KeyError)"),
        (lambda case: (case / "windows/zarr.json").write_text("{}"), "STORE_ATTRIBUTES", "windows/zarr.json is not as"),
        (lambda case: (case / "windows/zarr.json").unlink(), "STORE_FILE_MISSING", "windows/zarr.json cannot be read"),
    ],
)  # fmt: skip
def test_a_plain_look_sees_files(store_copy: Path, deed: Callable[[Path], None], code: str, detail: str) -> None:
    deed(store_copy / "cases" / CASE)
    found = verified(store_copy)
    assert (CASE, code, "error") in codes(found)
    assert any(detail in finding.detail for finding in found), found
    assert {finding.case for finding in found} == {CASE}


def test_links_and_pipes_are_no_files(store_copy: Path, tmp_path: Path) -> None:
    case = store_copy / "cases" / CASE
    shard = case / "hu/scale0/image/c/0/0/0"
    shard.rename(tmp_path / "shard")
    shard.symlink_to(tmp_path / "shard")
    os.mkfifo(case / "train" / "pipe")
    (case / "loop").symlink_to(case)
    found = verified(store_copy, deep=True)
    details = " ".join(finding.detail for finding in found)
    assert "hu/scale0/image/c/0/0/0 is no plain file" in details
    assert "train/pipe is not in the manifest" in details
    assert "loop belongs to no component" in details


def test_only_a_deep_look_hashes(store_copy: Path) -> None:
    path = store_copy / "cases" / CASE / "train" / "packed" / "c" / "0" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert verified(store_copy) == []
    finding = only(verified(store_copy, deep=True))
    assert (finding.case, finding.code) == (CASE, "STORE_HASH")
    assert "train/packed/c/0/0/0 has another content" in finding.detail


def test_components_of_another_case_are_seen(store_copy: Path) -> None:
    """Whole and consistent in itself, but not this case's."""
    train = store_copy / "cases" / CASE / "train"
    shutil.rmtree(train)
    shutil.copytree(store_copy / "cases" / "ircadb-02" / "train", train)
    layout.consolidate(train.parent)
    assert (CASE, "STORE_MANIFEST", "error") in codes(verified(store_copy))


def test_a_missing_component_that_its_manifest_agrees_with(store_copy: Path) -> None:
    hu = store_copy / "cases" / CASE / "hu"
    shutil.rmtree(hu / "labels")
    sealed(hu)
    found = verified(store_copy)
    assert codes(found) == {(CASE, "STORE_FILE_MISSING", "error")}
    assert "hu/labels/zarr.json is missing, in the manifest too" in found[0].detail


def test_a_case_whose_metadata_are_gone_is_not_overlooked(store_copy: Path) -> None:
    """Readers skip such a folder; a store with one case less would look whole."""
    (store_copy / "cases" / CASE / "zarr.json").unlink()
    assert CASE not in open_store(store_copy)
    assert (CASE, "STORE_ATTRIBUTES", "error") in codes(verified(store_copy))


# --- metadata


def test_changed_attributes_do_not_match_their_digest(store_copy: Path) -> None:
    path = store_copy / "cases" / CASE / "zarr.json"
    path.write_text(path.read_text().replace('"dataset": "ircadb"', '"dataset": "lits"'))
    finding = only(verified(store_copy))
    assert (finding.case, finding.code) == (CASE, "STORE_ATTRIBUTES")
    assert "do not match their digest" in finding.detail


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"case": "ircadb-03"}, "case: not what follows"),
        ({"affine_lps": np.eye(4).tolist()}, "affine_lps: not what follows"),
        ({"source_spacing_mm": [1.0, 1.0, 1.0]}, "source_spacing_mm: not what follows"),
        ({"label_voxels": {"background": 1, "liver": 1, "tumor": 1}}, "label_voxels add up to 3"),
        ({"hu_min": "low"}, "unusable case attributes"),
    ],
)
def test_attributes_that_contradict_each_other(store_copy: Path, changes: dict, detail: str) -> None:
    set_attributes(store_copy / "cases" / CASE, **changes)
    found = verified(store_copy)
    assert {(finding.case, finding.code) for finding in found} == {(CASE, "STORE_ATTRIBUTES")}
    assert any(detail in finding.detail for finding in found), found


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"hu_max": 3000}, "hu_max is 3000, the arrays give"),
        ({"fingerprint": "0" * 64}, "fingerprint is 000"),
    ],
)
def test_attributes_that_contradict_the_voxels(store_copy: Path, changes: dict, detail: str) -> None:
    set_attributes(store_copy / "cases" / CASE, **changes)
    assert verified(store_copy) == []
    finding = only(verified(store_copy, deep=True))
    assert finding.code == "STORE_ATTRIBUTES"
    assert detail in finding.detail


def test_counts_that_add_up_but_are_not_the_labels(store_copy: Path) -> None:
    counts = open_store(store_copy)[CASE].label_counts
    changed = {**counts, "liver": counts["liver"] - 5, "tumor": counts["tumor"] + 5}
    set_attributes(store_copy / "cases" / CASE, label_voxels=changed)
    assert "label_voxels is" in only(verified(store_copy, deep=True)).detail


def test_consolidated_metadata_must_be_those_below(store_copy: Path) -> None:
    path = store_copy / "cases" / CASE / "zarr.json"
    node = json.loads(path.read_text())
    node["consolidated_metadata"]["metadata"]["hu/scale0/image"]["shape"][0] += 1
    layout.write_json(path, node)
    finding = only(verified(store_copy))
    assert (finding.code, finding.severity) == ("STORE_CONSOLIDATED", "error")
    assert "hu/scale0/image" in finding.detail


def test_a_channel_that_a_killed_run_left_unlisted_is_a_warning(store_copy: Path) -> None:
    path = store_copy / "cases" / CASE / "zarr.json"
    remove_window(store_copy, CASE, "wl60_ww140")
    before = path.read_bytes()
    store = open_store(store_copy)
    list(run_windows(store, plan_windows(store, [Window(60, 140)]), workers=1))
    path.write_bytes(before)  # killed between rename and index
    assert codes(verified(store_copy, deep=True)) == {(CASE, "STORE_CONSOLIDATED", "warning")}


def test_the_stores_own_metadata(store_copy: Path) -> None:
    root, cases = store_copy / "zarr.json", store_copy / "cases" / "zarr.json"
    root.write_text(root.read_text().replace('"created_with": "livprep', '"created_with": "mivprep'))
    cases.write_text(cases.read_text().replace("group", "array"))
    found = verified(store_copy)
    assert codes(found) == {("", "STORE_ATTRIBUTES", "error")}
    assert len(found) == 2


def test_leftovers_and_strangers_are_said_and_are_no_damage(store_copy: Path) -> None:
    (store_copy / ".staging" / "ircadb-09.abc").mkdir(parents=True)
    (store_copy / "cases" / CASE / f".zarr.json.{'0' * 32}").write_text("{")
    (store_copy / "cases" / "notes.txt").write_text("mine")
    assert codes(verified(store_copy, deep=True)) == {
        ("", "STORE_STAGING", "info"),
        ("", "STORE_FILE_EXTRA", "warning"),
    }


def test_no_store_is_an_error_not_a_finding(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        verified(tmp_path / "none")
    assert caught.value.code == "STORE_MISSING"
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(StoreError) as caught:
        verified(tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("STORE_UNREADABLE", 2)


# --- what the arrays say of each other; manifests agree with the files in all of these


def change_array(path: Path, at: tuple[int, ...] = (1, 2, 3)) -> None:
    array = zarr.open_array(path, mode="r+")
    values = array[...]
    values[at] ^= 1
    array[...] = values


@pytest.mark.parametrize(
    ("component", "array", "code", "detail"),
    [
        ("train", "packed", "STORE_PACKED", "1 voxels from slice 0 are not their HU and label"),
        (
            "windows/wl40_ww220",
            "scale0/image",
            "STORE_WINDOW",
            "wl40_ww220: 1 voxels from slice 0 are not WL 40 WW 220",
        ),
    ],
)
def test_derived_arrays_follow_from_hu_and_labels(
    store_copy: Path, component: str, array: str, code: str, detail: str
) -> None:
    folder = store_copy / "cases" / CASE / component
    change_array(folder / array)
    sealed(folder)
    assert verified(store_copy) == []
    finding = only(verified(store_copy, deep=True))
    assert finding.code == code
    assert detail in finding.detail


def test_other_voxels_contradict_all_that_was_derived(store_copy: Path) -> None:
    folder = store_copy / "cases" / CASE / "hu"
    array = zarr.open_array(folder / "scale0" / "image", mode="r+")
    values = array[...]
    values[2] = 40
    array[...] = values
    sealed(folder)
    found = codes(verified(store_copy, deep=True))
    assert found == {(CASE, code, "error") for code in ("STORE_ATTRIBUTES", "STORE_PACKED", "STORE_WINDOW")}


def test_positions_follow_from_the_grid(store_copy: Path) -> None:
    folder = store_copy / "cases" / CASE / "hu"
    array = zarr.open_array(folder / "scale0" / "z", mode="r+")
    array[...] = array[...] + 0.5
    sealed(folder)
    assert "hu/scale0/z does not hold the positions" in only(verified(store_copy, deep=True)).detail


def test_index_points_lie_in_their_class(store_copy: Path) -> None:
    folder = store_copy / "cases" / CASE / "index"
    array = zarr.open_array(folder / "liver", mode="r+")
    points = array[...]
    points[0] = 0
    array[...] = points
    sealed(folder)
    finding = only(verified(store_copy, deep=True))
    assert (finding.code, finding.severity) == ("STORE_INDEX", "error")
    assert "liver: its points are no sample" in finding.detail


def test_near_points_lie_near_the_liver(store_copy: Path) -> None:
    folder = store_copy / "cases" / CASE / "index"
    array = zarr.open_array(folder / "near", mode="r+")
    points = array[...]
    assert len(points)
    points[0] = open_store(store_copy)[CASE].class_points(Label.LIVER)[0]  # in it, not beside it
    array[...] = points
    sealed(folder)
    finding = only(verified(store_copy, deep=True))
    assert (finding.code, finding.severity) == ("STORE_INDEX", "error")
    assert "near: its points are no sample" in finding.detail


def test_another_sample_of_the_surroundings_is_a_warning(store_copy: Path) -> None:
    case = open_store(store_copy)[CASE]
    array = zarr.open_array(case.path / "index" / "near", mode="r+")
    array[...] = array[...][::-1]
    sealed(case.path / "index")
    assert codes(verified(store_copy, deep=True)) == {(CASE, "STORE_INDEX", "warning")}


def test_a_store_without_the_surroundings_is_incomplete(store_copy: Path) -> None:
    folder = store_copy / "cases" / CASE / "index"
    shutil.rmtree(folder / "near")
    sealed(folder)
    found = verified(store_copy)
    assert codes(found) == {(CASE, "STORE_FILE_MISSING", "error")}
    assert "index/near/zarr.json is missing" in found[0].detail


def test_another_sample_of_the_same_class_is_a_warning(store_copy: Path) -> None:
    """numpy may draw otherwise from one seed one day; such an index is as good."""
    case = open_store(store_copy)[CASE]
    folder = case.path / "index"
    array = zarr.open_array(folder / "background", mode="r+")
    voxels = np.argwhere(case.read_labels() == 0)
    array[...] = voxels[: array.shape[0]]
    sealed(folder)
    assert codes(verified(store_copy, deep=True)) == {(CASE, "STORE_INDEX", "warning")}


def test_counts_of_the_index(store_copy: Path) -> None:
    folder = store_copy / "cases" / CASE / "index"
    node = json.loads((folder / "zarr.json").read_text())
    node["attributes"]["livprep"]["counts"]["tumor"] += 1
    layout.write_json(folder / "zarr.json", node)
    sealed(folder)
    assert "its counts are" in only(verified(store_copy, deep=True)).detail


def test_a_channel_under_another_name(store_copy: Path) -> None:
    windows = store_copy / "cases" / CASE / "windows"
    (windows / "wl40_ww220").rename(windows / "liver")
    layout.consolidate(windows.parent)
    finding = only(verified(store_copy, deep=True))
    assert (finding.code, finding.detail) == ("STORE_WINDOW", "liver calls itself wl40_ww220, function linear_exact")


def test_what_cannot_be_decoded(store_copy: Path) -> None:
    folder = store_copy / "cases" / CASE / "train"
    path = folder / "packed" / "c" / "0" / "0" / "0"
    path.write_bytes(bytes(path.stat().st_size))
    sealed(folder)
    finding = only(verified(store_copy, deep=True))
    assert finding.code == "STORE_DECODE"


@settings(max_examples=25)
@given(data=st.data())
def test_any_text_for_any_metadata_file_is_a_finding(store_copy: Path, data: st.DataObject) -> None:
    """No traceback, whatever a file holds."""
    files = sorted((store_copy / "cases" / CASE).rglob("*.json"))
    path = data.draw(st.sampled_from(files))
    kept = path.read_bytes()
    path.write_bytes(
        data.draw(st.sampled_from([b"", b"{}", b"[]", b"3", b"null", b'{"attributes": 3}', b"\xff", b'"a"']))
    )
    try:
        assert any(finding.severity == "error" for finding in verified(store_copy, deep=True))
    finally:
        path.write_bytes(kept)


# --- splits


def test_splits_name_cases_that_are_there(store_copy: Path) -> None:
    store = open_store(store_copy)
    patients = {name: case.patient for name, case in store.items()}
    store.write_split(make_split(patients))
    assert verified(store_copy) == []
    store.write_split(Split(name="old", seed=0, train=("ircadb-19",)))
    finding = only(verified(store_copy))
    assert (finding.case, finding.code, finding.detail) == ("", "STORE_SPLIT", "split old: the store has no ircadb-19")


def test_splits_keep_patients_on_one_side(store_copy: Path) -> None:
    open_store(store_copy).write_split(Split(name="bad", seed=0, train=("ircadb-01",), val=("lits-028",)))
    finding = only(verified(store_copy))
    assert (finding.code, finding.severity) == ("SPLIT_INVALID", "error")
    assert "ircadb-01 (train) and lits-028 (val) are one patient" in finding.detail


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 1}', '{"digest": 1, "name": "s", "seed": 0, "train": []}'])
def test_damaged_splits(store_copy: Path, text: str) -> None:
    store = open_store(store_copy)
    store.write_split(make_split({CASE: "p"}, name="s"))
    (store_copy / "splits" / "s.json").write_text(text)
    assert only(verified(store_copy)).code == "STORE_SPLIT"


# --- against the sources


def test_a_store_equals_its_sources(small_store: Path, phantom_ircadb: Path, phantom_lits: Path) -> None:
    found = verified(small_store, phantom_ircadb)
    assert codes(found) == {(f"lits-{n:03d}", "STORE_CASE_EXTRA", "info") for n in (28, 48, 68)}
    found = verified(small_store, phantom_lits, deep=True)
    assert codes(found) == {(f"ircadb-{n:02d}", "STORE_CASE_EXTRA", "info") for n in (1, 2, 7)}


def test_missing_and_extra_cases(small_store: Path, phantom_lits: Path, tmp_path: Path) -> None:
    sources = shutil.copytree(phantom_lits, tmp_path / "lits")
    for kind in ("volume", "segmentation"):
        (sources / f"{kind}-48.nii.gz").rename(sources / f"{kind}-49.nii.gz")
    found = codes(verified(small_store, sources))
    assert ("lits-049", "STORE_CASE_MISSING", "error") in found
    assert ("lits-048", "STORE_CASE_EXTRA", "warning") in found


def test_a_source_that_changed(small_store: Path, phantom_lits: Path, tmp_path: Path) -> None:
    """Another patient's files under the name of a stored case: other voxels, other labels, other digest."""
    sources = shutil.copytree(phantom_lits, tmp_path / "lits")
    for kind in ("volume", "segmentation"):
        shutil.copy(sources / f"{kind}-48.nii.gz", sources / f"{kind}-68.nii.gz")
    found = [finding for finding in verified(small_store, sources) if finding.case == "lits-068"]
    assert {(finding.code, finding.severity) for finding in found} >= {("STORE_DIFFERS", "error")}
    details = " ".join(finding.detail for finding in found)
    for word in ("source", "fingerprint", "HU: ", "labels: "):
        assert word in details


def test_a_source_that_cannot_be_read_any_more(small_store: Path, phantom_lits: Path, tmp_path: Path) -> None:
    sources = shutil.copytree(phantom_lits, tmp_path / "lits")
    path = sources / "volume-68.nii.gz"
    os.truncate(path, path.stat().st_size // 2)
    (sources / "segmentation-48.nii.gz").unlink()
    found = codes(verified(small_store, sources))
    assert ("lits-068", "GZIP_CORRUPT", "error") in found
    assert ("lits-048", "MASK_MISSING", "error") in found


def test_a_source_that_never_was_a_case_is_a_warning(small_store: Path, phantom_lits: Path, tmp_path: Path) -> None:
    sources = shutil.copytree(phantom_lits, tmp_path / "lits")
    shutil.copy(sources / "volume-68.nii.gz", sources / "volume-69.nii.gz")
    found = [finding for finding in verified(small_store, sources) if finding.case == "lits-069"]
    assert codes(found) == {("lits-069", "MASK_MISSING", "warning")}


def test_sources_without_a_case(small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        verified(small_store, tmp_path)
    assert caught.value.code == "NOTHING_FOUND"


def test_findings_have_known_codes() -> None:
    with pytest.raises(KeyError, match="unknown code TYPO"):
        Finding("", "TYPO", "error", "")
    assert {CODES[code].exit_code for code in CODES if code in ("STORE_STAGING", "STORE_CASE_EXTRA")} == {0}
