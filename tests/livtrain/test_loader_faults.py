"""Damaged chunks, memory that goes round, and what a loader leaves behind."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from fake_store import BANK, FakeCase, FakeStore, abdomen, fake_store

from livprep.errors import StoreError
from livprep.store import open_store
from livtrain.loader import PatchLoader
from livtrain.loader.slots import SlotPool

PATCH = (8, 16, 16)


class Damaged(FakeCase):
    """A case that cannot be decoded in one corner."""

    code = "STORE_CORRUPT"

    def read_packed(self, region: Any = None, out: np.ndarray | None = None) -> np.ndarray:
        if region[0].start < 2 and region[1].start < 4:
            raise StoreError(self.code, f"{self.case_id}: train/packed cannot be decoded (chunk (0, 0, 0))")
        return super().read_packed(region, out)


def _damaged(count: int = 3) -> FakeStore:
    cases: list[FakeCase] = [FakeCase(f"good-{k}", *abdomen(k)) for k in range(count)]
    return FakeStore([*cases, Damaged("bad", *abdomen(9))])


def _stream(store: FakeStore, stop: int = 20_000, count: int = 150, **options: Any) -> tuple[list[Any], list[str]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with PatchLoader(store, PATCH, 2, odds={"anywhere": 1}, stop=stop, tier="disk", **options) as loader:
            batches = [next(loader) for _ in range(count)]
    return batches, [str(each.message) for each in seen]


@pytest.mark.parametrize("group", [1, 2])
def test_a_damaged_patch_is_drawn_again_and_its_case_named(group: int) -> None:
    one, warned = _stream(_damaged(), workers=1, patches_per_read=group)
    assert 0 < len(warned) < 20
    assert all("case bad cannot be read: bad: train/packed" in text for text in warned)
    assert all("livprep verify --deep" in text for text in warned)
    many, again = _stream(_damaged(), workers=4, prefetch=6, patches_per_read=group)
    assert warned == again
    for a, b in zip(one, many, strict=True):
        assert (a.counters, a.case_ids) == (b.counters, b.case_ids)
        assert torch.equal(a.image_BCZYX, b.image_BCZYX)
    counters = [k for batch in one for k in batch.counters]
    assert counters == list(range(300))
    # a resumed run draws the same in its place
    later, _ = _stream(_damaged(), start=100, count=100, patches_per_read=group)
    assert all(torch.equal(a.image_BCZYX, b.image_BCZYX) for a, b in zip(one[50:], later, strict=True))


def test_the_patches_of_other_counters_stay() -> None:
    damaged, warned = _stream(_damaged())
    sound = FakeStore([*(_damaged()[name] for name in ("good-0", "good-1", "good-2")), FakeCase("bad", *abdomen(9))])
    expected, _ = _stream(sound)
    changed = [
        a.counters[k]
        for a, b in zip(damaged, expected, strict=True)
        for k in range(2)
        if not torch.equal(a.image_BCZYX[k], b.image_BCZYX[k])
    ]
    assert changed
    assert all(any(f"patch {k} of case bad" in text for text in warned) for k in changed)


def test_too_many_damaged_patches_end_the_run() -> None:
    with pytest.raises(
        StoreError, match=r"patches could not be read, expected at most 0\.1% of a run; the last: patch"
    ):
        _stream(_damaged(), stop=2000, count=1000)


def test_other_errors_are_not_passed_over() -> None:
    class Missing(Damaged):
        code = "STORE_CASE_UNKNOWN"

    store = FakeStore([Missing("bad", *abdomen(9))])
    with pytest.raises(StoreError, match="bad: train/packed"):
        _stream(store)


def test_a_case_that_cannot_be_read_at_all_ends_the_run() -> None:
    class Gone(FakeCase):
        def read_packed(self, region: Any = None, out: np.ndarray | None = None) -> np.ndarray:
            raise StoreError("STORE_CORRUPT", "gone: is missing")

    with pytest.raises(StoreError, match="gone: is missing"):
        _stream(FakeStore([Gone("gone", *abdomen(0))]))


def test_a_flipped_bit_on_disk_is_met(store_copy: Path) -> None:
    shard = store_copy / "cases" / "ircadb-01" / "train" / "packed" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 4] ^= 4
    shard.write_bytes(data)
    lines: list[str] = []
    with PatchLoader(
        open_store(store_copy), (16, 24, 24), 2, odds={"anywhere": 1}, tier="disk", stop=100_000, say=lines.append
    ) as loader:
        for _ in range(30):
            next(loader)
    faults = [line for line in lines if line.startswith("warning: patch")]
    assert faults
    assert all("case ircadb-01 cannot be read" in line for line in faults)


# --- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deliver", ["channels", "packed", "nnunet"])
@pytest.mark.parametrize("tier", ["disk", "device"])
def test_a_batch_that_is_kept_is_not_overwritten(deliver: str, tier: str) -> None:
    with PatchLoader(fake_store(), PATCH, 2, windows=BANK, deliver=deliver, tier=tier) as loader:  # type: ignore[arg-type]
        kept = [next(loader) for _ in range(12)]
        part = next(loader).labels_BZYX[1, 2:4]  # a view alone keeps its memory
        copies = [batch.image_BCZYX.clone() for batch in kept]
        before = part.clone()
        for _ in range(12):
            next(loader)
        assert all(torch.equal(batch.image_BCZYX, copy) for batch, copy in zip(kept, copies, strict=True))
        assert torch.equal(part, before)


def test_memory_goes_round() -> None:
    with PatchLoader(fake_store(), PATCH, 2, windows=BANK, tier="disk", prefetch=3) as loader:
        for _ in range(60):
            batch = next(loader)
        assert batch.counters[0] == 118
        buffers = loader._filler.buffers
        made = [pool.made for pool in (buffers.slots, buffers.images, buffers.labels)]  # type: ignore[attr-defined]
    assert made[0] <= 3  # the threads' own
    assert max(made[1:]) <= 3 + 2 + 2  # ahead, being filled, the consumer's


def test_slots_grow_and_return() -> None:
    pool = SlotPool(np.uint16)
    small = pool.take((2, 3))
    assert (small.dtype, small.shape) == (np.uint16, (2, 3))
    tensor = pool.tensor(small)[1]
    del small
    assert pool.take((2, 3)).shape == (2, 3)
    assert pool.made == 2  # the first is still referred to
    del tensor
    gc.collect()
    pool.take((2, 3))
    assert pool.made == 2
    pool.take((400,))
    assert pool.made >= 3


def _handles() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not walked


def test_loaders_leave_nothing_behind(small_store: Path) -> None:
    def use() -> None:
        with PatchLoader(open_store(small_store), PATCH, 2, tier="disk", workers=3) as loader:
            for _ in range(5):
                next(loader)

    use()
    gc.collect()
    threads, handles = threading.active_count(), _handles()
    for _ in range(5):
        use()
    gc.collect()
    assert threading.active_count() == threads
    assert _handles() <= handles


def _steady(store: Path, seconds: float, patches: int) -> tuple[float, int]:
    """Stream for some time; growth of resident memory in MB after a tenth of it, and the patches seen."""
    process = psutil.Process()
    with PatchLoader(open_store(store), (32, 32, 32), 2, tier="disk", workers=2) as loader:
        began, seen, base, handles, threads = time.monotonic(), 0, 0, 0, 0
        while time.monotonic() - began < seconds or seen < patches:
            seen += len(next(loader).counters)
            if base == 0 and seen >= patches // 10 and time.monotonic() - began >= seconds / 10:
                base, handles, threads = process.memory_info().rss, _handles(), threading.active_count()
        assert (_handles(), threading.active_count()) == (handles, threads)
        return (process.memory_info().rss - base) / 1e6, seen


def test_memory_threads_and_handles_stay(small_store: Path) -> None:
    growth_mb, _ = _steady(small_store, 0.0, 600)
    assert growth_mb < 8


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_memory_threads_and_handles_stay_for_minutes(small_store: Path) -> None:
    growth_mb, seen = _steady(small_store, 300.0, 10_000)
    assert seen >= 10_000
    assert growth_mb < 16
