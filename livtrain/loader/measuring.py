"""What a loader delivers on this machine from this store: patches, bytes, processor time, waiting."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from livtrain.loader.request import LoaderCase
from livtrain.loader.streaming import PatchLoader
from livtrain.sampling import Shape

_PACKED_BYTES = 2
_WARM_SHARE = 0.2
"""Part of the time that is spent before measuring starts: caches fill, code compiles."""


@dataclass(frozen=True)
class Throughput:
    """One measurement.

    Parameters
    ----------
    tier, why
        Where the voxels lay, and the reason.
    threads
        Threads that read.
    deliver
        Form of the batches.
    cases, patches
        Cases drawn from, and patches delivered while it was measured.
    seconds
        Wall time of that.
    start_s
        Wall time from making the loader to its first batch.
    patches_per_s, bytes_per_s
        Patches, and bytes of their packed voxels, per second of wall time.
    cpu_ms_per_patch
        Processor time of all threads, the consumer's included, per patch.
    cpu_share
        Processor time as a part of what all cores could give.
    wait_fraction
        Part of the time that a consumer waits whose step takes `step_ms`; None without steps.
    step_ms
        Time of a step, in which the consumer leaves the processor alone as one that waits for a GPU does.
    """

    tier: str
    why: str
    threads: int
    deliver: str
    cases: int
    patches: int
    seconds: float
    start_s: float
    patches_per_s: float
    bytes_per_s: float
    cpu_ms_per_patch: float
    cpu_share: float
    wait_fraction: float | None
    step_ms: float | None


def measure(
    store: Mapping[str, LoaderCase],
    patch_zyx: Shape,
    batch: int,
    *,
    seconds: float,
    step_ms: float | None = None,
    **options: Any,
) -> Throughput:
    """Stream patches for some seconds.

    Parameters
    ----------
    store, patch_zyx, batch, options
        As those of `PatchLoader`.
    seconds
        Wall time, a fifth of it for warming up.
    step_ms
        Time that the consumer spends on each batch; without it, batches are dropped as they come.
    """
    began, device = time.perf_counter(), torch.device(options.get("device", "cpu"))
    with PatchLoader(store, patch_zyx, batch, **options) as loader:
        next(loader)
        _wait_for(device)
        start_s = time.perf_counter() - began
        patches, waited, wall_s, cpu_s = 0, 0.0, 0.0, 0.0
        for share in (_WARM_SHARE, 1 - _WARM_SHARE):
            patches, waited, cpu, begin = 0, 0.0, time.process_time(), time.perf_counter()
            while time.perf_counter() - begin < share * seconds or not patches:
                asked = time.perf_counter()
                patches += len(next(loader).counters)
                if step_ms:
                    _wait_for(device)
                    waited += time.perf_counter() - asked
                    time.sleep(step_ms / 1000)
            _wait_for(device)
            wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        return Throughput(
            tier=loader.tier.name,
            why=loader.tier.why,
            threads=int(options.get("workers", 2)),
            deliver=str(options.get("deliver", "channels")),
            cases=len(options.get("cases") or store),
            patches=patches,
            seconds=wall_s,
            start_s=start_s,
            patches_per_s=patches / wall_s,
            bytes_per_s=patches / wall_s * math.prod(patch_zyx) * _PACKED_BYTES,
            cpu_ms_per_patch=1000 * cpu_s / patches,
            cpu_share=cpu_s / wall_s / len(os.sched_getaffinity(0)),
            wait_fraction=waited / wall_s if step_ms else None,
            step_ms=step_ms,
        )


def _wait_for(device: torch.device) -> None:
    """Until a device has done what was asked of it: a CUDA batch is handed out while it is still being made."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
