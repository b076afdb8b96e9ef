"""Older stores stay readable, and are brought up case by case; newer ones are refused."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import flip_bit, tree_hash
from conftest import Outcome

from livprep.audit import AuditRequest, plan_audit, run_audit
from livprep.errors import StoreError
from livprep.schema import SCHEMA_VERSION
from livprep.store import layout, migrate_store, open_store, staging_entries, versions

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from make_golden import facts  # noqa: E402

NAMES = sorted(path.stem for path in GOLDEN.glob("schema*.zip"))


def golden(name: str, folder: Path) -> tuple[Path, dict]:
    with zipfile.ZipFile(GOLDEN / f"{name}.zip") as archive:
        archive.extractall(folder)
    (folder / "store" / "splits").mkdir(exist_ok=True)
    return folder / "store", json.loads((folder / "expected.json").read_text())


def test_there_is_a_golden_store_of_every_version() -> None:
    assert [f"schema{version}" for version in range(1, SCHEMA_VERSION + 1)] == NAMES
    assert all((GOLDEN / f"{name}.zip").stat().st_size < 100_000 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_golden_stores_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    path, expected = golden(name, tmp_path)
    before = tree_hash(path)
    store = open_store(path)
    assert {case_id: json.loads(json.dumps(facts(case))) for case_id, case in store.items()} == expected["cases"]
    assert store.read_split("default").train == ("lits-028",)
    assert set(store["lits-028"].to_xarray().data_vars) == {"hu", "label", "windows"}
    audit = plan_audit(AuditRequest(path, deep=True, workers=1))
    assert [finding for verdict in run_audit(audit) for finding in verdict.findings] == []
    assert tree_hash(path) == before


@pytest.mark.parametrize("name", NAMES)
def test_golden_stores_are_migrated(name: str, tmp_path: Path) -> None:
    path, expected = golden(name, tmp_path)
    assert {receipt.case for receipt in migrate_store(path)} == set(expected["cases"])
    assert {case_id: json.loads(json.dumps(facts(case))) for case_id, case in open_store(path).items()} == (
        expected["cases"]
    )


# --- an older version that never was: attributes under other names, and a file that is not there any more


def renamed(old: str, new: str) -> Callable[[dict], dict]:
    return lambda data: {(new if key == old else key): value for key, value in data.items()}


def without_note(folder: Path) -> None:
    (folder / "index" / "note.txt").unlink()
    digests = json.loads((folder / "index" / layout.MANIFEST).read_text())
    (folder / "index" / layout.MANIFEST).unlink()
    layout.write_manifest(folder / "index", {key: value for key, value in digests.items() if key != "files"})


@pytest.fixture
def version_0(store_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`small_store` as a version 0 would have written it."""
    monkeypatch.setitem(
        versions.STEPS, 0, versions.Step(renamed("codec", "profile"), renamed("subject", "patient"), without_note)
    )
    for folder, change in [(store_copy, renamed("profile", "codec"))] + [
        (case.path, renamed("patient", "subject")) for case in open_store(store_copy).values()
    ]:
        data = {**change(layout.read_attributes(folder)), "schema_version": 0}
        layout.write_json(folder / "zarr.json", layout.plain_group(layout.own_attributes(data)))
        if folder != store_copy:
            (folder / "index" / "note.txt").write_text("of old")
            digests = json.loads((folder / "index" / layout.MANIFEST).read_text())
            (folder / "index" / layout.MANIFEST).unlink()
            layout.write_manifest(folder / "index", {k: v for k, v in digests.items() if k != "files"})
            layout.consolidate(folder)
    return store_copy


def test_an_older_store_is_read_without_being_migrated(version_0: Path, small_store: Path) -> None:
    old, new = open_store(version_0), open_store(small_store)
    assert old.meta == new.meta
    for name, case in new.items():
        assert old[name].meta == case.meta
        np.testing.assert_array_equal(old[name].read_hu(), case.read_hu())
        assert old[name].window_names == case.window_names


def test_migrating_gives_the_bytes_of_the_current_version(version_0: Path, small_store: Path) -> None:
    receipts = list(migrate_store(version_0))
    assert {receipt.status for receipt in receipts} == {"published"}
    assert {receipt.detail for receipt in receipts} == {f"schema 0 to {SCHEMA_VERSION}"}
    assert tree_hash(version_0) == tree_hash(small_store)
    assert staging_entries(version_0) == []
    assert {receipt.status for receipt in migrate_store(version_0)} == {"unchanged"}
    audit = plan_audit(AuditRequest(version_0, deep=True, workers=1))
    assert [finding for verdict in run_audit(audit) for finding in verdict.findings] == []


@pytest.mark.parametrize("stop_at", range(0, 8, 2))
def test_stopped_anywhere_every_case_is_readable_and_going_on_finishes(
    version_0: Path, small_store: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    real, count = layout.write_json, iter(range(1000))

    def stopping(path: Path, data: object) -> None:
        if next(count) == stop_at:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(layout, "write_json", stopping)
    with pytest.raises(KeyboardInterrupt):
        list(migrate_store(version_0))
    monkeypatch.setattr(layout, "write_json", real)
    assert {name: case.meta for name, case in open_store(version_0).items()} == {
        name: case.meta for name, case in open_store(small_store).items()
    }
    list(migrate_store(version_0))
    assert tree_hash(version_0) == tree_hash(small_store)


def test_a_damaged_case_is_left_as_it_is(version_0: Path) -> None:
    shard = version_0 / "cases/lits-028/hu/scale0/image/c/0/0/0"
    flip_bit(shard, 100)
    before = tree_hash(version_0 / "cases" / "lits-028")
    with pytest.raises(StoreError, match="lits-028: hu/scale0/image/c/0/0/0 is not what its manifest says") as caught:
        list(migrate_store(version_0))
    assert caught.value.code == "STORE_CORRUPT"
    assert tree_hash(version_0 / "cases" / "lits-028") == before
    (version_0 / "cases" / "lits-028" / "train" / layout.MANIFEST).write_text("{")
    with pytest.raises(StoreError):
        list(migrate_store(version_0))


def test_a_version_before_the_first_is_refused(version_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(versions.STEPS, 0)
    with pytest.raises(StoreError, match="schema_version is 0, expected a number from 1") as caught:
        list(migrate_store(version_0))
    assert caught.value.code == "STORE_UNREADABLE"


# --- the command


def test_the_command_says_what_it_did(livprep: Callable[..., Outcome], version_0: Path) -> None:
    outcome = livprep("migrate", "--store", version_0, "--json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert {(record["status"], record["detail"]) for record in records} == {("published", "schema 0 to 1")}
    outcome = livprep("migrate", "--store", version_0)
    assert (outcome.code, outcome.out.split(" in ")[0]) == (0, "nothing to do: 6 case(s) of version 1")
    assert {
        json.loads(line)["status"] for line in livprep("migrate", "--store", version_0, "--json").out.split("\n")[:-1]
    }
    assert livprep("migrate", "--store", version_0 / "nowhere").code == 2


def test_the_command_refuses_a_newer_store(livprep: Callable[..., Outcome], store_copy: Path) -> None:
    data = {**layout.read_attributes(store_copy), "schema_version": SCHEMA_VERSION + 1}
    layout.write_json(store_copy / "zarr.json", layout.plain_group(layout.own_attributes(data)))
    outcome = livprep("migrate", "--store", store_copy)
    assert outcome.code == 2
    assert outcome.err.startswith("livprep: STORE_NEWER: ")
    shutil.rmtree(store_copy)
