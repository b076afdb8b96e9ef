"""The commands of livprep as a user meets them: exit codes, one clear line, JSON, nothing half done."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import edited, ircadb_case, lits_pair, mask_array, nifti_bytes, plain_slice, scan, tree_hash, write_series
from conftest import Outcome

from livprep.errors import CODES
from livprep.store import open_store, staging_entries

Run = Callable[..., Outcome]


def one_line(outcome: Outcome, code: str, exit_code: int, *words: str) -> None:
    """The command ended with one line on stderr: program, code, what, what to do; nothing on stdout."""
    assert (outcome.code, outcome.out) == (exit_code, "")
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith(f"livprep: {code}: ")
    remedy = CODES[code].remedy
    commands = re.findall(r"`[^`]+`", remedy)
    if outcome.err.rstrip().endswith(remedy):
        assert all(outcome.err.count(each) == 1 for each in commands)
    else:  # a message that names every command of the remedy is not followed by it
        assert commands
        assert all(each in outcome.err for each in commands)
    for word in words:
        assert word in outcome.err
    assert "Traceback" not in outcome.err


def usage(outcome: Outcome, *words: str) -> None:
    """A command line that does not parse: one line that says what is wrong and whose help says more."""
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("livprep: USAGE: ")
    assert re.search(r" See `livprep[a-z ]* --help`\.$", outcome.err.rstrip())
    for word in words:
        assert word in outcome.err


def nothing_half_done(store: Path, *cases: str) -> None:
    assert list(open_store(store)) == sorted(cases)
    assert staging_entries(store) == []
    assert all(path.name.endswith(".lock") for path in (store / ".staging").iterdir())
    for case in open_store(store).values():
        case.read_hu()
        case.read_packed()


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default as on a machine of one core: no worker processes, which take seconds to start."""
    monkeypatch.setattr("livprep.cohort.cores", lambda: 1)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    ircadb_case(root, 2)
    lits_pair(root, 3)
    return root


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands put their store: $LIVPREP_STORE."""
    monkeypatch.setenv("LIVPREP_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


# --- ingest -----------------------------------------------------------------------------------------------------


def test_ingest_prints_a_line_a_case(livprep: Run, sources: Path, store: Path) -> None:
    outcome = livprep("ingest", sources)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert [line.split()[:2] for line in sorted(lines)] == [["ircadb-02", "published"], ["lits-003", "published"]]
    assert "2 cases found" in outcome.err
    assert "CATALOG_MISMATCH" in outcome.err
    assert outcome.err.endswith("2 published\n")
    nothing_half_done(store, "ircadb-02", "lits-003")
    again = livprep("ingest", sources)
    assert again.err.endswith("2 unchanged\n")


def test_ingest_json_is_a_receipt_a_line(livprep: Run, sources: Path, store: Path) -> None:
    shutil.rmtree(ircadb_case(sources, 4) / "MASKS_DICOM")
    outcome = livprep("ingest", sources, "--json")
    assert outcome.code == 3
    receipts = {record["case"]: record for record in map(json.loads, outcome.out.splitlines())}
    for record in receipts.values():
        assert {"case", "status", "code", "detail", "seconds", "bytes_in", "bytes_out"} <= set(record)
    assert (receipts["ircadb-04"]["status"], receipts["ircadb-04"]["code"]) == ("rejected", "MASK_MISSING")
    assert receipts["lits-003"]["status"] == "published"
    assert receipts["lits-003"]["bytes_in"] > 0
    assert receipts["lits-003"]["bytes_out"] > 0


def test_ingest_and_window_over_two_worker_processes(livprep: Run, sources: Path, store: Path) -> None:
    outcome = livprep("ingest", sources, "--workers", 2)
    assert (outcome.code, outcome.out.count("\n")) == (0, 2)
    assert "2 worker(s)" in outcome.err
    assert livprep("window", "--wl", 40, "--ww", 220, "--workers", 2).err.endswith("2 published\n")
    nothing_half_done(store, "ircadb-02", "lits-003")


def test_quiet_ingest_says_nothing_on_stderr(livprep: Run, sources: Path, store: Path) -> None:
    outcome = livprep("ingest", sources, "-q")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("\n") == 2


def test_the_store_is_the_option_then_the_environment_then_here(
    livprep: Run, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIVPREP_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert livprep("ingest", "in").code == 0
    assert len(open_store(tmp_path / "liver.zarr")) == 2
    monkeypatch.setenv("LIVPREP_STORE", str(tmp_path / "by-environment"))
    assert livprep("ingest", sources, "--cases", "lits-*").code == 0
    assert list(open_store(tmp_path / "by-environment")) == ["lits-003"]
    assert livprep("ingest", sources, "--store", tmp_path / "by-option", "--dataset", "ircadb").code == 0
    assert list(open_store(tmp_path / "by-option")) == ["ircadb-02"]


def test_dry_run_prints_the_plan_and_writes_nothing(livprep: Run, sources: Path, store: Path) -> None:
    outcome = livprep("ingest", sources, "--dry-run")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].startswith("ircadb-02")
    assert "MB memory" in outcome.out
    assert "2 cases" in outcome.out.splitlines()[-1]
    shutil.rmtree(sources / "3Dircadb1.2" / "MASKS_DICOM")
    outcome = livprep("ingest", sources, "--dry-run", "--json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 3
    assert records[0]["case_id"] == "lits-003"
    assert (records[1]["case"], records[1]["status"], records[1]["code"]) == ("ircadb-02", "rejected", "MASK_MISSING")
    assert "MASK_MISSING" in livprep("ingest", sources, "--dry-run").out
    assert not store.exists()


def test_spacing_takes_numbers_and_native(livprep: Run, sources: Path, store: Path) -> None:
    assert livprep("ingest", sources, "--spacing", "native,1.0,1.5", "--interpolation", "linear").code == 0
    assert {case.geometry.spacing_mm for case in open_store(store).values()} == {(2.0, 1.0, 1.5)}


def test_parts_take_every_nth_case(livprep: Run, sources: Path, store: Path) -> None:
    assert livprep("ingest", sources, "--part", "2/2").code == 0
    nothing_half_done(store, "lits-003")


def test_stop_on_reject(livprep: Run, sources: Path, store: Path) -> None:
    shutil.rmtree(ircadb_case(sources, 4) / "MASKS_DICOM")
    outcome = livprep("ingest", sources, "--on-reject", "stop", "--workers", 1)
    assert (outcome.code, outcome.out.count("\n")) == (3, 1)
    nothing_half_done(store)


def test_a_catalogue_beside_the_cases_is_named(livprep: Run, phantom_lits: Path, store: Path) -> None:
    outcome = livprep("ingest", phantom_lits, "--workers", 1)
    assert outcome.code == 0
    assert f"catalogue: {phantom_lits / 'catalog.yaml'}" in outcome.err


@pytest.mark.parametrize("content", [None, "notes.txt", "thorax"])
def test_nothing_of_a_known_data_set(livprep: Run, tmp_path: Path, store: Path, content: str | None) -> None:
    (tmp_path / "in").mkdir()
    if content == "notes.txt":
        (tmp_path / "in" / content).write_text("hello")
    elif content:
        write_series(tmp_path / "in" / content, [plain_slice(k) for k in range(3)])
    one_line(livprep("ingest", tmp_path / "in"), "NOTHING_FOUND", 3, str(tmp_path / "in"), "3DIRCADb")
    assert not store.exists()


def test_a_source_that_is_not_there(livprep: Run, tmp_path: Path, store: Path) -> None:
    one_line(livprep("ingest", tmp_path / "none"), "SOURCE_MISSING", 3, "no such file or folder")
    assert not store.exists()


def damage_mask_folder(sources: Path) -> None:
    shutil.rmtree(sources / "3Dircadb1.2" / "MASKS_DICOM" / "livertumor")


def damage_slice(sources: Path) -> None:
    path = sources / "3Dircadb1.2" / "PATIENT_DICOM" / "image_1"
    path.write_bytes(path.read_bytes()[:-7])


def damage_mask_shape(sources: Path) -> None:
    mask = mask_array(2, (4, 7, 5))
    write_series(sources / "3Dircadb1.2" / "MASKS_DICOM" / "liver", [plain_slice(k, mask[k]) for k in range(4)])


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (damage_mask_folder, "MASK_MISSING", "mask folder livertumor is missing"),
        (damage_slice, "PIXELDATA_SHORT", "holds 53 pixel bytes, expected 60"),
        (damage_mask_shape, "MASK_SHAPE", "mask liver has (4, 7, 5) voxels (zyx), the scan (4, 6, 5)"),
    ],
)
def test_a_bad_case_is_one_line_and_the_others_are_done(
    livprep: Run, sources: Path, store: Path, damage: Callable[[Path], None], code: str, words: str
) -> None:
    damage(sources)
    outcome = livprep("ingest", sources)
    assert outcome.code == 3
    (line,) = (line for line in outcome.out.splitlines() if "rejected" in line)
    assert line.startswith("ircadb-02")
    assert f"{code}: " in line
    assert words in line
    assert outcome.err.endswith("1 published, 1 rejected\n")
    nothing_half_done(store, "lits-003")


def test_label_value_3(livprep: Run, sources: Path, store: Path) -> None:
    labels = scan().label_map.labels.copy()
    labels[1, 2, 3] = 3
    (sources / "segmentation-3.nii").write_bytes(nifti_bytes(labels))
    outcome = livprep("ingest", sources)
    assert outcome.code == 3
    assert "LABEL_UNKNOWN: " in outcome.out
    assert "label values [3] besides the expected [0, 1, 2]" in outcome.out
    nothing_half_done(store, "ircadb-02")


def test_every_case_rejected(livprep: Run, tmp_path: Path, store: Path) -> None:
    shutil.rmtree(ircadb_case(tmp_path / "in", 2) / "MASKS_DICOM")
    outcome = livprep("ingest", tmp_path / "in")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (3, "1 rejected")
    nothing_half_done(store)


def test_other_preparation_needs_replace(livprep: Run, sources: Path, store: Path) -> None:
    livprep("ingest", sources)
    before = tree_hash(store)
    outcome = livprep("ingest", sources, "--spacing", "3,3,3", "-q")
    one_line(outcome, "STORE_PREPARATION", 2, "asked for", "--replace")
    assert tree_hash(store) == before
    assert livprep("ingest", sources, "--spacing", "3,3,3", "--replace").code == 0
    assert {case.geometry.spacing_mm for case in open_store(store).values()} == {(3.0, 3.0, 3.0)}


def test_changed_sources_need_replace(livprep: Run, sources: Path, store: Path) -> None:
    livprep("ingest", sources)
    (sources / "volume-3.nii").write_bytes(nifti_bytes(scan(seed=5).image.hu))
    outcome = livprep("ingest", sources)
    assert outcome.code == 3
    assert "SOURCE_CHANGED" in outcome.out
    assert "--replace" in outcome.out
    assert livprep("ingest", sources, "--replace", "--cases", "lits-003").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "SRC"),
        (("in", "--spacing", "1,2"), "neither native nor three spacings"),
        (("in", "--spacing", "1,2,x"), "neither native nor three spacings"),
        (("in", "--part", "0/2"), "no part I/N"),
        (("in", "--part", "2"), "no part I/N"),
        (("in", "--workers", "0"), "--workers"),
        (("in", "--dataset", "msd"), "--dataset"),
        (("in", "--profile", "tiny"), "--profile"),
        (("in", "--catalog", "nowhere.yaml"), "nowhere.yaml"),
        (("in", "--nonsense"), "--nonsense"),
    ],
)
def test_wrong_usage_of_ingest(livprep: Run, store: Path, arguments: tuple[str, ...], words: str) -> None:
    usage(livprep("ingest", *arguments), words)
    assert not store.exists()


def test_impossible_spacing(livprep: Run, sources: Path, store: Path) -> None:
    one_line(livprep("ingest", sources, "--spacing", "0,1,1"), "USAGE", 2, "expected 0.1 to 20.0 mm or native")
    assert not store.exists()


def test_a_catalogue_that_does_not_parse(livprep: Run, sources: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ircadb: [")
    one_line(livprep("ingest", sources, "--catalog", tmp_path / "mine.yaml"), "CATALOG_INVALID", 2, "mine.yaml")
    assert not store.exists()


def test_a_store_path_that_holds_something_else(livprep: Run, sources: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    one_line(livprep("ingest", sources, "-q", "--store", tmp_path / "other"), "STORE_UNREADABLE", 2, "other")
    one_line(livprep("ingest", sources, "-q", "--store", tmp_path / "file"), "STORE_UNREADABLE", 2, "file")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_odd_names_print_as_one_harmless_line(livprep: Run, store: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/in/a\xff\n\x1b[31mb"))
    lits_pair(folder, 3)[1].unlink()
    for json_option in ((), ("--json",)):
        outcome = livprep("ingest", tmp_path / "in", "-q", *json_option)
        assert (outcome.code, outcome.err, outcome.out.count("\n")) == (3, "", 1)
        assert outcome.out.rstrip("\n").isprintable()
        assert "MASK_MISSING" in outcome.out


# --- window -----------------------------------------------------------------------------------------------------


def test_window_adds_a_channel_to_every_case(livprep: Run, store_copy: Path) -> None:
    outcome = livprep("window", "--wl", 100, "--ww", 50, "--store", store_copy, "--workers", 1)
    assert outcome.code == 0
    assert "windows: wl100_ww50 [75, 125] HU" in outcome.err
    assert outcome.err.endswith("6 published\n")
    for case in open_store(store_copy).values():
        np.testing.assert_array_equal(
            case.read_window("wl100_ww50"), np.rint(255 * np.clip((case.read_hu() - 75.0) / 50, 0, 1)).astype(np.uint8)
        )
    assert livprep("window", "--wl", 100, "--ww", 50, "--store", store_copy).err.endswith("6 unchanged\n")


def test_parts_of_window_are_every_nth_case_by_sorted_id(livprep: Run, store_copy: Path) -> None:
    cases = sorted(open_store(store_copy))
    for part in (1, 2, 3, 4, 9):  # 9 of 9 is beyond the last case
        count = 9 if part == 9 else 4
        outcome = livprep("window", "--wl", 7, "--ww", 9, "--store", store_copy, "--part", f"{part}/{count}", "--json")
        assert outcome.code == 0
        found = [json.loads(line)["case"] for line in outcome.out.splitlines()]
        assert found == cases[part - 1 :: count]
    assert all("wl7_ww9" in case.window_names for case in open_store(store_copy).values())
    assert livprep("window", "--wl", 7, "--ww", 9, "--store", store_copy, "--part", "0/4").code == 2


def test_window_takes_pairs_names_and_presets(livprep: Run, store_copy: Path) -> None:
    outcome = livprep(
        "window", "--store", store_copy, "--wl", 1, "--ww", 2, "--wl", 3, "--ww", 4, "--name", "a", "--name", "b",
        "--preset", "lesion", "--cases", "ircadb-01", "--json",
    )  # fmt: skip
    assert outcome.code == 0
    assert [json.loads(line)["detail"] for line in outcome.out.splitlines()] == ["a", "b", "lesion"]
    assert open_store(store_copy)["ircadb-01"].window_names[2:] == ["a", "b", "lesion"]
    assert "b" not in open_store(store_copy)["ircadb-02"].window_names


def test_window_without_options_adds_the_default_bank(livprep: Run, sources: Path, store: Path) -> None:
    from livprep.catalog import load_catalog

    livprep("ingest", sources)
    assert livprep("window").code == 0
    names = [window.name for window in load_catalog().windows.default_bank()]
    assert {tuple(case.window_names) for case in open_store(store).values()} == {tuple(names)}


def test_window_remove(livprep: Run, store_copy: Path) -> None:
    outcome = livprep("window", "--remove", "wl40_ww220", "--store", store_copy)
    assert (outcome.code, outcome.err) == (0, "6 published\n")
    assert open_store(store_copy)["lits-028"].window_names == ["wl60_ww140"]
    again = livprep("window", "--remove", "wl40_ww220", "--store", store_copy)
    assert again.code == 0
    assert again.err == "no case has a channel wl40_ww220; there are wl60_ww140\n6 unchanged\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--wl", "40"), "they pair"),
        (("--wl", "40", "--ww", "220", "--name", "a", "--name", "b"), "--name was given 2 times for 1 windows"),
        (("--preset", "nothing"), "no preset 'nothing'; there are"),
        (("--remove", "a", "--wl", "40", "--ww", "220"), "--remove stands alone"),
        (("--wl", "forty", "--ww", "220"), "forty"),
    ],
)
def test_wrong_usage_of_window(livprep: Run, small_store: Path, arguments: tuple[str, ...], words: str) -> None:
    usage(livprep("window", "--store", small_store, *arguments), words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--wl", "40", "--ww", "0"), "WINDOW_INVALID", "expected finite values and a positive width"),
        (("--wl", "nan", "--ww", "220"), "WINDOW_INVALID", "expected finite values"),
        (("--wl", "40", "--ww", "220", "--name", "a/b"), "WINDOW_INVALID", "'a/b'"),
        (("--wl", "41", "--ww", "220", "--name", "wl40_ww220"), "STORE_WINDOW_EXISTS", "WL 40 WW 220 HU"),
        (("--wl", "40", "--ww", "220", "--cases", "x*"), "STORE_EMPTY", "'x*'"),
    ],
)
def test_windows_that_cannot_be(
    livprep: Run, small_store: Path, arguments: tuple[str, ...], code: str, words: str
) -> None:
    before = tree_hash(small_store)
    one_line(livprep("window", "-q", "--store", small_store, *arguments), code, 2, words)
    assert tree_hash(small_store) == before


# --- stores that cannot be read ---------------------------------------------------------------------------------

COMMANDS: list[tuple[str, ...]] = [
    ("info",), ("window", "--wl", "40", "--ww", "220"), ("split",), ("remove", "ircadb-01"), ("gc",),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_no_store(livprep: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    one_line(livprep(*command, "--store", tmp_path / "none"), "STORE_MISSING", 2, "none: no such store")


@pytest.mark.parametrize("command", [*COMMANDS, ("ingest", "in", "-q")])
def test_an_unreadable_and_a_newer_store(
    livprep: Run, store_copy: Path, sources: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sources.parent)
    root = store_copy / "zarr.json"
    node = json.loads(root.read_text())
    node["attributes"]["livprep"]["schema_version"] = 99
    root.write_text(json.dumps(node))
    one_line(livprep(*command, "--store", store_copy), "STORE_NEWER", 2, "schema version 99")
    root.write_text("{")
    one_line(livprep(*command, "--store", store_copy), "STORE_UNREADABLE", 2, "no livprep group")
    assert (store_copy / "cases" / "ircadb-01").is_dir()


# --- info -------------------------------------------------------------------------------------------------------


def test_info_json_has_what_was_promised(livprep: Run, small_store: Path) -> None:
    outcome = livprep("info", "--json", "--store", small_store)
    assert (outcome.code, outcome.err) == (0, "")
    records = {record["case"]: record for record in map(json.loads, outcome.out.splitlines())}
    assert list(records) == list(open_store(small_store))
    for name, record in records.items():
        case = open_store(small_store)[name]
        assert {
            "case", "dataset", "patient", "shape_zyx", "spacing_mm", "orientation", "hu_min", "hu_max", "label_voxels",
            "windows", "fingerprint", "bytes", "repairs", "warnings",
        } <= set(record)  # fmt: skip
        assert record["orientation"] == "LPS"
        assert record["shape_zyx"] == list(case.shape_zyx)
        labels = case.read_labels()
        assert record["label_voxels"] == {
            name: int((labels == value).sum()) for value, name in enumerate(("background", "liver", "tumor"))
        }
        assert record["windows"] == [
            {"name": "wl40_ww220", "wl": 40.0, "ww": 220.0},
            {"name": "wl60_ww140", "wl": 60.0, "ww": 140.0},
        ]
        assert record["bytes"] == sum(path.stat().st_size for path in case.path.rglob("*") if path.is_file())
    assert records["lits-028"]["patient"] == "ircadb-01"
    assert records["lits-028"]["fingerprint"] == records["ircadb-01"]["fingerprint"]
    assert len({record["fingerprint"] for record in records.values()}) == 5
    assert len(records["lits-028"]["repairs"]) == 1
    assert any("tumor" in warning for warning in records["ircadb-07"]["warnings"])


def test_info_tables(livprep: Run, small_store: Path) -> None:
    outcome = livprep("info", "--store", small_store)
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split()[:2] == ["case", "patient"]
    assert f"6 case(s) in {small_store}" in outcome.out
    outcome = livprep("info", "ircadb-07", "--store", small_store)
    assert "orientation    LPS" in outcome.out
    one_line(livprep("info", "ircadb-08", "--store", small_store), "STORE_CASE_UNKNOWN", 2, "ircadb-08")


def test_info_of_a_store_without_labels(livprep: Run, tmp_path: Path, store: Path) -> None:
    volume, label = lits_pair(tmp_path / "in", 3)
    volume.rename(volume.with_name("test-volume-3.nii"))
    label.unlink()
    assert livprep("ingest", tmp_path / "in").code == 0
    assert json.loads(livprep("info", "--json").out)["label_voxels"] is None
    assert "litstest-003" in livprep("info").out


# --- inspect ----------------------------------------------------------------------------------------------------


def test_inspect(livprep: Run, tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "scan", [plain_slice(k) for k in range(4)])
    outcome = livprep("inspect", tmp_path / "in")
    assert (outcome.code, outcome.err) == (0, "")
    assert "dicom 4×6×5 voxels, 2×0.8×0.7 mm (zyx), LPS, HU -1024…-724" in outcome.out
    (tmp_path / "in" / "scan" / "image_1").unlink()
    outcome = livprep("inspect", tmp_path / "in", "--json")
    record = json.loads(outcome.out)
    assert (outcome.code, record["status"], record["code"]) == (3, "rejected", "SERIES_GAP")
    outcome = livprep("inspect", tmp_path / "in")
    assert "rejected  SERIES_GAP: " in outcome.out
    assert outcome.err == "SERIES_GAP: Download the series again.\n"
    assert livprep("inspect", tmp_path / "in", "-q").err == ""
    write_series(tmp_path / "mr", [edited(plain_slice(k), Modality="MR") for k in range(4)])
    assert livprep("inspect", tmp_path / "mr").out.endswith("mr  ignored  the modality is not CT\n")
    (tmp_path / "empty").mkdir()
    one_line(livprep("inspect", tmp_path / "empty"), "NOTHING_FOUND", 3, "no CT series and no NIfTI")


# --- split ------------------------------------------------------------------------------------------------------


def test_split_is_recorded(livprep: Run, store_copy: Path) -> None:
    outcome = livprep("split", "--store", store_copy, "--val", 0.2, "--test", 0.2, "--seed", 1, "--json")
    record = json.loads(outcome.out)
    split = open_store(store_copy).read_split("default")
    assert split is not None
    assert json.loads(split.model_dump_json()) == record
    assert sorted(split.case_ids) == list(open_store(store_copy))
    sides = [side for side in (split.train, split.val, split.test) if {"ircadb-01", "lits-028"} & set(side)]
    assert len(sides) == 1  # one patient
    outcome = livprep("split", "--store", store_copy, "--name", "other")
    assert {"train", "val", "test"} <= {line.split()[0] for line in outcome.out.splitlines()}
    assert open_store(store_copy).split_names() == ["default", "other"]


def test_impossible_splits(livprep: Run, store_copy: Path) -> None:
    one_line(
        livprep("split", "--store", store_copy, "--test", 0.95), "SPLIT_INVALID", 2, "nothing is left for training"
    )
    one_line(livprep("split", "--store", store_copy, "--name", "../x"), "SPLIT_INVALID", 2, "plain file name")
    usage(livprep("split", "--store", store_copy, "--val", 1.5), "--val")
    assert open_store(store_copy).split_names() == []


# --- remove, gc, catalog, explain, phantom ----------------------------------------------------------------------


def test_remove_and_gc(livprep: Run, store_copy: Path) -> None:
    assert livprep("remove", "ircadb-02", "--store", store_copy).out == "ircadb-02 removed\n"
    assert "ircadb-02" not in open_store(store_copy)
    one_line(livprep("remove", "ircadb-02", "--store", store_copy), "STORE_CASE_UNKNOWN", 2, "ircadb-02")
    shutil.copytree(store_copy / "cases" / "ircadb-01", store_copy / ".staging" / "ircadb-01.dead")
    assert livprep("gc", "--store", store_copy).code == 0
    assert staging_entries(store_copy) == []
    assert livprep("gc", "--store", store_copy).code == 0


@pytest.mark.parametrize("name", [".", "..", "", "../cases", "ircadb-01/hu"])
def test_remove_takes_nothing_but_cases(livprep: Run, store_copy: Path, name: str) -> None:
    before = tree_hash(store_copy)
    one_line(livprep("remove", name, "--store", store_copy), "STORE_CASE_UNKNOWN", 2)
    assert tree_hash(store_copy) == before


def test_catalog(livprep: Run, tmp_path: Path, phantom_lits: Path) -> None:
    from livprep.catalog import Catalog, load_catalog

    outcome = livprep("catalog")
    assert outcome.code == 0
    assert load_catalog().digest in outcome.out
    assert "3DIRCADb 20 patients" in outcome.out
    assert Catalog.model_validate(json.loads(livprep("catalog", "--json").out)) == load_catalog()
    own = phantom_lits / "catalog.yaml"
    assert load_catalog(own).digest in livprep("catalog", "--catalog", own).out
    (tmp_path / "bad.yaml").write_text("a: 1\na: 2\n")
    one_line(livprep("catalog", "--catalog", tmp_path / "bad.yaml"), "CATALOG_INVALID", 2, "given twice")


def test_explain(livprep: Run) -> None:
    outcome = livprep("explain", "series_gap")
    assert outcome.out == f"SERIES_GAP (exit 3)\n{CODES['SERIES_GAP'].meaning}\n{CODES['SERIES_GAP'].remedy}\n"
    assert [line.split()[0] for line in livprep("explain").out.splitlines()] == list(CODES)
    one_line(livprep("explain", "TYPO"), "USAGE", 2, "TYPO: no such code")


def test_phantom_to_window_in_three_commands(livprep: Run, tmp_path: Path, store: Path) -> None:
    outcome = livprep("phantom", tmp_path / "p", "--dataset", "both", "--cases", 1, "--size", 32, "--seed", 5, "--json")
    record = json.loads(outcome.out)
    assert (outcome.code, record["cases"]) == (0, ["ircadb-01", "lits-000"])
    assert livprep("ingest", tmp_path / "p" / "ircadb", tmp_path / "p" / "lits").code == 0
    assert livprep("window", "--wl", 40, "--ww", 220).code == 0
    assert [case.window_names for case in open_store(store).values()] == [["wl40_ww220"]] * 2
    one_line(livprep("phantom", tmp_path / "p"), "USAGE", 2, "is not an empty folder")
    usage(livprep("phantom", tmp_path / "q", "--cases", 0), "--cases")


# --- the program ------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_each_explains_itself(livprep: Run) -> None:
    from livcli.livprep_main import COMMANDS as LISTED

    outcome = livprep("--help")
    assert outcome.code == 0
    for name, (_, summary) in LISTED.items():
        assert f"  {name} " in outcome.out
        assert summary.rstrip(".")[:30] in outcome.out
        own = livprep(name, "-h")
        assert (own.code, own.err) == (0, "")
        assert own.out.startswith(f"Usage: livprep {name} ")
    assert livprep("--version").out.startswith("livprep, version ")
    usage(livprep("nonsense"), "nonsense")


def broken(error: BaseException) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (OSError(28, "No space left on device"), "DISK_FULL", 74),
        (OSError(122, "Disk quota exceeded"), "DISK_FULL", 74),
        (OSError(5, "Input/output error"), "IO", 74),
        (ZeroDivisionError("division by zero"), "INTERNAL", 1),
        (ModuleNotFoundError("No module named 'numpy'", name="numpy"), "INTERNAL", 1),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "USAGE", 2),
    ],
)
def test_other_ends_have_their_codes_too(
    livprep: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, exit_code: int
) -> None:
    from livprep import store as stores

    monkeypatch.setattr(stores, "open_store", broken(error))
    outcome = livprep("info", "--store", small_store)
    assert (outcome.code, outcome.out) == (exit_code, "")
    assert outcome.err.startswith(f"livprep: {code}: ")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(("error", "exit_code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_interrupts_and_closed_pipes_are_silent(
    livprep: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, exit_code: int
) -> None:
    import sys

    from livprep import store as stores

    monkeypatch.setattr(stores, "open_store", broken(error))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # both are put back afterwards
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr("livcli.lazy.os._exit", sys.exit)
    outcome = livprep("info", "--store", small_store)
    assert (outcome.code, outcome.out, outcome.err.strip()) == (exit_code, "", "")


def test_verbose_shows_the_traceback_of_a_defect(
    livprep: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    from livprep import store as stores

    monkeypatch.setattr(stores, "open_store", broken(ZeroDivisionError("division by zero")))
    level = logging.getLogger().level
    try:
        outcome = livprep("info", "-v", "--store", small_store)
    finally:
        logging.getLogger().setLevel(level)
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("livprep: INTERNAL: ZeroDivisionError in test_livprep_commands.py, ")
    assert "division by zero" not in outcome.err
    monkeypatch.setenv("LIVPREP_DEBUG", "1")
    assert "ZeroDivisionError: division by zero" in livprep("info", "--store", small_store).err


def test_a_decathlon_folder_is_ingested_and_its_test_set_named(livprep: Callable[..., Outcome], tmp_path: Path) -> None:
    root = tmp_path / "Task03_Liver"
    assert livprep("phantom", root, "--dataset", "decathlon", "--cases", 1, "--size", 32).code == 0
    (root / "imagesTs").mkdir()
    (root / "imagesTs" / "liver_140.nii.gz").write_bytes(b"")
    outcome = livprep("ingest", root, "--store", tmp_path / "s", "--workers", 1, "--json")
    assert (outcome.code, json.loads(outcome.out)["case"]) == (0, "lits-000")
    assert "imagesTs: 1 unlabelled volumes are left out" in outcome.err


@pytest.mark.parametrize(
    ("library", "extra"),
    [("matplotlib", "report"), ("jinja2", "report"), ("cv2", "clahe"), ("dask_jobqueue", "cluster")],
)
def test_a_library_that_is_not_installed_is_answered_with_its_extra(
    livprep: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    from livprep import store as stores

    monkeypatch.setattr(stores, "open_store", broken(ModuleNotFoundError(name=library)))
    outcome = livprep("info", "--store", small_store)
    assert outcome.code == 2
    assert outcome.err == f"livprep: USAGE: {library} is not installed. pip install 'livprep[{extra}]'\n"


def test_what_may_not_be_written_is_named_with_what_to_do(
    livprep: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from livprep import store as stores

    monkeypatch.setattr(stores, "open_store", broken(OSError(errno.EROFS, "Read-only file system", "/a/b")))
    outcome = livprep("info", "--store", small_store)
    assert outcome.code == 74
    assert outcome.err == (
        "livprep: IO: /a/b: Read-only file system. Ask for permission there, or give another path.\n"
    )


def test_another_preparation_is_told_in_words(livprep: Run, sources: Path, store: Path) -> None:
    assert livprep("ingest", sources, "--cases", "lits-003").code == 0
    outcome = livprep("ingest", sources, "--spacing", "3,native,native")
    assert outcome.code == 2
    assert "prepared with spacing native, cubic, profile balanced; asked for spacing 3,native,native mm" in outcome.err


def test_commands_for_people_speak_json_too(livprep: Run, store_copy: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    drawn = livprep("preview", "ircadb-01", "-o", picture, "--store", store_copy, "--json")
    assert json.loads(drawn.out) == {"case": "ircadb-01", "output": str(picture)}
    assert drawn.err == ""
    assert json.loads(livprep("gc", "--store", store_copy, "--json").out) == {"deleted": []}
    removed = livprep("remove", "lits-068", "--store", store_copy, "--json")
    assert json.loads(removed.out) == {"case": "lits-068", "status": "removed"}
    told = [json.loads(line) for line in livprep("explain", "--json").out.splitlines()]
    assert {each["code"]: each["exit_code"] for each in told} == {
        code: entry.exit_code for code, entry in CODES.items()
    }
