"""How fast the training step is on this machine, fed from a store."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from livtrain.config import Settings
from livtrain.inference.measuring import peak_memory_bytes
from livtrain.trainer.memory import memory_told
from livtrain.trainer.plan import Say, TrainingStore, make_plan
from livtrain.trainer.resuming import reproducible
from livtrain.trainer.run import Run

WARM_STEPS = 2
"""Before the clock starts: the first steps choose algorithms and fill the allocator."""


@dataclass(frozen=True)
class StepSpeed:
    """Training steps of one network; memory is the process's peak (`device_` the CUDA device's)."""

    network: str
    parameters: int
    patch_zyx: tuple[int, int, int]
    batch: int
    device: str
    amp: str
    steps: int
    seconds: float
    step_ms: float
    patches_per_s: float
    voxels_per_s: float
    data_wait_fraction: float
    peak_memory_bytes: int
    device_memory_bytes: int


def measure_steps(store: TrainingStore, settings: Settings, steps: int, say: Say) -> StepSpeed:
    """Train for some steps on the store's patches and forget the result.

    Parameters
    ----------
    store
        With labelled cases; a split is recorded where none is.
    settings
        As those of `fit`.
    steps
        Measured after `WARM_STEPS`.
    say
        Takes one line for each choice.
    """
    run = Run(make_plan(store, settings.replace(steps=steps + WARM_STEPS, time_s=None), say))
    waited = seconds = 0.0
    with reproducible(settings.deterministic), run.loader(say) as loader:
        for count in (WARM_STEPS, steps):
            began = time.perf_counter()
            for _ in range(count):
                with run.waits.fetching():
                    batches = [next(loader) for _ in range(run.settings.accumulate)]
                with memory_told(run.settings):
                    loss = run.train_step(batches)
            loss.item()  # waits for the device, which fit does every `log_every` steps
            seconds, waited = time.perf_counter() - began, run.waits.taken_s()
    patches = steps * run.patches_per_step
    cuda = run.device.type == "cuda"
    return StepSpeed(
        network=run.settings.network,
        parameters=sum(p.numel() for p in run.network.parameters()),
        patch_zyx=run.settings.patch_zyx,
        batch=run.settings.batch,
        device=str(run.device),
        amp=run.settings.amp,
        steps=steps,
        seconds=seconds,
        step_ms=1000 * seconds / steps,
        patches_per_s=patches / seconds,
        voxels_per_s=patches / seconds * math.prod(run.settings.patch_zyx),
        data_wait_fraction=waited / seconds,
        peak_memory_bytes=peak_memory_bytes(),
        device_memory_bytes=torch.cuda.max_memory_allocated(run.device) if cuda else 0,
    )
