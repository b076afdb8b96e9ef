"""Every command on a store in an object storage does what it does on a disk; damage there is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from building import flip_bit, tree_hash
from s3_endpoint import endpoint, prefix

from livprep.schema import SCHEMA_VERSION
from livprep.store import migrating, open_store, place_of, versions
from livprep.store.bucket import Bucket, address_of, relative_files

Livprep = Callable[..., Any]


@pytest.fixture
def store(small_store: Path, prefix: Path) -> Path:
    """LiTS 28 and 48 with two channels in an object storage, which holds the same files as a disk."""
    left_out = ("ircadb-", "lits-068", ".staging", "journal")
    names = [name for name in relative_files(small_store) if not any(part in name for part in left_out)]
    _, bucket, *rest = prefix.parts
    Bucket(address_of(Path("s3:", bucket))).upload(small_store, names, "/".join(rest))
    return prefix


def found(outcome: Any) -> set[tuple[str, str]]:
    """(case, code) of all errors that `verify --json` found."""
    findings = (json.loads(line) for line in outcome.out.splitlines())
    return {(each["case"], each["code"]) for each in findings if each["severity"] == "error"}


def test_a_whole_store_is_found_whole(livprep: Livprep, store: Path, phantom_lits: Path) -> None:
    sources = [*phantom_lits.glob("*-[24]8.nii.gz"), "--catalog", phantom_lits / "catalog.yaml"]
    for words in ([], ["--deep", *sources, "--workers", 1]):
        outcome = livprep("verify", *words, "--store", address_of(store), "--json")
        assert (outcome.code, outcome.out) == (0, ""), outcome
    assert "nothing to do: 2 case(s)" in livprep("migrate", "--store", address_of(store)).out
    assert livprep("gc", "--store", address_of(store)).out == "0 staged folder(s) deleted\n"


def test_a_plain_look_fetches_no_volume(livprep: Livprep, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    fetch = Bucket._fetch
    monkeypatch.setattr(Bucket, "_fetch", lambda self, key, at: (fetched.append(key), fetch(self, key, at))[1])
    assert livprep("verify", "--store", address_of(store)).code == 0
    assert "cases/lits-048/hu/manifest.json" in fetched
    assert not [key for key in fetched if key.endswith("/c/0/0/0")]


def test_damage_is_found(livprep: Livprep, store: Path, tmp_path: Path) -> None:
    """A flipped bit, a cut and a deleted object of volumes."""
    bucket = Bucket(address_of(store))
    keys = [f"cases/lits-{where}/c/0/0/0" for where in ("028/train/packed", "048/train/packed", "048/hu/scale0/image")]
    bucket.download(keys, tmp_path)
    flip_bit(tmp_path / keys[0], 1000)
    bucket.put(keys[0], tmp_path / keys[0])
    bucket.put(keys[1], (tmp_path / keys[1]).read_bytes()[:-100])
    bucket.delete([keys[2]])
    outcome = livprep("verify", "--store", address_of(store), "--json")
    assert (outcome.code, found(outcome)) == (4, {("lits-048", "STORE_SIZE"), ("lits-048", "STORE_FILE_MISSING")})
    deep = livprep("verify", "--deep", "--workers", 1, "--store", address_of(store), "--json")
    assert (deep.code, found(deep)) == (4, found(outcome) | {("lits-028", "STORE_HASH")})


def test_a_case_without_its_metadata_is_found_and_made_again_or_removed(
    livprep: Livprep, store: Path, phantom_lits: Path, tmp_path: Path
) -> None:
    bucket = Bucket(address_of(store))
    bucket.delete(["cases/lits-028/zarr.json", "cases/lits-048/zarr.json", "cases/zarr.json"])
    bucket.put("cases/stranger", b"who")
    outcome = livprep("verify", "--store", address_of(store), "--json")
    assert outcome.code == 4
    assert {("", "STORE_FILE_MISSING"), ("lits-028", "STORE_ATTRIBUTES")} <= found(outcome)
    assert "cases/stranger is no case" in outcome.out
    assert livprep("remove", "lits-048", "--store", address_of(store)).code == 0
    assert not [key for key in bucket.sizes() if key.startswith("cases/lits-048/")]
    assert livprep("remove", "lits-048", "--store", address_of(store)).code == 2
    words = ("ingest", phantom_lits, "--cases", "lits-028", "--workers", 1)
    assert livprep(*words, "--store", address_of(store)).code == 0
    assert open_store(store)["lits-028"].window_names == ["wl40_ww220", "wl60_ww140"]


def test_markers_of_folders_are_nothing(livprep: Livprep, store: Path) -> None:
    """The console of a storage, and programs that mount one, put an empty object for each folder."""
    _, bucket, *rest = store.parts
    for folder in ("", "cases/", "cases/lits-028/", "cases/lits-028/hu/", "cases/empty/", "splits/"):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{'/'.join(rest)}/{folder}", Body=b"")
    outcome = livprep("verify", "--deep", "--workers", 1, "--store", address_of(store))
    assert (outcome.code, outcome.out) == (0, "")
    assert len(open_store(store)) == 2


def test_what_a_killed_window_left_is_removed_by_its_name(livprep: Livprep, store: Path) -> None:
    bucket = Bucket(address_of(store))
    bucket.delete(["cases/lits-028/windows/wl40_ww220/zarr.json"])
    assert open_store(store)["lits-028"].window_names == ["wl60_ww140"]
    assert livprep("window", "--remove", "wl40_ww220", "--store", address_of(store)).code == 0
    assert not [key for key in bucket.sizes() if "wl40_ww220" in key]
    assert livprep("verify", "--deep", "--workers", 1, "--store", address_of(store)).out == ""


def test_report_split_and_export(livprep: Livprep, store: Path, tmp_path: Path) -> None:
    address = address_of(store)
    assert livprep("report", "-o", tmp_path / "r.html", "--workers", 1, "--store", address).code == 0
    assert livprep("split", "--store", address).code == 0
    assert livprep("verify", "--store", address).code == 0
    assert livprep("overlaps", "--store", address).code == 0
    assert livprep("export", "nnunet", tmp_path / "Dataset003_Liver", "--store", address).code == 0
    assert len(list((tmp_path / "Dataset003_Liver").rglob("*.nii.gz"))) == 4


def test_an_older_store_is_migrated(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 would say so in the attributes and have one file more in each case's index."""

    def add_file(folder: Path) -> None:
        (folder / "index" / "new.json").write_text("{}")

    monkeypatch.setattr(versions, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(migrating, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(versions, "STEPS", {SCHEMA_VERSION: versions.Step(files=add_file)})
    bucket = Bucket(address_of(store))
    bucket.download(bucket.sizes(), tmp_path / "before")
    assert {receipt.status for receipt in migrating.migrate_store(store)} == {"published"}
    assert {receipt.status for receipt in migrating.migrate_store(store)} == {"unchanged"}
    bucket.download(bucket.sizes(), tmp_path / "after")
    list(migrating.migrate_store(tmp_path / "before"))
    assert tree_hash(tmp_path / "after") == tree_hash(tmp_path / "before")
    assert len(open_store(store)) == 2


def test_nothing_of_a_run_stays_in_the_temporary_folder(store: Path, tmp_path: Path) -> None:
    program = "from livcli.livprep_main import main; main()"
    words = ("window", "--wl", "40", "--ww", "220", "--workers", "1", "--store", address_of(store))
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False, timeout=120
    )
    assert (done.returncode, list(tmp_path.glob("livprep-*"))) == (0, [])


def test_workers_find_a_store_that_was_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_of(Path("liver.zarr")) == str(tmp_path / "liver.zarr")
    assert place_of(Path("s3://livers/a")) == "s3://livers/a"
