"""The direct reader: what zarr-python reads, from any of our arrays, and nothing from a damaged one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from building import flip_bit
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from livprep.errors import StoreError
from livprep.store import CaseStore, ChunkCache, direct, native, open_store
from livprep.store.arrays import VolumeArray, box_of
from livprep.store.case import CaseStore as SameCaseStore
from livprep.store.direct import open_direct

CHECKS = ["always", "first", "never"]
PACKED = "train/packed"


def write(
    folder: Path,
    values: np.ndarray,
    chunk: tuple[int, int, int] = (8, 16, 16),
    cname: str | None = "lz4hc",
    block: int = 1024,
    **changes: Any,
) -> zarr.Array:
    """An array as the store writes it, but for its chunk and block; `changes` go to zarr."""
    shuffle = "shuffle" if values.itemsize > 1 else "noshuffle"
    blosc = BloscCodec(typesize=values.itemsize, cname=cname or "lz4", clevel=5, shuffle=shuffle, blocksize=block)
    shard = tuple(-(-n // c) * c for n, c in zip(values.shape, chunk, strict=True))
    settings_ = {
        "shape": values.shape,
        "dtype": values.dtype,
        "chunks": chunk,
        "shards": shard,
        "compressors": [Crc32cCodec()] if cname is None else [blosc, Crc32cCodec()],
        "filters": None,
        "fill_value": 0,
    }
    array = zarr.create_array(store=folder, overwrite=True, **{**settings_, **changes})
    array[...] = values
    return array


def volume(shape: tuple[int, ...], dtype: Any, kind: str, seed: int = 0) -> np.ndarray:
    """Values of a type: noise, a smooth field with noise, few values, or mostly 0 in whole chunks."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    if kind == "noise":
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    if kind == "smooth":
        z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
        return (60 + 20 * np.sin(z / 5 + y / 9 + x / 7) + rng.normal(0, 3, shape)).astype(dtype)
    values = np.zeros(shape, dtype=dtype)
    if kind == "sparse":
        values[tuple(int(rng.integers(n)) for n in shape)] = 3
    elif kind == "labels":
        values[shape[0] // 3 :, : shape[1] // 2, : shape[2] // 2] = 2
    return values


def shard_of(folder: Path) -> Path:
    return folder / "c" / "0" / "0" / "0"


# --- equal to zarr-python ---------------------------------------------------------------------------------------

CHUNKS = [(8, 16, 16), (4, 8, 64), (5, 7, 9), (16, 16, 1), (2, 3, 129), (64, 64, 64)]
BLOCKS = [0, 128, 256, 512, 1024, 4096, 16384]


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(1, 140)),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16]),
    kind=st.sampled_from(["noise", "smooth", "labels", "sparse", "empty"]),
    chunk=st.sampled_from(CHUNKS),
    codec=st.sampled_from([None, "lz4", "lz4hc", "zstd"]),
    block=st.sampled_from(BLOCKS),
    cached=st.sampled_from([0, 3000, 1 << 30]),
    data=st.data(),
)
@settings(max_examples=150)
def test_any_region_is_what_zarr_reads(tmp_path, shape, dtype, kind, chunk, codec, block, cached, data) -> None:
    values = volume(shape, dtype, kind)
    write(tmp_path / "a", values, chunk, codec, block)
    array = VolumeArray(tmp_path / "a")
    assert array.is_direct
    assert (array.shape, array.dtype) == (shape, values.dtype)
    array.use_cache(ChunkCache(cached) if cached else None)
    plain = zarr.open_array(tmp_path / "a", mode="r")
    for _ in range(4):
        region = tuple(
            slice(start, data.draw(st.integers(start, size)))
            for start, size in zip(data.draw(st.tuples(*[st.integers(0, n) for n in shape])), shape, strict=True)
        )
        check = data.draw(st.sampled_from(CHECKS))
        expected = np.asarray(plain[region])
        np.testing.assert_array_equal(expected, values[region])
        got = array.read(region, None, check)
        assert (got.dtype, got.shape) == (values.dtype, expected.shape)
        np.testing.assert_array_equal(got, expected)
        around = np.full([n + 2 for n in expected.shape], 77, dtype)
        inner = around[1:-1, 1:-1, 1:-1]  # rows are contiguous, planes are not
        assert array.read(region, inner, check) is inner
        np.testing.assert_array_equal(inner, expected)
        assert np.count_nonzero(around != 77) <= expected.size  # nothing beside it was written
        turned = np.empty(expected.shape[::-1], dtype).T
        np.testing.assert_array_equal(array.read(region, turned, check), expected)


