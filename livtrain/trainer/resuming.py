"""What a run may continue from, and torch's switches for repeating it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from livprep.errors import RunError, UsageError
from livtrain.checkpoint import BEST, LAST, Checkpoint, load_checkpoint
from livtrain.config import Settings

_COURSE = {
    "stage", "network", "width", "dropout", "loss", "windows", "window_source", "patch_zyx", "batch", "learning_rate",
    "schedule", "milestones", "warmup", "gradient_clip", "weight_decay", "supervision", "sampling", "augment", "seed",
    "amp", "pretrained", "frozen", "background", "class_weights", "accumulate", "optimizer", "momentum", "patience",
    "ema", "channels_last", "compile", "activation_checkpointing", "patches_per_read", "learn_windows",
    "window_softness", "dice_ema",
}  # fmt: skip
"""Settings that decide every parameter of a run; a resumed run must have the same."""
_RUN_FILES = ("config.yaml", LAST, BEST, "metrics.jsonl")


def check_course(now: Settings, store_digest: str, world: int, then: Checkpoint) -> None:
    """Check that a run would go on as its checkpoint began.

    Raises
    ------
    UsageError
        CONFIG_INVALID: settings that decide the parameters, the data, or the number of processes differ.
    """
    new, old = (settings.model_dump(include=_COURSE) for settings in (now, then.settings))
    changed = [f"{name} was {old[name]!r} and is {new[name]!r}" for name in new if new[name] != old[name]]
    if world != then.world:
        changed.append(f"it had {then.world} processes and has {world}")
    if changed:
        raise UsageError("CONFIG_INVALID", f"--resume: {'; '.join(changed)}; use another --run")
    if then.store_digest != store_digest:
        raise UsageError("CONFIG_INVALID", "--resume: the training cases are not those of the run; use another --run")


def open_run(run_dir: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to continue from, or None for a new run.

    Raises
    ------
    RunError
        RUN_EXISTS: the folder holds a run, which is not overwritten. CHECKPOINT_CORRUPT.
    """
    if not any((run_dir / name).exists() for name in _RUN_FILES):
        return None
    if not resume:
        raise RunError("RUN_EXISTS", f"{run_dir} already holds a run")
    if not any((run_dir / name).exists() for name in (LAST, BEST)):
        return None  # it was stopped before its first checkpoint
    return load_checkpoint(run_dir, prefer="last")


@contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms, and give its switches back at the end."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it (torch docs, reproducibility)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
