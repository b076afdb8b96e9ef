"""The copies to a CUDA device, with a device that copies late: host memory must wait for it."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_store import fake_store
from torch import Tensor

from livtrain.loader import PatchLoader, placing

LATE = 3
"""Copies that are under way before the first of them is done."""
REQUEST: dict[str, Any] = {"seed": 3, "stop": 48, "tier": "disk", "deliver": "packed"}


class LateDevice:
    """Streams, events and copies of a device that does a copy when `LATE` further ones were asked of it.

    It reads host memory by its address, as the device does: what was written there in between is what it copies.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = self.done = 0
        self.copies: list[tuple[Tensor, int]] = []
        device = self

        class Event:
            def record(self, stream: Any) -> None:
                self.at = device.asked

            def query(self) -> bool:
                return device.done >= self.at

        class Stream:
            def __init__(self, _: Any) -> None: ...
            def wait_event(self, event: Event) -> None: ...

        for name, value in {"Event": Event, "Stream": Stream, "current_stream": Stream}.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name in ("device", "stream"):
            monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
        monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
        monkeypatch.setattr(placing.CudaPlacer, "_copied", lambda _, host: self.copy(host))

    def copy(self, host: Tensor) -> Tensor:
        there = torch.empty_like(host)
        self.copies.append((there, host.data_ptr()))
        self.asked += 1
        self.catch_up(LATE)
        return there

    def catch_up(self, late: int) -> None:
        while self.asked - self.done > late:
            there, address = self.copies[self.done]
            ctypes.memmove(there.data_ptr(), address, there.nbytes)
            self.done += 1


@pytest.mark.parametrize("workers", [0, 2])
def test_host_memory_goes_round_only_after_its_copy(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with PatchLoader(fake_store(), (8, 16, 16), 4, workers=0, **REQUEST) as loader:
        wanted = [batch.packed_BZYX.view(torch.int16).clone() for batch in loader]
    device = LateDevice(monkeypatch)
    with PatchLoader(fake_store(), (8, 16, 16), 4, workers=workers, **REQUEST) as loader:
        loader._placer = placing.CudaPlacer(loader._filler, torch.device("cpu"))
        batches = list(loader)
        slots: Any = loader._filler.buffers.slots
        assert LATE < slots.made < len(wanted)  # they wait, and they go round
        device.catch_up(0)
    assert len(batches) == len(wanted) == 12
    for batch, expected in zip(batches, wanted, strict=True):
        assert torch.equal(batch.packed_BZYX.view(torch.int16), expected)
