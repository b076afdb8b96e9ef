"""`livprep verify`, `overlaps` and `split` from the command line: output, JSON, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from livprep.store import open_store

Livprep = Callable[..., object]


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_whole_store_prints_nothing_and_exits_0(livprep: Livprep, small_store: Path) -> None:
    for options in ([], ["--deep"], ["--json"]):
        outcome = livprep("verify", "--store", small_store, *options)
        assert (outcome.code, outcome.out) == (0, "")
        assert "6 cases" in outcome.err
        assert "nothing found" in outcome.err
    assert livprep("verify", "--store", small_store, "-q").err == ""


def test_damage_is_one_line_each_and_exits_4(livprep: Livprep, store_copy: Path) -> None:
    (store_copy / "cases" / "lits-068" / "train" / "packed" / "zarr.json").unlink()
    (store_copy / ".staging" / "x.1").mkdir(parents=True)
    outcome = livprep("verify", "--store", store_copy, "--json")
    assert outcome.code == 4
    found = lines(outcome.out)
    assert all(list(finding) == ["case", "code", "severity", "detail"] for finding in found)
    assert {(f["case"], f["code"], f["severity"]) for f in found} == {
        ("", "STORE_STAGING", "info"),
        ("lits-068", "STORE_FILE_MISSING", "error"),
        ("lits-068", "STORE_CONSOLIDATED", "error"),
    }
    plain = livprep("verify", "--store", store_copy)
    assert "lits-068       error    STORE_FILE_MISSING: train/packed/zarr.json is missing" in plain.out
    assert "store          info     STORE_STAGING: " in plain.out
    assert plain.err.endswith("2 error(s), 1 info(s)\n")


def test_remarks_alone_exit_0(livprep: Livprep, store_copy: Path, phantom_lits: Path) -> None:
    (store_copy / ".staging" / "x.1").mkdir(parents=True)
    outcome = livprep("verify", phantom_lits, "--store", store_copy, "--json", "--workers", 1)
    assert outcome.code == 0
    assert {finding["severity"] for finding in lines(outcome.out)} == {"info"}


def test_a_store_that_cannot_be_opened_exits_2(livprep: Livprep, tmp_path: Path) -> None:
    outcome = livprep("verify", "--store", tmp_path / "none")
    assert outcome.code == 2
    assert "livprep: STORE_MISSING: " in outcome.err
    (tmp_path / "zarr.json").write_text("{")
    outcome = livprep("verify", "--store", tmp_path, "--deep")
    assert outcome.code == 2
    assert "livprep: STORE_UNREADABLE: " in outcome.err
    assert "Traceback" not in outcome.err


def test_sources_without_a_case_exit_3(livprep: Livprep, small_store: Path, tmp_path: Path) -> None:
    outcome = livprep("verify", tmp_path, "--store", small_store)
    assert (outcome.code, "NOTHING_FOUND" in outcome.err) == (3, True)


def test_overlaps_names_the_pair_of_the_store(livprep: Livprep, small_store: Path) -> None:
    outcome = livprep("overlaps", "--store", small_store, "--json")
    assert outcome.code == 0
    (pair,) = lines(outcome.out)
    assert list(pair) == ["a", "b", "evidence"]
    assert (pair["a"], pair["b"]) == ("ircadb-01", "lits-028")
    assert "equal HU histograms" in pair["evidence"]
    assert livprep("overlaps", "--store", small_store).out.startswith("ircadb-01 = lits-028  voxels: ")


def test_split_is_recorded_with_its_reasons(livprep: Livprep, store_copy: Path) -> None:
    outcome = livprep("split", "--store", store_copy, "--val", 0.4, "--json")
    assert outcome.code == 0
    (made,) = lines(outcome.out)
    recorded = open_store(store_copy).read_split("default")
    assert made == recorded.model_dump(mode="json")
    assert sorted(recorded.case_ids) == sorted(recorded.reasons) == list(open_store(store_copy))
    assert livprep("verify", "--store", store_copy).code == 0


def test_holding_out_all_of_ircadb(livprep: Livprep, store_copy: Path) -> None:
    outcome = livprep("split", "--store", store_copy, "--test", "ircadb", "--json")
    (made,) = lines(outcome.out)
    assert made["test"] == ["ircadb-01", "ircadb-02", "ircadb-07", "lits-028"]
    assert len(made["train"]) == len(made["val"]) == 1


def test_folds_are_splits_of_their_own(livprep: Livprep, store_copy: Path) -> None:
    outcome = livprep("split", "--store", store_copy, "--folds", 3, "--name", "cv")
    assert outcome.code == 0
    store = open_store(store_copy)
    assert store.split_names() == ["cv-fold0", "cv-fold1", "cv-fold2"]
    validated = [case for name in store.split_names() for case in store.read_split(name).val]
    assert sorted(validated) == list(store)


def test_a_split_by_hand(livprep: Livprep, store_copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"train": ["ircadb-01", "lits-028"], "val": ["lits-048"], "test": []}))
    outcome = livprep("split", "--store", store_copy, "--from", path, "--name", "mine")
    assert outcome.code == 0
    assert "ircadb-07: not used: not named in the given split" in outcome.out
    path.write_text(json.dumps({"train": ["ircadb-01"], "test": ["lits-028"]}))
    outcome = livprep("split", "--store", store_copy, "--from", path, "--name", "mine")
    assert outcome.code == 2
    assert "SPLIT_INVALID: split mine: ircadb-01 (train) and lits-028 (test) are one patient" in outcome.err
    assert open_store(store_copy).read_split("mine").val == ("lits-048",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", 2, "--val", 0.2], "--folds and --val exclude each other"),
        (["--test", "lits"], "neither ircadb nor a share"),
        (["--test", 1], "neither ircadb nor a share"),
        (["--folds", 1], "Invalid value for '--folds'"),
        (["--folds", 6], "6 folds of 5 patients"),
    ],
)
def test_impossible_requests_exit_2(livprep: Livprep, small_store: Path, options: list, message: str) -> None:
    outcome = livprep("split", "--store", small_store, *options)
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.parametrize("text", ["", "[]", '{"train": "ircadb-01"}', '{"train": [1]}', "\xff"])
def test_a_file_that_is_no_split(livprep: Livprep, small_store: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("latin-1"))
    outcome = livprep("split", "--store", small_store, "--from", path)
    assert outcome.code == 2
    assert "SPLIT_INVALID" in outcome.err


def test_from_stands_alone(livprep: Livprep, small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    outcome = livprep("split", "--store", small_store, "--from", tmp_path / "mine.json", "--val", 0.2)
    assert (outcome.code, "--from stands alone" in outcome.err) == (2, True)
