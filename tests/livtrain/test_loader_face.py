"""torch's DataLoader gets the stream of one process, from slots that are shared and go round."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from collections.abc import Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fake_store import BANK, fake_store
from torch.utils.data import get_worker_info

import livtrain
from livprep.errors import UsageError
from livprep.store import open_store
from livtrain.loader import Batch, PatchDataset, PatchLoader, PatchRequest, face
from livtrain.loader.face import SharedSlots

PATCH = (8, 16, 16)


def _request(store: Any, **options: Any) -> PatchRequest:
    return PatchRequest(store, PATCH, 2, **{"windows": BANK, "seed": 5, "stop": 23, **options})


def _expected(request: PatchRequest) -> list[Batch]:
    with PatchLoader(
        request.store, PATCH, 2, windows=BANK, seed=5, stop=request.stop, deliver=request.deliver, tier="disk"
    ) as loader:
        return list(loader)


class _Worker(NamedTuple):
    id: int
    num_workers: int


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("deliver", ["channels", "packed", "nnunet"])
def test_workers_in_turn_give_the_stream(workers: int, deliver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = _request(fake_store(), deliver=deliver)
    streams: list[Iterator[Batch]] = []
    for number in range(workers):
        monkeypatch.setattr(face, "get_worker_info", lambda number=number: _Worker(number, workers))
        stream = iter(PatchDataset(request))
        streams.append(_primed(stream))
    for k, expected in enumerate(_expected(request)):
        batch = next(streams[k % workers])
        assert batch.counters == expected.counters
        assert torch.equal(batch.image_BCZYX, expected.image_BCZYX)
        assert torch.equal(batch.labels_BZYX, expected.labels_BZYX)
        sent = (batch.flat,) if deliver == "packed" else batch.unpacked
        assert sent is not None
        assert all(tensor is not None and tensor.is_shared() for tensor in sent)
    assert all(next(stream, None) is None for stream in streams)


def _primed(stream: Iterator[Batch]) -> Iterator[Batch]:
    """A generator runs from its first `next`: take that now, while the worker is who it is."""
    first = next(stream)

    def rest() -> Iterator[Batch]:
        yield first
        yield from stream

    return rest()


@pytest.mark.parametrize("reuse", [True, False])
def test_a_slot_is_used_again_after_prefetch_and_three(reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "get_worker_info", lambda: _Worker(0, 1))
    stream = iter(PatchDataset(_request(fake_store(), stop=40), prefetch_factor=2, reuse_slots=reuse))
    kept = [next(stream) for _ in range(5)]
    copies = [batch.image_BCZYX.clone() for batch in kept]
    assert all(torch.equal(batch.image_BCZYX, copy) for batch, copy in zip(kept, copies, strict=True))
    sixth = next(stream)
    assert (sixth.image_BCZYX.data_ptr() == kept[0].image_BCZYX.data_ptr()) is reuse
    assert torch.equal(kept[0].image_BCZYX, copies[0]) is not reuse
    assert torch.equal(kept[1].image_BCZYX, copies[1])


def test_without_workers_batches_are_their_holders(small_store: Path) -> None:
    request = _request(open_store(small_store))
    kept = list(PatchDataset(request).loader(0))
    for a, b in zip(kept, _expected(request), strict=True):
        assert torch.equal(a.image_BCZYX, b.image_BCZYX)


def test_processes_give_the_stream(small_store: Path) -> None:
    """Two real workers; a batch is compared while the next one is fetched, as a training step would hold it."""
    request = _request(open_store(small_store), stop=41)
    expected = _expected(request)
    loader = PatchDataset(request).loader(2)
    before: tuple[Batch, Batch] | None = None
    seen = 0
    for batch, wanted in zip(loader, expected, strict=True):
        for found, right in filter(None, (before, (batch, wanted))):
            assert found.counters == right.counters
            assert found.case_ids == right.case_ids
            assert torch.equal(found.image_BCZYX, right.image_BCZYX)
        before, seen = (batch, wanted), seen + 1
    assert seen == len(expected) == 21


def test_forked_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "current_process", lambda: ForkProcess.__new__(ForkProcess))
    with pytest.raises(UsageError, match="a worker was forked"):
        next(iter(PatchDataset(_request(fake_store()))))


def test_little_shared_memory_means_fewer_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    batch_bytes = 2 * 8 * 16 * 16 * (2 * 4 + 1)
    for free, deliver, fitting in ((2.5 * 5 * batch_bytes, "channels", 2), (9, "packed", 0), (9, "nnunet", 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(1, 1, int(free)))
        dataset = PatchDataset(_request(fake_store(), deliver=deliver))
        with pytest.warns(RuntimeWarning, match=f"holds the slots of {fitting} workers, expected 3"):
            loader = dataset.loader(3)
        assert loader.num_workers == fitting


def test_slots_of_any_size() -> None:
    slots = SharedSlots("uint16", 2)
    first = slots.take((2, 3))
    assert slots.tensor(first).shape == (2, 3)
    slots.take((5,))
    larger = slots.take((400,))
    assert larger.shape == (400,)
    assert slots.tensor(larger).is_shared()


def test_requests_travel_and_are_checked(small_store: Path) -> None:
    request = _request(open_store(small_store), margin=None)
    again = pickle.loads(pickle.dumps(request))
    assert again.patch_zyx == PATCH
    assert list(again.open()) == list(request.open())
    with pytest.raises(UsageError, match="rank 2 of 2"):
        _request(fake_store(), rank=2, world=2)
    with pytest.raises(UsageError, match="prefetch_factor 0; expected >= 1"):
        PatchDataset(request, prefetch_factor=0)
    assert livtrain.PatchDataset is PatchDataset
    assert get_worker_info() is None