@given(st.tuples(*[st.tuples(*[st.one_of(st.none(), st.integers(-90, 90))] * 2) for _ in range(3)]))
def test_slices_mean_what_they_mean_in_numpy(tmp_path: Path, bounds: tuple) -> None:
    values = volume((9, 20, 33), np.int16, "noise")
    if not (tmp_path / "a").exists():
        write(tmp_path / "a", values)
    region = tuple(slice(*pair) for pair in bounds)
    np.testing.assert_array_equal(VolumeArray(tmp_path / "a").read(region, None, "first"), values[region])


@pytest.mark.parametrize("rows", [4, 16, 24])
def test_blocks_that_blosc_did_not_split_into_bytes(tmp_path: Path, rows: int) -> None:
    """A writer may leave the low and high bytes of a block in one stream; numcodecs never does for LZ4."""
    values = volume((8, 16, 16), np.uint16, "smooth")
    write(tmp_path / "a", values)
    lz4 = ctypes.CDLL(native._blosc2()._name)
    block, streams = rows * 16 * 2, b""
    starts = []
    flat = values.astype("<u2").reshape(-1, rows * 16) if 128 % rows == 0 else None
    if flat is None:  # a last block that is shorter: left to Blosc
        cut = 128 // rows * rows * 16
        pieces = [*values.ravel()[:cut].reshape(-1, rows * 16), values.ravel()[cut:]]
    else:
        pieces = list(flat)
    for piece in pieces:
        shuffled = piece.view(np.uint8).reshape(-1, 2).T.tobytes()
        room = ctypes.create_string_buffer(2 * len(shuffled) + 64)
        size = lz4.LZ4_compress_default(shuffled, room, len(shuffled), len(room))
        starts.append(16 + 4 * len(pieces) + len(streams))
        stream = room.raw[:size] if size < len(shuffled) else shuffled
        streams += struct.pack("<i", len(stream)) + stream
    total = 16 + 4 * len(pieces) + len(streams)
    header = struct.pack("<BBBBiii", 2, 1, 0x01 | 0x10 | 1 << 5, 2, values.nbytes, block, total)
    chunk = header + struct.pack(f"<{len(pieces)}i", *starts) + streams
    chunk += google_crc32c.value(chunk).to_bytes(4, "little")
    index = struct.pack("<QQ", 0, len(chunk))
    shard_of(tmp_path / "a").write_bytes(chunk + index + google_crc32c.value(index).to_bytes(4, "little"))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[...], values)
    array = VolumeArray(tmp_path / "a")
    for region in [
        (slice(None),) * 3,
        (slice(1, 8), slice(3, 15), slice(2, 15)),
        (slice(7, 8), slice(15, 16), slice(3)),
    ]:
        np.testing.assert_array_equal(array.read(region, None, "always"), values[region])


def test_what_is_no_plain_region_goes_to_zarr(tmp_path: Path) -> None:
    values = volume((9, 20, 33), np.int16, "noise")
    write(tmp_path / "a", values)
    array = VolumeArray(tmp_path / "a")
    for region in [(slice(0, 9, 2), slice(None), slice(3, 30, 5)), (4, slice(None), slice(2, 8)), (slice(1, 3), ...)]:
        assert box_of(region, values.shape) is None
        np.testing.assert_array_equal(array.read(region, None, "first"), values[region])
        out = np.empty(values[region].shape, np.int16)
        assert array.read(region, out, "first") is out
        np.testing.assert_array_equal(out, values[region])
        assert array.stored_bytes(region) is None
        array.will_need(region)


