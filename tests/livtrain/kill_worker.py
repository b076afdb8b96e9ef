"""What `test_repeatable` starts and kills: `python kill_worker.py FOLDER THREADS KILL_AT STEPS`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from fake_store import fake_store

from livtrain.config import Settings, resolve
from livtrain.trainer import StepReport, fit

COURSE = (
    "patch_zyx=[8,16,16]", "width=2", "validate_every=15", "validation_share=null", "checkpoint_s=0", "batch=2",
    "overlap=0", "dropout=0.3", "train_dice_cases=0", "warmup=0.2", "ema=0.9", "log_every=1",
    "augment={preset: nnunet}",
)  # fmt: skip


def settings(threads: int, steps: int) -> Settings:
    """All that can go wrong when a run goes on: dropout, averaged weights, warm-up, augmentation."""
    more = (f"loader_threads={threads}", f"steps={steps}")
    return resolve(preset="fast-cpu", assignments=[*COURSE, *more], options={"device": "cpu"})


def main(folder: Path, threads: int, kill_at: int, steps: int) -> None:
    """Train; the process dies where it has logged step `kill_at`, whose checkpoint is not written yet."""
    torch.set_num_threads(1)

    def die(report: StepReport) -> None:
        if report.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(fake_store(), settings(threads, steps), folder, resume=True, on_step=die)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
