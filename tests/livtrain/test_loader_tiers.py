"""The same bits from each tier, form of delivery and number of threads; how a tier is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from fake_store import BANK, FakeCase, FakeStore, abdomen, fake_store

from livprep.errors import StoreError, UsageError
from livprep.geometry import Triple
from livprep.store import open_store
from livprep.windows import Window, WindowBank
from livtrain.loader import TIERS, Batch, PatchLoader, choose_tier
from livtrain.loader.tiers import free_memory
from livtrain.sampling import STAGE_ODDS, CaseIndex, PatchSampler, Shape
from livtrain.unpack import CtNormalization, unpack

PATCH = (8, 16, 16)
WIDE = WindowBank((Window(3000, 220), Window(40, 220)))
CPU = torch.device("cpu")


def _batches(store: Any, count: int = 6, patch: Shape = PATCH, **options: Any) -> list[Batch]:
    with PatchLoader(
        store, patch, 2, **{"stage": "tumor", "seed": 5, "windows": BANK, "stop": 2 * count, **options}
    ) as loader:
        return list(loader)


def _equal(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    assert len(first) == len(second)
    return all(
        torch.equal(a.image_BCZYX, b.image_BCZYX)
        and torch.equal(a.labels_BZYX, b.labels_BZYX)
        and (a.counters, a.case_ids, a.spacing_mm) == (b.counters, b.case_ids, b.spacing_mm)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("patch", [PATCH, (40, 48, 24)])
@pytest.mark.parametrize("deliver", ["channels", "packed", "nnunet"])
def test_each_tier_gives_the_same_bits(small_store: Path, patch: Shape, deliver: str) -> None:
    store = open_store(small_store)
    by_tier = {
        tier: _batches(store, patch=patch, tier=tier, deliver=deliver, workers=workers, prefetch=workers + 1)
        for tier, workers in (("disk", 1), ("disk", 4), ("ram", 2), ("device", 2))
    }
    reference = by_tier.pop("disk")
    assert all(_equal(reference, batches) for batches in by_tier.values())
    assert reference[0].image_BCZYX.shape == (2, 1 if deliver == "nnunet" else 2, *patch)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("group", [1, 3])
def test_threads_and_resuming_change_nothing(small_store: Path, threads: int, group: int) -> None:
    store = open_store(small_store)
    one = _batches(store, workers=1, patches_per_read=group)
    many = _batches(store, workers=threads, prefetch=threads, patches_per_read=group)
    assert _equal(one, many)
    assert _equal(one[3:], _batches(store, workers=threads, start=6, patches_per_read=group))


def test_ranks_together_are_the_stream_of_one(small_store: Path) -> None:
    store = open_store(small_store)
    with PatchLoader(store, PATCH, 4, seed=5, windows=BANK, stop=24) as loader:
        whole = [(k, image) for batch in loader for k, image in zip(batch.counters, batch.image_BCZYX, strict=True)]
    ranks = [_batches(store, stop=24, stage="liver", rank=rank, world=2) for rank in (0, 1)]
    parts = [
        (k, image)
        for pair in zip(*ranks, strict=True)
        for batch in pair
        for k, image in zip(batch.counters, batch.image_BCZYX, strict=True)
    ]
    assert [k for k, _ in parts] == [k for k, _ in whole] == list(range(24))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(parts, whole, strict=True))


def test_packed_voxels_are_unpacked_when_asked() -> None:
    store = fake_store()
    packed, channels = _batches(store, deliver="packed"), _batches(store)
    assert packed[0].packed_BZYX.dtype == torch.uint16
    assert packed[0].unpacked is None
    assert _equal(packed, channels)
    image, labels = unpack(packed[0].packed_BZYX, BANK)
    assert torch.equal(image, channels[0].image_BCZYX)
    assert torch.equal(labels, channels[0].labels_BZYX)
    with pytest.raises(UsageError, match="deliver='packed'"):
        _ = channels[0].packed_BZYX
    bare = _batches(fake_store(bank=WindowBank(())), deliver="packed", windows=None)
    with pytest.raises(UsageError, match="expected windows for channels"):
        _ = bare[0].image_BCZYX


def test_types_of_nnunet() -> None:
    store = fake_store(2)
    found = _batches(store, deliver="nnunet", normalization=CtNormalization(-100, 300, 50, 25), windows=WIDE)
    packed = _batches(store, deliver="packed")
    for a, b in zip(found, packed, strict=True):
        assert (a.image_BCZYX.dtype, a.labels_BZYX.dtype) == (torch.float32, torch.int16)
        hu = (b.packed_BZYX.to(torch.int32) & 4095) - 1024
        torch.testing.assert_close(a.image_BCZYX[:, 0], (hu.float().clamp(-100, 300) - 50) / 25)
        assert torch.equal(a.labels_BZYX, (b.packed_BZYX.to(torch.int32) >> 12).short())


@pytest.mark.parametrize("options", [{"source": "stored"}, {"windows": WIDE}])
def test_channels_that_are_not_in_the_packed_array(options: dict[str, Any]) -> None:
    bank = options.get("windows", BANK)
    store = fake_store(2, bank=bank)
    first = _batches(store, **{"windows": bank, **options})
    assert _equal(first, _batches(store, **{"windows": bank, "workers": 1, "tier": "disk", **options}))
    for batch in first:
        case = store[batch.case_ids[0]]
        values = torch.unique(torch.from_numpy(bank.apply(case.hu))).float() / 255
        assert torch.isin(batch.image_BCZYX[0], values).all()
    for tier in ("ram", "device"):
        with pytest.raises(UsageError, match="holds the packed array, which is not read here"):
            _batches(store, **{"windows": bank, "tier": tier, **options})
    with pytest.raises(UsageError, match="expected source 'packed' and windows within"):
        _batches(store, **{"windows": bank, "deliver": "packed", **options})


def test_a_margin_is_read_for_the_patches_that_need_it() -> None:
    def margin(counter: int, spacing_mm: Triple) -> Shape:
        assert spacing_mm == (2.0, 1.0, 1.0)
        return (2, 3, 4) if counter % 3 == 0 else (0, 0, 0)

    store = fake_store()
    sampler = PatchSampler([CaseIndex.of(case) for case in store.values()], PATCH, STAGE_ODDS["tumor"], 5)
    plain = _batches(store, deliver="packed", tier="disk")
    for tier in ("disk", "device"):
        for case in store.values():
            case.regions.clear()
        wide = _batches(store, deliver="packed", margin=margin, tier=tier)
        assert _equal(plain, wide)
        for a, b in zip(plain, wide, strict=True):
            assert torch.equal(a.packed_BZYX, b.packed_BZYX)
            for counter, case_id, before, patch in zip(b.counters, b.case_ids, a.packed, b.packed, strict=True):
                z, y, x = margin(counter, (2.0, 1.0, 1.0))
                assert patch.shape == (8 + 2 * z, 16 + 2 * y, 16 + 2 * x)
                assert patch.is_contiguous()
                inner = patch.view(torch.int16)[z : 8 + z, y : 16 + y, x : 16 + x]
                assert torch.equal(inner, before.view(torch.int16))
                cut = _cut(store[case_id], sampler[counter].origin_zyx, patch.shape, (z, y, x))
                np.testing.assert_array_equal(patch.numpy(), cut)
    with pytest.raises(UsageError, match="a margin with deliver 'channels'; expected 'packed'"):
        _batches(store, margin=margin)


def _cut(case: FakeCase, origin: Shape, shape: Sequence[int], margin_zyx: Shape) -> np.ndarray:
    """Part of the volume with zeros around it."""
    low = [20 + o - m for o, m in zip(origin, margin_zyx, strict=True)]
    return np.pad(case.read_packed(), 20)[tuple(slice(start, start + n) for start, n in zip(low, shape, strict=True))]


def test_neighbors_come_from_one_read() -> None:
    store = fake_store(1)
    single = _batches(store, patches_per_read=2, workers=1, tier="disk", count=8)
    assert len(store["fake-00"].regions) < 2 * 8  # one read for a group, where that is less than two patches
    store["fake-00"].regions.clear()
    with PatchLoader(store, PATCH, 1, stage="tumor", seed=5, windows=BANK, stop=16, patches_per_read=2) as loader:
        parts = list(loader)  # a batch holds half a group: each patch is read by itself
    assert len(store["fake-00"].regions) == 16
    together = torch.cat([batch.image_BCZYX for batch in parts])
    assert torch.equal(together, torch.cat([batch.image_BCZYX for batch in single]))


def test_the_kernel_is_asked_for_what_is_read_next() -> None:
    store = fake_store(1)
    case = store["fake-00"]
    _batches(store, tier="disk", count=10, workers=1)
    assert len(case.regions) == 20
    assert case.regions[2:] == case.hinted  # all but the first batch, and in order
    case.hinted.clear()
    _batches(store, tier="ram")
    assert case.hinted == []
    assert case.cache is not None


# --- the choice --------------------------------------------------------------------------------------------------


def _choose(wanted: str, device: str = "cpu", free: int = 10**6, **options: Any) -> Any:
    cases = list(fake_store(2).values())  # 2 x 24 x 32 x 32 voxels: 98,304 bytes packed
    return choose_tier(wanted, cases, torch.device(device), free_bytes=lambda _: free, **options)  # type: ignore[arg-type]


def test_the_tier_follows_from_sizes() -> None:
    assert _choose("auto", "cuda").name == "device"
    assert _choose("auto", "cuda", free=240_000).name == "ram"
    assert _choose("auto", "cuda", free=150_000).name == "disk"
    assert _choose("auto").name == "ram"
    assert _choose("auto", processes=8).name == "disk"
    assert _choose("auto", ram_budget_bytes=10**5).name == "ram"
    assert _choose("auto", ram_budget_bytes=9 * 10**4).name == "disk"
    assert _choose("auto", uses_packed=False).name == "disk"
    assert [_choose(tier).name for tier in TIERS[1:]] == ["device", "ram", "disk"]
    assert _choose("ram", ram_budget_bytes=7).budget_bytes == 7
    assert _choose("auto").line == "loader: tier ram: 0.1 MB decoded fit into 0.5 MB of free memory"
    with pytest.raises(UsageError, match="loader tier 'tape': expected one of auto, device, ram, disk"):
        _choose("tape")


def test_uncompressed_stores_are_left_to_the_page_cache() -> None:
    class Raw(FakeCase):
        def packed_bytes(self, region: Any = None) -> int:
            return self.hu.nbytes

    tier = choose_tier("auto", [Raw("a", *abdomen(0))], CPU)
    assert (tier.name, "page cache" in tier.why) == ("disk", True)


def test_the_choice_is_said_in_one_line() -> None:
    lines: list[str] = []
    _batches(fake_store(), say=lines.append, ram_budget_bytes=10**9)
    assert lines == ["loader: tier ram: 0.1 MB decoded fit into 1.0 GB of free memory"]


def test_a_batch_jobs_limit_is_a_limit_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    used = psutil.Process().memory_info().rss >> 20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(used + 64))
    assert free_memory(CPU) <= 65 << 20
    assert choose_tier("ram", [FakeCase("a", *abdomen(0))], CPU).budget_bytes <= 33 << 20


def test_a_cohort_that_cannot_be_held_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeCase):
        def read_packed(self, region: Any = None, out: np.ndarray | None = None) -> np.ndarray:
            if region[0] == slice(0, 24):
                raise StoreError("STORE_CORRUPT", "b: chunk 3 is damaged")
            return super().read_packed(region, out)

    store = FakeStore([FakeCase("a", *abdomen(0)), Broken("b", *abdomen(1))])
    with pytest.raises(StoreError, match="b: chunk 3"):
        _batches(store, tier="device")
    monkeypatch.setattr("livtrain.loader.streaming.choose_tier", lambda *_, **__: _choose("device"))
    lines: list[str] = []
    assert len(_batches(store, tier="auto", say=lines.append)) == 6
    assert lines[0].startswith("loader: tier disk: the cohort cannot be held on cpu (b: chunk 3")


@pytest.mark.gpu
@pytest.mark.parametrize("deliver", ["channels", "packed", "nnunet"])
def test_a_cuda_device_gets_the_same_bits(small_store: Path, deliver: str) -> None:
    store = open_store(small_store)
    host = _batches(store, count=20, deliver=deliver, tier="disk")
    for tier in ("disk", "ram", "device"):
        found = _batches(store, count=20, deliver=deliver, tier=tier, device="cuda")
        for a, b in zip(host, found, strict=True):
            assert torch.equal(a.image_BCZYX, b.image_BCZYX.cpu())
            assert torch.equal(a.labels_BZYX, b.labels_BZYX.cpu())