FOREIGN = {
    "gzip": {"compressors": [GzipCodec(), Crc32cCodec()]},
    "zstd of zarr": {"compressors": [ZstdCodec()]},
    "no crc": {"compressors": None},
    "bit shuffle": {"compressors": [BloscCodec(typesize=2, cname="lz4", shuffle="bitshuffle"), Crc32cCodec()]},
    "another typesize": {"compressors": [BloscCodec(typesize=4, cname="lz4", shuffle="shuffle"), Crc32cCodec()]},
    "blosclz": {"compressors": [BloscCodec(typesize=2, cname="blosclz", shuffle="shuffle"), Crc32cCodec()]},
    "big endian": {"serializer": BytesCodec(endian="big")},
    "transposed": {"filters": [TransposeCodec(order=(2, 1, 0))]},
    "fill value": {"fill_value": 7},
    "several shards": {"shards": (8, 16, 16)},
    "no shards": {"shards": None},
    "larger shard": {"shards": (32, 64, 64)},
    "separator": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "index first": {
        "shards": None,
        "chunks": (16, 32, 48),
        "compressors": None,
        "serializer": ShardingCodec(chunk_shape=(8, 16, 16), index_location="start"),
    },
    "another type": {"dtype": np.int32},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_arrays_are_read_by_zarr(tmp_path: Path, name: str) -> None:
    values = volume((9, 20, 33), np.int16, "smooth")
    write(tmp_path / "a", values, **FOREIGN[name])
    array = VolumeArray(tmp_path / "a")
    assert not array.is_direct
    array.use_cache(ChunkCache(1000))
    region = (slice(2, 9), slice(3, 20), slice(0, 33))
    np.testing.assert_array_equal(array.read(region, None, "never"), values[region])
    out = np.empty((7, 17, 33), array.dtype)
    assert array.read(region, out, "never") is out
    np.testing.assert_array_equal(out, values[region])
    array.will_need(region)
    assert array.stored_bytes(region) is None


def test_unknown_metadata_is_left_to_zarr(tmp_path: Path) -> None:
    write(tmp_path / "a", volume((9, 20, 33), np.int16, "smooth"))
    path = tmp_path / "a" / "zarr.json"
    node = json.loads(path.read_text())
    assert open_direct(tmp_path / "a") is not None
    for change in (
        {"shape": [9, 20]}, {"shape": [9, 20, True]}, {"shape": [9, 20, -33]}, {"shape": None}, {"codecs": []},
        {"codecs": node["codecs"] * 2}, {"zarr_format": 2}, {"data_type": ["int16"]}, {"fill_value": None},
        {"shape": [1 << 40, 1 << 40, 1 << 40]}, {"new": {"must_understand": True}}, {"storage_transformers": [1]},
    ):  # fmt: skip
        path.write_text(json.dumps({**node, **change}))
        assert open_direct(tmp_path / "a") is None, change
    for text in ("", "[", "[]", "null", "[" * 5000):
        path.write_text(text)
        assert open_direct(tmp_path / "a") is None


# --- in a store -------------------------------------------------------------------------------------------------


def read_all(case: CaseStore, region: tuple | None = None) -> list[np.ndarray]:
    return [
        case.read_hu(region),
        case.read_labels(region),
        case.read_packed(region),
        *(case.read_window(name, region) for name in case.window_names),
    ]


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of each profile with one case of 70 x 90 x 130 voxels; do not change it."""
    from building import scan
    from test_store import NATIVE, WINDOW, content

    from livprep.store import add_window, create_store, publish_case

    stores = {}
    for name in ("fast", "balanced", "small"):
        stores[name] = tmp_path_factory.mktemp("profiles") / name
        create_store(stores[name], NATIVE, name, "digest")
        publish_case(stores[name], content(volume=scan((70, 90, 130))), name)
        add_window(stores[name], "lits-000", WINDOW, 0)
    return stores


@pytest.mark.parametrize("profile", ["fast", "balanced", "small"])
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("cached", [False, True])
def test_all_arrays_of_a_case_are_read_directly(profiles: dict, profile: str, check: str, cached: bool) -> None:
    opened = open_store(profiles[profile], check)
    cache = ChunkCache(1 << 30)
    if cached:
        opened.use_cache(cache)
    case = opened["lits-000"]
    region = (slice(5, 69), slice(60, 80), slice(1, 129))
    for _ in range(2):
        for name, values in zip(
            ("hu/scale0/image", "hu/labels/liver_tumor/image", PACKED, "windows/wl40_ww220/scale0/image"),
            read_all(case, region), strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(values, zarr.open_array(case.path / name, mode="r")[region])
    assert len(case._opened) == 4
    assert all(array.is_direct for array in case._opened.values())
    assert (cache.bytes_used > 0) == (cached and profile != "fast")  # the system holds the pages of raw chunks


def test_reading_into_the_callers_array(profiles: dict) -> None:
    case = open_store(profiles["balanced"])["lits-000"]
    region = (slice(5, 69), slice(60, 80), slice(1, 129))
    shape = (64, 20, 128)
    for read, dtype in (
        (case.read_hu, np.int16), (case.read_labels, np.uint8), (case.read_packed, np.uint16),
        (lambda region, out: case.read_window("wl40_ww220", region, out), np.uint8),
    ):  # fmt: skip
        slot = np.empty((2, *shape), dtype)
        view = slot[1]
        assert read(region, view) is view
        np.testing.assert_array_equal(view, read(region, None))
    whole = np.empty(case.shape_zyx, np.uint16)
    assert case.read_packed(out=whole) is whole
    np.testing.assert_array_equal(whole, case.read_packed())


@pytest.mark.parametrize("out", [np.empty((2, 2, 2), np.int16), np.empty((2, 2, 3), np.uint16), np.empty(8, np.uint16)])
def test_an_array_that_cannot_take_the_region_is_refused(profiles: dict, out: np.ndarray) -> None:
    case = open_store(profiles["balanced"])["lits-000"]
    with pytest.raises(ValueError, match=r"expected writable uint16 \(2, 2, 2\)"):
        case.read_packed((slice(2), slice(2), slice(2)), out)
    locked = np.empty((2, 2, 2), np.uint16)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="expected writable"):
        case.read_packed((slice(2), slice(2), slice(2)), locked)


def test_bytes_of_the_packed_array(profiles: dict) -> None:
    for path in profiles.values():
        case = open_store(path)["lits-000"]
        shard = shard_of(case.path / PACKED).stat().st_size
        assert case.packed_bytes() == shard
        everything = case.packed_bytes((slice(None),) * 3)
        assert everything == shard - 16 * 2 * 2 * 3 - 4  # without the index
        parts = [case.packed_bytes((slice(z, z + 1), slice(y, y + 1), slice(x, x + 1)))
                 for z in (0, 64) for y in (0, 64) for x in (0, 64, 128)]  # fmt: skip
        assert sum(parts) == everything
        assert case.packed_bytes((slice(3, 3), slice(None), slice(None))) == 0
        case.will_need_packed()
        case.will_need_packed((slice(3, 3), slice(None), slice(None)))
        case.will_need_packed((slice(60, 69), slice(60, 89), slice(120, 129)))


def test_a_case_travels_with_its_check_and_without_its_cache(profiles: dict) -> None:
    opened = open_store(profiles["balanced"], "never")
    opened.use_cache(ChunkCache(1000))
    again, case = pickle.loads(pickle.dumps((opened, opened["lits-000"])))
    assert (again.check, case.check, again["lits-000"].check) == ("never",) * 3
    assert case._cache is None
    assert SameCaseStore is CaseStore


def test_points_near_the_liver_where_the_store_has_them(store_copy: Path) -> None:
    case = open_store(store_copy)["ircadb-01"]
    path = case.path / "index" / "manifest.json"
    if "near/zarr.json" in case.manifests()["index"]["files"]:
        assert case.near_points().shape[1] == 3
        return
    assert case.near_points().shape == (0, 3)
    points = np.array([[1, 2, 3], [3, 4, 5]], np.int16)
    array = zarr.create_array(store=case.path / "index/near", shape=points.shape, dtype=np.int16, chunks=(2, 3))
    array[...] = points
    manifest = json.loads(path.read_text())
    for name in ("near/zarr.json", "near/c/0/0"):
        manifest["files"][name] = {"size": (path.parent / name).stat().st_size, "sha256": ""}
    path.write_text(json.dumps(manifest))
    near = open_store(store_copy)["ircadb-01"].near_points()
    assert near.dtype == np.int32
    np.testing.assert_array_equal(near, points)


# --- threads, files, processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 700_000, 1 << 30])
def test_threads_read_the_same(profiles: dict, budget: int | None) -> None:
    opened = open_store(profiles["balanced"])
    cache = None if budget is None else ChunkCache(budget)
    opened.use_cache(cache)
    case = opened["lits-000"]
    whole = zarr.open_array(case.path / PACKED, mode="r")[...]
    barrier = threading.Barrier(4)

    def work(seed: int) -> int:
        rng = np.random.default_rng(seed)
        barrier.wait()
        for _ in range(60):
            start = [int(rng.integers(0, n - 20)) for n in whole.shape]
            region = tuple(slice(s, s + int(rng.integers(1, 60))) for s in start)
            np.testing.assert_array_equal(case.read_packed(region), whole[region])
            if seed == 0 and rng.random() < 0.2:
                case.close()
        return seed

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == [0, 1, 2, 3]
    if cache is not None:
        chunk = 64**3 * 2
        assert cache.bytes_used == min(12, budget // chunk) * chunk


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def maps_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def test_nothing_is_left_open(profiles: dict) -> None:
    path = profiles["balanced"]
    region = (slice(3, 20), slice(60, 70), slice(60, 70))
    expected = open_store(path)["lits-000"].read_packed(region)
    before, threads = open_files(), threading.active_count()
    for k in range(2000):
        case = open_store(path)["lits-000"] if k % 20 == 0 else case  # noqa: F821
        np.testing.assert_array_equal(case.read_packed(region), expected)
        if k % 20 == 10:
            case.close()
    assert maps_of(path) == 1
    assert open_files() == before  # not even while it is mapped
    case.close()
    assert maps_of(path) == 0
    case.read_packed(region)
    del case
    assert maps_of(path) == 0
    assert threading.active_count() == threads


def test_a_removed_case_is_read_to_its_end(tmp_path: Path, profiles: dict) -> None:
    import shutil

    path = shutil.copytree(profiles["balanced"], tmp_path / "s")
    case = open_store(path)["lits-000"]
    region = (slice(3, 20), slice(60, 70), slice(60, 70))
    expected = case.read_packed(region)
    shutil.rmtree(case.path)
    np.testing.assert_array_equal(case.read_packed(region), expected)


def test_a_forked_child_reads_what_its_parent_opened(profiles: dict) -> None:
    case = open_store(profiles["balanced"])["lits-000"]
    region = (slice(3, 20), slice(60, 70), slice(60, 70))
    expected = case.read_packed(region)
    child = os.fork()
    if child == 0:
        other = (slice(30, 69), slice(5, 80), slice(100, 120))
        good = np.array_equal(case.read_packed(region), expected) and case.read_packed(other).any()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_numba_is_loaded_by_the_first_array_alone(profiles: dict) -> None:
    code = (
        "import sys, livprep.store; case = livprep.store.open_store(sys.argv[1])['lits-000']; case.meta; "
        "assert 'livprep.store.kernels' not in sys.modules; case.read_packed(); "
        "assert 'livprep.store.kernels' in sys.modules; assert 'blosc2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(profiles["balanced"])], check=True)


# --- the cache --------------------------------------------------------------------------------------------------


def test_the_cache_is_filled_to_its_budget_and_then_static(tmp_path: Path) -> None:
    values = volume((16, 32, 32), np.uint16, "smooth")
    write(tmp_path / "a", values)
    cache, size = ChunkCache(3 * 4096 + 100), 4096
    array = VolumeArray(tmp_path / "a")
    array.use_cache(cache)
    assert (cache.bytes_used, cache.full) == (0, False)
    array.read((slice(0, 1),) * 3, None, "first")
    assert cache.bytes_used == size
    np.testing.assert_array_equal(array.read((slice(0, 16),) * 3, None, "first"), values[:, :16, :16])
    assert cache.bytes_used == 2 * size
    np.testing.assert_array_equal(array.read((slice(None),) * 3, None, "first"), values)
    assert (cache.bytes_used, cache.full) == (3 * size, True)
    again = VolumeArray(tmp_path / "a")
    again.use_cache(cache)  # the same file, opened again, uses the same chunks
    np.testing.assert_array_equal(again.read((slice(None),) * 3, None, "first"), values)
    assert cache.bytes_used == 3 * size
    array.use_cache(None)
    np.testing.assert_array_equal(array.read((slice(None),) * 3, None, "first"), values)


def test_what_is_cached_is_not_read_again(tmp_path: Path) -> None:
    values = volume((8, 16, 40), np.uint16, "smooth")
    write(tmp_path / "a", values)
    array = VolumeArray(tmp_path / "a")
    array.use_cache(ChunkCache(1 << 20))
    first = (slice(None), slice(None), slice(0, 16))
    array.read(first, None, "always")
    shard = shard_of(tmp_path / "a")
    index = shard.stat().st_size - 3 * 16 - 4
    with shard.open("r+b") as file:
        file.write(bytes(index))
    np.testing.assert_array_equal(array.read(first, None, "always"), values[first])
    with pytest.raises(ValueError, match="crc32c"):
        array.read((slice(None),) * 3, None, "first")
    np.testing.assert_array_equal(array.read(first, None, "first"), values[first])


def test_a_damaged_chunk_gives_its_room_back(tmp_path: Path) -> None:
    write(tmp_path / "a", volume((8, 16, 16), np.uint16, "smooth"))
    flip_bit(shard_of(tmp_path / "a"), 40)
    cache = ChunkCache(4096)
    array = VolumeArray(tmp_path / "a")
    array.use_cache(cache)
    for _ in range(3):
        with pytest.raises(ValueError, match=r"chunk \(0, 0, 0\): its crc32c"):
            array.read((slice(None),) * 3, None, "first")
        assert (cache.bytes_used, cache.full) == (0, False)


def test_a_replaced_file_does_not_meet_the_chunks_of_the_old_one(tmp_path: Path) -> None:
    cache = ChunkCache(1 << 20)
    for seed in range(3):
        values = volume((8, 16, 16), np.uint16, "noise", seed)
        write(tmp_path / "new", values)
        (tmp_path / "new").rename(tmp_path / f"a{seed}")
        array = VolumeArray(tmp_path / f"a{seed}")
        array.use_cache(cache)
        for _ in range(2):
            np.testing.assert_array_equal(array.read((slice(None),) * 3, None, "first"), values)


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "lz4hc", "zstd"])
def test_a_flipped_bit_is_found_when_the_chunk_is_checked(tmp_path: Path, codec: str | None) -> None:
    values = volume((8, 16, 40), np.uint16, "smooth")
    write(tmp_path / "a", values, cname=codec)
    shard = shard_of(tmp_path / "a")
    array = VolumeArray(tmp_path / "a")
    part = (slice(None), slice(None), slice(0, 16))
    array.read(part, None, "never")
    first_chunk = array._direct._ranges[0]
    flip_bit_in_place(shard, int(first_chunk[0]) + 60)
    with pytest.raises(ValueError, match=r"chunk \(0, 0, 0\): its crc32c is not that of its bytes"):
        array.read(part, None, "first")
    with pytest.raises(ValueError, match="crc32c"):
        array.read(part, None, "first")  # it is no better the second time
    flip_bit_in_place(shard, int(first_chunk[0]) + 60)
    array.read(part, None, "first")
    flip_bit_in_place(shard, int(first_chunk[0]) + 60)
    try:  # known as good: what comes is garbage or not decodable, but no crash
        array.read(part, None, "first")
    except ValueError as error:
        assert "decode" in str(error) or "header" in str(error)  # noqa: PT017
    with pytest.raises(ValueError, match="crc32c"):
        array.read(part, None, "always")
    np.testing.assert_array_equal(array.read((slice(None), slice(None), slice(16, 40)), None, "always"),
                                  values[:, :, 16:])  # fmt: skip


def flip_bit_in_place(path: Path, offset: int) -> None:
    """Flip a bit without replacing the file, so that an open map sees it."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def with_index(shard: bytes, entries: np.ndarray) -> bytes:
    """A shard with another index and its right crc32c."""
    index = entries.astype("<u8").tobytes()
    return shard[: -len(index) - 4] + index + google_crc32c.value(index).to_bytes(4, "little")


def test_an_index_that_points_outside_is_refused(tmp_path: Path) -> None:
    values = volume((8, 16, 40), np.uint16, "smooth")
    write(tmp_path / "a", values)
    shard = shard_of(tmp_path / "a")
    whole = shard.read_bytes()
    entries = np.frombuffer(whole[-3 * 16 - 4 : -4], "<u8").reshape(3, 2)
    end = len(whole) - 3 * 16 - 4
    for offset, length in [
        (end, 20), (end - 19, 20), (0, end + 1), (2**63, 100), (2**64 - 1, 100), (0, 2**64 - 1), (0, 0), (0, 19),
        (2**64 - 50, 100), (2**63, 2**63), (2**63 - 10, 30), (end + 1, 2**64 - 1), (2**62, 2**62),
    ]:  # fmt: skip
        changed = entries.copy()
        changed[1] = offset, length
        shard.write_bytes(with_index(whole, changed))
        with pytest.raises(ValueError, match=r"chunk \(0, 0, 1\) is said to lie outside the shard"):
            VolumeArray(tmp_path / "a")
    shard.write_bytes(with_index(whole, entries))
    np.testing.assert_array_equal(VolumeArray(tmp_path / "a").read((slice(None),) * 3, None, "always"), values)
    for cut in (b"", whole[:3], whole[: 3 * 16 + 3], whole[:-1], whole[1:], whole + b"x"):
        shard.write_bytes(cut)
        with pytest.raises(ValueError, match="shard"):
            VolumeArray(tmp_path / "a").read((slice(None),) * 3, None, "never")


def test_damage_is_named_with_its_case(tmp_path: Path, profiles: dict) -> None:
    import shutil

    path = shutil.copytree(profiles["small"], tmp_path / "s")
    shard = shard_of(open_store(path)["lits-000"].path / PACKED)
    flip_bit(shard, 1000)
    with pytest.raises(StoreError, match=r"lits-000: train/packed cannot be decoded \(chunk \(\d, \d, \d\): its crc"):
        open_store(path)["lits-000"].read_packed()
    flip_bit(shard, 1000)
    flip_bit(shard, -30)
    with pytest.raises(StoreError, match=r"lits-000: train/packed cannot be decoded .*index") as caught:
        open_store(path)["lits-000"].will_need_packed()
    assert caught.value.code == "STORE_CORRUPT"


HEADERS = [(3, 4), (3, 0), (4, 0xFF), (5, 0), (7, 0x80), (9, 0), (8, 1), (11, 0x7F), (11, 0xFF), (12, 0), (15, 0xFF),
           (2, 0x05), (2, 0x02), (2, 0x08), (2, 0xE1)]  # fmt: skip


@pytest.mark.parametrize("codec", ["lz4hc", "zstd"])
@pytest.mark.parametrize(("place", "value"), HEADERS)
def test_a_hostile_header_is_refused(tmp_path: Path, codec: str, place: int, value: int) -> None:
    write(tmp_path / "a", volume((8, 16, 16), np.uint16, "smooth"), cname=codec)
    shard = shard_of(tmp_path / "a")
    data = bytearray(shard.read_bytes())
    data[place] = value
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"chunk \(0, 0, 0\): its Blosc header does not fit the array"):
        VolumeArray(tmp_path / "a").read((slice(None),) * 3, None, "never")


