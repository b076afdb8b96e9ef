"""What a run reports: while it goes, and what it came to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import torch

from livprep.provenance import package_version
from livtrain.model import learned_bank
from livtrain.trainer.run import Run


@dataclass(frozen=True)
class StepReport:
    """Where a run is: for progress bars. `loss` and `val_dice` are the newest, `seconds_left` an estimate.

    `wait_fraction` is the part of the training time in which the loop waited for patches, `memory_bytes` the most
    that the device has held, or what this process holds of the main memory.
    """

    step: int
    steps: int | None
    fraction: float
    loss: float
    val_dice: float | None
    patches_per_s: float
    wait_fraction: float
    memory_bytes: int
    seconds: float
    seconds_left: float


@dataclass(frozen=True)
class Summary:
    """What a run came to; `summary.json` holds the same. Dice is None where nothing was scored."""

    stage: str
    network: str
    preset: str
    parameters: int
    steps: int
    stopped_by: str
    seconds: float
    loss: float | None
    best_val_dice: float | None
    best_step: int | None
    train_dice: float | None
    patches_per_s: float
    data_wait_fraction: float
    validation_fraction: float
    device: str
    processes: int
    global_batch: int
    train_cases: int
    val_cases: int
    windows: list[dict[str, Any]]
    run: str
    version: str


def report_step(run: Run, loss: float) -> StepReport:
    """Where a run is after a step."""
    fraction, progress = run.fraction, run.progress
    return StepReport(
        step=run.step,
        steps=run.settings.steps,
        fraction=fraction,
        loss=loss,
        val_dice=progress.val_dice,
        patches_per_s=_patches_per_s(run),
        wait_fraction=_wait_fraction(run),
        memory_bytes=_memory_bytes(run.device),
        seconds=run.seconds,
        seconds_left=run.seconds * (1 - fraction) / fraction if fraction else float("inf"),
    )


def summarize(run: Run, ended: str, loss: float | None, train_dice: float, folder: Path) -> Summary:
    """What a run came to."""
    settings, progress = run.settings, run.progress
    windows = learned_bank(run.network) or settings.bank
    return Summary(
        stage=settings.stage,
        network=settings.network,
        preset=settings.preset,
        parameters=sum(p.numel() for p in run.network.parameters()),
        steps=run.step,
        stopped_by=ended,
        seconds=round(run.seconds, 3),
        loss=loss,
        best_val_dice=progress.best_val_dice,
        best_step=progress.best_step,
        train_dice=train_dice if math.isfinite(train_dice) else None,
        patches_per_s=round(_patches_per_s(run), 3),
        data_wait_fraction=round(_wait_fraction(run), 4),
        validation_fraction=round(progress.validating_s / max(run.seconds, 1e-9), 4),
        device=torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else str(run.device),
        processes=run.ranks.world,
        global_batch=run.patches_per_step,
        train_cases=len(run.plan.train),
        val_cases=len(run.plan.val),
        windows=[{"name": window.name, "wl": window.center_hu, "ww": window.width_hu} for window in windows],
        run=str(folder),
        version=package_version(),
    )


def read_summary(folder: Path) -> Summary | None:
    """What a run wrote when it ended; None where it did not end."""
    try:
        content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return Summary(**{field.name: content.get(field.name) for field in fields(Summary)})
    except (OSError, ValueError):
        return None


def dice_text(means: Mapping[str, float]) -> str:
    """Mean Dice for a person, by structure where there are several."""
    texts = {
        name: f"{value:.4f}" if math.isfinite(value) else "unknown (no case has it)" for name, value in means.items()
    }
    mean = texts.pop("mean")
    return mean if len(texts) == 1 else f"{mean} ({', '.join(f'{name} {text}' for name, text in texts.items())})"


def _patches_per_s(run: Run) -> float:
    return run.step * run.patches_per_step / max(run.progress.training_s, 1e-9)


def _wait_fraction(run: Run) -> float:
    return run.progress.waiting_s / max(run.progress.training_s, 1e-9)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return int(psutil.Process().memory_info().rss)
