"""A store in an object storage, against a real S3 endpoint on loopback: the same as one on disk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import flip_bit, tree_hash
from s3_endpoint import endpoint, prefix

from livprep.cohort import IngestRequest, plan_ingest, plan_windows, remove_windows, run_ingest, run_windows
from livprep.errors import LivError, StoreError
from livprep.splits import make_split
from livprep.store import is_remote, is_store, open_store, remove_case
from livprep.store.bucket import Bucket, address_of
from livprep.store.remote import RemoteStore
from livprep.synthesis import write_lits
from livprep.windows import Window

WHOLE = (slice(None),) * 3


def ingest(sources: Path, store: Path, **options: object) -> list[str]:
    return [r.status for r in run_ingest(plan_ingest(IngestRequest((sources,), store, workers=1, **options)))]


def windowed(store: Path, *windows: Window) -> list[str]:
    opened = open_store(store)
    return [r.status for r in run_windows(opened, plan_windows(opened, windows), workers=1)]


def objects(store: Path, folder: Path) -> dict[str, str]:
    """The objects of a store as files, hashed."""
    bucket = Bucket(address_of(store))
    bucket.download(bucket.sizes(), folder)
    return tree_hash(folder)


def test_addresses() -> None:
    assert is_remote("s3://bucket/a")
    assert is_remote(Path("s3://bucket/a"))
    assert not is_remote(Path("s3/bucket"))
    assert not is_remote(Path())
    assert address_of(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    with pytest.raises(StoreError, match="names no bucket"):
        address_of("s3://")


def test_ingest_and_windows_write_the_same_objects_as_files(phantom_lits: Path, tmp_path: Path, prefix: Path) -> None:
    for store in (prefix, tmp_path / "local"):
        assert ingest(phantom_lits, store) == ["published"] * 3
        assert windowed(store, Window(40, 220), Window(60, 140)) == ["published"] * 6
        opened = open_store(store)
        opened.write_split(make_split({name: case.patient for name, case in opened.items()}, val_fraction=0.34))
    assert objects(prefix, tmp_path / "objects") == tree_hash(tmp_path / "local")
    assert ingest(phantom_lits, prefix) == ["unchanged"] * 3
    assert windowed(prefix, Window(40, 220)) == ["unchanged"] * 3
    journals = sorted((tmp_path / "objects/journal").iterdir())
    assert {json.loads(path.read_text().splitlines()[-1])["event"] for path in journals} == {"end"}


def test_reading_is_that_of_a_store_on_disk(phantom_lits: Path, tmp_path: Path, prefix: Path) -> None:
    for store in (prefix, tmp_path / "local"):
        ingest(phantom_lits, store)
        windowed(store, Window(40, 220))
    remote, local = open_store(prefix), open_store(tmp_path / "local")
    assert list(remote) == list(local)
    for name, case in local.items():
        other = pickle.loads(pickle.dumps(remote))[name]
        assert other.meta == case.meta
        assert other.bytes_on_disk() == case.bytes_on_disk()
        box = tuple(slice(size // 4, 3 * size // 4) for size in case.shape_zyx)
        other.will_need_packed(box)
        for region in (box, WHOLE):
            np.testing.assert_array_equal(other.read_packed(region), case.read_packed(region))
            np.testing.assert_array_equal(other.read_hu(region), case.read_hu(region))
            np.testing.assert_array_equal(other.read_labels(region), case.read_labels(region))
            np.testing.assert_array_equal(
                other.read_window("wl40_ww220", region), case.read_window("wl40_ww220", region)
            )
        np.testing.assert_array_equal(other.near_points(), case.near_points())
        assert other.packed_bytes(box) == case.packed_bytes(box)
        assert pickle.loads(pickle.dumps(other)).read_hu().sum() == case.read_hu().sum()
        assert other.to_xarray().equals(case.to_xarray())


def test_only_the_chunks_of_a_region_are_fetched(tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lits(tmp_path / "in", (28,), seed=1, size=96)
    ingest(tmp_path / "in", prefix)
    case = open_store(prefix)["lits-028"]
    asked: list[int] = []
    ranges = Bucket.get_ranges

    def spy(self: Bucket, key: str, starts: list[int], lengths: list[int]) -> list[bytes]:
        asked.append(sum(lengths))
        return ranges(self, key, starts, lengths)

    monkeypatch.setattr(Bucket, "get_ranges", spy)
    region = (slice(0, 4), slice(0, 4), slice(0, 4))
    case.read_packed(region)
    assert sum(asked) < case.packed_bytes()
    before = list(asked)
    case.read_packed(region)
    assert asked == before


def test_a_damaged_chunk_is_found(phantom_lits: Path, tmp_path: Path, prefix: Path) -> None:
    ingest(phantom_lits, prefix)
    bucket, key = Bucket(address_of(prefix)), "cases/lits-028/train/packed/c/0/0/0"
    bucket.download([key], tmp_path)
    flip_bit(tmp_path / key, 1000)
    bucket.put(key, tmp_path / key)
    with pytest.raises(StoreError, match="lits-028: train/packed cannot be decoded") as caught:
        open_store(prefix)["lits-028"].read_packed()
    assert caught.value.code == "STORE_CORRUPT"
    bucket.put(key, b"short")
    with pytest.raises(StoreError, match="is missing or of another size"):
        open_store(prefix)["lits-028"].read_packed()


def test_a_run_that_dies_while_writing_shows_nothing(
    phantom_lits: Path, tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, count = Bucket.put, [0]

    def dying(self: Bucket, key: str, data: object, **options: object) -> bool:
        count[0] += key.startswith("cases/lits")
        if count[0] > 20:
            raise OSError(5, "the network is gone")
        return put(self, key, data, **options)

    monkeypatch.setattr(Bucket, "put", dying)
    with pytest.raises(OSError, match="the network is gone"):
        ingest(phantom_lits, prefix)
    monkeypatch.undo()
    assert list(open_store(prefix)) == []
    assert any(key.startswith("cases/lits") for key in Bucket(address_of(prefix)).sizes())
    assert ingest(phantom_lits, prefix) == ["published"] * 3
    ingest(phantom_lits, tmp_path / "local")
    assert objects(prefix, tmp_path / "objects") == tree_hash(tmp_path / "local")


def test_replacing_keeps_channels_and_removing_takes_all(phantom_lits: Path, tmp_path: Path, prefix: Path) -> None:
    for store in (prefix, tmp_path / "local"):
        ingest(phantom_lits, store)
        windowed(store, Window(40, 220), Window(60, 140))
        assert ingest(phantom_lits, store, replace=True) == ["published"] * 3
        list(remove_windows(open_store(store), "wl60_ww140"))
        remove_case(store, "lits-048")
    assert list(open_store(prefix)) == ["lits-028", "lits-068"]
    assert objects(prefix, tmp_path / "objects") == tree_hash(tmp_path / "local")
    Bucket(address_of(prefix)).delete(["cases/lits-028/zarr.json"])  # as a run leaves it that is killed while replacing
    ingest(phantom_lits, prefix)
    assert open_store(prefix)["lits-028"].window_names == ["wl40_ww220"]


def test_another_preparation_is_refused(phantom_lits: Path, prefix: Path) -> None:
    ingest(phantom_lits, prefix)
    with pytest.raises(LivError, match="prepared with") as caught:
        ingest(phantom_lits, prefix, profile="small")
    assert caught.value.code == "STORE_PREPARATION"
    with pytest.raises(LivError, match="not changed in an object storage"):
        ingest(phantom_lits, prefix, profile="small", replace=True)


def test_what_is_not_there_is_said(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_store(prefix)
    with pytest.raises(StoreError, match="no such store") as caught:
        open_store(prefix)
    assert caught.value.code == "STORE_MISSING"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="the object storage failed"):
        Bucket("s3://livers/x").get("zarr.json")


def test_the_commands_take_an_address(livprep: Callable[..., object], phantom_lits: Path, prefix: Path) -> None:
    address = address_of(prefix)
    assert livprep("ingest", phantom_lits, "--store", address, "--workers", 2).code == 0
    assert livprep("window", "--store", address, "--wl", 40, "--ww", 220, "--workers", 1).code == 0
    lines = livprep("info", "--store", address, "--json").out.splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["lits-028", "lits-048", "lits-068"]
    assert isinstance(open_store(address), RemoteStore)


def test_a_key_that_leads_elsewhere_is_refused(phantom_lits: Path, prefix: Path, tmp_path: Path) -> None:
    """Keys become names of files here; somebody else may have written them."""
    import boto3

    assert ingest(phantom_lits, prefix) == ["published"] * 3
    _, bucket, *rest = prefix.parts
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{'/'.join(rest)}/splits/../../../evil.json", Body=b"{}")
    with pytest.raises(OSError, match="InvalidPathError"):
        open_store(prefix)
    with pytest.raises(ValueError, match="illegal character sequence"):  # not reached: listing refuses first
        Bucket(address_of(prefix)).download(["splits/../../../evil.json"], tmp_path / "mirror")
    assert not (tmp_path / "evil.json").exists()
    assert not (tmp_path.parent / "evil.json").exists()