@pytest.mark.parametrize("codec", ["lz4hc", "zstd", "lz4 by getitem"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint8])
def test_no_bytes_make_it_write_beside_its_target(tmp_path: Path, monkeypatch, codec: str, dtype: Any) -> None:
    values = volume((8, 16, 40), dtype, "smooth")
    write(tmp_path / "a", values, cname=codec.split()[0], block=1024)
    if "getitem" in codec:
        functions = replace(native.native(), lz4=0)
        monkeypatch.setattr(direct, "native", lambda: functions)
    shard = shard_of(tmp_path / "a")
    whole = shard.read_bytes()
    end = len(whole) - 3 * 16 - 4
    scratch = np.full(8 * 16 * 16 * values.itemsize + 4096, 0xA5, np.uint8)
    direct._scratch.room, direct._scratch.address = scratch, scratch.ctypes.data
    rng = np.random.default_rng(1)
    array = VolumeArray(tmp_path / "a")
    decoded = 0
    for k in range(6000):
        data = bytearray(whole)
        low, high = ((0, end), (0, 60), (16, 100))[k % 3]  # anywhere, header and block table, streams
        for place in rng.integers(low, high, rng.integers(1, 6)):
            data[place] = rng.integers(256) if k % 2 else data[place] ^ (1 << int(rng.integers(8)))
        with shard.open("r+b") as file:  # in place: the open map sees it
            file.write(data)
        around = np.full((10, 18, 42), 55, dtype)
        with contextlib.suppress(ValueError):
            array.read((slice(None),) * 3, around[1:-1, 1:-1, 1:-1], "never")
            decoded += 1
        around[1:-1, 1:-1, 1:-1] = 55
        assert (around == 55).all()
        assert (scratch[-4096:] == 0xA5).all()
    assert 100 < decoded < 5900
    del direct._scratch.room


