"""How long training had no patches to work on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class DataWait:
    """Seconds in which the device waited for patches.

    A CUDA device works on what was asked of it long before: that the host waits for a batch then says nothing, as the
    device may have steps left to do. So a mark is put into the device's own queue before a batch is fetched and one
    after it: the time between the two is what the device spent on nothing else. On a CPU it is the host's time.

    Parameters
    ----------
    device
        Where the steps are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host_s = 0.0
        self._marks: list[tuple[Any, Any]] = []

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Context in which the patches of a step are fetched."""
        began, before = time.perf_counter(), self._mark()
        yield
        if before is None:
            self._host_s += time.perf_counter() - began
        else:
            self._marks.append((before, self._mark()))

    def taken_s(self) -> float:
        """Seconds since this was asked last; the device must have done all steps, as it has where a loss is read."""
        seconds: float = self._host_s + sum(before.elapsed_time(after) for before, after in self._marks) / 1000
        self._host_s = 0.0
        self._marks.clear()
        return seconds

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return None
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self._device))
        return mark