# --- without the compiled part ----------------------------------------------------------------------------------

WITHOUT = ["numba", "getitem", "lz4", "crc32c", "madvise"]


@pytest.mark.parametrize("missing", WITHOUT)
@pytest.mark.parametrize("codec", [None, "lz4hc", "zstd"])
def test_the_same_bytes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, codec: str) -> None:
    values = volume((9, 33, 70), np.uint16, "smooth")
    write(tmp_path / "a", values, cname=codec)
    if missing == "numba":
        monkeypatch.setattr(direct, "compiled", lambda: None)
    else:
        functions = replace(native.native(), **{missing: 0})
        monkeypatch.setattr(direct, "native", lambda: functions)
    array = VolumeArray(tmp_path / "a")
    assert array.is_direct == (missing != "numba" and not (missing == "getitem" and codec))
    for region in [(slice(None),) * 3, (slice(2, 7), slice(13, 30), slice(3, 68))]:
        array.will_need(region)
        out = np.empty(values[region].shape, np.uint16)
        np.testing.assert_array_equal(array.read(region, out, "always"), values[region])


def test_a_numba_that_cannot_compile_is_told_and_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise LookupError("odd")

    direct.compiled.cache_clear()
    monkeypatch.setattr(direct.importlib, "import_module", fail)
    with pytest.warns(RuntimeWarning, match="read by zarr-python, five times slower: odd"):
        assert direct.compiled() is None
    direct.compiled.cache_clear()
    monkeypatch.setattr(direct.importlib.util, "find_spec", lambda name: None)
    assert direct.compiled() is None
    monkeypatch.undo()
    direct.compiled.cache_clear()
    assert direct.compiled() is not None


def test_compiling_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from livprep.store import primitives

    calls = []

    def njit(signature: str, **options: bool) -> Any:
        calls.append(options)
        if "cache" in options:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(primitives, "njit", njit)
    assert primitives.compiled("int64()")(len) is len
    assert calls == [{"nogil": True, "cache": True}, {"nogil": True}]


def test_the_libraries_are_found() -> None:
    found = native.native()
    assert min(found.getitem, found.lz4, found.crc32c, found.madvise) > 0
    assert native._library(Path("/nowhere.so")) is None
    assert native._address(None, "f") == 0


@given(st.binary(max_size=100))
def test_both_crc32c_are_that_of_the_standard(data: bytes) -> None:
    from livprep.store import kernels

    room = np.frombuffer(data + bytes(4), np.uint8)
    expected = google_crc32c.value(data)
    assert kernels.crc32c(room.ctypes.data, len(data), 0) == expected
    assert kernels.crc32c(room.ctypes.data, len(data), native.native().crc32c) == expected


def test_crc32c_of_the_known_string() -> None:
    from livprep.store import kernels

    room = np.frombuffer(b"123456789" + bytes(4), np.uint8)
    assert kernels.crc32c(room.ctypes.data, 9, 0) == 0xE3069283  # RFC 3720, B.4, and every catalogue of checksums
